"""A worker or standby whose supervisor has died, where processes or descriptors are short. No mount."""

from __future__ import annotations

import errno
import logging
import os
import resource
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest

from relfs.daemon import member, standby
from relfs.daemon.member import TICK, Member, take_baton
from relfs.daemon.standby import take_in
from relfs.survival.channel import Channel, Message, channel_of, pair
from relfs.survival.estate import Estate
from relfs.survival.ledger import new_ledger
from relfs.survival.memory import new_memory

TURNS = 200


@pytest.fixture
def tried(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A limit of processes: what nobody can be started to be. No time passes, in which what was said once would be said
    again (complaint.py)."""
    tried: list[str] = []

    def start(part: str, *_arguments: str, **_fds: object) -> subprocess.Popen[bytes]:
        tried.append(part)
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    monkeypatch.setattr(member, "start", start)
    monkeypatch.setattr(time, "monotonic", lambda: 0.0)
    return tried


@dataclass
class Left:
    """A member, and what its supervisor leaves when it dies: `tie` is its end of theirs."""

    member: Member
    estate: Estate
    tie: Channel

    def hear_and_turn(self) -> None:
        self.member.hear()
        self.member.turn()

    def baton_is_free(self) -> bool:
        taken = take_baton(self.estate["baton"])
        if taken is not None:
            os.close(taken)
        return taken is not None

    def who_has_joined(self) -> list[Message]:
        inbox = channel_of(os.dup(self.estate["inbox"]))
        joined = []
        try:
            while (message := inbox.receive()) is not None:
                joined.append(message)
        except BlockingIOError:
            pass
        finally:
            inbox.close()
        return joined


@pytest.fixture(params=["standby", "worker"])
def left(request: pytest.FixtureRequest) -> Iterator[Left]:
    estate, ledger = Estate(), new_ledger()
    inbox, outbox = pair()
    for name, fd in {"inbox": inbox.detach(), "outbox": outbox.detach(), "baton": new_memory("baton")}.items():
        estate.put(name, fd)
    ours, theirs = pair()
    made = Member(request.param, estate, ledger, ours)
    yield Left(made, estate, theirs)
    made.leave()
    theirs.close()
    estate.close()
    ledger.close()


@contextmanager
def descriptors_left(count: int) -> Iterator[None]:
    """This process may open so many more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = [fd for fd in range(1 << 10) if not os.path.lexists(f"/proc/self/fd/{fd}")]
    resource.setrlimit(resource.RLIMIT_NOFILE, (free[count], hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_no_process_for_a_supervisor(left: Left, tried: list[str], caplog: pytest.LogCaptureFixture) -> None:
    """It is said once, not at every turn; and tried less and less often, so that whoever does get started has time."""
    caplog.set_level(logging.INFO)
    left.tie.close()
    for _ in range(TURNS):
        left.hear_and_turn()
    assert 5 < len(tried) < TURNS / 10
    assert caplog.messages == [f"no supervisor can be started: {os.strerror(errno.EAGAIN)}"]
    assert left.baton_is_free()
    [joined] = left.who_has_joined()
    tie = channel_of(joined.fds[0])
    tie.send("welcome")
    left.hear_and_turn()
    assert "has a supervisor again" in caplog.messages[-1]
    tie.close()


@pytest.mark.parametrize("count", range(5))
@pytest.mark.usefixtures("tried")
def test_no_descriptor_for_a_supervisor(left: Left, count: int, caplog: pytest.LogCaptureFixture) -> None:
    """Whichever is the first that cannot be had: who serves goes on, and is known to the next one afterwards."""
    left.tie.close()
    with descriptors_left(count):
        for _ in range(TURNS):
            left.hear_and_turn()
    assert 1 <= len(caplog.messages) <= 3
    left.hear_and_turn()
    assert left.baton_is_free()
    [joined] = left.who_has_joined()
    assert joined.values["pid"] == os.getpid()
    joined.close()


@pytest.mark.usefixtures("tried")
def test_who_has_no_tie_is_not_kept_busy_by_that(left: Left) -> None:
    left.tie.close()
    with descriptors_left(0):
        left.member.hear()
        assert left.member.fileno() == left.estate["outbox"]
        assert left.member.pause == TICK
    left.member.turn()
    assert left.member.fileno() != left.estate["outbox"]
    assert left.member.pause > TICK


def test_a_descriptor_that_there_was_no_room_for() -> None:
    """A standby does without; the worker opens what has a name again. What had the name before is not it."""
    estate = Estate()
    ours, theirs = pair()
    estate.put("file.1", os.open(os.devnull, os.O_RDONLY))
    theirs.send("keep", 0, name="file.1")
    theirs.send("all")
    with descriptors_left(0):
        assert take_in(estate, ours) == []
    assert not list(estate)
    for each in (ours, theirs):
        each.close()


def test_a_worker_that_cannot_be_forked_is_refused(left: Left, monkeypatch: pytest.MonkeyPatch) -> None:
    def fork() -> int:
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    monkeypatch.setattr(os, "fork", fork)
    ours, theirs = pair()
    standby._Standby(left.member)._obey(Message("fork", {"adopting": True}, (theirs.detach(),)))
    refused = ours.receive()
    assert refused is not None
    assert (refused.kind, refused.values) == ("refused", {"words": os.strerror(errno.EAGAIN)})
    assert ours.receive() is None
    ours.close()
