"""What the kernel asks again after a worker has died, looked at before any of it is answered.

Known before it is asked
------------------------
Some facts. FUSE_NOTIFY_RESEND puts every request that was read and not answered at the head of the queue, and marks it
by the highest bit of its number (fuse_resend() in fs/fuse/dev.c). pyfuse3 hands on neither number nor mark. A worker
that dies right after it has answered leaves the same notes as one that dies right before (once.py), and then somebody
may well want the same thing once more: to take that for the old request is to give a handle away twice, or to leave
undone what was asked for. Who waits for an answer may have had one to that, and wait for another one.

The choice. Reading a request is no commitment, since the kernel can be asked to send it again, as often as one likes.
So this reads all that is marked, notes who asks for what, and has it sent again. The first request without the mark is
the end of it, and comes again with the rest; a FORGET on the way, which does not come again, is handed on.

Reading must not block, for what was in the queue may be gone before it is read. That is a property of the open file
description, which the next worker inherits: so it is set, and reset, each time.
"""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass

from relfs.fuse.once import errand, file_asker
from relfs.fuse.protocol import (
    FORGETS,
    IN_HEADER,
    OP_CREATE,
    OP_LINK,
    OP_MKDIR,
    OP_MKNOD,
    OP_OPEN,
    OP_OPENDIR,
    OP_REMOVEXATTR,
    OP_RENAME,
    OP_RENAME2,
    OP_RMDIR,
    OP_SETXATTR,
    OP_SYMLINK,
    OP_UNLINK,
    OP_WRITE,
    UNIQUE_RESEND,
    first_name,
    forgotten,
    resend,
    written_handle,
)

_ROOM = (1 << 20) + (1 << 16)
"""Bytes: libfuse negotiates writes of at most a mebibyte, and the kernel insists on room for the largest."""

_ERRANDS = {
    OP_SYMLINK: "symlink", OP_MKNOD: "mknod", OP_MKDIR: "mkdir", OP_UNLINK: "unlink", OP_RMDIR: "rmdir",
    OP_RENAME: "rename", OP_RENAME2: "rename", OP_LINK: "link", OP_OPEN: "open", OP_SETXATTR: "setxattr",
    OP_REMOVEXATTR: "removexattr", OP_OPENDIR: "opendir", OP_CREATE: "create",
}  # fmt: skip
"""What errands are called, besides writes, by who does them (plain.py, current.py)."""


@dataclass(frozen=True)
class Again:
    """`errands` are those that the dead worker owes an answer to, by how their names begin (once.py); `forgets` what
    the kernel has given back meanwhile, nodeids and lookups."""

    errands: frozenset[bytes]
    forgets: tuple[tuple[int, int], ...]


def ask_again(connection: int) -> Again:
    """Have the kernel send again what it has no answer to. Nobody else may be reading. Raises OSError."""
    errands: set[bytes] = set()
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
                errands.add(errand_of(request))
    os.write(connection, resend())
    return Again(frozenset(errands), tuple(forgets))


def errand_of(request: bytes | memoryview) -> bytes:
    """How the name of the errand begins that a request is; of one that is none, something that no errand's does."""
    _, opcode, _, nodeid, _, _, pid, _ = IN_HEADER.unpack_from(request)
    if opcode == OP_WRITE:
        return errand("write", file_asker(written_handle(request)))
    name = first_name(request)
    return errand(_ERRANDS.get(opcode, "none"), pid, nodeid, *([name] if name is not None else []))


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
