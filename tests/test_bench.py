"""contrib/bench: the benchmarks run, report every row, and leave nothing behind. What they measure is not tested.

They start as they do for everybody, by the wrapper, but with the relfs that is being tested ($RELFS_VENV).
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from mounting import wait_for

from relfs.mountinfo import mounts

_BENCH = Path(__file__).resolve().parent.parent / "contrib/bench"
_SMALL = ("--rounds", "1", "--calls", "3", "--megabytes", "1", "--files", "50")
_PATIENCE = 300
_FEW_FILES = ("setpriv", "--bounding-set=-sys_resource", "prlimit", "--nofile=300:300")
"""Runs a command that may have no more files open, and may not raise that limit (capabilities(7))."""
_PLACES = ["plain", "binds", "top level", "no-bind", "thinnest", "bindfs"]
_CALLS = {
    "create+write+close", "open+read+close", "stat, first time", "stat, again", "stat, no such name",
    "readdir, an entry", "rename", "unlink", "symlink", "readlink", "mkdir", "rmdir", "random read of 4 KiB",
}  # fmt: skip
_TRANSFERS = {"write", "read, first time", "read, again"}


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Where a benchmark works, and nobody else does."""
    path = tmp_path / "bench"
    path.mkdir()
    return path


def _start(name: str, *arguments: str | Path, within: Sequence[str] = ()) -> subprocess.Popen[str]:
    """`within`: a command that runs another."""
    return subprocess.Popen(
        [*within, _BENCH / name, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "RELFS_VENV": sys.prefix},
    )


def _run(name: str, *arguments: str | Path, within: Sequence[str] = ()) -> subprocess.CompletedProcess[str]:
    process = _start(name, *arguments, within=within)
    out, err = process.communicate(timeout=_PATIENCE)
    return subprocess.CompletedProcess(name, process.returncode, out, err)


def _mounted(place: Path) -> set[str]:
    return {Path(mount.target).name for mount in mounts() if mount.target.startswith(f"{place}/")}


def _is_clean(place: Path) -> bool:
    return not list(place.iterdir()) and not _mounted(place)


def _report(place: Path, name: str, *arguments: str, within: Sequence[str] = ()) -> dict[str, Any]:
    done = _run(name, "--json", "--directory", place, *arguments, within=within)
    assert done.returncode == 0, done.stderr
    assert _is_clean(place)
    report: dict[str, Any] = json.loads(done.stdout)
    return report


# ---- passthrough -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small_report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return _report(tmp_path_factory.mktemp("small"), "passthrough", *_SMALL)


def test_passthrough_reports_every_call_at_every_place(small_report: dict[str, Any]) -> None:
    assert {row["call"] for row in small_report["rows"] if row["unit"] == "us"} == _CALLS
    assert {row["call"] for row in small_report["rows"] if row["unit"] == "MB/s"} == _TRANSFERS
    for row in small_report["rows"]:
        assert [figure["place"] for figure in row["figures"]] == _PLACES
        assert all(figure["least"] > 0 and figure["median"] > 0 for figure in row["figures"])
        assert [ratio["to"] for ratio in row["ratios"]] == ["thinnest", "bindfs"]


def test_passthrough_judges_unpacking_and_nothing_else(small_report: dict[str, Any]) -> None:
    assert [row["how"] for row in small_report["unpacking"]] == ["from within", "by full path"]
    for row in small_report["unpacking"]:
        assert row["limit"] == 1.05
        assert row["rounds"] == 2
        quiet = 1 / 1.05 <= row["ratio_again"] <= 1.05
        assert row["ok"] is (row["ratio"] <= 1.05 if quiet else None)
    assert [each["place"] for each in small_report["served"]] == ["no-bind", "thinnest", "bindfs"]
    assert all(each["seconds"] > 0 and each["failure"] is None for each in small_report["served"])


def test_passthrough_prints_a_line_a_row(place: Path) -> None:
    done = _run("passthrough", "--directory", place, *_SMALL)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    for title in (*_CALLS, *_TRANSFERS, "by full path"):
        assert len([line for line in lines if line.startswith(f"{title}  ")]) == 1, title
    assert len([line for line in lines if "limit 1.05" in line]) == 2


def test_passthrough_reports_what_the_others_cannot_do(place: Path) -> None:
    """The archive does not fit into the limit of open files, and the thinnest needs one for every file."""
    many = (*_SMALL[:-1], "320")
    report = _report(place, "passthrough", *many, within=_FEW_FILES)
    served = {each["place"]: each for each in report["served"]}
    assert served["thinnest"]["seconds"] is None
    assert "Too many open files" in served["thinnest"]["failure"]
    assert served["no-bind"]["seconds"] > 0
    assert served["bindfs"]["seconds"] > 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_passthrough_takes_its_mounts_away_when_it_is_told_to_end(place: Path, number: signal.Signals) -> None:
    process = _start("passthrough", "--directory", place, "--rounds", "1000")
    try:
        wait_for(lambda: len(_mounted(place)) >= 4 or process.poll() is not None, "it mounts", _PATIENCE)
        process.send_signal(number)
        process.communicate(timeout=_PATIENCE)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 128 + number
    assert _is_clean(place)


# ---- prune -------------------------------------------------------------------------------------------------


def test_prune_reports_each_way_of_removing(place: Path) -> None:
    report = _report(place, "prune", "--files", "150", "--seconds", "1")
    assert [row["how"] for row in report["rows"]] == ["nothing", "rm -rf", "relfsctl prune"]
    for row in report["rows"]:
        assert 0 < row["gone"] <= row["seconds"]
        assert all(row[what]["median"] <= row[what]["p99"] <= row[what]["most"] for what in ("read", "flush"))
    assert all(ratio > 0 for ratio in report["ratios"].values())


@pytest.mark.parametrize("benchmark", ["add", "passthrough", "prune", "resolve", "views"])
def test_a_directory_that_is_not_there_is_one_clear_line(place: Path, benchmark: str) -> None:
    done = _run(benchmark, "--directory", place / "missing")
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith(f"contrib/bench/{benchmark}: ")
    assert len(done.stderr.splitlines()) == 1
    assert str(place / "missing") in done.stderr


@pytest.mark.parametrize("benchmark", ["add", "passthrough", "resolve", "views"])
def test_no_rounds_at_all_is_wrong_usage(place: Path, benchmark: str) -> None:
    done = _run(benchmark, "--directory", place, "--rounds", "0")
    assert done.returncode == 2
    assert "--rounds: must be at least 1" in done.stderr
    assert _is_clean(place)


# ---- resolve -----------------------------------------------------------------------------------------------


def test_resolve_reports_resolution_switch_and_memory(place: Path) -> None:
    report = _report(place, "resolve", "--rounds", "1")
    assert [row["call"] for row in report["resolution"]] == ["stat", "open+read+close"]
    assert report["switch"]["medians"]["switch"] > 0
    assert report["memory"]["processes"]


# ---- add


@pytest.mark.parametrize("on", [(), ("--on", "ext4"), ("--on", "xfs")], ids=["there", "ext4", "xfs"])
def test_add_reports_every_tool_in_both_cases(place: Path, on: Sequence[str]) -> None:
    report = _report(place, "add", "--rounds", "1", "--files", "400", *on)
    assert report["files"] > 400, "and links"
    assert not on or report["file_system"] in (on[1], "ext2/ext3"), "as stat(1) calls it"
    first = ["relfs", "rsync", "cp", "tar"]
    rows = [("first time", tool) for tool in first] + [("1 % changed", tool) for tool in ("relfs --link", *first)]
    assert [(row["case"], row["tool"]) for row in report["rows"]] == rows
    for row in report["rows"]:
        assert 0 < row["least"] <= row["median"]
        assert row["flushed_least"] >= row["least"]
    judged = {(row["case"], row["tool"]): row["ok"] is (row["ratio"] <= 1.0) for row in report["rows"] if row["limit"]}
    assert judged == {("first time", "relfs"): True, ("1 % changed", "relfs --link"): True}


# ---- views


def test_views_reports_everybody_that_sees_something_else(open_place: Path) -> None:
    """Ordinary users among them."""
    report = _report(open_place, "views", "--rounds", "1", "--calls", "3", "--pins", "3")
    assert [row["who"] for row in report["lookups"]] == [
        "the cheapest", "not pinned", "pinned", "pinned, a user", "with a canary", "with a canary, a user",
    ]  # fmt: skip
    assert all(0 < row["least"] <= row["median"] for row in report["lookups"])
    assert (report["unused"]["calls"], report["unused"]["asked"]) == (3, 0)
    assert (report["alternating"]["lookups"], report["alternating"]["readlinks"]) == (2, 0)
    assert 0 < report["alternating"]["least"] <= report["alternating"]["median"]
    assert report["many"]["pins"] == 3
    assert report["many"]["lookup_us"] > 0
