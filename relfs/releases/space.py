"""What releases take on disk."""

from __future__ import annotations

import os
import stat
from contextlib import suppress

from relfs.beneath import below
from relfs.layout import RELEASES, DeployPath
from relfs.releases.tree import walk


class Space:
    """Bytes on disk, as du(1) counts them: what has several names (hard links) is counted once, for the release that is
    asked about first."""

    def __init__(self, deploy: DeployPath) -> None:
        self._deploy = deploy
        self._counted: set[tuple[int, int]] = set()

    def of(self, name: str) -> int:
        """What release `name` takes beyond what has been counted. What cannot be looked at takes nothing."""
        try:
            with below(self._deploy.fd, RELEASES, name) as top:
                own = self._blocks(os.fstat(top))
                return own + sum(self._entry(entry) for _, entry in walk(top, lambda _path, _error: None))
        except OSError:
            return 0

    def _entry(self, entry: os.DirEntry[str]) -> int:
        with suppress(FileNotFoundError):  # removed while we were reading
            return self._blocks(entry.stat(follow_symlinks=False))
        return 0

    def _blocks(self, status: os.stat_result) -> int:
        if status.st_nlink > 1 and not stat.S_ISDIR(status.st_mode):
            key = (status.st_dev, status.st_ino)
            if key in self._counted:
                return 0
            self._counted.add(key)
        return status.st_blocks * 512
