"""For whom a canary is, and that a share of a set is what was asked for: no mount, and mostly no processes."""

from __future__ import annotations

import math
import os
import subprocess
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, cast
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relfs.audience import Audience, audience_of
from relfs.errors import UsageError
from relfs.layout import Target
from relfs.processes import start_of
from relfs.survival.ledger import Ledger, new_ledger
from relfs.views.canary import Asker, Canary, Stage, is_meant
from relfs.views.share import Key, Share

# ---- what may be asked for


@pytest.mark.parametrize(
    ("told", "why"),
    [
        ({}, "nobody is chosen"),
        ({"users": [1], "colour": 3}, "colour: not a way"),
        ({"users": "x"}, "not an audience"),
        ({"users": 3}, "not an audience"),
        ({"users": "33"}, "users: not a list"),
        ({"users": [True]}, "users: not a list"),
        ({"groups": [1.5]}, "groups: not a list"),
        ({"cgroups": [["a"]]}, "cgroups: not a list"),
        ({"percent": 5, "name": "\ud800"}, "cannot be written in bytes"),
        ({"cgroups": ["a" * (1 << 15)]}, "more than 32768 characters"),
        ({"percent": 5}, "give both"),
        ({"users": [1], "name": "php"}, "give both"),
        ({"percent": 0, "name": "php"}, "not a percentage"),
        ({"percent": 101, "name": "php"}, "not a percentage"),
        ({"percent": math.nan, "name": "php"}, "not a percentage"),
        ({"cgroups": ["/"]}, "no control group"),
        ({"users": list(range(101))}, "100 at most"),
    ],
)
def test_what_is_none(told: dict[str, Any], why: str) -> None:
    with pytest.raises(UsageError, match=why):
        audience_of(told)


AUDIENCES = st.builds(
    Audience,
    st.tuples(st.integers(0, 1 << 32)),
    st.tuples() | st.tuples(st.integers(0, 1 << 32)),
    st.tuples() | st.tuples(st.just("php-fpm.service"), st.just("/system.slice")),
    st.tuples() | st.tuples(st.integers(1 << 62, 1 << 63)),
)


@given(AUDIENCES)
def test_there_and_back(audience: Audience) -> None:
    assert audience_of(audience.as_json()) == audience
    assert str(audience)


# ---- who is meant


@dataclass
class Somebody:
    """As Asker has it."""

    uid: int = 33
    groups: frozenset[int] = frozenset({33, 50})
    cgroups: tuple[str, ...] = ("/", "/system.slice/php8.2-fpm.service")
    mark: int = 7
    name: str = "php-fpm8.2"
    more: dict[str, object] = field(default_factory=dict)


@pytest.mark.parametrize(
    ("audience", "meant"),
    [
        (Audience(users=(33, 34)), True),
        (Audience(users=(34,)), False),
        (Audience(groups=(50,)), True),
        (Audience(groups=(51,)), False),
        (Audience(users=(33,), groups=(51,)), False),
        (Audience(cgroups=("php8.2-fpm.service",)), True),
        (Audience(cgroups=("system.slice",)), True),
        (Audience(cgroups=("/system.slice",)), True),
        (Audience(cgroups=("/system.slice/php8.2-fpm.service/",)), True),
        (Audience(cgroups=("/system",)), False),
        (Audience(cgroups=("fpm.service",)), False),
        (Audience(cgroups=("/php8.2-fpm.service",)), False),
        (Audience(cgroups=("user.slice", "system.slice")), True),
        (Audience(marks=(7,)), True),
        (Audience(marks=(8,)), False),
        (Audience(percent=1, name="php-fpm8.2"), True),
        (Audience(percent=1, name="php-fpm"), False),
    ],
    ids=str,
)
def test_who_is_meant(audience: Audience, meant: bool) -> None:
    assert is_meant(audience, cast(Asker, Somebody())) is meant


def test_a_name_is_cut_as_the_kernel_cuts_it() -> None:
    somebody = cast(Asker, Somebody(name="a-very-long-nam"))
    assert is_meant(Audience(percent=1, name="a-very-long-name-indeed"), somebody)


# ---- how many


class Population:
    """Processes that come and go."""

    def __init__(self, percent: float, name: str) -> None:
        self.living: dict[Key, bool] = {}
        self.share = Share(percent, name, lambda key: key in self.living)
        self._next = 0

    def come(self) -> Key:
        self._next += 1
        key = (self._next, self._next)
        self.living[key] = False  # it lives before it asks
        self.living[key] = self.share.choose(key)
        return key

    @property
    def chosen(self) -> int:
        return sum(self.living.values())


@given(st.text(), st.integers(0, 64))
def test_a_quarter_of_64_is_16(name: str, extra: int) -> None:
    """Whoever has ended and been replaced meanwhile."""
    population = Population(25, name)
    for _ in range(64):
        population.come()
    assert population.chosen == 16
    before = dict(population.living)
    for key in list(before)[:extra]:
        del population.living[key]
        population.come()
        assert population.chosen == 16, "one has been replaced"
    assert all(population.living[key] == was for key, was in before.items() if key in population.living)
    for key in [key for key in population.living if key in before]:
        del population.living[key]
        population.come()
    assert population.chosen == 16, "all have been replaced"


@given(st.floats(0.1, 100), st.integers(1, 300), st.text())
def test_never_off_by_one(percent: float, count: int, name: str) -> None:
    population = Population(percent, name)
    for number in range(1, count + 1):
        population.come()
        assert abs(population.chosen - number * percent / 100) <= 1 + 1e-9


PATTERNS = ("worker-{}", "{}", "php-fpm\0{}", "{:032d}")
ONE_IN_A_THOUSAND = 10.83
"""A chi-square of one degree of freedom is larger once in a thousand times."""


@pytest.mark.parametrize("pattern", PATTERNS)
def test_of_many_names_as_many_as_asked_for(pattern: str) -> None:
    """6,000 sets of one process, of which 25 % are to be chosen; and that is so whatever the names are like, and
    whatever their position. The names are the same each time."""
    outcomes = _outcomes(25, pattern)
    assert _chi_square(outcomes, 0.25) < ONE_IN_A_THOUSAND
    for part in range(10):
        assert _chi_square(outcomes[part * 600 : (part + 1) * 600], 0.25) < ONE_IN_A_THOUSAND


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("percent", [22, 28])
def test_the_chi_square_would_notice(pattern: str, percent: float) -> None:
    assert _chi_square(_outcomes(percent, pattern), 0.25) > ONE_IN_A_THOUSAND


def _outcomes(percent: float, pattern: str) -> list[int]:
    """Whether the one process of each set is chosen."""
    populations = [Population(percent, pattern.format(number)) for number in range(6000)]
    for each in populations:
        each.come()
    return [each.chosen for each in populations]


def _chi_square(outcomes: list[int], probability: float) -> float:
    wanted = len(outcomes) * probability
    off = sum(outcomes) - wanted
    return off * off / wanted + off * off / (len(outcomes) - wanted)


# ---- decided once


@pytest.fixture
def ledger() -> Ledger:
    return new_ledger()


def canary_of(ledger: Ledger) -> Canary:
    return Canary(ledger.canary, ledger.decisions)


STAGE = Stage("1", Target("releases/42", "42"), Audience(users=(33,)))


def test_for_life_whatever_he_becomes(ledger: Ledger) -> None:
    first = canary_of(ledger)
    first.begin(STAGE)
    assert first.seen_by(os.getpid(), 33, 33) == STAGE.target
    assert first.seen_by(os.getpid(), 0, 0) == STAGE.target, "he is another user now"
    second = canary_of(Ledger(os.dup(ledger.fd)))
    second.restore()
    assert second.stage == STAGE
    assert second.seen_by(os.getpid(), 0, 0) == STAGE.target, "and there is another worker"
    assert second.chosen() == [os.getpid()]
    assert second.seen_by(os.getppid(), 0, 0) is None
    second.end()
    assert second.seen_by(os.getpid(), 33, 33) is None
    third = canary_of(Ledger(os.dup(ledger.fd)))
    third.restore()
    assert third.stage is None
    third.begin(STAGE)
    assert third.seen_by(os.getpid(), 0, 0) is None, "nothing is left of what was decided"


def test_a_worker_that_died_as_it_ended_one_leaves_nothing_to_the_next(ledger: Ledger) -> None:
    first = canary_of(ledger)
    first.begin(STAGE)
    assert first.seen_by(os.getpid(), 33, 33) == STAGE.target
    with mock.patch.object(ledger.decisions, "free", side_effect=InterruptedError), suppress(InterruptedError):
        first.end()
    second = canary_of(Ledger(os.dup(ledger.fd)))
    second.restore()
    assert second.stage is None
    second.begin(replace(STAGE, id="2", audience=Audience(users=(34,))))
    third = canary_of(Ledger(os.dup(ledger.fd)))
    third.restore()
    assert third.seen_by(os.getpid(), 33, 33) is None, "what was decided about the first canary is not the second's"
    third.check_invariants()


def test_a_reused_pid_is_somebody_else(ledger: Ledger) -> None:
    """Of a former process of our pid it was decided that it sees the canary."""
    first = canary_of(ledger)
    first.begin(STAGE)
    assert first.seen_by(os.getpid(), 33, 33) is not None
    start = start_of(os.getpid())
    assert start is not None
    ((number, record),) = list(ledger.decisions)
    ledger.decisions.free(number)
    ledger.decisions.put(record[:8] + (start - 1).to_bytes(8, "little") + record[16:])
    second = canary_of(Ledger(os.dup(ledger.fd)))
    second.restore()
    assert second.seen_by(os.getpid(), 0, 0) is None
    assert second.chosen() == []


def test_who_has_ended_is_forgotten(ledger: Ledger) -> None:
    canary = canary_of(ledger)
    canary.begin(STAGE)
    for _ in range(1200):
        with subprocess.Popen(["true"]) as process:
            canary.seen_by(process.pid, 33, 33)
    assert len(list(ledger.decisions)) < 1100
    canary.check_invariants()


def test_who_cannot_be_seen_sees_what_everybody_does(ledger: Ledger) -> None:
    canary = canary_of(ledger)
    canary.begin(STAGE)
    assert canary.seen_by(0, 33, 33) is None
