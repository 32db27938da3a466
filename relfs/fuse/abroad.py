"""Other disks that are mounted below the deploy path, where relfs has to serve them itself (--no-bind, an ordinary
user, what was mounted later): each in a thread of its own, so that one that does not answer keeps only who uses it.

A disk of its own
-----------------
Some facts. A system call on a network file system whose server is gone does not return, and cannot be cancelled. An
O_PATH open(2) of what something is mounted on asks that file system nothing, nor does statx(2) with
AT_STATX_DONT_SYNC; openat2(2) with RESOLVE_NO_XDEV tells that there is another mount (libc.py). The kernel holds a
directory's lock while it looks up a name in it for the first time, and everybody who wants to change the directory
waits for that: so the answer to a lookup in the deploy path must not wait for the other disk, not even if it is that
disk's own root that is looked up. pyfuse3 serves 99 requests at a time, and the kernel has only so many reads ahead
under way on one connection (INIT's max_background): who waits for a disk counts among them.

The consequence. Whatever concerns another disk must be known by its number alone, before anything is asked.

The choice. Each such mount is a realm: an inode table, handles and notes of its own (plain.py), used by one thread with
a descriptor table of its own, as the teller has (teller.py). A worker that is killed while that thread is stuck keeps
nothing but the descriptors of that disk, and is replaced as ever. The upper byte of a nodeid or file handle says whose
it is. A lookup that comes upon a realm is answered at once, with what the kernel knows of its root anyway, good for no
time at all: so the kernel asks for the rest by the realm's own number, holding no lock that others need. Requests of a
realm are done one after the other. Of those that wait, `ROOM` at the most are kept, over all realms; when a disk has
answered nobody for a second, who comes on top of that gets ETIMEDOUT.

There is no way around one lock: the kernel lets only one rename from one directory to another be under way in a whole
file system (s_vfs_rename_mutex), and the mount is one. So such a rename on another disk gets ETIMEDOUT after
`_RENAME_SECONDS`, whatever becomes of it.

The next worker
---------------
A realm's ledger, and its root (O_PATH), are in the estate. What was open is opened again by its name: to hold another
disk's files, supervisor and standby would have to close them, which asks that disk (FUSE_FLUSH, NFS). So a file that
was removed while it was open is lost with the worker (ESTALE).
"""

from __future__ import annotations

import errno
import os
import queue
import stat
import threading
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import trio
from pyfuse3 import EntryAttributes, FUSEError, InodeT

from relfs import libc
from relfs.descriptors import descriptors, too_many
from relfs.fuse.guard import Guard
from relfs.fuse.handles import Handles, Keeper
from relfs.fuse.inodes import ROOT, InodeTable, Node
from relfs.fuse.once import Once
from relfs.fuse.passthrough import FOR_EVER, Passthrough
from relfs.fuse.plain import Plain
from relfs.mountinfo import mount_id
from relfs.survival.estate import Estate
from relfs.survival.ledger import Ledger
from relfs.survival.memory import new_memory
from relfs.threads import started_thread

ROOM = 48
"""How many requests may wait for other disks, over all of them; fewer than pyfuse3 serves at a time."""

_PATIENCE_SECONDS = 1.0
_RENAME_SECONDS = 5.0

_PREFIX_BITS = 56
_PREFIXES = range(0x40, 0x80)
_CONSTANTS = 16
"""The first of these are for realms whose root has a constant nodeid (inodes.py), by that."""

_HOLD = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC

_NUMBERS = {"link": (0, 1), "rename": (0, 2), "statfs": ()}
"""Which arguments of a handler say whose it is, where that is not the first alone."""

_UNANSWERED = frozenset({"release", "releasedir"})
"""Nobody waits for these; the kernel wants no more than to hear that they came."""

_ROOT, _LEDGER = "abroad.", "abroad-ledger."


@dataclass
class _Errand:
    """A call for the thread to make. `is_told`: nobody hears of it, so that what was done before may not have been
    answered when it is made. `is_given_up`: nobody waits for it any more."""

    name: str
    arguments: tuple[Any, ...]
    is_told: bool = False
    is_given_up: bool = False
    done: bool = False
    value: Any = None
    error: BaseException | None = None


class Realm:
    """One other disk. GUARDED BY the event loop: everything, but for `_call()` and what that calls, which belong to the
    thread.

    INVARIANT: `waiting` counts those in do() that were admitted; `_answered` what the thread has answered.
    """

    def __init__(
        self, root: InodeT, prefix: int, root_fd: int, ledger: Ledger, deliver: Callable[[], object], *, adopting: bool
    ) -> None:
        """`root_fd` (O_PATH) and the ledger's descriptor stay the caller's. `deliver` is once.py's."""
        self.root = root
        self.prefix = prefix
        self.mount = mount_id(root_fd)
        self.waiting = 0
        self._root_fd = root_fd
        self._ledger = ledger
        self._deliver = deliver
        ledger.first_handle = prefix << _PREFIX_BITS
        self._adopting = adopting
        self._errands: queue.SimpleQueue[_Errand | None] = queue.SimpleQueue()
        self._bell = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._is_apart = False
        self._thread: threading.Thread | None = None
        self._turn = trio.Lock()
        self._answered = 0
        self._freed = trio.Event()

    # ---- asking it, in the event loop

    async def do(self, name: str, arguments: tuple[Any, ...], room: int) -> Any:
        """What handler `name` (plain.py) answers. `room` is how many may wait for this disk. Raises what it does, and
        FUSEError(ETIMEDOUT)."""
        await self._admit(room)
        self.waiting += 1
        try:
            if name == "rename" and arguments[0] != arguments[2]:
                with trio.move_on_after(_RENAME_SECONDS):
                    return await self._ask(name, arguments)
                raise FUSEError(errno.ETIMEDOUT)
            return await self._ask(name, arguments)
        finally:
            self.waiting -= 1
            self._freed.set()
            self._freed = trio.Event()

    async def _admit(self, room: int) -> None:
        while self.waiting >= room:
            before = self._answered
            with trio.move_on_after(_PATIENCE_SECONDS):
                await self._freed.wait()
            if self._answered == before:
                raise FUSEError(errno.ETIMEDOUT)

    async def _ask(self, name: str, arguments: tuple[Any, ...]) -> Any:
        async with self._turn:  # until the handler has answered: once.py counts on that
            if self._thread is None:
                self._thread = await started_thread(self._live, f"relfs disk {self.prefix:#x}")
            self._deliver()
            errand = _Errand(name, arguments)
            self._errands.put(errand)
            try:
                while not errand.done:
                    await trio.lowlevel.wait_readable(self._bell)
                    with suppress(BlockingIOError):
                        os.eventfd_read(self._bell)
            finally:
                errand.is_given_up = not errand.done
        self._answered += 1
        if errand.error is not None:
            raise errand.error
        return errand.value

    def tell(self, name: str, *arguments: Any) -> None:
        """The same, of what nobody waits for."""
        self._errands.put(_Errand(name, arguments, is_told=True))

    def enter(self) -> None:
        """The kernel is about to hear of its root."""
        self._ledger.entered.value += 1

    def leave(self, times: int) -> bool:
        """The kernel forgets its root so many times. Whether it does not know it any more."""
        self._ledger.entered.value = max(self._ledger.entered.value - times, 0)
        return not self._ledger.entered.value

    def end(self) -> None:
        """It is not asked any more."""
        self._errands.put(None)
        if self._is_apart or self._thread is None:
            os.close(self._bell)  # otherwise it is the thread's, too

    # ---- answering, in its thread

    def _live(self) -> None:
        opened: Plain | None = None
        while (errand := self._errands.get()) is not None:
            if errand.is_given_up:
                continue
            try:
                if opened is None:
                    opened = self._opened()
                errand.value = self._call(opened, errand)
            except BaseException as error:
                errand.error = error
            errand.done = True
            os.eventfd_write(self._bell, 1)  # trio's own way to be woken is not in this thread's table

    def _call(self, plain: Plain, errand: _Errand) -> Any:
        if not errand.is_told:
            self._once.settle()
        if errand.name == "forget":
            return self._table.forget(*errand.arguments)
        if errand.name == "expect":
            return self._once.expect(*errand.arguments)
        return getattr(plain, errand.name)(*errand.arguments)

    def _opened(self) -> Plain:
        """Tables of its own, in a descriptor table of its own."""
        self._is_apart = libc.keep_only(self._root_fd, self._bell)
        own = self._root_fd if self._is_apart else os.dup(self._root_fd)
        for standard in range(3):  # nobody shall write there what is for standard error
            with suppress(OSError):
                os.fstat(standard)
                continue
            os.open(os.devnull, os.O_RDWR)
        limits = descriptors()
        self._table = InodeTable(
            limits.inodes, self._ledger, root=self.root, first_own=(self.prefix << _PREFIX_BITS) + 1
        )  # fmt: skip
        self._table.descriptors = "/proc/thread-self/fd"
        self._once = Once(self._ledger)
        handles = Handles(self._table, self._ledger, Estate())
        self._table.pin(self.root, own)
        if self._adopting:
            self._table.restore()
            handles.restore(lambda _nodeid, _name: False, lambda _nodeid: ())
            self._once.restore()
        files = Passthrough(self._table, handles, exclusive=False)
        return Plain(self._table, files, Guard(self._table, own), self._once)


class Abroad:
    """All other disks. GUARDED BY the event loop: everything. Only do() waits.

    INVARIANT: each realm is in `_by_prefix` and in `_by_root`, and has its root and its ledger in the estate.
    """

    def __init__(self, table: InodeTable, keeper: Keeper, deliver: Callable[[], object]) -> None:
        """`table` is that of the deploy path; `deliver` is once.py's."""
        self._table = table
        self._keeper = keeper
        self._deliver = deliver
        self._by_prefix: dict[int, Realm] = {}
        self._by_root: dict[int, Realm] = {}

    def __bool__(self) -> bool:
        return bool(self._by_prefix)

    def has(self, root: InodeT) -> bool:
        """Whether a constant nodeid is the root of another disk."""
        return root in self._by_root

    # ---- requests

    def realm(self, handler: str, arguments: tuple[Any, ...]) -> Realm | None:
        """Whose a request is; None: the deploy path's. Raises FUSEError(EXDEV) for what is between two."""
        realms = {self._realm_of(arguments[at]) for at in _NUMBERS.get(handler, (0,))}
        if len(realms) > 1:
            raise FUSEError(errno.EXDEV)
        return realms.pop() if realms else None

    def _realm_of(self, number: int) -> Realm | None:
        return self._by_root.get(number) or self._by_prefix.get(number >> _PREFIX_BITS)

    async def do(self, realm: Realm, handler: str, arguments: tuple[Any, ...]) -> Any:
        """What a request of the realm is answered. Raises FUSEError, OSError."""
        if handler in _UNANSWERED:
            realm.tell(handler, *arguments)
            return None
        return await realm.do(handler, arguments, max(ROOM // len(self._by_prefix), 1))

    def forget(self, nodeid: InodeT, lookups: int) -> bool:
        """As InodeTable.forget(). False if it is the deploy path's."""
        realm = self._realm_of(nodeid)
        if realm is None:
            return False
        if nodeid != realm.root:
            realm.tell("forget", nodeid, lookups)
        elif realm.leave(lookups) and nodeid >> _PREFIX_BITS:
            self._end(realm)
        return True

    def expect(self, errands: Collection[bytes]) -> None:
        """See Once.expect()."""
        for realm in self._by_prefix.values():
            realm.tell("expect", errands)

    # ---- coming upon one

    def beyond(self, directory: Node, name: bytes) -> EntryAttributes | None:
        """What the kernel is told of a name that something is mounted on; None if that is of the same disk as what is
        around it. Raises OSError."""
        fd = os.open(name, _HOLD, dir_fd=directory.fd)
        try:
            mode, (device, _) = libc.glance(fd)
            if device in (directory.key[0], self._table.node(ROOT).key[0]):
                return None
            realm = self._known(mount_id(fd)) or self._found(self._free_prefix(), None, fd)
        finally:
            os.close(fd)
        return _entry(realm, mode, 0.0)

    def settle(self, root: InodeT, directory: int) -> bool:
        """Have what the descriptor `directory` (O_PATH) is the root of known by a constant nodeid. False if that is the
        deploy path's own disk."""
        if libc.glance(directory)[1][0] == self._table.node(ROOT).key[0]:
            return False
        self._table.reserve(_PREFIXES[root])
        self._found(_PREFIXES[root], root, directory)
        return True

    def constant(self, root: InodeT) -> EntryAttributes:
        """What the kernel is told of that."""
        return _entry(self._by_root[root], stat.S_IFDIR | 0o755, FOR_EVER)

    def _known(self, mount: int) -> Realm | None:
        return next((each for each in self._by_prefix.values() if each.mount == mount), None)

    def _free_prefix(self) -> int:
        for prefix in _PREFIXES[_CONSTANTS:]:
            if prefix not in self._by_prefix and self._table.reserve(prefix):
                return prefix
        raise too_many()

    def _found(self, prefix: int, root: InodeT | None, fd: int) -> Realm:
        nodeid = root if root is not None else InodeT(prefix << _PREFIX_BITS)
        self._keeper.put(f"{_LEDGER}{nodeid}", new_memory("relfs-ledger"))
        self._keeper.put(f"{_ROOT}{nodeid}", os.dup(fd))
        return self._know(nodeid, prefix, adopting=False)

    def _know(self, nodeid: InodeT, prefix: int, *, adopting: bool) -> Realm:
        ledger = Ledger(self._keeper[f"{_LEDGER}{nodeid}"])
        root_fd = self._keeper[f"{_ROOT}{nodeid}"]
        realm = Realm(nodeid, prefix, root_fd, ledger, self._deliver, adopting=adopting)
        self._by_prefix[prefix] = self._by_root[nodeid] = realm
        return realm

    def _end(self, realm: Realm) -> None:
        """The kernel knows nothing of it any more, so it may be unmounted."""
        realm.end()
        del self._by_prefix[realm.prefix], self._by_root[realm.root]
        self._keeper.drop(f"{_ROOT}{realm.root}")
        self._keeper.drop(f"{_LEDGER}{realm.root}")

    # ---- the next worker

    def restore(self) -> None:
        """Know what the worker before this one knew. To be called before the table is restored."""
        for nodeid in [InodeT(int(name.removeprefix(_ROOT))) for name, _ in self._keeper if name.startswith(_ROOT)]:
            prefix = nodeid >> _PREFIX_BITS or _PREFIXES[nodeid]
            self._table.reserve(prefix)
            self._know(nodeid, prefix, adopting=True)


def _entry(realm: Realm, mode: int, seconds: float) -> EntryAttributes:
    """Of its attributes, the kernel gets the type, which never changes, and has to ask for the rest."""
    entry = EntryAttributes()
    entry.st_ino = realm.root
    entry.st_mode = mode
    entry.st_nlink = 1
    entry.attr_timeout = 0.0
    entry.entry_timeout = seconds
    realm.enter()
    return entry
