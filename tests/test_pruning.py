"""Which releases go, and why: decided without a disk. And in which order relfs knows them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relfs.errors import UsageError
from relfs.journal import Actor, Event
from relfs.releases.inventory import arrange
from relfs.releases.pruning import (
    Decision,
    Item,
    Policy,
    Standing,
    decide,
    limited,
    parse_prune,
    parse_size,
    parse_span,
    show_size,
    show_span,
)
from relfs.releases.registry import Record, State

DAY = 86400.0
NOW = 1000 * DAY


def item(name: str, days: float | None = 1.0, standing: Standing = "finished", size: int = 0) -> Item:
    note = {"finished": "", "bad": "marked bad", "unfinished": "it was never finished"}[standing]
    return Item(name, None if days is None else NOW - days * DAY, standing, note, size)


def going(items: list[Item], policy: Policy, protected: dict[str, str] | None = None) -> list[str]:
    return [each.name for each in decide(items, policy, protected or {}, now=NOW) if not each.keep]


def why(items: list[Item], policy: Policy, protected: dict[str, str] | None = None) -> dict[str, str]:
    return {each.name: each.why for each in decide(items, policy, protected or {}, now=NOW)}


# ---- slots


def test_the_newest_stay() -> None:
    items = [item(name) for name in "abcde"]
    assert going(items, Policy(keep=2)) == ["a", "b", "c"]
    assert why(items, Policy(keep=2))["c"] == "2 finished ones are newer"


def test_failed_releases_take_no_slot() -> None:
    """Three failed deployments in a row, and Capistrano's `keep_releases 3` has removed all that was good."""
    items = [item("a"), item("b"), item("c"), *(item(name, standing="unfinished") for name in "def")]
    assert going(items, Policy(keep=3)) == []
    items = [item("a"), item("b"), *(item(name, standing="unfinished") for name in "def"), item("g")]
    assert going(items, Policy(keep=3)) == ["d", "e", "f"]


def test_bad_releases_take_no_slot_and_go_with_their_neighbours() -> None:
    items = [item("a", standing="bad"), item("b"), item("c"), item("d", standing="bad")]
    assert going(items, Policy(keep=2)) == ["a"]
    assert why(items, Policy(keep=2))["d"] == "marked bad, but recent"


def test_what_may_still_be_made_stays() -> None:
    items = [item("a", standing="unfinished"), item("b"), item("c", standing="unfinished")]
    assert going(items, Policy(keep=5)) == ["a"]
    assert "may still be made" in why(items, Policy(keep=5))["c"]


def test_protected_ones_stay_and_take_their_slots() -> None:
    items = [item(name) for name in "abcde"]
    protected = {"e": "current", "a": "the last good one"}
    assert going(items, Policy(keep=2), protected) == ["b", "c"]
    assert why(items, Policy(keep=2), protected)["a"] == "the last good one"


def test_an_unfinished_one_that_is_protected_stays() -> None:
    items = [item("a", standing="unfinished"), item("b")]
    assert going(items, Policy(keep=1), {"a": "in use by process 1"}) == []


# ---- age and size


def test_age() -> None:
    items = [item("a", 30), item("b", 11), item("c", 10), item("d", 1)]
    assert going(items, Policy(keep=None, age=10 * DAY)) == ["a", "b"]
    assert why(items, Policy(keep=None, age=10 * DAY))["a"] == "older than 10d"


def test_budget() -> None:
    """What does not fit goes, and with it all that is older, however small."""
    items = [item("a", size=1), item("b", size=50), item("c", size=40), item("d", size=40)]
    assert going(items, Policy(keep=None, budget=100)) == ["a", "b"]
    assert why(items, Policy(keep=None, budget=100))["b"] == "it and the newer ones take more than 100 bytes"


def test_a_budget_is_first_of_all_for_what_must_stay() -> None:
    items = [item("a", size=60), item("b", size=50), item("c", size=40)]
    assert going(items, Policy(keep=None, budget=100), {"a": "current"}) == ["b"]
    assert going(items, Policy(keep=None, budget=10), {"a": "current"}) == ["b", "c"]


def test_each_limit_holds() -> None:
    items = [item("a", 5), item("b", 4), item("c", 3), item("d", 2)]
    assert going(items, Policy(keep=3, age=2.5 * DAY)) == ["a", "b", "c"]
    assert going(items, Policy(keep=1, age=100 * DAY)) == ["a", "b", "c"]


# ---- what relfs does not know


def test_unknown_ones_stay_and_are_told_of() -> None:
    items = [item("odd", None), item("odder", None, "unfinished"), item("a"), item("b")]
    assert going(items, Policy(keep=1)) == ["a"]
    assert "--unknown" in why(items, Policy(keep=1))["odd"]


def test_unknown_ones_are_the_oldest_on_request() -> None:
    items = [item("odd", None), item("odder", None), item("odder still", None, "unfinished"), item("a"), item("b")]
    assert going(items, Policy(keep=3, unknown=True)) == ["odd", "odder still"]
    assert going(items, Policy(keep=None, age=1.0, unknown=True)) == ["odder still", "a", "b"], "of unknown age"


ITEMS = st.lists(
    st.builds(
        item,
        st.text("abcdefghij", min_size=3, max_size=6),
        st.one_of(st.none(), st.floats(0, 100)),
        st.sampled_from(("finished", "bad", "unfinished")),
        st.integers(0, 100),
    ),
    unique_by=lambda each: each.name,
    max_size=12,
)
POLICIES = st.builds(
    Policy, st.one_of(st.none(), st.integers(1, 5)), st.one_of(st.none(), st.floats(0, 100 * DAY)),
    st.one_of(st.none(), st.integers(0, 500)), st.booleans(),
)  # fmt: skip


@given(ITEMS, POLICIES, st.data())
def test_whatever_the_policy(items: list[Item], policy: Policy, data: st.DataObject) -> None:
    """Each has one decision, in order; what is protected stays; asked again about what is left, no more goes."""
    chosen = data.draw(st.sets(st.sampled_from([each.name for each in items]))) if items else set()
    protected = dict.fromkeys(sorted(chosen), "protected")
    decisions = decide(items, policy, protected, now=NOW)
    assert [each.name for each in decisions] == [each.name for each in items]
    assert all(each.why for each in decisions)
    gone = {each.name for each in decisions if not each.keep}
    assert not gone & chosen
    known = {each.name for each in items if each.since is not None}
    assert policy.unknown or gone <= known
    left = [each for each in items if each.name not in gone]
    assert decide(left, policy, protected, now=NOW) == [each for each in decisions if each.keep]
    if policy.keep is not None:
        kept = [each.name for each in left if each.standing == "finished" and each.name not in chosen]
        assert policy.unknown is False or len(kept) <= policy.keep


def test_a_decision_is_of_one_release() -> None:
    assert decide([item("a")], Policy(keep=1), {}, now=NOW) == [Decision("a", True, "within the limits")]


# ---- spans, sizes, configuration


@pytest.mark.parametrize(
    ("text", "seconds"), [("90d", 90 * DAY), ("12h", 43200), ("30m", 1800), ("2w", 14 * DAY), ("1.5h", 5400), ("7s", 7)]
)
def test_spans(text: str, seconds: float) -> None:
    assert parse_span(text) == seconds
    assert parse_span(show_span(seconds)) == seconds


@pytest.mark.parametrize("text", ["", "90", "d", "-1d", "1y", "1d2h", "1e9d", "\u0661d"])
def test_what_is_no_span(text: str) -> None:
    with pytest.raises(UsageError, match="90d"):
        parse_span(text)


@pytest.mark.parametrize(
    ("text", "count"),
    [("1000", 1000), ("20G", 20 << 30), ("500M", 500 << 20), ("1T", 1 << 40), ("2k", 2048), ("1GiB", 1 << 30)],
)
def test_sizes(text: str, count: int) -> None:
    assert parse_size(text) == count
    assert parse_size(show_size(count).removesuffix(" bytes")) == count


@pytest.mark.parametrize("text", ["", "G", "-1G", "1X", "1 2", "20 G!"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(UsageError, match="20G"):
        parse_size(text)


def test_configuration() -> None:
    assert parse_prune({}) == Policy(keep=5)
    assert parse_prune({"keep": 3, "unseen": True}) == Policy(keep=3, unseen=True)
    assert parse_prune({"age": "90d"}) == Policy(keep=None, age=90 * DAY), "the usual limit is for want of others"
    assert parse_prune({"budget": 1000}) == Policy(keep=None, budget=1000)
    assert limited(None, None, None) == Policy()


@pytest.mark.parametrize(
    "section", [{"keep": 0}, {"keep": True}, {"keep": "5"}, {"age": 5}, {"budget": []}, {"unseen": 1}]
)
def test_configuration_mistakes(section: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="prune"):
        parse_prune(section)


# ---- the order in which relfs knows releases


def record(sequence: int, name: str, time: float, state: State = "finished") -> Record:
    return Record(sequence, name, state, time, "", "")


def event(action: str, release: str, time: float, outcome: str = "done") -> Event:
    return Event(time, action, release, None, Actor(0, "root", 1, ""), "host", f"{action} {release} {time}", outcome)


def order(known: list[Record], events: list[Event], logged: dict[str, float] | None = None) -> list[str]:
    places = arrange(known, events, logged or {})
    return sorted(places, key=lambda name: places[name])


def test_the_registrys_order_is_that_of_its_numbers() -> None:
    """What was noted late, because it was finished late, is no younger for it."""
    assert order([record(1, "b", 9), record(2, "a", 3), record(3, "c", 9)], []) == ["b", "a", "c"]


def test_the_first_activation_counts_in_the_journal() -> None:
    events = [event("switch", "2", 1), event("switch", "1", 2), event("rollback", "2", 3), event("switch", "3", 0.5)]
    assert order([], events) == ["2", "1", "3"], "a clock that was set back makes nothing older"
    assert order([], [event("switch", "1", 1, "failed: no"), event("switch", "2", 2)]) == ["2"]


def test_all_together() -> None:
    events = [event("adopt", "x", 5), event("switch", "b", 20)]
    known = [record(1, "a", 10), record(2, "b", 15)]
    assert order(known, events, {"dep": 12.0, "x": 1.0}) == ["x", "a", "dep", "b"]


def test_what_was_removed_and_is_there_again_is_known_anew() -> None:
    events = [event("switch", "1", 1), event("switch", "2", 2), event("prune", "1", 3), event("switch", "1", 4)]
    assert order([], events) == ["2", "1"]
    assert order([record(1, "1", 9, "removed")], [event("switch", "1", 1), event("prune", "1", 3)]) == []
