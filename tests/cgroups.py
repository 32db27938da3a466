"""A control group of a test's own that limits memory (cgroups(7), version 2 or 1), for a program that runs in it."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_ROOT = Path("/sys/fs/cgroup")
_END_SECONDS = 30.0


@dataclass(frozen=True)
class MemoryGroup:
    """`limit_file` takes a number of bytes."""

    path: Path
    limit_file: Path

    def command(self, *command: str) -> list[str]:
        """`command`, in the group from its first moment on."""
        return ["sh", "-c", 'echo $$ > "$0" && exec "$@"', str(self.path / "cgroup.procs"), *command]

    def limit(self, size: int) -> None:
        """Bytes. Raises OSError if more than that is in use and cannot be given back."""
        self.limit_file.write_text(str(size))

    @property
    def used(self) -> int:
        """Bytes that are in use, what the kernel keeps for the sake of speed included."""
        names = ("memory.current", "memory.usage_in_bytes")
        return next(int((self.path / name).read_text()) for name in names if (self.path / name).exists())


@contextmanager
def memory_group() -> Iterator[MemoryGroup]:
    """A group without a limit as yet."""
    name = f"relfs-test-{os.getpid()}"
    if (_ROOT / "memory/cgroup.procs").exists():
        path, file = _ROOT / "memory" / name, "memory.limit_in_bytes"
    else:
        (_ROOT / "cgroup.subtree_control").write_text("+memory")
        path, file = _ROOT / name, "memory.max"
    path.mkdir()
    try:
        yield MemoryGroup(path, path / file)
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
