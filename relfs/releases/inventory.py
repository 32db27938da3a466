"""What relfs knows of the releases that there are: their order, and whether they were ever finished.

Three tell of it: the registry, of what relfs has made; the journal, of what was current, also as deploy tools' records
told it; and Deployer's log, of what was begun and never became current. What none of them names, relfs does not know.
Modification times, which any tool may set, are not asked.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from relfs import confirm, records
from relfs.errors import RelfsError, reason
from relfs.history import ACTIVATIONS, History, ways_back_among
from relfs.journal import Event, Journal
from relfs.layout import DeployPath, Target
from relfs.releases.pruning import Item, Standing
from relfs.releases.registry import Record, Registry, State
from relfs.store import peek

PRUNE = "prune"
"""The action, in the journal, of removing a release."""

_DIGITS = re.compile(r"(\d+)", re.ASCII)

_Place = tuple[float, int]
"""When a release was first known, in seconds since the epoch, and which it is of those known at that time."""


@dataclass(frozen=True)
class Inventory:
    """All releases, those that relfs does not know first, then oldest first. `protected` says why some must stay, by
    name, whoever uses them; `records` are what the registry has."""

    items: tuple[Item, ...]
    protected: Mapping[str, str]
    records: tuple[Record, ...]


def take_inventory(deploy: DeployPath, markers: Iterable[str]) -> Inventory:
    """Look at what there is. `markers` are the names that say that a release is not finished. Raises RelfsError."""
    target = _target(deploy)
    events = list(Journal(deploy.state_fd).events())
    try:
        current = target.release if target is not None else None
        events += records.untold(deploy, current, History(events))
        logged = records.logged(deploy)
    except OSError as error:
        raise RelfsError(f"{deploy.path}: deploy tools' records cannot be read: {reason(error)}") from error
    known = Registry(deploy.state_fd).records()
    history = History(events)
    look = _Look(deploy, history, tuple(markers), arrange(known, events, logged), _states(known, events))
    items = sorted((look.item(release.name) for release in deploy.releases()), key=look.order)
    return Inventory(tuple(items), _protected(deploy, target, history, items), tuple(known))


def _target(deploy: DeployPath) -> Target | None:
    try:
        text = peek(deploy)
    except OSError as error:
        raise RelfsError(f"{deploy.path}: what is current cannot be seen: {reason(error)}") from error
    return deploy.target(text) if text is not None else None


def live_releases(deploy: DeployPath, target: Target | None) -> frozenset[str]:
    """The releases that `current` leads to: by its text, and through links in releases/. Raises OSError."""
    if target is None:
        return frozenset()
    try:
        led_to = deploy.release_of(target.text)
    except FileNotFoundError:
        led_to = None
    return frozenset(name for name in (target.release, led_to) if name is not None)


def _protected(deploy: DeployPath, target: Target | None, history: History, items: Sequence[Item]) -> dict[str, str]:
    """The first reason of several is the best one."""
    usable = [item.name for item in items if item.standing == "finished"]
    current = target.release if target is not None else None
    last_good = next(iter(ways_back_among(history, current, usable)), None)
    being_made = records.being_made(deploy)
    found = {being_made: "a deploy tool is making it, or has left it when it failed"} if being_made else {}
    if last_good is not None:
        found[last_good] = "the last good one, which a rollback leads to"
    found |= confirm.protected(deploy, history)
    if history.canary is not None and history.canary.release is not None:
        found[history.canary.release] = "a canary, which some see already"
    try:
        found |= dict.fromkeys(live_releases(deploy, target), "current")
    except OSError as error:
        raise RelfsError(f"{deploy.path}: where current leads cannot be seen: {reason(error)}") from error
    return found


# ---- what is known -------------------------------------------------------------------------------------------------


def arrange(known: Sequence[Record], events: Iterable[Event], logged: Mapping[str, float]) -> dict[str, _Place]:
    """The place of each release that the registry, the journal's `events` or a tool's log name. Pure.

    The order of the registry is that of its sequence numbers, and of the journal, that of its lines; what a log names,
    too, was begun before it was current. What was removed and is there again is known anew.
    """
    latest = float("inf")
    made: dict[str, _Place] = {}
    for record in reversed(known):  # one that was noted later than the next one is no younger than that
        latest = min(latest, record.time)
        if record.state != "removed":
            made[record.name] = latest, record.sequence
    seen: dict[str, _Place] = {}
    moment = 0.0
    for number, event in enumerate(events):
        if event.release is None or not event.succeeded:
            continue
        moment = max(moment, event.time)
        if event.action == PRUNE:
            seen.pop(event.release, None)
        elif event.action in ACTIVATIONS:
            seen.setdefault(event.release, (moment, number))
    begun = {name: (time, number) for number, (name, time) in enumerate(logged.items())}
    earliest = {name: min(place, begun.get(name, place)) for name, place in seen.items()}
    return {**begun, **earliest, **made}


def _states(known: Iterable[Record], events: Iterable[Event]) -> dict[str, State]:
    """As the registry has it; what has been current since is finished, whatever that says."""
    states: dict[str, State] = {}
    for event in events:
        if event.release is None or not event.succeeded:
            continue
        if event.action in ACTIVATIONS:
            states[event.release] = "finished"
        elif event.action == PRUNE:
            states.pop(event.release, None)
    return {**{record.name: record.state for record in known if record.state != "removed"}, **states}


class _Look:
    """At releases, one by one."""

    def __init__(
        self, deploy: DeployPath, history: History, markers: tuple[str, ...], places: Mapping[str, _Place],
        states: Mapping[str, State],
    ) -> None:  # fmt: skip
        self._deploy = deploy
        self._history = history
        self._markers = markers
        self._places = places
        self._states = states

    def item(self, name: str) -> Item:
        place = self._places.get(name)
        standing, note = self._standing(name)
        return Item(name, place[0] if place is not None else None, standing, note)

    def order(self, item: Item) -> tuple[bool, _Place, list[tuple[int, str]]]:
        """Where it stands; what relfs does not know, by name, in which numbers count as such."""
        place = self._places.get(item.name)
        return place is not None, place or (0.0, 0), _natural(item.name)

    def _standing(self, name: str) -> tuple[Standing, str]:
        marker = self._deploy.unfinished_marker(name, self._markers)
        if marker is not None:
            return "unfinished", f"it holds {marker}"
        state = self._states.get(name)
        if state in ("reserved", "given-up"):
            return "unfinished", "it was never finished"
        if state is None and name in self._places:
            return "unfinished", "its deployment never ended"
        if name in self._history.bad or self._deploy.is_marked_bad(name):
            return "bad", "marked bad"
        return "finished", ""


def _natural(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in _DIGITS.split(name)]
