"""Second names of links, by which the kernel goes on knowing what `current` says to others.

Asked twice
-----------
Some facts. The kernel has one dentry `current`. While it depends on who asks, it keeps it for no time: each resolution
is a LOOKUP, to hear whether what it has is right (fuse_dentry_revalidate() in fs/fuse/dir.c). If the answer has another
nodeid, it takes only that, drops the dentry (d_invalidate() in lookup_fast(), fs/namei.c), and asks what is right
(fuse_lookup()). So where processes that see different releases take turns, a resolution is two LOOKUPs, and more only
if somebody else's answer has come first meanwhile (__lookup_slow()); any other answer to the first leads to the second
as well, or fails the caller. The one dentry that is dropped without being asked about is one of an older epoch
(FUSE_NOTIFY_INC_EPOCH), but so are those that native directories are mounted on.

A link with its last dentry dropped is gone, and the text that was kept with it: hence a READLINK each time, and two
FORGETs, and the inode is another one to us when it is asked for next.

The dentry could be dropped before the other asks. FUSE_NOTIFY_PRUNE (protocol 7.45, Linux 6.18; d_prune_aliases())
takes no lock of the directory, but spares what is in use, as `current` is until its asker has passed it, and who that
is, is not told. Measured on Linux 6.18.44, two processes in turns, medians: sent with the answer, it was too early in
84 of 100 cases, and all took longer (166 to 258 µs instead of 126); a moment later, too late, unless nobody asked for a
millisecond (1.03 LOOKUPs, and no less work: it has to be sent for each). It takes all names of a link, these here too.

The choice. What costs most is not the second LOOKUP, but what comes with it, and that goes away if the link has another
name that the kernel knows. Nobody has to hold it, so it is in nobody's way when the mount goes; where the kernel needs
the memory, all is as before. Two LOOKUPs then are all, in little more than half of the time (66 µs instead of 115).

Only a lookup makes a dentry, and no thread of ours may wait for ourselves (daemon/probe.py). So the supervisor has it
done: when somebody asks for a link that the kernel has forgotten untold, which it does not where nobody takes turns.
"""

from __future__ import annotations

import errno
import itertools
import os
from collections.abc import Callable

import trio
from pyfuse3 import EntryAttributes, FUSEError

from relfs.fuse.current import CurrentLink
from relfs.fuse.inodes import InodeTable
from relfs.layout import Target
from relfs.names import SECOND_NAME
from relfs.pointer import Pointer
from relfs.views.sights import Sights

PREFIX = SECOND_NAME.encode()

_LINKS_MAX = 64
_PAUSE_SECONDS = 1.0
"""Between two times that they are looked up: the kernel may be so short of memory that it keeps none."""


class SecondNames:
    """GUARDED BY the event loop. `_texts` has what the links say that were to be looked up last, by their numbers."""

    def __init__(
        self,
        pointer: Pointer,
        sights: Sights,
        current: CurrentLink,
        table: InodeTable,
        *,
        show: Callable[[Target], str],
        ask: Callable[[], None],
    ) -> None:
        """`show` makes the text that readers get of a target; `ask` has somebody look all these names up, in order,
        until there is none."""
        self._pointer = pointer
        self._sights = sights
        self._current = current
        self._table = table
        self._show = show
        self._ask = ask
        self._texts: list[bytes] = []
        self._not_before = 0.0
        current.on_forgotten = self._note_forgotten

    def lookup(self, name: bytes) -> EntryAttributes:
        """What a lookup of a name with PREFIX answers, which takes a reference. Raises FUSEError(ENOENT)."""
        number = name.removeprefix(PREFIX)
        if not (self._sights and number.isdigit() and int(number) < len(self._texts)):
            raise FUSEError(errno.ENOENT)
        entry = self._current.attributes(self._table.link(self._texts[int(number)]))
        entry.entry_timeout = 0.0
        self._table.count(entry.st_ino)
        return entry

    def _note_forgotten(self) -> None:
        now = trio.current_time()
        if self._sights and now >= self._not_before:
            self._not_before = now + _PAUSE_SECONDS
            self._texts = self._seen()
            self._ask()

    def _seen(self) -> list[bytes]:
        """What `current` says, to whomever."""
        everybodys = self._pointer.target
        targets = itertools.chain([everybodys] if everybodys is not None else [], self._sights.targets())
        return list(dict.fromkeys(os.fsencode(self._show(each)) for each in targets))[:_LINKS_MAX]
