"""A small file of relfs's own that is replaced in one step: whoever reads it, whenever, finds the old one or the new
one, whole, and after a power cut likewise."""

from __future__ import annotations

import errno
import os
from contextlib import suppress

from relfs.beneath import open_file


def replace_file(directory: int, name: str, data: bytes, *, lasting: bool = True) -> None:
    """Make file `name` in `directory` (a descriptor) hold `data`, durably unless it is not to be `lasting`. Who may do
    so must be settled by a lock: the new one has a name of its own, `name`.new, until it is in its place. Raises
    OSError; then it holds what it held, unless all that failed was to make the new one last."""
    new = f"{name}.new"
    remove_file(directory, new, lasting=lasting)  # a crash may have left it
    try:
        _make(directory, new, data, lasting=lasting)
        os.rename(new, name, src_dir_fd=directory, dst_dir_fd=directory)
    except OSError:
        with suppress(OSError):
            remove_file(directory, new)
        raise
    if lasting:
        os.fsync(directory)


def remove_file(directory: int, name: str, *, lasting: bool = True) -> None:
    """Remove file `name` of `directory`, if it is there, durably if that is to be `lasting`. Raises OSError."""
    with suppress(FileNotFoundError):
        os.unlink(name, dir_fd=directory)
        if lasting:
            os.fsync(directory)


def _make(directory: int, name: str, data: bytes, *, lasting: bool) -> None:
    fd = open_file(directory, name, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    try:
        if os.write(fd, data) != len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if lasting:
            os.fsync(fd)
    finally:
        os.close(fd)
