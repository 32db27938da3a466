"""Where the target is kept: every failing call leaves the old one, and one kind of store takes over from the other.

Real file systems are used where they can be had cheaply: a tmpfs that is read-only, or has no inode left. One without
symbolic links is simulated, by a symlink(2) that answers as vfat's does.
"""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from faults import Calls, Crash, CrashAfter, CrashBefore, CrashTorn, DiskFull, Fails, Fault, watched
from sandbox import link_of, make_app

from relfs.errors import RelfsError
from relfs.journal import Actor
from relfs.layout import DeployPath, open_deploy_path
from relfs.pointer import Pointer
from relfs.store import TEMPORARY, FileStore, LinkStore, Owner, Store, open_store, peek

OLD, NEW = "releases/40", "releases/41"
NOBODY = Owner(65534, 65534)

Opener = Callable[[DeployPath], Store]


def link_store(deploy: DeployPath) -> Store:
    """The store that is the link."""
    return LinkStore(deploy)


def file_store(deploy: DeployPath) -> Store:
    """The store that is a file, holding the old target."""
    assert deploy.state_fd is not None
    store = FileStore(deploy.state_fd)
    store.write(OLD)
    return store


both = pytest.mark.parametrize("opener", [link_store, file_store], ids=["link", "file"])


def calls_of_a_write(store: Store) -> list[str]:
    """The system calls of changing the target; it is changed back."""
    with watched(Calls()) as calls:
        store.write(NEW, NOBODY)
    store.write(OLD)
    return calls.names


# ---- writing ------------------------------------------------------------------------------------------------------


@both
@pytest.mark.parametrize("text", [NEW, "/srv/app/releases/41", os.fsdecode(b"releases/\xff\x80"), "releases/4 1"])
def test_what_is_written_is_read(deploy: DeployPath, opener: Opener, text: str) -> None:
    store = opener(deploy)
    store.write(text)
    assert store.read() == text
    assert peek(deploy) == text


@both
@pytest.mark.parametrize("kind", [Fails, DiskFull, CrashBefore, CrashTorn])
def test_a_write_that_fails_at_any_call_leaves_the_old_target(
    app: Path, deploy: DeployPath, opener: Opener, kind: type[Fault]
) -> None:
    store = opener(deploy)
    names = calls_of_a_write(store)
    struck = 0
    for at, name in enumerate(names):
        fault = kind(at)
        try:
            with watched(Calls(fault)):
                store.write(NEW, NOBODY)
        except OSError:
            struck += 1
            assert store.read() == OLD, f"{fault} at {name}"
            assert not os.path.lexists(app / TEMPORARY), f"{fault} at {name}"
        except Crash:
            struck += 1
            renamed = "rename" in names[:at]
            assert store.read() == (NEW if renamed else OLD), f"{fault} at {name}"
        else:
            assert store.read() == NEW, f"{fault} at {name}"
        store.write(OLD)
    assert struck > 0
    assert not os.path.lexists(app / TEMPORARY)


@both
def test_there_is_no_moment_without_a_target(deploy: DeployPath, opener: Opener) -> None:
    store = opener(deploy)
    for at, name in enumerate(calls_of_a_write(store)):
        with pytest.raises(Crash), watched(Calls(CrashAfter(at))):
            store.write(NEW, NOBODY)
        assert store.read() in (OLD, NEW), f"after {name}"
        store.write(OLD)


@both
def test_a_new_target_that_may_not_last_is_taken_back(deploy: DeployPath, opener: Opener) -> None:
    """The last sync fails: the rename is done, and the disk must not say what nobody is served."""
    store = opener(deploy)
    last = len(calls_of_a_write(store)) - 1
    with pytest.raises(OSError), watched(Calls(Fails(last))) as calls:
        store.write(NEW, NOBODY)
    assert calls.names[last] == "fsync"
    assert store.read() == OLD


@both
def test_the_first_target_that_may_not_last_is_taken_back(app: Path, deploy: DeployPath, opener: Opener) -> None:
    store = opener(deploy)
    last = len(calls_of_a_write(store)) - 1
    (app / "current").unlink()
    (app / ".relfs" / "current").unlink(missing_ok=True)
    names = len(os.listdir(app))
    with pytest.raises(OSError), watched(Calls(Fails(last))):
        store.write(NEW, NOBODY)
    assert store.read() is None
    assert len(os.listdir(app)) == names


def test_the_order_of_a_write_to_the_link(deploy: DeployPath) -> None:
    names = calls_of_a_write(link_store(deploy))
    assert names == ["unlink", "symlink", "open", "chown", "syncfs", "rename", "fsync"]


def test_the_order_of_a_write_to_the_file(deploy: DeployPath) -> None:
    names = [name for name in calls_of_a_write(file_store(deploy)) if name != "open"]
    assert names == ["unlink", "write", "fsync", "rename", "fsync"]


def test_what_a_crash_left_is_in_nobodys_way(app: Path, deploy: DeployPath) -> None:
    (app / TEMPORARY).symlink_to("anything")
    link_store(deploy).write(NEW)
    assert link_of(app) == NEW
    assert not os.path.lexists(app / TEMPORARY)


# ---- whose link it is ---------------------------------------------------------------------------------------------


def test_the_link_belongs_to_whom_it_shall(app: Path, deploy: DeployPath) -> None:
    link_store(deploy).write(NEW, NOBODY)
    status = (app / "current").lstat()
    assert (status.st_uid, status.st_gid) == (NOBODY.uid, NOBODY.gid)


def test_an_owner_that_may_not_be_set_does_not_matter(app: Path, deploy: DeployPath) -> None:
    at = calls_of_a_write(link_store(deploy)).index("chown")
    with watched(Calls(Fails(at, errno.EPERM))):
        link_store(deploy).write(NEW, NOBODY)
    assert link_of(app) == NEW


# ---- reading ------------------------------------------------------------------------------------------------------


def test_no_target(app: Path, deploy: DeployPath) -> None:
    (app / "current").unlink()
    assert open_store(deploy).read() is None
    assert peek(deploy) is None


def test_a_real_directory_in_the_place_of_the_link(app: Path, deploy: DeployPath) -> None:
    (app / "current").unlink()
    (app / "current").mkdir()
    with pytest.raises(RelfsError, match="a real directory, not a link; `relfsctl init"):
        peek(deploy)


def test_a_file_in_the_place_of_the_link(app: Path, deploy: DeployPath) -> None:
    (app / "current").unlink()
    (app / "current").write_text(NEW)
    with pytest.raises(RelfsError, match="not a symbolic link; move it away"):
        peek(deploy)


def test_reading_touches_nothing(app: Path, deploy: DeployPath) -> None:
    """A daemon that watches the directory looks whenever something happens in it: the look must not make it happen."""
    pointer = Pointer(deploy)
    before = app.stat().st_mtime_ns
    with watched(Calls()) as calls:
        peek(deploy)
        pointer.refresh()
    assert not {"symlink", "unlink", "rename", "mkdir"} & set(calls.names)
    assert app.stat().st_mtime_ns == before


@pytest.mark.parametrize("name", ["current", TEMPORARY])
def test_the_file_is_never_reached_through_a_link(app: Path, deploy: DeployPath, name: str) -> None:
    """Whoever owns the deploy path must not be able to make root's relfs write elsewhere."""
    (app / "theirs").write_text("theirs")
    (app / ".relfs" / name).symlink_to(app / "theirs")
    assert deploy.state_fd is not None
    store = FileStore(deploy.state_fd)
    with contextlib.suppress(OSError):
        store.write(NEW)
        assert store.read() == NEW
    assert (app / "theirs").read_text() == "theirs"


def test_the_file_is_never_read_through_a_link(app: Path, deploy: DeployPath) -> None:
    """Or its owner would be shown the first line of any file."""
    (app / "theirs").write_text("secret")
    (app / ".relfs" / "current").symlink_to(app / "theirs")
    with pytest.raises(OSError):
        peek(deploy)


# ---- one store after the other ------------------------------------------------------------------------------------


def test_without_links_the_file_takes_over(app: Path, deploy: DeployPath) -> None:
    with watched(Calls(links=False)):
        store = open_store(deploy)
        assert isinstance(store, FileStore)
        assert store.read() == OLD
        store.write(NEW)
    assert peek(deploy) == NEW
    assert link_of(app) == OLD
    assert sorted(os.listdir(app)) == [".relfs", "current", "releases"]


def test_with_links_again_the_link_takes_over(app: Path, deploy: DeployPath) -> None:
    with watched(Calls(links=False)):
        open_store(deploy).write(NEW)
    store = open_store(deploy)
    assert isinstance(store, LinkStore)
    assert link_of(app) == store.read() == peek(deploy) == NEW
    assert not (app / ".relfs" / "current").exists()


@pytest.mark.parametrize("kind", [CrashBefore, CrashAfter, CrashTorn, Fails, DiskFull])
@pytest.mark.parametrize("links", [True, False], ids=["to the link", "to the file"])
def test_no_target_is_lost_on_the_way(deploy: DeployPath, kind: type[Fault], links: bool) -> None:
    for at in range(20):
        with watched(Calls(links=not links)):
            open_store(deploy).write(NEW)
        try:
            with watched(Calls(kind(at), links=links)):
                open_store(deploy)
        except (Crash, OSError):
            assert peek(deploy) == NEW, f"{kind.__name__} at {at}"
        with watched(Calls(links=links)):
            assert open_store(deploy).read() == peek(deploy) == NEW


def test_what_was_taken_over_does_not_come_back(deploy: DeployPath) -> None:
    """The file is removed for good before anything else is written: a power cut would bring an old target back."""
    with watched(Calls(links=False)):
        open_store(deploy).write(NEW)
    with watched(Calls()) as calls:
        open_store(deploy)
    assert calls.names[-2:] == ["unlink", "fsync"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EIO])
def test_an_error_that_says_nothing_about_links(app: Path, deploy: DeployPath, number: int) -> None:
    with watched(Calls()) as calls:
        open_store(deploy)
    with pytest.raises(OSError) as caught, watched(Calls(Fails(calls.names.index("symlink"), number))):
        open_store(deploy)
    assert caught.value.errno == number
    assert not (app / ".relfs" / "current").exists()


def test_another_users_leftover_does_not_mean_that_there_are_no_links(app: Path, deploy: DeployPath) -> None:
    """In a sticky directory, unlink(2) answers EPERM for it, as symlink(2) does where there are no links."""
    with watched(Calls()) as calls:
        open_store(deploy)
    with pytest.raises(PermissionError), watched(Calls(Fails(calls.names.index("unlink"), errno.EPERM))):
        open_store(deploy)
    assert not (app / ".relfs" / "current").exists()


def test_without_a_state_directory_there_is_only_the_link(app: Path) -> None:
    with closing(open_deploy_path(str(app), create_state=False)) as deploy:
        assert isinstance(open_store(deploy), LinkStore)
        assert peek(deploy) == OLD


# ---- real file systems --------------------------------------------------------------------------------------------


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A deploy path on a file system of its own, which has room for little."""
    where = tmp_path / "small"
    where.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m,nr_inodes=40", "none", where], check=True)
    try:
        yield make_app(where / "app")
    finally:
        subprocess.run(["umount", "--lazy", where], check=True)


def test_a_read_only_file_system(small: Path, tmp_path: Path, actor: Actor) -> None:
    subprocess.run(["mount", "-o", "remount,ro", small.parent], check=True)
    with pytest.raises(RelfsError, match=r"Read-only file system; .*--state-dir"):
        open_deploy_path(str(small))
    with closing(open_deploy_path(str(small), state_dir=str(tmp_path / "state"))) as deploy:
        pointer = Pointer(deploy)
        pointer.switch("41", actor, "request")
        assert pointer.target == deploy.target(NEW)
        assert (peek(deploy), link_of(small)) == (NEW, OLD)
        subprocess.run(["mount", "-o", "remount,rw", small.parent], check=True)
        pointer.switch("42", actor, "another")
        assert peek(deploy) == link_of(small) == "releases/42"
        pointer.check_invariants()


def test_state_on_a_file_system_of_its_own_is_synced_too(small: Path, tmp_path: Path, actor: Actor) -> None:
    with closing(open_deploy_path(str(small), state_dir=str(tmp_path / "state"))) as deploy:
        pointer = Pointer(deploy)
        with watched(Calls()) as calls:
            pointer.switch("41", actor, "request")
    assert calls.names.index("write") < calls.names.index("syncfs") < calls.names.index("rename")
    assert calls.names.count("syncfs") == 2


def test_a_file_system_without_an_inode_left(small: Path, tmp_path: Path, actor: Actor) -> None:
    with closing(open_deploy_path(str(small), state_dir=str(tmp_path / "state"))) as deploy:
        _fill(small)
        pointer = Pointer(deploy)  # a daemon must come up again, whatever the disk says
        with pytest.raises(RelfsError, match="No space left on device"):
            pointer.switch("41", actor, "request")
        assert pointer.target == deploy.target(OLD)
        assert link_of(small) == OLD
        (small / "filler-0").unlink()
        pointer.switch("41", actor, "another")
        assert link_of(small) == NEW
        pointer.check_invariants()


def _fill(directory: Path) -> None:
    with pytest.raises(OSError) as caught:
        for number in range(1000):
            (directory / f"filler-{number}").touch()
    assert caught.value.errno == errno.ENOSPC
