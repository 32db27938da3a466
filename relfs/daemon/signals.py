"""The supervisor's signals, as something that a selector notices."""

from __future__ import annotations

import os
import selectors
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from relfs.daemon.command import ENDING

_TERMINAL = (signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU)


@contextmanager
def noticed_signals(selector: selectors.BaseSelector, on_signal: Callable[[], None]) -> Iterator[None]:
    """While inside, `on_signal` is called by whoever turns the selector for each signal that asks for the end. At a
    terminal's, nobody stops: the readers of the mount would have to wait."""
    reading, writing = os.pipe()
    for end in (reading, writing):
        os.set_blocking(end, False)
    before = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    for number in ENDING:
        if signal.getsignal(number) is not signal.SIG_IGN or number == signal.SIGTERM:
            signal.signal(number, lambda _number, _frame: None)
    for number in _TERMINAL:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)

    def notice() -> None:
        for _ in os.read(reading, 64):
            on_signal()

    selector.register(reading, selectors.EVENT_READ, notice)
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        selector.unregister(reading)
