"""How far a deployment has come: `.relfs/deploy`, one JSON document, replaced before each step.

What an interrupted deployment leaves
-------------------------------------
The facts. relfsctl may be killed, or the machine lose its power, between any two instructions; only what was flushed is
found afterwards. A release that was added and not switched to is nobody's: its maker meant to switch, and did not. One
that was switched to is what visitors see, and taking it away unasked is a second surprise.

The choice. Each step is written down before it is begun, with all that undoing it needs. So the step that is found is
the one that may or may not have been done, or in part:

    adding      the name is spent; staging, or the release itself, may be there: they go, as if nothing had been done
    switching   if the journal knows the switch by its id, the release stays, unless verify says otherwise: the switch
                is asked for again, which does nothing but finish verifying it; if not, as adding
    pruning     nothing is left to undo; the next deployment prunes, too

A note is somebody's who lives, or was left. Who deploys holds the deploy lock (hold.py), so whoever has that and finds
a note knows that it was left.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from typing import Literal, get_args

from relfs.beneath import read_file
from relfs.durable import remove_file, replace_file
from relfs.errors import RelfsError, reason

DEPLOYMENT = "deploy"

Step = Literal["adding", "switching", "pruning"]

_STEPS = frozenset(get_args(Step))
_MAX = 1 << 16  # bytes


@dataclass(frozen=True)
class Deployment:
    """A deployment that was begun. `id` is the request id of its switch; `since` is in seconds since the epoch; `name`
    is the release's, and `previous` what was current before (None: nothing was)."""

    id: str
    step: Step
    name: str
    previous: str | None
    source: str
    user: str
    since: float

    def at(self, step: Step) -> Deployment:
        return replace(self, step=step)

    def __str__(self) -> str:
        return f"the deployment of {self.name} by {self.user} from {self.source}"


def read_deployment(directory: int | None) -> Deployment | None:
    """The deployment that goes on, or was left; None if there is none. Raises RelfsError."""
    try:
        return _decode(read_file(directory, DEPLOYMENT, _MAX)) if directory is not None else None
    except FileNotFoundError:
        return None
    except OSError as error:
        raise RelfsError(f"{DEPLOYMENT}: how far a deployment has come cannot be read: {reason(error)}") from error


def write_deployment(directory: int, deployment: Deployment) -> None:
    """Write down what is about to be done, durably. The caller holds the deploy lock. Raises RelfsError."""
    try:
        replace_file(directory, DEPLOYMENT, json.dumps(asdict(deployment)).encode("ascii"))
    except OSError as error:
        raise RelfsError(f"{DEPLOYMENT}: how far this has come cannot be written: {reason(error)}") from error


def forget_deployment(directory: int) -> None:
    """Nothing is being deployed, and nothing is left. Raises RelfsError."""
    try:
        remove_file(directory, DEPLOYMENT)
    except OSError as error:
        raise RelfsError(f"{DEPLOYMENT}: cannot be removed: {reason(error)}") from error


def _decode(data: bytes) -> Deployment | None:
    """None for what is no deployment: it was replaced in one step, so relfs has not written it."""
    try:
        fields = json.loads(data)
        if fields["step"] not in _STEPS:
            return None
        previous = fields["previous"]
        return Deployment(
            str(fields["id"]), fields["step"], str(fields["name"]), str(previous) if previous is not None else None,
            str(fields["source"]), str(fields["user"]), float(fields["since"]),
        )  # fmt: skip
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
        return None
