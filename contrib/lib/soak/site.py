"""The deploy path of a soak, mounted by the installed relfs, and the processes that serve it.

Every process of relfs has a marker in its environment that it hands on to what it starts: so they are found also when
there is nobody left to ask, and no other mount's processes are ever mistaken for them.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from relfs.control import Connection
from relfs.errors import RelfsError
from relfs.mountinfo import mount_at, mounts
from soak.actors.switcher import RELEASES

FIRST = "1"
"""The release that is current at first."""

PINNED, CANARY = str(RELEASES + 1), str(RELEASES + 2)
"""Two more that are never current: who sees one of them has been given it."""

_PYTHON = os.path.realpath(sys.executable)
_BIN = Path(sys.prefix) / "bin"
_MARKER = "RELFS_SOAK"
_DONE = ("done", "recovered")
_GRACE = 60
_ANSWER_SECONDS = 1.0
_POLL_SECONDS = 0.01


class SoakError(Exception):
    """One line for whoever runs it: what stands in the way."""


@dataclass(frozen=True)
class Pids:
    """Who serves the mount. None: not there yet."""

    supervisor: int | None
    worker: int | None
    standby: int | None

    def alive(self) -> tuple[int, ...]:
        """Those that can run: neither dead nor stopped."""
        return tuple(pid for pid in (self.supervisor, self.worker, self.standby) if pid is not None and _runs(pid))


@dataclass(frozen=True)
class Site:
    """`variables` are for relfs's environment."""

    app: Path
    variables: dict[str, str]

    @property
    def page(self) -> Path:
        return self.app / "current/index.html"

    @property
    def relfsctl(self) -> str:
        return str(_BIN / "relfsctl")

    def mount(self) -> None:
        """Raises SoakError."""
        _run([str(_BIN / "relfs"), str(self.app)], {**_environment(), **self.variables})

    def ctl(self, *arguments: str) -> str:
        """What relfsctl prints. Raises SoakError."""
        return _run([self.relfsctl, "-C", str(self.app), *arguments], _environment())

    def journal(self) -> list[str]:
        """The releases that were switched to, oldest first."""
        events = [json.loads(line) for line in self.ctl("--json", "log").splitlines()]
        return [each["release"] for each in events if each["action"] == "switch" and each["outcome"] in _DONE]

    def log(self) -> list[str]:
        """What relfs logged, as far as it is kept."""
        files = (self.app / ".relfs" / name for name in ("log.1", "log"))
        return [line for file in files if file.exists() for line in file.read_text(errors="replace").splitlines()]

    def status(self) -> dict[str, Any] | None:
        """What the worker says; None if it does not answer at once."""
        try:
            connection = Connection((f"{self.app}/.relfs",))
        except RelfsError:
            return None
        try:
            answer: dict[str, Any] = connection.call("status", {}, seconds=_ANSWER_SECONDS)
        except (RelfsError, ConnectionError):
            return None
        else:
            return answer
        finally:
            connection.close()

    def pids(self) -> Pids | None:
        """Who serves the mount, by the worker's own word."""
        if (status := self.status()) is None:
            return None
        return Pids(status["supervisor_pid"], status["worker_pid"], status["standby_pid"])

    def wait_for_pids(self, enough: Callable[[Pids], bool], seconds: float) -> Pids:
        """Until those who serve are `enough`. Raises SoakError after `seconds`, or once nothing is mounted any more."""
        end = time.monotonic() + seconds
        while (pids := self.pids()) is None or not enough(pids):
            if time.monotonic() > end or not self.is_mounted():
                raise SoakError(f"relfs does not recover: {self._serving(pids)}")
            time.sleep(_POLL_SECONDS)
        return pids

    def _serving(self, pids: Pids | None) -> str:
        if not self.is_mounted():
            return "nothing is mounted any more"
        return str(pids) if pids is not None else "no worker answers"

    def processes(self) -> list[int]:
        """All of relfs that serves this site."""
        return [pid for pid in _all_pids() if self._is_marked(pid) and _is_python(pid)]

    def guards(self) -> list[int]:
        """Those that wait to detach the mount once all others are gone: fusermount3, and a shell."""
        return [pid for pid in _all_pids() if self._is_marked(pid) and not _is_python(pid)]

    def _is_marked(self, pid: int) -> bool:
        wanted = f"{_MARKER}={self.variables[_MARKER]}".encode()
        return wanted in _read(pid, "environ").split(b"\0") and _state(pid) != "Z"

    def is_mounted(self) -> bool:
        return any(mount.target == str(self.app) and mount.fstype == "fuse.relfs" for mount in mounts())

    def unmount(self) -> None:
        """By relfs, if that answers; in any case it is gone afterwards, with all processes."""
        if self.is_mounted():
            with suppress(SoakError):
                self.ctl("unmount")
        end = time.monotonic() + 10
        while self.processes() and time.monotonic() < end:
            time.sleep(_POLL_SECONDS)

    def clean_up(self) -> None:
        """What was left, if anything went wrong."""
        for pid in (*self.processes(), *self.guards()):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        while mount_at(str(self.app)) is not None:
            if subprocess.run(["umount", "-i", "-l", self.app], check=False, capture_output=True).returncode:
                break


@contextmanager
def new_site(directory: Path, variables: dict[str, str]) -> Iterator[Site]:
    """A deploy path `app` with many releases in the existing `directory`; not mounted. At the end, it is not either."""
    app = directory / "app"
    app.mkdir()
    for name in (*map(str, range(1, RELEASES + 1)), PINNED, CANARY):
        release = app / "releases" / name
        release.mkdir(parents=True)
        (release / "index.html").write_text(f"{name}\n")
    (app / "shared").mkdir()
    (app / "current").symlink_to(f"releases/{FIRST}")
    (app / ".relfs").mkdir()
    (app / ".relfs/config.toml").write_text(f"[replacement]\ngrace = {_GRACE}\n")
    site = Site(app.resolve(), {**variables, _MARKER: os.urandom(8).hex()})
    try:
        yield site
    finally:
        site.clean_up()


@contextmanager
def scratch(parent: Path, *, keep: bool = False) -> Iterator[Path]:
    """A new directory in `parent`, removed at the end: not what is mounted there, and not if it is to be kept."""
    directory = Path(tempfile.mkdtemp(prefix="relfs-soak-", dir=parent)).resolve()
    try:
        yield directory
    finally:
        if not keep:
            subprocess.run(["rm", "-rf", "--one-file-system", directory], check=False)


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name not in ("RELFS_PATH", "RELFS_STATE_DIR")}


def _run(words: list[str], environment: dict[str, str]) -> str:
    done = subprocess.run(
        words, stdin=subprocess.DEVNULL, capture_output=True, text=True, cwd="/", env=environment, check=False
    )
    if done.returncode != 0:
        raise SoakError(f"{' '.join(words)}: status {done.returncode}: {done.stderr.strip()}")
    return done.stdout


# ---- processes -----------------------------------------------------------------------------------------------------


def _all_pids() -> list[int]:
    return sorted(int(name) for name in os.listdir("/proc") if name.isdecimal())


def _read(pid: int, name: str) -> bytes:
    """A file of proc(5); empty if the process has ended."""
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except OSError:
        return b""


def _state(pid: int) -> str:
    """As stat tells; X: it has ended."""
    after = _read(pid, "stat").rpartition(b")")[2].split()
    return after[0].decode() if after else "X"


def _is_python(pid: int) -> bool:
    try:
        return os.readlink(f"/proc/{pid}/exe") == _PYTHON
    except OSError:
        return False


def _runs(pid: int) -> bool:
    return _state(pid) not in "XZTt"
