"""The canary in the journal: what begins and ends it, and that no step is done twice. No mount."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from unittest.mock import Mock

import pytest
import trio
import trio.testing
from sandbox import ACTOR

from relfs.audience import Audience
from relfs.daemon.canarying import Canarying
from relfs.errors import LockedError, RefusedError, UsageError
from relfs.fuse.changes import Changes
from relfs.history import ABORT, CANARY, History
from relfs.journal import Event, Journal
from relfs.layout import DeployPath
from relfs.pointer import Pointer
from relfs.releases.inventory import take_inventory
from relfs.survival.ledger import new_ledger
from relfs.views.canary import Canary

AUDIENCE = Audience(users=(33,), percent=25.0, name="php-fpm")


@pytest.fixture
def pointer(deploy: DeployPath) -> Pointer:
    """It is at 40, which the journal knows."""
    return Pointer(deploy)


def begun(pointer: Pointer, request: str = "begin") -> Event:
    return pointer.begin_canary("42", AUDIENCE, ACTOR, request, seconds=600)


def test_it_is_what_the_next_one_reads(pointer: Pointer, deploy: DeployPath) -> None:
    event = begun(pointer)
    assert (event.action, event.release, event.origin, event.audience) == (CANARY, "42", "40", AUDIENCE)
    again = Pointer(deploy)
    assert again.history.canary == event
    assert again.history.canary.confirm is not None
    assert pointer.target is not None
    assert pointer.target.release == "40", "for everybody else"


def test_no_step_is_done_twice(pointer: Pointer, deploy: DeployPath) -> None:
    first = begun(pointer)
    assert begun(pointer) == first
    ended = pointer.abort_canary(ACTOR, "end", why="because")
    assert (ended.action, ended.release, ended.why) == (ABORT, "42", "because")
    assert pointer.abort_canary(ACTOR, "end") == ended
    assert begun(pointer) == first, "which is over"
    assert pointer.history.canary is None
    assert [event.action for event in Journal(deploy.state_fd).events()] == ["adopt", CANARY, ABORT]


@pytest.mark.parametrize("way", ["switch", "rollback", "replace"])
def test_whatever_makes_it_current_ends_it(pointer: Pointer, way: str) -> None:
    begun(pointer)
    pointer.switch("41", ACTOR, "1")
    assert pointer.history.canary is not None
    if way == "switch":
        pointer.switch("42", ACTOR, "2")
    elif way == "rollback":
        pointer.rollback("42", ACTOR, "2")
    else:
        pointer.replace("releases/42", ACTOR, "2")
    assert pointer.history.canary is None


def test_what_failed_begins_and_ends_nothing() -> None:
    began = Event(1.0, CANARY, "42", "40", ACTOR, "host", "1", "done", audience=AUDIENCE)
    assert History([began]).canary == began
    for failed in (
        replace(began, id="2", action=ABORT, outcome="failed: x"),
        replace(began, id="2", action="switch", outcome="failed: x"),
        replace(began, id="2", release="41", outcome="failed: x"),
        replace(began, id="2", release="41", audience=None),
    ):
        assert History([began, failed]).canary == began


def test_what_cannot_be(pointer: Pointer) -> None:
    with pytest.raises(RefusedError, match="there is no canary"):
        pointer.abort_canary(ACTOR, "1")
    with pytest.raises(RefusedError, match="current for everybody already"):
        pointer.begin_canary("40", AUDIENCE, ACTOR, "2")
    with pytest.raises(UsageError):
        pointer.begin_canary("41", AUDIENCE, ACTOR, "3", seconds=0)
    begun(pointer)
    with pytest.raises(RefusedError, match="is a canary"):
        pointer.begin_canary("41", AUDIENCE, ACTOR, "4")
    with pytest.raises(RefusedError, match="is a canary"):
        pointer.discard("42", ACTOR, "5")


def test_who_decides_late_decides_about_his_own(pointer: Pointer) -> None:
    """Between deciding and the change, somebody has aborted it and begun another one."""
    late = begun(pointer)
    pointer.abort_canary(ACTOR, "end")
    for decide in (pointer.promote, pointer.abort_canary):
        with pytest.raises(RefusedError, match="there is no canary"):
            decide(ACTOR, "1", begun_by=late.id)
    other = pointer.begin_canary("41", AUDIENCE, ACTOR, "other")
    for decide in (pointer.promote, pointer.abort_canary):
        with pytest.raises(RefusedError, match="there is no canary"):
            decide(ACTOR, "1", begun_by=late.id)
    assert pointer.history.canary == other
    promoted = pointer.promote(ACTOR, "2", begun_by=other.id)
    assert (promoted.action, promoted.release, promoted.origin) == ("switch", "41", "40")
    assert pointer.promote(ACTOR, "2") == promoted
    with pytest.raises(RefusedError, match="there is no canary"):
        pointer.promote(ACTOR, "3")


def test_the_end_that_others_wrote_ends_it(pointer: Pointer, deploy: DeployPath) -> None:
    """As a worker that died before it could do as it had written."""
    begun(pointer)
    ledger = new_ledger()
    looks: list[Callable[[], None]] = []

    async def main() -> None:
        # Nothing is decided here, so nobody asks for changes.
        canarying = Canarying(Canary(ledger.canary, ledger.decisions), pointer, Mock(spec=Changes))
        canarying.follow()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(canarying.decide_in_time, looks)
            await trio.testing.wait_all_tasks_blocked()
            looks[0]()
            assert canarying.canary.stage is not None
            Pointer(deploy).abort_canary(ACTOR, "end")
            pointer.take_stock()
            looks[0]()
            assert canarying.canary.stage is None
            nursery.cancel_scope.cancel()

    trio.run(main)


def test_it_takes_the_deploy_lock(pointer: Pointer) -> None:
    pointer.hold(ACTOR, 1, why="", seconds=600)
    with pytest.raises(LockedError):
        begun(pointer)


def test_it_stays_when_others_are_removed(pointer: Pointer, deploy: DeployPath) -> None:
    begun(pointer)
    assert "42" in take_inventory(deploy, ()).protected
    pointer.abort_canary(ACTOR, "end")
    assert "42" not in take_inventory(deploy, ()).protected
