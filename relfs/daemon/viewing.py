"""What can be asked for on the control socket about who sees what: pinning processes, and telling of all views.

Who wants to be pinned makes a mark, puts it on, or on others, which the kernel allows him to do with what is his
(views/mark.py), and says here what it stands for. Anybody may, for a mark that nobody bears but his own processes; root
for all. Who has asked for a pin may end it, and so may those who may switch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from relfs.audience import audience_of
from relfs.daemon.canarying import Canarying
from relfs.daemon.pinning import Pinning
from relfs.daemon.server import Method, Peer
from relfs.errors import RefusedError, RelfsError, UsageError
from relfs.fuse.current import CurrentLink
from relfs.journal import Actor, Event, command_line
from relfs.layout import DeployPath, Target
from relfs.pointer import Pointer
from relfs.processes import Process, acts_as, all_pids, name_of, process, sole_owner, user_of
from relfs.threads import in_thread
from relfs.users import user_name
from relfs.views.bearers import bearers
from relfs.views.canary import is_called
from relfs.views.mark import is_mark, take_off_mark
from relfs.views.pins import Pin
from relfs.views.sights import Sights

PINS_EACH = 2048
"""How many there may be of one user; more, of those who may switch."""

_Run = Callable[[Peer, dict[str, Any]], Any]


def view_methods(
    pointer: Pointer,
    sights: Sights,
    pinning: Pinning,
    canarying: Canarying,
    current: CurrentLink,
    own_pids: Callable[[], list[int]],
) -> dict[str, Method]:
    """The methods by name. `own_pids` are relfs's own processes, which are nobody's to pin, nor what they start: hooks
    see what everybody does."""
    return {
        "pin": Method(_pin(pointer, sights, pinning, own_pids), changes=True, for_all=True, params=_PIN_PARAMS),
        "unpin": Method(_unpin(pinning), changes=True, for_all=True, params=_UNPIN_PARAMS),
        "canary": Method(_canary(canarying, own_pids), changes=True, params=_CANARY_PARAMS),
        "promote": Method(_promote(canarying), changes=True, params={"request": str}),
        "abort": Method(_abort(canarying), changes=True, params={"request": str}),
        "views": Method(_views(pinning, canarying, current), changes=False, params={}),
        "sees": Method(_sees(pointer, sights), changes=False, params={"name": str}),
    }


_PIN_PARAMS: dict[str, type | tuple[type, ...]] = {
    "request": str, "mark": int, "release": (str, type(None)), "pid": int, "start": (int, type(None)),
}  # fmt: skip
_UNPIN_PARAMS: dict[str, type | tuple[type, ...]] = {"request": str, "mark": int}


def _pin(pointer: Pointer, sights: Sights, pinning: Pinning, own_pids: Callable[[], list[int]]) -> _Run:
    """The pin lasts until who asks has ended, and all have that bear its mark then. Without a release, it is to the one
    that process `pid` sees, whose start time is `start`: in another pid name space, that number is somebody else's."""

    async def run(peer: Peer, params: dict[str, Any]) -> dict[str, object]:
        who = process(peer.pid)
        if who is None:
            raise RelfsError("who asks to be pinned cannot be seen from here: it is gone, or outside of a container")
        mark = params.get("mark", 0)
        _require_room(peer, params["request"], pinning)
        pinned = _process(params.get("pid", 0), params.get("start"))
        if pinned is not None and pinned.pid in own_pids():
            raise RefusedError(f"process {pinned.pid}: is one of relfs's own, which see what everybody does")
        sight = _sight_of(pinned, sights) or pointer.target
        target = await in_thread(_target, pointer, params.get("release"), sight)
        await in_thread(_require_own, mark, peer.uid)
        pin = await pinning.pin(
            mark, target, await peer.actor(), params["request"], who, may_seal=peer.may_change
        )  # fmt: skip
        _take_off(own_pids())
        try:
            await in_thread(_require_there, pointer, target)
        except RelfsError:
            pinning.end(pin)
            raise
        marks = [each.mark for each in pinning.pins]
        return {"release": pin.release, "since": pin.since, "mark": pin.mark, "pins": marks}

    return run


def _require_room(peer: Peer, request_id: str, pinning: Pinning) -> None:
    """That a user who may only pin does not take all the pins that there may be."""
    if peer.may_change or pinning.pins.asked_for(request_id) is not None:
        return
    if sum(pin.actor.uid == peer.uid for pin in pinning.pins) >= PINS_EACH:
        raise RefusedError(f"{PINS_EACH} pins are as many as a user may have who may not switch")


def _require_own(mark: int, uid: int) -> None:
    """That nobody bears it who is another's, and would be pinned without having asked. Blocks."""
    if not is_mark(mark):
        raise UsageError(f"{mark}: not a mark")
    for pid in bearers({mark})[mark] if uid != 0 else ():
        owner = sole_owner(pid)
        if owner is not None and owner[0] != uid:
            raise RefusedError(f"process {pid}: is somebody else's; only he and root can let it be pinned")


def _process(pid: int, start: object) -> Process | None:
    """The one that is meant, if it is known by that number here, too."""
    found = process(pid)
    return found if found is not None and found.start == start else None


def _sight_of(who: Process | None, sights: Sights) -> Target | None:
    """What a process sees, if it is not what everybody does."""
    acts = acts_as(who.pid) if who is not None else None
    return sights.would_see(who.pid, *acts)[1] if who is not None and acts is not None else None


def _target(pointer: Pointer, reference: str | None, sight: Target | None) -> Target:
    """What is to be seen: `sight`, if nothing is named. Blocks."""
    if reference is not None:
        return pointer.sight(reference)
    if sight is None:
        raise RefusedError("there is no current release yet; name one with --release")
    return sight


def _require_there(pointer: Pointer, target: Target) -> None:
    """That it was not removed before it was pinned to: from then on it stays. Blocks."""
    if target.release is not None:
        pointer.deploy.check_release(target.release, allow_empty=True)


def _unpin(pinning: Pinning) -> _Run:
    async def run(peer: Peer, params: dict[str, Any]) -> dict[str, object]:
        pin = pinning.pins.get(params.get("mark", 0))
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


def _canary(canarying: Canarying, own_pids: Callable[[], list[int]]) -> _Run:
    async def run(peer: Peer, params: dict[str, Any]) -> dict[str, object]:
        audience = audience_of(params.get("audience", {}))
        event = await canarying.begin(
            str(params.get("release", "")), audience, await peer.actor(), params["request"],
            force=bool(params.get("force", False)), seconds=params.get("for"),
        )  # fmt: skip
        _take_off(own_pids())
        return event.as_json()

    return run


def _take_off(own: list[int]) -> None:
    """They may descend from a process that was marked with all that it has started, such as init(1)."""
    for pid in own:
        take_off_mark(pid)


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
        event, chosen = canarying.event, canarying.canary.chosen()
        replacing = [_replacing(each.actor, each.since) for each in current.replacements]
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


def _replacing(actor: Actor, since: float) -> dict[str, object]:
    """Who has begun it has ended, most of the time: rm(1), say."""
    shown: dict[str, object] = {"pid": actor.pid, "user": actor.user, "command": actor.command}
    return _view("replacing current", None, actor.user, since, [shown])


def _pinned(pins: list[Pin]) -> list[dict[str, object]]:
    """Blocks."""
    found = bearers({pin.mark for pin in pins})
    return [
        _view("pinned", pin.release, pin.actor.user, pin.since, _shown(found[pin.mark]), pin.mark)
        for pin in pins
    ]  # fmt: skip


def _of_canary(event: Event | None, chosen: list[int]) -> list[dict[str, object]]:
    """Of the processes that are of the audience, those that have asked so far. Blocks."""
    if event is None:
        return []
    return [_view(f"canary: {event.audience}", event.release, event.actor.user, event.time, _shown(chosen))]


def lost(deploy: DeployPath, canary: Target | None, pinned: Iterable[Target]) -> Iterator[str]:
    """In a line each, what somebody sees besides what everybody does, and is not there. Blocks."""
    if canary is not None and not deploy.leads_somewhere(canary.text):
        yield f"{canary.text}: the canary cannot be opened; `relfsctl canary abort` ends it"
    for text in sorted({target.text for target in pinned}):
        if not deploy.leads_somewhere(text):
            yield f"{text}: what processes are pinned to cannot be opened; `relfsctl views` tells which"


def _view(
    why: str, release: str | None, by: str, since: float, processes: list[dict[str, object]], mark: int | None = None
) -> dict[str, object]:
    """As it is published; `release` is None for who sees no `current`, `mark` is what those who are pinned bear."""
    return {"reason": why, "release": release, "by": by, "since": since, "mark": mark, "processes": processes}


def _shown(pids: Iterable[int]) -> list[dict[str, object]]:
    """Those that have not ended since. Blocks."""
    users = {pid: user_of(pid) for pid in pids}
    return [
        {"pid": pid, "user": user_name(user), "command": command_line(pid)} for pid, user in users.items() if user >= 0
    ]  # fmt: skip
