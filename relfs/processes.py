"""Who is asking: processes as /proc tells of them (proc(5)). Where there is none, nobody is known. Knows nothing of
releases.

A process is known by its pid and start time together, so that a reused pid is never taken for its former owner.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

_TICK = os.sysconf("SC_CLK_TCK")
_PF_EXITING = 0x4
_PF_KTHREAD = 0x200000
_PROC_READ = 8192
_GO_BETWEEN = frozenset({b"sudo", b"su", b"runuser", b"doas"})


@dataclass(frozen=True)
class Process:
    """A process. `start` is its start time in clock ticks after boot; `alive` is False for a zombie; `terminal` is the
    device number of its controlling terminal, 0 if it has none."""

    pid: int
    start: int
    parent: int
    session: int
    alive: bool
    terminal: int = 0

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
    # The first thread of a process may have ended, and be a zombie, while others still work (pthread_exit(3)).
    alive = fields[0] not in (b"Z", b"X") or int(fields[17]) > 1
    return Process(pid, int(fields[19]), int(fields[1]), int(fields[3]), alive, int(fields[4]))


def shows_us() -> bool:
    """Whether /proc shows this process under its own number. In a pid name space of its own, it may be that of another
    one (pid_namespaces(7)), and tells of strangers then."""
    try:
        return os.readlink("/proc/self") == str(os.getpid())
    except OSError:
        return False


def is_exiting(pid: int) -> bool:
    """Whether process `pid` has ended but for what the kernel does for the dead: its first thread, that is, while
    others may wait for something that they cannot be killed from (PF_EXITING in include/linux/sched.h; proc(5), flags).
    """
    flags = _flags(pid)
    return flags is None or bool(flags & _PF_EXITING)


def is_killed(pid: int) -> bool:
    """Whether nothing can keep process `pid` from ending, but for what its first thread waits for in the kernel: it is
    exiting, or SIGKILL is pending (proc(5), SigPnd)."""
    try:
        pending = int(_field(_read(f"/proc/{pid}/status"), b"SigPnd"), 16)
    except OSError:
        return True
    return bool(pending & 1 << signal.SIGKILL - 1) or is_exiting(pid)


def is_of_the_kernel(pid: int) -> bool:
    """Whether process `pid` is a thread of the kernel itself (PF_KTHREAD, likewise), or gone."""
    flags = _flags(pid)
    return flags is None or bool(flags & _PF_KTHREAD)


def _flags(pid: int) -> int | None:
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            stat = file.read()
    except OSError:
        return None
    return int(stat[stat.rindex(b")") + 2 :].split(b" ")[6])


def start_of(tid: int) -> int | None:
    """When thread `tid` was started, in clock ticks after boot; None if it is gone. Asked with every lookup, where that
    matters: one read."""
    try:
        stat = _read(f"/proc/{tid}/stat")
    except OSError:
        return None
    return int(stat[stat.rindex(b")") + 2 :].split(b" ", 20)[19])


def name_of(pid: int) -> str:
    """What process `pid` calls itself, as far as the kernel keeps that (proc(5), comm); empty if it is gone."""
    return os.fsdecode(_name(pid))


def cgroups_of(pid: int) -> tuple[str, ...]:
    """The paths of the control groups that process `pid` is in, in each hierarchy (cgroups(7)); none if it is gone."""
    try:
        lines = os.fsdecode(_read(f"/proc/{pid}/cgroup")).splitlines()
    except OSError:
        return ()
    return tuple(line.split(":", 2)[2] for line in lines)


def user_of(pid: int) -> int:
    """As whom process `pid` acts: its effective user id (proc(5), status); -1 if it is gone."""
    try:
        return int(_field(_read(f"/proc/{pid}/status"), b"Uid").split()[1])
    except OSError:
        return -1


def sole_owner(pid: int) -> tuple[int, int] | None:
    """The user and group of process `pid`, if it acts as no other (real, effective, saved); None if it does, or is
    gone."""
    try:
        status = _read(f"/proc/{pid}/status")
    except OSError:
        return None
    users, groups = (set(_field(status, name).split()[:3]) for name in (b"Uid", b"Gid"))
    return (int(users.pop()), int(groups.pop())) if len(users) == len(groups) == 1 else None


def acts_as(pid: int) -> tuple[int, int] | None:
    """The user and group as whom process `pid` reaches files (proc(5), status: the last of each); None if gone."""
    try:
        status = _read(f"/proc/{pid}/status")
    except OSError:
        return None
    return int(_field(status, b"Uid").split()[3]), int(_field(status, b"Gid").split()[3])


def state_of(pid: int) -> str:
    """What process `pid` is doing, by a letter (proc(5)): R, S, D, T and so on; empty if it is gone."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            stat = file.read()
    except OSError:
        return ""
    at = stat.rindex(b")") + 2
    return stat[at : at + 1].decode("ascii")


@dataclass(frozen=True)
class Turns:
    """A thread's share of the processors: for how long it `ran`, and `waited` until it could, in nanoseconds; and
    whether it could run now (`ready`)."""

    ran: int
    waited: int
    ready: bool


def turns_of(pid: int) -> dict[int, Turns]:
    """Of each thread of process `pid`; nothing where that cannot be seen (Documentation/scheduler/sched-stats.rst,
    /proc/<pid>/schedstat)."""
    found = {}
    with suppress(OSError):
        for thread in map(int, os.listdir(f"/proc/{pid}/task")):
            with suppress(OSError), open(f"/proc/{pid}/task/{thread}/schedstat", "rb") as file:  # it may have ended
                ran, waited = map(int, file.read().split()[:2])
                found[thread] = Turns(ran, waited, state_of(thread) == "R")
    return found


def waited_for_processor(before: Mapping[int, Turns], after: Mapping[int, Turns], seconds: float) -> float:
    """For how many of the `seconds` between two looks at a process its threads could run, and waited for a processor,
    all together. A wait is counted when it is over (sched_info_arrive() in kernel/sched/stats.h): one that goes on
    shows by a thread that could run, and has not run at all."""
    waited = 0
    for thread in before.keys() & after.keys():
        if after[thread].ready and after[thread].ran == before[thread].ran:
            return seconds
        waited += after[thread].waited - before[thread].waited
    return min(max(waited / 1e9, 0.0), seconds)


def starter(pid: int) -> int:
    """Who started process `pid`, past what ran it as another user and ends with it, as sudo(8) does; 0 if that cannot
    be seen."""
    asking = process(pid)
    while asking is not None and _name(asking.parent) in _GO_BETWEEN:
        asking = process(asking.parent)
    return asking.parent if asking is not None else 0


def _name(pid: int) -> bytes:
    try:
        with open(f"/proc/{pid}/comm", "rb") as file:
            return file.read().rstrip(b"\n")
    except OSError:
        return b""


def runs_terminal_of(pid: int, other: Process) -> bool:
    """Whether process `pid` holds the master end of the pseudo-terminal (pty(7)) that `other` runs on: it made that
    terminal, and stands between it and somebody else. False where /proc does not tell (Linux before 4.14)."""
    if not other.terminal:
        return False
    index = f"tty-index:\t{os.minor(other.terminal)}\n"
    try:
        return any(_is_master(pid, fd, index) for fd in os.listdir(f"/proc/{pid}/fd"))
    except OSError:
        return False


def _is_master(pid: int, fd: str, index: str) -> bool:
    """Only a master end has the line `index`, which names the terminal by its number in /dev/pts."""
    try:
        with open(f"/proc/{pid}/fdinfo/{fd}") as file:
            return index in file.read()
    except OSError:
        return False


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


@dataclass(frozen=True)
class Credentials:
    """What a thread may do beyond what its user and group may: `capabilities` are the effective ones, a bit each."""

    groups: tuple[int, ...]
    capabilities: int


def credentials(tid: int) -> Credentials:
    """Those of thread (or process) `tid`; nothing if it is gone. Asked with every request of a user: one read."""
    try:
        status = _read(f"/proc/{tid}/status")
    except OSError:
        return Credentials((), 0)
    return Credentials(tuple(map(int, _field(status, b"Groups").split())), int(_field(status, b"CapEff"), 16))


def is_in_our_user_namespace(pid: int) -> bool:
    """Whether capabilities of process `pid` mean what ours mean (user_namespaces(7)); False if it cannot be seen."""
    try:
        return os.stat(f"/proc/{pid}/ns/user").st_ino == os.stat("/proc/self/ns/user").st_ino
    except OSError:
        return False


def _read(path: str) -> bytes:
    """All of a file of /proc, which comes in one piece if there is room for it."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        parts = [os.read(fd, _PROC_READ)]
        while len(parts[-1]) == _PROC_READ:
            parts.append(os.read(fd, _PROC_READ))
    finally:
        os.close(fd)
    return b"".join(parts)


def _field(status: bytes, name: bytes) -> bytes:
    """A line of /proc/PID/status, without its name. The process's own name, before it, has its newlines escaped."""
    start = status.index(b"\n" + name + b":") + len(name) + 2
    return status[start : status.index(b"\n", start)]


def all_pids() -> frozenset[int]:
    """The pids of all processes that run now."""
    return frozenset(int(name) for name in os.listdir("/proc") if name.isdecimal())


def descendants(pid: int) -> list[Process]:
    """Whom process `pid` has started, and they, and so on; who has lost his parent is not among them."""
    everybody = [found for found in map(process, all_pids()) if found is not None]
    family, found = {pid}, list[Process]()
    while more := [each for each in everybody if each.parent in family and each.pid not in family]:
        found += more
        family |= {each.pid for each in more}
    return found


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
