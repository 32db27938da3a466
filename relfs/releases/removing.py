"""Pruning from beginning to end: decide what goes, look whether anybody uses it, hand it to whoever removes it.

What is decided may be out of date when it is done: whether a release is current is looked at once more where it is
removed, under the lock that a switch takes too (Pointer.discard), and whether it is used, before it is deleted
(deleter.py). One release that cannot be removed, or looked at, keeps no other from it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace

from relfs.errors import LockedError, RelfsError
from relfs.layout import DeployPath
from relfs.releases.inuse import Uses, why_in_use
from relfs.releases.inventory import Inventory, take_inventory
from relfs.releases.pruning import Decision, Item, Policy, decide
from relfs.releases.space import Space

Looker = Callable[[Collection[str]], Uses]
"""Tells who uses the releases that are named."""


@dataclass(frozen=True)
class Plan:
    """What becomes of each release; `unseen` and `blind` are as in inuse.Uses."""

    decisions: tuple[Decision, ...]
    unseen: int = 0
    blind: bool = False


def plan(deploy: DeployPath, policy: Policy, markers: Iterable[str], look: Looker) -> Plan:
    """Decide what becomes of each release. `markers` say that one is unfinished. Changes nothing. Raises RelfsError if
    there is no telling."""
    inventory = take_inventory(deploy, markers)
    items = _with_sizes(deploy, inventory) if policy.budget is not None else inventory.items
    stay = dict(inventory.protected)
    return _plan(items, policy, stay, look, time.time())


def _with_sizes(deploy: DeployPath, inventory: Inventory) -> tuple[Item, ...]:
    """What several releases share is counted for the newest: it stays as long as that does."""
    space = Space(deploy)
    return tuple(replace(item, size=space.of(item.name)) for item in reversed(inventory.items))[::-1]


def _plan(items: Sequence[Item], policy: Policy, stay: dict[str, str], look: Looker, now: float) -> Plan:
    """Who uses a release is looked only where that matters, and again for what goes because another one stays."""
    seen, unseen, blind = set[str](), 0, False
    while True:
        decisions = decide(items, policy, stay, now=now)
        going = {decision.name for decision in decisions if not decision.keep}
        if going <= seen:
            return Plan(tuple(decisions), unseen, blind)
        uses = look(sorted(going - seen))
        seen |= going
        unseen, blind = max(unseen, uses.unseen), blind or uses.blind
        stay.update(_used(uses, going, policy))


def _used(uses: Uses, going: Collection[str], policy: Policy) -> dict[str, str]:
    """Why some of what was to go stays."""
    used = {name: why_in_use(found) for name, found in uses.of.items() if found}
    if not uses.blind or policy.unseen:
        return used
    hidden = "other users' processes cannot be looked at, and may use it: be root, mount, or allow it (--unseen)"
    return {**dict.fromkeys(going, hidden), **used}


def carry_out(
    decisions: Iterable[Decision], discard: Callable[[str], None], before: Callable[[str], None]
) -> tuple[Decision, ...]:
    """Let `discard` remove what is to go, each after `before`, which may refuse that by RefusedError. Returns what
    became of all. Raises LockedError if somebody does not want anything to be changed."""
    return tuple(each if each.keep else _carry_out(each, discard, before) for each in decisions)


def _carry_out(decision: Decision, discard: Callable[[str], None], before: Callable[[str], None]) -> Decision:
    try:
        before(decision.name)
        discard(decision.name)
    except LockedError:
        raise
    except RelfsError as error:
        return Decision(decision.name, True, str(error), failed=True)
    return decision
