"""A worker or standby, as a member of the company that keeps one mount alive: its tie to the supervisor, and what it
does when that dies.

Succession
----------
Some facts. The supervisor holds what the next worker needs; so does the standby, which is told of everything that the
supervisor is. A lock of flock(2) belongs to an open file, and is gone with the last process that has it open; taking it
is a system call that only one of many can succeed in. What was sent into a socket pair lives there as long as any
process holds the pair.

The choice. Whoever has the lock of the baton is the supervisor; it gets the lock from whoever starts it, so that there
is no moment in which two can have it. A member whose tie is cut leaves a new one in the inbox, a pair that everybody
holds, where whoever is supervisor next finds it, and tries the lock at every turn until somebody has answered. The one
that gets it starts a supervisor, and gives it all that it holds itself. The standby holds all; the worker knows only
what was open when it was made, and what it opened since, which is all that matters too: but it has readers to serve, so
it comes in only when the standby is dead, or has had its chance.

Where there is no process or descriptor to be had for it, they go on as they are, and try again, at first at every turn
and then less often.

A supervisor that is stopped (SIGSTOP, a debugger) watches over nobody. Its members cannot make it go on, so they end
it.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import math
import os
import signal
import subprocess
from collections.abc import Iterable, Iterator
from contextlib import suppress

from relfs.daemon.command import start
from relfs.daemon.complaint import Complaint
from relfs.errors import reason
from relfs.processes import is_exiting, process, shows_us, state_of
from relfs.survival.channel import Channel, Message, channel_of, pair
from relfs.survival.estate import Estate
from relfs.survival.ledger import Ledger, Who

TICK = 0.1
"""Seconds between two turns of a member, or of the supervisor."""

_PATIENCE = {"standby": 0, "worker": 10}
"""Turns that a member whose tie was cut leaves to others."""

_STOPPED_TURNS = 4
_REST_TURNS = 50
"""The most between two attempts to start a supervisor. The rest is twice as long after each, until one has answered."""

_log = logging.getLogger(__name__)


def who_is(pid: int) -> Who:
    """Process `pid`, known by its start time, too; by its number alone (0) where /proc is not ours, or it is gone."""
    found = process(pid) if shows_us() else None
    return Who(pid, found.start if found is not None else 0)


def myself() -> Who:
    """This process."""
    return who_is(os.getpid())


def is_alive(who: Who | None) -> bool:
    """Whether that very process still runs."""
    if who is None or not who.start:
        return who is not None and _exists(who.pid)
    found = process(who.pid)
    return found is not None and found.start == who.start and found.alive


def has_ended(who: Who) -> bool:
    """Whether it is known that it does not run any more: is_alive() takes who is hidden (proc(5), hidepid) for gone."""
    found = process(who.pid) if who.start else None
    if found is None:
        return not _exists(who.pid)
    return found.start != who.start or not found.alive


def is_working(who: Who | None) -> bool:
    """Whether it runs, and is not about to end: a thread that the kernel keeps may be all that is left of it."""
    return who is not None and is_alive(who) and not (who.start and is_exiting(who.pid))


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


class Member:
    """The tie of this process to its supervisor. Contains no `await`, and nothing that blocks."""

    def __init__(self, role: str, estate: Estate, ledger: Ledger, channel: Channel) -> None:
        self.estate = estate
        self.ledger = ledger
        self.who = myself()
        self._role = role
        self._channel = channel
        self._tied = True
        self._welcome = True
        self._turns = 0
        self._rest = 0  # turns until a supervisor may be started
        self._next_rest = 1
        self._complaint = Complaint(_log)
        self._stopped: dict[int, int] = {}  # by pid, for how many turns
        self._telling = Telling(estate, channel, names=())
        self._bequest: Telling | None = None
        self._started: list[subprocess.Popen[bytes]] = []

    def fileno(self) -> int:
        """What becomes readable when the supervisor says something; another one after the tie was cut. While there is
        no tie, the outbox, by which nobody ever says anything."""
        return self._channel.fileno() if self._tied else self.estate["outbox"]

    @property
    def pause(self) -> float:
        """For how many seconds fileno() may be waited for before it is to be asked for again."""
        return math.inf if self._tied else TICK

    # ---- the estate: fuse/handles.py's Keeper

    def __getitem__(self, name: str) -> int:
        return self.estate[name]

    def __contains__(self, name: str) -> bool:
        return name in self.estate

    def __iter__(self) -> Iterator[tuple[str, int]]:
        return iter(self.estate)

    def put(self, name: str, fd: int) -> None:
        """Hold `fd`, and let the others hold it."""
        self.estate.put(name, fd)
        self._tell_of(name)

    def drop(self, name: str) -> None:
        """Let go of it, and let the others do so."""
        if name in self.estate:
            self.estate.drop(name)
            self._tell_of(name)

    def _tell_of(self, name: str) -> None:
        self._telling.add(name)
        self._go_on_telling()

    # ---- the tie

    def tell(self, kind: str, *fds: int, **values: object) -> None:
        """Tell the supervisor, or the one to come: then what is held is told anyway."""
        try:
            self._channel.send(kind, *fds, **values)
        except ConnectionError:
            pass  # hear() finds out, and does what is to be done

    def hear(self) -> list[Message]:
        """What the supervisor has said. If the tie is cut, a new one is made."""
        said: list[Message] = []
        with suppress(BlockingIOError):
            while self._tied:
                message = self._channel.receive()
                if message is None:
                    self._lose()
                    break
                if message.kind == "welcome":
                    self._be_welcome()
                else:
                    said.append(message)
        return said

    def _be_welcome(self) -> None:
        self._welcome = True
        self._rest, self._next_rest = 0, 1
        self._complaint.end(f"the {self._role} has a supervisor again")

    def _lose(self) -> None:
        """The supervisor is gone."""
        self._channel.close()
        self._tied = self._welcome = False
        self._turns = 0
        self._tie_anew()

    def _tie_anew(self) -> None:
        """Tell whoever comes next who we are, and what we hold; if there is no descriptor for that, the next turn tries
        again."""
        try:
            self._channel = self._join()
        except OSError as error:
            self._complaint.say(f"the next supervisor cannot be told of the {self._role}: {reason(error)}")
            return
        self._tied = True
        if self._role == "worker":
            self._telling = Telling(self.estate, self._channel, last="kept")
            self._go_on_telling()

    def _join(self) -> Channel:
        """Leave one end of a new tie in the inbox; the other. Raises OSError."""
        ours, theirs = pair()
        outbox = channel_of(self.estate["outbox"])
        who = self.who
        try:
            if not outbox.offer("join", theirs.fileno(), role=self._role, pid=who.pid, start=who.start):
                raise OSError(errno.ETOOMANYREFS, os.strerror(errno.ETOOMANYREFS))
        except OSError:
            ours.close()
            raise
        finally:
            outbox.detach()
            theirs.close()
        return ours

    def _go_on_telling(self) -> None:
        with suppress(ConnectionError):  # hear() finds out
            self._telling.go_on()

    def turn(self) -> None:
        """To be called every TICK seconds."""
        if not self._tied:
            self._tie_anew()
        with suppress(ConnectionError):
            self._channel.flush()
        self._go_on_telling()
        self._started = [each for each in self._started if each.poll() is None]
        self._pass_on()
        self._end_stopped()
        if self._welcome:
            return
        self._turns += 1
        self._rest = max(self._rest - 1, 0)
        if self._bequest is None and self._turns > self._patience and not self._rest:
            self._succeed()

    @property
    def _patience(self) -> int:
        return _PATIENCE[self._role] if is_alive(self.ledger.who("standby")) else 0

    def _end_stopped(self) -> None:
        """End a supervisor that is stopped, also one that does not know us yet: it has the baton, and keeps it."""
        who = self.ledger.who("supervisor")
        pids = {each.pid for each in self._started} | ({who.pid} if who is not None and is_alive(who) else set())
        stopped = {pid for pid in pids - {os.getpid()} if state_of(pid) in ("T", "t")}
        self._stopped = {pid: self._stopped.get(pid, 0) + 1 for pid in stopped}
        for pid in [each for each, turns in self._stopped.items() if turns >= _STOPPED_TURNS]:
            _log.warning("the supervisor (process %d) is stopped; another one takes its place", pid)
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    # ---- succession

    def _succeed(self) -> None:
        """Start a supervisor if there is none."""
        try:
            baton = take_baton(self.estate["baton"])
            if baton is None:
                return
            tie = self._start_supervisor(baton)
        except OSError as error:
            self._complaint.say(f"no supervisor can be started: {reason(error)}")
        else:
            self._bequest = Telling(self.estate, tie, last="all")
            self._pass_on()
        self._rest, self._next_rest = self._next_rest, min(2 * self._next_rest, _REST_TURNS)

    def _start_supervisor(self, baton: int) -> Channel:
        """The tie by which it gets the estate. The baton is its own from now on. Raises OSError."""
        try:
            ours, theirs = pair()
            try:
                started = start("succeed", str(theirs.fileno()), str(baton), fds=[theirs.fileno(), baton])
            except OSError:
                ours.close()
                raise
            finally:
                theirs.close()
        finally:
            os.close(baton)
        self._started.append(started)
        return ours

    def _pass_on(self) -> None:
        """Give the supervisor that was started what it has room for."""
        if self._bequest is None:
            return
        try:
            if not self._bequest.go_on():
                return
        except ConnectionError:
            pass  # it has ended already; the next turn tries again
        self._bequest.close()
        self._bequest = None

    def leave(self) -> None:
        """Be no member any more: for a forked copy that is something else."""
        self._channel.close()


class Telling:
    """What is to be told of an estate, as fast as there is room for it: all that is in it, and what changes. It goes by
    names, and holds no descriptor: of what changes several times, the other side hears what it is when its turn comes;
    and of a side that does not listen, nobody holds copies, which may be more than a process may have."""

    def __init__(
        self, estate: Estate, channel: Channel, *, names: Iterable[str] | None = None, last: str | None = None
    ) -> None:
        """`names` are those to begin with, by default all; `last` is the message that says that they are told."""
        self._estate = estate
        self._channel = channel
        self._names = dict.fromkeys(names if names is not None else (name for name, _ in estate))
        self._last = last

    def add(self, name: str) -> None:
        """What has that name is another one now, or gone."""
        self._names[name] = None

    @property
    def left(self) -> set[str]:
        """What is still to be told of."""
        return set(self._names)

    def go_on(self) -> bool:
        """Whether all is told. Raises ConnectionError."""
        while self._names:
            name = next(iter(self._names))
            if not self._tell(name):
                return False
            del self._names[name]
        if self._last is not None and not self._channel.offer(self._last):
            return False
        self._last = None
        return True

    def _tell(self, name: str) -> bool:
        if name in self._estate:
            return self._channel.offer("keep", self._estate[name], name=name)
        return self._channel.offer("drop", name=name)

    def close(self) -> None:
        self._channel.close()


def take_baton(baton: int) -> int | None:
    """The baton, locked, as a descriptor of its own; None if somebody is the supervisor. Raises OSError."""
    own = os.open(f"/proc/self/fd/{baton}", os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.flock(own, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(own)
        if isinstance(error, BlockingIOError):
            return None
        raise
    return own
