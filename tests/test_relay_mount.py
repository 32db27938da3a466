"""Real mounts whose requests relfs relays, as where the kernel cannot send them again: workers that die at the moments
that matter, and what somebody who uses such a mount gets to see of it, which is nothing.
"""

from __future__ import annotations

import errno
import os
import signal
import threading
from pathlib import Path

import pytest
from mounting import Mount, Mounts, relfsctl, wait_for
from readers import reading
from sandbox import be_patient
from test_survival import (  # noqa: F401 (promised of every mount, so shown again here, where `_relayed` is)
    test_a_switch_under_way_is_done_once,
    test_open_files_go_on,
)
from test_survival_once import (  # noqa: F401
    covered,
    test_a_change_that_is_not_answered_is_not_done_twice,
    test_a_tools_swap_that_is_not_answered_is_not_done_twice,
    test_what_was_answered_is_done_again_if_somebody_asks_again,
)

from relfs.fuse.resend import REFUSE

_MOMENTS = {
    "read, and nothing done": "readv",
    "answered, and the kernel not told": "before write",
    "answered, and the kernel told": "after write",
}

_DIE = """
import os, signal, struct

_readv, _write = os.readv, os.write
_due = {{}}

def _die(opcode, moment):
    '''Once for each kind of request, if this is the moment.'''
    if moment == {moment!r}:
        try:
            os.unlink(f"{marks}/{{opcode}}")
        except FileNotFoundError:
            return
        os.kill(os.getpid(), signal.SIGKILL)

def readv(fd, buffers):
    length = _readv(fd, buffers)
    _, opcode, unique = struct.unpack_from("=IIQ", buffers[0])
    _due[unique] = opcode
    _die(opcode, "readv")
    return length

def write(fd, data):
    opcode = _due.get(struct.unpack_from("=8xQ", data)[0]) if len(data) >= 16 else None
    _die(opcode, "before write")
    length = _write(fd, data)
    _die(opcode, "after write")
    return length

os.readv, os.write = readv, write
"""
"""Runs in each worker: a real one has no such moment, and dies at it all the same."""

MKDIR, UNLINK, RENAME, WRITE, CREATE = 9, 10, 12, 16, 35

_POISON = """
import os, signal

_getxattr = os.getxattr

def getxattr(path, name, **how):
    if os.fsencode(name) == b"user.poison":
        os.kill(os.getpid(), signal.SIGKILL)
    return _getxattr(path, name, **how)

os.getxattr = getxattr
"""


@pytest.fixture
def app(app: Path) -> Path:
    """What is begun here goes on after somebody has died, however long that takes."""
    return be_patient(app)


@pytest.fixture(autouse=True)
def _relayed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of all mounts here."""
    monkeypatch.setenv(REFUSE, "1")


def _expect_deaths(mount: Mount) -> None:
    mount.expect_log(r" WARNING relfs\.daemon\.")


def test_status_and_doctor_say_so(mount: Mount) -> None:
    assert mount.status()["host"]["survival"] == "relay"
    assert "relfs keeps them itself" in mount.relfsctl("status").stdout
    doctor = mount.relfsctl("doctor")
    assert doctor.returncode == 0
    assert f"${REFUSE} is set" in doctor.stdout


def test_a_mount_that_is_not_relayed_says_so(app: Path, mounts: Mounts, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the kernel offers to send requests again, it may be taken at its word, whatever its version."""
    monkeypatch.delenv(REFUSE)
    monkeypatch.setenv("RELFS_RESEND", "1")
    host = mounts.start(app).status()["host"]
    assert host["survival"] == ("resend" if host["resend"] else "relay")
    said = "the kernel sends them again" if host["resend"] else "FUSE_HAS_RESEND"
    assert said in relfsctl(app, "doctor").stdout


@pytest.mark.parametrize("moment", _MOMENTS)
def test_what_a_dying_worker_had_is_done_once(app: Path, mounts: Mounts, tmp_path: Path, moment: str) -> None:
    """A worker dies of each of these requests; the next goes on with it."""
    marks = tmp_path / "marks"
    marks.mkdir()
    mount = mounts.start(app, patch=_DIE.format(moment=_MOMENTS[moment], marks=marks))
    _expect_deaths(mount)
    file = app / "file"
    file.write_text("1")
    for opcode in (MKDIR, UNLINK, RENAME, WRITE, CREATE):
        (marks / str(opcode)).touch()
    with open(file, "a") as appended:
        appended.write("2")
    file.rename(app / "renamed")
    os.close(os.open(file, os.O_CREAT | os.O_EXCL))
    (app / "directory").mkdir()
    file.unlink()
    wait_for(lambda: not list(marks.iterdir()), "a worker died at each")
    assert (app / "renamed").read_text() == "12"
    assert (app / "directory").is_dir()
    assert not os.path.lexists(file)


def test_a_request_that_kills_is_refused_and_the_mount_goes_on(app: Path, mounts: Mounts) -> None:
    mount = mounts.start(app, patch=_POISON)
    _expect_deaths(mount)
    mount.expect_log(r" ERROR relfs\.fuse\.relay: request 22 .* refused")
    (app / "file").write_text("content")
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        os.getxattr(app / "file", "user.poison")
    assert (app / "file").read_text() == "content"
    assert relfsctl(app, "switch", "41").returncode == 0
    assert (app / "current/index.html").read_text() == "41"


def test_no_reader_notices_that_workers_die(app: Path, mount: Mount) -> None:
    """Each resolution asks the worker, since this process has removed the link, and large files are read meanwhile."""
    _expect_deaths(mount)
    content = os.urandom(3 << 20)
    (app / "large").write_bytes(content)
    read: list[bytes] = []
    ended = threading.Event()

    def read_large() -> None:
        while not ended.is_set():
            fd = os.open(app / "large", os.O_RDONLY | os.O_DIRECT)
            with os.fdopen(fd, "rb", buffering=1 << 20) as file:
                read.append(file.read())

    threads = [threading.Thread(target=read_large) for _ in range(3)]
    try:
        with reading(app / "current/index.html", "40", "41", session=True) as readers:
            os.unlink(app / "current")
            for each in threads:
                each.start()
            for _ in range(3):
                before = mount.worker_pid
                os.kill(before, signal.SIGKILL)
                wait_for(lambda before=before: mount.worker_pid != before, "another worker serves")
            seen = readers.stop()
    finally:
        ended.set()
        for each in threads:
            each.join()
    os.symlink("releases/41", app / "current")
    assert (seen.failed, seen.neither) == ({}, 0)
    assert seen.contents == {"40"}
    assert read and all(each == content for each in read)
    assert (app / "current/index.html").read_text() == "41"


def test_unmounting_ends_all_of_it(mount: Mount) -> None:
    assert mount.terminate() == 0
    assert os.readlink(mount.app / "current") == "releases/40"
