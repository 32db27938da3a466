"""How an actor tells what it did, and learns that it is to end. Standard library only.

A JSON document a line, on standard output:
    {"ready": true}                                        it has begun
    {"failed": ERRNO, "what": TEXT, "at": [FROM, TO]}      a system call, or a command, did not succeed
    {"slow": [FROM, TO], "what": TEXT}                     it took longer than it should
    {"switch": RELEASE, "by": TEXT, "at": [FROM, TO]}      `current` was switched: asked for, and answered
    {"end": {COUNT: NUMBER, ...}}                          the last line
Times are seconds of CLOCK_MONOTONIC, which all processes share. An actor ends when its standard input is closed.
"""

from __future__ import annotations

import errno
import json
import select
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

SLOW_SECONDS = 0.02
"""For one system call, whatever else the machine does."""


class Wrong(Exception):  # noqa: N818 (what was seen is wrong; nothing failed)
    """What an actor sees is not what it has just done."""


class Teller:
    """Tells what happens, and counts it."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def ready(self) -> None:
        self._say({"ready": True})

    @contextmanager
    def attempt(self, what: str, slow: float = SLOW_SECONDS) -> Iterator[None]:
        """Around what must succeed, in `slow` seconds if all is well. An OSError or Wrong is told, and goes on to the
        caller."""
        begin = time.monotonic()
        try:
            yield
        except (OSError, Wrong) as error:
            self._say({"failed": _name(error), "what": what, "at": [begin, time.monotonic()]})
            raise
        now = time.monotonic()
        self.counts[what] += 1
        if now - begin > slow:
            self._say({"slow": [begin, now], "what": what})

    @contextmanager
    def switch(self, release: str, by: str, slow: float = SLOW_SECONDS) -> Iterator[None]:
        """Around what makes `release` current."""
        begin = time.monotonic()
        with self.attempt(by, slow):
            yield
        self._say({"switch": release, "by": by, "at": [begin, time.monotonic()]})

    def end(self) -> None:
        self._say({"end": dict(self.counts)})

    def _say(self, line: dict[str, object]) -> None:
        print(json.dumps(line), flush=True)


def _name(error: OSError | Wrong) -> str:
    if isinstance(error, OSError) and error.errno is not None:
        return errno.errorcode.get(error.errno, str(error.errno))
    return str(error)


def told_to_end(pause: float) -> bool:
    """Whether standard input was closed; waits for that, `pause` seconds at most."""
    return bool(select.select([sys.stdin], [], [], pause)[0])
