"""In which order releases are sealed and unsealed, however changes overlap: no mount, and a sealer that remembers."""

from __future__ import annotations

import errno
import logging
import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from sandbox import make_app

from relfs.layout import DeployPath, Target, open_deploy_path
from relfs.seal import Seals


class Remembering:
    """A Sealer that notes what it is told, and keeps busy or fails on request."""

    def __init__(self) -> None:
        self.closed: set[str] = set()
        self.calls: list[str] = []
        self.busy: set[str] = set()
        self.fails: set[str] = set()

    def seal(self, name: str) -> None:
        self.calls.append(f"seal {name}")
        if name in self.fails:
            raise OSError(errno.EPERM, os.strerror(errno.EPERM))
        self.closed.add(name)

    def unseal(self, name: str) -> bool:
        self.calls.append(f"unseal {name}")
        if name in self.fails:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        self.closed.discard(name)
        return name not in self.busy


@pytest.fixture
def sealer() -> Remembering:
    return Remembering()


@pytest.fixture
def seals(deploy: DeployPath, sealer: Remembering) -> Seals:
    """Of `deploy`, 40 being live."""
    made = Seals(deploy)
    made.begin(sealer, [target_of("40")])
    return made


def target_of(name: str) -> Target:
    return Target(f"releases/{name}", name)


def flip(seals: Seals, name: str) -> None:
    """A change, up to where the kernel is to be told."""
    seals.prepare(target_of(name))
    seals.decided([target_of(name)])


def told(seals: Seals) -> None:
    """The kernel is told, with nothing in between."""
    seals.note_replaced()
    seals.release()


def test_a_switch(seals: Seals, sealer: Remembering) -> None:
    flip(seals, "41")
    assert sealer.calls == ["seal 40", "seal 41"]
    assert seals.sealed == {"40", "41"}
    seals.note_replaced()
    assert sealer.closed == {"40", "41"}, "nothing is opened before the kernel has been told"
    seals.release()
    assert sealer.calls == ["seal 40", "seal 41", "unseal 40"]
    assert (seals.sealed, seals.left) == (frozenset({"41"}), frozenset())


def test_a_switch_to_what_is_live(seals: Seals, sealer: Remembering) -> None:
    """By another text, too."""
    flip(seals, "40")
    absolute = Target("/srv/elsewhere/../../x", None)
    seals.prepare(absolute)
    seals.decided([target_of("40")])
    told(seals)
    assert (sealer.calls, sealer.closed) == (["seal 40"], {"40"})


def test_a_switch_that_failed(seals: Seals, sealer: Remembering) -> None:
    seals.prepare(target_of("41"))
    seals.decided([target_of("40")])
    told(seals)
    assert (seals.sealed, sealer.closed) == (frozenset({"40"}), {"40"})


def test_what_cannot_be_sealed(seals: Seals, sealer: Remembering) -> None:
    sealer.fails.add("41")
    with pytest.raises(OSError, match="it cannot be sealed: Operation not permitted") as raised:
        seals.prepare(target_of("41"))
    assert raised.value.errno == errno.EPERM
    seals.decided([target_of("40")])
    told(seals)
    assert (seals.sealed, sealer.closed) == (frozenset({"40"}), {"40"})


@pytest.mark.parametrize("text", ["releases/gone", "gone", "releases/round"])
def test_what_leads_nowhere(seals: Seals, sealer: Remembering, app: Path, text: str) -> None:
    (app / "releases/round").symlink_to("round")
    with pytest.raises(OSError, match="it cannot be sealed: "):
        seals.prepare(Target(text, None))
    assert sealer.calls == ["seal 40"]


def test_the_live_release_is_asked_for_again_and_cannot_be_found(seals: Seals, app: Path) -> None:
    """Failing to seal it again is no reason to take it for replaced."""
    (app / "releases/40").rename(app / "releases/away")
    with pytest.raises(OSError, match="No such file or directory"):
        seals.prepare(target_of("40"))
    seals.decided([target_of("40")])
    told(seals)
    assert seals.sealed == {"40"}


def test_what_is_no_release(seals: Seals, app: Path) -> None:
    (app / "shared").mkdir()
    for text in ("shared", "releases", ".", "/", "../elsewhere"):
        target = Target(text, None)
        seals.prepare(target)
        seals.decided([target])
        told(seals)
        assert seals.sealed == set()
        seals.prepare(target_of("40"))
        seals.decided([target_of("40")])


def test_a_change_begins_while_the_kernel_is_told_of_another(seals: Seals, sealer: Remembering) -> None:
    flip(seals, "41")
    seals.note_replaced()
    seals.prepare(target_of("40"))
    seals.release()
    assert sealer.closed == {"40", "41"}, "40 is about to be live again"
    seals.decided([target_of("40")])
    told(seals)
    assert sealer.closed == {"40"}


def test_a_change_flips_while_the_kernel_is_told_of_another(seals: Seals, sealer: Remembering) -> None:
    """What it replaced may still be in the kernel's cache: that is for its own telling."""
    flip(seals, "41")
    seals.note_replaced()
    flip(seals, "42")
    seals.release()
    assert sealer.closed == {"41", "42"}
    told(seals)
    assert sealer.closed == {"42"}


def test_two_changes_while_the_kernel_is_told_of_another(seals: Seals, sealer: Remembering) -> None:
    """The first of them is replaced by then, may still be in the kernel's cache, and was noted before it was live."""
    seals.prepare(target_of("41"))
    seals.decided([target_of("40")])
    seals.note_replaced()
    flip(seals, "41")
    flip(seals, "42")
    seals.release()
    assert sealer.closed == {"40", "41", "42"}
    told(seals)
    assert sealer.closed == {"42"}


def test_what_is_busy_is_tried_again(seals: Seals, sealer: Remembering) -> None:
    sealer.busy.add("40")
    flip(seals, "41")
    told(seals)
    assert (seals.sealed, seals.left) == (frozenset({"41"}), frozenset({"40"}))
    seals.retry()
    assert seals.left == {"40"}
    sealer.busy.clear()
    seals.retry()
    assert (seals.sealed, seals.left) == (frozenset({"41"}), frozenset())


def test_what_is_busy_becomes_live(seals: Seals, sealer: Remembering) -> None:
    sealer.busy.add("40")
    flip(seals, "41")
    told(seals)
    flip(seals, "40")
    assert (seals.sealed, seals.left) == (frozenset({"40", "41"}), frozenset())
    seals.retry()
    assert "40" in sealer.closed


def test_what_cannot_be_unsealed_is_said_and_tried_again(
    seals: Seals, sealer: Remembering, caplog: pytest.LogCaptureFixture
) -> None:
    flip(seals, "41")
    sealer.fails.add("40")
    with caplog.at_level(logging.WARNING):
        told(seals)
    assert "40 is not live any more but cannot be unsealed: Input/output error" in caplog.text
    sealer.fails.clear()
    seals.retry()
    assert (seals.left, sealer.closed) == (frozenset(), {"41"})


def test_nothing_is_sealed_before_it_begins_or_after_it_ends(deploy: DeployPath, sealer: Remembering) -> None:
    seals = Seals(deploy)
    seals.prepare(target_of("41"))
    seals.decided([target_of("41")])
    told(seals)
    assert (seals.sealed, sealer.calls) == (frozenset(), [])
    seals.begin(sealer, [target_of("41")])
    assert seals.sealed == {"41"}
    flip(seals, "42")
    seals.note_replaced()
    seals.end()
    seals.release()
    flip(seals, "40")
    assert sealer.calls == ["seal 41", "seal 42"]
    assert seals.sealed == set()


def test_several_live_at_once(seals: Seals, sealer: Remembering) -> None:
    for name in ("41", "42"):
        seals.prepare(target_of(name))
    seals.decided([target_of("40"), target_of("42")])
    told(seals)
    assert sealer.closed == {"40", "42"}


def test_what_is_held(seals: Seals, sealer: Remembering) -> None:
    """Twice: until both have let it go."""
    for _ in range(2):
        assert seals.hold(target_of("42"), anew=True)
    assert not seals.hold(target_of("41"), anew=False), "it is not sealed, and nobody shall do that"
    for name in ("42", "41"):
        flip(seals, name)
        told(seals)
    assert seals.sealed == sealer.closed == {"41", "42"}
    assert seals.hold(target_of("41"), anew=False)
    flip(seals, "40")
    told(seals)
    seals.let_go(target_of("41"))
    seals.let_go(target_of("42"))
    told(seals)
    assert sealer.closed == {"40", "42"}
    seals.let_go(target_of("42"))
    told(seals)
    assert sealer.closed == {"40"}


def test_what_cannot_be_held(seals: Seals, sealer: Remembering, deploy: DeployPath) -> None:
    sealer.fails.add("42")
    for name in ("42", "99"):
        with pytest.raises(OSError, match="it cannot be sealed"):
            seals.hold(target_of(name), anew=True)
    assert not seals.hold(Target("/", None), anew=True), "no release"
    told(seals)
    assert seals.sealed == {"40"}
    assert not Seals(deploy).hold(target_of("42"), anew=True), "nothing is sealed at all"


class Overlapping(RuleBasedStateMachine):
    """Changes, one after another, and the kernel being told, one after another, with their steps in any order."""

    NAMES = ("40", "41", "42")

    @initialize()
    def begin(self) -> None:
        self.place = tempfile.TemporaryDirectory()
        self.deploy = open_deploy_path(str(make_app(Path(self.place.name) / "app")))
        self.sealer = Remembering()
        self.seals = Seals(self.deploy)
        self.current = "40"
        self.coming: str | None = None
        self.visible = {"40"}
        """What somebody may see as `current`: the target in memory, and what the kernel has not dropped."""
        self.stage = 0
        self.seals.begin(self.sealer, [target_of("40")])

    @precondition(lambda self: self.coming is None)
    @rule(name=st.sampled_from(NAMES))
    def prepare(self, name: str) -> None:
        self.seals.prepare(target_of(name))
        self.coming = name

    @precondition(lambda self: self.coming is not None)
    @rule(done=st.booleans())
    def decide(self, done: bool) -> None:
        assert self.coming is not None
        if done:
            self.current = self.coming
            self.visible.add(self.current)
        self.coming = None
        self.seals.decided([target_of(self.current)])

    @rule()
    def go_on_telling(self) -> None:
        if self.stage == 0:
            self.seals.note_replaced()
        elif self.stage == 1:
            self.visible = {self.current}
        else:
            self.seals.release()
        self.stage = (self.stage + 1) % 3

    @rule(busy=st.sets(st.sampled_from(NAMES)))
    def retry(self, busy: set[str]) -> None:
        self.sealer.busy = busy
        self.seals.retry()

    @invariant()
    def what_can_be_seen_is_sealed(self) -> None:
        assert self.visible <= self.sealer.closed
        assert self.sealer.closed == self.seals.sealed
        assert not self.seals.sealed & self.seals.left

    def teardown(self) -> None:
        if self.coming is not None:
            self.decide(done=False)
        told(self.seals)
        self.retry(set())
        assert (self.sealer.closed, self.seals.left) == ({self.current}, frozenset())
        self.deploy.close()
        self.place.cleanup()


TestOverlapping = Overlapping.TestCase
TestOverlapping.settings = settings(max_examples=300, stateful_step_count=30, deadline=None)
