"""Files in directories that belong to somebody else: read and written by a daemon that may be root.

Whoever deploys can put anything under these names, at any moment, so all is opened as beneath.py does, and read in
bounded parts. What is made is given to the owner of the directory that it is in: the tool that made the directory has
to be able to replace it.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from relfs.beneath import below, open_beneath, open_file

__all__ = ["MAX_BYTES", "Contents", "Write", "append", "below", "is_absent", "overwrite", "read_end", "read_start"]
__all__ += ["remove", "replace"]

MAX_BYTES = 4 << 20
"""Bytes of a log that are read, from its end; and the longest log that is rewritten."""

Write = tuple[str, Callable[[], None]]
"""What is to be written, by the name that people know it by, and what writes it. Raises OSError."""

_ABSENT = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENXIO, errno.ENODEV})
"""ENOENT and ENOTDIR, and what open(2) says of links, of sockets and of devices without a driver."""


@dataclass(frozen=True)
class Contents:
    """The end of a file, beginning with a whole line. `complete`: it is all of it. `modified` in seconds since the
    epoch."""

    data: bytes
    complete: bool
    modified: float


def is_absent(error: OSError) -> bool:
    """Whether `error` says that there is nothing of the kind that was looked for."""
    return error.errno in _ABSENT


def read_end(directory: int, name: str) -> Contents | None:
    """The last MAX_BYTES of a regular file; None if there is none. Raises OSError if it cannot be read."""
    with _open_to_read(directory, name) as fd:
        if fd is None:
            return None
        status = os.fstat(fd)
        start = max(0, status.st_size - MAX_BYTES)
        data = _read_at(fd, status.st_size - start, start)
        return Contents(data[data.find(b"\n") + 1 :] if start else data, not start, status.st_mtime)


def read_start(directory: int, name: str, limit: int) -> bytes | None:
    """The first `limit` bytes of a regular file, likewise."""
    with _open_to_read(directory, name) as fd:
        return _read_at(fd, limit, 0) if fd is not None else None


@contextmanager
def _open_to_read(directory: int, name: str) -> Iterator[int | None]:
    try:
        fd = open_beneath(directory, name, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError as error:
        if not is_absent(error):
            raise
        yield None
        return
    with _closing(fd):
        yield fd if stat.S_ISREG(os.fstat(fd).st_mode) else None


def _read_at(fd: int, length: int, offset: int) -> bytes:
    parts = []
    while length > 0 and (part := os.pread(fd, length, offset)):
        parts.append(part)
        length, offset = length - len(part), offset + len(part)
    return b"".join(parts)


def append(directory: int, name: str, data: bytes) -> None:
    """Add `data` to a file that exists, in one write, beginning a line. Raises OSError; then none of it is there."""
    with _closing(_open_to_write(directory, name, os.O_APPEND)) as fd:
        size = os.fstat(fd).st_size
        if size and os.pread(fd, 1, size - 1) != b"\n":
            data = b"\n" + data
        written = os.write(fd, data)
        if written != len(data):
            if os.fstat(fd).st_size == size + written:  # or somebody else's is behind it by now
                os.ftruncate(fd, size)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # what a short write means


def overwrite(directory: int, name: str, line: bytes) -> None:
    """Make the line `line` all that a file says, which is made if it is missing. At no moment is it empty, or shorter
    than `line`, if it was not before. Raises OSError."""
    try:
        fd = _open_to_write(directory, name, 0)
    except FileNotFoundError:
        fd = _make(directory, name)
    with _closing(fd):
        _write(fd, line)
        os.ftruncate(fd, len(line))


def remove(directory: int, name: str) -> None:
    """Remove a name, if it is there. Raises OSError."""
    with suppress(FileNotFoundError):
        os.unlink(name, dir_fd=directory)


def replace(directory: int, name: str, old: bytes, new: bytes) -> bool:
    """Put `new` in the place of a file that says `old`, by rename(2), with its owner and mode; False: it says something
    else by now. What others append meanwhile is kept. Raises OSError; then nothing is changed."""
    temporary = f".{name}.relfs"
    with _closing(_open_to_write(directory, name, 0)) as fd:
        status = os.fstat(fd)
        if _read_at(fd, len(old) + 1, 0) != old:
            return False
        remove(directory, temporary)  # a crash may have left it
        with _closing(_make(directory, temporary)) as copy:
            try:
                os.fchown(copy, status.st_uid, status.st_gid)
                os.fchmod(copy, stat.S_IMODE(status.st_mode))
                _write(copy, new)
                os.fsync(copy)
                os.rename(temporary, name, src_dir_fd=directory, dst_dir_fd=directory)
            except OSError:
                remove(directory, temporary)
                raise
        late = _read_at(fd, MAX_BYTES, len(old))  # by whoever had it open
    if late:
        append(directory, name, late)
    return True


@contextmanager
def _closing(fd: int) -> Iterator[int]:
    """Close `fd` at the end."""
    try:
        yield fd
    finally:
        os.close(fd)


def _open_to_write(directory: int, name: str, flags: int) -> int:
    return open_file(directory, name, os.O_RDWR | flags)


def _make(directory: int, name: str) -> int:
    """A new file that the directory's owner, and its group where that may write there, can replace."""
    owner = os.fstat(directory)
    fd = open_file(directory, name, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    with suppress(PermissionError):  # an ordinary user makes files as itself
        os.fchown(fd, owner.st_uid, owner.st_gid)
    os.fchmod(fd, 0o644 | owner.st_mode & stat.S_IWGRP)
    return fd


def _write(fd: int, data: bytes) -> None:
    if os.write(fd, data) != len(data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # what a short write means
