"""The inode table: which nodeid means what, for as long as the kernel may ask.

The fresh inode
---------------
Some facts. The kernel caches a link's text with its inode (FUSE_CACHE_SYMLINKS) and a name's inode with its dentry.
Changing a link in place would mean dropping its cached text, and that has two known faults: a READLINK that is under
way while it is dropped puts the old text back, and some kernels cut the new text to the old one's length (cvmfs#3626;
fixed by kernel commit b4c173dfbb6c).

The choice. A link's inode is a function of its text and never changes, so its text may be cached for ever. A switch
changes which inode the *name* `current` leads to, and then drops that one dentry.

The number of an inode of the covered file system is its nodeid where that is free, so that it is the same tomorrow, as
git, rsync and tar expect. The virtual links' numbers, never used twice, begin far above. A nodeid is only given to
another inode after the kernel has forgotten the first, so generations are all 0. Those of the names that native
directories are mounted on are constants: a lookup that answered with another would unmount them (d_invalidate() in the
kernel).
"""

from __future__ import annotations

import errno
import itertools
import os
from dataclasses import dataclass

from pyfuse3 import FUSEError, InodeT

ROOT = InodeT(1)
RELEASES_NODE = InodeT(2)
SHARED_NODE = InodeT(3)
STATE_NODE = InodeT(4)
_FIRST_FREE = 16
_FIRST_OWN = 1 << 48


@dataclass
class Node:
    """An inode of the covered file system, held by an O_PATH descriptor, so that it outlives its name.

    INVARIANT: `fd` is open, and `key` is its (st_dev, st_ino), which nobody else can get while it is.
    `volatile`: others write here while we run (relfs's own state, deploy tools' records), so nothing of it may be
    cached.
    """

    id: InodeT
    fd: int
    key: tuple[int, int]
    lookups: int = 0
    pinned: bool = False
    volatile: bool = False

    @property
    def path(self) -> str:
        """A path that reaches this very inode, whatever it is called now (proc(5), /proc/self/fd)."""
        return f"/proc/self/fd/{self.fd}"


class InodeTable:
    """All inodes that the kernel may know. Contains no `await` anywhere: every method is atomic under trio.

    INVARIANT: `_nodes` and `_by_key` hold the same nodes, `_links` and `_by_text` the same links.
    INVARIANT: a node that is not pinned has lookups > 0 as soon as the reply that names it has been sent.
    """

    def __init__(self) -> None:
        self._ids = itertools.count(_FIRST_OWN)
        self._nodes: dict[InodeT, Node] = {}
        self._by_key: dict[tuple[int, int], Node] = {}
        self._links: dict[InodeT, bytes] = {}
        self._by_text: dict[bytes, InodeT] = {}
        self._link_lookups: dict[InodeT, int] = {}

    # ---- the virtual link

    def link(self, text: bytes) -> InodeT:
        """The inode of the link that says `text`."""
        nodeid = self._by_text.get(text)
        if nodeid is None:
            nodeid = self._own_number()
            self._by_text[text] = nodeid
            self._links[nodeid] = text
            self._link_lookups[nodeid] = 0
        return nodeid

    def text(self, nodeid: InodeT) -> bytes | None:
        """What link `nodeid` says; None: it is no virtual link."""
        return self._links.get(nodeid)

    # ---- inodes of the covered file system

    def pin(self, nodeid: InodeT, fd: int) -> Node:
        """Give `fd`'s inode a constant nodeid, for the life of the mount. The table takes the descriptor over.

        A nodeid that it had before becomes stale: the VFS looks the path up again.
        """
        node = Node(nodeid, fd, _key(os.fstat(fd)), pinned=True)
        for old in (self._nodes.get(nodeid), self._by_key.get(node.key)):
            if old is not None and old.id in self._nodes:
                self._drop(old)
        self._nodes[nodeid] = node
        self._by_key[node.key] = node
        return node

    def is_pinned(self, nodeid: InodeT) -> bool:
        """Whether a constant nodeid is in use."""
        return nodeid in self._nodes

    def adopt(self, fd: int, status: os.stat_result) -> Node:
        """The node of the inode that `fd` (O_PATH) holds. The table takes the descriptor over."""
        key = _key(status)
        node = self._by_key.get(key)
        if node is not None:
            os.close(fd)
            return node
        node = Node(self.number(key), fd, key)
        self._nodes[node.id] = node
        self._by_key[key] = node
        return node

    def held(self, key: tuple[int, int]) -> Node | None:
        """The node of an inode that is known already."""
        return self._by_key.get(key)

    def number(self, key: tuple[int, int]) -> InodeT:
        """A nodeid that is free, for (st_dev, st_ino) that no node has: the inode's own number if that can be."""
        device, inode = key
        root = self._nodes.get(ROOT)
        if root is not None and root.key[0] == device and inode >= _FIRST_FREE and not self._is_taken(InodeT(inode)):
            return InodeT(inode)
        return self._own_number()

    def _own_number(self) -> InodeT:
        return next(number for number in map(InodeT, self._ids) if not self._is_taken(number))

    def _is_taken(self, nodeid: InodeT) -> bool:
        return nodeid in self._nodes or nodeid in self._links

    def node(self, nodeid: InodeT) -> Node:
        """Raises FUSEError(ESTALE), upon which the VFS looks the path up again by itself."""
        try:
            return self._nodes[nodeid]
        except KeyError:
            raise FUSEError(errno.ESTALE) from None

    # ---- lookup counts

    def count(self, nodeid: InodeT) -> None:
        """A reply that takes a lookup reference on `nodeid` is about to be sent."""
        if nodeid in self._links:
            self._link_lookups[nodeid] += 1
        else:
            self._nodes[nodeid].lookups += 1

    def forget(self, nodeid: InodeT, lookups: int) -> None:
        """The kernel gives back `lookups` references."""
        if nodeid in self._links:
            self._link_lookups[nodeid] -= lookups
            if self._link_lookups[nodeid] <= 0:
                del self._link_lookups[nodeid]
                del self._by_text[self._links.pop(nodeid)]
            return
        node = self._nodes.get(nodeid)
        if node is not None:
            node.lookups -= lookups
            if node.lookups <= 0 and not node.pinned:
                self._drop(node)

    def _drop(self, node: Node) -> None:
        del self._nodes[node.id]
        if self._by_key.get(node.key) is node:
            del self._by_key[node.key]
        os.close(node.fd)

    def close(self) -> None:
        for node in list(self._nodes.values()):
            self._drop(node)

    def check_invariants(self) -> None:
        """For tests: raise AssertionError where an INVARIANT of this module does not hold."""
        assert {id(node) for node in self._nodes.values()} == {id(node) for node in self._by_key.values()}
        assert {text: nodeid for nodeid, text in self._links.items()} == self._by_text
        assert self._links.keys() == self._link_lookups.keys()
        for node in self._nodes.values():
            assert _key(os.fstat(node.fd)) == node.key
            assert node.pinned or node.lookups > 0, f"nodeid {node.id} is kept though the kernel does not know it"


def _key(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino
