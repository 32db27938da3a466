"""So many per cent of a set of processes that nobody counts beforehand, since they come and go.

Fair at every moment
--------------------
Some facts. A process is decided about when it asks for the first time, and that holds for its life. How many there
will be, nobody knows then. A coin that is tossed for each gives 25 % of 64 as 16 only on average: in one case of three
it is off by more than three.

The choice. Those that live are counted. Of n, so many are to be chosen: n times the percentage, plus a fraction
between 0 and 1 that is the set's own, rounded down. Whoever comes next is chosen if fewer are. So of 64, 25 % are 16
exactly, whoever has ended meanwhile and been replaced; and as the fraction is drawn from the names of set and release,
of many sets with one process each, 25 % have it chosen.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable

from relfs.processes import process

Key = tuple[int, int]
"""A process: its pid and start time."""


class Share:
    """Of one set. Nothing in here waits."""

    def __init__(self, percent: float, name: str, lives: Callable[[Key], bool] | None = None) -> None:
        """`name` draws the fraction. `lives` says who has not ended; by default, /proc does."""
        self._percent = percent
        drawn = hashlib.blake2b(name.encode("utf-8", "surrogateescape"), digest_size=8).digest()
        self._fraction = int.from_bytes(drawn, "little") / (1 << 64)
        self._lives = lives if lives is not None else _lives
        self._members: dict[Key, bool] = {}

    def add(self, key: Key, *, chosen: bool) -> None:
        """One that was decided about before."""
        self._members[key] = chosen

    def forget(self, key: Key) -> None:
        """One that has ended."""
        self._members.pop(key, None)

    def choose(self, key: Key) -> bool:
        """Decide about one that is new."""
        self._members = {each: chosen for each, chosen in self._members.items() if self._lives(each)}
        wanted = math.floor((len(self._members) + 1) * self._percent / 100 + self._fraction)
        chosen = sum(self._members.values()) < wanted
        self._members[key] = chosen
        return chosen


def _lives(key: Key) -> bool:
    """A zombie does not."""
    found = process(key[0])
    return found is not None and found.start == key[1] and found.alive
