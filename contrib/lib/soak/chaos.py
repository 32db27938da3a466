"""When what is killed, stopped or replaced, and doing so.

The moments are random, and the same for the same seed. A blow waits until there is somebody left to survive it: the
promise is about any process, and about two of the three at once; all three at once is killall.py's.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal, get_args

from relfs.daemon.member import who_is
from relfs.survival.ledger import Who
from soak.judge import Verdict
from soak.site import Pids, Site, SoakError

Kind = Literal["worker", "supervisor", "standby", "two", "stop-worker", "stop-supervisor", "reload"]
KINDS: tuple[Kind, ...] = get_args(Kind)

_IN_TEN_MINUTES: dict[Kind, int] = {
    "worker": 200, "supervisor": 50, "standby": 50, "two": 20, "stop-worker": 20, "stop-supervisor": 20, "reload": 50,
}  # fmt: skip

_RECOVERY_SECONDS = 30.0


@dataclass(frozen=True)
class Blow:
    """`at` is in seconds after the beginning."""

    at: float
    kind: Kind


@dataclass(frozen=True)
class Struck:
    """A blow that was dealt, at `moment` (seconds of CLOCK_MONOTONIC), to these processes."""

    moment: float
    kind: Kind
    pids: tuple[int, ...]


def plan(seconds: float, seed: int, without: Collection[Kind] = ()) -> list[Blow]:
    """As many of each kind as fit the time, at random moments, and at least one."""
    chance = random.Random(seed)
    blows = [
        Blow(chance.uniform(0, seconds), kind)
        for kind, number in _IN_TEN_MINUTES.items()
        if kind not in without
        for _ in range(max(1, round(number * seconds / 600)))
    ]
    return sorted(blows, key=lambda blow: blow.at)


class Chaos:
    """Deals blows to one site, and keeps what they were. GUARDED BY nothing: one thread."""

    def __init__(self, site: Site, seed: int) -> None:
        self._site = site
        self._random = random.Random(seed)
        self.struck: list[Struck] = []
        self._gone: set[Who] = set()  # who was killed runs for a moment yet, or is stopped
        self._wrong: list[str] = []

    def deal(self, kind: Kind) -> None:
        """Wait until it can be survived, and strike. Raises SoakError if relfs does not recover from the last."""
        pids = self._site.wait_for_pids(self._survivable(kind), _RECOVERY_SECONDS)
        if kind == "reload":
            self._reload(pids)
            return
        victims, number = self._choose(kind, pids)
        self._gone |= {*map(who_is, victims)}
        for pid in victims:
            with suppress(ProcessLookupError):  # it ended by itself, which the next blow looks into
                os.kill(pid, number)
        self.struck.append(Struck(time.monotonic(), kind, victims))

    def _choose(self, kind: Kind, pids: Pids) -> tuple[tuple[int, ...], signal.Signals]:
        if kind == "two":
            return tuple(self._random.sample(pids.alive(), 2)), signal.SIGKILL
        part = kind.removeprefix("stop-")
        number = signal.SIGSTOP if kind.startswith("stop-") else signal.SIGKILL
        return (getattr(pids, part),), number

    def _reload(self, pids: Pids) -> None:
        self.struck.append(Struck(time.monotonic(), "reload", pids.alive()))
        try:
            self._site.ctl("reload")
        except SoakError as error:
            self._wrong.append(str(error))

    def _survivable(self, kind: Kind) -> Callable[[Pids], bool]:
        """Whether that leaves one that can go on; all of them for what needs the third."""
        least = 3 if kind in ("two", "standby", "reload") else 2

        def enough(pids: Pids) -> bool:
            alive = {who.pid for who in map(who_is, pids.alive()) if who.start and who not in self._gone}
            return len(alive) >= least and {pids.worker, pids.supervisor} <= alive

        return enough

    def verdict(self) -> Verdict:
        return Verdict("every reload is done", tuple(self._wrong))
