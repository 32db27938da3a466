"""The estate: the descriptors that must outlive whoever is killed, by name. Supervisor and standby hold all of them, so
that either can die at any moment; what a worker opens, it gives them before it tells the kernel.

    connection         /dev/fuse, the very open file description: closing a clone would fail its requests
    guard              the socket whose closing, in all processes, makes fusermount3's helper detach the mount
    lock               the daemon lock
    deploy, state      the deploy path, opened before it was covered, and the state directory
    home, nested.PATH  where passthrough works; what is mounted below that, until it is attached (daemon/nested.py)
    ledger             see ledger.py
    inbox, outbox      the two ends of the pair by which processes find a new supervisor
    baton              the file whose lock says who is the supervisor (daemon/member.py)
    listener           the control socket
    releases           `releases` as it is attached in the mount
    pin.N              the native directory whose nodeid is N
    abroad.N, abroad-ledger.N
                       the root of another disk, whose nodeid is N, and its ledger (fuse/abroad.py)
    file.N, names.N    the open file N; what was listed of the open directory N
"""

from __future__ import annotations

import os
from collections.abc import Iterator

_FLEETING = ("file.", "names.")


class Estate:
    """Descriptors by name. INVARIANT: each is open, and nobody else closes it."""

    def __init__(self) -> None:
        self._fds: dict[str, int] = {}

    def __getitem__(self, name: str) -> int:
        return self._fds[name]

    def __contains__(self, name: str) -> bool:
        return name in self._fds

    def __iter__(self) -> Iterator[tuple[str, int]]:
        return iter(list(self._fds.items()))

    def put(self, name: str, fd: int) -> None:
        """Hold `fd`. It takes the number of what has had the name so far, by which others may go: who needs it asks for
        its name from now on."""
        before = self._fds.get(name)
        if before is None:
            self._fds[name] = fd
        elif before != fd:
            os.dup2(fd, before, inheritable=False)
            os.close(fd)

    def drop(self, name: str) -> None:
        """Close it, if there is one."""
        fd = self._fds.pop(name, None)
        if fd is not None:
            os.close(fd)

    def take(self, name: str) -> int:
        """Give it to the caller, to close. Raises KeyError."""
        return self._fds.pop(name)

    def close(self) -> None:
        for name, _ in self:
            self.drop(name)


def is_fleeting(name: str) -> bool:
    """Whether what has this name in the estate belongs to something that is open for a while only."""
    return name.startswith(_FLEETING)
