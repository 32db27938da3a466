"""What must be found after a power cut: the old release or the new one, whole, and a journal and records that agree."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from faults import Calls, watched
from mounting import Mounts
from recording import Acknowledged
from replay import Disk, Inode, Remains
from sandbox import ACTIVATIONS, activations_of
from stories import BEFORE, Story

from relfs.adopt import initialise
from relfs.errors import RelfsError
from relfs.layout import BAD_MARKER, CURRENT, RELEASES, DeployPath, open_deploy_path
from relfs.pointer import Pointer
from relfs.records import capistrano, deployer
from relfs.store import peek

NEITHER = "neither the old release nor the new one, or the old one after the new was acknowledged"
EMPTY = "a release of empty files"
JOURNAL = "a journal that does not tell of the switch, or of one that never was"
RECORDS = "a deploy tool's records that are neither old nor new, or do not tell what is current"

_RECORDS = (f"{deployer.DIRECTORY}/{deployer.LOG}", f"{deployer.DIRECTORY}/{deployer.LATEST}", capistrano.LOG)
_ORDER = "ls -t"
_UNREAD = {capistrano.LOG, _ORDER}
"""What no tool reads before relfs has been started again: Capistrano never reads its log, and each time is one of its
own."""

Records = dict[str, bytes]
"""What deploy tools' files say, by path; and in which order `ls -t` tells the releases."""


@dataclass(frozen=True)
class Cut:
    """A power cut: `left` is what may be found, `done` how many steps had been acknowledged."""

    left: Remains
    done: int


@dataclass
class Replayed:
    """A story's cuts, each once, with the number of the event before it; and the tools' records after each step."""

    cuts: dict[Cut, int] = field(default_factory=dict)
    records: list[Records] = field(default_factory=list)


def replay(story: Story) -> Replayed:
    """Cut the story off at every point. Its disk has changed then."""
    replayed, done = Replayed(), 0
    replayed.records.append(_records_on(story.disk))
    for number, event in enumerate([None, *story.events]):
        if isinstance(event, Acknowledged):
            done += 1
            replayed.records.append(_records_on(story.disk))
        elif event is not None:
            story.disk.do(event)
        for left in story.disk.remains():
            replayed.cuts.setdefault(Cut(left, done), number)
    assert len(replayed.records) == len(story.steps), "not every step was acknowledged"
    return replayed


# ---- without a mount ------------------------------------------------------------------------------------------------


def problems(story: Story, replayed: Replayed, cut: Cut, app: Path) -> set[str]:
    """What is wrong with what was left, which is at `app`, and after relfs has been started on it."""
    if _is_before(app):
        return _problems_before(story, cut, app)
    try:
        with closing(open_deploy_path(str(app))) as deploy, _rebooted(story):
            return _problems(story, replayed, cut.done, deploy)
    except (RelfsError, OSError) as error:
        return {f"it cannot be opened: {error}"}


def _problems(story: Story, replayed: Replayed, done: int, deploy: DeployPath) -> set[str]:
    app = Path(deploy.path)
    current = _current(deploy)
    if current not in story.steps[done : done + 2]:
        return {NEITHER}
    step = done + story.steps[done : done + 2].index(current)
    wrong = {EMPTY} if current is not None and not _is_whole(app, current) else set()
    found = _records_at(app)
    if any(found.get(path) not in _told(replayed, path, done) for path in _read(replayed)):
        wrong.add(RECORDS)
    pointer = Pointer(deploy)
    pointer.check_invariants()
    if [(event.action, event.release) for event in activations_of(deploy)] != _expected(story, step):
        wrong.add(JOURNAL)
    if _records_at(app) != replayed.records[step]:
        wrong.add(RECORDS)
    return wrong


@contextmanager
def _rebooted(story: Story) -> Iterator[None]:
    """What is left is looked at quickly: nothing is flushed, and that something was left undone is no news."""
    logging.disable()
    try:
        with watched(Calls(links=story.links)):
            yield
    finally:
        logging.disable(logging.NOTSET)


def _problems_before(story: Story, cut: Cut, app: Path) -> set[str]:
    """It has not become a deploy path yet, and it must be possible to make it one."""
    if story.steps[cut.done] != BEFORE:
        return {NEITHER}
    made = initialise(str(app), None)
    return {EMPTY} if made.current is not None and (app / CURRENT / "index.html").read_text() != "1" else set()


def _is_before(app: Path) -> bool:
    is_directory = (app / CURRENT).is_dir() and not (app / CURRENT).is_symlink()
    return is_directory or not (app / RELEASES).is_dir()


def _current(deploy: DeployPath) -> str | None:
    text = peek(deploy)
    return deploy.target(text).label if text is not None else None


def _is_whole(app: Path, current: str) -> bool:
    try:
        return (app / RELEASES / current / "index.html").read_text() == current
    except FileNotFoundError:
        return False


def _expected(story: Story, step: int) -> list[tuple[str, str | None]]:
    """What the journal has to tell after so many steps."""
    return list(story.history[: len(story.history) - (len(story.steps) - 1 - step)])


# ---- records --------------------------------------------------------------------------------------------------------


def _read(replayed: Replayed) -> set[str]:
    return {path for records in replayed.records for path in records} - _UNREAD


def _told(replayed: Replayed, path: str, done: int) -> list[bytes | None]:
    return [records.get(path) for records in replayed.records[done : done + 2]]


def _records_on(disk: Disk) -> Records:
    releases = disk.listing(RELEASES)
    paths = [*_RECORDS, *(f"{RELEASES}/{name}/{BAD_MARKER}" for name in releases)]
    files = {path: inode.data for path in paths if (inode := disk.find(path)) is not None}
    return {**files, _ORDER: _order({name: _moment(inode) for name, inode in releases.items()})}


def _moment(inode: Inode) -> int:
    return inode.moment or 0


def _records_at(app: Path) -> Records:
    releases = {path.name: path for path in (app / RELEASES).iterdir()} if (app / RELEASES).is_dir() else {}
    paths = [*_RECORDS, *(f"{RELEASES}/{name}/{BAD_MARKER}" for name in releases)]
    files = {path: (app / path).read_bytes() for path in paths if (app / path).is_file()}
    return {**files, _ORDER: _order({name: path.lstat().st_mtime_ns for name, path in releases.items()})}


def _order(moments: dict[str, int]) -> bytes:
    """Of the releases that Capistrano made: the times of others mean nothing. What is as old goes by its name."""
    dated = [name for name in moments if capistrano.time_of(name) is not None]
    return os.fsencode(" ".join(sorted(dated, key=lambda name: (-moments[name], name))))


# ---- with a mount ---------------------------------------------------------------------------------------------------


def mounted_problems(story: Story, cut: Cut, app: Path, mounts: Mounts) -> set[str]:
    """What is wrong with what a mount over `app` shows."""
    if _is_before(app):
        return _problems_before(story, cut, app)
    mount = mounts.start(app)
    try:
        current = mount.status()["current"]
        steps = story.steps[cut.done : cut.done + 2]
        if current not in steps:
            return {NEITHER}
        told = [(line["action"], line["release"]) for line in mount.journal() if _is_activation(line)]
        wrong = {JOURNAL} if told != _expected(story, cut.done + steps.index(current)) else set()
        return wrong | ({EMPTY} if current is not None and _shown(app) != current else set())
    finally:
        mount.terminate()


def _shown(app: Path) -> str:
    return (app / CURRENT / "index.html").read_text()


def _is_activation(line: dict[str, object]) -> bool:
    return line["action"] in ACTIVATIONS and line["outcome"] in ("done", "recovered", "imported")
