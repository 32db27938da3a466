"""Who is known again: threads that live, and nobody else. Real processes, no mount."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest
from mounting import wait_for

from relfs.audience import Audience
from relfs.journal import Actor
from relfs.layout import Target
from relfs.processes import name_of, state_of
from relfs.survival.ledger import new_ledger
from relfs.views import acquaintances
from relfs.views.acquaintances import Acquaintances
from relfs.views.canary import Canary, Stage
from relfs.views.mark import new_mark, put_mark
from relfs.views.pins import Pin, Pins
from relfs.views.sights import Sights

HAS_THREADS = tuple(map(int, os.uname().release.split(".")[:2])) >= (6, 9)
"""Whether the kernel has pidfds of threads."""

OLD, NEW = Target("releases/41", "41"), Target("releases/42", "42")


def met(known: Acquaintances[str], tid: int, value: str) -> None:
    held = known.meet(tid)
    assert held is not None
    known.note(tid, held, value)


def descriptors() -> int:
    """How many are open, less those of what earlier tests have left for the garbage collector."""
    gc.collect()
    return len(os.listdir("/proc/self/fd"))


def test_as_long_as_it_lives() -> None:
    known = Acquaintances[str]()
    before = descriptors()
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as process:
        met(known, process.pid, "a")
        met(known, process.pid, "b")
        assert known.of(process.pid) == "b"
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert known.of(process.pid) is None, "before its number can be another's"
    assert known.meet(process.pid) is None
    assert (len(known), descriptors()) == (0, before)


def test_all_that_have_ended_are_forgotten() -> None:
    known = Acquaintances[int]()
    processes = [subprocess.Popen(["cat"], stdin=subprocess.PIPE) for _ in range(40)]
    for process in processes:
        held = known.meet(process.pid)
        assert held is not None
        known.note(process.pid, held, process.pid)
    for process in processes:
        process.kill()
        process.communicate()
    assert [known.of(process.pid) for process in processes] == [None] * 40
    assert len(known) == 0


def test_a_thread_ends_before_its_process() -> None:
    known = Acquaintances[str]()
    go, started = threading.Event(), threading.Event()

    def run() -> None:
        started.set()
        go.wait()

    thread = threading.Thread(target=run)
    thread.start()
    started.wait()
    tid = thread.native_id
    assert tid is not None
    held = known.meet(tid)
    assert (held is not None) == HAS_THREADS, "it is looked at each time, where it cannot be held"
    if held is not None:
        known.note(tid, held, "a")
        assert known.of(tid) == "a"
    go.set()
    thread.join()
    while Path(f"/proc/self/task/{tid}").exists():
        pass
    assert known.of(tid) is None


def test_no_more_than_there_is_room_for() -> None:
    known = Acquaintances[str]()
    with mock.patch.object(acquaintances, "_MOST", 1):
        met(known, os.getpid(), "a")
        assert known.meet(os.getppid()) is None
    known.clear()
    assert known.of(os.getpid()) is None
    met(known, os.getppid(), "b")


# ---- what somebody sees


@pytest.fixture
def seen() -> Iterator[Sights]:
    ledger = new_ledger()
    sights = Sights(Pins(ledger.pins), Canary(ledger.canary, ledger.decisions))
    yield sights
    sights.check_invariants()


def pin_to(target: Target, mark: int) -> Pin:
    return Pin(mark, target, Actor(0, "root", 1, "x"), 0.0, f"{mark}", 1, 1)


def test_it_follows_all_changes(seen: Sights) -> None:
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as process:
        pid, first, second = process.pid, new_mark(), new_mark()
        assert not seen
        seen.canary.begin(Stage("1", NEW, Audience(users=(33,))))
        assert seen.seen_by(pid, 33, 33) == NEW
        put_mark(pid, first)
        assert seen.seen_by(pid, 33, 33) == NEW, "nobody has said what it stands for"
        seen.pins.add(pin_to(OLD, first))
        assert seen.seen_by(pid, 33, 33) == OLD
        put_mark(pid, second)
        seen.pins.add(pin_to(NEW, second))
        assert seen.seen_by(pid, 33, 33) == NEW
        seen.pins.drop(second)
        seen.canary.end()
        assert seen.seen_by(pid, 33, 33) is None
        seen.pins.drop(first)
        assert not seen
        process.kill()


def test_who_is_known_is_not_looked_at(seen: Sights) -> None:
    seen.pins.add(pin_to(OLD, new_mark()))
    seen.canary.begin(Stage("1", NEW, Audience(users=(33,))))
    before = descriptors()
    assert seen.seen_by(os.getpid(), 33, 33) == NEW
    with mock.patch.object(Pins, "of", side_effect=AssertionError), mock.patch.object(
        Canary, "seen_by", side_effect=AssertionError
    ):  # fmt: skip
        assert seen.seen_by(os.getpid(), 0, 0) == NEW
    assert descriptors() == before + 1
    seen.canary.end()
    seen.pins.drop(next(iter(seen.pins)).mark)
    assert descriptors() == before, "and nobody is held when nobody has to be known"


_GOES_ON = """
import ctypes, threading
def run():
    input()
    print(threading.get_native_id(), flush=True)
    input()
threading.Thread(target=run).start()
ctypes.CDLL(None).pthread_exit(None)
"""


def test_a_process_whose_first_thread_has_ended_goes_on(seen: Sights) -> None:
    """Nothing is decided anew about it, and nobody is chosen in its place."""
    name = os.path.basename(sys.executable)
    seen.canary.begin(Stage("1", NEW, Audience(percent=50.0, name=name)))
    started = [
        subprocess.Popen([sys.executable, "-c", _GOES_ON], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]  # fmt: skip
    try:
        wait_for(lambda: [name_of(each.pid) for each in started] == [name[:15]] * 2, "they are called so")
        before = [seen.seen_by(each.pid, 0, 0) for each in started]
        assert set(before) == {NEW, None}
        wait_for(lambda: [state_of(each.pid) for each in started] == ["Z"] * 2, "their first threads have ended")
        for each in started:  # Linux 6.9 to 6.14 tells of an end then
            seen.canary.note_end(each.pid)
        for each, sight in reversed(list(zip(started, before, strict=True))):
            assert each.stdin is not None
            assert each.stdout is not None
            each.stdin.write("\n")
            each.stdin.flush()
            assert seen.seen_by(int(each.stdout.readline()), 0, 0) == sight
        assert len(seen.canary.chosen()) == 1
    finally:
        for each in started:
            each.kill()
            each.communicate()


def test_a_number_that_is_anothers_within_a_tick(seen: Sights) -> None:
    """Both would have started at the same time, as far as /proc tells."""
    seen.canary.begin(Stage("1", NEW, Audience(users=(33,))))
    with mock.patch("relfs.views.canary.start_of", return_value=7):
        with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as process:
            assert seen.seen_by(process.pid, 33, 33) == NEW
            assert seen.seen_by(process.pid, 0, 0) == NEW
            process.kill()
        assert seen.seen_by(process.pid, 0, 0) is None
