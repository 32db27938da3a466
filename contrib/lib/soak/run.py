"""One soak from beginning to end: the site is mounted, the actors are started, chaos reigns, the evidence is judged."""

from __future__ import annotations

import os
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from soak.cast import (
    ACTORS,
    OBSERVER,
    READERS,
    VIEWERS,
    Cast,
    compile_reader,
    start_actors,
    start_observer,
    start_viewers,
)
from soak.chaos import Chaos, Kind, Struck, plan
from soak.evidence import Told
from soak.judge import (
    Latency,
    Verdict,
    judge_appends,
    judge_calls,
    judge_ends,
    judge_log,
    judge_reads,
    judge_switches,
    judge_views,
    latency_of,
)
from soak.site import FIRST, Site, SoakError, new_site
from soak.vitals import Vitals, judge_growth, look

_WARM_UP = 0.1
"""This share of the blows is dealt before the first look at what is held."""

_QUIET_SECONDS = 30.0
_SETTLED_SECONDS = 2.0
_STALLS_SHOWN = 10


@dataclass(frozen=True)
class Order:
    """What is asked for. `variables` are for relfs's environment; without `views`, everybody sees what is current."""

    seconds: float
    seed: int
    without: tuple[Kind, ...]
    variables: dict[str, str]
    views: bool = True


@dataclass(frozen=True)
class Stall:
    """A call that took long, after which blow. All in seconds."""

    actor: str
    what: str
    seconds: float
    blow: str
    since: float


@dataclass(frozen=True)
class Outcome:
    """`baseline` is the latency of reads that need nothing of relfs; `vitals` the looks after the warm-up and at the
    end, fewer if relfs did not recover."""

    seconds: float
    seed: int
    blows: dict[str, int]
    reads: Latency
    baseline: Latency
    calls: dict[str, int]
    switches: int
    stalls: tuple[Stall, ...]
    vitals: tuple[Vitals, ...]
    verdicts: tuple[Verdict, ...]

    @property
    def kept(self) -> bool:
        return all(verdict.kept for verdict in self.verdicts)


def soak(order: Order, directory: Path, say: Callable[[str], None]) -> Outcome:
    """In the existing, empty `directory`. Raises SoakError if it cannot begin."""
    reader = compile_reader(directory / "reader")
    with new_site(directory, order.variables) as site, Cast(directory) as cast:
        start_observer(cast, site, reader)
        site.mount()
        if order.views:
            start_viewers(cast, site, reader)
        start_actors(cast, site, reader, order.seed)
        reign = _Reign(order, site, say)
        reign.run()
        for name in cast.started(ACTORS):
            cast.end(name)
        return _outcome(order, site, cast, reign)


class _Reign:
    """The blows, and what relfs held meanwhile. GUARDED BY nothing: one thread."""

    def __init__(self, order: Order, site: Site, say: Callable[[str], None]) -> None:
        self._order = order
        self._site = site
        self._say = say
        self.chaos = Chaos(site, order.seed)
        self.vitals: list[Vitals] = []
        self._wrong: tuple[str, ...] = ()
        self.seconds = 0.0

    def run(self) -> None:
        """Deal all blows, until relfs does not recover from one."""
        begin = time.monotonic()
        try:
            self._deal_all()
            self.vitals.append(self._look())
        except SoakError as error:
            self._wrong = (str(error),)
        self.seconds = time.monotonic() - begin

    def _deal_all(self) -> None:
        blows = plan(self._order.seconds, self._order.seed, self._order.without)
        begin = time.monotonic()
        for number, blow in enumerate(blows):
            if number == int(len(blows) * _WARM_UP):
                pause = time.monotonic()
                self.vitals.append(self._look())
                begin += time.monotonic() - pause
            time.sleep(max(0.0, begin + blow.at - time.monotonic()))
            self.chaos.deal(blow.kind)
            struck = self.chaos.struck[-1]
            self._say(f"{time.strftime('%X')} {number + 1} of {len(blows)}: {struck.kind} {struck.pids}")
        time.sleep(max(0.0, begin + self._order.seconds - time.monotonic()))

    def _look(self) -> Vitals:
        """Once all that relfs keeps running is there, and nobody comes or goes any more; with a worker that is a child
        of the standby that is there, which it shares most of its memory with, in all looks or in none."""
        self.chaos.deal("worker")
        self._site.wait_for_pids(lambda pids: len(pids.alive()) == 3, _QUIET_SECONDS)
        before, after = [0], self._site.processes()
        while before != after:
            time.sleep(_SETTLED_SECONDS)
            before, after = after, self._site.processes()
        return look(self._site)

    def verdicts(self) -> tuple[Verdict, ...]:
        recovers = Verdict("relfs recovers from every blow", self._wrong)
        grown = (judge_growth(*self.vitals),) if len(self.vitals) == 2 else ()
        return (recovers, self.chaos.verdict(), *grown)


# ---- the judgement -------------------------------------------------------------------------------------------------


def _outcome(order: Order, site: Site, cast: Cast, reign: _Reign) -> Outcome:
    told = {name: cast.told(name) for name in cast.started(ACTORS)}
    readers = [told[name] for name in READERS]
    viewers = [told[name] for name in cast.started(VIEWERS)]
    switches = told["switcher"].switches
    shown, journal = _readlink(site.app / "current"), site.journal()
    left = _leave(site)
    verdicts = (
        judge_calls(told.values()),
        judge_ends(told.values()),
        judge_reads([*readers, told[OBSERVER]], FIRST, switches),
        *((judge_views(viewers, VIEWERS),) if viewers else ()),
        judge_appends((site.app / "appended").read_bytes(), told["appender"].counts.get("append", 0)),
        judge_switches(switches, journal, shown, _readlink(site.app / "current")),
        *reign.verdicts(),
        left,
        judge_log(site.log()),
    )
    return Outcome(
        seconds=reign.seconds,
        seed=order.seed,
        blows=dict(Counter(struck.kind for struck in reign.chaos.struck)),
        reads=latency_of([*readers, *viewers]),
        baseline=latency_of([told[OBSERVER]]),
        calls={what: number for each in told.values() for what, number in each.counts.items()},
        switches=len(switches),
        stalls=_stalls(told.values(), reign.chaos.struck),
        vitals=tuple(reign.vitals),
        verdicts=verdicts,
    )


def _leave(site: Site) -> Verdict:
    """Unmount: then there is no mount and no process any more."""
    site.unmount()
    left = [f"process {pid}" for pid in site.processes()] + (["the mount"] if site.is_mounted() else [])
    site.clean_up()
    return Verdict("unmounting leaves nothing behind", tuple(left))


def _readlink(path: Path) -> str:
    """The release that the link leads to; by another process, since a mount that hangs would keep us for ever."""
    try:
        done = subprocess.run(["readlink", path], capture_output=True, text=True, timeout=10, check=False)
    except subprocess.TimeoutExpired:
        return "(no answer)"
    return os.path.basename(done.stdout.strip())


def _stalls(told: Collection[Told], struck: Sequence[Struck]) -> tuple[Stall, ...]:
    """The slowest calls, the worst first, each with the last blow before its end."""
    slow = sorted((each for actor in told for each in actor.slow), key=lambda each: -each.at.seconds)
    found = []
    for each in slow[:_STALLS_SHOWN]:
        before = [blow for blow in struck if blow.moment <= each.at.end]
        blow, since = (before[-1].kind, each.at.end - before[-1].moment) if before else ("nothing", 0.0)
        found.append(Stall(each.actor, each.what, each.at.seconds, blow, since))
    return tuple(found)
