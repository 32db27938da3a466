"""The release before, and how a new one has its unchanged files without a copy of their bytes.

    clone   the file is a new one with the same blocks (contents.clone()): nothing done to either touches the other
    link    it is the same file under a second name: only if asked for, since a change in one release is one in both

Unchanged is a file of the same path, size, mtime and mode; `checksum` looks at the bytes instead of the mtime. What its
digest is the release's manifest tells, if it was written when the file had this size and mtime; it is read otherwise.
A file that cannot be linked (another mount, which is what a seal is; too many names; somebody else's) is copied.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

from relfs.beneath import open_directory, open_file
from relfs.errors import RelfsError
from relfs.layout import RELEASES, DeployPath
from relfs.releases.attributes import xattr_names
from relfs.releases.contents import Tick, clone, hash_contents
from relfs.releases.manifest import NO_DIGEST, Entry, read_manifest
from relfs.store import peek

_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_MISSING = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP})
_CANNOT_LINK = frozenset({errno.EXDEV, errno.EMLINK, errno.EPERM, errno.EACCES, errno.EOPNOTSUPP, errno.ENOENT})


@dataclass(frozen=True)
class Sharing:
    """How unchanged files are to be had: by hard links (`link`), and found by their bytes (`checksum`)."""

    link: bool = False
    checksum: bool = False


class Places(NamedTuple):
    """Descriptors of one directory in the source, in the new release, and in the one before (None: it has none)."""

    source: int
    target: int
    previous: int | None


@dataclass(frozen=True)
class Previous:
    """The release `name`, of which `fd` is a descriptor and `entries` the manifest (empty: it has none).

    `clones`: the file system can clone.
    """

    name: str
    fd: int
    how: Sharing
    clones: bool
    entries: Mapping[str, Entry] = field(repr=False)

    def known_digest(self, path: str, status: os.stat_result) -> str | None:
        """What the manifest says of a file of this release, if that is what it was made of."""
        entry = self.entries.get(path)
        if entry is None or (entry.size, entry.mtime) != (status.st_size, status.st_mtime_ns):
            return None
        return entry.digest if entry.digest != NO_DIGEST else None

    def link(self, at: Places, path: str, name: str, wanted: os.stat_result, tick: Tick) -> str | None:
        """Give its file, if that is unchanged, a second name; the digest, or None where it is not, or cannot be linked.

        Raises OSError for a full disk.
        """
        assert at.previous is not None
        status = self._unchanged(at, name, wanted)
        if status is None or not _same_owner(status, wanted) or not _same_xattrs(at, name):
            return None
        digest = self._digest(at, path, name, status)
        if self.how.checksum and _digest_in(at.source, name, wanted, tick) != digest:
            return None
        try:
            os.link(name, name, src_dir_fd=at.previous, dst_dir_fd=at.target, follow_symlinks=False)
        except OSError as error:
            if error.errno not in _CANNOT_LINK:
                raise
            return None
        return digest

    def clone(
        self, at: Places, path: str, name: str, fd: int, out: int, wanted: os.stat_result, tick: Tick
    ) -> str | None:
        """Let the new file `out`, made from `fd`, have the blocks of its file, if that is unchanged. As link()."""
        assert at.previous is not None
        status = self._unchanged(at, name, wanted)
        if status is None:
            return None
        digest = self._digest(at, path, name, status)
        if self.how.checksum and hash_contents(fd, wanted, tick) != digest:
            os.lseek(fd, 0, os.SEEK_SET)
            return None
        before = os.open(name, _READ, dir_fd=at.previous)
        try:
            return digest if clone(out, before) else None
        finally:
            os.close(before)

    def clone_path(self, path: str, out: int, digest: str) -> bool:
        """Let `out`, which has these bytes, have them in the blocks of the file `path`, if that has them still."""
        with self._file(path) as fd:
            if fd is None or hash_contents(fd, os.fstat(fd), lambda _: None) != digest:
                return False
            return clone(out, fd)

    def link_path(self, path: str, target: int, wanted: os.stat_result, digest: str) -> os.stat_result | None:
        """Let the file `path` take the place of the same name below `target`, if it has these bytes, mode and owner.

        What is known of it, or None. Raises OSError for a full disk.
        """
        with self._file(path) as fd:
            status = os.fstat(fd) if fd is not None else wanted
            if fd is None or (status.st_mode, status.st_uid, status.st_gid) != (
                wanted.st_mode, wanted.st_uid, wanted.st_gid,
            ):  # fmt: skip
                return None
            if hash_contents(fd, status, lambda _: None) != digest:
                return None
        return status if self._replace(path, target) else None

    def _replace(self, path: str, target: int) -> bool:
        beside = f"{path[: path.rfind('/') + 1]}.relfs-link"
        try:
            os.link(path, beside, src_dir_fd=self.fd, dst_dir_fd=target, follow_symlinks=False)
        except OSError as error:
            if error.errno not in _CANNOT_LINK:
                raise
            return False
        os.rename(beside, path, src_dir_fd=target, dst_dir_fd=target)
        return True

    @contextmanager
    def _file(self, path: str) -> Iterator[int | None]:
        """A descriptor of its regular file `path`; None if it has none."""
        try:
            fd = open_file(self.fd, path, os.O_RDONLY)
        except OSError:
            yield None
            return
        try:
            yield fd
        finally:
            os.close(fd)

    def _unchanged(self, at: Places, name: str, wanted: os.stat_result) -> os.stat_result | None:
        """What is known of its file, if that looks like the new one."""
        try:
            status = os.lstat(name, dir_fd=at.previous)
        except FileNotFoundError:
            return None
        alike = (status.st_mode, status.st_size) == (wanted.st_mode, wanted.st_size)
        return status if alike and (self.how.checksum or status.st_mtime_ns == wanted.st_mtime_ns) else None

    def _digest(self, at: Places, path: str, name: str, status: os.stat_result) -> str:
        assert at.previous is not None
        return self.known_digest(path, status) or _digest_in(at.previous, name, status, lambda _: None)


def _digest_in(directory: int, name: str, status: os.stat_result, tick: Tick) -> str:
    fd = os.open(name, _READ, dir_fd=directory)
    try:
        return hash_contents(fd, status, tick)
    finally:
        os.close(fd)


def _same_owner(status: os.stat_result, wanted: os.stat_result) -> bool:
    """Only root could give the new file another."""
    return os.geteuid() != 0 or (status.st_uid, status.st_gid) == (wanted.st_uid, wanted.st_gid)


def _same_xattrs(at: Places, name: str) -> bool:
    """There is no call that takes a directory's descriptor and a name (listxattrat(2) is of Linux 6.13)."""
    ours, theirs = (f"/proc/self/fd/{directory}/{name}" for directory in (at.source, at.previous))
    names = xattr_names(ours)
    if not names or xattr_names(theirs) != names:
        return not names and not xattr_names(theirs)
    read = partial(os.getxattr, follow_symlinks=False)
    return all(read(ours, each) == read(theirs, each) for each in names)


@contextmanager
def previous_release(deploy: DeployPath, how: Sharing, *, clones: bool) -> Iterator[Previous | None]:
    """The current release, to share files with; None if nothing could be shared. Raises RelfsError."""
    name = _current(deploy) if how.link or clones else None
    if name is None:
        yield None
        return
    try:
        fd = open_directory(deploy.fd, f"{RELEASES}/{name}")
    except OSError:
        yield None
        return
    try:
        yield Previous(name, fd, how, clones, _entries(deploy, name))
    finally:
        os.close(fd)


@contextmanager
def directory_in(previous: Previous | None, path: str) -> Iterator[int | None]:
    """A descriptor of the directory `path` in the release before; None if there is none. Raises OSError."""
    fd = None
    if previous is not None:
        try:
            fd = open_directory(previous.fd, path)
        except OSError as error:
            if error.errno not in _MISSING:
                raise
    try:
        yield fd
    finally:
        if fd is not None:
            os.close(fd)


def _current(deploy: DeployPath) -> str | None:
    try:
        text = peek(deploy)
        return deploy.release_of(text) if text is not None else None
    except (OSError, RelfsError):
        return None


def _entries(deploy: DeployPath, name: str) -> Mapping[str, Entry]:
    """None is no fault: it only means that files have to be read."""
    if deploy.state_fd is None:
        return {}
    try:
        return read_manifest(deploy.state_fd, name)
    except (FileNotFoundError, RelfsError):
        return {}
