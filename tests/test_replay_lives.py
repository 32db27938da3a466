"""A power cut after any system call of adding, deploying or pruning leaves what the next command settles.

What that is, is in settled.py; what is told, in lives.py; how it is cut off, in test_replay.py.

Here, one of what each call may leave is looked at; `contrib/powercut` looks at all of it. That the order of the calls
is what keeps this so, is shown by disorder.py.
"""

from __future__ import annotations

import itertools
import random
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from disorder import DISORDERS_OF_LIVES
from lives import LIVES, Life
from model import memory
from replay import PowerCuts, write_out
from settled import BACK, HALF, LEFT, LITTER, REUSED, SHARE, Cut, Cuts, cut_off, problems

FOUND_OUT = [
    ("add-without-flushing", "added", {HALF}),
    ("make-what-holds-manifests-and-leave-it", "added", {HALF}),
    ("spend-names-for-now", "added", {REUSED}),
    ("seed-without-flushing", "deployed", {SHARE}),
    ("note-no-step-of-a-deployment", "deployed", {LEFT}),
    ("forget-a-deployment-for-now", "found-bad", {LEFT}),
    ("delete-before-the-rename-is-flushed", "pruned", {BACK, HALF}),
    ("leave-manifests", "pruned", {LITTER}),
    ("keep-manifests-of-what-was-given-up", "found-bad", {LITTER}),
]
"""Which disorder spoils what, in which life."""


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory in memory, where there is one: the disk is imagined."""
    with tempfile.TemporaryDirectory(prefix="relfs-replay-", dir=memory()) as made:
        yield Path(made)


@pytest.mark.parametrize("name", LIVES)
def test_the_next_command_settles_it(
    name: str, place: Path, power_cuts: PowerCuts, request: pytest.FixtureRequest
) -> None:
    life = _told(name, place, None)
    cuts = cut_off(life)
    every: bool = request.config.getoption("--every-power-cut")
    looked_at = list(cuts.spent) if every else _some(cuts)
    assert len(looked_at) > 20
    for cut, wrong in _wrong(life, cuts, looked_at, place / "left"):
        pytest.fail(_explained(life, cuts, cut, wrong))
    power_cuts.settled += len(looked_at)


@pytest.mark.parametrize(("disorder", "name", "expected"), FOUND_OUT)
def test_the_order_is_needed(disorder: str, name: str, expected: set[str], place: Path) -> None:
    life = _told(name, place, disorder)
    missing = set(expected)
    with DISORDERS_OF_LIVES[disorder]():  # also when it is settled
        cuts = cut_off(life)
        for _, wrong in _wrong(life, cuts, _by_turns(cuts), place / "left"):
            missing -= wrong
            if not missing:
                return
    pytest.fail(f"not found: {missing}")


def test_every_disorder_is_tried() -> None:
    assert {disorder for disorder, _, _ in FOUND_OUT} == set(DISORDERS_OF_LIVES)


def _told(name: str, place: Path, disorder: str | None) -> Life:
    (place / "told").mkdir()
    return LIVES[name](place / "told", disorder)


def _some(cuts: Cuts) -> list[Cut]:
    """One for each moment, and not the same of each."""
    return [found[moment % len(found)] for moment, found in _by_moment(cuts).items()]


def _by_turns(cuts: Cuts) -> Iterator[Cut]:
    """All, one of each moment by turns: what is spoilt is found soon, whenever that is."""
    shuffled = random.Random(1)
    each = [shuffled.sample(found, len(found)) for found in _by_moment(cuts).values()]
    return (cut for turn in itertools.zip_longest(*each) for cut in turn if cut is not None)


def _by_moment(cuts: Cuts) -> dict[int, list[Cut]]:
    by_moment: dict[int, list[Cut]] = {}
    for cut, moment in cuts.moments.items():
        by_moment.setdefault(moment, []).append(cut)
    return by_moment


def _wrong(life: Life, cuts: Cuts, looked_at: Iterable[Cut], place: Path) -> Iterator[tuple[Cut, set[str]]]:
    """What is wrong, with which cut: each is written out in `place`, and relfs is started on it."""
    for cut in looked_at:
        write_out(cut.left, place / "app")
        wrong = problems(life, cut, cuts.spent[cut], place / "app")
        shutil.rmtree(place)
        if wrong:
            yield cut, wrong


def _explained(life: Life, cuts: Cuts, cut: Cut, wrong: set[str]) -> str:
    """What is wrong, and how it came to that, for people."""
    before = [f"  {event}" for event in life.events[: cuts.moments[cut]]]
    left = [f"  {path}: {each}" for path, each in cut.left]
    return "\n".join([*sorted(wrong), "after", *before, f"acknowledged: {cut.done}; left is", *left])
