"""Pins for commands. Only a mount has them; the mark is put on here, by whoever runs relfsctl, as far as he may."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from relfs.cli.session import is_mounted, refuse_behind_mount, refuse_in_hook
from relfs.control import NoDaemon, change
from relfs.errors import RefusedError, RelfsError
from relfs.locate import Place


def pin_self(place: Place, release: str | None) -> None:
    """Let this process, and what it starts or becomes, see `release`, or what it sees now. Raises RelfsError."""
    from relfs.views.mark import put_mark

    _pin(place, os.getpid(), release, lambda made: put_mark(os.getpid(), made["mark"]))


def pin(place: Place, pid: int, release: str | None) -> dict[str, Any]:
    """Likewise process `pid` and its descendants, but for those that are pinned otherwise already; `others` in the
    answer counts those that are not ours to pin. Raises RelfsError."""
    from relfs.views.family import mark_family, whole_process
    from relfs.views.mark import mark_of

    pid = whole_process(pid)
    marked: list[int] = []

    def mark(made: dict[str, Any]) -> None:
        marked.append(mark_family(pid, made["mark"], leave=set(made["pins"]) - {mark_of(pid)}))

    made = _pin(place, pid, release, mark)
    return {"release": made["release"], "pid": pid, "since": made["since"], "others": marked[0]}


def _pin(place: Place, pid: int, release: str | None, mark: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """What was answered. It is asked for twice: before any mark is replaced, which tells what the process sees, by one
    that is worth nothing; and when those are known that have it, which `mark` sees to. Raises RelfsError."""
    from relfs.processes import start_of
    from relfs.views.mark import new_mark

    params = {"mark": new_mark(), "release": release, "pid": pid, "start": start_of(pid)}
    request_id = os.urandom(16).hex()
    made: dict[str, Any] = ask_mount(place, "pin", params, request_id)
    mark(made)
    ask_mount(place, "pin", params, request_id)
    return made


def unpin(place: Place, pid: int) -> dict[str, Any]:
    """End the view of process `pid`, and of all that were pinned with it. Raises RelfsError, RefusedError if there is
    none."""
    from relfs.processes import process
    from relfs.views.mark import mark_of

    if process(pid) is None:
        raise RelfsError(f"process {pid}: there is none")
    ended = ask_mount(place, "unpin", {"mark": mark_of(pid)})
    if ended["release"] is None:
        raise RefusedError(f"process {pid}: is not pinned; `relfsctl views` lists those that are")
    return {**ended, "pid": pid}


def ask_mount(place: Place, method: str, params: dict[str, Any], request_id: str | None = None) -> Any:
    """What the daemon answers. Raises RelfsError, also where nothing is mounted, and RefusedError for the hook that is
    asked before a swap: a tool that swaps keeps the mount's directory meanwhile, and the kernel can be told nothing."""
    refuse_in_hook(place, before_only=True)
    try:
        return change(
            place.state_paths, method, params, request_id=request_id, mounted=lambda: is_mounted(place)
        )  # fmt: skip
    except NoDaemon:
        refuse_behind_mount(place)
        raise RelfsError(
            f"{place.deploy_path}: is not mounted, so everybody sees what the real link says; `relfs "
            f"{place.deploy_path}` mounts it"
        ) from None
