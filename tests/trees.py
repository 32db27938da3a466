"""Directory trees to make releases from: one with all that a release can hold; and whether two are alike."""

from __future__ import annotations

import io
import os
import stat
import tarfile
from pathlib import Path
from typing import Any

YEAR_2001 = 1_000_000_000_123_456_789
"""Some time, in ns since the epoch; with more digits than a float has."""


def make_tree(top: Path) -> Path:
    """A little of everything: modes, times, an owner, extended attributes, holes, links, odd names, an empty file."""
    for directory in ("app/lib", "empty", "public"):
        (top / directory).mkdir(parents=True)
    write(top / "index.php", b"<?php echo 1;\n")
    write(top / "app/lib/tool", b"#!/bin/sh\n", mode=0o750)
    write(top / "app/secret", b"s3cret", mode=0o400)
    write(top / "empty.txt", b"")
    write(top / "large.bin", bytes(range(256)) * 9000)
    write(top / os.fsdecode(b"odd \\ \xff\nname"), b"odd")
    make_holes(top / "holes.img")
    (top / "public/storage").symlink_to("../app/lib")
    (top / "public/away").symlink_to("/etc/hostname")
    os.link(top / "index.php", top / "public/index.php")
    os.setxattr(top / "index.php", "user.origin", b"here \0 there")
    os.setxattr(top / "app", "user.kind", b"code")
    (top / "app").chmod(0o2755)
    (top / "empty").chmod(0o555)
    for path in sorted(top.rglob("*"), reverse=True):
        os.utime(path, ns=(YEAR_2001, YEAR_2001), follow_symlinks=False)
    return top


def write(path: Path, data: bytes, *, mode: int = 0o644) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    path.chmod(mode)
    return path


def make_holes(path: Path) -> None:
    """Eight mebibytes, of which two blocks are there."""
    with open(path, "wb") as file:
        file.seek(1 << 20)
        file.write(b"x" * 4096)
        file.seek(5 << 20)
        file.write(b"y" * 4096)
        file.truncate(8 << 20)


def described(top: Path) -> dict[str, Any]:
    """All that is to be kept of a tree, by path; files that are one have a number in common."""
    numbers: dict[int, int] = {}
    found = {}
    for path in (top, *sorted(top.rglob("*"))):
        status = path.lstat()
        number = numbers.setdefault(status.st_ino, len(numbers))
        kept = (status.st_mode, status.st_mtime_ns, _content(path, status), number, _xattrs(path))
        found[str(path.relative_to(top))] = kept
    return found


def owners(top: Path) -> dict[str, tuple[int, int]]:
    return {str(path.relative_to(top)): (path.lstat().st_uid, path.lstat().st_gid) for path in (top, *top.rglob("*"))}


def make_archive(path: Path, *members: tuple[tarfile.TarInfo, bytes]) -> Path:
    """A tar archive of just these."""
    with tarfile.open(path, "w") as archive:
        for member, data in members:
            archive.addfile(member, io.BytesIO(data))
    return path


def member(
    name: str, data: bytes = b"", *, kind: bytes = tarfile.REGTYPE, link: str = "", mode: int = 0o644
) -> tuple[tarfile.TarInfo, bytes]:
    """One member, as make_archive() takes it."""
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.mode, info.size, info.mtime = kind, link, mode, len(data), YEAR_2001 // 10**9
    return info, data


def change_one_in(top: Path, count: int, more: bytes) -> None:
    """Append to every `count`th file of a tree."""
    files = [path for path in sorted(top.rglob("*")) if stat.S_ISREG(path.lstat().st_mode)]
    for path in files[::count]:
        path.write_bytes(path.read_bytes() + more)


def _content(path: Path, status: os.stat_result) -> bytes | str | None:
    if stat.S_ISLNK(status.st_mode):
        return os.readlink(path)
    return path.read_bytes() if stat.S_ISREG(status.st_mode) else None


def _xattrs(path: Path) -> dict[str, bytes]:
    names = os.listxattr(path, follow_symlinks=False)
    return {name: os.getxattr(path, name, follow_symlinks=False) for name in names}
