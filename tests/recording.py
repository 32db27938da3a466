"""What real programs do to a deploy path, recorded by strace(1) as events, for replay.py.

Only what changes or flushes something below the deploy path, or on another disk that a story is about, is kept,
whoever of the traced processes did it, in the order in which the calls returned. Paths are relative to the deploy path:
of a call by descriptor, the one that the kernel knows the descriptor by (strace -y), so that a descriptor that was
handed on by another process is no riddle; and under a mount that covers the deploy path, it is the daemon's own calls
that are seen, if only the daemon is traced. A call that could change something and that is not understood is an error,
not passed over.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from relfs.names import STATE

ACKNOWLEDGEMENT = "acknowledged"
"""Who makes a directory of this name in the deploy path says that whoever asked has the answer. No file system has it
then: it is an event of its own."""

ELSEWHERE = "../state"
"""Where another disk is mounted, seen from the deploy path."""

STATE_ELSEWHERE = f"{ELSEWHERE}/relfs"
"""The state directory of those who keep it there."""

_SPARE = re.compile(rf"({re.escape(STATE)}|{re.escape(STATE_ELSEWHERE)})/(lock|daemon\.lock|log|control.*)")
"""What nobody needs after a power cut: locks are with the kernel, and whoever logs or listens makes the name anew."""

_CALLS = (
    *("open", "openat", "openat2", "creat", "write", "pwrite64", "ftruncate", "utimensat"),
    *("mkdir", "mkdirat", "rmdir", "unlink", "unlinkat", "symlink", "symlinkat", "link", "linkat"),
    *("rename", "renameat", "renameat2", "fsync", "fdatasync", "syncfs", "sync"),
    *("truncate", "writev", "pwritev", "pwritev2", "fallocate", "copy_file_range", "sendfile", "splice"),
)
_STRING_MAX = 1 << 22  # bytes of a write that strace shows


# ---- what can happen ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Opened:
    """open(2) for writing: the file is made if it is missing, and emptied if `truncate`."""

    path: str
    truncate: bool
    append: bool


@dataclass(frozen=True)
class Wrote:
    """`data` at the offset `at` in bytes; None: where the last write through the descriptor ended."""

    path: str
    data: bytes
    at: int | None


@dataclass(frozen=True)
class Truncated:
    path: str
    size: int


@dataclass(frozen=True)
class MadeDirectory:
    path: str


@dataclass(frozen=True)
class MadeLink:
    """symlink(2): at `path`, a link that says `text`."""

    path: str
    text: str


@dataclass(frozen=True)
class AddedName:
    """link(2)."""

    old: str
    new: str


@dataclass(frozen=True)
class Renamed:
    old: str
    new: str
    exchange: bool


@dataclass(frozen=True)
class Removed:
    """unlink(2) or rmdir(2)."""

    path: str


@dataclass(frozen=True)
class Dated:
    """utimensat(2): modified at `moment`, in nanoseconds since the epoch."""

    path: str
    moment: int


@dataclass(frozen=True)
class Synced:
    """fsync(2) or fdatasync(2)."""

    path: str


@dataclass(frozen=True)
class SyncedAll:
    """syncfs(2) of the disk that `path` is on; None: sync(2), of every disk."""

    path: str | None = None


@dataclass(frozen=True)
class Acknowledged:
    """Whoever asked for a change has been told that it is done."""


PATHS = ("path", "old", "new")
"""What an event calls the names that it is about."""

Event = (
    Opened | Wrote | Truncated | MadeDirectory | MadeLink | AddedName | Renamed | Removed | Dated | Synced | SyncedAll
    | Acknowledged
)  # fmt: skip


def paths_of(event: Event) -> list[str]:
    """The names that it is about."""
    return [path for name in PATHS if (path := getattr(event, name, None)) is not None]


# ---- recording ------------------------------------------------------------------------------------------------------


@dataclass
class Tape:
    """A recording that is being made. `command` goes before the command that is to be traced, with all it starts."""

    command: list[str]
    _kept: Path
    _keeper: subprocess.Popen[bytes]

    def events(self, app: Path, others: Sequence[str] = ()) -> list[Event]:
        """What happened below `app`, and on the disks `others`; waits for the end of all that was traced."""
        assert self._keeper.wait() == 0
        return list(parse(self._kept.read_text("ascii").splitlines(), str(app), others))


@contextmanager
def recording(directory: Path, *, fails: str | None = None) -> Iterator[Tape]:
    """A tape, kept in `directory`. `fails` names a system call, and the error it makes: `symlinkat:EPERM`.

    The program becomes a child of whoever starts it, and strace that one's grandchild (-D), so that signals go where
    they are sent; strace has ended when the pipe has.
    """
    pipe, kept = directory / "strace.pipe", directory / "strace"
    os.mkfifo(pipe)
    strace = ["strace", "-D", "-f", "--seccomp-bpf", "-y", "-xx", f"-s{_STRING_MAX}", "-esignal=none", "-qq"]
    strace.append("-etrace=" + ",".join(_CALLS))
    if fails is not None:
        call, _, error = fails.partition(":")
        strace.append(f"-einject={call}:error={error}")
    with kept.open("wb") as file, subprocess.Popen(["cat", pipe], stdout=file) as keeper:
        try:
            yield Tape([*strace, f"-o{pipe}"], kept, keeper)
        finally:
            keeper.kill()
            pipe.unlink()


# ---- reading strace's output ----------------------------------------------------------------------------------------

_CALL = re.compile(r"(\w+)\((.*)\) += (-?\d+|\?)")
_UNFINISHED = " <unfinished ...>"
_RESUMED = re.compile(r"<\.\.\. \w+ resumed>(.*)")
_DESCRIPTOR = re.compile(r"(?:\d+|AT_FDCWD)<((?:\\x[0-9a-f]{2})*)>(\(deleted\))?")
_TIME = re.compile(r"\{tv_sec=(\d+), tv_nsec=(\d+)\}")
_AT = 2  # arguments of a path that is relative to a descriptor


def parse(lines: Iterable[str], app: str, others: Sequence[str] = ()) -> Iterator[Event]:
    """The events below `app`, and at or below the paths `others`, seen from there, that strace's `lines` (-f -y -xx)
    tell. Raises NotImplementedError for what is none."""
    places = (app, *(os.path.normpath(f"{app}/{other}") for other in others))
    begun: dict[str, str] = {}
    for line in lines:
        thread, _, call = line.partition(" ")
        call = call.lstrip()
        if call.endswith(_UNFINISHED):
            begun[thread] = call.removesuffix(_UNFINISHED)
            continue
        resumed = _RESUMED.match(call)
        whole = begun.pop(thread) + resumed[1] if resumed else call
        found = _CALL.match(whole)
        if found is not None and not found[3].startswith(("-", "?")):
            yield from _Call(found[1], found[2], int(found[3]), places).events()


@dataclass(frozen=True)
class _Call:
    """A call that succeeded, with its arguments as strace shows them: strings are in hex, so none has a comma."""

    name: str
    shown: str
    result: int
    places: tuple[str, ...]

    def events(self) -> Iterator[Event]:
        for event in self._events():
            paths = paths_of(event)
            if paths == [ACKNOWLEDGEMENT] and isinstance(event, MadeDirectory):
                yield Acknowledged()
            elif not any(path == ACKNOWLEDGEMENT or _SPARE.fullmatch(path) for path in paths):
                yield event

    def _events(self) -> Iterator[Event]:
        match self.name:
            case "open" | "openat" | "openat2" | "creat":
                yield from self._open()
            case "mkdir" | "mkdirat":
                yield from (MadeDirectory(path) for path in self._paths(0))
            case "rmdir" | "unlink" | "unlinkat":
                yield from (Removed(path) for path in self._paths(0))
            case "symlink" | "symlinkat":
                yield from (MadeLink(path, self._string(0)) for path in self._paths(1))
            case "rename" | "renameat" | "renameat2" | "link" | "linkat":
                yield from self._two_names()
            case "sync":
                yield SyncedAll()
            case "utimensat" if not self._is_plain(0) and self._is_plain(1):
                yield from (Dated(path, self._modified()) for path in self._paths(0))
            case _:
                yield from self._by_descriptor()

    def _by_descriptor(self) -> Iterator[Event]:
        found = _DESCRIPTOR.match(self.shown)
        path = self._below(_unhex(found[1])) if found is not None and not found[2] else None
        if path is None:
            return
        match self.name:
            case "write":
                yield Wrote(path, self._written(), None)
            case "pwrite64":
                yield Wrote(path, self._written(), int(self._arguments[3]))
            case "ftruncate":
                yield Truncated(path, int(self._arguments[1]))
            case "utimensat" if self._arguments[2] == "NULL":
                pass  # now, as for all that is written; whoever looks whether a disk answers does so (daemon/probe.py)
            case "utimensat":
                yield Dated(path, self._modified())
            case "fsync" | "fdatasync":
                yield Synced(path)
            case "syncfs":
                yield SyncedAll(path)
            case _:
                raise NotImplementedError(f"{self.name}({self.shown})")

    def _open(self) -> Iterator[Event]:
        writes = "O_WRONLY" in self.shown or "O_RDWR" in self.shown or self.name == "creat"
        strange = any(flag in self.shown for flag in ("O_SYNC", "O_DSYNC", "O_TMPFILE"))
        if strange and self._paths(0):
            raise NotImplementedError(f"{self.name}({self.shown})")
        if writes:
            truncate = "O_TRUNC" in self.shown or self.name == "creat"
            yield from (Opened(path, truncate, "O_APPEND" in self.shown) for path in self._paths(0))

    def _two_names(self) -> Iterator[Event]:
        first = self._paths(0)
        second = self._paths(1 if self._is_plain(0) else _AT)
        if not first and not second:
            return
        if not first or not second:
            raise NotImplementedError(f"into what is looked at, or out of it: {self.name}({self.shown})")
        exchange = "RENAME_EXCHANGE" in self.shown
        renamed = self.name.startswith("rename")
        yield Renamed(first[0], second[0], exchange) if renamed else AddedName(first[0], second[0])

    # ---- arguments

    @property
    def _arguments(self) -> list[str]:
        return self.shown.split(", ")

    def _is_plain(self, position: int) -> bool:
        return self._arguments[position].startswith('"')

    def _string(self, position: int) -> str:
        return os.fsdecode(_unhex(self._arguments[position].strip('"')))

    def _modified(self) -> int:
        seconds, nanoseconds = _TIME.findall(self.shown)[1]
        return int(seconds) * 10**9 + int(nanoseconds)

    def _written(self) -> bytes:
        return _unhex(self._arguments[1].strip('"'))[: self.result]

    def _paths(self, position: int) -> list[str]:
        """The path that begins with the argument at `position`: one, or none if it is not below the deploy path."""
        if self._is_plain(position):
            base, name = b"", _unhex(self._arguments[position].strip('"'))
        else:
            found = _DESCRIPTOR.match(self._arguments[position])
            base = _unhex(found[1]) if found is not None else b""
            name = _unhex(self._arguments[position + 1].strip('"'))
        below = self._below(os.path.normpath(os.path.join(base, name)))
        return [below] if below is not None else []

    def _below(self, path: bytes) -> str | None:
        decoded = os.fsdecode(path)
        if not any(f"{decoded}/".startswith(f"{place}/") for place in self.places):
            return None
        return os.path.relpath(decoded, self.places[0])


def _unhex(shown: str) -> bytes:
    return bytes.fromhex(shown.replace("\\x", ""))
