"""Who is asking: processes as /proc tells of them (proc(5)). Linux only; knows nothing of releases.

A process is known by its pid and start time together, so that a reused pid is never taken for its former owner.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass

_TICK = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Process:
    """A process. `start` is its start time in clock ticks after boot; `alive` is False for a zombie."""

    pid: int
    start: int
    parent: int
    session: int
    alive: bool

    def same(self, other: Process) -> bool:
        return self.pid == other.pid and self.start == other.start


def process(pid: int) -> Process | None:
    """Process `pid`, or None if there is none by now."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            stat = file.read()
    except OSError:  # gone, or hidden from us (proc(5), hidepid)
        return None
    fields = stat[stat.rindex(b")") + 2 :].split(b" ")  # the name before it may hold anything
    return Process(pid, int(fields[19]), int(fields[1]), int(fields[3]), fields[0] not in (b"Z", b"X"))


def thread_group(tid: int) -> int:
    """The process that thread `tid` belongs to: FUSE tells us the thread. 0, or `tid` itself, where it is not known."""
    try:
        with open(f"/proc/{tid}/status", "rb") as file:
            for line in file:
                if line.startswith(b"Tgid:"):
                    return int(line[5:])
    except OSError:
        pass
    return tid


def groups(pid: int) -> tuple[int, ...]:
    """The supplementary groups of process (or thread) `pid`; none if it is gone."""
    try:
        with open(f"/proc/{pid}/status", "rb") as file:
            for line in file:
                if line.startswith(b"Groups:"):
                    return tuple(int(word) for word in line[7:].split())
    except OSError:
        pass
    return ()


def all_pids() -> frozenset[int]:
    """The pids of all processes that run now."""
    return frozenset(int(name) for name in os.listdir("/proc") if name.isdecimal())


def ticks_now() -> int:
    """The present moment in the clock that start times are counted in."""
    return int(time.clock_gettime(time.CLOCK_BOOTTIME) * _TICK)


def boot_id() -> str:
    """What tells this boot of the machine from every other (random(4)); empty where /proc does not tell."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return ""
