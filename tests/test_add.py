"""Adding releases: what comes out is what went in, whatever it came from; what is shared; and that nothing is left
of what failed. Offline, by the function; the command is in test_add_command.py, hostile archives in test_archive.py."""

from __future__ import annotations

import errno
import gzip
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import tarfile
import tracemalloc
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from disks import small_disk
from mounting import detach_all
from trees import change_one_in, described, make_archive, make_tree, member, owners, write

from relfs.errors import RefusedError, RelfsError, UsageError
from relfs.layout import DeployPath, open_deploy_path
from relfs.releases import adding
from relfs.releases.adding import Added, add, resume
from relfs.releases.checking import Difference, check
from relfs.releases.manifest import read_manifest
from relfs.releases.registry import Registry
from relfs.releases.sharing import Sharing
from relfs.releases.sources import open_source
from relfs.releases.staging import PREFIX, Staging, staging
from relfs.releases.workers import Progress

COMPRESSORS = {"gz": "gzip", "bz2": "bzip2", "xz": "xz", "zst": "zstd", "lz4": "lz4"}


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return make_tree(tmp_path / "tree")


@pytest.fixture
def many(tmp_path: Path) -> Path:
    """So many files that several processes copy them; some in one large directory, some have two names."""
    top = tmp_path / "many"
    for number in range(900):
        where = "flat" if number < 500 else f"deep/{number % 20}/{number % 7}"
        write(top / where / f"file{number}", b"%d\n" % number * (number % 50))
    for number in range(0, 900, 100):
        os.link(next(top.rglob(f"file{number}")), top / f"twin{number}")
    return top


@pytest.fixture
def xfs(tmp_path: Path) -> Iterator[Path]:
    """A file system that can share blocks between files."""
    image, place = tmp_path / "xfs.img", tmp_path / "xfs"
    place.mkdir()
    with open(image, "wb") as file:
        file.truncate(512 << 20)
    subprocess.run(["mkfs.xfs", "-q", "-m", "reflink=1", image], check=True)
    subprocess.run(["mount", "-o", "loop", image, place], check=True)
    yield place
    detach_all(place)


def add_from(
    deploy: DeployPath, source: str | Path, *, strip: int = 0, repository: Path | None = None, **how: Any
) -> Added:
    opened = open_source(str(source), strip=strip, repository=str(repository) if repository else None)
    try:
        return add(deploy, opened, **how)
    finally:
        opened.close()


def make_current(app: Path, name: str) -> None:
    (app / "current").unlink(missing_ok=True)
    (app / "current").symlink_to(f"releases/{name}")


def assert_nothing_left(deploy: DeployPath, *names: str) -> None:
    """In `releases/` are these, no staging directory, and no manifest of anything else."""
    releases = Path(deploy.path, "releases")
    assert sorted(os.listdir(releases)) == sorted(names)
    manifests = Path(deploy.state_path, "manifests")
    assert set(os.listdir(manifests) if manifests.exists() else []) <= set(names)


# ---- a directory


def test_a_directory_is_copied_as_it_is(deploy: DeployPath, app: Path, tree: Path) -> None:
    added = add_from(deploy, tree)
    assert (added.name, added.files, added.links) == ("43", 8, 2)
    release = app / "releases/43"
    assert described(release) == described(tree)
    assert (release / "holes.img").lstat().st_blocks * 512 < 1 << 20, "holes stay holes"
    assert check(deploy, "43").differences == ()


def test_root_keeps_owners(deploy: DeployPath, app: Path, tree: Path) -> None:
    os.chown(tree / "app/secret", 1234, 2345)
    os.chown(tree / "app/lib", 1234, 2345)
    os.chown(tree / "public/storage", 1234, 2345, follow_symlinks=False)
    (tree / "app/secret").chmod(0o4711)
    add_from(deploy, tree)
    assert owners(app / "releases/43") == owners(tree)
    assert (app / "releases/43/app/secret").stat().st_mode & 0o7777 == 0o4711


def test_access_control_lists_are_kept(deploy: DeployPath, app: Path, tree: Path) -> None:
    subprocess.run(["setfacl", "-m", "u:1234:r", tree / "index.php"], check=True)
    subprocess.run(["setfacl", "-d", "-m", "g:2345:rwx", tree / "app"], check=True)
    add_from(deploy, tree)
    assert described(app / "releases/43") == described(tree)


def test_a_default_list_of_the_directory_does_not_change_modes(deploy: DeployPath, app: Path, many: Path) -> None:
    subprocess.run(["setfacl", "-d", "-m", "u:1234:rwx,o::-", app / "releases"], check=True)
    add_from(deploy, many)
    assert {path.stat().st_mode & 0o777 for path in (app / "releases/43/flat").iterdir()} == {0o644}


def test_many_files_are_copied_by_several_processes(deploy: DeployPath, app: Path, many: Path) -> None:
    seen: list[Progress] = []
    added = add_from(deploy, many, on_progress=seen.append)
    assert described(app / "releases/43") == described(many)
    assert added.files == 909
    assert check(deploy, "43").differences == ()
    assert seen[-1].files_total == 909
    assert seen[-1].files == 891, "those with two names are made in the end"


def test_what_can_be_no_part_of_a_release_is_named(deploy: DeployPath, tree: Path) -> None:
    os.mkfifo(tree / "app/queue")
    with pytest.raises(RefusedError, match=r"^app/queue: is a fifo"):
        add_from(deploy, tree)
    assert_nothing_left(deploy, "40", "41", "42")


@pytest.mark.parametrize("source", ["", "releases", ".relfs", ".."])
def test_the_deploy_path_is_not_copied_into_itself(deploy: DeployPath, app: Path, source: str) -> None:
    with pytest.raises(UsageError, match="holds all releases, or relfs's own state"):
        add_from(deploy, app / source)


def test_nor_by_another_path(deploy: DeployPath, app: Path, tmp_path: Path) -> None:
    """Neither where releases/ really is, nor by a mount of it."""
    (tmp_path / "disk").mkdir()
    (app / "releases").rename(tmp_path / "disk/releases")
    (app / "releases").symlink_to(tmp_path / "disk/releases")
    (tmp_path / "seen").mkdir()
    subprocess.run(["mount", "--bind", tmp_path / "disk", tmp_path / "seen"], check=True)
    try:
        for path in ("disk", "disk/releases", "seen", "seen/releases"):
            with pytest.raises(UsageError, match="holds all releases"):
                add_from(deploy, tmp_path / path)
    finally:
        detach_all(tmp_path / "seen")
    add_from(deploy, tmp_path / "disk/releases/41")


def test_the_same_tree_from_beginning_to_end(deploy: DeployPath, tree: Path) -> None:
    """What comes or goes meanwhile may be overlooked, or half there."""
    for change in ((tree / "app/new").mkdir, (tree / "app/secret").unlink):
        changes = iter([change])
        with pytest.raises(RelfsError, match=r"^app: it changed while it was being read; try again$"):
            add_from(deploy, tree, on_progress=lambda _, changes=changes: next(changes, int)())
    assert_nothing_left(deploy, "40", "41", "42")


# ---- other sources


@pytest.mark.parametrize("suffix", ["", *COMPRESSORS])
def test_a_tar_archive_however_compressed(
    deploy: DeployPath, app: Path, tmp_path: Path, tree: Path, suffix: str
) -> None:
    (tree / "public/away").unlink()  # leads out
    archive = tmp_path / "app.tar"
    subprocess.run(["tar", "--format=pax", "-C", tree, "-S", "-cf", archive, "."], check=True)
    if suffix:
        with open(f"{archive}.{suffix}", "wb") as file:
            subprocess.run([COMPRESSORS[suffix], "-c", archive], stdout=file, check=True)
        archive = Path(f"{archive}.{suffix}")
    add_from(deploy, archive)
    got, wanted = described(app / "releases/43"), described(tree)
    without_xattrs = {path: each[:4] for path, each in wanted.items()}
    assert {path: each[:4] for path, each in got.items()} == without_xattrs
    assert (app / "releases/43/holes.img").lstat().st_blocks * 512 < 4 << 20
    assert check(deploy, "43").differences == ()


def test_a_zip(deploy: DeployPath, app: Path, tmp_path: Path, tree: Path) -> None:
    with zipfile.ZipFile(tmp_path / "app.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(tree / "app/lib/tool", "top/bin/tool")
        archive.writestr("top/made-elsewhere", b"text")
        link = zipfile.ZipInfo("top/link")
        link.create_system, link.external_attr = 3, 0o120777 << 16
        archive.writestr(link, "bin/tool")
    add_from(deploy, tmp_path / "app.zip", strip=1)
    release = app / "releases/43"
    assert (release / "bin/tool").stat().st_mode & 0o777 == 0o750
    assert (release / "link").read_bytes() == (tree / "app/lib/tool").read_bytes()
    assert abs((release / "bin/tool").stat().st_mtime_ns - (tree / "app/lib/tool").stat().st_mtime_ns) <= 2 * 10**9
    assert check(deploy, "43").differences == ()


def test_names_in_a_zip_are_what_they_were(deploy: DeployPath, app: Path, tmp_path: Path) -> None:
    """zip(1) writes the bytes that a name has, without saying that they are UTF-8."""
    names = {"\u00e9\u65e5.txt", os.fsdecode(b"latin-\xe9")}
    for name in names:
        write(tmp_path / "tree" / name, b"x")
    subprocess.run(["zip", "-qr", tmp_path / "a.zip", "."], cwd=tmp_path / "tree", env={"LC_ALL": "C"}, check=True)
    add_from(deploy, tmp_path / "a.zip")
    assert set(os.listdir(app / "releases/43")) == names


def test_a_zip_from_where_directories_end_in_backslashes(deploy: DeployPath, app: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for name in ("public\\", "public\\css\\a.css"):
            info = zipfile.ZipInfo(name)
            info.create_system = 0  # DOS, as .NET has it
            archive.writestr(info, b"")
    add_from(deploy, tmp_path / "a.zip")
    assert (app / "releases/43/public/css/a.css").is_file()


def test_a_tree_in_a_git_repository(deploy: DeployPath, app: Path, tmp_path: Path) -> None:
    git = ("git", "-C", tmp_path / "repo", "-c", "user.name=a", "-c", "user.email=a@b")
    write(tmp_path / "repo/web/index.php", b"one")
    subprocess.run(["git", "init", "-q", tmp_path / "repo"], check=True)
    subprocess.run([*git, "add", "."], check=True)
    subprocess.run([*git, "commit", "-qm", "one"], check=True)
    subprocess.run([*git, "tag", "v1"], check=True)
    write(tmp_path / "repo/web/index.php", b"two, and not committed")
    assert "git:v1 (" in add_from(deploy, "git:v1", repository=tmp_path / "repo").source
    add_from(deploy, "git:HEAD:web", repository=tmp_path / "repo")
    assert (app / "releases/43/web/index.php").read_bytes() == b"one"
    assert (app / "releases/44/index.php").read_bytes() == b"one"
    for treeish in ("v2", "--output=/tmp/x", ""):
        with pytest.raises(RelfsError, match=f"^git:{treeish}: in .*--repository$"):
            add_from(deploy, f"git:{treeish}", repository=tmp_path / "repo")


def test_an_archive_belongs_to_whoever_owns_releases(deploy: DeployPath, app: Path, tmp_path: Path) -> None:
    os.chown(app / "releases", 1234, 2345)
    add_from(deploy, make_archive(tmp_path / "a.tar", member("dir/file", b"x"), member("l", kind=b"2", link="dir")))
    assert set(owners(app / "releases/43").values()) == {(1234, 2345)}


@pytest.mark.parametrize("cut", [1 << 9, 3 << 9, 4000])
def test_an_archive_that_was_cut_off_is_no_release(deploy: DeployPath, tmp_path: Path, cut: int) -> None:
    """At a member's end, too: nothing but the end mark tells that there was to be more."""
    archive = make_archive(tmp_path / "a.tar", member("one"), member("two"), member("three", b"3" * 9000))
    whole = archive.read_bytes()
    archive.write_bytes(whole[: (2 << 9) if cut == 3 << 9 else cut])
    with pytest.raises(RelfsError, match=r"a\.tar: "):
        add_from(deploy, archive)
    assert_nothing_left(deploy, "40", "41", "42")


@pytest.mark.parametrize("program", ["gzip", "zstd", "xz"])
def test_a_compressed_archive_that_is_damaged_is_no_release(deploy: DeployPath, tmp_path: Path, program: str) -> None:
    archive = make_archive(tmp_path / "a.tar", member("one", os.urandom(100_000)))
    packed = tmp_path / "a.tar.packed"
    with open(packed, "wb") as file:
        subprocess.run([program, "-qc", archive], stdout=file, check=True)
    data = bytearray(packed.read_bytes())
    data[-3] ^= 0xFF
    packed.write_bytes(data)
    with pytest.raises(RelfsError, match=r"a\.tar"):
        add_from(deploy, packed)
    assert_nothing_left(deploy, "40", "41", "42")


@pytest.mark.parametrize("data", [b"", b"no archive at all\n" * 100, b"PK\x03\x04 no zip", b"\x1f\x8b no gzip"])
def test_what_is_no_archive_is_one_clear_line(deploy: DeployPath, tmp_path: Path, data: bytes) -> None:
    with pytest.raises(RelfsError, match=r"file: .*(archive|early)") as caught:
        add_from(deploy, write(tmp_path / "file", data))
    assert "\n" not in str(caught.value)
    assert_nothing_left(deploy, "40", "41", "42")


# ---- sharing


def test_unchanged_files_are_linked_if_asked_for(deploy: DeployPath, app: Path, many: Path) -> None:
    first = add_from(deploy, many, name="a", share=Sharing(link=True))
    make_current(app, "a")
    write(many / "flat/file7", b"changed")
    os.chmod(many / "flat/file8", 0o600)
    os.setxattr(many / "flat/file9", "user.x", b"1")
    os.utime(many / "flat/file10")
    assert (first.shared_files, first.previous) == (0, "40"), "nothing alike in the release before"
    second = add_from(deploy, many, name="b", share=Sharing(link=True))
    assert second.previous == "a"
    shared = {path.name for path in (app / "releases/b/flat").iterdir() if path.stat().st_nlink > 1}
    assert {path.name for path in (app / "releases/b/flat").iterdir()} - shared == {f"file{n}" for n in (7, 8, 9, 10)}
    assert second.shared_files == second.files - 4
    assert described(app / "releases/b").keys() == described(many).keys()
    assert check(deploy, "b").differences == () == check(deploy, "a").differences


def test_nothing_is_linked_unless_asked_for(deploy: DeployPath, app: Path, tree: Path) -> None:
    add_from(deploy, tree, name="a")
    make_current(app, "a")
    assert add_from(deploy, tree, name="b").shared_files == 0
    with open(app / "releases/b/index.php", "r+b") as file:
        file.write(b"another")
    assert check(deploy, "a").differences == ()


def test_blocks_are_shared_where_the_file_system_can(xfs: Path, many: Path) -> None:
    """They belong to both, and a change in one is none in the other."""
    (xfs / "app/releases").mkdir(parents=True)
    deploy = open_deploy_path(str(xfs / "app"))
    try:
        write(many / "large", os.urandom(3 << 20))
        add_from(deploy, many, name="a")
        make_current(xfs / "app", "a")
        os.utime(many / "flat/file7")
        added = add_from(deploy, many, name="b")
        assert (xfs / "app/releases/b/large").stat().st_nlink == 1
        assert _extents(xfs / "app/releases/a/large") == _extents(xfs / "app/releases/b/large")
        assert added.shared_bytes >= 3 << 20
        assert described(xfs / "app/releases/b") == described(many)
        write(xfs / "app/releases/b/large", b"changed")
        assert check(deploy, "a").differences == ()
        assert check(deploy, "b").differences == (Difference("large", "size"),)
    finally:
        deploy.close()


def _extents(path: Path) -> list[str]:
    """Where its blocks are (filefrag(8))."""
    subprocess.run(["sync", "-f", path], check=True)
    shown = subprocess.run(["filefrag", "-e", path], check=True, capture_output=True, text=True).stdout
    return [line.split(":")[2] for line in shown.splitlines() if line.strip()[:1].isdigit()]


@pytest.mark.parametrize("kind", ["directory", "archive"])
def test_files_that_have_the_same_bytes_are_shared_whatever_their_times(
    deploy: DeployPath, app: Path, tmp_path: Path, tree: Path, kind: str
) -> None:
    add_from(deploy, tree, name="a")
    make_current(app, "a")
    source = tmp_path / "again"
    subprocess.run(["cp", "-R", tree, source], check=True)  # other times
    os.removexattr(app / "releases/a/index.php", "user.origin")
    (source / "app/secret").chmod(0o400)
    write(source / "app/lib/tool", b"#!/bin/ls\n", mode=0o750)
    (source / "public/away").unlink()
    if kind == "archive":
        subprocess.run(["tar", "-C", source, "-czf", tmp_path / "again.tar.gz", "."], check=True)
        source = tmp_path / "again.tar.gz"
    add_from(deploy, source, name="b", share=Sharing(link=True, checksum=True))
    same = {
        name: (app / "releases/a" / name).samefile(app / "releases/b" / name)
        for name in ("large.bin", "app/secret", "app/lib/tool", "index.php")
    }
    assert same == {"large.bin": True, "app/secret": True, "app/lib/tool": False, "index.php": True}
    assert check(deploy, "b").differences == ()


def test_a_file_that_was_changed_since_is_not_what_its_manifest_says(deploy: DeployPath, app: Path, tree: Path) -> None:
    """Edited in the release, and the edit taken over into the source: alike, and the old digest is wrong."""
    add_from(deploy, tree, name="a")
    make_current(app, "a")
    for top in (tree, app / "releases/a"):
        write(top / "app/lib/tool", b"#!/bin/no\n", mode=0o750)
        os.utime(top / "app/lib/tool", ns=(5, 5))
    add_from(deploy, tree, name="b", share=Sharing(link=True))
    assert check(deploy, "b").differences == ()
    assert check(deploy, "a").differences == (Difference("app/lib/tool", "content"),)


# ---- preparing, and what fails


def test_what_is_prepared_is_in_the_manifest(deploy: DeployPath, app: Path, many: Path) -> None:
    def prepare(staged: int, name: str) -> bool:
        release = Path(f"/proc/self/fd/{staged}")
        write(release / "made", name.encode())
        status = (release / "flat/file7").stat()
        write(release / "flat/file7", b"8\n8\n8\n8\n8\n8\n8\n")
        os.utime(release / "flat/file7", ns=(status.st_atime_ns, status.st_mtime_ns))
        shutil.rmtree(release / "deep/3")
        (release / "deep/3").symlink_to("../flat")
        return True

    add_from(deploy, many, prepare=prepare)
    assert (app / "releases/43/made").read_bytes() == b"43"
    assert check(deploy, "43").differences == ()


def test_preparing_may_refuse(deploy: DeployPath, tree: Path) -> None:
    names = []

    def prepare(staged: int, name: str) -> bool:
        assert os.stat("index.php", dir_fd=staged).st_size
        names.append(name)
        raise RefusedError("no")

    with pytest.raises(RefusedError, match=r"^no$"):
        add_from(deploy, tree, prepare=prepare)
    assert names == ["43"]
    assert_nothing_left(deploy, "40", "41", "42")
    assert add_from(deploy, tree).name == "44", "the name is spent"
    assert [(record.name, record.state) for record in Registry(deploy.state_fd).records()] == [
        ("43", "given-up"), ("44", "finished"),
    ]  # fmt: skip


@pytest.mark.parametrize("what", ["size=4m", "nr_inodes=300"])
@pytest.mark.parametrize("kind", ["directory", "archive"])
def test_a_full_disk_leaves_nothing(tmp_path: Path, many: Path, what: str, kind: str) -> None:
    source: Path = many
    write(many / "large", os.urandom(6 << 20))
    if kind == "archive":
        source = tmp_path / "many.tar"
        subprocess.run(["tar", "-C", many, "-cf", source, "."], check=True)
    with small_disk(tmp_path / "small", what) as disk:
        (disk / "app/releases").mkdir(parents=True)
        deploy = open_deploy_path(str(disk / "app"))
        try:
            with pytest.raises(
                RelfsError, match=r"^1: cannot be added: .+: No space left on device; nothing is left of it"
            ):
                add_from(deploy, source)
            assert_nothing_left(deploy)
            assert add_from(deploy, write(tmp_path / "little/file", b"x").parent).name == "2"
        finally:
            deploy.close()


def test_what_was_abandoned_is_removed_by_the_next(deploy: DeployPath, app: Path, tree: Path) -> None:
    record = Registry(deploy.state_fd).reserve(lambda _: "43", source="x", user="x")
    write(app / "releases" / f"{PREFIX}43" / "half/file", b"x")
    with staging(deploy, "99") as alive:
        assert resume(deploy) == ["43"]
        assert os.path.isdir(alive.path), "whose maker lives"
    assert Registry(deploy.state_fd).records()[0].state == "given-up"
    assert record.state == "reserved"
    assert add_from(deploy, tree).name == "44"
    assert_nothing_left(deploy, "40", "41", "42", "44")


def test_who_has_just_begun_is_not_taken_for_dead(
    deploy: DeployPath, tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """His directory was swept before he had locked it, and he has made another; in the end, his release is there."""
    monkeypatch.setattr(adding, "sweep", lambda _deploy: ["43"])
    states = []

    def prepare(_staged: int, _name: str) -> bool:
        resume(deploy)
        states.append(Registry(deploy.state_fd).records()[0].state)
        return False

    add_from(deploy, tree, prepare=prepare)
    resume(deploy)
    assert [*states, Registry(deploy.state_fd).records()[0].state] == ["reserved", "finished"]
    assert check(deploy, "43").differences == ()


def test_a_release_that_is_whole_is_noted_as_finished(deploy: DeployPath, tree: Path) -> None:
    """A crash came between its rename and the line in the registry."""
    add_from(deploy, tree)
    registry = Registry(deploy.state_fd)
    registry.note(registry.records()[0], "reserved")
    assert resume(deploy) == []
    assert registry.records()[0].state == "finished"


def test_nobody_elses_directory_is_replaced(deploy: DeployPath, app: Path, tree: Path) -> None:
    def prepare(_: int, name: str) -> bool:
        (app / "releases" / name).mkdir()
        return True

    with pytest.raises(RefusedError, match=r"^43: somebody has made a release of this name meanwhile"):
        add_from(deploy, tree, prepare=prepare)
    assert os.listdir(app / "releases/43") == []
    with pytest.raises(FileNotFoundError):
        read_manifest(os.open(deploy.state_path, os.O_RDONLY), "43")


def test_a_signal_that_comes_too_late_undoes_nothing(
    deploy: DeployPath, app: Path, tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put = Staging.put_in_place

    def put_and_be_told(made: Staging) -> None:
        put(made)
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Staging, "put_in_place", put_and_be_told)
    with pytest.raises(KeyboardInterrupt):
        add_from(deploy, tree)
    assert described(app / "releases/43") == described(tree)
    assert check(deploy, "43").differences == ()
    assert Registry(deploy.state_fd).records()[0].state == "finished"


def test_a_name_that_may_not_last_is_no_release(
    deploy: DeployPath, app: Path, tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, releases = os.fsync, (app / "releases").stat().st_ino

    def fsync(fd: int) -> None:
        if os.fstat(fd).st_ino == releases:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        real(fd)

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(RelfsError, match=r"^43: cannot be added: Input/output error; nothing is left of it$"):
        add_from(deploy, tree)
    assert_nothing_left(deploy, "40", "41", "42")


def test_a_file_that_cannot_be_read_is_named(open_place: Path, many: Path) -> None:
    """By the process that came upon it, to whom root may not lend its own permissions."""
    script = (
        "import os, sys; os.setuid(65534)\n"
        "from relfs.cli.relfsctl import main\n"
        "sys.argv = ['relfsctl', '-C', sys.argv[1], 'add', sys.argv[2]]\n"
        "main()\n"
    )
    source = shutil.copytree(many, open_place / "many")
    (source / "flat/file300").chmod(0)
    (open_place / "app/releases").mkdir(parents=True)
    for path in (open_place / "app", open_place / "app/releases"):
        os.chown(path, 65534, 65534)
    done = subprocess.run(
        [sys.executable, "-c", script, open_place / "app", source], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr == "relfsctl: 1: cannot be added: flat/file300: Permission denied; nothing is left of it\n"
    assert os.listdir(open_place / "app/releases") == []


def test_a_file_that_changes_meanwhile_is_no_torn_copy(deploy: DeployPath, tree: Path) -> None:
    late = write(tree / "public/late", b"x" * (3 << 20))
    real = os.pread

    def pread(fd: int, size: int, at: int) -> bytes:
        with open(late, "ab") as file:
            file.write(b"more")
        return real(fd, size, at)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "pread", pread)
        with pytest.raises(RelfsError, match="changed while it was being read"):
            add_from(deploy, tree)
    assert_nothing_left(deploy, "40", "41", "42")


# ---- real content


def test_a_real_tree_as_successive_releases(deploy: DeployPath, app: Path, tmp_path: Path) -> None:
    """Python's own library: added from the directory, then from an archive, then with one file in a hundred changed."""
    library = Path(sysconfig.get_path("stdlib"))
    source = tmp_path / "python"
    shutil.copytree(library, source, symlinks=True, ignore=shutil.ignore_patterns("*-packages", "config-*", "test*"))
    add_from(deploy, source, name="1")
    make_current(app, "1")
    assert described(app / "releases/1") == described(source)
    with tarfile.open(tmp_path / "python.tar", "w") as archive:
        archive.add(source, "python", filter=lambda each: None if each.linkname.startswith("/") else each)
    change_one_in(source, 100, b"\n# changed\n")
    third = add_from(deploy, source, name="3", share=Sharing(link=True))
    assert 0.98 < third.shared_files / third.files < 1
    archived = add_from(deploy, tmp_path / "python.tar", name="2", strip=1)
    assert archived.files > 500
    for name in ("1", "2", "3"):
        assert check(deploy, name).differences == (), name


def test_memory_does_not_grow_with_a_file(deploy: DeployPath, tmp_path: Path) -> None:
    """Fifty times the buffer, in a few of them."""
    with open(tmp_path / "large", "wb") as file:
        for _ in range(50):
            file.write(os.urandom(1 << 20))
    source = tmp_path / "source"
    source.mkdir()
    (tmp_path / "large").rename(source / "large")
    with gzip.open(tmp_path / "large.tar.gz", "wb", compresslevel=0) as packed:
        subprocess.run(["tar", "-C", source, "-cf", tmp_path / "large.tar", "."], check=True)
        packed.write((tmp_path / "large.tar").read_bytes())
    for each in (source, tmp_path / "large.tar.gz"):
        tracemalloc.start()
        name = add_from(deploy, each).name
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 16 << 20, each
        assert check(deploy, name).differences == ()


def test_check_names_what_differs(deploy: DeployPath, app: Path, many: Path) -> None:
    add_from(deploy, many)
    release = app / "releases/43"
    status = (release / "flat/file9").stat()
    write(release / "flat/file9", b"8\n" * 9)
    os.utime(release / "flat/file9", ns=(status.st_atime_ns, status.st_mtime_ns))
    (release / "flat/file10").unlink()
    (release / "flat/file11").chmod(0o600)
    (release / "flat/file12").unlink()
    (release / "flat/file12").symlink_to("file13")
    write(release / "cache/new", b"x")
    write(release / "BAD_RELEASE", b"x")
    write(release / "flat/file14", b"x")
    os.mkfifo(release / "deep/queue")
    found = {each.path: each.change for each in check(deploy, "43").differences}
    assert found == {
        "flat/file9": "content", "flat/file10": "missing", "flat/file11": "mode", "flat/file12": "kind",
        "flat/file14": "size", "cache": "added", "cache/new": "added",
        "deep/queue": "added",
    }  # fmt: skip
    assert {each.path for each in check(deploy, "43", writable=["flat", "deep"]).differences} == {"cache", "cache/new"}


def test_check_needs_a_manifest_that_is_whole(deploy: DeployPath, tree: Path) -> None:
    with pytest.raises(RelfsError, match=r"^41: has no manifest"):
        check(deploy, "41")
    with pytest.raises(RefusedError, match="no such release"):
        check(deploy, "77")
    add_from(deploy, tree)
    manifest = Path(deploy.state_path, "manifests/43")
    whole = manifest.read_bytes()
    cut_off = b"".join(whole.splitlines(keepends=True)[:-2])
    for damaged in (whole[:-1], cut_off, whole.replace(b"f 644", b"f 600", 1), b""):
        manifest.write_bytes(damaged)
        with pytest.raises(RelfsError, match="manifests/43: is damaged"):
            check(deploy, "43")
