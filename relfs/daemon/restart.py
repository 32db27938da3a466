"""Going on with a mount whose processes have all ended, from what systemd has kept of it (fdstore.py).

It must be the mount that is asked for: one that was made with other options, or that somebody has unmounted meanwhile,
is let go of, and another one made.
"""

from __future__ import annotations

import logging

from relfs.daemon.fdstore import inherited, store_of_unit
from relfs.daemon.plan import Plan
from relfs.daemon.session import load_session
from relfs.errors import RelfsError, reason
from relfs.mountinfo import FSTYPE, Mount, mount_at
from relfs.mounts import detach_only
from relfs.survival.estate import Estate
from relfs.survival.ledger import Ledger

_NEEDED = ("connection", "guard", "watch", "lock", "deploy", "state", "ledger", "baton", "inbox", "outbox")

_log = logging.getLogger(__name__)


def kept_mount(plan: Plan) -> tuple[Estate, Ledger] | None:
    """What is kept of the mount that `plan` asks for, if anything."""
    estate = _inherited()
    if estate is None:
        return None
    try:
        ledger = _ledger_of(estate)
        _check(ledger, plan)
    except (RelfsError, ValueError) as error:
        _log.info("%s: the mount that was kept is not taken over: %s", plan.mountpoint, error)
        _let_go(estate)
        return None
    _log.info("%s: goes on, with the mount that was kept", plan.mountpoint)
    return estate, ledger


def _inherited() -> Estate | None:
    try:
        return inherited()
    except (OSError, ValueError) as error:
        _log.warning("what systemd has kept cannot be read: %s", reason(error) if isinstance(error, OSError) else error)
        _forget()
        return None


def _ledger_of(estate: Estate) -> Ledger:
    """Raises RelfsError if something is missing, ValueError if another version has written it."""
    missing = [name for name in _NEEDED if name not in estate]
    if missing:
        raise RelfsError(f"it lacks {', '.join(missing)}")
    return Ledger(estate["ledger"])


def _check(ledger: Ledger, plan: Plan) -> None:
    """Raises RelfsError if it is not what is asked for, or is not there."""
    if load_session(ledger).plan != plan:
        raise RelfsError("something else is asked for now")
    if _mounted(ledger) is None:
        raise RelfsError("it was unmounted")


def _mounted(ledger: Ledger) -> Mount | None:
    """The mount, if it is there."""
    found = mount_at(load_session(ledger).plan.mountpoint)
    return found if found is not None and found.fstype == FSTYPE and found.id == ledger.mounted else None


def _let_go(estate: Estate) -> None:
    """Take the mount away, if it is there. Its guards would do so; but it shall not be in our way."""
    try:
        ledger = _ledger_of(estate)
        found = _mounted(ledger)
        if found is not None:
            detach_only(found)
    except (RelfsError, ValueError) as error:
        _log.info("%s", error)
    estate.close()
    _forget()


def _forget() -> None:
    store = store_of_unit()
    if store is not None:
        store.forget()
