"""The few FUSE messages that relfs reads and writes by itself (linux/fuse.h, fuse(4)). Everything else is libfuse's."""

from __future__ import annotations

import struct
from dataclasses import dataclass

IN_HEADER = struct.Struct("=IIQQIIII")  # len, opcode, unique, nodeid, uid, gid, pid, padding
OUT_HEADER = struct.Struct("=IiQ")  # len, error, unique
_INIT_IN = struct.Struct("=IIII")  # major, minor, max_readahead, flags; flags2 follows since 7.36
_INIT_IN_FLAGS2 = struct.Struct("=I")
_INIT_OUT = struct.Struct("=IIII")  # the same, in the reply
_INVAL_ENTRY_OUT = struct.Struct("=QII")  # parent, length of the name, flags

OP_FORGET = 2
OP_INIT = 26
_NOTIFY_INVAL_ENTRY = 3
_NOTIFY_RESEND = 7

DONT_MASK = 1 << 6
"""FUSE_DONT_MASK: the kernel leaves applying the umask to us, who know the directory's default ACL (protocol 7.12)."""

POSIX_ACL = 1 << 20
"""FUSE_POSIX_ACL: the kernel reads access control lists, and checks and caches them (protocol 7.26, Linux 4.9)."""

HANDLE_KILLPRIV_V2 = 1 << 28
"""FUSE_HANDLE_KILLPRIV_V2: set-id bits fall by our hand, so that the kernel need not ask for security.capability
before each write; once it knows that a file has none, it remembers (protocol 7.33, Linux 5.11)."""

CACHE_SYMLINKS = 1 << 23
"""FUSE_CACHE_SYMLINKS: the kernel keeps link texts in the page cache (protocol 7.28, Linux 4.20)."""

HAS_RESEND = 1 << 39
"""FUSE_HAS_RESEND: the kernel can put unanswered requests back in the queue (protocol 7.40, Linux 6.9)."""

READ_SIZE = 1 << 20
"""Bytes; no request that the kernel sends before INIT is answered is larger."""


@dataclass(frozen=True)
class InitRequest:
    """What the kernel offers. `flags` has flags2 in its upper 32 bits."""

    raw: bytes
    major: int
    minor: int
    flags: int


def parse_init(raw: bytes) -> InitRequest:
    """Raises ValueError if `raw` is not an INIT request."""
    if len(raw) < IN_HEADER.size + _INIT_IN.size or IN_HEADER.unpack_from(raw)[1] != OP_INIT:
        raise ValueError("the kernel's first message is not FUSE_INIT")
    major, minor, _, flags = _INIT_IN.unpack_from(raw, IN_HEADER.size)
    flags2_at = IN_HEADER.size + _INIT_IN.size
    if len(raw) >= flags2_at + _INIT_IN_FLAGS2.size:
        flags |= _INIT_IN_FLAGS2.unpack_from(raw, flags2_at)[0] << 32
    return InitRequest(raw, major, minor, flags)


def want(reply: bytes, flags: int) -> bytes:
    """An INIT reply that asks for `flags` (of the lower 32) too. Raises ValueError if `reply` reports an error."""
    length, error, _ = OUT_HEADER.unpack_from(reply)
    if error or length != len(reply) or length < OUT_HEADER.size + _INIT_OUT.size:
        raise ValueError(f"libfuse answered FUSE_INIT with error {-error}")
    changed = bytearray(reply)
    at = OUT_HEADER.size + 12
    (wanted,) = struct.unpack_from("=I", changed, at)
    struct.pack_into("=I", changed, at, wanted | flags)
    return bytes(changed)


def reply_flags(reply: bytes) -> int:
    """The flags (the lower 32) that an INIT reply asks for."""
    return int(struct.unpack_from("=I", reply, OUT_HEADER.size + 12)[0])


def resend() -> bytes:
    """FUSE_NOTIFY_RESEND: put the requests that were read and not answered back into the queue."""
    return OUT_HEADER.pack(OUT_HEADER.size, _NOTIFY_RESEND, 0)


def inval_entry(parent: int, name: bytes) -> bytes:
    """FUSE_NOTIFY_INVAL_ENTRY: forget what `name` in the directory with the nodeid `parent` leads to."""
    payload = _INVAL_ENTRY_OUT.pack(parent, len(name), 0) + name + b"\0"
    return OUT_HEADER.pack(OUT_HEADER.size + len(payload), _NOTIFY_INVAL_ENTRY, 0) + payload


def baton() -> bytes:
    """A FORGET of node 0 with 0 lookups. The kernel never sends one; see handshake.py for what it is good for."""
    payload = struct.pack("=Q", 0)
    return IN_HEADER.pack(IN_HEADER.size + len(payload), OP_FORGET, 0, 0, 0, 0, 0, 0) + payload


BATON = [(0, 0)]
"""The baton as pyfuse3 hands it to Operations.forget()."""
