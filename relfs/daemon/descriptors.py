"""How this process's descriptors are shared out: whoever opens files does not take the last from whoever switches.

Descriptors are numbered from below: open(2) gives the lowest that is free. So one whose number is at or above a mark
tells that nearly all below it are in use, whoever has them. Whoever opens something for a client of the mount gives it
back then, and the client gets EMFILE; the control socket, a switch and a hook do with what is left.
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
    """INVARIANT: below `mark` there is room for files and inodes, above it, up to the limit, for `connections` of the
    control socket and as many again for relfs's own work."""

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
        """How many inodes may be held by a descriptor; the other half is for open files."""
        return self.mark // 2

    def for_client(self, fd: int) -> int:
        """`fd`, which was opened for a client of the mount. If it is one of the reserve it is closed, and OSError
        (EMFILE) raised."""
        if fd < self.mark:
            return fd
        os.close(fd)
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    def trouble(self) -> str | None:
        """Whether clients of the mount are being refused now, in a line: what is opened next tells."""
        try:
            os.close(self.for_client(os.open("/", os.O_PATH | os.O_CLOEXEC)))
        except OSError as error:
            if error.errno not in (errno.EMFILE, errno.ENFILE):
                raise
            return f"all of the daemon's {self.limit} descriptors are in use: no file can be opened through the mount"
        return None


def descriptors() -> Descriptors:
    """As this process's limit has them now (RLIMIT_NOFILE, getrlimit(2))."""
    return Descriptors(resource.getrlimit(resource.RLIMIT_NOFILE)[0])
