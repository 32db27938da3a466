"""Measures what removing a release of many files costs whoever uses the disk meanwhile: by `relfsctl prune`, by rm -rf,
and not at all, in the same run and on the same disk.

Run through contrib/bench/prune, by the Python of the virtual environment that holds relfs. While a release is removed,
a site is served: over and over, a file is opened and read, as a web server does, and another one is written and flushed
(fsync(2)), as a database does. The latter is what deleting is noticed by: whoever flushes waits for what the file
system's journal has of others. There is no limit to keep; what counts is the comparison.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from common import BIN, make_deploy_path, option_parser, positive, run, run_benchmark, scratch_directory

_FILES_A_DIRECTORY = 100
_PAUSE = 0.002
_READS_A_FLUSH = 10


@dataclass(frozen=True)
class Latency:
    """Milliseconds."""

    median: float
    p99: float
    most: float


@dataclass(frozen=True)
class Row:
    """While a release was removed in one way. `gone` is after how many seconds nobody saw it any more, `seconds` after
    how many all of it was deleted."""

    how: str
    gone: float
    seconds: float
    read: Latency
    flush: Latency


@dataclass(frozen=True)
class Ratios:
    """What relfs takes, in units of what rm -rf takes."""

    gone: float
    seconds: float
    read_p99: float
    flush_p99: float
    flush_most: float


@dataclass(frozen=True)
class Report:
    kernel: str
    files: int
    rows: tuple[Row, ...]
    ratios: Ratios


def main() -> None:
    parser = option_parser("prune", "What removing a release costs, measured.")
    parser.add_argument("--files", type=positive, default=50_000, help="how many it has (%(default)s)")
    parser.add_argument("--seconds", type=positive, default=5, help="how long to serve undisturbed (%(default)s)")
    run_benchmark(parser, _measure, _as_text)


def _measure(options: argparse.Namespace) -> Report:
    with scratch_directory(options.directory) as scratch:
        site = _Site(scratch / "site")
        idle = site.served_during(("sleep", str(options.seconds)))
        with _old_release(scratch / "rm", options.files) as release:
            rm = site.served_during(("rm", "-rf", release))
        with _old_release(scratch / "relfs", options.files) as release:
            relfs = site.served_during((BIN / "relfsctl", "-C", scratch / "relfs", "prune", "--keep", "1", "--wait"),
                                       release)  # fmt: skip
        rows = tuple(_row(how, each) for how, each in (("nothing", idle), ("rm -rf", rm), ("relfsctl prune", relfs)))
    return Report(os.uname().release, options.files, rows, _ratios(rows[1], rows[2]))


@contextmanager
def _old_release(app: Path, files: int) -> Iterator[Path]:
    """A deploy path in which release 1 has so many files, 2 has been current, and 3 is."""
    make_deploy_path(app)
    (app / "releases/3").mkdir()
    (app / "releases/3/index.html").write_text("release 3\n")
    for number in range(files):
        directory = app / f"releases/1/{number // _FILES_A_DIRECTORY}"
        if number % _FILES_A_DIRECTORY == 0:
            directory.mkdir()
        (directory / f"{number}.php").write_bytes(b"x" * 1024)
    for name in ("2", "3"):
        run(BIN / "relfsctl", "-C", app, "switch", name)
    os.sync()
    yield app / "releases/1"


# ---- the site ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Times:
    """Seconds."""

    gone: float
    total: float
    reads: Sequence[float]
    flushes: Sequence[float]


class _Site:
    """Something to serve, and something to keep."""

    def __init__(self, place: Path) -> None:
        place.mkdir()
        self._page = place / "index.html"
        self._page.write_bytes(b"x" * 1024)
        self._table = place / "table"

    def served_during(self, command: Sequence[str | Path], release: Path | None = None) -> _Times:
        """Serve until the command has ended, and once at least: what is small may be gone before we come to it.
        `release` is what it removes, if that goes before it ends."""
        reads, flushes, gone = [], [], None
        start = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        try:
            while not reads or process.poll() is None:
                reads.append(_timed(self._read))
                if len(reads) % _READS_A_FLUSH == 1:
                    flushes.append(_timed(self._flush))
                if gone is None and release is not None and not release.exists():
                    gone = time.perf_counter() - start
                time.sleep(_PAUSE)
        finally:
            process.kill()
        total = time.perf_counter() - start
        if process.wait() != 0:
            raise subprocess.CalledProcessError(process.returncode, command)
        return _Times(gone if gone is not None else total, total, reads, flushes)

    def _read(self) -> None:
        with open(self._page, "rb", buffering=0) as file:
            file.read()

    def _flush(self) -> None:
        with open(self._table, "ab", buffering=0) as file:
            file.write(b"x" * 200)
            os.fsync(file.fileno())


def _timed(does: Callable[[], None]) -> float:
    start = time.perf_counter()
    does()
    return time.perf_counter() - start


# ---- the report ----------------------------------------------------------------------------------------------------


def _row(how: str, times: _Times) -> Row:
    return Row(how, times.gone, times.total, _latency(times.reads), _latency(times.flushes))


def _latency(seconds: Sequence[float]) -> Latency:
    ordered = sorted(each * 1e3 for each in seconds)
    return Latency(statistics.median(ordered), ordered[min(len(ordered) * 99 // 100, len(ordered) - 1)], ordered[-1])


def _ratios(rm: Row, relfs: Row) -> Ratios:
    return Ratios(
        relfs.gone / rm.gone,
        relfs.seconds / rm.seconds,
        relfs.read.p99 / rm.read.p99,
        relfs.flush.p99 / rm.flush.p99,
        relfs.flush.most / rm.flush.most,
    )


def _as_text(report: Report) -> str:
    lines = [f"removing {report.files} files, Linux {report.kernel}: milliseconds of who reads and flushes meanwhile"]
    lines.append(f"{'':16}{'gone, s':>9}{'deleted':>9}   read {'median':>7}{'p99':>8}{'most':>8}   flush"
                 f"{'median':>7}{'p99':>8}{'most':>8}")  # fmt: skip
    for row in report.rows:
        read, flush = row.read, row.flush
        lines.append(
            f"{row.how:16}{row.gone:9.2f}{row.seconds:9.2f}        {read.median:7.3f}{read.p99:8.3f}{read.most:8.2f}"
            f"        {flush.median:7.2f}{flush.p99:8.2f}{flush.most:8.2f}"
        )
    ratios = report.ratios
    lines.append(
        f"relfs against rm -rf: gone x{ratios.gone:.3f}, deleted x{ratios.seconds:.2f}, "
        f"read p99 x{ratios.read_p99:.2f}, flush p99 x{ratios.flush_p99:.2f}, longest flush x{ratios.flush_most:.2f}"
    )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
