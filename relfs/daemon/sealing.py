"""Sealing begins: who seals the releases of a mount, and what is sealed from its first moment on.

The ways of sealing are in seal.py (read-only mounts) and relfs/fuse/guard.py (operations are refused); in which order
releases are sealed and unsealed is in relfs/seal.py.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from relfs.daemon.member import Member
from relfs.daemon.native import RELEASES_FD, is_real_directory
from relfs.daemon.plan import Plan
from relfs.daemon.seal import Binds
from relfs.errors import RelfsError, reason
from relfs.fuse.guard import Guard
from relfs.layout import CURRENT, RELEASES, DeployPath, Target
from relfs.pointer import Pointer
from relfs.seal import Sealer, Seals
from relfs.views.pins import Pin
from relfs.views.sights import Sights

_log = logging.getLogger(__name__)

_WITHOUT_SEAL = "`seal = false` in config.toml mounts it unguarded"


def choose_sealer(member: Member, deploy: DeployPath, plan: Plan, guard: Guard) -> Sealer:
    """Read-only mounts where `releases` is attached, `guard` where it is served by us. Raises RelfsError if what is
    live cannot be sealed either way, and OSError."""
    if RELEASES_FD in member:
        return Binds(deploy, member[RELEASES_FD], plan.mount_options, member.ledger.seals)
    if not is_real_directory(deploy.fd, RELEASES):
        raise RelfsError(f"{deploy.path}/{RELEASES}: is a link, and what it leads to cannot be sealed; {_WITHOUT_SEAL}")
    if plan.over or not plan.bind:
        return guard
    raise RelfsError(
        f"{plan.mountpoint}: no release can be sealed: {CURRENT} leads into {deploy.path}, which this "
        f"mount does not cover; mount over it, or with --no-bind; {_WITHOUT_SEAL}"
    )


def begin_sealing(
    seals: Seals, choose: Callable[[], Sealer], deploy: DeployPath, pointer: Pointer, sights: Sights
) -> None:
    """Seal what anybody sees, and from now on what anybody is about to see. Blocks. Raises RelfsError where that cannot
    be kept."""
    try:
        sealer = choose()
        before = sealer.covered if isinstance(sealer, Binds) else frozenset()
        seals.begin(sealer, _live(deploy, pointer, sights), before)
    except OSError as error:
        raise RelfsError(f"{deploy.path}/{CURRENT}: {reason(error)}; {_WITHOUT_SEAL}") from error
    for pin in sights.pins:
        _seal_again(seals, pin)


def _live(deploy: DeployPath, pointer: Pointer, sights: Sights) -> list[Target]:
    stage = sights.canary.stage
    live = [pointer.target] if pointer.target is not None else []
    if stage is not None and deploy.leads_somewhere(stage.target.text):  # else there is nothing to be kept
        live.append(stage.target)
    return live


def _seal_again(seals: Seals, pin: Pin) -> None:
    """A pin from before us. What it is pinned to may have been removed while nothing was mounted."""
    try:
        if pin.seals:
            seals.hold(pin.target, anew=True)
    except OSError as error:
        _log.warning("process %d is pinned to %s: %s", pin.pid, pin.release, reason(error))
