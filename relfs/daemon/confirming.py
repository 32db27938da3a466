"""The worker's look at the clock: what is not confirmed in time is taken back (confirm.py), whoever asked for it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress

import trio

from relfs.confirm import overdue
from relfs.errors import RelfsError
from relfs.fuse.changes import Changes
from relfs.pointer import Pointer

_log = logging.getLogger(__name__)

_AGAIN_SECONDS = 1.0
_AGAIN_SECONDS_MAX = 60.0


async def take_back_in_time(pointer: Pointer, changes: Changes, every_beat: list[Callable[[], None]]) -> None:
    """Never returns. What is to be looked at changes with every switch, and with every worker that takes over and does
    not know yet; the clock may also have gone on while the machine slept. So it is looked at again and again, by what
    is called with `every_beat` of the worker: a look costs nothing, and waking up for it would."""
    over, found = trio.open_memory_channel[None](0)

    def look() -> None:
        if overdue(pointer.history) is not None:
            with suppress(trio.WouldBlock):  # it is just being taken back
                over.send_nowait(None)

    if pointer.taken_back is not None:
        await changes.follow_up(pointer.taken_back)
    every_beat.append(look)
    pause = _AGAIN_SECONDS
    async for _ in found:
        try:
            await changes.take_stock()
        except RelfsError as error:  # somebody keeps the change lock, or the disk does
            _log.info("what was not confirmed cannot be taken back yet: %s", error)
        if overdue(pointer.history) is None:
            pause = _AGAIN_SECONDS
        else:  # the pointer has said why
            await trio.sleep(pause)
            pause = min(2 * pause, _AGAIN_SECONDS_MAX)
