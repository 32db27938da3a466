"""Whom relfsctl believes, and which daemon does as it asks: strangers who answer in the daemon's place, and links that
lead to the daemon of another deploy path. Each listener is a process of its own, run by the user it is about.
"""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from clients import RawClient, assert_one_line, ctl, snapshot
from mounting import Mounts
from sandbox import link_of, make_app

from relfs.control import Connection
from relfs.errors import RelfsError
from relfs.trust import identity, peer_uid

OWNER, STRANGER = (pwd.getpwnam(name).pw_uid for name in ("nobody", "daemon"))
REFUSED = -32003

_LIAR = """
import json, os, socket, sys
os.umask(0)
listener = socket.socket(socket.AF_UNIX)
listener.bind(sys.argv[1])
listener.listen()
print("ready", flush=True)
while True:
    peer = listener.accept()[0]
    for line in peer.makefile("rb"):
        asked = json.loads(line)
        event = {"time": 1, "action": "switch", "release": "41", "from": "40", "uid": 0, "user": "root", "pid": 1,
                 "command": "", "host": "", "id": "x", "outcome": "done"}
        peer.sendall(json.dumps({"jsonrpc": "2.0", "id": asked["id"], "result": event}).encode() + b"\\n")
"""
"""Says yes to everything, and does nothing."""


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory that every user can reach; pytest's own are for root alone."""
    made = Path(tempfile.mkdtemp(prefix="relfs-test-"))
    made.chmod(0o755)
    yield made
    shutil.rmtree(made)


@pytest.fixture
def app(place: Path) -> Path:
    """A deploy path of OWNER, whose state directory anybody may write."""
    app = make_app(place / "app")
    (app / ".relfs").mkdir()
    for path in (app, *app.rglob("*")):
        os.chown(path, OWNER, OWNER, follow_symlinks=False)
    (app / ".relfs").chmod(0o777)
    return app


@contextmanager
def lying(socket_path: Path, user: int) -> Iterator[None]:
    """While this lasts, `user` answers there."""
    process = subprocess.Popen(
        [sys.executable, "-c", _LIAR, str(socket_path)],
        stdout=subprocess.PIPE, user=user, group=user, extra_groups=[], cwd="/",
    )  # fmt: skip
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == b"ready\n"
        yield
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_a_stranger_is_not_believed(app: Path) -> None:
    with lying(app / ".relfs/control", STRANGER):
        before = snapshot(app)
        for command in (["switch", "41"], ["status"], ["rollback"], ["lock"], ["watch"]):
            done = ctl("-C", app, *command)
            assert_one_line(done, 1, "user daemon", f"{app}/.relfs", "is not believed; remove the socket")
        assert snapshot(app) == before


def test_nor_is_one_that_a_link_leads_to(app: Path, place: Path) -> None:
    (place / "his").mkdir()
    os.chown(place / "his", STRANGER, STRANGER)
    (app / ".relfs/control").symlink_to(place / "his/control")
    with lying(place / "his/control", STRANGER):
        assert_one_line(ctl("-C", app, "switch", "41"), 1, "user daemon", "not believed")


@pytest.mark.parametrize("user", [0, OWNER], ids=["root", "the owner"])
def test_root_and_the_owner_are_believed(app: Path, user: int) -> None:
    """That they lie here shows whose word was taken."""
    os.chown(app / ".relfs", OWNER, OWNER)
    with lying(app / ".relfs/control", user):
        assert ctl("-C", app, "switch", "41").status == 0
        assert ctl("-C", app, "switch", "41", user=STRANGER).status == 0
    assert link_of(app) == "releases/40"


def test_a_user_believes_himself(app: Path) -> None:
    with lying(app / ".relfs/control", STRANGER):
        assert ctl("-C", app, "switch", "41", user=STRANGER).status == 0


def test_who_made_the_mount_is_believed(place: Path, mounts: Mounts) -> None:
    """A user mounts elsewhere what belongs to somebody else, with the state in a directory of a third one."""
    app = make_app(place / "app")
    (place / "state").mkdir()
    (place / "state").chmod(0o777)
    os.chown(place / "state", OWNER, OWNER)
    (place / "live").mkdir()
    os.chown(place / "live", STRANGER, STRANGER)
    mounts.start(app, "--state-dir", place / "state", "-o", "noallow_other", at=place / "live", user=STRANGER)
    done = ctl("-C", place / "live", "--json", "status", user=STRANGER)
    assert done.status == 0 and done.json["mounted"] is True
    assert_one_line(ctl("-C", app, "--state-dir", place / "state", "status", user=4711), 1, "not believed")


def test_a_strangers_mount_is_none_of_ours(place: Path, mounts: Mounts) -> None:
    """It is called relfs, and names the deploy path: so might any user's file system."""
    app = make_app(place / "app")
    for name in ("state", "live"):
        (place / name).mkdir()
        os.chown(place / name, STRANGER, STRANGER)
    mounts.start(app, "--state-dir", place / "state", "-o", "noallow_other", at=place / "live", user=STRANGER)
    status = ctl("-C", app, "--json", "status").json
    assert (status["mounted"], status["mountpoint"]) == (False, None)
    assert ctl("-C", app, "switch", "41").status == 0, "as if it were not there"
    found = ctl("status")  # of the one that is mounted, or an error that lists all
    assert str(app) not in found.out + found.err
    assert ctl("-C", place / "live", "--json", "status", user=STRANGER).json["mounted"] is True, "but it is his own"


def test_the_owners_mount_elsewhere_is_ours(place: Path, mounts: Mounts) -> None:
    app = make_app(place / "app")
    (place / "live").mkdir()
    for path in (app, *app.rglob("*"), place / "live"):
        os.chown(path, STRANGER, STRANGER, follow_symlinks=False)
    mounts.start(app, "-o", "noallow_other", at=place / "live", user=STRANGER)
    status = ctl("-C", app, "--json", "status").json
    assert (status["mounted"], status["mountpoint"]) == (True, str(place / "live"))
    assert ctl("-C", app, "switch", "41").status == 0


# ---- the daemon of another deploy path


@dataclass(frozen=True)
class Two:
    """A deploy path, and `other`, which is mounted; `covered` is its state directory, below the mount."""

    mine: Path
    other: Path
    covered: int


@pytest.fixture
def two(place: Path, mounts: Mounts) -> Iterator[Two]:
    apps = make_app(place / "mine"), make_app(place / "other")
    for app in apps:
        (app / ".relfs").mkdir()
    covered = os.open(apps[1] / ".relfs", os.O_RDONLY)
    mounts.start(apps[1])
    yield Two(*apps, covered)
    os.close(covered)


@pytest.mark.parametrize("how", ["link to the socket", "link to the directory", "hard link"])
def test_no_link_makes_another_daemon_do_it(two: Two, how: str) -> None:
    mine, other = two.mine, two.other
    if how == "link to the socket":
        (mine / ".relfs/control").symlink_to(other / ".relfs/control")
    elif how == "hard link":
        os.link("control", mine / ".relfs/control", src_dir_fd=two.covered)
    else:
        (mine / ".relfs").rmdir()
        (mine / ".relfs").symlink_to(other / ".relfs")
    for command in (["switch", "41"], ["rollback", "41"], ["lock", "--ttl", "60"], ["unlock"], ["unmount"]):
        done = ctl("-C", mine, *command)
        assert done.status != 0, command
        assert len(done.err.splitlines()) == 1, done
    assert link_of(mine) == "releases/40"
    assert (other / "current").readlink() == Path("releases/40")
    assert "result" in _ask(other, "status")
    assert ctl("-C", other, "--json", "status").json["lock"] is None


def test_its_own_state_directory_is_meant_by_every_name(two: Two, place: Path) -> None:
    """Through a link to the deploy path, and by clients that say nothing of it."""
    other = two.other
    (place / "link").symlink_to(other)
    assert ctl("-C", place / "link", "switch", "41").status == 0
    with RawClient(other / ".relfs") as client:
        assert "result" in client.switch("42", "said nothing")
        meant = identity(str(other / ".relfs"))
        said = client.ask("switch", {"release": "41", "request": "the right one", "state": meant})
        assert "result" in said
        said = client.ask("switch", {"release": "40", "request": "a wrong one", "state": "1:1:1"})
        assert said["error"]["code"] == REFUSED
        wrong: list[object] = [7, [], {}, True, meant + "0"]
        for state in wrong:
            assert client.ask("switch", {"release": "40", "request": "x", "state": state})["error"]["code"] == REFUSED


def test_it_is_meant_where_it_is_served_by_fuse(place: Path, mounts: Mounts) -> None:
    """The state directory that a user's mount shows is not the one below it, to those who go by inodes."""
    app = make_app(place / "app")
    for path in (app, *app.rglob("*")):
        os.chown(path, STRANGER, STRANGER, follow_symlinks=False)
    covered = os.open(app, os.O_RDONLY)
    mounts.start(app, "-o", "noallow_other", user=STRANGER)
    below = os.open(".relfs", os.O_RDONLY, dir_fd=covered)
    assert identity(below) != _identity_as(STRANGER, app / ".relfs")
    assert ctl("-C", app, "switch", "41", user=STRANGER).status == 0
    assert os.readlink("current", dir_fd=covered) == "releases/41"
    os.close(below)
    os.close(covered)


def _identity_as(user: int, path: Path) -> str:
    done = subprocess.run(
        ["stat", "--format=%Hd:%Ld:%i", str(path)],
        user=user, group=user, extra_groups=[], capture_output=True, text=True, check=True, cwd="/",
    )  # fmt: skip
    return done.stdout.strip()


def _ask(app: Path, method: str) -> dict[str, object]:
    with RawClient(app / ".relfs") as client:
        return client.ask(method)


# ---- what it goes by


def test_the_peer_is_who_listens(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as client:
        listener.bind(str(tmp_path / "control"))
        listener.listen()
        client.connect(str(tmp_path / "control"))
        assert peer_uid(client) == os.getuid()


def test_a_stranger_is_not_even_asked(app: Path) -> None:
    with lying(app / ".relfs/control", STRANGER), pytest.raises(RelfsError, match="not believed"):
        Connection((str(app / ".relfs"),))
