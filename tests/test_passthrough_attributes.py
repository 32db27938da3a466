"""Times and extended attributes through a mount: as on a plain directory."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable

from mounting import wait_for
from served import Pair
from sidebyside import ADA, BOB, Trace, acting, get, make, put

_libc = ctypes.CDLL(None, use_errno=True)


def test_times_explicit_and_now(pair: Pair) -> None:
    """Who may write the file may touch it; an explicit time is its owner's to set."""

    def script(t: Trace) -> None:
        put("file", b"x", 0o666, ADA)
        put("closed", b"x", 0o644, ADA)
        os.symlink("file", "link")
        with acting(ADA):
            t("owner sets", os.utime, "file", ns=(1_000_000_001, 2_000_000_002))
            t("set", lambda: (os.stat("file").st_atime_ns, os.stat("file").st_mtime_ns))
            t("before 1970", os.utime, "file", ns=(-5_000_000_000, 2_000_000_002))
            t("set before 1970", lambda: os.stat("file").st_atime_ns)
            t("after 2038", os.utime, "file", ns=(1, 5_000_000_000_123_456_789))
            t("set after 2038", lambda: os.stat("file").st_mtime_ns)
        with acting(BOB):
            t("writer sets", os.utime, "file", ns=(3, 4))
            t("writer touches", os.utime, "file")
            t("touched", lambda: os.stat("file").st_mtime_ns > 10**18 and os.stat("file").st_atime_ns > 10**18)
            t("reader touches", os.utime, "closed")
            t("reader sets", os.utime, "closed", ns=(3, 4))
        t("of the link", os.utime, "link", ns=(7, 8), follow_symlinks=False)
        t("the link's", lambda: os.lstat("link").st_mtime_ns)
        t("not the file's", lambda: os.stat("file").st_mtime_ns == 8)
        make("d")
        t("directory", os.utime, "d", ns=(9, 10))
        t("the directory's", lambda: os.stat("d").st_mtime_ns)

    seen = pair.same(script)
    assert seen["writer sets"] == "EPERM"
    assert seen["writer touches"] is None
    assert seen["reader touches"] == "EACCES"
    assert seen["set"] == (1_000_000_001, 2_000_000_002)


def test_now_is_the_kernels_now(pair: Pair) -> None:
    """A touched file is not older than one written before, nor younger than one written after."""

    def script(t: Trace) -> None:
        for _ in range(50):
            put("before")
            os.utime("before")
            first = os.stat("before").st_mtime_ns
            put("after")
            t.note("in order", first <= os.stat("after").st_mtime_ns)

    assert pair.same(script)["in order"] is True


def test_ctime_and_mtime_progress(pair: Pair) -> None:
    def script(t: Trace) -> None:
        put("file", b"x")
        make("d")

        def moves(label: str, path: str, *changes: Callable[[], object], which: str = "st_ctime_ns") -> None:
            before = getattr(os.stat(path), which)

            def again() -> bool:
                for change in changes:
                    change()
                return bool(getattr(os.stat(path), which) > before)

            wait_for(again, f"{label} moves {which}")  # the clock of file systems ticks every few milliseconds
            t(label, lambda: getattr(os.stat(path), which) > before)

        moves("chmod", "file", lambda: os.chmod("file", 0o600))
        moves("chown", "file", lambda: os.chown("file", 1, 1))
        moves("write", "file", lambda: put("file", b"y"), which="st_mtime_ns")
        moves("write, ctime", "file", lambda: put("file", b"y"))
        moves("utime", "file", lambda: os.utime("file", ns=(1, 1)))
        moves("xattr", "file", lambda: os.setxattr("file", "user.x", b"1"))
        moves("link", "file", lambda: os.link("file", "other"), lambda: os.unlink("other"))
        moves("rename", "file", lambda: os.rename("file", "moved"), lambda: os.rename("moved", "file"))
        moves("create", "d", lambda: put("d/x"), lambda: os.unlink("d/x"), which="st_mtime_ns")
        os.utime("file", ns=(1, 1))
        t("reading changes atime", lambda: (get("file"), os.stat("file").st_atime_ns > 1)[1])

    seen = pair.same(script)
    assert all(value is True for value in seen.values())


def _getxattr(path: bytes, name: bytes, size: int) -> int:
    """getxattr(2) with a buffer of `size` bytes."""
    buffer = ctypes.create_string_buffer(max(size, 1))
    found = int(_libc.getxattr(path, name, buffer, ctypes.c_size_t(size)))
    if found < 0:
        raise OSError(ctypes.get_errno(), "getxattr")
    return found


def test_extended_attributes(pair: Pair) -> None:
    def script(t: Trace) -> None:
        put("file", b"x", 0o644, ADA)
        make("d")
        os.symlink("file", "link")
        for kind in ("user", "trusted", "security"):
            t(f"{kind} missing", os.getxattr, "file", f"{kind}.name")
            t(f"{kind} set", os.setxattr, "file", f"{kind}.name", b"value\0\xff")
            t(f"{kind} get", os.getxattr, "file", f"{kind}.name")
            t(f"{kind} on a directory", os.setxattr, "d", f"{kind}.name", b"v")
            t(f"{kind} on a link", os.setxattr, "link", f"{kind}.l", b"v", follow_symlinks=False)
        t("list", lambda: sorted(os.listxattr("file")))
        t("list of the link", lambda: sorted(os.listxattr("link", follow_symlinks=False)))
        t("create again", os.setxattr, "file", "user.name", b"2", os.XATTR_CREATE)
        t("create new", os.setxattr, "file", "user.new", b"2", os.XATTR_CREATE)
        t("replace nothing", os.setxattr, "file", "user.nothing", b"2", os.XATTR_REPLACE)
        t("replace", os.setxattr, "file", "user.name", b"3", os.XATTR_REPLACE)
        t("replaced", os.getxattr, "file", "user.name")
        t("set empty", os.setxattr, "file", "user.empty", b"")
        t("empty", os.getxattr, "file", "user.empty")
        t("set large", os.setxattr, "file", "user.large", b"l" * 3000)
        t("large", lambda: len(os.getxattr("file", "user.large")))
        t("too large", os.setxattr, "file", "user.huge", b"l" * 65536)
        t("far too large", os.setxattr, "file", "user.huge", b"l" * 65537)
        t("long name", os.setxattr, "file", "user." + "n" * 250, b"1")
        t("too long name", os.setxattr, "file", "user." + "n" * 251, b"1")
        t("no name space", os.setxattr, "file", "name", b"1")
        t("empty name", os.setxattr, "file", "user.", b"1")
        t("remove", os.removexattr, "file", "user.name")
        t("remove again", os.removexattr, "file", "user.name")
        t("probe", _getxattr, b"file", b"user.large", 0)
        t("too small", _getxattr, b"file", b"user.large", 100)
        t("just right", _getxattr, b"file", b"user.large", 3000)
        with acting(ADA):
            t("owner sets", os.setxattr, "file", "user.mine", b"1")
            t("trusted is root's", os.setxattr, "file", "trusted.mine", b"1")
            t("trusted is hidden", os.getxattr, "file", "trusted.name")
            t("security is root's", os.setxattr, "file", "security.mine", b"1")
            t("security is shown", os.getxattr, "file", "security.name")
            t("owner's list", lambda: sorted(os.listxattr("file")))
        with acting(BOB):
            t("stranger sets", os.setxattr, "file", "user.theirs", b"1")
            t("stranger gets", os.getxattr, "file", "user.mine")
            t("stranger removes", os.removexattr, "file", "user.mine")

    seen = pair.same(script)
    assert seen["user get"] == seen["trusted get"] == seen["security get"] == b"value\0\xff"
    assert (seen["user missing"], seen["too small"], seen["probe"]) == ("ENODATA", "ERANGE", 3000)
    assert (seen["create again"], seen["replace nothing"]) == ("EEXIST", "ENODATA")
