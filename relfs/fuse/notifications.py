"""Telling the kernel to drop what it has cached. Written to /dev/fuse itself, not by way of libfuse: that returns once
the kernel has obeyed, whoever stands between libfuse and the kernel (relay.py)."""

from __future__ import annotations

import os
import struct

from relfs.fuse.protocol import OUT_HEADER

_INVAL_INODE = 2
_INVAL_ENTRY = 3
_INODE = struct.Struct("=Qqq")  # nodeid, offset, length
_ENTRY = struct.Struct("=QII")  # parent's nodeid, length of the name, flags; the name and a NUL follow
_ATTRIBUTES_ONLY = -1


class Notifications:
    """To the kernel at the other end of a connection."""

    def __init__(self, kernel: int) -> None:
        """`kernel`: the descriptor of /dev/fuse."""
        self._kernel = kernel

    def drop_entry(self, parent: int, name: bytes) -> None:
        """Make the kernel look `name` up again. Blocks while somebody changes the directory.

        Raises OSError(ENOENT) if it knows no such name, OSError(ENOTDIR, ...) as the kernel finds it.
        """
        self._send(_INVAL_ENTRY, _ENTRY.pack(parent, len(name), 0) + name + b"\0")

    def drop_attributes(self, nodeid: int) -> None:
        """Make the kernel ask again for an inode's attributes. Does not block. Raises OSError(ENOENT), likewise."""
        self._send(_INVAL_INODE, _INODE.pack(nodeid, _ATTRIBUTES_ONLY, 0))

    def _send(self, code: int, body: bytes) -> None:
        os.write(self._kernel, OUT_HEADER.pack(OUT_HEADER.size + len(body), code, 0) + body)
