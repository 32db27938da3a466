"""A writer that never pauses, a process of its own: it tries to make a file in `current/`, and to open one for writing.

What it gets open it is told about twice: the kernel says which release that is in, and then `current` says which one is
live. A release that could be written, and is live after that, was open while it was live: no release becomes live twice
in a test that uses this. Writing to one that is not live any more is nobody's fault: the path walk had begun before.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_PROGRAM = """
import errno, json, os, select, sys
app, counter = sys.argv[1], int(sys.argv[2])
tries, live, late, refused = 0, [], [], {}
while True:
    for path, flags in ((f"{app}/current/made-{tries}", os.O_CREAT | os.O_EXCL), (f"{app}/current/index.html", 0)):
        try:
            fd = os.open(path, os.O_WRONLY | flags)
        except OSError as error:
            name = errno.errorcode[error.errno]
            refused[name] = refused.get(name, 0) + 1
        else:
            place = os.path.basename(os.path.dirname(os.readlink(f"/proc/self/fd/{fd}")))
            (live if place == os.path.basename(os.readlink(f"{app}/current")) else late).append(place)
            os.close(fd)
        tries += 1
        os.pwrite(counter, tries.to_bytes(8, "little"), 0)
    if tries == 2:
        print("ready", flush=True)
    if select.select([0], [], [], 0)[0]:
        break
print(json.dumps([tries, live, late, refused]), flush=True)
"""


@dataclass(frozen=True)
class Tried:
    """What a writer got. `live` are the releases that it could write while they were live, `late` those that it could
    once they had been replaced; `refused` counts the rest by errno."""

    tries: int
    live: list[str]
    late: list[str]
    refused: dict[str, int]


class Writer:
    """A running writer; `stop` tells what it got."""

    def __init__(self, app: Path) -> None:
        self._counter = os.memfd_create("tries")
        self._process = subprocess.Popen(
            [sys.executable, "-S", "-E", "-c", _PROGRAM, str(app), str(self._counter)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=[self._counter],
        )  # fmt: skip
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == b"ready\n"

    @property
    def tries(self) -> int:
        """So far."""
        return int.from_bytes(os.pread(self._counter, 8, 0), "little")

    def stop(self) -> Tried:
        out, _ = self._process.communicate(b"\n")
        return Tried(*json.loads(out))

    def end(self) -> None:
        if self._process.poll() is None:
            os.kill(self._process.pid, 9)
            self._process.wait()
        os.close(self._counter)


@contextmanager
def writing(app: Path) -> Iterator[Writer]:
    """A writer to what is current at `app`."""
    writer = Writer(app)
    try:
        yield writer
    finally:
        writer.end()
