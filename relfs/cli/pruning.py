"""Pruning for commands: who uses what, and removing it, is asked of the daemon where one answers, and done here
otherwise. `relfsctl prune` and `relfsctl deploy` both do it this way."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from relfs.cli.output import say_error
from relfs.cli.session import is_mounted, open_here, pointer_here, refuse_behind_mount, refuse_in_hook
from relfs.control import NoDaemon, change
from relfs.errors import RefusedError, RelfsError
from relfs.locate import Place
from relfs.releases.pruning import Decision, Policy

if TYPE_CHECKING:
    from relfs.layout import DeployPath
    from relfs.releases.inuse import Uses

_NAMES_A_QUESTION = 20
"""A message holds no more than 64 KiB."""


@dataclass(frozen=True)
class Pruned:
    """What became of each release, oldest first; what was removed, now or before, and could not be deleted (`left`, and
    why, by its name in the trash). `unseen` and `blind` are as in releases/inuse.py."""

    decisions: tuple[Decision, ...]
    left: Mapping[str, str]
    unseen: int
    blind: bool

    @property
    def failed(self) -> tuple[Decision, ...]:
        return tuple(decision for decision in self.decisions if decision.failed)


def prune(
    place: Place,
    policy: Policy | None = None,
    *,
    dry_run: bool = False,
    wait: bool = False,
    before: Callable[[str], None] = lambda _name: None,
) -> Pruned:
    """Remove the releases that `policy` (by default, what the configuration says) leaves no room for.

    `wait` until they are deleted. Before each, `before` is called with its name, and the hook pre-prune is asked. What
    cannot be removed is in the result; raises RelfsError if there is no telling what is to go.
    """
    from relfs.config import Config, load_config
    from relfs.hooks import PRE_PRUNE
    from relfs.releases.asking import ask_before
    from relfs.releases.removing import carry_out, plan

    refuse_in_hook(place)
    deploy = open_here(place, create_state=not dry_run)
    try:
        config = load_config(deploy.state_fd, deploy.state_path) if deploy.state_fd is not None else Config()
        chosen = policy or config.prune
        if not dry_run:
            _clean(place, deploy)  # what was left; and whoever may not do this, hears of it
        planned = plan(deploy, chosen, config.checks.unfinished, lambda names: look(place, deploy, names))
        if dry_run:
            return Pruned(planned.decisions, _left(deploy), planned.unseen, planned.blind)

        def ask(name: str) -> None:
            before(name)
            ask_before(PRE_PRUNE, deploy, config, name, show=say_error)

        decisions = carry_out(planned.decisions, lambda name: discard(place, deploy, name), ask)
        decisions += _remove_staged(place, deploy)
        _clean(place, deploy)
        if wait:
            _wait(place, deploy)
        return Pruned(decisions, _left(deploy), planned.unseen, planned.blind)
    finally:
        deploy.close()


def look(place: Place, deploy: DeployPath, names: Collection[str]) -> Uses:
    """Who uses releases, as far as anybody can be asked who sees it: the daemon, which may be root, or we. Raises
    RelfsError."""
    from relfs.releases.inuse import who_uses
    from relfs.views.pinned import with_pinned_before

    told = _ask(place, list(names))
    if told is not None and not (told.blind and os.geteuid() == 0):
        return told
    return with_pinned_before(who_uses(deploy, names), deploy)


def _ask(place: Place, names: list[str]) -> Uses | None:
    """None if there is no daemon, or it does not tell us."""
    from relfs.releases.inuse import Uses, uses_of

    asked = (names[start : start + _NAMES_A_QUESTION] for start in range(0, len(names), _NAMES_A_QUESTION))
    try:
        parts = [uses_of(change(place.state_paths, "who", {"releases": part})) for part in asked]
    except (NoDaemon, RefusedError):
        return None
    of = {name: found for part in parts for name, found in part.of.items()}
    return Uses(of, max(part.unseen for part in parts), any(part.blind for part in parts)) if parts else Uses({})


def discard(place: Place, deploy: DeployPath, name: str, *, force: bool = False) -> None:
    """Move a release to the trash, with `force` also while a deploy tool is deploying. Raises RelfsError. What is not
    there any more is removed: by somebody else, or by a daemon that has died before it could say so."""
    from relfs.layout import RELEASES

    try:
        _ask_or_discard(place, name, force=force)
    except RefusedError:
        try:
            os.lstat(f"{RELEASES}/{name}", dir_fd=deploy.fd)
        except FileNotFoundError:
            return
        raise


def _ask_or_discard(place: Place, name: str, *, force: bool) -> None:
    from relfs.journal import this_actor

    request_id = os.urandom(16).hex()
    params = {"release": name, **({"force": True} if force else {})}
    try:
        change(place.state_paths, "discard", params, request_id=request_id, mounted=lambda: is_mounted(place))
        return
    except NoDaemon:
        refuse_behind_mount(place)
    with pointer_here(place) as pointer:
        pointer.discard(name, this_actor(), request_id, force=force)


def _remove_staged(place: Place, deploy: DeployPath) -> tuple[Decision, ...]:
    """What was left of releases that somebody was making who is gone."""
    from relfs.releases.removing import carry_out
    from relfs.releases.trash import abandoned

    why = "whoever was making it has ended before it was finished"
    staged = [Decision(name, False, why) for name in abandoned(deploy)]
    return carry_out(staged, lambda name: discard(place, deploy, name), lambda _name: None)


def _clean(place: Place, deploy: DeployPath) -> None:
    """Have what was removed deleted: by the daemon, who may, or by us. Raises RelfsError."""
    from relfs.errors import reason
    from relfs.releases.deleter import start_deleting

    try:
        change(place.state_paths, "clean", {}, mounted=lambda: is_mounted(place))
        return
    except NoDaemon:
        refuse_behind_mount(place)
    try:
        start_deleting(deploy)
    except OSError as error:
        raise RelfsError(f"{deploy.path}: what was removed is not being deleted: {reason(error)}") from error


def _wait(place: Place, deploy: DeployPath) -> None:
    """Until all that was removed is deleted, but for what cannot be."""
    from relfs.releases.deleter import wait_until_deleted

    before: frozenset[str] = frozenset()
    while (still := wait_until_deleted(deploy)) and still != before:
        _clean(place, deploy)
        before = still


def _left(deploy: DeployPath) -> dict[str, str]:
    """What could not be deleted, by its path."""
    from relfs.releases.trash import left, opened

    with opened(deploy) as trashes:
        return {name: why for trash in trashes for name, why in left(trash).items()}
