"""How long a worker may take to answer, by a clock that the test sets. That one that hangs is replaced, real mounts
show: test_survival.py, test_faults_frozen.py."""

from __future__ import annotations

import errno
import os
import selectors
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest
from mounting import wait_for

from relfs.daemon import watchdog
from relfs.daemon.watchdog import Watchdog
from relfs.processes import Turns, state_of, turns_of, waited_for_processor
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


def _seen(monkeypatch: pytest.MonkeyPatch, waited: Callable[[float], float], **more: int) -> None:
    """The worker's one thread has waited for so many seconds, in all, when it is looked at for the Nth time, at
    100.1 + N/10."""
    looks = iter(range(1002, 2000))

    def turns(pid: int) -> dict[int, Turns]:
        return {pid: Turns(more.get("ran", 7), int(1e9 * waited(next(looks) / 10)), bool(more.get("ready")))}

    monkeypatch.setattr(watchdog, "turns_of", turns)


def test_a_loop_that_does_not_go_round_has_a_second(asked: Watchdog, monkeypatch: pytest.MonkeyPatch) -> None:
    _seen(monkeypatch, lambda _now: 5.0)
    assert 101.2 < _ended_at(asked) < 101.5


def test_a_loop_that_goes_round_has_six(asked: Watchdog, ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is merely slow."""

    def go_round(_pid: int) -> str:
        ledger.beat.value += 1
        return "S"

    _seen(monkeypatch, lambda _now: 0)
    monkeypatch.setattr(watchdog, "state_of", go_round)
    assert 106 < _ended_at(asked) < 106.3


def test_one_that_waits_for_a_disk_has_ten(asked: Watchdog, monkeypatch: pytest.MonkeyPatch) -> None:
    _seen(monkeypatch, lambda _now: 0)
    monkeypatch.setattr(watchdog, "state_of", lambda _pid: "D")
    assert 110 < _ended_at(asked) < 110.3


def test_no_time_passes_while_it_waits_for_a_processor(asked: Watchdog, monkeypatch: pytest.MonkeyPatch) -> None:
    """For three seconds it gets none, and has all of its time when that is over."""
    _seen(monkeypatch, lambda now: min(now, 103.2))
    assert 104.2 < _ended_at(asked) < 104.6


def test_threads_that_wait_together_stop_no_clock_twice(asked: Watchdog, monkeypatch: pytest.MonkeyPatch) -> None:
    _seen(monkeypatch, lambda now: 9 * min(now, 103.2))
    assert 104.2 < _ended_at(asked) < 104.6


def test_a_wait_that_goes_on_is_not_counted_by_the_kernel_yet(asked: Watchdog, monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread could run, and has not run at all since the last look."""
    _seen(monkeypatch, lambda _now: 5.0, ready=True)
    assert not any(asked.is_overdue(WORKER, now / 10) for now in range(1002, 1990))


def test_one_that_runs_in_circles_does_not_wait(asked: Watchdog, monkeypatch: pytest.MonkeyPatch) -> None:
    ran = iter(range(1000, 2000))
    monkeypatch.setattr(watchdog, "turns_of", lambda pid: {pid: Turns(next(ran), 5, ready=True)})
    assert 101.2 < _ended_at(asked) < 101.5


def test_another_worker_is_looked_at_anew(asked: Watchdog, monkeypatch: pytest.MonkeyPatch) -> None:
    turns = {WORKER: {WORKER: Turns(7, 5, ready=False)}, WORKER + 1: {WORKER: Turns(7, 10**12, ready=False)}}
    monkeypatch.setattr(watchdog, "turns_of", turns.__getitem__)
    asked.is_overdue(WORKER + 1, 100.2)
    assert _ended_at(asked) < 101.6


def test_nobody_can_be_started_to_ask(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A limit of processes (pids.max): that is no reason to end, and it is tried again until it is no more."""

    def fork() -> int:
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    selector, heard = selectors.DefaultSelector(), list[str]()
    dog = Watchdog("/", ledger, selector, lambda verdict, _said: heard.append(verdict))
    with monkeypatch.context() as limited:
        limited.setattr(os, "fork", fork)
        for _ in range(3):
            assert not dog.is_overdue(WORKER, dog.answered + 100)
    assert not dog.is_overdue(WORKER, dog.answered + 100)
    for key, _ in selector.select(60):
        key.data()
    dog.close()
    assert heard == ["ok"]
    assert caplog.text.count("nobody can be started to ask for the status") == 1


_SPIN = "import os\nos.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\nwhile True: pass\n"


def test_two_that_share_a_processor_wait_for_each_other() -> None:
    """And what sleeps waits for none; nor does what is not there."""
    spinning = [subprocess.Popen([sys.executable, "-c", _SPIN]) for _ in range(2)]
    try:
        before = [turns_of(each.pid) for each in spinning]

        def waited(number: int) -> float:
            return waited_for_processor(before[number], turns_of(spinning[number].pid), 1000.0)

        wait_for(lambda: all(0.2 < waited(number) < 1000 for number in range(2)), "they wait")
    finally:
        for each in spinning:
            each.kill()
            each.wait()
    assert turns_of(spinning[0].pid) == {}
    with subprocess.Popen(["sleep", "1000"]) as sleeping:
        wait_for(lambda: state_of(sleeping.pid) == "S", "it sleeps")
        asleep = turns_of(sleeping.pid)
        assert waited_for_processor(asleep, turns_of(sleeping.pid), 1000.0) < 1
        sleeping.kill()
