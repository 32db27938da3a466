"""Measures what relfs costs, beside what the same costs without it, in the same run and on the same disk.

Run through contrib/bench/resolve, by the Python of the virtual environment that holds relfs. It makes two
deploy paths alike, mounts relfs over one, and takes turns between them. Every figure is reported with the
limit that the project has set, and `ok` or `over`. One that is over is no failure; only what broke is one.

For system calls the verdict compares the least of each, because the machine's other work can only add; for whole
processes, which hardly ever run undisturbed, the medians.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from common import (
    BIN,
    compile_timer,
    make_deploy_path,
    option_parser,
    positive,
    run,
    run_benchmark,
    scratch_directory,
    verdict,
)

STAT_LIMIT = 1.35
READ_LIMIT = 1.25
SWITCH_LIMIT = 6.0
MEMORY_LIMIT_MB = 60.0

ROUNDS_OF_CALLS = 10
CALLS = 2000


@dataclass(frozen=True)
class Resolution:
    """Nanoseconds a call, through a real symbolic link and through relfs."""

    call: str
    symlink_min: float
    relfs_min: float
    symlink_median: float
    relfs_median: float
    ratio_min: float
    ratio_median: float
    limit: float
    ok: bool


@dataclass(frozen=True)
class Times:
    """Milliseconds: whole processes, `relfsctl switch` and `python -c pass`, and one fsync(2) on the same disk.
    The ratio is of the two processes, the fsync taken off the switch."""

    switch: float
    python: float
    fsync: float
    ratio: float


@dataclass(frozen=True)
class Switch:
    least: Times
    medians: Times
    limit: float
    ok: bool


@dataclass(frozen=True)
class Resident:
    """One process. `pss_mb` divides a page among those that share it; None where the kernel does not say."""

    pid: int
    command: str
    rss_mb: float
    pss_mb: float | None


@dataclass(frozen=True)
class Memory:
    """What relfs keeps running between two switches. The verdict is on the sum of VmRSS, the stricter one."""

    processes: tuple[Resident, ...]
    rss_mb: float
    pss_mb: float | None
    limit: float
    ok: bool


@dataclass(frozen=True)
class Report:
    kernel: str
    relfs: str
    rounds: int
    resolution: tuple[Resolution, ...]
    switch: Switch
    memory: Memory


def main() -> None:
    parser = option_parser("resolve", "What relfs costs, measured.")
    parser.add_argument("--rounds", type=positive, default=30, help="how often to repeat each (%(default)s)")
    run_benchmark(parser, _measure, _as_text)


# ---- the two deploy paths ----------------------------------------------------------------------------------


@contextmanager
def _deploy_paths(parent: str) -> Iterator[Path]:
    """Two deploy paths with equally long names in a new directory: `plain`, and `relfs`, mounted over."""
    with scratch_directory(parent) as scratch:
        for name in ("plain", "relfs"):
            make_deploy_path(scratch / name)
        run(BIN / "relfs", scratch / "relfs")
        yield scratch


# ---- the measurements --------------------------------------------------------------------------------------


def _measure(options: argparse.Namespace) -> Report:
    with _deploy_paths(options.directory) as scratch:
        return Report(
            kernel=os.uname().release,
            relfs=sys.prefix,
            rounds=options.rounds,
            resolution=_resolution(scratch, options.rounds),
            switch=_switch(scratch / "relfs", options.rounds),
            memory=_memory(scratch / "relfs"),
        )


def _resolution(scratch: Path, rounds: int) -> tuple[Resolution, ...]:
    """In many short rounds, of which some are likely to pass without an interruption."""
    timer = compile_timer("resolve.c", scratch)
    paths = [scratch / name / "current" / "index.html" for name in ("plain", "relfs")]
    lines = run(timer, str(rounds * ROUNDS_OF_CALLS), str(CALLS), *paths).splitlines()
    columns = list(zip(*(map(float, line.split()) for line in lines), strict=True))
    return (
        _compare("stat", columns[0], columns[1], STAT_LIMIT),
        _compare("open+read+close", columns[2], columns[3], READ_LIMIT),
    )


def _compare(call: str, symlink: tuple[float, ...], relfs: tuple[float, ...], limit: float) -> Resolution:
    ratio = min(relfs) / min(symlink)
    return Resolution(
        call=call,
        symlink_min=min(symlink),
        relfs_min=min(relfs),
        symlink_median=statistics.median(symlink),
        relfs_median=statistics.median(relfs),
        ratio_min=ratio,
        ratio_median=statistics.median(b / a for a, b in zip(symlink, relfs, strict=True)),
        limit=limit,
        ok=ratio <= limit,
    )


def _switch(app: Path, rounds: int) -> Switch:
    """Whole processes, in turns; the first of each, which fills caches, is not counted."""
    switches, empties, fsyncs = [], [], []
    for number in range(rounds + 1):
        switches.append(_process_ms(BIN / "relfsctl", "-C", app, "switch", "12"[(number + 1) % 2]))
        empties.append(_process_ms(sys.executable, "-c", "pass"))
        fsyncs.append(_fsync_ms(app / "releases"))
    least = _times(*(min(times[1:]) for times in (switches, empties, fsyncs)))
    medians = _times(*(statistics.median(times[1:]) for times in (switches, empties, fsyncs)))
    return Switch(least, medians, SWITCH_LIMIT, medians.ratio <= SWITCH_LIMIT)


def _times(switch: float, python: float, fsync: float) -> Times:
    return Times(switch, python, fsync, (switch - fsync) / python)


def _process_ms(*command: str | Path) -> float:
    start = time.perf_counter()
    run(*command)
    return (time.perf_counter() - start) * 1e3


def _fsync_ms(directory: Path) -> float:
    """One fsync(2) of a file that has just grown by a journal line. Only the fsync is timed."""
    with tempfile.TemporaryFile(dir=directory, buffering=0) as file:
        file.write(b"x" * 200)
        start = time.perf_counter()
        os.fsync(file.fileno())
        return (time.perf_counter() - start) * 1e3


# ---- memory ------------------------------------------------------------------------------------------------


def _memory(app: Path) -> Memory:
    processes = tuple(_resident(pid) for pid in sorted(_pids(app)))
    rss = sum(process.rss_mb for process in processes)
    shares = [process.pss_mb for process in processes if process.pss_mb is not None]
    pss = sum(shares) if len(shares) == len(processes) else None
    return Memory(processes, rss, pss, MEMORY_LIMIT_MB, rss <= MEMORY_LIMIT_MB)


def _pids(app: Path) -> set[int]:
    """Those that `relfsctl status` names, their descendants, and the fusermount3 that waits to detach."""
    status = json.loads(run(BIN / "relfsctl", "-C", app, "--json", "status"))
    named = {status[f"{part}_pid"] for part in ("supervisor", "worker", "standby")} - {None}
    parents = {int(entry.name): _parent(entry) for entry in Path("/proc").iterdir() if entry.name.isdecimal()}
    found = named | {pid for pid in parents if _is_helper(pid, app)}
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return found


def _parent(entry: Path) -> int:
    try:
        return int((entry / "stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def _is_helper(pid: int, app: Path) -> bool:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return words[0].endswith(b"fusermount3") and os.fsencode(app) in words


def _resident(pid: int) -> Resident:
    entry = Path(f"/proc/{pid}")
    return Resident(
        pid=pid,
        command=(entry / "comm").read_text().strip(),
        rss_mb=_megabytes(entry / "status", "VmRSS:") or 0.0,
        pss_mb=_megabytes(entry / "smaps_rollup", "Pss:"),
    )


def _megabytes(file: Path, field: str) -> float | None:
    try:
        lines = file.read_text().splitlines()
    except OSError:
        return None
    return next((float(line.split()[1]) / 1024 for line in lines if line.startswith(field)), None)


# ---- the report --------------------------------------------------------------------------------------------


def _as_text(report: Report) -> str:
    return "\n".join(
        [
            f"Linux {report.kernel}, relfs in {report.relfs}, {report.rounds} rounds in turns",
            "",
            *_resolution_lines(report.resolution),
            "",
            *_switch_lines(report.switch),
            "",
            *_memory_lines(report.memory),
        ]
    )


def _resolution_lines(rows: tuple[Resolution, ...]) -> Iterator[str]:
    yield f"{'ns':<16}{'symlink':>9}{'relfs':>9}{'':>9}{'ratio':>8}"
    for row in rows:
        yield (
            f"{row.call:<16}{row.symlink_min:>9.0f}{row.relfs_min:>9.0f}{'':>9}{row.ratio_min:>8.2f}"
            f"   limit {row.limit:.2f}: {verdict(row.ok)}"
        )
        yield f"{'(medians':<16}{row.symlink_median:>9.0f}{row.relfs_median:>9.0f}{'':>9}{row.ratio_median:>8.2f})"


def _switch_lines(switch: Switch) -> Iterator[str]:
    yield f"{'ms':<16}{'switch':>9}{'pass':>9}{'fsync':>9}{'ratio':>8}"
    yield f"{_times_line('medians', switch.medians)}   limit {switch.limit:.2f}: {verdict(switch.ok)}"
    yield f"{_times_line('(least', switch.least)})"


def _times_line(title: str, times: Times) -> str:
    return f"{title:<16}{times.switch:>9.1f}{times.python:>9.1f}{times.fsync:>9.1f}{times.ratio:>8.2f}"


def _memory_lines(memory: Memory) -> Iterator[str]:
    for process in memory.processes:
        yield f"{process.command:<16}{process.pid:>9}   VmRSS {process.rss_mb:5.1f} MB{_pss(process.pss_mb)}"
    total = f"{'in all':<16}{'':>9}   VmRSS {memory.rss_mb:5.1f} MB{_pss(memory.pss_mb)}"
    yield f"{total}   limit {memory.limit:.0f} MB of VmRSS: {verdict(memory.ok)}"


def _pss(megabytes: float | None) -> str:
    return "" if megabytes is None else f", PSS {megabytes:5.1f} MB"


if __name__ == "__main__":
    main()
