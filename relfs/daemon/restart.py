"""Going on with a mount whose processes have all ended, from what systemd has kept of it (fdstore.py).

It must be the mount that is asked for: one that was made with other options, or that somebody has unmounted meanwhile,
is let go of, and another one made.
"""

from __future__ import annotations

import logging

from relfs.daemon.fdstore import inherited, store_of_unit
from relfs.daemon.plan import Plan
from relfs.daemon.session import begin_logging, load_session
from relfs.errors import RelfsError, reason
from relfs.mountinfo import FSTYPE, mount_at
from relfs.mounts import detach
from relfs.survival.estate import Estate
from relfs.survival.ledger import Ledger

_NEEDED = ("connection", "guard", "watch", "lock", "deploy", "state", "ledger", "baton", "inbox", "outbox")

_log = logging.getLogger(__name__)


def kept_mount(plan: Plan) -> tuple[Estate, Ledger] | None:
    """What is kept of the mount that `plan` asks for, if anything. Logs to where that mount does, then."""
    estate = _inherited()
    if estate is None:
        return None
    try:
        ledger = _adoptable(estate, plan)
    except (RelfsError, ValueError, OSError) as error:
        _log.info("%s: the mount that was kept is not taken over: %s", plan.mountpoint, error)
        _let_go(estate)
        return None
    begin_logging(load_session(ledger), estate)
    _log.info("%s: goes on, with the mount that was kept", plan.mountpoint)
    return estate, ledger


def _inherited() -> Estate | None:
    try:
        return inherited()
    except (OSError, ValueError) as error:
        _log.warning("what systemd has kept cannot be read: %s", reason(error) if isinstance(error, OSError) else error)
        _forget()
        return None


def _adoptable(estate: Estate, plan: Plan) -> Ledger:
    """Raises RelfsError or ValueError if it is not what is asked for, or cannot be gone on with."""
    missing = [name for name in _NEEDED if name not in estate]
    if missing:
        raise RelfsError(f"it lacks {', '.join(missing)}")
    ledger = Ledger(estate["ledger"])
    try:
        _check(ledger, plan)
    except BaseException:
        ledger.close()
        raise
    return ledger


def _check(ledger: Ledger, plan: Plan) -> None:
    if load_session(ledger).plan != plan:
        raise RelfsError("something else is asked for now")
    found = mount_at(plan.mountpoint)
    if found is None or found.fstype != FSTYPE or found.id != ledger.mounted:
        raise RelfsError("it was unmounted")


def _let_go(estate: Estate) -> None:
    """Take the mount away, if it is there, and have its guards end."""
    if "ledger" in estate:
        _detach(estate["ledger"])
    estate.close()
    _forget()


def _detach(memory: int) -> None:
    try:
        ledger = Ledger(memory)
    except (ValueError, OSError):
        return  # the guards know which mount it is
    where, number = load_session(ledger).plan.mountpoint, ledger.mounted
    ledger.close()
    found = mount_at(where)
    if found is not None and found.id == number:
        detach(where)


def _forget() -> None:
    store = store_of_unit()
    if store is not None:
        store.forget()
