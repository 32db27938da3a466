"""Whether a release is still what it was when it was added: its manifest, held against what there is.

Left out are the marks that deploy tools leave at a release's top (layout.py), and what lies below directories that the
application may write into; that these are there is checked.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

from relfs.beneath import below, open_directory
from relfs.errors import RefusedError, RelfsError, reason
from relfs.layout import BAD_MARKER, DIRTY_MARKER, RELEASES, DeployPath, check_name
from relfs.releases.manifest import NO_DIGEST, Entry, entry_of, read_manifest
from relfs.releases.settling import read_entry
from relfs.releases.survey import Piece, join, survey
from relfs.releases.workers import Counter, Progress, run_all

Change = Literal["missing", "added", "kind", "mode", "size", "content"]

_MARKS = frozenset({BAD_MARKER, DIRTY_MARKER})


@dataclass(frozen=True)
class Difference:
    """What is not as the manifest says: a path, and the first thing that differs."""

    path: str
    change: Change


@dataclass(frozen=True)
class Checked:
    """`entries` is how many the manifest has; `differences` are in the order of their paths."""

    release: str
    entries: int
    bytes: int
    differences: tuple[Difference, ...]


def check(
    deploy: DeployPath,
    name: str,
    *,
    writable: Iterable[str] = (),
    on_progress: Callable[[Progress], None] = lambda _: None,
) -> Checked:
    """Read all of release `name` and compare; what is below the directories `writable` (paths in it) may be anything.

    Raises UsageError for what can be no release, RefusedError if there is no such release, RelfsError if it has no
    manifest, or one that is damaged, or cannot be read.
    """
    manifest = _manifest(deploy, name)
    free = tuple(f"{path}/" for path in writable)
    checker, found = _found(deploy, name, manifest, free, on_progress)
    seen = {path for paths, _ in found for path in paths}
    different = [each for _, differences in found for each in differences]
    missing = [Difference(path, "missing") for path in manifest if path not in seen and not checker.is_free(path)]
    size = sum(entry.size for entry in manifest.values() if entry.kind == "f")
    in_order = sorted(different + missing, key=lambda each: os.fsencode(each.path))
    return Checked(name, len(manifest), size, tuple(in_order))


_Compared = tuple[list[str], list[Difference]]
"""The paths that were met, and what differs."""


def _found(
    deploy: DeployPath,
    name: str,
    manifest: dict[str, Entry],
    free: tuple[str, ...],
    on_progress: Callable[[Progress], None],
) -> tuple[_Checker, list[_Compared]]:
    try:
        top = open_directory(deploy.fd, f"{RELEASES}/{name}")
    except OSError as error:
        raise RefusedError(f"{deploy.path}/{RELEASES}/{name}: no such release: {reason(error)}") from error
    try:
        tree = survey(top, strict=False)
        checker = _Checker(top, manifest, free)

        def watch(files: int, size: int) -> None:
            on_progress(Progress(files, size, tree.files, tree.bytes))

        return checker, run_all(tree.pieces, checker.check_piece, files=tree.files, watch=watch)
    except OSError as error:
        where = f"{name}/{error.filename}" if error.filename else name
        raise RelfsError(f"{where}: cannot be read: {reason(error)}") from error
    finally:
        os.close(top)


def _manifest(deploy: DeployPath, name: str) -> dict[str, Entry]:
    check_name(name)
    try:
        if deploy.state_fd is None:
            raise FileNotFoundError
        return read_manifest(deploy.state_fd, name)
    except FileNotFoundError as error:
        deploy.check_release(name, allow_empty=True)
        raise RelfsError(f"{name}: has no manifest to be checked against: `relfsctl add` did not make it") from error


@dataclass(frozen=True)
class _Checker:
    top: int
    manifest: dict[str, Entry]
    free: tuple[str, ...]

    def is_free(self, path: str) -> bool:
        return path.startswith(self.free) or path in _MARKS

    def check_piece(self, piece: Piece, counter: Counter) -> _Compared:
        seen: list[str] = []
        differences: list[Difference] = []
        for path in piece.directories:
            with below(self.top, path) as directory, os.scandir(directory) as found:
                if piece.part == 0:
                    self._compare(entry_of(path, os.fstat(directory), NO_DIGEST), seen, differences)
                for entry in piece.files_in(found):
                    self._check(directory, join(path, entry.name), entry, counter, seen, differences)
        return seen, differences

    def _check(
        self, directory: int, path: str, entry: os.DirEntry[str], counter: Counter, seen: list[str],
        differences: list[Difference],
    ) -> None:  # fmt: skip
        if self.is_free(path):
            return
        status = entry.stat(follow_symlinks=False)
        if not stat.S_ISREG(status.st_mode) and not stat.S_ISLNK(status.st_mode):
            seen.append(path)
            differences.append(Difference(path, "kind" if path in self.manifest else "added"))
            return
        try:
            now = read_entry(directory, path, entry.name, status, counter)
        except OSError as error:
            raise OSError(error.errno, error.strerror, path) from error
        self._compare(now, seen, differences)
        counter.add_file()

    def _compare(self, now: Entry, seen: list[str], differences: list[Difference]) -> None:
        if self.is_free(now.path):
            return
        seen.append(now.path)
        change = _change(self.manifest.get(now.path), now)
        if change is not None:
            differences.append(Difference(now.path, change))


def _change(was: Entry | None, now: Entry) -> Change | None:
    """The first that differs. An mtime that does is no fault: it serves nobody other bytes."""
    if was is None:
        return "added"
    if was.kind != now.kind:
        return "kind"
    if was.size != now.size:
        return "size"
    if was.digest != now.digest:
        return "content"
    return "mode" if was.mode != now.mode else None
