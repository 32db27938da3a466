"""Opening what lies below a directory whose owner is not to be trusted, by a daemon that may be root.

Whoever owns the directory can put anything under a name, at any moment: a link to /etc/shadow, a second name of
somebody's file, a fifo, a device, a file without end. So a path is walked from a descriptor, never out of it, and no
link on the way or at its end is followed; and of files, only regular ones are read, and only such as have one name are
written. What is written into them, and when, is not here.

Why one name
------------
Some facts. A hard link to a file that one may not write can be made wherever protected_hardlinks is 0
(proc_sys_fs(5)), as it is by the kernel's own default; and O_NOFOLLOW does not tell it from a file of relfs's own. So a
journal that is another name of /etc/passwd would be appended to. The consequence: a file is looked at once it is open,
before a byte of it is changed; O_TRUNC, which changes it while it is opened, is done afterwards. The choice: a file
with another name is refused, not replaced, since whoever made that name should hear of it. Except in a directory that
only we can write: there the name is ours, and the other one perhaps a backup's (cp -al), which must not stop a switch.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager

from relfs import libc

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_PART = 1 << 18
_HARMLESS = os.O_NONBLOCK | os.O_NOCTTY
"""Without these, a fifo would keep us waiting for a writer, and a terminal become ours."""

_NO_OPENAT2 = frozenset({errno.ENOSYS, errno.EPERM})
"""Before Linux 5.6; and from sandboxes that do not know the call (it never fails with EPERM but for O_NOATIME)."""


def open_beneath(directory: int, path: str, flags: int, mode: int = 0o777) -> int:
    """openat(2) of `path`, relative to the descriptor `directory`, on which no link is followed, nor at its end.

    Raises OSError as that does: ELOOP (ENOTDIR with O_DIRECTORY) for a link, EXDEV for a path that leads out.
    """
    flags |= os.O_NOFOLLOW | os.O_CLOEXEC
    names = _names(path)
    if len(names) == 1:
        return os.open(names[0], flags, mode, dir_fd=directory)  # of one name, O_NOFOLLOW says it all
    try:
        return libc.openat2(directory, os.fsencode(path), flags, mode, libc.RESOLVE_BENEATH | libc.RESOLVE_NO_SYMLINKS)
    except OSError as error:
        if error.errno not in _NO_OPENAT2:
            raise
    return _walk(directory, names, flags, mode)


def open_directory(directory: int, path: str) -> int:
    """The directory `path`, likewise."""
    return open_beneath(directory, path, _DIRECTORY)


@contextmanager
def below(directory: int, *names: str) -> Iterator[int]:
    """A descriptor of the directory that is reached from `directory` by `names`. Raises OSError, also for a link."""
    fd = open_directory(directory, "/".join(names)) if names else os.dup(directory)
    try:
        yield fd
    finally:
        os.close(fd)


def open_file(directory: int, path: str, flags: int, mode: int = 0o644) -> int:
    """A regular file, which has only this name if it is opened for writing, unless the directory is our own; O_TRUNC is
    obeyed once that is known.

    Raises OSError as open_beneath() does; EISDIR for a directory; StrangeFileError for anything else that it is not.
    """
    fd = open_beneath(directory, path, flags & ~os.O_TRUNC | _HARMLESS, mode)
    try:
        writes = flags & os.O_ACCMODE != os.O_RDONLY
        _require_regular(fd, path, alone=writes and not (len(_names(path)) == 1 and _is_ours(directory)))
        if flags & os.O_TRUNC:
            os.ftruncate(fd, 0)
    except BaseException:
        os.close(fd)
        raise
    return fd


def read_file(directory: int, path: str, limit: int) -> bytes:
    """All that a regular file holds. Raises OSError, also EFBIG if that is more than `limit` bytes."""
    return read_with_status(directory, path, limit)[0]


def read_with_status(directory: int, path: str, limit: int) -> tuple[bytes, os.stat_result]:
    """The same, and whose the file is that was read. Raises as read_file() does."""
    fd = open_file(directory, path, os.O_RDONLY)
    try:
        return _read(fd, path, limit), os.fstat(fd)
    finally:
        os.close(fd)


def _require_regular(fd: int, shown: str, *, alone: bool) -> None:
    """Raises OSError unless the descriptor is a regular file's: one that no other name leads to, if `alone`."""
    status = os.fstat(fd)
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if not stat.S_ISREG(status.st_mode):
        raise StrangeFileError(errno.EPERM, f"{shown} is not a regular file; remove it")
    if alone and status.st_nlink > 1:  # 0: somebody has removed it meanwhile, which harms nobody
        why = f"{shown} has another name (hard link) elsewhere, and would be changed there"
        raise StrangeFileError(errno.EPERM, why)


def _is_ours(directory: int) -> bool:
    """Whether nobody but us, and root, can make a name in a directory (a descriptor)."""
    status = os.fstat(directory)
    return status.st_uid == os.geteuid() and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def _read(fd: int, shown: str, limit: int) -> bytes:
    parts, left = [], limit + 1
    while left > 0 and (part := os.read(fd, min(left, _PART))):  # it has room made for all that it is asked for
        parts.append(part)
        left -= len(part)
    if left <= 0:
        raise OSError(errno.EFBIG, f"{shown} is larger than {limit >> 10} KiB; remove it")
    return b"".join(parts)


def belong_to_owner(fd: int, directory: int) -> None:
    """What root makes in somebody's directory shall be that owner's, who has to be able to go on with it: give him what
    `fd` is a descriptor of. For others, nothing happens. Raises OSError."""
    owner, status = os.fstat(directory), os.fstat(fd)
    if os.geteuid() == 0 and (status.st_uid, status.st_gid) != (owner.st_uid, owner.st_gid):
        os.fchown(fd, owner.st_uid, owner.st_gid)


class StrangeFileError(PermissionError):
    """In the place of a file is something that relfs has not put there."""


def _names(path: str) -> list[str]:
    """Raises OSError(EXDEV), as openat2(2) does, for a path that could lead out."""
    names = [name for name in path.split("/") if name not in ("", ".")]
    if path.startswith("/") or ".." in names:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
    return names or ["."]


def _walk(directory: int, names: list[str], flags: int, mode: int) -> int:
    """What openat2(2) does, a step at a time: each directory is held while the next name is looked up in it."""
    held = os.dup(directory)
    try:
        for name in names[:-1]:
            step = os.open(name, _DIRECTORY | os.O_NOFOLLOW, dir_fd=held)
            os.close(held)
            held = step
        return os.open(names[-1], flags, mode, dir_fd=held)
    finally:
        os.close(held)
