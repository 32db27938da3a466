"""Read-write passthrough: everything under the mount that is neither `current` nor a native directory.

Each method is one or two system calls on the covered file system, through the descriptors of the inode table, so that
nothing depends on what a path means by now. None contains an `await`; each raises OSError as the system call does.
They run in the event loop: a covered file system that hangs, hangs them (the reason why bytes are served natively).
Other file systems that are mounted below it are not walked into (abroad.py).
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import time
from collections.abc import Callable, Collection, Iterator, Sequence

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
    readdir_reply,
)

from relfs import libc
from relfs.descriptors import descriptors
from relfs.fuse.caller import CAP_FOWNER, acting_as, creating_as, is_administrator
from relfs.fuse.handles import Handles, Listing, nothing
from relfs.fuse.inodes import ROOT, InodeTable, Node
from relfs.records import TOP_NAMES

FOR_EVER = 1e9
"""Seconds; more than thirty years, for what never changes."""

MOMENT = 1.0
"""Seconds for which the kernel may keep what only changes through the mount: how late it notices other writers."""

_WRITTEN_BESIDE = frozenset(map(os.fsencode, TOP_NAMES))
"""Deploy tools' records, which relfs itself writes beside the mount: a stale size would have `echo >>` undo that."""

_HOLD = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_NOT_OURS = os.O_DIRECT  # what it asks of buffers, Python's do not have; the kernel's own caching obeys it
_NAMING = os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
_EXECUTE = 0x20
"""__FMODE_EXEC (linux/fs.h): the kernel opens a program to run it, having checked that the caller may."""
_JUST_NOW = 10**9
"""Nanoseconds; what pyfuse3 makes of "now" is not older when we hear of it."""
Entry = EntryAttributes | None
_PRIVILEGE_BITS = stat.S_ISUID | stat.S_ISGID
ACCESS_LIST = b"system.posix_acl_access"
_ACCESS_LISTS = (ACCESS_LIST, b"system.posix_acl_default")


def _nowhere(_directory: Node, _name: bytes) -> Entry:
    """Whatever is mounted there is like any other directory."""
    return None


class Passthrough:
    """GUARDED BY the event loop: everything."""

    def __init__(
        self, table: InodeTable, handles: Handles, *, exclusive: bool, beyond: Callable[[Node, bytes], Entry] = _nowhere
    ) -> None:
        """`exclusive`: the covered directory changes only through the mount (it is mounted over). `beyond` tells what
        the kernel is told of a name in a directory that another file system is mounted on; None: it is like any."""
        self.table = table
        self._beyond = beyond
        self._handles = handles
        self._descriptors = descriptors()
        self._timeout = MOMENT if exclusive else 0.0
        self._exclusive = exclusive

    # ---- attributes

    def attributes(self, node: Node, status: os.stat_result | None = None) -> EntryAttributes:
        """What the kernel is told of `node`, and for how long it may believe it."""
        entry = fill(EntryAttributes(), status if status is not None else os.fstat(node.fd))
        entry.st_ino = node.id
        timeout = 0.0 if node.volatile else self._timeout
        # The root is on everybody's way: each resolution asks for its permissions, and none shall need the daemon for
        # that. Whoever sees the covered directory change drops what the kernel has (changes.drop_root_attributes).
        entry.attr_timeout = FOR_EVER if node.id == ROOT else timeout
        entry.entry_timeout = FOR_EVER if node.pinned else timeout
        return entry

    def getattr(self, nodeid: InodeT) -> EntryAttributes:
        return self.attributes(self.table.node(nodeid))

    def setattr(
        self,
        nodeid: InodeT,
        wanted: EntryAttributes,
        fields: SetattrFields,
        fh: FileHandleT | None,
        context: RequestContext,
    ) -> EntryAttributes:
        node = self.table.node(nodeid)
        path = node.path
        if fields.update_size:
            with acting_as(context):
                os.truncate(self._handles.fd(fh) if fh is not None else path, wanted.st_size)
        if fields.update_uid or fields.update_gid:
            uid = wanted.st_uid if fields.update_uid else -1
            gid = wanted.st_gid if fields.update_gid else -1
            with acting_as(context):
                os.chown(path, uid, gid)
        if fields.update_mode:
            self._chmod(node, stat.S_IMODE(wanted.st_mode), context)
        if fields.update_atime or fields.update_mtime:
            _set_times(node, wanted, fields)
        if is_nothing(fields):
            self._drop_privileges(node, context)
        return self.attributes(node)

    def _drop_privileges(self, node: Node, context: RequestContext) -> None:
        """What the kernel asks before a write that costs the file its set-id bits (HANDLE_KILLPRIV_V2; fuse_setattr()
        in fs/fuse/dir.c) looks like chown(2) with nothing to change, which costs them too, but is for owners only.
        Which bits, the covered file system knows. It is a write if somebody has the file open for it."""
        written = self.is_written(node)
        path = node.path
        with acting_as(context, lend=CAP_FOWNER if written else 0):
            try:
                os.chown(path, -1, -1)
            except PermissionError:
                if not written:  # otherwise we are a user's own daemon, whose writing takes them by itself
                    raise

    def is_written(self, node: Node) -> bool:
        """Whether somebody has the file open for writing."""
        return self._handles.is_written(node)

    def _chmod(self, node: Node, mode: int, context: RequestContext) -> None:
        """Losing only set-id bits is the kernel's doing when somebody else writes the file: not his to be refused."""
        old = stat.S_IMODE(os.fstat(node.fd).st_mode)
        if mode | (old & _PRIVILEGE_BITS) == old:
            os.chmod(node.path, mode)
            return
        path = node.path
        with acting_as(context):
            os.chmod(path, mode)

    def readlink(self, nodeid: InodeT) -> bytes:
        return os.readlink(b"", dir_fd=self.table.node(nodeid).fd)

    # ---- names

    def lookup(self, parent: InodeT, name: bytes) -> EntryAttributes:
        directory = self.table.node(parent)
        try:
            fd = libc.hold_here(directory.fd, name)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            entry = self._beyond(directory, name)
            if entry is not None:
                return entry
            fd = os.open(name, _HOLD, dir_fd=directory.fd)
        return self._known(directory, name, self._descriptors.for_inode(fd))

    def _known(self, directory: Node, name: bytes, fd: int) -> EntryAttributes:
        parent = directory.id
        try:
            status = os.fstat(fd)
        except OSError:
            os.close(fd)
            raise
        node = self.table.adopt(fd, status, (parent, name))
        if directory.volatile or (parent == ROOT and name in _WRITTEN_BESIDE):
            self.table.make_volatile(node)
        entry = self._reply(node, status)
        if parent == ROOT and stat.S_ISLNK(status.st_mode):
            entry.entry_timeout = 0.0  # a rename onto `current` moves this dentry there, with its timeouts
        return entry

    def _reply(self, node: Node, status: os.stat_result) -> EntryAttributes:
        self.table.count(node.id)
        return self.attributes(node, status)

    def pinned(self, nodeid: InodeT) -> EntryAttributes:
        """A lookup of a name whose nodeid is a constant, whatever has become of it in the covered directory."""
        node = self.table.node(nodeid)
        return self._reply(node, os.fstat(node.fd))

    def make_directory(self, parent: InodeT, name: bytes, mode: int, context: RequestContext) -> None:
        directory = self.table.node(parent).fd
        with creating_as(context):
            os.mkdir(name, stat.S_IMODE(mode), dir_fd=directory)

    def mknod(self, parent: InodeT, name: bytes, mode: int, device: int, context: RequestContext) -> EntryAttributes:
        directory = self.table.node(parent).fd
        with creating_as(context):
            os.mknod(name, mode, device, dir_fd=directory)
        return self.lookup(parent, name)

    def symlink(self, parent: InodeT, name: bytes, text: bytes, context: RequestContext) -> EntryAttributes:
        directory = self.table.node(parent).fd
        with acting_as(context):
            os.symlink(text, name, dir_fd=directory)
        return self.lookup(parent, name)

    def link(self, nodeid: InodeT, parent: InodeT, name: bytes, context: RequestContext) -> EntryAttributes:
        path, directory = self.table.node(nodeid).path, self.table.node(parent).fd
        with acting_as(context):
            os.link(path, name, dst_dir_fd=directory, follow_symlinks=True)
        return self.lookup(parent, name)

    def identity(self, parent: InodeT, name: bytes) -> bytes | None:
        """What tells the inode that has this name from others; None if none has it, or it cannot be seen."""
        try:
            _, key = libc.glance(self.table.node(parent).fd, name)
        except OSError:
            return None
        return b"%d:%d" % key

    def is_directory(self, parent: InodeT, name: bytes) -> bool:
        return stat.S_ISDIR(libc.glance(self.table.node(parent).fd, name)[0])

    def unlink(self, parent: InodeT, name: bytes, context: RequestContext) -> None:
        directory = self.table.node(parent).fd
        self.table.hold_named(directory, name)
        with acting_as(context):
            os.unlink(name, dir_fd=directory)

    def rmdir(self, parent: InodeT, name: bytes, context: RequestContext) -> None:
        directory = self.table.node(parent).fd
        self.table.hold_named(directory, name)
        with acting_as(context):
            os.rmdir(name, dir_fd=directory)

    def rename(
        self, old_parent: InodeT, old: bytes, new_parent: InodeT, new: bytes, flags: int, context: RequestContext
    ) -> None:
        source, destination = self.table.node(old_parent).fd, self.table.node(new_parent).fd
        self.table.hold_named(source, old)
        self.table.hold_named(destination, new)
        with acting_as(context):
            if flags:
                libc.renameat2(source, old, destination, new, flags)
            else:
                os.rename(old, new, src_dir_fd=source, dst_dir_fd=destination)
        self.table.note_moved(new_parent, new)
        if flags & libc.RENAME_EXCHANGE:
            self.table.note_moved(old_parent, old)

    # ---- files

    @property
    def is_full(self) -> bool:
        """Whether no file can be opened now, for want of descriptors."""
        return self._handles.is_full

    def open(self, nodeid: InodeT, flags: int, context: RequestContext) -> FileInfo:
        self._handles.require_room()
        node = self.table.node(nodeid)
        path = node.path
        opening = self._flags(flags, appending=node.volatile) & ~_NAMING
        if flags & _EXECUTE:
            fd = os.open(path, opening)
        else:
            with acting_as(context):
                try:
                    fd = os.open(path, opening)
                except PermissionError:
                    if not flags & os.O_APPEND:
                        raise
                    fd = os.open(path, opening | os.O_APPEND)  # a file that can only be appended to (chattr(1))
        fh = self._handles.add_file(fd, node, writing=flags & os.O_ACCMODE != os.O_RDONLY)
        return self.opened(fh, node)

    def opened(self, fh: FileHandleT, node: Node) -> FileInfo:
        """What the kernel is told of an open file."""
        return FileInfo(fh=fh, keep_cache=self._exclusive and not node.volatile)

    def _flags(self, flags: int, *, appending: bool = False) -> int:
        """The caller's flags, as far as they are for us to obey.

        Not O_APPEND where the file changes only through the mount: the kernel sends the offset of the end then, and
        offsets of its own for what was mapped, which pwrite(2) on an appending descriptor would not honour. With
        `appending` it may have grown beside the mount.
        """
        ours = flags & ~(_NOT_OURS | _EXECUTE | (os.O_APPEND if self._exclusive and not appending else 0))
        return ours | os.O_CLOEXEC

    def create(
        self, parent: InodeT, name: bytes, mode: int, flags: int, context: RequestContext
    ) -> tuple[FileInfo, EntryAttributes]:
        self._handles.require_room()
        directory = self.table.node(parent).fd
        with creating_as(context):
            # O_NONBLOCK: should a fifo have come there behind our back, nobody is waited for.
            opening = self._flags(flags) | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK
            fd = os.open(name, opening, stat.S_IMODE(mode), dir_fd=directory)
        try:
            entry = self.lookup(parent, name)
        except BaseException:
            os.close(fd)
            raise
        try:
            fh = self._handles.add_file(fd, self.table.node(entry.st_ino), writing=True)
        except OSError:
            self.table.forget(entry.st_ino, 1)
            raise
        return FileInfo(fh=fh), entry

    def read(self, fh: FileHandleT, offset: int, size: int) -> bytes:
        return os.pread(self.fd(fh), size, offset)

    def write(self, fh: FileHandleT, offset: int, data: bytes) -> int:
        return os.pwrite(self.fd(fh), data, offset)

    def appends(self, fh: FileHandleT) -> bool:
        """Whether each write goes to the end of the file, wherever that is."""
        return bool(fcntl.fcntl(self.fd(fh), fcntl.F_GETFL) & os.O_APPEND)

    def size(self, fh: FileHandleT) -> int:
        """Bytes."""
        return os.fstat(self.fd(fh)).st_size

    def append_once(self, fh: FileHandleT, before: int, data: bytes) -> int:
        """Append what may have been appended, wholly or in part, when the file was `before` bytes long."""
        reading = os.open(f"{self.table.descriptors}/{self.fd(fh)}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            behind = os.pread(reading, max(self.size(fh) - before, 0), before)
        finally:
            os.close(reading)
        if data in behind:  # others may append beside the mount
            return len(data)
        done = len(behind) if data.startswith(behind) else 0
        return done + os.write(self.fd(fh), data[done:])

    def flush(self, fh: FileHandleT) -> None:
        os.close(os.dup(self.fd(fh)))  # what a file system reports at close(2), it reports to this one too

    def release(self, fh: FileHandleT) -> None:
        self._handles.close(fh)

    @property
    def next_opening(self) -> int:
        """Handles.next_opening."""
        return self._handles.next_opening

    def made(self, opening: int) -> FileHandleT | None:
        """Handles.made()."""
        return self._handles.made(opening)

    def restore(self, hide: Callable[[InodeT, bytes], bool], show: Callable[[InodeT], Sequence[bytes]]) -> None:
        """Handles.restore()."""
        self._handles.restore(hide, show)

    def fd(self, fh: FileHandleT) -> int:
        """The descriptor of an open file. Raises FUSEError(ESTALE) for a handle that was lost with its last holder."""
        try:
            return self._handles.fd(fh)
        except KeyError:
            raise FUSEError(errno.ESTALE) from None

    # ---- directories

    def opendir(
        self,
        nodeid: InodeT,
        context: RequestContext,
        *,
        hide: Callable[[bytes], bool] = nothing,
        show: Sequence[bytes] = (),
    ) -> FileHandleT:
        self._handles.require_room()
        node = self.table.node(nodeid)
        path = node.path
        with acting_as(context):
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        return self._handles.add_directory(fd, node, hide, show)

    def listing(self, fh: FileHandleT, start: int) -> Iterator[tuple[int, bytes]]:
        """The names from position `start` on, each with the position behind it; position 0 reads anew."""
        listing = self._listing(fh)
        if start == 0 or not listing.names:
            _rewind(listing)
            found = [os.fsencode(name) for name in os.listdir(listing.fd)]
            listing.kinds = None
            shown = [b".", b"..", *listing.show, *(name for name in found if not listing.hide(name))]
            self._handles.keep_names(fh, shown)
        for index in range(start, len(listing.names)):
            yield index + 1, listing.names[index]

    def listed(self, fh: FileHandleT) -> Node:
        """The directory that `fh` lists."""
        return self._listing(fh).node

    def _listing(self, fh: FileHandleT) -> Listing:
        try:
            return self._handles.listing(fh)
        except KeyError:
            raise FUSEError(errno.ESTALE) from None

    def reply_entry(self, fh: FileHandleT, name: bytes, position: int, token: ReaddirToken) -> bool:
        """Tell the kernel one name; False if there is no more room. A name that is gone by now is passed over."""
        directory = self._listing(fh).node
        if name in (b".", b".."):  # no reference is taken for these
            return readdir_reply(token, name, self.attributes(directory), position)
        try:
            entry = self.lookup(directory.id, name)
        except FileNotFoundError:
            return True
        except PermissionError:
            found = self._unsearched(self._listing(fh), name)
            if found is None:
                return True
            entry = found
        if readdir_reply(token, name, entry, position):
            return True
        self.table.forget(entry.st_ino, 1)
        return False

    def _unsearched(self, listing: Listing, name: bytes) -> EntryAttributes | None:
        """What the listing itself says of a name, where it may be read and not be searched (a user's own daemon). The
        kernel learns a number that nobody answers for: whoever asks further is looked up, and refused, anew."""
        if listing.kinds is None:
            _rewind(listing)
            with os.scandir(listing.fd) as entries:
                listing.kinds = {os.fsencode(each.name): (each.inode(), _type(each)) for each in entries}
        if name not in listing.kinds:
            return None
        inode, kind = listing.kinds[name]
        key = (listing.node.key[0], inode)
        node = self.table.held(key)
        if node is not None:
            return self._reply(node, os.fstat(node.fd))
        entry = EntryAttributes()
        entry.st_ino = self.table.number(key)
        entry.st_mode = kind
        entry.attr_timeout = entry.entry_timeout = 0.0
        return entry

    def releasedir(self, fh: FileHandleT) -> None:
        self._handles.close(fh)

    # ---- the rest

    def statfs(self, nodeid: InodeT) -> StatvfsData:
        now = os.fstatvfs(self.table.node(nodeid).fd)
        data = StatvfsData()
        for field in ("bsize", "frsize", "blocks", "bfree", "bavail", "files", "ffree", "favail", "namemax"):
            setattr(data, f"f_{field}", getattr(now, f"f_{field}"))
        return data

    def setxattr(self, nodeid: InodeT, name: bytes, value: bytes, context: RequestContext) -> None:
        path = self.table.node(nodeid).path
        with acting_as(context):
            os.setxattr(path, name, value)

    def getxattr(self, nodeid: InodeT, name: bytes, context: RequestContext) -> bytes:
        path = self.table.node(nodeid).path
        if name in _ACCESS_LISTS:
            return _access_list(path, name)
        if name.startswith(b"security."):  # everybody may read it (xattr(7)), and the kernel does before it writes
            return os.getxattr(path, name)
        with acting_as(context):
            return os.getxattr(path, name)

    def listxattr(self, nodeid: InodeT, context: RequestContext) -> list[bytes]:
        path = self.table.node(nodeid).path
        with acting_as(context):
            names = [os.fsencode(name) for name in os.listxattr(path)]
        trusted = {name for name in names if name.startswith(b"trusted.")}
        return names if not trusted or is_administrator(context) else [name for name in names if name not in trusted]

    def removexattr(self, nodeid: InodeT, name: bytes, context: RequestContext) -> None:
        path = self.table.node(nodeid).path
        with acting_as(context):
            os.removexattr(path, name)


def _type(entry: os.DirEntry[str]) -> int:
    """As far as entries tell: all that is special is the same."""
    if entry.is_dir(follow_symlinks=False):
        return stat.S_IFDIR
    if entry.is_symlink():
        return stat.S_IFLNK
    return stat.S_IFREG if entry.is_file(follow_symlinks=False) else stat.S_IFSOCK


def is_nothing(fields: SetattrFields) -> bool:
    """Whether no attribute is to be changed: see Passthrough._drop_privileges()."""
    times = fields.update_atime or fields.update_mtime
    return not (times or fields.update_size or fields.update_mode or fields.update_uid or fields.update_gid)


def _rewind(listing: Listing) -> None:
    """The next worker shares the descriptor, and so where it stands: one that dies while it reads leaves it anywhere.
    os.listdir() goes back to the start only when it is done, for whoever comes next."""
    os.lseek(listing.fd, 0, os.SEEK_SET)


def has_access_lists(directory: int, without: Collection[bytes]) -> bool:
    """Whether a directory, or an entry of it but for `without`, grants more or less than its mode says (acl(5))."""
    base = b"/proc/self/fd/%d/" % directory
    names = [name for name in map(os.fsencode, os.listdir(directory)) if name not in without]
    return any(_is_on_it(directory, name) and _has_access_list(base + name) for name in (b".", *names))


def _is_on_it(directory: int, name: bytes) -> bool:
    """Whether that is on the same disk. Another one might not answer."""
    try:
        return libc.glance(directory, name)[1][0] == libc.glance(directory)[1][0]
    except OSError:
        return False


def _has_access_list(path: bytes) -> bool:
    try:
        os.getxattr(path, ACCESS_LIST, follow_symlinks=False)
    except OSError:
        return False
    return True


def _access_list(path: str, name: bytes) -> bytes:
    """Read by everybody: the kernel, for its own decisions, asks in the name of whoever needs one. It takes ENODATA for
    a file without a list, and any other error for the answer to whatever that caller wanted."""
    try:
        return os.getxattr(path, name)
    except OSError as error:
        if error.errno == errno.ENOTSUP:  # a file system without lists
            raise OSError(errno.ENODATA, os.strerror(errno.ENODATA)) from error
        raise


def _set_times(node: Node, wanted: EntryAttributes, fields: SetattrFields) -> None:
    """Not as the caller: pyfuse3 turns "now" into a time, which only owners may set; the kernel has checked which."""
    now = os.fstat(node.fd)
    atime = wanted.st_atime_ns if fields.update_atime else now.st_atime_ns
    mtime = wanted.st_mtime_ns if fields.update_mtime else now.st_mtime_ns
    try:
        os.utime(node.path, ns=(atime, mtime))
    except PermissionError:
        if abs(time.time_ns() - mtime) > _JUST_NOW:
            raise
        os.utime(node.path)  # a file that can only be appended to (chattr(1)) may have been touched all the same


def fill(entry: EntryAttributes, status: os.stat_result) -> EntryAttributes:
    """Copy all but the inode number, which is the nodeid under a mount. Spelled out: every lookup comes through here,
    and a loop over names takes five times as long."""
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
    return entry
