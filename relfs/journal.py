"""The history of `current`: one JSON object a line, only ever appended to.

    time     seconds since the epoch        action   switch, rollback, adopt, follow, replace, confirm; a hook's name
    release  the release (or link text)     from     the release before it, or null
    uid user pid command                    who asked
    host     this host's name               id       the request id, made by whoever asked
    text     what a tool wrote into the link, if the real link must say it otherwise (a path through a mountpoint)
    outcome  done, recovered, imported, failed: WHY, lapsed: WHY, refused: WHY
    why      why relfs did it by itself             output   the last that a hook said
    confirm  until when it has to be confirmed (deadline.py), or it is taken back; of a canary, verified
    audience for whom it is current that is not so for everybody (audience.py)

Lines are written with one write(2) and then fdatasync(2)ed. A crash can tear only the last line: readers ignore it,
the next writer removes it (or, if only its newline is missing, completes it). Who may write is the holder of the
change lock (lock.py); reading needs no lock.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, BinaryIO

from relfs.audience import Audience, audience_of
from relfs.beneath import open_file
from relfs.deadline import Deadline, time_of
from relfs.errors import RelfsError, UsageError, reason
from relfs.users import user_name

JOURNAL = "journal"

DONE = "done"
RECOVERED = "recovered"
IMPORTED = "imported"
"""It happened without relfs, and a deploy tool's own records tell of it (relfs/records)."""

_TAIL = 1 << 18  # bytes; longer than any line: names and commands are bounded
_READ_MAX = 1 << 26  # bytes; some hundred thousand lines: whoever owns the directory cannot make us read for ever
_COMMAND_MAX = 4096


@dataclass(frozen=True)
class Actor:
    """Who asked for a change. `pid` is 0 and `command` empty where the kernel could not tell."""

    uid: int
    user: str
    pid: int
    command: str


@dataclass(frozen=True)
class Event:
    """One line of the journal. `time` is in seconds since the epoch; names are of releases, or link texts."""

    time: float
    action: str
    release: str | None
    origin: str | None
    actor: Actor
    host: str
    id: str
    outcome: str
    text: str | None = None
    confirm: Deadline | None = None
    why: str | None = None
    output: str | None = None
    audience: Audience | None = None

    @property
    def succeeded(self) -> bool:
        return self.outcome in (DONE, RECOVERED, IMPORTED)

    def as_json(self) -> dict[str, object]:
        """The event under its published field names."""
        fields: dict[str, object] = {
            "time": self.time,
            "action": self.action,
            "release": self.release,
            "from": self.origin,
            "uid": self.actor.uid,
            "user": self.actor.user,
            "pid": self.actor.pid,
            "command": self.actor.command,
            "host": self.host,
            "id": self.id,
            "outcome": self.outcome,
        }
        confirm = asdict(self.confirm) if self.confirm is not None else None
        audience = self.audience.as_json() if self.audience is not None else None
        more = {
            "text": self.text, "confirm": confirm, "why": self.why, "output": self.output, "audience": audience,
        }  # fmt: skip
        return {**fields, **{name: value for name, value in more.items() if value is not None}}


def encode(event: Event) -> bytes:
    """The journal line of `event`, newline included; ASCII, so that names of any bytes survive."""
    return json.dumps(event.as_json(), separators=(",", ":")).encode("ascii") + b"\n"


def decode(line: bytes) -> Event | None:
    """The event on `line`; None for a line that is none (torn, or somebody else's)."""
    try:
        fields = json.loads(line)
        return Event(
            time=time_of(fields["time"]),
            action=str(fields["action"]),
            release=_optional(fields.get("release")),
            origin=_optional(fields.get("from")),
            actor=Actor(int(fields["uid"]), str(fields["user"]), int(fields["pid"]), str(fields["command"])),
            host=str(fields["host"]),
            id=str(fields["id"]),
            outcome=str(fields["outcome"]),
            text=_optional(fields.get("text")),
            confirm=_deadline(fields.get("confirm")),
            why=_optional(fields.get("why")),
            output=_optional(fields.get("output")),
            audience=audience_of(fields["audience"]) if "audience" in fields else None,
        )
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError, UsageError):
        return None


def _deadline(value: Any) -> Deadline | None:
    if value is None:
        return None
    ends = value.get("ends")
    return Deadline(time_of(value["until"]), time_of(ends) if ends is not None else None, str(value.get("boot")))


def _optional(value: object) -> str | None:
    return None if value is None else str(value)


class Journal:
    """The journal in a state directory (`directory`: its descriptor; None: there is none, and it is empty)."""

    def __init__(self, directory: int | None) -> None:
        self._directory = directory

    def events(self, *, most: int = _READ_MAX) -> Iterator[Event]:
        """Every event in the last `most` bytes, oldest first; lines that are none are passed over.

        Raises RelfsError if it cannot be read.
        """
        if self._directory is None:
            return
        try:
            with open(JOURNAL, "rb", opener=self._opener) as file:
                for line in _lines(file, most):
                    event = decode(line)  # whole or None, even where the last newline is missing: see _repair
                    if event is not None:
                        yield event
        except FileNotFoundError:
            return
        except OSError as error:
            raise RelfsError(f"the journal cannot be read: {reason(error)}") from error

    def probe(self) -> None:
        """Raise OSError if the journal cannot be written, before anything is done that would have to be in it."""
        os.close(self._open())

    def clear(self) -> None:
        """Forget everything. Raises OSError."""
        fd = self._open()
        try:
            os.ftruncate(fd, 0)
        finally:
            os.close(fd)

    def append(self, *events: Event) -> None:
        """Write `events` durably. On OSError the journal is as it was, or has the first of them and ends in a torn line
        that nobody reads."""
        fd = self._open()
        try:
            end = _repair(fd)
            lines = b"".join(map(encode, events))
            try:
                if os.write(fd, lines) != len(lines):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # what a short write means
                os.fdatasync(fd)
                if end == 0 and self._directory is not None:
                    os.fsync(self._directory)  # the journal's own name is new
            except OSError:
                os.ftruncate(fd, end)
                raise
        finally:
            os.close(fd)

    def _open(self) -> int:
        if self._directory is None:
            raise FileNotFoundError(errno.ENOENT, "there is no state directory")
        return open_file(self._directory, JOURNAL, os.O_RDWR | os.O_CREAT | os.O_APPEND)

    def _opener(self, path: str, flags: int) -> int:
        assert self._directory is not None
        return open_file(self._directory, path, flags)


def _lines(file: BinaryIO, most: int) -> Iterator[bytes]:
    """The lines of the last `most` bytes; one that is longer than any of ours comes in pieces, which are none. What has
    no end is the last: it may be about to be written, and with what comes behind that it would be left out."""
    size = os.fstat(file.fileno()).st_size
    if size > most:
        file.seek(size - most)
        file.readline(_TAIL)
    while line := file.readline(_TAIL):
        yield line
        if len(line) < _TAIL and not line.endswith(b"\n"):
            return


def _repair(fd: int) -> int:
    """Make the journal end in a whole line, and tell its size in bytes. No more than one line can be torn."""
    size = os.fstat(fd).st_size
    tail = os.pread(fd, _TAIL, max(0, size - _TAIL))
    if not tail or tail.endswith(b"\n"):
        return size
    torn = tail[tail.rfind(b"\n") + 1 :]
    if decode(torn) is not None or len(torn) == _TAIL:  # all there but its newline, or nothing that was written here
        os.write(fd, b"\n")
        return size + 1
    os.ftruncate(fd, size - len(torn))
    return size - len(torn)


def this_actor() -> Actor:
    """This process, as the one who asks."""
    uid = os.getuid()
    return Actor(uid, user_name(uid), os.getpid(), command_line(os.getpid()))


def new_event(action: str, release: str | None, origin: str | None, actor: Actor, request_id: str) -> Event:
    """An event that happens now, on this host, and succeeds."""
    return Event(time.time(), action, release, origin, actor, socket.gethostname(), request_id, DONE)


def command_line(pid: int) -> str:
    """The command line of process `pid`; empty where /proc does not tell (proc(5))."""
    if pid <= 0:
        return ""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            words = file.read(_COMMAND_MAX).rstrip(b"\0").split(b"\0")
    except OSError:
        return ""
    return " ".join(os.fsdecode(word) for word in words)
