"""Which releases relfs made, in which order, and which names are spent: `.relfs/releases`, one JSON object a line.

    sequence   counts the names that were ever given, from 1      name    the release
    state      reserved, finished, removed, given-up              time    seconds since the epoch
    source     what it was made from                              user    who made it

Only ever appended to, durably, by whoever holds the file's own flock(2). The last line of a sequence number is what
holds of it now. A line that is torn is nobody's, and the next writer begins a new one.

The order of releases is that of their sequence numbers, never of their modification times, which any tool may set; and
a name that was ever given is never given again, or what remembers it (the journal, a manifest, a backup) would speak of
something else. So a name is reserved, durably, before there is anything under it.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Literal, get_args

from relfs.beneath import belong_to_owner, open_file, read_file
from relfs.errors import RelfsError, reason

REGISTRY = "releases"

State = Literal["reserved", "finished", "removed", "given-up"]

_STATES = frozenset(get_args(State))
_MAX = 1 << 26  # bytes; some hundred thousand releases


@dataclass(frozen=True)
class Record:
    """What is known of one release; `time` is when this became so, in seconds since the epoch, never earlier than what
    came before."""

    sequence: int
    name: str
    state: State
    time: float
    source: str
    user: str


class Registry:
    """The registry in a state directory (`directory`: its descriptor; None: there is none, and it is empty).

    GUARDED BY the flock of its file: what is written. Reading needs no lock: lines are written by one write(2).
    """

    def __init__(self, directory: int | None) -> None:
        self._directory = directory

    def records(self) -> list[Record]:
        """The present state of every release that relfs ever made, by their sequence. Raises RelfsError."""
        try:
            data = read_file(self._directory, REGISTRY, _MAX) if self._directory is not None else b""
        except FileNotFoundError:
            data = b""
        except OSError as error:
            raise RelfsError(f"the list of releases cannot be read: {reason(error)}") from error
        return _latest(data)

    def reserve(self, choose: Callable[[list[Record]], str], *, source: str, user: str) -> Record:
        """Spend the name that `choose` picks, knowing all that were ever given; nobody else chooses meanwhile.

        Raises what `choose` does, and RelfsError if this cannot be written durably.
        """
        with self._locked() as fd:
            records = self.records()
            sequence = records[-1].sequence + 1 if records else 1
            record = Record(sequence, choose(records), "reserved", _now(records), source, user)
            self._append(fd, record)
            return record

    def note(self, record: Record, state: State) -> Record:
        """From now on `record` is `state`, durably. Raises RelfsError."""
        with self._locked() as fd:
            noted = replace(record, state=state, time=_now(self.records()))
            self._append(fd, noted)
            return noted

    @contextmanager
    def _locked(self) -> Iterator[int]:
        if self._directory is None:
            raise RelfsError("there is no state directory, and without one no release can be made")
        try:
            fd = open_file(self._directory, REGISTRY, os.O_RDWR | os.O_CREAT | os.O_APPEND)
        except OSError as error:
            raise RelfsError(f"the list of releases cannot be written: {reason(error)}") from error
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            belong_to_owner(fd, self._directory)
            yield fd
        finally:
            os.close(fd)

    def _append(self, fd: int, record: Record) -> None:
        """A whole line, or nothing that counts."""
        end = os.fstat(fd).st_size
        line = json.dumps(record.__dict__, separators=(",", ":")).encode("ascii") + b"\n"
        try:
            torn = end > 0 and os.pread(fd, 1, end - 1) != b"\n"
            data = b"\n" + line if torn else line
            if os.write(fd, data) != len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(fd)
            if end == 0 and self._directory is not None:
                os.fsync(self._directory)
        except OSError as error:
            with suppress(OSError):
                os.ftruncate(fd, end)
            raise RelfsError(f"the list of releases cannot be written: {reason(error)}") from error


def _now(records: list[Record]) -> float:
    """A clock that was set back does not make a release older than those before it."""
    return max([time.time(), *(record.time for record in records)])


def _latest(data: bytes) -> list[Record]:
    found = {record.sequence: record for record in map(_decode, data.split(b"\n")) if record is not None}
    return [found[sequence] for sequence in sorted(found)]


def _decode(line: bytes) -> Record | None:
    """The record on `line`; None for a line that is none (torn, or somebody else's)."""
    try:
        fields = json.loads(line)
        state = fields["state"]
        if state not in _STATES:
            return None
        return Record(
            int(fields["sequence"]), str(fields["name"]), state, float(fields["time"]), str(fields["source"]),
            str(fields["user"]),
        )  # fmt: skip
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
        return None
