"""contrib/soak can see what it promises to look for: every kind of broken promise is shown to it, and it says so.

The readers and the writers of the soak are run where their promises are broken indeed, on plain directories; the judge
is given evidence of what they would tell otherwise. That relfs keeps its promises is for test_survival.py.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import pytest
from mounting import wait_for
from soak import evidence, judge
from soak.actors.appender import line
from soak.cast import Cast, compile_reader, python_actor
from soak.chaos import KINDS, plan
from soak.evidence import Run, Span, Switch, Told
from soak.vitals import Vitals, judge_growth

_SOAK = Path(__file__).resolve().parent.parent / "contrib/soak"


@pytest.fixture
def cast(tmp_path: Path) -> Iterator[Cast]:
    with Cast(tmp_path) as made:
        yield made


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> str:
    return compile_reader(tmp_path_factory.mktemp("reader") / "reader")


# ---- reads ---------------------------------------------------------------------------------------------------------

_SWITCHES = (Switch("2", "x", Span(10.0, 11.0)), Switch("3", "x", Span(20.0, 21.0)))


def _seen(release: str, first: Span, last: Span | None = None) -> Told:
    return Told("reader", runs=[Run(release, first, last or first, 1)], ended=True)


@pytest.mark.parametrize(
    "told",
    [
        _seen("1", Span(0.0, 1.0)),
        _seen("1", Span(0.0, 0.1), Span(11.0, 11.5)),  # both ends of a switch are within its question and answer
        _seen("2", Span(9.0, 10.0), Span(21.0, 22.0)),
        _seen("1", Span(1.0, 30.0)),  # a read that takes long may show anything that was current meanwhile
        _seen("3", Span(1.0, 30.0)),
        _seen("3", Span(20.5, 20.6)),
    ],
)
def test_a_read_may_show_what_was_current_meanwhile(told: Told) -> None:
    assert judge.judge_reads([told], "1", _SWITCHES).kept


@pytest.mark.parametrize(
    "told",
    [
        _seen("2", Span(1.0, 2.0)),  # before it was asked for
        _seen("1", Span(11.1, 11.2)),  # after the next was answered
        _seen("1", Span(1.0, 2.0), Span(12.0, 13.0)),  # from time to time, also
        _seen("2", Span(9.0, 9.9), Span(15.0, 15.1)),  # the first too early
        _seen("4", Span(15.0, 16.0)),  # never current
        _seen("", Span(15.0, 16.0)),  # an empty page
    ],
)
def test_a_read_that_shows_something_else_is_found(told: Told) -> None:
    assert not judge.judge_reads([told], "1", _SWITCHES).kept


def test_a_reader_that_misses_a_release_and_sees_the_old_one_again_is_found() -> None:
    """It saw 1 all the time, and each of its ends is in one of the times of 1."""
    switches = (*_SWITCHES, Switch("1", "x", Span(30.0, 31.0)))
    told = _seen("1", Span(1.0, 2.0), Span(40.0, 41.0))
    assert not judge.judge_reads([told], "1", switches).kept


_VIEWS = {"reader": "7"}


def test_who_has_a_view_may_see_it_whatever_is_current() -> None:
    assert judge.judge_views([_seen("7", Span(1.0, 2.0), Span(30.0, 31.0))], _VIEWS).kept


@pytest.mark.parametrize("seen", ["1", "70", ""])
def test_who_sees_something_else_than_his_view_is_found(seen: str) -> None:
    """Once, and amid reads that are right."""
    told = Told("reader", runs=[Run(each, Span(1.0, 2.0), Span(1.0, 2.0), 1) for each in ("7", seen, "7")])
    wrong = judge.judge_views([told], _VIEWS).wrong
    assert wrong == (f"reader: 1 reads saw {seen or 'nothing'} instead of 7",)


def test_the_reader_sees_the_gap_of_a_plain_directory(app: Path, cast: Cast, reader: str) -> None:
    cast.start("reader", [reader, str(app / "current/index.html"), "0"])
    (app / "current").unlink()
    wait_for(lambda: cast.told("reader").failures, "it noticed")
    (app / "current").symlink_to("releases/41")
    cast.end("reader")
    told = cast.told("reader")
    assert told.ended
    assert {failure.error for failure in told.failures} == {"ENOENT"}
    assert told.runs[0].release == "40"
    assert not judge.judge_calls([told]).kept
    assert sum(told.latency.values()) == sum(run.reads for run in told.runs) + len(told.failures)


def test_what_was_cut_off_is_no_evidence(cast: Cast, app: Path, reader: str) -> None:
    """An actor that is killed has not told what it saw at last; a line that it did not end is none."""
    cast.start("reader", [reader, str(app / "current/index.html"), "0"])
    told = cast.told("reader")
    assert not judge.judge_ends([told]).kept
    assert evidence.read("reader", ['{"failed": "EIO", "at": [1.0, ']).failures == []


# ---- appends -------------------------------------------------------------------------------------------------------


def _appended(*numbers: int) -> bytes:
    return b"".join(line(number) for number in numbers)


def test_appends_that_are_all_there_once() -> None:
    assert judge.judge_appends(_appended(*range(30)), 30).kept
    assert judge.judge_appends(b"", 0).kept


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (_appended(0, 1, 1, 2), "1 is there after 1"),
        (_appended(0, 1, 2, 1), "1 is there after 2"),
        (_appended(0, 2), "1 is lost"),
        (_appended(0, 1), "2 is lost"),
        (_appended(0, 1, 2, 3), "3 was never appended"),
        (_appended(0, 1, 2)[:-1], "line 3 is torn"),
        (_appended(0, 1).replace(b"x\n", b"\n", 1) + _appended(2), "line 1 is torn"),
        (_appended(0)[:1] + _appended(0, 1, 2), "line 1 is torn"),
    ],
)
def test_appends_that_are_lost_doubled_or_torn_are_found(content: bytes, found: str) -> None:
    assert found in judge.judge_appends(content, 3).wrong


def test_the_appender_tells_how_much_it_appended(tmp_path: Path, cast: Cast) -> None:
    file = tmp_path / "appended"
    cast.start("appender", python_actor("appender", str(file)))
    wait_for(lambda: file.read_bytes().count(b"\n") > 100, "lines are appended")
    cast.end("appender")
    appended = cast.told("appender").counts["append"]
    content = file.read_bytes()
    assert judge.judge_appends(content, appended).kept
    assert not judge.judge_appends(content + line(appended - 1), appended).kept


# ---- the other calls -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("work", ["rename", "directories", "files"])
def test_the_shuffler_notices_what_is_done_twice(tmp_path: Path, cast: Cast, work: str) -> None:
    """Somebody does in its place, all the time, what it is about to do."""
    cast.start(work, python_actor("shuffler", work, str(tmp_path)))
    assert cast.told(work).failures == []
    names = [tmp_path / f"shuffled-{name}" for name in ("one", "outer", "file")]

    def disturbed() -> bool:
        for name in names:
            shutil.rmtree(name, ignore_errors=True)
            with contextlib.suppress(FileNotFoundError, IsADirectoryError):  # it may have made it again in between
                name.unlink()
        return bool(cast.told(work).failures)

    wait_for(disturbed, "it failed")
    cast.end(work)
    assert not judge.judge_calls([cast.told(work)]).kept


# ---- switches ------------------------------------------------------------------------------------------------------


def test_switches_that_are_all_there_once() -> None:
    assert judge.judge_switches(_SWITCHES, ["2", "3"], "3", "3").kept
    assert judge.judge_switches((), [], "1", "1").kept


@pytest.mark.parametrize(
    ("journal", "shown", "real"),
    [
        (["2"], "3", "3"),
        (["3"], "3", "3"),
        (["2", "2", "3"], "3", "3"),
        (["2", "3", "3"], "3", "3"),
        (["3", "2"], "3", "3"),
        (["2", "3"], "2", "3"),
        (["2", "3"], "3", "2"),
    ],
)
def test_switches_that_are_lost_or_doubled_are_found(journal: list[str], shown: str, real: str) -> None:
    assert not judge.judge_switches(_SWITCHES, journal, shown, real).kept


# ---- the rest ------------------------------------------------------------------------------------------------------


def test_what_grows_is_found() -> None:
    before = Vitals(
        processes=4, zombies=0, pss_mb=50.0, shared_mb=20.0, descriptors=60, threads=9, idle_threads=2, mounts=4
    )  # fmt: skip
    assert judge_growth(before, before).kept
    for what in ("processes", "zombies", "pss_mb", "shared_mb", "descriptors", "threads", "mounts"):
        after = Vitals(**{**vars(before), what: getattr(before, what) * 2 + 1})
        assert judge_growth(before, after).wrong[0].startswith(what)


def test_an_error_in_the_log_is_found() -> None:
    day = "2026-11-28 08:43:58,400"
    assert judge.judge_log([f"{day} WARNING relfs: the worker was killed", f"{day} INFO relfs: ERROR is no level"]).kept
    assert not judge.judge_log([f"{day} ERROR relfs: no"]).kept
    assert not judge.judge_log(["Traceback (most recent call last):"]).kept


def test_latency() -> None:
    told = [Told("a", latency={0.001: 98, 0.01: 1}), Told("b", latency={0.5: 1})]
    found = judge.latency_of(told)
    assert (found.reads, found.p50, found.p99, found.worst) == (100, 0.001, 0.01, 0.5)


def test_the_plan_is_what_was_promised() -> None:
    blows = plan(600, seed=7)
    assert Counter(blow.kind for blow in blows) == {
        "worker": 200, "supervisor": 50, "standby": 50, "two": 20, "stop-worker": 20, "stop-supervisor": 20,
        "reload": 50,
    }  # fmt: skip
    assert blows == plan(600, seed=7) != plan(600, seed=8)
    assert all(0 <= one.at <= other.at <= 600 for one, other in pairwise(blows))
    assert {blow.kind for blow in plan(1, seed=7)} == set(KINDS)
    assert "two" not in {blow.kind for blow in plan(600, 7, without=["two"])}


@contextmanager
def _soaking(place: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [_SOAK, "--quiet", "--json", "--directory", place, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "RELFS_VENV": sys.prefix},
    )
    try:
        yield process
    finally:
        process.terminate()
        process.communicate(timeout=60)


def test_a_short_soak(tmp_path: Path) -> None:
    """The command itself: it keeps every promise for some seconds, and leaves nothing behind."""
    with _soaking(tmp_path, "--seconds", "12") as process:
        out, err = process.communicate(timeout=600)
    assert (process.returncode, err) == (0, ""), out
    outcome = json.loads(out)
    assert outcome["kept"] is True
    assert set(outcome["blows"]) == set(KINDS)
    assert outcome["reads"]["reads"] > 1000
    assert outcome["switches"] > 0
    assert any("pinned" in verdict["promise"] for verdict in outcome["verdicts"])
    assert all(outcome["calls"][call] > 0 for call in ("append", "rename", "mkdir", "rmdir", "create", "unlink"))
    assert list(tmp_path.iterdir()) == []


def test_one_line_where_it_cannot_begin(tmp_path: Path) -> None:
    with _soaking(tmp_path / "missing") as process:
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (2, "")
    assert len(err.splitlines()) == 1
    assert "missing" in err
