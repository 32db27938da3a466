"""Whether the mount answers, and how long that may take.

A worker that does not answer is given time: a little if its event loop does not go round, more if it does (the machine
is busy), and most if it waits for a disk. Time in which it waits for a processor is not its own, and does not count:
another worker would get one no sooner.

Nobody is ended while the disk itself does not answer (a network file system whose server is gone, fsfreeze(8)): the
next one would have to wait for it as well, and with one after the other the mount would be given up, which is well as
soon as the disk is.
"""

from __future__ import annotations

import logging
import selectors
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass

from relfs.daemon.probe import Probe
from relfs.errors import reason
from relfs.processes import Turns, state_of, turns_of, waited_for_processor
from relfs.survival.ledger import Ledger

_ASK_SECONDS = 0.5
"""Between an answer and the next question."""

_HUNG_SECONDS = 1.2
_BUSY_SECONDS = 6.0
_DISK_SECONDS = 10.0
_FRESH_SECONDS = 1.0
_NEWS_SECONDS = 2.0

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Look:
    """At process `pid`, `at` a time (monotonic seconds): what its threads had of the processors until then."""

    pid: int
    at: float
    turns: Mapping[int, Turns]


class _Asking:
    """Questions to a probe, which is started for the first one. Contains nothing that blocks."""

    def __init__(
        self, make: Callable[[], Probe], selector: selectors.BaseSelector, on_answer: Callable[[str, str], None]
    ) -> None:
        """`on_answer` is told what Probe.answer() tells, or "lost", if the probe has ended instead."""
        self._make = make
        self._selector = selector
        self._on_answer = on_answer
        self._probe: Probe | None = None
        self._said = False

    def ask(self, what: str) -> bool:
        """Whether it is asked; if not (pids.max, descriptors), it may be the next time."""
        try:
            if self._probe is None:
                self._probe = self._make()
                self._selector.register(self._probe, selectors.EVENT_READ, self._hear)
            self._probe.ask(what)
        except OSError as error:
            self.close()
            if not self._said:
                _log.warning("nobody can be started to ask for the %s: %s", what, reason(error))
            self._said = True
            return False
        self._said = False
        return True

    def _hear(self) -> None:
        assert self._probe is not None
        try:
            verdict, said = self._probe.answer()
        except BlockingIOError:
            return
        except OSError:
            self.close()
            verdict, said = "lost", ""
        self._on_answer(verdict, said)

    def wants_to_run(self) -> bool:
        """See Probe."""
        return self._probe is not None and self._probe.wants_to_run()

    def close(self) -> None:
        """End the probe."""
        if self._probe is not None:
            probe, self._probe = self._probe, None
            with suppress(KeyError):
                self._selector.unregister(probe)
            probe.close()


class Watchdog:
    """Asks the mount for an answer, again and again. Contains nothing that blocks.

    INVARIANT: `_asked` is when the question was asked (monotonic seconds) that is not answered yet, None if none is;
    later by as long as the worker has waited for a processor since. So is the time of `_beat`.
    """

    def __init__(
        self, mountpoint: str, ledger: Ledger, selector: selectors.BaseSelector, on_answer: Callable[[str, str], None]
    ) -> None:
        """`on_answer` is told "ok" or "error", and what (probe.py)."""
        self._ledger = ledger
        self._on_answer = on_answer
        self._asking = _Asking(lambda: Probe(mountpoint), selector, self._hear)
        self._asked: float | None = None
        self.answered = time.monotonic()
        """When it last did, or this process began to watch."""
        self._beat = (0, self.answered)
        self._looked: _Look | None = None

    def ask(self, what: str) -> None:
        """Ask now, whatever was asked before: that was somebody else."""
        self._asked = time.monotonic() if self._asking.ask(what) else None
        self._looked = None

    def _hear(self, verdict: str, said: str) -> None:
        self._asked = None
        if verdict == "lost":
            return
        self.answered = time.monotonic()
        self._on_answer(verdict, said)

    def forget(self) -> None:
        """Whoever was asked has ended; there will be an answer all the same, by the next one."""
        self._asked = None

    def is_overdue(self, pid: int, now: float) -> bool:
        """Whether process `pid`, which should have answered, has had its time. Asks if it is time to."""
        if self._asked is None:
            if now - self.answered > _ASK_SECONDS:
                self.ask("status")
            return False
        allowed = self._allowed(pid, now)
        self._asked += self._waited(pid, now)
        return now - self._asked > allowed

    def _waited(self, pid: int, now: float) -> float:
        """For how many seconds it has waited for a processor since the last look."""
        before, self._looked = self._looked, _Look(pid, now, turns_of(pid))
        if before is None or before.pid != pid:
            return 0.0
        waited = waited_for_processor(before.turns, self._looked.turns, now - before.at)
        self._beat = (self._beat[0], self._beat[1] + waited)
        return waited

    def is_late(self, now: float) -> bool:
        """Whether it has not answered for so long that something must be in the way."""
        return self._asked is not None and now - self._asked > _HUNG_SECONDS

    def stands_still(self, pid: int, now: float) -> bool:
        """Whether the event loop of process `pid` has not gone round for as long as anything may take; for when the
        mount cannot be asked any more."""
        self._look_at_beat(now)
        self._waited(pid, now)
        return now - self._beat[1] > _DISK_SECONDS

    def _allowed(self, pid: int, now: float) -> float:
        """How many seconds it may take, as it seems to be."""
        self._look_at_beat(now)
        if state_of(pid) == "D":
            return _DISK_SECONDS
        return _BUSY_SECONDS if now - self._beat[1] < _HUNG_SECONDS else _HUNG_SECONDS

    def _look_at_beat(self, now: float) -> None:
        beat = self._ledger.beat.value
        if beat != self._beat[0]:
            self._beat = (beat, now)

    def forgive(self, now: float) -> None:
        """The machine has stood still: nobody could have answered."""
        self._beat = (self._beat[0], now)
        if self._asked is not None:
            self._asked = now

    def close(self) -> None:
        """Ask no more."""
        self._asking.close()
        self._asked = None


class Links:
    """Has the mount asked for second names (fuse/second_names.py). That may take as long as somebody is changing the
    directory, and nothing follows from it: hence not by who asks whether it answers. Contains nothing that blocks."""

    def __init__(self, mountpoint: str, selector: selectors.BaseSelector) -> None:
        self._asking = _Asking(lambda: Probe(mountpoint), selector, self._hear)
        self._is_asked = False

    def look_up(self) -> None:
        """Once, if that is not being done."""
        if not self._is_asked:
            self._is_asked = self._asking.ask("links")

    def _hear(self, _verdict: str, _said: str) -> None:
        self._is_asked = False

    def close(self) -> None:
        """Ask no more."""
        self._asking.close()
        self._is_asked = False


class Disk:
    """Asks the disk that relfs's state is on, when somebody is late. Contains nothing that blocks.

    INVARIANT: `_asked` as in Watchdog.
    """

    def __init__(
        self, shown: str, state_fd: int, selector: selectors.BaseSelector, on_return: Callable[[float], None]
    ) -> None:
        """`shown` is a path on it, for the log. `on_return` is called, with the time, when it answers after it did not
        for a while."""
        self._shown = shown
        self._on_return = on_return
        self._asking = _Asking(lambda: Probe("", state_fd), selector, self._hear)
        self._asked: float | None = None
        self._answered = float("-inf")
        self._said = False

    def may_be_to_blame(self, now: float) -> bool:
        """Whether it does not answer either. Asks, if it has not answered just now."""
        if self._asked is None:
            if now - self._answered < _FRESH_SECONDS:
                return False
            self._asked = now if self._asking.ask("disk") else None
        elif now - self._asked > _NEWS_SECONDS and not self._said and not self._asking.wants_to_run():
            self._said = True
            _log.warning("%s: the disk does not answer; whoever needs it has to wait", self._shown)
        return self._asked is not None

    def _hear(self, _verdict: str, _said: str) -> None:
        """An error is an answer. Who asked is not needed until somebody is late again."""
        self._answered = time.monotonic()
        self.close()
        if self._said:
            self._said = False
            _log.info("%s: the disk answers again", self._shown)
            self._on_return(self._answered)

    def close(self) -> None:
        """Ask no more."""
        self._asking.close()
        self._asked = None
