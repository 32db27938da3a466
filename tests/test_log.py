"""The daemon's log: what becomes of lines that cannot be written, and that nobody waits for them."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from mounting import environment, wait_for
from sandbox import end, start_python

from relfs import beneath
from relfs.daemon import log
from relfs.daemon.log import LogFile, LossyHandler

SECONDS = 30


class Disk:
    """A sink that fails or stands still when it is told to."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.error: int | None = None
        self.moving = threading.Event()
        self.moving.set()

    def write(self, line: bytes) -> None:
        assert self.moving.wait(SECONDS)
        if self.error is not None:
            raise OSError(self.error, os.strerror(self.error))
        self.lines += line.decode().splitlines()


@pytest.fixture(autouse=True)
def _patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """That of a test, not of a process that is to end."""
    monkeypatch.setattr(log, "_FLUSH_SECONDS", SECONDS)


@pytest.fixture
def disk() -> Iterator[Disk]:
    disk = Disk()
    yield disk
    disk.moving.set()


def handler_for(disk: Disk) -> LossyHandler:
    handler = LossyHandler(disk)
    handler.setFormatter(logging.Formatter("%(levelname)s %(message)s"))
    return handler


def say(handler: LossyHandler, text: str, *arguments: object) -> None:
    handler.handle(logging.LogRecord("test", logging.INFO, __file__, 0, text, arguments, None))


def test_lines_arrive_in_order(disk: Disk) -> None:
    handler = handler_for(disk)
    for number in range(500):
        say(handler, "line %d", number)
    handler.flush()
    assert disk.lines == [f"INFO line {number}" for number in range(500)]
    assert handler.trouble() is None


def test_what_a_full_disk_swallowed_is_told_once_it_is_not(disk: Disk) -> None:
    handler = handler_for(disk)
    disk.error = errno.ENOSPC
    for number in range(3):
        say(handler, "lost %d", number)
    handler.flush()
    assert handler.trouble() == "the log lacks 3 lines: No space left on device"
    disk.error = None
    say(handler, "here again")
    say(handler, "and again")
    handler.flush()
    assert disk.lines == [
        "WARNING 3 lines are missing here: No space left on device", "INFO here again", "INFO and again",
    ]  # fmt: skip
    assert handler.trouble() is None


def test_a_disk_that_stands_still_keeps_nobody_waiting(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    """That this returns at all is the test: the disk moves only after it."""
    monkeypatch.setattr(log, "_STALLED_SECONDS", 0.0)
    monkeypatch.setattr(log, "_FLUSH_SECONDS", 0.01)
    disk.moving.clear()
    handler = handler_for(disk)
    for number in range(log._LINES_MAX + 7):
        say(handler, "line %d", number)
    handler.flush()
    said = handler.trouble()
    assert said is not None
    assert "waiting for its disk" in said
    assert "7 lines are lost" in said
    disk.moving.set()
    wait_for(lambda: len(disk.lines) == log._LINES_MAX + 1, "what was in the queue is written")
    assert disk.lines[:-1] == [f"INFO line {number}" for number in range(log._LINES_MAX)]
    assert disk.lines[-1] == "WARNING 7 lines are missing here: too many at once"
    wait_for(lambda: handler.trouble() is None, "all of it is told")


def test_what_is_missing_is_told_in_its_place(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which is before what was said later, and after all that was said before."""
    monkeypatch.setattr(log, "_LINES_MAX", 3)
    disk.moving.clear()
    handler = handler_for(disk)
    for number in range(5):
        say(handler, "line %d", number)
    disk.moving.set()
    handler.flush()
    disk.moving.clear()
    for number in range(5, 10):
        say(handler, "line %d", number)
    disk.error = errno.EIO
    disk.moving.set()
    handler.flush()
    assert handler.trouble() == "the log lacks 5 lines: Input/output error"
    disk.error = None
    say(handler, "line 10")
    handler.flush()
    assert disk.lines == [
        "INFO line 0", "INFO line 1", "INFO line 2", "WARNING 2 lines are missing here: too many at once",
        "WARNING 5 lines are missing here: Input/output error", "INFO line 10",
    ]  # fmt: skip


def test_a_machine_that_stands_still_takes_no_time_from_the_last_line(
    disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of the time is over when it goes on, and the thread has had none of it."""
    disk.moving.clear()
    handler = handler_for(disk)
    wait, stood_still = handler._changed.wait_for, list[float]()

    def wait_for(condition: Callable[[], bool], seconds: float | None = None) -> bool:
        if seconds is None:  # the thread
            return wait(condition)
        if not stood_still:
            stood_still.append(seconds)
            return condition()
        disk.moving.set()
        return wait(condition, SECONDS)

    say(handler, "the last")
    monkeypatch.setattr(handler._changed, "wait_for", wait_for)
    handler.flush()
    assert stood_still
    assert disk.lines == ["INFO the last"]


def test_a_host_without_a_thread_to_give(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    handler = handler_for(disk)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", _no_thread)
        say(handler, "lost")
        assert handler.trouble() == "the log lacks 1 lines: can't start new thread"
    say(handler, "here")
    handler.flush()
    assert disk.lines[-1] == "INFO here"
    assert "1 lines are missing" in disk.lines[0]


def _no_thread(_self: object) -> None:
    raise RuntimeError("can't start new thread")


def test_a_line_that_cannot_be_formatted_is_no_end(disk: Disk) -> None:
    handler = handler_for(disk)
    say(handler, "one %d", "two")
    say(handler, "\udcff is a name")
    handler.flush()
    assert disk.lines == ["INFO test: 'one %d'", "INFO \\udcff is a name"]


def test_a_line_without_an_end_is_cut(disk: Disk) -> None:
    handler = handler_for(disk)
    say(handler, "x" * (1 << 20))
    handler.flush()
    assert len(disk.lines[0]) == log._LINE_MAX


def test_a_child_begins_anew(tmp_path: Path) -> None:
    """It has neither its parent's thread nor its parent's lines, and both arrive."""
    program = (
        "import logging, os, sys; import relfs.daemon.log as lines; lines._FLUSH_SECONDS = 60\n"
        "lines.log_to_state(os.open(sys.argv[1], os.O_RDONLY), sys.argv[1]); log = logging.getLogger('t')\n"
        "log.info('parent'); pid = os.fork(); log.info('child' if pid == 0 else 'parent again')\n"
        "if pid: os.waitpid(pid, 0)\n"
    )
    process = start_python(program, str(tmp_path))
    try:
        assert process.wait(SECONDS) == 0
    finally:
        end(process)
    said = [line.split(": ")[1] for line in (tmp_path / "log").read_text().splitlines()]
    assert sorted(said) == ["child", "parent", "parent again"]


def test_a_child_of_a_process_that_writes_just_then(tmp_path: Path) -> None:
    """The lock was held by a thread that the child does not have; it waits for nobody."""
    program = (
        "import logging, os, signal, sys, threading; import relfs.daemon.log as lines\n"
        "lines.log_to_state(os.open(sys.argv[1], os.O_RDONLY), sys.argv[1])\n"
        "changed = logging.getLogger().handlers[0]._changed\n"
        "writer = threading.Thread(target=changed.acquire); writer.start(); writer.join()\n"
        "pid = os.fork()\n"
        "if pid == 0: signal.alarm(20); lines.log_trouble(); logging.shutdown()\n"
        "os._exit(os.waitpid(pid, 0)[1] if pid else 0)\n"
    )
    process = start_python(program, str(tmp_path))
    try:
        assert process.wait(SECONDS) == 0
    finally:
        end(process)


def test_standard_error_that_nobody_reads() -> None:
    """A pipe that is full: the program goes on, and its end waits for a moment only."""
    program = (
        "import logging; from relfs.daemon.log import log_to_stderr, log_trouble\n"
        "log_to_stderr(); log = logging.getLogger('t')\n"
        "for number in range(1500): log.info('x' * 1000)\n"
        "print(log_trouble())\n"
    )
    reading, writing = os.pipe()
    command = [sys.executable, "-c", program]
    try:
        done = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=writing, env=environment(), check=True, timeout=SECONDS
        )
    finally:
        os.close(reading)
        os.close(writing)
    assert b"the log lacks" in done.stdout


# ---- the file


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log, "_LOG_BYTES", 100)


@pytest.fixture
def make_file(state: int) -> Iterator[Callable[[], LogFile]]:
    made: list[LogFile] = []

    def make() -> LogFile:
        made.append(LogFile(state))
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.mark.usefixtures("small")
def test_two_writers_rotate_once(make_file: Callable[[], LogFile], tmp_path: Path) -> None:
    one, other = make_file(), make_file()
    other.write(b"other\n")
    one.write(b"x" * 100 + b"\n")
    one.write(b"one\n")
    other.write(b"other again\n")
    assert (tmp_path / "log.1").read_bytes() == b"other\n" + b"x" * 100 + b"\n"
    assert (tmp_path / "log").read_bytes() == b"one\nother again\n"


@pytest.mark.usefixtures("small")
def test_a_writer_that_finds_no_log_while_the_other_rotates(
    make_file: Callable[[], LogFile], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old one has its new name, and the new one is not made yet: nothing is lost."""
    file = make_file()
    file.write(b"x" * 100)

    def flock(_fd: int, _how: int) -> None:
        (tmp_path / "log").rename(tmp_path / "log.1")

    monkeypatch.setattr(fcntl, "flock", flock)
    file.write(b"one\n")
    assert (tmp_path / "log").read_bytes() == b"one\n"
    assert (tmp_path / "log.1").read_bytes() == b"x" * 100


@pytest.mark.usefixtures("small")
def test_a_new_log_that_cannot_be_made_closes_nothing_twice(
    make_file: Callable[[], LogFile], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By then, the descriptor may be somebody else's."""
    file = make_file()
    file.write(b"x" * 100)
    before = os.listdir("/proc/self/fd")
    whole, opened, taken = beneath.open_file, list[int](), list[int]()

    def open_file(*what: Any) -> int:
        if opened:
            taken.append(os.open(os.devnull, os.O_RDONLY))
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        opened.append(whole(*what))
        return opened[0]

    monkeypatch.setattr(log, "open_file", open_file)
    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
        file.write(b"one\n")
    assert taken == opened, "it has its number"
    os.close(*taken)
    assert os.listdir("/proc/self/fd") == before


def test_a_log_that_was_removed_is_made_again(make_file: Callable[[], LogFile], tmp_path: Path) -> None:
    file = make_file()
    file.write(b"one\n")
    (tmp_path / "log").unlink()
    file.write(b"two\n")
    assert (tmp_path / "log").read_bytes() == b"two\n"
