"""The supervisor: keeps a mount alive whoever dies, and never serves a request itself.

It holds the estate (survival/estate.py), has a standby ready, which forks workers, and has the mount asked for an
answer all the time. Only the standard library, no thread but the log's (log.py), and nothing that blocks before the end
has come: it must answer when others do not. What it knows beyond the estate is in the ledger, so that another
supervisor can go on from there (member.py).

Who is dead
-----------
A worker that has ended is replaced at once. One that is stopped is ended first, and so is one that does not answer
(watchdog.py), or that is to unmount and does not get on with it.

What nobody can serve is better uncovered: when `_DEATHS_MAX` workers in a row have ended before the mount answered, it
is detached, which lets the real link serve, and that is said in the log, by `relfsctl status`, and by the exit status.
"""

from __future__ import annotations

import logging
import os
import selectors
import subprocess
import time

from relfs.daemon.background import Answer
from relfs.daemon.command import become, reap, start
from relfs.daemon.company import NEXT, STANDBY, WORKER, Company, Comrade
from relfs.daemon.complaint import Complaint
from relfs.daemon.endpoint import remove_socket
from relfs.daemon.fdstore import store_of_unit
from relfs.daemon.gaveup import note_giving_up
from relfs.daemon.member import TICK, Telling, is_alive, myself, who_is
from relfs.daemon.plan import Plan
from relfs.daemon.reloading import Reloading
from relfs.daemon.service import Heartbeat, notify
from relfs.daemon.session import load_session
from relfs.daemon.signals import noticed_signals
from relfs.daemon.watchdog import Disk, Links, Watchdog
from relfs.errors import EXIT_FAILED, RelfsError, error_for, reason
from relfs.mountinfo import FSTYPE, mount_at
from relfs.mounts import detach_only
from relfs.processes import is_killed
from relfs.survival.channel import Channel, Message, pair, until_readable
from relfs.survival.estate import Estate, is_fleeting
from relfs.survival.ledger import Ledger, Who

_log = logging.getLogger(__name__)

_DEATHS_MAX = 8
_BACKOFF_SECONDS = (0.0, 0.0, 0.05, 0.2, 0.5, 1.0)
"""Before the next worker, by how many have ended since the mount last answered."""

_BEGIN_SECONDS = 30.0
"""How long a worker may take before it serves: the first reads all of a release that is to be sealed. And a standby
before it can fork one."""

_HELLO_SECONDS = 2.0
_JOIN_SECONDS = 1.0
_END_SECONDS = 10.0
_LATE_SECONDS = 0.4
"""If the supervisor itself comes round so much later than it should, nobody else is to blame for being late."""


class Supervisor:
    """Everything happens in the one thread."""

    def __init__(self, plan: Plan, estate: Estate, ledger: Ledger, baton: int, waiting: Answer) -> None:
        """`baton` is its locked descriptor; `waiting` is told how it went."""
        self._plan = plan
        self._baton = baton
        self._estate = estate
        self._ledger = ledger
        self._waiting = waiting
        self._selector = selectors.DefaultSelector()
        self._company = Company(estate, ledger, self._selector, self._obey, self._on_end)
        self._reloading = Reloading(self._company, ledger)
        self._children: list[subprocess.Popen[bytes]] = []
        self._watchdog = Watchdog(plan.mountpoint, ledger, self._selector, self._on_answer)
        self._links = Links(plan.mountpoint, self._selector)
        self._disk = Disk(plan.deploy_path, estate["state"], self._selector, self._forgive)
        self._expected: list[str] = []
        self._noted = ""
        self._deaths = 0
        self._complaint = Complaint(_log)
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
        with noticed_signals(self._selector, self._on_signal):
            self._company.find()
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
        self._give_to_standby(STANDBY, child, channel)

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
        self._children = [each for each in self._children if each.poll() is None]
        reap()
        for each in self._company:
            each.flush()
        if late:
            self._forgive(now)
        self._watch(now)
        self._heartbeat.turn(self._watchdog.answered)
        self._store_estate()

    def _look_after(self, now: float) -> None:
        """See to it that there are a standby and a worker."""
        if self._outcome is not None or now < self._not_before:
            return
        try:
            self._bring_up_members()
        except OSError as error:
            self._note_nobody_comes(reason(error))

    def _bring_up_members(self) -> None:
        forker, worker = self._company.get(self._reloading.forker), self._company.get(WORKER)
        if worker is None and self._leaving:
            self._detach()
            self._finish(0)
        elif forker is None:
            self._start_standby(STANDBY)
        elif worker is None and forker.can_fork:
            self._have_forked(forker)

    # ---- who ends

    def _on_end(self, each: Comrade) -> None:
        if self._reloading.explains(each):
            self._watchdog.forget()
        elif self._outcome is None and not self._leaving:
            self._count_death(each)

    def _count_death(self, each: Comrade) -> None:
        _log.warning("the %s (process %d) has ended; another one takes its place", each.role, each.pid)
        if each.role == STANDBY and each.serves:
            return
        self._deaths += 1
        self._watchdog.forget()
        if self._deaths >= _DEATHS_MAX:
            self._give_up()
            return
        pause = _BACKOFF_SECONDS[min(self._deaths, len(_BACKOFF_SECONDS)) - 1]
        self._not_before = time.monotonic() + pause

    def _end_process(self, each: Comrade, why: str) -> None:
        """Kill it. What it was doing in the kernel ends before anything else of it is done, so nobody waits for that,
        nor blames it if somebody else has killed it already."""
        if each.who is None or not is_killed(each.who.pid):
            _log.warning("the %s (process %d) %s; it is ended", each.role, each.pid, why)
        each.kill()
        self._company.lose(each)

    # ---- who comes

    def _start_standby(self, role: str) -> None:
        """Raises OSError."""
        ours, theirs = pair()
        try:
            child = start("standby", str(theirs.fileno()), fds=[theirs.fileno()])
        except OSError:
            ours.close()
            raise
        finally:
            theirs.close()
        self._give_to_standby(role, child, ours)

    def _note_nobody_comes(self, why: str) -> None:
        """As long as a worker serves, it is tried again and again; without one, not for ever."""
        self._complaint.say(f"neither standby nor worker can be started: {why}")
        self._not_before = time.monotonic() + _BACKOFF_SECONDS[-1]
        if self._company.get(WORKER) is None:
            self._deaths += 1
            if self._deaths >= _DEATHS_MAX:
                self._give_up()

    def _give_to_standby(self, role: str, child: subprocess.Popen[bytes], channel: Channel) -> None:
        self._children.append(child)
        standby = Comrade(role, channel, told=Telling(self._estate, channel, last="all"))
        self._company.add(standby, who_is(child.pid))
        standby.flush()

    def _have_forked(self, forker: Comrade) -> None:
        """Have a standby fork a worker. It does so when it has taken in all that it was sent before. Raises OSError."""
        ours, theirs = pair()
        adopting = self._served or bool(self._ledger.reply.load())
        told = False
        try:
            told = forker.tell("fork", theirs.fileno(), adopting=adopting)
        finally:
            theirs.close()
            if not told:
                ours.close()
        if told:
            self._company.add(Comrade(WORKER, ours))

    def _be_refused(self, worker: Comrade, why: str) -> None:
        """The standby cannot fork it. One of new code is sent away, which leaves a process to the old one. That is
        asked again in a while."""
        self._reloading.refuse(worker, why)
        if self._company.has(worker):
            self._company.dismiss(worker)
            self._note_nobody_comes(why)

    # ---- listening

    def _obey(self, each: Comrade, message: Message) -> None:
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
            self._company.identify(each, Who(values["pid"], values["start"]))
        elif message.kind == "refused":
            self._be_refused(each, str(values["words"]))
        elif message.kind == "serving":
            self._expected, self._noted = values["current"], str(values.get("noted", ""))
            self._expect_answer(each)
        elif message.kind == "links":
            self._links.look_up()
        elif message.kind == "ready":
            each.serves, each.since = True, time.monotonic()
            self._complaint.end("a standby has come")
            if each.role == NEXT:
                self._reloading.retire_worker()
        elif message.kind == "reload":
            self._reload()
        elif message.kind == "unfit":
            self._reloading.refuse(each, str(values["words"]))
        elif message.kind == "leaving":
            self._leaving = True
        elif message.kind == "ended":
            self._finish(values["status"], values["words"])

    def _reload(self) -> None:
        if self._served and not self._leaving and self._reloading.begin(time.monotonic()):
            try:
                self._start_standby(NEXT)
            except OSError as error:
                self._reloading.undo(f"it cannot be started: {reason(error)}")

    def _keep(self, each: Comrade, name: str, fd: int) -> None:
        each.kept.add(name)
        self._estate.put(name, fd)
        self._company.pass_on(each, name)
        if not is_fleeting(name):
            self._change_store()

    def _drop(self, each: Comrade, name: str) -> None:
        each.kept.discard(name)
        self._estate.drop(name)
        self._company.pass_on(each, name)
        if not is_fleeting(name):
            self._change_store()

    def _drop_strays(self, worker: Comrade) -> None:
        """A worker that has outlived a supervisor has told all that it holds: what it closed meanwhile is not there."""
        for name, _ in self._estate:
            if is_fleeting(name) and name not in worker.kept:
                self._drop(worker, name)

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
        self._stop_asking()
        for each in self._company:
            each.kill()
            each.has_ended(_END_SECONDS)
            self._company.lose(each)
        self._is_left = self._store.keep(self._estate, whole=True)
        if not self._is_left:
            self._detach()

    # ---- asking the mount

    def _expect_answer(self, worker: Comrade) -> None:
        """A worker says that it serves: does it? The first is asked what `current` says, which must be as expected."""
        worker.serves = True
        self._complaint.end("a worker has come")
        self._watchdog.ask("status" if self._served or not self._expected else "current")

    def _stop_asking(self) -> None:
        for each in (self._watchdog, self._links, self._disk):
            each.close()

    def _on_answer(self, verdict: str, said: str) -> None:
        if not self._served:
            self._judge_first(verdict, said)
        elif verdict == "ok":
            self._deaths = 0
            if self._reloading.is_done():
                self._become_new()

    def _judge_first(self, verdict: str, said: str) -> None:
        where = self._plan.mountpoint
        if verdict == "error":
            self._fail(f"{where}: was mounted but answers: {said}")
        elif self._expected and said not in self._expected and not self._was_switched():
            self._fail(f"{where}: was mounted but current leads to {said}")
        else:
            self._deaths = 0
            self._begin()

    def _was_switched(self) -> bool:
        """Whether what is current was changed, by way of the worker, since that has said what it is."""
        return self._ledger.served.load().decode("ascii") != self._noted

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
        for each in self._company:
            if each.is_stopped(now):
                self._end_process(each, "is stopped")
            elif each.who is None and each.role == WORKER and self._is_fork_overdue(each, now):
                self._give_fork_up(each)
            elif each.channel is None and now - each.since > _JOIN_SECONDS:
                self._end_process(each, "does not answer the supervisor")
        worker = self._company.get(WORKER)
        if worker is not None and worker.who is not None:
            self._watch_worker(worker, now)
        self._reloading.watch(now)

    def _is_fork_overdue(self, worker: Comrade, now: float) -> bool:
        """A standby that was only just started has its imports to do first, which on a busy machine take seconds. To
        start it again would only begin them again."""
        forker = self._company.get(self._reloading.forker)
        if forker is not None and not forker.serves:
            return now - worker.since > _BEGIN_SECONDS
        asked = max(worker.since, forker.since) if forker is not None else worker.since
        return now - asked > _HELLO_SECONDS

    def _give_fork_up(self, worker: Comrade) -> None:
        """It was asked for, and never came."""
        forker = self._company.get(self._reloading.forker)
        self._company.lose(worker)
        if forker is not None:
            self._end_process(forker, "does not fork")

    def _watch_worker(self, worker: Comrade, now: float) -> None:
        assert worker.who is not None
        if self._leaving:
            if self._watchdog.stands_still(worker.who.pid, now):
                self._end_process(worker, "does not come to its end")
            return
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
        for each in self._company:
            each.since = now
            each.stopped_since = None

    # ---- the end

    def _become_new(self) -> None:
        """Run the new code in this process, which somebody may know by its pid. Worker and standby find that their tie
        is cut, and join again (member.py)."""
        self._stop_asking()
        _log.info("process %d becomes the new supervisor", os.getpid())
        logging.shutdown()
        try:
            become("resume", self._estate, self._baton)
        except OSError as error:
            _log.error("the new supervisor cannot be started: %s; the old one goes on", error)

    def _on_signal(self) -> None:
        if self._store is not None and self._served and not self._leaving and self._store.restart_is_coming():
            self._leave_estate()
            return
        worker = self._company.get(WORKER)
        self._leaving = True
        if worker is not None and worker.tell("leave"):
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
        self._stop_asking()  # for the descriptors that the rest takes
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
            detach_only(found)
        except RelfsError as error:
            _log.error("%s", error)

    def _end(self) -> None:
        """Let everybody else end, and all that is held go."""
        notify("STOPPING=1")
        if self._store is not None:
            self._store.forget()
        self._stop_asking()
        deadline = time.monotonic() + _END_SECONDS
        for each in self._company:
            each.tell("end")
        for each in self._company:
            if not each.has_ended(deadline - time.monotonic()):
                each.kill()
        self._company.close()
        guards = [fd for fd in map(_pidfd_of, load_session(self._ledger).guards) if fd is not None]
        remove_socket(self._estate["state"])
        for name, _ in self._estate:
            if name != "lock":
                self._estate.drop(name)
        for fd in guards:
            self._wait_for_guard(fd, deadline - time.monotonic())
            os.close(fd)
        self._estate.close()

    def _wait_for_guard(self, pidfd: int, seconds: float) -> None:
        """It ends when nobody holds a copy of its descriptor any more. Somebody who has not ended in time does, and has
        used up the `seconds`: that is no news then."""
        if seconds > 0 and not until_readable(pidfd, seconds):
            _log.warning("%s: what unmounts it after us has not ended, and is left alone", self._plan.mountpoint)


def _pidfd_of(who: Who) -> int | None:
    try:
        return os.pidfd_open(who.pid) if is_alive(who) else None
    except OSError:
        return None
