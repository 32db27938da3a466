"""The supervisor: keeps a mount alive whoever dies, and never serves a request itself.

It holds the estate (survival/estate.py), has a standby ready, which forks workers, and has the mount asked for an
answer all the time. Only the standard library, no thread, and nothing that blocks: it must answer when others do not.
What it knows beyond the estate is in the ledger, so that another supervisor can go on from there (member.py).

Who is dead
-----------
A worker that has ended is replaced at once. One that is stopped is ended first, and so is one that does not answer
(watchdog.py).

What nobody can serve is better uncovered: when `_DEATHS_MAX` workers in a row have ended before the mount answered, it
is detached, which lets the real link serve, and that is said in the log, by `relfsctl status`, and by the exit status.
"""

from __future__ import annotations

import json
import logging
import os
import selectors
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

from relfs.daemon.background import Answer
from relfs.daemon.command import ENDING, become, start
from relfs.daemon.endpoint import remove_socket
from relfs.daemon.fdstore import store_of_unit
from relfs.daemon.gaveup import note_giving_up
from relfs.daemon.member import TICK, bequeath, is_alive, myself
from relfs.daemon.plan import Plan
from relfs.daemon.service import Heartbeat, notify
from relfs.daemon.session import load_session
from relfs.daemon.watchdog import Disk, Watchdog
from relfs.errors import EXIT_FAILED, RelfsError, error_for
from relfs.mountinfo import FSTYPE, mount_at
from relfs.mounts import detach
from relfs.processes import process, state_of
from relfs.survival.channel import Channel, Message, channel_of, pair, until_readable
from relfs.survival.estate import Estate, is_fleeting
from relfs.survival.ledger import Ledger, Who

_log = logging.getLogger(__name__)

_DEATHS_MAX = 8
_BACKOFF_SECONDS = (0.0, 0.0, 0.05, 0.2, 0.5, 1.0)
"""Before the next worker, by how many have ended since the mount last answered."""

_STOPPED_SECONDS = 0.2
_BEGIN_SECONDS = 30.0
"""How long a worker may take before it serves: the first reads all of a release that is to be sealed."""

_HELLO_SECONDS = 2.0
_RELOAD_SECONDS = 30.0
_JOIN_SECONDS = 1.0
_END_SECONDS = 10.0
_LATE_SECONDS = 0.4
"""If the supervisor itself comes round so much later than it should, nobody else is to blame for being late."""


@dataclass
class Reload:
    """New code takes over (relfsctl reload), `since` then: first a standby of it, then a worker, then the
    supervisor."""

    since: float
    old_worker: Who | None
    has_retired: bool = False


@dataclass
class _Process:
    """A worker, a standby, or the "next" standby while new code takes over. `channel` is None until it has joined,
    `who` until it has said hello; `kept` is what it has put into the estate since it joined."""

    role: str
    channel: Channel | None
    who: Who | None
    since: float
    pidfd: int | None = None
    serves: bool = False
    stopped_since: float | None = None
    kept: set[str] = field(default_factory=set)


class Supervisor:
    """INVARIANT: `_processes` has at most one process of a role. Everything happens in the one thread."""

    def __init__(self, plan: Plan, estate: Estate, ledger: Ledger, baton: int, waiting: Answer) -> None:
        """`baton` is its locked descriptor; `waiting` is told how it went."""
        self._plan = plan
        self._baton = baton
        self._estate = estate
        self._ledger = ledger
        self._waiting = waiting
        self._selector = selectors.DefaultSelector()
        self._processes: dict[str, _Process] = {}
        self._children: list[subprocess.Popen[bytes]] = []
        self._inbox = channel_of(os.dup(estate["inbox"]))
        self._watchdog = Watchdog(plan.mountpoint, ledger, self._selector, self._on_answer)
        self._disk = Disk(estate["state"], self._selector, self._forgive)
        self._expected: str | None = None
        self._reload: Reload | None = None
        self._deaths = 0
        self._not_before = 0.0
        self._served = False
        self._leaving = False
        self._outcome: tuple[int, str] | None = None
        self._turn_due = 0.0
        self._heartbeat = Heartbeat()
        self._store = store_of_unit()
        self._is_stored = True
        self._is_left = False

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
        if self._is_left:
            return 0
        self._end()
        status, words = self._outcome
        if words:
            raise error_for(status, words)
        return status

    def adopt_standby(self, child: subprocess.Popen[bytes], channel: Channel) -> None:
        """A standby that was started ahead of time."""
        self._children.append(child)
        self._give_to_standby("standby", child, channel)

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
        self._heartbeat.turn(self._watchdog.answered)
        self._store_estate()

    def _look_after(self, now: float) -> None:
        """See to it that there are a standby and a worker."""
        if self._outcome is not None or now < self._not_before:
            return
        standby, worker = self._processes.get("standby"), self._processes.get("worker")
        if self._reload is not None and self._reload.has_retired:
            standby = self._processes.get("next")
        if standby is None:
            self._start_standby("standby")
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
        if each.role != "next":
            self._ledger.note(each.role, who)
        self._selector.register(pidfd, selectors.EVENT_READ, lambda: self._lose(each))

    def _lose(self, each: _Process) -> None:
        """It has ended, or is about to."""
        if self._processes.get(each.role) is not each:
            return
        del self._processes[each.role]
        if each.role != "next":
            self._ledger.note(each.role, None)
        if each.channel is not None:
            self._drain(each)
            self._selector.unregister(each.channel)
            each.channel.close()
        if each.pidfd is not None:
            self._selector.unregister(each.pidfd)
            os.close(each.pidfd)
        if each.role == "next" or (each.role == "worker" and self._reload is not None and self._reload.has_retired):
            self._lose_in_reload(each)
        elif self._outcome is None and not (self._leaving and each.role == "standby"):
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
        self._watchdog.forget()
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

    def _start_standby(self, role: str) -> None:
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
        self._give_to_standby(role, child, ours)

    def _give_to_standby(self, role: str, child: subprocess.Popen[bytes], channel: Channel) -> None:
        each = _Process(role, channel, None, time.monotonic())
        self._add(each)
        found = process(child.pid)
        self._identify(each, Who(child.pid, found.start if found is not None else 0))
        bequeath(self._estate, channel)

    def _have_forked(self, standby: _Process) -> None:
        """Have the standby fork a worker. It does so when it has taken in all that it was sent before."""
        assert standby.channel is not None
        ours, theirs = pair()
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
        each.kept = set()
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
            self._drop(each, str(values["name"]))
        elif message.kind == "kept":
            self._drop_strays(each)
        elif message.kind == "hello":
            self._identify(each, Who(values["pid"], values["start"]))
        elif message.kind == "serving":
            self._expected = values["current"]
            self._expect_answer(each)
        elif message.kind == "ready":
            each.serves = True
            if each.role == "next":
                self._retire_worker()
        elif message.kind == "reload":
            self._begin_reload()
        elif message.kind == "leaving":
            self._leaving = True
        elif message.kind == "ended":
            self._finish(values["status"], values["words"])

    def _keep(self, each: _Process, name: str, fd: int) -> None:
        each.kept.add(name)
        self._estate.put(name, fd)
        self._pass_on(each, "keep", self._estate[name], name=name)
        if not is_fleeting(name):
            self._change_store()

    def _drop(self, each: _Process, name: str) -> None:
        each.kept.discard(name)
        self._estate.drop(name)
        self._pass_on(each, "drop", name=name)

    def _drop_strays(self, worker: _Process) -> None:
        """A worker that has outlived a supervisor has told all that it holds: what it closed meanwhile is not there."""
        for name, _ in self._estate:
            if is_fleeting(name) and name not in worker.kept:
                self._drop(worker, name)

    def _pass_on(self, origin: _Process, kind: str, *fds: int, **values: object) -> None:
        """The standby holds what the supervisor does."""
        for role in ("standby", "next"):
            standby = self._processes.get(role)
            if standby is not None and standby is not origin and standby.channel is not None:
                with suppress(ConnectionError):
                    standby.channel.send(kind, *fds, **values)

    # ---- what outlives even the supervisor

    def _change_store(self) -> None:
        """The estate is not what was stored any more."""
        self._is_stored = self._store is None

    def _store_estate(self) -> None:
        """For the case that everybody dies at once."""
        if self._store is not None and self._served and not self._is_stored:
            self._is_stored = True
            self._store.keep(self._estate, whole=False)

    def _leave_estate(self) -> None:
        """End everybody, and leave the mount to whoever is started next: who asks for something waits for that."""
        assert self._store is not None
        _log.info("%s is left to the next start", self._plan.mountpoint)
        self._finish(0)
        self._reload = None
        self._watchdog.close()
        for each in list(self._processes.values()):
            if each.pidfd is not None:
                with suppress(ProcessLookupError):
                    signal.pidfd_send_signal(each.pidfd, signal.SIGKILL)
                _has_ended(each.pidfd, _END_SECONDS)
            self._lose(each)
        self._is_left = self._store.keep(self._estate, whole=True)
        if not self._is_left:
            self._detach()

    # ---- asking the mount

    def _expect_answer(self, worker: _Process) -> None:
        """A worker says that it serves: does it? The first is asked what `current` says, which must be as expected."""
        worker.serves = True
        self._watchdog.ask("status" if self._served or self._expected is None else "current")

    def _on_answer(self, verdict: str, said: str) -> None:
        if not self._served:
            self._judge_first(verdict, said)
        elif verdict == "ok":
            self._deaths = 0
            if self._reload is not None and self._is_reloaded():
                self._finish_reload()

    def _judge_first(self, verdict: str, said: str) -> None:
        where = self._plan.mountpoint
        if verdict == "error":
            self._fail(f"{where}: was mounted but answers: {said}")
        elif self._expected is not None and said != self._expected:
            self._fail(f"{where}: was mounted but current leads to {said}")
        else:
            self._deaths = 0
            self._begin()

    def _begin(self) -> None:
        self._served = True
        self._change_store()
        self._store_estate()
        notify("READY=1", f"STATUS={self._plan.mountpoint} is mounted", f"MAINPID={os.getpid()}")
        self._waiting.ready()

    def go_on(self) -> None:
        """The mount was served before this supervisor came."""
        self._served = True
        self._change_store()
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
        if self._reload is not None and now - self._reload.since > _RELOAD_SECONDS:
            self._undo_reload("the new code does not come up")

    def _is_stopped(self, each: _Process, now: float) -> bool:
        if each.who is None or state_of(each.who.pid) != "T":
            each.stopped_since = None
            return False
        each.stopped_since = each.stopped_since or now
        return now - each.stopped_since >= _STOPPED_SECONDS

    def _watch_worker(self, worker: _Process, now: float) -> None:
        assert worker.who is not None
        if worker.serves:
            overdue = self._watchdog.is_overdue(worker.who.pid, now)
            late, why = self._watchdog.is_late(now), "does not answer"
        else:
            overdue = now - worker.since > _BEGIN_SECONDS
            late, why = now - worker.since > _HELLO_SECONDS, "does not begin to serve"
        blameless = late and self._disk.may_be_to_blame(now)
        if overdue and not blameless:
            self._end_process(worker, why)

    def _forgive(self, now: float) -> None:
        """Nobody is late if the machine has stood still, or the disk."""
        self._watchdog.forgive(now)
        for each in self._processes.values():
            each.since = now
            each.stopped_since = None

    # ---- new code

    def _begin_reload(self) -> None:
        if self._reload is None and self._served and not self._leaving:
            _log.info("new code is started")
            worker = self._processes.get("worker")
            self._reload = Reload(time.monotonic(), worker.who if worker is not None else None)
            self._start_standby("next")

    def _retire_worker(self) -> None:
        """The standby of the new code is ready: let a worker of it take over. The old standby stays, for its way
        back."""
        worker = self._processes.get("worker")
        if self._reload is None:
            return
        self._reload.has_retired = True
        if worker is not None and worker.channel is not None:
            with suppress(ConnectionError):
                worker.channel.send("retire")

    def _lose_in_reload(self, each: _Process) -> None:
        """The old worker has retired, as it was told; anybody else should not have ended."""
        self._watchdog.forget()
        if self._reload is None:
            return
        if each.role == "next":
            self._undo_reload("its standby has ended")
        elif self._reload.old_worker != each.who:
            self._undo_reload("its worker has ended, without having answered")

    def _is_reloaded(self) -> bool:
        worker = self._processes.get("worker")
        return self._reload is not None and self._reload.has_retired and worker is not None and worker.serves and (
            worker.who != self._reload.old_worker
        )

    def _finish_reload(self) -> None:
        """A worker of the new code has answered: now for this process."""
        old, new = self._processes.pop("standby", None), self._processes.pop("next")
        if old is not None:
            self._dismiss(old)
        new.role = "standby"
        self._processes["standby"] = new
        self._ledger.note("standby", new.who)
        self._note_reload("done")
        self._reload = None
        self._become_new()

    def _undo_reload(self, why: str) -> None:
        """The old standby is still there."""
        _log.warning("the new code does not take over: %s; the old one goes on", why)
        reload, self._reload = self._reload, None
        assert reload is not None
        worker, standby = self._processes.get("worker"), self._processes.get("next")
        if standby is not None:
            self._dismiss(standby)
        if worker is not None and worker.who != reload.old_worker:
            self._dismiss(worker)
        self._note_reload(f"failed: {why}")

    def _note_reload(self, outcome: str) -> None:
        told = json.loads(self._ledger.reload.load() or b"{}")
        self._ledger.reload.store(json.dumps({**told, "outcome": outcome}).encode("ascii"))

    def _dismiss(self, each: _Process) -> None:
        """It is not needed any more, which is no death."""
        self._processes.pop(each.role, None)
        if each.channel is not None:
            self._selector.unregister(each.channel)
            each.channel.close()
        if each.pidfd is not None:
            self._selector.unregister(each.pidfd)
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(each.pidfd, signal.SIGKILL)
            os.close(each.pidfd)

    def _become_new(self) -> None:
        """Run the new code in this process, which somebody may know by its pid. Worker and standby find that their tie
        is cut, and join again (member.py)."""
        self._watchdog.close()
        self._disk.close()
        _log.info("process %d becomes the new supervisor", os.getpid())
        logging.shutdown()
        try:
            become("resume", self._estate, self._baton)
        except OSError as error:
            _log.error("the new supervisor cannot be started: %s; the old one goes on", error)

    # ---- the end

    def _on_signal(self) -> None:
        if self._store is not None and self._served and not self._leaving and self._store.restart_is_coming():
            self._leave_estate()
            return
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
        if self._store is not None:
            self._store.forget()
        self._watchdog.close()
        self._disk.close()
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
    return until_readable(pidfd, seconds)


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
        for number in ENDING:
            if signal.getsignal(number) is not signal.SIG_IGN or number == signal.SIGTERM:
                signal.signal(number, lambda _number, _frame: None)
        for number in (signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU):
            signal.signal(number, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)
        self._selector.register(self._reading, selectors.EVENT_READ, self._noticed)

    def _noticed(self) -> None:
        for _ in os.read(self._reading, 64):
            self._on_signal()

    def __exit__(self, *_: object) -> None:
        signal.set_wakeup_fd(self._wakeup)
        self._selector.unregister(self._reading)
