"""The ledger: what the next worker has to know, as the present one writes it down (memory.py says how that stays
whole).

    nodes      inodes of the covered file system that the kernel may ask for: nodeid, where it is, lookup count
    links      texts of `current` that the kernel may have cached, by nodeid
    handles    open files and directories, by file handle; their descriptors are in the Estate
    errands    requests that must not be done twice (fuse/once.py)
    requests   requests that were read and not answered, where the kernel cannot be asked for them again (requests.py)
    pins       what the marks of processes stand for (views/pins.py)
    decisions  who sees the canary, and who does not (views/canary.py)
    cells      single values: what was asked for, the reply to INIT, what is attached, replacements under way, seals,
               the canary

Lookup counts are advisory: a FORGET that a dead worker had read is lost, and a LOOKUP that is done again counts twice.
Each only keeps a record longer than it is needed.

Another version of relfs may read what this one wrote (relfsctl reload), so `VERSION` changes with the layout, but for
what is added at its end.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from relfs.survival.memory import Cell, Memory, Number, Slots, area, new_memory
from relfs.survival.requests import Requests

VERSION = 1
"""Of the layout below. A worker does not take over memory of another version; `relfsctl reload` falls back then."""

_NODE = struct.Struct("=7Q")  # sequence, nodeid, lookups, parent, device, inode, flags; the name follows
_NODE_LOOKUPS = 2
_NODE_FLAGS = 6
_VOLATILE = 1
_NODE_MAX = _NODE.size + 255
_LINK = struct.Struct("=2Q")  # nodeid, lookups; the text follows
_LINK_LOOKUPS = 1
_LINK_MAX = _LINK.size + 4096
_HANDLE = struct.Struct("=3Q")  # sequence, nodeid, flags
_WRITING = 1
_DIRECTORY = 2
ERRAND_MAX = 1 << 13

_NODES = 1 << 21
_LINKS = 1 << 14
_HANDLES = 1 << 20
_HANDLE_NUMBERS = 2 * _HANDLES  # more than there are slots
_FIRST_HANDLE = 1 << 56
_ERRANDS = 1 << 10
_PIN_MAX = 1 << 14
_PINS = 1 << 13
_DECISION_MAX = 24
_DECISIONS = 1 << 17


@dataclass(frozen=True)
class NodeRecord:
    """An inode of the covered file system: `key` is (st_dev, st_ino), `place` its directory's nodeid and its name."""

    nodeid: int
    key: tuple[int, int]
    place: tuple[int, bytes]
    lookups: int
    volatile: bool


@dataclass(frozen=True)
class LinkRecord:
    nodeid: int
    text: bytes
    lookups: int


@dataclass(frozen=True)
class HandleRecord:
    """An open file, or directory."""

    nodeid: int
    writing: bool
    directory: bool


@dataclass(frozen=True)
class Who:
    """A process: its pid, and its start time in clock ticks after boot, which tells it from a later one of that pid."""

    pid: int
    start: int


class Ledger:
    """GUARDED BY being written by one worker at a time, in its event loop; `seals` in its threads, under a lock
    (daemon/seal.py). Who is who is written by the supervisor, and by the worker, of itself, which comes to the same.
    `reload` is written by the two in turn (daemon/reloading.py)."""

    def __init__(self, fd: int) -> None:
        """Map it. Raises OSError, and ValueError if it is of another VERSION."""
        self.fd = fd
        self.first_handle = 0
        """What all file handles are counted from, a multiple of 1 << 56."""
        self._memory = memory = Memory(fd, _SIZE)
        version = Number(memory, 0)
        if version.value not in (0, VERSION):
            raise ValueError(f"the state is of version {version.value}, not {VERSION}")
        version.value = VERSION
        self._next_own = Number(memory, 8)
        self._sequence = Number(memory, 16)
        self.beat = Number(memory, 24)
        """Goes up as long as the worker's event loop goes round."""
        self._mounted = Number(memory, 32)
        self._openings = Number(memory, 40)
        self.entered = Number(memory, 48)
        """How often the kernel knows the root of another disk, in the ledger of that (fuse/abroad.py)."""
        self._who = {role: (Number(memory, at), Number(memory, at + 8)) for role, at in _WHO.items()}
        self._nodes = Slots(memory, _NODE_AREA, _NODE_MAX)
        self._links = Slots(memory, _LINK_AREA, _LINK_MAX)
        self._handles = Slots(memory, _HANDLE_AREA, _HANDLE.size)
        self.errands = Slots(memory, _ERRAND_AREA, ERRAND_MAX)
        self.pins = Slots(memory, _PIN_AREA, _PIN_MAX)
        self.decisions = Slots(memory, _DECISION_AREA, _DECISION_MAX)
        self.canary = Cell(memory, _CANARY_AREA)
        self.session = Cell(memory, _SESSION_AREA)
        self.reply = Cell(memory, _REPLY_AREA)
        self.attached = Cell(memory, _ATTACHED_AREA)
        self.reload = Cell(memory, _RELOAD_AREA)
        self.served = Cell(memory, _SERVED_AREA)
        self.seals = Cell(memory, _SEALS_AREA)
        self.replacements = Cell(memory, _REPLACEMENTS_AREA)

    def close(self) -> None:
        """Unmap it, and close its descriptor."""
        self._memory.close()
        os.close(self.fd)

    def requests(self) -> Requests:
        """To be asked for once, by the one worker that uses it, when no other does any more."""
        return Requests(self._memory, _REQUEST_AREA)

    # ---- who is who

    def note(self, role: str, who: Who | None) -> None:
        """Process `who` is the "supervisor", "standby" or "worker" now."""
        pid, start = self._who[role]
        pid.value = 0  # nobody, for a moment, rather than half of one and half of the other
        start.value = who.start if who is not None else 0
        pid.value = who.pid if who is not None else 0

    def who(self, role: str) -> Who | None:
        pid, start = self._who[role]
        return Who(pid.value, start.value) if pid.value else None

    # ---- the mount

    @property
    def mounted(self) -> int:
        """The id of the mount (mountinfo.Mount); 0 as long as it is not known."""
        return self._mounted.value

    @mounted.setter
    def mounted(self, value: int) -> None:
        self._mounted.value = value

    # ---- nodeids of our own

    @property
    def next_own(self) -> int:
        """The next nodeid that no inode ever had; 0 at first."""
        return self._next_own.value

    @next_own.setter
    def next_own(self, value: int) -> None:
        self._next_own.value = value

    # ---- nodes

    def put_node(self, record: NodeRecord) -> int:
        """The number under which the record is kept from now on, 0 if there is no room."""
        self._sequence.value += 1
        flags = _VOLATILE if record.volatile else 0
        head = _NODE.pack(self._sequence.value, record.nodeid, record.lookups, record.place[0], *record.key, flags)
        return self._nodes.put(head + record.place[1])

    def move_node(self, number: int, record: NodeRecord) -> int:
        """Replace record `number`, which has another place now; the new number. Of two, the later counts."""
        moved = self.put_node(record)
        self._nodes.free(number)
        return moved

    def count_node(self, number: int, lookups: int) -> None:
        self._nodes.set_word(number, _NODE_LOOKUPS, max(lookups, 0))

    def mark_volatile(self, number: int) -> None:
        self._nodes.set_word(number, _NODE_FLAGS, _VOLATILE)

    def drop_node(self, number: int) -> None:
        self._nodes.free(number)

    def nodes(self) -> Iterator[tuple[int, NodeRecord]]:
        """Each inode, with the number of its record. Forgets the earlier of two records of one inode."""
        latest: dict[int, tuple[int, int, NodeRecord]] = {}
        for number, raw in self._nodes:
            sequence, nodeid, lookups, parent, device, inode, flags = _NODE.unpack_from(raw)
            record = NodeRecord(
                nodeid, (device, inode), (parent, raw[_NODE.size :]), lookups, bool(flags & _VOLATILE)
            )  # fmt: skip
            before = latest.get(nodeid)
            if before is not None:
                self._nodes.free(min((sequence, number), before[:2])[1])
            if before is None or before[0] < sequence:
                latest[nodeid] = (sequence, number, record)
        for _, number, record in latest.values():
            yield number, record

    # ---- links

    def put_link(self, nodeid: int, text: bytes) -> int:
        return self._links.put(_LINK.pack(nodeid, 0) + text)

    def count_link(self, number: int, lookups: int) -> None:
        self._links.set_word(number, _LINK_LOOKUPS, max(lookups, 0))

    def drop_link(self, number: int) -> None:
        self._links.free(number)

    def links(self) -> Iterator[tuple[int, LinkRecord]]:
        for number, raw in self._links:
            nodeid, lookups = _LINK.unpack_from(raw)
            yield number, LinkRecord(nodeid, raw[_LINK.size :], lookups)

    # ---- handles

    @property
    def next_opening(self) -> int:
        """Which handle the next one is, counted from the first that there ever was; see opening_of()."""
        return self._openings.value + 1

    def put_handle(self, record: HandleRecord) -> int:
        """The file handle. Raises OSError if there are too many."""
        self._openings.value += 1
        sequence = self._openings.value
        flags = (_WRITING if record.writing else 0) | (_DIRECTORY if record.directory else 0)
        number = self._handles.put(_HANDLE.pack(sequence, record.nodeid, flags))
        if not number:
            raise OSError(errno.ENFILE, os.strerror(errno.ENFILE))
        return self.first_handle + _handle(sequence, number)

    def drop_handle(self, handle: int) -> None:
        self._handles.free(handle % _HANDLE_NUMBERS)

    def handles(self) -> Iterator[tuple[int, HandleRecord]]:
        for number, raw in self._handles:
            sequence, nodeid, flags = _HANDLE.unpack(raw)
            record = HandleRecord(nodeid, bool(flags & _WRITING), bool(flags & _DIRECTORY))
            yield self.first_handle + _handle(sequence, number), record


def _handle(sequence: int, number: int) -> int:
    """A number that no other file ever had: who has died may not have told everybody what became of the one before."""
    return sequence * _HANDLE_NUMBERS + number


def opening_of(handle: int) -> int:
    """Which handle it was, as `next_opening` told before."""
    return handle % _FIRST_HANDLE // _HANDLE_NUMBERS


def new_ledger() -> Ledger:
    """An empty one, in memory of its own."""
    return Ledger(new_memory("relfs-ledger"))


_WHO = {"supervisor": 64, "standby": 80, "worker": 96, "reader": 112}
_HEAD_AREA = area(None, 4096)
_SESSION_AREA = area(_HEAD_AREA, 1 << 20)
_REPLY_AREA = area(_SESSION_AREA, 1 << 14)
_ATTACHED_AREA = area(_REPLY_AREA, 1 << 16)
_RELOAD_AREA = area(_ATTACHED_AREA, 1 << 16)
_SERVED_AREA = area(_RELOAD_AREA, 1 << 16)
_SEALS_AREA = area(_SERVED_AREA, 1 << 20)
_REPLACEMENTS_AREA = area(_SEALS_AREA, 1 << 26)
_ERRAND_AREA = area(_REPLACEMENTS_AREA, Slots.room(ERRAND_MAX, _ERRANDS))
_HANDLE_AREA = area(_ERRAND_AREA, Slots.room(_HANDLE.size, _HANDLES))
_LINK_AREA = area(_HANDLE_AREA, Slots.room(_LINK_MAX, _LINKS))
_NODE_AREA = area(_LINK_AREA, Slots.room(_NODE_MAX, _NODES))
_REQUEST_AREA = area(_NODE_AREA, Requests.room())
_PIN_AREA = area(_REQUEST_AREA, Slots.room(_PIN_MAX, _PINS))  # from here on: memory that was made without it grows
_DECISION_AREA = area(_PIN_AREA, Slots.room(_DECISION_MAX, _DECISIONS))
_CANARY_AREA = area(_DECISION_AREA, 1 << 18)
_SIZE = _CANARY_AREA.end
