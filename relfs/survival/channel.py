"""Messages between the processes of one mount, with descriptors (unix(7), SCM_RIGHTS).

A message is a JSON object in one datagram of a SOCK_SEQPACKET pair, so that it arrives whole or not at all. What is in
a socket's queue lives as long as any process has the socket: a message to a process that has just died is not lost if
somebody else holds its end too.
"""

from __future__ import annotations

import array
import json
import os
import select
import socket
from collections import deque
from dataclasses import dataclass, field
from typing import Any, Protocol

_MESSAGE_MAX = 1 << 16
_DESCRIPTORS_MAX = 16


class Pollable(Protocol):
    """What has a descriptor."""

    def fileno(self) -> int: ...


@dataclass(frozen=True)
class Message:
    """`fds` belong to whoever received it."""

    kind: str
    values: dict[str, Any] = field(default_factory=dict)
    fds: tuple[int, ...] = ()

    def close(self) -> None:
        """Close the descriptors, unread."""
        for fd in self.fds:
            os.close(fd)


class Channel:
    """One end. Sending never blocks: what the other side has no room for is kept, and goes with the next message."""

    def __init__(self, endpoint: socket.socket) -> None:
        endpoint.setblocking(False)
        self._socket = endpoint
        self._owed: deque[tuple[bytes, tuple[int, ...]]] = deque()

    def fileno(self) -> int:
        return self._socket.fileno()

    def send(self, kind: str, *fds: int, **values: Any) -> None:
        """Raises ConnectionError if the other side is gone; `fds` stay the caller's. What has to be kept for later is
        a copy of each, so who has many sends them by offer()."""
        if not self.offer(kind, *fds, **values):
            self._owed.append((_encoded(kind, values), tuple(map(os.dup, fds))))

    def offer(self, kind: str, *fds: int, **values: Any) -> bool:
        """Send it if there is room, after all that is owed; whether there was. Raises ConnectionError."""
        return self.flush() and self._has_taken(_encoded(kind, values), fds)

    def flush(self) -> bool:
        """Send what is owed, as far as there is room; whether that was all. Raises ConnectionError."""
        while self._owed:
            data, fds = self._owed[0]
            if not self._has_taken(data, fds):
                return False
            self._owed.popleft()
            for fd in fds:
                os.close(fd)
        return True

    def _has_taken(self, data: bytes, fds: tuple[int, ...]) -> bool:
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        try:
            self._socket.sendmsg([data], ancillary)
        except ConnectionError:
            raise
        except OSError:
            return False  # no room (EAGAIN), or too many descriptors are under way (ETOOMANYREFS)
        return True

    def receive(self) -> Message | None:
        """The next message; None if the other side is gone. Raises BlockingIOError if there is none as yet."""
        try:
            data, ancillary, _, _ = self._socket.recvmsg(_MESSAGE_MAX, socket.CMSG_SPACE(4 * _DESCRIPTORS_MAX))
        except ConnectionError:
            return None
        fds = array.array("i")
        for level, kind, carried in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                fds.frombytes(carried[: len(carried) // fds.itemsize * fds.itemsize])
        for fd in fds:
            os.set_inheritable(fd, False)
        if not data:
            return None
        values = json.loads(data)
        return Message(values.pop("kind"), values, tuple(fds))

    def detach(self) -> int:
        """The descriptor, which is the caller's from now on."""
        return self._socket.detach()

    def close(self) -> None:
        for _, fds in self._owed:
            for fd in fds:
                os.close(fd)
        self._owed.clear()
        self._socket.close()


def _encoded(kind: str, values: dict[str, Any]) -> bytes:
    return json.dumps({"kind": kind, **values}).encode("ascii")


def until_readable(endpoint: Pollable | int, seconds: float | None = None) -> bool:
    """Wait until there is something to read, or the other side is gone, for at most `seconds`; whether that is so.
    select(2) would not do: it knows descriptors below 1024 only, and a process that keeps open files has more."""
    poll = select.poll()
    poll.register(endpoint, select.POLLIN)
    return bool(poll.poll(None if seconds is None else max(seconds, 0) * 1000))


def pair() -> tuple[Channel, Channel]:
    """Two ends."""
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    return Channel(one), Channel(other)


def channel_of(fd: int) -> Channel:
    """The end whose descriptor is `fd`."""
    return Channel(socket.socket(fileno=fd))
