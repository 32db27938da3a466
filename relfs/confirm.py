"""A switch that has to be confirmed: `relfsctl switch 42 --confirm 60`, and back it goes unless somebody says that it
is good. What that means; who looks at the clock is told below.

A promise that outlives everything
----------------------------------
The facts. The one who switched may have cut himself off by it, which is what the promise is for: nothing of his may be
needed to keep it. Every process may be killed meanwhile, the machine may reboot, and the power may be cut between any
two steps. A note beside the journal could tell something else than the journal: that one switch waits for being
confirmed, when another was made since.

The choice. There is no such note: the switch's own event has the deadline. So it is written when the switch is, first
into `pending`, which is on the disk before the link is, then into the journal; it is recovered from `pending` as the
switch is; and it is over as soon as anything else is made current, by whomever, or an event `confirm` follows. What
waits is a question to the history (History.unconfirmed), of which there is one answer.

Being taken back is a rollback, done by whoever holds the pointer once the deadline is over: before anything else that
he does (Pointer.take_stock). That is the mount's worker, which looks at the clock; a mount that begins; without one,
any relfsctl, one of which was left behind for it by the switch (cli/waiter.py). Neither the deploy lock nor the hook
pre-switch is asked: they were when the switch was made, which was to be taken back then.
"""

from __future__ import annotations

from collections.abc import Mapping

from relfs.deadline import Deadline, deadline_in
from relfs.errors import RefusedError, UsageError
from relfs.history import History
from relfs.journal import Event, Journal
from relfs.layout import DeployPath
from relfs.records.releases import ways_back

_SECONDS_MAX = 366 * 86400.0
_TAIL = 1 << 16  # bytes of the journal; mostly enough for knowing what became current last


def deadline(seconds: float, what: str = "confirm") -> Deadline:
    """By when a switch that is made now has to be confirmed, or a canary decided about. Raises UsageError."""
    if not 0 < seconds <= _SECONDS_MAX:
        raise UsageError(f"{str(seconds)[:40]}: not a time to {what} in; give seconds, at most {_SECONDS_MAX:.0f}")
    return deadline_in(seconds)


def require_way_back(name: str, current: str | None, *, usable: bool) -> None:
    """Raises RefusedError if there would be no way back to `current` from `name`; `usable`: it is still good."""
    if current == name:
        raise RefusedError(f"{name}: is current already; there is nothing to go back to if it is not confirmed")
    if current is None or not usable:
        was = "there is no current release" if current is None else f"{current}: is no good release"
        raise RefusedError(f"{was}; there would be nothing to go back to, so leave out --confirm")


def overdue(history: History) -> Event | None:
    """The switch that was not confirmed in time, and is still to be taken back."""
    event = history.unconfirmed
    return event if event is not None and event.confirm is not None and event.confirm.is_over() else None


def waiting(directory: int | None) -> History:
    """As much of the history, of the state directory `directory`, as tells what waits for being confirmed.

    Raises RelfsError.
    """
    journal = Journal(directory)
    history = History(journal.events(most=_TAIL))
    return history if history.active is not None else History(journal.events())


def why_taken_back(event: Event) -> str:
    """What the journal tells of it."""
    return f"{event.release} was not confirmed in time"


def nothing_waits(history: History, release: str | None) -> str:
    """Why there is nothing to be confirmed."""
    waiting, last = history.unconfirmed, history.find(history.active or "")
    if waiting is not None:
        return f"{release}: does not wait for being confirmed; {waiting.release} does"
    if last is not None and last.why is not None:
        return f"{last.why}, and {last.release} is current again; there is nothing to confirm"
    return "nothing waits for being confirmed; `relfsctl switch RELEASE --confirm SECONDS` makes a switch that does"


def as_json(history: History) -> dict[str, object] | None:
    """What `relfsctl status` publishes: which release waits for being confirmed, until when, or where it goes back."""
    event = history.unconfirmed
    if event is None or event.confirm is None:
        return None
    return {
        "release": event.release, "back_to": event.origin, "since": event.time, "until": event.confirm.until,
        "id": event.id,
    }  # fmt: skip


def protected(deploy: DeployPath, history: History) -> Mapping[str, str]:
    """The releases that must not be removed while one of them waits for being confirmed, and why. Raises RelfsError."""
    event = history.unconfirmed
    if event is None or event.release is None:
        return {}
    kept = {event.release: "waits for being confirmed"}
    for name in ways_back(deploy, history, event.release):
        return {**kept, name: f"is what {event.release} goes back to unless it is confirmed"}
    return kept
