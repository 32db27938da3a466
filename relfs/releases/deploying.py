"""`relfsctl deploy`, step by step: what is done, what is undone when a step fails, and what becomes of one that was
interrupted. How a step is done is not here: see Steps.

A step is written down before it is begun (deployment.py). Whoever calls anything here holds the deploy lock.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from relfs.errors import RefusedError
from relfs.releases.deployment import (
    Deployment,
    Step,
    forget_deployment,
    read_deployment,
    write_deployment,
)


class Steps(Protocol):
    """How things are done here: through a daemon or without one. Each raises RelfsError, and may be interrupted."""

    def add(self, named: Callable[[str], None]) -> None:
        """Make the release. `named` is called with its name as soon as that is spent, and nothing was made yet."""

    def switch(self, name: str, request_id: str) -> None:
        """Make it current, and have it verified; asked again with the same id, do nothing twice.

        Raises RefusedError if it may not be switched to; or if it was, and verifying it said no, when it has been left
        again, and is marked bad."""

    def was_switched(self, request_id: str) -> bool:
        """Whether the journal knows of that switch."""

    def discard(self, name: str) -> None:
        """Remove what was made under that name, whole or in part. Whoever makes it current at this moment comes before
        or after this; raises RefusedError if it was before."""

    def prune(self) -> None:
        """Remove what is old and unused. Raises nothing: what cannot be removed is said, and tried again next time."""


@dataclass(frozen=True)
class Request:
    """What is to be deployed, by whom, and whether what is old goes then; `id` is made by whoever asks, `since` in
    seconds since the epoch."""

    id: str
    source: str
    user: str
    since: float
    prune: bool = True


def deploy(steps: Steps, directory: int, request: Request, previous: str | None) -> str:
    """All of it; the name of the release that is current then. `directory` is the state directory's descriptor.

    Raises RelfsError, and whatever interrupted it: then, before the switch, it is as if nothing had been done.
    """
    note = _Note(directory)

    def named(name: str) -> None:
        note.begin(Deployment(request.id, "adding", name, previous, request.source, request.user, request.since))

    with _undone(steps, note):
        steps.add(named)
        note.step("switching")
        steps.switch(note.name, request.id)
    name = note.name
    if request.prune:
        _prune(steps, note)
    else:
        note.forget()
    return name


def settle(steps: Steps, directory: int) -> str | None:
    """Finish, or undo, what an interrupted deployment has left; a line that says so (None: there was nothing).

    Raises RelfsError; RefusedError if verifying the release said no now: then it has been left again.
    """
    left = read_deployment(directory)
    if left is None:
        return None
    note = _Note(directory, left)
    if left.step == "pruning":
        _prune(steps, note)
        return f"{left} was interrupted while it removed old releases; that is done now"
    if _undo(steps, note):
        return f"{left} was interrupted before the switch; what it had made was removed"
    with _undone(steps, note):
        steps.switch(left.name, left.id)
    note.forget()
    return f"{left} was interrupted after the switch; it is finished now"


class _Note:
    """The deployment as it is written down."""

    def __init__(self, directory: int, deployment: Deployment | None = None) -> None:
        self._directory = directory
        self.deployment = deployment

    @property
    def name(self) -> str:
        assert self.deployment is not None, "a deployment has a name once its release has one"
        return self.deployment.name

    def was_switched(self, steps: Steps) -> bool:
        left = self.deployment
        return left is not None and left.step == "switching" and steps.was_switched(left.id)

    def begin(self, deployment: Deployment) -> None:
        write_deployment(self._directory, deployment)
        self.deployment = deployment

    def step(self, step: Step) -> None:
        assert self.deployment is not None
        self.begin(self.deployment.at(step))

    def forget(self) -> None:
        forget_deployment(self._directory)
        self.deployment = None


@contextmanager
def _undone(steps: Steps, note: _Note) -> Iterator[None]:
    """What fails, or is interrupted, before the switch is as if it had never been begun. What is refused after it has
    come to its end; what is interrupted there is for the next command to finish."""
    try:
        yield
    except BaseException as error:
        if note.deployment is not None and not _undo(steps, note) and isinstance(error, RefusedError):
            note.forget()
        raise


def _undo(steps: Steps, note: _Note) -> bool:
    """Take back what was made; False if it was switched to, and stays.

    A daemon may be about to make the switch, though who asked for it is gone. It holds the change lock then, as whoever
    removes a release does: so one of the two is refused, and the journal tells which.
    """
    if note.was_switched(steps):
        return False
    try:
        steps.discard(note.name)
    except RefusedError:
        if note.was_switched(steps):
            return False
        raise
    note.forget()
    return True


def _prune(steps: Steps, note: _Note) -> None:
    note.step("pruning")
    steps.prune()
    note.forget()
