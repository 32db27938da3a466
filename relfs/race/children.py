"""The readers and the swapper, seen from the engine: start, ready, stop, what each counted, its certain end.

A child stops when its standard input is closed, so that it also stops if the engine is killed. Each has a
process group of its own, for two reasons: a Ctrl-C at the terminal reaches the engine only, and what a
swapper started can be ended with it. They share the engine's session, as a deploy tool may share one with the
server beside it: that is the harder case for a mount that has to tell the two apart.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import relfs
from relfs.race import reader, swapper
from relfs.race.signals import HeldSignals

_ANSWER_WITHIN = 20.0
_PYTHON = (sys.executable, "-I", "-S")


class ChildError(Exception):
    """The child did not do its part. The text says what happened, for a note."""


@dataclass(frozen=True)
class ReaderCount:
    """What one reader saw. `reads` counts the failed attempts too; `failures` is by name of errno."""

    reads: int
    neither: int
    failures: tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class SwapperCount:
    """What the swapper did. `error` is what the last failing command said."""

    swaps: int
    failures: int
    error: str


class Child:
    """One running child, as a context: leaving it ends the child, whatever happened."""

    def __init__(self, role: str, script: str, arguments: Sequence[str], held: HeldSignals, log: int) -> None:
        self.role = role
        self._held = held
        self._buffer = b""
        self._process = subprocess.Popen(
            [*_PYTHON, script, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            process_group=0,
            env=own_environment(),
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._stdin, self._stdout = self._process.stdin, self._process.stdout

    def __enter__(self) -> Child:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        self._stdout.close()
        end_group(self._process)

    @property
    def output(self) -> int:
        """The descriptor that becomes readable when the child says something or ends."""
        return self._stdout.fileno()

    def wait_ready(self) -> None:
        """Raises ChildError if it does not get ready."""
        self._line()

    def stop(self) -> None:
        """Tell it to stop. Again is nothing."""
        self._stdin.close()

    def counted(self) -> Any:
        """What it says after it was told to stop. Raises ChildError if it says nothing."""
        return json.loads(self._line())

    def _line(self) -> str:
        end = time.monotonic() + _ANSWER_WITHIN
        while b"\n" not in self._buffer:
            if not self._held.wait([self.output], end - time.monotonic()):
                raise ChildError(f"a {self.role} did not answer within {_ANSWER_WITHIN:.0f} s")
            data = os.read(self.output, 65536)
            if not data:
                raise ChildError(f"a {self.role} ended before its time")
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line.decode()


def start_reader(path: str, held: HeldSignals, log: int) -> Child:
    return Child("reader", str(reader.__file__), [f"{path}/current/f"], held, log)


def start_swapper(path: str, command: Sequence[str], held: HeldSignals, log: int) -> Child:
    return Child("swapper", str(swapper.__file__), [path, *command], held, log)


def reader_count(child: Child) -> ReaderCount:
    found = child.counted()
    return ReaderCount(found["reads"], found["neither"], tuple(found["failures"].items()))


def swapper_count(child: Child) -> SwapperCount:
    found = child.counted()
    return SwapperCount(found["swaps"], found["failures"], found["error"])


def own_environment() -> dict[str, str]:
    """For a child that runs this relfs, wherever it was started from.

    Without NOTIFY_SOCKET: that it is ready is no news for whoever started this process.
    """
    root = os.path.dirname(os.path.dirname(os.path.abspath(relfs.__file__)))
    path = os.pathsep.join(part for part in (root, os.environ.get("PYTHONPATH")) if part)
    kept = {name: value for name, value in os.environ.items() if name != "NOTIFY_SOCKET"}
    return {**kept, "PYTHONPATH": path}


def end_group(process: subprocess.Popen[bytes]) -> None:
    """Kill what is left of the group that `process` leads, and reap it.

    The group's number is the leader's, which nobody else can get before the leader is reaped; so a group
    whose leader was reaped already is left alone.
    """
    if process.returncode is None:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):  # only the dead leader is in it: what BSDs say then
            pass
        process.wait()
