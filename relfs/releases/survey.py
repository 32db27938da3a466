"""What a directory tree consists of, found out before anything is done with it: its directories, how much there is to
do, in pieces that several processes can work on, and which files have several names in it.

No link is followed, and nothing else is a part of a release than directories, files and links. Of files, only numbers
are kept, so a large tree takes little memory; whoever works on a directory looks at its files again.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from relfs.beneath import below
from relfs.errors import RefusedError

DEPTH_MAX = 256
"""Directories in each other. What is deeper, rm(1) and others have trouble to remove."""

_FILES_A_PIECE = 200
_BYTES_A_PIECE = 1 << 23
_PIECES_MAX = 4000
_PATH_MAX = 4095

FileId = tuple[int, int]
"""Device and inode."""


@dataclass(frozen=True)
class Piece:
    """Whole directories, or the share number `part` of `parts` of the files in one."""

    directories: tuple[str, ...]
    part: int = 0
    parts: int = 1

    def files_in(self, found: Iterable[os.DirEntry[str]]) -> Iterator[os.DirEntry[str]]:
        """Those in one of the directories, which `found` lists, that belong to this piece: all that is no directory."""
        for entry in found:
            if (self.parts == 1 or entry.inode() % self.parts == self.part) and not entry.is_dir(follow_symlinks=False):
                yield entry


@dataclass(frozen=True)
class Survey:
    """`directories` are paths relative to the top ("."), each after the one it is in, with the time of its last change
    before it was read (ns since the epoch); `frame` are those, without the top, that several pieces need: they have
    directories in them, or files in several pieces. `files` counts what is no directory, `bytes` what regular files
    hold; `twins` are the files with several names in this tree."""

    directories: dict[str, int]
    frame: list[str]
    pieces: list[Piece]
    files: int
    bytes: int
    twins: dict[FileId, list[str]]


Seen = Callable[[str, os.stat_result], None]
"""Is told of each file and link: its path, and what is known of it."""


@dataclass
class _Found:
    strict: bool
    seen: Seen
    directories: dict[str, int] = field(default_factory=dict)
    branches: set[str] = field(default_factory=set)
    counts: list[tuple[int, int]] = field(default_factory=list)
    names: dict[FileId, list[str]] = field(default_factory=dict)


def survey(top: int, *, strict: bool = True, seen: Seen = lambda _path, _status: None) -> Survey:
    """Look at all below the directory `top` (a descriptor).

    Raises OSError with the path; RefusedError for what can be no part of a release, if `strict`.
    """
    found = _Found(strict, seen)
    waiting = ["."]
    while waiting:
        path = waiting.pop()
        directories = _look(top, path, found)
        if directories:
            found.branches.add(path)
            waiting += directories
    twins = {key: names for key, names in found.names.items() if len(names) > 1}
    files, size = (sum(each) for each in zip(*found.counts, strict=True))
    pieces = list(_pieces(found, files, size))
    return Survey(found.directories, _frame(found, pieces), pieces, files, size, twins)


def _frame(found: _Found, pieces: list[Piece]) -> list[str]:
    several = found.branches.union(*(piece.directories for piece in pieces if piece.parts > 1))
    return [path for path in found.directories if path in several and path != "."]


def join(directory: str, name: str) -> str:
    """The path of a name in a directory, relative to the top."""
    return name if directory == "." else f"{directory}/{name}"


def _look(top: int, path: str, found: _Found) -> list[str]:
    """Note what is in the directory `path`; its directories."""
    directories = []
    files = size = 0
    try:
        with below(top, path) as fd, os.scandir(fd) as entries:
            changed = os.fstat(fd).st_mtime_ns
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    directories.append(_deeper(join(path, entry.name)))
                    continue
                files += 1
                size += _look_at_file(join(path, entry.name), entry.stat(follow_symlinks=False), found)
    except OSError as error:
        raise OSError(error.errno, error.strerror, path) from error
    found.directories[path] = changed
    found.counts.append((files, size))
    return directories


def _look_at_file(path: str, status: os.stat_result, found: _Found) -> int:
    """The bytes that it holds."""
    if stat.S_ISREG(status.st_mode):
        if status.st_nlink > 1:
            found.names.setdefault((status.st_dev, status.st_ino), []).append(path)
        found.seen(path, status)
        return status.st_size
    if stat.S_ISLNK(status.st_mode):
        found.seen(path, status)
    elif found.strict:
        what = kind_of(status.st_mode)
        raise RefusedError(f"{path}: is {what}; a release has only directories, files and links")
    return 0


def kind_of(mode: int) -> str:
    """What a file of this mode is called."""
    names = {stat.S_IFIFO: "a fifo", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device"}
    return names.get(stat.S_IFMT(mode), "something strange")


def _deeper(path: str) -> str:
    if path.count("/") >= DEPTH_MAX or len(os.fsencode(path)) > _PATH_MAX:
        raise RefusedError(f"{path[:80]}...: is too deep; at most {DEPTH_MAX} directories can be in each other")
    return path


def _pieces(found: _Found, files: int, size: int) -> Iterator[Piece]:
    """Small directories together, large ones in parts; not too many in all."""
    most_files = max(_FILES_A_PIECE, (files + len(found.directories)) * 4 // _PIECES_MAX)
    most_bytes = max(_BYTES_A_PIECE, size * 4 // _PIECES_MAX)
    together: list[str] = []
    together_files = together_bytes = 0
    for path, (count, amount) in zip(found.directories, found.counts, strict=True):
        parts = min(64, max(count // most_files, amount // most_bytes, 1), max(count, 1))
        if parts > 1:
            yield from (Piece((path,), part, parts) for part in range(parts))
            continue
        together.append(path)
        together_files += count + 1
        together_bytes += amount
        if together_files >= most_files or together_bytes >= most_bytes:
            yield Piece(tuple(together))
            together, together_files, together_bytes = [], 0, 0
    if together:
        yield Piece(tuple(together))
