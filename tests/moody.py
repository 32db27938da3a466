"""A passthrough that fails, or never answers, while a file says so. It runs in a process of its own: see disks.py.

`python moody.py DIRECTORY MOOD`: the file MOOD holds nothing, the name of an errno, or `hang`.
"""

from __future__ import annotations

import errno
import functools
import os
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pyfuse3
import thinnest
import trio
from pyfuse3 import EntryAttributes, FileHandleT, FUSEError, InodeT

_CHANGING = (
    "setattr", "mknod", "mkdir", "symlink", "unlink", "rmdir", "rename", "create", "write", "fsync", "fsyncdir",
)  # fmt: skip
_OTHERS = ("lookup", "getattr", "readlink", "open", "read", "opendir", "readdir", "statfs")
_LOOK_SECONDS = 0.01


class Moody(thinnest.Thinnest):
    """Every handler asks first what mood it is."""

    def __init__(self, directory: str, mood: Path) -> None:
        super().__init__(directory)
        self._mood = mood
        for name in (*_CHANGING, *_OTHERS):
            setattr(self, name, self._moody(name, getattr(self, name)))

    def _moody(self, name: str, handler: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        @functools.wraps(handler)
        async def moody(*arguments: Any) -> Any:
            while (mood := self._mood.read_text()) == "hang":
                await trio.sleep(_LOOK_SECONDS)
            if mood and name in _CHANGING:
                raise FUSEError(getattr(errno, mood))
            return await handler(*arguments)

        return moody

    async def statfs(self, ctx: pyfuse3.RequestContext) -> pyfuse3.StatvfsData:  # noqa: ARG002
        data = pyfuse3.StatvfsData()
        data.f_bsize = data.f_frsize = 4096
        data.f_blocks = data.f_bfree = data.f_bavail = data.f_files = data.f_ffree = data.f_favail = 1 << 20
        data.f_namemax = 255
        return data

    async def mknod(
        self, parent_inode: InodeT, name: bytes, mode: int, rdev: int, ctx: pyfuse3.RequestContext  # noqa: ARG002
    ) -> EntryAttributes:  # fmt: skip
        os.mknod(name, mode, rdev, dir_fd=self._fds[parent_inode])
        return self._enter(parent_inode, name)

    async def fsync(self, fh: FileHandleT, datasync: bool) -> None:
        (os.fdatasync if datasync else os.fsync)(fh)

    async def fsyncdir(self, fh: FileHandleT, datasync: bool) -> None:
        (os.fdatasync if datasync else os.fsync)(fh)


def main() -> None:
    directory = sys.argv[1]
    os.umask(0)
    thinnest._SECONDS = 0.0  # what the kernel keeps, it would not ask for
    options = {"fsname=moody", "allow_other", "default_permissions"}
    pyfuse3.init(Moody(directory, Path(sys.argv[2])), directory, options)
    try:
        trio.run(pyfuse3.main)
    finally:
        pyfuse3.close(unmount=False)


if __name__ == "__main__":
    main()
