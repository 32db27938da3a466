"""A new release: named, staged, filled, prepared, written down, put in its place.

The order of an add
-------------------
Some facts. A release that is in `releases/` can be switched to by anybody, tools included, so it has to be all there,
on the disk, before it has its name. A process can end at any moment, and what it leaves must not look like a release.

The choice.

    1. what others have abandoned is removed        staging.sweep()
    2. the name is spent, durably                   registry: reserved
    3. a staging directory is made and locked       whoever finds it unlocked, removes it
    4. it is filled, then prepared                  by `prepare`: shared links, hooks; what they change is read
    5. all of it is flushed (syncfs)                once, for all files
    6. the manifest is written, durably             it says nothing to anybody until there is a release of that name
    7. rename(2), and `releases/` is flushed
    8. the registry says that it is finished

Until 7 a failure leaves nothing but a name that is spent. A crash between 7 and 8 leaves a release that is whole,
which the next add notes (resume()). 6 to 8 are not interrupted by a signal. In a mount without native directories, 5
reaches only FUSE (the kernel asks no user's file system for it); a switch flushes the covered one (pointer.py).
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass

from relfs.errors import RelfsError, UsageError, reason
from relfs.interrupts import uninterrupted
from relfs.journal import this_actor
from relfs.layout import RELEASES, STATE, DeployPath
from relfs.libc import syncfs
from relfs.releases.archive import Limits
from relfs.releases.contents import can_clone
from relfs.releases.copying import Copied
from relfs.releases.manifest import Entry, read_manifest, remove_manifest, write_manifest
from relfs.releases.naming import chooser, spent_names
from relfs.releases.registry import Record, Registry
from relfs.releases.settling import settle
from relfs.releases.sharing import Previous, Sharing, previous_release
from relfs.releases.sources import Into, Source
from relfs.releases.staging import Staging, is_staged, staging, sweep
from relfs.releases.unpacking import Owner
from relfs.releases.workers import Progress

Prepare = Callable[[int, str], bool]
"""Is given a descriptor of the staging directory, and the name that the release will have; says whether it may have
changed anything there, and raises RelfsError if there is to be no such release."""


@dataclass(frozen=True)
class Added:
    """A release that was added. Counts are of files, directories (its own included) and links; `bytes` are those of the
    files; `shared_*` are of those that share them with release `previous`."""

    name: str
    path: str
    sequence: int
    source: str
    files: int
    directories: int
    links: int
    bytes: int
    shared_files: int
    shared_bytes: int
    previous: str | None


def add(
    deploy: DeployPath,
    source: Source,
    *,
    name: str | None = None,
    share: Sharing = Sharing(),  # noqa: B008 (frozen)
    limits: Limits = Limits(),  # noqa: B008 (frozen)
    on_progress: Callable[[Progress], None] = lambda _: None,
    named: Callable[[str], None] = lambda _: None,
    prepare: Prepare | None = None,
) -> Added:
    """Make a release from `source`: `name`, or the next one. When this returns, it is there, whole and durable.

    `named` is told what it will be called, once that is settled and before anything is made.

    Raises UsageError for a name or a source that can never be, RefusedError for a name that is spent and for what must
    not be in a release, what `prepare` does, and RelfsError for all else; then nothing is left of it.
    """
    _require_apart(deploy, source)
    resume(deploy)
    record = Registry(deploy.state_fd).reserve(
        chooser(spent_names(deploy), name), source=source.label, user=this_actor().user
    )
    try:
        named(record.name)
        return _Adding(deploy, record, source, share, limits, on_progress, prepare).run()
    except OSError as error:
        _give_up(deploy, record)
        where = f"{error.filename}: " if error.filename else ""
        raise RelfsError(f"{record.name}: cannot be added: {where}{reason(error)}; nothing is left of it") from error
    except BaseException:
        _give_up(deploy, record)
        raise


def resume(deploy: DeployPath) -> list[str]:
    """Finish, or undo, what adds that were cut off have left; the names of what was undone. Raises RelfsError.

    A directory that was made a moment ago is not locked yet, and looks abandoned: its maker, who finds it gone, has
    made it again by now."""
    swept = sweep(deploy)
    registry = Registry(deploy.state_fd)
    for record in registry.records():
        if record.state != "reserved" or is_staged(deploy, record.name):
            continue
        if _is_whole(deploy, record.name):
            registry.note(record, "finished")
        elif record.name in swept:
            _forget(deploy, record.name)
            registry.note(record, "given-up")
    return swept


@dataclass(frozen=True)
class _Adding:
    """One add, whose name is spent: steps 3 to 8."""

    deploy: DeployPath
    record: Record
    source: Source
    share: Sharing
    limits: Limits
    on_progress: Callable[[Progress], None]
    prepare: Prepare | None

    def run(self) -> Added:
        with (
            staging(self.deploy, self.record.name) as made,
            previous_release(self.deploy, self.share, clones=can_clone(made.fd)) as previous,
        ):
            copied = self.source.fill(Into(made.fd, previous, self.limits, _owner(made), self.on_progress))
            entries = self._prepared(made, copied.entries)
            syncfs(made.fd)
            self._publish(made, entries)
            return _added(self.deploy, self.record, copied, entries, previous)

    def _prepared(self, made: Staging, entries: list[Entry]) -> list[Entry]:
        """What there is once it is prepared. Setting its times again makes the directory's change time that of now, by
        the file system's own clock."""
        if self.prepare is None:
            return entries
        before = os.fstat(made.fd)
        os.utime(made.fd, ns=(before.st_atime_ns, before.st_mtime_ns))
        copied_by = os.fstat(made.fd).st_ctime_ns
        return settle(made.fd, entries, copied_by) if self.prepare(made.fd, made.name) else entries

    def _publish(self, made: Staging, entries: Iterable[Entry]) -> None:
        state = self.deploy.state_fd
        assert state is not None, "the registry needed it"
        with uninterrupted():
            write_manifest(state, made.name, entries)
            try:
                made.put_in_place()
            except BaseException:
                with suppress(OSError):
                    remove_manifest(state, made.name)
                raise
            with suppress(RelfsError):  # a full disk; the next add will find it so
                Registry(state).note(self.record, "finished")


def _give_up(deploy: DeployPath, record: Record) -> None:
    """It stays reserved where even that cannot be written: the name is spent either way. And it stays finished where
    the signal came when all was done."""
    with suppress(RelfsError), uninterrupted():
        if not _is_whole(deploy, record.name):
            Registry(deploy.state_fd).note(record, "given-up")


def _forget(deploy: DeployPath, name: str) -> None:
    """What was written down of it already."""
    with suppress(OSError):
        if deploy.state_fd is not None:
            remove_manifest(deploy.state_fd, name)


def _is_whole(deploy: DeployPath, name: str) -> bool:
    try:
        there = stat.S_ISDIR(os.lstat(f"{RELEASES}/{name}", dir_fd=deploy.fd).st_mode)
        return there and deploy.state_fd is not None and bool(read_manifest(deploy.state_fd, name))
    except (OSError, RelfsError):
        return False


def _owner(made: Staging) -> Owner | None:
    """Whoever owns `releases/`, if it can be given to him."""
    status = os.fstat(made.directory)
    return Owner(status.st_uid, status.st_gid) if os.geteuid() == 0 else None


def _require_apart(deploy: DeployPath, source: Source) -> None:
    """Raises UsageError for a directory that releases/ or relfs's own state is in: the copy would be copied, too.

    By their paths, since a mount is another directory than the one it covers; and by what they are, since one may be
    reached by several paths.
    """
    top = source.directory
    if top is None:
        return
    inner = [f"{path}/{name}/" for path in (deploy.path, *deploy.aliases) for name in (RELEASES, STATE)]
    if any(path.startswith(f"{top.rstrip('/')}/") for path in inner) or _identity(os.stat(top)) in _around(deploy):
        raise UsageError(f"{source.label}: holds all releases, or relfs's own state; add a directory elsewhere")


def _around(deploy: DeployPath) -> set[tuple[int, int]]:
    """What tells releases/, the state directory, and all directories that they are in, as far as we may look."""
    found = set[tuple[int, int]]()
    for place, path in ((deploy.fd, RELEASES), (deploy.state_fd, ".")):
        with suppress(OSError):
            while place is not None and (here := _identity(os.stat(path, dir_fd=place))) not in found:
                found.add(here)
                path += "/.."
    return found


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _added(
    deploy: DeployPath, record: Record, copied: Copied, entries: list[Entry], previous: Previous | None
) -> Added:
    files = [entry for entry in entries if entry.kind == "f"]
    counts = {kind: sum(entry.kind == kind for entry in entries) for kind in "dl"}
    return Added(
        name=record.name,
        path=f"{deploy.path}/{RELEASES}/{record.name}",
        sequence=record.sequence,
        source=record.source,
        files=len(files),
        directories=counts["d"],
        links=counts["l"],
        bytes=sum(entry.size for entry in files),
        shared_files=copied.shared_files,
        shared_bytes=copied.shared_bytes,
        previous=previous.name if previous is not None else None,
    )
