"""Two faults at once: the worker dies while something else is wrong. The next one takes over all the same, and once
that is well again everything works.
"""

from __future__ import annotations

import errno
import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from clients import ctl
from crew import kill
from disks import broken_disk, small_disk
from mounting import Mount, Mounts, held, wait_for
from readers import reading
from sandbox import link_of, make_app
from test_faults_disk import DISKS, Break

BUSY = """
import os, time
if os.path.exists({mark!r}):
    time.sleep(3)
"""
"""A standby of a machine that is so busy, while there is the file `mark`, that beginning takes it seconds."""


def kill_worker(mount: Mount) -> None:
    """And wait until the next one answers."""
    mount.expect_log("the worker .* has ended")
    before = mount.status()["worker_pid"]
    os.kill(before, signal.SIGKILL)
    wait_for(lambda: worker_of(mount) not in (None, before), "the next worker answers")


def worker_of(mount: Mount) -> int | None:
    done = ctl("-C", mount.app, "--json", "status")
    pid: int | None = done.json["worker_pid"] if done.status == 0 else None
    return pid


@contextmanager
def unharmed(mount: Mount, *releases: str) -> Iterator[None]:
    """Readers see nothing of what happens meanwhile."""
    with reading(mount.app / "current/index.html", *releases) as readers:
        yield
        seen = readers.stop()
    assert (seen.failed, seen.neither) == ({}, 0)


@pytest.mark.parametrize(("option", "break_it", "words", "health"), DISKS)
def test_on_a_disk_that_takes_nothing(
    tmp_path: Path, mounts: Mounts, option: str, break_it: Break, words: str, health: str
) -> None:
    with small_disk(tmp_path / "disk", option) as disk:
        app = make_app(disk / "app")
        mount = mounts.start(app)
        mount.expect_log(f"the real link cannot be looked at: .*{words}")
        with unharmed(mount, "40"):
            mend = break_it(disk)
            try:
                kill_worker(mount)
                assert health in " ".join(mount.status()["health"])
                assert ctl("-C", app, "switch", "41").status == 1
            finally:
                mend()
        assert ctl("-C", app, "switch", "41").status == 0
        assert mount.status()["health"] == []
        mount.terminate()


def test_on_a_disk_that_fails(app: Path, tmp_path: Path, mounts: Mounts) -> None:
    with broken_disk(app, tmp_path / "mood") as disk:
        mount = mounts.start(app)
        with unharmed(mount, "40"):
            disk.fails(errno.EIO)
            kill_worker(mount)
            assert ctl("-C", app, "switch", "41").status == 1
            disk.works()
        assert ctl("-C", app, "switch", "41").status == 0
        mount.terminate()


def test_on_a_disk_that_does_not_answer(app: Path, tmp_path: Path, mounts: Mounts) -> None:
    """The next one has to wait for it, too, and is not blamed for that."""
    with broken_disk(app, tmp_path / "mood") as disk:
        mount = mounts.start(app)
        for words in ("the worker .* has ended", "the disk does not answer"):
            mount.expect_log(words)
        before = mount.status()["worker_pid"]
        with held(app / "current"):
            assert os.readlink(app / "current") == "releases/40"
            disk.hangs()
            os.kill(before, signal.SIGKILL)
            wait_for(lambda: "the disk does not answer" in mount.log.read_text(), "that is noticed")
            assert os.readlink(app / "current") == "releases/40"
            disk.works()
        wait_for(lambda: worker_of(mount) not in (None, before), "the next worker answers")
        assert mount.log.read_text().count("has ended") == 1
        assert ctl("-C", app, "switch", "41").status == 0
        mount.terminate()


def test_while_the_disk_below_does_not_answer(app: Path, tmp_path: Path, mounts: Mounts) -> None:
    """The other one, that is mounted below the deploy path: it stays attached."""
    place = app / "storage"
    place.mkdir()
    (place / "file").write_text("on the other disk")
    with broken_disk(place, tmp_path / "mood") as disk:
        mount = mounts.start(app)
        with unharmed(mount, "40", "41"):
            disk.hangs()
            kill_worker(mount)
            assert ctl("-C", app, "switch", "41").status == 0
            (app / "upload").write_text("at the top level")
            disk.works()
        assert (place / "file").read_text() == "on the other disk"
        mount.terminate()


def test_while_the_live_release_is_missing(mount: Mount) -> None:
    shutil.rmtree(mount.app / "releases/40")
    kill_worker(mount)
    assert os.readlink(mount.app / "current") == "releases/40"
    assert ctl("-C", mount.app, "switch", "41").status == 0
    assert (mount.app / "current/index.html").read_text() == "41"


def test_while_the_configuration_is_wrong(mount: Mount) -> None:
    """Somebody is editing it: what was read at the start goes on being in force."""
    (mount.app / ".relfs/config.toml").write_text("seal = perhaps")
    with unharmed(mount, "40", "41"):
        kill_worker(mount)
        (mount.app / ".relfs/config.toml").unlink()
        assert ctl("-C", mount.app, "switch", "41").status == 0
    assert link_of(mount.app) == "releases/41"


def test_while_the_machine_is_so_busy_that_beginning_takes_long(app: Path, tmp_path: Path, mounts: Mounts) -> None:
    """The standby died as well. The next one is given the time that it needs before it can fork."""
    mark = tmp_path / "busy"
    mount = mounts.start(app, patch=BUSY.format(mark=str(mark)))
    with unharmed(mount, "40"):
        mark.touch()
        kill(mount, "worker", "standby")
    assert mount.log.read_text().count("another one takes its place") == 2
    assert "it is ended" not in mount.log.read_text()
