"""/etc/fstab with relfs in it: real mount(8) and umount(8), and the helpers that contrib/install-service installs."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from rooms import INSTALL, Room, loud_lines, room
from sandbox import make_app

_MISUSED = 1
_FAILED = 32


@pytest.fixture
def host(app: Path, tmp_path: Path) -> Iterator[Room]:
    """A machine that has the helpers of mount(8)."""
    furniture = tmp_path / "room"
    furniture.mkdir()
    with room(furniture) as made:
        made.ok(INSTALL, "--init", "sysv", "--root", "/", "--bin", "/usr/local/bin")
        yield made
    assert not loud_lines(app / ".relfs/log")


def _fstab(host: Room, *lines: str) -> None:
    host.put("/etc/fstab", "".join(f"{line}\n" for line in lines))


def test_a_line_with_the_type_relfs_mounts_and_umount_unmounts(host: Room, app: Path) -> None:
    _fstab(host, f"{app} {app} relfs defaults,nofail,_netdev,x-systemd.before=nginx.service 0 0")
    host.ok("mount", app)
    assert host.mounted(app)
    assert host.ok("cat", app / "current/index.html") == "40"
    host.ok("umount", app)
    assert not host.mounted(app)
    assert host.ok("cat", app / "current/index.html") == "40"


@pytest.mark.parametrize("kind", ["relfs", "fuse.relfs"])
def test_mounting_all_again_mounts_nothing_twice(host: Room, app: Path, kind: str) -> None:
    _fstab(host, f"{app} {app} {kind} defaults 0 0")
    for _ in range(2):
        host.ok("mount", "-a")
    assert host.ok("findmnt", "--list", "--noheadings", "--types", "fuse.relfs").count("\n") == 1


def test_the_type_may_be_given_on_the_command_line(host: Room, app: Path, tmp_path: Path) -> None:
    live = tmp_path / "live"
    live.mkdir()
    host.ok("mount", "-t", "relfs", "-o", "x-live,noatime,link=absolute,no_bind", app, live)
    assert host.mounted(live)
    assert "noatime" in host.ok("findmnt", "--noheadings", "--output", "OPTIONS", "--mountpoint", live)
    host.ok("relfsctl", "-C", app, "switch", "41")
    assert host.ok("readlink", app / "current") == f"{app}/releases/41\n"
    host.ok("umount", live)


def test_a_path_with_blanks_is_one_path(host: Room, tmp_path: Path) -> None:
    app = make_app(tmp_path / "my -o shop")
    escaped = str(app).replace(" ", "\\040")
    _fstab(host, f"{escaped} {escaped} relfs x-shop 0 0")
    host.ok("mount", app)
    assert host.mounted(app)
    host.ok("umount", app)


def test_umount_lazily_needs_no_daemon(host: Room, app: Path) -> None:
    host.ok("mount", "-t", "relfs", app, app)
    host.ok("umount", "-l", app)
    assert not host.mounted(app)
    assert host.ok("cat", app / "current/index.html") == "40"


def test_a_failure_is_one_line_and_the_status_of_mount(host: Room, tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    (tmp_path / "there").mkdir()
    done = host.run("mount", "-t", "relfs", missing, tmp_path / "there")
    assert done.returncode == _FAILED
    assert done.stderr.splitlines() == [f"relfs: {missing}: no such deploy path; `relfsctl init` makes one"]


def test_an_unknown_option_is_named(host: Room, app: Path) -> None:
    done = host.run("mount", "-t", "relfs", "-o", "colour=blue", app, app)
    assert done.returncode == _MISUSED
    assert "colour=blue" in done.stderr
    assert not host.mounted(app)


def test_remounting_is_refused_and_changes_nothing(host: Room, app: Path) -> None:
    host.ok("mount", "-t", "relfs", app, app)
    done = host.run("mount", "-o", "remount,ro", app)
    assert done.returncode == _MISUSED
    assert "cannot be remounted; unmount it" in done.stderr
    host.ok("touch", app / "written")


def test_pretending_mounts_nothing(host: Room, app: Path) -> None:
    host.ok("mount", "--fake", "-v", "-t", "relfs", app, app)
    assert not host.mounted(app)


def test_helpers_that_are_not_ours_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "etc/init.d").mkdir(parents=True)
    (tmp_path / "sbin").mkdir()
    (tmp_path / "sbin/mount.relfs").write_text("something else\n")
    done = subprocess.run([INSTALL, "--root", tmp_path, "--bin", "/x"], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "mount.relfs is not of relfs: move it away" in done.stderr
    assert (tmp_path / "sbin/mount.relfs").read_text() == "something else\n"
