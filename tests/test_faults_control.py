"""Faults of the world at the control socket: ten thousand clients, no descriptors left, accept(2) that fails.

What a watcher that stops reading meets is in test_control.py, with the rest of bad manners.
"""

from __future__ import annotations

import errno
import json
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import trio
import trio.testing
from clients import RawClient, assert_one_line, ctl
from mounting import Mount, Mounts, wait_for
from readers import reading
from sandbox import make_app

from relfs.daemon.accepting import Acceptor
from relfs.daemon.clients import Client, Clients, TooManyError
from relfs.descriptors import Descriptors

STRANGER = 4711

ALWAYS_OPEN = 3
"""A limit of descriptors below which a daemon never has a free one: standard input, output and error."""

CROWD = """
import json, os, resource, socket, sys
path = sys.argv[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)

def come():
    client = socket.socket(socket.AF_UNIX)
    client.connect(path)
    try:
        client.sendall(b'{"id": 1, "method": "none"}\\n')
    except BrokenPipeError:
        pass
    return client

answered, turned_away = [], []
for uid, count in json.loads(sys.argv[2]):
    os.setresuid(uid, uid, 0)
    for client in [come() for _ in range(count)]:
        said = json.loads(client.recv(4096))["error"]["message"]
        if "no such method" in said:
            answered.append(client)
        else:
            turned_away.append(said)
            client.close()
    os.setresuid(0, 0, 0)
print(json.dumps([len(answered), len(turned_away), turned_away[-1]]), flush=True)
sys.stdin.read()
"""


@contextmanager
def crowd(mount: Mount, users: list[tuple[int, int]]) -> Iterator[tuple[int, int, str]]:
    """Connections that ask once and stay, as many as told of each user (uid): how many were answered, how many turned
    away, and what the last of these was told."""
    command = [sys.executable, "-c", CROWD, f"{mount.app}/.relfs/control", json.dumps(users)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd="/")
    try:
        assert process.stdout is not None
        answered, turned_away, words = json.loads(process.stdout.readline())
        yield answered, turned_away, words
    finally:
        process.kill()
        process.communicate()


def test_ten_thousand_connections(open_place: Path, mounts: Mounts) -> None:
    """Those beyond the limit hear why, readers notice nothing, root and the owner get through."""
    app = make_app(open_place / "app")
    os.chown(app, STRANGER, STRANGER)
    mount = mounts.start(app)
    most = Descriptors(_limit(mount)).connections
    users = [(10_000 + number, 50) for number in range(most // 50)]
    users += [(9_999, (10_000 - 50 * len(users)) // 20)] * 20
    with reading(app / "current/index.html", "40", "41") as readers:
        with crowd(mount, users) as (answered, turned_away, words):
            assert answered + turned_away == sum(count for _, count in users)
            assert answered == most // 2
            assert words == "user 9999 has too many connections to the control socket; close some"
            assert_one_line(ctl("-C", app, "status", user=9_998), 1, "user 9998 has too many connections")
            assert ctl("-C", app, "switch", "41").status == 0
            assert ctl("-C", app, "--json", "status", user=STRANGER).json["current"] == "41"
        seen = readers.stop()
    assert (seen.failed, seen.neither) == ({}, 0)
    wait_for(lambda: ctl("-C", app, "status", user=9_998).status == 0, "the next comes in once they have left")


def _limit(mount: Mount) -> int:
    return resource.prlimit(mount.status()["worker_pid"], resource.RLIMIT_NOFILE)[0]


def test_the_owner_pushes_out_his_own_idle_connections(app: Path, mounts: Mounts) -> None:
    mount = mounts.start(app)
    share = Descriptors(_limit(mount)).connections // 2
    with ExitStack() as stack:
        first = stack.enter_context(RawClient(app / ".relfs"))
        assert "result" in first.ask("status")
        rest = [stack.enter_context(RawClient(app / ".relfs")) for _ in range(share)]
        assert "result" in rest[-1].ask("status")
        assert first.is_cut_off()


def test_a_daemon_without_a_descriptor_left(app: Path, mounts: Mounts) -> None:
    """Whoever connects waits, and is served once there are descriptors again; the rest goes on."""
    mount = mounts.start(app)
    mount.expect_log("no connection to the control socket can be accepted: Too many open files")
    mount.expect_log("the real link cannot be looked at: .* Too many open files")  # if that is tried just then
    pid = mount.status()["worker_pid"]
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    with RawClient(app / ".relfs") as early:
        assert "result" in early.ask("status")
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (ALWAYS_OPEN, before[1]))
        try:
            with RawClient(app / ".relfs") as late:
                late.say("status")
                wait_for(lambda: "accepted: Too many" in mount.log.read_text(), "the log tells")
                assert "result" in early.ask("status")
                assert (app / "current/index.html").read_text() == "40"
                resource.prlimit(pid, resource.RLIMIT_NOFILE, before)
                assert late.hear() is not None
        finally:
            resource.prlimit(pid, resource.RLIMIT_NOFILE, before)
    assert mount.log.read_text().count("accepted: Too many") == 1
    assert ctl("-C", app, "switch", "41").status == 0


# ---- the parts


class _Listener(trio.abc.Listener[trio.SocketStream]):
    """Fails as it is told to, then gives a connection; after the last it is closed."""

    def __init__(self, *errors: int | None) -> None:
        self._errors = iter(errors)

    async def accept(self) -> trio.SocketStream:
        await trio.lowlevel.checkpoint()
        try:
            number = next(self._errors)
        except StopIteration:
            raise trio.ClosedResourceError from None
        if number is not None:
            raise OSError(number, os.strerror(number))
        return None  # type: ignore[return-value]

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()


def test_no_error_of_accept_is_the_end(caplog: pytest.LogCaptureFixture) -> None:
    errors = [errno.EMFILE] * 100 + [None, errno.ECONNABORTED, errno.EPERM, None, errno.ENFILE, None]
    served: list[object] = []

    async def main() -> None:
        acceptor = Acceptor(_Listener(*errors))  # type: ignore[arg-type]
        await acceptor.run(served.append)
        assert acceptor.trouble is None

    caplog.set_level("INFO")
    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    assert len(served) == 3
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO", "WARNING", "INFO"]


def test_places(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter(range(1000))
    monkeypatch.setattr(trio, "current_time", lambda: float(next(now)))
    clients, closed = Clients(12, frozenset({0, 7})), []
    with ExitStack() as stack:

        def come(uid: int, name: str) -> Client:
            return stack.enter_context(clients.admitted(uid, lambda: closed.append(name)))

        for number in range(6):
            come(1000 + number, f"stranger {number}")
        with pytest.raises(TooManyError):
            come(2000, "one too many")
        busy = stack.enter_context(come(0, "first").busy())
        come(0, "second")
        come(0, "third")
        come(0, "fourth")
        assert closed == ["second"]
        assert busy is None
        come(7, "the owner")
        assert closed == ["second"]


def test_no_place_where_all_are_busy() -> None:
    async def main() -> None:
        clients = Clients(4, frozenset({0}))
        with (
            clients.admitted(0, lambda: None) as one, one.busy(),
            clients.admitted(0, lambda: None) as two, two.busy(),
            pytest.raises(TooManyError), clients.admitted(0, lambda: None),
        ):  # fmt: skip
            pass
        with clients.admitted(0, lambda: None):
            pass

    trio.run(main)


def test_each_stranger_has_few() -> None:
    async def main() -> None:
        clients = Clients(1000, frozenset({0}))
        with ExitStack() as stack:
            for _ in range(64):
                stack.enter_context(clients.admitted(1000, lambda: None))
            with pytest.raises(TooManyError):
                stack.enter_context(clients.admitted(1000, lambda: None))
            stack.enter_context(clients.admitted(1001, lambda: None))
        with clients.admitted(1000, lambda: None):
            pass

    trio.run(main)


@pytest.mark.parametrize("limit", [64, 256, 1024, 20_000, 1 << 20])
def test_descriptors_are_shared_out(limit: int) -> None:
    shares = Descriptors(limit)
    assert 0 < shares.inodes < shares.mark < limit
    assert shares.inodes + shares.files == shares.mark
    assert 2 * shares.connections <= limit - shares.mark


def test_what_is_reserved_is_given_back() -> None:
    fd = os.open("/", os.O_PATH)
    assert Descriptors(fd * 2 + 2).for_inode(fd) == fd
    with pytest.raises(OSError, match=os.strerror(errno.EMFILE)):
        Descriptors(fd).for_inode(fd)
    with pytest.raises(OSError, match=os.strerror(errno.EBADF)):
        os.fstat(fd)
