"""Changing the pointer from trio: one change at a time, on a thread, and the kernel told after it.

Deadlock by invalidation: dropping a dentry takes the directory's lock in the kernel, which a process inside rename,
symlink or unlink on the mount holds while it waits for us (fuse_reverse_inval_entry() in fs/fuse/dir.c). So the kernel
is told only after every lock of ours is released, on a thread of its own, and never before a request is answered
that may be holding that lock.

Two limiters, because a change that waits for a thread must never wait behind a notification that waits for a change.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable
from functools import partial
from typing import TypeVar

import trio
from pyfuse3 import InodeT

from relfs.aftermath import Aftermath
from relfs.audience import Audience
from relfs.fuse.inodes import ROOT
from relfs.fuse.teller import Teller
from relfs.history import WORDS
from relfs.hold import Hold
from relfs.hooks import Show
from relfs.journal import Actor, Event
from relfs.layout import CURRENT, Target
from relfs.pointer import Pointer
from relfs.seal import Seals
from relfs.store import Owner
from relfs.threads import in_thread

_log = logging.getLogger(__name__)

_T = TypeVar("_T")

_GONE = frozenset({errno.ENOENT, errno.ENOTCONN, errno.EBADF, errno.ENODEV})
"""Not cached; or the mount is going away."""

_RETRY_SECONDS = 0.01
_RETRY_SECONDS_MAX = 1.0


class Changes:
    """The trio side of a Pointer. LOCK ORDERING: `_changing` is never held while `_telling` is waited for."""

    def __init__(self, pointer: Pointer, seals: Seals, teller: Teller, aftermath: Aftermath) -> None:
        """`seals` follow each change, in the order that seal.py tells of; the pointer is to announce its targets to
        their prepare(). `aftermath` follows each switch. `on_drop` is called when what is known of the link may be out
        of date."""
        self.on_drop: Callable[[], None] = lambda: None
        self._pointer = pointer
        self._aftermath = aftermath
        self._teller = teller
        self._seals = seals
        self._left_over = trio.Event()
        self._changing = trio.CapacityLimiter(1)
        self._telling = trio.CapacityLimiter(1)

    async def switch(
        self,
        reference: str,
        actor: Actor,
        request_id: str,
        *,
        force: bool,
        confirm: float | None,
        owner: Owner | None,
        show: Show | None,
    ) -> Event:
        """Pointer.switch(); when it returns, no new lookup can see anything else, and all that follows a switch has
        been done. Raises as that does; RefusedError if the release did not verify."""
        call = partial(
            self._pointer.switch, reference, actor, request_id, force=force, confirm=confirm, owner=owner, show=show
        )  # fmt: skip
        return await self._and_verify(call, owner, show)

    async def promote(
        self, actor: Actor, request_id: str, *, begun_by: str | None, owner: Owner | None, show: Show | None
    ) -> Event:
        """Pointer.promote(), with all that switch() has follow."""
        call = partial(self._pointer.promote, actor, request_id, begun_by=begun_by, owner=owner, show=show)
        return await self._and_verify(call, owner, show)

    async def _and_verify(self, call: Callable[[], Event], owner: Owner | None, show: Show | None) -> Event:
        event = await self._then_tell(call)
        await self._tell_hook(event, show)
        why = await in_thread(self._aftermath.verify, event, show, abandon_on_cancel=True)
        if why is not None:
            await self._then_tell(partial(self._aftermath.take_back, event, why, owner))
        return event

    async def rollback(
        self, reference: str | None, actor: Actor, request_id: str, *, owner: Owner, show: Show | None
    ) -> Event:
        """Pointer.rollback(), likewise; going back is not verified."""
        event = await self._then_tell(
            partial(self._pointer.rollback, reference, actor, request_id, owner=owner, show=show)
        )  # fmt: skip
        await self._tell_hook(event, show)
        return event

    async def confirm(self, release: str | None, actor: Actor, request_id: str) -> Event:
        """Pointer.confirm(); what was overdue has been taken back first."""
        return await self._then_tell(partial(self._pointer.confirm, release, actor, request_id))

    async def begin_canary(
        self,
        reference: str,
        audience: Audience,
        actor: Actor,
        request_id: str,
        *,
        force: bool,
        seconds: float | None,
    ) -> Event:
        """Pointer.begin_canary(). Nobody sees it yet."""
        return await self._then_tell(
            partial(
                self._pointer.begin_canary, reference, audience, actor, request_id, force=force, seconds=seconds
            )
        )  # fmt: skip

    async def abort_canary(self, actor: Actor, request_id: str, *, begun_by: str | None, why: str | None) -> Event:
        """Pointer.abort_canary(). Some still see it."""
        return await self._then_tell(
            partial(self._pointer.abort_canary, actor, request_id, begun_by=begun_by, why=why)
        )  # fmt: skip

    async def judge(self, canary: Event) -> str | None:
        """Aftermath.judge()."""
        return await in_thread(self._aftermath.judge, canary, abandon_on_cancel=True)

    async def take_stock(self) -> None:
        """Pointer.take_stock(), and what follows if something was taken back."""
        event = await self._then_tell(self._pointer.take_stock)
        if event is not None:
            await self._tell_hook(event)

    async def follow_up(self, event: Event) -> None:
        """What follows a tool's swap, of which nobody waits for the end."""
        await self.drop_current()
        await self._tell_hook(event)

    async def _tell_hook(self, event: Event, show: Show | None = None) -> None:
        """Aftermath.tell(). That it fails is logged, and shown to whoever waits."""

        def tell() -> None:
            failed = self._aftermath.tell(event, show)
            if failed is not None:
                _log.warning("%s", failed)
                if show is not None:
                    show(failed)

        await in_thread(tell, abandon_on_cancel=True)

    async def replace(self, text: str, actor: Actor, request_id: str, *, owner: Owner) -> Event:
        """Pointer.replace(), for a request handler: the kernel is not told, its caller holds the directory."""
        return await self._run(partial(self._pointer.replace, text, actor, request_id, owner=owner))

    async def record(
        self, action: str, actor: Actor, request_id: str, outcome: str, *, wanted: Target | None, output: str
    ) -> Event:
        """Pointer.record(), likewise: nothing has changed."""
        return await self._run(
            partial(self._pointer.record, action, actor, request_id, outcome, wanted=wanted, output=output)
        )  # fmt: skip

    async def discard(self, name: str, actor: Actor, request_id: str, *, force: bool) -> Event:
        """Pointer.discard(): what is current stays, so the kernel need not be told."""
        return await self._run(partial(self._pointer.discard, name, actor, request_id, force=force))

    async def hold(self, actor: Actor, holder: int, *, why: str, seconds: float | None) -> Hold:
        """Pointer.hold()."""
        return await self._run(partial(self._pointer.hold, actor, holder, why=why, seconds=seconds))

    async def give_back(self) -> Hold | None:
        """Pointer.give_back()."""
        return await self._run(self._pointer.give_back)

    async def seal_live(self) -> None:
        """Seal what Pointer.live tells, where the worker before this one died after it had written that down, and had
        no time to do so. Raises OSError."""

        def seal() -> None:
            for each in self._pointer.live or ():
                self._seals.prepare(each)

        await self._run(seal)

    async def keep_sealed(self, target: Target, *, anew: bool) -> bool:
        """Seals.hold(). Where nothing is sealed, no change is waited for: a hook that is asked before it may take long,
        and those who pin themselves want to begin."""
        return self._seals.begun and await self._run(partial(self._seals.hold, target, anew=anew))

    async def unseal(self, target: Target) -> None:
        """Seals.let_go(), for somebody who does not see it any more."""
        await in_thread(self._seals.let_go, target)
        await self.drop_current()

    async def flush(self) -> None:
        """Pointer.flush(): not a change, but it waits for the same disk."""
        await in_thread(self._pointer.flush)

    async def settle(self) -> None:
        """Wait until no change is under way, and the kernel knows of the last. From then on nothing is changed."""
        await self._changing.acquire()
        await self._telling.acquire()

    async def refresh(self) -> None:
        """Pointer.refresh(); the kernel is told if somebody else had changed the link."""
        self.on_drop()
        if await self._run(self._followed):
            await self.drop_current()

    def _followed(self) -> bool:
        """Runs while `_changing` is held: what the target was before may only be asked there."""
        before = self._pointer.target
        return self._pointer.refresh() != before

    async def drop_current(self) -> None:
        """Make the kernel ask again what `current` is; then unseal what is not current any more, and make it ask again
        for the names whose meaning follows `current` (preview.py). Blocks while somebody changes the directory."""
        self.on_drop()
        await in_thread(
            _drop_current, self._seals, self._drop, limiter=self._telling, abandon_on_cancel=True
        )  # fmt: skip
        if self._seals.left:
            self._left_over.set()

    async def keep_unsealing(self) -> None:
        """Try again to free what somebody still used when it was unsealed, at growing intervals. Never returns."""
        while True:
            await self._left_over.wait()
            self._left_over = trio.Event()
            pause = _RETRY_SECONDS
            while self._seals.left and not self._left_over.is_set():
                await trio.sleep(pause)
                pause = min(2 * pause, _RETRY_SECONDS_MAX)
                await in_thread(self._seals.retry, limiter=self._telling)

    def drop_root_attributes(self) -> None:
        """Make the kernel ask again for the root's permissions and times. Neither blocks nor awaits."""
        try:
            self._teller.drop_attributes(ROOT)
        except OSError as error:
            if error.errno not in _GONE:
                _log.warning("the kernel could not be told to drop the root's attributes: %s", error)

    async def drop_name(self, parent: InodeT, name: bytes) -> None:
        """The same for any name, such as one that a rename moved a dentry to, with the timeouts of its old name.

        Abandoned when we end: whoever holds the directory then may be waiting for an answer that we owe.
        """
        await in_thread(self._drop, parent, name, limiter=self._telling, abandon_on_cancel=True)

    def _drop(self, parent: int, name: bytes) -> bool:
        """Whether the kernel does not have it any more. Blocks."""
        try:
            self._teller.drop(parent, name)
        except OSError as error:
            if error.errno not in _GONE:
                _log.warning("the kernel could not be told to drop %r: %s", name, error)
                return False
        return True

    async def _then_tell(self, call: Callable[[], _T]) -> _T:
        """Run a change and tell the kernel, whatever came of it: before it was refused, a target that somebody else had
        put on the disk may have been followed. Dropping a dentry that was right costs one lookup."""
        try:
            return await self._run(call)
        finally:
            await self.drop_current()

    async def _run(self, call: Callable[[], _T]) -> _T:
        return await in_thread(self._settled, call, limiter=self._changing)

    def _settled(self, call: Callable[[], _T]) -> _T:
        """Runs while `_changing` is held: what is live afterwards may only be told there."""
        try:
            return call()
        finally:
            live = self._pointer.live
            if live is not None:
                self._seals.decided(live)


def _drop_current(seals: Seals, drop: Callable[[int, bytes], bool]) -> None:
    seals.note_replaced()
    if drop(ROOT, CURRENT.encode()):
        seals.release()
    for word in WORDS:
        drop(ROOT, word.encode())
