"""Every kind of thing that a directory can hold, and every call that takes a path, for scripts that try all of both."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Callable

from sidebyside import Who, make, put, swap

from relfs.libc import RENAME_EXCHANGE, RENAME_NOREPLACE

KINDS = ("file", "empty", "full", "link", "link to dir", "dangling", "loop", "fifo", "socket", "device", "nothing")


def make_kinds(base: str, owner: Who, *kinds: str) -> None:
    """A directory with one of each of `kinds` (of all, without any) and what they lead to, and something to put in
    their place. `nothing` is not there."""
    make(base, 0o755, owner)
    put(f"{base}/spare", b"spare", 0o644, owner)
    make(f"{base}/spare dir", 0o755, owner)
    for kind in kinds or KINDS:
        make_kind(base, kind, owner)


def make_kind(base: str, kind: str, owner: Who) -> None:
    path = f"{base}/{kind}"
    if kind == "nothing" or os.path.lexists(path):
        return
    if kind == "file":
        put(path, b"data", 0o644, owner)
    elif kind in ("empty", "full"):
        make(path, 0o755, owner)
        if kind == "full":
            put(f"{path}/x", b"x", 0o644, owner)
    elif kind in _LINKS:
        os.symlink(_LINKS[kind], path)
        if _LINKS[kind] in KINDS:
            make_kind(base, _LINKS[kind], owner)
    else:
        os.mknod(path, _NODES[kind] | 0o644, os.makedev(1, 3))
    os.lchown(path, owner.uid, owner.gid)


_LINKS = {"link": "file", "link to dir": "full", "dangling": "nowhere", "loop": "loop"}
_NODES = {"fifo": stat.S_IFIFO, "socket": stat.S_IFSOCK, "device": stat.S_IFCHR}


def _opened(flags: int) -> Callable[[str], None]:
    return lambda path: os.close(os.open(path, flags | os.O_NONBLOCK, 0o640))


CALLS: dict[str, Callable[[str], object]] = {
    "stat": os.stat,
    "lstat": os.lstat,
    "access": lambda path: os.access(path, os.W_OK),
    "readlink": os.readlink,
    "list": os.listdir,
    "chdir": lambda path: os.fchdir(os.open(path, os.O_PATH)),
    "chmod": lambda path: os.chmod(path, 0o711),
    "chown": lambda path: os.chown(path, 1000, 1000),
    "lchown": lambda path: os.lchown(path, 1000, 1000),
    "chown to nobody": lambda path: os.lchown(path, -1, -1),
    "utime": lambda path: os.utime(path, ns=(1, 2)),
    "lutime": lambda path: os.utime(path, ns=(3, 4), follow_symlinks=False),
    "touch": os.utime,
    "truncate": lambda path: os.truncate(path, 2),
    "mkdir": os.mkdir,
    "mkfifo": os.mkfifo,
    "mknod": lambda path: os.mknod(path, stat.S_IFREG | 0o600),
    "symlink": lambda path: os.symlink("text", path),
    "bind": lambda path: socket.socket(socket.AF_UNIX).bind(path),
    "link from": lambda path: os.link(path, "other", follow_symlinks=False),
    "link from, following": lambda path: os.link(path, "other", follow_symlinks=True),
    "link to": lambda path: os.link("spare", path),
    "rename from": lambda path: os.rename(path, "other"),
    "rename a file to": lambda path: os.rename("spare", path),
    "rename a directory to": lambda path: os.rename("spare dir", path),
    "rename to, not replacing": lambda path: swap("spare", path, RENAME_NOREPLACE),
    "exchange": lambda path: swap("spare", path, RENAME_EXCHANGE),
    "rmdir": os.rmdir,
    "unlink": os.unlink,
    "setxattr": lambda path: os.setxattr(path, "user.x", b"1"),
    "lsetxattr": lambda path: os.setxattr(path, "user.x", b"1", follow_symlinks=False),
    "getxattr": lambda path: os.getxattr(path, "user.none"),
    "listxattr": os.listxattr,
    "removexattr": lambda path: os.removexattr(path, "user.none"),
    "statvfs": lambda path: os.statvfs(path).f_namemax,
    "open O_RDONLY": _opened(os.O_RDONLY),
    "open O_WRONLY": _opened(os.O_WRONLY),
    "open O_RDWR": _opened(os.O_RDWR),
    "open O_TRUNC": _opened(os.O_WRONLY | os.O_TRUNC),
    "open O_CREAT": _opened(os.O_RDWR | os.O_CREAT),
    "open O_CREAT O_TRUNC": _opened(os.O_WRONLY | os.O_CREAT | os.O_TRUNC),
    "open O_CREAT O_EXCL": _opened(os.O_RDWR | os.O_CREAT | os.O_EXCL),
    "open O_CREAT O_DIRECTORY": _opened(os.O_RDONLY | os.O_CREAT | os.O_DIRECTORY),
    "open O_DIRECTORY": _opened(os.O_RDONLY | os.O_DIRECTORY),
    "open O_NOFOLLOW": _opened(os.O_RDONLY | os.O_NOFOLLOW),
    "open O_NOFOLLOW O_CREAT": _opened(os.O_RDWR | os.O_NOFOLLOW | os.O_CREAT),
    "open O_PATH": _opened(os.O_PATH),
    "open O_APPEND": _opened(os.O_WRONLY | os.O_APPEND),
    "open O_NOATIME": _opened(os.O_RDONLY | os.O_NOATIME),
    "open O_SYNC": _opened(os.O_WRONLY | os.O_SYNC),
}
