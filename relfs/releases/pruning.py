"""Which releases go, and why each of them goes or stays. Pure: told, not found out, so that `--dry-run` is the whole
truth.

What takes a slot
-----------------
Some facts. Who counts directories lets failed deployments push good releases out (Capistrano and deploy_helper do); who
goes by modification times removes whatever a tool has not touched last; who counts first and looks at `current`
afterwards removes what was made current a moment ago.

The choice. Releases come in the order in which relfs first knew them. Only those that were finished and are not bad
take a slot; a bad one goes when its neighbours do. What is protected stays whatever the limits say, and takes its slot
all the same, so that `--keep 5` never means more than five and what must stay. One that was never finished goes once a
later one is, for then nobody is making it any more. What relfs does not know is somebody else's: it is told of, and
stays.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from relfs.errors import UsageError

Standing = Literal["finished", "bad", "unfinished"]

KEEP = 5

_SPANS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_SIZES = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_AMOUNT = re.compile(r"(\d{1,12}(?:\.\d{1,6})?)([A-Za-z]*)", re.ASCII)


@dataclass(frozen=True)
class Policy:
    """How much is kept; a limit that is None is none. `keep` counts finished releases, `age` is in seconds since relfs
    first knew a release, `budget` in bytes on disk.

    `unknown`: what relfs does not know goes as if it were older than all that it knows. `unseen`: releases go though
    other users' processes, which may use them, cannot be looked at (inuse.py).
    """

    keep: int | None = KEEP
    age: float | None = None
    budget: int | None = None
    unknown: bool = False
    unseen: bool = False


@dataclass(frozen=True)
class Item:
    """A release as it stands. `since` is when relfs first knew it, in seconds since the epoch; None: it does not.
    `note` says why it is not finished, or bad. `size` is in bytes, where there is a budget."""

    name: str
    since: float | None
    standing: Standing
    note: str = ""
    size: int = 0


@dataclass(frozen=True)
class Decision:
    """What becomes of a release, and why. `failed`: it should have gone, and could not be removed."""

    name: str
    keep: bool
    why: str
    failed: bool = False


def decide(items: Sequence[Item], policy: Policy, protected: Mapping[str, str], *, now: float) -> list[Decision]:
    """What becomes of each of `items`, which come oldest first, in their order. `protected` says why some stay.

    `now` is in seconds since the epoch.
    """
    limits = _Limits(policy, sum(item.size for item in items if item.name in protected), now)
    decisions = [_decide(item, limits, protected) for item in reversed(items)]
    return decisions[::-1]


def _decide(item: Item, limits: _Limits, protected: Mapping[str, str]) -> Decision:
    """To be asked of the newest first."""
    own = protected.get(item.name)
    if item.since is None and not limits.policy.unknown:
        words = "relfs does not know it, and removes it only with --unknown"
        return Decision(item.name, True, own if own is not None else words)
    if item.standing == "unfinished":
        return _decide_unfinished(item, limits, own)
    too_much = limits.exceeded_by(item, protected=own is not None)
    if own is not None:
        return Decision(item.name, True, own)
    if too_much is not None:
        return Decision(item.name, False, too_much)
    return Decision(item.name, True, "within the limits" if item.standing == "finished" else f"{item.note}, but recent")


def _decide_unfinished(item: Item, limits: _Limits, own: str | None) -> Decision:
    if own is not None:
        return Decision(item.name, True, own)
    if limits.finished == 0:
        return Decision(item.name, True, f"{item.note}, and none after it is finished: it may still be made")
    return Decision(item.name, False, f"{item.note}, and later ones are")


class _Limits:
    """How much of each limit is used up, by what came before."""

    def __init__(self, policy: Policy, size: int, now: float) -> None:
        """`size` is what is protected takes, in bytes: it is there first."""
        self.policy = policy
        self.finished = 0
        self._size = size
        self._is_spent = False
        self._now = now

    def exceeded_by(self, item: Item, *, protected: bool) -> str | None:
        """Take a finished or bad release in, and tell which limit it goes beyond."""
        policy = self.policy
        full = policy.keep is not None and self.finished >= policy.keep
        if item.standing == "finished":
            self.finished += 1
        if not protected:
            self._spend(item.size)
        if full:
            return f"{policy.keep} finished ones are newer"
        if policy.age is not None and item.since is not None and self._now - item.since > policy.age:
            return f"older than {show_span(policy.age)}"
        return f"it and the newer ones take more than {show_size(policy.budget or 0)}" if self._is_spent else None

    def _spend(self, size: int) -> None:
        """What is older than one that does not fit goes with it, small as it may be."""
        if self.policy.budget is None:
            return
        self._is_spent = self._is_spent or self._size + size > self.policy.budget
        if not self._is_spent:
            self._size += size


# ---- what people write --------------------------------------------------------------------------------------------


def parse_prune(section: dict[str, Any]) -> Policy:
    """What [prune] of config.toml says. Raises ValueError that names the key."""
    keep, unseen = section.get("keep"), section.get("unseen", False)
    if keep is not None and (isinstance(keep, bool) or not isinstance(keep, int) or keep < 1):
        raise ValueError("prune.keep must be a number of releases, at least 1")
    if not isinstance(unseen, bool):
        raise ValueError("prune.unseen must be true or false")  # noqa: TRY004 (a fault of the file's content)
    try:
        age = parse_span(str(section["age"])) if "age" in section else None
        budget = parse_size(str(section["budget"])) if "budget" in section else None
    except UsageError as error:
        raise ValueError(f"prune: {error}") from error
    return limited(keep, age, budget, unseen=unseen)


def limited(keep: int | None, age: float | None, budget: int | None, *, unseen: bool = False) -> Policy:
    """A policy with these limits; with the usual one, if there is none."""
    usual = keep is None and age is None and budget is None
    return Policy(KEEP if usual else keep, age, budget, unseen=unseen)


def parse_span(text: str) -> float:
    """Seconds, of a number with a unit: 90d, 12h, 30m, 2w, 45s. Raises UsageError."""
    found = _AMOUNT.fullmatch(text.strip())
    if found is None or found[2] not in _SPANS:
        raise UsageError(f"{text!r}: not a span of time; give a number with s, m, h, d or w, such as 90d")
    return float(found[1]) * _SPANS[found[2]]


def parse_size(text: str) -> int:
    """Bytes, of a number with a unit: 500M, 20G, 1T; or without one. Raises UsageError."""
    found = _AMOUNT.fullmatch(text.strip())
    unit = found[2].upper().removesuffix("B").removesuffix("I") if found is not None else "?"
    if found is None or unit not in _SIZES:
        raise UsageError(f"{text!r}: not a size; give bytes, or a number with K, M, G or T, such as 20G")
    return int(float(found[1]) * _SIZES[unit])


def show_span(seconds: float) -> str:
    """As parse_span() reads it, in the largest unit that leaves no rest."""
    for unit in ("w", "d", "h", "m"):
        if seconds and seconds % _SPANS[unit] == 0:
            return f"{seconds / _SPANS[unit]:.0f}{unit}"
    return f"{seconds:g}s"


def show_size(count: int) -> str:
    """As parse_size() reads it, likewise."""
    for unit in ("T", "G", "M", "K"):
        if count and count % _SIZES[unit] == 0:
            return f"{count // _SIZES[unit]}{unit}"
    return f"{count} bytes"
