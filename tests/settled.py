"""What must be found of a life (lives.py) after a power cut, before and after the next command has settled it: what is
current is old or new; each release is whole; nothing is left of what was interrupted; no name is given twice; what is
shared is not lost.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from unittest import mock

import pytest
from lives import REFUSED, Life, make_source, said
from recording import Acknowledged, MadeDirectory
from replay import Remains
from sandbox import activations_of

from relfs.cli.relfsctl import main
from relfs.errors import RelfsError
from relfs.layout import RELEASES, SHARED, DeployPath
from relfs.releases import deleter, inuse, trash
from relfs.releases.checking import check
from relfs.releases.deployment import read_deployment
from relfs.releases.inuse import Uses
from relfs.releases.manifest import MANIFESTS
from relfs.releases.registry import Registry
from relfs.releases.staging import PREFIX
from relfs.store import peek

NEITHER = "neither the old release nor the new one, or the old one after the new was acknowledged"
HALF = "a release that is not whole, or has nothing that vouches for it"
LOST = "a release that should be there, and is not"
BACK = "a release that should have gone, and is there"
LEFT = "something that is left of what was interrupted"
LITTER = "a manifest of nothing, half a seed, or something in the trash"
REUSED = "a name that was given before"
SHARE = "what is shared is half, or lost, or another than it was"
JOURNAL = "a journal that does not tell of the switch, or of one that never was"
STUCK = "a command that does not do as it is told"

NEXT = "next"
"""The source of the release that the next command makes."""


@dataclass(frozen=True)
class Cut:
    """A power cut: `left` is what may be found, `done` how many steps had been acknowledged."""

    left: Remains
    done: int


@dataclass
class Cuts:
    """A life's cuts, each once, with the names that had been spent at the last moment when it may have been; and those
    moments."""

    spent: dict[Cut, frozenset[str]] = field(default_factory=dict)
    moments: dict[Cut, int] = field(default_factory=dict)


def cut_off(life: Life) -> Cuts:
    """Cut the life off at every point. Its disk has changed then."""
    cuts, done, spent = Cuts(), 0, frozenset[str]()
    for number, event in enumerate([None, *life.events]):
        if isinstance(event, Acknowledged):
            done += 1
        elif event is not None:
            spent |= _spent_by(event)
            life.disk.do(event)
        for left in life.disk.remains():
            cut = Cut(left, done)
            cuts.spent[cut], cuts.moments[cut] = spent, number
    assert done == len(life.steps), "not every step was acknowledged"
    return cuts


def _spent_by(event: object) -> frozenset[str]:
    """Under a name that was given, a directory is made next."""
    made = event.path if isinstance(event, MadeDirectory) else ""
    start = f"{RELEASES}/{PREFIX}"
    return frozenset({made.removeprefix(start)} if made.startswith(start) and "/" not in made[len(start) :] else ())


# ---- looking, settling, looking again -------------------------------------------------------------------------------


def problems(life: Life, cut: Cut, spent: frozenset[str], app: Path) -> set[str]:
    """What is wrong with what was left, which is at `app`, and once the next commands have been there."""
    try:
        with closing(life.open(app)) as deploy, _quietly():
            before = _Look(life, cut.done, deploy)
            wrong = before.problems() | ({LEFT} if len(before.staged) > 1 else set())
            name = _add(life, app)
            if name in spent | before.names:
                wrong |= {REUSED}
            after = _Look(life, cut.done, deploy)
            wrong |= after.problems() | _changes(life, cut.done, before, after) | _unsettled(life, deploy, after, name)
            _prune(life, app)
            return wrong | _Look(life, cut.done, deploy).halves() | _litter(deploy)
    except (RelfsError, OSError, Stuck) as error:
        return {STUCK, str(error)}


class Stuck(Exception):  # noqa: N818 (it is a state)
    """A command said no to what it has to do."""


class _Look:
    """What there is, of releases and of what is shared."""

    def __init__(self, life: Life, done: int, deploy: DeployPath) -> None:
        self._life = life
        self._done = done
        self._deploy = deploy
        text = peek(deploy)
        self.current = deploy.target(text).label if text is not None else None
        found = os.listdir(f"{deploy.path}/{RELEASES}")
        self.names = frozenset(name for name in found if not name.startswith("."))
        self.staged = [name for name in found if name.startswith(PREFIX)]
        self.shared = {path: _text(f"{deploy.path}/{SHARED}/{path}") for path in life.shared}
        self.told = [each.release for each in activations_of(deploy) if each.action != "adopt"]

    def problems(self) -> set[str]:
        life, steps = self._life, self._life.steps
        wrong = set()
        if self.current not in (steps[self._done].path if self._done < len(steps) else steps[-1].path[-1:]):
            wrong.add(NEITHER)
        if not self.names >= life.stays | {step.made for step in steps[: self._done] if step.made is not None}:
            wrong.add(LOST)
        if self.names & {name for step in steps[: self._done] for name in step.removed}:
            wrong.add(BACK)
        return wrong | self.halves() | self._problems_with_shared()

    def halves(self) -> set[str]:
        return set() if all(map(self._is_whole, self.names)) else {HALF}

    def _is_whole(self, name: str) -> bool:
        if name in self._life.by_hand:
            return _text(f"{self._deploy.path}/{RELEASES}/{name}/index.html") == name
        try:
            return not check(self._deploy, name).differences
        except RelfsError:
            return False

    def _problems_with_shared(self) -> set[str]:
        """A directory is there with all that was in it, or not at all."""
        for top in {path.partition("/")[0] for path in self.shared}:
            texts = {path: text for path, text in self.shared.items() if path.partition("/")[0] == top}
            whole = [{path: said(path, name) for path in texts} for name in self._seeds()]
            there = os.path.lexists(f"{self._deploy.path}/{SHARED}/{top}")
            if texts not in whole and (there or self._done):
                return {SHARE}
        return set()

    def _seeds(self) -> Sequence[str]:
        """From where it may come; once a step was acknowledged, from there."""
        made = [step.made for step in self._life.steps if step.made is not None]
        return made if self._done else [*made, NEXT]


def _changes(life: Life, done: int, before: _Look, after: _Look) -> set[str]:
    """What settling has changed that it must not, or not changed that it must."""
    wrong = set()
    path = life.steps[done].path if done < len(life.steps) else life.steps[-1].path[-1:]
    if after.current != (before.current if before.current == path[0] else path[-1]):
        wrong.add(NEITHER)
    if any(text != after.shared[path] for path, text in before.shared.items() if text is not None):
        wrong.add(SHARE)
    history = [*life.history, *(name for step in life.steps for name in step.path[1:])]
    acknowledged = len(life.history) + sum(len(step.path) - 1 for step in life.steps[:done])
    if after.told != history[: len(after.told)] or len(after.told) < acknowledged:
        wrong.add(JOURNAL)
    if after.told and after.told[-1] != after.current:
        wrong.add(JOURNAL)
    return wrong


def _unsettled(life: Life, deploy: DeployPath, after: _Look, new: str) -> set[str]:
    """What is deployed, and was never current, is not left."""
    deployed = {step.made for step in life.steps if step.made is not None and len(step.path) > 1}
    never_current = after.names & deployed - {new, *after.told}
    return {LEFT} if after.staged or never_current or read_deployment(deploy.state_fd) is not None else set()


def _litter(deploy: DeployPath) -> set[str]:
    """What nobody will ever miss, or remove."""
    manifests = set(os.listdir(f"{deploy.state_path}/{MANIFESTS}"))
    known = {record.name for record in Registry(deploy.state_fd).records() if record.state == "finished"}
    seeds = list(Path(deploy.path, SHARED).rglob(".relfs-*"))
    with trash.opened(deploy) as trashes:
        return {LITTER} if manifests - known or seeds or any(map(trash.entries, trashes)) else set()


def _text(path: str) -> str | None:
    try:
        return Path(path).read_text()
    except FileNotFoundError:
        return None


# ---- the next commands ----------------------------------------------------------------------------------------------


def _add(life: Life, app: Path) -> str:
    """What the release is called. It is not made if what it had to finish first was found bad: that is said, once."""
    source = make_source(app.parent, NEXT)
    status, out = _ctl(life, app, "--json", "add", source)
    if status == REFUSED:
        status, out = _ctl(life, app, "--json", "add", source)
    if status != 0:
        raise Stuck(out)
    return str(json.loads(out)["name"])


def _prune(life: Life, app: Path) -> None:
    status, out = _ctl(life, app, "prune", "--keep", "1", "--unseen")
    if status != 0:
        raise Stuck(out)


def _ctl(life: Life, app: Path, *arguments: str) -> tuple[int, str]:
    """Status and output of relfsctl, without the start of an interpreter: it is asked thousands of times."""
    state = ["--state-dir", str(app / life.state)] if life.state is not None else []
    out, err = StringIO(), StringIO()
    argv = mock.patch.object(sys, "argv", ["relfsctl", "-C", str(app), *state, *arguments])
    with argv, redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as end:
        main()
    status = end.value.code
    assert isinstance(status, int)
    return status, out.getvalue() if status == 0 else err.getvalue()


def _delete_here(deploy: DeployPath, *, but: object = ()) -> bool:  # noqa: ARG001 (as start_deleting() is called)
    with trash.opened(deploy) as trashes:
        for each in trashes:
            deleter.empty(each, pace=0)
    return True


@contextmanager
def _quietly() -> Iterator[None]:
    """That something was left undone is no news. What is deleted, is deleted here, and nobody uses it: all processes of
    the machine would be asked, each time."""
    logging.disable()
    nobody = mock.Mock(return_value=Uses({}))
    try:
        with (
            mock.patch.object(deleter, "start_deleting", _delete_here),
            mock.patch.object(deleter, "who_uses_below", nobody),
            mock.patch.object(inuse, "who_uses", nobody),
        ):
            yield
    finally:
        logging.disable(logging.NOTSET)
