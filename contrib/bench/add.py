"""Measures what it costs to make a release from a directory, beside what rsync, cp and tar take for the same, in turn,
on the same disk: the first time, and when one file in a hundred has changed.

relfs flushes what it has made before it says so, the others do not; so each is measured as it is, and again with the
flush that it lacks (`sync -f`). Processor time is that of the processes and their children. The verdict is on the least
of all rounds, because the machine's other work can only add, and compares with rsync, flush and all; the other ratios
are those of the medians, and of what passes before each says that it is done.

Why a file system of its own
----------------------------
Some facts. What a round has made is removed before the next. On a disk mounted with `discard`, and without a journal,
each file that is removed is a request to the disk; and ext4 gives no inode away again within a minute then, but passes
over them one by one for each that it makes (recently_deleted(), fs/ext4/ialloc.c). So the rounds get slower and slower,
for each tool in another way, and one tree may take minutes. The choice: `--on ext4` measures on a new file system with
a journal, in an image that lies in the directory. What it flushes goes down to the disk, as ever.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from common import BIN, option_parser, positive, run, run_benchmark, scratch_directory, verdict
from package_tree import make_archive

LIMIT = 1.0
_CHANGED = 100
"""One file in so many."""

_TO_COMPARE = "rsync"
_FILE_SYSTEMS = ("ext4", "xfs")
_IMAGE_BYTES = 16 << 30
"""What is not written takes no room."""


@dataclass(frozen=True)
class Cost:
    """Seconds: of the whole, of the flush after it, and of the processors."""

    seconds: float
    flush: float
    processor: float

    @property
    def flushed(self) -> float:
        return self.seconds + self.flush


@dataclass(frozen=True)
class Row:
    """One way of doing it; least and median of the rounds, in seconds. To rsync's are `ratio` (least, flushed),
    `median_ratio` (flushed), `plain_ratio` (least, each as it is, rsync without its flush) and `processor_ratio`."""

    case: str
    tool: str
    least: float
    median: float
    flushed_least: float
    processor_least: float
    ratio: float
    median_ratio: float
    plain_ratio: float
    processor_ratio: float
    limit: float | None
    ok: bool | None


@dataclass(frozen=True)
class Report:
    kernel: str
    relfs: str
    processors: int
    file_system: str
    files: int
    rounds: int
    rows: tuple[Row, ...]


def main() -> None:
    parser = option_parser("add", "What adding a release costs, measured.")
    parser.add_argument("--rounds", type=positive, default=5, help="how often to repeat each (%(default)s)")
    parser.add_argument("--files", type=positive, default=50_000, help="how many files a release has (%(default)s)")
    parser.add_argument("--tree", metavar="DIR", help="a directory to make releases from, which is copied first")
    parser.add_argument("--on", choices=_FILE_SYSTEMS, help="measure on a new file system, in an image there")
    run_benchmark(parser, _measure, _as_text)


@dataclass(frozen=True)
class _Place:
    """`source` is what releases are made from; `before` is a directory with the release before of each tool."""

    source: Path
    before: Path
    out: Path

    @property
    def app(self) -> Path:
        return self.before / "app"


_Tool = Callable[[_Place], list[list[str | Path]]]
"""The commands that make a release, one after the other; the last one's output goes nowhere."""


def _relfs(*options: str) -> _Tool:
    return lambda place: [[BIN / "relfsctl", "-C", place.app, "add", place.source, *options]]


def _rsync(*options: str) -> _Tool:
    def tool(place: _Place) -> list[list[str | Path]]:
        return [["rsync", "-a", *(each.format(before=place.before) for each in options), f"{place.source}/", place.out]]

    return tool


def _cp(place: _Place) -> list[list[str | Path]]:
    return [["cp", "-a", "--reflink=auto", place.source, place.out]]


def _tar(place: _Place) -> list[list[str | Path]]:
    pipe = 'mkdir "$2" && tar -C "$1" -cf - . | tar -C "$2" -xf -'
    return [["sh", "-c", pipe, "sh", place.source, place.out]]


_CASES: dict[str, dict[str, _Tool]] = {
    "first time": {"relfs": _relfs(), "rsync": _rsync(), "cp": _cp, "tar": _tar},
    "1 % changed": {
        "relfs --link": _relfs("--link"),
        "relfs": _relfs(),
        "rsync": _rsync("--link-dest={before}/rsync"),
        "cp": _cp,
        "tar": _tar,
    },
}


def _measure(options: argparse.Namespace) -> Report:
    with scratch_directory(options.directory) as scratch:
        top = _new_file_system(scratch, options.on) if options.on is not None else scratch
        place = _Place(top / "source", top / "before", top / "out")
        files = _make_source(place.source, options)
        rows: list[Row] = []
        for case, tools in _CASES.items():
            if case != "first time":
                _make_before(place)
                _change(place.source)
            else:
                (place.app / "releases").mkdir(parents=True)
            rows += _rows(case, _costs(place, tools, options.rounds))
        kind = run("stat", "-f", "-c", "%T", top).strip()
        processors = len(os.sched_getaffinity(0))
        return Report(os.uname().release, sys.prefix, processors, kind, files, options.rounds, tuple(rows))


def _new_file_system(scratch: Path, kind: str) -> Path:
    """Mounted, until the scratch directory is removed."""
    image, top = scratch / "image", scratch / "disk"
    with open(image, "wb") as file:
        file.truncate(_IMAGE_BYTES)
    run(f"mkfs.{kind}", "-q", image)
    top.mkdir()
    run("mount", "-o", "loop", image, top)
    return top


def _make_source(source: Path, options: argparse.Namespace) -> int:
    if options.tree is not None:
        run("cp", "-a", Path(options.tree), source)
    else:
        source.mkdir()
        with tempfile.TemporaryDirectory(dir=source.parent) as directory:
            run("tar", "-C", source, "-xf", make_archive(Path(directory) / "tree.tar", options.files))
    return sum(len(names) for _, _, names in os.walk(source))


def _make_before(place: _Place) -> None:
    """A release of each that has use for one."""
    run("rsync", "-a", f"{place.source}/", place.before / "rsync")
    run(BIN / "relfsctl", "-C", place.app, "add", place.source, "--name", "before", "--switch")


def _change(source: Path) -> None:
    files = sorted(Path(directory, name) for directory, _, names in os.walk(source) for name in names)
    for file in files[::_CHANGED]:
        if not file.is_symlink():
            with open(file, "ab") as opened:
                opened.write(b"\n// changed\n")


def _costs(place: _Place, tools: dict[str, _Tool], rounds: int) -> dict[str, list[Cost]]:
    """In turn, so that what else the machine does meets all alike."""
    costs: dict[str, list[Cost]] = {name: [] for name in tools}
    for _ in range(rounds):
        for name, tool in tools.items():
            run("sync", "-f", place.before)
            costs[name].append(_cost(place, tool))
            for made in _made(place):
                run("rm", "-rf", made)
    return costs


def _made(place: _Place) -> Iterator[Path]:
    yield place.out
    yield from (each for each in (place.app / "releases").iterdir() if each.name != "before")


def _cost(place: _Place, tool: _Tool) -> Cost:
    before, start = _processor(), time.monotonic()
    for command in tool(place):
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    end = time.monotonic()
    processor = _processor() - before
    run("sync", "-f", place.before)
    return Cost(end - start, time.monotonic() - end, processor)


def _processor() -> float:
    """What ended children, and theirs, have used."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _rows(case: str, costs: dict[str, list[Cost]]) -> Iterator[Row]:
    rsync = costs[_TO_COMPARE]
    flushed = min(cost.flushed for cost in rsync)
    judged = next(iter(costs))
    for tool, each in costs.items():
        least, used = min(cost.flushed for cost in each), min(cost.processor for cost in each)
        yield Row(
            case=case,
            tool=tool,
            least=min(cost.seconds for cost in each),
            median=statistics.median(cost.seconds for cost in each),
            flushed_least=least,
            processor_least=used,
            ratio=least / flushed,
            median_ratio=_median_flushed(each) / _median_flushed(rsync),
            plain_ratio=min(cost.seconds for cost in each) / min(cost.seconds for cost in rsync),
            processor_ratio=used / min(cost.processor for cost in rsync),
            limit=LIMIT if tool == judged else None,
            ok=least / flushed <= LIMIT if tool == judged else None,
        )


def _median_flushed(costs: list[Cost]) -> float:
    return statistics.median(cost.flushed for cost in costs)


def _as_text(report: Report) -> str:
    where = f"{report.file_system}, {report.processors} processors, {report.rounds} rounds, Linux {report.kernel}"
    lines = [
        f"{report.files} files, {where}",
        f"{'':28}{'least':>9}{'median':>9}{'to rsync':>10}{'flushed':>9}{'to rsync':>10}{'medians':>10}"
        f"{'processor':>11}{'to rsync':>10}",
        *map(_line, report.rows),
    ]
    return "\n".join(lines)


def _line(row: Row) -> str:
    figures = f"{row.least:8.2f}s{row.median:8.2f}s{row.plain_ratio:10.2f}"
    figures += f"{row.flushed_least:8.2f}s{row.ratio:10.2f}{row.median_ratio:10.2f}"
    used = f"{row.processor_least:10.2f}s{row.processor_ratio:10.2f}"
    judged = f"   limit {row.limit} {verdict(row.ok)}" if row.limit is not None and row.ok is not None else ""
    return f"{row.case:14}{row.tool:14}{figures}{used}{judged}"


if __name__ == "__main__":
    main()
