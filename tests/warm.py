"""Mounts for those who need thousands of them: relfs whose processes have all of it imported before they begin.

What a mount costs
------------------
The facts. A mount that is asked what is current, and taken away again, takes 0.46 s of a processor; without starting
interpreters, and importing the same modules in each, it is 0.05 s (Linux 6.18, 2 cores). A power cut may leave
thousands of disks.

The consequence. If each mount is made as a user makes it, looking at all of them takes half an hour.

The choice. A lane is a process that imports all, once, and runs nothing of it. For each mount it forks what a user's
command would become, and in that process a fork takes the place of the interpreter that the standby would be. All else
is as always: the supervisor, the standby and the worker are processes of their own, which run what they always run,
from main() on, and know nothing of each other but what relfs tells them. What they would not have inherited as fresh
interpreters, is closed. Lanes work side by side, for much of a mount's life is waiting.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import socket
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn
from unittest import mock

from mounting import wait_for, wait_ready

from relfs.daemon.plan import Plan, as_text

_PATIENCE_SECONDS = 60
_STARTERS = ("relfs.daemon.start", "relfs.daemon.supervisor", "relfs.daemon.member")
"""The modules that start a process of relfs with `start`."""


@contextmanager
def lanes() -> Iterator[ProcessPoolExecutor]:
    """A pool of lanes: what they are asked to call may use warm_mount()."""
    count = 2 * (os.cpu_count() or 1)
    with ProcessPoolExecutor(count, multiprocessing.get_context("spawn"), _prepare) as pool:
        yield pool


@contextmanager
def warm_mount(plan: Plan, log: Path) -> Iterator[None]:
    """A mount, in a lane, while this lasts; it logs to `log`."""
    signal.signal(signal.SIGALRM, _give_up)
    signal.alarm(_PATIENCE_SECONDS)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ready, log.open("wb") as stderr:
        address = f"relfs-test-{os.urandom(8).hex()}"
        ready.bind(f"\0{address}")
        os.environ["NOTIFY_SOCKET"] = f"@{address}"
        relfs = Forked("mount", as_text(plan), "", stderr=stderr.fileno())
        try:
            wait_ready(ready, relfs, log)
            yield
        finally:
            signal.alarm(0)
            relfs.end()


class Forked:
    """A part of relfs (daemon/start.py), as a fork of this process. It is what Popen is to those who start one."""

    def __init__(self, part: str, *arguments: str, fds: Sequence[int] = (), stderr: int = 2) -> None:
        self._status: int | None = None
        self.pid = os.fork()
        if self.pid == 0:
            _be(part, arguments, fds, stderr)

    def poll(self) -> int | None:
        """Its exit status; None: it runs."""
        if self._status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self._status = os.waitstatus_to_exitcode(status)
        return self._status

    def kill(self) -> None:
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)

    def wait(self) -> int:
        if self._status is None:
            self._status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self._status

    def end(self) -> None:
        """As a service manager does."""
        if self.poll() is None:
            os.kill(self.pid, signal.SIGTERM)
            wait_for(lambda: self.poll() is not None, "relfs ends")


def _be(part: str, arguments: Sequence[str], fds: Sequence[int], stderr: int) -> NoReturn:
    from relfs.daemon.start import main

    status = 1
    try:
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGALRM):
            signal.signal(number, signal.SIG_DFL)
        os.dup2(stderr, 2)
        _keep_only({0, 1, 2, *fds})
        os.setsid()
        os.chdir("/")
        sys.argv = ["relfs", f"relfs-{part}", *arguments]
        main()
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
    finally:
        os._exit(status)


def _keep_only(fds: set[int]) -> None:
    for fd in map(int, os.listdir("/proc/self/fd")):
        if fd not in fds:
            try:
                os.close(fd)
            except OSError:
                pass  # the directory's own, which is closed already


def _prepare() -> None:
    """Become a lane."""
    import relfs.daemon.start
    import relfs.daemon.worker  # noqa: F401 (all that takes time)

    for module in _STARTERS:
        mock.patch(f"{module}.start", Forked).start()
    gc.collect()
    gc.freeze()  # or each fork copies all pages


def _give_up(*_: Any) -> NoReturn:
    raise TimeoutError(f"a mount has not done what it should in {_PATIENCE_SECONDS} seconds")
