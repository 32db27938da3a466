"""Making a deploy path, and taking over what is there.

Adoption
--------
A real directory `current` is to become a release, with a link in its place, and no request may fail in between. The
facts: rename(2) replaces names one at a time, but renameat2(RENAME_EXCHANGE) swaps two at once, whatever they are. The
choice: the link is made first under the name that the release will have, where its text (releases/NAME) is of no use to
anybody yet; then the two names are exchanged, and in that step the directory is the release and the link leads to it.

A power cut. The facts: file systems that can exchange names do it in one step of their journal (ext4, XFS, btrfs,
f2fs), so that both are found changed, or neither; but the link may be found without its text, if that was not flushed
(pointer.py, "The order of a durable switch"). The choice: syncfs(2) between the two steps, which flushes the release's
data as well, and fsync(2) of both directories after them, before the journal tells of it.

Root may be asked to adopt what belongs to somebody else, who may have made `releases` a link to any directory: nothing
is made, and no directory of his is moved, through that.
"""

from __future__ import annotations

import errno
import itertools
import os
import stat
from dataclasses import dataclass

from relfs.beneath import open_directory
from relfs.errors import RefusedError, RelfsError, reason
from relfs.layout import CURRENT, RELEASES, SHARED, DeployPath, check_name, open_deploy_path
from relfs.libc import RENAME_EXCHANGE, renameat2, syncfs
from relfs.lock import change_lock
from relfs.mountinfo import relfs_mounts
from relfs.pointer import Pointer


@dataclass(frozen=True)
class Made:
    """What came of it. `adopted` is the release that a real directory `current` became."""

    deploy_path: str
    current: str | None
    adopted: str | None


def initialise(path: str, release: str | None, state_dir: str | None = None) -> Made:
    """Make what is missing below `path`, and adopt a real directory `current` as `release` (default: the next number).

    Raises RelfsError, UsageError for a bad name, RefusedError if that release exists.
    """
    if release is not None:
        check_name(release)
    if any(mount.target == path for mount in relfs_mounts()):
        raise RelfsError(f"{path}: is mounted, so it is a deploy path already")
    _make_directories(path)
    deploy = open_deploy_path(path, state_dir=state_dir)
    try:
        with change_lock(deploy.state_fd, shown=deploy.state_path):
            adopted = _adopt(deploy, release)
        target = Pointer(deploy).target
        _flush(deploy)  # what was made, the deploy path itself included
        return Made(deploy.path, target.label if target is not None else None, adopted)
    finally:
        deploy.close()


def _make_directories(path: str) -> None:
    for directory in (path, *(f"{path}/{name}" for name in (RELEASES, SHARED))):
        try:
            os.makedirs(directory, 0o755, exist_ok=True)
        except OSError as error:
            raise RelfsError(f"{directory}: cannot be made: {reason(error)}") from error


def _adopt(deploy: DeployPath, release: str | None) -> str | None:
    try:
        mode = os.lstat(CURRENT, dir_fd=deploy.fd).st_mode
    except FileNotFoundError:
        return None
    if not stat.S_ISDIR(mode):
        return None
    try:
        releases = open_directory(deploy.fd, RELEASES)
    except OSError as error:
        raise RelfsError(
            f"{deploy.path}/{RELEASES}: is a link, or cannot be opened ({reason(error)}); "
            f"to adopt {CURRENT}, make it a directory"
        ) from error
    try:
        name = release if release is not None else _next_number(deploy, releases)
        _adopt_as(deploy, releases, name)
        return name
    finally:
        os.close(releases)


def _adopt_as(deploy: DeployPath, releases: int, name: str) -> None:
    """`releases` is a descriptor of the directory."""
    successor = f"{RELEASES}/{name}"
    _remove_leftover(releases, name)
    try:
        os.symlink(successor, name, dir_fd=releases)
    except FileExistsError:
        raise RefusedError(f"{deploy.path}/{successor}: exists; choose another name with --release") from None
    except OSError as error:
        raise RelfsError(f"{deploy.path}/{successor}: cannot be made: {reason(error)}") from error
    try:
        syncfs(deploy.fd)
        _exchange(deploy, releases, name)
    except OSError as error:
        os.unlink(name, dir_fd=releases)
        raise RelfsError(_no_exchange(deploy, successor, error)) from error
    try:
        _sync_directories(deploy, releases)
    except OSError as error:
        _exchange(deploy, releases, name)
        os.unlink(name, dir_fd=releases)
        raise RelfsError(f"{deploy.path}/{CURRENT}: cannot be adopted: {reason(error)}") from error


def _exchange(deploy: DeployPath, releases: int, name: str) -> None:
    renameat2(releases, os.fsencode(name), deploy.fd, CURRENT.encode(), RENAME_EXCHANGE)


def _flush(deploy: DeployPath) -> None:
    try:
        syncfs(deploy.fd)
    except OSError as error:
        raise RelfsError(f"{deploy.path}: may not last: {reason(error)}") from error


def _sync_directories(deploy: DeployPath, releases: int) -> None:
    os.fsync(releases)
    os.fsync(deploy.fd)


def _remove_leftover(releases: int, name: str) -> None:
    """The link of an adoption that was cut off: it says its own name, which nobody else would make it say."""
    try:
        if os.readlink(name, dir_fd=releases) == f"{RELEASES}/{name}":
            os.unlink(name, dir_fd=releases)
    except OSError:
        pass


def _no_exchange(deploy: DeployPath, successor: str, error: OSError) -> str:
    shown = f"{deploy.path}/{CURRENT}"
    if error.errno in (errno.EINVAL, errno.ENOSYS, errno.EXDEV):
        return (
            f"{shown}: this file system cannot exchange two names; at a quiet moment, do "
            f"`mv current {successor} && ln -s {successor} current` in {deploy.path}"
        )
    return f"{shown}: cannot be adopted: {reason(error)}"


def _next_number(deploy: DeployPath, releases: int) -> str:
    """The first number after all releases that is nobody's name: a link of an adoption that was cut off may be there,
    and have lost its text in a power cut."""
    numbers = [int(release.name) for release in deploy.releases() if release.name.isdecimal()]
    names = map(str, itertools.count(max(numbers, default=0) + 1))
    return next(name for name in names if _is_free(releases, name))


def _is_free(releases: int, name: str) -> bool:
    _remove_leftover(releases, name)
    try:
        os.lstat(name, dir_fd=releases)
    except FileNotFoundError:
        return True
    return False
