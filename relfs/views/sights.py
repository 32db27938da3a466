"""What a process sees: what it is pinned to; if it is not, the canary, if it is of its audience; else what everybody
does."""

from __future__ import annotations

from dataclasses import dataclass

from relfs.layout import Target
from relfs.views.canary import Canary
from relfs.views.pins import Pins


@dataclass(frozen=True)
class Sights:
    """GUARDED BY the event loop. Nothing in here waits."""

    pins: Pins
    canary: Canary

    def __bool__(self) -> bool:
        """Whether anybody may see something else than everybody."""
        return bool(self.pins) or self.canary.stage is not None

    def seen_by(self, tid: int, uid: int, gid: int) -> Target | None:
        """What thread `tid`, which acts as `uid` and `gid`, sees; None: what everybody does."""
        pin = self.pins.of(tid)
        return pin.target if pin is not None else self.canary.seen_by(tid, uid, gid)
