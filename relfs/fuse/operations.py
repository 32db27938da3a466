"""The request handlers: who answers what. `current` is CurrentLink's, names with an @ are Preview's, other disks are
Abroad's, the rest is Plain's; nothing is decided here but where a name belongs, and that no handler can bring the
daemon down.

pyfuse3 ends its main loop when a handler raises anything but FUSEError; so every handler is wrapped: an OSError becomes
its errno, anything else is logged and becomes EIO.
"""

from __future__ import annotations

import errno
import functools
import logging
import os
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

from relfs.fuse.abroad import Abroad
from relfs.fuse.current import CurrentLink
from relfs.fuse.guard import Guard
from relfs.fuse.handshake import Handshake
from relfs.fuse.inodes import RELEASES_NODE, ROOT, SHARED_NODE, STATE_NODE, InodeTable
from relfs.fuse.once import Once, errand
from relfs.fuse.passthrough import ACCESS_LIST, Passthrough
from relfs.fuse.plain import Plain
from relfs.fuse.preview import Preview
from relfs.fuse.protocol import BATON
from relfs.fuse.second_names import SecondNames
from relfs.layout import CURRENT, RELEASES, SHARED, STATE
from relfs.store import TEMPORARY
from relfs.threads import in_thread

_log = logging.getLogger(__name__)

_CURRENT = CURRENT.encode()
_HIDDEN = TEMPORARY.encode()
_SHARED = SHARED.encode()

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
            realm = self._abroad.realm(name, args) if self._abroad else None
            return await (method(self, *args) if realm is None else self._abroad.do(realm, name, args))
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
        preview: Preview,
        second_names: SecondNames,
        handshake: Handshake,
        on_native: Callable[[str], None],
        guard: Guard,
        once: Once,
        abroad: Abroad,
    ) -> None:
        """`on_native` is called with the name of a native directory that has come into being under the mount; `guard`
        is asked before anything that might change a release."""
        super().__init__()
        self.requests: Counter[str] = Counter()
        self._table = table
        self._files = files
        self._current = current
        self._preview = preview
        self._second_names = second_names
        self._handshake = handshake
        self._on_native = on_native
        self._guard = guard
        self._once = once
        self._abroad = abroad
        self._plain = Plain(table, files, guard, once)

    @property
    def is_full(self) -> bool:
        """Whether no file can be opened now, for want of descriptors."""
        return self._files.is_full

    # ---- names

    @_handler
    async def lookup(self, parent_inode: InodeT, name: bytes, ctx: RequestContext) -> EntryAttributes:
        if parent_inode != ROOT:
            return self._files.lookup(parent_inode, name)
        if name == _CURRENT:  # first: while somebody sees another release, each resolution asks for it
            return self._current.lookup(ctx)
        return await self._preview.lookup(name) or self._lookup_top(name)

    def _lookup_top(self, name: bytes) -> EntryAttributes:
        if name.startswith(_HIDDEN):
            self.requests["lookup"] -= 1  # the only one who asks for these is relfs
            return self._second_names.lookup(name)
        native = self._native_entry(name) if name in NATIVE else None
        if native is not None:
            return native
        return self._files.lookup(ROOT, name)

    def _pin_native(self, name: bytes) -> None:
        """A native directory that was not there at the start gets its constant nodeid before anybody learns another."""
        if self._is_pinned(name):
            return
        root = self._table.node(ROOT)
        try:
            fd = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=root.fd)
        except OSError:
            return
        if name == _SHARED and self._abroad.settle(SHARED_NODE, fd):
            os.close(fd)
        else:
            self._table.pin(NATIVE[name], fd)
        self._on_native(os.fsdecode(name))

    @_handler
    async def unlink(self, parent_inode: InodeT, name: bytes, ctx: RequestContext) -> None:
        if parent_inode == ROOT and name == _CURRENT:
            await self._current.unlink(ctx)
            return
        await self._preview.require_none(parent_inode, name)
        self._plain.unlink(parent_inode, name, ctx)

    @_handler
    async def symlink(self, parent_inode: InodeT, name: bytes, target: bytes, ctx: RequestContext) -> EntryAttributes:
        if parent_inode == ROOT and name == _CURRENT:
            return await self._current.symlink(target, ctx)
        self._forbid(parent_inode, name, ctx)
        return self._plain.symlink(parent_inode, name, target, ctx)

    @_handler
    async def rename(
        self, parent_inode_old: InodeT, name_old: bytes, parent_inode_new: InodeT, name_new: bytes, flags: int,
        ctx: RequestContext,
    ) -> None:  # fmt: skip
        old, new = (parent_inode_old, name_old), (parent_inode_new, name_new)
        if old == new == (ROOT, _CURRENT):
            return
        await self._preview.require_none(*old)
        await self._preview.require_none(*new)
        self._forbid_rename(old, new)
        if new == (ROOT, _CURRENT):
            self._guard.name(*old)
            with self._directory(parent_inode_old) as directory:
                await self._current.take(parent_inode_old, directory, name_old, flags, ctx)
        elif old == (ROOT, _CURRENT):
            self._guard.name(*new)
            with self._directory(parent_inode_new) as directory:
                await self._current.give(parent_inode_new, directory, name_new, flags, ctx)
        else:
            self._plain.rename(parent_inode_old, name_old, parent_inode_new, name_new, flags, ctx)

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
            if parent == ROOT and (name.startswith(_HIDDEN) or (name in NATIVE and self._is_native(name))):
                raise FUSEError(errno.EBUSY)
        if new[0] == ROOT and new[1] in NATIVE and self._files.is_directory(*old):
            raise FUSEError(errno.EBUSY)

    def _is_native(self, name: bytes) -> bool:
        self._pin_native(name)
        return self._is_pinned(name)

    def _is_pinned(self, name: bytes) -> bool:
        return self._table.is_pinned(NATIVE[name]) or self._abroad.has(NATIVE[name])

    @_handler
    async def link(
        self, inode: InodeT, new_parent_inode: InodeT, new_name: bytes, ctx: RequestContext
    ) -> EntryAttributes:
        self._forbid(new_parent_inode, new_name, ctx)
        if self._table.text(inode) is not None:  # there is no inode that could get a second name
            raise FUSEError(errno.EPERM)
        return self._plain.link(inode, new_parent_inode, new_name, ctx)

    @_handler
    async def mkdir(self, parent_inode: InodeT, name: bytes, mode: int, ctx: RequestContext) -> EntryAttributes:
        self._forbid(parent_inode, name, ctx)
        if parent_inode == ROOT and name in NATIVE:
            self._plain.make_directory(parent_inode, name, mode, ctx)
            return self._lookup_top(name)
        return self._plain.mkdir(parent_inode, name, mode, ctx)

    @_handler
    async def rmdir(self, parent_inode: InodeT, name: bytes, ctx: RequestContext) -> None:
        if parent_inode == ROOT and name in NATIVE and self._is_native(name):
            raise FUSEError(errno.EBUSY)
        if parent_inode == ROOT and name == _CURRENT:
            raise FUSEError(errno.ENOTDIR)
        self._plain.rmdir(parent_inode, name, ctx)

    @_handler
    async def mknod(
        self, parent_inode: InodeT, name: bytes, mode: int, rdev: int, ctx: RequestContext
    ) -> EntryAttributes:
        self._forbid(parent_inode, name, ctx)
        return self._plain.mknod(parent_inode, name, mode, rdev, ctx)

    @_handler
    async def create(
        self, parent_inode: InodeT, name: bytes, mode: int, flags: int, ctx: RequestContext
    ) -> tuple[FileInfo, EntryAttributes]:
        self._forbid(parent_inode, name, ctx)
        return self._plain.create(parent_inode, name, mode, flags, ctx)

    def _forbid(self, parent: InodeT, name: bytes, ctx: RequestContext) -> None:
        """`current` can only be a symbolic link, and the name of its successor to be is relfs's own."""
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
            self.expect(again.errands)
            inode_list = [(InodeT(nodeid), lookups) for nodeid, lookups in again.forgets]
        for nodeid, lookups in inode_list:
            if not (self._abroad and self._abroad.forget(nodeid, lookups)):
                self._table.forget(nodeid, lookups)

    def expect(self, errands: frozenset[bytes]) -> None:
        """Once.expect(), for all that keep notes."""
        self._once.expect(errands)
        self._abroad.expect(errands)

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
            return self._plain.setattr(inode, attr, fields, fh, ctx)
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
        self._plain.setxattr(inode, name, value, ctx)

    @_handler
    async def getxattr(self, inode: InodeT, name: bytes, ctx: RequestContext) -> bytes:
        self._no_xattr(inode, errno.ENODATA)
        return self._plain.getxattr(inode, name, ctx)

    @_handler
    async def listxattr(self, inode: InodeT, ctx: RequestContext) -> Sequence[bytes]:
        return [] if self._table.text(inode) is not None else self._files.listxattr(inode, ctx)

    @_handler
    async def removexattr(self, inode: InodeT, name: bytes, ctx: RequestContext) -> None:
        self._no_xattr(inode, errno.ENODATA)
        self._plain.removexattr(inode, name, ctx)

    def _no_xattr(self, inode: InodeT, number: int) -> None:
        if self._table.text(inode) is not None:
            raise FUSEError(number)

    @_handler
    async def statfs(self, ctx: RequestContext) -> StatvfsData:  # noqa: ARG002
        return self._files.statfs(ROOT)

    # ---- files

    @_handler
    async def open(self, inode: InodeT, flags: int, ctx: RequestContext) -> FileInfo:
        return self._plain.open(inode, flags, ctx)

    @_handler
    async def read(self, fh: FileHandleT, off: int, size: int) -> bytes:
        return self._files.read(fh, off, size)

    @_handler
    async def write(self, fh: FileHandleT, off: int, buf: bytes) -> int:
        return self._plain.write(fh, off, buf)

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
        again = self._plain.reopened(request)
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
        if not self._is_native(name):
            return None
        nodeid = NATIVE[name]
        return self._abroad.constant(nodeid) if self._abroad.has(nodeid) else self._files.pinned(nodeid)

    @_handler
    async def releasedir(self, fh: FileHandleT) -> None:
        self._files.releasedir(fh)

    @_handler
    async def fsyncdir(self, fh: FileHandleT, datasync: bool) -> None:
        await in_thread(os.fdatasync if datasync else os.fsync, self._files.fd(fh))
