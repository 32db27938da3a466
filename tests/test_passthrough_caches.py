"""What is cached: the kernel forgets and the daemon with it, and what others change behind the mount shows.

Two tests here make the whole machine forget what it cached (/proc/sys/vm/drop_caches).
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

from mounting import Mount, wait_for
from opened import opened_by
from served import Pair, Served, behind
from sidebyside import put

CHANGES = (
    "mv d gone && mkdir -p d/e && echo -n {} > d/e/file",
    "rm -r d && mkdir -p d/e && echo -n {} > d/e/file",
    "rm -r d && mkdir -p x/e && mv x d && echo -n {} > d/e/file",
    "echo -n {} > new && mv new d/e/file",
    "rm d/e/file && ln -s target d/e/file && echo -n {} > d/e/target",
    "rm -r d && mkdir -p other/e && ln -s other d && echo -n {} > other/e/file",
)


def _holds(mount: Mount, name: str) -> bool:
    """Whether the daemon holds a descriptor of a file called `name`."""
    return any(each.endswith(f"/{name}") for each in opened_by(mount.worker_pid))


def _resident(mount: Mount) -> int:
    """The daemon's memory in KiB."""
    for line in Path(f"/proc/{mount.worker_pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1])
    raise AssertionError("no VmRSS")


def _forget_until(condition: Callable[[], bool], what: str) -> None:
    """Make the kernel forget what names and inodes it can, until `condition` holds."""

    def forget() -> bool:
        Path("/proc/sys/vm/drop_caches").write_text("2\n")
        return condition()

    wait_for(forget, what, 300)  # which takes long where much is cached, by whomever


def test_inode_numbers_are_stable(pair: Pair) -> None:
    """Also after the kernel has forgotten: tools that remember inode numbers (git, rsync, tar) see the same file."""
    put(str(pair.served / "file"), b"x")
    os.rename(pair.served / "file", pair.served / "remembered")
    before = os.stat(pair.served / "remembered").st_ino
    assert _holds(pair.mount, "remembered")
    _forget_until(lambda: not _holds(pair.mount, "remembered"), "the kernel forgets")
    assert os.stat(pair.served / "remembered").st_ino == before


def test_the_daemon_forgets_what_the_kernel_forgets(served: Served) -> None:
    mount = served.bare
    base = mount.app / "releases/41/growth"
    _forget_until(lambda: not _holds(mount, "growth"), "the kernel has forgotten what other tests did")
    before = len(opened_by(mount.worker_pid))
    after_first = 0
    for turn in range(2):
        base.mkdir()
        for number in range(500):
            path = base / f"new{number}"
            os.mknod(path)
            os.stat(path)
            if number % 2:
                path.unlink()
        behind(served.place, mount.app, "cd releases/41/growth && seq 1 4750 | xargs touch")
        assert sum(os.stat(base / name).st_size for name in os.listdir(base)) == 0
        assert len(opened_by(mount.worker_pid)) > before + 4000, "each inode that the kernel knows is a descriptor"
        _forget_until(lambda: len(opened_by(mount.worker_pid)) <= before + 8, "the descriptors are given back")
        behind(served.place, mount.app, "rm -r releases/41/growth")
        wait_for(lambda: not base.exists(), "the mount notices")
        _forget_until(lambda: len(opened_by(mount.worker_pid)) <= before + 8, "the descriptors are given back")
        if turn == 0:
            after_first = _resident(mount)
    assert _resident(mount) < after_first + 2048, "5,000 forgotten inodes have left something in memory"


def _shows(base: Path, wanted: str, errors: set[int | None]) -> bool:
    """Whether the file is what it has been changed to; with what errno it could not be seen is kept in `errors`."""
    try:
        os.stat(base / "d/e/file")
        os.listdir(base / "d/e")
        return (base / "d/e/file").read_text() == wanted
    except OSError as error:
        errors.add(error.errno)
        return False


def test_changed_behind_the_mount_without_stale_handles(served: Served) -> None:
    """Whatever others do to the covered directory, the mount shows it soon, and ESTALE and EIO never."""
    app = served.bare.app
    base = app / "releases/40/changing"
    (base / "d/e").mkdir(parents=True)
    (base / "d/e/file").write_text("first")
    held = os.open(base / "d/e/file", os.O_RDONLY)
    directory = os.open(base / "d/e", os.O_RDONLY | os.O_DIRECTORY)
    errors: set[int | None] = set()
    try:
        for number, change in enumerate(CHANGES):
            behind(served.place, app, f"cd releases/40/changing && {change.format(number)}")
            wait_for(partial(_shows, base, str(number), errors), f"the mount shows change {number}")
            assert errors <= {errno.ENOENT, errno.ENOTDIR}, "as a plain directory might, had it been slower"
        assert os.pread(held, 10, 0) == b"first"
        assert os.fstat(held).st_nlink in (0, 1)
        assert os.stat("file", dir_fd=directory).st_size == len("first"), "it was moved away with its directory"
    finally:
        os.close(held)
        os.close(directory)
        shutil.rmtree(base)


def test_content_changed_behind_the_mount(served: Served) -> None:
    """The kernel's cached pages do not outlive the change by more than a moment, even if a file stays as long."""
    path = served.bare.app / "releases/40/content"
    path.write_text("one")
    assert path.read_text() == "one"
    for text in ("two", "six", "longer", "x"):
        behind(served.place, served.bare.app, f"echo -n {text} > releases/40/content")
        wait_for(lambda wanted=text: path.read_text() == wanted, f"the mount shows {text}")
    path.unlink()
