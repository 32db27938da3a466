"""File handles: what is open through the mount, in a form that outlives the worker.

Some facts. The kernel knows an open file by the number that we gave it, and goes on using that whoever answers. A file
that was removed while it was open has no name by which another process could open it again; only a descriptor holds it.
And a directory that is being listed is asked for by position, so what was listed must not change in between: `rm -r`
removes what it has read so far, and asks for the rest.

The choice. A handle is the number of its record in the ledger; its descriptor, and the names that were listed (in a
file of their own), are in the estate, and sent to the supervisor, from which the standby has them, before the kernel is
told. Should worker and supervisor both be killed just then, what has a name is opened by that again. No two files ever
have the same number: who holds the estate may not have heard that a file was closed, and would give the next one's
readers and writers the wrong file.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

from pyfuse3 import FileHandleT, FUSEError, InodeT

from relfs.descriptors import descriptors, too_many
from relfs.fuse.inodes import InodeTable, Node
from relfs.survival.estate import is_fleeting
from relfs.survival.ledger import HandleRecord, Ledger, opening_of
from relfs.survival.memory import new_memory


class Keeper(Protocol):
    """Where descriptors are put that shall outlive this process (survival/estate.py)."""

    def __getitem__(self, name: str) -> int: ...

    def __contains__(self, name: str) -> bool: ...

    def __iter__(self) -> Iterator[tuple[str, int]]: ...

    def put(self, name: str, fd: int) -> None: ...

    def drop(self, name: str) -> None: ...


@dataclass(frozen=True)
class OpenFile:
    node: Node
    writing: bool


@dataclass
class Listing:
    """An open directory: `names` is what it held when it was last read from the start, less what `hide` hides, and
    with what `show` adds; `kinds`, where somebody had to ask, each one's inode number and file type."""

    fd: int
    node: Node
    hide: Callable[[bytes], bool]
    show: Sequence[bytes]
    names: list[bytes]
    kinds: dict[bytes, tuple[int, int]] | None = None


def nothing(_name: bytes) -> bool:
    """Hides nothing."""
    return False


class Handles:
    """GUARDED BY the event loop: everything. Contains no `await`.

    INVARIANT: the handles are those of the ledger, each with a descriptor `file.N` in the estate.
    """

    def __init__(self, table: InodeTable, ledger: Ledger, estate: Keeper) -> None:
        self._table = table
        self._ledger = ledger
        self._estate = estate
        self._files: dict[FileHandleT, OpenFile] = {}
        self._listings: dict[FileHandleT, Listing] = {}
        self._most = descriptors().files

    @property
    def is_full(self) -> bool:
        """Whether there is no descriptor for one more; a directory may take two."""
        return len(self._files) + 2 * len(self._listings) + 2 > self._most

    def require_room(self) -> None:
        """Before something is opened, or even made. Raises OSError (EMFILE)."""
        if self.is_full:
            raise too_many()

    @property
    def next_opening(self) -> int:
        """What made() will know the next handle by, also in another worker."""
        return self._ledger.next_opening

    def made(self, opening: int) -> FileHandleT | None:
        """The handle that `next_opening` told of, if it was made, and is not closed."""
        return next((fh for fh in self if opening_of(fh) == opening), None)

    def fd(self, fh: FileHandleT) -> int:
        """The descriptor of an open file or directory. Raises KeyError."""
        return self._estate[_file(fh)]

    def add_file(self, fd: int, node: Node, *, writing: bool) -> FileHandleT:
        """The handle of an open file, whose descriptor is ours from now on. Raises OSError."""
        fh = self._add(fd, HandleRecord(node.id, writing, directory=False))
        self._know_file(fh, node, writing=writing)
        return fh

    def add_directory(self, fd: int, node: Node, hide: Callable[[bytes], bool], show: Sequence[bytes]) -> FileHandleT:
        """The same for a directory."""
        fh = self._add(fd, HandleRecord(node.id, writing=False, directory=True))
        self._listings[fh] = Listing(fd, node, hide, show, [])
        return fh

    def _add(self, fd: int, record: HandleRecord) -> FileHandleT:
        try:
            fh = FileHandleT(self._ledger.put_handle(record))
        except OSError:
            os.close(fd)
            raise
        self._estate.put(_file(fh), fd)
        return fh

    def _know_file(self, fh: FileHandleT, node: Node, *, writing: bool) -> None:
        self._files[fh] = OpenFile(node, writing)
        node.opened += 1

    def is_written(self, node: Node) -> bool:
        """Whether somebody has the file open for writing."""
        return any(each.node is node for each in self._files.values() if each.writing)

    def listing(self, fh: FileHandleT) -> Listing:
        """Raises KeyError."""
        return self._listings[fh]

    def keep_names(self, fh: FileHandleT, names: list[bytes]) -> None:
        """What was listed, to be told by position from now on."""
        self._listings[fh].names = names
        kept = new_memory("relfs-names")
        with open(kept, "wb", closefd=False) as file:
            file.write(b"\0".join(names))
        self._estate.put(_names(fh), kept)

    def close(self, fh: FileHandleT) -> None:
        """A handle that is not known was closed by a worker that died before it could say so."""
        file = self._files.pop(fh, None)
        if file is not None:
            file.node.opened -= 1
        if file is None and self._listings.pop(fh, None) is None:
            return
        self._estate.drop(_names(fh))
        self._estate.drop(_file(fh))
        self._ledger.drop_handle(fh)

    # ---- the next worker

    def restore(self, hide: Callable[[InodeT, bytes], bool], show: Callable[[InodeT], Sequence[bytes]]) -> None:
        """Know what the ledger tells, once the table does. `hide` and `show` are told the directory's nodeid."""
        for number, record in list(self._ledger.handles()):
            fh, nodeid = FileHandleT(number), InodeT(record.nodeid)
            node = self._revived(fh, nodeid, record)
            if node is None:
                self._estate.drop(_names(fh))
                self._estate.drop(_file(fh))
                self._ledger.drop_handle(fh)
            elif record.directory:
                self._listings[fh] = Listing(self.fd(fh), node, _bound(hide, nodeid), show(nodeid), self._names(fh))
            else:
                self._know_file(fh, node, writing=record.writing)
        self._drop_strays()

    def _drop_strays(self) -> None:
        """What was closed by a worker that died before all had heard of it."""
        known = {each(fh) for fh in self for each in (_file, _names)}
        for name, _ in list(self._estate):
            if is_fleeting(name) and name not in known:
                self._estate.drop(name)

    def _revived(self, fh: FileHandleT, nodeid: InodeT, record: HandleRecord) -> Node | None:
        if _file(fh) not in self._estate:
            with suppress(OSError, FUSEError):
                flags = os.O_RDWR if record.writing else os.O_RDONLY
                again = os.open(self._table.node(nodeid).path, flags | os.O_NONBLOCK | os.O_CLOEXEC)
                self._estate.put(_file(fh), again)
        return self._table.revive(nodeid, self.fd(fh)) if _file(fh) in self._estate else None

    def _names(self, fh: FileHandleT) -> list[bytes]:
        if _names(fh) not in self._estate:
            return []
        fd = self._estate[_names(fh)]
        return os.pread(fd, os.fstat(fd).st_size, 0).split(b"\0")

    def __contains__(self, fh: object) -> bool:
        return fh in self._files or fh in self._listings

    def __iter__(self) -> Iterator[FileHandleT]:
        return iter((*self._files, *self._listings))

    def check_invariants(self) -> None:
        """For tests: raise AssertionError where an INVARIANT of this class does not hold."""
        assert {FileHandleT(number) for number, _ in self._ledger.handles()} == set(self)
        assert all(_file(fh) in self._estate for fh in self)


def _bound(hide: Callable[[InodeT, bytes], bool], nodeid: InodeT) -> Callable[[bytes], bool]:
    return lambda name: hide(nodeid, name)


def _file(fh: FileHandleT) -> str:
    return f"file.{fh}"


def _names(fh: FileHandleT) -> str:
    return f"names.{fh}"
