"""The canary for commands. Only a mount shows it; processes that are named by pid are marked here, as far as we may."""

from __future__ import annotations

import grp
import os
import pwd
from collections.abc import Collection
from dataclasses import replace
from typing import Any

from relfs.audience import Audience, audience_of
from relfs.cli.pinning import ask_mount
from relfs.cli.session import ask, is_mounted, pointer_here, refuse_behind_mount, refuse_in_hook
from relfs.control import NoDaemon, change
from relfs.errors import LockedError, RefusedError, UsageError
from relfs.locate import Place

_ID_MAX = (1 << 32) - 2  # -1 means none (setreuid(2))
_DIGITS_MAX = len(str(_ID_MAX))


def begin_canary(
    place: Place, release: str, audience: Audience, pids: Collection[int], *, force: bool, seconds: float | None
) -> tuple[dict[str, Any], int]:
    """Let `release` be current for `audience`; if `pids` are given, for those of it that are one of these processes, or
    descend from one. In so many `seconds`, it decides by itself. The journal event, and how many of the descendants are
    not of the audience, since they are not ours to mark. Raises RelfsError."""
    if pids:
        from relfs.views.mark import new_mark

        audience = replace(audience, marks=(new_mark(),))
    audience_of(audience.as_json())  # what is wrong with it is said before anybody is asked, or marked
    others = sum(_mark(place, pids, mark) for mark in audience.marks)
    params = {"release": release, "audience": audience.as_json(), "force": force, "for": seconds}
    try:
        event: dict[str, Any] = ask_mount(place, "canary", params)
    except (LockedError, RefusedError, UsageError):  # of anything else, it is not known whether it was begun
        _take_off(audience.marks)
        raise
    return event, others


def promote_canary(place: Place) -> dict[str, Any]:
    """Make the canary current for all. The journal event. Raises RelfsError."""
    event: dict[str, Any] = ask_mount(place, "promote", {})
    return event


def abort_canary(place: Place) -> dict[str, Any]:
    """Let nobody see the canary any more; where nothing is mounted, not from the next mount on either. The journal
    event. Raises RelfsError."""
    from relfs.journal import this_actor

    refuse_in_hook(place, before_only=True)
    request_id = os.urandom(16).hex()
    try:
        event: dict[str, Any] = change(
            place.state_paths, "abort", {}, request_id=request_id, mounted=lambda: is_mounted(place)
        )  # fmt: skip
        return event
    except NoDaemon:
        refuse_behind_mount(place)
    with pointer_here(place) as pointer:
        return pointer.abort_canary(this_actor(), request_id).as_json()


def user_id(name: str) -> int:
    """The number of a user who is given by that or by name. Raises UsageError."""
    try:
        return _number(name) if name.isdecimal() else pwd.getpwnam(name).pw_uid
    except KeyError as error:
        raise UsageError(f"{name}: no such user") from error


def group_id(name: str) -> int:
    """The number of a group, likewise. Raises UsageError."""
    try:
        return _number(name) if name.isdecimal() else grp.getgrnam(name).gr_gid
    except KeyError as error:
        raise UsageError(f"{name}: no such group") from error


def _number(text: str) -> int:
    """Raises KeyError for one that no user or group can have."""
    if len(text) > _DIGITS_MAX or int(text) > _ID_MAX:
        raise KeyError(text)
    return int(text)


def _mark(place: Place, pids: Collection[int], mark: int) -> int:
    """Let the processes bear `mark`, and those that descend from them, but are not pinned. How many of these are not
    ours to mark."""
    from relfs.views.family import mark_family, whole_process
    from relfs.views.mark import mark_of

    views = ask(place, "views") or []
    canary = next((view for view in views if view["reason"].startswith("canary")), None)
    if canary is not None:  # it may be for the same processes, by the marks that they have
        raise RefusedError(f"{canary['release']}: is a canary; `relfsctl canary promote` or `abort` that first")
    pinned = {view["mark"] for view in views if view["mark"] is not None}
    processes = [whole_process(pid) for pid in pids]
    for pid in processes:
        if mark_of(pid) in pinned:
            raise RefusedError(f"process {pid}: is pinned; `relfsctl pin --end --pid {pid}` ends that")
    return sum(mark_family(pid, mark, leave=pinned) for pid in processes)


def _take_off(marks: Collection[int]) -> None:
    """Let nobody bear them any more."""
    from relfs.views.bearers import bearers
    from relfs.views.mark import take_off_mark

    for pids in bearers(marks).values() if marks else ():
        for pid in pids:
            take_off_mark(pid)
