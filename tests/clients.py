"""Those who use relfs: relfsctl as any user and on a terminal, raw clients of the control socket, and what they left.

No checks of a test's own are here, only the questions that many tests ask.
"""

from __future__ import annotations

import json
import os
import pty
import select
import socket
import stat
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mounting import environment

SECONDS = 120.0
"""After this long a command hangs, which fails the test; nothing is measured by it."""

_VOLATILE = ("lock", "daemon.lock", "log")


@dataclass(frozen=True)
class Done:
    """A command that has ended. Bytes that are no UTF-8 are surrogates in `out` and `err`."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def rows(self) -> list[list[str]]:
        return [line.split("\t") for line in self.out.splitlines()]


def ctl_command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "relfs.cli.relfsctl", *map(str, arguments)]


def clean_environment(**more: str) -> dict[str, str]:
    """As a test's user has it: no deploy path of the developer's own is meant by accident."""
    base = environment()
    for name in ("RELFS_PATH", "RELFS_STATE_DIR", "NOTIFY_SOCKET"):
        base.pop(name, None)
    return {**base, **more}


def ctl(
    *arguments: str | Path,
    cwd: str | Path = "/",
    user: int | None = None,
    groups: list[int] | None = None,
    env: dict[str, str] | None = None,
    seconds: float = SECONDS,
) -> Done:
    """Run relfsctl with exactly these arguments, as `user` if one is given; after so many `seconds`, it hangs."""
    done = subprocess.run(
        ctl_command(*arguments),
        capture_output=True,
        stdin=subprocess.DEVNULL,
        cwd=cwd,
        env=clean_environment(**(env or {})),
        user=user,
        group=user,
        extra_groups=(groups or []) if user is not None else None,
        check=False,
        timeout=seconds,
    )
    return Done(done.returncode, os.fsdecode(done.stdout), os.fsdecode(done.stderr))


def ctl_on_terminal(*arguments: str | Path) -> tuple[int, str]:
    """Run relfsctl with its output on a terminal; status and what was shown."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        ctl_command(*arguments),
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        cwd="/",
        env=clean_environment(TERM="xterm"),
    )
    os.close(theirs)
    shown = b""
    try:
        while data := _read_terminal(ours):
            shown += data
        return process.wait(SECONDS), os.fsdecode(shown).replace("\r\n", "\n")
    finally:
        os.close(ours)
        process.kill()
        process.wait()


def _read_terminal(ours: int) -> bytes:
    ready, _, _ = select.select([ours], [], [], SECONDS)
    assert ready, "the command went silent"
    try:
        return os.read(ours, 1 << 16)
    except OSError:  # EIO: the other side is closed (pty(7))
        return b""


@contextmanager
def running(*arguments: str | Path, env: dict[str, str] | None = None) -> Iterator[subprocess.Popen[str]]:
    """relfsctl that goes on running; it is ended, by its own pid, if it has not by itself."""
    process = subprocess.Popen(
        ctl_command(*arguments),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="surrogateescape",
        env=clean_environment(**(env or {})),
        cwd="/",
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def has_looked(process: subprocess.Popen[Any]) -> bool:
    """Whether a program that looks now and then has done so, and sleeps until the next time (proc(5), stack)."""
    return "nanosleep" in Path(f"/proc/{process.pid}/stack").read_text()


def next_line(process: subprocess.Popen[str]) -> str:
    """The next line that `process` prints."""
    assert process.stdout is not None
    ready, _, _ = select.select([process.stdout], [], [], SECONDS)
    assert ready, "nothing was printed"
    return process.stdout.readline()


def assert_one_line(done: Done, status: int, *words: str) -> None:
    """It ended with `status`, and said so in one line that has `words`, and nothing else."""
    assert done.status == status, done
    assert len(done.err.splitlines()) == 1, done
    assert done.err.endswith("\n")
    assert done.out == ""
    for word in words:
        assert word in done.err, done


def snapshot(top: Path) -> dict[str, tuple[int, object]]:
    """Every name below `top` with its mode and what it holds; locks and logs by name and mode only."""
    found: dict[str, tuple[int, object]] = {}
    for directory, directories, files in os.walk(top):
        for name in (*directories, *files):
            path = f"{directory}/{name}"
            found[os.path.relpath(path, top)] = (os.lstat(path).st_mode, _content(path, name))
    return found


def _content(path: str, name: str) -> object:
    mode = os.lstat(path).st_mode
    if stat.S_ISLNK(mode):
        return os.readlink(path)
    if stat.S_ISREG(mode) and name not in _VOLATILE:
        return Path(path).read_bytes()
    return None


class RawClient:
    """A client of the control socket that may say anything, and that knows nothing of retries."""

    def __init__(self, state: Path) -> None:
        directory = os.open(state, os.O_PATH | os.O_DIRECTORY)
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", int(SECONDS), 0))
        try:
            self.socket.connect(f"/proc/self/fd/{directory}/control")
        finally:
            os.close(directory)
        self.socket.settimeout(SECONDS)  # not before: it would not wait for a place in the queue (EAGAIN)
        self._buffer = b""

    def __enter__(self) -> RawClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def say(self, method: str, params: object = None, number: object = 1) -> None:
        message = {"jsonrpc": "2.0", "id": number, "method": method, "params": {} if params is None else params}
        self.socket.sendall(json.dumps(message).encode() + b"\n")

    def hear(self) -> dict[str, Any] | None:
        """The next message; None: the connection was closed."""
        while b"\n" not in self._buffer:
            try:
                data = self.socket.recv(1 << 16)
            except ConnectionError:
                return None
            if not data:
                return None
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        message: dict[str, Any] = json.loads(line)
        return message

    def ask(self, method: str, params: object = None, number: object = 1) -> dict[str, Any]:
        self.say(method, params, number)
        answer = self.hear()
        assert answer is not None, "the connection was closed instead of an answer"
        return answer

    def switch(self, release: str, request: str) -> dict[str, Any]:
        return self.ask("switch", {"release": release, "request": request})

    def is_cut_off(self) -> bool:
        """Whether the daemon closes the connection; what it still says before that is passed over."""
        deadline = time.monotonic() + SECONDS
        while self.hear() is not None:
            assert time.monotonic() < deadline, "the daemon goes on talking"
        return True
