"""What a release consists of after somebody has worked on it, without reading again what nobody has touched.

The change time of a file cannot be set by anybody, and every change sets it: one that lies before the moment at which
copying ended (taken from the same file system's clock) says that the copy is as it was. What is new, or was touched
since, is read.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass

from relfs.beneath import below
from relfs.releases.contents import hash_contents
from relfs.releases.manifest import NO_DIGEST, Entry, digest_of, entry_of
from relfs.releases.survey import Piece, join, survey
from relfs.releases.workers import Counter, run_all

_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


def settle(top: int, copied: Iterable[Entry], copied_by: int) -> list[Entry]:
    """What there is below the directory `top` (a descriptor), `copied` being what was there at `copied_by` (ns since
    the epoch, by the file system's clock). Raises OSError, RefusedError for what can be no part of a release."""
    found = survey(top)
    settler = _Settler(top, {entry.path: entry for entry in copied}, copied_by)
    return [entry for entries in run_all(found.pieces, settler.settle_piece, files=found.files) for entry in entries]


def read_entry(directory: int, path: str, name: str, status: os.stat_result, counter: Counter) -> Entry:
    """What a file or link in a directory (a descriptor) is now, its bytes included. Raises OSError."""
    if stat.S_ISLNK(status.st_mode):
        return entry_of(path, status, digest_of(os.fsencode(os.readlink(name, dir_fd=directory))))
    fd = os.open(name, _READ, dir_fd=directory)
    try:
        return entry_of(path, status, hash_contents(fd, status, lambda size: counter.add(0, size)))
    finally:
        os.close(fd)


@dataclass(frozen=True)
class _Settler:
    top: int
    copied: dict[str, Entry]
    copied_by: int

    def settle_piece(self, piece: Piece, counter: Counter) -> list[Entry]:
        entries: list[Entry] = []
        for path in piece.directories:
            with below(self.top, path) as directory, os.scandir(directory) as found:
                if piece.part == 0:
                    entries.append(entry_of(path, os.fstat(directory), NO_DIGEST))
                for entry in piece.files_in(found):
                    status = entry.stat(follow_symlinks=False)
                    entries.append(self._settle(directory, join(path, entry.name), entry.name, status, counter))
        return entries

    def _settle(self, directory: int, path: str, name: str, status: os.stat_result, counter: Counter) -> Entry:
        known = self.copied.get(path)
        if known is not None and status.st_ctime_ns < self.copied_by and known == entry_of(path, status, known.digest):
            return known
        return read_entry(directory, path, name, status, counter)
