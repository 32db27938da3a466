"""The FUSE messages that relfs reads and writes by itself, against layouts written out by hand (linux/fuse.h)."""

from __future__ import annotations

import mmap
import struct

import pytest

from relfs.fuse.protocol import (
    BATON,
    CACHE_SYMLINKS,
    HAS_RESEND,
    baton,
    failure,
    inval_attributes,
    inval_entry,
    limit,
    parse_init,
    reply_size,
    want,
)


def init_request(flags: int, flags2: int | None) -> bytes:
    body = struct.pack("=IIII", 7, 45, 0x20000, flags) + (struct.pack("=I44x", flags2) if flags2 is not None else b"")
    return struct.pack("=IIQQIIII", 40 + len(body), 26, 2, 0, 0, 0, 0, 0) + body


def init_reply(error: int = 0, flags: int = 0x39) -> bytes:
    body = struct.pack("=IIII48x", 7, 31, 0x20000, flags) if not error else b""
    return struct.pack("=IiQ", 16 + len(body), error, 2) + body


def test_what_the_kernel_offers() -> None:
    offered = parse_init(init_request(CACHE_SYMLINKS | 1, 1 << 7))
    assert (offered.major, offered.minor) == (7, 45)
    assert offered.flags == CACHE_SYMLINKS | 1 | HAS_RESEND


def test_a_kernel_before_flags2() -> None:
    assert parse_init(init_request(CACHE_SYMLINKS, None)).flags == CACHE_SYMLINKS


@pytest.mark.parametrize("raw", [b"", b"x" * 20, init_request(0, 0).replace(b"\x1a", b"\x1b", 1)])
def test_something_else_than_init(raw: bytes) -> None:
    with pytest.raises(ValueError, match="FUSE_INIT"):
        parse_init(raw)


def test_one_flag_more_and_nothing_else_changed() -> None:
    changed = want(init_reply(flags=0x39), CACHE_SYMLINKS)
    assert changed == init_reply(flags=0x39 | CACHE_SYMLINKS)
    assert want(init_reply(), 0) == init_reply()


@pytest.mark.parametrize("reply", [init_reply(error=-71), init_reply()[:-1], struct.pack("=IiQ", 16, 0, 2)])
def test_a_refusal_is_not_passed_on(reply: bytes) -> None:
    with pytest.raises(ValueError, match="FUSE_INIT"):
        want(reply, CACHE_SYMLINKS)


def test_the_baton_is_a_forget_that_no_kernel_sends() -> None:
    length, opcode, unique, nodeid = struct.unpack_from("=IIQQ", baton())
    assert (length, opcode, unique, nodeid) == (len(baton()), 2, 0, 0)
    assert [(nodeid, struct.unpack_from("=Q", baton(), 40)[0])] == BATON


def sized_reply(max_write: int, max_pages: int) -> bytes:
    body = struct.pack("=IIIIHHIIHHI28x", 7, 31, 0x20000, 0x39, 12, 9, max_write, 1, max_pages, 0, 0)
    return struct.pack("=IiQ", 16 + len(body), 0, 2) + body


def test_requests_are_made_no_larger_than_wanted_and_nothing_else_is_changed() -> None:
    size = 1 << 16
    pages = max(1, size // mmap.PAGESIZE)
    assert limit(sized_reply(1 << 20, 256), size) == sized_reply(size, pages)
    assert limit(sized_reply(4096, 1), size) == sized_reply(4096, 1)
    assert limit(sized_reply(1 << 17, 0), size) == sized_reply(size, pages)


def test_a_reply_of_an_old_protocol_has_no_sizes_to_limit() -> None:
    old = init_reply()[:32]
    assert limit(old, 4096) == old


def test_a_failure_is_a_bare_header() -> None:
    assert failure(6, 5) == struct.pack("=IiQ", 16, -5, 6)


@pytest.mark.parametrize(
    ("opcode", "body", "size"),
    [
        (15, struct.pack("=QQIIQII", 7, 4096, 65536, 0, 0, 0, 0), 65552),  # READ
        (28, struct.pack("=QQIIQII", 7, 0, 4096, 0, 0, 0, 0), 4112),  # READDIR
        (44, struct.pack("=QQIIQII", 7, 0, 131072, 0, 0, 0, 0), 131088),  # READDIRPLUS
        (22, struct.pack("=II", 60000, 0) + b"user.x\0", 60016),  # GETXATTR
        (23, struct.pack("=II", 0, 0), 512),  # LISTXATTR that asks for the size
        (5, b"", 4112),  # READLINK
        (9, b"directory\0", 512),  # MKDIR
    ],
)
def test_how_large_a_reply_may_be(opcode: int, body: bytes, size: int) -> None:
    header = struct.pack("=IIQQIIII", 40 + len(body), opcode, 2, 1, 0, 0, 0, 0)
    assert reply_size(header + body) == size
    assert reply_size(memoryview(header + body)) == size


def test_notifications_are_laid_out_as_the_kernel_reads_them() -> None:
    assert inval_entry(1, b"current") == struct.pack("=IiQQII", 40, 3, 0, 1, 7, 0) + b"current\0"
    assert inval_attributes(1) == struct.pack("=IiQQqq", 40, 2, 0, 1, -1, 0)
