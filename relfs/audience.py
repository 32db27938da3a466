"""For whom a release is current that is not so for everybody: what `relfsctl canary` is told. Pure; who that is among
the processes that run, views/canary.py finds out."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

from relfs.errors import UsageError

NAME_MAX = 15
"""Bytes of a process's name that the kernel keeps (proc(5), comm)."""

_RULES_MAX = 100
_LENGTH_MAX = 1 << 15
"""As JSON: it has to fit into a line of the journal, and into shared memory."""

_T = TypeVar("_T", int, str)


@dataclass(frozen=True)
class Audience:
    """Who is one of the `users` (user ids), if any are given, and in one of the `groups` (group ids; supplementary ones
    count), and in one of the control groups, and bears one of the `marks`; and of all processes called `name` that are
    all that, so many `percent`.

    A control group that begins with a slash is that and all below it; another one is a name that any part of the path
    has, as a systemd unit's.
    """

    users: tuple[int, ...] = ()
    groups: tuple[int, ...] = ()
    cgroups: tuple[str, ...] = ()
    marks: tuple[int, ...] = ()
    percent: float | None = None
    name: str | None = None

    def as_json(self) -> dict[str, Any]:
        """But for what does not apply."""
        return {name: value for name, value in asdict(self).items() if value not in ((), None)}

    def __str__(self) -> str:
        parts = [
            _words("user", self.users), _words("group", self.groups), _words("control group", self.cgroups),
            "processes that were named" if self.marks else "",
            f"{self.percent:g} % of all {self.name}" if self.percent is not None else "",
        ]  # fmt: skip
        return ", ".join(filter(None, parts))


def audience_of(told: Mapping[str, Any]) -> Audience:
    """What as_json() made, or somebody else. Raises UsageError for what is none, or nobody."""
    try:
        percent, name = told.get("percent"), told.get("name")
        found = Audience(
            _list(told, "users", int), _list(told, "groups", int), _list(told, "cgroups", str),
            _list(told, "marks", int), float(percent) if percent is not None else None,
            str(name) if name is not None else None,
        )  # fmt: skip
        unknown = told.keys() - asdict(found).keys()
    except (TypeError, ValueError, OverflowError, AttributeError) as error:
        raise UsageError(f"not an audience: {error}") from error
    if unknown:
        raise UsageError(f"{min(unknown)}: not a way to choose processes")
    _check(found)
    return found


def _list(told: Mapping[str, Any], name: str, kind: type[_T]) -> tuple[_T, ...]:
    """Raises TypeError."""
    values = told.get(name, ())
    if not isinstance(values, list | tuple) or not all(type(each) is kind for each in values):
        raise TypeError(f"{name}: not a list of {kind.__name__}")
    return tuple(values)


def name_as_bytes(name: str) -> bytes:
    """The part of a process's name that the kernel keeps. Raises UsageError for one that no process has."""
    try:
        return name.encode("utf-8", "surrogateescape")[:NAME_MAX]
    except UnicodeEncodeError as error:
        raise UsageError(f"{name!r}: not a name of processes: it cannot be written in bytes") from error


def _check(audience: Audience) -> None:
    """Raises UsageError."""
    if (audience.percent is None) != (audience.name is None):
        raise UsageError("a percentage is one of all processes of a name; give both, --percent and --of")
    if audience.name is not None and not audience.name:
        raise UsageError(f"{audience.name!r}: no name that a process has; `ps -eo comm` shows them")
    rules = (*audience.users, *audience.groups, *audience.cgroups, *audience.marks)
    if not rules and audience.percent is None:
        raise UsageError("nobody is chosen; say who is to see it, as with --uid or --percent")
    if len(rules) > _RULES_MAX:
        raise UsageError(f"{len(rules)} ways to choose processes; {_RULES_MAX} at most")
    if audience.percent is not None and not (math.isfinite(audience.percent) and 0 < audience.percent <= 100):
        raise UsageError(f"{audience.percent:g}: not a percentage; give more than 0, at most 100")
    if audience.name is not None:
        name_as_bytes(audience.name)
    if len(json.dumps(audience.as_json())) > _LENGTH_MAX:
        raise UsageError(f"who is to see it takes more than {_LENGTH_MAX} characters to be told; name a slice or group")
    for path in audience.cgroups:
        if not path.strip("/"):
            raise UsageError(f"{path!r}: no control group; name a systemd unit, or a path of /proc/PID/cgroup")


def _words(what: str, values: tuple[object, ...]) -> str:
    return f"{what} {' or '.join(map(str, values))}" if values else ""
