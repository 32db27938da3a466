"""relfs's own names at the top of a mount: `current`, `releases`, `shared`, `.relfs` and its temporary names.

They are not like those of a plain directory; what they answer instead is written down here.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import ParamSpec

import pytest
from dirstream import inodes_of
from mounting import relfsctl, wait_for
from served import Served, behind, clear
from sidebyside import ADA, BOB, NOBODY, Script, Trace, errno_name, run, swap

from relfs.libc import RENAME_EXCHANGE, RENAME_NOREPLACE

_P = ParamSpec("_P")


@pytest.fixture(params=["no-bind", "ordinary"])
def top(request: pytest.FixtureRequest, served: Served) -> Iterator[Path]:
    """The top of either mount, with a `file`, a directory `d` and a link `next`; `current` leads to 40 and must do so
    at the end."""
    app = (served.bare if request.param == "no-bind" else served.ordinary).app
    (app / "file").write_text("file")
    (app / "d").mkdir()
    (app / "next").symlink_to("releases/41")
    yield app
    os.chdir("/")
    clear(app)
    left = os.readlink(app / "current")
    assert relfsctl(app, "switch", "40").returncode == 0  # for the tests that come after a failed one
    assert left == "releases/40"


def refusal(call: Callable[_P, object], /, *args: _P.args, **kwargs: _P.kwargs) -> str:
    """The errno that `call` ends with; "" if it succeeds."""
    try:
        call(*args, **kwargs)
    except OSError as error:
        return errno_name(error)
    return ""


def test_nothing_takes_the_name_current(top: Path) -> None:
    os.chdir(top)
    assert refusal(os.mkdir, "current") == "EEXIST"
    assert refusal(os.mkfifo, "current") == "EEXIST"
    assert refusal(os.mknod, "current", stat.S_IFREG) == "EEXIST"
    assert refusal(os.link, "file", "current") == "EEXIST"
    assert refusal(os.link, "next", "current", follow_symlinks=False) == "EEXIST"
    assert refusal(os.symlink, "releases/41", "current") == "EEXIST"
    assert refusal(os.open, "current", os.O_CREAT | os.O_EXCL | os.O_WRONLY) == "EEXIST"
    assert refusal(os.rmdir, "current") == "ENOTDIR"
    assert refusal(os.rename, "d", "current") == "ENOTDIR"
    assert refusal(swap, "next", "current", RENAME_NOREPLACE) == "EEXIST"
    assert refusal(os.rename, "current", "d") == "EISDIR"
    assert refusal(os.rename, "current", "current") == ""
    assert os.readlink("current") == "releases/40"
    assert {"d", "file", "next"} <= set(os.listdir("."))


def test_current_stays_a_link(top: Path) -> None:
    """A plain directory would allow these; here `current` can be nothing but a link with one name."""
    os.chdir(top)
    assert refusal(os.rename, "file", "current") == "EPERM"
    assert refusal(os.link, "current", "other", follow_symlinks=False) == "EPERM"
    assert refusal(swap, "file", "current", RENAME_EXCHANGE) == "EPERM"
    assert refusal(swap, "current", "file", RENAME_EXCHANGE) == "EPERM"
    assert refusal(swap, "d", "current", RENAME_EXCHANGE) in ("EPERM", "ENOTDIR")
    assert refusal(os.setxattr, "current", "trusted.x", b"1", follow_symlinks=False) == "EPERM"
    assert refusal(os.getxattr, "current", "trusted.x", follow_symlinks=False) == "ENODATA"
    assert os.listxattr("current", follow_symlinks=False) == []
    assert (top / "file").read_text() == "file"
    assert os.readlink("current") == "releases/40"


def test_exchange_with_nothing(top: Path) -> None:
    os.chdir(top)
    assert refusal(swap, "nothing", "current", RENAME_EXCHANGE) == "ENOENT"
    assert refusal(swap, "current", "nothing", RENAME_EXCHANGE) == "ENOENT"


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("releases/gone", "ENOENT"),
        ("gone", "ENOENT"),
        ("/nonexistent/path", "ENOENT"),
        ("releases/40/index.html", "ENOTDIR"),
        ("file", "ENOTDIR"),
        ("releases/40/index.html/x", "ENOTDIR"),
        ("d", "ENODATA"),
        ("next2", "ELOOP"),
    ],
)
@pytest.mark.parametrize("how", ["rename", "exchange", "remove and link"])
def test_targets_that_serve_nobody_are_refused(top: Path, text: str, answer: str, how: str) -> None:
    """And the old release stays, for everybody and on the disk."""

    def script(t: Trace) -> None:
        os.setsid()  # what is begun here ends with this process
        os.symlink("next2", "next2")
        os.symlink(text, "new")
        if how == "remove and link":
            os.unlink("current")
            t("refused", os.symlink, text, "current")
            t("still hidden", os.path.lexists, "current")
            os.symlink("releases/40", "current")
        else:
            t("refused", swap, "new", "current", RENAME_EXCHANGE if how == "exchange" else 0)
            t("the new link stays", lambda: os.readlink("new") == text)
        t("the old release stays", os.readlink, "current")

    seen = run(script, top).outcome
    assert seen["refused"] == answer
    assert seen["the old release stays"] == "releases/40"
    assert seen.get("the new link stays", True)


def test_own_directories_cannot_be_moved(top: Path) -> None:
    os.chdir(top)
    for name in ("releases", ".relfs"):
        assert refusal(os.rmdir, name) in ("EBUSY", "ENOTEMPTY")
        assert refusal(os.unlink, name) == "EISDIR"
        assert refusal(os.mkdir, name) == "EEXIST"
        assert refusal(os.rename, name, "elsewhere") == "EBUSY"
        assert refusal(os.rename, "d", name) in ("EBUSY", "ENOTEMPTY")
        assert refusal(os.rename, "file", name) in ("EBUSY", "EISDIR")
        assert refusal(os.rename, name, "file") in ("EBUSY", "ENOTDIR")
        assert refusal(swap, "d", name, RENAME_EXCHANGE) == "EBUSY"
        assert refusal(swap, name, "d", RENAME_EXCHANGE) == "EBUSY"
        assert os.path.isdir(name)


def test_shared_may_be_a_link_or_a_file(top: Path) -> None:
    """Many hosts have `shared -> /srv/data`. It can be made, seen, replaced, renamed and removed like any link."""
    os.chdir(top)
    os.symlink("d", "shared")
    try:
        assert os.readlink("shared") == "d"
        assert "shared" in os.listdir(".")
        assert refusal(os.rmdir, "shared") == "ENOTDIR"
        os.symlink("releases", "temporary")
        assert refusal(os.rename, "temporary", "shared") == "", "as `ln -sfn` and `mv -T` do"
        assert os.readlink("shared") == "releases"
        assert refusal(os.rename, "shared", "old") == ""
        os.symlink("d", "shared")
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink("shared")
    assert not os.path.lexists("shared")
    Path("shared").write_text("a file")
    assert "shared" in os.listdir(".")
    os.unlink("shared")


def test_exchange_with_current(top: Path) -> None:
    """Both ways round; what `current` was is an ordinary link afterwards, under the other name."""
    os.chdir(top)
    for first, second, other in (("next", "current", "releases/40"), ("current", "next", "releases/41")):
        swap(first, second, RENAME_EXCHANGE)
        assert os.readlink("next") == other
        assert os.readlink("current") == ("releases/41" if other == "releases/40" else "releases/40")
        assert refusal(os.lchown, "next", 3, 4) == ""
        assert (os.lstat("next").st_uid, os.lstat("next").st_gid) == (3, 4)
        assert inodes_of(".")[b"next"] == os.lstat("next").st_ino


def test_what_was_current_can_be_linked_at_once(top: Path) -> None:
    """After an exchange, the kernel's name `next` must not lead to the virtual link."""
    os.chdir(top)
    swap("next", "current", RENAME_EXCHANGE)
    try:
        wait_for(lambda: refusal(os.link, "next", "again", follow_symlinks=False) == "", "it is linked")
        assert (os.lstat("again").st_ino, os.lstat("again").st_nlink) == (os.lstat("next").st_ino, 2)
    finally:
        swap("current", "next", RENAME_EXCHANGE)


def _move_away_and_back(where: str) -> Script:
    def script(t: Trace) -> None:
        os.setsid()
        os.rename("current", where)
        t("moved", os.readlink, where)
        t("gone", os.path.lexists, "current")
        t("again", os.rename, "current", "x")
        t("an ordinary link", os.lchown, where, 3, 4)
        t("its owner", lambda: os.lstat(where).st_uid)
        t("no directory", os.mkdir, "current")
        t("back", os.rename, where, "current")
        t("current", os.readlink, "current")

    return script


def test_current_moved_elsewhere(top: Path) -> None:
    """`mv current old; ln -s … current`: hidden from who does it, and from nobody else."""
    for where in ("old", "d/old"):
        seen = run(_move_away_and_back(where), top).outcome
        assert (seen["moved"], seen["gone"], seen["again"]) == ("releases/40", False, "ENOENT")
        assert (seen["an ordinary link"], seen["its owner"]) == (None, 3)
        assert seen["no directory"] == "EPERM"
        assert (seen["back"], seen["current"]) == (None, "releases/40")
        others = subprocess.run(["readlink", top / "current"], capture_output=True, text=True, check=True)
        assert others.stdout.strip() == "releases/40"


def test_moving_current_replaces_files_but_not_directories(top: Path) -> None:
    def script(t: Trace) -> None:
        os.setsid()
        t("onto a directory", os.rename, "current", "d")
        t("not replacing", swap, "current", "file", RENAME_NOREPLACE)
        t("still there", os.readlink, "current")
        t("onto a file", os.rename, "current", "file")
        t("moved", os.readlink, "file")
        os.symlink("releases/40", "current")

    seen = run(script, top).outcome
    assert (seen["onto a directory"], seen["not replacing"], seen["still there"]) == ("EISDIR", "EEXIST", "releases/40")
    assert (seen["onto a file"], seen["moved"]) == (None, "releases/40")


def test_owner_and_times_of_current(served: Served, top: Path) -> None:
    """They are the real link's, which is what is left when the mount goes."""
    os.chdir(top)
    before = os.lstat("current")
    try:
        os.lchown("current", ADA.uid, 2000)
        os.utime("current", ns=(1_000_000_007, 2_000_000_009), follow_symlinks=False)
        now = os.lstat("current")
        assert (now.st_uid, now.st_gid, now.st_mtime_ns) == (ADA.uid, 2000, 2_000_000_009)
        behind(served.place, top, '[ "$(stat -c %u:%g:%Y current)" = 1000:2000:2 ]')

        def script(t: Trace) -> None:
            t("chown", os.lchown, "current", BOB.uid, -1)
            t("own group", os.lchown, "current", -1, ADA.gid)
            t("times", os.utime, "current", ns=(5, 6), follow_symlinks=False)
            t("now", os.utime, "current", follow_symlinks=False)

        plain = served.place / "plain link"
        plain.mkdir()
        (plain / "current").symlink_to("releases/40")
        os.lchown(plain / "current", ADA.uid, 2000)
        for who, refused in ((BOB, "EPERM"), (ADA, None)):
            here = run(script, top, who).steps
            assert here == run(script, plain, who).steps
            assert ("times", refused) in here
        shutil.rmtree(plain)
        assert stat.S_IMODE(os.lstat("current").st_mode) == 0o777
        assert os.lstat("current").st_size == len("releases/40")
    finally:
        os.lchown("current", before.st_uid, before.st_gid)


def test_strangers_cannot_replace_current(top: Path) -> None:
    def script(t: Trace) -> None:
        os.setsid()
        t("unlink", os.unlink, "current")
        t("rename", os.rename, "next", "current")
        t("exchange", swap, "next", "current", RENAME_EXCHANGE)
        t("move", os.rename, "current", "old")

    assert set(run(script, top, NOBODY).outcome.values()) == {"EACCES"}


def test_temporary_names_are_hidden(served: Served, top: Path) -> None:
    os.chdir(top)
    behind(served.place, top, "ln -s releases/42 .current.relfs; touch .current.relfs.123")
    for name in (".current.relfs", ".current.relfs.123", ".current.relfs.new"):
        assert refusal(os.lstat, name) == "ENOENT"
        assert refusal(os.unlink, name) == "ENOENT"
        assert refusal(os.rename, name, "x") == "ENOENT"
        assert refusal(os.mkdir, name) == "EPERM"
        assert refusal(os.mkfifo, name) == "EPERM"
        assert refusal(os.symlink, "x", name) == "EPERM"
        assert refusal(os.link, "file", name) == "EPERM"
        assert refusal(os.rename, "file", name) == "EBUSY"
        assert refusal(os.open, name, os.O_CREAT | os.O_WRONLY) == "EPERM"
        assert name not in os.listdir(".")
    os.mkdir("d/.current.relfs")
    assert os.listdir("d") == [".current.relfs"], "below the top it is a name like any other"
    behind(served.place, top, "rm -f .current.relfs .current.relfs.123")
