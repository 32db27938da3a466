"""The three processes that serve a mount: who they are, what is done to them, and waiting until others have come."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

from mounting import Mount, wait_for
from soak.site import Pids

from relfs.control import Connection
from relfs.errors import RelfsError
from relfs.mountinfo import mounts

PARTS = ("supervisor", "worker", "standby")

_ANSWER_SECONDS = 10.0
"""A worker that is stopped, or dead, does not take that long: its end is an answer."""


def pids_of(mount: Mount) -> Pids | None:
    """By the worker's own word; None if there is no answer."""
    try:
        connection = Connection((f"{mount.mountpoint}/.relfs",))
    except RelfsError:
        return None
    try:
        status = connection.call("status", {}, seconds=_ANSWER_SECONDS)
    except (RelfsError, ConnectionError):
        return None
    finally:
        connection.close()
    return Pids(*(status[f"{part}_pid"] for part in PARTS))


def whole(mount: Mount, gone: tuple[int, ...] = ()) -> Pids:
    """Wait until all three are there, and none of them is one of `gone`."""
    found: list[Pids] = []

    def come() -> bool:
        pids = pids_of(mount)
        found[:] = [pids] if pids is not None else []
        return pids is not None and len(pids.alive()) == 3 and not set(pids.alive()) & set(gone)

    wait_for(come, f"all three serve, and none of {gone}")
    return found[0]


def kill(mount: Mount, *parts: str) -> Pids:
    """Kill these at once, when all three are there; who serves once that is so again."""
    return _strike(mount, parts, signal.SIGKILL)


def stop(mount: Mount, part: str) -> Pids:
    """Stop one, as if it hung; who serves once all three are there again."""
    return _strike(mount, (part,), signal.SIGSTOP)


def _strike(mount: Mount, parts: tuple[str, ...], number: signal.Signals) -> Pids:
    pids = whole(mount)
    victims = tuple(getattr(pids, part) for part in parts)
    expect_deaths(mount)
    for pid in victims:
        os.kill(pid, number)
    return whole(mount, gone=victims)


def expect_deaths(mount: Mount) -> None:
    """Announce what is logged when one of the three is killed."""
    mount.expect_log(r" WARNING relfs\.daemon\.")


def mounts_below(app: Path) -> list[tuple[int, str]]:
    """What is mounted at the deploy path and below it, each with its mount's id."""
    return [(mount.id, mount.target) for mount in mounts() if f"{mount.target}/".startswith(f"{app}/")]


BLOWS: dict[str, Callable[[Mount], Pids]] = {
    "worker": lambda mount: kill(mount, "worker"),
    "supervisor": lambda mount: kill(mount, "supervisor"),
    "standby": lambda mount: kill(mount, "standby"),
    "worker and supervisor": lambda mount: kill(mount, "worker", "supervisor"),
    "worker and standby": lambda mount: kill(mount, "worker", "standby"),
    "supervisor and standby": lambda mount: kill(mount, "supervisor", "standby"),
    "worker, stopped": lambda mount: stop(mount, "worker"),
    "supervisor, stopped": lambda mount: stop(mount, "supervisor"),
}
"""What may happen to a mount of which nobody may notice anything."""
