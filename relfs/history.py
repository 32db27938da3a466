"""What the journal means: which release came before, which are bad, what was current at some time.

Pure: events go in, answers come out. Nothing here reads or writes a file.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime

from relfs.errors import RefusedError, UsageError
from relfs.journal import IMPORTED, Event
from relfs.layout import RELEASES, Release
from relfs.names import FOR_ALL

ACTIVATIONS = frozenset({"switch", "rollback", "adopt", "follow"})
"""The actions, in the journal, that make something current."""

WORDS = (FOR_ALL, "@previous", "@latest", "@last-good")
"""The references whose meaning changes with what happens here."""

CONFIRM = "confirm"
CANARY = "canary"
ABORT = "abort"
_KEEP_ACTIVATIONS = 10_000
_KEEP_IDS = 4_096


@dataclass(frozen=True)
class Activation:
    """From `time` (seconds since the epoch) on, `release` was current; `by` is who did it."""

    time: float
    release: str
    by: str


class History:
    """A running summary of the journal, of bounded size.

    GUARDED BY whoever adds to it, one at a time. Other threads may ask meanwhile, and get the answer from before or
    after: what is added changes each list in one step.
    INVARIANT: `path` is the way that led to the current release: a rollback takes back what came after its target,
    so `path[-1]` is current, and going back again goes further back, not forth.
    INVARIANT: no release in `bad` is current.
    `written` is what the current link was given for a text, where the real link says it otherwise.
    `unconfirmed` is the event that made current what is to be confirmed by its deadline, until it is, or something else
    becomes current. `active` is the id of the last one that made anything current.
    `canary` is the event that made a release current for an audience, until that is aborted, or the release becomes
    current for all.
    `witnessed` is the time of the last event that relfs saw itself (None: it knows of others' records only).
    """

    def __init__(self, events: Iterable[Event] = ()) -> None:
        self.activations: list[Activation] = []
        self.path: list[str] = []
        self.bad: set[str] = set()
        self.written: str | None = None
        self.witnessed: float | None = None
        self.unconfirmed: Event | None = None
        self.active: str | None = None
        self.canary: Event | None = None
        self._by_id: OrderedDict[str, Event] = OrderedDict()
        for event in events:
            self.add(event)

    def add(self, event: Event) -> None:
        """Take in the next event."""
        self._by_id[event.id] = event
        if len(self._by_id) > _KEEP_IDS:
            self._by_id.popitem(last=False)
        if event.outcome != IMPORTED:
            self.witnessed = event.time
        if event.succeeded and event.action in ACTIVATIONS and event.release is not None:
            self._activate(event, event.release)
            self.written = event.text
            self.active = event.id
            self.unconfirmed = event if event.confirm is not None else None
        if event.succeeded and event.action == CONFIRM:
            self.unconfirmed = None
        if event.succeeded:
            self._note_canary(event)

    def _activate(self, event: Event, release: str) -> None:
        if event.action == "rollback":
            if event.origin is not None and event.origin != release:
                self.bad.add(event.origin)
            self.path = self._way_back_to(release)
            if len(self.bad) > _KEEP_ACTIVATIONS:
                self.bad &= {*self.path, event.origin}
        self.bad.discard(release)
        if not self.path or self.path[-1] != release:
            self.path.append(release)
        if not self.activations or self.activations[-1].release != release:
            self.activations.append(Activation(event.time, release, event.actor.user))
        del self.activations[:-_KEEP_ACTIVATIONS], self.path[:-_KEEP_ACTIVATIONS]

    def _note_canary(self, event: Event) -> None:
        if event.action == CANARY and event.release is not None and event.audience is not None:
            self.canary = event
        elif event.action == ABORT or (event.action in ACTIVATIONS and self._is_canary(event.release)):
            self.canary = None

    def _is_canary(self, release: str | None) -> bool:
        return self.canary is not None and self.canary.release == release

    def _way_back_to(self, release: str) -> list[str]:
        """The path without what a rollback to `release` takes back."""
        if release in self.path:
            return [*self.path[: len(self.path) - self.path[::-1].index(release) - 1], release]
        return [*self.path[:-1], release]  # it was never current: only the one that is left is taken back

    def find(self, request_id: str) -> Event | None:
        """The event that request `request_id` led to, if it is among the last ones."""
        return self._by_id.get(request_id)

    @property
    def previous(self) -> str | None:
        """The release before the current one, on the way that led to it."""
        before = self.path[-2:-1]
        return before[0] if before else None

    def at(self, moment: float) -> str | None:
        """What was current at `moment` (seconds since the epoch); None: before the first record."""
        found = None
        for activation in self.activations[:]:
            if activation.time > moment:
                break
            found = activation.release
        return found

    def check_invariants(self) -> None:
        """For tests: raise AssertionError where an INVARIANT of this class does not hold."""
        assert not (self.path and self.path[-1] in self.bad), "the current release is marked bad"
        assert all(a != b for a, b in zip(self.path, self.path[1:], strict=False)), "a repeated step in the path"


def rollback_target(history: History, current: str | None, usable: Iterable[str]) -> str:
    """The last good release before the current one, by activation. Raises RefusedError: there is nowhere to go."""
    for release in ways_back_among(history, current, usable):
        return release
    raise RefusedError("no earlier release to go back to; `relfsctl switch RELEASE` goes to any")


def ways_back_among(history: History, current: str | None, usable: Iterable[str]) -> Iterator[str]:
    """Where going back, again and again, leads: the good ones among the releases `usable`, each once."""
    candidates = set(usable) - history.bad - {current}
    for release in reversed(history.path):
        if release in candidates:
            candidates.discard(release)
            yield release


def resolve(
    reference: str,
    history: History,
    current: str | None,
    releases: Iterable[Release],
    is_good: Callable[[str], bool] = lambda _: True,
    *,
    now: Callable[[], float] = time.time,
) -> str:
    """The release that `reference` names: itself, or what an `@` name stands for. Of `@` names, the words come first,
    then the releases' own names, then moments: a release that is called 20260901 is what @20260901 means.

    A moment that is still to come stands for nothing: who names one has mistaken the day or the time zone, and is not
    to get what happens to be current.

    `is_good` tells of what is in a release whether it speaks against going back there; `now` is the time.

    Raises UsageError for an unknown `@` name, RefusedError for one that stands for nothing now.
    """
    if not reference.startswith("@"):
        return reference
    existing = [release.name for release in releases]
    of_words: tuple[Callable[[], str | None], ...] = (
        lambda: current,
        lambda: history.previous,
        lambda: existing[-1] if existing else None,
        lambda: rollback_target(history, current, filter(is_good, existing)),
    )
    meanings = dict(zip(WORDS, of_words, strict=True))

    def release_or_moment() -> str | None:
        name = reference[1:]
        return name if name in existing else history.at(_past(reference, history, now()))

    release = meanings.get(reference, release_or_moment)()
    if release is None or "/" in release:  # a link text that led elsewhere is no release
        raise RefusedError(f"{reference}: stands for no release here; `relfsctl log` shows the history")
    return release


def _past(reference: str, history: History, now: float) -> float:
    """The moment. Where the clock was set back, what has happened counts as past."""
    moment = _moment(reference)
    if moment > now and all(moment > each.time for each in history.activations[-1:]):
        shown = datetime.fromtimestamp(now).astimezone().isoformat(timespec="seconds")
        raise RefusedError(f"{reference}: is still to come, it is {shown} here; nobody knows what is current then")
    return moment


def _moment(reference: str) -> float:
    try:
        return datetime.fromisoformat(reference[1:]).timestamp()
    except ValueError:
        raise UsageError(
            f"{reference}: not a release; known are {', '.join(WORDS)}, @2026-09-01T12:00, "
            f"and @NAME for one in {RELEASES}/"
        ) from None
