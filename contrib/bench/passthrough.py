"""Measures what passthrough costs, beside the same calls on a plain directory, through the thinnest passthrough that
pyfuse3 allows (thinnest.py) and through bindfs, in the same run and on the same disk.

Run through contrib/bench/passthrough, by the Python of the virtual environment that holds relfs. It makes deploy paths
alike, mounts something over each but one, and takes turns between them. Only one figure has a limit that the project
has set: unpacking a release where native directories are attached. One that is over is no failure; only what broke is
one, unless it is the thinnest or bindfs that cannot unpack (the thinnest needs a descriptor for every file).

The verdict compares the least of each, because the machine's other work can only add: unpacking the same tree into the
same directory again and again, on a busy machine, twelve times each, the two least were within a tenth of each other
where medians were a third apart. How much of a difference means nothing on the machine at hand is measured, too: the
plain directory competes against itself in the same rounds, and where it is over the limit against itself, nothing is
decided. `--directory /dev/shm` takes the disk out of it, which is quieter and stricter.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from common import (
    BIN,
    HERE,
    BenchmarkError,
    compile_timer,
    make_deploy_path,
    option_parser,
    positive,
    run,
    run_benchmark,
    scratch_directory,
    unmount,
    verdict,
)
from package_tree import make_archive

UNPACK_LIMIT = 1.05
UNPACK_ROUNDS = 2
"""More of these in a round of everything: the longer a run takes, the fewer pass without an interruption."""
UNPACK_SECONDS = 90.0
"""After which no further round of one kind begins, for disks that take long; two there are in any case."""

PLAIN, BINDS, TOP, NO_BIND, THINNEST, BINDFS = "plain", "binds", "top level", "no-bind", "thinnest", "bindfs"
COMPARED = (THINNEST, BINDFS)

BINDFS_OPTIONS = "default_permissions,kernel_cache,attr_timeout=1,entry_timeout=1"
"""As relfs has it where the directory is mounted over: the kernel checks permissions and keeps pages when a file is
opened again, and names and attributes for a second."""

SMALL_FILE = 4096
_MOUNT_SECONDS = 30.0
_PER_MIB = frozenset({"write", "read, first time", "read, again"})


@dataclass(frozen=True)
class Place:
    """A directory to work in. `behind` is the same one, reached past whatever is mounted over it."""

    name: str
    path: Path
    behind: Path


@dataclass(frozen=True)
class Figure:
    """One measurement at one place, in the unit of its row."""

    place: str
    least: float
    median: float


@dataclass(frozen=True)
class Row:
    """`unit` is "us" a call, or "MB/s", where `least` is of the fastest. `ratios`: no-bind to others, of times."""

    call: str
    unit: str
    figures: tuple[Figure, ...]
    ratios: tuple[Ratio, ...]


@dataclass(frozen=True)
class Ratio:
    to: str
    times: float


@dataclass(frozen=True)
class Unpacking:
    """Seconds to unpack the tree, in so many rounds. The ratios are of the least: binds to plain, plain to itself.
    `ok` is None where the machine is too restless to tell."""

    how: str
    rounds: int
    plain: Figure
    plain_again: Figure
    binds: Figure
    ratio_again: float
    ratio: float
    limit: float
    ok: bool | None


@dataclass(frozen=True)
class Served:
    """Unpacking once where every request is served by a process. `failure`: what tar said first, if it failed; then
    there are no `seconds`."""

    place: str
    seconds: float | None
    failure: str | None


@dataclass(frozen=True)
class Report:
    kernel: str
    relfs: str
    rounds: int
    calls: int
    megabytes: int
    files: int
    rows: tuple[Row, ...]
    unpacking: tuple[Unpacking, ...]
    served: tuple[Served, ...]


def main() -> None:
    parser = option_parser("passthrough", "What passthrough costs, measured.")
    parser.add_argument("--rounds", type=positive, default=8, help="how often to repeat each (%(default)s)")
    parser.add_argument("--calls", type=positive, default=500, help="calls of each kind a round (%(default)s)")
    parser.add_argument("--megabytes", type=positive, default=32, help="size of the large files (%(default)s)")
    parser.add_argument("--files", type=positive, default=20_000, help="files in the archive (%(default)s)")
    report = run_benchmark(parser, _measure, _as_text)
    if any(each.failure is not None for each in report.served if each.place == NO_BIND):
        sys.exit(1)  # the report says why


def _measure(options: argparse.Namespace) -> Report:
    with _places(options.directory) as (scratch, places):
        timer = compile_timer("calls.c", scratch)
        archive = make_archive(scratch / "tree.tar", options.files)
        return Report(
            kernel=os.uname().release,
            relfs=sys.prefix,
            rounds=options.rounds,
            calls=options.calls,
            megabytes=options.megabytes,
            files=options.files,
            rows=_rows(timer, places, options),
            unpacking=tuple(_unpacking(how, archive, places, UNPACK_ROUNDS * options.rounds) for how in UNPACK),
            served=tuple(_unpacking_served(archive, places)),
        )


# ---- the places --------------------------------------------------------------------------------------------


@contextmanager
def _places(parent: str) -> Iterator[tuple[Path, dict[str, Place]]]:
    """A scratch directory, and in it one place of each name."""
    if shutil.which("bindfs") is None:
        raise BenchmarkError("bindfs: not found; install it (apt install bindfs)")
    with ExitStack() as undo:
        scratch = undo.enter_context(scratch_directory(parent))
        directories = {name: scratch / name for name in (PLAIN, BINDS, NO_BIND, THINNEST, BINDFS)}
        behind = {name: undo.enter_context(_held(path)) for name, path in directories.items()}
        run(BIN / "relfs", directories[BINDS])
        run(BIN / "relfs", "--no-bind", directories[NO_BIND])
        run("bindfs", "-o", BINDFS_OPTIONS, directories[BINDFS], directories[BINDFS])
        undo.enter_context(_thinnest(directories[THINNEST]))
        places = {name: Place(name, path / "releases", behind[name] / "releases") for name, path in directories.items()}
        places[TOP] = Place(TOP, directories[BINDS], behind[BINDS])
        yield scratch, places


@contextmanager
def _held(path: Path) -> Iterator[Path]:
    """A new deploy path, under a name that leads there whatever is mounted over it later (proc(5), /proc/PID/fd)."""
    make_deploy_path(path)
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield Path(f"/proc/{os.getpid()}/fd/{fd}")
    finally:
        os.close(fd)


@contextmanager
def _thinnest(directory: Path) -> Iterator[None]:
    """In a session of its own: Ctrl-C is for us alone."""
    command = [sys.executable, str(HERE / "thinnest.py"), str(directory)]
    with subprocess.Popen(command, start_new_session=True) as process:
        try:
            deadline = time.monotonic() + _MOUNT_SECONDS
            while not os.path.ismount(directory):
                if process.poll() is not None or time.monotonic() > deadline:
                    raise BenchmarkError("thinnest.py did not mount")
                time.sleep(0.01)
            yield
        finally:
            try:
                unmount(directory)
            finally:
                process.terminate()


# ---- system calls ------------------------------------------------------------------------------------------


def _rows(timer: Path, places: dict[str, Place], options: argparse.Namespace) -> tuple[Row, ...]:
    """Everything once in every place a round; who begins changes from round to round."""
    found: dict[str, dict[str, list[float]]] = {}
    for number in range(options.rounds):
        for place in _in_turn(tuple(places.values()), number):
            for call, nanoseconds in _call_all(timer, place, options.calls, options.megabytes).items():
                found.setdefault(call, {}).setdefault(place.name, []).append(nanoseconds)
    return tuple(_row(call, by_place) for call, by_place in found.items())


def _in_turn(places: Sequence[Place], number: int) -> Sequence[Place]:
    first = number % len(places)
    return (*places[first:], *places[:first])


def _call_all(timer: Path, place: Place, calls: int, megabytes: int) -> dict[str, float]:
    """Nanoseconds of each call, or of one MiB, in a new directory that whoever serves it has not seen yet."""
    prepared = place.behind / "work"
    for name in ("first", "many"):
        (prepared / name).mkdir(parents=True)
        for number in range(calls):
            (prepared / name / str(number)).write_bytes(bytes(SMALL_FILE))
    for name in ("large", "random"):
        (prepared / name).write_bytes(os.urandom(1 << 20) * megabytes)
    run("sync", "--file-system", prepared)
    lines = run(timer, place.path / "work", str(calls), str(megabytes)).splitlines()
    shutil.rmtree(place.path / "work")
    return {call: float(nanoseconds) for call, nanoseconds in (line.split("\t") for line in lines)}


def _row(call: str, by_place: dict[str, list[float]]) -> Row:
    order = [name for name in (PLAIN, BINDS, TOP, NO_BIND, THINNEST, BINDFS) if name in by_place]
    ratios = tuple(Ratio(other, min(by_place[NO_BIND]) / min(by_place[other])) for other in COMPARED)
    if call in _PER_MIB:
        speeds = {name: [(1 << 20) * 1e3 / nanoseconds for nanoseconds in by_place[name]] for name in order}
        figures = tuple(Figure(name, max(speeds[name]), statistics.median(speeds[name])) for name in order)
        return Row(call, "MB/s", figures, ratios)
    return Row(call, "us", tuple(_figure(name, by_place[name], 1e-3) for name in order), ratios)


def _figure(place: str, values: Sequence[float], scale: float = 1.0) -> Figure:
    return Figure(place, min(values) * scale, statistics.median(values) * scale)


# ---- unpacking ---------------------------------------------------------------------------------------------


def _from_within(archive: Path, target: Path) -> list[str | Path]:
    """As git and tar do it: the directory is gone to once, and names are relative to it."""
    return ["tar", "--extract", "--no-same-owner", "--file", archive, "--directory", target]


def _by_full_path(archive: Path, target: Path) -> list[str | Path]:
    """As composer and npm do it: each name is looked up from the root, through the mount."""
    names = f"--transform=s,^,{target}/,S"  # S: not in the text of links
    return ["tar", "--extract", "--no-same-owner", "--file", archive, "--absolute-names", names]


UNPACK = {"from within": _from_within, "by full path": _by_full_path}


def _unpacking(how: str, archive: Path, places: dict[str, Place], rounds: int) -> Unpacking:
    """Round by round: plain, plain again, binds; who begins changes. At most so many rounds, as long as there is time
    for them."""
    runs = (places[PLAIN], Place("plain again", places[PLAIN].path, places[PLAIN].behind), places[BINDS])
    seconds: dict[str, list[float]] = {place.name: [] for place in runs}
    deadline = time.monotonic() + UNPACK_SECONDS
    done = 0
    while done < rounds and (done < 2 or time.monotonic() < deadline):
        for place in _in_turn(runs, done):
            seconds[place.name].append(_unpack(how, archive, place))
        done += 1
    plain, again, binds = (_figure(name, values) for name, values in seconds.items())
    ratio = binds.least / plain.least
    ratio_again = again.least / plain.least
    quiet = 1 / UNPACK_LIMIT <= ratio_again <= UNPACK_LIMIT
    ok = ratio <= UNPACK_LIMIT if quiet else None
    return Unpacking(how, done, plain, again, binds, ratio_again, ratio, UNPACK_LIMIT, ok)


def _unpacking_served(archive: Path, places: dict[str, Place]) -> Iterator[Served]:
    """Where no limit is set, once: these take long enough to be told apart."""
    for name in (NO_BIND, THINNEST, BINDFS):
        try:
            yield Served(name, _unpack("from within", archive, places[name]), None)
        except subprocess.CalledProcessError as error:
            yield Served(name, None, error.stderr.splitlines()[0])


def _unpack(how: str, archive: Path, place: Place) -> float:
    """Seconds. What was written before is on the disk by then, and does not compete. Raises CalledProcessError."""
    target = place.path / "3"
    target.mkdir()
    run("sync", "--file-system", place.behind)
    try:
        start = time.perf_counter()
        subprocess.run(UNPACK[how](archive, target), check=True, stderr=subprocess.PIPE, text=True)
        return time.perf_counter() - start
    finally:
        run("rm", "-r", place.behind / "3")


# ---- the report --------------------------------------------------------------------------------------------


def _as_text(report: Report) -> str:
    return "\n".join(
        [
            f"Linux {report.kernel}, relfs in {report.relfs}, {report.rounds} rounds in turns, "
            f"{report.calls} calls and {report.megabytes} MiB each",
            "",
            *_row_lines([row for row in report.rows if row.unit == "us"], "us"),
            "",
            *_row_lines([row for row in report.rows if row.unit == "MB/s"], "MB/s"),
            "",
            *_unpacking_lines(report),
        ]
    )


def _row_lines(rows: Sequence[Row], unit: str) -> Iterator[str]:
    names = [figure.place for figure in rows[0].figures]
    ratios = [f"/{ratio.to}" for ratio in rows[0].ratios]
    yield f"{unit:<22}" + "".join(f"{name:>11}" for name in [*names, *ratios])
    for row in rows:
        figures = "".join(f"{figure.least:>11.{_digits(figure.least)}f}" for figure in row.figures)
        yield f"{row.call:<22}{figures}" + "".join(f"{ratio.times:>11.2f}" for ratio in row.ratios)


def _digits(value: float) -> int:
    return 1 if value < 1000 else 0


def _unpacking_lines(report: Report) -> Iterator[str]:
    title = f"s, {report.files} files"
    yield f"{title:<22}{'plain':>11}{'again':>11}{'binds':>11}{'ratio':>11}"
    for row in report.unpacking:
        seconds = "".join(f"{figure.least:>11.2f}" for figure in (row.plain, row.plain_again, row.binds))
        yield (
            f"{row.how:<22}{seconds}{row.ratio:>11.3f}   limit {row.limit:.2f}: {_verdict(row.ok)} "
            f"(plain to itself {row.ratio_again:.3f}; {row.rounds} rounds)"
        )
    yield f"{'':<22}" + "".join(f"{each.place:>11}" for each in report.served)
    yield f"{'from within':<22}" + "".join(_served_cell(each) for each in report.served)
    for each in report.served:
        if each.failure is not None:
            yield f"{each.place}: {each.failure}"


def _verdict(ok: bool | None) -> str:
    return "undecided" if ok is None else verdict(ok)


def _served_cell(served: Served) -> str:
    return f"{'failed':>11}" if served.seconds is None else f"{served.seconds:>11.2f}"


if __name__ == "__main__":
    main()
