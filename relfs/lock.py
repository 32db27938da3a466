"""The change lock: flock(2) on `.relfs/lock`, held for the length of one change.

A mounted daemon and an offline relfsctl take the same lock, so their changes never interleave. It dies with its
holder, whatever kills that, because the kernel drops a flock with its last descriptor.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator

from relfs.beneath import open_file
from relfs.errors import LockedError, RelfsError, reason

LOCK = "lock"

_RETRY_SECONDS = 0.005


@contextlib.contextmanager
def change_lock(directory: int | None, *, shown: str = ".relfs", wait: float = 30.0) -> Iterator[None]:
    """Hold the change lock of the state directory, which messages call `shown`. Not reentrant.

    Raises LockedError if somebody holds it for more than `wait` seconds, RelfsError if it cannot be had at all.
    """
    if directory is None:
        raise RelfsError("there is no state directory, and without one nothing can be changed")
    fd = _locked(directory, shown, time.monotonic() + wait)
    try:
        yield
    finally:
        os.close(fd)


def _locked(directory: int, shown: str, deadline: float) -> int:
    """The lock's file, locked."""
    while True:
        fd = _open(directory, shown)
        try:
            if _acquire(fd, deadline):
                return fd
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)


def _open(directory: int, shown: str) -> int:
    try:
        return open_file(directory, LOCK, os.O_RDWR | os.O_CREAT)
    except OSError as error:
        raise RelfsError(f"{shown}/{LOCK}: the change lock cannot be had: {reason(error)}") from error


def _acquire(fd: int, deadline: float) -> bool:
    """False if the file that was locked is not the lock any more: somebody removed it meanwhile."""
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except OSError as error:
            if not isinstance(error, BlockingIOError):  # flock(2) on a file system that cannot
                raise RelfsError(f"the change lock cannot be had: {reason(error)}") from error
            if time.monotonic() >= deadline:
                raise LockedError(f"the deploy path is being changed by {_holder(fd)}; try again") from None
            time.sleep(_RETRY_SECONDS)
    if os.fstat(fd).st_nlink == 0:
        return False
    with contextlib.suppress(OSError):  # who holds it is a courtesy; a full disk does not stop a change
        os.ftruncate(fd, 0)
        os.pwrite(fd, b"%d\n" % os.getpid(), 0)
    return True


def _holder(fd: int) -> str:
    pid = os.pread(fd, 20, 0).strip().decode("ascii", "replace")
    return f"process {pid}" if pid.isdecimal() else "another process"
