"""Everything of relfs is dead at once, or cannot be kept alive: then the real symlink serves, and relfs starts again.

The site is contrib/soak's: its relfs runs in the background, as users have it.
"""

from __future__ import annotations

import errno
import os
import resource
import shutil
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from crew import expect_deaths, whole
from mounting import Mounts, relfs_command, relfsctl, wait_for
from soak.killall import kill_all
from soak.site import FIRST, Site, new_site

import relfs
from relfs.errors import EXIT_FAILED
from relfs.mountinfo import mount_at
from relfs.mountinfo import mounts as all_mounts
from relfs.mounts import detach

_PACKAGE = Path(relfs.__file__).resolve().parent


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with new_site(tmp_path, {}) as made:
        yield made


def _mounted(site: Site) -> int:
    return sum(1 for mount in all_mounts() if f"{mount.target}/".startswith(f"{site.app}/"))


def _is_broken(mountpoint: Path) -> bool:
    try:
        os.listdir(mountpoint)
    except OSError as error:
        return error.errno == errno.ENOTCONN
    return False


def test_all_die_at_once_and_the_real_link_serves(tmp_path: Path) -> None:
    """How long it takes until it does is for contrib/soak to tell."""
    deaths = kill_all(3, tmp_path, {}, lambda _line: None)
    assert deaths.rounds == 3
    broken = [verdict for verdict in deaths.verdicts if not verdict.kept and "second" not in verdict.promise]
    assert not broken


def test_starting_over_a_mount_that_is_broken(site: Site) -> None:
    """The guards, who would have detached it, are dead, too."""
    site.mount()
    before = _mounted(site)
    everybody = (*site.guards(), *site.processes())
    for number in (signal.SIGSTOP, signal.SIGKILL):  # before anybody can start somebody
        for pid in everybody:
            with suppress(ProcessLookupError):  # the probe ends with its supervisor
                os.kill(pid, number)
    wait_for(lambda: _is_broken(site.app), "the mount is broken")
    site.mount()
    assert site.page.read_text().strip() == FIRST
    assert _mounted(site) == before
    site.ctl("switch", "2")
    site.unmount()
    assert _mounted(site) == 0
    assert site.page.read_text().strip() == "2"


def test_giving_up_uncovers_the_real_link_and_says_so(app: Path, tmp_path: Path, mounts: Mounts) -> None:
    """An upgrade has left a relfs that cannot start, and so nobody can take the place of who dies. Rather than a mount
    that does not answer, there is none: said by the log, by the exit status, and by `relfsctl status`."""
    copy = tmp_path / "copy"
    shutil.copytree(_PACKAGE, copy / "relfs")
    mount = mounts.start(app, command=lambda *words: ["env", f"PYTHONPATH={copy}", *relfs_command(*words)])
    assert mount.relfsctl("switch", "41").returncode == 0
    pids = whole(mount)
    (copy / "relfs/daemon/start.py").write_text("raise SystemExit(1)\n")
    expect_deaths(mount)
    mount.expect_log(" CRITICAL .* workers in a row have ended")
    for pid in (pids.standby, pids.worker):
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
    assert mount.process.wait(60) == EXIT_FAILED
    assert mount_at(str(app)) is None
    assert (app / "current/index.html").read_text() == "41"
    assert "workers in a row have ended" in mount.log.read_text()
    assert "workers in a row have ended" in relfsctl(app, "status").stdout
    again = mounts.start(app)
    assert "workers in a row have ended" not in again.relfsctl("status").stdout


_DIES_WHEN_IT_HAS_DETACHED = """
import os
from relfs import mounts
detach = mounts.detach_only
def detach_only(mount):
    detach(mount)
    if os.path.exists({mark!r}):
        with open({mark!r}) as file:
            supervisor = int(file.read())
        os.unlink({mark!r})
        for pid in (supervisor, os.getpid()):
            os.kill(pid, 9)
mounts.detach_only = detach_only
"""
"""And the supervisor with it, whose pid is in the file `mark`."""


def test_a_mount_that_is_gone_is_no_failure_of_who_takes_over(app: Path, mounts: Mounts, tmp_path: Path) -> None:
    """Nobody is left who knows that it was to go."""
    mark = tmp_path / "mark"
    mount = mounts.start(app, patch=_DIES_WHEN_IT_HAS_DETACHED.format(mark=str(mark)))
    pids = whole(mount)
    expect_deaths(mount)
    (tmp_path / "written").write_text(str(pids.supervisor))
    (tmp_path / "written").rename(mark)
    relfsctl(app, "unmount")
    assert mount.process.wait(60) == -signal.SIGKILL
    wait_for(lambda: not os.path.exists(f"/proc/{pids.standby}"), "the last of them has ended")
    assert " ERROR " not in mount.log.read_text()
    assert mount_at(str(app)) is None
    assert (app / "current/index.html").read_text() == "40"


_LOSES_THE_CONNECTION = """
import errno, os
import pyfuse3, trio
whole = pyfuse3.main
async def main():
    async with trio.open_nursery() as nursery:
        nursery.start_soon(whole)
        while not os.path.exists({mark!r}):
            await trio.sleep(0.05)
        raise OSError(errno.ECONNABORTED, os.strerror(errno.ECONNABORTED))
pyfuse3.main = main
"""
"""As pyfuse3 does, if somebody aborts the connection (/sys/fs/fuse) while a request is being read."""


def test_a_connection_that_was_lost_is_an_end_that_is_said(app: Path, mounts: Mounts, tmp_path: Path) -> None:
    """And no death: nobody else could go on with it."""
    mark = tmp_path / "mark"
    mount = mounts.start(app, patch=_LOSES_THE_CONNECTION.format(mark=str(mark)))
    mount.expect_log(r" ERROR .* the connection to the kernel was lost: Software caused connection abort$")
    mark.touch()
    assert mount.process.wait(60) == EXIT_FAILED
    assert mount_at(str(app)) is None
    assert (app / "current/index.html").read_text() == "40"


def test_a_connection_that_is_lost_with_the_mount_is_an_end_like_any_other(
    app: Path, mounts: Mounts, tmp_path: Path
) -> None:
    """It is unmounted while a request is being read, and the kernel says the same."""
    mark = tmp_path / "mark"
    mount = mounts.start(app, patch=_LOSES_THE_CONNECTION.format(mark=str(mark)))
    inside = os.open(app, os.O_RDONLY)
    try:
        detach(str(app))
        mark.touch()
        assert mount.process.wait(60) == 0
    finally:
        os.close(inside)


def test_a_supervisor_that_can_start_nobody_gives_up_only_if_nobody_serves(app: Path, mounts: Mounts) -> None:
    """It has no descriptor left. As long as there is a worker, there is no hurry."""
    mount = mounts.start(app)
    pids = whole(mount)
    assert pids.standby is not None
    assert pids.worker is not None
    expect_deaths(mount)
    mount.expect_log(" ERROR .* can be started: Too many open files")
    mount.expect_log(" CRITICAL .* workers in a row have ended")
    _, hard = resource.prlimit(mount.process.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(mount.process.pid, resource.RLIMIT_NOFILE, (_held(mount.process.pid), hard))
    os.kill(pids.standby, signal.SIGKILL)
    wait_for(lambda: mount.log.read_text().count("can be started") > 2, "it tries again and again")
    assert mount.relfsctl("switch", "41").returncode == 0
    os.kill(pids.worker, signal.SIGKILL)
    assert mount.process.wait(60) == EXIT_FAILED
    assert mount_at(str(app)) is None
    assert (app / "current/index.html").read_text() == "41"


def _held(pid: int) -> int:
    """A limit that leaves the process no descriptor but those that it will have closed."""
    return min(set(range(1 << 16)) - set(map(int, os.listdir(f"/proc/{pid}/fd"))))
