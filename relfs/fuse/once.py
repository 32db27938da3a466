"""Requests that must not be done twice.

Some facts. When a worker dies, the kernel sends what it had read and not answered once more (FUSE_NOTIFY_RESEND,
Linux 6.9), and nobody tells how far the dead had come: a mkdir(2) that was carried out would answer EEXIST the second
time, and an append would be there twice. pyfuse3 does not tell which requests are sent again. But a thread that waits
for an answer asks for nothing else meanwhile, so that who asks, and what for, name a request.

The choice. Before such a request is carried out, it is written into the ledger with what it will change: that the name
is free, which inode it removes, how long the file is. The next worker compares that with what it finds. A handler
without `await` is followed by its answer at once, so its errand is over when anything else happens, or at the next beat
of the event loop; those that wait for something else hold theirs until then. Who dies before that leaves an errand that
was answered; the next worker hears of what is still to be answered before it begins (unanswered.py), and drops the
rest. What remains is a thread that asks for the very same twice in a row, and a worker that dies when it has read the
second, and before it begins with that.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager

import trio

from relfs.survival.ledger import ERRAND_MAX, Ledger

LEFT_BEATS = 50
"""For how many beats of its event loop, about five seconds, a worker that took over expects to be asked again what the
one before it had begun; who has not by then, was killed. A loop that a disk keeps has heard nobody meanwhile."""

_LENGTH_BYTES = 4


def thread_asker(pid: int) -> bytes:
    """Who asks: that thread."""
    return b"%d" % pid


def file_asker(fh: int) -> bytes:
    """Who asks, where pyfuse3 does not tell the thread: whoever has that file open, one at a time."""
    return b"file %d" % fh


def errand(what: str, asker: int | bytes, *details: int | bytes) -> bytes:
    """The name of a request: what `asker` (a thread, unless it is more than a number) wants; `details` begin with the
    request's own nodeid, and the first of its names. No two that are under way have the same."""
    who = thread_asker(asker) if isinstance(asker, int) else asker
    parts = [who, what.encode(), *(b"%d" % each if isinstance(each, int) else each for each in details)]
    return b"\0".join(parts)


class Once:
    """GUARDED BY the event loop: everything. Only held() waits."""

    def __init__(self, ledger: Ledger) -> None:
        self._slots = ledger.errands
        self._left: dict[bytes, tuple[int, bytes]] = {}
        self._beats = 0
        self._present = 0
        self.deliver: Callable[[], object] = lambda: None
        """Called before anything is forgotten: where libfuse does not answer the kernel itself (relay.py), what it has
        answered so far is to be carried there first."""

    def restore(self) -> None:
        """Know what the worker before this one had begun."""
        for number, record in self._slots:
            length = int.from_bytes(record[:_LENGTH_BYTES], "little")
            name, note = record[_LENGTH_BYTES : _LENGTH_BYTES + length], record[_LENGTH_BYTES + length :]
            self._left[name] = (number, note)

    def expect(self, errands: Collection[bytes]) -> None:
        """Only errands whose names begin so (unanswered.py) are still to be answered, and will be asked for again."""
        owed = tuple(each + b"\0" for each in errands)
        for name in [each for each in self._left if not (each + b"\0").startswith(owed)]:
            self._slots.free(self._left.pop(name)[0])

    def beat(self) -> None:
        """The event loop has gone round, and has heard whoever there was to be heard."""
        self.settle()
        self._beats += 1
        if self._beats > LEFT_BEATS:
            self._expire()

    def _expire(self) -> None:
        """What was left was answered: nobody has asked again."""
        for number, _ in self._left.values():
            self._slots.free(number)
        self._left.clear()

    def begun(self, name: bytes) -> bytes | None:
        """What the worker before this one noted when it began errand `name`; None if it did not."""
        if not self._left:
            return None
        number, note = self._left.pop(name, (0, None))
        if number:
            self.settle()
            self._present = number
        return note

    def owed(self, name: bytes) -> bytes | None:
        """The same, of an errand that is only about to begin: what is asked before belongs to it."""
        return self._left.get(name, (0, None))[1]

    def note(self, name: bytes, note: bytes = b"") -> None:
        """Errand `name` is about to be done, by a handler that does not await anything more."""
        before = self._present
        self._present = self._put(name, note)
        self._slots.free(before)

    def settle(self) -> None:
        """What was noted last has been answered."""
        if self._present:
            self.deliver()
            self.delivered()

    def delivered(self) -> None:
        """The kernel has the answer to what was noted last."""
        self._slots.free(self._present)
        self._present = 0

    @contextmanager
    def held(self, name: bytes, note: bytes = b"") -> Iterator[None]:
        """Errand `name` is being done, and whoever does it awaits other things. It is over once it was answered, right
        after the handler."""
        number = self._put(name, note)
        try:
            yield
        finally:
            trio.lowlevel.current_trio_token().run_sync_soon(self._end, number)

    def _end(self, number: int) -> None:
        self.deliver()
        self._slots.free(number)

    def _put(self, name: bytes, note: bytes) -> int:
        record = len(name).to_bytes(_LENGTH_BYTES, "little") + name + note
        return self._slots.put(record) if len(record) <= ERRAND_MAX else 0
