"""The canary: a release that an audience sees before everybody does.

Whether a process is of the audience is decided when it asks for the first time, and then holds until it ends or the
canary does: who changes his user or is moved to another control group meanwhile goes on seeing what he saw. What is
decided is remembered by pid and start time, for the next worker, too; who has just asked, is known without a look at
those (acquaintances.py).
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Protocol

from relfs.audience import Audience, audience_of, name_as_bytes
from relfs.layout import Target
from relfs.processes import cgroups_of, credentials, name_of, process, start_of, state_of, thread_group
from relfs.views.mark import mark_of
from relfs.views.pins import Kept
from relfs.views.share import Key, Share

DECISIONS = "decisions"
"""The file of the state directory that has them, too (survival/copies.py)."""

_DECISION = struct.Struct("=3Q")  # pid, start time, flags
_CHOSEN = 1
_COUNTED = 2
_TIDY_MIN = 1024


class Told(Protocol):
    """A value that outlives us (survival/memory.py, Cell)."""

    def store(self, value: bytes) -> None:
        """Replace it."""

    def load(self) -> bytes:
        """The value."""


@dataclass(frozen=True)
class Stage:
    """What the canary is: who sees what. `id` is that of the event that began it."""

    id: str
    target: Target
    audience: Audience


class Asker:
    """A process that asks, as far as it matters who it is. Each property is one look at /proc."""

    def __init__(self, pid: int, uid: int, gid: int) -> None:
        self._pid = pid
        self.uid = uid
        self.gid = gid

    @cached_property
    def groups(self) -> frozenset[int]:
        return frozenset({self.gid, *credentials(self._pid).groups})

    @cached_property
    def cgroups(self) -> tuple[str, ...]:
        return cgroups_of(self._pid)

    @cached_property
    def mark(self) -> int:
        return mark_of(self._pid)

    @cached_property
    def name(self) -> str:
        return name_of(self._pid)


def is_meant(audience: Audience, asker: Asker) -> bool:
    """Whether all rules but the percentage are met."""
    return (
        (not audience.users or asker.uid in audience.users)
        and (not audience.groups or bool(asker.groups & set(audience.groups)))
        and (not audience.marks or asker.mark in audience.marks)
        and (not audience.cgroups or any(_is_in(asker.cgroups, each) for each in audience.cgroups))
        and (audience.name is None or is_called(asker.name, audience.name))
    )


def _is_in(paths: tuple[str, ...], wanted: str) -> bool:
    if wanted.startswith("/"):
        return any(path == wanted.rstrip("/") or path.startswith(wanted.rstrip("/") + "/") for path in paths)
    return any(f"/{wanted.strip('/')}/" in f"{path}/" for path in paths)


def _lives(pid: int) -> bool:
    found = process(pid)
    return found is not None and found.alive


def is_called(name: str, wanted: str) -> bool:
    """Whether a process that calls itself `name` is meant by `wanted`, which may be longer than the kernel keeps.
    Raises UsageError for what cannot be a name."""
    return os.fsencode(name) == name_as_bytes(wanted)


class Canary:
    """The one of a mount, if there is one. GUARDED BY the event loop. Nothing in here waits.

    `_known` has what was decided of threads and processes, and `_starts` their start times; `_numbers` has, of what was
    decided of processes, where it is kept (0: there was no room). INVARIANT: nothing is known of two of one number,
    nothing else is kept, and nothing is known or kept while there is no canary.
    """

    def __init__(self, told: Told, kept: Kept) -> None:
        """`told` and `kept` are where the next worker finds it, and what was decided. `on_change` is called when it has
        begun or ended."""
        self.on_change: Callable[[], None] = lambda: None
        self.stage: Stage | None = None
        self._told = told
        self._kept = kept
        self._share: Share | None = None
        self._known: dict[Key, bool] = {}
        self._starts: dict[int, int] = {}
        self._numbers: dict[Key, int] = {}
        self._tidy_at = _TIDY_MIN

    def begin(self, stage: Stage) -> None:
        """From now on. Begun again with the same id, it goes on."""
        if self.stage is not None and self.stage.id == stage.id:
            return
        self._forget_all()
        self._told.store(json.dumps(asdict(stage)).encode("ascii"))
        self._set(stage)
        self.on_change()

    def end(self) -> None:
        self._told.store(b"")
        self._forget_all()
        self.stage = None
        self.on_change()

    def restore(self) -> None:
        """Go on with that of the worker before this one, or what was decided before this mount."""
        raw = self._told.load()
        if not raw:
            self._forget_remains()
            return
        self._set(_stage_of(json.loads(raw)))
        for number, record in self._kept:
            pid, start, flags = _DECISION.unpack(record)
            self._know((pid, start), chosen=bool(flags & _CHOSEN))
            self._numbers[pid, start] = number
            if self._share is not None and flags & _COUNTED:
                self._share.add((pid, start), chosen=bool(flags & _CHOSEN))

    def seen_by(self, tid: int, uid: int, gid: int) -> Target | None:
        """What thread `tid`, which acts as `uid` and `gid`, sees because of it; None: what everybody does."""
        if self.stage is None:
            return None
        start = start_of(tid)
        if start is None:  # it is outside of our pid name space, or gone
            return None
        chosen = self._known.get((tid, start))
        if chosen is None:
            chosen = self._first_sight(self.stage, tid, start, uid, gid)
        return self.stage.target if chosen else None

    def would_show(self, pid: int, uid: int, gid: int) -> bool | None:
        """Whether process `pid` sees it; None if that is decided only when it asks. Changes nothing."""
        if self.stage is None:
            return False
        start = start_of(pid)
        chosen = self._known.get((pid, start)) if start is not None else None
        if chosen is not None:
            return chosen
        meant = is_meant(self.stage.audience, Asker(pid, uid, gid))
        return None if meant and self._share is not None else meant

    def chosen(self) -> list[int]:
        """The processes that see it, as far as they have asked and live."""
        return sorted(pid for pid, start in self._numbers if self._known[pid, start] and start_of(pid) == start)

    def check_invariants(self) -> None:
        """For tests: raise AssertionError where the INVARIANT does not hold."""
        assert self._known.keys() == set(self._starts.items())
        assert self._numbers.keys() <= self._known.keys()
        assert sorted(number for number, _ in self._kept) == sorted(filter(None, self._numbers.values()))
        assert self.stage is not None or not self._known

    def _set(self, stage: Stage) -> None:
        self.stage = stage
        audience = stage.audience
        if audience.percent is not None:
            self._share = Share(audience.percent, f"{stage.target.label}\0{audience.name}")

    def _first_sight(self, stage: Stage, tid: int, start: int, uid: int, gid: int) -> bool:
        """A thread sees what its process does."""
        self._tidy()
        pid = thread_group(tid)
        began = start if pid == tid else start_of(pid)
        key = (pid, began if began is not None else 0)
        chosen = self._known.get(key)
        if chosen is None:
            chosen, flags = self._decide(stage.audience, Asker(pid, uid, gid), key)
            self._know(key, chosen=chosen)
            self._numbers[key] = self._kept.put(_DECISION.pack(*key, flags))
        if tid != pid:
            self._know((tid, start), chosen=chosen)
        return chosen

    def _decide(self, audience: Audience, asker: Asker, key: Key) -> tuple[bool, int]:
        """Whether it sees the canary, and the flags of what is kept of that."""
        if not is_meant(audience, asker):
            return False, 0
        if self._share is None:
            return True, _CHOSEN
        chosen = self._share.choose(key)
        return chosen, _COUNTED | (_CHOSEN if chosen else 0)

    def _know(self, key: Key, *, chosen: bool) -> None:
        self._forget(key[0])  # of an earlier one of that number
        self._known[key] = chosen
        self._starts[key[0]] = key[1]

    def note_end(self, tid: int) -> None:
        """Thread `tid` has ended. Where its number is another's within the same tick (10 ms), nothing else tells. A
        process goes on when only its first thread has ended (pthread_exit(3)), and so does what it sees; Linux 6.9 to
        6.14 tells of an end then."""
        if tid in self._starts and not (state_of(tid) == "Z" and _lives(tid)):
            self._forget(tid)

    def _forget(self, tid: int) -> None:
        if (start := self._starts.pop(tid, None)) is None:
            return
        key = (tid, start)
        del self._known[key]
        self._kept.free(self._numbers.pop(key, 0))
        if self._share is not None:
            self._share.forget(key)

    def _tidy(self) -> None:
        """Forget those that have ended, now and then."""
        if len(self._known) < self._tidy_at:
            return
        for tid in [tid for tid, start in self._starts.items() if start_of(tid) != start]:
            self._forget(tid)
        self._tidy_at = max(_TIDY_MIN, 2 * len(self._known))

    def _forget_remains(self) -> None:
        """Of a canary whose worker died amid end(): the next canary is for others."""
        for number, _ in self._kept:
            self._kept.free(number)

    def _forget_all(self) -> None:
        for number in self._numbers.values():
            self._kept.free(number)
        self._known, self._starts, self._numbers, self._share = {}, {}, {}, None
        self._tidy_at = _TIDY_MIN


def is_decision(record: bytes) -> bool:
    """Whether that is what is kept of a decision: whoever owns the state directory may have written it."""
    return len(record) == _DECISION.size


def _stage_of(told: dict[str, Any]) -> Stage:
    return Stage(told["id"], Target(**told["target"]), audience_of(told["audience"]))
