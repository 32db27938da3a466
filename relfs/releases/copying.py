"""Copying a directory into a new release, as it is: bytes and holes, modes, times, owners (root only), extended
attributes, links, and files with several names.

What makes it fast
------------------
Some facts. For a tree of small files the cost is system calls, and Python's own work for each. A path of n names is
looked up n times; open(2) sets a mode as well as chmod(2) does; a file that was read whole can be hashed before it is
forgotten; fsync(2) of each file waits for the disk each time.

The choice. Files are reached by their names in open directories; a small one is opened, read, hashed and written once,
and given only what open(2) did not: of most, the time. Nothing is flushed here: one syncfs(2) does it for all
(adding.py). Several processes fill directories (workers.py). They are dressed last, because every name that is made
in a directory changes its time, and its permissions may not let one in. Those that have no directories in them, which
are most, are made, filled and dressed by the same process; the others are there first, and dressed in the end.

A file that is written by somebody meanwhile is an error, not a torn copy, and so is a directory in which a name comes
or goes. A source that others can change cannot lead us astray: no link is followed, at any step.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from relfs.beneath import below
from relfs.errors import RelfsError
from relfs.releases.attributes import Dresser, dresser_for
from relfs.releases.contents import ChangedError, Tick, copy_contents
from relfs.releases.manifest import NO_DIGEST, Entry, digest_of, entry_of
from relfs.releases.sharing import Places, Previous, directory_in
from relfs.releases.survey import Piece, Survey, join, survey
from relfs.releases.workers import Counter, Progress, run_all

_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_PERMISSIONS = stat.S_IRWXU | stat.S_IRWXG | stat.S_IRWXO


@dataclass(frozen=True)
class Copied:
    """What is in the new release now, and how much of it is shared with the one before."""

    entries: list[Entry]
    shared_files: int
    shared_bytes: int


def copy_tree(source: int, target: int, previous: Previous | None, on_progress: Callable[[Progress], None]) -> Copied:
    """Copy all below one directory into another, which is empty (descriptors).

    Raises RelfsError that names what could not be copied, RefusedError for what can be no part of a release; OSError
    with its path.
    """
    found = survey(source)
    copier = _Copier(source, target, previous, found, frozenset((".", *found.frame)), dresser_for(target))
    with any_mode():
        for path in found.frame:
            copier.make_directory(path)
        results = run_all(found.pieces, copier.copy_piece, files=found.files, watch=_watching(found, on_progress))
        made = [each for result in results for each in result] + list(copier.copy_twins())
        dressed = {entry.path for entry, _ in made if entry.kind == "d"}
        left = [path for path in reversed(found.directories) if path not in dressed]
        made += [(copier.dress_directory(path), False) for path in left]
    shared = [entry for entry, is_shared in made if is_shared]
    return Copied([entry for entry, _ in made], len(shared), sum(entry.size for entry in shared))


def _watching(found: Survey, on_progress: Callable[[Progress], None]) -> Callable[[int, int], None]:
    return lambda files, size: on_progress(Progress(files, size, found.files, found.bytes))


_Made = tuple[Entry, bool]
"""What was made, and whether it shares its bytes with the release before."""


@dataclass(frozen=True)
class _Copier:
    source: int
    target: int
    previous: Previous | None
    found: Survey
    frame: frozenset[str]
    dresser: Dresser

    def copy_piece(self, piece: Piece, counter: Counter) -> list[_Made]:
        """All files of a piece, but for those with several names; and what they are in, where that is all there will
        ever be in it."""
        made: list[_Made] = []
        for path in piece.directories:
            alone = path not in self.frame
            if alone:
                self.make_directory(path)
            with self._places(path) as at:
                copied = self._fill(at, path, piece, counter)
                made += filter(None, copied)
                if alone and None not in copied:
                    made.append((self._dress(at, path), False))
        return made

    def make_directory(self, path: str) -> None:
        with naming(path):
            os.mkdir(path, 0o700, dir_fd=self.target)

    def _fill(self, at: Places, path: str, piece: Piece, counter: Counter) -> list[_Made | None]:
        with os.scandir(at.source) as entries:
            return [
                self._copy_entry(at, join(path, entry.name), entry, counter) for entry in piece.files_in(entries)
            ]  # fmt: skip

    def _copy_entry(self, at: Places, path: str, entry: os.DirEntry[str], counter: Counter) -> _Made | None:
        """None for a file with several names."""
        try:
            status = entry.stat(follow_symlinks=False)
            if (status.st_dev, status.st_ino) in self.found.twins:
                return None
            made = self._copy(at, path, entry.name, status, counter.add_bytes)
        except (OSError, ChangedError) as error:
            raise _named(error, path) from error
        counter.add_file()
        return made

    def copy_twins(self) -> Iterator[_Made]:
        """Files with several names: copied under the first, which then gets the others."""
        for first, *others in self.found.twins.values():
            entry, shared = self._copy_path(first)
            yield entry, shared
            for path in others:
                with naming(path):
                    os.link(first, path, src_dir_fd=self.target, dst_dir_fd=self.target, follow_symlinks=False)
                yield entry._replace(path=path), shared

    def _copy_path(self, path: str) -> _Made:
        directory, _, name = path.rpartition("/")
        with naming(path), self._places(directory or ".") as at:
            return self._copy(at, path, name, os.lstat(name, dir_fd=at.source), lambda _: None)

    @contextmanager
    def _places(self, path: str) -> Iterator[Places]:
        with (
            below(self.source, path) as source,
            below(self.target, path) as target,
            directory_in(self.previous, path) as before,
        ):
            yield Places(source, target, before)

    def _copy(self, at: Places, path: str, name: str, status: os.stat_result, tick: Tick) -> _Made:
        if stat.S_ISLNK(status.st_mode):
            return self._copy_link(at, path, name, status), False
        if not stat.S_ISREG(status.st_mode):
            raise ChangedError("it changed while it was being read; try again")
        if self.previous is not None and at.previous is not None and self.previous.how.link:
            digest = self.previous.link(at, path, name, status, tick)
            if digest is not None:
                return entry_of(path, status, digest), True
        return self._copy_file(at, path, name, status, tick)

    def _copy_link(self, at: Places, path: str, name: str, status: os.stat_result) -> Entry:
        text = os.readlink(name, dir_fd=at.source)
        os.symlink(text, name, dir_fd=at.target)
        self.dresser.dress_link(at.target, name, status)
        return entry_of(path, status, digest_of(os.fsencode(text)))

    def _copy_file(self, at: Places, path: str, name: str, status: os.stat_result, tick: Tick) -> _Made:
        fd = os.open(name, _READ, dir_fd=at.source)
        try:
            out = os.open(name, _CREATE, status.st_mode & _PERMISSIONS, dir_fd=at.target)
            try:
                digest = self._clone(at, path, name, fd, out, status, tick)
                shared = digest is not None
                if digest is None:
                    digest = copy_contents(fd, out, status, tick)
                self.dresser.dress(fd, out, status)
            finally:
                os.close(out)
        finally:
            os.close(fd)
        return entry_of(path, status, digest), shared

    def _clone(
        self, at: Places, path: str, name: str, fd: int, out: int, status: os.stat_result, tick: Tick
    ) -> str | None:
        if self.previous is None or at.previous is None or not self.previous.clones or status.st_size == 0:
            return None
        return self.previous.clone(at, path, name, fd, out, status, tick)

    def dress_directory(self, path: str) -> Entry:
        """Once all is in it that will be, and in those below it."""
        with naming(path), below(self.source, path) as source, below(self.target, path) as target:
            return self._dress(Places(source, target, None), path)

    def _dress(self, at: Places, path: str) -> Entry:
        """What has come and gone since it was surveyed may be missing, or half there."""
        with naming(path):
            status = os.fstat(at.source)
            if status.st_mtime_ns != self.found.directories[path]:
                raise ChangedError("it changed while it was being read; try again")
            self.dresser.dress_made(at.source, at.target, status)
            return entry_of(path, status, NO_DIGEST)


@contextmanager
def naming(path: str) -> Iterator[None]:
    """What goes wrong here says where."""
    try:
        yield
    except (OSError, ChangedError) as error:
        raise _named(error, path) from error


def _named(error: OSError | ChangedError, path: str) -> OSError | RelfsError:
    if isinstance(error, OSError):
        return OSError(error.errno, error.strerror, path)
    return RelfsError(f"{path}: {error}")


@contextmanager
def any_mode() -> Iterator[None]:
    """Files get the mode that open(2) is told."""
    before = os.umask(0)
    try:
        yield
    finally:
        os.umask(before)
