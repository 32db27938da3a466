"""Telling a service manager how things stand (sd_notify(3)); nothing happens where there is none."""

from __future__ import annotations

import contextlib
import os
import socket


def notify(*assignments: str) -> None:
    """Send assignments such as READY=1 to $NOTIFY_SOCKET. A manager that does not listen is not our failure."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as endpoint:
        endpoint.sendto(os.fsencode("\n".join(assignments)), address)
