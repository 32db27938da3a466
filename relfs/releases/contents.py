"""The bytes of one file: read, hashed and written in one pass, with its holes, or shared with a file that has them.

    copy_contents    from a descriptor into an empty file; gives the digest
    hash_contents    the digest alone
    clone            let a file have another's blocks, where the file system can (FICLONE, ioctl_ficlone(2))

Memory does not grow with the file: what is larger than a buffer goes through it. A hole costs no room and no reading,
but is hashed as the zeros that it reads as.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import suppress

from relfs.errors import RelfsError
from relfs.releases.manifest import DIGEST_SIZE, digest_of

BUFFER = 1 << 20
"""Bytes. A file that fits is read by one call and written by one."""

Tick = Callable[[int], None]
"""Is told how many bytes more are done."""

_NEW = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
_FICLONE = 0x40049409
_NO_HOLES_BELOW = 1 << 14
_ZEROS = bytes(BUFFER)
_CANNOT_CLONE = frozenset({errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOTTY, errno.ENOSYS, errno.EPERM})


class ChangedError(RelfsError):
    """A file was not the same at the end as at the beginning."""


def copy_contents(fd: int, out: int, status: os.stat_result, tick: Tick) -> str:
    """Write into the empty file `out` all that `fd` has, `status` being what is known of it, and give the digest.

    Raises OSError; ChangedError if somebody is writing it.
    """
    size = status.st_size
    if _has_holes(status):
        return _stream(fd, out, status, tick)
    if size <= BUFFER:
        data = _read_small(fd, size)
        if data:
            write_all(out, data)
        tick(size)
        return digest_of(data)
    return _stream(fd, out, status, tick)


def hash_contents(fd: int, status: os.stat_result, tick: Tick) -> str:
    """The digest of all that `fd` has. Raises as copy_contents() does."""
    if status.st_size <= BUFFER:
        data = _read_small(fd, status.st_size)
        tick(status.st_size)
        return digest_of(data)
    return _stream(fd, None, status, tick)


def write_all(out: int, data: bytes | memoryview) -> None:
    """write(2), until all is written. Raises OSError."""
    written = os.write(out, data)
    while written < len(data):
        written += os.write(out, memoryview(data)[written:])


def clone(out: int, fd: int) -> bool:
    """Let the file `out` have the blocks of `fd`. False: it cannot be done here. Raises OSError for a full disk."""
    try:
        fcntl.ioctl(out, _FICLONE, fd)
    except OSError as error:
        if error.errno not in _CANNOT_CLONE:
            raise
        return False
    return True


def can_clone(directory: int) -> bool:
    """Whether the file system of `directory` (a descriptor) can; found out by trying. Raises OSError."""
    names = (".relfs-clone-from", ".relfs-clone-to")
    try:
        files = [os.open(name, _NEW, 0o600, dir_fd=directory) for name in names]
        try:
            os.write(files[0], b"\0")
            return clone(files[1], files[0])
        finally:
            for file in files:
                os.close(file)
    finally:
        for name in names:
            with suppress(FileNotFoundError):
                os.unlink(name, dir_fd=directory)


def _has_holes(status: os.stat_result) -> bool:
    """It may have: compressed files look alike, and are only read in more steps."""
    return status.st_size > _NO_HOLES_BELOW and status.st_blocks * 512 < status.st_size


def _read_small(fd: int, size: int) -> bytes:
    data = os.read(fd, size + 1)
    if len(data) != size:
        raise ChangedError("it changed while it was being read; try again")
    return data


def _stream(fd: int, out: int | None, status: os.stat_result, tick: Tick) -> str:
    digest = hashlib.blake2b(digest_size=DIGEST_SIZE)
    end = 0
    for start, stop in _extents(fd, status):
        _hash_zeros(digest, start - end, tick)
        _copy_extent(fd, out, start, stop, digest, tick)
        end = stop
    _hash_zeros(digest, status.st_size - end, tick)
    if out is not None:
        os.ftruncate(out, status.st_size)
    now = os.fstat(fd)
    if (now.st_size, now.st_mtime_ns) != (status.st_size, status.st_mtime_ns):
        raise ChangedError("it changed while it was being read; try again")
    return digest.hexdigest()


def _extents(fd: int, status: os.stat_result) -> Iterator[tuple[int, int]]:
    """Where the file has data (lseek(2), SEEK_DATA); everywhere, where the system does not tell."""
    end = 0
    while end < status.st_size and _has_holes(status) and hasattr(os, "SEEK_DATA"):
        try:
            start = os.lseek(fd, end, os.SEEK_DATA)
            end = min(os.lseek(fd, start, os.SEEK_HOLE), status.st_size)
        except OSError as error:
            if error.errno == errno.ENXIO:  # a hole up to the end
                return
            break
        yield start, end
    if end < status.st_size:
        yield end, status.st_size


def _copy_extent(fd: int, out: int | None, start: int, stop: int, digest: hashlib.blake2b, tick: Tick) -> None:
    """The extent is read by position: whoever looked for it has moved the descriptor's own."""
    while start < stop:
        data = os.pread(fd, min(BUFFER, stop - start), start)
        if not data:
            raise ChangedError("it became shorter while it was being read; try again")
        digest.update(data)
        if out is not None:
            _write_at(out, data, start)
        start += len(data)
        tick(len(data))


def _write_at(out: int, data: bytes, start: int) -> None:
    written = 0
    while written < len(data):
        written += os.pwrite(out, memoryview(data)[written:], start + written)


def _hash_zeros(digest: hashlib.blake2b, count: int, tick: Tick) -> None:
    while count > 0:
        part = min(count, BUFFER)
        digest.update(memoryview(_ZEROS)[:part])
        count -= part
        tick(part)
