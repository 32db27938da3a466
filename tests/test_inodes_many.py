"""More inodes than descriptors: the table lets go of some, and nobody can tell. By itself, and in a mount."""

from __future__ import annotations

import errno
import os
import random
import resource
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from clients import ctl
from mounting import Mounts, relfs_command
from pyfuse3 import FUSEError, InodeT
from sandbox import make_app
from test_inodes import look_up, own_descriptors

from relfs.fuse.inodes import ROOT, InodeTable, Node

CAPACITY = 64
MANY = 600


@pytest.fixture
def table(tmp_path: Path) -> Iterator[InodeTable]:
    made = InodeTable(CAPACITY)
    made.pin(ROOT, os.open(tmp_path, os.O_PATH))
    yield made
    made.check_invariants()
    made.close()


@pytest.fixture
def tree(tmp_path: Path) -> list[Path]:
    """Many files in a few directories, some of them deep."""
    directories = [tmp_path / "a", tmp_path / "a/b", tmp_path / "c", tmp_path / "a/b/d"]
    for directory in directories:
        directory.mkdir()
    files = [directories[number % 4] / f"file {number}" for number in range(MANY)]
    for file in files:
        file.write_text(file.name)
    return [*directories, *files]


def is_held(node: Node) -> bool:
    return node.descriptor is not None


def key_of(path: Path) -> tuple[int, int]:
    status = path.lstat()
    return status.st_dev, status.st_ino


def away(nodes: dict[Path, Node]) -> Path:
    """A file whose inode was let go of."""
    return next(path for path, node in nodes.items() if not is_held(node) and path.is_file())


def look_up_all(table: InodeTable, paths: list[Path]) -> dict[Path, Node]:
    return {path: look_up(table, path) for path in paths}


def test_descriptors_are_bounded(table: InodeTable, tree: list[Path]) -> None:
    before = own_descriptors()
    nodes = look_up_all(table, tree)
    assert own_descriptors() - before <= CAPACITY + CAPACITY // 8
    table.check_invariants()
    for _ in range(3):
        for path, node in nodes.items():
            status = os.fstat(table.node(node.id).fd)
            assert (status.st_dev, status.st_ino) == node.key == key_of(path)
            assert own_descriptors() - before <= CAPACITY + CAPACITY // 8
    table.check_invariants()


def test_looked_up_again(table: InodeTable, tree: list[Path]) -> None:
    nodes = look_up_all(table, tree)
    path = away(nodes)
    assert look_up(table, path) is nodes[path]
    assert is_held(nodes[path])


def test_no_name_is_needed_for_what_is_removed_through_the_mount(table: InodeTable, tree: list[Path]) -> None:
    nodes = look_up_all(table, tree)
    path = away(nodes)
    directory = os.open(path.parent, os.O_PATH)
    table.hold_named(directory, os.fsencode(path.name))
    os.close(directory)
    path.unlink()
    assert os.fstat(table.node(nodes[path].id).fd).st_nlink == 0
    look_up_all(table, [each for each in tree if each != path])
    assert os.fstat(table.node(nodes[path].id).fd).st_nlink == 0, "what has no name is never let go of"


def test_names_that_nobody_tells_of(table: InodeTable, tmp_path: Path) -> None:
    """Each file is made under one name and gets another, as git's objects do. Who comes by that one leads us back."""
    before = own_descriptors()
    nodes: dict[Path, Node] = {}
    for number in range(MANY):
        made, kept = tmp_path / f"made {number}", tmp_path / str(number)
        made.touch()
        nodes[kept] = look_up(table, made)
        os.link(made, kept)
        made.unlink()
    assert own_descriptors() - before <= CAPACITY + CAPACITY // 8
    lost = away(nodes)
    with pytest.raises(FUSEError) as caught:
        _ = nodes[lost].fd
    assert caught.value.errno == errno.ESTALE
    assert look_up(table, lost) is nodes[lost]
    assert key_of(lost) == nodes[lost].key


def test_a_file_that_is_open_is_not_lost(table: InodeTable, tree: list[Path], tmp_path: Path) -> None:
    made = tmp_path / "made"
    made.touch()
    node = look_up(table, made)
    node.opened += 1
    os.link(made, tmp_path / "kept")
    made.unlink()
    for _ in range(2):
        look_up_all(table, tree)
    assert is_held(node)
    node.opened -= 1
    for _ in range(2):
        look_up_all(table, tree)
    assert not is_held(node)


def test_what_is_behind_a_directory_that_moves(table: InodeTable, tree: list[Path], tmp_path: Path) -> None:
    nodes = look_up_all(table, tree)
    inside = next(path for path in nodes if not is_held(nodes[path]) and path.parent == tmp_path / "a/b/d")
    root = table.node(ROOT).fd
    table.hold_named(root, b"a")
    (tmp_path / "a").rename(tmp_path / "z")
    assert os.fstat(table.node(nodes[inside].id).fd).st_ino == nodes[inside].key[1]


def test_changed_behind_the_mount(table: InodeTable, tree: list[Path]) -> None:
    """Gone, or another inode of that name: ESTALE, so that the path is looked up again. Never somebody else's file."""
    nodes = look_up_all(table, tree)
    gone = away(nodes)
    gone.unlink()
    other = away({path: node for path, node in nodes.items() if path != gone})
    (other.parent / "new").write_text("somebody else's")
    (other.parent / "new").rename(other)
    for path in (gone, other):
        with pytest.raises(FUSEError) as raised:
            _ = table.node(nodes[path].id).fd
        assert raised.value.errno == errno.ESTALE


def test_a_directory_is_forgotten_before_what_was_in_it(table: InodeTable, tree: list[Path], tmp_path: Path) -> None:
    nodes = look_up_all(table, tree)
    directory = nodes[tmp_path / "c"]
    inside = [path for path in nodes if path.parent == tmp_path / "c" and not is_held(nodes[path])]
    inside[0].unlink()
    table.forget(directory.id, directory.lookups)
    assert all(is_held(nodes[path]) for path in inside[1:])
    with pytest.raises(FUSEError):
        table.node(nodes[inside[0]].id)


@pytest.mark.parametrize("seed", range(5))
def test_in_any_order(table: InodeTable, tree: list[Path], tmp_path: Path, seed: int) -> None:
    """Lookups, uses, renames and removals as the mount does them, forgets as the kernel does: each node goes on meaning
    the inode that it meant."""
    chance = random.Random(seed)
    inodes: dict[InodeT, tuple[Node, int]] = {}
    names = list(tree)
    for number in range(2000):
        what = chance.choice(("look", "look", "look", "use", "use", "rename", "remove", "forget"))
        path = chance.choice(names)
        if what == "look":
            for each in [*reversed([p for p in path.parents if p.is_relative_to(tmp_path) and p != tmp_path]), path]:
                node = look_up(table, each)
                inodes[node.id] = (node, each.lstat().st_ino)
        elif what == "use" and inodes:
            node, inode = inodes[chance.choice(list(inodes))]
            assert os.fstat(table.node(node.id).fd).st_ino == inode
        elif what in ("rename", "remove") and path.is_file():
            directory = os.open(path.parent, os.O_PATH)
            table.hold_named(directory, os.fsencode(path.name))
            os.close(directory)
            names.remove(path)
            if what == "remove":
                path.unlink()
            else:
                names.append(path.rename(chance.choice(tree[:4]) / f"moved {number}"))
        elif what == "forget" and inodes:
            node, _ = inodes[chance.choice(list(inodes))]
            if not any(other.place is not None and other.place[0] == node.id for other, _ in inodes.values()):
                table.forget(node.id, node.lookups)
                del inodes[node.id]
        if number % 100 == 0:
            table.check_invariants()


def limited(*arguments: str | Path) -> list[str]:
    """relfs, where it may have 256 descriptors."""
    return ["prlimit", "--nofile=256:256", *relfs_command(*arguments)]


@pytest.mark.parametrize("user", [None, 65534], ids=["root", "user"])
def test_a_tree_of_more_files_than_descriptors(open_place: Path, mounts: Mounts, user: int | None) -> None:
    """Unpacked, read, renamed and removed through a mount that serves all of it, by a daemon that may not have nearly
    as many descriptors. Capabilities that would lift the limit it has not."""
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[1] > 256
    app = make_app(open_place / "app")
    live = open_place / "live"
    live.mkdir()
    if user is not None:
        subprocess.run(["chown", "-R", str(user), app, live], check=True)
    options = ["--no-bind"] if user is None else ["--no-bind", "-o", "noallow_other"]
    mount = mounts.start(app, *options, at=None if user is None else live, user=user, command=limited)
    script = (
        "import os, sys\n"
        "os.chdir(sys.argv[1])\n"
        "for d in range(10):\n"
        "    os.mkdir(f'd{d}')\n"
        "    for n in range(100):\n"
        "        with open(f'd{d}/{n}', 'w') as file: file.write(f'{d} {n}')\n"
        "for _ in range(2):\n"
        "    for d in range(10):\n"
        "        for n in range(100):\n"
        "            assert open(f'd{d}/{n}').read() == f'{d} {n}'\n"
        "            assert os.stat(f'd{d}/{n}').st_nlink == 1\n"
        "held = [os.open(f'd{d}/7', os.O_PATH) for d in range(10)]\n"
        "os.rename('d3', 'moved')\n"
        "for n in range(100): assert open(f'moved/{n}').read() == f'3 {n}'\n"
        "for n in range(100): os.rename(f'moved/{n}', f'd4/m{n}')\n"
        "assert len(os.listdir('d4')) == 200\n"
        "for n in range(100): os.unlink(f'd7/{n}')\n"
        "assert [os.fstat(fd).st_nlink for fd in held] == [1] * 7 + [0] + [1] * 2\n"
        "os.rmdir('d7'); os.rmdir('moved')\n"
        "os.mkdir('objects'); os.mkdir('copy')\n"
        "for n in range(400):\n"
        "    with open('objects/new', 'w') as file: file.write(str(n))\n"
        "    os.link('objects/new', f'objects/{n}'); os.unlink('objects/new')\n"
        "for n in range(400): os.link(f'objects/{n}', f'copy/{n}')\n"
        "kept = open('copy/9')\n"
        "for n in range(400): os.unlink(f'copy/{n}')\n"
        "for n in range(400): assert open(f'objects/{n}').read() == str(n)\n"
        "assert (os.fstat(kept.fileno()).st_nlink, kept.read()) == (1, '9')\n"
    )
    release = mount.mountpoint / "releases/41"
    done = subprocess.run(
        ["/usr/bin/python3", "-c", script, release], capture_output=True, text=True, check=False, user=user, group=user
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert ctl("-C", app, "switch", "41", user=user).status == 0
