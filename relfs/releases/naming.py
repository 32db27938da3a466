"""What a new release is called: the next number, or the time, as the deploy path's releases are called already. Names
that are words tell nothing about that.

A name that was ever given is never given again, by whomever it was given: what relfs made (registry.py), what there is
in `releases/`, what was current (journal), and what Deployer has counted up to are all spent.
"""

from __future__ import annotations

import os
import re
import time
from calendar import timegm
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass

from relfs.errors import RefusedError, UsageError
from relfs.journal import Journal
from relfs.layout import DeployPath, check_name
from relfs.records import last_number
from relfs.releases.registry import Record
from relfs.releases.staging import NAME_MAX, PREFIX

_TIME = "%Y%m%d%H%M%S"
_STAMP = re.compile(r"\d{14}", re.ASCII)


@dataclass(frozen=True)
class Spent:
    """The names that cannot be given: `present` are those of directories, `past` all others; `counted` is the last
    number that a tool has given, as far as it tells."""

    present: frozenset[str]
    past: frozenset[str]
    counted: int = 0

    def __contains__(self, name: str) -> bool:
        return name in self.present or name in self.past


def spent_names(deploy: DeployPath) -> Spent:
    """All that is known besides the registry. Raises RelfsError."""
    present = frozenset(release.name for release in deploy.releases())
    events = Journal(deploy.state_fd).events()
    past = frozenset(name for event in events for name in (event.release, event.origin) if name is not None)
    return Spent(present, past, last_number(deploy))


def chooser(spent: Spent, given: str | None, *, now: Callable[[], float] = time.time) -> Callable[[list[Record]], str]:
    """What Registry.reserve() asks: `given`, or the next name. It raises RefusedError for a name that is spent.

    Raises UsageError for what can never be a release's name.
    """
    if given is not None:
        require_name(given)

    def choose(records: list[Record]) -> str:
        known = Spent(spent.present, spent.past | {record.name for record in records}, spent.counted)
        if given is None:
            return next_name(known, now())
        if given in known:
            how = "there is such a release" if given in known.present else "it was given before, and is never reused"
            raise RefusedError(f"{given}: not a name for a new release: {how}")
        return given

    return choose


def require_name(name: str) -> None:
    """Raises UsageError for what cannot be a new release's name; one with a dot in front is no release's."""
    check_name(name)
    if name.startswith("."):
        raise UsageError(f"{name!r}: not a release name: those that begin with a dot are staging directories")
    if len(os.fsencode(PREFIX + name)) > NAME_MAX:
        raise UsageError(f"{name[:60]!r}...: not a release name: while it is made, it is called {PREFIX}NAME; too long")
    if name.startswith("@"):
        raise UsageError(f"{name!r}: not a release name: those that begin with @ mean another release")


def next_name(spent: Spent, now: float) -> str:
    """The name after all others, in the way that the names are formed: those of what is there, or else of what was."""
    numbers = _numbers(spent.present) or _numbers(spent.past)
    if numbers and all(map(_is_time, numbers)):
        return _next_time(spent, now)
    return _next_number([*spent.present, *spent.past], spent)


def _numbers(names: Iterable[str]) -> list[str]:
    return [name for name in names if name.isascii() and name.isdecimal()]


def _next_number(names: Iterable[str], spent: Spent) -> str:
    numbers = [int(name) for name in _numbers(names) if not _is_time(name)]
    number = max([spent.counted, *numbers]) + 1
    while str(number) in spent:
        number += 1
    return str(number)


def _next_time(spent: Spent, now: float) -> str:
    """UTC, as Capistrano has it; and later than all others, which may have been made by another clock."""
    times = [_seconds(name) for name in (*spent.present, *spent.past) if _is_time(name)]
    return time.strftime(_TIME, time.gmtime(max([int(now), *(each + 1 for each in times)])))


def _is_time(name: str) -> bool:
    if not _STAMP.fullmatch(name):
        return False
    with suppress(ValueError):
        _seconds(name)
        return True
    return False


def _seconds(name: str) -> int:
    return timegm(time.strptime(name, _TIME))
