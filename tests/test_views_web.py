"""What views are for: of two web servers under load each sees what it is to see, and never half of anything; and a
program that loads its files late has all of them from one release. Real mount, real nginx, wrk."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from clients import ctl
from mounting import Mount, Mounts, environment, relfsctl_command
from web import Load, Web, make_site, start_directly

from relfs.control import Connection

POOL = "www-data"
ROUNDS = 3
MODULES = 500
SWITCHES = 100


@pytest.fixture
def site(open_place: Path, mounts: Mounts) -> Mount:
    return mounts.start(make_site(open_place / "app"))


@pytest.fixture
def pools(site: Mount, open_place: Path) -> Iterator[tuple[Web, Web]]:
    """Two servers of one site: of a user's, and of root's."""
    with ExitStack() as stack:
        servers = []
        for user in (POOL, "root"):
            directory = open_place / user
            directory.mkdir()
            directory.chmod(0o777)
            server = Web(directory, site.app / "current", start_directly, user=user)
            stack.callback(server.stop)
            servers.append(server)
        yield servers[0], servers[1]


def test_two_pools_under_load(site: Mount, pools: tuple[Web, Web], open_place: Path) -> None:
    """One gets a canary again and again, which is promoted or aborted, while everybody is switched."""
    loads = [Load(open_place / name, pool.url) for name, pool in zip((POOL, "root"), pools, strict=True)]

    def do(*words: str) -> None:
        done = ctl("-C", site.app, *words)
        assert done.status == 0, done.err

    def see() -> tuple[str, str]:
        return pools[0].get(), pools[1].get()

    try:
        for number in range(ROUNDS):
            old, new, other = (f"4{(number + offset) % 3}" for offset in range(3))
            do("switch", old)
            assert see() == (old, old)
            do("canary", new, "--uid", POOL)
            assert see() == (new, old)
            do("switch", other)
            assert see() == (new, other)
            do("canary", "promote" if number % 2 else "abort")
            assert see() == ((new, new) if number % 2 else (other, other))
        for answers in [load.stop() for load in loads]:
            assert answers.good > ROUNDS
            assert (answers.bad, answers.mixed, answers.errors) == (0, 0, 0)
    finally:
        for load in loads:
            load.end()


_LATE = """
import importlib, sys
sys.dont_write_bytecode = True
sys.path.insert(0, sys.argv[1] + "/current/lib")
count, seen = int(sys.argv[2]), set()
for number in range(int(sys.argv[3])):
    if number % (int(sys.argv[3]) // count) == 0:
        print(number, flush=True)
        sys.stdin.readline()
    seen.add(importlib.import_module(f"m{number}").RELEASE)
print(*seen, flush=True)
"""


_LATE_PHP = """
[, $path, $count, $modules] = $argv;
for ($number = 0, $seen = []; $number < $modules; $number++) {
    if ($number % intdiv($modules, $count) == 0) {
        echo "$number\n";
        fgets(STDIN);
    }
    $seen[include "$path/current/lib/m$number.php"] = true;
}
echo implode(" ", array_keys($seen)), "\n";
"""

PROGRAMS = {
    "python": ("py", "RELEASE = {!r}\n", [sys.executable, "-c", _LATE]),
    # Without PHP's cache of paths, which forgets them after two minutes.
    "php": ("php", "<?php return {!r};\n", ["php", "-n", "-d", "realpath_cache_size=0", "-r", _LATE_PHP, "--"]),
}


@pytest.mark.parametrize("language", PROGRAMS)
def test_a_program_that_loads_late(site: Mount, language: str) -> None:
    """500 modules, one after the other, while 100 switches go by; without `run`, they would be of three releases."""
    suffix, module, command = PROGRAMS[language]
    for release in (site.app / "releases").iterdir():
        (release / "lib").mkdir()
        for number in range(MODULES):
            (release / f"lib/m{number}.{suffix}").write_text(module.format(release.name))
    run = relfsctl_command(site.app, "run", "--", *command)
    assert _loaded(site, run, SWITCHES) == {"40"}
    assert _loaded(site, command, 3) == {"40", "41", "42"}


def _loaded(site: Mount, command: list[str], switches: int) -> set[str]:
    """The releases of which it has something; there is a switch whenever it says that it has loaded some."""
    command = [*command, str(site.mountpoint), str(switches), str(MODULES // switches * switches)]
    with _switching(site) as switch, subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment()
    ) as process:  # fmt: skip
        assert process.stdin is not None
        assert process.stdout is not None
        for number in range(switches):
            assert process.stdout.readline().strip().isdecimal()
            switch(f"4{(number + 1) % 3}")
            process.stdin.write("\n")
            process.stdin.flush()
        return set(process.stdout.readline().split())


@contextmanager
def _switching(site: Mount) -> Iterator[Callable[[str], None]]:
    """Switches by one connection, which is faster than a process each."""
    connection = Connection((f"{site.app}/.relfs",))

    def switch(release: str) -> None:
        connection.call("switch", {"release": release, "request": os.urandom(8).hex()}, seconds=60)

    try:
        yield switch
    finally:
        connection.close()
