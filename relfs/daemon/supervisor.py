"""The supervisor: keeps a mount alive whoever dies, and never serves a request itself.

It holds the estate (survival/estate.py), has a standby ready, which forks workers, and has the mount asked for an
answer all the time. Only the standard library, no thread, and nothing that blocks: it must answer when others do not.
What it knows beyond the estate is in the ledger, so that another supervisor can go on from there (member.py).

Who is dead
-----------
A worker that has ended is replaced at once. One that is stopped is ended first. One that does not answer is given time:
a little if its event loop does not go round, more if it does (the machine is busy), and most if it waits for a disk,
since the next one would have to wait for that, too.

What nobody can serve is better uncovered: when `_DEATHS_MAX` workers in a row have ended before the mount answered, it
is detached, which lets the real link serve, and that is said in the log, by `relfsctl status`, and by the exit status.
"""

from __future__ import annotations

import logging
import os
import select
import selectors
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from relfs.daemon.background import Answer
from relfs.daemon.command import start
from relfs.daemon.endpoint import remove_socket
from relfs.daemon.gaveup import note_giving_up
from relfs.daemon.member import TICK, bequeath, is_alive, myself
from relfs.daemon.plan import Plan
from relfs.daemon.probe import Probe
from relfs.daemon.service import notify
from relfs.daemon.session import load_session
from relfs.errors import EXIT_FAILED, RelfsError, error_for
from relfs.mountinfo import FSTYPE, mount_at
from relfs.mounts import detach
from relfs.processes import process, state_of
from relfs.survival.channel import Channel, Message, channel_of, pair
from relfs.survival.estate import Estate
from relfs.survival.ledger import Ledger, Who

_log = logging.getLogger(__name__)

_DEATHS_MAX = 8
_BACKOFF_SECONDS = (0.0, 0.0, 0.05, 0.2, 0.5, 1.0)
"""Before the next worker, by how many have ended since the mount last answered."""

_PROBE_SECONDS = 0.5
_STOPPED_SECONDS = 0.2
_HUNG_SECONDS = 1.2
_BUSY_SECONDS = 6.0
_DISK_SECONDS = 10.0
_BEGIN_SECONDS = 30.0
"""How long a worker may take before it serves: the first reads all of a release that is to be sealed."""

_HELLO_SECONDS = 2.0
_JOIN_SECONDS = 1.0
_END_SECONDS = 10.0
_LATE_SECONDS = 0.4
"""If the supervisor itself comes round so much later than it should, nobody else is to blame for being late."""


@dataclass
class _Process:
    """A worker or standby. `channel` is None until it has joined, `who` until it has said hello."""

    role: str
    channel: Channel | None
    who: Who | None
    since: float
    pidfd: int | None = None
    serves: bool = False
    stopped_since: float | None = None


class Supervisor:
    """INVARIANT: `_processes` has at most one process of a role. Everything happens in the one thread."""

    def __init__(self, plan: Plan, estate: Estate, ledger: Ledger, waiting: Answer) -> None:
        self._plan = plan
        self._estate = estate
        self._ledger = ledger
        self._waiting = waiting
        self._selector = selectors.DefaultSelector()
        self._processes: dict[str, _Process] = {}
        self._children: list[subprocess.Popen[bytes]] = []
        self._inbox = channel_of(os.dup(estate["inbox"]))
        self._probe: Probe | None = None
        self._asked: float | None = None
        self._asked_what = ""
        self._expected: str | None = None
        self._answered = time.monotonic()
        self._beat = (0, 0.0)
        self._deaths = 0
        self._not_before = 0.0
        self._served = False
        self._leaving = False
        self._outcome: tuple[int, str] | None = None
        self._turn_due = 0.0

    def run(self) -> int:
        """Keep the mount alive until it is unmounted; the exit status. Raises RelfsError if it cannot be brought up,
        or kept."""
        self._ledger.note("supervisor", myself())
        with _signals(self._selector, self._on_signal):
            self._selector.register(self._inbox, selectors.EVENT_READ, self._hear_inbox)
            self._find_members()
            while self._outcome is None:
                for key, _ in self._selector.select(self._pause()):
                    key.data()
                self._turn()
        self._end()
        status, words = self._outcome
        if words:
            raise error_for(status, words)
        return status

    def adopt_standby(self, child: subprocess.Popen[bytes], channel: Channel) -> None:
        """A standby that was started ahead of time."""
        self._children.append(child)
        self._give_to_standby(child, channel)

    # ---- the turn

    def _pause(self) -> float:
        return max(self._turn_due - time.monotonic(), 0.0)

    def _turn(self) -> None:
        now = time.monotonic()
        self._look_after(now)
        if now < self._turn_due:
            return
        late = self._turn_due and now - self._turn_due > _LATE_SECONDS
        self._turn_due = now + TICK
        self._reap()
        for each in list(self._processes.values()):
            if each.channel is not None:
                with suppress(ConnectionError):
                    each.channel.flush()
        if late:
            self._forgive(now)
        self._watch(now)

    def _look_after(self, now: float) -> None:
        """See to it that there are a standby and a worker."""
        if self._outcome is not None or now < self._not_before:
            return
        standby, worker = self._processes.get("standby"), self._processes.get("worker")
        if standby is None:
            self._start_standby()
        elif worker is None and standby.channel is not None:
            if self._leaving:
                self._detach()
                self._finish(0)
            else:
                self._have_forked(standby)

    def _reap(self) -> None:
        self._children = [each for each in self._children if each.poll() is None]

    # ---- members

    def _find_members(self) -> None:
        """Those that were there before this supervisor."""
        for role in ("standby", "worker"):
            who = self._ledger.who(role)
            if role not in self._processes and who is not None and is_alive(who):
                self._add(_Process(role, None, None, time.monotonic()))
                self._identify(self._processes[role], who)

    def _add(self, each: _Process) -> None:
        self._processes[each.role] = each
        if each.channel is not None:
            self._listen_to(each)

    def _listen_to(self, each: _Process) -> None:
        assert each.channel is not None
        self._selector.register(each.channel, selectors.EVENT_READ, lambda: self._hear(each))

    def _identify(self, each: _Process, who: Who) -> None:
        """Now it is known which process it is."""
        try:
            pidfd = os.pidfd_open(who.pid)
        except OSError:
            self._lose(each)
            return
        found = process(who.pid)
        if found is None or found.start != who.start:
            os.close(pidfd)
            self._lose(each)
            return
        each.who, each.pidfd = who, pidfd
        self._ledger.note(each.role, who)
        self._selector.register(pidfd, selectors.EVENT_READ, lambda: self._lose(each))

    def _lose(self, each: _Process) -> None:
        """It has ended, or is about to."""
        if self._processes.get(each.role) is not each:
            return
        del self._processes[each.role]
        self._ledger.note(each.role, None)
        if each.channel is not None:
            self._drain(each)
            self._selector.unregister(each.channel)
            each.channel.close()
        if each.pidfd is not None:
            self._selector.unregister(each.pidfd)
            os.close(each.pidfd)
        if self._outcome is None and not (self._leaving and each.role == "standby"):
            self._count_death(each)

    def _drain(self, each: _Process) -> None:
        """What it has said before it ended is still there."""
        assert each.channel is not None
        with suppress(BlockingIOError):
            while (message := each.channel.receive()) is not None:
                self._obey(each, message)

    def _count_death(self, each: _Process) -> None:
        pid = each.who.pid if each.who is not None else 0
        _log.warning("the %s (process %d) has ended; another one takes its place", each.role, pid)
        if each.role == "standby" and each.serves:
            return
        self._deaths += 1
        self._asked = None
        if self._deaths >= _DEATHS_MAX:
            self._give_up()
            return
        pause = _BACKOFF_SECONDS[min(self._deaths, len(_BACKOFF_SECONDS)) - 1]
        self._not_before = time.monotonic() + pause

    def _end_process(self, each: _Process, why: str) -> None:
        """Kill it. What it was doing in the kernel ends before anything else of it is done, so nobody waits for
        that."""
        pid = each.who.pid if each.who is not None else 0
        _log.warning("the %s (process %d) %s; it is ended", each.role, pid, why)
        if each.pidfd is not None:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(each.pidfd, signal.SIGKILL)
        self._lose(each)

    # ---- standby

    def _start_standby(self) -> None:
        ours, theirs = pair()
        try:
            child = start("standby", str(theirs.fileno()), fds=[theirs.fileno()])
        except OSError as error:
            _log.error("no standby can be started: %s", error)
            self._not_before = time.monotonic() + _BACKOFF_SECONDS[-1]
            ours.close()
            return
        finally:
            theirs.close()
        self._children.append(child)
        self._give_to_standby(child, ours)

    def _give_to_standby(self, child: subprocess.Popen[bytes], channel: Channel) -> None:
        each = _Process("standby", channel, None, time.monotonic())
        self._add(each)
        found = process(child.pid)
        self._identify(each, Who(child.pid, found.start if found is not None else 0))
        bequeath(self._estate, channel)

    def _have_forked(self, standby: _Process) -> None:
        """Have the standby fork a worker. It does so when it has taken in all that it was sent before."""
        assert standby.channel is not None
        ours, theirs = pair()
        self._beat = (self._ledger.beat.value, time.monotonic())
        try:
            standby.channel.send("fork", theirs.fileno(), adopting=self._served or bool(self._ledger.reply.load()))
        except ConnectionError:
            ours.close()
            return
        finally:
            theirs.close()
        self._add(_Process("worker", ours, None, time.monotonic()))

    # ---- listening

    def _hear_inbox(self) -> None:
        """A member whose supervisor has died introduces itself."""
        with suppress(BlockingIOError):
            message = self._inbox.receive()
            if message is None or message.kind != "join" or len(message.fds) != 1:
                return
            who = Who(message.values["pid"], message.values["start"])
            self._join(str(message.values["role"]), who, channel_of(message.fds[0]))

    def _join(self, role: str, who: Who, channel: Channel) -> None:
        each = self._processes.get(role)
        if each is None and is_alive(who):
            each = _Process(role, None, None, time.monotonic())
            self._add(each)
            self._identify(each, who)
        if each is None or each.who != who or not is_alive(who):
            channel.close()
            self._end_stray(who)
            return
        if each.channel is not None:
            self._selector.unregister(each.channel)
            each.channel.close()
        each.channel = channel
        each.serves = True
        self._listen_to(each)
        with suppress(ConnectionError):
            channel.send("welcome")

    def _end_stray(self, who: Who) -> None:
        """A worker that was forked for a supervisor that died before it heard of it must not serve beside another one;
        what it had read is asked for again."""
        if is_alive(who):
            with suppress(ProcessLookupError):
                os.kill(who.pid, signal.SIGKILL)
        worker = self._processes.get("worker")
        if worker is not None and worker.channel is not None:
            with suppress(ConnectionError):
                worker.channel.send("resend")

    def _hear(self, each: _Process) -> None:
        if each.channel is None or self._processes.get(each.role) is not each:
            return
        try:
            while (message := each.channel.receive()) is not None:
                self._obey(each, message)
                if self._processes.get(each.role) is not each:
                    return
        except BlockingIOError:
            return
        self._lose_tie(each)

    def _lose_tie(self, each: _Process) -> None:
        """It has closed its end: it is ending, or was never there."""
        if each.pidfd is not None and each.who is not None and is_alive(each.who):
            self._selector.unregister(each.channel)  # type: ignore[arg-type]
            assert each.channel is not None
            each.channel.close()
            each.channel = None
            each.since = time.monotonic()
        else:
            self._lose(each)

    def _obey(self, each: _Process, message: Message) -> None:
        values = message.values
        if message.kind == "keep" and len(message.fds) == 1:
            self._keep(each, str(values["name"]), message.fds[0])
            return
        message.close()
        if message.kind == "drop":
            self._estate.drop(str(values["name"]))
            self._pass_on(each, "drop", name=values["name"])
        elif message.kind == "hello":
            self._identify(each, Who(values["pid"], values["start"]))
        elif message.kind == "serving":
            self._expected = values["current"]
            self._expect_answer(each)
        elif message.kind == "ready":
            each.serves = True
        elif message.kind == "leaving":
            self._leaving = True
        elif message.kind == "ended":
            self._finish(values["status"], values["words"])

    def _keep(self, each: _Process, name: str, fd: int) -> None:
        self._estate.put(name, fd)
        self._pass_on(each, "keep", fd, name=name)

    def _pass_on(self, origin: _Process, kind: str, *fds: int, **values: object) -> None:
        """The standby holds what the supervisor does."""
        standby = self._processes.get("standby")
        if standby is None or standby is origin or standby.channel is None:
            return
        with suppress(ConnectionError):
            standby.channel.send(kind, *fds, **values)

    # ---- asking the mount

    def _expect_answer(self, worker: _Process) -> None:
        """A worker says that it serves: does it? The first is asked what `current` says, which must be as expected."""
        worker.serves = True
        self._asked = None
        self._ask("status" if self._served or self._expected is None else "current")

    def _ask(self, what: str) -> None:
        if self._probe is None:
            self._probe = Probe(self._plan.mountpoint)
            self._selector.register(self._probe, selectors.EVENT_READ, self._hear_probe)
        try:
            self._probe.ask(what)
        except OSError:
            self._end_probe()
            return
        self._asked, self._asked_what = time.monotonic(), what

    def _end_probe(self) -> None:
        if self._probe is not None:
            self._selector.unregister(self._probe)
            self._probe.close()
            self._probe = None
        self._asked = None

    def _hear_probe(self) -> None:
        assert self._probe is not None
        try:
            verdict, said = self._probe.answer()
        except BlockingIOError:
            return
        except OSError:
            self._end_probe()
            return
        self._asked = None
        self._answered = time.monotonic()
        if not self._served:
            self._judge_first(verdict, said)
        elif verdict == "ok":
            self._deaths = 0

    def _judge_first(self, verdict: str, said: str) -> None:
        where = self._plan.mountpoint
        if verdict == "error":
            self._fail(f"{where}: was mounted but answers: {said}")
        elif self._asked_what == "current" and said != self._expected:
            self._fail(f"{where}: was mounted but current leads to {said}")
        else:
            self._deaths = 0
            self._begin()

    def _begin(self) -> None:
        self._served = True
        notify("READY=1", f"STATUS={self._plan.mountpoint} is mounted", f"MAINPID={os.getpid()}")
        self._waiting.ready()

    def go_on(self) -> None:
        """The mount was served before this supervisor came."""
        self._served = True
        notify(f"MAINPID={os.getpid()}")

    # ---- watching

    def _watch(self, now: float) -> None:
        for each in list(self._processes.values()):
            if self._is_stopped(each, now):
                self._end_process(each, "is stopped")
            elif each.who is None and now - each.since > _HELLO_SECONDS and each.role == "worker":
                self._lose(each)
                standby = self._processes.get("standby")
                if standby is not None:
                    self._end_process(standby, "does not fork")
            elif each.channel is None and now - each.since > _JOIN_SECONDS:
                self._end_process(each, "does not answer the supervisor")
        worker = self._processes.get("worker")
        if worker is not None and worker.who is not None and not self._leaving:
            self._watch_worker(worker, now)

    def _is_stopped(self, each: _Process, now: float) -> bool:
        if each.who is None or state_of(each.who.pid) != "T":
            each.stopped_since = None
            return False
        each.stopped_since = each.stopped_since or now
        return now - each.stopped_since >= _STOPPED_SECONDS

    def _watch_worker(self, worker: _Process, now: float) -> None:
        if not worker.serves:
            if now - worker.since > _BEGIN_SECONDS:
                self._end_process(worker, "does not begin to serve")
            return
        if self._asked is None:
            if now - self._answered > _PROBE_SECONDS:
                self._ask("status")
            return
        if now - self._asked > self._allowed(worker, now):
            self._end_process(worker, "does not answer")

    def _allowed(self, worker: _Process, now: float) -> float:
        """How many seconds it may take to answer, as it seems to be."""
        assert worker.who is not None
        beat = self._ledger.beat.value
        if beat != self._beat[0]:
            self._beat = (beat, now)
        if state_of(worker.who.pid) == "D":
            return _DISK_SECONDS
        return _BUSY_SECONDS if now - self._beat[1] < _HUNG_SECONDS else _HUNG_SECONDS

    def _forgive(self, now: float) -> None:
        """Nobody was asked while the machine stood still."""
        self._beat = (self._beat[0], now)
        if self._asked is not None:
            self._asked = now
        for each in self._processes.values():
            each.since = now
            each.stopped_since = None

    # ---- the end

    def _on_signal(self) -> None:
        worker = self._processes.get("worker")
        self._leaving = True
        if worker is not None and worker.channel is not None:
            with suppress(ConnectionError):
                worker.channel.send("leave")
                return
        self._detach()
        self._finish(0 if self._served else EXIT_FAILED)

    def _fail(self, words: str) -> None:
        self._detach()
        self._finish(EXIT_FAILED, words)

    def _give_up(self) -> None:
        words = (
            f"{self._plan.mountpoint}: {self._deaths} workers in a row have ended without the mount answering; it was "
            "detached, and the real link serves"
        )
        _log.critical("%s", words)
        self._detach()
        note_giving_up(self._estate["state"], words)
        self._finish(EXIT_FAILED, words)

    def _finish(self, status: int, words: str = "") -> None:
        if self._outcome is None:
            self._outcome = (status, words)

    def _detach(self) -> None:
        """Take our mount away, if it is there."""
        number = self._ledger.mounted
        found = mount_at(self._plan.mountpoint)
        if found is None or found.fstype != FSTYPE or (number and found.id != number):
            return
        try:
            detach(self._plan.mountpoint)
        except RelfsError as error:
            _log.error("%s", error)

    def _end(self) -> None:
        """Let everybody else end, and all that is held go."""
        notify("STOPPING=1")
        self._end_probe()
        deadline = time.monotonic() + _END_SECONDS
        for each in self._processes.values():
            if each.channel is not None:
                with suppress(ConnectionError):
                    each.channel.send("end")
        for each in self._processes.values():
            if each.pidfd is not None and not _has_ended(each.pidfd, deadline - time.monotonic()):
                signal.pidfd_send_signal(each.pidfd, signal.SIGKILL)
        guards = [fd for fd in map(_pidfd_of, load_session(self._ledger).guards) if fd is not None]
        remove_socket(self._estate["state"])
        for name, _ in self._estate:
            if name != "lock":
                self._estate.drop(name)
        for fd in guards:
            _has_ended(fd, max(deadline - time.monotonic(), 0))
            os.close(fd)
        self._estate.close()


def _has_ended(pidfd: int, seconds: float) -> bool:
    return bool(select.select([pidfd], [], [], max(seconds, 0))[0])


def _pidfd_of(who: Who) -> int | None:
    try:
        return os.pidfd_open(who.pid) if is_alive(who) else None
    except OSError:
        return None


class _signals:  # noqa: N801 (a context manager, named like a function)
    """While inside, signals that ask for the end are noticed by the selector. A terminal's are not stopped at: the
    readers of the mount would have to wait."""

    def __init__(self, selector: selectors.BaseSelector, on_signal: Callable[[], None]) -> None:
        self._selector = selector
        self._on_signal = on_signal
        self._reading, self._writing = os.pipe()
        os.set_blocking(self._reading, False)
        os.set_blocking(self._writing, False)

    def __enter__(self) -> None:
        self._wakeup = signal.set_wakeup_fd(self._writing, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN or number == signal.SIGTERM:
                signal.signal(number, lambda _number, _frame: None)
        for number in (signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU):
            signal.signal(number, signal.SIG_IGN)
        self._selector.register(self._reading, selectors.EVENT_READ, self._noticed)

    def _noticed(self) -> None:
        for _ in os.read(self._reading, 64):
            self._on_signal()

    def __exit__(self, *_: object) -> None:
        signal.set_wakeup_fd(self._wakeup)
        self._selector.unregister(self._reading)
