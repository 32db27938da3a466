"""Where FUSE or pyfuse3 cannot be like the plain directory, KNOWN_DIFFERENCES says so and why, and is held to it.

Also: that the comparison behind all the pass-through tests can fail.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import select
import shutil
import stat
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from dirstream import inodes_of
from served import Pair
from sidebyside import ACCESS, NOBODY, Script, Trace, Who, access_list, acting, make, put, run, tree

_libc = ctypes.CDLL(None, use_errno=True)

EVERYWHERE = "everywhere"
NATIVE = "beside native directories"


@dataclass(frozen=True)
class Known:
    """A documented difference: what a plain directory answers, what relfs honestly answers, why, and where.

    `before` and `after` are shell scripts that prepare it, and clear up, past the mount."""

    reason: str
    script: Script
    natively: Any
    here: Any
    where: str = EVERYWHERE
    before: str = ":"
    after: str = ":"


def _temporary_file(t: Trace) -> None:
    t.open("result", ".", os.O_TMPFILE | os.O_RDWR)


def _seek(whence: int) -> Script:
    def script(t: Trace) -> None:
        with open("sparse", "wb") as file:
            file.truncate(1 << 20)
            file.seek(1 << 19)
            file.write(b"data")
        assert os.path.getsize("sparse") == 1 << 20
        fd = os.open("sparse", os.O_RDONLY)
        t("result", os.lseek, fd, 0, whence)

    return script


def _fallocate(t: Trace) -> None:
    put("file")
    fd = os.open("file", os.O_RDWR)

    def allocate() -> int:
        if _libc.fallocate(fd, 1, ctypes.c_long(0), ctypes.c_long(4096)) != 0:  # 1: keep the size, so no emulation
            raise OSError(ctypes.get_errno(), "fallocate")
        return 0

    t("result", allocate)


def _flags_of_file(t: Trace) -> None:
    put("file")
    fd = os.open("file", os.O_RDONLY)
    t("result", lambda: len(fcntl.ioctl(fd, 0x80086601, b"\0" * 8)))  # FS_IOC_GETFLAGS: what lsattr(1) asks


def _access_of_immutable(t: Trace) -> None:
    t("result", os.access, "fixed", os.W_OK)


def _remove_immutable(t: Trace) -> None:
    t("result", os.rmdir, "fixed")


def _open_device(t: Trace) -> None:
    os.mknod("null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    t.open("result", "null", os.O_RDWR)


def _set_user_program(t: Trace) -> None:
    shutil.copy("/usr/bin/id", "id")
    os.chmod("id", 0o4755)
    command = ["./id", "-u"]
    t("result", lambda: subprocess.run(command, user=NOBODY.uid, capture_output=True, check=True).stdout)


def _poll(t: Trace) -> None:
    put("file")
    with select.epoll() as poll:
        t("result", poll.register, os.open("file", os.O_RDONLY))


def _dot_dot(t: Trace) -> None:
    make("d")
    listed = inodes_of("d")
    t("result", lambda: listed[b".."] == os.stat(".").st_ino)


def _granted_by_access_list(t: Trace) -> None:
    put("file", b"x", 0o600)
    os.setxattr("file", ACCESS, access_list(6, 0, 0, 7, u65534=6))
    with acting(NOBODY):
        t.open("result", "file", os.O_RDONLY)


KNOWN_DIFFERENCES: dict[str, Known] = {
    "O_TMPFILE": Known(
        "pyfuse3 and libfuse 3.14 have no FUSE_TMPFILE; programs fall back upon EOPNOTSUPP",
        _temporary_file, "opened", "ENOTSUP",
    ),
    "SEEK_DATA": Known(
        "pyfuse3 has no FUSE_LSEEK; the kernel then says, as lseek(2) allows, that all is data",
        _seek(os.SEEK_DATA), 1 << 19, 0,
    ),
    "SEEK_HOLE": Known(
        "as SEEK_DATA: the only hole is the one at the end",
        _seek(os.SEEK_HOLE), 0, 1 << 20,
    ),
    "fallocate": Known(
        "pyfuse3 has no FUSE_FALLOCATE; posix_fallocate(3) writes instead",
        _fallocate, 0, "ENOTSUP",
    ),
    "file flags (lsattr, chattr)": Known(
        "pyfuse3 has no FUSE_IOCTL",
        _flags_of_file, 8, "ENOTTY",
    ),
    "access(2) of a file that is immutable": Known(
        "the kernel asks modes and lists only; what is tried is refused (EPERM)",
        _access_of_immutable, False, True, before="touch fixed; chattr +i fixed", after="chattr -i fixed; rm fixed",
    ),
    "two errors at once, one of them that a file is immutable": Known(
        "the kernel tells the other first, of which relfs never hears",
        _remove_immutable, "EPERM", "ENOTDIR", before="touch fixed; chattr +i fixed", after="chattr -i fixed; rm fixed",
    ),
    "devices": Known(
        "FUSE mounts are nodev: a device can be made and seen, not opened",
        _open_device, "opened", "EACCES",
    ),
    "set-user-ID programs": Known(
        "FUSE mounts are nosuid: they run as whoever starts them",
        _set_user_program, b"0\n", b"65534\n",
    ),
    "epoll(7) of a regular file": Known(
        "the kernel's FUSE files can be polled (fuse_file_poll() in fs/fuse/file.c), and are always ready",
        _poll, "EPERM", None,
    ),
    "the inode number of ..": Known(
        "readdirplus lets only real lookups name an inode, so `..` is listed with the number of `.`",
        _dot_dot, True, False,
    ),
    "access granted by an access control list alone": Known(
        "the kernel would ask for the root's list at each resolution (relfs/fuse/handshake.py), so it is asked to obey "
        "lists only if the deploy path or an entry at its top had one when relfs was mounted, or with --no-bind",
        _granted_by_access_list, "opened", "EACCES", where=NATIVE,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", KNOWN_DIFFERENCES)
def test_known_differences_are_honest(pair: Pair, name: str) -> None:
    known = KNOWN_DIFFERENCES[name]
    expected = known.here if known.where == EVERYWHERE or pair.native else known.natively
    pair.natively(known.before)
    try:
        assert run(known.script, pair.plain).outcome["result"] == known.natively
        assert run(known.script, pair.served).outcome["result"] == expected, known.reason
    finally:
        pair.natively(known.after)


def test_access_lists_never_grant_more_than_natively(pair: Pair) -> None:
    """The kernel sees the mask where it looks for the group's bits; the covered file system has the last word."""

    def script(t: Trace) -> None:
        put("file", b"x", 0o600, Who(0, NOBODY.gid))
        os.setxattr("file", ACCESS, access_list(6, 0, 0, 7, u65534=0))
        with acting(NOBODY):
            t.open("read", "file", os.O_RDONLY)
            t.open("write", "file", os.O_WRONLY)

    assert pair.same(script) == {"read": "EACCES", "write": "EACCES"}


def test_the_comparison_can_fail(tmp_path: Path) -> None:
    """Two plain directories with different content are told apart, by their trees and by what a script sees."""
    one, other = tmp_path / "one", tmp_path / "other"
    for path in (one, other):
        path.mkdir()
    (other / "file").write_text("x")
    assert tree(one) != tree(other)

    def script(t: Trace) -> None:
        t.open("open", "file", os.O_RDONLY)

    assert run(script, one).steps == [("open", "ENOENT")]
    assert run(script, other).steps == [("open", "opened")]
