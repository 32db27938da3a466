"""Deploy tools run by an ordinary user, who owns the deploy path that root's daemon serves."""

from __future__ import annotations

import os
import pwd
import re
from pathlib import Path

import pytest
from deploying import assert_journalled, assert_nobody_noticed, deploy, in_shell
from deploytools import TOOLS
from mounting import Mount, Mounts
from sandbox import make_app

OWNER = pwd.getpwnam("www-data")
STRANGER = pwd.getpwnam("nobody")
SWAPS = 6


@pytest.fixture
def mount(open_place: Path, mounts: Mounts) -> Mount:
    return mounts.start(owned(open_place))


def owned(place: Path) -> Path:
    """A deploy path in `place` that is its owner's from top to bottom."""
    app = make_app(place / "app")
    for directory, _, names in os.walk(app):
        for path in (directory, *(os.path.join(directory, name) for name in names)):
            os.chown(path, OWNER.pw_uid, OWNER.pw_gid, follow_symlinks=False)
    os.chown(app / "current", OWNER.pw_uid, OWNER.pw_gid, follow_symlinks=False)
    return app


@pytest.mark.parametrize("tool", TOOLS)
def test_the_journal_names_the_user(mount: Mount, tool: str) -> None:
    before = len(mount.journal())
    assert_nobody_noticed(deploy(mount.app, TOOLS[tool], SWAPS, user=OWNER.pw_uid))
    assert_journalled(mount, TOOLS[tool], SWAPS, user="www-data", skip=before)
    assert os.lstat(mount.app / "current").st_uid == OWNER.pw_uid
    assert mount.terminate() == 0
    assert os.lstat(mount.app / "current").st_uid == OWNER.pw_uid, "the real link is the user's, too"


@pytest.mark.parametrize("tool", ["gnu ln -sfn", "busybox ln -sfn", "capistrano", "exchange"])
def test_without_native_directories(open_place: Path, mounts: Mounts, tool: str) -> None:
    mount = mounts.start(owned(open_place), "--no-bind")
    before = len(mount.journal())
    assert_nobody_noticed(deploy(mount.app, TOOLS[tool], SWAPS, user=OWNER.pw_uid))
    assert_journalled(mount, TOOLS[tool], SWAPS, user="www-data", skip=before)


@pytest.mark.parametrize(
    "script",
    [
        'ln -sfn releases/41 "$D/current"',
        'busybox ln -sfn releases/41 "$D/current"',
        'rm "$D/current"',
        'mv "$D/current" "$D/old"',
        'chown -h nobody "$D/current"',
    ],
)
def test_somebody_else_may_not(mount: Mount, script: str) -> None:
    before = mount.journal()
    done = in_shell(mount.app, script, user=STRANGER.pw_uid, group=STRANGER.pw_gid, extra_groups=[])
    assert done.returncode != 0
    assert re.search("denied|not permitted|File exists", done.stderr), "the last is BusyBox, of its symlink(2)"
    assert os.readlink(mount.app / "current") == "releases/40"
    assert mount.journal() == before
    assert mount.status()["views"] == [], "nothing was begun"
