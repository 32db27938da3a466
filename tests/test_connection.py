"""A connection is made whole or not at all. And the second guard of a mount takes away what it was started for, and
nothing that looks like it.

That the guards uncover the real link, however relfs ended, is in test_mount.py and test_survival_end.py.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from mounting import Mount, wait_for
from opened import opened_by

from relfs.errors import RelfsError
from relfs.fuse import connection
from relfs.mountinfo import mount_at
from relfs.processes import descendants, name_of


@pytest.mark.parametrize("part", ["_read_init", "_start_second_guard"])
def test_what_cannot_be_mounted_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str) -> None:
    def fail(*_: object) -> None:
        raise RelfsError("no")

    monkeypatch.setattr(connection, part, fail)
    before = os.listdir("/proc/self/fd")
    with pytest.raises(RelfsError):
        connection.connect(str(tmp_path), ["fsname=relfs-test", "subtype=relfs-test", "auto_unmount"])
    assert os.listdir("/proc/self/fd") == before
    assert mount_at(str(tmp_path)) is None


@dataclass
class Guarded:
    """A guard of its own beside the mount's, whose fusermount3 only writes down what it is asked for."""

    said: Path
    connections: Path
    process: subprocess.Popen[bytes]
    watch: int
    first: tuple[int, int]

    def end_first(self) -> None:
        """As the first guard does."""
        os.close(self.first[1])

    def wake(self) -> None:
        """As the last process of relfs does that ends."""
        os.close(self.watch)

    def has_done(self) -> str:
        self.process.wait()
        return self.said.read_text() if self.said.exists() else ""


def _start(tmp_path: Path, mountpoint: Path) -> Guarded:
    helper, said = tmp_path / "fusermount3", tmp_path / "said"
    helper.write_text(f'#!/bin/sh\necho "$@" >>{said}\n')
    helper.chmod(0o755)
    first = os.pipe()
    process, watch = connection._start_second_guard(str(helper), str(mountpoint), (), first[0], ())
    return Guarded(said, tmp_path / "connections", process, watch, first)


@pytest.fixture
def number(mount: Mount) -> str:
    """The kernel's of the mount's connection."""
    found = mount_at(str(mount.app))
    assert found is not None
    return found.device.removeprefix("0:")


@pytest.fixture
def guarded(mount: Mount, number: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Guarded]:
    """Of `mount`, with a directory in the place of the kernel's."""
    monkeypatch.setattr(connection, "_CONNECTIONS", str(tmp_path / "connections"))
    _make(tmp_path / "connections" / number)
    made = _start(tmp_path, mount.app)
    wait_for(lambda: os.readlink(f"/proc/{made.process.pid}/cwd") != "/", "it is where the connection is")
    yield made
    made.process.kill()
    made.process.wait()
    os.close(made.first[0])


def _make(place: Path) -> Path:
    place.mkdir(parents=True)
    (place / "abort").touch()
    return place / "abort"


def test_it_ends_the_connection_and_detaches_the_mount(mount: Mount, number: str, guarded: Guarded) -> None:
    guarded.end_first()
    guarded.wake()
    assert guarded.has_done() == f"-u -z -- {mount.app}\n"
    assert (guarded.connections / number / "abort").read_text() == "1\n"


def test_it_waits_for_the_first(guarded: Guarded) -> None:
    """Both go by the path: who comes second would detach what was below the mount."""
    pipe = os.readlink(f"/proc/self/fd/{guarded.first[0]}")
    guarded.wake()
    wait_for(lambda: _reads(guarded.process.pid) == pipe, "it waits")
    assert not guarded.said.exists()
    guarded.end_first()
    assert guarded.has_done() != ""


def _reads(pid: int) -> str | None:
    """What a shell has for standard input; None while it puts one thing in the place of another: it closes that
    first."""
    with suppress(FileNotFoundError):
        return os.readlink(f"/proc/{pid}/fd/0")
    return None


def test_a_connection_of_the_same_number_is_another(number: str, guarded: Guarded) -> None:
    shutil.rmtree(guarded.connections / number)
    other = _make(guarded.connections / number)
    guarded.end_first()
    guarded.wake()
    guarded.has_done()
    assert other.read_text() == ""


def test_a_mount_of_the_same_numbers_is_another(mount: Mount, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ours is gone, and what was mounted next, elsewhere, has its id and its device."""
    other = mount_at(str(mount.app))
    assert other is not None
    monkeypatch.setattr(connection, "mount_at", lambda path: replace(other, target=path))
    guarded = _start(tmp_path, tmp_path / "gone")
    guarded.end_first()
    guarded.wake()
    assert guarded.has_done() == ""
    os.close(guarded.first[0])


def test_nobody_mounts_there_before_it_has_ended(mount: Mount) -> None:
    """It holds the lock that the next relfs has to take: a mount at the same place may have the same numbers, too."""
    shells = [each.pid for each in descendants(mount.process.pid) if name_of(each.pid) == "sh"]
    lock = f"{mount.app}/.relfs/daemon.lock"
    assert [opened_by(pid).count(lock) for pid in shells] == [1]


@pytest.mark.parametrize("name", ["plain", "with space", "back\\slash", "tab\tnew\nline", "\u00e9"])
def test_a_mount_is_told_as_mountinfo_tells_it(tmp_path: Path, name: str) -> None:
    place = tmp_path / name
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "none", place], check=True)
    try:
        found = mount_at(str(place))
        assert found is not None
        told = [line.split() for line in Path("/proc/self/mountinfo").read_bytes().splitlines()]
        assert os.fsencode(connection._as_told(found)).split() in [[line[0], line[2], line[4]] for line in told]
    finally:
        subprocess.run(["umount", place], check=True)
