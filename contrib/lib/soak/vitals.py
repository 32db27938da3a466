"""What the processes of relfs hold: memory, descriptors, threads, and children that they have not reaped; and how much
is mounted. Between two looks, nothing of it may grow."""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import astuple, dataclass
from pathlib import Path

from relfs.mountinfo import mounts
from relfs.processes import all_pids, process
from soak.judge import Verdict
from soak.site import Site

_SLACK_MB = 8.0
"""So much may the memory of all processes differ between two looks: what caches and allocators keep, or share, depends
on the moment. A leak of every death, a kilobyte say, is less; one of every read or switch is far more."""

_SLACK_SHARED_MB = 12.0
"""The ledger exists as far as it was ever used: every slot of it in the end, 9 MB where requests are relayed."""

_SLACK_DESCRIPTORS = 3
"""A file that an actor has open in all looks of the one kind, and in none of the other: a handle that is never closed
is four."""

_IDLE = "Trio thread"

_LOOKS = 40
_LOOK_SECONDS = 0.05


@dataclass(frozen=True)
class Vitals:
    """`pss_mb` divides a page among those that share it (proc(5), smaps_rollup); what is shared memory (memfd) is
    `shared_mb`. `idle_threads` are those that trio keeps for its next call, and ends after ten seconds: as many as were
    busy at once just before. What grows is not theirs but `threads`, all others: one that never comes back bears the
    name of what it does."""

    processes: int
    zombies: int
    pss_mb: float
    shared_mb: float
    descriptors: int
    threads: int
    idle_threads: int
    mounts: int


def look(site: Site) -> Vitals:
    """All of the site's processes, its guards included, and the mounts on its deploy path and below. The least of many
    looks: each file that an actor has open just now is a descriptor of three processes."""
    looks = []
    for _ in range(_LOOKS):
        looks.append(_look_once(site))
        time.sleep(_LOOK_SECONDS)
    return Vitals(*(min(column) for column in zip(*map(astuple, looks), strict=True)))


def _look_once(site: Site) -> Vitals:
    pids = (*site.processes(), *site.guards())
    threads = [name for pid in pids for name in _thread_names(pid)]
    return Vitals(
        processes=len(pids),
        zombies=_zombies(pids),
        pss_mb=sum(_pss_mb(pid, "Pss_Anon", "Pss_File") for pid in pids),
        shared_mb=sum(_pss_mb(pid, "Pss_Shmem") for pid in pids),
        descriptors=sum(_entries(pid, "fd") for pid in pids),
        threads=sum(name != _IDLE for name in threads),
        idle_threads=sum(name == _IDLE for name in threads),
        mounts=sum(1 for mount in mounts() if f"{mount.target}/".startswith(f"{site.app}/")),
    )


def judge_growth(before: Vitals, after: Vitals) -> Verdict:
    """Both looks are at a quiet moment, in which all that relfs keeps running was there."""
    wrong = [
        f"{what} grew from {getattr(before, what):g} to {getattr(after, what):g}"
        for what, slack in (
            ("processes", 0), ("zombies", 0), ("pss_mb", _SLACK_MB), ("shared_mb", _SLACK_SHARED_MB),
            ("descriptors", _SLACK_DESCRIPTORS), ("threads", 1), ("mounts", 0),
        )
        if getattr(after, what) > getattr(before, what) + slack
    ]  # fmt: skip
    return Verdict("nothing grows", tuple(wrong))


def _thread_names(pid: int) -> Iterator[str]:
    with suppress(OSError):  # it has just ended
        for task in os.listdir(f"/proc/{pid}/task"):
            name = Path(f"/proc/{pid}/task/{task}/comm").read_text()
            yield _IDLE if name.startswith(_IDLE) else name


def _zombies(parents: Collection[int]) -> int:
    found = map(process, all_pids())
    return sum(1 for each in found if each is not None and each.parent in parents and not each.alive)


def _pss_mb(pid: int, *kinds: str) -> float:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0.0
    return sum(float(line.split()[1]) for line in lines if line.startswith(kinds)) / 1024


def _entries(pid: int, what: str) -> int:
    try:
        return len(os.listdir(f"/proc/{pid}/{what}"))
    except OSError:
        return 0
