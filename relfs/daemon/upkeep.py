"""What relfs itself needs on the disk, and somebody may remove under a mount: how that is noticed, and made again.

A cleaning script that empties `.relfs` takes the control socket and the locks; one that goes behind the mount, the
directory as well. What was in it (the journal, the configuration, a deploy lock) is gone; what is served is in memory,
and in the real link. When the deploy path itself has been removed, there is nothing left to serve.
"""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Awaitable, Callable
from enum import Enum, auto

import trio

from relfs.control import SOCKET
from relfs.daemon.preflight import DAEMON_LOCK
from relfs.errors import RelfsError, reason
from relfs.health import is_removed
from relfs.layout import STATE, DeployPath, make_state
from relfs.threads import in_thread

_log = logging.getLogger(__name__)

_LOOK_SECONDS = 2.0


class Gone(Enum):
    """What was removed. After the first, the others do not matter."""

    DEPLOY_PATH = auto()
    STATE = auto()
    LOCK = auto()
    SOCKET = auto()

    def __str__(self) -> str:
        return self.name.lower()


async def keep_up(
    deploy: DeployPath,
    lock: Callable[[], int],
    make_again: Callable[[Gone], Awaitable[None]],
    leave: Callable[[], None],
) -> None:
    """Look now and then, and have made again what is gone. Ends only when the deploy path is, for which `leave` is
    called. `lock` tells the descriptor of the daemon lock."""
    trouble: str | None = None
    what: Gone | None = None
    while True:
        last, what = what, await _look(deploy, lock())
        if what is Gone.DEPLOY_PATH:
            _log.error("%s: was removed; it is unmounted", deploy.path)
            leave()
            return
        before, trouble = trouble, await _in_vain(make_again, what) if what is not None else None
        if trouble is not None and trouble != before:  # what goes on is said once
            _log.warning("%s: its %s was removed, and cannot be made again: %s", deploy.state_path, what, trouble)
        elif what is not None and trouble is None:
            _log.warning("%s: its %s was removed, and is made again", deploy.state_path, what)
        if what is None or what is last or trouble is not None:  # else there may be more
            await trio.sleep(_LOOK_SECONDS)


async def _look(deploy: DeployPath, lock: int) -> Gone | None:
    """From a thread, for the disk may hang. What it does not tell is not known to be gone."""
    try:
        return await in_thread(gone, deploy, lock, abandon_on_cancel=True)
    except OSError:
        return None


async def _in_vain(make_again: Callable[[Gone], Awaitable[None]], what: Gone) -> str | None:
    """Why it cannot be made again."""
    try:
        await make_again(what)
    except (RelfsError, OSError) as error:
        return str(error)
    return None


def gone(deploy: DeployPath, lock: int) -> Gone | None:
    """The first of what is gone. `lock` is the daemon lock. Raises OSError where the disk does not tell."""
    assert deploy.state_fd is not None
    if is_removed(deploy.fd):
        return Gone.DEPLOY_PATH
    if is_removed(deploy.state_fd):
        return Gone.STATE
    if not _is_lock(deploy.state_fd, lock):
        return Gone.LOCK
    return None if _is_socket(deploy.state_fd) else Gone.SOCKET


def _is_lock(state_fd: int, lock: int) -> bool:
    try:
        return os.path.samestat(os.fstat(lock), os.lstat(DAEMON_LOCK, dir_fd=state_fd))
    except FileNotFoundError:
        return False


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
        made = make_state(name, directory)
    except OSError as error:
        raise RelfsError(f"{deploy.state_path}: was removed, and cannot be made again: {reason(error)}") from error
    os.dup2(made, deploy.state_fd, inheritable=False)
    os.close(made)
