"""Deploy tools and relfs in turns, mounted and not: what `dep` and `cap` go by says the same as relfs's own history.

Deployer is dep.php, Capistrano is Debian's (tools.py).
"""

from __future__ import annotations

import random
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from clients import ctl
from mounting import END_SECONDS, Mount, Mounts
from sandbox import add_release, journal_of
from tools import Cap, Dep, ToolError, make_cap

from relfs.errors import RefusedError
from relfs.history import History, rollback_target
from relfs.layout import open_deploy_path
from relfs.pointer import Pointer

SEEDS = range(3)
STEPS = 16


@pytest.fixture
def empty(tmp_path: Path) -> Path:
    """A deploy path where nothing was deployed yet."""
    path = tmp_path / "app"
    (path / "releases").mkdir(parents=True)
    return path


class Site:
    """A deploy path, mounted now and then. relfs is asked by its command, and its history is read from the journal."""

    def __init__(self, path: Path, mounts: Mounts) -> None:
        self.path = path
        self._mounts = mounts
        self._mount: Mount | None = None

    def mount(self) -> None:
        if self._mount is None:
            self._mount = self._mounts.start(self.path)

    def unmount(self) -> None:
        if self._mount is not None:
            assert ctl("-C", self.path, "unmount").status == 0
            assert self._mount.process.wait(END_SECONDS) == 0
            self._mount = None

    def ctl(self, *arguments: str) -> bool:
        """Whether relfs did as it was asked; it may refuse."""
        done = ctl("-C", self.path, *arguments)
        assert done.status in (0, 3), done.err
        assert "brought up to date" not in done.err
        return done.status == 0

    def current(self) -> str:
        return (self.path / "current").readlink().name

    def way_back(self) -> str | None:
        """Where `relfsctl rollback` would go."""
        with closing(open_deploy_path(str(self.path))) as deploy:
            if self._mount is None:
                Pointer(deploy)  # takes in what happened
            history = History(journal_of(deploy))
            assert history.path[-1] == self.current()
            usable = [release.name for release in deploy.releases() if deploy.is_good(release.name)]
            try:
                return rollback_target(history, self.current(), usable)
            except RefusedError:
                return None

    def states(self) -> dict[str, set[str]]:
        listing = ctl("-C", self.path, "--json", "releases").json
        return {entry["name"]: set(entry["states"]) & {"current", "bad", "dirty"} for entry in listing}

    def releases(self) -> list[str]:
        return sorted(path.name for path in (self.path / "releases").iterdir() if (path / "index.html").exists())


@pytest.fixture
def site(empty: Path, mounts: Mounts) -> Iterator[Site]:
    made = Site(empty, mounts)
    yield made
    made.unmount()


# ---- Deployer -----------------------------------------------------------------------------------------------------


def assert_dep_agrees(site: Site, dep: Dep) -> None:
    """`dep rollback` would go where relfs would, and `dep releases` shows what relfs shows."""
    assert dep("candidate") == site.way_back()
    shown = {name: set(states) for name, states, *_ in dep("releases")}
    states = site.states()
    assert {name: shown[name] for name in states if name in shown} == {
        name: states[name] - ({"dirty"} if "bad" in states[name] else set()) for name in states if name in shown
    }
    assert site.current() in shown


@pytest.mark.parametrize("mounted", [False, True], ids=["unmounted", "mounted"])
def test_dep_and_relfs_by_turns(site: Site, mounted: bool) -> None:
    dep = Dep(site.path)
    for name in ("1", "2", "3", "4"):
        assert dep("deploy") == name
    if mounted:
        site.mount()
    assert_dep_agrees(site, dep)
    assert site.ctl("rollback") and site.current() == "3"
    assert_dep_agrees(site, dep)
    assert dep("rollback") == "2"
    assert_dep_agrees(site, dep)
    assert site.ctl("switch", "4") and site.current() == "4"
    assert_dep_agrees(site, dep)
    assert dep("candidate") == "2"
    assert site.ctl("switch", "1")
    assert_dep_agrees(site, dep)
    assert dep("candidate") == "4"
    assert dep("push") == "1"
    assert_dep_agrees(site, dep)
    assert dep("deploy") == "5"
    assert_dep_agrees(site, dep)
    assert dep("rollback") == "1" and dep("rollback") == "4"
    assert_dep_agrees(site, dep)


def test_cleanup_spares_what_is_current(site: Site) -> None:
    """Deployer keeps the releases that are logged last, whatever is current."""
    dep = Dep(site.path)
    for _ in range(5):
        dep("deploy")
    assert site.ctl("switch", "2")
    assert dep("cleanup", "2") == ["4", "3", "1"]
    assert site.releases() == ["2", "5"]
    assert_dep_agrees(site, dep)


def test_the_next_deployment_after_a_release_of_relfs(site: Site) -> None:
    dep = Dep(site.path)
    dep("deploy")
    add_release(site.path, "2")
    assert site.ctl("switch", "2")
    assert dep("deploy") == "3"
    assert_dep_agrees(site, dep)
    assert [(row[0], row[2], row[3]) for row in dep("releases")][1] == ("2", "root", "HEAD")


def test_a_deployment_that_was_given_up(site: Site) -> None:
    dep = Dep(site.path)
    for _ in range(3):
        dep("deploy")
    assert dep("make_release") == "4"
    assert_dep_agrees(site, dep)
    assert site.ctl("switch", "1")
    assert_dep_agrees(site, dep)
    assert dep("rollback") == "3", "not to 4, which was never current"
    assert site.ctl("rollback") and site.current() == "2"
    assert_dep_agrees(site, dep)


class DepTurns:
    """What can happen to a path that Deployer and relfs share. Each returns whether relfs itself made a change."""

    def __init__(self, site: Site, chance: random.Random) -> None:
        self.site = site
        self.dep = Dep(site.path)
        self.chance = chance
        self.steps: list[Callable[[], bool]] = [
            self.deploy, self.deploy, self.give_up, self.dep_rollback, self.push, self.switch, self.switch,
            self.rollback, self.rollback, self.rollback_to, self.by_hand, self.mount, self.unmount,
        ]  # fmt: skip

    def deploy(self) -> bool:
        self.dep("deploy")
        return False

    def give_up(self) -> bool:
        self.dep("make_release")
        return False

    def push(self) -> bool:
        self.dep("push")
        return False

    def dep_rollback(self) -> bool:
        expected = self.dep("candidate")
        if expected is not None:
            assert self.dep("rollback") == expected == self.site.current()
        return False

    def switch(self) -> bool:
        return self.site.ctl("switch", self._any())

    def rollback(self) -> bool:
        back = self.site.way_back()
        assert self.site.ctl("rollback") == (back is not None)
        assert back in (None, self.site.current())
        return back is not None

    def rollback_to(self) -> bool:
        return self.site.ctl("rollback", self._any())

    def by_hand(self) -> bool:
        name = f"by-hand-{self.chance.randrange(10**6)}"
        add_release(self.site.path, name)
        return self.site.ctl("switch", name)

    def mount(self) -> bool:
        self.site.mount()
        return False

    def unmount(self) -> bool:
        self.site.unmount()
        return False

    def _any(self) -> str:
        unfinished = self.site.path / "release"
        making = unfinished.readlink().name if unfinished.is_symlink() else None
        return self.chance.choice([name for name in self.site.releases() if name != making])


@pytest.mark.parametrize("seed", SEEDS)
def test_any_turns_of_dep_and_relfs(site: Site, seed: int) -> None:
    """They agree, except where relfs went back over good releases on demand: a log cannot say that these were passed
    over. Then after a change of relfs's they agree on where to go if relfs knows of anywhere; and otherwise, too,
    `dep rollback` goes somewhere good, that was current once."""
    turns = DepTurns(site, random.Random(seed))
    turns.deploy()
    turns.deploy()
    passed_over = False
    for _ in range(STEPS):
        step = turns.chance.choice(turns.steps)
        ours = step()
        passed_over = passed_over or (ours and step == turns.rollback_to)
        back = site.way_back()
        if not passed_over or (ours and back is not None):
            assert_dep_agrees(site, turns.dep)
        elif (candidate := turns.dep("candidate")) is not None:
            with closing(open_deploy_path(str(site.path))) as deploy:
                assert deploy.is_good(candidate)
                assert candidate in {event.release for event in journal_of(deploy) if event.succeeded}


# ---- the old Deployer ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mounted", [False, True], ids=["unmounted", "mounted"])
def test_the_old_dep_and_relfs_by_turns(site: Site, mounted: bool) -> None:
    dep = Dep(site.path)
    for name in ("1", "2", "3", "4"):
        assert dep("old_deploy") == name
    if mounted:
        site.mount()
    assert site.way_back() == "3"
    assert site.ctl("rollback") and site.current() == "3"
    assert dep("old_listed")[:2] == ["3", site.way_back()] == ["3", "2"]
    assert dep("old_rollback") == "2"
    assert site.way_back() == "1"
    assert site.ctl("switch", "4")
    assert dep("old_listed")[:2] == ["4", site.way_back()] == ["4", "2"]
    assert dep("old_deploy") == "5"
    assert site.way_back() == "4"
    assert dep("old_rollback") == "4"


# ---- Capistrano ---------------------------------------------------------------------------------------------------


@pytest.fixture
def cap(site: Site, tmp_path: Path) -> Cap:
    return make_cap(site.path, tmp_path / "project")


def next_of_cap(site: Site) -> Any:
    """Where `cap deploy:rollback` goes; None: it refuses. As it asks: the second of what `ls -xt` lists."""
    listed = subprocess.run(["ls", "-xt", site.path / "releases"], capture_output=True, text=True, check=True)
    names = listed.stdout.split()
    assert names[0] == site.current(), "it would remove another release than the one it leaves"
    return names[1] if len(names) > 1 else None


@pytest.mark.parametrize("mounted", [False, True], ids=["unmounted", "mounted"])
def test_cap_and_relfs_by_turns(site: Site, cap: Cap, mounted: bool) -> None:
    made = [cap.deploy() for _ in range(4)]
    if mounted:
        site.mount()
    assert next_of_cap(site) == site.way_back() == made[2]
    assert site.ctl("rollback") and site.current() == made[2]
    assert next_of_cap(site) == site.way_back() == made[1]
    assert cap.rollback() == made[1]
    assert site.releases() == [made[0], made[1], made[3]], "Capistrano put away the release that it left"
    assert next_of_cap(site) == site.way_back() == made[0]
    assert site.ctl("switch", made[3])
    assert next_of_cap(site) == site.way_back() == made[1]
    made.append(cap.deploy())
    assert next_of_cap(site) == site.way_back() == made[3]
    assert cap.rollback() == made[3]
    assert site.ctl("rollback") and site.current() == made[1]
    assert site.ctl("rollback") and site.current() == made[0]
    assert site.way_back() is None
    lines = (site.path / "revisions.log").read_text().splitlines()
    branch = "Branch main (at 0123456789abcdef) deployed as release"
    assert lines == [
        *(f"{branch} {name} by grace" for name in made[:4]),
        f"root rolled back to release {made[2]}",
        f"grace rolled back to release {made[1]}",
        f"{branch} {made[3]} by root",
        f"{branch} {made[4]} by grace",
        f"grace rolled back to release {made[3]}",
        f"root rolled back to release {made[1]}",
        f"root rolled back to release {made[0]}",
    ]


@pytest.mark.parametrize("seed", SEEDS)
def test_any_turns_of_cap_and_relfs(site: Site, cap: Cap, seed: int) -> None:
    """They agree for as long as relfs knows a way back. Where it would refuse, Capistrano cannot be made to."""
    chance = random.Random(seed)
    cap.deploy()
    cap.deploy()

    def rollback() -> None:
        back = site.way_back()
        if back is not None:
            assert cap.rollback() == back

    for _ in range(STEPS):
        step: Callable[[], object] = chance.choice([
            cap.deploy, rollback, site.mount, site.unmount,
            lambda: site.ctl("switch", chance.choice(site.releases())),
            lambda: site.ctl("rollback"),
        ])  # fmt: skip
        step()
        back = site.way_back()
        assert back is None or next_of_cap(site) == back


def test_a_tool_that_refuses_is_heard(site: Site, cap: Cap) -> None:
    """That the tests above can fail."""
    cap.deploy()
    with pytest.raises(ToolError):
        cap.rollback()
    with pytest.raises(ToolError):
        Dep(site.path)("rollback")


# ---- through the mount --------------------------------------------------------------------------------------------


def test_what_is_appended_through_the_mount_undoes_nothing(site: Site) -> None:
    """relfs writes the records beside the mount, and a tool reads and appends to them through it at any moment."""
    dep = Dep(site.path)
    for _ in range(3):
        dep("deploy")
    (site.path / "revisions.log").write_text("")
    site.mount()
    log, revisions = site.path / ".dep/releases_log", site.path / "revisions.log"
    for number in range(10):
        seen = log.read_bytes()
        add_release(site.path, f"extra-{number}")
        assert site.ctl("switch", f"extra-{number}")
        with log.open("ab") as file, revisions.open("ab") as others:
            assert log.read_bytes().startswith(seen) and len(log.read_bytes()) > len(seen)
            assert site.ctl("switch", "3" if number % 2 else "2")  # between open(2) and write(2), and by rename(2)
            file.write(b"a line of the tool\n")
            others.write(b"a line of the tool\n")
        assert revisions.read_bytes().count(b"tool\n") == number + 1
        assert revisions.read_bytes().count(b"Branch") == 2 * (number + 1)
    site.unmount()
    assert b"".join(sorted(set(log.read_bytes().splitlines()))).count(b"extra-") == 10
