"""Ending well when told to: the signals that end a command become exceptions, so that what it has begun is undone, and
wait for as long as something is done that must be done whole.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def ending_by_exception() -> Iterator[None]:
    """SIGTERM and SIGHUP raise SystemExit with the status that a shell gives (128 and the signal's number); SIGINT
    raises KeyboardInterrupt, as ever. One that is ignored (nohup(1)) stays so. For the main thread."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    for number, handler in before.items():
        if handler != signal.SIG_IGN:
            signal.signal(number, _end)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """The signals that end a command come after this. For a moment, not for what may take long."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _end(number: int, frame: FrameType | None) -> NoReturn:  # noqa: ARG001 (signal(2))
    raise SystemExit(128 + number)
