"""A power cut after any system call of a switch leaves the old release or the new, whole, and a journal that agrees.

disk.py tells what may be left; each of that is written out and opened by the real pointer, as after a reboot.
"""

from __future__ import annotations

import shutil
from contextlib import closing
from pathlib import Path

import pytest
from disk import Disk, Recorder, Remains, write_out
from faults import Calls, watched
from sandbox import ACTOR, activations_of

from relfs.layout import open_deploy_path
from relfs.pointer import Pointer

STEPS = ("40", "41", "42")
"""What is current at first, and the two switches that are made: the second meets what the first left unsynced."""

NEITHER = "neither the old release nor the new one, or the old one after the new was acknowledged"
EMPTY = "a release of empty files"
JOURNAL = "a journal that does not tell of the switch, or of one that never was"


@pytest.mark.parametrize("links", [True, False], ids=["a link", "a file"])
def test_old_or_new_whatever_is_lost(app: Path, tmp_path: Path, links: bool) -> None:
    assert _problems(_record(app, links=links), tmp_path, links=links) == set()


@pytest.mark.parametrize(
    ("deaf_to", "problem"),
    [("syncfs", EMPTY), ("fsync", NEITHER), ("fdatasync", JOURNAL)],
    ids=["syncfs", "fsync", "fdatasync"],
)
def test_each_sync_is_needed(app: Path, tmp_path: Path, deaf_to: str, problem: str) -> None:
    assert problem in _problems(_record(app, links=True, deaf_to=deaf_to), tmp_path, links=True)


def _record(app: Path, *, links: bool, deaf_to: str | None = None) -> Recorder:
    """Make the two switches, to releases that were unpacked a moment ago."""
    with closing(open_deploy_path(str(app))) as deploy:
        disk = Disk.of(app, unsynced=tuple(f"releases/{name}" for name in STEPS[1:]))
        recorder = Recorder(app, disk, links=links, deaf_to=deaf_to)
        with watched(recorder):
            pointer = Pointer(deploy)
            for name in STEPS[1:]:
                pointer.switch(name, ACTOR, f"to {name}")
                recorder.acknowledged()
    return recorder


def _problems(recorder: Recorder, tmp_path: Path, *, links: bool) -> set[str]:
    """What is wrong with anything that may be left after any call."""
    found: set[str] = set()
    tried: list[tuple[int, Remains]] = []
    done = 0
    for call, remains in recorder.after:
        done += call == Recorder.ACKNOWLEDGED
        for left in remains:
            if (done, left) not in tried:
                tried.append((done, left))
                found |= _restart(left, tmp_path / "left", done, links=links)
    return found


def _restart(left: Remains, app: Path, done: int, *, links: bool) -> set[str]:
    """What is wrong after starting again from what is left, `done` switches having been acknowledged."""
    write_out(left, app)
    with closing(open_deploy_path(str(app))) as deploy, watched(Calls(links=links)):
        pointer = Pointer(deploy)
        pointer.check_invariants()
        current = pointer.target.release if pointer.target is not None else None
        switches = [event.id for event in activations_of(deploy) if event.action == "switch"]
        wrong = set()
        if current not in STEPS[done : done + 2]:
            wrong.add(NEITHER)
        if (app / f"releases/{current}/index.html").read_text() != current:
            wrong.add(EMPTY)
        if current is None or switches != [f"to {name}" for name in STEPS[1 : STEPS.index(current) + 1]]:
            wrong.add(JOURNAL)
    shutil.rmtree(app)
    return wrong
