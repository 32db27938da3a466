"""Where the target of `current` is kept on disk: a symbolic link, or a file where the file system has no links.

A store replaces what it holds by rename(2): a reader of the disk finds the old target or the new one, whole, and
after `write` has returned it finds the new one even after a power cut. What is renamed is flushed first, its own data
and what it leads to (pointer.py, "The order of a durable switch"). Who may write is the holder of the change lock.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from relfs import libc
from relfs.beneath import open_beneath, open_file, read_file
from relfs.errors import RelfsError
from relfs.layout import CURRENT, STATE, DeployPath
from relfs.libc import syncfs

TEMPORARY = ".current.relfs"
"""The name under which a new link is made. One is enough, since its maker holds the change lock; it is made beside
`current` so that one fsync(2) of one directory makes the rename durable."""

_TEXT_MAX = 1 << 16
"""Bytes; a link's text is shorter on every system (PATH_MAX)."""

_NO_LINKS = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EROFS})


@dataclass(frozen=True)
class Owner:
    """Whose the new link shall be."""

    uid: int
    gid: int


class Store(Protocol):
    """INVARIANT: what `read` tells is what the last successful `write` was given, unless somebody else wrote."""

    def read(self) -> str | None:
        """The text of the target; None: there is none. Raises OSError, RelfsError for something that is no link."""

    def write(self, text: str, owner: Owner | None = None, *, flush: Callable[[], None] | None = None) -> None:
        """Replace the target, durably. `flush` is called when the new one is made, but not yet in its place: it has to
        flush the deploy path's file system, and what the target leads to; without it, only the target is flushed.

        Raises OSError, and then `read` tells the old target.
        """


class LinkStore:
    """The real symlink `current` in the deploy path."""

    def __init__(self, deploy: DeployPath) -> None:
        self._deploy = deploy

    def read(self) -> str | None:
        try:
            return os.readlink(CURRENT, dir_fd=self._deploy.fd)
        except FileNotFoundError:
            return None
        except OSError as error:
            if error.errno != errno.EINVAL:  # readlink(2): not a symbolic link
                raise
            raise RelfsError(_not_a_link(self._deploy)) from error

    def write(self, text: str, owner: Owner | None = None, *, flush: Callable[[], None] | None = None) -> None:
        directory = self._deploy.fd
        before = self.read()
        _remove(TEMPORARY, directory)  # a crash may have left it
        os.symlink(text, TEMPORARY, dir_fd=directory)
        try:
            if owner is not None:
                with contextlib.suppress(PermissionError):
                    _give_link(TEMPORARY, directory, owner)
            (flush or self._flush)()
            os.rename(TEMPORARY, CURRENT, src_dir_fd=directory, dst_dir_fd=directory)
        except OSError:
            _remove(TEMPORARY, directory)
            raise
        try:
            os.fsync(directory)
        except OSError:
            self._take_back(before)
            raise

    def _flush(self) -> None:
        syncfs(self._deploy.fd)  # there is no other call for the text of a link

    def _take_back(self, before: str | None) -> None:
        """The rename was done but may not last: undo it, so that the disk says what everybody is served."""
        directory = self._deploy.fd
        with contextlib.suppress(OSError):
            if before is None:
                os.unlink(CURRENT, dir_fd=directory)
            else:
                os.symlink(before, TEMPORARY, dir_fd=directory)
                os.rename(TEMPORARY, CURRENT, src_dir_fd=directory, dst_dir_fd=directory)


class FileStore:
    """A file `current` in the state directory, for file systems without symbolic links, or that are read-only."""

    def __init__(self, directory: int) -> None:
        self._directory = directory

    def read(self) -> str | None:
        try:
            data = read_file(self._directory, CURRENT, _TEXT_MAX).removesuffix(b"\n")
        except FileNotFoundError:
            return None
        if b"\0" in data:
            raise RelfsError(f"{STATE}/{CURRENT}: says what is no link's text; remove it")
        return os.fsdecode(data) or None

    def write(
        self,
        text: str,
        owner: Owner | None = None,  # noqa: ARG002 (the state is relfs's own)
        *,
        flush: Callable[[], None] | None = None,
    ) -> None:
        before = self.read()
        self._make(text)
        if flush is not None:
            flush()
        self._put()
        try:
            os.fsync(self._directory)
        except OSError:
            self._take_back(before)
            raise

    def _make(self, text: str) -> None:
        _remove(TEMPORARY, self._directory)  # a crash may have left it
        fd = open_file(self._directory, TEMPORARY, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        try:
            data = os.fsencode(text) + b"\n"
            if os.write(fd, data) != len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(fd)
        finally:
            os.close(fd)

    def _put(self) -> None:
        os.rename(TEMPORARY, CURRENT, src_dir_fd=self._directory, dst_dir_fd=self._directory)

    def _take_back(self, before: str | None) -> None:
        with contextlib.suppress(OSError):
            if before is None:
                os.unlink(CURRENT, dir_fd=self._directory)
            else:
                self._make(before)
                self._put()


def open_store(deploy: DeployPath) -> Store:
    """The store for changing the target, found by trying what the file system can. Raises OSError, RelfsError.

    What the file says is the truth while it exists; it goes away once links are possible again.
    """
    link = LinkStore(deploy)
    if deploy.state_fd is None:
        return link
    file = FileStore(deploy.state_fd)
    kept = file.read()
    if _can_link(deploy):
        if kept is not None:
            link.write(kept)
            _remove(CURRENT, deploy.state_fd)
            os.fsync(deploy.state_fd)  # or a power cut brings an old target back
        return link
    text = link.read()
    if kept is None and text is not None:
        file.write(text)
    return file


def peek(deploy: DeployPath) -> str | None:
    """The target's text, for readers: what `open_store` would tell, without trying anything, or DeployPath.told. Raises
    as `read` does."""
    if deploy.told is not None:
        return deploy.told()
    kept = FileStore(deploy.state_fd).read() if deploy.state_fd is not None else None
    return kept if kept is not None else LinkStore(deploy).read()


def current_release(deploy: DeployPath) -> str | None:
    """The release that is current, by its name; None: there is none, or no release is. Raises as peek() does."""
    text = peek(deploy)
    return deploy.target(text).release if text is not None else None


def _can_link(deploy: DeployPath) -> bool:
    """Whether a link can be made beside `current`. Raises OSError if the answer is neither yes nor no (disk full)."""
    try:
        _remove(TEMPORARY, deploy.fd)  # a crash may have left it
    except OSError as error:
        if error.errno == errno.EROFS:
            return False
        raise
    try:
        os.symlink(CURRENT, TEMPORARY, dir_fd=deploy.fd)
        _remove(TEMPORARY, deploy.fd)
    except OSError as error:
        if error.errno in _NO_LINKS:
            return False
        raise
    return True


def _not_a_link(deploy: DeployPath) -> str:
    shown = f"{deploy.path}/{CURRENT}"
    if stat.S_ISDIR(os.lstat(CURRENT, dir_fd=deploy.fd).st_mode):
        return f"{shown}: a real directory, not a link; `relfsctl init {deploy.path}` makes a release of it"
    return f"{shown}: not a symbolic link; move it away, then `relfsctl switch RELEASE`"


def _give_link(name: str, directory: int, owner: Owner) -> None:
    """lchown(2) of the link `name`, and of nothing else that the directory's owner may have put there meanwhile: what
    belongs to somebody else would become his. Raises OSError."""
    if not hasattr(os, "O_PATH"):
        os.chown(name, owner.uid, owner.gid, dir_fd=directory, follow_symlinks=False)
        return
    fd = open_beneath(directory, name, os.O_PATH)
    try:
        if stat.S_ISLNK(os.fstat(fd).st_mode):
            libc.chown_open(fd, owner.uid, owner.gid)
    finally:
        os.close(fd)


def _remove(name: str, directory: int) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(name, dir_fd=directory)
