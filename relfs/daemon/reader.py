"""Becoming the one worker that reads requests by itself (fuse/relay.py), since two would take each other's slots.

Some facts. Who has been killed may still be about to finish a read, and then be gone for good; and a worker that was
forked twice is ended only when the supervisor hears of it. But a killed process as such may linger, because a disk
keeps one of its other threads, with all that it has open. Only the main thread reads, and whether that has ended can
be seen (proc(5)).

The choice. A lock on the ledger's memory, which is gone with its holder; or, if it is not, that the main thread of the
last reader has ended. Where a disk keeps that one, it is not reading, and after a while it is not waited for any more.
"""

from __future__ import annotations

import trio

from relfs.daemon.member import myself, take_baton
from relfs.processes import is_exiting
from relfs.survival.ledger import Ledger, Who

_PATIENCE_SECONDS = 1.0
_PAUSE_SECONDS = 0.002


async def become_reader(ledger: Ledger) -> None:
    """Wait until no other worker reads. The lock is held as long as this process lives."""
    before = ledger.who("reader")
    with trio.move_on_after(_PATIENCE_SECONDS):
        while take_baton(ledger.fd) is None and not _reads_no_more(before):
            await trio.sleep(_PAUSE_SECONDS)
    ledger.note("reader", myself())


def _reads_no_more(who: Who | None) -> bool:
    return who is not None and bool(who.start) and is_exiting(who.pid)
