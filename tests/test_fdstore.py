"""relfs/daemon/fdstore.py, restart.py and service.py against a manager of the test's own: a socket that hears what
systemd would.

What the real one does with it is in test_systemd.py.
"""

from __future__ import annotations

import array
import errno
import logging
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import Thread

import pytest
from mounting import environment, wait_for

from relfs.daemon import fdstore, restart
from relfs.daemon.fdstore import Store, inherited, store_of_unit
from relfs.daemon.plan import Plan
from relfs.daemon.service import Heartbeat, notify, require_common_mounts, scope_of_its_own
from relfs.survival.estate import Estate, is_fleeting
from relfs.survival.ledger import Ledger
from relfs.survival.memory import new_memory

_UNIT = "relfs@srv-app.service"

_INHERIT = """
import os, sys
from relfs.daemon.fdstore import inherited
os.environ.update(LISTEN_PID=sys.argv[3] or str(os.getpid()), LISTEN_FDS=sys.argv[1], LISTEN_FDNAMES=sys.argv[2])
estate = inherited()
print(None if estate is None else sorted((name, os.pread(fd, 99, 0).decode()) for name, fd in estate))
assert "LISTEN_FDS" not in os.environ
assert estate is None or not any(os.get_inheritable(fd) for _, fd in estate)
"""
"""A process that was given descriptors."""


@dataclass
class Manager:
    """What is said to it, and what it has stored: the sockets, by name."""

    endpoint: socket.socket
    said: list[str] = field(default_factory=list)
    stored: dict[str, list[int]] = field(default_factory=dict)

    def listen(self) -> None:
        """Until the socket is shut down."""
        with suppress(OSError):
            while True:
                data, ancillary, _, _ = self.endpoint.recvmsg(4096, socket.CMSG_SPACE(4 * 253))
                if not data:
                    return
                self._obey(data.decode(), array.array("i", b"".join(each[2] for each in ancillary)))

    def _obey(self, text: str, fds: array.array[int]) -> None:
        words = dict(line.split("=", 1) for line in text.splitlines())
        self.said.append(text)
        if "FDSTOREREMOVE" in words:
            for fd in self.stored.pop(words["FDNAME"], []):
                os.close(fd)
        elif "FDSTORE" in words:
            self.stored[words["FDNAME"]] = [*self.stored.get(words["FDNAME"], []), *fds]  # in one step
        else:
            for fd in fds:
                os.close(fd)


@pytest.fixture(autouse=True)
def _patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """That of a test, not of a service that is to be restarted."""
    monkeypatch.setattr(fdstore, "_SECONDS", 60.0)


@pytest.fixture
def manager(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Manager]:
    """It listens in a thread; what was sent before a barrier has been seen to when that is over."""
    address = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as endpoint:
        endpoint.bind(str(address))
        made = Manager(endpoint)
        thread = Thread(target=made.listen)
        thread.start()
        monkeypatch.setenv("NOTIFY_SOCKET", str(address))
        monkeypatch.setenv("RELFS_UNIT", _UNIT)
        yield made
        notify("")
        endpoint.shutdown(socket.SHUT_RDWR)
        thread.join()
        for fds in made.stored.values():
            for fd in fds:
                os.close(fd)


@pytest.fixture
def estate() -> Iterator[Estate]:
    """Three descriptors, each with its name in it; two of them of open files."""
    made = Estate()
    for name in ("connection", "file.1", "names.1"):
        fd = new_memory(name)
        os.write(fd, name.encode())
        made.put(name, fd)
    yield made
    made.close()


def _inherit(fds: list[int], names: str, pid: str = "") -> str:
    """What a process that is given `fds` says."""
    given = ";".join(f"os.dup2({fd}, {100 + number})" for number, fd in enumerate(fds))
    moved = ";".join(f"os.dup2({100 + number}, {3 + number})" for number in range(len(fds)))
    boot = f"import os, sys\n{given}\n{moved}\n" + _INHERIT
    done = subprocess.run(
        [sys.executable, "-c", boot, str(len(fds)), names, pid],
        pass_fds=fds, env=environment(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def _told(*names: str) -> str:
    return str([(name, name) for name in names])


def test_everything_is_kept_and_can_be_read_more_than_once(manager: Manager, estate: Estate) -> None:
    assert Store(_UNIT).keep(estate, whole=True)
    (queue,) = manager.stored["relfs"]
    for _ in range(2):
        assert _inherit([queue], "relfs") == _told("connection", "file.1", "names.1")


def test_open_files_are_kept_only_where_all_is(manager: Manager, estate: Estate) -> None:
    assert Store(_UNIT).keep(estate, whole=False)
    wait_for(lambda: manager.stored, "the manager has heard of it")
    assert _inherit(manager.stored["relfs"], "relfs") == _told("connection")
    assert is_fleeting("file.1")
    assert not is_fleeting("pin.2")


def test_what_is_kept_takes_the_place_of_what_was(manager: Manager, estate: Estate) -> None:
    store = Store(_UNIT)
    assert store.keep(estate, whole=True)
    estate.drop("file.1")
    assert store.keep(estate, whole=True)
    assert len(manager.stored["relfs"]) == 1
    assert _inherit(manager.stored["relfs"], "relfs") == _told("connection", "names.1")
    store.forget()
    assert store.keep(Estate(), whole=True)
    assert manager.stored["relfs"] == []


def test_thousands_of_descriptors_are_kept_in_a_few_sockets(manager: Manager) -> None:
    estate = Estate()
    for number in range(6000):
        estate.put(f"file.{number}", os.dup(0))
    assert Store(_UNIT).keep(estate, whole=True)
    estate.close()
    queues = manager.stored["relfs"]
    assert len(queues) < 4
    names = ":".join(["relfs"] * len(queues))
    counting = (
        "import os, sys\n"
        + "".join(f"os.dup2({fd}, {100 + number})\n" for number, fd in enumerate(queues))
        + "".join(f"os.dup2({100 + number}, {3 + number})\n" for number in range(len(queues)))
        + (
            "os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=sys.argv[1], LISTEN_FDNAMES=sys.argv[2])\n"
            "from relfs.daemon.fdstore import inherited\nprint(len(list(inherited())))\n"
        )
    )
    words = [sys.executable, "-c", counting, str(len(queues)), names]
    done = subprocess.run(words, pass_fds=queues, env=environment(), capture_output=True, text=True, check=True)
    assert done.stdout == "6000\n"


def test_what_cannot_be_had_in_full_is_not_taken(manager: Manager, estate: Estate) -> None:
    assert Store(_UNIT).keep(estate, whole=True)
    reading = (
        "import os, resource\nfrom relfs.daemon.fdstore import inherited\n"
        "os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS='1', LISTEN_FDNAMES='relfs')\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (5, 5))\n"
        "try: print(inherited())\nexcept OSError as error: print(error)\n"
    )
    (queue,) = manager.stored["relfs"]
    boot = f"import os; os.dup2({queue}, 3)\n" + reading
    done = subprocess.run(
        [sys.executable, "-c", boot], pass_fds=[queue], env=environment(), capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("only ")
    assert done.stdout.endswith("of 3 descriptors that were kept could be had\n")


def test_nothing_that_another_user_had_stored_is_taken(manager: Manager, estate: Estate) -> None:
    """A hook is run as the deploy path's owner, in the same unit."""
    program = (
        "import os, socket, json\nos.setgid(33); os.setuid(33)\n"
        "ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)\n"
        "socket.send_fds(ours, [json.dumps(['connection']).encode()], [0])\n"
        "to = socket.socket(fileno=3)\nsocket.send_fds(to, [b'x'], [theirs.fileno()])\n"
    )
    ours, theirs = socket.socketpair()
    with ours, theirs:
        boot = f"import os; os.dup2({theirs.fileno()}, 3)\n" + program
        subprocess.run([sys.executable, "-c", boot], pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, check=True)
        _, fds, _, _ = socket.recv_fds(ours, 1, 1)
    assert Store(_UNIT).keep(estate, whole=False)
    wait_for(lambda: manager.stored, "the manager has heard of it")
    assert _inherit([fds[0], *manager.stored["relfs"]], "relfs:relfs") == _told("connection")
    os.close(fds[0])


def test_other_descriptors_and_other_processes_are_left_alone(manager: Manager, estate: Estate) -> None:
    assert Store(_UNIT).keep(estate, whole=True)
    (queue,) = manager.stored["relfs"]
    assert _inherit([queue], "stored") == "None"
    assert _inherit([queue], "relfs", pid="1") == "None"


def test_without_a_manager_nothing_is_kept_and_that_is_said(
    monkeypatch: pytest.MonkeyPatch, estate: Estate, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    monkeypatch.delenv("RELFS_UNIT", raising=False)
    assert store_of_unit() is None
    assert inherited() is None
    notify("READY=1")
    with caplog.at_level(logging.WARNING):
        assert not Store(_UNIT).keep(estate, whole=True)
    assert "a restart will interrupt the mount" in caplog.text
    assert scope_of_its_own("guards") == []


def test_who_may_not_look_at_process_1_is_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A unit with User=."""

    def refuse(path: str) -> str:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)

    monkeypatch.setenv("RELFS_UNIT", _UNIT)
    monkeypatch.setattr(os, "readlink", lambda path: refuse(path) if "/1/" in path else path)
    require_common_mounts()


@pytest.mark.parametrize("session", [b"", b"{}"])
def test_a_mount_of_code_that_noted_something_else_is_let_go(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, session: bytes
) -> None:
    """Its guards take it away, and another one is made."""
    estate = Estate()
    for name in restart._NEEDED:
        estate.put(name, new_memory(name))
    Ledger(estate["ledger"]).session.store(session)
    monkeypatch.setattr(restart, "inherited", lambda: estate)
    monkeypatch.delenv("RELFS_UNIT", raising=False)
    with caplog.at_level(logging.INFO):
        assert restart.kept_mount(Plan("/srv/app", "/srv/app")) is None
    assert "/srv/app: the mount that was kept is not taken over" in caplog.text
    assert list(estate) == []


@pytest.mark.parametrize(
    ("jobs", "is_coming"),
    [
        (f"12 {_UNIT} restart running", True),
        (f"12 {_UNIT} try-restart waiting", True),
        (f"12 {_UNIT} stop running", False),
        ("12 relfs@srv-other.service restart running", False),
        ("", False),
    ],
)
def test_a_restart_is_told_from_a_stop(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, jobs: str, is_coming: bool
) -> None:
    script = tmp_path / "systemctl"
    script.write_text(f"#!/bin/sh\necho '{jobs}'\n")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert Store(_UNIT).restart_is_coming() is is_coming


def test_without_systemctl_an_end_is_an_end(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert not Store(_UNIT).restart_is_coming()


def test_the_heart_beats_while_the_mount_answers(manager: Manager, monkeypatch: pytest.MonkeyPatch) -> None:
    import time

    monkeypatch.setenv("WATCHDOG_USEC", "3600000000")
    heartbeat = Heartbeat()
    now = time.monotonic()
    heartbeat.turn(now - 3601)
    heartbeat.turn(now)
    heartbeat.turn(now)
    assert Store(_UNIT).keep(Estate(), whole=True)  # a barrier
    assert manager.said.count("WATCHDOG=1") == 1


def test_the_heart_is_silent_where_nobody_listens_to_it(manager: Manager, monkeypatch: pytest.MonkeyPatch) -> None:
    import time

    monkeypatch.delenv("WATCHDOG_USEC", raising=False)
    Heartbeat().turn(time.monotonic())
    assert Store(_UNIT).keep(Estate(), whole=True)
    assert "WATCHDOG=1" not in manager.said
