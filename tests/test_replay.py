"""A power cut after any system call of any change leaves the old release or the new, whole, and a journal that agrees.

What real programs do is recorded (recording.py, stories.py), and cut off at every point: each thing that replay.py says
may be left is written out and opened, as after a reboot, and some of it is mounted. That the order of the calls is what
keeps this so, is shown by disorder.py: each thing that is done otherwise spoils something.
"""

from __future__ import annotations

import itertools
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from pathlib import Path

import pytest
from disorder import DISORDERS
from model import memory
from recording import (
    Dated,
    Event,
    MadeDirectory,
    MadeLink,
    Opened,
    Removed,
    Renamed,
    Synced,
    SyncedAll,
    Truncated,
    Wrote,
)
from replay import LOST, Disk, Disks, Left, PowerCuts, write_out
from stories import STORIES, Story
from verdict import (
    EMPTY,
    JOURNAL,
    LOCK,
    NEITHER,
    RECORDS,
    Cut,
    Replayed,
    Shown,
    mounted_problems,
    problems,
    replay,
    show,
)
from warm import lanes

from relfs.layout import CURRENT
from relfs.names import STATE
from relfs.pending import PENDING

FOUND_OUT = [
    ("flush-nothing", "switches", {EMPTY, NEITHER}),
    ("leave-directories", "switches", {NEITHER}),
    ("leave-the-journal", "switches", {JOURNAL}),
    ("flush-before-the-link-is-made", "switches", {NEITHER}),
    ("write-the-journal-before-the-link", "switches", {JOURNAL}),
    ("note-the-text-apart", "switches", {JOURNAL}),
    ("note-nothing", "switches", {JOURNAL}),
    ("write-records-in-place", "with-deployer", {RECORDS}),
    ("leave-half-a-line", "with-capistrano", {RECORDS}),
    ("forget-that-tools-are-to-be-told", "with-deployer", {RECORDS}),
    ("forget-that-tools-are-to-be-told", "with-capistrano", {RECORDS}),
    ("adopt-without-flushing", "adoption", {NEITHER}),
    ("init-and-leave-directories", "adoption", {NEITHER}),
    ("init-and-leave-directories", "initialisation", {NEITHER}),
    ("follow-without-flushing", "followed", {JOURNAL}),
    ("write-records-in-place", "with-old-deployer", {RECORDS}),
    ("make-the-state-directory-and-leave-it", "locks", {LOCK}),
    ("leave-the-state-directory", "locks", {LOCK}),
    ("put-the-file-away-before-the-link-is-there", "links-again", {NEITHER}),
    ("give-the-lock-back-for-now", "locks", {LOCK}),
    ("flush-the-deploy-path-alone", "switches-elsewhere", {JOURNAL}),
    ("flush-the-deploy-path-alone", "releases-elsewhere", {EMPTY}),
    ("forget-what-was-left-undone", "recovered", {JOURNAL, RECORDS}),
    ("flush-the-state-alone", "switches-elsewhere", {EMPTY, NEITHER}),
    ("flush-the-state-alone", "switches-without-links-elsewhere", {EMPTY}),
    ("leave-the-journal", "switches-elsewhere", {JOURNAL}),
    ("note-nothing", "first-switch-elsewhere", {JOURNAL}),
    ("follow-without-flushing", "followed-elsewhere", {JOURNAL}),
    ("put-the-file-away-before-the-link-is-there", "links-again-elsewhere", {NEITHER}),
    ("forget-that-tools-are-to-be-told", "with-deployer-elsewhere", {RECORDS}),
    ("adopt-without-flushing", "adoption-elsewhere", {NEITHER}),
    ("make-the-state-directory-and-leave-it", "locks-elsewhere", {LOCK}),
    ("give-the-lock-back-for-now", "locks-elsewhere", {LOCK}),
]
"""Which disorder spoils what, in which story."""

Told = tuple[Story, Replayed]


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory in memory, where there is one: thousands of deploy paths are made, and the disk is imagined."""
    with tempfile.TemporaryDirectory(prefix="relfs-replay-", dir=memory()) as made:
        yield Path(made)


@pytest.fixture(scope="module")
def mounting() -> Iterator[Executor]:
    """Processes that mount side by side."""
    with lanes() as pool:
        yield pool


@pytest.fixture(scope="module", params=STORIES)
def told(request: pytest.FixtureRequest) -> Told:
    """A story, and where it can be cut off."""
    with tempfile.TemporaryDirectory(prefix="relfs-replay-", dir=memory()) as made:
        story = STORIES[request.param](Path(made), None)
    return story, replay(story)


def test_old_or_new_whatever_is_lost(told: Told, place: Path) -> None:
    story, replayed = told
    assert len(replayed.cuts) > len(story.steps)
    for cut, wrong in _wrong(story, replayed, place / "left"):
        pytest.fail(_explained(story, replayed, cut, wrong))


def test_a_mount_over_what_is_left(
    told: Told, mounting: Executor, power_cuts: PowerCuts, request: pytest.FixtureRequest
) -> None:
    """What is no deploy path yet, cannot be mounted, and was looked at above."""
    story, replayed = told
    every: bool = request.config.getoption("--every-power-cut")
    cuts = list(replayed.cuts) if every else _some(replayed)
    equal = list(dict.fromkeys(cut.left for cut in cuts))
    shown = dict(zip(equal, mounting.map(show, equal, itertools.repeat(story.state)), strict=True))
    for cut in cuts:
        found = shown[cut.left]
        wrong = mounted_problems(story, cut, found) if found is not None else set()
        assert not wrong, _explained(story, replayed, cut, wrong)
    power_cuts.cuts += len(cuts)
    power_cuts.disks += len(shown)
    power_cuts.mounted += sum(found is not None for found in shown.values())
    assert any(shown.values())


@pytest.mark.parametrize(("disorder", "name", "expected"), FOUND_OUT)
def test_the_order_is_needed(disorder: str, name: str, expected: set[str], place: Path) -> None:
    story = STORIES[name](place, disorder)
    missing = set(expected)
    with DISORDERS[disorder]():  # also when it is started again
        for _, wrong in _wrong(story, replay(story), place / "left"):
            missing -= wrong
            if not missing:
                return
    pytest.fail(f"not found: {missing}")


def test_every_disorder_is_tried() -> None:
    assert {disorder for disorder, _, _ in FOUND_OUT} == set(DISORDERS)


def _wrong(story: Story, replayed: Replayed, place: Path) -> Iterator[tuple[Cut, set[str]]]:
    """What is wrong, with which cut: each is written out in `place`, and relfs is started on it."""
    for cut in replayed.cuts:
        write_out(cut.left, place / "app")
        wrong = problems(story, replayed, cut, place / "app")
        shutil.rmtree(place)
        if wrong:
            yield cut, wrong


def _some(replayed: Replayed) -> list[Cut]:
    """One for each thing that may be current: the last one in which something is pending, if there is one."""
    by_current: dict[tuple[bytes | None, bool], Cut] = {}
    for cut in replayed.cuts:
        left = dict(cut.left)
        current = left[CURRENT].data if CURRENT in left else None
        by_current[current, f"{STATE}/{PENDING}" in left] = cut
    return [cut for (current, pending), cut in by_current.items() if pending or (current, True) not in by_current]


def _explained(story: Story, replayed: Replayed, cut: Cut, wrong: set[str]) -> str:
    """What is wrong, and how it came to that, for people."""
    before = [f"  {event}" for event in story.events[: replayed.cuts[cut]]]
    left = [f"  {path}: {each}" for path, each in cut.left]
    return "\n".join([*sorted(wrong), "after", *before, f"acknowledged: {cut.done}; left is", *left])


# ---- what the disk forgets ------------------------------------------------------------------------------------------

FILE: list[Event] = [Opened("f", truncate=False, append=False), Wrote("f", b"new!", None)]
OLD: list[Event] = [*FILE, SyncedAll()]


def _after(*events: Event) -> Disk:
    disk = Disk()
    for event in events:
        disk.do(event)
    return disk


@pytest.mark.parametrize(
    ("events", "path", "expected"),
    [
        (FILE, "f", {None, b"", b"new!", b"ne", b"new", b"\0\0\0\0", b"\0\0w!"}),
        ([*FILE, Synced("f")], "f", {None, b"new!"}),
        ([*FILE, Synced(".")], "f", {b"", b"new!", b"ne", b"new", b"\0\0\0\0", b"\0\0w!"}),
        ([*FILE, Synced("f"), Synced(".")], "f", {b"new!"}),
        (OLD, "f", {b"new!"}),
        ([*OLD, Removed("f")], "f", {None, b"new!"}),
        ([*OLD, Removed("f"), Synced(".")], "f", {None}),
        ([*OLD, Truncated("f", 2)], "f", {b"ne", b"new!"}),
        ([*OLD, Opened("f", truncate=True, append=False)], "f", {b"", b"new!"}),
        ([*OLD, Wrote("f", b"AB", 0)], "f", {b"new!", b"ABw!", b"Aew!", b"\0\0w!", b"\0Bw!"}),
        ([*OLD, Opened("f", truncate=False, append=True), Wrote("f", b"+", None)], "f", {b"new!", b"new!+", b"new!\0"}),
        ([*OLD, Renamed("f", "g", exchange=False)], "f", {None, b"new!"}),
        ([*OLD, Renamed("f", "g", exchange=False)], "g", {None, b"new!"}),
        ([*OLD, Renamed("f", "g", exchange=False), Synced(".")], "f", {None}),
        ([MadeLink("l", "x")], "l", {None, b"x", LOST.encode()}),
        ([MadeLink("l", "x"), Synced(".")], "l", {b"x", LOST.encode()}),
        ([MadeLink("l", "x"), SyncedAll()], "l", {b"x"}),
        ([MadeDirectory("d"), MadeLink("d/l", "x"), Synced("d")], "d/l", {None, b"x", LOST.encode()}),
        ([MadeDirectory("d"), MadeLink("d/l", "x"), Synced("d"), Synced(".")], "d/l", {b"x", LOST.encode()}),
        ([MadeDirectory("d"), Synced("d")], "d", {None, b""}),
    ],
)
def test_what_may_be_left(events: Sequence[Event], path: str, expected: set[bytes | None]) -> None:
    found = [dict(left) for left in _after(*events).remains()]
    assert {left[path].data if path in left else None for left in found} == expected


def test_what_is_renamed_is_never_at_both_names_and_never_at_none() -> None:
    disk = _after(*OLD, MadeDirectory("d"), SyncedAll(), Renamed("f", "d/f", exchange=False))
    assert {frozenset(dict(left)) & {"f", "d/f"} for left in disk.remains()} == {frozenset({"f"}), frozenset({"d/f"})}


def test_what_is_exchanged_is_found_so_or_not() -> None:
    disk = _after(*OLD, MadeLink("l", "x"), SyncedAll(), Renamed("f", "l", exchange=True))
    kinds = {(dict(left)["f"].kind, dict(left)["l"].kind) for left in disk.remains()}
    assert kinds == {("file", "link"), ("link", "file")}


def test_when_it_was_modified_may_be_lost() -> None:
    disk = _after(MadeDirectory("d"), Dated("d", 1), SyncedAll(), Dated("d", 2))
    assert {dict(left)["d"].moment for left in disk.remains()} == {1, 2}
    disk.do(Synced("d"))
    assert {dict(left)["d"].moment for left in disk.remains()} == {2}


def test_what_is_left_is_written_out(tmp_path: Path) -> None:
    left = (("d", Left("directory", b"", 10**9)), ("d/f", Left("file", b"x", None)), ("l", Left("link", b"d", None)))
    write_out(left, tmp_path / "app")
    assert (tmp_path / "app/l/f").read_bytes() == b"x"
    assert os.readlink(tmp_path / "app/l") == "d"
    assert (tmp_path / "app/d").stat().st_mtime == 1


# ---- several disks --------------------------------------------------------------------------------------------------

OTHER = "../other"
ON_BOTH = [*FILE, Opened(f"{OTHER}/f", truncate=False, append=False)]


@pytest.mark.parametrize(
    ("events", "expected"),
    [
        (ON_BOTH, {(False, False), (True, False), (False, True), (True, True)}),
        ([*ON_BOTH, SyncedAll(".")], {(True, False), (True, True)}),
        ([*ON_BOTH, SyncedAll(f"{OTHER}/f")], {(False, True), (True, True)}),
        ([*ON_BOTH, Synced(OTHER)], {(False, True), (True, True)}),
        ([*ON_BOTH, SyncedAll()], {(True, True)}),
    ],
)
def test_each_disk_forgets_for_itself(events: Sequence[Event], expected: set[tuple[bool, bool]]) -> None:
    disks = Disks(Disk(), {OTHER: Disk()})
    for event in events:
        disks.do(event)
    found = [dict(left) for left in disks.remains()]
    assert {("f" in left, f"{OTHER}/f" in left) for left in found} == expected


# ---- what is said of a mount ----------------------------------------------------------------------------------------

OLD_TOLD, NEW_TOLD = (("adopt", "1"),), (("adopt", "1"), ("switch", "2"))
ONE_SWITCH = Story(Disks(Disk(), {}), [], ("1", "2"), NEW_TOLD)


@pytest.mark.parametrize(
    ("done", "shown", "expected"),
    [
        (0, Shown("1", "1", OLD_TOLD, ()), set()),
        (0, Shown("2", "2", NEW_TOLD, ()), set()),
        (1, Shown("1", "1", OLD_TOLD, ()), {NEITHER}),
        (0, Shown("3", "3", NEW_TOLD, ()), {NEITHER}),
        (0, Shown("2", "", NEW_TOLD, ()), {EMPTY}),
        (0, Shown("2", "2", OLD_TOLD, ()), {JOURNAL}),
        (0, Shown("2", "2", NEW_TOLD, ("a warning",)), {"a warning"}),
    ],
)
def test_what_is_wrong_with_a_mount(done: int, shown: Shown, expected: set[str]) -> None:
    assert mounted_problems(ONE_SWITCH, Cut((), done), shown) == expected
