"""What somebody removes under a mount: relfs's own state, what is in it, and the deploy path itself.

What is served goes on being served; what relfs needs for itself is made again within seconds, and then everything works
as before, in the same processes.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
from clients import ctl
from mounting import END_SECONDS, Mount, Mounts, wait_for
from readers import reading
from sandbox import link_of, make_app
from served import behind
from viewers import reader

from relfs.mountinfo import mount_at

LOOK = "the real link cannot be looked at: .* No such file or directory"
"""Only if that is tried in the moment between."""
LOCK = "its lock was removed"
SOCKET = "its socket was removed"
STATE = "its state was removed"
ANYTHING = "was removed"
"""What is removed from the inside out may be looked at in between: then that is told first, and made again."""

REMOVE = 'until rm -r "$0" 2>/dev/null; do :; done'
"""Also what is made again meanwhile, at which rm(1) fails."""


def remove(directory: Path) -> None:
    subprocess.run(["sh", "-c", REMOVE, directory], check=True)


def remove_state_behind(app: Path) -> None:
    behind(app.parent, app, f"sh -c '{REMOVE}' .relfs")


def answers(mount: Mount) -> bool:
    """Whether relfsctl reaches the daemon, and finds nothing wrong."""
    done = ctl("-C", mount.mountpoint, "--json", "status")
    return done.status == 0 and done.json["worker_pid"] is not None and done.json["health"] == []


def assert_well(mount: Mount) -> None:
    """It can be asked, switches, journals that, and another one cannot be started beside it."""
    wait_for(lambda: answers(mount), "the daemon answers")
    assert ctl("-C", mount.mountpoint, "switch", "41").status == 0
    assert (mount.mountpoint / "current/index.html").read_text() == "41"
    assert mount.journal()[-1]["release"] == "41"
    assert (mount.mountpoint / ".relfs/control").is_socket()


@pytest.mark.parametrize("style", ["over", "elsewhere", "without native directories"])
def test_the_state_directory_is_emptied(app: Path, mounts: Mounts, tmp_path: Path, style: str) -> None:
    (tmp_path / "live").mkdir()
    options = ["--no-bind"] if style.startswith("without") else []
    mount = mounts.start(app, *options, at=tmp_path / "live" if style == "elsewhere" else None)
    for words in (LOOK, LOCK, SOCKET):
        mount.expect_log(words)
    with reading(mount.mountpoint / "current/index.html", "40", "41") as readers:
        for each in (mount.mountpoint / ".relfs").iterdir():
            shutil.rmtree(each) if each.is_dir() else each.unlink(missing_ok=True)
        assert_well(mount)
        seen = readers.stop()
    assert (seen.failed, seen.neither) == ({}, 0)


def test_the_state_directory_is_removed(open_place: Path, mounts: Mounts) -> None:
    """Behind the mount: in it, it is busy."""
    app = make_app(open_place / "app")
    mount = mounts.start(app)
    for words in (LOOK, STATE, LOCK, SOCKET):
        mount.expect_log(words)
    with reading(app / "current/index.html", "40", "41") as readers, reader(mount, "run") as pinned:
        assert pinned.sees() == "40"
        remove_state_behind(app)
        assert_well(mount)
        wait_for((app / ".relfs/pins").exists, "who is pinned is written down again")
        assert pinned.sees() == "40"
        seen = readers.stop()
    assert (seen.failed, seen.neither) == ({}, 0)
    mount.terminate()
    assert link_of(app) == "releases/41"
    assert (app / ".relfs/journal").exists()


def test_a_worker_after_the_state_directory_was_removed(open_place: Path, mounts: Mounts) -> None:
    """The next worker goes on with what was made again."""
    app = make_app(open_place / "app")
    mount = mounts.start(app)
    for words in (LOOK, STATE, LOCK, SOCKET, "worker .* has ended"):
        mount.expect_log(words)
    remove_state_behind(app)
    wait_for(lambda: answers(mount), "the daemon answers")
    before = mount.status()["worker_pid"]
    os.kill(before, signal.SIGKILL)
    wait_for(lambda: answers(mount) and mount.status()["worker_pid"] != before, "the next worker answers")
    assert_well(mount)


def test_the_deploy_path_is_removed(app: Path, mounts: Mounts, tmp_path: Path) -> None:
    """There is nothing left to serve: the mount goes."""
    live = tmp_path / "live"
    live.mkdir()
    mount = mounts.start(app, at=live)
    for words in (LOOK, ANYTHING):
        mount.expect_log(words)
    remove(app)
    assert mount.process.wait(END_SECONDS) == 0
    assert "was removed; it is unmounted" in mount.log.read_text()
    assert mount_at(str(live)) is None


def test_a_covered_deploy_path_is_removed(open_place: Path, mounts: Mounts) -> None:
    """From another mount name space, where nothing covers it. The kernel takes the mount away with the directory that
    it is on; a new deploy path of that name can be mounted at once."""
    app = make_app(open_place / "app")
    mount = mounts.start(app)
    for words in (LOOK, ANYTHING):
        mount.expect_log(words)
    script = f'umount -l "$0"; {REMOVE}'
    subprocess.run(["unshare", "-m", "--propagation", "private", "sh", "-ec", script, app], check=True)
    assert mount.process.wait(END_SECONDS) == 0
    assert not app.exists()
    make_app(app)
    again = mounts.start(app)
    assert (app / "current/index.html").read_text() == "40"
    again.terminate()


def test_the_disk_of_the_deploy_path_is_unmounted(tmp_path: Path, mounts: Mounts) -> None:
    """With everything that is mounted on it."""
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "none", disk], check=True)
    try:
        mount = mounts.start(make_app(disk / "app"))
    finally:
        subprocess.run(["umount", "-l", disk], check=True)
    assert mount.process.wait(END_SECONDS) == 0
    assert not (disk / "app").exists()


def test_a_state_directory_elsewhere_is_removed(app: Path, mounts: Mounts, tmp_path: Path) -> None:
    state = tmp_path / "state"
    mount = mounts.start(app, "--state-dir", state)
    for words in (LOOK, STATE, LOCK, SOCKET):
        mount.expect_log(words)
    with reading(app / "current/index.html", "40", "41") as readers:
        remove(state)
        wait_for(lambda: (state / "control").is_socket(), "it is made again")
        assert ctl("-C", app, "switch", "41").status == 0
        seen = readers.stop()
    assert (seen.failed, seen.neither) == ({}, 0)
    assert (state / "journal").exists()
