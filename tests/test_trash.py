"""The trash, and what empties it: whole at once, nothing outside of it, by one process at a time, after any crash."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from mounting import environment
from sandbox import add_release, end, start_python

from relfs.errors import RefusedError, RelfsError, UsageError
from relfs.layout import DeployPath, open_deploy_path
from relfs.releases import trash as trash_module
from relfs.releases.deleter import empty, start_deleting, wait_until_deleted
from relfs.releases.inuse import Uses
from relfs.releases.registry import Registry
from relfs.releases.space import Space
from relfs.releases.trash import abandoned, entries, left, opened, put
from relfs.releases.tree import walk

NOBODY = 65534


@pytest.fixture
def trash(deploy: DeployPath) -> Iterator[int]:
    """The trash, opened, with release 41 in it."""
    put(deploy, "41")
    with opened(deploy) as trashes:
        (only,) = trashes
        yield only


def place(app: Path) -> Path:
    return app / ".relfs/trash"


# ---- putting things into it


def test_a_release_goes_whole(deploy: DeployPath, app: Path) -> None:
    put(deploy, "41")
    assert not (app / "releases/41").exists()
    assert (place(app) / "41.1/index.html").read_text() == "41"


def test_of_the_same_name_again(deploy: DeployPath, app: Path) -> None:
    put(deploy, "41")
    add_release(app, "41")
    put(deploy, "41")
    assert sorted(os.listdir(place(app))) == ["41.1", "41.2"]


@pytest.mark.parametrize("call", [1, 2])
def test_on_a_disk_that_cannot_be_flushed(
    deploy: DeployPath, app: Path, monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    """It is where it was, and nothing says otherwise."""
    place(app).mkdir()
    flush, calls = os.fsync, []

    def fail(fd: int) -> None:
        calls.append(fd)
        if len(calls) == call:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        flush(fd)

    with monkeypatch.context() as patch:
        patch.setattr("relfs.releases.trash.os.fsync", fail)
        with pytest.raises(RelfsError, match="41: cannot be removed"):
            put(deploy, "41")
    assert (app / "releases/41/index.html").read_text() == "41"
    assert os.listdir(place(app)) == []


def test_the_longest_name(deploy: DeployPath, app: Path) -> None:
    name = "é" * 127
    add_release(app, name)
    put(deploy, name)
    assert not (app / "releases" / name).exists()
    assert len(os.listdir(place(app))) == 1


@pytest.mark.parametrize("name", ["39", "file", "link", ".relfs-trash", ".git"])
def test_what_is_no_release(deploy: DeployPath, app: Path, name: str) -> None:
    (app / "releases/file").write_text("no directory")
    (app / "releases/link").symlink_to("41")
    (app / "releases/.git").mkdir()
    (app / "releases/.relfs-trash").mkdir()
    before = sorted(os.listdir(app / "releases"))
    with pytest.raises(RelfsError, match=re.escape(name)):
        put(deploy, name)
    assert sorted(os.listdir(app / "releases")) == before


@pytest.mark.parametrize("name", ["..", ".", "", "a/b", "a\nb"])
def test_what_is_no_name(deploy: DeployPath, name: str) -> None:
    with pytest.raises(UsageError):
        put(deploy, name)


def test_the_registry_knows(deploy: DeployPath, app: Path) -> None:
    """Also of what somebody else has removed, once anything is."""
    registry = Registry(deploy.state_fd)
    for name in ("41", "42", "43"):
        finish(registry, name)
    assert not (app / "releases/43").exists()
    put(deploy, "41")
    assert [(record.name, record.state) for record in registry.records()] == [
        ("41", "removed"), ("42", "finished"), ("43", "removed"),
    ]  # fmt: skip


def finish(registry: Registry, name: str) -> None:
    registry.note(registry.reserve(lambda _: name, source="", user=""), "finished")


def test_state_on_another_file_system(app: Path, tmp_path: Path) -> None:
    """rename(2) goes across no mount: the trash is beside the releases then."""
    state = tmp_path / "state"
    state.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "none", state], check=True)
    try:
        deploy = open_deploy_path(str(app), state_dir=str(state))
        put(deploy, "41")
        assert os.listdir(app / "releases/.relfs-trash") == ["41.1"]
        assert [release.name for release in deploy.releases()] == ["40", "42"]
        start_deleting(deploy)
        assert not wait_until_deleted(deploy)
        assert os.listdir(app / "releases/.relfs-trash") == []
        deploy.close()
    finally:
        subprocess.run(["umount", "-l", state], check=True)


def test_root_leaves_it_to_whom_the_state_belongs_to(open_place: Path) -> None:
    """Who deploys goes on without root."""
    app = open_place / "app"
    for name in ("40", "41"):
        add_release(app, name)
    (app / ".relfs").mkdir()
    for path in (app, *app.rglob("*")):
        os.chown(path, NOBODY, NOBODY)
    deploy = open_deploy_path(str(app))
    put(deploy, "40")
    deploy.close()
    program = (
        "import sys; from relfs.layout import open_deploy_path; from relfs.releases.trash import put\n"
        "from relfs.releases.deleter import start_deleting, wait_until_deleted\n"
        "deploy = open_deploy_path(sys.argv[1]); put(deploy, '41'); start_deleting(deploy)\n"
        "assert not wait_until_deleted(deploy)"
    )
    subprocess.run(
        [sys.executable, "-c", program, str(app)], user=NOBODY, group=NOBODY, extra_groups=[], env=environment(),
        cwd="/", check=True,
    )  # fmt: skip
    assert os.listdir(app / ".relfs/trash") == []


# ---- what was being made


def test_abandoned_staging(deploy: DeployPath, app: Path) -> None:
    """Who is making a release holds a lock on it while he lives."""
    program = "import fcntl, os, sys; fcntl.flock(os.open(sys.argv[1], 0), 2); print('ready', flush=True); input()"
    staging = app / "releases/.relfs-add-43"
    staging.mkdir()
    maker = start_python(program, str(staging))
    assert maker.stdout is not None
    assert maker.stdout.readline() == "ready\n"
    assert abandoned(deploy) == []
    with pytest.raises(RefusedError, match="is being made"):
        put(deploy, staging.name)
    end(maker)
    assert abandoned(deploy) == [staging.name]
    put(deploy, staging.name)
    assert not staging.exists()
    assert os.listdir(place(app)) == ["relfs-add-43.1"]


# ---- emptying it


def test_all_kinds_of_files_go(trash: int, app: Path) -> None:
    top = place(app) / "41.1"
    (top / "deep/er/still").mkdir(parents=True)
    (top / "deep/er/file").write_text("x")
    os.mkfifo(top / "fifo")
    (top / "dangling").symlink_to("nowhere")
    (top / os.fsdecode(b"no text \xff\n")).write_text("x")
    (top / "locked").mkdir(mode=0)
    empty(trash, pace=0)
    assert os.listdir(place(app)) == []


def test_links_are_not_followed(trash: int, app: Path, tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious/file").write_text("mine")
    (place(app) / "41.1/link").symlink_to(tmp_path / "precious")
    (place(app) / "link").symlink_to(tmp_path / "precious")
    os.link(tmp_path / "precious/file", place(app) / "41.1/hard")
    empty(trash, pace=0)
    assert os.listdir(place(app)) == []
    assert (tmp_path / "precious/file").read_text() == "mine"


@contextmanager
def mounted(*arguments: str | Path) -> Iterator[None]:
    subprocess.run(["mount", *arguments], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", arguments[-1]], check=True)


@pytest.mark.parametrize("how", ["bind", "tmpfs"])
def test_what_is_mounted_in_it_is_not_entered(
    trash: int, app: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """Be it of the same file system, and mounted after it was looked whether somebody uses it; the rest goes."""
    monkeypatch.setattr("relfs.releases.deleter.who_uses_below", lambda *_, **__: Uses({}))
    precious = tmp_path / "precious"
    precious.mkdir()
    inside = place(app) / "41.1/storage"
    inside.mkdir()
    source = ("--bind", precious) if how == "bind" else ("-t", "tmpfs", "none")
    with mounted(*source, inside):
        (inside / "file").write_text("mine")
        empty(trash, pace=0)
        assert (inside / "file").read_text() == "mine"
        assert os.listdir(place(app) / "41.1") == ["storage"]
        assert "storage" in left(trash)["41.1"]
    empty(trash, pace=0)
    assert os.listdir(place(app)) == []


def test_what_something_is_mounted_in_is_left_whole(trash: int, app: Path) -> None:
    inside = place(app) / "41.1/storage"
    inside.mkdir()
    with mounted("-t", "tmpfs", "none", inside):
        empty(trash, pace=0)
        assert sorted(os.listdir(place(app) / "41.1")) == ["index.html", "storage"]
        assert "in use" in left(trash)["41.1"]


def test_what_cannot_be_deleted_keeps_nothing_else(deploy: DeployPath, app: Path) -> None:
    """It is told of, and tried again."""
    immutable = app / "releases/41/file"
    immutable.write_text("x")
    subprocess.run(["chattr", "+i", immutable], check=True)
    for name in ("41", "42"):
        put(deploy, name)
    with opened(deploy) as (trash,):
        try:
            empty(trash, pace=0)
            assert entries(trash) == ["41.1"]
            assert os.listdir(place(app) / "41.1") == ["file"]
            assert left(trash) == {"41.1": "file: Operation not permitted"}
        finally:
            subprocess.run(["chattr", "-i", place(app) / "41.1/file"], check=True)
        empty(trash, pace=0)
        assert entries(trash) == []
        assert left(trash) == {}


def test_deeper_than_paths_can_be(trash: int, app: Path) -> None:
    """With few descriptors, and in little memory."""
    directory = os.open(place(app) / "41.1", os.O_RDONLY)
    for _ in range(400):
        os.mkdir("a-rather-long-name", dir_fd=directory)
        below = os.open("a-rather-long-name", os.O_RDONLY, dir_fd=directory)
        os.close(directory)
        directory = below
    os.close(directory)
    program = (
        "import os, resource, sys; from relfs.releases.deleter import empty\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (100, 100))\n"
        "empty(os.open(sys.argv[1], os.O_RDONLY), pace=0)"
    )
    subprocess.run([sys.executable, "-c", program, str(place(app))], env=environment(), check=True)
    assert entries(trash) == []


def test_a_wide_directory(trash: int, app: Path) -> None:
    for number in range(1500):
        (place(app) / f"41.1/{number}").touch()
    empty(trash, pace=0)
    assert os.listdir(place(app)) == []


def test_what_is_used_is_left_until_it_is_not(trash: int, app: Path) -> None:
    """Somebody has come in after it was looked, and before it was moved."""
    program = "import os, sys; os.chdir(sys.argv[1]); print('ready', flush=True); input()"
    user = start_python(program, str(place(app) / "41.1"))
    assert user.stdout is not None
    assert user.stdout.readline() == "ready\n"
    empty(trash, pace=0)
    assert f"in use by process {user.pid}" in left(trash)["41.1"]
    empty(trash, but=[user.pid], pace=0)
    end(user)
    assert entries(trash) == []


def test_one_at_a_time(trash: int, app: Path) -> None:
    other = os.open(place(app), os.O_RDONLY)
    fcntl.flock(other, fcntl.LOCK_EX)
    empty(trash, pace=0)
    assert entries(trash) == ["41.1"], "somebody else does it"
    os.close(other)
    empty(trash, pace=0)
    assert entries(trash) == []


def test_what_comes_in_meanwhile(deploy: DeployPath, app: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not overlooked, at whichever moment it comes."""
    put(deploy, "41")
    came: list[str] = []

    def note_left(trash: int, told: dict[str, str]) -> None:  # the last thing that a run does
        if not came:
            put(deploy, "42")
            came.append("42")
        trash_module.note_left(trash, told)

    monkeypatch.setattr("relfs.releases.deleter.note_left", note_left)
    with opened(deploy) as (trash,):
        empty(trash, pace=0)
        assert came
        assert entries(trash) == []
    assert not list(app.glob("releases/4[12]"))


_HALTING = """
import os, sys
from relfs.releases import deleter
def rest(run):
    global rests
    rests += 1
    if rests == 50:
        print('ready', flush=True)
        sys.stdin.read()
rests = 0
deleter._Run._rest = rest
deleter.empty(os.open(sys.argv[1], os.O_RDONLY))
"""


def test_killed_and_begun_again(deploy: DeployPath, app: Path) -> None:
    """Whoever comes next goes on, and is the only one."""
    for number in range(100):
        (app / f"releases/41/{number}").touch()
    put(deploy, "41")
    first = start_python(_HALTING, str(place(app)))
    assert first.stdout is not None
    assert first.stdout.readline() == "ready\n"
    assert start_deleting(deploy)
    assert os.listdir(place(app)) == ["41.1"], "the first one is at it"
    end(first)
    assert 0 < len(os.listdir(place(app) / "41.1")) < 100
    assert wait_until_deleted(deploy) == {"41.1"}
    assert start_deleting(deploy)
    assert not wait_until_deleted(deploy)
    assert os.listdir(place(app)) == []
    assert not start_deleting(deploy), "there is nothing to do"


def test_it_comes_last() -> None:
    program = "from relfs.releases.deleter import _come_last; _come_last(); print('ready', flush=True); input()"
    process = start_python(program)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    said = subprocess.run(["ionice", "-p", str(process.pid)], capture_output=True, text=True, check=True).stdout
    assert said.strip() == "idle"
    assert os.getpriority(os.PRIO_PROCESS, process.pid) == 19
    end(process)


# ---- walking


def test_a_walk_sees_all_once(app: Path, tmp_path: Path) -> None:
    (app / "releases/41/a/b").mkdir(parents=True)
    (app / "releases/41/a/link").symlink_to(tmp_path)
    top = os.open(app / "releases/41", os.O_RDONLY)
    errors: list[str] = []
    found = sorted(path for path, _ in walk(top, lambda path, _: errors.append(path)))
    os.close(top)
    assert found == ["a", "a/b", "a/link", "index.html"]
    assert errors == []


def test_hard_links_take_space_once(deploy: DeployPath, app: Path) -> None:
    (app / "releases/41/big").write_bytes(b"x" * 100_000)
    os.link(app / "releases/41/big", app / "releases/42/big")
    space = Space(deploy)
    first, second = space.of("42"), space.of("41")
    assert first - second >= 100_000
    assert Space(deploy).of("41") == first
    assert Space(deploy).of("39") == 0
