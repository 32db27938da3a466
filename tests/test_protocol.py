"""The FUSE messages that relfs reads and writes by itself, against layouts written out by hand (linux/fuse.h)."""

from __future__ import annotations

import struct

import pytest

from relfs.fuse.protocol import BATON, CACHE_SYMLINKS, HAS_RESEND, baton, parse_init, want


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
