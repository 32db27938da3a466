"""What can be asked for on the control socket of a mount."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import trio

from relfs import __version__
from relfs.daemon.canarying import Canarying
from relfs.daemon.inuse import ask_who_uses
from relfs.daemon.log import log_trouble
from relfs.daemon.member import Member, has_ended
from relfs.daemon.pinning import Pinning
from relfs.daemon.plan import Plan
from relfs.daemon.privileges import present
from relfs.daemon.reloading import outcome_of
from relfs.daemon.server import Method, Peer
from relfs.daemon.viewing import lost, view_methods
from relfs.errors import RefusedError, RelfsError, reason
from relfs.fuse.changes import Changes
from relfs.fuse.current import CurrentLink
from relfs.fuse.operations import Operations
from relfs.fuse.protocol import HAS_RESEND, InitRequest
from relfs.health import health
from relfs.hold import Hold, held
from relfs.layout import CURRENT, check_name
from relfs.pointer import Pointer
from relfs.processes import process, starter
from relfs.releases.deleter import start_deleting
from relfs.seal import Seals
from relfs.status import Host, Status, View, unmounted_status
from relfs.survival.ledger import Who
from relfs.threads import in_thread
from relfs.views.pinned import with_pinned
from relfs.views.sights import Sights

_LOOK_SECONDS = 2.0
_LATE_SECONDS = 0.2
_TRIES = 2
_RELOAD_PAUSE = 0.05
_FULL = "as many files are open through the mount as the daemon's limit of descriptors allows; no more can be opened"
_LOOKS = 2
"""How many looks at the disk may hang at a time; one that does keeps its thread."""


@dataclass(frozen=True)
class Mounted:
    """The parts of a running mount that requests are about; `seals` is None where sealing is not asked for. `native`
    and `leave` are asked each time."""

    plan: Plan
    member: Member
    pointer: Pointer
    changes: Changes
    current: CurrentLink
    sights: Sights
    pinning: Pinning
    canarying: Canarying
    operations: Operations
    init: InitRequest
    caches_links: bool
    relayed: bool
    seals: Seals | None
    native: Callable[[], tuple[str, ...]]
    leave: Callable[[], None]


def methods(mounted: Mounted) -> dict[str, Method]:
    """The methods by name. `watch` is the server's own."""
    request: dict[str, type | tuple[type, ...]] = {"request": str}
    return {
        "status": Method(_status(mounted), changes=False, params={}),
        "switch": Method(_switch(mounted), changes=True, params={**request, **_SWITCH_PARAMS}),
        "confirm": Method(_confirm(mounted), changes=True, params={**request, "release": (str, type(None))}),
        "rollback": Method(_rollback(mounted), changes=True, params={**request, "release": (str, type(None))}),
        "discard": Method(_discard(mounted), changes=True, params={**request, "release": str, "force": bool}),
        "clean": Method(_clean(mounted), changes=True, params=request),
        "who": Method(_who(mounted), changes=True, params={**request, "releases": list}),
        "lock": Method(_lock(mounted), changes=True, params={**request, **_LOCK_PARAMS}),
        "unlock": Method(_unlock(mounted), changes=True, params=request),
        "reload": Method(_reload(mounted), changes=True, params=request),
        "unmount": Method(_unmount(mounted), changes=True, params=request),
        **view_methods(
            mounted.pointer,
            mounted.sights,
            mounted.pinning,
            mounted.canarying,
            mounted.current,
            partial(_own_pids, mounted),
        ),
    }


_SWITCH_PARAMS: dict[str, type | tuple[type, ...]] = {
    "release": str, "force": bool, "confirm": (int, float, type(None)),
}  # fmt: skip
_LOCK_PARAMS: dict[str, type | tuple[type, ...]] = {"own": bool, "reason": str, "ttl": (int, float, type(None))}

_Run = Callable[[Peer, dict[str, Any]], Any]


def _switch(mounted: Mounted) -> _Run:
    async def run(peer: Peer, params: dict[str, Any]) -> dict[str, object]:
        event = await mounted.changes.switch(
            str(params.get("release", "")), await peer.actor(), params["request"],
            force=bool(params.get("force", False)), confirm=params.get("confirm"), owner=peer.owner, show=peer.show,
        )  # fmt: skip
        return event.as_json()

    return run


def _rollback(mounted: Mounted) -> _Run:
    async def run(peer: Peer, params: dict[str, Any]) -> dict[str, object]:
        event = await mounted.changes.rollback(
            params.get("release"), await peer.actor(), params["request"], owner=peer.owner, show=peer.show
        )  # fmt: skip
        return event.as_json()

    return run


def _confirm(mounted: Mounted) -> _Run:
    async def run(peer: Peer, params: dict[str, Any]) -> dict[str, object]:
        return (await mounted.changes.confirm(params.get("release"), await peer.actor(), params["request"])).as_json()

    return run


def _discard(mounted: Mounted) -> _Run:
    """Move one release to the trash: for a client, releases/ and .relfs are two mounts."""

    async def run(peer: Peer, params: dict[str, Any]) -> dict[str, object]:
        name, force = str(params.get("release", "")), bool(params.get("force", False))
        with mounted.pinning.removing(name):
            event = await mounted.changes.discard(name, await peer.actor(), params["request"], force=force)
        return event.as_json()

    return run


def _clean(mounted: Mounted) -> _Run:
    async def run(_peer: Peer, _params: dict[str, Any]) -> bool:
        return await clean(mounted)

    return run


async def clean(mounted: Mounted) -> bool:
    """Begin to delete what is in the trash; False if it is empty. Raises RelfsError."""
    deploy = mounted.pointer.deploy
    try:
        return await in_thread(partial(start_deleting, deploy, but=_own_pids(mounted)))
    except OSError as error:
        raise RelfsError(f"{deploy.path}: what was removed is not being deleted: {reason(error)}") from error


def _who(mounted: Mounted) -> _Run:
    """A change as far as rights go: what others' processes have open is not for everybody to know."""
    looking = trio.CapacityLimiter(1)

    async def run(_peer: Peer, params: dict[str, Any]) -> dict[str, object]:
        names = [str(name) for name in params.get("releases", [])]
        for name in names:
            check_name(name)
        ask = partial(ask_who_uses, mounted.pointer.deploy, names, _own_pids(mounted))
        uses = await in_thread(ask, limiter=looking, abandon_on_cancel=True)
        path = f"{mounted.plan.mountpoint}/{CURRENT}"
        return (await in_thread(with_pinned, uses, list(mounted.pinning.pins), path)).as_json()

    return run


def _own_pids(mounted: Mounted) -> list[int]:
    """relfs's own processes, which hold what the kernel knows of, for others."""
    whole = (mounted.member.ledger.who(role) for role in ("supervisor", "worker", "standby"))
    return [who.pid for who in whole if who is not None]


def _lock(mounted: Mounted) -> _Run:
    """For the process that asks (`own`), or for the one that started it."""

    async def run(peer: Peer, params: dict[str, Any]) -> dict[str, object]:
        if process(peer.pid) is None:
            raise RelfsError("who asks for the deploy lock cannot be seen from here: it is gone, or in a container")
        holder = peer.pid if params.get("own") else starter(peer.pid)
        why, seconds = str(params.get("reason", "")), params.get("ttl")
        return (await mounted.changes.hold(await peer.actor(), holder, why=why, seconds=seconds)).as_json()

    return run


def _unlock(mounted: Mounted) -> _Run:
    async def run(_peer: Peer, _params: dict[str, Any]) -> dict[str, object] | None:
        was = await mounted.changes.give_back()
        return was.as_json() if was is not None else None

    return run


def _reload(mounted: Mounted) -> _Run:
    """Asked again under the same id, by whoever has lost this worker, the next one tells how it went. The supervisor is
    told until there is an outcome, since it may die, too; one that is at it does not listen (reloading.py)."""
    cell = mounted.member.ledger.reload

    async def run(peer: Peer, params: dict[str, Any]) -> dict[str, object]:
        if peer.uid not in (0, os.geteuid()):
            raise RefusedError("only root and who runs the mount may reload it: that starts the code that is installed")
        while (outcome := outcome_of(cell, params["request"])) is None:
            mounted.member.tell("reload")
            await trio.sleep(_RELOAD_PAUSE)
        if outcome != "done":
            raise RelfsError(f"not reloaded: {outcome.removeprefix('failed: ')}; the old version goes on")
        return {"version": __version__, "worker_pid": os.getpid()}

    return run


def _unmount(mounted: Mounted) -> _Run:
    async def run(_peer: Peer, _params: dict[str, Any]) -> dict[str, object]:
        mounted.leave()
        return {"unmounting": mounted.plan.mountpoint}

    return run


def _status(mounted: Mounted) -> _Run:
    looking = trio.CapacityLimiter(_LOOKS)

    async def run(_peer: Peer, _params: dict[str, Any]) -> dict[str, object]:
        return status(mounted, await _look(mounted, looking)).as_json()

    return run


@dataclass(frozen=True)
class Seen:
    """What only a look at the disk tells."""

    lock: Hold | None
    health: tuple[str, ...]


async def _look(mounted: Mounted, looking: trio.CapacityLimiter) -> Seen:
    """From a thread, which a file system that hangs may keep: status is what one asks for then. What took so long as
    the machine stood still, tells nothing of the file system."""
    for _ in range(_TRIES):
        began = trio.current_time()
        with trio.move_on_after(_LOOK_SECONDS):
            return await in_thread(_look_now, mounted, limiter=looking, abandon_on_cancel=True)
        if trio.current_time() - began < _LOOK_SECONDS + _LATE_SECONDS:
            break
    return Seen(None, (f"{mounted.pointer.deploy.path}: its file system, or the release's, does not answer",))


def _look_now(mounted: Mounted) -> Seen:
    pointer = mounted.pointer
    told = [pointer.diverged, pointer.behind, log_trouble(), _FULL if mounted.operations.is_full else None]
    lock = None
    try:
        lock = held(pointer.deploy.state_fd)
    except RelfsError as error:
        told.append(str(error))
    stage, pinned = mounted.sights.canary.stage, [pin.target for pin in mounted.pinning.pins]
    told.extend(lost(pointer.deploy, stage.target if stage is not None else None, pinned))
    return Seen(lock, health(pointer.deploy, pointer.target, told=told))


def status(mounted: Mounted, seen: Seen) -> Status:
    """How things are now. Contains no `await`; what another thread is changing is seen before or after it."""
    pointer = mounted.pointer
    kept = present()
    base = unmounted_status(pointer.deploy.path, pointer.target, pointer.history, os.uname().release, seen.lock)
    return dataclasses.replace(
        base,
        mountpoint=mounted.plan.mountpoint,
        mounted=True,
        supervisor_pid=_pid(mounted.member.ledger.who("supervisor")),
        worker_pid=os.getpid(),
        standby_pid=_pid(mounted.member.ledger.who("standby")),
        host=Host(
            kernel=os.uname().release,
            caches_links=mounted.caches_links,
            resend=bool(mounted.init.flags & HAS_RESEND),
            survival="relay" if mounted.relayed else "resend",
            native=mounted.native(),
            capabilities=kept.capabilities,
            seccomp=kept.seccomp,
        ),
        views=_views(mounted),
        diverged=pointer.diverged,
        sealed=tuple(sorted(mounted.seals.sealed)) if mounted.seals is not None else None,
        unsealing=tuple(sorted(mounted.seals.left)) if mounted.seals is not None else (),
        requests=dict(mounted.operations.requests),
        health=seen.health,
    )


def _views(mounted: Mounted) -> tuple[View, ...]:
    found = [
        View("replacing current", each.actor.pid, each.actor.user, each.actor.command, each.since)
        for each in mounted.current.replacements
    ]
    canary = mounted.canarying.event
    if canary is not None:
        actor = canary.actor
        found.append(View(f"canary {canary.release}", actor.pid, actor.user, actor.command, canary.time))
    pids = mounted.pinning.witnesses()
    for pin in mounted.pinning.pins:
        pid = pids.get(pin.mark, pin.pid)
        found.append(View(f"pinned to {pin.release}", pid, pin.actor.user, pin.actor.command, pin.since))
    return tuple(found)


def _pid(who: Who | None) -> int | None:
    """The ledger tells of who has died until there is another one."""
    return who.pid if who is not None and not has_ended(who) else None
