"""Measures what a lookup of `current` costs while somebody sees another release, beside the cheapest LOOKUP that
pyfuse3 can answer, in turns; that it costs nothing while nobody does; and what many pins at once cost.

Run through contrib/bench/views, by the Python of the virtual environment that holds relfs. A lookup is an lstat(2) of
the link, of which the kernel asks nothing else. Turns are short, and the verdict compares the least of each, because
the machine's other work can only add. One that is over is no failure.

All of it runs on one processor. Where a lookup wakes somebody on another one it takes twice as long, and whether it
does is decided for each process anew, and has nothing to do with what is compared.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from common import (
    BIN,
    HERE,
    BenchmarkError,
    make_deploy_path,
    option_parser,
    positive,
    run,
    run_benchmark,
    scratch_directory,
    verdict,
)

from relfs.control import Connection
from relfs.mountinfo import mount_at
from relfs.views.mark import new_mark, put_mark

LOOKUP_LIMIT = 1.5
NOBODY = 65534

_SECONDS = 30.0
_ASK = """
import os, sys, time
path, calls, ask = sys.argv[1], int(sys.argv[2]), getattr(os, sys.argv[3])
for line in sys.stdin:
    began = time.perf_counter()
    for _ in range(calls):
        ask(path)
    print((time.perf_counter() - began) / calls * 1e6, flush=True)
"""


@dataclass(frozen=True)
class Lookup:
    """Microseconds a lookup, and against the cheapest (in the same rounds)."""

    who: str
    least: float
    median: float
    ratio: float
    limit: float
    ok: bool


@dataclass(frozen=True)
class Unused:
    """While nobody sees another release: microseconds a lookup, and of a link that no relfs is asked for; and for how
    many of so many lookups relfs was asked."""

    least: float
    native: float
    calls: int
    asked: int


@dataclass(frozen=True)
class Alternating:
    """Requests and microseconds a resolution, where two processes take turns that see different releases: the kernel
    asks whether what it knows is right for the caller, drops it, since it is not, and asks what is."""

    lookups: float
    readlinks: float
    least: float
    median: float


@dataclass(frozen=True)
class Many:
    """So many pins of a process each. Milliseconds: a pin, and relfsctl status; megabytes: VmRSS of the worker, without
    and with them; microseconds: the least lookup of one who is pinned."""

    pins: int
    pin_ms: float
    status_ms: float
    rss_before_mb: float
    rss_mb: float
    lookup_us: float


@dataclass(frozen=True)
class Report:
    kernel: str
    rounds: int
    calls: int
    unused: Unused
    lookups: tuple[Lookup, ...]
    alternating: Alternating
    many: Many


def main() -> None:
    parser = option_parser("views", "Measure what it costs that some see another release.")
    parser.add_argument("--rounds", type=positive, default=200, help="how often each has its turn (%(default)s)")
    parser.add_argument("--calls", type=positive, default=50, help="lookups a turn (%(default)s)")
    parser.add_argument("--pins", type=positive, default=1000, help="how many pins there are at once (%(default)s)")
    run_benchmark(parser, _measure, _as_text)


def _measure(options: argparse.Namespace) -> Report:
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})  # what is started from here on inherits it
    with scratch_directory(options.directory) as scratch:
        scratch.chmod(0o755)
        app, cheapest = scratch / "app", scratch / "cheapest"
        make_deploy_path(app)
        run(BIN / "relfs", app)
        unused = _unused(app, scratch, options)
        with _cheapest(cheapest):
            lookups = _lookups(app, cheapest, options)
        alternating, many = _alternating(app, options), _many(app, options)
        return Report(os.uname().release, options.rounds, options.calls, unused, lookups, alternating, many)


def _requests(app: Path) -> Counter[str]:
    """How many of each kind relfs was asked."""
    return Counter(json.loads(run(BIN / "relfsctl", "-C", app, "--json", "status"))["requests"])


# ---- nobody sees another release --------------------------------------------------------------------------------


def _unused(app: Path, scratch: Path, options: argparse.Namespace) -> Unused:
    native = scratch / "native"
    make_deploy_path(native)
    with _asker((), app, options.calls) as ours, _asker((), native, options.calls) as theirs:
        _ask(ours)
        before = _requests(app)
        times = [(_ask(ours), _ask(theirs)) for _ in range(options.rounds)]
        asked = (_requests(app) - before)["lookup"]
    return Unused(min(ours for ours, _ in times), min(its for _, its in times), options.calls * options.rounds, asked)


# ---- lookups -----------------------------------------------------------------------------------------------


@contextmanager
def _cheapest(place: Path) -> Iterator[None]:
    place.mkdir()
    with subprocess.Popen([sys.executable, HERE / "cheapest_lookup.py", place]) as process:
        try:
            deadline = time.monotonic() + _SECONDS
            while mount_at(str(place)) is None:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise BenchmarkError("the file system that is compared with does not come up")
                time.sleep(0.01)
            yield
        finally:
            run("umount", "--lazy", place)


def _lookups(app: Path, cheapest: Path, options: argparse.Namespace) -> tuple[Lookup, ...]:
    """Those that are pinned, and those that are not while somebody is; then those with a canary."""
    pinned = (BIN / "relfsctl", "-C", app, "run", "--")
    as_user = ("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups")
    ways = {"not pinned": (), "pinned": pinned, "pinned, a user": (*as_user, *pinned)}
    first = _in_turns(cheapest, app, options, ways)
    run(BIN / "relfsctl", "-C", app, "canary", "2", "--percent", "100", "--of", Path(sys.executable).name)
    second = _in_turns(cheapest, app, options, {"with a canary": (), "with a canary, a user": as_user})
    run(BIN / "relfsctl", "-C", app, "canary", "abort")
    return (*first, *second[1:])


def _in_turns(
    cheapest: Path, app: Path, options: argparse.Namespace, ways: dict[str, tuple[str | Path, ...]]
) -> tuple[Lookup, ...]:
    with ExitStack() as stack:
        askers = {"the cheapest": stack.enter_context(_asker((), cheapest, options.calls))}
        for name, before in ways.items():
            askers[name] = stack.enter_context(_asker(before, app, options.calls))
        times: dict[str, list[float]] = {name: [] for name in askers}
        for _ in range(options.rounds + 1):
            for name, asker in askers.items():
                times[name].append(_ask(asker))
    reference = min(times["the cheapest"][1:])  # the first is not counted: caches are filled
    return tuple(_lookup(name, found[1:], reference) for name, found in times.items())


@contextmanager
def _asker(
    before: tuple[str | Path, ...], place: Path, calls: int, how: str = "lstat"
) -> Iterator[subprocess.Popen[str]]:
    command = [*before, sys.executable, "-c", _ASK, place / "current", str(calls), how]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd="/") as asker:
        try:
            yield asker
        finally:
            asker.kill()


def _ask(asker: subprocess.Popen[str]) -> float:
    assert asker.stdin is not None
    assert asker.stdout is not None
    asker.stdin.write("\n")
    asker.stdin.flush()
    told = asker.stdout.readline()
    if not told:
        raise BenchmarkError("a process that asks has ended")
    return float(told)


def _lookup(who: str, times: list[float], reference: float) -> Lookup:
    ratio = min(times) / reference
    return Lookup(who, min(times), statistics.median(times), ratio, LOOKUP_LIMIT, ratio <= LOOKUP_LIMIT)


def _alternating(app: Path, options: argparse.Namespace) -> Alternating:
    """Once the kernel keeps both links (relfs/fuse/second_names.py)."""
    pinned = (BIN / "relfsctl", "-C", app, "run", "--release", "2", "--")
    with _asker((), app, 1, "readlink") as one, _asker(pinned, app, 1, "readlink") as other:
        deadline = time.monotonic() + _SECONDS
        while _take_turns(app, (one, other), 1)[0]["readlink"]:
            if time.monotonic() > deadline:
                raise BenchmarkError("the kernel does not keep the links of those who take turns")
        asked, times = _take_turns(app, (one, other), options.rounds)
    resolutions = 2 * options.rounds
    return Alternating(
        asked["lookup"] / resolutions, asked["readlink"] / resolutions, min(times), statistics.median(times)
    )


def _take_turns(app: Path, askers: tuple[subprocess.Popen[str], ...], rounds: int) -> tuple[Counter[str], list[float]]:
    """What relfs was asked, and how long each resolution took."""
    before = _requests(app)
    times = [_ask(asker) for asker in askers * rounds]
    return _requests(app) - before, times


# ---- many pins ---------------------------------------------------------------------------------------------


def _many(app: Path, options: argparse.Namespace) -> Many:
    worker = json.loads(run(BIN / "relfsctl", "-C", app, "--json", "status"))["worker_pid"]
    before = _rss_mb(worker)
    connection = Connection((f"{app}/.relfs",))
    processes: list[subprocess.Popen[bytes]] = []
    try:
        began = time.perf_counter()
        marks = [new_mark() for _ in range(options.pins)]
        for mark in marks:
            connection.call("pin", {"mark": mark, "release": "2", "request": os.urandom(8).hex()})
        pin_ms = (time.perf_counter() - began) / options.pins * 1e3
        for mark in marks:
            processes.append(subprocess.Popen(["sleep", "1000"]))
            put_mark(processes[-1].pid, mark)
        began = time.perf_counter()
        connection.call("status", {})
        status_ms = (time.perf_counter() - began) * 1e3
        with _asker((BIN / "relfsctl", "-C", app, "run", "--"), app, options.calls) as asker:
            lookup = min(_ask(asker) for _ in range(options.rounds + 1))
        return Many(options.pins, pin_ms, status_ms, before, _rss_mb(worker), lookup)
    finally:
        connection.close()
        for process in processes:
            process.kill()
            process.wait()


def _rss_mb(pid: int) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(float(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS:"))


# ---- the report --------------------------------------------------------------------------------------------


def _as_text(report: Report) -> str:
    many, turns = report.many, report.alternating
    return "\n".join(
        [
            f"Linux {report.kernel}, {report.rounds} rounds of {report.calls} lookups in turns, on one processor",
            "",
            f"nobody sees another release: {report.unused.least:.2f} µs a lookup, of a link without relfs "
            f"{report.unused.native:.2f} µs; relfs was asked for {report.unused.asked} of {report.unused.calls}",
            "",
            f"{'µs a lookup':<24}{'least':>9}{'median':>9}{'ratio':>8}",
            *(_line(row) for row in report.lookups),
            "",
            f"two that see different releases take turns: {turns.lookups:.1f} lookups and {turns.readlinks:.1f} "
            f"readlinks a resolution, {turns.least:.1f} µs (median {turns.median:.1f})",
            f"{many.pins} pins: {many.pin_ms:.1f} ms each, status {many.status_ms:.0f} ms, a lookup "
            f"{many.lookup_us:.0f} µs, worker {many.rss_before_mb:.0f} MB without them, {many.rss_mb:.0f} MB with them",
        ]
    )


def _line(row: Lookup) -> str:
    verdict_of = f"   limit {row.limit:.2f}: {verdict(row.ok)}" if row.ratio != 1 else ""
    return f"{row.who:<24}{row.least:>9.1f}{row.median:>9.1f}{row.ratio:>8.2f}{verdict_of}"


if __name__ == "__main__":
    main()
