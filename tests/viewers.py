"""Processes that say which release they see, and what `relfsctl views` tells of them."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mounting import Mount, environment, relfsctl_command

_READER = 'while read -r _; do cat "$0/current/index.html"; echo; done'
"""Answers each line with what it sees; cat(1) is a process of its own each time."""


def reader_command(mount: Mount) -> list[str]:
    """What says, when asked, which release it sees."""
    return ["sh", "-c", _READER, str(mount.mountpoint)]


class Reader:
    """A process that says, when asked, which release it sees."""

    def __init__(self, command: list[str], *, user: int | None = None) -> None:
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment(), cwd="/", user=user,
            group=user, extra_groups=[] if user is not None else None,
        )  # fmt: skip
        self.pid = self.process.pid

    def sees(self) -> str:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return self.process.stdout.readline().strip()

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()


@contextmanager
def reader(mount: Mount, *words: str, before: tuple[str, ...] = (), user: int | None = None) -> Iterator[Reader]:
    """One that is run by `relfsctl WORDS`, or just run; BEFORE is what runs it."""
    command = [*before, *reader_command(mount)]
    started = Reader(relfsctl_command(mount.mountpoint, *words, "--", *command) if words else command, user=user)
    try:
        yield started
    finally:
        started.end()


def switch(mount: Mount, release: str) -> None:
    done = mount.relfsctl("switch", release)
    assert done.returncode == 0, done.stderr


def views(mount: Mount) -> list[dict[str, Any]]:
    done = mount.relfsctl("--json", "views")
    assert done.returncode == 0, done.stderr
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


def pids_of(view: dict[str, Any]) -> list[int]:
    return [each["pid"] for each in view["processes"]]


def reader_with_pid(mount: Mount, pid: int, *, user: int | None = None) -> Reader:
    """One whose process has the number `pid`, which is free: the next one is told to be that (pid_namespaces(7)), again
    and again, until nobody else has come first."""
    deadline = time.monotonic() + 60
    while True:
        Path("/proc/sys/kernel/ns_last_pid").write_text(str(pid - 1))
        started = Reader(reader_command(mount), user=user)
        if started.pid == pid:
            return started
        started.end()
        assert time.monotonic() < deadline, f"{pid} is always somebody else's"
