"""What a release consists of after somebody has worked on it, without reading again what nobody has touched.

The change time of a file cannot be set by anybody, and every change sets it: one that lies before the moment at which
copying ended (taken from the same file system's clock) says that the copy is as it was. What is new, or was touched
since, is read. To look is one call for each, so one process looks; what there is to be read, all processors do.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from relfs.beneath import below
from relfs.releases.contents import hash_contents
from relfs.releases.manifest import NO_DIGEST, Entry, digest_of, entry_of
from relfs.releases.survey import survey
from relfs.releases.workers import PIECES_MAX, Counter, run_all

_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_FILES_A_PART = 100


def settle(top: int, copied: Iterable[Entry], copied_by: int) -> list[Entry]:
    """What there is below the directory `top` (a descriptor), `copied` being what was there at `copied_by` (ns since
    the epoch, by the file system's clock). Raises OSError, RefusedError for what can be no part of a release."""
    settler = _Settler(top, {entry.path: entry for entry in copied}, copied_by)
    found = survey(top, seen=settler.look)
    read = run_all(list(_parts(settler.touched)), settler.read_all, files=len(settler.touched))
    directories = [entry_of(path, os.lstat(path, dir_fd=top), NO_DIGEST) for path in found.directories]
    return settler.untouched + directories + [entry for entries in read for entry in entries]


def read_entry(directory: int, path: str, name: str, status: os.stat_result, counter: Counter) -> Entry:
    """What a file or link in a directory (a descriptor) is now, its bytes included. Raises OSError."""
    if stat.S_ISLNK(status.st_mode):
        return entry_of(path, status, digest_of(os.fsencode(os.readlink(name, dir_fd=directory))))
    fd = os.open(name, _READ, dir_fd=directory)
    try:
        return entry_of(path, status, hash_contents(fd, status, counter.add_bytes))
    finally:
        os.close(fd)


@dataclass(frozen=True)
class _Settler:
    top: int
    copied: dict[str, Entry]
    copied_by: int
    untouched: list[Entry] = field(default_factory=list)
    touched: list[str] = field(default_factory=list)

    def look(self, path: str, status: os.stat_result) -> None:
        """See whether a file or link is what was copied."""
        known = self.copied.get(path)
        if known is not None and status.st_ctime_ns < self.copied_by and known == entry_of(path, status, known.digest):
            self.untouched.append(known)
        else:
            self.touched.append(path)

    def read_all(self, paths: Iterable[str], counter: Counter) -> list[Entry]:
        return [self._read(path, counter) for path in paths]

    def _read(self, path: str, counter: Counter) -> Entry:
        directory, _, name = path.rpartition("/")
        with below(self.top, directory or ".") as fd:
            return read_entry(fd, path, name, os.lstat(name, dir_fd=fd), counter)


def _parts(paths: Sequence[str]) -> Iterator[Sequence[str]]:
    size = max(_FILES_A_PART, len(paths) // PIECES_MAX + 1)
    return (paths[start : start + size] for start in range(0, len(paths), size))
