"""Sealing releases with read-only mounts: each live one is covered by a copy of itself that cannot be written.

Some facts. What is attached at `releases` is the covered directory itself, and everybody writes there. The kernel
refuses each change below a read-only mount with EROFS, and the removal or renaming of what is mounted on with EBUSY
(is_local_mountpoint() in fs/namei.c), whoever asks; readers pay nothing for one mount more.

A tool that replaces `current` keeps the mount's top directory locked while it waits for us, and a path walk that came
by there might wait for that. The consequence: nothing here walks a path from the root. A seal is copied from the
covered `releases` and put into the attached one, both of which are descriptors.

Detaching lazily what a process has its working directory in breaks its getcwd(3) and its `..`. The choice: a seal is
made writable, which takes effect at once, then unmounted if nobody uses it, and tried again later if somebody does.
Until then it is in nobody's way, but that the release's directory itself cannot be removed.

The mounts outlive a worker, which writes down which are its own. Before it makes one, it notes which mount is there: if
the next worker finds another, that is the one.
"""

from __future__ import annotations

import errno
import json
import os
import threading
from collections.abc import Iterable
from contextlib import suppress

from relfs import libc
from relfs.layout import RELEASES, DeployPath
from relfs.mountinfo import mount_id
from relfs.mountinfo import mounts as all_mounts
from relfs.mounts import Cover, cover, is_mounted
from relfs.survival.memory import Cell

_LOOK = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC

_GONE = (errno.ENOENT, errno.EINVAL)
"""What umount2(2) and mount_setattr(2) have to say of what is no mount, or none of this mount name space any more."""


class Binds:
    """A Sealer. INVARIANT: `_covers` has the mounts made here by release, the topmost last, until they are gone."""

    def __init__(self, deploy: DeployPath, attached: int, options: Iterable[str], kept: Cell) -> None:
        """`attached` is a descriptor of `releases` in the mount; `options` are mount(8)'s; `kept` tells what the worker
        before this one has made, and is written for the next. Raises OSError.

        Descriptors stay open until the process ends: a thread that was left behind may still be unmounting.
        """
        self._covered = os.open(RELEASES, _LOOK, dir_fd=deploy.fd)
        self._attached = attached
        self._options = tuple(options)
        self._covers: dict[str, list[Cover]] = {}
        self._kept = kept
        self._keeping = threading.Lock()
        self._coming: dict[str, int] = {}
        self._restore()

    @property
    def covered(self) -> frozenset[str]:
        """The releases that have a seal on them, closed or not."""
        return frozenset(self._covers)

    def _restore(self) -> None:
        told = json.loads(self._kept.load() or b"{}")
        for name, covers in told.get("covers", {}).items():
            self._covers[name] = [Cover(*each) for each in covers]
        for name, before in told.get("coming", {}).items():
            with suppress(OSError):
                top = self._top(name)
                if top != before:
                    self._covers.setdefault(name, []).append(Cover(top, self._is_read_only(name)))

    def _keep(self, name: str, *, coming: int | None = None) -> None:
        """Write down what there is, and what is about to be made over mount `coming`."""
        with self._keeping:
            self._coming = {other: each for other, each in self._coming.items() if other != name}
            if coming is not None:
                self._coming[name] = coming
            covers = {
                name: [(each.id, each.was_read_only) for each in list(covers)]
                for name, covers in self._covers.copy().items()
                if covers
            }
            self._kept.store(json.dumps({"covers": covers, "coming": self._coming}).encode("ascii"))

    def _top(self, name: str) -> int:
        """The id of the topmost mount at a release. Raises OSError."""
        top = os.open(name, _LOOK, dir_fd=self._attached)
        try:
            return mount_id(top)
        finally:
            os.close(top)

    def _is_read_only(self, name: str) -> bool:
        covered = os.open(name, _LOOK, dir_fd=self._covered)
        try:
            return bool(os.fstatvfs(covered).f_flag & os.ST_RDONLY)
        finally:
            os.close(covered)

    def seal(self, name: str) -> None:
        """See Sealer. What has a file open for writing already, or its working directory there, keeps that. Once
        somebody has unmounted all of it, there is nothing to be kept from anybody, and no failure."""
        try:
            self._seal(name)
        except OSError:
            if is_mounted(mount_id(self._attached)):
                raise

    def _seal(self, name: str) -> None:
        """Raises OSError."""
        covers = self._covers.setdefault(name, [])
        if covers and self._close_again(name, covers[-1]):
            return
        self._keep(name, coming=self._top(name))
        try:
            covers.append(cover(self._covered, self._attached, name, self._options))
        finally:
            self._keep(name)

    def unseal(self, name: str) -> bool:
        """See Sealer. A mount that somebody uses, or has mounted on, is left, as writable as the release is."""
        covers = self._covers.get(name, [])
        while covers:
            if not self._take_off(name, covers[-1]):
                return False
            covers.pop()
            self._keep(name)
        return True

    def _close_again(self, name: str, left: Cover) -> bool:
        """Make what an earlier seal left read-only again. False: it is not what one meets there, or a file is open for
        writing through it, which is no reason to leave the release open for everybody else."""
        top = os.open(name, _LOOK, dir_fd=self._attached)
        try:
            if mount_id(top) != left.id:
                return False
            libc.set_mount_attributes(top, add=libc.MOUNT_ATTR_RDONLY)
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
            return False
        finally:
            os.close(top)
        return True

    def _take_off(self, name: str, top: Cover) -> bool:
        """Whether the mount is gone, be it that somebody else took it away, at this moment maybe, or the directory with
        it. Its id may be another mount's by then."""
        try:
            if self._open_again(name, top):
                libc.unmount(f"/proc/self/fd/{self._attached}/{name}")
                return True
        except OSError as error:
            if error.errno == errno.EBUSY:
                return False
            if error.errno not in _GONE or _is_mounted(name, top):
                raise
        return not _is_mounted(name, top)

    def _open_again(self, name: str, top: Cover) -> bool:
        """Make it as writable as it was. False: it is not what one meets there."""
        try:
            found = os.open(name, _LOOK, dir_fd=self._attached)
        except (FileNotFoundError, NotADirectoryError):
            return False
        try:  # to be closed before it is unmounted: it would be busy
            if mount_id(found) != top.id:
                return False
            if not top.was_read_only:
                libc.set_mount_attributes(found, remove=libc.MOUNT_ATTR_RDONLY)
        finally:
            os.close(found)
        return True


def _is_mounted(name: str, cover: Cover) -> bool:
    return any(each.id == cover.id and os.path.basename(each.target) == name for each in all_mounts())
