"""A disk that does not answer: mounted below the deploy path, as a stopped sshfs is. Whoever uses it waits, and nobody
else; once it answers again, so does everything, in the same process.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from clients import SECONDS, ctl
from disks import BrokenDisk, broken_disk, small_disk
from mounting import Mounts, detach_all, environment, held, wait_for
from readers import reading

PLACES = ["storage", "web/uploads", "shared/storage", "shared"]
"""At the top level, below a directory that relfs serves, below a native one, and that itself."""

SERVED = ["native", "passthrough"]
"""Whether what is mounted below is attached, or served by relfs itself (fuse/abroad.py)."""


@pytest.fixture(params=PLACES)
def place(app: Path, request: pytest.FixtureRequest) -> Path:
    made: Path = app / request.param
    made.mkdir(parents=True)
    (made / "file").write_text("on the other disk")
    return made


@pytest.fixture(params=SERVED)
def options(request: pytest.FixtureRequest) -> list[str]:
    return ["--no-bind"] if request.param == "passthrough" else []


@contextmanager
def someone_who_waits(file: Path, user: int | None = None) -> Iterator[subprocess.Popen[str]]:
    """A process (of `user`) that reads `file`, prints it, and ends."""
    command = [sys.executable, "-c", "import sys; print(open(sys.argv[1]).read())", str(file)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment(), user=user, group=user)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def test_a_disk_that_does_not_answer(
    app: Path, place: Path, options: list[str], tmp_path: Path, mounts: Mounts
) -> None:
    with broken_disk(place, tmp_path / "mood") as disk:
        mount = mounts.start(app, *options)
        pid = mount.status()["worker_pid"]
        assert (place / "file").read_text() == "on the other disk"
        with reading(app / "current/index.html", "40", "41", "42") as readers:
            disk.hangs()
            with someone_who_waits(place / "file") as waiting:
                wait_for(lambda: waits(waiting), "it waits for the disk")
                _assert_the_rest_goes_on(app)
                assert mount.status()["health"] == []
                assert waiting.poll() is None, "it did not wait"
                disk.works()
                assert waiting.communicate(timeout=SECONDS)[0] == "on the other disk\n"
            seen = readers.stop()
        assert (seen.failed, seen.neither) == ({}, 0)
        assert (place / "file").read_text() == "on the other disk"
        assert mount.status()["worker_pid"] == pid
        mount.terminate()
        assert (place / "file").read_text() == "on the other disk", "what was mounted there before, still is"


def waits(process: subprocess.Popen[str]) -> bool:
    """Whether it is inside of open(2), stat(2) or read(2) of FUSE."""
    return "request_wait_answer" in Path(f"/proc/{process.pid}/stack").read_text()


def _assert_the_rest_goes_on(app: Path) -> None:
    """Switches by relfsctl and by a tool, and what relfs serves itself, beside the disk and above it."""
    assert ctl("-C", app, "switch", "41").status == 0
    (app / "next").symlink_to("releases/42")
    os.rename(app / "next", app / "current")
    (app / "upload").write_text("at the top level")
    (app / "web").mkdir(exist_ok=True)
    (app / "web/page").write_text("beside it")
    assert {"upload", "web", "releases"} <= set(os.listdir(app))
    assert (app / "web/page").read_text() == "beside it"


def test_started_while_a_disk_does_not_answer(
    app: Path, place: Path, options: list[str], tmp_path: Path, mounts: Mounts
) -> None:
    with broken_disk(place, tmp_path / "mood") as disk:
        disk.hangs()
        mount = mounts.start(app, *options)
        _assert_the_rest_goes_on(app)
        disk.works()
        assert (place / "file").read_text() == "on the other disk"
        mount.terminate()


def test_what_is_mounted_below_is_as_it_was(app: Path, place: Path, options: list[str], mounts: Mounts) -> None:
    """The other disk, a disk on that, and a single file that something is mounted on."""
    (app / "settings").write_text("covered")
    (app / "real-settings").write_text("mounted")
    with small_disk_at(place) as disk:
        (disk / "inner").mkdir()
        (disk / "file").write_text("outer")
        subprocess.run(["mount", "--bind", app / "real-settings", app / "settings"], check=True)
        try:
            with small_disk_at(disk / "inner") as inner:
                (inner / "file").write_text("inner")
                mount = mounts.start(app, *options)
                assert (disk / "file").read_text() == "outer"
                assert (inner / "file").read_text() == "inner"
                assert (app / "settings").read_text() == "mounted"
                (disk / "new").write_text("written through the mount")
                with pytest.raises(OSError, match="busy"):
                    disk.rename(disk.with_name("elsewhere"))
                assert set(os.listdir(disk.parent)) >= {disk.name}
                mount.terminate()
                assert (disk / "new").read_text() == "written through the mount"
                assert (inner / "file").read_text() == "inner"
        finally:
            detach_all(app / "settings")


@contextmanager
def small_disk_at(place: Path) -> Iterator[Path]:
    for each in place.iterdir():
        each.unlink()
    place.rmdir()
    with small_disk(place, "size=1m") as disk:
        yield disk


def test_new_code_asks_the_disk_nothing_either(app: Path, tmp_path: Path, mounts: Mounts) -> None:
    place = app / "storage"
    place.mkdir()
    (place / "file").write_text("on the other disk")
    with broken_disk(place, tmp_path / "mood") as disk:
        mount = mounts.start(app)
        disk.hangs()
        done = ctl("-C", app, "reload")
        assert done.status == 0, done
        _assert_the_rest_goes_on(app)
        disk.works()
        assert (place / "file").read_text() == "on the other disk"
        mount.terminate()


def test_a_disk_that_is_unmounted_and_mounted_again(app: Path, tmp_path: Path, mounts: Mounts) -> None:
    """As an administrator would, to get rid of one that does not answer."""
    place = app / "storage"
    place.mkdir()
    with broken_disk(place, tmp_path / "mood") as disk:
        mount = mounts.start(app)
        _replace(disk)
        assert (place / "file").read_text() == "of the new disk"
        assert ctl("-C", app, "switch", "41").status == 0
        mount.terminate()


def _replace(disk: BrokenDisk) -> None:
    disk.hangs()
    subprocess.run(["umount", "-l", disk.place], check=True)
    subprocess.run(["mount", "-t", "tmpfs", "none", disk.place], check=True)
    (disk.place / "file").write_text("of the new disk")


def test_the_deploy_path_itself_does_not_answer(app: Path, tmp_path: Path, mounts: Mounts) -> None:
    """Everything needs that disk, but the link itself, which the kernel knows. For as long as it takes, the worker is
    not blamed for it: the same one goes on."""
    with broken_disk(app, tmp_path / "mood") as disk:
        mount = mounts.start(app)
        mount.expect_log("the disk does not answer; whoever needs it has to wait")
        pid = mount.status()["worker_pid"]
        with held(app / "current"):
            assert os.readlink(app / "current") == "releases/40"
            disk.hangs()
            with someone_who_waits(app / "upload") as waiting:
                wait_for(lambda: waits(waiting), "it waits for the disk")
                wait_for(lambda: "the disk does not answer" in mount.log.read_text(), "that is noticed")
                assert os.readlink(app / "current") == "releases/40"
                disk.works()
                wait_for(lambda: "the disk answers again" in mount.log.read_text(), "that is noticed, too")
        assert ctl("-C", app, "switch", "41").status == 0
        assert mount.status()["worker_pid"] == pid
        mount.terminate()
