"""Telling a service manager how things stand (sd_notify(3)); nothing happens where there is none.

What it keeps for us is in fdstore.py; contrib/systemd has the unit.
"""

from __future__ import annotations

import array
import contextlib
import os
import shutil
import socket
import time
from collections.abc import Sequence

from relfs.errors import RelfsError

UNIT = "RELFS_UNIT"
"""The environment variable by which the unit says its name, and so that what is below may be done."""

_SEND_SECONDS = 1.0


def notify(*assignments: str) -> None:
    """Send assignments such as READY=1 to $NOTIFY_SOCKET. A manager that does not listen is not our failure."""
    with contextlib.suppress(OSError):
        send(*assignments)


def send(*assignments: str, fds: Sequence[int] = ()) -> None:
    """The same, with descriptors, which stay the caller's. Raises OSError if the manager does not listen, or is not
    there at all."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        raise FileNotFoundError("no service manager listens: $NOTIFY_SOCKET is not set")
    if address.startswith("@"):
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as endpoint:
        endpoint.settimeout(_SEND_SECONDS)
        carried = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        endpoint.sendmsg([os.fsencode("\n".join(assignments))], carried, 0, address)


def require_common_mounts() -> None:
    """Raises RelfsError if our unit has been given a mount name space of its own: nobody would see what is mounted."""
    if UNIT in os.environ and _has_mounts_of_its_own():
        raise RelfsError(
            f"{os.environ[UNIT]}: has a mount name space of its own, so that nobody else would see the mount; take "
            "ProtectSystem=, PrivateTmp= and their like out of the unit (docs/service.md lists them)"
        )


def _has_mounts_of_its_own() -> bool:
    """As far as can be seen: who is not root (User=) may not look at process 1 (namespaces(7))."""
    try:
        return os.readlink("/proc/self/ns/mnt") != os.readlink("/proc/1/ns/mnt")
    except PermissionError:
        return False


def scope_of_its_own(description: str) -> list[str]:
    """What to put before a command that shall survive the service: systemd ends what is in the service's cgroup, and
    systemd-run(1) gives a command one of its own, as the very process that it becomes. Nothing outside of our unit."""
    command = shutil.which("systemd-run") if UNIT in os.environ else None
    if command is None:
        return []
    options = ["--scope", "--quiet", "--collect", "--property=DefaultDependencies=no", f"--description={description}"]
    return [command, *options, "--"]


class Heartbeat:
    """What the manager's watchdog waits for: a word at half of $WATCHDOG_USEC (sd_watchdog_enabled(3)). Whoever is the
    main process now says it, so $WATCHDOG_PID is not looked at."""

    def __init__(self) -> None:
        microseconds = os.environ.get("WATCHDOG_USEC", "")
        self._seconds = int(microseconds) / 1e6 if microseconds.isdecimal() else 0.0
        self._due = 0.0

    def turn(self, answered: float) -> None:
        """To be called every so often; `answered` (time.monotonic()) is when the mount last was seen to answer. If that
        is too long ago, nothing is said, and the manager does what its unit says."""
        now = time.monotonic()
        if now >= self._due and now - answered < self._seconds:
            self._due = now + self._seconds / 2
            notify("WATCHDOG=1")
