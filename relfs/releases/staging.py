"""Where a release is made before it is one: `releases/.relfs-add-NAME`, a name that no tool takes for a release.

It is in `releases/` so that the last step is one rename(2) in one directory of one mount. Its maker holds a flock(2) on
the directory itself for as long as it lives, and so do the processes that it forks: what nobody holds was abandoned
(SIGKILL, a power cut), and whoever comes next removes it. Until all is in it, only its maker can enter it, so that
nobody else can put a link in the way of root; its own permissions it gets when it is full.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from relfs import libc
from relfs.beneath import open_directory
from relfs.errors import RefusedError, RelfsError, reason
from relfs.interrupts import uninterrupted
from relfs.layout import RELEASES, DeployPath
from relfs.releases.tree import open_up

PREFIX = ".relfs-add-"
NAME_MAX = 255


@dataclass(frozen=True)
class Staging:
    """`fd` is the directory's descriptor, `directory` that of `releases/`; `path` is for messages and programs."""

    name: str
    fd: int
    directory: int
    path: str

    def put_in_place(self) -> None:
        """Let it be the release. Nobody else's directory is ever replaced.

        Raises RefusedError if there is something of this name, OSError.
        """
        own, name = os.fsencode(PREFIX + self.name), os.fsencode(self.name)
        try:
            libc.renameat2(self.directory, own, self.directory, name, libc.RENAME_NOREPLACE)
        except FileExistsError as error:
            raise RefusedError(f"{self.name}: somebody has made a release of this name meanwhile") from error
        except OSError as error:
            if error.errno not in libc.NO_RENAME_FLAGS:
                raise
            self._put_by_name()
        try:
            os.fsync(self.directory)
        except OSError:  # it may not last: it is not there yet
            os.rename(self.name, PREFIX + self.name, src_dir_fd=self.directory, dst_dir_fd=self.directory)
            raise

    def _put_by_name(self) -> None:
        """Where there is no renameat2(2), or the file system (FUSE) does not know the flag: an empty directory that
        somebody makes in this moment would be replaced, and nothing lost."""
        with suppress(FileNotFoundError):
            os.lstat(self.name, dir_fd=self.directory)
            raise RefusedError(f"{self.name}: somebody has made a release of this name meanwhile")
        os.rename(PREFIX + self.name, self.name, src_dir_fd=self.directory, dst_dir_fd=self.directory)


@contextmanager
def staging(deploy: DeployPath, name: str) -> Iterator[Staging]:
    """A new, empty staging directory for release `name`; at the end it is the release, or gone.

    Raises RelfsError if there can be none.
    """
    directory = _open_releases(deploy)
    made = None
    try:
        with uninterrupted():
            made = _make(deploy, directory, name)
        yield made
    finally:
        with uninterrupted():
            if made is not None:
                _remove(directory, PREFIX + name)
                os.close(made.fd)
            os.close(directory)


def sweep(deploy: DeployPath) -> list[str]:
    """Remove what others have abandoned; the names that the releases were to have. What cannot be removed is left for
    the next time. Raises RelfsError if `releases/` cannot be read."""
    directory = _open_releases(deploy)
    try:
        found = [os.fsdecode(name) for name in os.listdir(directory)]
        return [name[len(PREFIX) :] for name in found if name.startswith(PREFIX) and _sweep_one(directory, name)]
    finally:
        os.close(directory)


def is_staged(deploy: DeployPath, name: str) -> bool:
    """Whether somebody is making release `name`, or has abandoned it, and it was not swept."""
    try:
        return stat.S_ISDIR(os.lstat(f"{RELEASES}/{PREFIX}{name}", dir_fd=deploy.fd).st_mode)
    except OSError:
        return False


def _open_releases(deploy: DeployPath) -> int:
    try:
        return os.open(RELEASES, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=deploy.fd)
    except OSError as error:
        raise RelfsError(f"{deploy.path}/{RELEASES}: cannot be opened: {reason(error)}") from error


def _make(deploy: DeployPath, directory: int, name: str) -> Staging:
    own = PREFIX + name
    try:
        while True:
            os.mkdir(own, 0o700, dir_fd=directory)
            fd = _lock(directory, own)
            if fd is not None:
                return Staging(name, fd, directory, f"{deploy.path}/{RELEASES}/{own}")
    except OSError as error:
        raise RelfsError(f"{deploy.path}/{RELEASES}/{own}: cannot be made: {reason(error)}") from error


def _lock(directory: int, own: str) -> int | None:
    """The locked descriptor of what was just made; None if somebody took it for abandoned before it was locked."""
    try:
        fd = open_directory(directory, own)
    except FileNotFoundError:
        return None
    fcntl.flock(fd, fcntl.LOCK_EX)
    if os.fstat(fd).st_nlink > 0 and _exists(directory, own):
        return fd
    os.close(fd)
    return None


def _sweep_one(directory: int, name: str) -> bool:
    """Whether it was abandoned, and is gone."""
    try:
        fd = open_directory(directory, name)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return _remove(directory, name)
    except OSError:
        return False
    finally:
        os.close(fd)


def _remove(directory: int, name: str) -> bool:
    """Whether it is gone. A release may have directories that cannot be written: these are opened up first."""
    for attempt in (_remove_tree, _open_up, _remove_tree):
        try:
            attempt(directory, name)
        except OSError:
            continue
        if not _exists(directory, name):
            return True
    return False


def _remove_tree(directory: int, name: str) -> None:
    shutil.rmtree(name, dir_fd=directory)  # it follows no link, at any step


def _open_up(directory: int, name: str) -> None:
    """Let all directories be emptied by their owner."""
    open_up(directory, name)
    fd = open_directory(directory, name)
    try:
        with os.scandir(fd) as entries:
            below = [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
        for each in below:
            _open_up(fd, each)
    finally:
        os.close(fd)


def _exists(directory: int, name: str) -> bool:
    try:
        os.lstat(name, dir_fd=directory)
    except FileNotFoundError:
        return False
    return True
