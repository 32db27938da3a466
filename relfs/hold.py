"""The deploy lock that people and scripts take with `relfsctl lock`: from then on nobody but the holder makes a
release current, neither with relfsctl nor with a tool, until it is given back.

It is a file, `.relfs/held`, that says who holds it. It is not what keeps two changes apart (that is lock.py, which
whoever reads or writes this file holds), and so it may be looked at without being waited for.

Who the holder is
-----------------
A process, known by its pid and start time, and all that descends from it: the shell that ran `relfsctl lock`, or
relfsctl itself for as long as it runs a command under the lock. When that process has ended, the lock has, too. (The
sudo of `sudo relfsctl lock` ends at once, so the holder is the shell that ran it.) What descends from the holder may
take the lock again, and it remains the holder's, which needs it for longer.

With a time to live it does not depend on the process: it ends when the time is over (deadline.py), and once the process
is gone it is nobody's, so that it stops everybody. A process that was started before the last boot is gone. What the
holder starts, `relfsctl deploy` for one, takes such a lock over for as long as it runs, which may be longer, and gives
it back by ending: the one before is in the file, too (`outer`).
"""

from __future__ import annotations

import json
import os
import stat
import time
from dataclasses import asdict, dataclass
from typing import Any

from relfs.beneath import below, open_file, read_file
from relfs.deadline import Deadline, since_boot, time_of
from relfs.durable import remove_file, replace_file
from relfs.errors import LockedError, RelfsError, UsageError, reason
from relfs.journal import Actor, command_line
from relfs.layout import DeployPath
from relfs.processes import Process, boot_id, process

HELD = "held"

_DEPLOYER_LOCK = ".dep/deploy.lock"
_NESTED_MAX = 4
_FILE_MAX = 1 << 18  # bytes; as JSON has them, a character has six, and the longest command 4096 characters
_REASON_MAX = 1000
_SECONDS_MAX = 366 * 86400.0
_DEPTH_MAX = 64


@dataclass(frozen=True)
class Hold:
    """Who holds the deploy lock, since when and until when (seconds since the epoch; None: until it ends), and why.

    `start` is the process's start time in clock ticks after the boot that `boot` names, `ends` is `until` in seconds
    after it. `outer` is what was in force when this was taken, and is again when this is over.
    """

    pid: int
    start: int
    boot: str
    user: str
    command: str
    since: float
    until: float | None
    reason: str
    ends: float | None = None
    outer: Hold | None = None

    def is_over(self) -> bool:
        """Whether the time is up, or nobody is left who could give it back."""
        if self.until is None:
            return not self._lives()
        return Deadline(self.until, self.ends, self.boot).is_over()

    def belongs_to(self, pid: int) -> bool:
        """Whether process `pid` is the holder, or descends from it."""
        asking = process(pid)
        for _ in range(_DEPTH_MAX):
            if asking is None:
                return False
            if self._is(asking):
                return True
            asking = process(asking.parent) if asking.parent else None
        return False

    def covers(self, pid: int) -> bool:
        """Whether process `pid` descends from the holder, and is another."""
        return pid != self.pid and self.belongs_to(pid)

    def around(self, pid: int) -> Hold | None:
        """What process `pid`, which takes the lock now, gives back by ending: this, if it is that of another."""
        return self if self.covers(pid) and self._depth() < _NESTED_MAX else self.outer

    def _depth(self) -> int:
        return 1 + (self.outer._depth() if self.outer is not None else 0)

    def as_json(self) -> dict[str, object]:
        """What `relfsctl status` and `relfsctl lock` publish."""
        fields = ("pid", "user", "command", "since", "until", "reason")
        return {name: getattr(self, name) for name in fields}

    def __str__(self) -> str:
        words = f"the deploy lock is held by {self.user} (pid {self.pid}: {self.command})"
        words += f" since {_moment(self.since)}"
        if self.until is not None:
            words += f" until {_moment(self.until)}"
        return words + (f": {self.reason}" if self.reason else "")

    def _lives(self) -> bool:
        now = process(self.pid)
        return now is not None and now.alive and self._is(now)

    def _is(self, other: Process) -> bool:
        return (other.pid, other.start) == (self.pid, self.start) and self.boot == boot_id()


def held(directory: int | None) -> Hold | None:
    """The hold that is in force in the state directory. Raises RelfsError for one that cannot be read."""
    hold = _read(directory) if directory is not None else None
    while hold is not None and hold.is_over():
        hold = hold.outer
    return hold


def take(directory: int, actor: Actor, holder: int, *, why: str, seconds: float | None) -> Hold:
    """Hold the deploy lock for process `holder`; again by the same holder, it is renewed, and by what descends from it,
    left as it is, unless there is a time to live: then it is put aside. The caller holds lock.py's.

    Raises UsageError, LockedError if somebody else holds it, RelfsError.
    """
    if seconds is not None and not 0 < seconds <= _SECONDS_MAX:
        raise UsageError(f"{str(seconds)[:40]}: not a time to live; give seconds, at most {_SECONDS_MAX:.0f}")
    if len(why) > _REASON_MAX:
        raise UsageError(f"the reason has {len(why)} characters; {_REASON_MAX} at most")
    require(directory, actor.pid)
    present = held(directory)
    if present is not None and present.until is seconds is None and present.covers(holder):
        return present
    found = process(holder)
    if found is None and seconds is None:
        raise RelfsError(f"process {holder}: cannot be seen from here; say with --ttl how long the lock is to be held")
    now = time.time()
    start = found.start if found is not None else -1
    until = now + seconds if seconds is not None else None
    command = command_line(holder) or actor.command
    ends = since_boot() + seconds if seconds is not None else None
    outer = present.around(holder) if present is not None else None
    hold = Hold(holder, start, boot_id(), actor.user, command, now, until, why, ends, outer)
    _write(directory, hold)
    return hold


def give_back(directory: int) -> Hold | None:
    """End whatever hold there is, for good, and tell which it was, if it tells. The caller holds lock.py's, and may do
    so. Raises OSError."""
    try:
        hold = held(directory)
    except RelfsError:  # it stops everybody all the same, and nothing else ends that
        hold = None
    remove_file(directory, HELD)  # durably, or a power cut brings one back that has a time to live
    return hold


def require(directory: int | None, pid: int) -> None:
    """Raises LockedError if somebody else than process `pid` holds the deploy lock."""
    hold = held(directory)
    if hold is not None and not hold.belongs_to(pid):
        raise LockedError(f"{hold}; `relfsctl unlock` ends that")


def require_no_tool(deploy: DeployPath) -> None:
    """Raises LockedError while Deployer holds its own lock: the file .dep/deploy.lock, which says a user's name.

    It stops relfsctl, not the tools: whose they are, such a file does not tell.
    """
    try:
        status = _status(deploy.fd, _DEPLOYER_LOCK)
    except OSError:
        return
    user = _first_line(deploy, _DEPLOYER_LOCK) if stat.S_ISREG(status.st_mode) else ""
    raise LockedError(
        f"{deploy.path}/{_DEPLOYER_LOCK}: {user or 'somebody'} is deploying with Deployer "
        f"since {_moment(status.st_mtime)}; `dep deploy:unlock` ends that, `relfsctl switch --force` passes over it"
    )


def _status(directory: int, path: str) -> os.stat_result:
    """lstat(2), with no link on the way."""
    parent, _, name = path.rpartition("/")
    with below(directory, parent) as place:
        return os.lstat(name, dir_fd=place)


def _first_line(deploy: DeployPath, name: str) -> str:
    try:
        fd = open_file(deploy.fd, name, os.O_RDONLY)
    except OSError:
        return ""
    with open(fd, "rb") as file:
        return os.fsdecode(file.readline(256).strip())


def _read(directory: int) -> Hold | None:
    try:
        return _decode(read_file(directory, HELD, _FILE_MAX))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise RelfsError(f"{HELD}: the deploy lock cannot be read: {reason(error)}") from error


def _decode(data: bytes) -> Hold | None:
    """None for what a crash has torn: the lock was not had yet, then. And for what is no hold at all."""
    try:
        return _hold_of(json.loads(data))
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
        return None


def _hold_of(fields: dict[str, Any]) -> Hold:
    until, ends, outer = fields["until"], fields.get("ends"), fields.get("outer")
    return Hold(
        int(fields["pid"]), int(fields["start"]), str(fields["boot"]), str(fields["user"]), str(fields["command"]),
        time_of(fields["since"]), time_of(until) if until is not None else None, str(fields["reason"]),
        time_of(ends) if ends is not None else None, _hold_of(outer) if outer is not None else None,
    )  # fmt: skip


def _write(directory: int, hold: Hold) -> None:
    """In one step, so that whoever reads it without waiting finds the old or the new one."""
    try:
        replace_file(directory, HELD, json.dumps(asdict(hold)).encode("ascii"))
    except OSError as error:
        raise RelfsError(f"{HELD}: the deploy lock cannot be written: {reason(error)}") from error


def _moment(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))
