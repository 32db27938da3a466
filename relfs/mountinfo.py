"""What is mounted where (proc(5), mountinfo). Linux only; changes nothing, and is quick to import."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass

FSTYPE = "fuse.relfs"

_OURS = "/proc/self/mountinfo"


@dataclass(frozen=True)
class Mount:
    """A line of mountinfo. `source` is what was mounted: for relfs, the deploy path. `root` is the path, in its file
    system, of what is seen at `target`; `parent` is the id of the mount that this one is mounted on."""

    id: int
    target: str
    fstype: str
    source: str
    options: str
    device: str
    root: str
    parent: int = 0


def mounts(file_name: str = _OURS) -> Iterator[Mount]:
    """All mounts that this process sees (or the one whose mountinfo is given), in the order in which they were made."""
    with open(file_name, "rb") as file:
        for line in file.read().splitlines():
            before, _, after = line.partition(b" - ")
            fields, rest = before.split(b" "), after.split(b" ")
            yield Mount(
                int(fields[0]),
                _unescape(fields[4]),
                rest[0].decode(),
                _unescape(rest[1]),
                rest[2].decode("ascii", "replace"),
                fields[2].decode(),
                _unescape(fields[3]),
                int(fields[1]),
            )


def relfs_mounts() -> list[Mount]:
    """The mounts of relfs that this process sees. Empty where there is no mountinfo at all."""
    try:
        return [mount for mount in mounts() if mount.fstype == FSTYPE]
    except FileNotFoundError:
        return []


def mount_at(path: str) -> Mount | None:
    """The topmost mount at the absolute, resolved `path`.

    That is not always the last that was made: what is mounted on a directory that is bound to itself is propagated to
    the mount below, where it comes between the two (attach_recursive_mnt() in fs/namespace.c).
    """
    here = [mount for mount in mounts() if mount.target == path]
    below = {mount.parent for mount in here if mount.parent != mount.id}
    return next((mount for mount in reversed(here) if mount.id not in below), None)


def mount_id(fd: int) -> int:
    """The id of the mount that the descriptor `fd` was opened through (proc(5), fdinfo)."""
    with open(f"/proc/self/fdinfo/{fd}", "rb") as file:
        for line in file:
            if line.startswith(b"mnt_id:"):
                return int(line[7:])
    raise OSError(errno.ENOSYS, "fdinfo names no mount")


def _unescape(field: bytes) -> str:
    return os.fsdecode(re.sub(rb"\\([0-7]{3})", lambda match: bytes([int(match[1], 8)]), field))
