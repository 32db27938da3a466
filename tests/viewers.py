"""Processes that say which release they see, and what `relfsctl views` tells of them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
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
        if self.process.poll() is None:
            os.kill(self.pid, signal.SIGKILL)
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


_WITH_PID = """
import ctypes, errno, os, signal, sys, time
number, command = int(sys.argv[1]), sys.argv[2:]
libc, wanted = ctypes.CDLL(None, use_errno=True), ctypes.c_int(number)
words = (0, 0, 0, 0, signal.SIGCHLD, 0, 0, 0, ctypes.addressof(wanted), 1, 0)
for _ in range(6000):
    pid = libc.syscall(435, (ctypes.c_uint64 * len(words))(*words), 8 * len(words))
    if pid == 0:
        os.execvp(command[0], command)
    if pid > 0 or ctypes.get_errno() != errno.EEXIST:
        break
    time.sleep(0.01)
print(pid, flush=True)
os.waitpid(pid, 0)
"""
"""Runs a command under the number that it is told, once that is free, and says so: clone3(2), set_tid."""


def reader_with_pid(mount: Mount, pid: int, *, user: int | None = None) -> Reader:
    """One whose process has the number `pid`."""
    become = () if user is None else ("setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups")
    started = Reader([sys.executable, "-c", _WITH_PID, str(pid), *become, *reader_command(mount)])
    assert started.process.stdout is not None
    told = started.process.stdout.readline().strip()
    assert told == str(pid), f"{pid} cannot be had"
    started.pid = pid
    return started
