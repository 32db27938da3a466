"""What users are called, where nobody may answer that: getpwuid(3) by a directory service that is slow, or gone."""

from __future__ import annotations

import os
import pwd
import queue
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from clients import SECONDS, running
from mounting import Mounts, wait_for
from readers import reading

from relfs import users

_HANGS = """
import pwd, threading
pwd.getpwuid = lambda uid: threading.Event().wait()
"""


@pytest.fixture(autouse=True)
def _forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """What other tests have asked is not known."""
    monkeypatch.setattr(users, "_known", {})
    monkeypatch.setattr(users, "_asking", threading.BoundedSemaphore(4))


@dataclass
class Silence:
    """Nobody answers who is `asked` for until `answered` is set; then that is "late"."""

    asked: list[int] = field(default_factory=list)
    answered: threading.Event = field(default_factory=threading.Event)

    def getpwuid(self, uid: int) -> object:
        self.asked.append(uid)
        self.answered.wait()
        return pwd.struct_passwd(("late", "x", 1, 1, "", "/", "/bin/sh"))


@pytest.fixture
def silence(monkeypatch: pytest.MonkeyPatch) -> Iterator[Silence]:
    made = Silence()
    monkeypatch.setattr(pwd, "getpwuid", made.getpwuid)
    yield made
    made.answered.set()


def test_a_name_and_a_number_without_one() -> None:
    assert users.user_name(0) == "root"
    assert users.known_name(0) == "root"
    assert users.user_name(4_000_000_000) == "4000000000"


def test_who_is_not_known_in_time_goes_by_number(silence: Silence) -> None:
    assert users.user_name(7) == "7"
    assert users.known_name(7) == "7", "the next one does not wait at all"
    silence.answered.set()
    wait_for(lambda: users.known_name(7) == "late", "the answer is taken all the same")


def test_a_machine_that_stood_still(monkeypatch: pytest.MonkeyPatch) -> None:
    """The time was over before anybody could run."""
    stood: list[float | None] = []

    class Still(queue.SimpleQueue[str]):
        def get(self, block: bool = True, timeout: float | None = None) -> str:
            if not stood:
                stood.append(timeout)
                raise queue.Empty
            return super().get(block, timeout)

    monkeypatch.setattr(queue, "SimpleQueue", Still)
    assert users.user_name(0) == "root"
    assert stood


def test_only_so_many_ask(silence: Silence, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(users, "_SECONDS", SECONDS)
    askers = [threading.Thread(target=users.user_name, args=(uid,)) for uid in range(100, 104)]
    for each in askers:
        each.start()
    wait_for(lambda: len(silence.asked) == len(askers), "four are asking")
    assert users.user_name(104) == "104"
    assert users.known_name(104) is None, "it is asked for once somebody answers"
    silence.answered.set()
    for each in askers:
        each.join()
    assert users.known_name(103) == "late"


def test_where_there_are_no_more_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        assert users.user_name(0) == "0"
    assert users.user_name(0) == "root"


def test_names_that_nobody_tells_hold_nothing(app: Path, mounts: Mounts) -> None:
    """Switches by relfsctl, by a tool in one step and in two, and what is asked meanwhile."""
    mount = mounts.start(app, patch=_HANGS)
    with reading(app / "current/index.html", "40", "41", "42") as readers, running("-C", app, "switch", "41") as switch:
        assert mount.status()["mounted"]
        assert (app / "current/index.html").read_text() in ("40", "41")
        assert switch.wait(SECONDS) == 0
        (app / "next").symlink_to("releases/42")
        os.rename(app / "next", app / "current")
        subprocess.run(["sh", "-c", 'rm "$0" && ln -s releases/40 "$0"', app / "current"], check=True)
        seen = readers.stop()
    assert (seen.failed, seen.neither) == ({}, 0)
    switches = [event for event in mount.journal() if event["action"] == "switch"]
    assert [(event["release"], event["user"]) for event in switches] == [("41", "0"), ("42", "0"), ("40", "0")]
    mount.terminate()
