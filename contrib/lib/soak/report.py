"""The outcome in words. Promises are kept or broken; aims are met, or missed by so much."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from soak.judge import Latency, Verdict
from soak.killall import Deaths
from soak.run import Outcome
from soak.vitals import Vitals

_SHOWN_MAX = 5
"""So many examples of what is wrong are enough."""

_P99_AIM = 0.05
_WORST_AIM = 2.0


def outcome_as_text(outcome: Outcome) -> str:
    """For people."""
    blows = ", ".join(f"{number} {kind}" for kind, number in sorted(outcome.blows.items()))
    calls = ", ".join(f"{number} {what}" for what, number in sorted(outcome.calls.items()))
    return "\n".join(
        [
            f"{outcome.seconds:.0f} s, seed {outcome.seed}: {sum(outcome.blows.values())} blows ({blows})",
            f"{outcome.switches} switches; {calls}",
            "",
            *_latency_lines(outcome),
            "",
            *_stall_lines(outcome),
            *_vitals_lines(outcome.vitals),
            "",
            *_verdict_lines(outcome.verdicts),
        ]
    )


def deaths_as_text(deaths: Deaths) -> str:
    """For people."""
    head = f"{deaths.rounds} times everything was killed; the site answered after {deaths.worst * 1e3:.0f} ms at most"
    return "\n".join([head, "", *_verdict_lines(deaths.verdicts)])


def _latency_lines(outcome: Outcome) -> Iterator[str]:
    yield f"{'reads, ms':<16}{'reads':>12}{'p50':>10}{'p99':>10}{'p99.9':>10}{'worst':>10}"
    yield _latency_line("through relfs", outcome.reads)
    yield _latency_line("beside it", outcome.baseline)
    yield _aim_line("99th percentile", outcome.reads.p99, _P99_AIM)
    yield _aim_line("worst", outcome.reads.worst, _WORST_AIM)


def _latency_line(title: str, latency: Latency) -> str:
    figures = (latency.p50, latency.p99, latency.p999, latency.worst)
    return f"{title:<16}{latency.reads:>12}" + "".join(f"{figure * 1e3:>10.3f}" for figure in figures)


def _aim_line(what: str, seconds: float, aim: float) -> str:
    return f"aim: {what} below {aim * 1e3:g} ms: {'met' if seconds < aim else f'missed, {seconds * 1e3:.0f} ms'}"


def _stall_lines(outcome: Outcome) -> Iterator[str]:
    for stall in outcome.stalls:
        yield (
            f"{stall.seconds * 1e3:>7.0f} ms  {stall.actor}: {stall.what}; "
            f"ended {stall.since * 1e3:.0f} ms after: {stall.blow}"
        )
    if outcome.stalls:
        yield ""


def _vitals_lines(vitals: Iterable[Vitals]) -> Iterator[str]:
    columns = ("processes", "zombies", "PSS, MB", "shared", "files", "threads", "idle", "mounts")
    yield f"{'':<16}" + "".join(f"{column:>10}" for column in columns)
    for title, look in zip(("after warm-up", "at the end"), vitals, strict=False):
        yield (
            f"{title:<16}{look.processes:>10}{look.zombies:>10}{look.pss_mb:>10.1f}{look.shared_mb:>10.1f}"
            f"{look.descriptors:>10}{look.threads:>10}{look.idle_threads:>10}{look.mounts:>10}"
        )


def _verdict_lines(verdicts: Iterable[Verdict]) -> Iterator[str]:
    for verdict in verdicts:
        yield f"{'kept  ' if verdict.kept else 'BROKEN'}  {verdict.promise}"
        yield from (f"        {each}" for each in verdict.wrong[:_SHOWN_MAX])
        if len(verdict.wrong) > _SHOWN_MAX:
            yield f"        and {len(verdict.wrong) - _SHOWN_MAX} more"
