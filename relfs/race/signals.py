"""Signals that would end the process are held until what it made is gone, and only then delivered.

A KeyboardInterrupt that may rise between any two instructions could leave a process, a mount or a directory
behind. Here a signal only ends a wait: HeldSignals.wait() raises Interrupted, the cleaning up is undisturbed,
and leaving the context delivers the signal. Python delivers signals to its main thread; in another, nothing
is held.
"""

from __future__ import annotations

import os
import select
import signal
import threading
from collections.abc import Iterable
from types import FrameType, TracebackType

_HELD = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupted(Exception):  # noqa: N818 - an order, not an error
    """A held signal has come: clean up and leave."""


class HeldSignals:
    """The context in which signals are held.

    INVARIANT: between __enter__ and __exit__, `_wake` becomes readable, and stays so, once a signal has come.
    """

    def __enter__(self) -> HeldSignals:
        self._came: int | None = None
        self._wake, self._wake_end = os.pipe()
        self._before: dict[int, object] = {}
        if threading.current_thread() is threading.main_thread():
            for number in _HELD:
                self._hold(number)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        os.close(self._wake)
        os.close(self._wake_end)
        if self._came is not None:
            signal.raise_signal(self._came)

    def check(self) -> None:
        """Raise Interrupted if a signal has come."""
        if self._came is not None:
            raise Interrupted

    def wait(self, readable: Iterable[int], seconds: float, *, changed: Iterable[int] = ()) -> set[int]:
        """Wait until one of the `readable` is, one of the `changed` has an event, or `seconds` have passed.

        Which ones; none after the time. Raises Interrupted if a signal came.
        """
        poll = select.poll()
        poll.register(self._wake, select.POLLIN)
        for fd in readable:
            poll.register(fd, select.POLLIN)
        for fd in changed:
            poll.register(fd, select.POLLPRI)
        ready = {fd for fd, _ in poll.poll(max(0.0, seconds) * 1000)}
        self.check()
        return ready

    def _hold(self, number: int) -> None:
        # One that is ignored (nohup, a shell's background job) stays so; None was not set through Python.
        if signal.getsignal(number) not in (signal.SIG_IGN, None):
            self._before[number] = signal.signal(number, self._take)

    def _take(self, number: int, _frame: FrameType | None) -> None:
        if self._came is None:
            self._came = number
            os.write(self._wake_end, b"!")
