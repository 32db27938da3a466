"""What relfs refuses by itself where it serves a live release by passthrough: hard links, names that moved, names that
are gone, and what is none of its business. Real mounts with --no-bind.

That every kind of change is refused is in test_seal.py, for both ways of sealing.
"""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from mounting import Mount, Mounts, detach_all
from pyfuse3 import FUSEError, InodeT
from sandbox import add_release, make_app
from served import behind
from sidebyside import tree

from relfs.control import change
from relfs.fuse.guard import Guard
from relfs.fuse.inodes import RELEASES_NODE, ROOT, InodeTable
from relfs.survival.ledger import Ledger, new_ledger


@pytest.fixture
def app(tmp_path: Path) -> Path:
    """A deploy path that asks for seals."""
    app = make_app(tmp_path / "app")
    (app / ".relfs").mkdir()
    (app / ".relfs/config.toml").write_text("seal = true\n")
    return app


@pytest.fixture
def bare(app: Path, mounts: Mounts) -> Mount:
    """`app`, all of it served by relfs."""
    return mounts.start(app, "--no-bind")


def switch(app: Path, release: str) -> None:
    change((f"{app}/.relfs",), "switch", {"release": release})


def outcome(attempt: Callable[[], object]) -> str:
    """What came of it: an errno's name, or `done`."""
    try:
        made = attempt()
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    if isinstance(made, int):
        os.close(made)
    return "done"


def in_place(file: Path) -> dict[str, str]:
    """What becomes of each change of the inode that `file` names."""
    attempts: dict[str, Callable[[], object]] = {
        "open for writing": lambda: os.open(file, os.O_WRONLY),
        "truncate": lambda: os.truncate(file, 0),
        "chmod": lambda: os.chmod(file, 0o640),
        "chown": lambda: os.chown(file, 7, 7),
        "utime": lambda: os.utime(file, (1, 1)),
        "setxattr": lambda: os.setxattr(file, "user.new", b"x"),
        "removexattr": lambda: os.removexattr(file, "user.new"),
    }
    return {what: outcome(attempt) for what, attempt in attempts.items()}


# ---- hard links


@pytest.mark.parametrize("first", ["40", "41"])
def test_a_file_that_is_in_the_live_release_too(app: Path, mounts: Mounts, first: str) -> None:
    """`cp -al`: whichever of its names the kernel heard of first, it cannot be changed; names can come and go."""
    (app / "releases/40/sub").mkdir()
    (app / "releases/40/sub/file").write_text("content")
    subprocess.run(["cp", "-al", app / "releases/40/sub", app / "releases/41/sub"], check=True)
    mounts.start(app, "--no-bind")
    assert (app / "releases" / first / "sub/file").read_text() == "content"
    before = tree(app, frozenset({".relfs"}))
    for name in ("40", "41"):
        assert set(in_place(app / "releases" / name / "sub/file").values()) == {"EBUSY"}
    assert tree(app, frozenset({".relfs"})) == before
    os.rename(app / "releases/41/sub/file", app / "releases/42/moved")
    assert set(in_place(app / "releases/42/moved").values()) == {"EBUSY"}
    os.unlink(app / "releases/42/moved")
    assert (app / "current/sub/file").read_text() == "content"


def test_a_file_with_several_names_that_are_all_elsewhere(app: Path, mounts: Mounts) -> None:
    os.link(app / "releases/41/index.html", app / "releases/42/second")
    mounts.start(app, "--no-bind")
    assert set(in_place(app / "releases/42/second").values()) == {"done"}
    assert outcome(lambda: os.link(app / "releases/41/index.html", app / "releases/41/third")) == "done"


def test_no_name_more_for_a_live_file(bare: Mount) -> None:
    """As from a read-only mount: tools that link what did not change then copy it."""
    live, other = bare.app / "releases/40", bare.app / "releases/41"
    assert outcome(lambda: os.link(live / "index.html", other / "new")) == "EXDEV"
    assert outcome(lambda: os.link(live / "index.html", bare.app / "new")) == "EXDEV"
    assert outcome(lambda: os.link(other / "index.html", live / "new")) == "EBUSY"
    assert os.stat(live / "index.html").st_nlink == 1


def test_links_are_forgotten_with_the_release(app: Path, mounts: Mounts) -> None:
    os.link(app / "releases/40/index.html", app / "releases/41/second")
    mounts.start(app, "--no-bind")
    assert in_place(app / "releases/41/second")["chmod"] == "EBUSY"
    switch(app, "42")
    assert set(in_place(app / "releases/41/second").values()) == {"done"}


def test_links_in_directories_that_nobody_may_read(app: Path, mounts: Mounts) -> None:
    """Root may."""
    deep = app / "releases/40/deep"
    deep.mkdir(mode=0o700)
    os.chown(deep, 7, 7)
    (deep / "file").touch()
    os.link(deep / "file", app / "releases/41/second")
    os.chmod(deep, 0)
    mounts.start(app, "--no-bind")
    assert in_place(app / "releases/41/second")["chmod"] == "EBUSY"


# ---- names that moved, or are gone


def test_a_name_that_moved(bare: Mount) -> None:
    """What was open under another name is known by where it is now."""
    app = bare.app
    (app / "releases/41/sub").mkdir()
    (app / "releases/41/sub/file").write_text("content")
    assert in_place(app / "releases/41/sub/file")["chmod"] == "done"
    os.rename(app / "releases/41", app / "releases/43")
    switch(app, "43")
    assert in_place(app / "releases/43/sub/file")["chmod"] == "EBUSY"
    assert outcome(lambda: os.mkdir(app / "releases/43/sub/new")) == "EBUSY"
    switch(app, "42")
    os.rename(app / "releases/43/sub", app / "sub")
    assert in_place(app / "sub/file")["chmod"] == "done"


def test_a_file_whose_name_is_gone(bare: Mount) -> None:
    """It was removed before the release became live: it is nobody's any more."""
    file = bare.app / "releases/41/file"
    with open(file, "w+") as held:
        file.unlink()
        switch(bare.app, "41")
        os.fchmod(held.fileno(), 0o600)
        os.setxattr(held.fileno(), "user.new", b"x")
        held.write("text")
        held.flush()
        assert os.fstat(held.fileno()).st_mode & 0o777 == 0o600
    assert in_place(bare.app / "releases/41/index.html")["chmod"] == "EBUSY"


@pytest.mark.parametrize("name", ["file (deleted)", "40 (deleted)", "a b", "a\nb", "caf\udce9"])
def test_names_that_look_like_something_else(bare: Mount, name: str) -> None:
    app = bare.app
    (app / "releases/41" / name).write_text("content")
    assert outcome(lambda: os.chmod(app / "releases/41" / name, 0o600)) == "done"
    switch(app, "41")
    assert set(in_place(app / "releases/41" / name).values()) == {"EBUSY"}
    assert (app / "releases/41" / name).read_text() == "content"


def test_a_release_that_begins_with_the_name_of_another(bare: Mount) -> None:
    for name in ("4", "400", "40 (deleted)"):
        release = add_release(bare.app, name)
        assert set(in_place(release / "index.html").values()) == {"done"}


def test_a_release_in_the_place_of_a_removed_one(bare: Mount) -> None:
    app = bare.app
    held = os.open(app / "releases/41", os.O_RDONLY)
    os.unlink(app / "releases/41/index.html")
    os.rmdir(app / "releases/41")
    add_release(app, "41")
    switch(app, "41")
    assert in_place(app / "releases/41/index.html")["chmod"] == "EBUSY"
    assert outcome(lambda: os.mkdir("new", dir_fd=held)) == "ENOENT"
    os.close(held)


# ---- what is none of its business


def test_the_rest_of_the_mount(bare: Mount) -> None:
    """Other releases, staging areas and everything at the top can be changed as ever."""
    app = bare.app
    for place in (app, app / "releases", app / "releases/41"):
        os.mkdir(place / "new")
        (place / "new/file").touch()
        assert set(in_place(place / "new/file").values()) == {"done"}
        os.rename(place / "new", place / "newer")
    assert outcome(lambda: os.symlink("40", app / "releases/stable")) == "done"
    assert outcome(lambda: os.unlink(app / "releases/stable")) == "done"


def test_reading_is_not_changing(bare: Mount) -> None:
    live = bare.app / "releases/40"
    assert outcome(lambda: os.open(live / "index.html", os.O_RDONLY)) == "done"
    assert outcome(lambda: os.open(live / "index.html", os.O_RDONLY | os.O_CREAT)) == "done"
    assert outcome(lambda: os.open(live, os.O_RDONLY | os.O_DIRECTORY)) == "done"
    assert outcome(lambda: os.mkdir(live)) == "EEXIST"
    assert outcome(lambda: os.listxattr(live)) == "done"


def test_who_may_not_is_told_so_as_ever(bare: Mount) -> None:
    """Permissions come first."""
    done = subprocess.run(
        ["python3", "-c", "import os, sys; os.open(sys.argv[1], os.O_WRONLY)", bare.app / "releases/40/index.html"],
        user=65534, group=65534, extra_groups=[], capture_output=True, text=True, check=False, cwd="/",
    )  # fmt: skip
    assert "Permission denied" in done.stderr


def test_a_rename_onto_current_from_inside_of_a_release(app: Path, mounts: Mounts) -> None:
    """That would take a name out of the live release, and an exchange would put another one there."""
    (app / "releases/40/new").symlink_to("releases/41")
    (app / "releases/41/new").symlink_to("releases/41")
    mounts.start(app, "--no-bind")
    assert outcome(lambda: os.rename(app / "releases/40/new", app / "current")) == "EBUSY"
    assert outcome(lambda: os.rename(app / "current", app / "releases/40/old")) == "EBUSY"
    assert os.readlink(app / "releases/40/new") == "releases/41"
    assert (app / "current/index.html").read_text() == "40"
    assert outcome(lambda: os.rename(app / "releases/41/new", app / "current")) == "done"
    assert (app / "current/index.html").read_text() == "41"


def test_mounts_in_a_release_by_the_same_file_system(app: Path, mounts: Mounts) -> None:
    """shared/ mounted inside of a release is the same file system, and the same inodes, and stays writable."""
    (app / "shared").mkdir()
    (app / "shared/file").write_text("content")
    (app / "releases/40/storage").mkdir()
    subprocess.run(["mount", "--bind", app, app], check=True)
    try:
        subprocess.run(["mount", "--bind", app / "shared", app / "releases/40/storage"], check=True)
        mount = mounts.start(app, "--no-bind")
        for place in (app / "releases/40/storage", app / "shared"):
            assert set(in_place(place / "file").values()) == {"done"}
            os.mkdir(place / "new")
            os.rmdir(place / "new")
        assert outcome(lambda: os.rmdir(app / "releases/40/storage")) == "EBUSY"
        assert mount.terminate() == 0
    finally:
        detach_all(app)


def test_changed_behind_the_mount(bare: Mount, tmp_path: Path) -> None:
    """Who sees the covered directory is not guarded against, and a file that comes to be there is guarded."""
    behind(tmp_path, bare.app, "echo text > releases/40/new && mv releases/41/index.html releases/40/moved")
    for name in ("new", "moved"):
        assert in_place(bare.app / "releases/40" / name)["chmod"] == "EBUSY"


# ---- the next worker. No mount


def test_who_takes_over_guards_before_it_has_looked(app: Path) -> None:
    """Until then, whatever has several names; then what it has sealed, and nothing else that was guarded before."""
    for name in ("40", "41"):
        (app / "releases" / name / "linked").write_text("content")
        os.link(app / "releases" / name / "linked", app / f"other-{name}")
    (app / "single").write_text("content")
    ledger = new_ledger()
    with _guard(app, ledger) as (first, _):
        for name in ("40", "42"):
            first.seal(name)
    with _guard(app, ledger) as (guard, guarded):
        guard.restore()
        assert guarded() == {"releases/40/index.html", "releases/42/index.html", "other-40", "other-41"}
        guard.seal("40")
        assert guarded() == {"releases/40/index.html", "releases/42/index.html", "other-40", "other-41"}
        guard.settle()
        assert guarded() == {"releases/40/index.html", "other-40"}
    with _guard(app, ledger) as (third, guarded):
        third.restore()
        assert guarded() == {"releases/40/index.html", "other-40", "other-41"}


@contextmanager
def _guard(app: Path, ledger: Ledger) -> Iterator[tuple[Guard, Callable[[], set[str]]]]:
    """A worker's, and what tells which files it guards."""
    table = InodeTable()
    home = os.open(app, os.O_RDONLY)
    table.pin(ROOT, os.dup(home))
    table.pin(RELEASES_NODE, os.open("releases", os.O_RDONLY, dir_fd=home))
    guard = Guard(table, home, ledger.seals)
    files = [file for file in app.rglob("*") if file.is_file() and file.name != "config.toml"]
    nodes = {str(file.relative_to(app)): table.adopt(os.open(file, os.O_PATH), os.stat(file)) for file in files}

    def is_guarded(nodeid: InodeT) -> bool:
        try:
            guard.inode(nodeid)
        except FUSEError as error:
            return error.errno == errno.EBUSY
        return False

    def guarded() -> set[str]:
        return {name for name, node in nodes.items() if is_guarded(node.id) and not name.endswith("/linked")}

    try:
        yield guard, guarded
    finally:
        table.close()
        os.close(home)
