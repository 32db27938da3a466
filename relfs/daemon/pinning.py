"""Pinning processes, for a mount: who may, from when on it holds, and when it is over.

A pin is answered once the kernel asks us for each lookup of `current`, and nobody is remembered from before it; so who
bears its mark sees what was promised from that moment on. Of each pin, one living process is held by its pidfd, the
witness. When that has ended, all are looked at for another (views/bearers.py); where there is none, the pin is over. No
clock is involved; that we are told of the end of a witness a moment late, ends a pin late.

Where releases are sealed, what is pinned is. But a seal is in the way of who is still making a release, or changes one
that is not current; so only who may switch can have one put on by a pin. Others keep the one that is there.
"""

from __future__ import annotations

import logging
import os
import select
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

import trio

from relfs.errors import RefusedError, RelfsError, reason
from relfs.fuse.changes import Changes
from relfs.journal import Actor
from relfs.layout import Target
from relfs.processes import Process, process
from relfs.threads import in_thread
from relfs.views.bearers import Census, Witness, hold, take_census
from relfs.views.mark import mark_of
from relfs.views.pins import Pin, Pins

_log = logging.getLogger(__name__)

_PAUSE = 0.1
"""Seconds between the end of a witness and looking for another: many end at once, and one look is for all of them."""


class Pinning:
    """GUARDED BY the event loop: everything. INVARIANT: each pin has one witness, or is in `_unwatched`; and no other
    mark has, or is. `_unsealing` are targets that no pin needs sealed any more."""

    def __init__(self, pins: Pins, changes: Changes, written: Callable[[], Awaitable[None]]) -> None:
        """`written` returns once the next mount would know of them."""
        self.pins = pins
        self._changes = changes
        self._written = written
        self._ends = select.epoll()
        self._witnesses: dict[int, tuple[int, Witness]] = {}  # with the mark, by pidfd
        self._unwatched: set[int] = set()
        self._due = trio.Event()
        self._removing: list[str] = []
        self._unsealing: list[Target] = []
        self._unneeded = trio.Event()

    # ---- what may be asked for

    async def pin(
        self, mark: int, target: Target, actor: Actor, request_id: str, who: Process, *, may_seal: bool
    ) -> Pin:
        """Let whoever bears `mark` see `target`, from when this has returned. Process `who` is taken for a bearer while
        it lives. Asked again with the same `request_id`, it is the same pin, and those count who bear the mark by now.

        Pins that they bore the marks of before end, if nobody else bears them.

        Raises RefusedError if the release is being removed or the mark is another pin's, RelfsError.
        """
        pin = self.pins.asked_for(request_id)
        if pin is None:
            seals = await self._sealed(target, anew=may_seal)
            pin = Pin(mark, target, actor, time.time(), request_id, who.pid, who.start, seals)
            try:
                self._add(pin)
            except RelfsError:
                self._unseal(pin)
                raise
            await self._written()
        else:
            self._doubt_others(pin.mark)
        self.pins.on_change()
        await self._changes.drop_current()
        return pin

    async def _sealed(self, target: Target, *, anew: bool) -> bool:
        """Whether it is, and stays so. Raises RelfsError."""
        try:
            return await self._changes.keep_sealed(target, anew=anew)
        except OSError as error:
            raise RelfsError(f"{target.label}: {reason(error)}") from error

    def _add(self, pin: Pin) -> None:
        """Raises RelfsError."""
        if pin.target.release in self._removing:
            raise RefusedError(f"{pin.release}: is being removed")
        if self.pins.get(pin.mark) is not None:
            raise RefusedError("this mark is that of another pin; ask with a new one")
        self._watch_first(pin)
        try:
            self.pins.add(pin)
        except RelfsError:
            self._stop_watching(pin.mark)
            raise

    def end(self, pin: Pin) -> None:
        """Let those who bear its mark see what everybody sees, from the next lookup on."""
        self._drop(pin.mark)
        self._stop_watching(pin.mark)

    def witnesses(self) -> dict[int, int]:
        """A process of each mark that lives, as far as we know."""
        return {mark: witness.pid for mark, witness in self._witnesses.values()}

    @contextmanager
    def removing(self, release: str) -> Iterator[None]:
        """While a release is removed, none can be pinned to it. Raises RefusedError if one is."""
        pin = next((each for each in self.pins if each.target.release == release), None)
        if pin is not None:
            pid = self.witnesses().get(pin.mark, pin.pid)
            raise RefusedError(f"{release}: process {pid} is pinned to it, or what it has started; it stays")
        self._removing.append(release)
        try:
            yield
        finally:
            self._removing.remove(release)

    def check_invariants(self) -> None:
        """For tests: raise AssertionError where an INVARIANT of what is pinned does not hold."""
        self.pins.check_invariants()
        watched = [mark for mark, _ in self._witnesses.values()]
        assert sorted([*watched, *self._unwatched]) == sorted(pin.mark for pin in self.pins)
        assert all(fd == witness.pidfd for fd, (_, witness) in self._witnesses.items())

    # ---- how they end

    def restore(self) -> None:
        """Watch those that the worker before this one knew, or the mount before this one."""
        self.pins.restore()
        for pin in self.pins:
            try:
                self._watch_first(pin)
            except RelfsError as error:
                _log.warning("%s", error)
                self._unwatch(pin.mark)

    async def run(self) -> None:
        """Never returns."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._notice_ends)
            nursery.start_soon(self._look)
            nursery.start_soon(self._unseal_what_is_over)

    def _watch_first(self, pin: Pin) -> None:
        """Raises RelfsError if there are no descriptors left."""
        try:
            witness = hold(pin.pid)
        except OSError as error:
            raise RelfsError(f"process {pin.pid}: cannot be watched: {reason(error)}") from error
        now = process(pin.pid)
        if witness is not None and now is not None and now.start == pin.start:
            self._watch(pin.mark, witness)
            return
        if witness is not None:
            os.close(witness.pidfd)
        self._unwatch(pin.mark)

    def _watch(self, mark: int, witness: Witness) -> None:
        self._witnesses[witness.pidfd] = (mark, witness)
        self._ends.register(witness.pidfd, select.EPOLLIN)

    def _unwatch(self, mark: int) -> None:
        self._unwatched.add(mark)
        self._due.set()

    def _doubt_others(self, mark: int) -> None:
        """Whoever bears `mark` by now is no witness of another pin: that may be over, though he lives."""
        for fd, (other, witness) in list(self._witnesses.items()):
            if other != mark and mark_of(witness.pid) == mark:
                self._forget(fd)
                self._unwatch(other)

    def _stop_watching(self, mark: int) -> None:
        self._unwatched.discard(mark)
        for fd in [fd for fd, (each, _) in self._witnesses.items() if each == mark]:
            self._forget(fd)

    def _forget(self, fd: int) -> None:
        del self._witnesses[fd]
        self._ends.unregister(fd)
        os.close(fd)

    async def _notice_ends(self) -> None:
        while True:
            await trio.lowlevel.wait_readable(self._ends.fileno())
            for fd, _ in self._ends.poll(0):
                mark, _ = self._witnesses[fd]
                self._forget(fd)
                self._unwatch(mark)

    async def _look(self) -> None:
        while True:
            await self._due.wait()
            self._due = trio.Event()
            await trio.sleep(_PAUSE)
            marks = set(self._unwatched)
            try:
                census = await in_thread(take_census, marks)
            except OSError as error:  # no descriptors
                _log.info("who is still pinned cannot be looked at now: %s", reason(error))
                census = Census({}, complete=False)
            self._settle(marks, census)

    def _settle(self, marks: set[int], census: Census) -> None:
        """What a look at `marks` has found, some of which may have been ended meanwhile."""
        for mark, witness in census.witnesses.items():
            if mark in self._unwatched:
                self._unwatched.discard(mark)
                self._watch(mark, witness)
            else:
                os.close(witness.pidfd)
        if not census.complete:
            self._due.set()
            return
        for mark in (marks - census.witnesses.keys()) & self._unwatched:
            self._unwatched.discard(mark)
            self._drop(mark)

    def _drop(self, mark: int) -> None:
        pin = self.pins.get(mark)
        if pin is not None:
            self.pins.drop(mark)
            self._unseal(pin)

    def _unseal(self, pin: Pin) -> None:
        if pin.seals:
            self._unsealing.append(pin.target)
            self._unneeded.set()

    async def _unseal_what_is_over(self) -> None:
        while True:
            await self._unneeded.wait()
            self._unneeded = trio.Event()
            over, self._unsealing = self._unsealing, []
            for target in over:
                await self._changes.unseal(target)
