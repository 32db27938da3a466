"""What relfs itself needs on the disk, and somebody may remove under a mount: how that is noticed, and made again.

A cleaning script that empties `.relfs` takes the control socket and the locks; one that goes behind the mount, the
directory as well. What was in it (the journal, the configuration, a deploy lock) is gone; what is served is in memory,
and in the real link. When the deploy path itself has been removed, there is nothing left to serve.
"""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from enum import Enum, auto

from relfs.control import SOCKET
from relfs.errors import RelfsError, reason
from relfs.layout import STATE, DeployPath

UPKEEP_SECONDS = 2.0
"""How often it is looked at."""


class Gone(Enum):
    """What was removed. After the first, the others do not matter."""

    DEPLOY_PATH = auto()
    STATE = auto()
    LOCK = auto()
    SOCKET = auto()


def gone(deploy: DeployPath, lock: int) -> Gone | None:
    """The first of what is gone. `lock` is the daemon lock. A directory or file that is removed while it is open has no
    links left (POSIX, rmdir(), unlink()). Raises OSError where the disk does not tell."""
    assert deploy.state_fd is not None
    for fd, what in ((deploy.fd, Gone.DEPLOY_PATH), (deploy.state_fd, Gone.STATE), (lock, Gone.LOCK)):
        if os.fstat(fd).st_nlink == 0:
            return what
    return None if _is_socket(deploy.state_fd) else Gone.SOCKET


def _is_socket(state_fd: int) -> bool:
    """Or a link to one: see endpoint.py."""
    try:
        return stat.S_ISSOCK(os.stat(SOCKET, dir_fd=state_fd).st_mode)
    except FileNotFoundError:
        return False


def make_state_again(deploy: DeployPath) -> None:
    """Make a state directory that was removed anew, and let `deploy.state_fd` be it. Raises RelfsError."""
    assert deploy.state_fd is not None
    inside = deploy.state_path == f"{deploy.path}/{STATE}"
    name, directory = (STATE, deploy.fd) if inside else (deploy.state_path, None)
    try:
        with suppress(FileExistsError):
            os.mkdir(name, 0o755, dir_fd=directory)
        made = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
    except OSError as error:
        raise RelfsError(f"{deploy.state_path}: was removed, and cannot be made again: {reason(error)}") from error
    os.dup2(made, deploy.state_fd, inheritable=False)
    os.close(made)
