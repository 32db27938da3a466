"""Sealing releases where relfs serves them itself: every request that would change a live one is answered EBUSY.

Where an inode is
-----------------
Some facts. The kernel names inodes, and the inode table holds each by a descriptor that outlives its name. proc(5)
tells where such a descriptor's name is now, whatever was renamed since; for one whose name is gone, it tells the last,
with ` (deleted)` behind it. A file with several names (hard links) is one inode, and is told under the name by which it
was first looked up; git, `cp -al` and `rsync --link-dest` make such files, in releases, by the thousand.

The choice. What has its name in a live release is guarded. So is a file with several names of which one is in a live
release, whichever it is reached by: those are listed when the release is sealed, and cannot become more, because a live
release's files get no further names (EXDEV, as from a read-only mount: tools that link then copy). What has no name any
more is free, and so is another file system that is mounted inside of a release. Where the kernel will not tell, a path
being longer than it can say, nothing is changed.

A descriptor that was opened for writing before goes on working.

The next worker
---------------
A worker that takes over answers requests at once, long before it has looked at every file of what is live. So it is
told which releases were guarded, and guards these from its first request on; until it has looked, it takes every file
with several names for one of theirs.
"""

from __future__ import annotations

import errno
import json
import os
import stat
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

from pyfuse3 import FUSEError, InodeT

from relfs.fuse.inodes import RELEASES_NODE, InodeTable, Node
from relfs.layout import RELEASES
from relfs.mountinfo import mount_id
from relfs.survival.memory import Cell

_DELETED = b" (deleted)"
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_GUARDED = "guarded"
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_TRUNC


@dataclass(frozen=True)
class _Live:
    """A sealed release: the mount that it is in, and the inodes of its files that have several names (None: nobody has
    looked yet)."""

    mount: int
    linked: frozenset[tuple[int, int]] | None

    def is_linked(self, node: Node) -> bool:
        """Whether the inode has a name in the release, and others."""
        if self.linked is not None:
            return node.key in self.linked
        status = os.fstat(node.fd)
        return status.st_nlink > 1 and not stat.S_ISDIR(status.st_mode)


class Guard:
    """A Sealer, and what request handlers ask first; without a sealed release they are told at once.

    GUARDED BY _lock: replacing `_live`, which itself never changes, so that a check needs no lock; and `kept`, where
    its names are for the next worker. Checks run in the event loop and contain no `await`.
    """

    def __init__(self, table: InodeTable, deploy_fd: int, kept: Cell | None = None) -> None:
        """Without `kept`, for what is never sealed."""
        self._table = table
        self._deploy_fd = deploy_fd
        self._kept = kept
        self._live: dict[bytes, _Live] = {}
        self._lock = threading.Lock()

    # ---- sealing

    def restore(self) -> None:
        """Guard what the worker before this one did, until settle(). Contains no `await`, and asks no disk."""
        told = json.loads(self._kept.load() or b"{}") if self._kept is not None else {}
        self._live = {os.fsencode(name): _Live(mount, None) for name, mount in told.get(_GUARDED, {}).items()}

    def settle(self) -> None:
        """What has been sealed by now is all that is live; the rest of what restore() knew is not any more."""
        for name in [name for name, live in self._live.items() if live.linked is None]:
            self._put(name, None)

    def seal(self, name: str) -> None:
        """See Sealer. Takes as long as a look at every file of the release."""
        key = os.fsencode(name)
        release = os.open(f"{RELEASES}/{name}", _DIRECTORY, dir_fd=self._deploy_fd)
        try:
            mount = mount_id(release)
            before = self._live.get(key)
            self._put(key, _Live(mount, before.linked if before is not None else frozenset()))
            self._put(key, _Live(mount, _linked(release, mount)))
        except BaseException:
            self._put(key, None)
            raise
        finally:
            os.close(release)

    def unseal(self, name: str) -> bool:
        """See Sealer."""
        self._put(os.fsencode(name), None)
        return True

    def _put(self, name: bytes, live: _Live | None) -> None:
        with self._lock:
            others = {other: each for other, each in self._live.items() if other != name}
            self._live = others if live is None else {**others, name: live}
            if self._kept is not None:
                guarded = {os.fsdecode(name): live.mount for name, live in self._live.items()}
                self._kept.store(json.dumps({_GUARDED: guarded}).encode("ascii"))

    # ---- asking: each raises FUSEError(EBUSY) for what would change a live release

    def name(self, parent: InodeT, name: bytes) -> None:
        """Before `name` in the directory `parent` is made, removed or replaced."""
        if not self._live:
            return
        if (parent == RELEASES_NODE and name in self._live) or self._is_inside(self._table.node(parent)):
            raise FUSEError(errno.EBUSY)

    def inode(self, nodeid: InodeT) -> None:
        """Before an inode's content or attributes are changed."""
        if self._live and self._is_guarded(self._table.node(nodeid)):
            raise FUSEError(errno.EBUSY)

    def opening(self, nodeid: InodeT, flags: int) -> None:
        """Before a file is opened with these flags."""
        if flags & _WRITING:
            self.inode(nodeid)

    def linking(self, nodeid: InodeT) -> None:
        """Before an inode gets another name. Raises FUSEError(EXDEV)."""
        if self._live and self._is_guarded(self._table.node(nodeid)):
            raise FUSEError(errno.EXDEV)

    def _is_guarded(self, node: Node) -> bool:
        return any(live.is_linked(node) for live in self._live.values()) or self._is_inside(node)

    def _is_inside(self, node: Node) -> bool:
        if not self._table.is_pinned(RELEASES_NODE):  # nobody has been there yet
            return False
        try:
            path = os.readlink(os.fsencode(node.path))
            base = os.readlink(os.fsencode(self._table.node(RELEASES_NODE).path)) + b"/"
        except OSError:
            return True
        live = self._live.get(path.removeprefix(base).split(b"/", 1)[0]) if path.startswith(base) else None
        if live is None or mount_id(node.fd) != live.mount:
            return False
        return not (path.endswith(_DELETED) and os.fstat(node.fd).st_nlink == 0)


def _linked(release: int, mount: int) -> frozenset[tuple[int, int]]:
    """The files below the directory `release` that have several names, as far as we may look."""
    found: set[tuple[int, int]] = set()
    pending = ["."]
    while pending:
        path = pending.pop()
        with suppress(FileNotFoundError, NotADirectoryError, PermissionError):  # not live yet: it may still be changing
            directory = os.open(path, _DIRECTORY, dir_fd=release)
            try:
                if mount_id(directory) == mount:
                    pending += [f"{path}/{name}" for name in _look_into(directory, found)]
            finally:
                os.close(directory)
    return frozenset(found)


def _look_into(directory: int, found: set[tuple[int, int]]) -> Iterator[str]:
    """The directories in a directory; add the files that have several names to `found`."""
    with os.scandir(directory) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                yield os.fsdecode(entry.name)
                continue
            status = entry.stat(follow_symlinks=False)
            if status.st_nlink > 1:
                found.add((status.st_dev, status.st_ino))
