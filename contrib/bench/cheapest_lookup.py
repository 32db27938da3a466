"""The cheapest LOOKUP that pyfuse3 can answer: what contrib/bench/views measures relfs's against.

    python cheapest_lookup.py DIRECTORY    mounts over DIRECTORY, and serves a link `current` until it is unmounted

Nothing is looked at, and the same reply is given to everybody; the kernel keeps it for no time, as relfs has it while
somebody sees another release.
"""

from __future__ import annotations

import stat
import sys

import pyfuse3
import trio
from pyfuse3 import EntryAttributes, InodeT, RequestContext

_LINK = InodeT(2)


class Cheapest(pyfuse3.Operations):
    """A root, and a link."""

    def __init__(self) -> None:
        super().__init__()
        self._root = _attributes(pyfuse3.ROOT_INODE, stat.S_IFDIR | 0o755)
        self._link = _attributes(_LINK, stat.S_IFLNK | 0o777)

    async def lookup(self, parent_inode: InodeT, name: bytes, ctx: RequestContext) -> EntryAttributes:  # noqa: ARG002
        return self._link

    async def getattr(self, inode: InodeT, ctx: RequestContext) -> EntryAttributes:  # noqa: ARG002
        return self._root if inode == pyfuse3.ROOT_INODE else self._link


def _attributes(nodeid: InodeT, mode: int) -> EntryAttributes:
    entry = EntryAttributes()
    entry.st_ino, entry.st_mode, entry.st_nlink = nodeid, mode, 1
    entry.attr_timeout, entry.entry_timeout = 1e6, 0.0
    return entry


def main() -> None:
    pyfuse3.init(Cheapest(), sys.argv[1], {"fsname=cheapest", "allow_other", "default_permissions"})
    try:
        trio.run(pyfuse3.main)
    finally:
        pyfuse3.close(unmount=False)


if __name__ == "__main__":
    main()
