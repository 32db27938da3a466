"""Doing many small pieces of work on the files of a release with all processors: a pool of forked processes.

Some facts. What a release costs is system calls, a dozen for each file, and Python makes them under one lock, so
threads do not help. fork(2) takes a few milliseconds and hands everything over: the list of pieces, open descriptors.
Where there is one processor, or little to do, it costs more than it gives.

The choice. The pieces are known before the fork; a pipe holds their numbers, and whoever is free reads the next one (a
read(2) of a few bytes from a pipe is one piece or none). Each process keeps what its pieces gave until the end, then
sends it in one message. A failure is sent at once, and ends all the others. They end with their parent, too: by its
order, or, if that is killed, by the kernel's (PR_SET_PDEATHSIG, prctl(2)). What they have done, memory they share tells
(`Counter`), so that somebody can watch. Meanwhile, no process looks for garbage: what they give is many small things
that are all kept, and to go through them again and again takes three times as long as to receive them.
"""

from __future__ import annotations

import gc
import mmap
import os
import pickle
import selectors
import signal
import struct
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, NoReturn, TypeVar

from relfs import libc
from relfs.errors import RelfsError

_Piece = TypeVar("_Piece")
_Result = TypeVar("_Result")

_NUMBER = struct.Struct("=H")
PIECES_MAX = 4096
"""As many numbers as fit into a pipe whose capacity was cut down to a few pages (pipe(7))."""

_COUNTS = struct.Struct("=QQ")
_PROCESSES_MAX = 8
_WATCH_SECONDS = 0.1
_FEW_FILES = 300
"""Below this, forking costs more than it gives."""


@dataclass(frozen=True)
class Progress:
    """What is done, and what there is to do (None: nobody knows). `bytes` are of files' contents; `share` is how much
    of the whole is done, from 0 to 1, where that is all that is known."""

    files: int
    bytes: int
    files_total: int | None = None
    bytes_total: int | None = None
    share: float | None = None


class Counter:
    """What one process has done."""

    def __init__(self, memory: mmap.mmap, number: int) -> None:
        self._memory = memory
        self._at = number * _COUNTS.size
        self._files = 0
        self._bytes = 0

    def add_file(self) -> None:
        self._files += 1
        self._tell()

    def add_bytes(self, count: int) -> None:
        self._bytes += count
        self._tell()

    def _tell(self) -> None:
        _COUNTS.pack_into(self._memory, self._at, self._files, self._bytes)


def run_all(
    pieces: Sequence[_Piece],
    work: Callable[[_Piece, Counter], _Result],
    *,
    files: int,
    watch: Callable[[int, int], None] | None = None,
) -> list[_Result]:
    """What `work` gives for each of the pieces, in any order. It must not rely on anything that it changes in memory.

    `files` is how many there are in all; `watch` is told now and then how many files and bytes are done. At most
    PIECES_MAX pieces. Raises what `work` does: OSError and RelfsError; RelfsError for a process that was killed.
    """
    assert len(pieces) <= PIECES_MAX
    count = min(_processors(), len(pieces), _PROCESSES_MAX) if files >= _FEW_FILES else 1
    memory = mmap.mmap(-1, _COUNTS.size * _PROCESSES_MAX)
    watching = _watching(memory, watch)
    try:
        with _nothing_collected():
            if count <= 1:
                return _run_here(pieces, work, Counter(memory, 0), watching)
            return _run_forked(pieces, work, memory, count, watching)
    finally:
        memory.close()


@contextmanager
def _nothing_collected() -> Iterator[None]:
    """Nor by the processes that are forked in it."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _watching(memory: mmap.mmap, watch: Callable[[int, int], None] | None) -> Callable[[], None]:
    def tell() -> None:
        if watch is not None:
            counts = [_COUNTS.unpack_from(memory, number * _COUNTS.size) for number in range(_PROCESSES_MAX)]
            watch(sum(each[0] for each in counts), sum(each[1] for each in counts))

    return tell


def _processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _run_here(
    pieces: Iterable[_Piece], work: Callable[[_Piece, Counter], _Result], counter: Counter, watching: Callable[[], None]
) -> list[_Result]:
    results = []
    for piece in pieces:
        results.append(work(piece, counter))
        watching()
    return results


def _run_forked(
    pieces: Sequence[_Piece],
    work: Callable[[_Piece, Counter], _Result],
    memory: mmap.mmap,
    count: int,
    watching: Callable[[], None],
) -> list[_Result]:
    numbers = _pipe_of(range(len(pieces)))
    children: list[_Child] = []
    try:
        for number in range(count):
            children.append(_fork(lambda number=number: _work_off(numbers, pieces, work, Counter(memory, number))))  # type: ignore[misc]
        return [result for results in _collect(children, watching) for result in results]
    finally:
        os.close(numbers)
        for child in children:
            child.end()


def _pipe_of(numbers: Iterable[int]) -> int:
    reading, writing = os.pipe()
    os.write(writing, b"".join(map(_NUMBER.pack, numbers)))
    os.close(writing)
    return reading


def _work_off(
    numbers: int, pieces: Sequence[_Piece], work: Callable[[_Piece, Counter], _Result], counter: Counter
) -> list[_Result]:
    results = []
    while number := os.read(numbers, _NUMBER.size):
        results.append(work(pieces[_NUMBER.unpack(number)[0]], counter))
    return results


@dataclass
class _Child:
    """A forked process, and the pipe that it sends its one message through."""

    pid: int
    pipe: int
    received: bytearray

    def end(self) -> None:
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        os.close(self.pipe)


def _fork(work: Callable[[], Any]) -> _Child:
    parent = os.getpid()
    reading, writing = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        _be_child(parent, writing, work)
    os.close(writing)
    return _Child(pid, reading, bytearray())


def _be_child(parent: int, pipe: int, work: Callable[[], Any]) -> NoReturn:
    """Never returns, whatever happens: nothing of the parent's may run twice."""
    try:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # of a terminal: the parent ends us
            signal.signal(number, signal.SIG_IGN)
        libc.die_with_parent(signal.SIGKILL)
        if os.getppid() == parent:
            _send(pipe, _outcome(work))
    finally:
        os._exit(0)


def _outcome(work: Callable[[], Any]) -> tuple[bool, Any]:
    try:
        return True, work()
    except (OSError, RelfsError, MemoryError) as error:
        return False, error
    except BaseException as error:
        return False, RelfsError(f"{type(error).__name__}: {error}")


def _send(pipe: int, outcome: tuple[bool, Any]) -> None:
    with open(pipe, "wb") as file:
        pickle.dump(outcome, file, pickle.HIGHEST_PROTOCOL)


def _collect(children: Sequence[_Child], watching: Callable[[], None]) -> list[Any]:
    results = []
    with selectors.DefaultSelector() as selector:
        for child in children:
            selector.register(child.pipe, selectors.EVENT_READ, child)
        while selector.get_map():
            for key, _ in selector.select(_WATCH_SECONDS):
                child = key.data
                part = os.read(child.pipe, 1 << 20)
                child.received += part
                if not part:
                    selector.unregister(child.pipe)
                    results.append(_result_of(child))
            watching()
    return results


def _result_of(child: _Child) -> Any:
    """Raises what the child has."""
    if not child.received:
        raise RelfsError("a process that was working on the files has been killed; try again")
    done, result = pickle.loads(child.received)  # from our own child, by a pipe that nobody else has
    if not done:
        raise result
    return result
