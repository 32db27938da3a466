"""What the journal means: the way back, bad marks, names with an @, and what was current when."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import replace
from datetime import datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sandbox import ACTOR

from relfs.errors import EXIT_REFUSED, EXIT_USAGE, RefusedError, UsageError
from relfs.history import History, resolve, rollback_target, ways_back_among
from relfs.journal import DONE, IMPORTED, RECOVERED, Event
from relfs.layout import Release

RELEASES = ["40", "41", "42", "43"]
FAILED = "failed: Input/output error"


def happened(*steps: str, start: float = 1_000.0) -> list[Event]:
    """Events from words: `42` is a switch to it, `<40` a rollback to it, `!41` a switch that failed. A minute apart."""
    events: list[Event] = []
    current: str | None = None
    for number, step in enumerate(steps):
        release = step.lstrip("<!")
        action = "rollback" if step.startswith("<") else "switch"
        outcome = FAILED if step.startswith("!") else DONE
        time = start + 60 * number
        events.append(Event(time, action, release, current, ACTOR, "web1", f"id-{number}", outcome))
        current = release if outcome == DONE else current
    return events


def rolled_back(history: History, usable: Iterable[str] = RELEASES) -> str:
    """Where a rollback goes now."""
    return rollback_target(history, history.path[-1], usable)


# ---- the way back -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("steps", "path", "bad"),
    [
        ("40", "40", ""),
        ("40 41 42", "40 41 42", ""),
        ("40 41 41 41", "40 41", ""),
        ("40 41 40", "40 41 40", ""),
        ("40 41 !42", "40 41", ""),
        ("40 41 42 <41", "40 41", "42"),
        ("40 41 42 <40", "40", "42"),
        ("40 41 42 <41 <40", "40", "41 42"),
        ("40 41 <40 42 <40", "40", "41 42"),
        ("40 41 <40 41", "40 41", ""),
        ("40 41 <41", "40 41", ""),
    ],
)
def test_the_path_and_the_bad(steps: str, path: str, bad: str) -> None:
    history = History(happened(*steps.split()))
    history.check_invariants()
    assert history.path == path.split()
    assert history.bad == set(bad.split())


@pytest.mark.parametrize(
    ("steps", "to"),
    [
        ("40 41 42", "41"),
        ("40 41 42 <41", "40"),
        ("40 41 <40 42", "40"),
        ("40 41 42 41", "42"),
        ("40 41 42 !43", "41"),
        ("40 41 40 42 <40", "41"),
    ],
)
def test_a_rollback_goes_further_back_and_not_forth(steps: str, to: str) -> None:
    assert rolled_back(History(happened(*steps.split()))) == to


def test_a_rollback_passes_over_what_is_gone() -> None:
    history = History(happened("40", "41", "42", "43"))
    assert rolled_back(history, usable=["40", "43"]) == "40"


@pytest.mark.parametrize("steps", ["40", "40 41 <40", "40 40", "!40 41"])
def test_nowhere_to_go_back_to(steps: str) -> None:
    history = History(happened(*steps.split()))
    with pytest.raises(RefusedError, match="no earlier release") as caught:
        rolled_back(history)
    assert caught.value.status == EXIT_REFUSED


def test_a_rollback_to_a_release_that_was_never_current() -> None:
    """It is good by decree; what came before the one that is left stays reachable."""
    history = History(happened("40", "41", "42", "<43"))
    history.check_invariants()
    assert history.path[-1] == "43"
    assert history.bad == {"42"}
    assert rolled_back(history) == "41"


steps = st.lists(st.tuples(st.sampled_from(["", "<", "!"]), st.sampled_from(RELEASES)).map("".join), max_size=20)


@given(steps)
def test_the_invariants_hold_after_any_history(words: list[str]) -> None:
    history = History()
    for event in happened(*words):
        history.add(event)
        history.check_invariants()
    succeeded = [word.lstrip("<") for word in words if not word.startswith("!")]
    assert history.path[-1:] == succeeded[-1:]


@given(steps)
def test_going_back_and_back_comes_to_an_end(words: list[str]) -> None:
    """Nothing is visited twice: every release that is left on the way is bad."""
    history = History(happened("40", *words))
    visited = [history.path[-1]]
    for number in itertools.count():
        try:
            to = rolled_back(history)
        except RefusedError:
            break
        history.add(Event(9e9, "rollback", to, visited[-1], ACTOR, "web1", f"back-{number}", DONE))
        visited.append(to)
    assert len(visited) == len(set(visited))


def test_the_previous_release() -> None:
    assert History().previous is None
    assert History(happened("40")).previous is None
    assert History(happened("40", "41", "42", "<41")).previous == "40"


# ---- what was current when ----------------------------------------------------------------------------------------


def test_what_was_current_when() -> None:
    history = History(happened("40", "41", "!43", "<40", start=1000.0))
    at = [history.at(moment) for moment in (999.9, 1000.0, 1059.9, 1060.0, 1179.9, 1180.0, 1e12)]
    assert at == [None, "40", "40", "41", "41", "40", "40"]


def test_nothing_was_current_before_the_first_record() -> None:
    assert History().at(0.0) is None


# ---- names with an @ ----------------------------------------------------------------------------------------------


def meaning(reference: str, *words: str) -> str:
    """What `reference` stands for after `words`."""
    history = History(happened(*words, start=datetime(2026, 9, 1, 12, 0).timestamp()))
    current = history.path[-1] if history.path else None
    return resolve(reference, history, current, [Release(name, 0.0) for name in RELEASES])


@pytest.mark.parametrize(
    ("reference", "release"),
    [
        ("40", "40"),
        ("no such", "no such"),
        ("@current", "40"),
        ("@previous", "41"),
        ("@latest", "43"),
        ("@last-good", "41"),
        ("@2026-09-01T12:00", "40"),
        ("@2026-09-01T12:01:30", "41"),
        ("@2026-09-01 12:02", "40"),
        ("@2026-09-01T13:00", "40"),
        ("@42", "42"),
    ],
)
def test_what_a_reference_stands_for(reference: str, release: str) -> None:
    assert meaning(reference, "40", "41", "40") == release


def test_a_moment_that_is_still_to_come_stands_for_nothing() -> None:
    """But where the clock was set back, what has happened is over."""
    history = History(happened("40", "41", start=1000.0))
    reference = f"@{datetime.fromtimestamp(1061).isoformat()}"
    assert resolve(reference, history, "41", [], now=lambda: 1061.0) == "41"
    with pytest.raises(RefusedError, match=r"is still to come, it is .* here") as caught:
        resolve(reference, history, "41", [], now=lambda: 1060.5)
    assert caught.value.status == EXIT_REFUSED
    latest = f"@{datetime.fromtimestamp(1060).isoformat()}"
    assert resolve(latest, history, "41", [], now=lambda: 500.0) == "41"


def test_a_time_with_a_zone() -> None:
    zoned = datetime(2026, 9, 1, 12, 1, 30).astimezone().isoformat()
    assert meaning(f"@{zoned}", "40", "41") == "41"


def test_a_releases_own_name_comes_before_a_moment_and_after_a_word() -> None:
    history = History(happened("40", "41"))
    releases = [Release(name, 0.0) for name in ("20260901", "current")]
    assert resolve("@20260901", history, "41", releases) == "20260901"
    assert resolve("@20260902", history, "41", releases) == "41"
    assert resolve("@current", history, "41", releases) == "41"


@pytest.mark.parametrize("reference", ["@current", "@previous", "@last-good", "@2026-08-31", "@2026-09-01T11:59"])
def test_a_reference_that_stands_for_nothing_now(reference: str) -> None:
    with pytest.raises(RefusedError) as caught:
        meaning(reference)
    assert caught.value.status == EXIT_REFUSED


@pytest.mark.parametrize("reference", ["@", "@next", "@99", "@2026-13-01", "@0001-01-01", "@Current", "@\0"])
def test_a_reference_that_nobody_knows(reference: str) -> None:
    with pytest.raises(UsageError, match="@last-good") as caught:
        meaning(reference, "40", "41")
    assert caught.value.status == EXIT_USAGE


def test_who_looks_while_something_is_rolled_back_sees_the_path_before_it_or_after() -> None:
    """Another thread may hold the list that it has read: nothing is taken out of that."""
    history = History(happened("40", "41", "42"))
    read = history.path
    *_, back = happened("40", "41", "42", "<40")
    history.add(back)
    assert read == ["40", "41", "42"]
    assert history.path == ["40"]


# ---- requests, and size -------------------------------------------------------------------------------------------


def test_a_request_is_found_by_its_id() -> None:
    events = happened("40", "!41")
    history = History(events)
    assert [history.find(event.id) for event in events] == events
    assert history.find("id-2") is None


def test_what_a_crash_left_open_counts_once_it_is_recovered() -> None:
    event = Event(1.0, "switch", "41", "40", ACTOR, "web1", "id", RECOVERED)
    assert History([event]).path == ["41"]


@pytest.mark.parametrize("action", ["withdraw", "confirm", "anything new"])
def test_other_actions_change_nothing(action: str) -> None:
    history = History([*happened("40"), Event(2000.0, action, "41", "40", ACTOR, "web1", "id", DONE)])
    assert (history.path, history.at(3000.0)) == (["40"], "40")


def test_the_size_is_bounded() -> None:
    """Whatever is deployed, and rolled back, for years."""

    def years() -> Iterable[Event]:
        for number in range(11_000):
            yield from happened("good", f"bad-{number}", "<good")
        yield from happened(*map(str, range(11_000)), start=1e6)
        yield from happened(*["!41"] * 5_000, start=1e7)

    history = History(years())
    history.check_invariants()
    sizes = {name: len(value) for name, value in vars(history).items() if hasattr(value, "__len__")}
    assert set(sizes) >= {"activations", "path", "bad"}
    assert max(sizes.values()) <= 10_000, sizes
    assert history.path[-1] == history.at(1e8) == "10999"
    assert history.find("id-4999") is not None


# ---- what others recorded -----------------------------------------------------------------------------------------


def test_what_was_imported_counts() -> None:
    history = History(replace(event, outcome=IMPORTED) for event in happened("40", "41", "42", "<41"))
    assert (history.path, history.bad) == (["40", "41"], {"42"})
    assert history.at(1_070.0) == "41"


def test_when_relfs_was_there_itself() -> None:
    events = happened("40", "41", "!42", "42")
    assert History().witnessed is None
    assert History(replace(event, outcome=IMPORTED) for event in events).witnessed is None
    assert History(events[:3]).witnessed == events[2].time, "a failure, too, it has seen"
    assert History([*events, replace(events[0], outcome=IMPORTED)]).witnessed == events[3].time


def test_every_way_back_once() -> None:
    history = History(happened("40", "41", "40", "42", "<40", "43"))
    assert list(ways_back_among(history, "43", RELEASES)) == ["40", "41"]
    assert list(ways_back_among(history, "43", ["41"])) == ["41"]


def test_the_last_good_one_is_good_in_every_respect() -> None:
    history = History(happened("40", "41", "42"))
    releases = [Release(name, 0.0) for name in RELEASES]
    assert resolve("@last-good", history, "42", releases) == "41"
    assert resolve("@last-good", history, "42", releases, lambda name: name != "41") == "40"
