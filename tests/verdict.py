"""What must be found after a power cut: the old release or the new one, whole, and a journal and records that agree."""

from __future__ import annotations

import itertools
import logging
import os
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from faults import Calls, watched
from model import memory
from mounting import loud_lines
from recording import STATE_ELSEWHERE, Acknowledged
from replay import Disks, Inode, Remains, write_out
from sandbox import activations_of
from stories import BEFORE, Story
from warm import warm_mount

from relfs.adopt import initialise
from relfs.control import Connection
from relfs.daemon.plan import Plan
from relfs.errors import RelfsError
from relfs.hold import HELD
from relfs.layout import BAD_MARKER, CURRENT, RELEASES, STATE, DeployPath, open_deploy_path
from relfs.pointer import Pointer
from relfs.records import capistrano, deployer
from relfs.store import peek

NEITHER = "neither the old release nor the new one, or the old one after the new was acknowledged"
EMPTY = "a release of empty files"
JOURNAL = "a journal that does not tell of the switch, or of one that never was"
RECORDS = "a deploy tool's records that are neither old nor new, or do not tell what is current"
LOCK = "a deploy lock that was never taken, or not given back, or not had any more"

_DEPLOYERS = tuple(f"{deployer.DIRECTORY}/{name}" for name in (deployer.LOG, deployer.OLD_LOG, deployer.LATEST))
_LOCKS = (f"{STATE}/{HELD}", f"{STATE_ELSEWHERE}/{HELD}")
_RECORDS = (*_DEPLOYERS, capistrano.LOG, *_LOCKS)
_ORDER = "ls -t"
_UNREAD = {capistrano.LOG, _ORDER}
"""What no tool reads before relfs has been started again: Capistrano never reads its log, and each time is one of its
own."""

Records = dict[str, bytes]
"""What deploy tools' files say, and who holds the deploy lock, by path; and in which order `ls -t` tells the
releases."""


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
        with closing(story.open(app)) as deploy, _rebooted(story):
            return _problems(story, replayed, cut.done, deploy)
    except (RelfsError, OSError) as error:
        return {f"it cannot be opened: {error}"}


def _problems(story: Story, replayed: Replayed, done: int, deploy: DeployPath) -> set[str]:
    app = Path(deploy.path)
    current = _current(deploy)
    steps = _steps_with(story, done, current)
    if not steps:
        return {NEITHER}
    wrong = {EMPTY} if current is not None and not _is_whole(app, current) else set()
    found = _records_at(app)
    wrong |= {_fault(path) for path in _read(replayed) if found.get(path) not in _told(replayed, path, done)}
    pointer = Pointer(deploy)
    pointer.check_invariants()
    told, found = [(event.action, event.release) for event in activations_of(deploy)], _records_at(app)
    return wrong | min((_disagreeing(story, replayed, step, told, found) for step in steps), key=len)


def _steps_with(story: Story, done: int, current: str | None) -> list[int]:
    """The last step that was acknowledged, and the one after it, if that is what was current then."""
    return [step for step in range(len(story.steps)) if done <= step <= done + 1 and story.steps[step] == current]


def _disagreeing(
    story: Story, replayed: Replayed, step: int, told: list[tuple[str, str | None]], found: Records
) -> set[str]:
    """What does not go with that step, now that relfs has been started."""
    wrong = {JOURNAL} if told != _expected(story, step) else set()
    right = replayed.records[step]
    return wrong | {_fault(path) for path in found.keys() | right.keys() if found.get(path) != right.get(path)}


def _fault(path: str) -> str:
    return LOCK if path in _LOCKS else RECORDS


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
    made = initialise(str(app), None, str(app / story.state) if story.state is not None else None)
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
    """What the journal has to tell after so many steps: each that made something else current has its line."""
    later = sum(after != before for before, after in itertools.pairwise(story.steps[step:]))
    return list(story.history[: len(story.history) - later])


# ---- records --------------------------------------------------------------------------------------------------------


def _read(replayed: Replayed) -> set[str]:
    return {path for records in replayed.records for path in records} - _UNREAD


def _told(replayed: Replayed, path: str, done: int) -> list[bytes | None]:
    return [records.get(path) for records in replayed.records[done : done + 2]]


def _records_on(disk: Disks) -> Records:
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


@dataclass(frozen=True)
class Shown:
    """What a mount shows: what it says is current, what readers find there, and what its journal tells. `loud` is what
    was logged above INFO."""

    current: str | None
    page: str | None
    told: tuple[tuple[str, str | None], ...]
    loud: tuple[str, ...]


_LATE = ("does not fork", "does not answer")
"""What relfs says of processes that are late, as they are on a machine that has too much to do."""

_LOOKS = 3


def show(left: Remains, state: str | None) -> Shown | None:
    """Mount over what is left, with the state directory `state` (Story), and look; None if it is no deploy path yet.
    If processes were late, it is done again: if that is because of what is left, they are late each time.

    To be called in a lane of warm.py, where all that may be left can be mounted in minutes.
    """
    for _ in range(_LOOKS):
        shown = _show(left, state)
        if shown is None or not any(late in line for line in shown.loud for late in _LATE):
            break
    return shown


def _show(left: Remains, state: str | None) -> Shown | None:
    with tempfile.TemporaryDirectory(prefix="relfs-replay-", dir=memory()) as place:
        app, log = Path(place) / "left/app", Path(place) / "log"
        write_out(left, app)
        if _is_before(app):
            return None
        state_dir = os.path.realpath(app / state) if state is not None else None
        with warm_mount(Plan(str(app), str(app), state_dir=state_dir), log):
            current, page, told = _look(app)
        return Shown(current, page, told, tuple(loud_lines(log)))


def _look(app: Path) -> tuple[str | None, str | None, tuple[tuple[str, str | None], ...]]:
    """As relfsctl and readers do."""
    with closing(Connection((str(app / STATE),))) as connection:
        current = connection.call("status", {})["current"]
    page = (app / CURRENT / "index.html").read_text() if current is not None else None
    with closing(open_deploy_path(str(app))) as mounted:
        return current, page, tuple((event.action, event.release) for event in activations_of(mounted))


def mounted_problems(story: Story, cut: Cut, shown: Shown) -> set[str]:
    """What is wrong with what a mount shows."""
    steps = _steps_with(story, cut.done, shown.current)
    if not steps:
        return {NEITHER}
    wrong = {*shown.loud, *({EMPTY} if shown.page != shown.current else set())}
    expected = [_expected(story, step) for step in steps]
    return wrong | ({JOURNAL} if list(shown.told) not in expected else set())
