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

More inodes than descriptors
----------------------------
Some facts. An inode of the covered file system is held by a descriptor, so that it outlives its name and is itself
whatever it is called. The kernel forgets inodes when it needs the memory, which may be never: after `tar x` it knows
every file. Descriptors have a limit (RLIMIT_NOFILE), which only some may raise, and open files need theirs as well.

The consequence. Beyond a number of inodes, the descriptors of those that nobody has asked for lately are let go of.
What is kept instead is where the inode is: the nodeid of its directory, and its name there.

The choice. Where it is, is found out only then (proc(5) tells under which name a descriptor was opened, and follows
renames), so that nothing costs more until there are that many. As long as an inode is let go of, its place is kept
true: what is removed or renamed through the mount is taken hold of before, and a directory is not forgotten before
what was in it is held again. What others rename or remove behind the mount is found to be another inode, or none: that
is ESTALE, upon which the VFS looks the path up again.

A file with several names may have lost the one under which it was opened (git makes each object under a temporary name,
and links it), and which others it has, nobody tells. Unless somebody has it open, ESTALE is the answer there, too: who
comes by another name leads us to it again.

The next worker
---------------
What the table knows is written down in the ledger (relfs/survival/ledger.py) as it changes: for an inode, where it is.
A worker that takes over begins with every inode let go of, and opens again what is asked for; what has no name any
more, but is open, is found by its handle (fuse/passthrough.py). A nodeid that leads nowhere by then is not given to
another inode, since the kernel may still have it.
"""

from __future__ import annotations

import errno
import itertools
import os
import stat
from collections import OrderedDict, defaultdict

from pyfuse3 import FUSEError, InodeT

from relfs import libc
from relfs.survival.ledger import Ledger, NodeRecord, new_ledger

ROOT = InodeT(1)
RELEASES_NODE = InodeT(2)
SHARED_NODE = InodeT(3)
STATE_NODE = InodeT(4)
_FIRST_FREE = 16
_FIRST_OWN = 1 << 48


_HOLD = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_PREFIX_BITS = 56

_VISITS = 16
"""How many inodes are looked at to find one that can be let go of, if no more than one has to be."""


class Node:
    """An inode of the covered file system.

    INVARIANT: `key` is its (st_dev, st_ino). Either `descriptor` (O_PATH) holds it, and nobody else can get that key,
    or `place` is the nodeid of its directory and its name there; see "More inodes than descriptors".
    `volatile`: others write here while we run (relfs's own state, deploy tools' records), so nothing of it may be
    cached. `used`: somebody has asked for it since it was last considered for letting go of. `opened` counts the file
    handles that it has. `record` is the number of its record in the ledger (0: none), which says `noted` for its place.
    """

    __slots__ = (
        "_table", "descriptor", "id", "key", "lookups", "noted", "opened", "pinned", "place", "record", "used",
        "volatile",
    )  # fmt: skip

    def __init__(self, table: InodeTable, nodeid: InodeT, fd: int | None, key: tuple[int, int]) -> None:
        self._table = table
        self.id = nodeid
        self.key = key
        self.descriptor = fd
        self.place: tuple[InodeT, bytes] | None = None
        self.lookups = 0
        self.opened = 0
        self.pinned = False
        self.volatile = False
        self.used = True
        self.record = 0
        self.noted = table.elsewhere

    @property
    def fd(self) -> int:
        """The descriptor, opened again where it was let go of. Raises FUSEError(ESTALE) if that cannot be.

        It is ours until the next request: who needs it for longer makes a copy. As a caller's identity (caller.py) it
        might be refused, so it is asked for before.
        """
        return self.descriptor if self.descriptor is not None else self._table.hold(self)

    @property
    def path(self) -> str:
        """A path that reaches this very inode, whatever it is called now (proc(5), /proc/self/fd). Raises as `fd`."""
        return f"{self._table.descriptors}/{self.fd}"


class InodeTable:
    """All inodes that the kernel may know. Contains no `await` anywhere: every method is atomic under trio.

    INVARIANT: `_nodes` and `_by_key` hold the same nodes, `_links` and `_by_text` the same links.
    INVARIANT: a node that is not pinned has lookups > 0 as soon as the reply that names it has been sent.
    INVARIANT: `_held` has the nodes that have a descriptor, but for the pinned ones, in the order in which they are
    considered for letting go of; `_away` has the others, by the nodeid of their directory, which is in `_nodes`.
    """

    def __init__(
        self, capacity: int = 1 << 20, ledger: Ledger | None = None, *, root: InodeT = ROOT, first_own: int = _FIRST_OWN
    ) -> None:
        """`capacity` is the number of descriptors to hold at the most, as far as that can be; at least 64. `ledger` is
        where the next worker reads (None: there is none); see restore(). `root` is the nodeid of what all others are
        below, and `first_own` the first of those that are not an inode's number."""
        self.root = root
        self.elsewhere = (root, b"")
        """The place of what has a name that we do not know: one that there never is."""
        self.descriptors = "/proc/self/fd"
        """Where this table's descriptors are found by path."""
        self._first_own = first_own
        self._prefixes: set[int] = set()
        self._ledger = ledger if ledger is not None else new_ledger()
        self._own_ledger = ledger is None
        self._capacity = max(capacity, 64)
        self._held: OrderedDict[InodeT, Node] = OrderedDict()
        self._away: defaultdict[InodeT, dict[InodeT, Node]] = defaultdict(dict)
        self._ids = itertools.count(first_own)
        self._nodes: dict[InodeT, Node] = {}
        self._by_key: dict[tuple[int, int], Node] = {}
        self._links: dict[InodeT, bytes] = {}
        self._by_text: dict[bytes, InodeT] = {}
        self._link_lookups: dict[InodeT, int] = {}
        self._link_records: dict[InodeT, int] = {}
        self._lost: set[InodeT] = set()

    # ---- the virtual link

    def link(self, text: bytes) -> InodeT:
        """The inode of the link that says `text`."""
        nodeid = self._by_text.get(text)
        if nodeid is None:
            nodeid = self._own_number()
            self._know_link(nodeid, text, 0, self._ledger.put_link(nodeid, text))
        return nodeid

    def _know_link(self, nodeid: InodeT, text: bytes, lookups: int, record: int) -> None:
        self._by_text[text] = nodeid
        self._links[nodeid] = text
        self._link_lookups[nodeid] = lookups
        self._link_records[nodeid] = record

    def text(self, nodeid: InodeT) -> bytes | None:
        """What link `nodeid` says; None: it is no virtual link."""
        return self._links.get(nodeid)

    # ---- inodes of the covered file system

    def pin(self, nodeid: InodeT, fd: int) -> Node:
        """Give `fd`'s inode a constant nodeid, for the life of the mount. The table takes the descriptor over.

        A nodeid that it had before becomes stale: the VFS looks the path up again.
        """
        node = Node(self, nodeid, fd, _key(os.fstat(fd)))
        node.pinned = True
        for old in (self._nodes.get(nodeid), self._by_key.get(node.key)):
            if old is not None and old.id in self._nodes:
                self._drop(old)
        self._nodes[nodeid] = node
        self._by_key[node.key] = node
        return node

    def is_pinned(self, nodeid: InodeT) -> bool:
        """Whether a constant nodeid is in use."""
        return nodeid in self._nodes

    def adopt(self, fd: int, status: os.stat_result, place: tuple[InodeT, bytes] | None = None) -> Node:
        """The node of the inode that `fd` (O_PATH) holds, and which is called `place`. The table takes the descriptor
        over."""
        self._make_room()
        place = place or self.elsewhere
        key = _key(status)
        node = self._by_key.get(key)
        if node is None:
            node = Node(self, self.number(key), fd, key)
            self._nodes[node.id] = node
            self._by_key[key] = node
            self._held[node.id] = node
        elif node.descriptor is None:
            self._come_back(node, fd)
        else:
            os.close(fd)
        if node.noted != place or not node.record:
            self._note(node, place)
        return node

    def _note(self, node: Node, place: tuple[InodeT, bytes]) -> None:
        """Write down where a node is."""
        if not node.pinned:
            node.noted = place
            record = NodeRecord(node.id, node.key, place, node.lookups, node.volatile)
            node.record = self._ledger.move_node(node.record, record)

    def note_moved(self, parent: InodeT, name: bytes) -> None:
        """After something was renamed to `name` in the directory `parent`: write down that it is there now."""
        try:
            node = self._by_key.get(libc.glance(self.node(parent).fd, name)[1])
        except (OSError, FUSEError):
            return
        if node is not None:
            self._note(node, (parent, name))

    def make_volatile(self, node: Node) -> None:
        """Nothing of it may be cached from now on."""
        if not node.volatile:
            node.volatile = True
            self._ledger.mark_volatile(node.record)

    def held(self, key: tuple[int, int]) -> Node | None:
        """The node of an inode that is known already."""
        return self._by_key.get(key)

    def number(self, key: tuple[int, int]) -> InodeT:
        """A nodeid that is free, for (st_dev, st_ino) that no node has: the inode's own number if that can be."""
        device, inode = key
        root = self._nodes.get(ROOT)  # of the deploy path only
        if root is not None and root.key[0] == device and inode >= _FIRST_FREE and not self._is_taken(InodeT(inode)):
            return InodeT(inode)
        return self._own_number()

    def _own_number(self) -> InodeT:
        number = next(number for number in map(InodeT, self._ids) if not self._is_taken(number))
        self._ledger.next_own = number + 1
        return number

    def _is_taken(self, nodeid: InodeT) -> bool:
        if nodeid >> _PREFIX_BITS in self._prefixes:
            return True
        return nodeid in self._nodes or nodeid in self._links or nodeid in self._lost

    def reserve(self, prefix: int) -> bool:
        """Give no nodeid with this upper byte to anybody from now on; False if somebody has one."""
        if any(nodeid >> _PREFIX_BITS == prefix for nodeid in self._nodes):
            return False
        self._prefixes.add(prefix)
        return True

    def node(self, nodeid: InodeT) -> Node:
        """Raises FUSEError(ESTALE), upon which the VFS looks the path up again by itself."""
        try:
            node = self._nodes[nodeid]
        except KeyError:
            raise FUSEError(errno.ESTALE) from None
        node.used = True
        return node

    # ---- descriptors

    def hold(self, node: Node) -> int:
        """The descriptor of a node that was let go of, opened again. Raises FUSEError(ESTALE), OSError."""
        self._make_room()
        return self._reach(node)

    def _reach(self, node: Node) -> int:
        """Open it, and the directories on its way as far as needed."""
        missing = [node]
        while (place := missing[-1].place) is not None and self.node(place[0]).descriptor is None:
            missing.append(self.node(place[0]))
        for each in reversed(missing):
            self._come_back(each, self._open_again(each))
        assert node.descriptor is not None
        return node.descriptor

    def hold_named(self, directory: int, name: bytes) -> None:
        """Before a name in a directory (a descriptor) is removed or moved: hold what it is called, if it is known."""
        if not self._away:
            return
        try:
            node = self._by_key.get(libc.glance(directory, name)[1])
            if node is not None and node.descriptor is None:
                self._make_room()
                self._come_back(node, _open(directory, name, node.key))
        except (OSError, FUSEError):
            pass  # then there is nothing to hold

    def _open_again(self, node: Node) -> int:
        assert node.place is not None
        parent, name = node.place
        directory = self.node(parent).descriptor
        assert directory is not None
        return _open(directory, name, node.key)

    def _come_back(self, node: Node, fd: int) -> None:
        self._settle(node)
        node.descriptor = fd
        node.used = True
        self._held[node.id] = node

    def _settle(self, node: Node) -> None:
        """The node is not away any more."""
        if node.place is not None:
            siblings = self._away[node.place[0]]
            del siblings[node.id]
            if not siblings:
                del self._away[node.place[0]]
            node.place = None

    def _make_room(self) -> None:
        """Let go of what nobody has asked for since it was last looked at, if there are too many.

        A request asks for a handful of nodes, and each time no more than an eighth of all is looked at, in turn: so
        none is let go of while the request that has asked for it is still using its descriptor.
        """
        excess = len(self._held) - self._capacity
        for _ in range(min(_VISITS + 2 * excess, len(self._held) // 8) if excess > 0 else 0):
            nodeid, node = next(iter(self._held.items()))
            if node.used or not self._let_go(node):
                node.used = False
                self._held.move_to_end(nodeid)

    def _let_go(self, node: Node) -> bool:
        """False: it has no name below the deploy path that we know of, and would be lost."""
        place = self._place_of(node) or (self.elsewhere if _may_be_named_otherwise(node) else None)
        if place is None or node.descriptor is None:
            return False
        os.close(node.descriptor)
        node.descriptor = None
        node.place = place
        self._away[place[0]][node.id] = node
        del self._held[node.id]
        return True

    def _place_of(self, node: Node) -> tuple[InodeT, bytes] | None:
        """Only the deploy path's descriptor is walked from: the path itself may lead into the mount, which waits for
        us."""
        root = self._nodes[self.root]
        try:
            base = os.readlink(os.fsencode(root.path)).rstrip(b"/") + b"/"
            path = os.readlink(os.fsencode(node.path))
            inner, name = os.path.split(path.removeprefix(base))
            if not path.startswith(base) or libc.glance(root.fd, path.removeprefix(base))[1] != node.key:
                return None
            parent = self._by_key.get(libc.glance(root.fd, inner)[1]) if inner else root
        except OSError:
            return None
        return (parent.id, name) if parent is not None else None

    # ---- lookup counts

    def count(self, nodeid: InodeT) -> None:
        """A reply that takes a lookup reference on `nodeid` is about to be sent."""
        if not self.count_link(nodeid):
            node = self._nodes[nodeid]
            node.lookups += 1
            self._ledger.count_node(node.record, node.lookups)

    def count_link(self, nodeid: InodeT) -> bool:
        """The same, of a virtual link; False if it is none (any more), and the reply must not be sent."""
        record = self._link_records.get(nodeid)
        if record is None:
            return False
        self._link_lookups[nodeid] += 1
        self._ledger.count_link(record, self._link_lookups[nodeid])
        return True

    def forget(self, nodeid: InodeT, lookups: int) -> None:
        """The kernel gives back `lookups` references."""
        if nodeid in self._links:
            self._link_lookups[nodeid] -= lookups
            self._ledger.count_link(self._link_records[nodeid], self._link_lookups[nodeid])
            if self._link_lookups[nodeid] <= 0:
                del self._link_lookups[nodeid]
                self._ledger.drop_link(self._link_records.pop(nodeid))
                del self._by_text[self._links.pop(nodeid)]
            return
        self._lost.discard(nodeid)
        node = self._nodes.get(nodeid)
        if node is not None:
            node.lookups -= lookups
            self._ledger.count_node(node.record, node.lookups)
            if node.lookups <= 0 and not node.pinned:
                self._drop(node)

    def _drop(self, node: Node) -> None:
        for child in list(self._away.get(node.id, {}).values()):
            self._bring_home(child)
        del self._nodes[node.id]
        if self._by_key.get(node.key) is node:
            del self._by_key[node.key]
        self._ledger.drop_node(node.record)
        self._settle(node)
        self._held.pop(node.id, None)
        if node.descriptor is not None:
            os.close(node.descriptor)

    def _bring_home(self, child: Node) -> None:
        """Hold what is away in a directory that is about to be forgotten; what is not there any more is forgotten too:
        the kernel hears ESTALE."""
        try:
            self._reach(child)
        except (OSError, FUSEError):
            if child.id in self._nodes and child.descriptor is None:
                self._drop(child)

    # ---- the next worker

    def restore(self) -> None:
        """Know what the ledger tells: what the worker before this one knew. To be called once what is pinned is, and
        before anything else."""
        self._ids = itertools.count(max(self._ledger.next_own, self._first_own))
        for number, link in self._ledger.links():
            self._know_link(InodeT(link.nodeid), link.text, link.lookups, number)
        for number, record in self._ledger.nodes():
            nodeid = InodeT(record.nodeid)
            if nodeid in self._nodes or record.key in self._by_key:
                self._ledger.drop_node(number)
                self._lost.add(nodeid)
            else:
                self._restore_node(number, record)
        for nodeid in [each for each in self._nodes if not self._is_rooted(each)]:
            self._lose(nodeid)

    def _restore_node(self, number: int, record: NodeRecord) -> None:
        node = Node(self, InodeT(record.nodeid), None, record.key)
        node.lookups, node.volatile, node.record = record.lookups, record.volatile, number
        node.noted = node.place = (InodeT(record.place[0]), record.place[1])
        self._nodes[node.id] = self._by_key[node.key] = node
        self._away[node.place[0]][node.id] = node

    def _is_rooted(self, nodeid: InodeT) -> bool:
        """Whether the directories on its way are all known, up to one that is pinned."""
        seen = set()
        while (node := self._nodes.get(nodeid)) is not None and nodeid not in seen:
            if node.place is None:
                return True
            seen.add(nodeid)
            nodeid = node.place[0]
        return False

    def _lose(self, nodeid: InodeT) -> None:
        """It has no way any more. It may still be open, which revive() is told."""
        node = self._nodes[nodeid]
        self._settle(node)
        node.noted = node.place = self.elsewhere
        self._away[self.root][nodeid] = node

    def revive(self, nodeid: InodeT, fd: int) -> Node | None:
        """A node that somebody has open, as descriptor `fd`, is held, whatever its name is by now. None: it is not
        known."""
        node = self._nodes.get(nodeid)
        if node is None:
            return None
        if node.descriptor is None:
            self._come_back(node, os.open(f"{self.descriptors}/{fd}", os.O_PATH | os.O_CLOEXEC))
        return node

    def close(self) -> None:
        for node in self._nodes.values():
            if node.descriptor is not None:
                os.close(node.descriptor)
        for kept in (self._nodes, self._by_key, self._held, self._away):
            kept.clear()
        if self._own_ledger:
            self._ledger.close()

    def check_invariants(self) -> None:
        """For tests: raise AssertionError where an INVARIANT of this module does not hold."""
        assert {id(node) for node in self._nodes.values()} == {id(node) for node in self._by_key.values()}
        assert {text: nodeid for nodeid, text in self._links.items()} == self._by_text
        assert self._links.keys() == self._link_lookups.keys()
        away = {child.id: child for children in self._away.values() for child in children.values()}
        assert self._held.keys() | away.keys() == {each.id for each in self._nodes.values() if not each.pinned}
        assert self._away.keys() <= self._nodes.keys()
        assert all(self._away.values()), "a directory that nothing is away in"
        for node in self._nodes.values():
            if node.descriptor is not None:
                assert _key(os.fstat(node.descriptor)) == node.key
                assert node.pinned or node.id in self._held
                assert node.place is None
            else:
                assert node.place is not None
                assert self._away[node.place[0]][node.id] is node
            assert node.pinned or node.lookups > 0, f"nodeid {node.id} is kept though the kernel does not know it"


def _open(directory: int, name: bytes, key: tuple[int, int]) -> int:
    """The inode `key` by its name in a directory (a descriptor). Raises FUSEError(ESTALE) if that is none or another's,
    OSError."""
    try:
        fd = os.open(name, _HOLD, dir_fd=directory)
    except (FileNotFoundError, NotADirectoryError):
        raise FUSEError(errno.ESTALE) from None
    if libc.glance(fd)[1] != key:
        os.close(fd)
        raise FUSEError(errno.ESTALE)
    return fd


def _may_be_named_otherwise(node: Node) -> bool:
    """A directory has one name, and may be somebody's working directory; a file that is open is asked for by nodeid."""
    status = os.fstat(node.fd)
    return status.st_nlink > 0 and not node.opened and not stat.S_ISDIR(status.st_mode)


def _key(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino
