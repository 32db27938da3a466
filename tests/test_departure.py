"""Which mount a worker takes for its own when it ends (relfs/daemon/departure.py). No real one."""

from __future__ import annotations

import errno
import os
from dataclasses import replace
from typing import cast
from unittest import mock

import trio
import trio.testing

from relfs.daemon import departure
from relfs.daemon.departure import Departure
from relfs.mountinfo import FSTYPE, Mount

OURS = Mount(47, "/srv/app", FSTYPE, "/srv/app", "rw", "0:57", "/")
ANOTHER = replace(OURS, target="/srv/other", source="/srv/other", device="0:61")


def ends(*seen: list[Mount]) -> list[Mount]:
    """What is detached by a worker that sees these mounts, one after the other, whenever it looks."""
    detached: list[Mount] = []
    looks = iter(seen)
    member = mock.Mock()
    member.ledger.mounted = OURS.id

    async def main() -> None:
        ours = Departure(member, "/srv/app", mock.Mock(), cast(trio.Nursery, mock.Mock()))
        with trio.move_on_after(0):
            await ours.notice_unmount()
        await ours.detach()

    with (
        mock.patch.object(departure, "all_mounts", side_effect=lambda: next(looks)),
        mock.patch.object(departure, "detach_only", side_effect=detached.append),
    ):
        trio.run(main)
    return detached


def test_it_takes_its_own_mount_away_wherever_it_has_been_moved() -> None:
    moved = replace(OURS, target="/mnt/app")
    assert ends([OURS], [moved]) == [moved]


def test_not_another_one_that_has_got_its_number() -> None:
    assert ends([OURS], [ANOTHER]) == []


def test_who_cannot_look_is_not_unmounted() -> None:
    """There is no descriptor to read mountinfo by (proc(5)): it is read again, and the worker goes on meanwhile. When
    it is gone, another mount has its id."""
    seen = [OSError(errno.EMFILE, os.strerror(errno.EMFILE)), [OURS], [ANOTHER, replace(OURS, id=8)]]
    member, nursery = mock.Mock(), mock.Mock()
    member.ledger.mounted = OURS.id
    with mock.patch.object(departure, "all_mounts", side_effect=seen) as looks:
        ours = Departure(member, "/srv/app", mock.Mock(), cast(trio.Nursery, nursery))
        trio.run(ours.notice_unmount, clock=trio.testing.MockClock(autojump_threshold=0))
    assert looks.call_count == len(seen)
    assert nursery.start_soon.called, "it leaves"
