"""Files in directories that belong to somebody else: read and written by a daemon that may be root.

Whoever deploys can put anything under these names, at any moment, so all is opened as beneath.py does, and read in
bounded parts. What is made is given to the owner of the directory that it is in: the tool that made the directory has
to be able to replace it.

Half a line
-----------
The facts. What was not flushed may be found cut short after a power cut, or full of zeros, and a flush takes long
enough for a power cut to come amid it. rename(2) of a flushed copy has no such moment; but what others append to the
old file from then on, having it open, is lost. Deployer reads its records, and is not made for half a line. Capistrano
never reads its log, and `>>` may be appending to it at any moment.

The choice. What tools read is changed by rename of a copy that has been flushed, and its directory is flushed after
that (`replace`, `overwrite`); what was appended meanwhile is looked for. A log that nobody reads is appended to where
it is, and flushed (`append`): a part of a line that a power cut has left is taken away when the line is written again,
which the pointer sees to. So it is also done where a copy cannot be: by an ordinary user, who may write somebody's file
but not give one away; and if the log is too long.
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


def append(directory: int, name: str, line: bytes) -> None:
    """Add `line` to a file that exists, behind whatever others append meanwhile, and flush it. What a power cut has
    left of it before is taken away. Raises OSError; then none of it is there."""
    with _closing(_open_to_write(directory, name, os.O_APPEND)) as fd:
        size = os.fstat(fd).st_size
        torn = _torn(fd, size, line)
        if torn:
            size -= torn
            os.ftruncate(fd, size)
        if size and os.pread(fd, 1, size - 1) != b"\n":
            line = b"\n" + line
        _append(fd, size, line)


def overwrite(directory: int, name: str, line: bytes) -> None:
    """Make the line `line` all that a file says, which is made if it is missing. Raises OSError."""
    try:
        fd = _open_to_write(directory, name, 0)
    except FileNotFoundError:
        _put(directory, name, line, like=None)
        return
    with _closing(fd):
        try:
            _put(directory, name, line, like=fd)
        except PermissionError:  # at no moment is it empty, or shorter than `line`, if it was not before
            _write(fd, line)
            os.ftruncate(fd, len(line))
            os.fdatasync(fd)


def remove(directory: int, name: str) -> None:
    """Remove a name, if it is there, for good. Raises OSError."""
    with suppress(FileNotFoundError):
        os.unlink(name, dir_fd=directory)
        os.fsync(directory)


def replace(directory: int, name: str, old: bytes, new: bytes) -> bool:
    """Put `new` in the place of a file that says `old`; False: it says something else by now. What others append
    meanwhile is kept. Raises OSError; then nothing is changed, unless what failed is the flush of the directory."""
    with _closing(_open_to_write(directory, name, 0)) as fd:
        if _read_at(fd, len(old) + 1, 0) != old:
            return False
        _put(directory, name, new, like=fd)
        _keep_late(directory, name, fd, len(old))
    return True


def _put(directory: int, name: str, data: bytes, *, like: int | None) -> None:
    """A file that says `data` in the place of `name`, with owner and mode of the open file `like`."""
    temporary = f".{name}.relfs"
    with suppress(FileNotFoundError):
        os.unlink(temporary, dir_fd=directory)  # a crash may have left it
    with _closing(_make(directory, temporary)) as copy:
        try:
            if like is not None:
                _resemble(copy, os.fstat(like))
            _write(copy, data)
            os.fsync(copy)
            os.rename(temporary, name, src_dir_fd=directory, dst_dir_fd=directory)
        except OSError:
            os.unlink(temporary, dir_fd=directory)
            raise
    os.fsync(directory)


def _resemble(fd: int, status: os.stat_result) -> None:
    os.fchown(fd, status.st_uid, status.st_gid)
    os.fchmod(fd, stat.S_IMODE(status.st_mode))


def _keep_late(directory: int, name: str, replaced: int, since: int) -> None:
    """What was appended behind `since` bytes by whoever had the replaced file open belongs into the new one."""
    late = _read_at(replaced, MAX_BYTES, since)
    if late:
        with _closing(_open_to_write(directory, name, os.O_APPEND)) as fd:
            _append(fd, os.fstat(fd).st_size, late)


def _append(fd: int, size: int, data: bytes) -> None:
    written = os.write(fd, data)
    if written != len(data):
        if os.fstat(fd).st_size == size + written:  # or somebody else's is behind it by now
            os.ftruncate(fd, size)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # what a short write means
    os.fdatasync(fd)


def _torn(fd: int, size: int, line: bytes) -> int:
    """How many bytes at the end of the file are a part of `line`, or zeros where a line was to be."""
    end = os.pread(fd, len(line) + 1, max(0, size - len(line) - 1))
    last = end[end.rfind(b"\n", 0, -1) + 1 :]
    if len(last) > len(line):  # the end of a longer one
        return 0
    cut_short = not last.endswith(b"\n") and line.startswith(last)
    return len(last) if cut_short or b"\0" in last else 0


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
