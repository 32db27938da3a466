"""Disks to break: small ones that can be filled, and one whose calls fail or never end while it is told so.

Each is mounted on a directory of the test's own, and taken away at the end, with whatever is mounted on it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mounting import detach_all, environment, wait_for

from relfs.mountinfo import mount_at

_THINNEST = Path(__file__).resolve().parent.parent / "contrib/bench"


@contextmanager
def small_disk(place: Path, *options: str) -> Iterator[Path]:
    """A tmpfs with such mount options as size=1m or nr_inodes=64."""
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", ",".join(("mode=755", *options)), "relfs-test", place], check=True)
    try:
        yield place
    finally:
        detach_all(place)


def fill(directory: Path) -> Path:
    """Write a file until no more fits; removing it makes room again."""
    file = directory / "filler"
    with open(file, "wb", buffering=0) as filler, contextlib.suppress(OSError):
        while filler.write(bytes(4096)) == 4096:
            pass
    return file


def use_up_inodes(directory: Path) -> Path:
    """Make empty files until there can be no more; removing the directory makes room again."""
    fillers = directory / "fillers"
    fillers.mkdir()
    with contextlib.suppress(OSError):
        for number in range(1 << 20):
            os.mknod(fillers / str(number))
    return fillers


def remount(place: Path, how: str) -> None:
    """`how` is ro or rw."""
    subprocess.run(["mount", "-o", f"remount,{how}", place], check=True)


class BrokenDisk:
    """A FUSE file system over `place` that behaves as its `mood` file says: see moody.py."""

    def __init__(self, place: Path, mood: Path) -> None:
        self.place = place
        self._mood = mood

    def fails(self, number: int) -> None:
        """Whatever would change something gets this errno from now on."""
        self._set(errno.errorcode[number])

    def hangs(self) -> None:
        """Nothing that reaches it is answered from now on."""
        self._set("hang")

    def works(self) -> None:
        """What was waiting goes on."""
        self._set("")

    def _set(self, mood: str) -> None:
        new = self._mood.with_suffix(".new")
        new.write_text(mood)
        new.rename(self._mood)


@contextmanager
def broken_disk(place: Path, mood: Path) -> Iterator[BrokenDisk]:
    """The directory `place` on a disk that can be broken. `mood` is the name of a file elsewhere."""
    disk = BrokenDisk(place, mood)
    disk.works()
    command = [sys.executable, str(Path(__file__).with_name("moody.py")), str(place), str(mood)]
    process = subprocess.Popen(command, env=environment(PYTHONPATH=str(_THINNEST)), stdin=subprocess.DEVNULL, cwd="/")
    try:
        wait_for(lambda: mount_at(str(place)) is not None or process.poll() is not None, "the disk is there")
        assert process.poll() is None
        yield disk
    finally:
        disk.works()
        detach_all(place)
        process.kill()
        process.wait()
