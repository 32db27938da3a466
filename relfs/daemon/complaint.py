"""What goes wrong again and again, said as often as somebody wants to read it."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass

_FIRST_SECONDS = 1.0
_LONGEST_SECONDS = 3600.0


@dataclass(frozen=True)
class _Said:
    """When something was said for the first time, and when it is to be said again (monotonic seconds)."""

    first: float
    again: float


class Complaint:
    """Errors that whoever tries again meets again. Each is said at once, and again when it has lasted twice as long as
    when it was said last, or for another hour. Contains nothing that blocks."""

    def __init__(self, log: logging.Logger) -> None:
        self._log = log
        self._said: dict[str, _Said] = {}

    def say(self, words: str) -> None:
        """This is wrong now."""
        now = time.monotonic()
        said = self._said.get(words, _Said(now, now))
        if now >= said.again:
            self._log.error("%s", words)
            pause = min(max(now - said.first, _FIRST_SECONDS), _LONGEST_SECONDS)
            self._said[words] = _Said(said.first, now + pause)

    def end(self, words: str) -> None:
        """Nothing is wrong any more, which `words` say to whoever was told that something is."""
        if self._said:
            self._said.clear()
            self._log.info("%s", words)
