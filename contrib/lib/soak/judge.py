"""Which promises the evidence keeps, and which it breaks. Pure: it is told everything, and looks at nothing.

Which release a read may show
    A switch takes effect at some moment between its question and its answer. So a release may be seen from the question
    of its own switch to the answer of the next one; a read shows it rightly if any moment of the read is in there.
    Readers tell of reads that saw the same as one run. A run is right if one activation covers it, from the end of its
    first read to the start of its last: a release does not come back before many others had their turn, so a reader
    that sees it throughout has missed these.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from soak.actors.appender import line as appended_line
from soak.evidence import Failure, Run, Span, Switch, Told

_TROUBLE = re.compile(r"^\S+ \S+ (ERROR|CRITICAL) |^Traceback ")


@dataclass(frozen=True)
class Verdict:
    """On one promise; it is kept if nothing is `wrong`."""

    promise: str
    wrong: tuple[str, ...]

    @property
    def kept(self) -> bool:
        return not self.wrong


def judge_calls(told: Iterable[Told]) -> Verdict:
    """No system call fails, and no command."""
    failures: list[Failure] = [failure for each in told for failure in each.failures]
    return Verdict("no system call fails", tuple(map(str, failures)))


def judge_ends(told: Iterable[Told]) -> Verdict:
    """What was killed or hangs has told nothing of what it saw at last."""
    return Verdict("every actor comes to its end", tuple(each.actor for each in told if not each.ended))


def judge_reads(told: Iterable[Told], first: str, switches: Sequence[Switch]) -> Verdict:
    """Every read shows a release that was current at some time during it. `switches` are in their order; `first` was
    current before."""
    activations = _activations(first, switches)
    wrong = [
        f"{each.actor}: {run.reads} reads within {run.last.end - run.first.start:.3f} s saw {run.release or 'nothing'}"
        for each in told
        for run in each.runs
        if not any(_covers(activation, run) for activation in activations[run.release])
    ]
    return Verdict("every read shows what was current meanwhile", tuple(wrong))


def _activations(first: str, switches: Sequence[Switch]) -> dict[str, list[Span]]:
    """By release: from the question that made it current to the answer that made it not."""
    begins = [(first, float("-inf")), *((switch.release, switch.at.start) for switch in switches)]
    ends = [*(switch.at.end for switch in switches), float("inf")]
    found: dict[str, list[Span]] = defaultdict(list)
    for (release, begin), end in zip(begins, ends, strict=True):
        found[release].append(Span(begin, end))
    return found


def _covers(activation: Span, run: Run) -> bool:
    return activation.start <= run.first.end and run.last.start <= activation.end


def judge_views(told: Iterable[Told], views: Mapping[str, str]) -> Verdict:
    """Every read of an actor that is pinned, or of a canary's audience, shows its release, whatever is current. `views`
    has that by the actor's name."""
    wrong = [
        f"{each.actor}: {run.reads} reads saw {run.release or 'nothing'} instead of {views[each.actor]}"
        for each in told
        for run in each.runs
        if run.release != views[each.actor]
    ]
    return Verdict("who is pinned, or a canary is for, sees that release only", tuple(wrong))


def judge_appends(content: bytes, appended: int) -> Verdict:
    """Lines 0, 1, 2 … were appended, `appended` of them: each is there once, whole, and in order."""
    numbers = [_number(line) for line in content.splitlines(keepends=True)]
    wrong = [f"line {place + 1} is torn" for place, number in enumerate(numbers) if number is None]
    whole = [number for number in numbers if number is not None]
    there = set(whole)
    wrong += [f"{number} is lost" for number in range(appended) if number not in there]
    wrong += [f"{number} was never appended" for number in sorted(there) if number >= appended]
    wrong += [f"{after} is there after {before}" for before, after in pairwise(whole) if after <= before]
    return Verdict("no append is lost or doubled", tuple(wrong))


def _number(line: bytes) -> int | None:
    """What the appender's line says, if nothing is missing from it."""
    number, space, rest = line.partition(b" ")
    if not (number.isdigit() and space and line.endswith(b"\n")):
        return None
    return int(number) if appended_line(int(number)) == number + space + rest else None


def judge_switches(switches: Sequence[Switch], journal: Sequence[str], current: str, real: str) -> Verdict:
    """Each that was answered is in the journal, once and in order; the last is what the mount shows, and the disk.

    `journal` has the releases that were made current, oldest first, without what was before the first switch.
    """
    wanted = [switch.release for switch in switches]
    wrong = [] if list(journal) == wanted else [_first_difference(wanted, journal)]
    if wanted:
        wrong += [f"{where} shows {shown}, and {wanted[-1]} was the last that was answered"
                  for where, shown in (("the mount", current), ("the disk", real)) if shown != wanted[-1]]  # fmt: skip
    return Verdict("no switch is lost or doubled", tuple(wrong))


def _first_difference(wanted: Sequence[str], journal: Sequence[str]) -> str:
    place = next((i for i, (a, b) in enumerate(zip(wanted, journal, strict=False)) if a != b),
                 min(len(wanted), len(journal)))  # fmt: skip
    answered, written = (list(each[max(place - 1, 0) : place + 3]) for each in (wanted, journal))
    return (
        f"{len(wanted)} were answered and {len(journal)} are in the journal; number {place + 1} differs first: "
        f"{answered}, {written}"
    )


def judge_log(lines: Iterable[str]) -> Verdict:
    """A killed process is worth a warning. An error, or a traceback, says that something could not be done."""
    return Verdict("the log tells of no error", tuple(line.strip() for line in lines if _TROUBLE.search(line)))


@dataclass(frozen=True)
class Latency:
    """Of reads, in seconds. Percentiles are upper bounds: the histogram's buckets are an eighth wide at most."""

    reads: int
    p50: float
    p99: float
    p999: float
    worst: float


def latency_of(told: Iterable[Told]) -> Latency:
    """Of all readers together."""
    buckets: dict[float, int] = defaultdict(int)
    for each in told:
        for bound, reads in each.latency.items():
            buckets[bound] += reads
    p50, p99, p999 = (_percentile(buckets, share) for share in (0.5, 0.99, 0.999))
    return Latency(sum(buckets.values()), p50, p99, p999, max(buckets, default=0.0))


def _percentile(buckets: dict[float, int], share: float) -> float:
    wanted = share * sum(buckets.values())
    seen = 0
    for bound in sorted(buckets):
        seen += buckets[bound]
        if seen >= wanted:
            return bound
    return 0.0
