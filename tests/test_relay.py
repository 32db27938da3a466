"""The relay between a kernel that is a socket and a libfuse that is another: what one worker leaves, the next one does.

That the real kernel and the real libfuse are content with it, tests of mounts show.
"""

from __future__ import annotations

import errno
import logging
import os
import socket
import struct
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack

import pytest
import trio
import trio.testing
from mounting import environment, wait_for

from relfs.daemon.member import myself, take_baton
from relfs.daemon.reader import become_reader
from relfs.fuse.once import Once
from relfs.fuse.relay import Relay, session_pair
from relfs.fuse.unanswered import errand_of
from relfs.processes import process, state_of
from relfs.survival.ledger import Ledger, Who, new_ledger
from relfs.survival.memory import Memory, area, new_memory
from relfs.survival.requests import COUNT, PAYLOAD_MAX, Requests

FORGET, MKDIR, READ, WRITE, INTERRUPT, BATCH_FORGET = 2, 9, 15, 16, 36, 42


def request(unique: int, opcode: int = MKDIR, body: bytes = b"0123456789abcdef") -> bytes:
    return struct.pack("=IIQQIIII", 40 + len(body), opcode, unique, 1, 0, 0, 70 + unique, 0) + body


def read_request(unique: int, size: int) -> bytes:
    return request(unique, READ, struct.pack("=QQIIQII", 1, 0, size, 0, 0, 0, 0))


def reply(unique: int, body: bytes = b"", error: int = 0) -> bytes:
    return struct.pack("=IiQ", 16 + len(body), -error, unique) + body


def unique_of(message: bytes) -> int:
    return int(struct.unpack_from("=8xQ", message)[0])


class World:
    """A kernel, and the memory that outlives workers. `libfuse` is the present worker's."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self.kernel, self.device = session_pair()
        self.libfuse = self.kernel
        self._memory = new_memory("relfs-test")
        for end in (self.kernel, self.device):
            stack.callback(end.close)
        stack.callback(os.close, self._memory)

    def requests(self) -> Requests:
        where = area(None, Requests.room())
        return Requests(Memory(self._memory, where.end), where)

    def left(self) -> list[bytes]:
        requests = self.requests()
        return [bytes(requests[slot]) for slot in requests.left()]

    def worker(self, *, room: int = 0) -> Relay:
        """Another one; the one before is dead. `room` is how much its sockets hold, in bytes."""
        ours, self.libfuse = session_pair()
        for end in (ours, self.libfuse):
            self._stack.callback(end.close)
            if room:
                end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, room // 2)
        return Relay(self.device.fileno(), ours, self.requests())


@pytest.fixture
def world() -> Iterator[World]:
    with ExitStack() as stack:
        yield World(stack)


def heard(end: socket.socket) -> list[bytes]:
    """All messages that have arrived."""
    messages = []
    try:
        while message := end.recv(2 * PAYLOAD_MAX, socket.MSG_DONTWAIT):
            messages.append(message)
    except BlockingIOError:
        pass
    return messages


def live(relay: Relay, body: Callable[[], Awaitable[None]]) -> None:
    """Let a worker run until `body` is done, and kill it then."""

    async def main() -> None:
        with trio.fail_after(30):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(relay.run)
                await trio.testing.wait_all_tasks_blocked()
                await body()
                nursery.cancel_scope.cancel()

    trio.run(main)


async def settled() -> None:
    """What can be carried without more input has been carried: readiness is noticed by a turn of the event loop."""
    for _ in range(5):
        await trio.testing.wait_all_tasks_blocked()


def test_a_request_and_its_reply_pass_unchanged_and_leave_nothing(world: World) -> None:
    async def body() -> None:
        world.kernel.send(request(2, WRITE, bytes(range(256)) * 256))
        await settled()
        assert heard(world.libfuse) == [request(2, WRITE, bytes(range(256)) * 256)]
        assert len(world.left()) == 1
        world.libfuse.send(reply(2, b"x" * PAYLOAD_MAX))
        await settled()
        assert heard(world.kernel) == [reply(2, b"x" * PAYLOAD_MAX)]
        assert world.left() == []

    live(world.worker(), body)


def test_the_next_worker_does_what_was_left_in_order_and_before_what_is_new(world: World) -> None:
    async def first() -> None:
        for unique in (2, 4, 6):
            world.kernel.send(request(unique))
        await settled()
        assert [unique_of(each) for each in heard(world.libfuse)] == [2, 4, 6]
        world.libfuse.send(reply(4))
        await settled()
        assert heard(world.kernel) == [reply(4)]

    async def second() -> None:
        await settled()
        assert [unique_of(each) for each in heard(world.libfuse)] == [2, 6, 8]
        world.libfuse.send(reply(6))
        world.libfuse.send(reply(2))
        await settled()
        assert heard(world.kernel) == [reply(6), reply(2)]
        assert world.left() == [request(8)]

    live(world.worker(), first)
    world.kernel.send(request(8))
    relay, expected = world.worker(), list[frozenset[bytes]]()
    relay.expect = expected.append
    live(relay, second)
    assert expected == [frozenset({errand_of(request(2)), errand_of(request(6))})], "who was answered is not expected"


def test_what_was_answered_and_perhaps_not_sent_is_sent_and_not_done_again(world: World) -> None:
    """Killed with the reply on the desk: it goes out, once more at worst, and libfuse hears nothing of it."""

    async def first() -> None:
        world.kernel.send(request(2))
        await settled()

    async def second() -> None:
        await settled()
        assert heard(world.kernel) == [reply(2, b"made")]
        assert heard(world.libfuse) == []
        assert world.left() == []
        assert world.requests().laid_down() is None

    live(world.worker(), first)
    requests = world.requests()
    requests.desk[: len(reply(2, b"made"))] = reply(2, b"made")
    requests.lay_down(len(reply(2, b"made")))
    live(world.worker(), second)


def test_while_a_reply_is_sent_it_is_on_the_desk_and_its_request_kept(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever is killed at that moment is followed by one that knows."""
    real, found = os.write, []

    def write(fd: int, data: bytes) -> int:
        if fd == world.device.fileno():
            found.append((bytes(world.requests().laid_down() or b""), world.left()))
        return real(fd, data)

    async def body() -> None:
        world.kernel.send(request(2))
        await settled()
        world.libfuse.send(reply(2, b"made"))
        await settled()

    monkeypatch.setattr(os, "write", write)
    live(world.worker(), body)
    assert found == [(reply(2, b"made"), [request(2)])]


@pytest.mark.parametrize("opcode", [FORGET, BATCH_FORGET, INTERRUPT])
def test_what_has_no_reply_is_not_kept(world: World, opcode: int) -> None:
    async def body() -> None:
        for unique in range(2, 2 + 2 * COUNT + 2, 2):
            world.kernel.send(request(unique, opcode))
            await settled()
            assert heard(world.libfuse) == [request(unique, opcode)]
        assert world.left() == []

    live(world.worker(), body)


def test_a_reply_to_nothing_that_is_kept_goes_to_the_kernel(world: World) -> None:
    """libfuse answers an interruption that it cannot place with EAGAIN."""

    async def body() -> None:
        world.libfuse.send(reply(7, error=errno.EAGAIN))
        await settled()
        assert heard(world.kernel) == [reply(7, error=errno.EAGAIN)]

    live(world.worker(), body)


def test_replies_never_wait_for_room(world: World) -> None:
    """libfuse answers on the thread that would make room: whatever it was sent, all the answers must fit at once."""
    wanted = list(range(2, 2 + 2 * 100, 2))

    async def body() -> None:
        for unique in wanted:
            world.kernel.send(read_request(unique, PAYLOAD_MAX))
        answered: list[int] = []
        while len(answered) < len(wanted):
            await settled()
            asked = [unique_of(each) for each in heard(world.libfuse)]
            assert asked, "nothing more is sent, though there is room again"
            for unique in asked:
                world.libfuse.send(reply(unique, b"d" * PAYLOAD_MAX), socket.MSG_DONTWAIT)
            answered += asked
            while len(done) < len(answered):
                await settled()
                done.extend(unique_of(each) for each in heard(world.kernel))
        assert answered == done == wanted

    done: list[int] = []
    live(world.worker(room=8 * PAYLOAD_MAX), body)


def test_a_request_whose_reply_is_larger_than_all_room_is_sent_when_it_is_alone(world: World) -> None:
    async def body() -> None:
        world.kernel.send(request(2))
        world.kernel.send(read_request(4, 8 * PAYLOAD_MAX))
        await settled()
        assert [unique_of(each) for each in heard(world.libfuse)] == [2]
        world.libfuse.send(reply(2))
        await settled()
        assert [unique_of(each) for each in heard(world.libfuse)] == [4]

    live(world.worker(room=8 * PAYLOAD_MAX), body)


def test_when_all_slots_are_taken_the_kernel_keeps_the_rest(world: World) -> None:
    async def body() -> None:
        for unique in range(2, 2 + 2 * (COUNT + 1), 2):
            world.kernel.send(request(unique))
            await settled()
        assert len(heard(world.libfuse)) == COUNT
        world.libfuse.send(reply(2))
        await settled()
        assert [unique_of(each) for each in heard(world.libfuse)] == [2 + 2 * COUNT]

    live(world.worker(), body)


def test_what_libfuse_has_answered_can_be_given_to_the_kernel_at_once(world: World) -> None:
    async def body() -> None:
        world.kernel.send(request(2))
        await settled()
        world.libfuse.send(reply(2))
        assert relay.deliver()
        assert heard(world.kernel) == [reply(2)]
        assert world.left() == []

    relay = world.worker()
    live(relay, body)


def test_what_was_answered_is_delivered_when_the_worker_ends(world: World) -> None:
    async def body() -> None:
        world.kernel.send(request(2))
        await settled()
        world.libfuse.send(reply(2))

    live(world.worker(), body)
    assert heard(world.kernel) == [reply(2)]
    assert world.left() == []


def test_it_ends_with_libfuses_session(world: World) -> None:
    relay = world.worker()
    world.libfuse.close()
    trio.run(relay.run)


def _alone(world: World) -> Callable[[], Awaitable[None]]:
    async def body() -> None:
        await settled()
        heard(world.libfuse)

    return body


def test_a_request_that_three_workers_died_of_is_refused(world: World, caplog: pytest.LogCaptureFixture) -> None:
    world.kernel.send(request(2))
    for _ in range(3):
        live(world.worker(), _alone(world))
        assert heard(world.kernel) == []
    live(world.worker(), _alone(world))
    assert heard(world.kernel) == [reply(2, error=errno.EIO)]
    assert world.left() == []
    assert [each.levelno for each in caplog.records] == [logging.ERROR]
    assert "request 9" in caplog.text


def test_one_that_merely_takes_long_is_not(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """Another one that came later was answered, so it cannot be what kills."""

    def another(unique: int) -> Callable[[], Awaitable[None]]:
        async def body() -> None:
            world.kernel.send(request(unique))
            await settled()
            assert [unique_of(each) for each in heard(world.libfuse)] == [2, unique]
            world.libfuse.send(reply(unique))
            await settled()
            assert heard(world.kernel) == [reply(unique)]

        return body

    world.kernel.send(request(2))
    for unique in range(4, 18, 2):
        live(world.worker(), another(unique))
    assert world.left() == [request(2)]
    assert not caplog.records


def test_a_notification_by_libfuse_does_not_block_everything(world: World, caplog: pytest.LogCaptureFixture) -> None:
    async def body() -> None:
        world.libfuse.send(reply(0, b"drop that"))
        await settled()

    live(world.worker(), body)
    assert heard(world.kernel) == []
    assert "notify" in caplog.text


def test_a_reply_that_the_kernel_refuses_leaves_nobody_waiting(
    world: World, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.write

    def write(fd: int, data: bytes) -> int:
        if fd == world.device.fileno() and len(data) == len(reply(2, b"nonsense")):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return real(fd, data)

    async def body() -> None:
        world.kernel.send(request(2))
        await settled()
        world.libfuse.send(reply(2, b"nonsense"))
        await settled()

    monkeypatch.setattr(os, "write", write)
    live(world.worker(), body)
    assert heard(world.kernel) == [reply(2, error=errno.EIO)]
    assert world.left() == []
    assert "Invalid argument" in caplog.text


def test_a_request_whose_caller_went_away_while_it_was_read_is_none(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel may have copied its header by then."""
    real = os.readv

    def readv(fd: int, buffers: list[memoryview]) -> int:
        if heard(world.kernel) or read:
            return real(fd, buffers)
        read.append(True)
        buffers[0][:40] = request(2)[:40]
        raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))

    async def body() -> None:
        await settled()
        assert world.left() == []

    read: list[bool] = []
    monkeypatch.setattr(os, "readv", readv)
    live(world.worker(), body)
    assert read


@pytest.mark.parametrize(("number", "raises"), [(errno.ENODEV, False), (errno.ECONNABORTED, True)])
def test_unmounted_is_an_end_and_aborted_an_error(
    world: World, monkeypatch: pytest.MonkeyPatch, number: int, raises: bool
) -> None:
    def readv(_fd: int, _buffers: list[memoryview]) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "readv", readv)
    relay = world.worker()
    if raises:
        with pytest.raises(ConnectionAbortedError):
            trio.run(relay.run)
    else:
        trio.run(relay.run)


def test_who_is_answered_is_not_heard_again_before_that_is_noted(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread that was answered may ask for the same again, at once: that must not be taken for what was answered."""
    write, told = os.write, list[list[bytes]]()

    def answer(fd: int, data: bytes) -> int:
        written = write(fd, data)
        world.kernel.send(request(4))
        return written

    async def body() -> None:
        world.kernel.send(request(2))
        await settled()
        monkeypatch.setattr(os, "write", answer)
        world.libfuse.send(reply(2))
        await settled()
        assert [request(4)] in told, "it was still unread"
        assert world.left() == [request(4)]

    relay = world.worker()
    relay.delivered = lambda: told.append(peeked(world.device))
    live(relay, body)


def peeked(end: socket.socket) -> list[bytes]:
    """The first message that has arrived, if any; it stays."""
    try:
        return [end.recv(2 * PAYLOAD_MAX, socket.MSG_DONTWAIT | socket.MSG_PEEK)]
    except BlockingIOError:
        return []


def test_an_errand_is_forgotten_only_after_its_answer_is_delivered() -> None:
    """Else who dies in between is asked again, and does not know."""

    async def body() -> None:
        once.note(b"noted")
        once.settle()
        with once.held(b"held"):
            pass
        await settled()

    ledger = new_ledger()
    once = Once(ledger)
    left: list[int] = []
    once.deliver = lambda: left.append(len(list(ledger.errands)))
    trio.run(body)
    assert left == [1, 1]
    assert not list(ledger.errands)


# ---- who reads

_READER = """
import ctypes, os, sys, threading
from relfs.daemon.member import myself, take_baton
assert take_baton(int(sys.argv[1])) is not None
threading.Thread(target=sys.stdin.read).start()
print("has it", flush=True)
if sys.argv[2] == "lingers":
    ctypes.CDLL(None).syscall({"x86_64": 60}.get(os.uname().machine, 93), 0)
"""
"""Holds the lock; its main thread ends (exit(2), not exit_group(2)), or waits for the other one."""


@pytest.mark.parametrize("how", ["reads", "lingers"])
def test_a_reader_is_waited_for_unless_only_its_other_threads_live(how: str) -> None:
    ledger = new_ledger()
    other = subprocess.Popen(
        [sys.executable, "-c", _READER, str(ledger.fd), how],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=[ledger.fd], env=environment(),
    )  # fmt: skip
    assert other.stdin is not None and other.stdout is not None
    try:
        assert other.stdout.readline() == b"has it\n"
        found = process(other.pid)
        assert found is not None
        ledger.note("reader", Who(other.pid, found.start))
        if how == "lingers":
            wait_for(lambda: state_of(other.pid) == "Z", "its main thread has ended")
        else:
            trio.run(_wait_a_while_for, ledger)
            other.kill()
            other.wait()
        trio.run(become_reader, ledger)
        assert ledger.who("reader") == myself()
        assert take_baton(ledger.fd) is None, "the lock is held"
    finally:
        other.kill()
        other.communicate()
        ledger.close()


async def _wait_a_while_for(ledger: Ledger) -> None:
    with trio.move_on_after(0.1) as waiting:
        await become_reader(ledger)
    assert waiting.cancelled_caught
    assert ledger.who("reader") != myself()
