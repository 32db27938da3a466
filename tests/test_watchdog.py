"""How long a worker may take to answer, by a clock that the test sets. That one that hangs is replaced, real mounts
show: test_survival.py, test_faults_frozen.py."""

from __future__ import annotations

import os
import selectors
import subprocess
import sys
from collections.abc import Iterator

import pytest
from mounting import wait_for

from relfs.daemon import watchdog
from relfs.daemon.watchdog import Watchdog
from relfs.processes import waited_for_processor
from relfs.survival.ledger import Ledger, new_ledger

WORKER = os.getpid()


@pytest.fixture
def ledger() -> Iterator[Ledger]:
    made = new_ledger()
    yield made
    made.close()


@pytest.fixture
def asked(ledger: Ledger) -> Watchdog:
    """At 100; the worker's loop has gone round a moment later for the last time."""
    made = Watchdog("/", ledger, selectors.DefaultSelector(), lambda _verdict, _said: None)
    made._asked = 100.0
    ledger.beat.value = 1
    assert not made.is_overdue(WORKER, 100.1)
    return made


def _ended_at(dog: Watchdog) -> float:
    """When the worker has had its time, looked at ten times a second."""
    return next(now / 10 for now in range(1002, 2000) if dog.is_overdue(WORKER, now / 10))


def test_a_loop_that_does_not_go_round_has_a_second(asked: Watchdog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watchdog, "waited_for_processor", lambda _pid: 5.0)
    assert 101.2 < _ended_at(asked) < 101.5


def test_no_time_passes_while_it_waits_for_a_processor(asked: Watchdog, monkeypatch: pytest.MonkeyPatch) -> None:
    """For three seconds it gets none, and has all of its time when that is over."""
    now = iter(range(1002, 2000))
    monkeypatch.setattr(watchdog, "waited_for_processor", lambda _pid: min(next(now) / 10, 103.2))
    assert 104.2 < _ended_at(asked) < 104.6


def test_threads_that_wait_together_stop_no_clock_twice(asked: Watchdog, monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter(range(1002, 2000))
    monkeypatch.setattr(watchdog, "waited_for_processor", lambda _pid: min(9 * next(now) / 10, 9 * 103.2))
    assert 104.2 < _ended_at(asked) < 104.6


def test_another_worker_is_looked_at_anew(asked: Watchdog, monkeypatch: pytest.MonkeyPatch) -> None:
    waited = {WORKER: 5.0, WORKER + 1: 900.0}
    monkeypatch.setattr(watchdog, "waited_for_processor", waited.__getitem__)
    asked.is_overdue(WORKER + 1, 100.2)
    assert _ended_at(asked) < 101.6


_SPIN = "import os\nos.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\nwhile True: pass\n"


def test_two_that_share_a_processor_wait_for_each_other() -> None:
    """And what sleeps waits for none; nor does what is not there."""
    spinning = [subprocess.Popen([sys.executable, "-c", _SPIN]) for _ in range(2)]
    try:
        wait_for(lambda: all(waited_for_processor(each.pid) > 0.2 for each in spinning), "they wait")
    finally:
        for each in spinning:
            each.kill()
            each.wait()
    assert waited_for_processor(spinning[0].pid) == 0.0
