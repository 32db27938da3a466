"""When pins are over, and that nothing is left of them: real processes, no mount."""

from __future__ import annotations

import gc
import os
import subprocess
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import cast
from unittest import mock

import pytest
import trio

from relfs.daemon import viewing
from relfs.daemon.pinning import Pinning
from relfs.errors import RelfsError
from relfs.fuse.changes import Changes
from relfs.journal import Actor
from relfs.layout import Target
from relfs.processes import Process, process
from relfs.survival.ledger import new_ledger
from relfs.views.mark import new_mark, put_mark
from relfs.views.pins import Pin, Pins

OLD, NEW = Target("releases/41", "41"), Target("releases/42", "42")
ACTOR = Actor(0, "root", 1, "x")
SECONDS = 30


class Sealing:
    """What of Changes is asked for: every target is sealed as long as somebody is pinned to it."""

    def __init__(self) -> None:
        self.unsealed: list[Target] = []

    async def keep_sealed(self, _target: Target, *, anew: bool) -> bool:
        return anew

    async def unseal(self, target: Target) -> None:
        self.unsealed.append(target)

    async def drop_current(self) -> None:
        await trio.lowlevel.checkpoint()


async def written() -> None:
    """As if there were a file."""


@contextmanager
def living() -> Iterator[Process]:
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as child:
        found = process(child.pid)
        assert found is not None
        try:
            yield found
        finally:
            child.kill()


async def until(pinning: Pinning, condition: Callable[[], bool]) -> None:
    """Wait for it; whatever happens meanwhile, the invariants hold."""
    with trio.fail_after(SECONDS):
        while not condition():
            pinning.check_invariants()
            await trio.sleep(0.01)
    pinning.check_invariants()


def run(steps: Callable[[Pinning], Awaitable[None]], sealing: Sealing) -> None:
    async def main() -> None:
        pinning = Pinning(Pins(new_ledger().pins), cast(Changes, sealing), written)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pinning.run)
            await steps(pinning)
            nursery.cancel_scope.cancel()

    trio.run(main)


async def pin(pinning: Pinning, target: Target, pinned: Process, who: Process) -> int:
    """As `relfsctl pin` does it."""
    mark = new_mark()
    await pinning.pin(mark, target, ACTOR, f"{mark}", who, may_seal=True)
    put_mark(pinned.pid, mark)
    await pinning.pin(mark, target, ACTOR, f"{mark}", who, may_seal=True)
    return mark


def test_who_is_pinned_anew_is_not_pinned_to_the_first() -> None:
    """And that is over once nobody is, though all live."""

    async def steps(pinning: Pinning) -> None:
        with living() as pinned:
            with living() as asks:
                first = await pin(pinning, OLD, pinned, asks)
                assert pinning.witnesses() == {first: asks.pid}
            await until(pinning, lambda: pinning.witnesses() == {first: pinned.pid})
            with living() as asks:
                second = await pin(pinning, NEW, pinned, asks)
                await until(pinning, lambda: [each.mark for each in pinning.pins] == [second])
        await until(pinning, lambda: not pinning.pins)

    sealing = Sealing()
    run(steps, sealing)
    assert sealing.unsealed[:1] == [OLD]


def test_of_a_family_one_may_be_pinned_anew() -> None:
    async def steps(pinning: Pinning) -> None:
        with living() as one, living() as other, living() as asks:
            first = await pin(pinning, OLD, one, one)
            put_mark(other.pid, first)
            second = await pin(pinning, NEW, one, asks)
            await until(pinning, lambda: pinning.witnesses() == {first: other.pid, second: asks.pid})
        await until(pinning, lambda: not pinning.pins)

    run(steps, Sealing())


def test_one_that_there_is_no_room_for_leaves_nothing() -> None:
    async def steps(pinning: Pinning) -> None:
        gc.collect()  # what earlier tests have left is not to be closed in between
        before = len(os.listdir("/proc/self/fd"))
        with living() as asks, mock.patch.object(pinning.pins, "add", side_effect=RelfsError("too many")):
            with pytest.raises(RelfsError, match="too many"):
                await pin(pinning, OLD, asks, asks)
            pinning.check_invariants()
        assert len(os.listdir("/proc/self/fd")) == before
        await until(pinning, lambda: sealing.unsealed == [OLD])

    sealing = Sealing()
    run(steps, sealing)


def test_who_has_ended_since_is_not_shown() -> None:
    """Between being found and being looked at."""
    pinned = Pin(new_mark(), OLD, ACTOR, 0.0, "1", 1, 1)
    with living() as ended:
        pass
    with mock.patch.object(viewing, "bearers", return_value={pinned.mark: [ended.pid, os.getpid()]}):
        (view,) = viewing._pinned([pinned])
    assert isinstance(view["processes"], list)
    assert [each["pid"] for each in view["processes"]] == [os.getpid()]
