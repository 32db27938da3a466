"""A moment that restarts, reboots and a clock that is set do not move.

The facts: time since the boot (CLOCK_BOOTTIME, clock_gettime(2)) goes on while the machine sleeps and is set by nobody,
but begins anew with each boot; wall-clock time outlives that, and may be set. The choice: both are kept. While the boot
lasts that the deadline was set in, only the first counts; after it, the other.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from relfs.processes import boot_id

TIME_MAX = float(1 << 40)  # seconds since the epoch; localtime(3) has a year for it


@dataclass(frozen=True)
class Deadline:
    """`until` is in seconds since the epoch; `ends` is the same moment in seconds after the boot that `boot` names
    (None: it is not known)."""

    until: float
    ends: float | None
    boot: str

    def left(self) -> float:
        """Seconds; none, or less, if it is over."""
        if self.ends is not None and self.boot == boot_id():
            return self.ends - since_boot()
        return self.until - time.time()

    def is_over(self) -> bool:
        return self.left() <= 0


def deadline_in(seconds: float) -> Deadline:
    """One that is over in so many seconds."""
    return Deadline(time.time() + seconds, since_boot() + seconds, boot_id())


def since_boot() -> float:
    """Seconds since the boot, those included in which the machine was asleep, where the system tells."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


def time_of(value: Any) -> float:
    """A time that a file tells, which others may have written. Raises ValueError, TypeError for what is none."""
    if not 0 <= (number := float(value)) < TIME_MAX:
        raise ValueError("not a time")
    return number
