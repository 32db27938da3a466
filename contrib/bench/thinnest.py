"""The thinnest passthrough that pyfuse3 allows: what contrib/bench/passthrough measures relfs's against. Never use it.

    python thinnest.py DIRECTORY    mounts over DIRECTORY, and serves it until it is unmounted

What it shares with relfs, because the comparison would mean nothing otherwise: a descriptor (O_PATH) for every inode
that the kernel knows, lookup counts, the same timeouts and page caching as a directory that is mounted over, the
kernel's permission checks, other users let in. What it leaves out is what relfs is there for, or owes its users: who
asks (everything belongs to root), names that are special, inode numbers of other devices, what a failed close(2)
reports, extended attributes, reads of nothing, a daemon that outlives a bug. pyfuse3 answers ENOSYS for what is not
here, and the kernel does not ask again: no FLUSH and no GETXATTR, of which relfs gets one for each close and write.
"""

from __future__ import annotations

import errno
import os
import resource
import sys
from collections.abc import Sequence
from pathlib import Path

import pyfuse3
import trio
from pyfuse3 import (
    EntryAttributes,
    FileHandleT,
    FileInfo,
    FUSEError,
    InodeT,
    ReaddirToken,
    RequestContext,
    SetattrFields,
)

_SECONDS = 1.0
_HOLD = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC


class Thinnest(pyfuse3.Operations):
    """A handler is its system calls, and nothing else."""

    enable_writeback_cache = False

    def __init__(self, directory: str) -> None:
        super().__init__()
        self._fds: dict[InodeT, int] = {pyfuse3.ROOT_INODE: os.open(directory, _HOLD)}
        self._lookups: dict[InodeT, int] = {}
        self._names: dict[FileHandleT, list[bytes]] = {}
        self._listed: dict[FileHandleT, InodeT] = {}

    # ---- inodes

    def _enter(self, parent: InodeT, name: bytes) -> EntryAttributes:
        """The reply that gives the kernel one more reference. Raises OSError."""
        fd = os.open(name, _HOLD, dir_fd=self._fds[parent])
        status = os.fstat(fd)
        nodeid = InodeT(status.st_ino)
        if nodeid in self._fds:
            os.close(fd)
            self._lookups[nodeid] += 1
        else:
            self._fds[nodeid] = fd
            self._lookups[nodeid] = 1
        return _attributes(nodeid, status)

    def forget(self, inode_list: Sequence[tuple[InodeT, int]]) -> None:  # type: ignore[override]
        for nodeid, lookups in inode_list:
            self._lookups[nodeid] -= lookups
            if not self._lookups[nodeid]:
                del self._lookups[nodeid]
                os.close(self._fds.pop(nodeid))

    async def lookup(self, parent_inode: InodeT, name: bytes, ctx: RequestContext) -> EntryAttributes:  # noqa: ARG002
        try:
            return self._enter(parent_inode, name)
        except OSError as error:
            raise _told(error) from None

    async def getattr(self, inode: InodeT, ctx: RequestContext) -> EntryAttributes:  # noqa: ARG002
        return _attributes(inode, os.fstat(self._fds[inode]))

    async def setattr(
        self, inode: InodeT, attr: EntryAttributes, fields: SetattrFields, fh: FileHandleT | None, ctx: RequestContext
    ) -> EntryAttributes:  # fmt: skip
        path = f"/proc/self/fd/{self._fds[inode]}"
        try:
            if fields.update_size:
                os.truncate(fh if fh is not None else path, attr.st_size)
            if fields.update_mode:
                os.chmod(path, attr.st_mode & 0o7777)
            if fields.update_uid or fields.update_gid:
                os.chown(path, attr.st_uid if fields.update_uid else -1, attr.st_gid if fields.update_gid else -1)
            if fields.update_atime and fields.update_mtime:
                os.utime(path, ns=(attr.st_atime_ns, attr.st_mtime_ns))
        except OSError as error:
            raise _told(error) from None
        return await self.getattr(inode, ctx)

    async def readlink(self, inode: InodeT, ctx: RequestContext) -> bytes:  # noqa: ARG002
        return os.readlink(b"", dir_fd=self._fds[inode])

    # ---- names

    async def mkdir(self, parent_inode: InodeT, name: bytes, mode: int, ctx: RequestContext) -> EntryAttributes:  # noqa: ARG002
        try:
            os.mkdir(name, mode & 0o7777, dir_fd=self._fds[parent_inode])
            return self._enter(parent_inode, name)
        except OSError as error:
            raise _told(error) from None

    async def symlink(self, parent_inode: InodeT, name: bytes, target: bytes, ctx: RequestContext) -> EntryAttributes:  # noqa: ARG002
        try:
            os.symlink(target, name, dir_fd=self._fds[parent_inode])
            return self._enter(parent_inode, name)
        except OSError as error:
            raise _told(error) from None

    async def unlink(self, parent_inode: InodeT, name: bytes, ctx: RequestContext) -> None:  # noqa: ARG002
        try:
            os.unlink(name, dir_fd=self._fds[parent_inode])
        except OSError as error:
            raise _told(error) from None

    async def rmdir(self, parent_inode: InodeT, name: bytes, ctx: RequestContext) -> None:  # noqa: ARG002
        try:
            os.rmdir(name, dir_fd=self._fds[parent_inode])
        except OSError as error:
            raise _told(error) from None

    async def rename(
        self, parent_inode_old: InodeT, name_old: bytes, parent_inode_new: InodeT, name_new: bytes, flags: int,
        ctx: RequestContext,  # noqa: ARG002
    ) -> None:  # fmt: skip
        if flags:
            raise FUSEError(errno.EINVAL)
        try:
            source, destination = self._fds[parent_inode_old], self._fds[parent_inode_new]
            os.rename(name_old, name_new, src_dir_fd=source, dst_dir_fd=destination)
        except OSError as error:
            raise _told(error) from None

    # ---- files

    async def create(
        self, parent_inode: InodeT, name: bytes, mode: int, flags: int, ctx: RequestContext  # noqa: ARG002
    ) -> tuple[FileInfo, EntryAttributes]:  # fmt: skip
        try:
            fd = os.open(name, flags | os.O_CREAT | os.O_CLOEXEC, mode & 0o7777, dir_fd=self._fds[parent_inode])
            return FileInfo(fh=FileHandleT(fd)), self._enter(parent_inode, name)
        except OSError as error:
            raise _told(error) from None

    async def open(self, inode: InodeT, flags: int, ctx: RequestContext) -> FileInfo:  # noqa: ARG002
        try:
            fd = os.open(f"/proc/self/fd/{self._fds[inode]}", flags & ~os.O_NOFOLLOW | os.O_CLOEXEC)
            return FileInfo(fh=FileHandleT(fd), keep_cache=True)
        except OSError as error:
            raise _told(error) from None

    async def read(self, fh: FileHandleT, off: int, size: int) -> bytes:
        return os.pread(fh, size, off)

    async def write(self, fh: FileHandleT, off: int, buf: bytes) -> int:
        try:
            return os.pwrite(fh, buf, off)
        except OSError as error:
            raise _told(error) from None

    async def release(self, fh: FileHandleT) -> None:
        os.close(fh)

    # ---- directories

    async def opendir(self, inode: InodeT, ctx: RequestContext) -> FileHandleT:  # noqa: ARG002
        fh = FileHandleT(os.open(f"/proc/self/fd/{self._fds[inode]}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
        self._names[fh] = [os.fsencode(name) for name in os.listdir(fh)]
        self._listed[fh] = inode
        return fh

    async def readdir(self, fh: FileHandleT, start_id: int, token: ReaddirToken) -> None:
        names = self._names[fh]
        for position in range(start_id, len(names)):
            try:
                entry = self._enter(self._listed[fh], names[position])
            except OSError:
                continue
            if not pyfuse3.readdir_reply(token, names[position], entry, position + 1):
                self.forget([(entry.st_ino, 1)])
                return

    async def releasedir(self, fh: FileHandleT) -> None:
        del self._names[fh], self._listed[fh]
        os.close(fh)


def _told(error: OSError) -> FUSEError:
    return FUSEError(error.errno or errno.EIO)


def _attributes(nodeid: InodeT, status: os.stat_result) -> EntryAttributes:
    entry = EntryAttributes()
    entry.st_ino = nodeid
    entry.st_mode = status.st_mode
    entry.st_nlink = status.st_nlink
    entry.st_uid = status.st_uid
    entry.st_gid = status.st_gid
    entry.st_rdev = status.st_rdev
    entry.st_size = status.st_size
    entry.st_blksize = status.st_blksize
    entry.st_blocks = status.st_blocks
    entry.st_atime_ns = status.st_atime_ns
    entry.st_mtime_ns = status.st_mtime_ns
    entry.st_ctime_ns = status.st_ctime_ns
    entry.attr_timeout = _SECONDS
    entry.entry_timeout = _SECONDS
    return entry


def main() -> None:
    directory = str(Path(sys.argv[1]).resolve(strict=True))
    os.umask(0)
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))  # a descriptor for every inode, as said above
    pyfuse3.init(Thinnest(directory), directory, {"fsname=thinnest", "allow_other", "default_permissions"})
    try:
        trio.run(pyfuse3.main)
    finally:
        pyfuse3.close(unmount=False)


if __name__ == "__main__":
    main()
