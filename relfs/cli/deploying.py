"""Deploying for commands: how the steps of releases/deploying.py are done here, and what every command that changes
something does first: it finishes or undoes a deployment that was interrupted, and says so.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from relfs.cli.holding import take_lock
from relfs.cli.output import say_error
from relfs.cli.session import change_current, in_hook, open_here
from relfs.errors import LockedError, RelfsError
from relfs.locate import Place
from relfs.releases.deployment import DEPLOYMENT

if TYPE_CHECKING:
    from relfs.config import Config
    from relfs.layout import DeployPath
    from relfs.releases.sharing import Sharing
    from relfs.releases.sources import Source

_REASON = "relfsctl deploy"


@dataclass(frozen=True)
class Wanted:
    """What is to be deployed, and how."""

    source: Source
    name: str | None
    share: Sharing
    prune: bool


@dataclass
class Deployed:
    """What was done, as `relfsctl --json deploy` publishes it: what `add`, `switch` and `prune` do."""

    release: str = ""
    previous: str | None = None
    added: dict[str, Any] = field(default_factory=dict)
    switched: dict[str, Any] = field(default_factory=dict)
    pruned: dict[str, Any] = field(default_factory=dict)


def deploy_here(place: Place, wanted: Wanted) -> Deployed:
    """All of it. Raises LockedError if somebody else deploys, with relfs or a tool, or holds the deploy lock;
    RefusedError if a check, a hook or verifying says no; RelfsError."""
    from relfs.journal import this_actor
    from relfs.releases.deploying import Request, deploy

    take_lock(place, own=True, why=_REASON)
    with _steps(place, wanted) as steps:
        steps.require_no_tool()
        _settle(steps)
        request = Request(os.urandom(16).hex(), wanted.source.label, this_actor().user, time.time(), wanted.prune)
        steps.done.previous = steps.current()
        steps.done.release = deploy(steps, steps.state_fd, request, steps.done.previous)
        return steps.done


def settle_left(place: Place) -> None:
    """Finish or undo what an interrupted deployment has left, if there is one and nobody holds the deploy lock, as one
    that goes on does. Raises RefusedError if the release that it left is not good; RelfsError."""
    if not any(os.path.lexists(f"{path}/{DEPLOYMENT}") for path in place.state_paths) or in_hook(place):
        return
    try:
        take_lock(place, own=True, why=_REASON)
    except LockedError:
        return
    with _steps(place, None) as steps:
        _settle(steps)


def _settle(steps: _Steps) -> None:
    from relfs.releases.deploying import settle

    said = settle(steps, steps.state_fd)
    if said is not None:
        say_error(f"relfsctl: {said}")


@contextmanager
def _steps(place: Place, wanted: Wanted | None) -> Iterator[_Steps]:
    from relfs.config import load_config

    deploy = open_here(place, create_state=True)
    try:
        assert deploy.state_fd is not None, "it was made"
        yield _Steps(place, deploy, load_config(deploy.state_fd, deploy.state_path), wanted)
    finally:
        deploy.close()


class _Steps:
    """releases.deploying.Steps, in a deploy path that may be mounted."""

    def __init__(self, place: Place, deploy: DeployPath, config: Config, wanted: Wanted | None) -> None:
        """`wanted` is None for what only finishes what was left."""
        assert deploy.state_fd is not None
        self.state_fd = deploy.state_fd
        self.done = Deployed()
        self._place = place
        self._deploy = deploy
        self._config = config
        self._wanted = wanted

    def require_no_tool(self) -> None:
        """Raises LockedError: the switch would be refused, after all the work."""
        from relfs.hold import require_no_tool

        require_no_tool(self._deploy)

    def current(self) -> str | None:
        from relfs.store import current_release

        return current_release(self._deploy)

    def add(self, named: Callable[[str], None]) -> None:
        from relfs.cli.adding import add_release

        assert self._wanted is not None
        wanted = self._wanted
        added = add_release(self._deploy, self._config, wanted.source, wanted.share, name=wanted.name, named=named)
        self.done.added = asdict(added)

    def switch(self, name: str, request_id: str) -> None:
        self.done.switched = change_current(self._place, "switch", name, request_id=request_id)

    def was_switched(self, request_id: str) -> bool:
        from relfs.history import History
        from relfs.journal import Journal

        event = History(Journal(self.state_fd).events()).find(request_id)
        return event is not None and event.succeeded

    def discard(self, name: str) -> None:
        from relfs.cli.pruning import discard
        from relfs.releases.adding import resume

        resume(self._deploy)
        discard(self._place, self._deploy, name, force=True)  # it was never current: no tool's clean-up knows it

    def prune(self) -> None:
        from relfs.cli.pruning import prune

        try:
            pruned = prune(self._place)
        except RelfsError as error:
            say_error(f"relfsctl: nothing old was removed: {error}")
            return
        self.done.pruned = asdict(pruned)
        for decision in pruned.failed:
            say_error(f"relfsctl: {decision.name}: could not be removed: {decision.why}")
