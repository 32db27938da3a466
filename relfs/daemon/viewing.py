"""What can be asked for on the control socket about who sees what: pinning processes, and telling of all views.

Who wants to be pinned makes a mark, puts it on, or on others, which the kernel allows him to do with what is his
(views/mark.py), and says here what it stands for. Anybody may, for a mark that nobody bears but his own processes; root
for all. Who has asked for a pin may end it, and so may those who may switch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from relfs.audience import audience_of
from relfs.daemon.canarying import Canarying
from relfs.daemon.pinning import Pinning
from relfs.daemon.server import Method, Peer
from relfs.errors import RefusedError, RelfsError, UsageError
from relfs.fuse.current import CurrentLink
from relfs.journal import Event, command_line
from relfs.layout import Target
from relfs.pointer import Pointer
from relfs.processes import acts_as, all_pids, name_of, process, sole_owner, user_of
from relfs.threads import in_thread
from relfs.users import user_name
from relfs.views.bearers import bearers
from relfs.views.canary import is_called
from relfs.views.mark import is_mark
from relfs.views.pins import Pin
from relfs.views.sights import Sights

PINS_EACH = 2048
"""How many there may be of one user; more, of those who may switch."""

_Run = Callable[[Peer, dict[str, Any]], Any]


def view_methods(
    pointer: Pointer, sights: Sights, pinning: Pinning, canarying: Canarying, current: CurrentLink
) -> dict[str, Method]:
    """The methods by name."""
    return {
        "pin": Method(_pin(pointer, pinning), changes=True, for_all=True, params=_PIN_PARAMS),
        "unpin": Method(_unpin(pinning), changes=True, for_all=True, params=_UNPIN_PARAMS),
        "canary": Method(_canary(canarying), changes=True, params=_CANARY_PARAMS),
        "promote": Method(_promote(canarying), changes=True, params={"request": str}),
        "abort": Method(_abort(canarying), changes=True, params={"request": str}),
        "views": Method(_views(pinning, canarying, current), changes=False, params={}),
        "sees": Method(_sees(pointer, sights), changes=False, params={"name": str}),
    }


_PIN_PARAMS: dict[str, type | tuple[type, ...]] = {"request": str, "mark": int, "release": (str, type(None))}
_UNPIN_PARAMS: dict[str, type | tuple[type, ...]] = {"request": str, "mark": int}


def _pin(pointer: Pointer, pinning: Pinning) -> _Run:
    """The pin lasts until who asks has ended, and all have that bear its mark then."""

    async def run(peer: Peer, params: dict[str, Any]) -> dict[str, object]:
        who = process(peer.pid)
        if who is None:
            raise RelfsError("who asks to be pinned cannot be seen from here: it is gone, or outside of a container")
        mark = params.get("mark", 0)
        _require_room(peer, pinning)
        target = await in_thread(_target, pointer, params.get("release"))
        await in_thread(_require_own, mark, peer.uid)
        pin = await pinning.pin(
            mark, target, await peer.actor(), params["request"], who, may_seal=peer.may_change
        )  # fmt: skip
        try:
            await in_thread(_require_there, pointer, target)
        except RelfsError:
            pinning.end(pin)
            raise
        marks = [each.mark for each in pinning.pins]
        return {"release": pin.release, "since": pin.since, "mark": pin.mark, "pins": marks}

    return run


def _require_room(peer: Peer, pinning: Pinning) -> None:
    """That a user who may only pin does not take all the pins that there may be."""
    if not peer.may_change and sum(pin.actor.uid == peer.uid for pin in pinning.pins) >= PINS_EACH:
        raise RefusedError(f"{PINS_EACH} pins are as many as a user may have who may not switch")


def _require_own(mark: int, uid: int) -> None:
    """That nobody bears it who is another's, and would be pinned without having asked. Blocks."""
    if not is_mark(mark):
        raise UsageError(f"{mark}: not a mark")
    for pid in bearers({mark})[mark] if uid != 0 else ():
        owner = sole_owner(pid)
        if owner is not None and owner[0] != uid:
            raise RefusedError(f"process {pid}: is somebody else's; only he and root can let it be pinned")


def _target(pointer: Pointer, reference: str | None) -> Target:
    """What is to be seen. Blocks."""
    if reference is not None:
        return pointer.sight(reference)
    if pointer.target is None:
        raise RefusedError("there is no current release yet; name one with --release")
    return pointer.target


def _require_there(pointer: Pointer, target: Target) -> None:
    """That it was not removed before it was pinned to: from then on it stays. Blocks."""
    if target.release is not None:
        pointer.deploy.check_release(target.release, allow_empty=True)


def _unpin(pinning: Pinning) -> _Run:
    async def run(peer: Peer, params: dict[str, Any]) -> dict[str, object]:
        pin = pinning.pins.get(params["mark"])
        if pin is None:
            return {"release": None}
        if not (peer.may_change or peer.uid == pin.actor.uid):
            raise RefusedError(f"{pin.actor.user} has pinned it to {pin.release}; he, or who may switch, can end that")
        pinning.end(pin)
        return {"release": pin.release}

    return run


_CANARY_PARAMS: dict[str, type | tuple[type, ...]] = {
    "request": str, "release": str, "audience": dict, "force": bool, "for": (int, float, type(None)),
}  # fmt: skip


def _canary(canarying: Canarying) -> _Run:
    async def run(peer: Peer, params: dict[str, Any]) -> dict[str, object]:
        audience = audience_of(params.get("audience", {}))
        event = await canarying.begin(
            str(params.get("release", "")), audience, await peer.actor(), params["request"],
            force=bool(params.get("force", False)), seconds=params.get("for"),
        )  # fmt: skip
        return event.as_json()

    return run


def _promote(canarying: Canarying) -> _Run:
    async def run(peer: Peer, params: dict[str, Any]) -> dict[str, object]:
        event = await canarying.promote(await peer.actor(), params["request"], owner=peer.owner, show=peer.show)
        return event.as_json()

    return run


def _abort(canarying: Canarying) -> _Run:
    async def run(peer: Peer, params: dict[str, Any]) -> dict[str, object]:
        return (await canarying.abort(await peer.actor(), params["request"])).as_json()

    return run


def _views(pinning: Pinning, canarying: Canarying, current: CurrentLink) -> _Run:
    """All that there are, oldest first."""

    async def run(_peer: Peer, _params: dict[str, Any]) -> list[dict[str, object]]:
        replacing = [
            _view("replacing current", None, each.actor.user, each.since, [_shown(each.actor.pid)])
            for each in current.replacements
        ]
        event, chosen = canarying.event, canarying.canary.chosen()
        pinned = await in_thread(_pinned, list(pinning.pins))
        canary = await in_thread(_of_canary, event, chosen)
        return [*canary, *sorted(replacing + pinned, key=lambda view: view["since"])]  # type: ignore[arg-type,return-value]

    return run


def _sees(pointer: Pointer, sights: Sights) -> _Run:
    """What each process of a name sees, by pid; who is replacing `current` is not told here."""

    async def run(_peer: Peer, params: dict[str, Any]) -> list[dict[str, object]]:
        found = await in_thread(_called, str(params.get("name", "")))
        everybody = pointer.target.label if pointer.target is not None else None
        shown: list[dict[str, object]] = []
        for pid, (uid, gid) in found.items():
            why, target = sights.would_see(pid, uid, gid)
            release = target.label if target is not None else everybody if why == "current" else None
            shown.append({"pid": pid, "release": release, "reason": why})
        return shown

    return run


def _called(name: str) -> dict[int, tuple[int, int]]:
    """The processes of that name, and as whom they act. Blocks."""
    found = {pid: acts_as(pid) for pid in sorted(all_pids()) if is_called(name_of(pid), name)}
    return {pid: who for pid, who in found.items() if who is not None}


def _pinned(pins: list[Pin]) -> list[dict[str, object]]:
    """Blocks."""
    found = bearers({pin.mark for pin in pins})
    return [
        _view("pinned", pin.release, pin.actor.user, pin.since, [_shown(pid) for pid in found[pin.mark]], pin.mark)
        for pin in pins
    ]  # fmt: skip


def _of_canary(event: Event | None, chosen: list[int]) -> list[dict[str, object]]:
    """Of the processes that are of the audience, those that have asked so far. Blocks."""
    if event is None:
        return []
    shown = [_shown(pid) for pid in chosen]
    return [_view(f"canary: {event.audience}", event.release, event.actor.user, event.time, shown)]


def _view(
    why: str, release: str | None, by: str, since: float, processes: list[dict[str, object]], mark: int | None = None
) -> dict[str, object]:
    """As it is published; `release` is None for who sees no `current`, `mark` is what those who are pinned bear."""
    return {"reason": why, "release": release, "by": by, "since": since, "mark": mark, "processes": processes}


def _shown(pid: int) -> dict[str, object]:
    return {"pid": pid, "user": user_name(user_of(pid)), "command": command_line(pid)}
