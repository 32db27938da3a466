"""A real mount for a test: relfs as a user starts it, and a teardown that always detaches.

The daemon runs in the foreground as a child process and tells through $NOTIFY_SOCKET that it is ready. What it logs is
kept: a test fails on any line above INFO that it did not announce with `Mount.expect_log`.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from relfs.mountinfo import mount_at
from relfs.mounts import detach, detach_only

READY_SECONDS = 60
END_SECONDS = 60

_LOUD = re.compile(r"^\S+ \S+ (WARNING|ERROR|CRITICAL) ", re.MULTILINE)


def environment(**more: str) -> dict[str, str]:
    """This process's environment, such that a child finds the relfs that is being tested, compiled once."""
    root = str(Path(__file__).resolve().parent.parent)
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return {**kept, "PYTHONPATH": root, "PYTHONUNBUFFERED": "1", **more}


def relfs_command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "relfs.cli.relfs", *map(str, arguments)]


def relfsctl_command(app: str | Path, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "relfs.cli.relfsctl", "-C", str(app), *arguments]


def relfsctl(app: str | Path, *arguments: str, user: int | None = None) -> subprocess.CompletedProcess[str]:
    """Run relfsctl on `app`, as `user` if one is given; the caller looks at the status."""
    return subprocess.run(
        relfsctl_command(app, *arguments),
        capture_output=True,
        text=True,
        env=environment(),
        cwd="/",
        check=False,
        timeout=120,
        user=user,
        group=user,
        extra_groups=[] if user is not None else None,
    )


class Process(Protocol):
    """What runs, or has ended."""

    def poll(self) -> int | None:
        """Its exit status; None: it runs."""


@dataclass
class Mount:
    """A running `relfs -f`, mounted at `mountpoint`."""

    app: Path
    mountpoint: Path
    log: Path
    process: subprocess.Popen[bytes]
    user: int | None = None
    expected: list[str] = field(default_factory=list)

    def relfsctl(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return relfsctl(self.mountpoint, *arguments, user=self.user)

    def status(self) -> dict[str, Any]:
        done = self.relfsctl("--json", "status")
        assert done.returncode == 0, done.stderr
        status: dict[str, Any] = json.loads(done.stdout)
        return status

    def requests(self) -> dict[str, int]:
        """How many requests of each kind reached the daemon."""
        requests: dict[str, int] = self.status()["requests"]
        return requests

    def journal(self) -> list[dict[str, Any]]:
        done = self.relfsctl("--json", "log")
        assert done.returncode == 0, done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()]

    def pids(self) -> dict[str, int]:
        """The processes of the mount that are known now, by what they are."""
        status = self.status()
        return {
            role: pid for role in ("supervisor", "worker", "standby") if (pid := status[f"{role}_pid"]) is not None
        }  # fmt: skip

    @property
    def worker_pid(self) -> int:
        """The process that serves."""
        return self.pids()["worker"]

    def signal(self, number: int) -> None:
        """Send a signal to all of them, before any of them can do anything about it."""
        pids = self.pids().values()
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        for pid in pids:
            os.kill(pid, number)

    def kill(self) -> None:
        """Kill all of it at once."""
        wait_for(lambda: len(self.pids()) == 3, "the mount has all of its processes")
        self.signal(signal.SIGKILL)
        self.process.wait()

    def expect_log(self, pattern: str) -> None:
        """Announce a line above INFO."""
        self.expected.append(pattern)

    def terminate(self) -> int:
        """End the daemon as a service manager does; its exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(END_SECONDS)

    def loud_lines(self) -> list[str]:
        """What was logged above INFO and not announced."""
        return [line for line in loud_lines(self.log) if not any(re.search(each, line) for each in self.expected)]


def loud_lines(log: Path) -> list[str]:
    """What was logged above INFO."""
    return [line for line in log.read_text(errors="replace").splitlines() if _LOUD.match(line)]


class Mounts:
    """Makes mounts, and takes all of them away at the end, whatever the test did to them."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._mounts: list[Mount] = []

    def start(
        self,
        app: Path,
        *arguments: str | Path,
        at: Path | None = None,
        user: int | None = None,
        command: Callable[..., list[str]] = relfs_command,
        patch: str | None = None,
    ) -> Mount:
        """Mount `app` (over itself, or `at` a directory) and wait until it says that it is ready. `patch` is a program
        that changes what serves, before it does."""
        number = len(self._mounts)
        log = self._directory / f"relfs-{number}.log"
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ready, open(log, "wb") as stderr:
            address = f"@relfs-test-{os.urandom(8).hex()}"  # abstract, so that any user can reach it
            ready.bind(address.replace("@", "\0", 1))
            process = subprocess.Popen(
                command("-f", *arguments, app, *([at] if at is not None else [])),
                stdin=subprocess.DEVNULL,
                stderr=stderr,
                env=environment(NOTIFY_SOCKET=address, **self._patched(number, patch)),
                cwd="/",
                user=user,
                group=user,
                extra_groups=[] if user is not None else None,
            )
            mount = Mount(app, at if at is not None else app, log, process, user)
            self._mounts.append(mount)
            wait_ready(ready, process, log)
        return mount

    def _patched(self, number: int, patch: str | None) -> dict[str, str]:
        """An environment in which standbys, and the workers that they fork, run `patch` before all else (site.py)."""
        if patch is None:
            return {}
        place = self._directory / f"patch-{number}"
        place.mkdir()
        program = f"import sys\nif 'relfs-standby' in sys.orig_argv:\n    exec({patch!r})\n"
        (place / "sitecustomize.py").write_text(program)
        return {"PYTHONPATH": f"{place}:{environment()['PYTHONPATH']}"}

    def take_away(self) -> None:
        """End every daemon, detach every mount, and fail if one had something to say. The last one goes first: it may
        be where an earlier one was, whose daemon is dead, and its own shall not lose the mount while it is at work."""
        loud = []
        for mount in reversed(self._mounts):
            if mount.process.poll() is None:
                mount.process.send_signal(signal.SIGCONT)
                mount.process.terminate()
                try:
                    mount.process.wait(END_SECONDS)
                except subprocess.TimeoutExpired:
                    mount.process.kill()
                    mount.process.wait()
            while (found := mount_at(str(mount.mountpoint))) is not None and found.fstype == "fuse.relfs":
                detach_only(found)
            loud += mount.loud_lines()
        assert not loud, "logged above INFO, unannounced:\n" + "\n".join(loud)


@contextlib.contextmanager
def held(link: Path) -> Iterator[None]:
    """The kernel does not forget it, as it may what nobody holds if it needs the memory, or is told to."""
    fd = os.open(link, os.O_PATH | os.O_NOFOLLOW)
    try:
        yield
    finally:
        os.close(fd)


def detach_all(place: Path) -> None:
    """Take away whatever is mounted there, one on the other: a mount of relfs, too, that a failed test has left."""
    while (found := mount_at(str(place))) is not None:
        if found.fstype == "fuse.relfs":
            detach_only(found)  # the same one may be taken away by its guard just now
        else:
            detach(str(place))


def wait_ready(ready: socket.socket, process: Process, log: Path) -> None:
    """Wait for it to be said on the notify socket `ready`; fail with what was logged if `process` ends instead."""
    ready.settimeout(0.1)
    for _ in range(READY_SECONDS * 10):
        with contextlib.suppress(TimeoutError):
            if b"READY=1" in ready.recv(4096):
                return
        if process.poll() is not None:
            break
    raise AssertionError(f"relfs did not get ready:\n{log.read_text()}")


def wait_for(condition: Any, what: str, seconds: float = 60.0) -> None:
    """Poll a condition; fail with `what` if it does not come true. Never a measure of speed."""
    import time

    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"did not happen: {what}"
        time.sleep(0.005)
