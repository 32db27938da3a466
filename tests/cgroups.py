"""Control groups of a test's own (cgroups(7), version 2 or 1), for programs that run in them: some limit something."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_ROOT = Path("/sys/fs/cgroup")
_END_SECONDS = 30.0

_LIMITS = {"memory": ("memory.limit_in_bytes", "memory.max"), "pids": ("pids.max", "pids.max")}
_USES = ("memory.current", "memory.usage_in_bytes", "pids.current")

_EVENTS = ("memory.events", "memory.oom_control")


@dataclass(frozen=True)
class PlainGroup:
    """One that limits nothing."""

    path: Path

    def command(self, *command: str) -> list[str]:
        """`command`, in the group from its first moment on."""
        return ["sh", "-c", 'echo $$ > "$0" && exec "$@"', str(self.path / "cgroup.procs"), *command]


@dataclass(frozen=True)
class Group(PlainGroup):
    """`limit_file` takes a number: of bytes, or of threads."""

    limit_file: Path

    def limit(self, number: int | None) -> None:
        """None: as much as there is. Raises OSError if more than that is in use and cannot be given back."""
        all_there_is = "-1" if self.limit_file.name == "memory.limit_in_bytes" else "max"
        self.limit_file.write_text(all_there_is if number is None else str(number))

    @property
    def used(self) -> int:
        """How much is in use; of memory, what the kernel keeps for the sake of speed included."""
        return next(int((self.path / name).read_text()) for name in _USES if (self.path / name).exists())

    @property
    def kills(self) -> int:
        """How many processes were killed for want of memory."""
        told = next(file.read_text() for name in _EVENTS if (file := self.path / name).exists())
        return int(next(line.split()[1] for line in told.splitlines() if line.startswith("oom_kill ")))


@contextmanager
def control_group(controller: str) -> Iterator[Group]:
    """A group without a limit as yet. `controller` is memory or pids."""
    name = f"relfs-test-{os.getpid()}"
    first, second = _LIMITS[controller]
    if (_ROOT / controller / "cgroup.procs").exists():
        path, file = _ROOT / controller / name, first
    else:
        (_ROOT / "cgroup.subtree_control").write_text(f"+{controller}")
        path, file = _ROOT / name, second
    path.mkdir()
    try:
        yield Group(path, path / file)
    finally:
        _remove(path)


def hierarchies() -> list[Path]:
    """Those in which a group without a controller can be made: of version 2, and systemd's own of version 1."""
    places = (_ROOT, _ROOT / "unified", _ROOT / "systemd")
    found = [path for path in places if (path / "cgroup.procs").exists()]
    assert found, f"{_ROOT} has no control groups"
    return found


@contextmanager
def plain_group(hierarchy: Path, name: str) -> Iterator[PlainGroup]:
    """One without a controller."""
    path = hierarchy / name
    path.mkdir()
    try:
        yield PlainGroup(path)
    finally:
        _remove(path)


def _remove(path: Path) -> None:
    """Once the last process in it has ended."""
    deadline = time.monotonic() + _END_SECONDS
    while True:
        try:
            path.rmdir()
            return
        except OSError:
            assert time.monotonic() < deadline, f"{path} still has processes in it"
            time.sleep(0.01)
