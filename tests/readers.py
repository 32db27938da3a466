"""Readers that never pause, each a process of its own: they open a file through `current` and count what goes wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_PROGRAM = """
import errno, json, os, select, sys
path, known = sys.argv[1], {word.encode() for word in sys.argv[2].split(",")}
counter = int(sys.argv[3]) if len(sys.argv) > 3 else None
reads = neither = 0
failed, seen = {}, set()
while True:
    for _ in range(50):
        try:
            fd = os.open(path, os.O_RDONLY)
            content = os.read(fd, 64)
            os.close(fd)
            seen.add(content)
            neither += content not in known
        except OSError as error:
            name = errno.errorcode[error.errno]
            failed[name] = failed.get(name, 0) + 1
        reads += 1
    if counter is not None:
        os.pwrite(counter, reads.to_bytes(8, "little"), 0)
    if reads == 50:
        print("ready", flush=True)
    if select.select([0], [], [], 0)[0]:
        break
print(json.dumps([reads, neither, failed, sorted(word.decode() for word in seen)]), flush=True)
"""


READY = b"ready\n"

_AT_A_TIME = 50
"""So often a reader reads before it tells how often it has."""


@dataclass(frozen=True)
class Seen:
    """What all readers together saw. `reads` counts the failed ones too; `contents` is every content that was read."""

    reads: int
    neither: int
    failed: dict[str, int]
    contents: frozenset[str]


def reader_command(file: Path, *known: str) -> list[str]:
    """One reader: it says READY, reads until a line comes on its standard input, and then tells what `total` takes."""
    return [sys.executable, "-S", "-E", "-c", _PROGRAM, str(file), ",".join(known)]


def total(told: Iterable[bytes]) -> Seen:
    """What readers saw together, of what each told."""
    reads = neither = 0
    failed: dict[str, int] = {}
    contents: set[str] = set()
    for line in told:
        counted = json.loads(line)
        reads += counted[0]
        neither += counted[1]
        for name, count in counted[2].items():
            failed[name] = failed.get(name, 0) + count
        contents |= set(counted[3])
    return Seen(reads, neither, failed, frozenset(contents))


class Readers:
    """Running readers; `stop` tells what they saw."""

    def __init__(self, file: Path, known: tuple[str, ...], count: int, *, session: bool) -> None:
        self._counters = [os.memfd_create("reads") for _ in range(count)]
        self._processes = [
            subprocess.Popen(
                [*reader_command(file, *known), str(counter)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                start_new_session=session,
                pass_fds=[counter],
            )
            for counter in self._counters
        ]
        for process in self._processes:
            assert process.stdout is not None
            assert process.stdout.readline() == READY

    @property
    def reads(self) -> list[int]:
        """How often each of them has read so far; a few more, in truth."""
        return [int.from_bytes(os.pread(counter, 8, 0), "little") for counter in self._counters]

    def have_read_since(self, reads: list[int]) -> bool:
        """Whether each has begun a read, and ended it, since `reads` was asked for."""
        return all(now > before + _AT_A_TIME for before, now in zip(reads, self.reads, strict=True))

    def stop(self) -> Seen:
        return total([process.communicate(b"\n")[0] for process in self._processes])

    def end(self) -> None:
        for process in self._processes:
            if process.poll() is None:
                os.kill(process.pid, 9)
                process.wait()
        for counter in self._counters:
            os.close(counter)


@contextmanager
def reading(file: Path, *known: str, count: int = 2, session: bool = False) -> Iterator[Readers]:
    """Readers of `file`, which may only ever hold one of `known`; in sessions of their own, or in ours."""
    readers = Readers(file, known, count, session=session)
    try:
        yield readers
    finally:
        readers.end()
