"""Requests for what is neither `current` nor a native directory: each past the guard, and once (once.py), to
passthrough. The methods are called as pyfuse3's handlers are, and none of them waits for anything but a disk.
"""

from __future__ import annotations

import errno
import os
import zlib

from pyfuse3 import (
    EntryAttributes,
    FileHandleT,
    FileInfo,
    InodeT,
    ReaddirToken,
    RequestContext,
    SetattrFields,
)

from relfs.fuse.guard import Guard
from relfs.fuse.inodes import InodeTable
from relfs.fuse.once import Once, errand, file_asker
from relfs.fuse.passthrough import Passthrough, is_nothing

_FREE = b"free"


class Plain:
    """GUARDED BY whoever calls it, one call at a time."""

    def __init__(self, table: InodeTable, files: Passthrough, guard: Guard, once: Once) -> None:
        self._table = table
        self._files = files
        self._guard = guard
        self._once = once

    # ---- names

    def lookup(self, parent: InodeT, name: bytes, _context: RequestContext) -> EntryAttributes:
        return self._files.lookup(parent, name)

    def unlink(self, parent: InodeT, name: bytes, context: RequestContext) -> None:
        self._guard.name(parent, name)
        if not self._is_gone("unlink", parent, name, context):
            self._files.unlink(parent, name, context)

    def rmdir(self, parent: InodeT, name: bytes, context: RequestContext) -> None:
        self._guard.name(parent, name)
        if not self._is_gone("rmdir", parent, name, context):
            self._files.rmdir(parent, name, context)

    def symlink(self, parent: InodeT, name: bytes, text: bytes, context: RequestContext) -> EntryAttributes:
        self._guard.name(parent, name)
        if self._is_made("symlink", parent, name, context):
            return self._files.lookup(parent, name)
        return self._files.symlink(parent, name, text, context)

    def link(self, inode: InodeT, parent: InodeT, name: bytes, context: RequestContext) -> EntryAttributes:
        self._guard.name(parent, name)
        self._guard.linking(inode)
        if self._is_made("link", parent, name, context):
            return self._files.lookup(parent, name)
        return self._files.link(inode, parent, name, context)

    def mkdir(self, parent: InodeT, name: bytes, mode: int, context: RequestContext) -> EntryAttributes:
        self.make_directory(parent, name, mode, context)
        return self._files.lookup(parent, name)

    def make_directory(self, parent: InodeT, name: bytes, mode: int, context: RequestContext) -> None:
        """As mkdir(), for somebody who looks it up in another way."""
        self._guard.name(parent, name)
        if not self._is_made("mkdir", parent, name, context):
            self._files.make_directory(parent, name, mode, context)

    def mknod(self, parent: InodeT, name: bytes, mode: int, device: int, context: RequestContext) -> EntryAttributes:
        self._guard.name(parent, name)
        if self._is_made("mknod", parent, name, context):
            return self._files.lookup(parent, name)
        return self._files.mknod(parent, name, mode, device, context)

    def create(
        self, parent: InodeT, name: bytes, mode: int, flags: int, context: RequestContext
    ) -> tuple[FileInfo, EntryAttributes]:
        self._guard.name(parent, name)
        request = errand("create", context.pid, parent, name, flags)
        free = self._files.identity(parent, name) is None
        was = self._once.begun(request)
        if was is not None:
            opening, _, was_free = was.partition(b" ")
            again = self._files.made(int(opening))
            if again is not None:
                return FileInfo(fh=again), self._files.lookup(parent, name)
            free = was_free == _FREE
            flags &= ~os.O_EXCL if free else ~0
        self._once.note(request, b"%d %s" % (self._files.next_opening, _FREE if free else b""))
        return self._files.create(parent, name, mode, flags, context)

    def rename(
        self, old_parent: InodeT, old: bytes, new_parent: InodeT, new: bytes, flags: int, context: RequestContext
    ) -> None:
        self._guard.name(old_parent, old)
        self._guard.name(new_parent, new)
        if not self._is_moved((old_parent, old), (new_parent, new), flags, context):
            self._files.rename(old_parent, old, new_parent, new, flags, context)

    # ---- inodes

    def getattr(self, inode: InodeT, _context: RequestContext) -> EntryAttributes:
        return self._files.getattr(inode)

    def setattr(
        self, inode: InodeT, wanted: EntryAttributes, fields: SetattrFields, fh: FileHandleT | None,
        context: RequestContext,
    ) -> EntryAttributes:  # fmt: skip
        if fh is None and not (is_nothing(fields) and self._files.is_written(self._table.node(inode))):
            self._guard.inode(inode)  # but for ftruncate(2) and write(2), by whoever had it open before
        return self._files.setattr(inode, wanted, fields, fh, context)

    def readlink(self, inode: InodeT, _context: RequestContext) -> bytes:
        return self._files.readlink(inode)

    def setxattr(self, inode: InodeT, name: bytes, value: bytes, context: RequestContext) -> None:
        self._guard.inode(inode)
        request = errand("setxattr", context.pid, inode, name)
        if self._once.begun(request) is None:
            self._once.note(request, _FREE if self._is_without(inode, name, context) else b"")
        self._files.setxattr(inode, name, value, context)

    def _is_without(self, inode: InodeT, name: bytes, context: RequestContext) -> bool:
        try:
            self._files.getxattr(inode, name, context)
        except OSError as error:
            return error.errno == errno.ENODATA
        return False

    def getxattr(self, inode: InodeT, name: bytes, context: RequestContext) -> bytes:
        """pyfuse3 asks for it, as the same caller, before it has an attribute made (XATTR_CREATE), or replaced."""
        if self._once.owed(errand("setxattr", context.pid, inode, name)) == _FREE:
            raise OSError(errno.ENODATA, os.strerror(errno.ENODATA))
        return self._files.getxattr(inode, name, context)

    def listxattr(self, inode: InodeT, context: RequestContext) -> list[bytes]:
        return self._files.listxattr(inode, context)

    def removexattr(self, inode: InodeT, name: bytes, context: RequestContext) -> None:
        self._guard.inode(inode)
        request = errand("removexattr", context.pid, inode, name)
        again = self._once.begun(request) is not None
        if not again:
            self._once.note(request)
        try:
            self._files.removexattr(inode, name, context)
        except OSError as error:
            if not (again and error.errno == errno.ENODATA):
                raise

    # ---- files

    def open(self, inode: InodeT, flags: int, context: RequestContext) -> FileInfo:
        again = self.reopened(errand("open", context.pid, inode, flags))
        if again is not None:
            return self._files.opened(again, self._table.node(inode))
        self._guard.opening(inode, flags)
        return self._files.open(inode, flags, context)

    def read(self, fh: FileHandleT, offset: int, size: int) -> bytes:
        return self._files.read(fh, offset, size)

    def write(self, fh: FileHandleT, offset: int, data: bytes) -> int:
        if not self._files.appends(fh):
            return self._files.write(fh, offset, data)
        request = errand("write", file_asker(fh), offset, len(data), zlib.crc32(data))
        was = self._once.begun(request)
        if was is not None:
            return self._files.append_once(fh, int(was), data)
        self._once.note(request, b"%d" % self._files.size(fh))
        return self._files.write(fh, offset, data)

    def flush(self, fh: FileHandleT) -> None:
        self._files.flush(fh)

    def fsync(self, fh: FileHandleT, datasync: bool) -> None:
        (os.fdatasync if datasync else os.fsync)(self._files.fd(fh))

    def release(self, fh: FileHandleT) -> None:
        self._files.release(fh)

    # ---- directories

    def opendir(self, inode: InodeT, context: RequestContext) -> FileHandleT:
        again = self.reopened(errand("opendir", context.pid, inode))
        return again if again is not None else self._files.opendir(inode, context)

    def readdir(self, fh: FileHandleT, start: int, token: ReaddirToken) -> None:
        for position, name in self._files.listing(fh, start):
            if not self._files.reply_entry(fh, name, position, token):
                break

    def releasedir(self, fh: FileHandleT) -> None:
        self._files.releasedir(fh)

    def fsyncdir(self, fh: FileHandleT, datasync: bool) -> None:
        self.fsync(fh, datasync)

    # ---- what the worker before this one may have done already (once.py)

    def _is_made(self, what: str, parent: InodeT, name: bytes, context: RequestContext) -> bool:
        """Whether it has made what this request asks for: it had begun when the name was free, and that is not free."""
        request = errand(what, context.pid, parent, name)
        there = self._files.identity(parent, name) is not None
        if self._once.begun(request) is not None:
            return there
        if not there:
            self._once.note(request)
        return False

    def _is_gone(self, what: str, parent: InodeT, name: bytes, context: RequestContext) -> bool:
        """Whether it has removed what this request asks it to."""
        request = errand(what, context.pid, parent, name)
        found = self._files.identity(parent, name)
        was = self._once.begun(request)
        if was is not None:
            return found != was
        if found is not None:
            self._once.note(request, found)
        return False

    def _is_moved(
        self, old: tuple[InodeT, bytes], new: tuple[InodeT, bytes], flags: int, context: RequestContext
    ) -> bool:
        """Whether it has renamed what this request asks it to."""
        request = errand("rename", context.pid, *old, *new, flags)
        found = self._files.identity(*old)
        was = self._once.begun(request)
        if was is not None:
            return found != was and self._files.identity(*new) == was
        if found is not None:
            self._once.note(request, found)
        return False

    def reopened(self, request: bytes) -> FileHandleT | None:
        """The handle that it has made for a request; None: it had not come to that. Which one is going to be made is
        noted before, so that no handle can be made that nobody is told of, and nobody ever closes."""
        was = self._once.begun(request)
        again = self._files.made(int(was)) if was is not None else None
        if again is None:
            self._once.note(request, b"%d" % self._files.next_opening)
        return again
