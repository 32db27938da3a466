"""Appends numbered lines to one file: `python -m soak.actors.appender FILE`.

Line N begins with N, and the lines have many lengths, some longer than a page. Every line is one write(2) to a
descriptor with O_APPEND, which is opened anew now and then. A line that failed is tried again, so that one that was
written all the same is there twice.
"""

from __future__ import annotations

import itertools
import os
import sys
from contextlib import suppress

from soak.actors.telling import Teller, Wrong, told_to_end

_REOPEN = 50
_SYNC = 200
_PAUSE = 0.001


def line(number: int) -> bytes:
    """What the appender writes."""
    return b"%d %s\n" % (number, b"x" * (number * 37 % 300 if number % 20 else 6000))


def main(file: str) -> None:
    teller = Teller()
    fd = _open(file)
    teller.ready()
    for number in itertools.count():
        while not _append(teller, fd, line(number)):
            fd = _reopen(teller, fd, file)
        if number % _REOPEN == 0:
            fd = _reopen(teller, fd, file)
        if number % _SYNC == 0:
            with suppress(OSError), teller.attempt("fsync"):
                os.fsync(fd)
        if told_to_end(_PAUSE):
            break
    teller.end()


def _append(teller: Teller, fd: int, data: bytes) -> bool:
    with suppress(OSError, Wrong), teller.attempt("append"):
        written = os.write(fd, data)
        if written != len(data):
            raise Wrong(f"{written} of {len(data)} bytes were written")
        return True
    return False


def _reopen(teller: Teller, fd: int, file: str) -> int:
    with suppress(OSError), teller.attempt("close"):
        os.close(fd)
    return _open(file)


def _open(file: str) -> int:
    return os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)


if __name__ == "__main__":
    main(sys.argv[1])
