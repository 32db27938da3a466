"""Records in a file of the state directory, for the time when all processes of relfs are gone, and the ledger with
them: killed at once, or unmounted. What they say is true of processes, so they are of no use after a reboot.

A file like this need not last: after a power cut there are no processes that it could tell of. So nothing is flushed,
and to replace it costs what a few writes to memory do. It is replaced by a rename, so whoever reads it finds the old
one or the new one.

    {"version": ..., "boot": ..., "about": ...}   one line of JSON: the ledger's version (ledger.py), the boot that the
                                                  file is of (random(4)), and what the records are about
    LENGTH RECORD ...                             each with its length before it, four bytes, the highest first
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterator
from contextlib import suppress

from relfs.beneath import read_file
from relfs.durable import remove_file, replace_file
from relfs.processes import boot_id
from relfs.survival.ledger import VERSION

_FILE_MAX = 1 << 28
_LENGTH_BYTES = 4


def write_copy(directory: int, name: str, about: str, records: Collection[bytes]) -> None:
    """Let file `name` in `directory` (a descriptor) hold these, or not be there if there are none. Blocks. Raises
    OSError."""
    if not records:
        _remove(directory, name)
        return
    head = json.dumps(_head(about)).encode("ascii") + b"\n"
    frames = (len(each).to_bytes(_LENGTH_BYTES, "big") + each for each in records)
    replace_file(directory, name, head + b"".join(frames), lasting=False)


def read_copy(directory: int, name: str, about: str) -> list[bytes]:
    """What it holds; nothing if there is no such file, or it is of another boot, about something else, or torn. Blocks.
    Raises OSError if it cannot be read."""
    try:
        head, _, frames = read_file(directory, name, _FILE_MAX).partition(b"\n")
    except FileNotFoundError:
        return []
    try:
        return list(_records(frames)) if boot_id() and json.loads(head) == _head(about) else []
    except (ValueError, RecursionError):
        return []


def _remove(directory: int, name: str) -> None:
    """On a disk that is read-only, to remove what is not there would fail as well (EROFS). Raises OSError."""
    with suppress(FileNotFoundError):
        os.lstat(name, dir_fd=directory)
        remove_file(directory, name, lasting=False)


def _head(about: str) -> dict[str, object]:
    return {"version": VERSION, "boot": boot_id(), "about": about}


def _records(frames: bytes) -> Iterator[bytes]:
    """Raises ValueError if the last one is not whole."""
    at = 0
    while at < len(frames):
        start = at + _LENGTH_BYTES
        at = start + int.from_bytes(frames[at:start], "big")
        if at > len(frames):
            raise ValueError("the end is missing")
        yield frames[start:at]
