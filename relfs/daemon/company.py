"""The processes of a mount, as its supervisor knows them: who they are, what they say, and that they have ended.

What is to be done about it is the supervisor's business.

What is said is never lost
--------------------------
Some facts. Whoever has lost a supervisor leaves a tie to itself in the inbox, and speaks into it, before there is the
next supervisor (member.py). It may be dead when that comes; what it has said is in the socket's queue all the same. And
a worker may have joined already, and say what it opens, when the standby has not.

The choice. The inbox is emptied before anything else is done, and who is dead by then is heard out: the next worker is
forked only after the standby was told what the last one had open. What a standby cannot be told yet, it is told when it
joins, before it is asked to fork.
"""

from __future__ import annotations

import errno
import logging
import os
import selectors
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field

from relfs.daemon.member import Telling, is_alive, is_working, who_is
from relfs.errors import reason
from relfs.processes import state_of
from relfs.survival.channel import Channel, Message, channel_of, until_readable
from relfs.survival.estate import Estate
from relfs.survival.ledger import Ledger, Who

_log = logging.getLogger(__name__)

STANDBY = "standby"
WORKER = "worker"
NEXT = "next"
"""The standby of other code, while that takes over (reloading.py)."""

_STOPPED_SECONDS = 0.2


@dataclass
class Comrade:
    """A worker, a standby, or the next standby. `channel` is None until it has joined, `who` until it has said hello;
    `since` is when it last was new to this supervisor, or said that it is ready (monotonic seconds); `kept` is what it
    has put into the estate since it joined; `told` tells a standby of the estate, once it has joined; `missed` are
    names in the estate that have changed before."""

    role: str
    channel: Channel | None
    who: Who | None = None
    since: float = field(default_factory=time.monotonic)
    pidfd: int | None = None
    serves: bool = False
    stopped_since: float | None = None
    kept: set[str] = field(default_factory=set)
    told: Telling | None = None
    missed: set[str] = field(default_factory=set)

    @property
    def pid(self) -> int:
        """0 as long as it is not known."""
        return self.who.pid if self.who is not None else 0

    @property
    def can_fork(self) -> bool:
        """Whether a standby would fork a worker that has all. One that is new takes in all before it does."""
        return self.told is not None and (not self.serves or self._has_all())

    def tell(self, kind: str, *fds: int, **values: object) -> bool:
        """False: it is not there to be told."""
        if self.channel is None:
            return False
        try:
            self.channel.send(kind, *fds, **values)
        except ConnectionError:
            return False  # that it has ended is noticed elsewhere
        return True

    def flush(self) -> None:
        """Send what there was no room for."""
        if self.told is not None:
            self._has_all()
        elif self.channel is not None:
            with suppress(ConnectionError):
                self.channel.flush()

    def _has_all(self) -> bool:
        """Whether a standby has been sent all, after this."""
        with suppress(ConnectionError):  # that it has ended is noticed elsewhere
            return self.told is not None and self.told.go_on()
        return False

    def kill(self) -> None:
        if self.pidfd is not None:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)

    def has_ended(self, seconds: float) -> bool:
        """Whether it ends within that time."""
        return self.pidfd is None or until_readable(self.pidfd, max(seconds, 0))

    def is_stopped(self, now: float) -> bool:
        """Whether it has been for a while (SIGSTOP). A debugger's stop is none."""
        if self.who is None or state_of(self.who.pid) != "T":
            self.stopped_since = None
            return False
        self.stopped_since = self.stopped_since or now
        return now - self.stopped_since >= _STOPPED_SECONDS


class Company:
    """INVARIANT: there is at most one process of a role, and the ledger says which, but for NEXT."""

    def __init__(
        self,
        estate: Estate,
        ledger: Ledger,
        selector: selectors.BaseSelector,
        on_message: Callable[[Comrade, Message], None],
        on_end: Callable[[Comrade], None],
    ) -> None:
        """`on_message` is called with what somebody says, `on_end` with who has ended, and is not there any more."""
        self._estate = estate
        self._ledger = ledger
        self._selector = selector
        self._inbox = channel_of(os.dup(estate["inbox"]))
        self._on_message = on_message
        self._on_end = on_end
        self._members: dict[str, Comrade] = {}
        selector.register(self._inbox, selectors.EVENT_READ, self._hear_inbox)

    def __iter__(self) -> Iterator[Comrade]:
        return iter(list(self._members.values()))

    def get(self, role: str) -> Comrade | None:
        return self._members.get(role)

    def has(self, each: Comrade) -> bool:
        return self._members.get(each.role) is each

    def pass_on(self, origin: Comrade, name: str) -> None:
        """What has that name in the estate is another one now, or gone: the standby holds what the supervisor does."""
        for role in (STANDBY, NEXT):
            standby = self.get(role)
            if standby is None or standby is origin:
                continue
            if standby.told is None:
                standby.missed.add(name)
            else:
                standby.told.add(name)
                standby.flush()

    # ---- coming

    def find(self) -> None:
        """Take in those that were there before this supervisor. They join by themselves."""
        for role in (STANDBY, WORKER):
            who = self._ledger.who(role)
            if role not in self._members and who is not None and is_working(who):
                self.add(Comrade(role, None), who)

    def add(self, each: Comrade, who: Who | None = None) -> None:
        """`who` it is, if that is known."""
        self._members[each.role] = each
        if each.channel is not None:
            self._listen_to(each, each.channel)
        if who is not None:
            self.identify(each, who)

    def identify(self, each: Comrade, who: Who) -> None:
        """Now it is known which process it is."""
        try:
            pidfd = os.pidfd_open(who.pid)
        except OSError as error:
            if error.errno != errno.ESRCH:
                _end_unwatched(each.role, who, error)
            self.lose(each)
            return
        if who.start and who_is(who.pid) != who:
            os.close(pidfd)
            self.lose(each)
            return
        each.who, each.pidfd = who, pidfd
        self._note(each.role, who)
        self._selector.register(pidfd, selectors.EVENT_READ, lambda: self.lose(each))

    def promote(self) -> None:
        """The next standby is the standby from now on."""
        each = self._members.pop(NEXT)
        each.role = STANDBY
        self._members[STANDBY] = each
        self._note(STANDBY, each.who)

    def _note(self, role: str, who: Who | None) -> None:
        if role != NEXT:
            self._ledger.note(role, who)

    # ---- going

    def lose(self, each: Comrade) -> None:
        """It has ended, or is about to. What it has said before is still there."""
        if each.channel is None:
            self._hear_inbox()
        if not self.has(each):
            return
        del self._members[each.role]
        self._note(each.role, None)
        self._hear_out(each)
        self._let_go(each)
        self._on_end(each)

    def dismiss(self, each: Comrade | None) -> None:
        """It is not needed any more, which is no death."""
        if each is not None and self._members.pop(each.role, None) is not None:
            each.kill()
            self._let_go(each)

    def close(self) -> None:
        """Hear nobody any more, and keep nothing. What was said, and not heard, may carry descriptors, which are
        open for as long as it waits there (unix(7), SCM_RIGHTS)."""
        for each in self:
            self._let_go(each)
        self._members.clear()
        self._selector.unregister(self._inbox)
        self._inbox.close()

    def _let_go(self, each: Comrade) -> None:
        self._cut_tie(each)
        if each.pidfd is not None:
            self._selector.unregister(each.pidfd)
            os.close(each.pidfd)
            each.pidfd = None

    def _cut_tie(self, each: Comrade) -> None:
        if each.channel is not None:
            self._selector.unregister(each.channel)
            each.channel.close()
            each.missed |= each.told.left if each.told is not None else set()
            each.channel = each.told = None

    # ---- hearing

    def _listen_to(self, each: Comrade, channel: Channel) -> None:
        self._selector.register(channel, selectors.EVENT_READ, lambda: self._hear(each))

    def _hear(self, each: Comrade) -> None:
        try:
            while self.has(each) and each.channel is not None:
                message = each.channel.receive()
                if message is None:
                    self._lose_tie(each)
                    return
                self._on_message(each, message)
        except BlockingIOError:
            pass

    def _hear_out(self, each: Comrade) -> None:
        with suppress(BlockingIOError):
            while each.channel is not None and (message := each.channel.receive()) is not None:
                self._on_message(each, message)

    def _lose_tie(self, each: Comrade) -> None:
        """It has closed its end: it is ending, or was never there; or it is about to join again. One that ends is not
        waited for: a thread of it may be telling the kernel something, which waits for an answer of the next worker."""
        if each.pidfd is not None and is_working(each.who):
            self._cut_tie(each)
            each.since = time.monotonic()
        else:
            self.lose(each)

    def _hear_inbox(self) -> None:
        """Members whose supervisor has died introduce themselves."""
        with suppress(BlockingIOError):
            while (message := self._inbox.receive()) is not None:
                self._admit(message)

    def _admit(self, message: Message) -> None:
        if message.kind == "join" and len(message.fds) == 1:
            who = Who(message.values["pid"], message.values["start"])
            self._join(str(message.values["role"]), who, channel_of(message.fds[0]))

    def _join(self, role: str, who: Who, channel: Channel) -> None:
        if self._members.get(role) is None and is_alive(who):
            self.add(Comrade(role, None), who)
        each = self._members.get(role)
        if each is None:
            self._hear_out(Comrade(role, channel, who))
            channel.close()
        elif each.who != who:
            channel.close()
            self._end_stray(role, who)
        else:
            self._tie(each, channel)

    def _tie(self, each: Comrade, channel: Channel) -> None:
        """It may have ended meanwhile: then lose() hears it out."""
        self._cut_tie(each)
        each.channel, each.serves, each.kept = channel, True, set()
        self._listen_to(each, channel)
        each.tell("welcome")
        if each.role in (STANDBY, NEXT):
            each.told, each.missed = Telling(self._estate, channel, names=each.missed), set()
        each.flush()

    def _end_stray(self, role: str, who: Who) -> None:
        """A worker that was forked for a supervisor that died before it heard of it must not serve beside another one.
        Both are ended: what a dead worker owes is asked for when the next one takes over, and never else."""
        if not is_alive(who):
            return
        with suppress(ProcessLookupError):
            os.kill(who.pid, signal.SIGKILL)
        worker = self._members.get(WORKER)
        if role == WORKER and worker is not None:
            worker.kill()


def _end_unwatched(role: str, who: Who, error: OSError) -> None:
    """Nobody would learn of its end, and another one must not serve beside it."""
    _log.warning("the %s (process %d) cannot be watched over, and is ended: %s", role, who.pid, reason(error))
    with suppress(ProcessLookupError):
        os.kill(who.pid, signal.SIGKILL)
