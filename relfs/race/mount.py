"""A relfs mount over the scratch deploy path, for as long as a context lasts.

Nothing here looks into the mount itself: a daemon that does not answer would hold the engine as well. What
has to look is a process that can be killed.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from types import TracebackType

from relfs import libc
from relfs.mountinfo import relfs_mounts
from relfs.processes import Process, descendants, process
from relfs.race.children import end_group, own_environment
from relfs.race.scratch import Scratch
from relfs.race.signals import HeldSignals

_READY_WITHIN = 30.0
_ENDS_WITHIN = 20.0
_DETACH_ROUNDS = 8
_MOUNTINFO = "/proc/self/mountinfo"
_READLINK = "import os, sys; os.readlink(sys.argv[1])"


class MountError(Exception):
    """There is no mount, or no longer. The text says why."""


class Mount:
    """relfs mounted over `scratch.deploy`, as a context. Entering it raises MountError if that fails.

    INVARIANT: inside the context, the process is not reaped, even if it ended, and `_pidfd` refers to it; so
    its process group can be ended at any time without meeting a stranger.
    """

    def __init__(self, scratch: Scratch, command: Sequence[str], held: HeldSignals) -> None:
        self._scratch = scratch
        self._command = [*command, scratch.deploy]
        self._held = held

    def __enter__(self) -> Mount:
        if not sys.platform.startswith("linux"):
            raise MountError("relfs mounts on Linux only")
        log = self._scratch.log
        self._process = subprocess.Popen(
            self._command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            process_group=0,
            env=own_environment(),
        )
        self._pidfd = os.pidfd_open(self._process.pid)
        try:
            self._wait_mounted()
            self._probe()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def check(self) -> None:
        """Raises MountError unless relfs runs and is mounted: else the plain directory was measured."""
        if self._has_ended(0):
            raise MountError(self._why("relfs ended"))
        if not self._is_mounted():
            raise MountError(self._why("the mount went away"))

    def _wait_mounted(self) -> None:
        end = time.monotonic() + _READY_WITHIN
        mountinfo = os.open(_MOUNTINFO, os.O_RDONLY | os.O_CLOEXEC)
        try:
            while not self._is_mounted():
                if self._has_ended(0):
                    raise MountError(self._why("relfs did not mount"))
                if not self._held.wait([self._pidfd], end - time.monotonic(), changed=[mountinfo]):
                    raise MountError(self._why(f"relfs did not mount within {_READY_WITHIN:.0f} s"))
        finally:
            os.close(mountinfo)

    def _probe(self) -> None:
        """The mount is in the kernel's list; now it has to answer."""
        command = [sys.executable, "-I", "-S", "-c", _READLINK, f"{self._scratch.deploy}/current"]
        try:
            status = subprocess.run(command, stderr=self._scratch.log, timeout=_READY_WITHIN).returncode
        except subprocess.TimeoutExpired as error:
            raise MountError("relfs mounted, but does not answer") from error
        self._held.check()
        if status != 0:
            raise MountError(self._why("relfs mounted, but current cannot be read"))

    def _is_mounted(self) -> bool:
        return any(mount.target == self._scratch.deploy for mount in relfs_mounts())

    def _why(self, what: str) -> str:
        said = self._scratch.last_words()
        return f"{what}: {said}" if said else what

    def _has_ended(self, within: float) -> bool:
        return bool(select.select([self._pidfd], [], [], within)[0])

    def _end(self) -> None:
        """SIGTERM and patience; then by force, whatever state it is in. Its processes would bring it back: all at
        once."""
        company = descendants(self._process.pid)
        signal.pidfd_send_signal(self._pidfd, signal.SIGTERM)
        if not self._has_ended(_ENDS_WITHIN):
            for each in company:
                _kill(each)
        end_group(self._process)
        os.close(self._pidfd)
        _detach_all(self._scratch)


def _kill(who: Process) -> None:
    now = process(who.pid)
    if now is not None and now.same(who):
        with suppress(ProcessLookupError, PermissionError):
            os.kill(who.pid, signal.SIGKILL)


def _detach_all(scratch: Scratch) -> None:
    """As a last resort: detach lazily what is still mounted; the outermost first, it takes the rest along."""
    for _ in range(_DETACH_ROUNDS):
        mounted = scratch.mounts()
        if not mounted:
            return
        _detach(mounted[0])


def _detach(path: str) -> None:
    try:
        libc.detach(path)
    except OSError:  # an ordinary user may not, but fusermount3 may; or it went away by itself
        subprocess.run(["fusermount3", "-u", "-z", path], stderr=subprocess.DEVNULL)
