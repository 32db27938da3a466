"""A disk that forgets: what may be left of a deploy path if the power fails after any of the recorded events.

What may be lost
----------------
The facts (fsync(2), rename(2), symlink(2)): a file system may bring what was not flushed to the disk in any order, or
not at all. fsync of a file makes its data safe, not its name. fsync of a directory makes the names in it safe, not what
they lead to, nor the directory's own name; a link's text is data, and is flushed by syncfs alone. A rename is one step,
an exchange too.

The choice. Data: of the changes to a file that were not flushed, any may be missing, and the last write may be there
by half, but for its last byte, as zeros (the size is there, the data are not), or with its first half zeros. Names:
each change that was not flushed may be missing, together with those that build on it. All of them at once would be
more than anybody can try. So tried are: nothing and everything lost; every beginning of what happened (a journal that
was written out until then); each change lost alone; each kept alone; and with each of these, each file likewise.

Two disks know nothing of each other: each loses its own, and one may be an hour behind the other. So all that is tried
with one is tried with all that is tried with the other.
"""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import recording
from recording import Event

LOST = "lost"
"""What a link says whose text was lost: nobody can make one that says nothing, and this leads nowhere, too."""

_PRODUCT_MAX = 64


@dataclass(frozen=True)
class Left:
    """One thing that is left: a directory, a file with its data, or a link with its text. `moment`: when it was
    modified, in nanoseconds since the epoch, where that means something."""

    kind: Literal["directory", "file", "link"]
    data: bytes
    moment: int | None


Remains = tuple[tuple[str, Left], ...]
"""What is left below the deploy path, and on other disks, by relative path, directories before what is in them."""


@dataclass
class PowerCuts:
    """How often the power was cut, how many different disks that left, and how many of them were mounted; and how many
    relfs was told to go on with (settled.py)."""

    cuts: int = 0
    disks: int = 0
    mounted: int = 0
    settled: int = 0


# ---- one file -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Change:
    """Bytes at an offset; or, if `data` is None, a new size."""

    at: int
    data: bytes | None

    def apply(self, to: bytes) -> bytes:
        if self.data is None:
            return to[: self.at].ljust(self.at, b"\0")
        return to[: self.at].ljust(self.at, b"\0") + self.data + to[self.at + len(self.data) :]

    def spoilt(self) -> list[_Change]:
        """What may be found of it, but for all and nothing."""
        if not self.data:
            return []
        half = len(self.data) // 2
        holes = (self.data[:half], self.data[:-1], bytes(len(self.data)), bytes(half) + self.data[half:])
        return [_Change(self.at, data) for data in holes]


@dataclass(eq=False)
class Inode:
    """A file, directory or link: what is safe of it, and what happened to it since."""

    kind: Literal["directory", "file", "link"]
    safe: bytes = b""
    changes: list[_Change] = field(default_factory=list)
    position: int = 0
    append: bool = False
    safe_moment: int | None = None
    moment: int | None = None

    @property
    def data(self) -> bytes:
        return _apply(self.safe, self.changes)

    def change(self, at: int, data: bytes | None) -> None:
        self.changes.append(_Change(at, data))

    def flush(self) -> None:
        self.safe, self.changes, self.safe_moment = self.data, [], self.moment

    def outcomes(self) -> list[Left]:
        """What may be found after a power cut; the first is all of it, the last what is safe."""
        moments = dict.fromkeys((self.moment, self.safe_moment))
        return [Left(self.kind, data, moment) for moment in moments for data in self._data()]

    def _data(self) -> list[bytes]:
        if self.kind == "link":
            return list(dict.fromkeys((self.data, self.safe or LOST.encode())))
        found = [self.data]
        for size in range(len(self.changes), 0, -1):
            *before, last = self.changes[:size]
            found += [_apply(self.safe, [*before, spoilt]) for spoilt in last.spoilt()]
        for size in range(len(self.changes) - 1, -1, -1):
            found += [_apply(self.safe, kept) for kept in itertools.combinations(self.changes, size)]
        return list(dict.fromkeys(found))


def _apply(data: bytes, changes: Iterable[_Change]) -> bytes:
    for change in changes:
        data = change.apply(data)
    return data


# ---- names ----------------------------------------------------------------------------------------------------------

_Key = tuple[Inode, str]
"""A name: the directory that it is in, and how it is called there."""

_Names = dict[_Key, Inode]


@dataclass(frozen=True, eq=False)
class _Step:
    """One change of names, which happens as a whole: what each of them leads to from then on."""

    names: tuple[tuple[_Key, Inode | None], ...]

    def touches(self, directory: Inode) -> bool:
        return any(key[0] is directory for key, _ in self.names)

    def follows(self, earlier: _Step) -> bool:
        """Whether it changes a name that `earlier` has changed."""
        keys = {key for key, _ in earlier.names}
        return any(key in keys for key, _ in self.names)

    def builds_on(self, earlier: _Step) -> bool:
        """Whether it cannot be there without `earlier`: the same name, or one in a directory that was made then."""
        made = {inode for _, inode in earlier.names if inode is not None}
        return self.follows(earlier) or any(key[0] in made for key, _ in self.names)

    def apply(self, names: _Names) -> None:
        for key, inode in self.names:
            if inode is None:
                names.pop(key, None)
            else:
                names[key] = inode


class Disk:
    """One file system: its names and files as they are now, and as they are on the disk."""

    def __init__(self) -> None:
        self.root = Inode("directory")
        self._names: _Names = {}
        self._safe: _Names = {}
        self._steps: list[_Step] = []

    @classmethod
    def of(cls, place: Path, *, without: Sequence[str] = ()) -> Disk:
        """The disk that holds `place`, all of it safe, but nothing at or below the paths `without`."""
        disk = cls()
        for path in sorted(place.rglob("*")):
            relative = str(path.relative_to(place))
            if not any(f"{relative}/".startswith(f"{left_out}/") for left_out in without):
                disk._copy(path, relative)
        disk.do(recording.SyncedAll())
        return disk

    def _copy(self, path: Path, relative: str) -> None:
        if path.is_symlink():
            self.do(recording.MadeLink(relative, os.readlink(path)))
        elif path.is_dir():
            self.do(recording.MadeDirectory(relative))
            if os.path.dirname(relative) == "releases":  # where Capistrano goes by these times
                self.do(recording.Dated(relative, path.stat().st_mtime_ns))
        elif path.is_file():
            self.do(recording.Opened(relative, truncate=False, append=False))
            self.do(recording.Wrote(relative, path.read_bytes(), 0))

    # ---- what happens

    def do(self, event: Event) -> None:
        """Let it happen. Raises KeyError for a path that is not there: something was not recorded."""
        match event:
            case recording.Opened(path, truncate, append):
                self._open(path, truncate=truncate, append=append)
            case recording.Wrote(path, data, at):
                self._write(self.at(path), data, at)
            case recording.Truncated(path, size):
                self.at(path).change(size, None)
            case recording.MadeDirectory(path):
                self._step((path, Inode("directory")))
            case recording.MadeLink(path, text):
                link = Inode("link")
                link.change(0, os.fsencode(text))
                self._step((path, link))
            case recording.AddedName(old, new):
                self._step((new, self.at(old)))
            case recording.Renamed(old, new, exchange):
                self._step((old, self.at(new) if exchange else None), (new, self.at(old)))
            case recording.Removed(path):
                self._step((path, None))
            case recording.Dated(path, moment):
                self.at(path).moment = moment
            case recording.Synced(path):
                self._sync(self.at(path))
            case recording.SyncedAll():
                self._sync_all()

    def at(self, path: str) -> Inode:
        """What is there now. Raises KeyError."""
        found = self.root
        for name in [] if path == "." else path.split("/"):
            found = self._names[found, name]
        return found

    def find(self, path: str) -> Inode | None:
        """What is there now, if anything is."""
        try:
            return self.at(path)
        except KeyError:
            return None

    def listing(self, path: str) -> dict[str, Inode]:
        """What there is now in the directory `path`, if there is one."""
        directory = self.find(path)
        return {name: inode for (parent, name), inode in self._names.items() if parent is directory}

    def _open(self, path: str, *, truncate: bool, append: bool) -> None:
        inode = self.find(path)
        if inode is None:
            inode = Inode("file")
            self._step((path, inode))
        if truncate and inode.data:
            inode.change(0, None)
        inode.position, inode.append = 0, append

    def _write(self, inode: Inode, data: bytes, at: int | None) -> None:
        begin = at if at is not None else len(inode.data) if inode.append else inode.position
        inode.change(begin, data)
        inode.position = begin + len(data)

    def _step(self, *names: tuple[str, Inode | None]) -> None:
        step = _Step(tuple((self._key(path), inode) for path, inode in names))
        step.apply(self._names)
        self._steps.append(step)

    def _key(self, path: str) -> _Key:
        directory, _, name = path.rpartition("/")
        return self.at(directory or "."), name

    def _sync(self, inode: Inode) -> None:
        inode.flush()
        safe = self._with_bases({at for at, step in enumerate(self._steps) if step.touches(inode)}, _Step.follows)
        for at in sorted(safe):
            self._steps[at].apply(self._safe)
        self._steps = [step for at, step in enumerate(self._steps) if at not in safe]

    def _sync_all(self) -> None:
        self._safe, self._steps = dict(self._names), []
        for inode in {self.root, *self._names.values()}:
            inode.flush()

    # ---- what is left

    def remains(self) -> Iterator[Remains]:
        """What may be left if the power fails now. See "What may be lost"."""
        for kept in self._choices():
            names = dict(self._safe)
            for at in sorted(kept):
                self._steps[at].apply(names)
            yield from self._with_data(list(self._walk(names, self.root, "")))

    def _choices(self) -> set[frozenset[int]]:
        """Which changes of names are there, by number."""
        everything = range(len(self._steps))
        beginnings = [range(size) for size in range(len(self._steps) + 1)]
        alone = [self._with_bases({at}) for at in everything]
        without = [set(everything) - self._with_dependents(at) for at in everything]
        return {frozenset(choice) for choice in (*beginnings, *alone, *without)}

    def _with_bases(self, chosen: set[int], needs: Callable[[_Step, _Step], bool] = _Step.builds_on) -> set[int]:
        for at in reversed(range(len(self._steps))):
            if any(needs(self._steps[later], self._steps[at]) for later in chosen if later > at):
                chosen.add(at)
        return chosen

    def _with_dependents(self, lost: int) -> set[int]:
        gone = {lost}
        for at in range(lost + 1, len(self._steps)):
            if any(self._steps[at].builds_on(self._steps[earlier]) for earlier in gone if earlier < at):
                gone.add(at)
        return gone

    def _walk(self, names: _Names, directory: Inode, prefix: str) -> Iterator[tuple[str, Inode]]:
        for (parent, name), inode in sorted(names.items(), key=lambda item: item[0][1]):
            if parent is directory:
                yield prefix + name, inode
                if inode.kind == "directory":
                    yield from self._walk(names, inode, f"{prefix}{name}/")

    def _with_data(self, found: list[tuple[str, Inode]]) -> Iterator[Remains]:
        paths = [path for path, _ in found]
        outcomes = {inode: inode.outcomes() for _, inode in found}
        for chosen in _combinations(list(outcomes.values())):
            data = dict(zip(outcomes, chosen, strict=True))
            yield tuple(zip(paths, (data[inode] for _, inode in found), strict=True))


def _combinations(outcomes: list[list[Left]]) -> Iterable[Sequence[Left]]:
    """All of them where they are few; otherwise all new, all old, and each outcome alone among new, and among old."""
    if math.prod(map(len, outcomes)) <= _PRODUCT_MAX:
        return itertools.product(*outcomes)
    new, old = [each[0] for each in outcomes], [each[-1] for each in outcomes]
    alone = [
        [*others[:at], outcome, *others[at + 1 :]]
        for others in (new, old)
        for at, each in enumerate(outcomes)
        for outcome in each
    ]
    return [new, old, *alone]


# ---- several disks --------------------------------------------------------------------------------------------------


class Disks:
    """A deploy path, and the other disks that what is kept of it lies on: each forgets for itself."""

    def __init__(self, own: Disk, others: Mapping[str, Disk]) -> None:
        """`others` by the path, seen from the deploy path, that they are mounted at."""
        self._own = own
        self._others = dict(others)

    @classmethod
    def of(cls, app: Path, *, without: Sequence[str] = (), others: Sequence[str] = ()) -> Disks:
        """The disks of `app`, all of it safe, but nothing at or below the paths `without`."""
        kept_out = {other: [os.path.relpath(path, other) for path in without] for other in others}
        return cls(
            Disk.of(app, without=[*without, *others]),
            {other: Disk.of(app / other, without=kept_out[other]) for other in others},
        )

    def do(self, event: Event) -> None:
        """Let it happen. Raises as Disk does."""
        paths = recording.paths_of(event)
        if not paths:
            for disk in (self._own, *self._others.values()):
                disk.do(event)
            return
        disk, _ = self._at(paths[0])
        named = [name for name in recording.PATHS if hasattr(event, name)]
        there: dict[str, Any] = {name: self._at(path)[1] for name, path in zip(named, paths, strict=True)}
        disk.do(replace(event, **there))

    def find(self, path: str) -> Inode | None:
        """What is there now, if anything is."""
        disk, relative = self._at(path)
        return disk.find(relative)

    def listing(self, path: str) -> dict[str, Inode]:
        """What there is now in the directory `path`, if there is one."""
        disk, relative = self._at(path)
        return disk.listing(relative)

    def remains(self) -> Iterator[Remains]:
        """What may be left if the power fails now. See "What may be lost"."""
        disks = {".": self._own, **self._others}
        parts = [[_moved(left, place) for left in disk.remains()] for place, disk in disks.items()]
        for together in itertools.product(*parts):
            yield tuple(itertools.chain.from_iterable(together))

    def _at(self, path: str) -> tuple[Disk, str]:
        """The disk that a path is on, and the path there."""
        for place, disk in self._others.items():
            if f"{path}/".startswith(f"{place}/"):
                return disk, path[len(place) + 1 :] or "."
        return self._own, path


def _moved(left: Remains, place: str) -> Remains:
    """What is left of a disk that is mounted at `place`."""
    if place == ".":
        return left
    return ((place, Left("directory", b"", None)), *((f"{place}/{path}", each) for path, each in left))


def write_out(remains: Remains, app: Path) -> None:
    """Make `app` a deploy path that holds `remains`; the directory that it is in is made as well, and holds the other
    disks."""
    app.mkdir(parents=True)
    for path, left in remains:
        match left.kind:
            case "directory":
                (app / path).mkdir()
            case "link":
                os.symlink(left.data, os.fsencode(app / path))
            case "file":
                (app / path).write_bytes(left.data)
    for path, left in remains:
        if left.moment is not None:
            os.utime(app / path, ns=(left.moment, left.moment))
