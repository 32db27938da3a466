"""More files open than select(2) can tell of, 1024: whoever dies, those that hold them go on."""

from __future__ import annotations

import errno
import itertools
import os
import resource
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from crew import expect_deaths, kill, whole
from mounting import Mount, Mounts, relfs_command, wait_for

_FILES = 1100


def _as_is_usual(*arguments: str | Path) -> list[str]:
    """The soft limit is for those who use select(2); who does not, raises it to the hard one (systemd.exec(5))."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return ["prlimit", f"--nofile=1024:{hard}", *relfs_command(*arguments)]


@pytest.fixture
def mount(app: Path, mounts: Mounts) -> Mount:
    """Everything is served by relfs."""
    return mounts.start(app, "--no-bind", command=_as_is_usual)


@pytest.fixture
def files(mount: Mount) -> Iterator[list[int]]:
    """Open files, each with its number in it, and without a name."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    opened = []
    for number in range(_FILES):
        opened.append(os.open(mount.mountpoint / "file", os.O_RDWR | os.O_CREAT | os.O_EXCL))
        os.write(opened[-1], str(number).encode())
        os.unlink(mount.mountpoint / "file")
    yield opened
    for fd in opened:
        os.close(fd)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_files_stay_open_when_the_supervisor_and_then_the_worker_die(mount: Mount, files: list[int]) -> None:
    mount.expect_log("the supervisor has died")
    mount.expect_log("the worker .* has ended")
    before = mount.status()
    os.kill(before["supervisor_pid"], signal.SIGKILL)
    wait_for(lambda: mount.status()["supervisor_pid"] not in (before["supervisor_pid"], None), "there is a supervisor")
    assert mount.status()["standby_pid"] == before["standby_pid"]
    os.kill(before["worker_pid"], signal.SIGKILL)
    for number, fd in enumerate(files):
        assert os.pread(fd, 9, 0) == str(number).encode()
    assert mount.status()["worker_pid"] != before["worker_pid"]


def _with_few(*arguments: str | Path) -> list[str]:
    return ["setpriv", "--bounding-set=-sys_resource", "prlimit", "--nofile=1400:1400", *relfs_command(*arguments)]


def test_who_has_as_many_open_as_may_be_can_hand_them_on(app: Path, mounts: Mounts) -> None:
    """The worker is left alone, and starts a supervisor; it has no descriptors for a copy of each."""
    mount = mounts.start(app, "--no-bind", command=_with_few)
    before = whole(mount)
    files = list(_opened(mount.mountpoint))
    expect_deaths(mount)
    for pid in (before.supervisor, before.standby):
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
    after = whole(mount, gone=(before.supervisor or 0, before.standby or 0))
    assert after.worker == before.worker
    kill(mount, "worker")
    for number, fd in enumerate(files):
        assert os.pread(fd, 9, 0) == str(number).encode()
        os.close(fd)


def _opened(directory: Path) -> Iterator[int]:
    """Files without a name, each with its number in it, until there may be no more."""
    for number in itertools.count():
        try:
            fd = os.open(directory / "file", os.O_RDWR | os.O_CREAT | os.O_EXCL)
        except OSError as error:
            assert error.errno == errno.EMFILE
            return
        os.write(fd, str(number).encode())
        os.unlink(directory / "file")
        yield fd
