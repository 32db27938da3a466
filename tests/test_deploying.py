"""Deploying, step by step, in a world that is simulated: whatever dies, fails or is interrupted, and whenever."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from relfs.errors import RefusedError, RelfsError
from relfs.releases.deploying import Request, deploy, settle
from relfs.releases.deployment import Deployment, read_deployment, write_deployment

_REQUEST = Request("id-1", "/src", "ada", 5.0)
_CALLS = ("named", "add", "switch", "verify", "prune")


class Killed(BaseException):
    """Nothing runs any more after it, neither what cleans up."""


@dataclass
class World:
    """What there is; its methods are the steps. Something happens before or after call `at`, counted from 0."""

    at: int = -1
    happens: Callable[[], None] | None = None
    after: bool = False
    healthy: bool = True
    current: str = "42"
    releases: list[str] = field(default_factory=lambda: ["41", "42"])
    bad: list[str] = field(default_factory=list)
    switched: list[str] = field(default_factory=list)
    calls: list[str] = field(default_factory=list)
    dead: bool = False

    def _call(self, name: str, effect: Callable[[], None]) -> None:
        if self.dead:
            raise Killed
        number = len(self.calls)
        self.calls.append(name)
        if number == self.at and not self.after and self.happens is not None:
            self.happens()
        effect()
        if number == self.at and self.after and self.happens is not None:
            self.happens()

    def die(self) -> None:
        self.dead = True
        raise Killed

    def add(self, named: Callable[[str], None]) -> None:
        self._call("named", lambda: named("43"))
        self._call("add", lambda: self.releases.append("43"))

    def switch(self, name: str, request_id: str) -> None:
        def switch() -> None:
            if request_id not in self.switched:
                self.switched.append(request_id)
                self.current = name

        self._call("switch", switch)
        self._call("verify", self._verify)

    def _verify(self) -> None:
        if not self.healthy:
            self.bad.append("43")
            self.current = "42"
            raise RefusedError("43: not verified: 500; 42 is current again")

    def was_switched(self, request_id: str) -> bool:
        if self.dead:
            raise Killed
        return request_id in self.switched

    def discard(self, name: str) -> None:
        self._call("discard", lambda: self.releases.remove(name) if name in self.releases else None)

    def prune(self) -> None:
        self._call("prune", lambda: None)

    def raised_from_the_dead(self) -> World:
        return World(
            healthy=self.healthy, current=self.current, releases=self.releases, bad=self.bad, switched=self.switched
        )


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[int]:
    fd = os.open(tmp_path, os.O_RDONLY)
    yield fd
    os.close(fd)


def test_all_goes_well(directory: int) -> None:
    world = World()
    assert deploy(world, directory, _REQUEST, "42") == "43"
    assert world.calls == list(_CALLS)
    assert read_deployment(directory) is None
    assert settle(World(), directory) is None


def test_verify_says_no(directory: int) -> None:
    """The release stays, for whoever wants to know why; nothing is pruned on account of it."""
    world = World(healthy=False)
    with pytest.raises(RefusedError, match="43: not verified: 500; 42 is current again"):
        deploy(world, directory, _REQUEST, "42")
    assert (world.current, world.bad, read_deployment(directory)) == ("42", ["43"], None)
    assert "43" in world.releases
    assert "prune" not in world.calls


# ---- killed ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("healthy", [True, False])
@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("at", range(5))
def test_killed_before_or_after_any_step(directory: int, at: int, after: bool, healthy: bool) -> None:
    """And the next command finds out, and is killed itself in each of its steps, until one is not."""
    world = World(at=at, after=after, healthy=healthy)
    world.happens = world.die
    with pytest.raises((Killed, RefusedError)):  # refused where verify says no, and so never gets to its end
        deploy(world, directory, _REQUEST, "42")
    for step in range(5):
        world = world.raised_from_the_dead()
        world.at, world.after, world.happens = step, after, world.die
        with suppress(RefusedError, Killed):
            settle(world, directory)
    world = world.raised_from_the_dead()
    with suppress(RefusedError):
        settle(world, directory)
    assert read_deployment(directory) is None
    _check_settled(world)


def _check_settled(world: World) -> None:
    """Nothing is lost, nothing half, and `current` is right."""
    if not world.switched:
        assert (world.current, world.releases, world.bad) == ("42", ["41", "42"], [])
    elif world.healthy:
        assert (world.current, world.releases, world.bad) == ("43", ["41", "42", "43"], [])
    else:
        assert (world.current, world.releases) == ("42", ["41", "42", "43"])
        assert world.bad


def test_settling_says_what_it_did(directory: int) -> None:
    left = Deployment("id-1", "adding", "43", "42", "/src", "ada", 5.0)
    write_deployment(directory, left)
    said = settle(World(releases=["42", "43"]), directory)
    assert said is not None
    assert "by ada from /src was interrupted before the switch; what it had made was removed" in said
    write_deployment(directory, left.at("switching"))
    said = settle(World(current="43", releases=["42", "43"], switched=["id-1"]), directory)
    assert said is not None
    assert "interrupted after the switch; it is finished now" in said
    write_deployment(directory, left.at("pruning"))
    said = settle(World(current="44"), directory)
    assert said is not None
    assert "that is done now" in said


def test_verified_late_and_found_bad(directory: int) -> None:
    write_deployment(directory, Deployment("id-1", "switching", "43", "42", "/src", "ada", 5.0))
    world = World(current="43", releases=["42", "43"], switched=["id-1"], healthy=False)
    with pytest.raises(RefusedError, match="42 is current again"):
        settle(world, directory)
    assert (world.current, world.bad, world.releases) == ("42", ["43"], ["42", "43"])
    assert settle(world, directory) is None


# ---- failed, and interrupted -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize(("at", "call"), list(enumerate(["named", "add", "switch"])))
@pytest.mark.parametrize("error", [RelfsError("disk full"), RefusedError("the hook says no"), KeyboardInterrupt()])
def test_what_goes_wrong_before_the_switch(
    directory: int, at: int, call: str, after: bool, error: BaseException
) -> None:
    def happens() -> None:
        raise error

    world = World(at=at, after=after, happens=happens)
    with pytest.raises(type(error)):
        deploy(world, directory, _REQUEST, "42")
    if (call, after) == ("switch", True):
        assert (world.current, "43" in world.releases) == ("43", True), "what is done stays"
        assert isinstance(error, RefusedError) or "it is finished now" in str(settle(world, directory))
    else:
        assert (world.current, world.releases) == ("42", ["41", "42"])
    assert read_deployment(directory) is None


def test_interrupted_while_it_is_verified(directory: int) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    world = World(at=_CALLS.index("verify"), happens=interrupt)
    with pytest.raises(KeyboardInterrupt):
        deploy(world, directory, _REQUEST, "42")
    assert (world.current, world.releases) == ("43", ["41", "42", "43"])
    assert "it is finished now" in str(settle(world, directory))
    assert world.current == "43"


def test_pruning_that_is_interrupted_is_left_to_the_next_one(directory: int) -> None:
    world = World(at=4)
    world.happens = world.die
    with pytest.raises(Killed):
        deploy(world, directory, _REQUEST, "42")
    world = world.raised_from_the_dead()
    assert "that is done now" in str(settle(world, directory))
    assert world.calls == ["prune"]


def test_nothing_is_pruned_later_either_if_that_is_said(directory: int) -> None:
    """Whenever it is killed, at its end too, when what was begun is to be forgotten."""
    for at in range(len(_CALLS) - 1):
        world = World(at=at, after=True)
        world.happens = world.die
        with pytest.raises(Killed):
            deploy(world, directory, replace(_REQUEST, prune=False), "42")
        later = world.raised_from_the_dead()
        settle(later, directory)
        assert "prune" not in (*world.calls, *later.calls)
    world = World()
    assert deploy(world, directory, replace(_REQUEST, prune=False), "42") == "43"
    assert (world.calls, read_deployment(directory)) == (list(_CALLS[:-1]), None)


# ---- the note -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b"\0", b'{"step": "dancing"}', b'{"step": "adding", "id": 1}'])
def test_what_is_no_note(directory: int, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "deploy").write_bytes(content)
    assert read_deployment(directory) is None


def test_a_note_that_cannot_be_read_stops_everybody(directory: int, tmp_path: Path) -> None:
    (tmp_path / "deploy").mkdir()
    with pytest.raises(RelfsError, match="deploy: how far a deployment has come cannot be read"):
        settle(World(), directory)
