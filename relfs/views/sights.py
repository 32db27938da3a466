"""What a process sees: what it is pinned to; if it is not, the canary, if it is of its audience; else what everybody
does.

A process that has asked before gets the same answer again, without a look at its mark, until pins or the canary change.
Nothing is missed by that: a mark that is put on a running process is made known after that (Pins.on_change), and one
that is inherited is borne by a process that is new.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from relfs.layout import Target
from relfs.views.acquaintances import Acquaintances
from relfs.views.canary import Canary
from relfs.views.pins import Pins


@dataclass(frozen=True)
class _Known:
    """What somebody sees (None: what everybody does), as of that many changes."""

    target: Target | None
    changes: int


class Sights:
    """GUARDED BY the event loop. Nothing in here waits."""

    def __init__(self, pins: Pins, canary: Canary) -> None:
        self.pins = pins
        self.canary = canary
        self._changes = 0
        self._known = Acquaintances[_Known](canary.note_end)
        pins.on_change = canary.on_change = self._note_change

    def __bool__(self) -> bool:
        """Whether anybody may see something else than everybody."""
        return bool(self.pins) or self.canary.stage is not None

    def targets(self) -> Iterator[Target]:
        """What somebody may see instead of what everybody does."""
        if self.canary.stage is not None:
            yield self.canary.stage.target
        yield from (pin.target for pin in self.pins)

    def seen_by(self, tid: int, uid: int, gid: int) -> Target | None:
        """What thread `tid`, which acts as `uid` and `gid`, sees; None: what everybody does."""
        known = self._known.of(tid)
        if known is not None and known.changes == self._changes:
            return known.target
        held = self._known.meet(tid)
        pin = self.pins.of(tid)
        target = pin.target if pin is not None else self.canary.seen_by(tid, uid, gid)
        if held is not None:
            self._known.note(tid, held, _Known(target, self._changes))
        return target

    def would_see(self, pid: int, uid: int, gid: int) -> tuple[str, Target | None]:
        """Why process `pid` sees what it does, and what that is, if it is not what everybody does: "pinned", "canary",
        "current"; or "undecided", where that is decided when it asks."""
        pin = self.pins.of(pid)
        if pin is not None:
            return "pinned", pin.target
        shown = self.canary.would_show(pid, uid, gid)
        if shown is None:
            return "undecided", None
        return ("canary", self.canary.stage.target) if shown and self.canary.stage is not None else ("current", None)

    def check_invariants(self) -> None:
        """For tests: raise AssertionError where an INVARIANT of what it is made of does not hold."""
        self.pins.check_invariants()
        self.canary.check_invariants()
        self._known.check_invariants()

    def _note_change(self) -> None:
        self._changes += 1
        if not self:
            self._known.clear()
