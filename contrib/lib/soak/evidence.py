"""What the actors told (actors/telling.py and actors/reader.c say in which words), read into dataclasses."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Span:
    """From right before something to right after it, in seconds of CLOCK_MONOTONIC."""

    start: float
    end: float

    @property
    def seconds(self) -> float:
        return self.end - self.start


@dataclass(frozen=True)
class Run:
    """Reads in a row that saw the same release: the first of them, the last, and how many."""

    release: str
    first: Span
    last: Span
    reads: int


@dataclass(frozen=True)
class Failure:
    """Something that did not succeed: a system call, a command, or an expectation."""

    actor: str
    what: str
    error: str
    at: Span

    def __str__(self) -> str:
        return f"{self.actor}: {self.what}: {self.error} (after {self.at.seconds * 1e3:.0f} ms)"


@dataclass(frozen=True)
class Slow:
    """Something that took long."""

    actor: str
    what: str
    at: Span


@dataclass(frozen=True)
class Switch:
    """`release` was made current: `at` is from the question to the answer."""

    release: str
    by: str
    at: Span


@dataclass
class Told:
    """All that one actor told. `ended`: it came to its end, so that nothing is missing."""

    actor: str
    runs: list[Run] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    slow: list[Slow] = field(default_factory=list)
    switches: list[Switch] = field(default_factory=list)
    latency: dict[float, int] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    ended: bool = False


def read(actor: str, lines: Iterable[str]) -> Told:
    """Understand what `actor` told. A last line that is cut off, as by a kill, is passed over."""
    told = Told(actor)
    for line in lines:
        if line.endswith("\n"):
            _add(told, json.loads(line))
    return told


def _add(told: Told, said: dict[str, Any]) -> None:
    match said:
        case {"run": release, "first": first, "last": last, "reads": reads}:
            told.runs.append(Run(release, Span(*first), Span(*last), reads))
        case {"failed": error, "at": at}:
            told.failures.append(Failure(told.actor, said.get("what", "read"), error, Span(*at)))
        case {"slow": at}:
            told.slow.append(Slow(told.actor, said.get("what", "read"), Span(*at)))
        case {"switch": release, "by": by, "at": at}:
            told.switches.append(Switch(release, by, Span(*at)))
        case {"latency": buckets}:
            told.latency = {nanoseconds / 1e9: reads for nanoseconds, reads in buckets}
            told.ended = True
        case {"end": counts}:
            told.counts = counts
            told.ended = True
