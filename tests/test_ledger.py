"""The ledger: what one worker wrote down, the next one reads."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from pyfuse3 import FUSEError, InodeT

from relfs.fuse.handles import Handles, nothing
from relfs.fuse.inodes import ROOT, InodeTable, Node
from relfs.fuse.once import LEFT_BEATS, Once, errand
from relfs.survival.estate import Estate
from relfs.survival.ledger import VERSION, HandleRecord, Ledger, LinkRecord, NodeRecord, Who, new_ledger


@pytest.fixture
def ledger() -> Iterator[Ledger]:
    made = new_ledger()
    yield made
    os.close(made.fd)


def again(ledger: Ledger) -> Ledger:
    """As another process sees it."""
    return Ledger(ledger.fd)


def hold(path: Path) -> int:
    return os.open(path, os.O_PATH | os.O_NOFOLLOW)


def table_of(ledger: Ledger, root: Path) -> InodeTable:
    table = InodeTable(ledger=ledger)
    table.pin(ROOT, hold(root))
    return table


def look_up(table: InodeTable, parent: Node, name: str) -> Node:
    fd = os.open(name, os.O_PATH | os.O_NOFOLLOW, dir_fd=parent.fd)
    node = table.adopt(fd, os.fstat(fd), (parent.id, name.encode()))
    table.count(node.id)
    return node


# ---- the ledger alone


def test_records(ledger: Ledger) -> None:
    node = NodeRecord(20, (1, 2), (1, b"n\xff"), 3, volatile=True)
    number = ledger.put_node(node)
    assert dict(again(ledger).nodes()) == {number: node}
    ledger.count_node(number, 9)
    assert [each.lookups for _, each in again(ledger).nodes()] == [9]
    ledger.drop_node(number)
    assert dict(again(ledger).nodes()) == {}
    link = ledger.put_link(1 << 48, b"releases/40")
    ledger.count_link(link, 2)
    assert list(again(ledger).links()) == [(link, LinkRecord(1 << 48, b"releases/40", 2))]
    handle = ledger.put_handle(HandleRecord(20, writing=True, directory=False))
    assert dict(again(ledger).handles()) == {handle: HandleRecord(20, writing=True, directory=False)}


def test_of_two_places_the_later_counts(ledger: Ledger) -> None:
    """Who is killed while an inode moves leaves two records."""
    old = ledger.put_node(NodeRecord(20, (1, 2), (1, b"old"), 1, volatile=False))
    new = ledger.put_node(NodeRecord(20, (1, 2), (1, b"new"), 1, volatile=False))
    for _ in range(2):
        assert [(number, each.place) for number, each in again(ledger).nodes()] == [(new, (1, b"new"))]
    assert ledger.put_node(NodeRecord(21, (1, 3), (1, b"x"), 1, volatile=False)) != new
    assert old != new


def test_who_is_who(ledger: Ledger) -> None:
    ledger.note("worker", Who(12, 34))
    ledger.note("standby", Who(5, 6))
    ledger.note("standby", None)
    assert (again(ledger).who("worker"), again(ledger).who("standby")) == (Who(12, 34), None)


def test_another_version_is_not_read(ledger: Ledger) -> None:
    os.pwrite(ledger.fd, (VERSION + 1).to_bytes(8, "little"), 0)
    with pytest.raises(ValueError, match=f"version {VERSION + 1}"):
        again(ledger)


# ---- inodes


def test_the_next_table_knows_the_same_inodes(ledger: Ledger, tmp_path: Path) -> None:
    (tmp_path / "d/e").mkdir(parents=True)
    (tmp_path / "d/e/file").touch()
    first = table_of(ledger, tmp_path)
    node = first.node(ROOT)
    for name in ("d", "e", "file"):
        node = look_up(first, node, name)
    link = first.link(b"releases/40")
    first.count(link)
    first.close()

    second = table_of(again(ledger), tmp_path)
    second.restore()
    second.check_invariants()
    assert os.fstat(second.node(node.id).fd).st_ino == os.stat(tmp_path / "d/e/file").st_ino
    assert second.text(link) == b"releases/40"
    assert second.link(b"releases/40") == link
    assert second.link(b"releases/41") not in (link, node.id)
    second.forget(node.id, 1)
    second.forget(link, 1)
    second.close()

    third = table_of(again(ledger), tmp_path)
    third.restore()
    with pytest.raises(FUSEError):
        third.node(node.id)
    assert third.link(b"releases/42") > second.link(b"releases/41")
    third.close()


def test_what_was_renamed_is_found(ledger: Ledger, tmp_path: Path) -> None:
    (tmp_path / "old").touch()
    first = table_of(ledger, tmp_path)
    node = look_up(first, first.node(ROOT), "old")
    os.rename(tmp_path / "old", tmp_path / "new")
    first.note_moved(ROOT, b"new")
    second = table_of(again(ledger), tmp_path)
    second.restore()
    assert os.fstat(second.node(node.id).fd).st_ino == os.stat(tmp_path / "new").st_ino


def test_another_file_of_that_name_is_not_taken_for_it(ledger: Ledger, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    first = table_of(ledger, tmp_path)
    node = look_up(first, first.node(ROOT), "file")
    (tmp_path / "other").touch()
    os.rename(tmp_path / "other", tmp_path / "file")
    second = table_of(again(ledger), tmp_path)
    second.restore()
    with pytest.raises(FUSEError):
        _ = second.node(node.id).fd


def test_a_nodeid_that_leads_nowhere_is_given_to_nobody(ledger: Ledger, tmp_path: Path) -> None:
    """Its directory is not known any more; the kernel may still ask for it."""
    ledger.put_node(NodeRecord(77, (1, 77), (76, b"file"), 1, volatile=False))
    table = table_of(again(ledger), tmp_path)
    table.restore()
    table.check_invariants()
    assert table.number((os.stat(tmp_path).st_dev, 77)) != 77


# ---- handles


def test_the_next_worker_has_the_same_files_open(ledger: Ledger, tmp_path: Path) -> None:
    """One that was removed, too, and what was listed."""
    (tmp_path / "file").write_text("text")
    estate, table = Estate(), table_of(ledger, tmp_path)
    first = Handles(table, ledger, estate)
    node = look_up(table, table.node(ROOT), "file")
    fh = first.add_file(os.open(tmp_path / "file", os.O_RDWR), node, writing=True)
    listed = first.add_directory(os.open(tmp_path, os.O_RDONLY), table.node(ROOT), nothing, [])
    first.keep_names(listed, [b".", b"..", b"file"])
    (tmp_path / "file").unlink()

    other = table_of(again(ledger), tmp_path)
    other.restore()
    second = Handles(other, again(ledger), estate)
    second.restore(lambda _nodeid, _name: False, lambda _nodeid: [])
    second.check_invariants()
    assert os.pread(second.fd(fh), 9, 0) == b"text"
    assert other.node(node.id).opened == 1
    assert second.is_written(other.node(node.id))
    assert second.listing(listed).names == [b".", b"..", b"file"]
    second.close(fh)
    second.close(listed)
    assert list(estate) == []
    assert list(again(ledger).handles()) == []


def test_a_file_whose_descriptor_was_lost_is_opened_by_its_name(ledger: Ledger, tmp_path: Path) -> None:
    """Supervisor and standby were killed before they had it."""
    (tmp_path / "file").write_text("text")
    (tmp_path / "gone").write_text("text")
    table = table_of(ledger, tmp_path)
    first = Handles(table, ledger, Estate())
    handles = [
        first.add_file(os.open(tmp_path / name, os.O_RDONLY), look_up(table, table.node(ROOT), name), writing=False)
        for name in ("file", "gone")
    ]
    (tmp_path / "gone").unlink()
    other = table_of(again(ledger), tmp_path)
    other.restore()
    second = Handles(other, again(ledger), Estate())
    second.restore(lambda _nodeid, _name: False, lambda _nodeid: [])
    second.check_invariants()
    assert list(second) == handles[:1]
    assert os.pread(second.fd(handles[0]), 9, 0) == b"text"


def test_an_estate_that_has_not_heard_of_a_change_has_no_wrong_file(ledger: Ledger, tmp_path: Path) -> None:
    """Who inherits it has the file that was closed, and not the one that was opened then. The old one is dropped."""
    for name in ("old", "new"):
        (tmp_path / name).write_text(name)
    told, untold, table = Estate(), Estate(), table_of(ledger, tmp_path)
    old, new = (look_up(table, table.node(ROOT), name) for name in ("old", "new"))
    first = Handles(table, ledger, told)
    closed = first.add_file(os.open(tmp_path / "old", os.O_RDONLY), old, writing=False)
    untold.put(f"file.{closed}", os.dup(first.fd(closed)))
    first.close(closed)
    opened = first.add_file(os.open(tmp_path / "new", os.O_RDONLY), new, writing=False)
    other = table_of(again(ledger), tmp_path)
    other.restore()
    second = Handles(other, again(ledger), untold)
    second.restore(lambda _nodeid, _name: False, lambda _nodeid: [])
    assert os.pread(second.fd(opened), 9, 0) == b"new"
    assert [name for name, _ in untold] == [f"file.{opened}"]


def test_a_handle_that_nobody_was_told_of_is_found(ledger: Ledger, tmp_path: Path) -> None:
    """By what was noted before it was made."""
    estate, table = Estate(), table_of(ledger, tmp_path)
    first = Handles(table, ledger, estate)
    opening = first.next_opening
    fh = first.add_directory(os.open(tmp_path, os.O_RDONLY), table.node(ROOT), nothing, [])
    second = Handles(table_of(again(ledger), tmp_path), again(ledger), estate)
    second.restore(lambda _nodeid, _name: False, lambda _nodeid: [])
    assert (second.made(opening), second.made(opening + 1)) == (fh, None)
    assert second.next_opening > opening
    second.close(fh)
    assert second.made(opening) is None


# ---- errands


def test_an_errand_that_was_begun_is_known_once(ledger: Ledger) -> None:
    name, other = errand("mkdir", 12, InodeT(1), b"d"), errand("mkdir", 13, InodeT(1), b"d")
    Once(ledger).note(name, b"note")
    next_one = Once(again(ledger))
    next_one.restore()
    assert next_one.begun(other) is None
    assert next_one.begun(name) == b"note"
    assert next_one.begun(name) is None
    after = Once(again(ledger))
    after.restore()
    assert after.begun(name) == b"note", "the next one may die of it as well"


def test_an_errand_is_expected_for_as_long_as_the_event_loop_hears_of_any(ledger: Ledger) -> None:
    """However long that takes, on a disk that does not answer."""
    name = errand("mkdir", 12, InodeT(1), b"d")
    Once(ledger).note(name, b"note")
    for beats, note in ((LEFT_BEATS, b"note"), (LEFT_BEATS + 1, None)):
        once = Once(again(ledger))
        once.restore()
        for _ in range(beats):
            once.beat()
        assert once.begun(name) == note


def test_an_errand_that_was_answered_is_forgotten(ledger: Ledger) -> None:
    name = errand("mkdir", 12, InodeT(1), b"d")
    first = Once(ledger)
    first.note(name)
    first.settle()
    first.note(errand("unlink", 12, InodeT(1), b"f"))
    first.note(errand("unlink", 12, InodeT(1), b"g"))
    second = Once(again(ledger))
    second.restore()
    assert second.begun(name) is None
    assert second.begun(errand("unlink", 12, InodeT(1), b"f")) is None
    assert second.begun(errand("unlink", 12, InodeT(1), b"g")) == b""
    for _ in range(LEFT_BEATS + 1):
        second.beat()
    third = Once(again(ledger))
    third.restore()
    assert third.begun(errand("unlink", 12, InodeT(1), b"g")) is None
    assert list(ledger.errands) == []
