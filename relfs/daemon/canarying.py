"""The canary of a mount: what the journal tells of it (Pointer.begin_canary), and who sees what (views/canary.py), are
kept together here.

With `--for`, it decides by itself: when the time is over, the release is verified, as one is that everybody sees
(aftermath.py), and is promoted if it is good; otherwise, or if it can be promoted no more, it is aborted. That is begun
anew by the next worker, where one dies amid it, or by the next mount; nothing of it is done twice, for each step has an
id that follows from the canary's.

It begins with its line in the journal, and ends with another one: that it was aborted, or that its release has become
current, by whomever. So every event that is written is looked at, and now and then those that others have written, who
change the link behind the mount. The line comes first, then what is seen; who sees the release for a moment longer when
it is current for all, sees the same.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress

import trio

from relfs.audience import Audience
from relfs.errors import RefusedError, RelfsError
from relfs.fuse.changes import Changes
from relfs.history import ABORT
from relfs.hooks import Show
from relfs.journal import Actor, Event
from relfs.pointer import Pointer
from relfs.store import Owner
from relfs.views.canary import Canary, Stage

_log = logging.getLogger(__name__)

_AGAIN_SECONDS = 1.0
_AGAIN_SECONDS_MAX = 60.0
_PROMOTE = "promote"


class Canarying:
    """GUARDED BY the event loop: everything."""

    def __init__(self, canary: Canary, pointer: Pointer, changes: Changes) -> None:
        self.canary = canary
        self._pointer = pointer
        self._changes = changes

    @property
    def event(self) -> Event | None:
        """That which began it; None while there is none, or a worker that took over has not read the journal yet."""
        return self._pointer.history.canary

    async def begin(
        self,
        reference: str,
        audience: Audience,
        actor: Actor,
        request_id: str,
        *,
        force: bool,
        seconds: float | None,
    ) -> Event:
        """Raises as Pointer.begin_canary() does. When it returns, the audience sees the release at its next lookup."""
        event = await self._changes.begin_canary(
            reference, audience, actor, request_id, force=force, seconds=seconds
        )  # fmt: skip
        self.follow()
        await self._changes.drop_current()
        return event

    async def abort(
        self, actor: Actor, request_id: str, *, begun_by: str | None = None, why: str | None = None
    ) -> Event:
        """Raises as Pointer.abort_canary() does. When it returns, no lookup leads to the release."""
        event = await self._changes.abort_canary(actor, request_id, begun_by=begun_by, why=why)
        self.follow()
        await self._changes.drop_current()
        return event

    async def promote(
        self, actor: Actor, request_id: str, *, begun_by: str | None = None, owner: Owner | None, show: Show | None
    ) -> Event:
        """Make it current for all, as Changes.promote() does, and raises."""
        return await self._changes.promote(actor, request_id, begun_by=begun_by, owner=owner, show=show)

    def follow(self) -> None:
        """Begin and end as the journal says, if it was read: to be called whenever there is a line more."""
        event, stage = self.event, self.canary.stage
        if self._pointer.is_blind or (event is not None and stage is not None and event.id == stage.id):
            return
        if event is not None and event.release is not None and event.audience is not None:
            self.canary.begin(Stage(event.id, self._pointer.target_of(event.release), event.audience))
        elif stage is not None:
            self.canary.end()

    async def decide_in_time(self, every_beat: list[Callable[[], None]]) -> None:
        """Never returns. The journal and the clock are looked at with `every_beat` of the worker: the end is not waited
        for, since a machine may sleep, and nobody wakes up for it."""
        over, found = trio.open_memory_channel[Event](0)

        def look() -> None:
            self.follow()
            event = self.event
            if event is not None and event.confirm is not None and event.confirm.is_over():
                with suppress(trio.WouldBlock):  # it is just being decided
                    over.send_nowait(event)

        every_beat.append(look)
        pause = _AGAIN_SECONDS
        async for event in found:
            try:
                await self._decide(event)
                pause = _AGAIN_SECONDS
            except RelfsError as error:
                _log.warning("%s: it cannot be decided whether it becomes current for all: %s", event.release, error)
                await trio.sleep(pause)
                pause = min(2 * pause, _AGAIN_SECONDS_MAX)

    async def _decide(self, event: Event) -> None:
        """Raises RelfsError for what passes, such as a lock that somebody holds: it is to be tried again."""
        why = await self._changes.judge(event) or await self._why_not_promoted(event)
        if why is None or self.event is None or self.event.id != event.id:  # or somebody else has decided meanwhile
            return
        _log.info("%s: is taken back: %s", event.release, why)
        with suppress(RefusedError):  # likewise
            await self.abort(event.actor, f"{event.id}.{ABORT}", begun_by=event.id, why=why)

    async def _why_not_promoted(self, event: Event) -> str | None:
        """What is refused now, as a release that was removed by hand, will be so later. Raises RelfsError."""
        request_id = f"{event.id}.{_PROMOTE}"
        try:
            await self.promote(event.actor, request_id, begun_by=event.id, owner=None, show=None)
        except RefusedError as error:
            if self._pointer.history.find(request_id) is not None:
                _log.warning("%s: was promoted: %s", event.release, error)
            return str(error)
        return None
