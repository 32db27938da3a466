"""Swaps that the file system refuses, so that the tool itself stops with an error, and the old release stays."""

from __future__ import annotations

import errno
import os
import subprocess
from pathlib import Path

import pytest
from clients import ctl
from deploying import in_shell
from mounting import Mount, Mounts, wait_for
from readers import reading
from sandbox import be_patient

from relfs.libc import AT_FDCWD, RENAME_WHITEOUT, renameat2


@pytest.fixture
def mount(app: Path, mounts: Mounts) -> Mount:
    """One on which a replacement that was begun lasts until the test is over."""
    return mounts.start(be_patient(app))


@pytest.mark.parametrize(
    ("make", "command", "words"),
    [
        (None, "ln -sfn releases/gone $D/current", "No such file or directory"),
        ("file", "ln -sfn releases/file $D/current", "Not a directory"),
        ("empty", "ln -sfn releases/empty $D/current", "No data available"),
        (None, "ln -s releases/gone $D/new && mv -T $D/new $D/current", "No such file or directory"),
        (None, "busybox ln -sfn releases/gone $D/current", "No such file or directory"),
    ],
)
def test_refused_targets(mount: Mount, make: str | None, command: str, words: str) -> None:
    """A swap to what can serve nobody fails in the tool, and the old release stays."""
    if make == "file":
        (mount.app / "releases/file").touch()
    elif make == "empty":
        (mount.app / "releases/empty").mkdir()
    done = in_shell(mount.app, command)
    assert done.returncode != 0
    assert words in done.stderr
    assert os.readlink(mount.app / "current") == "releases/40"
    assert (mount.app / "current/index.html").read_text() == "40"


def test_a_tool_that_tries_again_and_again(app: Path, mounts: Mounts) -> None:
    """The journal is told once in a while, and of others no less."""
    mount = mounts.start(app, patch="from relfs.fuse import current\ncurrent._REPEAT_SECONDS = 300")
    script = "for n in 1 2 3 4 5 6 7 8 9; do ln -sfn releases/gone $D/current; done; ln -sfn releases/lost $D/current"
    assert in_shell(mount.app, script).returncode == 1
    wait_for(lambda: mount.journal()[-1]["release"] == "lost", "the journal tells")
    assert [line["release"] for line in mount.journal() if line["action"] == "replace"] == ["gone", "lost"]
    wait_for(lambda: mount.log.read_text().count("was not done") == 10, "the log tells each time")


def test_a_link_that_cannot_be_taken_from_where_it_is(app: Path, mounts: Mounts) -> None:
    """rename(2) finds out when the swap is made, and fails; readers and the disk agree all the same."""
    (app / ".tmp").mkdir()
    covered = os.open(app / ".tmp", os.O_RDONLY)
    subprocess.run(["chattr", "+a", "."], cwd=f"/proc/self/fd/{covered}", check=True)  # nothing is removed from there
    try:
        mounts.start(app)
        assert (app / "current/index.html").read_text() == "40"
        done = in_shell(app, "ln -s releases/41 $D/.tmp/new && mv -T $D/.tmp/new $D/current")
        assert "Operation not permitted" in done.stderr
        assert ctl("-C", app, "--json", "status").json["current"] == "41"
        wait_for(lambda: (app / "current/index.html").read_text() == "41", "readers see what is current")
    finally:
        subprocess.run(["chattr", "-a", "."], cwd=f"/proc/self/fd/{covered}", check=True)
        os.close(covered)


def test_target_that_leads_through_the_mount_itself(mount: Mount) -> None:
    """A link below releases/ may lead anywhere, back into the mount too: nothing hangs."""
    (mount.app / "releases/round").symlink_to(mount.app / "current")
    done = in_shell(mount.app, 'ln -sfn releases/round "$D/current"')
    assert done.returncode == 1
    assert "Too many levels of symbolic links" in done.stderr
    assert (mount.app / "current/index.html").read_text() == "40"
    assert mount.relfsctl("switch", "41").returncode == 0
    assert (mount.app / "current/index.html").read_text() == "41"


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ('ln -s releases/41 "$D/.new"; mv -nT "$D/.new" "$D/current"', ""),
        ('ln -s releases/41 "$D/current" --no-target-directory', "File exists"),
        ('touch "$D/.new"; install -T "$D/.new" "$D/current"', "Operation not permitted"),
        ('touch "$D/.new"; mv -T "$D/.new" "$D/current"', "Operation not permitted"),
        ('mkdir "$D/.new"; mv -T "$D/.new" "$D/current"', "directory"),
        ('mkdir "$D/current"', "File exists"),
        ('rm "$D/current"; mkdir "$D/current"', "Operation not permitted"),
        ('rm "$D/current"; touch "$D/current"', "Operation not permitted"),
        ('rm "$D/current"; cp -r "$D/releases/41" "$D/current"', "Operation not permitted"),
        (
            'mkdir "$D/.new"; ln -s "$D/releases/41" "$D/.new/current"; tar -C "$D/.new" -c current | tar -C "$D" -x',
            "Operation not permitted",  # of an absolute link, tar(1) makes a regular file first
        ),
    ],
)
def test_what_is_no_replacement(mount: Mount, command: str, words: str) -> None:
    """A tool that means to keep what is there, or to put something else than a link there, leaves the old release."""
    before = mount.journal()
    with reading(mount.app / "current/index.html", "40") as readers:
        done = in_shell(mount.app, command)
        seen = readers.stop()
    assert words in done.stderr
    assert bool(done.stderr) == bool(words)
    assert (seen.failed, seen.neither) == ({}, 0)
    assert mount.journal() == before
    assert mount.terminate() == 0
    assert os.readlink(mount.app / "current") == "releases/40"
    assert os.listdir(mount.app / "releases/40") == ["index.html"]


def test_a_rename_that_leaves_a_device_behind(mount: Mount) -> None:
    """As overlayfs does it with what is below: that is no way to begin a replacement."""
    with pytest.raises(OSError, match="Invalid argument") as refused:
        renameat2(AT_FDCWD, bytes(mount.app / "current"), AT_FDCWD, bytes(mount.app / "moved"), RENAME_WHITEOUT)
    assert refused.value.errno == errno.EINVAL
    assert os.readlink(mount.app / "current") == "releases/40"
    assert not os.path.lexists(mount.app / "moved")
