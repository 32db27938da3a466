"""The few FUSE messages that relfs reads and writes by itself (linux/fuse.h, fuse(4)). Everything else is libfuse's."""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass

IN_HEADER = struct.Struct("=IIQQIIII")  # len, opcode, unique, nodeid, uid, gid, pid, padding
OUT_HEADER = struct.Struct("=IiQ")  # len, error, unique
_INIT_IN = struct.Struct("=IIII")  # major, minor, max_readahead, flags; flags2 follows since 7.36
_INIT_IN_FLAGS2 = struct.Struct("=I")
_INIT_OUT = struct.Struct("=IIII")  # the same, in the reply
_INIT_OUT_SIZES = struct.Struct("=IIH")  # max_write, time_gran, max_pages
_INIT_OUT_SIZES_AT = 16 + 20
_INVAL_INODE_OUT = struct.Struct("=Qqq")  # nodeid, offset, length
_INVAL_ENTRY_OUT = struct.Struct("=QII")  # parent, length of the name, flags
_FORGET_IN = struct.Struct("=Q")  # lookups
_BATCH_FORGET_IN = struct.Struct("=II")  # count, padding
_FORGET_ONE = struct.Struct("=QQ")  # nodeid, lookups
_WRITE_IN = struct.Struct("=Q")  # handle; the rest does not matter here

OP_FORGET = 2
OP_READLINK = 5
OP_SYMLINK = 6
OP_MKNOD = 8
OP_MKDIR = 9
OP_UNLINK = 10
OP_RMDIR = 11
OP_RENAME = 12
OP_LINK = 13
OP_OPEN = 14
OP_READ = 15
OP_WRITE = 16
OP_SETXATTR = 21
OP_GETXATTR = 22
OP_LISTXATTR = 23
OP_REMOVEXATTR = 24
OP_INIT = 26
OP_OPENDIR = 27
OP_READDIR = 28
OP_CREATE = 35
OP_INTERRUPT = 36
OP_BATCH_FORGET = 42
OP_READDIRPLUS = 44
OP_RENAME2 = 45
_NOTIFY_INVAL_INODE = 2
_NOTIFY_INVAL_ENTRY = 3
_NOTIFY_RESEND = 7

FORGETS = frozenset({OP_FORGET, OP_BATCH_FORGET})

UNANSWERED = FORGETS | {OP_INTERRUPT}
"""What the kernel expects no reply to."""

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

UNIQUE_RESEND = 1 << 63
"""FUSE_UNIQUE_RESEND: in a request's number, that the kernel sends it again."""

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


def allow_background(reply: bytes, count: int) -> bytes:
    """An INIT reply after which so many reads ahead may be under way at a time; the kernel's own limit is 12."""
    changed = bytearray(reply)
    struct.pack_into("=H", changed, OUT_HEADER.size + _INIT_OUT.size, count)
    return bytes(changed)


def reply_flags(reply: bytes) -> int:
    """The flags (the lower 32) that an INIT reply asks for."""
    return int(struct.unpack_from("=I", reply, OUT_HEADER.size + 12)[0])


def resend() -> bytes:
    """FUSE_NOTIFY_RESEND: put the requests that were read and not answered back into the queue."""
    return OUT_HEADER.pack(OUT_HEADER.size, _NOTIFY_RESEND, 0)


def limit(reply: bytes, size: int) -> bytes:
    """An INIT reply after which no READ or WRITE carries more than `size` bytes (a page, if that is more).

    Where the kernel does not offer FUSE_MAX_PAGES (protocol 7.28, Linux 4.20), reads may be of 32 pages all the same.
    """
    if len(reply) < _INIT_OUT_SIZES_AT + _INIT_OUT_SIZES.size:
        return reply
    changed = bytearray(reply)
    max_write, time_gran, max_pages = _INIT_OUT_SIZES.unpack_from(changed, _INIT_OUT_SIZES_AT)
    pages = max(1, size // mmap.PAGESIZE)
    _INIT_OUT_SIZES.pack_into(
        changed, _INIT_OUT_SIZES_AT, min(max_write, size), time_gran, min(max_pages or pages, pages)
    )
    return bytes(changed)


def failure(unique: int, error: int) -> bytes:
    """The reply to request `unique` that reports the errno `error`."""
    return OUT_HEADER.pack(OUT_HEADER.size, -error, unique)


def reply_size(request: bytes | memoryview) -> int:
    """Bytes; no reply to `request` is larger."""
    opcode = IN_HEADER.unpack_from(request)[1]
    if opcode in _SIZE_AT:
        (size,) = _SIZE.unpack_from(request, IN_HEADER.size + _SIZE_AT[opcode])
        return max(_SMALL, OUT_HEADER.size + int(size))
    return _LINK_MAX if opcode == OP_READLINK else _SMALL


_SIZE = struct.Struct("=I")
_SIZE_AT = {OP_READ: 16, OP_READDIR: 16, OP_READDIRPLUS: 16, OP_GETXATTR: 0, OP_LISTXATTR: 0}
_LINK_MAX = OUT_HEADER.size + 4096
_SMALL = 512


def inval_attributes(nodeid: int) -> bytes:
    """FUSE_NOTIFY_INVAL_INODE: forget the attributes of an inode, and keep its pages."""
    payload = _INVAL_INODE_OUT.pack(nodeid, -1, 0)
    return OUT_HEADER.pack(OUT_HEADER.size + len(payload), _NOTIFY_INVAL_INODE, 0) + payload


def forgotten(request: bytes | memoryview) -> list[tuple[int, int]]:
    """The nodeids that a FORGET or BATCH_FORGET gives back, each with the number of lookups."""
    _, opcode, _, nodeid, *_ = IN_HEADER.unpack_from(request)
    at = IN_HEADER.size
    if opcode == OP_FORGET:
        return [(nodeid, _FORGET_IN.unpack_from(request, at)[0])]
    count, _ = _BATCH_FORGET_IN.unpack_from(request, at)
    pairs = _FORGET_ONE.iter_unpack(request[at + _BATCH_FORGET_IN.size :][: count * _FORGET_ONE.size])
    return [(nodeid, lookups) for nodeid, lookups in pairs]


def written_handle(request: bytes | memoryview) -> int:
    """The file handle that a WRITE is for."""
    return int(_WRITE_IN.unpack_from(request, IN_HEADER.size)[0])


_NAME_AT = {
    OP_SYMLINK: 0, OP_UNLINK: 0, OP_RMDIR: 0, OP_REMOVEXATTR: 0, OP_MKDIR: 8, OP_RENAME: 8, OP_LINK: 8, OP_SETXATTR: 8,
    OP_MKNOD: 16, OP_CREATE: 16, OP_RENAME2: 16,
}  # fmt: skip


def first_name(request: bytes | memoryview) -> bytes | None:
    """The name that a request is about, or the first of two; None if that is not known here."""
    at = _NAME_AT.get(IN_HEADER.unpack_from(request)[1])
    return bytes(request[IN_HEADER.size + at :]).partition(b"\0")[0] if at is not None else None


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
