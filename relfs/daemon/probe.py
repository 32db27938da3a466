"""Asking the mount through its own front door, or a disk, by a process that may hang for it.

A thread that waits for an answer of a FUSE file system cannot be killed once its request was read, and its process
keeps all descriptors until it is answered, the connection's among them: which is thus never ended, and the answer never
comes. So who asks is a process that holds nothing but what it asks.
"""

from __future__ import annotations

import fcntl
import itertools
import os
import signal
import socket
from contextlib import suppress

from relfs.errors import reason
from relfs.names import CURRENT, SECOND_NAME
from relfs.processes import state_of

_ANSWER_MAX = 1 << 16
_ENDPOINT, _DISK = 3, 4


class Probe:
    """A process that asks. To be made in a process with no thread but the log's: what another thread holds locked at
    the fork is locked for ever in the copy, which does not log."""

    def __init__(self, mountpoint: str, disk: int | None = None) -> None:
        """`disk` is a descriptor of a directory on it, which is relfs's own: it is given a new time. Raises OSError."""
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.setblocking(False)
        with theirs:
            try:
                self.pid = os.fork()
                if self.pid == 0:
                    _ask_on(theirs, mountpoint, disk)
                self._pidfd = os.pidfd_open(self.pid)
            except OSError:
                self._socket.close()  # which ends it, if it is there
                raise

    def fileno(self) -> int:
        return self._socket.fileno()

    def ask(self, what: str) -> None:
        """`status`: that of the mount (statfs(2)), which the kernel never knows. `current`: what it says. `links`: the
        second names that there are. `disk`: whether that can be read and written. Raises OSError if the process is
        gone."""
        self._socket.send(what.encode())

    def answer(self) -> tuple[str, str]:
        """A verdict, "ok" or "error", and what. Raises BlockingIOError if there is none as yet, OSError if the process
        is gone."""
        answer = self._socket.recv(_ANSWER_MAX)
        if not answer:
            raise ConnectionResetError
        verdict, _, said = os.fsdecode(answer).partition(" ")
        return verdict, said

    def wants_to_run(self) -> bool:
        """Whether it would do something, if it were given a processor: then it waits for no answer."""
        return state_of(self.pid) == "R"

    def close(self) -> None:
        """End it; if it hangs, it ends once it is answered. To reap it, whenever that is, is left to its parent
        (command.py)."""
        self._socket.close()
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
        os.close(self._pidfd)


def _ask_on(endpoint: socket.socket, mountpoint: str, disk: int | None) -> None:
    """Never returns."""
    try:
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        _keep_only(endpoint.fileno(), disk)
        mine = socket.socket(fileno=_ENDPOINT)
        while question := mine.recv(64):
            mine.send(os.fsencode(_look(question, mountpoint)))
    except OSError:
        pass
    finally:
        os._exit(0)


def _keep_only(endpoint: int, disk: int | None) -> None:
    """Close everything else."""
    apart = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _DISK + 1) for fd in (endpoint, disk if disk is not None else 0)]
    os.dup2(apart[0], _ENDPOINT)
    os.dup2(apart[1], _DISK)
    os.closerange(_DISK + 1, os.sysconf("SC_OPEN_MAX"))


def _look(question: bytes, mountpoint: str) -> str:
    try:
        if question == b"current":
            return f"ok {os.readlink(f'{mountpoint}/{CURRENT}')}"
        if question == b"links":
            _look_up_second_names(mountpoint)
        elif question == b"disk":
            os.fstatvfs(_DISK)
            os.utime(_DISK)  # one that is frozen (fsfreeze(8)) can be read
        else:
            os.statvfs(mountpoint)
        return "ok"
    except OSError as error:
        return f"error {reason(error)}"


def _look_up_second_names(mountpoint: str) -> None:
    """Until there is none, so that the kernel knows them. Raises OSError."""
    try:
        for number in itertools.count():
            os.lstat(f"{mountpoint}/{SECOND_NAME}{number}")
    except FileNotFoundError:
        pass
