"""Swaps that the file system refuses, so that the tool itself stops with an error, and the old release stays."""

from __future__ import annotations

import os

import pytest
from deploying import in_shell
from mounting import Mount


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


def test_target_that_leads_through_the_mount_itself(mount: Mount) -> None:
    """A link below releases/ may lead anywhere, back into the mount too: nothing hangs."""
    (mount.app / "releases/round").symlink_to(mount.app / "current")
    done = in_shell(mount.app, 'ln -sfn releases/round "$D/current"')
    assert done.returncode == 1
    assert "Too many levels of symbolic links" in done.stderr
    assert (mount.app / "current/index.html").read_text() == "40"
    assert mount.relfsctl("switch", "41").returncode == 0
    assert (mount.app / "current/index.html").read_text() == "41"
