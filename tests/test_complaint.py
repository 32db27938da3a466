"""What goes wrong again and again, by a clock that the test sets."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

import pytest

from relfs.daemon.complaint import Complaint


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Sets it."""
    return lambda seconds: monkeypatch.setattr(time, "monotonic", lambda: seconds)


@pytest.fixture(autouse=True)
def _heard(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)


def test_it_is_said_ever_less_often(clock: Callable[[float], None], caplog: pytest.LogCaptureFixture) -> None:
    said = []
    made = Complaint(logging.getLogger())
    for tenth in range(1000):
        clock(500 + tenth / 10)
        made.say("no process")
        if caplog.messages:
            said.append(tenth / 10)
            caplog.clear()
    assert said == [0, 1, 2, 4, 8, 16, 32, 64]


def test_but_once_an_hour(clock: Callable[[float], None], caplog: pytest.LogCaptureFixture) -> None:
    made = Complaint(logging.getLogger())
    for minute in range(7 * 24 * 60):
        clock(minute * 60)
        made.say("no process")
    assert 7 * 24 <= len(caplog.messages) < 8 * 24


def test_another_reason_and_the_end_are_news(clock: Callable[[float], None], caplog: pytest.LogCaptureFixture) -> None:
    made = Complaint(logging.getLogger())
    made.end("nobody was told of anything")
    clock(1)
    for words in ("no process", "no process", "no descriptor", "no descriptor", "no process"):
        made.say(words)
    made.end("well")
    made.end("well")
    made.say("no descriptor")
    assert caplog.messages == ["no process", "no descriptor", "well", "no descriptor"]
