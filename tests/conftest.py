"""Fixtures that every tier of the suite shares: a deploy path of its own, somebody who asks for changes, and mounts."""

from __future__ import annotations

import gc
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from conformance import Tally, render
from hypothesis import HealthCheck, settings
from mounting import Mount, Mounts
from replay import PowerCuts
from sandbox import ACTOR, make_app
from served import Pair, Served, below_a_release, serving, top_level

from relfs.journal import Actor
from relfs.layout import DeployPath, open_deploy_path

settings.register_profile("relfs", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("relfs")  # how fast a machine is tells nothing about relfs

TALLY = pytest.StashKey[Tally]()
"""What this session has compared with plain directories."""

POWER_CUTS = pytest.StashKey[PowerCuts]()
"""What this session has mounted over, if it was asked for all (--every-power-cut)."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--every-power-cut", action="store_true", help="mount over all that a power cut may leave")
    parser.addoption(
        "--visits", type=int, default=2000, metavar="N", help="how often the web servers of each test of PHP are asked"
    )
    parser.addoption("--conformance", metavar="FILE", help="write there what was compared with plain directories")


def pytest_configure(config: pytest.Config) -> None:
    """A shell ignores SIGINT for what it runs in the background, nohup(1) SIGHUP; what ignores a signal hands that on
    to its children; the tests that send them are about programs that do not."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    config.stash[TALLY] = Tally()
    config.stash[POWER_CUTS] = PowerCuts()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What checks the tally comes after what is tallied."""
    items.sort(key=lambda item: item.path.name == "test_conformance.py")


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    file = session.config.getoption("--conformance")
    if file is not None and exitstatus == 0:
        Path(file).write_text(render(session.config.stash[TALLY]))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if config.getoption("--every-power-cut"):
        done = config.stash[POWER_CUTS]
        terminalreporter.write_line(
            f"{done.cuts} power cuts leave {done.disks} different disks; {done.mounted} were mounted, the rest "
            "are no deploy path yet"
        )
        terminalreporter.write_line(f"{done.settled} cuts amid adding, deploying and pruning were settled")


@pytest.fixture(autouse=True, scope="module")
def _collected() -> None:
    """What the tests of other files left open is closed now, and not while descriptors are counted."""
    gc.collect()


@pytest.fixture
def power_cuts(request: pytest.FixtureRequest) -> PowerCuts:
    """What this session has mounted over so far."""
    return request.config.stash[POWER_CUTS]


@pytest.fixture
def tally(request: pytest.FixtureRequest) -> Tally:
    """What this session has compared so far."""
    return request.config.stash[TALLY]


@pytest.fixture
def app(tmp_path: Path) -> Path:
    """A deploy path with releases 40, 41 and 42, each with its name in index.html; `current` leads to 40."""
    return make_app(tmp_path / "app")


@pytest.fixture
def open_place() -> Iterator[Path]:
    """A directory that every user can reach; pytest's own are for root alone."""
    place = Path(tempfile.mkdtemp(prefix="relfs-test-"))
    place.chmod(0o755)
    yield place
    shutil.rmtree(place)


@pytest.fixture
def deploy(app: Path) -> Iterator[DeployPath]:
    """`app`, opened."""
    opened = open_deploy_path(str(app))
    yield opened
    opened.close()


@pytest.fixture
def state(tmp_path: Path) -> Iterator[int]:
    """A state directory."""
    fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    yield fd
    os.close(fd)


@pytest.fixture
def actor() -> Actor:
    """Who asks."""
    return ACTOR


@pytest.fixture
def mounts(tmp_path: Path) -> Iterator[Mounts]:
    """For tests that mount in ways of their own; everything is detached at the end."""
    directory = tmp_path / "mounts"
    directory.mkdir()
    directory.chmod(0o755)
    made = Mounts(directory)
    yield made
    made.take_away()


@pytest.fixture
def mount(app: Path, mounts: Mounts) -> Mount:
    """`app`, mounted over itself."""
    return mounts.start(app)


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    """The mounts of a file of pass-through tests."""
    with serving() as made:
        yield made


@pytest.fixture(params=["no-bind", "top level"])
def pair(request: pytest.FixtureRequest, served: Served) -> Iterator[Pair]:
    """Below a release of a mount without native directories; the very top of an ordinary mount."""
    make = {"no-bind": below_a_release, "top level": top_level}[request.param]
    function = request.node.function
    with make(served) as made:
        tally = request.config.stash[TALLY]
        yield replace(made, compared=partial(tally.count, function.__module__, function.__name__, native=made.native))
