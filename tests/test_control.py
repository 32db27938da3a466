"""The control socket: who may do what, and clients of every kind of bad manners, none of whom harms another.

On a real mount where the mount matters; otherwise the server alone, on a clock that the test moves. Also the small
parts around it: the configuration, the option list of mount(8), and the word to the service manager.
"""

from __future__ import annotations

import grp
import json
import logging
import os
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trio
import trio.testing
from clients import SECONDS, RawClient, assert_one_line, clean_environment, ctl, ctl_command, running, snapshot
from mounting import Mount, Mounts, wait_for
from opened import opened_by
from readers import reading
from sandbox import add_release, link_of, make_app

from relfs import control
from relfs.checks import Checks
from relfs.cli.options import MountOptions, parse_mount_options
from relfs.config import Config, load_config
from relfs.control import MESSAGE_MAX, change
from relfs.daemon import methods
from relfs.daemon.endpoint import listen
from relfs.daemon.server import ControlServer, EventHub, Method, Peer
from relfs.daemon.service import notify
from relfs.errors import RelfsError, UsageError
from relfs.hooks import Hooks
from relfs.journal import Actor, Event
from relfs.mountinfo import mount_at

NOBODY = 65534
STRANGER = 4711
GROUP = "daemon"

PARSE_ERROR, INVALID_REQUEST, METHOD_NOT_FOUND, INVALID_PARAMS = -32700, -32600, -32601, -32602
REFUSED = -32003


@pytest.fixture
def open_app() -> Iterator[Path]:
    """A deploy path that every user can reach and NOBODY owns; pytest's own directories are for root alone."""
    place = Path(tempfile.mkdtemp(prefix="relfs-test-"))
    place.chmod(0o755)
    app = make_app(place / "app")
    for path in (app, *app.rglob("*")):
        os.chown(path, NOBODY, NOBODY, follow_symlinks=False)
    yield app
    shutil.rmtree(place)


@pytest.fixture
def client(mount: Mount) -> Iterator[RawClient]:
    with RawClient(mount.app / ".relfs") as made:
        yield made


def state(mount: Mount) -> Path:
    return mount.app / ".relfs"


def still_answers(mount: Mount) -> bool:
    with RawClient(state(mount)) as other:
        return bool(other.ask("status")["result"]["mounted"])


# ---- who may do what


def test_strangers_may_only_look(open_app: Path, mounts: Mounts) -> None:
    mount = mounts.start(open_app)
    assert ctl("-C", open_app, "switch", "41").status == 0
    before = snapshot(open_app)
    looked = ctl("-C", open_app, "--json", "status", user=STRANGER)
    assert looked.json["current"] == "41"
    for command in (["switch", "42"], ["rollback"], ["unmount"]):
        assert_one_line(ctl("-C", open_app, *command, user=STRANGER), 3, str(STRANGER), "may look but not change")
    assert snapshot(open_app) == before
    assert mount_at(str(open_app)) is not None
    assert still_answers(mount)


def test_the_owner_may_switch(open_app: Path, mounts: Mounts) -> None:
    mount = mounts.start(open_app)
    assert ctl("-C", open_app, "switch", "42", user=NOBODY).status == 0
    assert mount.journal()[-1]["user"] == "nobody"
    assert os.lstat(open_app / "current").st_uid == NOBODY, "the link is his who asked"
    assert ctl("-C", open_app, "unmount", user=NOBODY).status == 0


def test_the_configured_group_may_switch(open_app: Path, mounts: Mounts) -> None:
    """As the primary group, or as one of many; no other group."""
    (open_app / ".relfs").mkdir()
    (open_app / ".relfs/config.toml").write_text(f'[control]\ngroup = "{GROUP}"\n')
    mounts.start(open_app)
    gid = grp.getgrnam(GROUP).gr_gid
    assert_one_line(ctl("-C", open_app, "switch", "41", user=STRANGER, groups=[gid + 7000]), 3)
    assert link_of(open_app) == "releases/40"
    for groups in ([gid], [*range(9000, 9200), gid]):
        assert ctl("-C", open_app, "switch", "42", user=STRANGER, groups=groups).status == 0
    assert link_of(open_app) == "releases/42"


def test_what_a_message_says_about_its_sender_counts_nothing(open_app: Path, mounts: Mounts) -> None:
    mounts.start(open_app)
    program = (
        "import json, socket, sys; s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1])\n"
        "params = {'release': '41', 'request': 'x', **json.loads(sys.argv[2])}\n"
        "s.sendall(json.dumps({'id': 1, 'method': 'switch', 'params': params, 'uid': 0, 'pid': 1}).encode() + b'\\n')\n"
        "print(s.makefile().readline())"
    )
    for claims, code in (("{}", REFUSED), ('{"uid": 0}', INVALID_PARAMS)):
        done = subprocess.run(
            ["/usr/bin/env", "python3", "-c", program, f"{open_app}/.relfs/control", claims],
            user=STRANGER, group=STRANGER, extra_groups=[], capture_output=True, text=True, check=True, cwd="/",
        )  # fmt: skip
        assert json.loads(done.stdout)["error"]["code"] == code
    assert link_of(open_app) == "releases/40"


# ---- messages of all kinds

WRONG: list[tuple[bytes, int]] = [
    (b"hello\n", PARSE_ERROR),
    (b"\n", PARSE_ERROR),
    (b"\xff\xfe\x00\n", PARSE_ERROR),
    (b"{\n", PARSE_ERROR),
    (b"[" * 60_000 + b"\n", PARSE_ERROR),
    (b'{"id": 1, "method": "status", "params": ' + b"[" * 30_000 + b"]" * 30_000 + b"}\n", 0),
    (b'{"id":' * 9_000 + b"1" + b"}" * 9_000 + b"\n", 0),
    (b'{"id": ' + b"9" * 5_000 + b', "method": "status"}\n', PARSE_ERROR),
    (b"[]\n", INVALID_REQUEST),
    (b"7\n", INVALID_REQUEST),
    (b"null\n", INVALID_REQUEST),
    (b"{}\n", INVALID_REQUEST),
    (b'{"id": 1, "method": 7}\n', INVALID_REQUEST),
    (b'{"id": 1, "method": ["status"]}\n', INVALID_REQUEST),
    (b'[{"id": 1, "method": "status"}]\n', INVALID_REQUEST),
]


@pytest.mark.parametrize(("said", "code"), WRONG, ids=[ascii(row[0])[:24] for row in WRONG])
def test_wrong_messages(shared_mount: Mount, said: bytes, code: int) -> None:
    """The answer says what is wrong, that connection ends, and nobody else notices. (0: an error, whichever.)"""
    with RawClient(state(shared_mount)) as client, RawClient(state(shared_mount)) as bystander:
        bystander.say("watch")
        assert bystander.hear() is not None
        client.socket.sendall(said)
        answer = client.hear()
        assert answer is not None
        assert answer["error"]["code"] == code or (code == 0 and answer["error"]["code"] < 0)
        assert len(answer["error"]["message"].splitlines()) == 1
        assert still_answers(shared_mount)
        assert ctl_switch(shared_mount, "41")
        told = bystander.hear()
        assert told is not None and told["method"] == "event"


def ctl_switch(mount: Mount, release: str) -> bool:
    """A switch by a client of its own."""
    with RawClient(state(mount)) as other:
        return "result" in other.switch(release, os.urandom(8).hex())


@pytest.fixture(scope="module")
def shared_mount(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mount]:
    """One mount for many bad clients, who must not be able to harm it."""
    mounts = Mounts(tmp_path_factory.mktemp("logs"))
    yield mounts.start(make_app(tmp_path_factory.mktemp("shared") / "app"))
    mounts.take_away()


WRONG_PARAMS: list[tuple[str, object, int]] = [
    ("frobnicate", {}, METHOD_NOT_FOUND),
    ("", {}, METHOD_NOT_FOUND),
    ("__class__", {}, METHOD_NOT_FOUND),
    ("status", [], INVALID_PARAMS),
    ("status", "x", INVALID_PARAMS),
    ("status", {"x": 1}, INVALID_PARAMS),
    ("switch", {"release": "41"}, INVALID_PARAMS),
    ("switch", {"release": "41", "request": ""}, INVALID_PARAMS),
    ("switch", {"release": "41", "request": None}, INVALID_PARAMS),
    ("switch", {"release": "41", "request": 7}, INVALID_PARAMS),
    ("switch", {"release": 41, "request": "r"}, INVALID_PARAMS),
    ("switch", {"release": None, "request": "r"}, INVALID_PARAMS),
    ("switch", {"release": ["41"], "request": "r"}, INVALID_PARAMS),
    ("switch", {"release": "41", "request": "r", "force": 1}, INVALID_PARAMS),
    ("switch", {"release": "41", "request": "r", "owner": 0}, INVALID_PARAMS),
    ("switch", {"request": "r"}, -32002),
    ("switch", {"release": "a/b", "request": "r"}, -32002),
    ("switch", {"release": "a\0b", "request": "r"}, -32002),
    ("switch", {"release": "a\nb", "request": "r"}, -32002),
    ("switch", {"release": "9" * 300, "request": "r"}, -32002),
    ("switch", {"release": "\ud800", "request": "r"}, -32002),
    ("switch", {"release": "gone", "request": "r"}, -32003),
    ("discard", {"release": "41"}, INVALID_PARAMS),
    ("discard", {"release": 41, "request": "r"}, INVALID_PARAMS),
    ("discard", {"request": "r"}, -32002),
    ("discard", {"release": "../shared", "request": "r"}, -32002),
    ("discard", {"release": "gone", "request": "r"}, -32003),
    ("who", {"releases": ["41"]}, INVALID_PARAMS),
    ("who", {"releases": "41", "request": "r"}, INVALID_PARAMS),
    ("who", {"releases": ["../shared"], "request": "r"}, -32002),
    ("who", {"releases": ["a\0b"], "request": "r"}, -32002),
    ("clean", {"release": "41", "request": "r"}, INVALID_PARAMS),
    ("rollback", {"release": 41, "request": "r"}, INVALID_PARAMS),
    ("rollback", {"release": "a\0b", "request": "r"}, -32002),
    ("rollback", {"release": "\ud800", "request": "r"}, -32002),
]


@pytest.mark.parametrize(("method", "params", "code"), WRONG_PARAMS, ids=[ascii(row)[:48] for row in WRONG_PARAMS])
def test_wrong_parameters(shared_mount: Mount, method: str, params: object, code: int) -> None:
    """An answer with the same id, on a connection that goes on; nothing is changed, nothing is logged as a fault."""
    with RawClient(state(shared_mount)) as client:
        before = snapshot(shared_mount.app)
        answer = client.ask(method, params, number=17)
        assert answer["error"]["code"] == code
        assert len(answer["error"]["message"].splitlines()) == 1
        assert client.ask("status", number=18)["result"]["mounted"] is True
        assert snapshot(shared_mount.app) == before
        if not isinstance(params, dict):
            assert answer["id"] in (17, None)
        else:
            assert answer["id"] == 17


def test_a_message_that_is_too_long(shared_mount: Mount) -> None:
    """10 MB in one line: that client alone is cut off."""
    with RawClient(state(shared_mount)) as client:
        try:
            client.socket.sendall(b'{"id": 1, "method": "status", "x": "' + b"x" * 10_000_000 + b'"}\n')
        except (BrokenPipeError, ConnectionResetError):
            pass
        assert client.is_cut_off()
    with RawClient(state(shared_mount)) as client:
        client.socket.sendall(b" " * (MESSAGE_MAX + 1))
        answer = client.hear()
        assert answer is not None and answer["error"]["code"] == INVALID_REQUEST
        assert client.is_cut_off()
    assert still_answers(shared_mount)


def test_a_message_that_is_just_short_enough(shared_mount: Mount) -> None:
    with RawClient(state(shared_mount)) as client:
        message = b'{"id": 1, "method": "status"}'
        client.socket.sendall(message + b" " * (MESSAGE_MAX - len(message)) + b"\n")
        answer = client.hear()
        assert answer is not None and "result" in answer


def test_pipelined_requests(shared_mount: Mount) -> None:
    """Many at once, cut anywhere: answered in order, each once."""
    with RawClient(state(shared_mount)) as client:
        lines = b"".join(b'{"jsonrpc":"2.0","id":%d,"method":"status"}\n' % number for number in range(300))
        for start in range(0, len(lines), 1013):
            client.socket.sendall(lines[start : start + 1013])
        answers = [client.hear() for _ in range(300)]
    assert [answer["id"] for answer in answers if answer is not None] == list(range(300))


def test_half_closed_connections(shared_mount: Mount) -> None:
    """Who will say no more is still answered; who watches and will hear no more is let go."""
    with RawClient(state(shared_mount)) as client:
        client.say("status")
        client.socket.shutdown(socket.SHUT_WR)
        answer = client.hear()
        assert answer is not None and "result" in answer
        assert client.hear() is None
    with RawClient(state(shared_mount)) as client:
        client.socket.sendall(b'{"id": 1, "method": "status"}')  # no newline, and there will be none
        client.socket.shutdown(socket.SHUT_WR)
        assert client.hear() is None
    with RawClient(state(shared_mount)) as client:
        client.say("switch", {"release": "42", "request": "vanished"})
    wait_for(lambda: link_of(shared_mount.app) == "releases/42", "who vanished is obeyed all the same")


def test_five_hundred_idle_connections(shared_mount: Mount) -> None:
    idle = [RawClient(state(shared_mount)) for _ in range(500)]
    try:
        assert still_answers(shared_mount)
        assert ctl("-C", shared_mount.app, "switch", "40").status == 0
        assert (shared_mount.app / "current/index.html").read_text() == "40"
        assert "result" in idle[499].ask("status")
    finally:
        for each in idle:
            each.socket.close()
    wait_for(lambda: _sockets(shared_mount.worker_pid) < 100, "the daemon lets go of those that left")


def _sockets(pid: int) -> int:
    return sum(each.startswith("socket:") for each in opened_by(pid))


# ---- the server alone, on a clock of its own


class Served:
    """A control server in this process; `clients` are streams to it."""

    def __init__(self, directory: Path, methods: dict[str, Method]) -> None:
        self.directory = directory
        self.hub = EventHub()
        self.server = ControlServer(methods, self.hub, owner=os.getuid(), group=None)

    async def open(self) -> trio.SocketStream:
        return await trio.open_unix_socket(f"{self.directory}/control")


async def _answer(_peer: Peer, _params: dict[str, Any]) -> str:
    return "yes"


async def _fail_with_oserror(_peer: Peer, _params: dict[str, Any]) -> str:
    raise OSError(5, "Input/output error")


METHODS = {
    "ask": Method(_answer, changes=False, params={}),
    "break": Method(_fail_with_oserror, changes=False, params={}),
}


def serve(directory: Path, scenario: Callable[[Served], Awaitable[None]], clock: trio.abc.Clock | None = None) -> None:
    """Run `scenario` against a server; with a `clock`, time passes as soon as all wait."""

    async def main() -> None:
        served = Served(directory, METHODS)
        state_fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            listener = trio.SocketListener(trio.socket.from_stdlib_socket(listen(state_fd)))
            async with trio.open_nursery() as nursery:
                nursery.start_soon(served.server.serve, listener)
                await scenario(served)
                nursery.cancel_scope.cancel()
        finally:
            os.close(state_fd)

    trio.run(main, clock=clock)


async def read_to_end(stream: trio.SocketStream) -> bytes:
    said = b""
    try:
        async for data in stream:
            said += data
    except trio.BrokenResourceError:
        pass
    return said


def autojump() -> trio.testing.MockClock:
    """Jumps when nothing moved for a moment: long enough for bytes to cross a socket."""
    return trio.testing.MockClock(autojump_threshold=0.05)


def test_a_message_that_never_ends_is_cut_off(tmp_path: Path) -> None:
    async def scenario(served: Served) -> None:
        slow, other = await served.open(), await served.open()
        await slow.send_all(b'{"id": 1, "meth')
        said = await read_to_end(slow)
        assert json.loads(said)["error"]["code"] == INVALID_REQUEST
        assert trio.current_time() < 60
        await other.send_all(b'{"id": 1, "method": "ask"}\n')
        assert b"yes" in await other.receive_some()

    serve(tmp_path, scenario, autojump())


def test_a_message_that_trickles_is_cut_off(tmp_path: Path) -> None:
    """A byte every few seconds is not a message that is being ended either."""

    async def scenario(served: Served) -> None:
        slow = await served.open()
        begun = trio.current_time()
        with pytest.raises(trio.BrokenResourceError):
            while trio.current_time() - begun < 100:
                await slow.send_all(b" ")
                await trio.sleep(5)
        assert trio.current_time() - begun < 60

    serve(tmp_path, scenario, autojump())


def test_an_idle_connection_is_not_cut_off(tmp_path: Path) -> None:
    """It is between messages, not within one."""

    async def scenario(served: Served) -> None:
        stream = await served.open()
        for _ in range(3):
            await trio.sleep(3600)
            await stream.send_all(b'{"id": 1, "method": "ask"}\n')
            assert b"yes" in await stream.receive_some()

    serve(tmp_path, scenario, autojump())


def test_who_does_not_read_answers_is_cut_off(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def scenario(served: Served) -> None:
        deaf, other = await served.open(), await served.open()
        with pytest.raises(trio.BrokenResourceError):
            while trio.current_time() < 600:
                await deaf.send_all(b'{"id": 1, "method": "ask"}\n' * 100)
        await other.send_all(b'{"id": 1, "method": "ask"}\n')
        assert b"yes" in await other.receive_some()

    serve(tmp_path, scenario, autojump())
    assert not loud(caplog)


def event(number: int, size: int = 10) -> Event:
    return Event(float(number), "switch", "x" * size, None, Actor(0, "root", 1, ""), "here", f"id-{number}", "done")


async def watch(served: Served) -> trio.SocketStream:
    stream = await served.open()
    await stream.send_all(b'{"id": 1, "method": "watch"}\n')
    assert b"watching" in await stream.receive_some()
    return stream


def loud(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno > logging.INFO]


def test_a_watcher_that_does_not_read_is_cut_off(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """And one that does hears every event, in order."""

    async def scenario(served: Served) -> None:
        deaf, awake = await watch(served), await watch(served)
        heard = []
        for number in range(100):
            served.hub.publish(event(number, 20_000))
            line = b""
            while not line.endswith(b"\n"):
                line += await awake.receive_some()
            heard.append(json.loads(line)["params"]["id"])
        assert heard == [f"id-{number}" for number in range(100)]
        await trio.sleep(60)
        assert (await read_to_end(deaf)).count(b"\n") < 100

    serve(tmp_path, scenario, autojump())
    assert not loud(caplog), "its own affair"


def test_too_many_events_cut_a_watcher_off(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def scenario(served: Served) -> None:
        stream = await watch(served)
        for number in range(3000):  # without a moment for anybody to read
            served.hub.publish(event(number))
        assert (await read_to_end(stream)).count(b"\n") < 3000

    serve(tmp_path, scenario, autojump())
    assert not loud(caplog)


def test_watchers_that_leave_are_forgotten(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Whether they go quietly or in the middle of an event; else any user could fill the daemon's memory."""

    async def scenario(served: Served) -> None:
        for number in range(20):
            stream = await watch(served)
            for _ in range(number * 20):
                served.hub.publish(event(number, 3000))
            await stream.aclose()
        with trio.move_on_after(20):
            while served.hub._watchers:
                await trio.sleep(1)
        assert len(served.hub._watchers) == 0

    serve(tmp_path, scenario, autojump())
    assert not loud(caplog), "a watcher that leaves is no fault"


def test_a_method_that_fails_is_answered(tmp_path: Path) -> None:
    """Also with an error that nobody foresaw: silence would make the client ask again, and again."""

    async def scenario(served: Served) -> None:
        stream = await served.open()
        await stream.send_all(b'{"id": 1, "method": "break"}\n')
        with trio.fail_after(30):
            answer = await stream.receive_some()
        assert b'"error"' in answer
        assert b"Input/output error" in answer

    serve(tmp_path, scenario)


@pytest.mark.parametrize(("seconds", "told"), [(2.0, "does not answer"), (60.0, "")])
def test_how_long_the_disk_may_take(monkeypatch: pytest.MonkeyPatch, seconds: float, told: str) -> None:
    """Two seconds. If much more is over then, the machine has stood still, and that was not the disk's fault."""
    clock, looks = trio.testing.MockClock(), list[float]()

    def look(_mounted: object) -> methods.Seen:
        looks.append(seconds)
        if len(looks) == 1:
            trio.from_thread.run_sync(clock.jump, seconds)
        return methods.Seen(None, ())

    monkeypatch.setattr(methods, "_look_now", look)
    mounted: Any = SimpleNamespace(pointer=SimpleNamespace(deploy=SimpleNamespace(path="/app")))

    async def asked() -> methods.Seen:
        return await methods._look(mounted, trio.CapacityLimiter(1))

    assert told in str(trio.run(asked, clock=clock).health)
    assert len(looks) == (1 if told else 2)


def test_what_is_in_the_place_of_the_socket(tmp_path: Path) -> None:
    """A socket that a dead daemon left, or a link to one, is replaced; anything else is somebody's, and stays."""

    async def nothing(_served: Served) -> None:
        await trio.lowlevel.checkpoint()

    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "control"))
    serve(tmp_path, nothing)
    (tmp_path / "control").unlink()
    (tmp_path / "control").symlink_to("/nonexistent/relfs")
    serve(tmp_path, nothing)
    (tmp_path / "control").unlink()
    (tmp_path / "control").write_text("somebody's")
    with pytest.raises(RelfsError, match=r"control.*no socket"):
        serve(tmp_path, nothing)
    assert (tmp_path / "control").read_text() == "somebody's"


# ---- the client


def test_a_daemon_that_always_hangs_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """relfsctl gives up in the end, although it can connect each time."""
    monkeypatch.setattr(control, "_RETRY_SECONDS", 0.2)
    with socket.socket(socket.AF_UNIX) as rude, ThreadPoolExecutor(2) as pool:
        rude.bind(str(tmp_path / "control"))
        rude.listen(64)
        hanging_up = pool.submit(_hang_up, rude)
        asking = pool.submit(change, (str(tmp_path),), "switch", {"release": "41"})
        try:
            with pytest.raises(RelfsError, match="relfsctl status"):
                asking.result(SECONDS)
        finally:
            (tmp_path / "control").unlink()  # ends the client even if it would go on for ever
            rude.shutdown(socket.SHUT_RDWR)
            hanging_up.result(SECONDS)


def _hang_up(rude: socket.socket) -> None:
    while True:
        try:
            rude.accept()[0].close()
        except OSError:
            return


def test_a_daemon_that_dies_after_it_has_worked_for_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hook, or the disk, has taken an hour of its time: the next one is asked all the same."""
    now, passed = time.monotonic, list[float]()
    monkeypatch.setattr(time, "monotonic", lambda: now() + sum(passed))

    def dies() -> None:
        passed.append(3600.0)

    with socket.socket(socket.AF_UNIX) as endpoint, ThreadPoolExecutor(1) as pool:
        endpoint.bind(str(tmp_path / "control"))
        endpoint.listen(64)
        first = pool.submit(_hear_once, endpoint, dies)
        second = pool.submit(_say_once, endpoint, b'{"jsonrpc": "2.0", "id": 1, "result": "done"}\n')
        assert change((str(tmp_path),), "switch", {"release": "41"}) == "done"
        first.result(SECONDS)
        second.result(SECONDS)


def _hear_once(endpoint: socket.socket, then: Callable[[], None]) -> None:
    endpoint.settimeout(SECONDS)
    asking, _ = endpoint.accept()
    with asking:
        asking.recv(1 << 16)
        then()


@pytest.mark.parametrize("answer", [b"hello\n", b"[]\n", b"{}\n", b'{"id": 1, "error": "x"}\n', b"\xff\n"])
def test_a_daemon_that_speaks_something_else(app: Path, answer: bytes) -> None:
    """One line, no traceback: another version, or another program."""
    (app / ".relfs").mkdir()
    with socket.socket(socket.AF_UNIX) as other, ThreadPoolExecutor(1) as pool:
        other.bind(str(app / ".relfs/control"))
        other.listen(64)
        talking = pool.submit(_say_once, other, answer)
        assert_one_line(ctl("-C", app, "status"), 1)
        talking.result(SECONDS)


def _say_once(endpoint: socket.socket, answer: bytes) -> None:
    endpoint.settimeout(SECONDS)
    asking, _ = endpoint.accept()
    with asking:
        asking.recv(1 << 16)
        asking.sendall(answer)


# ---- changes are made once, and one after the other


def test_the_same_request_changes_nothing_twice(mount: Mount, client: RawClient) -> None:
    first = client.switch("41", "one")["result"]
    assert client.switch("42", "two")["result"]["release"] == "42"
    assert client.switch("41", "one")["result"] == first
    assert link_of(mount.app) == "releases/42", "asking again is not switching again"
    with RawClient(state(mount)) as later:
        assert later.switch("41", "one")["result"] == first
    assert [entry["id"] for entry in mount.journal()[1:]] == ["one", "two"]
    rolled = client.ask("rollback", {"request": "back"})["result"]
    assert client.ask("rollback", {"request": "back"})["result"] == rolled
    assert [entry["action"] for entry in mount.journal()[1:]] == ["switch", "switch", "rollback"]


def test_the_same_request_at_once(mount: Mount) -> None:
    """Ten connections ask with one id at the same moment."""
    clients = [RawClient(state(mount)) for _ in range(10)]
    barrier = threading.Barrier(10)

    def ask(each: RawClient) -> dict[str, Any]:
        barrier.wait()
        return each.switch("41", "same")

    with ThreadPoolExecutor(10) as pool:
        answers = list(pool.map(ask, clients))
    for each in clients:
        each.socket.close()
    assert all(answer["result"] == answers[0]["result"] for answer in answers)
    assert [entry["id"] for entry in mount.journal()[1:]] == ["same"]


def test_the_same_request_after_the_daemon_was_replaced(app: Path, mounts: Mounts) -> None:
    """The answer was lost with the daemon; its successor knows the request from the journal."""
    first = mounts.start(app)
    with RawClient(state(first)) as client:
        answer = client.switch("41", "lost")["result"]
        assert client.switch("42", "later")["result"]["release"] == "42"
    first.kill()
    second = mounts.start(app)
    with RawClient(state(second)) as client:
        assert client.switch("41", "lost")["result"] == answer
    assert link_of(app) == "releases/42"
    assert [entry["id"] for entry in second.journal()[1:]] == ["lost", "later"]


def test_two_switches_at_once(mount: Mount) -> None:
    """From two processes, again and again: all are carried out and journalled, the last one is current."""
    before = len(mount.journal())
    for _ in range(5):
        pair = [
            subprocess.Popen(ctl_command("-C", mount.app, "switch", release), env=clean_environment(), cwd="/",
                             stdout=subprocess.DEVNULL)
            for release in ("41", "42")
        ]  # fmt: skip
        assert [process.wait(SECONDS) for process in pair] == [0, 0]
    events = mount.journal()
    assert sorted(entry["release"] for entry in events[before:]) == ["41"] * 5 + ["42"] * 5
    assert_chain(events)
    assert link_of(mount.app) == f"releases/{events[-1]['release']}"
    assert (mount.app / "current/index.html").read_text() == events[-1]["release"]


def assert_chain(events: list[dict[str, Any]]) -> None:
    """Each change began where the one before it had ended: they never interleaved."""
    assert all(entry["outcome"] == "done" for entry in events)
    for before, after in pairwise(events):
        assert after["from"] == before["release"], (before, after)


def switch_many(client: RawClient, name: str, releases: list[str]) -> list[str]:
    return [client.switch(release, f"{name}-{n}")["result"]["id"] for n, release in enumerate(releases)]


def test_many_clients_at_once(mount: Mount) -> None:
    clients = [RawClient(state(mount)) for _ in range(5)]
    with ThreadPoolExecutor(5) as pool:
        jobs = [pool.submit(switch_many, each, f"c{n}", ["41", "42", "40"] * 7) for n, each in enumerate(clients)]
        ids = [each for job in jobs for each in job.result(SECONDS)]
    for each in clients:
        each.socket.close()
    events = mount.journal()
    assert sorted(entry["id"] for entry in events[1:]) == sorted(ids)
    assert_chain(events)
    assert (mount.app / "current/index.html").read_text() == events[-1]["release"]


OFFLINE = """
set -e
mount --bind "$1" "$2"                       # without what is mounted over the deploy path in it
mount --bind /dev/null "$2/app/.relfs/control"   # nor the daemon's socket: what is left is the lock
shift 2
"$@"
"""

SWITCH_OFTEN = """
import os, sys
from relfs.cli.session import change_current
from relfs.locate import locate
place = locate(sys.argv[1], None)
assert place.mountpoint is None
for number in range(30):
    change_current(place, "switch", ("40", "42")[number % 2])
"""


def test_offline_behind_a_mount(mount: Mount, tmp_path: Path, client: RawClient) -> None:
    """In another mount name space, where neither the mount nor the socket is seen, relfsctl works offline while the
    daemon switches: the lock keeps them apart, nothing is lost, and the daemon follows."""
    behind = tmp_path / "behind"
    behind.mkdir()
    command = ["unshare", "-m", "sh", "-c", OFFLINE, "sh", str(tmp_path), str(behind)]
    program = [ctl_command()[0], "-c", SWITCH_OFTEN, f"{behind}/app"]
    offline = subprocess.Popen([*command, *program], env=clean_environment(), stderr=subprocess.PIPE, text=True)
    try:
        mine = 0
        while offline.poll() is None:
            assert "result" in client.switch("41", f"daemon-{mine}")
            mine += 1
        _, stderr = offline.communicate(timeout=SECONDS)
    finally:
        offline.kill()
        offline.wait()
    assert (offline.returncode, stderr) == (0, "")
    assert mine > 1
    assert "result" in client.switch("41", "last")
    events = mount.journal()
    switches = [entry for entry in events if entry["action"] == "switch"]
    assert len(switches) == 30 + mine + 1, "each is in the journal, and none is torn"
    assert not [entry for entry in events if entry["action"] == "follow"], "what the journal tells is no surprise"
    assert_chain(events)
    assert (mount.app / "current/index.html").read_text() == "41"
    raw = (mount.app / ".relfs/journal").read_bytes().splitlines()
    assert len(raw) == len(events)


def test_unmounted_during_switches(app: Path, mounts: Mounts) -> None:
    """Each switch that says it is done is done, by the daemon or without it; none is lost or done twice."""
    mounts.start(app)
    done: list[str] = []
    problems: list[str] = []
    enough = threading.Event()

    def go_on() -> None:
        number = 0
        while not enough.is_set():
            number += 1
            result = ctl("-C", app, "--json", "switch", ("41", "42")[number % 2])
            if result.status:
                problems.append(result.err)
            else:
                done.append(result.json["id"])

    switching = threading.Thread(target=go_on)
    switching.start()
    try:
        for _ in range(2):
            count = len(done)
            wait_for(lambda count=count: len(done) > count or problems, "a switch on the mount")
            assert ctl("-C", app, "unmount").status == 0
            count = len(done)
            wait_for(lambda count=count: len(done) > count or problems, "a switch without it")
            mounts.start(app)
    finally:
        enough.set()
        switching.join(SECONDS)
    assert not problems
    events = [json.loads(line) for line in ctl("-C", app, "--json", "log").out.splitlines()]
    assert [entry["id"] for entry in events if entry["action"] == "switch"] == done
    assert_chain(events)


def test_watching_relfsctl_that_is_killed(mount: Mount, client: RawClient) -> None:
    """At any moment, with events on their way: nobody else notices, and the daemon logs no fault."""
    for number in range(5):
        with running("-C", mount.app, "watch") as watcher, RawClient(state(mount)) as raw:
            raw.say("watch")
            assert raw.hear() is not None
            for turn in range(4):
                assert "result" in client.switch("41", f"{number}-{turn}")
            raw.socket.close()
            watcher.kill()
            assert "result" in client.switch("42", f"{number}-last")


def test_a_daemon_with_nothing_to_do_does_nothing(app: Path, mounts: Mounts) -> None:
    """It looks at the real link when something happens in the covered directory; its own looking must not be such a
    thing, or it would write to the disk for ever. Asked before and after fifty other requests."""
    covered = os.open(app, os.O_RDONLY | os.O_DIRECTORY)
    try:
        mount = mounts.start(app)
        for release in ("41", "42"):
            with RawClient(state(mount)) as client:
                assert "result" in client.switch(release, release)
                wait_for(lambda: quiet(covered, client), "the daemon comes to rest")
    finally:
        os.close(covered)


def test_a_daemon_that_cannot_follow_does_nothing_either(app: Path, mounts: Mounts) -> None:
    """The real link was made to lead nowhere behind the mount: that is told, and not looked at for ever."""
    covered = os.open(app, os.O_RDONLY | os.O_DIRECTORY)
    try:
        mount = mounts.start(app)
        os.unlink("current", dir_fd=covered)
        os.symlink("releases/gone", "current", dir_fd=covered)
        wait_for(lambda: mount.status()["diverged"] is not None, "the daemon reports it")
        with RawClient(state(mount)) as client:
            wait_for(lambda: quiet(covered, client), "the daemon comes to rest")
            assert "result" in client.switch("41", "mended")
            assert client.ask("status")["result"]["diverged"] is None
    finally:
        os.close(covered)


def quiet(directory: int, client: RawClient) -> bool:
    before = os.stat(directory).st_ctime_ns
    for _ in range(50):
        client.ask("status")
    return os.stat(directory).st_ctime_ns == before


# ---- what may be in the socket's place


def test_a_dead_daemons_socket(app: Path, mounts: Mounts) -> None:
    """It stays behind, relfsctl works without it, and the next daemon replaces it."""
    first = mounts.start(app)
    first.kill()
    wait_for(lambda: mount_at(str(app)) is None, "the mount is gone")
    assert (app / ".relfs/control").is_socket()
    assert ctl("-C", app, "switch", "41").status == 0
    second = mounts.start(app)
    assert second.status()["supervisor_pid"] == second.process.pid


def test_something_else_in_the_sockets_place(app: Path, mounts: Mounts) -> None:
    (app / ".relfs").mkdir()
    (app / ".relfs/control").write_text("somebody's")
    with pytest.raises(AssertionError, match=r"control.*no socket"):
        mounts.start(app)
    assert (app / ".relfs/control").read_text() == "somebody's"
    wait_for(lambda: mount_at(str(app)) is None, "the mount is gone")
    assert ctl("-C", app, "switch", "41").status == 0


def test_a_daemon_that_ends_leaves_no_socket(mount: Mount) -> None:
    assert mount.terminate() == 0
    assert not os.path.lexists(mount.app / ".relfs/control")


# ---- config.toml


def config_of(directory: Path, text: str | bytes) -> Config:
    (directory / "config.toml").write_bytes(text.encode() if isinstance(text, str) else text)
    fd = os.open(directory, os.O_RDONLY)
    try:
        return load_config(fd, "/shown")
    finally:
        os.close(fd)


def test_config_defaults(tmp_path: Path) -> None:
    fd = os.open(tmp_path, os.O_RDONLY)
    try:
        assert load_config(fd, "/shown") == Config(None, 10.0)
    finally:
        os.close(fd)
    assert config_of(tmp_path, "") == Config()
    assert config_of(tmp_path, "[control]\n[replacement]\n") == Config()


def test_config_values(tmp_path: Path) -> None:
    gid = grp.getgrnam(GROUP).gr_gid
    text = f'[control]\ngroup = "{GROUP}"\n[replacement]\ngrace = 2.5\n'
    assert config_of(tmp_path, text) == Config(gid, 2.5)
    assert config_of(tmp_path, "replacement.grace = 3600") == Config(None, 3600.0)
    assert config_of(tmp_path, "seal = true\n" + text) == Config(gid, 2.5, seal=True)
    assert config_of(tmp_path, "seal = false") == Config()
    text = '[checks]\nempty = false\nunfinished = ["A", ".b c"]\nbad = true\n[hooks]\ntimeout = 60\n'
    assert config_of(tmp_path, text) == Config(checks=Checks(False, ("A", ".b c"), True), hooks=Hooks(60.0))
    assert config_of(tmp_path, "checks.unfinished = []") == Config(checks=Checks(unfinished=()))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[x]", r"\[x\] is not known"),
        ("control = 1", r"\[control\] is not known"),
        ("saeal = true", r"\[saeal\] is not known; known are seal, \[control\]"),
        ("seal = 1", "seal must be true or false"),
        ("[seal]", "seal must be true or false"),
        ("[control]\nseal = true", "control.seal is not known"),
        ("[control]\ngruop = 'x'", "control.gruop is not known; known are group"),
        ("[control]\ngroup = 7", "control.group must be the name of a group"),
        ("[control]\ngroup = 'no-such-group'", "no group 'no-such-group'"),
        ("[control]\ngroup = ''", "no group ''"),
        ('[control]\ngroup = "a\\u0000b"', ""),
        ("[replacement]\ngrace = 0", "replacement.grace"),
        ("[replacement]\ngrace = -1", "replacement.grace"),
        ("[replacement]\ngrace = true", "replacement.grace"),
        ("[replacement]\ngrace = '9'", "replacement.grace"),
        ("[replacement]\ngrace = nan", "replacement.grace"),
        ("[replacement]\ngrace = inf", "replacement.grace"),
        ("[replacement]\ngrace = 3601", "replacement.grace"),
        ("[[control]]\ngroup = 'x'", r"\[control\]"),
        ("[checks]\nempty = 1", "checks.empty must be true or false"),
        ("[checks]\nbad = 'yes'", "checks.bad must be true or false"),
        ("[checks]\ndangling = true", "checks.dangling is not known; known are bad, empty, unfinished"),
        ("[checks]\nunfinished = 'X'", "checks.unfinished must be a list of file names"),
        ("[checks]\nunfinished = ['a/b']", "checks.unfinished must be a list of file names"),
        ("[checks]\nunfinished = ['..']", "checks.unfinished must be a list of file names"),
        ("[checks]\nunfinished = ['']", "checks.unfinished must be a list of file names"),
        ("[checks]\nunfinished = [7]", "checks.unfinished must be a list of file names"),
        ("[hooks]\ntimeout = 0", "hooks.timeout must be a number of seconds"),
        ("[hooks]\npre-switch = 'x'", "hooks.pre-switch is not known"),
        ("[control", ""),
        (b"\xff\xfe", ""),
        ("x = " + "[" * 5000, ""),
    ],
)
def test_config_mistakes(tmp_path: Path, text: str | bytes, words: str) -> None:
    """One line that begins with the file and names what is wrong in it."""
    with pytest.raises(RelfsError, match=f"^/shown/config.toml: .*{words}") as raised:
        config_of(tmp_path, text)
    assert len(str(raised.value).splitlines()) == 1


def test_config_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "config.toml").mkdir()
    fd = os.open(tmp_path, os.O_RDONLY)
    try:
        with pytest.raises(RelfsError, match=r"^/shown/config.toml: .*Is a directory"):
            load_config(fd, "/shown")
    finally:
        os.close(fd)


# ---- the option list of mount(8)


def test_no_options() -> None:
    assert parse_mount_options(()) == MountOptions()
    assert parse_mount_options(("", ",,")) == parse_mount_options(())


def test_options_of_an_fstab_line() -> None:
    options = parse_mount_options(("rw,noexec,noatime,defaults,nofail,_netdev,x-systemd.automount,comment=a,user",))
    assert options == MountOptions(passed_on=("rw", "noexec", "noatime"))


def test_options_of_relfs() -> None:
    options = parse_mount_options(("noallow_other,no_bind", "link=absolute,state_dir=/var/lib/relfs=x,nonempty"))
    assert options == MountOptions(
        bind=False, link="absolute", state_dir="/var/lib/relfs=x", allow_other=False, nonempty=True
    )  # fmt: skip
    assert parse_mount_options(("no_bind", "bind")).bind is True, "the last one counts"
    assert parse_mount_options(("allow_other",)).allow_other is True


@pytest.mark.parametrize(
    "wrong",
    ["frobnicate", "link", "link=", "link=sideways", "state_dir", "state_dir=", "allow_other=1", "ro=1", "bind=no",
     "fsname=x", "subtype=x", "auto_unmount", "max_read=1", "ALLOW_OTHER", " ro", "uid=0"],
)  # fmt: skip
def test_options_that_are_not_known(wrong: str) -> None:
    with pytest.raises(UsageError, match="no such mount option") as raised:
        parse_mount_options((f"ro,{wrong}",))
    assert str(raised.value).startswith(f"-o {wrong}:")


def test_options_reach_the_kernel(app: Path, mounts: Mounts) -> None:
    mounts.start(app, "-o", "noexec,noatime,nofail", "-o", "no_bind")
    found = mount_at(str(app))
    assert found is not None
    with open("/proc/self/mountinfo") as file:
        line = next(line for line in file if line.split()[4] == str(app))
    assert {"nosuid", "nodev", "noexec", "noatime"} <= set(line.split()[5].split(","))


# ---- the word to the service manager


@pytest.mark.parametrize("abstract", [True, False])
def test_notify(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, abstract: bool) -> None:
    address = f"@relfs-test-{os.urandom(8).hex()}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(address.replace("@", "\0", 1) if abstract else address)
        manager.settimeout(SECONDS)
        monkeypatch.setenv("NOTIFY_SOCKET", address)
        notify("READY=1", "STATUS=current is 42")
        assert manager.recv(4096) == b"READY=1\nSTATUS=current is 42"


@pytest.mark.parametrize("address", [None, "", "relative", "/nonexistent/socket", "@nobody-listens", "/" + "x" * 200])
def test_notify_nobody(monkeypatch: pytest.MonkeyPatch, address: str | None) -> None:
    """A manager that is not there is no failure of ours."""
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    if address is not None:
        monkeypatch.setenv("NOTIFY_SOCKET", address)
    notify("READY=1")


def test_notify_says_any_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """Names of releases and deploy paths may hold bytes that are no text."""
    address = f"@relfs-test-{os.urandom(8).hex()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(address.replace("@", "\0", 1))
        manager.settimeout(SECONDS)
        monkeypatch.setenv("NOTIFY_SOCKET", address)
        notify("READY=1", f"STATUS=current is {os.fsdecode(bytes([0xFF]))}")
        assert manager.recv(4096).startswith(b"READY=1\n")


def test_a_current_of_any_name_can_be_mounted(app: Path, mounts: Mounts) -> None:
    """What the daemon says about itself when it is ready must not be what stops it."""
    odd = os.fsdecode(b"bytes-\xff")
    add_release(app, odd)
    assert ctl("-C", app, "switch", odd).status == 0
    mount = mounts.start(app)
    assert mount.status()["current"] == odd


def test_concurrent_switches_never_leave_a_reader_behind(mount: Mount, client: RawClient) -> None:
    """Two clients switch at once, forth and back, while somebody looks the name up in between: afterwards a fresh read
    sees what status says, in every round."""
    assert mount.relfsctl("switch", "41").returncode == 0
    with ThreadPoolExecutor(2) as pool, reading(mount.app / "current/index.html", "41", "42"):
        for _ in range(200):
            for each in [pool.submit(_switch_once, mount, release) for release in ("42", "41")]:
                each.result()
            assert (mount.app / "current/index.html").read_text() == client.ask("status")["result"]["current"]


def _switch_once(mount: Mount, release: str) -> None:
    change((str(mount.app / ".relfs"),), "switch", {"release": release})


def test_the_end_of_a_mount_follows_no_link(app: Path, mounts: Mounts, tmp_path: Path) -> None:
    """The deploy path's owner may put a link in the socket's place; what it leads to is not the daemon's to remove.
    (This one ends before it notices that.)"""
    mount = mounts.start(app, patch="import relfs.daemon.upkeep as u; u.gone = lambda _deploy, _lock: None")
    victim = tmp_path / "dear" / "file"
    victim.parent.mkdir()
    victim.touch()
    (app / ".relfs/control").unlink()
    (app / ".relfs/control").symlink_to(victim)
    assert mount.terminate() == 0
    assert victim.exists()
