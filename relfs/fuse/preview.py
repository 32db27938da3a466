"""`@42`, `@previous`, `@2026-09-01T12:00` at the top of the mount: any release, before it is current and after it was.

Names without a directory entry
-------------------------------
Some facts. A second web server root wants a path, and no call. `.relfs` is attached natively, so nothing can be shown
in there; the top of the mount is the only place where each name reaches us. Tools list that directory, copy it and
clean it up, and keep names of their own in it. A link's inode is a function of its text and never changes, so which
inode a *name* leads to is all that there is to answer (inodes.py, "The fresh inode").

The consequence. A preview is no file. It is what a lookup of a name with an @ answers that nothing else has: the inode
of the link to the release that relfsctl means by it, the same inode as `current` has while that says the same. So
getattr, readlink, forget and the ledger know it already, and a worker that takes over need not be told of anything.

It has its price: owner and times are asked to be changed of an inode, whatever it was called. Of a release that is
not current, EPERM is the answer; but `touch -h @41` is `touch -h current` while that leads there.

The choice. What the covered directory has under a name is what the name means; a name that stands for no release is
free, and may be given to anything. One that stands for a release is taken (EEXIST, by the kernel itself), and can
neither be removed nor renamed, nor anything renamed to it (EPERM): that would hide the release from whoever relies on
it. No listing has these names, so who does not ask for them never meets them, and they cost him nothing.

The kernel keeps what it was told for a moment, as of other names: releases come, go and are marked beside us, and of
that nobody tells. What a word means changes with a switch as well, and that shall be seen at once: words are dropped
with `current` (changes.py), each time all of them, so that nobody has to know which ones the kernel has.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable

import trio
from pyfuse3 import EntryAttributes, FUSEError, InodeT

from relfs.errors import RefusedError, RelfsError, UsageError
from relfs.fuse.current import CurrentLink
from relfs.fuse.inodes import ROOT, InodeTable
from relfs.fuse.passthrough import MOMENT, Passthrough
from relfs.layout import Target
from relfs.pointer import Pointer
from relfs.threads import in_thread

_MARK = b"@"

_LOOK_SECONDS = 5.0
"""How long the releases may take to be looked at: they may be on a disk that does not answer."""

_LOOKS = 4
"""How many may be under way at once: one that hangs keeps its thread."""


class Preview:
    """Holds nothing: what a name means is found out each time that the kernel asks."""

    def __init__(
        self,
        pointer: Pointer,
        current: CurrentLink,
        table: InodeTable,
        files: Passthrough,
        *,
        show: Callable[[Target], str],
    ) -> None:
        """`show` makes the text that readers get of a target."""
        self._pointer = pointer
        self._current = current
        self._table = table
        self._files = files
        self._show = show
        self._looking = trio.CapacityLimiter(_LOOKS)

    async def lookup(self, name: bytes) -> EntryAttributes | None:
        """What a lookup at the top answers, which takes a reference; None: it is not a name of ours.

        Raises FUSEError(ETIMEDOUT) if the releases cannot be looked at in time, OSError if they cannot be read.
        """
        release = await self._release(name)
        if release is None:
            return None
        target = self._pointer.deploy.target(self._pointer.deploy.link_text(release, "relative"))
        entry = self._current.attributes(self._table.link(os.fsencode(self._show(target))))
        entry.entry_timeout = MOMENT
        self._table.count(entry.st_ino)
        return entry

    async def require_none(self, parent: InodeT, name: bytes) -> None:
        """Raises FUSEError(EPERM) for a name of ours, and as lookup() does."""
        if parent == ROOT and await self._release(name) is not None:
            raise FUSEError(errno.EPERM)

    async def _release(self, name: bytes) -> str | None:
        if not name.startswith(_MARK) or self._files.identity(ROOT, name) is not None:
            return None
        with trio.move_on_after(_LOOK_SECONDS):
            return await in_thread(self._meaning, os.fsdecode(name), limiter=self._looking, abandon_on_cancel=True)
        raise FUSEError(errno.ETIMEDOUT)

    def _meaning(self, reference: str) -> str | None:
        """Runs on a thread."""
        try:
            return self._pointer.named(reference)
        except (UsageError, RefusedError):
            return None
        except RelfsError as error:
            number = error.__cause__.errno if isinstance(error.__cause__, OSError) else None
            raise OSError(number or errno.EIO, str(error)) from error
