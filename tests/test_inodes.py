"""The inode table by itself: any order of lookups, forgets and pins, held against a model. No mount."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from pyfuse3 import FUSEError, InodeT

from relfs.fuse.inodes import RELEASES_NODE, ROOT, SHARED_NODE, STATE_NODE, InodeTable, Node

CONSTANT = (ROOT, RELEASES_NODE, SHARED_NODE, STATE_NODE)
UNKNOWN = InodeT(1 << 40)


def hold(path: Path) -> int:
    return os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)


def look_up(table: InodeTable, path: Path) -> Node:
    """What a lookup does: hold the inode, find its node, take a reference."""
    fd = hold(path)
    node = table.adopt(fd, os.fstat(fd))
    table.count(node.id)
    return node


def is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def own_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.fixture
def table() -> Iterator[InodeTable]:
    made = InodeTable()
    yield made
    made.check_invariants()
    made.close()


def test_one_inode_is_one_node(table: InodeTable, tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    (tmp_path / "b").hardlink_to(tmp_path / "a")
    (tmp_path / "c").touch()
    before = own_descriptors()
    first, second, other = (look_up(table, tmp_path / name) for name in "abc")
    assert first is second
    assert first.id != other.id
    assert own_descriptors() == before + 2, "the second descriptor of the same inode was closed"
    assert table.node(first.id) is first


def test_forgotten_when_all_references_are_given_back(table: InodeTable, tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    node = look_up(table, tmp_path / "a")
    look_up(table, tmp_path / "a")
    table.forget(node.id, 1)
    assert table.node(node.id) is node
    table.forget(node.id, 1)
    with pytest.raises(FUSEError) as raised:
        table.node(node.id)
    assert raised.value.errno == errno.ESTALE
    assert not is_open(node.fd)
    assert look_up(table, tmp_path / "a").fd >= 0


def test_a_removed_file_is_still_there_and_its_number_is_not_reused(table: InodeTable, tmp_path: Path) -> None:
    (tmp_path / "a").write_text("old")
    node = look_up(table, tmp_path / "a")
    (tmp_path / "a").unlink()
    for number in range(50):  # would get the inode number, were it free
        (tmp_path / f"new{number}").write_text("new")
        assert look_up(table, tmp_path / f"new{number}").id != node.id
        table.check_invariants()
    assert Path(node.path).read_text() == "old"


def test_symbolic_links_are_nodes_of_their_own(table: InodeTable, tmp_path: Path) -> None:
    (tmp_path / "target").touch()
    (tmp_path / "link").symlink_to("target")
    link, target = look_up(table, tmp_path / "link"), look_up(table, tmp_path / "target")
    assert link.id != target.id
    assert os.readlink(b"", dir_fd=link.fd) == b"target"


def test_a_links_inode_is_a_function_of_its_text(table: InodeTable) -> None:
    old, new = table.link(b"releases/40"), table.link(b"releases/41")
    for nodeid in (old, new):
        table.count(nodeid)
    assert old != new
    assert table.link(b"releases/40") == old
    assert (table.text(old), table.text(new), table.text(UNKNOWN)) == (b"releases/40", b"releases/41", None)
    table.forget(old, 1)
    assert table.text(old) is None
    again = table.link(b"releases/40")
    table.count(again)
    assert again != old, "nodeids are never used twice"


def test_constant_nodes_are_never_forgotten(table: InodeTable, tmp_path: Path) -> None:
    node = table.pin(ROOT, hold(tmp_path))
    assert table.is_pinned(ROOT)
    assert not table.is_pinned(SHARED_NODE)
    for _ in range(3):
        assert look_up(table, tmp_path) is node, "reached by another way, it keeps its constant number"
    table.forget(ROOT, 1000)
    table.check_invariants()
    assert table.node(ROOT) is node
    assert is_open(node.fd)


def test_pinning_again_replaces(table: InodeTable, tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
    old = table.pin(SHARED_NODE, hold(tmp_path / "a"))
    new = table.pin(SHARED_NODE, hold(tmp_path / "b"))
    assert table.node(SHARED_NODE) is new
    assert not is_open(old.fd)
    table.check_invariants()
    assert look_up(table, tmp_path / "a").id not in CONSTANT


def test_pinning_what_is_known_under_another_number(table: InodeTable, tmp_path: Path) -> None:
    """A directory that was looked up under another name, and got the name `shared` behind the mount."""
    (tmp_path / "a").mkdir()
    ordinary = look_up(table, tmp_path / "a")
    table.pin(SHARED_NODE, hold(tmp_path / "a"))
    table.check_invariants()
    assert look_up(table, tmp_path / "a").id == SHARED_NODE
    table.forget(ordinary.id, 1)
    table.check_invariants()
    assert look_up(table, tmp_path / "a").id == SHARED_NODE


def test_forgetting_what_is_not_known_is_harmless(table: InodeTable) -> None:
    """Consumed FORGETs and worker generations make the counts advisory."""
    table.forget(UNKNOWN, 1)
    table.forget(InodeT(0), 0)
    link = table.link(b"x")
    table.count(link)
    table.forget(link, 99)
    assert not table.count_link(link), "there is none any more that could be answered"
    table.forget(link, 1)
    assert table.text(link) is None


def test_invariants_are_checked(tmp_path: Path) -> None:
    """check_invariants() finds what it is there to find."""
    for spoil in ("descriptor", "count", "key", "keys", "texts"):
        table = InodeTable()
        node = look_up(table, tmp_path)
        table.count(table.link(b"x"))
        table.check_invariants()
        if spoil == "descriptor":
            os.dup2(os.open("/", os.O_PATH | os.O_CLOEXEC), node.fd)
        elif spoil == "count":
            node.lookups = 0
        elif spoil == "key":
            node.key = (0, 0)
        elif spoil == "keys":
            table._by_key.clear()
        else:
            table._by_text.clear()
        with pytest.raises(AssertionError):
            table.check_invariants()


class InodeModel(RuleBasedStateMachine):
    """Files come, get other names, go and are looked up and forgotten in any order."""

    @initialize()
    def begin(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="relfs-inodes-"))
        self.before = own_descriptors()
        self.table = InodeTable()
        self.known: dict[InodeT, tuple[int, int]] = {}  # nodeid: the inode
        self.counts: Counter[InodeT] = Counter()
        self.texts: dict[InodeT, bytes] = {}
        self.used: set[InodeT] = set()
        self.pinned: dict[InodeT, tuple[int, int]] = {}

    def teardown(self) -> None:
        if hasattr(self, "table"):
            self.table.close()
            assert own_descriptors() == self.before, "every descriptor is given back"
            shutil.rmtree(self.directory)

    @rule(name=st.sampled_from("abcdef"))
    def make(self, name: str) -> None:
        (self.directory / name).touch()

    @rule(old=st.sampled_from("abcdef"), new=st.sampled_from("abcdef"))
    def link_or_rename(self, old: str, new: str) -> None:
        if not (self.directory / old).exists():
            return
        if (self.directory / new).exists():
            os.rename(self.directory / old, self.directory / new)
        else:
            os.link(self.directory / old, self.directory / new)

    @rule(name=st.sampled_from("abcdef"))
    def remove(self, name: str) -> None:
        (self.directory / name).unlink(missing_ok=True)

    @rule(name=st.sampled_from("abcdef"))
    def look_up(self, name: str) -> None:
        path = self.directory / name
        if not path.exists():
            return
        node = look_up(self.table, path)
        status = os.stat(path)
        key = (status.st_dev, status.st_ino)
        constant = next((nodeid for nodeid, pinned in self.pinned.items() if pinned == key), None)
        if constant is not None:
            assert node.id == constant
            return
        mine = next((nodeid for nodeid, known in self.known.items() if known == key), None)
        assert mine == node.id if mine is not None else node.id not in self.known
        self.known[node.id] = key
        self.used.add(node.id)
        self.counts[node.id] += 1

    @rule(text=st.sampled_from([b"releases/40", b"releases/41", b"\xff"]))
    def look_up_link(self, text: bytes) -> None:
        nodeid = self.table.link(text)
        self.table.count(nodeid)
        mine = next((known for known, says in self.texts.items() if says == text), None)
        assert mine == nodeid if mine is not None else nodeid not in self.used
        self.texts[nodeid] = text
        self.used.add(nodeid)
        self.counts[nodeid] += 1

    @precondition(lambda self: self.counts)
    @rule(data=st.data())
    def forget(self, data: st.DataObject) -> None:
        nodeid = data.draw(st.sampled_from(sorted(self.counts)))
        lookups = data.draw(st.integers(1, self.counts[nodeid]))
        self.table.forget(nodeid, lookups)
        self.counts[nodeid] -= lookups
        if not self.counts[nodeid]:
            del self.counts[nodeid]
            self.known.pop(nodeid, None)
            self.texts.pop(nodeid, None)

    @rule(nodeid=st.sampled_from([*CONSTANT, UNKNOWN]), lookups=st.integers(0, 3))
    def forget_what_cannot_be_forgotten(self, nodeid: InodeT, lookups: int) -> None:
        self.table.forget(nodeid, lookups)

    @rule(nodeid=st.sampled_from(CONSTANT))
    def pin(self, nodeid: InodeT) -> None:
        """A directory of its own for each constant, as it is under a mount."""
        path = self.directory / f"constant{nodeid}"
        path.mkdir(exist_ok=True)
        node = self.table.pin(nodeid, hold(path))
        self.pinned[nodeid] = node.key

    @invariant()
    def holds(self) -> None:
        if not hasattr(self, "table"):
            return
        self.table.check_invariants()
        for nodeid, key in (self.known | self.pinned).items():
            node = self.table.node(nodeid)
            assert (node.id, node.key) == (nodeid, key)
        for nodeid, text in self.texts.items():
            assert self.table.text(nodeid) == text
        for nodeid in self.used - self.known.keys() - self.texts.keys():
            assert self.table.text(nodeid) is None
            with pytest.raises(FUSEError):
                self.table.node(nodeid)


TestInodes = InodeModel.TestCase
TestInodes.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
