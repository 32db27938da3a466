"""Taking the deploy lock (hold.py), for commands: of the daemon where there is one, else here."""

from __future__ import annotations

import os
from typing import Any

from relfs.cli.session import pointer_here, refuse_behind_mount, refuse_in_hook
from relfs.control import NoDaemon, change
from relfs.locate import Place


def take_lock(place: Place, *, own: bool, why: str = "", ttl: float | None = None) -> dict[str, Any]:
    """The lock as status shows it. It is this process's (`own`), and ends with it, or that of who started it; or it is
    held for `ttl` seconds. Raises LockedError, RelfsError."""
    refuse_in_hook(place)
    try:
        lock: dict[str, Any] = change(place.state_paths, "lock", {"own": own, "reason": why, "ttl": ttl})
        return lock
    except NoDaemon:
        refuse_behind_mount(place)
    from relfs.journal import this_actor
    from relfs.processes import starter

    with pointer_here(place) as pointer:
        holder = os.getpid() if own else starter(os.getpid())
        return pointer.hold(this_actor(), holder, why=why, seconds=ttl).as_json()
