"""Work that blocks, away from the event loop, where threads may be short.

A host can limit its threads (pids.max of a control group, systemd's TasksMax, RLIMIT_NPROC), and somebody else may have
used them up. To be refused one is no reason to fail, let alone to end: there will be one again, and until then whoever
needs it waits.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar, TypeVarTuple

import trio

from relfs.users import known_name, user_name

_NO_THREAD = "can't start new thread"  # threading.Thread.start()
_PAUSE = 0.1

_Arguments = TypeVarTuple("_Arguments")
_T = TypeVar("_T")


async def in_thread(
    call: Callable[[*_Arguments], _T],
    *arguments: *_Arguments,
    limiter: trio.CapacityLimiter | None = None,
    abandon_on_cancel: bool = False,
) -> _T:
    """trio.to_thread.run_sync(), which waits until there is a thread. Raises what `call` does."""
    while True:
        try:
            return await trio.to_thread.run_sync(
                call, *arguments, limiter=limiter, abandon_on_cancel=abandon_on_cancel
            )  # fmt: skip
        except RuntimeError as error:
            if str(error) != _NO_THREAD:
                raise
        await trio.sleep(_PAUSE)


async def user_name_of(uid: int) -> str:
    """user_name(), without keeping the event loop waiting."""
    known = known_name(uid)
    return known if known is not None else await in_thread(user_name, uid)


async def started_thread(call: Callable[[], object], name: str) -> threading.Thread:
    """A thread that runs `call` and dies with the process, once there is one."""
    while True:
        thread = threading.Thread(target=call, name=name, daemon=True)
        try:
            thread.start()
            return thread
        except RuntimeError as error:
            if str(error) != _NO_THREAD:
                raise
        await trio.sleep(_PAUSE)
