"""Ending a read of /dev/fuse that has nothing to read.

The blocking read
-----------------
Some facts. pyfuse3 waits until /dev/fuse is readable, and then reads it, holding the interpreter. If the one request
that was there has vanished in between, because its caller was killed, the read blocks, and with it everything in the
process, until the next request comes. None may come: a tool whose rename we have read, but not answered, holds the
directory's lock, and everybody else waits for that. The descriptor cannot be made non-blocking, since pyfuse3 takes
EAGAIN for the end.

The choice. It does not take EINTR for the end, but goes back to waiting (internal.pxi, _session_loop). A signal whose
handler Python installs interrupts a read (signal(7); no SA_RESTART), and is delivered to the main thread, which is the
one that reads. So an interval timer sends one every so often, and its handler does nothing. In worker threads Python
repeats what a signal interrupts (PEP 475).
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager

INTERVAL = 0.5
"""Seconds: the longest that a read of nothing can stand in the way."""


@contextmanager
def interrupted_reads() -> Iterator[None]:
    """While inside, no read blocks the main thread for ever. To be entered in the main thread."""
    before = signal.signal(signal.SIGALRM, lambda _number, _frame: None)
    signal.setitimer(signal.ITIMER_REAL, INTERVAL, INTERVAL)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
