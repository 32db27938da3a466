"""How this process's descriptors are shared out: whoever opens files does not take the last from whoever switches.

Files that clients of the mount have open are counted, and inodes let go of when there are too many (fuse/inodes.py).
What else there may be is seen by the numbers: open(2) gives the lowest that is free, so one at or above a mark tells
that nearly all below it are in use, whoever has them. A client gets EMFILE then; the control socket, a switch and a
hook do with what is left.
"""

from __future__ import annotations

import errno
import os
import resource
from dataclasses import dataclass

_RESERVE_MAX = 4096
_CONNECTIONS_MAX = 2048


@dataclass(frozen=True)
class Descriptors:
    """INVARIANT: below `mark` there is room for `inodes` and `files`, above it, up to the limit, for `connections` of
    the control socket and as many again for relfs's own work."""

    limit: int

    @property
    def reserve(self) -> int:
        return min(self.limit // 8, _RESERVE_MAX)

    @property
    def mark(self) -> int:
        return self.limit - self.reserve

    @property
    def connections(self) -> int:
        """How many connections of the control socket there may be."""
        return min(self.reserve // 2, _CONNECTIONS_MAX)

    @property
    def inodes(self) -> int:
        """How many inodes may be held by a descriptor."""
        return self.mark // 2

    @property
    def files(self) -> int:
        """How many descriptors there may be for files and directories that are open."""
        return self.mark - self.inodes

    def for_inode(self, fd: int) -> int:
        """`fd`, which was opened for a client of the mount, or is the pidfd of one, or of who is pinned. If it is one
        of the reserve, it is closed, and OSError (EMFILE) raised."""
        if fd < self.mark:
            return fd
        os.close(fd)
        raise too_many()


def too_many() -> OSError:
    """The error of who is refused a descriptor."""
    return OSError(errno.EMFILE, os.strerror(errno.EMFILE))


def descriptors() -> Descriptors:
    """As this process's limit has them now (RLIMIT_NOFILE, getrlimit(2))."""
    return Descriptors(resource.getrlimit(resource.RLIMIT_NOFILE)[0])
