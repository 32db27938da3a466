"""What is wrong with a deploy path now, in one line each: the `health` of the status document.

Only looked at, never mended, and nothing is remembered: a line is there for as long as what it tells of. Looking may
take for ever where a file system hangs; whoever must answer looks from a thread (daemon/methods.py).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator

from relfs.errors import RelfsError, reason
from relfs.hold import held
from relfs.layout import CURRENT, DeployPath, Target
from relfs.releases.deployment import read_deployment

_FEW = 16
"""Blocks, or inodes: a switch takes no more than a few of each."""


def health(deploy: DeployPath, target: Target | None, *, told: Iterable[str | None] = ()) -> tuple[str, ...]:
    """What can be seen from outside, after what the parts that serve it `told` of themselves (None: nothing)."""
    return (*(each for each in told if each is not None), *_looked_at(deploy, target))


def _looked_at(deploy: DeployPath, target: Target | None) -> Iterator[str]:
    yield from _gone(deploy)
    if target is not None:
        yield from _live_release(deploy, target)
    yield from _left_deployment(deploy)
    yield from _file_systems(deploy)


def is_removed(directory: int) -> bool:
    """Whether a directory (a descriptor) that holds something as long as it is in use was removed: it has no links left
    (POSIX, rmdir()), and is empty. There are file systems (FUSE) that count no links at all. Raises OSError."""
    return os.fstat(directory).st_nlink == 0 and not os.listdir(directory)


def _gone(deploy: DeployPath) -> Iterator[str]:
    if is_removed(deploy.fd):
        yield f"{deploy.path}: was removed"
    elif deploy.state_fd is not None and is_removed(deploy.state_fd):
        yield f"{deploy.state_path}: was removed"


def _live_release(deploy: DeployPath, target: Target) -> Iterator[str]:
    try:
        os.close(deploy.open_target(target.text))
    except (OSError, ValueError) as error:
        why = reason(error) if isinstance(error, OSError) else str(error)
        wanted = f"the live release {target.release}" if target.release is not None else f"what {CURRENT} leads to"
        yield f"{target.text}: {wanted} cannot be opened: {why}; `relfsctl switch RELEASE` goes to another"


def _left_deployment(deploy: DeployPath) -> Iterator[str]:
    """One that goes on holds the deploy lock; and has taken its note away before it ends, and the lock with it."""
    try:
        left = read_deployment(deploy.state_fd)
        if left is not None and held(deploy.state_fd) is None and read_deployment(deploy.state_fd) == left:
            yield f"{left} was interrupted; the next relfsctl that changes something finishes or undoes it"
    except RelfsError as error:
        yield str(error)


def _file_systems(deploy: DeployPath) -> Iterator[str]:
    """Of the deploy path and of the state directory, which may be kept elsewhere for the first being read-only."""
    apart = deploy.state_fd is not None and os.fstat(deploy.state_fd).st_dev != os.fstat(deploy.fd).st_dev
    yield from _file_system(deploy.path, deploy.fd, may_be_read_only=apart)
    if deploy.state_fd is not None and apart:
        yield from _file_system(deploy.state_path, deploy.state_fd, may_be_read_only=False)


def _file_system(path: str, fd: int, *, may_be_read_only: bool) -> Iterator[str]:
    try:
        found = os.fstatvfs(fd)
    except OSError as error:
        yield f"{path}: its file system does not tell how it is: {reason(error)}"
        return
    if found.f_flag & os.ST_RDONLY:
        if not may_be_read_only:
            yield f"{path}: is mounted read-only; nothing can be switched"
        return
    root = os.geteuid() == 0  # for whom a part of the disk is reserved
    if found.f_blocks and (found.f_bfree if root else found.f_bavail) < _FEW:
        yield f"{path}: the disk is full; a switch may fail"
    if found.f_files and (found.f_ffree if root else found.f_favail) < _FEW:
        yield f"{path}: the disk has no inodes left; a switch may fail"
