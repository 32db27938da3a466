"""The change lock: one holder at a time, on one host, however the holder ends."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import Popen
from typing import Any

import pytest
from mounting import wait_for
from sandbox import end, start_python

from relfs import beneath, lock
from relfs.errors import EXIT_LOCKED, LockedError, RelfsError
from relfs.lock import LOCK, change_lock

HOLD = """
import os, sys
from relfs.lock import change_lock
with change_lock(os.open(sys.argv[1], os.O_RDONLY)):
    print("held", flush=True)
    sys.stdin.read()
"""

COUNT = """
import os, sys
from relfs.lock import change_lock
state, counter, times = os.open(sys.argv[1], os.O_RDONLY), os.open(sys.argv[2], os.O_RDWR), int(sys.argv[3])
print("ready", flush=True)
sys.stdin.readline()
for _ in range(times):
    with change_lock(state):
        number = int(os.pread(counter, 9, 0))
        os.sched_yield()
        os.pwrite(counter, b"%09d" % (number + 1), 0)
"""

WITHOUT_LOCK = """
import contextlib
import relfs.lock
relfs.lock.change_lock = lambda *_, **__: contextlib.nullcontext()
"""

Starter = Callable[..., Popen[str]]


@pytest.fixture
def start() -> Iterator[Starter]:
    """Starts Python processes, and waits until they have said their first word."""
    started: list[Popen[str]] = []

    def start_one(program: str, *arguments: str) -> Popen[str]:
        process = start_python(program, *arguments)
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline(), "it died at once"
        return process

    yield start_one
    for process in started:
        end(process)


def test_another_process_is_kept_out_and_told_by_whom(state: int, tmp_path: Path, start: Starter) -> None:
    holder = start(HOLD, str(tmp_path))
    with pytest.raises(LockedError, match=f"process {holder.pid}; try again") as caught, change_lock(state, wait=0):
        pytest.fail("both have it")
    assert caught.value.status == EXIT_LOCKED


def test_it_is_free_when_the_holder_is_done(state: int, tmp_path: Path, start: Starter) -> None:
    holder = start(HOLD, str(tmp_path))
    holder.communicate()
    with change_lock(state, wait=0):
        assert (tmp_path / LOCK).read_text() == f"{os.getpid()}\n"


def test_it_is_free_when_the_holder_is_killed(state: int, tmp_path: Path, start: Starter) -> None:
    holder = start(HOLD, str(tmp_path))
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with change_lock(state, wait=0):
        pass


def test_it_is_free_after_an_exception(state: int) -> None:
    with pytest.raises(KeyError), change_lock(state):
        raise KeyError
    with change_lock(state, wait=0):
        pass


def test_whoever_waits_gets_it(state: int, tmp_path: Path, start: Starter) -> None:
    holder = start(HOLD, str(tmp_path))
    waiting = fcntl.flock
    tries = []

    def flock(fd: int, operation: int) -> None:
        tries.append(fd)
        if len(tries) == 3:
            holder.communicate()
        waiting(fd, operation)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fcntl, "flock", flock)
        with change_lock(state, wait=60):
            assert len(tries) == 3
            assert holder.returncode == 0


def test_it_is_not_reentrant(state: int) -> None:
    with change_lock(state), pytest.raises(LockedError), change_lock(state, wait=0):
        pytest.fail("held twice")


def _count_in_two_processes(start: Starter, tmp_path: Path, program: str, times: int) -> int:
    """Two processes add 1 to a number in a file, `times` times each. Returns what the number is in the end."""
    counter = tmp_path / "counter"
    counter.write_text("000000000")
    processes = [start(program, str(tmp_path), str(counter), str(times)) for _ in range(2)]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in processes:
        process.communicate()
    return int(counter.read_text())


def test_two_processes_never_hold_it_at_once(start: Starter, tmp_path: Path) -> None:
    assert _count_in_two_processes(start, tmp_path, COUNT, 500) == 1000


def test_without_it_they_get_in_each_others_way(start: Starter, tmp_path: Path) -> None:
    """The check above can fail: as soon as the two run at the same time."""
    wait_for(lambda: _count_in_two_processes(start, tmp_path, WITHOUT_LOCK + COUNT, 3000) != 6000, "one is missing")


@pytest.mark.parametrize("text", [b"", b"nonsense\n", b"\xff\xfe", b"-1\n"])
def test_a_holder_that_cannot_be_named(state: int, tmp_path: Path, text: bytes) -> None:
    with change_lock(state):
        (tmp_path / LOCK).write_bytes(text)
        with pytest.raises(LockedError, match="another process"), change_lock(state, wait=0):
            pytest.fail("held twice")


def test_a_lock_that_cannot_be_opened(state: int, tmp_path: Path) -> None:
    (tmp_path / LOCK).symlink_to("elsewhere")
    with pytest.raises(RelfsError, match="cannot be had"), change_lock(state):
        pytest.fail("locked through a link")
    assert not (tmp_path / "elsewhere").exists()


def test_a_file_system_without_locks(state: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(_fd: int, _operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(RelfsError, match="No locks available"), change_lock(state):
        pytest.fail("locked without a lock")


def test_without_a_state_directory_nothing_is_locked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Least of all the working directory."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RelfsError, match="state directory"), change_lock(None):
        pytest.fail("locked nothing")
    assert os.listdir(tmp_path) == []


def test_a_lock_that_is_removed_and_cannot_be_made_again(
    state: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which is said, and its descriptor is closed once: by then, that number may be somebody else's."""
    whole, opened, taken = beneath.open_file, list[int](), list[int]()

    def open_file(*what: Any) -> int:
        if opened:
            taken.append(os.open(os.devnull, os.O_RDONLY))
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        opened.append(whole(*what))
        (tmp_path / LOCK).unlink()
        return opened[0]

    monkeypatch.setattr(lock, "open_file", open_file)
    with pytest.raises(RelfsError, match="cannot be had: No such file"), change_lock(state):
        pass
    assert taken == opened, "it has its number"
    os.close(*taken)
