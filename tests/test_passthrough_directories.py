"""Listings through a mount: entries that come and go meanwhile, positions, inode numbers. As on a plain directory."""

from __future__ import annotations

import os
from pathlib import Path

from dirstream import Directory, inodes_of
from mounting import Mounts
from sandbox import make_app
from served import SPECIAL, Pair, Served
from sidebyside import Trace, make, put


def test_listing_while_entries_come_and_go(pair: Pair) -> None:
    """5,000 entries: none twice, none lost that stays, whatever is made, removed and renamed meanwhile."""

    def script(t: Trace) -> None:
        directory = Directory("d")
        seen: list[bytes] = []
        removed: set[bytes] = set()
        for step in range(400):
            for _ in range(10):
                entry = directory.read()
                assert entry is not None
                seen.append(entry.name)
            os.mknod(f"d/new{step}")
            victim = f"{4999 - step}"
            os.unlink(f"d/{victim}")
            removed.add(victim.encode())
            if step % 10 == 0:
                os.rename(f"d/new{step}", f"d/renamed{step}")
        seen += [name for name, _ in directory.rest()]
        directory.close()
        staying = {b"%d" % number for number in range(5000)} - removed
        t.note("none twice", len(seen) == len(set(seen)))
        t.note("none lost", staying - set(seen))
        t.note("dots", {b".", b".."} <= set(seen))
        t("afterwards", lambda: sorted(os.listdir("d")))

    pair.fill("d", 5000)
    seen = pair.same(script, trees=False)
    pair.remove("d")
    assert (seen["none twice"], seen["none lost"], seen["dots"]) == (True, set(), True)


def test_positions_in_a_directory(pair: Pair) -> None:
    """telldir(3), seekdir(3) and rewinddir(3); a position stays good while entries come and go."""

    def script(t: Trace) -> None:
        directory = Directory("d")
        positions = []
        order = []
        for _ in range(1002):
            positions.append(directory.tell())
            entry = directory.read()
            assert entry is not None
            order.append(entry.name)
        t("the end", lambda: directory.read() is None)
        t.note("positions differ", len(set(positions)))
        for place in (1001, 0, 500, 17, 999, 1, 500):
            directory.seek(positions[place])
            entry = directory.read()
            t.note(f"back to {place}", entry is not None and entry.name == order[place])
        directory.seek(positions[300])
        for name in order[100:200]:
            if name not in (b".", b".."):
                os.unlink(b"d/" + name)
        t("the rest after removals", lambda: [name for name, _ in directory.rest()] == order[300:])
        os.mknod("d/new")
        directory.rewind()
        again = {name for name, _ in directory.rest()}
        t("rewind looks anew", lambda: b"new" in again and not (set(order[100:200]) - {b".", b".."}) & again)
        directory.close()

    pair.fill("d", 1000)
    seen = pair.same(script, trees=False)
    pair.remove("d")
    assert seen["positions differ"] == 1002
    assert seen["rewind looks anew"] is True


def test_inode_numbers_of_listings(pair: Pair) -> None:
    def script(t: Trace) -> None:
        put("file")
        make("d")
        os.symlink("x", "link")
        os.mkfifo("fifo")
        os.link("file", "file2")
        listed = inodes_of(".")
        names = ("file", "d", "link", "fifo", "file2")
        t("as stat says", lambda: [listed[name.encode()] == os.lstat(name).st_ino for name in names])
        t("of .", lambda: listed[b"."] == os.stat(".").st_ino)
        with os.scandir(".") as entries:
            kinds = {each.name: (each.is_file(follow_symlinks=False), each.is_dir(), each.is_symlink())
                     for each in entries if each.name not in SPECIAL}  # fmt: skip
        t.note("kinds", kinds)

    assert pair.same(script)["as stat says"] == [True] * 5


def test_listing_of_the_top_holds_everything(served: Served, mounts: Mounts, tmp_path: Path) -> None:
    """Before anything was looked up, and whatever is called `shared`."""
    app = make_app(tmp_path / "app")
    (app / "shared").symlink_to("/srv")
    mounts.start(app, "--no-bind")
    assert sorted(os.listdir(app)) == [".relfs", "current", "releases", "shared"]
    for mount in (served.bare, served.ordinary):
        listed = inodes_of(str(mount.app))
        for name in ("current", "releases", ".relfs"):
            assert name.encode() in listed
        assert listed[b"current"] == os.lstat(mount.app / "current").st_ino
