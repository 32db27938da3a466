"""What the kernel asks again after a worker has died, looked at before any of it is answered.

Known before it is asked
------------------------
Some facts. FUSE_NOTIFY_RESEND puts every request that was read and not answered at the head of the queue, and marks it
by the highest bit of its number (fuse_resend() in fs/fuse/dev.c). pyfuse3 hands on neither number nor mark. A worker
that dies right after it has answered leaves the same notes as one that dies right before (once.py), and then somebody
may well want the same thing once more: to take that for the old request is to give a handle away twice, or to leave
undone what was asked for.

The choice. Reading a request is no commitment, since the kernel can be asked to send it again, as often as one likes.
So this reads all that is marked, notes who asks, and has it sent again. The first request without the mark is the end
of it, and comes again with the rest; a FORGET on the way, which does not come again, is handed on.

Reading must not block, for what was in the queue may be gone before it is read. That is a property of the open file
description, which the next worker inherits: so it is set, and reset, each time.
"""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass

from relfs.fuse.once import file_asker, thread_asker
from relfs.fuse.protocol import FORGETS, IN_HEADER, OP_WRITE, UNIQUE_RESEND, forgotten, resend, written_handle

_ROOM = (1 << 20) + (1 << 16)
"""Bytes: libfuse negotiates writes of at most a mebibyte, and the kernel insists on room for the largest."""


@dataclass(frozen=True)
class Again:
    """`askers` are those who wait for an answer that the dead worker owes them (once.py's); `forgets` what the kernel
    has given back meanwhile, nodeids and lookups."""

    askers: frozenset[bytes]
    forgets: tuple[tuple[int, int], ...]


def ask_again(connection: int) -> Again:
    """Have the kernel send again what it has no answer to. Nobody else may be reading. Raises OSError."""
    askers: set[bytes] = set()
    forgets: list[tuple[int, int]] = []
    os.write(connection, resend())
    with closing(_queued(connection)) as queue:
        for request in queue:
            _, opcode, unique, *_ = IN_HEADER.unpack_from(request)
            if opcode in FORGETS:
                forgets += forgotten(request)
            elif not unique & UNIQUE_RESEND:
                break
            else:
                askers.add(asker(request))
    os.write(connection, resend())
    return Again(frozenset(askers), tuple(forgets))


def asker(request: bytes | memoryview) -> bytes:
    """Who waits for an answer to it (once.py's)."""
    _, opcode, _, _, _, _, pid, _ = IN_HEADER.unpack_from(request)
    return file_asker(written_handle(request)) if opcode == OP_WRITE else thread_asker(pid)


def _queued(connection: int) -> Generator[memoryview, None, None]:
    """What is in the queue, until nothing is. Each is valid until the next. Raises OSError."""
    room = bytearray(_ROOM)
    os.set_blocking(connection, False)
    try:
        while True:
            try:
                yield memoryview(room)[: os.readv(connection, [room])]
            except BlockingIOError:
                return
            except FileNotFoundError:  # whoever asked was killed in the middle of it
                pass
    finally:
        os.set_blocking(connection, True)
