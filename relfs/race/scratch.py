"""The scratch directory of a race: made, and removed without ever reaching through a mount.

SCRATCH/app/               the deploy path: releases/v1/f, releases/v2/f, current -> releases/v1
SCRATCH/log                what the children and relfs write to standard error
SCRATCH/probe.*            what trying the host's commands leaves
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from types import TracebackType

from relfs import mountinfo
from relfs.errors import RelfsError, reason

_RELEASES = ("v1", "v2")
_TAIL = 65536
_REMOVED_WITHIN = 5.0


class Scratch:
    """The directory, as a context. `deploy` is the deploy path in it; `log` is open for appending.

    Raises RelfsError if it cannot be made, or cannot be removed because something is still mounted in it.
    """

    def __init__(self, parent: str | None) -> None:
        try:
            # The real path, because that is what the kernel's list of mounts shows.
            self.path = os.path.realpath(tempfile.mkdtemp(prefix="relfs-race-", dir=parent))
        except OSError as error:
            raise RelfsError(f"{parent or tempfile.gettempdir()}: {reason(error)}") from error
        self.deploy = f"{self.path}/app"

    def __enter__(self) -> Scratch:
        try:
            _make_deploy_path(self.deploy)
            self.log = os.open(f"{self.path}/log", os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        except OSError as error:
            shutil.rmtree(self.path, ignore_errors=True)
            raise RelfsError(f"{self.path}: {reason(error)}") from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self.log)
        mounted = self.mounts()
        if mounted:
            raise RelfsError(f"{mounted[0]}: still mounted; unmount it, then remove {self.path}")
        _remove(self.path)

    def last_words(self) -> str:
        """The last line that anybody wrote to the log."""
        text = os.pread(self.log, _TAIL, max(0, os.fstat(self.log).st_size - _TAIL)).decode(errors="replace")
        return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")

    def mounts(self) -> list[str]:
        """Where something is mounted inside, in the order of mounting."""
        try:
            return [mount.target for mount in mountinfo.mounts() if mount.target.startswith(f"{self.path}/")]
        except FileNotFoundError:  # no list of mounts: not Linux, where a race mounts nothing
            return []


def _make_deploy_path(path: str) -> None:
    for name in _RELEASES:
        os.makedirs(f"{path}/releases/{name}")
        with open(f"{path}/releases/{name}/f", "w") as file:
            file.write(name)
    os.symlink(f"releases/{_RELEASES[0]}", f"{path}/current")


def _remove(path: str) -> None:
    """Remove `path`. A command that was killed a moment ago may still finish a call in it: then again."""
    end = time.monotonic() + _REMOVED_WITHIN
    while os.path.lexists(path):
        try:
            shutil.rmtree(path)
        except OSError as error:
            if time.monotonic() > end:
                raise RelfsError(f"{path}: cannot be removed: {reason(error)}") from error
