"""Faults of the disk under a mount: full, without inodes, read-only, broken. And of what is on it: a live release that
somebody removed. The old release is served throughout, a switch is refused in a line that says why, `status` has it in
its `health`, and once the disk is well everything goes on, in the same process.
"""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from clients import assert_one_line, ctl
from disks import broken_disk, fill, remount, small_disk, use_up_inodes
from mounting import Mount, Mounts, detach_all, environment, relfs_command, relfsctl, wait_for
from readers import reading
from sandbox import link_of, make_app

Break = Callable[[Path], Callable[[], object]]
"""Breaks a disk; what it returns mends it."""


def _fill(disk: Path) -> Callable[[], object]:
    return fill(disk).unlink


def _use_up(disk: Path) -> Callable[[], object]:
    fillers = use_up_inodes(disk)
    return lambda: shutil.rmtree(fillers)


def _make_read_only(disk: Path) -> Callable[[], object]:
    remount(disk, "ro")
    return lambda: remount(disk, "rw")


DISKS = [
    pytest.param("size=1m", _fill, "No space left on device", "the disk is full", id="full"),
    pytest.param("nr_inodes=64", _use_up, "No space left on device", "no inodes left", id="no inodes"),
    pytest.param("size=1m", _make_read_only, "Read-only file system", "is mounted read-only", id="read-only"),
]


@pytest.mark.parametrize(("option", "break_it", "words", "health"), DISKS)
def test_a_disk_that_takes_nothing(
    tmp_path: Path, mounts: Mounts, option: str, break_it: Break, words: str, health: str
) -> None:
    with small_disk(tmp_path / "disk", option) as disk:
        app = make_app(disk / "app")
        mount = mounts.start(app)
        mount.expect_log(f"a swap by .* was not done: 42: not switched to: {words}")
        assert ctl("-C", app, "switch", "41").status == 0
        assert mount.status()["health"] == []
        with reading(app / "current/index.html", "41") as readers:
            mend = break_it(disk)
            try:
                assert_one_line(ctl("-C", app, "switch", "42"), 1, words)
                _assert_tool_fails(app, words)
                with pytest.raises(OSError, match=words), open(app / "upload", "wb", buffering=0) as upload:
                    upload.write(bytes(8192))
                assert health in " ".join(mount.status()["health"])
                assert health in ctl("-C", app, "status").out
            finally:
                mend()
            seen = readers.stop()
        assert (seen.failed, seen.neither) == ({}, 0)
        _assert_well(mount, "42")
        mount.terminate()


def _assert_tool_fails(app: Path, words: str) -> None:
    """A legacy tool's two steps; whatever it makes of that, the name stays."""
    done = subprocess.run(["ln", "-sfn", "releases/42", app / "current"], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert words in done.stderr


def _assert_well(mount: Mount, release: str) -> None:
    """It switches, writes, is not unwell, and the journal tells of all that was done."""
    assert ctl("-C", mount.app, "switch", release).status == 0
    assert link_of(mount.app) == f"releases/{release}"
    (mount.app / "upload").write_bytes(bytes(8192))
    assert mount.status()["health"] == []
    done = [event for event in mount.journal() if event["outcome"] == "done"]
    assert (done[-1]["action"], done[-1]["release"]) == ("switch", release)


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EROFS], ids=errno.errorcode.get)
def test_a_disk_that_fails(app: Path, tmp_path: Path, mounts: Mounts, number: int) -> None:
    with broken_disk(app, tmp_path / "mood") as disk:
        mount = mounts.start(app)
        assert ctl("-C", app, "switch", "41").status == 0
        disk.fails(number)
        assert_one_line(ctl("-C", app, "switch", "42"), 1, os.strerror(number))
        assert (app / "current/index.html").read_text() == "41"
        assert mount.status()["current"] == "41"
        disk.works()
        _assert_well(mount, "42")
        mount.terminate()


def test_a_live_release_that_somebody_removed(mount: Mount) -> None:
    """Readers get what the disk has, which is nothing; the daemon says so, and another release makes it well."""
    shutil.rmtree(mount.app / "releases/40")
    with pytest.raises(FileNotFoundError):
        (mount.app / "current/index.html").read_bytes()
    assert os.readlink(mount.app / "current") == "releases/40"
    said = mount.status()["health"]
    assert len(said) == 1
    assert "the live release 40 cannot be opened: No such file or directory" in said[0]
    assert_one_line(ctl("-C", mount.app, "switch", "40"), 3, "no such release")
    _assert_well(mount, "41")
    assert (mount.app / "current/index.html").read_text() == "41"


def test_a_live_release_that_is_missing_offline(app: Path) -> None:
    shutil.rmtree(app / "releases/40")
    assert "the live release 40 cannot be opened" in ctl("-C", app, "status").out
    assert ctl("-C", app, "switch", "41").status == 0
    assert ctl("-C", app, "--json", "status").json["health"] == []


# ---- the log, in the background


@contextmanager
def in_background(app: Path) -> Iterator[None]:
    """A daemon that logs into the state directory."""
    subprocess.run(relfs_command(app), env=environment(), check=True, timeout=60)
    try:
        yield
    finally:
        relfsctl(app, "unmount")
        detach_all(app)


def status_of(app: Path) -> Any:
    return ctl("-C", app, "--json", "status").json


def test_a_log_that_lost_lines_to_a_full_disk(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "size=1m") as disk:
        app = make_app(disk / "app")
        with in_background(app):
            (app / "link").symlink_to("releases/none")
            filler = fill(disk)
            _note_refusals(app, 200)
            wait_for(lambda: "the log lacks" in " ".join(status_of(app)["health"]), "status tells")
            filler.unlink()
            _note_refusals(app, 1)
            wait_for(lambda: "lines are missing here: No space left" in _log_of(app), "the log tells")
            wait_for(lambda: status_of(app)["health"] == [], "status tells that, too")
            assert ctl("-C", app, "switch", "42").status == 0


def _note_refusals(app: Path, count: int) -> None:
    """Each is a line in the log, which has room for some: the rest of its last page."""
    for _ in range(count):
        with pytest.raises(FileNotFoundError):
            os.rename(app / "link", app / "current")


def _log_of(app: Path) -> str:
    return (app / ".relfs/log").read_text()
