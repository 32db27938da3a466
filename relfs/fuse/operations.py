"""The request handlers: who answers what. `current` is CurrentLink's, the rest is Passthrough's; nothing is decided
here but where a name belongs, and that no handler can bring the daemon down.

pyfuse3 ends its main loop when a handler raises anything but FUSEError; so every handler is wrapped: an OSError becomes
its errno, anything else is logged and becomes EIO.
"""

from __future__ import annotations

import errno
import functools
import logging
import os
import zlib
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import pyfuse3
from pyfuse3 import (
    EntryAttributes,
    FileHandleT,
    FileInfo,
    FUSEError,
    InodeT,
    ReaddirToken,
    RequestContext,
    SetattrFields,
    StatvfsData,
)

from relfs.fuse.current import CurrentLink
from relfs.fuse.guard import Guard
from relfs.fuse.handshake import Handshake
from relfs.fuse.inodes import RELEASES_NODE, ROOT, SHARED_NODE, STATE_NODE, InodeTable
from relfs.fuse.once import Once, errand, file_asker
from relfs.fuse.passthrough import ACCESS_LIST, Passthrough, is_nothing
from relfs.fuse.protocol import BATON
from relfs.layout import CURRENT, RELEASES, SHARED, STATE
from relfs.store import TEMPORARY
from relfs.threads import in_thread

_log = logging.getLogger(__name__)

_CURRENT = CURRENT.encode()
_HIDDEN = TEMPORARY.encode()
_FREE = b"free"

NATIVE = {
    RELEASES.encode(): RELEASES_NODE,
    SHARED.encode(): SHARED_NODE,
    STATE.encode(): STATE_NODE,
}
"""Top-level directories that native ones are mounted on, and their constant nodeids."""

_Handler = TypeVar("_Handler", bound=Callable[..., Awaitable[Any]])


def _handler(method: _Handler) -> _Handler:
    """Count the request, and let nothing but FUSEError out."""
    name = method.__name__

    @functools.wraps(method)
    async def guarded(self: Operations, *args: Any) -> Any:
        self.requests[name] += 1
        self._once.settle()
        try:
            return await method(self, *args)
        except FUSEError:
            raise
        except OSError as error:
            raise FUSEError(error.errno or errno.EIO) from error
        except Exception as error:
            _log.exception("%s failed", name)
            raise FUSEError(errno.EIO) from error

    return guarded  # type: ignore[return-value]


class Operations(pyfuse3.Operations):
    """Every request of the kernel arrives here. `requests` counts them by name."""

    supports_dot_lookup = False
    enable_writeback_cache = False

    def __init__(
        self,
        table: InodeTable,
        files: Passthrough,
        current: CurrentLink,
        handshake: Handshake,
        on_native: Callable[[str], None],
        guard: Guard,
        once: Once,
    ) -> None:
        """`on_native` is called with the name of a native directory that has come into being under the mount; `guard`
        is asked before anything that might change a release."""
        super().__init__()
        self.requests: Counter[str] = Counter()
        self._table = table
        self._files = files
        self._current = current
        self._handshake = handshake
        self._on_native = on_native
        self._guard = guard
        self._once = once

    @property
    def is_full(self) -> bool:
        """Whether no file can be opened now, for want of descriptors."""
        return self._files.is_full

    # ---- names

    @_handler
    async def lookup(self, parent_inode: InodeT, name: bytes, ctx: RequestContext) -> EntryAttributes:
        if parent_inode == ROOT:
            return self._lookup_top(name, ctx)
        return self._files.lookup(parent_inode, name)

    def _lookup_top(self, name: bytes, ctx: RequestContext) -> EntryAttributes:
        if name == _CURRENT:
            return self._current.lookup(ctx)
        if name.startswith(_HIDDEN):
            raise FUSEError(errno.ENOENT)
        native = self._native_entry(name) if name in NATIVE else None
        if native is not None:
            return native
        return self._files.lookup(ROOT, name)

    def _pin_native(self, name: bytes) -> None:
        """A native directory that was not there at the start gets its constant nodeid before anybody learns another."""
        if self._table.is_pinned(NATIVE[name]):
            return
        root = self._table.node(ROOT)
        try:
            fd = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=root.fd)
        except OSError:
            return
        self._table.pin(NATIVE[name], fd)
        self._on_native(os.fsdecode(name))

    @_handler
    async def unlink(self, parent_inode: InodeT, name: bytes, ctx: RequestContext) -> None:
        if parent_inode == ROOT and name == _CURRENT:
            await self._current.unlink(ctx)
            return
        self._guard.name(parent_inode, name)
        if not self._is_gone("unlink", parent_inode, name, ctx):
            self._files.unlink(parent_inode, name, ctx)

    @_handler
    async def symlink(self, parent_inode: InodeT, name: bytes, target: bytes, ctx: RequestContext) -> EntryAttributes:
        if parent_inode == ROOT and name == _CURRENT:
            return await self._current.symlink(target, ctx)
        self._forbid(parent_inode, name, ctx)
        if self._is_made("symlink", parent_inode, name, ctx):
            return self._files.lookup(parent_inode, name)
        return self._files.symlink(parent_inode, name, target, ctx)

    @_handler
    async def rename(
        self, parent_inode_old: InodeT, name_old: bytes, parent_inode_new: InodeT, name_new: bytes, flags: int,
        ctx: RequestContext,
    ) -> None:  # fmt: skip
        old, new = (parent_inode_old, name_old), (parent_inode_new, name_new)
        if old == new == (ROOT, _CURRENT):
            return
        self._forbid_rename(old, new)
        if new == (ROOT, _CURRENT):
            with self._directory(parent_inode_old) as directory:
                await self._current.take(parent_inode_old, directory, name_old, flags, ctx)
        elif old == (ROOT, _CURRENT):
            with self._directory(parent_inode_new) as directory:
                await self._current.give(parent_inode_new, directory, name_new, flags, ctx)
        elif not self._is_moved(old, new, flags, ctx):
            self._files.rename(parent_inode_old, name_old, parent_inode_new, name_new, flags, ctx)

    @contextmanager
    def _directory(self, nodeid: InodeT) -> Iterator[int]:
        """A descriptor that lasts, other than the table's own, for as long as a swap takes."""
        directory = os.dup(self._table.node(nodeid).fd)
        try:
            yield directory
        finally:
            os.close(directory)

    def _forbid_rename(self, old: tuple[InodeT, bytes], new: tuple[InodeT, bytes]) -> None:
        """Native directories stay where they are, and no directory becomes one under a nodeid that it had before."""
        for parent, name in (old, new):
            self._guard.name(parent, name)
            if parent == ROOT and (name.startswith(_HIDDEN) or (name in NATIVE and self._is_native(name))):
                raise FUSEError(errno.EBUSY)
        if new[0] == ROOT and new[1] in NATIVE and self._files.is_directory(*old):
            raise FUSEError(errno.EBUSY)

    def _is_native(self, name: bytes) -> bool:
        self._pin_native(name)
        return self._table.is_pinned(NATIVE[name])

    @_handler
    async def link(
        self, inode: InodeT, new_parent_inode: InodeT, new_name: bytes, ctx: RequestContext
    ) -> EntryAttributes:
        self._forbid(new_parent_inode, new_name, ctx)
        if self._table.text(inode) is not None:  # there is no inode that could get a second name
            raise FUSEError(errno.EPERM)
        self._guard.linking(inode)
        if self._is_made("link", new_parent_inode, new_name, ctx):
            return self._files.lookup(new_parent_inode, new_name)
        return self._files.link(inode, new_parent_inode, new_name, ctx)

    @_handler
    async def mkdir(self, parent_inode: InodeT, name: bytes, mode: int, ctx: RequestContext) -> EntryAttributes:
        self._forbid(parent_inode, name, ctx)
        if not self._is_made("mkdir", parent_inode, name, ctx):
            self._files.make_directory(parent_inode, name, mode, ctx)
        if parent_inode == ROOT and name in NATIVE:
            return self._lookup_top(name, ctx)
        return self._files.lookup(parent_inode, name)

    @_handler
    async def rmdir(self, parent_inode: InodeT, name: bytes, ctx: RequestContext) -> None:
        if parent_inode == ROOT and name in NATIVE and self._is_native(name):
            raise FUSEError(errno.EBUSY)
        if parent_inode == ROOT and name == _CURRENT:
            raise FUSEError(errno.ENOTDIR)
        self._guard.name(parent_inode, name)
        if not self._is_gone("rmdir", parent_inode, name, ctx):
            self._files.rmdir(parent_inode, name, ctx)

    @_handler
    async def mknod(
        self, parent_inode: InodeT, name: bytes, mode: int, rdev: int, ctx: RequestContext
    ) -> EntryAttributes:
        self._forbid(parent_inode, name, ctx)
        if self._is_made("mknod", parent_inode, name, ctx):
            return self._files.lookup(parent_inode, name)
        return self._files.mknod(parent_inode, name, mode, rdev, ctx)

    @_handler
    async def create(
        self, parent_inode: InodeT, name: bytes, mode: int, flags: int, ctx: RequestContext
    ) -> tuple[FileInfo, EntryAttributes]:
        self._forbid(parent_inode, name, ctx)
        request = errand("create", ctx.pid, parent_inode, name, flags)
        free = self._files.identity(parent_inode, name) is None
        was = self._once.begun(request)
        if was is not None:
            opening, _, was_free = was.partition(b" ")
            again = self._files.made(int(opening))
            if again is not None:
                return FileInfo(fh=again), self._files.lookup(parent_inode, name)
            free = was_free == _FREE
            flags &= ~os.O_EXCL if free else ~0
        self._once.note(request, b"%d %s" % (self._files.next_opening, _FREE if free else b""))
        return self._files.create(parent_inode, name, mode, flags, ctx)

    # ---- what the worker before this one may have done already (once.py)

    def _is_made(self, what: str, parent: InodeT, name: bytes, ctx: RequestContext) -> bool:
        """Whether it has made what this request asks for: it had begun when the name was free, and that is not free."""
        request = errand(what, ctx.pid, parent, name)
        there = self._files.identity(parent, name) is not None
        if self._once.begun(request) is not None:
            return there
        if not there:
            self._once.note(request)
        return False

    def _is_gone(self, what: str, parent: InodeT, name: bytes, ctx: RequestContext) -> bool:
        """Whether it has removed what this request asks it to."""
        request = errand(what, ctx.pid, parent, name)
        found = self._files.identity(parent, name)
        was = self._once.begun(request)
        if was is not None:
            return found != was
        if found is not None:
            self._once.note(request, found)
        return False

    def _is_moved(self, old: tuple[InodeT, bytes], new: tuple[InodeT, bytes], flags: int, ctx: RequestContext) -> bool:
        """Whether it has renamed what this request asks it to."""
        request = errand("rename", ctx.pid, *old, *new, flags)
        found = self._files.identity(*old)
        was = self._once.begun(request)
        if was is not None:
            return found != was and self._files.identity(*new) == was
        if found is not None:
            self._once.note(request, found)
        return False

    def _reopened(self, request: bytes) -> FileHandleT | None:
        """The handle that it has made for a request; None: it had not come to that. Which one is going to be made is
        noted before, so that no handle can be made that nobody is told of, and nobody ever closes."""
        was = self._once.begun(request)
        again = self._files.made(int(was)) if was is not None else None
        if again is None:
            self._once.note(request, b"%d" % self._files.next_opening)
        return again

    def _forbid(self, parent: InodeT, name: bytes, ctx: RequestContext) -> None:
        """`current` can only be a symbolic link, and the name of its successor to be is relfs's own. Nothing new comes
        into a sealed release."""
        self._guard.name(parent, name)
        if parent != ROOT:
            return
        if name == _CURRENT:
            raise FUSEError(errno.EPERM if self._current.hidden_from(ctx) else errno.EEXIST)
        if name.startswith(_HIDDEN):
            raise FUSEError(errno.EPERM)

    def forget(self, inode_list: Sequence[tuple[InodeT, int]]) -> None:  # type: ignore[override]
        """Called synchronously by pyfuse3, hence not `async`; see handshake.py for the baton."""
        if inode_list == BATON:
            again = self._handshake.take_over()
            if again is None:
                return
            self._once.expect(again.askers)
            inode_list = [(InodeT(nodeid), lookups) for nodeid, lookups in again.forgets]
        for nodeid, lookups in inode_list:
            self._table.forget(nodeid, lookups)

    # ---- inodes

    @_handler
    async def getattr(self, inode: InodeT, ctx: RequestContext) -> EntryAttributes:  # noqa: ARG002
        if self._table.text(inode) is not None:
            return self._current.attributes(inode)
        return self._files.getattr(inode)

    @_handler
    async def setattr(
        self, inode: InodeT, attr: EntryAttributes, fields: SetattrFields, fh: FileHandleT | None, ctx: RequestContext
    ) -> EntryAttributes:
        if self._table.text(inode) is None:
            if fh is None and not (is_nothing(fields) and self._files.is_written(self._table.node(inode))):
                self._guard.inode(inode)  # but for ftruncate(2) and write(2), by whoever had it open before
            return self._files.setattr(inode, attr, fields, fh, ctx)
        self._current.setattr(inode, attr, fields, ctx)
        return self._current.attributes(inode)

    @_handler
    async def readlink(self, inode: InodeT, ctx: RequestContext) -> bytes:  # noqa: ARG002
        text = self._table.text(inode)
        return text if text is not None else self._files.readlink(inode)

    @_handler
    async def setxattr(self, inode: InodeT, name: bytes, value: bytes, ctx: RequestContext) -> None:
        self._no_xattr(inode, errno.EPERM)
        if inode == ROOT and name == ACCESS_LIST and not self._handshake.obeys_access_lists:
            raise FUSEError(errno.ENOTSUP)
        self._guard.inode(inode)
        self._files.setxattr(inode, name, value, ctx)

    @_handler
    async def getxattr(self, inode: InodeT, name: bytes, ctx: RequestContext) -> bytes:
        self._no_xattr(inode, errno.ENODATA)
        return self._files.getxattr(inode, name, ctx)

    @_handler
    async def listxattr(self, inode: InodeT, ctx: RequestContext) -> Sequence[bytes]:
        return [] if self._table.text(inode) is not None else self._files.listxattr(inode, ctx)

    @_handler
    async def removexattr(self, inode: InodeT, name: bytes, ctx: RequestContext) -> None:
        self._no_xattr(inode, errno.ENODATA)
        self._guard.inode(inode)
        request = errand("removexattr", ctx.pid, inode, name)
        again = self._once.begun(request) is not None
        if not again:
            self._once.note(request)
        try:
            self._files.removexattr(inode, name, ctx)
        except OSError as error:
            if not (again and error.errno == errno.ENODATA):
                raise

    def _no_xattr(self, inode: InodeT, number: int) -> None:
        if self._table.text(inode) is not None:
            raise FUSEError(number)

    @_handler
    async def statfs(self, ctx: RequestContext) -> StatvfsData:  # noqa: ARG002
        return self._files.statfs(ROOT)

    # ---- files

    @_handler
    async def open(self, inode: InodeT, flags: int, ctx: RequestContext) -> FileInfo:
        request = errand("open", ctx.pid, inode, flags)
        again = self._reopened(request)
        if again is not None:
            return self._files.opened(again, self._table.node(inode))
        self._guard.opening(inode, flags)
        return self._files.open(inode, flags, ctx)

    @_handler
    async def read(self, fh: FileHandleT, off: int, size: int) -> bytes:
        return self._files.read(fh, off, size)

    @_handler
    async def write(self, fh: FileHandleT, off: int, buf: bytes) -> int:
        if not self._files.appends(fh):
            return self._files.write(fh, off, buf)
        request = errand("write", file_asker(fh), off, len(buf), zlib.crc32(buf))
        was = self._once.begun(request)
        if was is not None:
            return self._files.append_once(fh, int(was), buf)
        self._once.note(request, b"%d" % self._files.size(fh))
        return self._files.write(fh, off, buf)

    @_handler
    async def flush(self, fh: FileHandleT) -> None:
        self._files.flush(fh)

    @_handler
    async def fsync(self, fh: FileHandleT, datasync: bool) -> None:
        await in_thread(os.fdatasync if datasync else os.fsync, self._files.fd(fh))

    @_handler
    async def release(self, fh: FileHandleT) -> None:
        self._files.release(fh)

    # ---- directories

    @_handler
    async def opendir(self, inode: InodeT, ctx: RequestContext) -> FileHandleT:
        request = errand("opendir", ctx.pid, inode)
        again = self._reopened(request)
        if again is not None:
            return again
        return self._open_directory(inode, ctx)

    def _open_directory(self, inode: InodeT, ctx: RequestContext) -> FileHandleT:
        if inode != ROOT:
            return self._files.opendir(inode, ctx)
        native = [name for name in NATIVE if self._is_native(name)]
        ours = {_CURRENT, *native}
        return self._files.opendir(
            inode,
            ctx,
            hide=lambda name: name in ours or name.startswith(_HIDDEN),
            show=native if self._current.hidden_from(ctx) else [_CURRENT, *native],
        )

    def pin_native(self) -> None:
        """Give the native directories that there are their constant nodeids. To be called before the table is restored:
        what is in them is known by them."""
        for name in NATIVE:
            self._pin_native(name)

    def restore(self) -> None:
        """Know what the worker before this one had open, once the table is restored. What somebody who is replacing
        `current` lists from the start again has it, which he takes for what others did meanwhile."""

        def show(nodeid: InodeT) -> list[bytes]:
            return [_CURRENT, *(name for name in NATIVE if self._is_native(name))] if nodeid == ROOT else []

        def hide(nodeid: InodeT, name: bytes) -> bool:
            return nodeid == ROOT and (name in show(ROOT) or name.startswith(_HIDDEN))

        self._files.restore(hide, show)

    @_handler
    async def readdir(self, fh: FileHandleT, start_id: int, token: ReaddirToken) -> None:
        at_root = self._files.listed(fh).id == ROOT
        for position, name in self._files.listing(fh, start_id):
            if at_root and (name == _CURRENT or (name in NATIVE and self._is_native(name))):
                sent = self._reply_ours(name, position, token)
            else:
                sent = self._files.reply_entry(fh, name, position, token)
            if not sent:
                break

    def _reply_ours(self, name: bytes, position: int, token: ReaddirToken) -> bool:
        entry = self._current.entry() if name == _CURRENT else self._native_entry(name)
        if entry is None or pyfuse3.readdir_reply(token, name, entry, position):
            return True
        self._table.forget(entry.st_ino, 1)
        return False

    def _native_entry(self, name: bytes) -> EntryAttributes | None:
        """A native directory under its constant nodeid, which must be all that the kernel ever hears of it."""
        return self._files.pinned(NATIVE[name]) if self._is_native(name) else None

    @_handler
    async def releasedir(self, fh: FileHandleT) -> None:
        self._files.releasedir(fh)

    @_handler
    async def fsyncdir(self, fh: FileHandleT, datasync: bool) -> None:
        await in_thread(os.fdatasync if datasync else os.fsync, self._files.fd(fh))
