"""What the kernel asks again is known before it is asked: against a kernel that is a socket pair."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator

import pytest

from relfs.fuse.once import Once, errand, file_asker
from relfs.fuse.protocol import UNIQUE_RESEND, forgotten, resend
from relfs.fuse.unanswered import Again, ask_again, errand_of
from relfs.survival.ledger import Ledger, new_ledger

LOOKUP, FORGET, MKDIR, WRITE, BATCH_FORGET = 1, 2, 9, 16, 42


def request(opcode: int, pid: int = 0, body: bytes = b"", *, nodeid: int = 1, again: bool = True) -> bytes:
    """One that the kernel sends, `again` if it did so before."""
    unique = 2 * pid + 2 | (UNIQUE_RESEND if again else 0)
    return struct.pack("=IIQQIIII", 40 + len(body), opcode, unique, nodeid, 0, 0, pid, 0) + body


def mkdir(pid: int, name: bytes, *, again: bool = True) -> bytes:
    return request(MKDIR, pid, struct.pack("=II", 0o777, 0) + name + b"\0", again=again)


def write(fh: int, pid: int, data: bytes) -> bytes:
    return request(WRITE, pid, struct.pack("=QQIIQII", fh, 0, len(data), 0, 0, 0, 0) + data)


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    """The kernel's, and ours."""
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with one, other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 21)
        one.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 21)
        yield one, other


def looked_at(ends: tuple[socket.socket, socket.socket], *queue: bytes) -> Again:
    """What is found in the queue; both times it is asked for."""
    kernel, ours = ends
    for each in queue:
        kernel.send(each)
    found = ask_again(ours.fileno())
    assert [kernel.recv(100), kernel.recv(100)] == [resend(), resend()]
    assert os.get_blocking(ours.fileno())
    return found


def test_who_waits(ends: tuple[socket.socket, socket.socket]) -> None:
    found = looked_at(ends, mkdir(10, b"a"), write(7, 11, b"x" * 100_000), mkdir(12, b"b"))
    owed = {errand("mkdir", 10, 1, b"a"), errand("write", file_asker(7)), errand("mkdir", 12, 1, b"b")}
    assert found == Again(frozenset(owed), ())


def test_nobody_waits(ends: tuple[socket.socket, socket.socket]) -> None:
    assert looked_at(ends) == Again(frozenset(), ())


def test_what_is_asked_for_the_first_time_is_the_end(ends: tuple[socket.socket, socket.socket]) -> None:
    found = looked_at(ends, mkdir(10, b"a"), mkdir(11, b"a", again=False), mkdir(12, b"a"))
    assert found.errands == {errand("mkdir", 10, 1, b"a")}
    assert ends[1].recv(1000) == mkdir(12, b"a"), "the rest is left where it is"


def test_what_is_given_back_on_the_way_is_not_lost(ends: tuple[socket.socket, socket.socket]) -> None:
    one = request(FORGET, 0, struct.pack("=Q", 3), nodeid=20, again=False)
    many = request(BATCH_FORGET, 0, struct.pack("=IIQQQQ", 2, 0, 21, 1, 22, 5), again=False)
    found = looked_at(ends, one, mkdir(10, b"a"), many)
    assert found == Again(frozenset({errand("mkdir", 10, 1, b"a")}), ((20, 3), (21, 1), (22, 5)))
    assert forgotten(many) == [(21, 1), (22, 5)]


@pytest.fixture
def ledger() -> Iterator[Ledger]:
    made = new_ledger()
    yield made
    made.close()


def test_only_who_waits_has_begun(ledger: Ledger) -> None:
    """An errand that was answered is not taken for the same thing, wanted once more."""
    before = Once(ledger)
    waits, answered = errand("mkdir", 10, 1, b"a"), errand("mkdir", 11, 1, b"a")
    writes, written = errand("write", file_asker(7), 0), errand("write", file_asker(8), 0)
    for name in (waits, answered, writes, written):
        Once(ledger).note(name, b"note")
    before.restore()
    before.expect({errand("mkdir", 10, 1, b"a"), errand("write", file_asker(7))})
    assert [before.begun(name) for name in (waits, answered, writes, written)] == [b"note", None, b"note", None]
    before.settle()
    assert list(ledger.errands) == []


_NAMED = {
    "symlink": (6, b"name\0text\0"),
    "mknod": (8, bytes(16) + b"name\0"),
    "mkdir": (9, bytes(8) + b"name\0"),
    "unlink": (10, b"name\0"),
    "rmdir": (11, b"name\0"),
    "rename": (12, bytes(8) + b"name\0other\0"),
    "link": (13, bytes(8) + b"name\0"),
    "setxattr": (21, bytes(8) + b"name\0value"),
    "removexattr": (24, b"name\0"),
    "create": (35, bytes(16) + b"name\0"),
}
"""Requests by the errand that they are, with what stands before the name (linux/fuse.h)."""


@pytest.mark.parametrize("what", _NAMED)
def test_who_waits_for_something_else_has_had_its_answer(ledger: Ledger, what: str) -> None:
    """The same thread, once it was answered, may ask for another name, or for another thing, and the worker dies then:
    what it asks for the next time is to be done. (tests/test_survival_once.py shows that what is owed is known.)"""
    opcode, body = _NAMED[what]
    done = errand(what, 10, 1, b"name", b"more")
    others = [request(opcode, 10, body.replace(b"name", b"namesake")), request(LOOKUP, 10, b"name\0")]
    for owed in (*others, request(opcode, 10, body, nodeid=2), request(opcode, 11, body)):
        assert not _is_known(ledger, done, owed)
    assert _is_known(ledger, done, request(opcode, 10, body))


def _is_known(ledger: Ledger, noted: bytes, owed: bytes) -> bool:
    """Whether what a dead worker has noted is taken for what it `owed` an answer to."""
    Once(ledger).note(noted)
    once = Once(ledger)
    once.restore()
    once.expect({errand_of(owed)})
    known = once.begun(noted) is not None
    once.settle()
    assert list(ledger.errands) == []
    return known
