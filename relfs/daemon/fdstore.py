"""What systemd keeps for us while no process of relfs is there: the estate, so that a restart leaves the mount alone.

A restart that nobody notices
-----------------------------
Some facts. `systemctl restart` ends all processes of a service, and then starts it: SIGTERM means the same as for
`stop`, and only the job that systemd is at tells which it is. systemd holds descriptors for a service (sd_notify(3),
FDSTORE=1), gives them to its next main process (sd_listen_fds(3)), and closes them when the service has stopped or
failed for good. Requests to a mount wait in the kernel as long as anybody has its connection open. What is in the queue
of a socket is open as long as anybody has the socket; a message can carry 253 descriptors (unix(7)), and can be read
without being taken away (socket(7), SO_PEEK_OFF).

The choice. The estate is put into the queues of as many sockets as it takes, two hundred descriptors a message, and
systemd is given those. That is done as soon as the mount answers, and whenever something is attached to it, so that
the mount survives everybody's death at once; open files come and go too often for that, and the next worker opens
them again by their names. When a restart begins, everything is kept, and all processes are killed: whoever dies at
any moment loses nothing (survival/memory.py), so there is nothing to be prepared. The next main process reads without
taking, so that its death, too, changes nothing. The guards that detach the mount run outside of the service
(service.scope_of_its_own); to them systemd is one more who holds the connection, so `stop`, and giving up after too
many failures, uncover the real link.

Whose it is
-----------
Every process of the unit can have descriptors stored, and hooks are run there as the deploy path's owner. Who made a
socket is told by the kernel (SO_PEERCRED), so only what we ourselves, or root, have made is taken.
"""

from __future__ import annotations

import array
import json
import logging
import os
import socket
import subprocess
from collections.abc import Iterator
from contextlib import suppress

from relfs.daemon.service import UNIT, send
from relfs.errors import reason
from relfs.survival.channel import until_readable
from relfs.survival.estate import Estate, is_fleeting

_NAME = "relfs"
_FIRST = 3  # sd_listen_fds(3)
_BATCH = 200
_MESSAGE_MAX = 1 << 16
_SO_PEEK_OFF = 42  # asm-generic/socket.h; the socket module does not name it
_CREDENTIALS_SIZE = 12  # struct ucred: pid, uid, gid
_SECONDS = 5.0

_log = logging.getLogger(__name__)


class Store:
    """The place that the unit has with systemd. Nothing here raises: a mount is as good without, but for restarts."""

    def __init__(self, unit: str) -> None:
        self._unit = unit

    def keep(self, estate: Estate, *, whole: bool) -> bool:
        """Have it kept, instead of what was kept before. `whole`: with open files, and not without being sure that it
        is kept; that may take seconds, if systemd is busy. Whether it succeeded, as far as is known."""
        held = {name: fd for name, fd in estate if whole or not is_fleeting(name)}
        queues: list[socket.socket] = []
        try:
            queues += _pack(held)
            send("FDSTOREREMOVE=1", f"FDNAME={_NAME}")
            send("FDSTORE=1", f"FDNAME={_NAME}", "FDPOLL=0", fds=[queue.fileno() for queue in queues])
            return _is_settled() if whole else True
        except OSError as error:
            _log.warning("%s: a restart will interrupt the mount, which cannot be kept: %s", self._unit, reason(error))
            return False
        finally:
            for queue in queues:
                queue.close()

    def forget(self) -> None:
        """Have nothing kept any more."""
        with suppress(OSError):
            send("FDSTOREREMOVE=1", f"FDNAME={_NAME}")

    def restart_is_coming(self) -> bool:
        """Whether we are told to end in order to be started again. No, if systemd does not say."""
        try:
            done = subprocess.run(
                ["systemctl", "list-jobs", "--full", "--plain", "--no-legend"],
                capture_output=True,
                text=True,
                timeout=_SECONDS,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired):
            return False
        jobs = [line.split() for line in done.stdout.splitlines()]  # number, unit, what, how far
        return any(job[1:2] == [self._unit] and job[2:3] in (["restart"], ["try-restart"]) for job in jobs)


def store_of_unit() -> Store | None:
    """The one that the unit says it has, if any."""
    unit = os.environ.get(UNIT)
    return Store(unit) if unit and "NOTIFY_SOCKET" in os.environ else None


def inherited() -> Estate | None:
    """What was kept for this process. It stays kept. To be called once, before other descriptors are opened.

    Raises OSError if it cannot be read in full.
    """
    queues = list(_listened())
    if not queues:
        return None
    estate = Estate()
    try:
        for queue in queues:
            if _is_trusted(queue):
                _unpack(queue, estate)
    except BaseException:
        estate.close()
        raise
    finally:
        for queue in queues:
            queue.close()
    return estate


# ---- queues


def _pack(held: dict[str, int]) -> list[socket.socket]:
    """Sockets in whose queues all of it is. Raises OSError."""
    left = list(held.items())
    queues: list[socket.socket] = []
    try:
        while left:
            sending, queue = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            queues.append(queue)
            with sending:
                sending.setblocking(False)
                left = _fill(sending, left)
    except BaseException:
        for queue in queues:
            queue.close()
        raise
    return queues


def _fill(sending: socket.socket, left: list[tuple[str, int]]) -> list[tuple[str, int]]:
    """Send what there is room for; the rest. Raises OSError."""
    sent = 0
    while batch := left[sent : sent + _BATCH]:
        names, fds = zip(*batch, strict=True)
        try:
            socket.send_fds(sending, [json.dumps(names).encode("ascii")], fds)
        except BlockingIOError:
            if not sent:
                raise
            break
        sent += len(batch)
    return left[sent:]


def _unpack(queue: socket.socket, estate: Estate) -> None:
    """Read all, and leave it there: each message is looked at, which moves on to the next. Raises OSError."""
    queue.setblocking(False)
    queue.setsockopt(socket.SOL_SOCKET, _SO_PEEK_OFF, 0)
    while True:
        try:
            data, ancillary, flags, _ = queue.recvmsg(_MESSAGE_MAX, socket.CMSG_SPACE(4 * _BATCH), socket.MSG_PEEK)
        except BlockingIOError:
            return
        if not data:
            return
        fds = array.array("i", b"".join(carried for _, _, carried in ancillary))
        for fd in fds:
            os.set_inheritable(fd, False)
        names = json.loads(data)
        for name, fd in zip(names, fds, strict=False):
            estate.put(name, fd)
        if flags & socket.MSG_CTRUNC or len(names) != len(fds):
            raise OSError(f"only {len(fds)} of {len(names)} descriptors that were kept could be had")


def _is_trusted(queue: socket.socket) -> bool:
    raw = array.array("i", queue.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS_SIZE))
    if raw[1] in (0, os.geteuid()):
        return True
    _log.warning("descriptors that user %d had kept for this service are not taken", raw[1])
    return False


# ---- systemd


def _listened() -> Iterator[socket.socket]:
    """The descriptors of that name; all that we were given are closed on exec from now on (sd_listen_fds(3))."""
    mine = os.environ.pop("LISTEN_PID", "") == str(os.getpid())
    count, names = os.environ.pop("LISTEN_FDS", ""), os.environ.pop("LISTEN_FDNAMES", "").split(":")
    if not mine or not count.isdecimal():
        return
    for fd, name in zip(range(_FIRST, _FIRST + int(count)), names, strict=False):
        os.set_inheritable(fd, False)
        if name == _NAME:
            yield socket.socket(fileno=fd)


def _is_settled() -> bool:
    """Wait until systemd has seen to all that it was sent: it closes what comes with BARRIER=1 (sd_notify(3))."""
    reading, writing = os.pipe()
    try:
        send("BARRIER=1", fds=[writing])
    finally:
        os.close(writing)
    try:
        return until_readable(reading, _SECONDS)
    finally:
        os.close(reading)
