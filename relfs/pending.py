"""What is about to be done, written down before it is done: `.relfs/pending`, one JSON line.

A note that a power cut cannot make say something else
------------------------------------------------------
The facts. Whoever opens the pointer after a crash goes by this note: if the link says what was wanted, the switch took
effect. Until it is flushed, a file may be found empty, cut short anywhere, full of zeros, or with its pages from before
and after mixed, if it was overwritten. `releases/42`, cut short, is `releases/4`, which is a release, too.

The consequence. A note counts only if all of it is there, and it must not be possible to take a part for the whole.

The choice. The wanted text is in the same JSON line as everything else, and the line ends in a newline: what is cut
short has none, and what has zeros in it is no JSON. It is always written into a new file, under a free name, so that
nothing of an older note can show through.
"""

from __future__ import annotations

import errno
import json
import os
from contextlib import suppress
from dataclasses import dataclass

from relfs.beneath import StrangeFileError, open_file, read_file
from relfs.journal import Event, decode

PENDING = "pending"

_MAX = 1 << 18  # bytes; longer than any note: names and commands are bounded


@dataclass(frozen=True)
class Pending:
    """A change that is being made: its event, the text that the real link is to say, and whether deploy tools have to
    be told of it (records/)."""

    event: Event
    wanted: str
    tell: bool


def write(directory: int | None, pending: Pending) -> None:
    """Write the note; it lasts once the state directory's file system is flushed. Raises OSError."""
    if directory is None:
        raise FileNotFoundError(errno.ENOENT, "there is no state directory")
    forget(directory)
    fd = open_file(directory, PENDING, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    try:
        data = _encode(pending)
        if os.write(fd, data) != len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    finally:
        os.close(fd)


def read(directory: int | None) -> Pending | None:
    """The note that was left; None if there is none, or not all of it. Raises OSError if it cannot be read."""
    if directory is None:
        return None
    try:
        line, end, _ = read_file(directory, PENDING, _MAX).partition(b"\n")
    except (FileNotFoundError, StrangeFileError):  # the next note removes what is in its place
        return None
    return _decode(line) if end else None


def forget(directory: int | None) -> None:
    """Nothing is pending any more. Raises OSError."""
    with suppress(FileNotFoundError):
        os.unlink(PENDING, dir_fd=directory)


def _encode(pending: Pending) -> bytes:
    fields = {**pending.event.as_json(), "wanted": pending.wanted, "tell": pending.tell}
    return json.dumps(fields, separators=(",", ":")).encode("ascii") + b"\n"


def _decode(line: bytes) -> Pending | None:
    event = decode(line)
    if event is None:
        return None
    fields = json.loads(line)
    wanted = fields.get("wanted")
    return Pending(event, wanted, bool(fields.get("tell"))) if isinstance(wanted, str) else None
