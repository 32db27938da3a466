"""Views where they are meant to be used: nginx with several workers, php-fpm with two pools, one of which has a canary
that comes, is promoted and aborted, while everybody is switched. Each answer is of one release, which its pool was to
see. Real mount, real nginx, real php-fpm; `--visits N` asks N times a test instead of a few thousand times."""

from __future__ import annotations

import os
import pwd
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from pathlib import Path

import pytest
from cgroups import hierarchies, plain_group
from mounting import Mount, Mounts, wait_for
from phpsite import (
    PREPEND,
    Decides,
    Pool,
    Sight,
    Visit,
    Visitors,
    make_php_site,
    meet,
    nginx,
    php_fpm,
    php_fpm_name,
)

from relfs.control import Connection, change

MINE, OTHERS = Pool("mine", "www-data"), Pool("others", "daemon")
AS_DOCUMENTED = {"auto_prepend_file": str(PREPEND), "opcache.revalidate_path": "1"}
AT_LEAST = 5
"""Answers of each pool between two changes."""

DEADLY_ROUNDS = 4

Audience = dict[str, list[object]]

FOR_MINE: Audience = {"users": [pwd.getpwnam(MINE.user).pw_uid]}


@pytest.fixture
def site(open_place: Path, mounts: Mounts) -> Mount:
    return mounts.start(make_php_site(open_place / "app"))


@pytest.fixture
def place(open_place: Path) -> Path:
    """For what servers write."""
    directory = open_place / "servers"
    directory.mkdir(mode=0o755)
    return directory


@pytest.fixture
def visits_wanted(request: pytest.FixtureRequest) -> int:
    wanted: int = request.config.getoption("--visits")
    return wanted


# ---- what goes on


class Show:
    """The two web servers of `addresses` are asked without a pause, while who sees what is changed. The first one is
    that of the audience."""

    def __init__(
        self, site: Mount, audience: Audience, addresses: Sequence[str], before: Callable[[], None] = lambda: None
    ) -> None:
        """`before` is called before each change is asked for."""
        self._state_paths = (f"{site.app}/.relfs",)
        self._audience = audience
        self._before = before
        self._sights = {address: Sight(["40"], [0.0], [0.0]) for address in addresses}
        self._rounds = 0
        self._visitors = Visitors(addresses)

    def go_around(self) -> None:
        """A canary, from its beginning to its end."""
        old, new, other = (f"4{(self._rounds + offset) % 3}" for offset in range(3))
        self._do("switch", {"release": old}, old, old)
        self._do("canary", {"release": new, "audience": self._audience}, new, old)
        self._do("switch", {"release": other}, new, other)
        if self._rounds % 2:
            self._do("promote", {}, new, new)
        else:
            self._do("abort", {}, other, other)
        self._rounds += 1

    def visits(self) -> int:
        return self._visitors.count()

    def wrong(self) -> list[Visit]:
        """The answers that were not of one release which its web server was to see."""
        return [visit for visit in self._visitors.visits() if not self._sights[visit.where].allows(visit)]

    def end(self) -> None:
        self._visitors.stop()

    def _do(self, method: str, params: dict[str, object], *to_be_seen: str) -> None:
        self._before()
        began = time.monotonic()
        change(self._state_paths, method, params)
        ended = time.monotonic()
        for sight, release in zip(self._sights.values(), to_be_seen, strict=True):
            sight.change(release, began, ended)
        self._visitors.wait_for_more(AT_LEAST)


@contextmanager
def show(
    site: Mount, audience: Audience, addresses: Sequence[str], before: Callable[[], None] = lambda: None
) -> Iterator[Show]:
    going_on = Show(site, audience, addresses, before)
    try:
        yield going_on
    finally:
        going_on.end()


def assert_each_sees_its_own(going_on: Show, wanted: int) -> None:
    while going_on.visits() < wanted:
        going_on.go_around()
    assert going_on.wrong() == []


# ---- which servers there are


@contextmanager
def one_master(site: Mount, place: Path, settings: Mapping[str, str]) -> Iterator[list[str]]:
    """Of two pools, which have one opcode cache."""
    with php_fpm(place, [MINE, OTHERS], settings) as sockets, nginx(
        place, site.app / "current", sockets, Decides.PHP
    ) as addresses:  # fmt: skip
        yield addresses


@contextmanager
def two_masters(site: Mount, place: Path, settings: Mapping[str, str], within: Sequence[str]) -> Iterator[list[str]]:
    """Of one pool each; `within` runs that of the audience."""
    with php_fpm(place, [MINE], settings, within) as mine, php_fpm(place, [OTHERS], settings) as others, nginx(
        place, site.app / "current", [*mine, *others], Decides.PHP
    ) as addresses:  # fmt: skip
        yield addresses


def test_a_canary_for_the_user_of_a_pool(site: Mount, place: Path, visits_wanted: int) -> None:
    with one_master(site, place, AS_DOCUMENTED) as addresses, show(site, FOR_MINE, addresses) as going_on:
        assert_each_sees_its_own(going_on, visits_wanted)


def test_a_canary_that_outlives_workers(site: Mount, place: Path) -> None:
    """There is none when a change is asked for."""

    def kill_worker() -> None:
        wait_for(lambda: all(pids_of(site)), "another worker serves, and the next one is there")
        worker, _ = pids_of(site)
        site.expect_log(f"worker.*{worker}")
        os.kill(worker, signal.SIGKILL)

    with one_master(site, place, AS_DOCUMENTED) as addresses, show(site, FOR_MINE, addresses, kill_worker) as going_on:
        for _ in range(DEADLY_ROUNDS):
            going_on.go_around()
        assert going_on.wrong() == []


def pids_of(site: Mount) -> tuple[int, int]:
    """Of the worker and the standby; 0 for who is not there."""
    connection = Connection((f"{site.app}/.relfs",))
    status = connection.call("status", {})
    connection.close()
    return status["worker_pid"] or 0, status["standby_pid"] or 0


@pytest.mark.parametrize("hierarchy", hierarchies(), ids=lambda path: path.name)
def test_a_canary_for_the_control_group_of_a_pool(
    site: Mount, place: Path, visits_wanted: int, hierarchy: Path
) -> None:
    """As each unit of systemd has one: in each hierarchy of this host. Nothing is compiled once for all."""
    settings = {**AS_DOCUMENTED, "opcache.enable": "0"}
    with (
        plain_group(hierarchy, f"relfs-test-{os.getpid()}.service") as group,
        two_masters(site, place, settings, group.command()) as addresses,
        show(site, {"cgroups": [group.path.name]}, addresses) as going_on,
    ):
        assert_each_sees_its_own(going_on, visits_wanted)


def test_a_canary_for_the_user_of_an_nginx(site: Mount, open_place: Path, place: Path, visits_wanted: int) -> None:
    """Which says what the root is: PHP is set up as it comes, and all of it is shared."""
    with ExitStack() as stack:
        sockets = stack.enter_context(php_fpm(place, [OTHERS], {}))
        addresses = []
        for pool in (MINE, OTHERS):
            directory = open_place / pool.name
            directory.mkdir(mode=0o755)
            server = nginx(directory, site.app / "current", sockets, Decides.NGINX, user=pool.user)
            addresses += stack.enter_context(server)
        assert_each_sees_its_own(stack.enter_context(show(site, FOR_MINE, addresses)), visits_wanted)


def test_a_quarter_of_64_workers_of_a_pool(site: Mount, place: Path) -> None:
    """Are 16, the same ones to their ends, and still 16 when each has been replaced. Their master has their name, asks
    for nothing, and so is not counted."""
    pool = Pool("large", "www-data", workers=64, requests=3)
    with php_fpm(place, [pool], AS_DOCUMENTED) as sockets, nginx(
        place, site.app / "current", sockets, Decides.PHP
    ) as (address,):  # fmt: skip
        done = site.relfsctl("canary", "42", "--percent", "25", "--of", php_fpm_name())
        assert done.returncode == 0, done.stderr
        seen = [meet(address, 64, place)]
        meet(address, 32, place)
        assert site.relfsctl("switch", "41").returncode == 0
        seen += [meet(address, 64, place) for _ in range(3)]
        # 32 had answered three times after the second meeting, and the others after the third
        assert [len(before.keys() & after) for before, after in pairwise(seen)] == [64, 32, 32]
        assert seen[0].keys().isdisjoint(seen[3])
        chosen = [{pid for pid, release in each.items() if release == "42"} for each in seen]
        assert [len(each) for each in chosen] == [16] * 4
        for others, now, pids in zip(("40", "41", "41", "41"), seen, chosen, strict=True):
            assert set(now.values()) == {"42", others}
            assert pids == now.keys() & set().union(*chosen)


@pytest.mark.parametrize(
    ("settings", "mixed"),
    [({}, False), ({"realpath_cache_size": "0", "opcache.revalidate_path": "1"}, True)],
    ids=["as it comes", "without a cache of paths"],
)
def test_what_happens_otherwise(site: Mount, place: Path, settings: Mapping[str, str], mixed: bool) -> None:
    """Why docs/php.md tells what to set, and that the above would notice: releases of the past; several at once."""
    with one_master(site, place, settings) as addresses, show(site, FOR_MINE, addresses) as going_on:

        def noticed() -> bool:
            going_on.go_around()
            return any((len(visit.releases) > 1) == mixed for visit in going_on.wrong())

        wait_for(noticed, "an answer is wrong")
