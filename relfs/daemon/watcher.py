"""Noticing what others do: to the real `current` behind the mount, and to the mount itself.

The real link: another mount name space still sees the covered directory, and somebody there may replace the link. The
daemon follows a new target that can be served, and tells the kernel and the journal; it keeps serving the old one, and
`status` says so, if the link is gone or leads nowhere. inotify(7) tells at once; where it does not (a network file
system changed from another host), a look every few seconds does.

The mount: somebody may unmount it. The kernel ends the connection then, unless it was a lazy unmount and a process
still has its working directory or a file there; only for those, mountinfo (proc(5)) is read every other second.
"""

from __future__ import annotations

import ctypes
import logging
import os
import struct

import trio

from relfs.errors import RelfsError
from relfs.fuse.changes import Changes
from relfs.layout import CURRENT
from relfs.store import TEMPORARY

_log = logging.getLogger(__name__)

_LOOK_SECONDS = 5.0

_IN_ATTRIB = 0x4
_IN_MASK = _IN_ATTRIB | 0x40 | 0x80 | 0x100 | 0x200 | 0x1000000
"""ATTRIB, MOVED_FROM, MOVED_TO, CREATE, DELETE, ONLYDIR (linux/inotify.h)."""
_EVENT = struct.Struct("=iIII")
_READ_SIZE = 1 << 16
_IN_FLAGS = os.O_NONBLOCK | os.O_CLOEXEC


async def follow_link(covered: int, changes: Changes) -> None:
    """Look at the real link whenever something happens in the covered directory (a descriptor). Never returns."""
    watch = _watch_directory(covered)
    trouble: str | None = None
    try:
        while True:
            await _something_happened(watch, changes)
            before, trouble = trouble, await _refreshed(changes)
            if trouble is not None and trouble != before:  # a disk that stays broken is said once
                _log.warning("the real link cannot be looked at: %s", trouble)
    finally:
        if watch is not None:
            os.close(watch)


async def _refreshed(changes: Changes) -> str | None:
    """Why the real link could not be looked at."""
    try:
        await changes.refresh()
    except (RelfsError, OSError) as error:
        return str(error)
    return None


async def _something_happened(watch: int | None, changes: Changes) -> None:
    """Return when the name `current` was touched, or it is time for a look.

    Other names only change the directory's own times, and its mode changes under no name at all; both the kernel keeps
    for ever unless it is told. What a switch makes and removes is neither.
    """
    with trio.move_on_after(_LOOK_SECONDS):
        if watch is None:
            await trio.sleep_forever()
            return
        while True:
            await trio.lowlevel.wait_readable(watch)
            names = _names(os.read(watch, _READ_SIZE))
            if any(name != CURRENT.encode() and not name.startswith(TEMPORARY.encode()) for name in names):
                changes.drop_root_attributes()
            if CURRENT.encode() in names:
                return
    if watch is None:
        changes.drop_root_attributes()


def _names(events: bytes) -> set[bytes]:
    """The names in what inotify(7) told: a wd, a mask, a cookie, and the length of the padded name, then that. What has
    other attributes is passed over, but for `current` and the directory itself (without a name): they are its own, and
    who looks whether the disk answers changes those of our state (probe.py)."""
    names = set()
    while events:
        _, mask, _, length = _EVENT.unpack_from(events)
        name = events[_EVENT.size : _EVENT.size + length].rstrip(b"\0")
        if not mask & _IN_ATTRIB or name in (b"", CURRENT.encode()):
            names.add(name)
        events = events[_EVENT.size + length :]
    return names


def _watch_directory(directory: int) -> int | None:
    """An inotify(7) descriptor; None where there is none to be had, and looking now and then has to do."""
    libc = ctypes.CDLL(None, use_errno=True)
    watch: int = libc.inotify_init1(_IN_FLAGS)
    if watch >= 0 and libc.inotify_add_watch(watch, b"/proc/self/fd/%d" % directory, _IN_MASK) >= 0:
        return watch
    number = ctypes.get_errno()
    _log.warning("inotify: %s; the real link is looked at every few seconds only", os.strerror(number))
    if watch >= 0:
        os.close(watch)
    return None
