"""`relfsctl prune` as people and programs meet it, without a mount and with one; and the faults of others, each shown
not to be here."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from clients import Done, RawClient, assert_one_line, clean_environment, ctl, ctl_command, snapshot
from mounting import Mount, Mounts, wait_for
from sandbox import ACTOR, add_release, end, make_app, make_recorded_app, start_python

from relfs.cli.pruning import prune
from relfs.layout import DeployPath, open_deploy_path
from relfs.locate import Place
from relfs.mountinfo import mount_at
from relfs.pointer import Pointer
from relfs.records import deployer
from relfs.releases.pruning import Policy
from relfs.releases.registry import Registry
from relfs.releases.trash import put

NOBODY = 65534

_KINDS: dict[str, list[str] | None] = {"offline": None, "mounted": [], "no-bind": ["--no-bind"]}


@pytest.fixture(params=_KINDS)
def anywhere(request: pytest.FixtureRequest, app: Path) -> Path:
    """A deploy path on which everything must work the same: 40 to 44 have been current, in this order."""
    options = _KINDS[request.param]
    activate(app)
    if options is not None:
        request.getfixturevalue("mounts").start(app, *options)
    return app


def only(*kinds: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("anywhere", kinds, indirect=True)


@pytest.fixture
def five(app: Path) -> Path:
    """The same, offline."""
    activate(app)
    return app


def activate(app: Path) -> None:
    for name in ("43", "44"):
        add_release(app, name)
    for name in ("41", "42", "43", "44"):
        switch(app, name)


def switch(app: Path, name: str) -> None:
    """As relfsctl does it, but in no time."""
    if mount_at(str(app)) is not None:
        assert ctl("-C", app, "switch", name).status == 0
        return
    deploy = open_deploy_path(str(app))
    Pointer(deploy).switch(name, ACTOR, os.urandom(8).hex())
    deploy.close()


def releases(app: Path) -> list[str]:
    return sorted(name for name in os.listdir(app / "releases") if not name.startswith("."))


def pruned(app: Path, *arguments: str, status: int = 0) -> dict[str, dict[str, object]]:
    """What has become of each release."""
    done = ctl("-C", app, "--json", "prune", *arguments)
    assert done.status == status, done
    return {each["name"]: each for each in done.json["decisions"]}


# ---- as it should be


def test_old_releases_go(anywhere: Path) -> None:
    became = pruned(anywhere, "--keep", "3", "--wait")
    assert {name: each["keep"] for name, each in became.items()} == {
        "40": False, "41": False, "42": True, "43": True, "44": True,
    }  # fmt: skip
    assert releases(anywhere) == ["42", "43", "44"]
    assert os.listdir(anywhere / ".relfs/trash") == []
    log = [json.loads(line) for line in ctl("-C", anywhere, "--json", "log").out.splitlines()]
    assert [(event["release"], event["outcome"]) for event in log if event["action"] == "prune"] == [
        ("40", "done"), ("41", "done"),
    ]  # fmt: skip
    assert log[-1]["command"].endswith("prune --keep 3 --wait")
    assert ctl("-C", anywhere, "rollback").out.startswith("43 is current again")


@only("mounted")
def test_a_dry_run_explains_and_changes_nothing(anywhere: Path) -> None:
    before = snapshot(anywhere)
    done = ctl("-C", anywhere, "prune", "--keep", "2", "--dry-run")
    assert [row[:2] for row in done.rows] == [
        ["40", "would go"], ["41", "would go"], ["42", "would go"], ["43", "stays"], ["44", "stays"],
    ]  # fmt: skip
    assert [row[2] for row in done.rows[2:]] == [
        "2 finished ones are newer", "the last good one, which a rollback leads to", "current",
    ]  # fmt: skip
    assert snapshot(anywhere) == before


def test_a_dry_run_on_what_relfs_has_never_seen(tmp_path: Path) -> None:
    app = make_recorded_app(tmp_path / "app")
    before = snapshot(app)
    became = pruned(app, "--keep", "1", "--dry-run")
    assert [name for name, each in became.items() if not each["keep"]] == ["41"]
    assert snapshot(app) == before, "not even a state directory is made"


def test_what_somebody_uses_stays(anywhere: Path) -> None:
    (anywhere / "releases/stable").symlink_to("41")
    program = "import os, sys; os.chdir(sys.argv[1]); print('ready', flush=True); input()"
    user = start_python(program, str(anywhere / "releases/41"))
    assert user.stdout is not None
    assert user.stdout.readline() == "ready\n"
    for name in ("41", "stable"):
        assert [row[0] for row in ctl("-C", anywhere, "who", name).rows] == [str(user.pid)]
    became = pruned(anywhere, "--keep", "2")
    assert str(became["41"]["why"]).startswith(f"in use by process {user.pid} (")
    assert releases(anywhere) == ["41", "43", "44", "stable"]
    end(user)
    assert not pruned(anywhere, "--keep", "2")["41"]["keep"]


def test_limits_of_the_configuration(five: Path) -> None:
    (five / ".relfs/config.toml").write_text("[prune]\nkeep = 4\n")
    assert [name for name, each in pruned(five, "--dry-run").items() if not each["keep"]] == ["40"]
    assert [name for name, each in pruned(five, "--keep", "3", "--dry-run").items() if not each["keep"]] == ["40", "41"]
    (five / ".relfs/config.toml").write_text('[prune]\nage = "1w"\n')
    assert all(each["keep"] for each in pruned(five, "--dry-run").values()), "none is as old as that"
    (five / "releases/44/large").write_bytes(b"x" * 100_000)
    (five / ".relfs/config.toml").write_text('[prune]\nbudget = "130K"\n')
    kept = [name for name, each in pruned(five, "--dry-run").items() if each["keep"]]
    assert kept[-2:] == ["43", "44"]
    assert "40" not in kept
    (five / ".relfs/config.toml").write_text("[prune]\nkeep = 0\n")
    assert_one_line(ctl("-C", five, "prune"), 1, "config.toml", "prune.keep")


@pytest.mark.parametrize("arguments", [["--keep", "0"], ["--age", "90"], ["--budget", "many"], ["--nothing"]])
def test_wrong_usage(five: Path, arguments: list[str]) -> None:
    assert_one_line(ctl("-C", five, "prune", *arguments), 2)


# ---- the faults of others


def test_failed_deployments_use_up_no_slots(tmp_path: Path) -> None:
    """Deployer counts directories: with three failures in a row, `keep_releases 3` leaves nothing to go back to."""
    app = make_recorded_app(tmp_path / "app")
    switch(app, "42")
    for number in (43, 44, 45):
        add_release(app, str(number))
        with (app / ".dep/releases_log").open("ab") as log:
            log.write(deployer.compose(1_700_000_000.0 + number, str(number), "ada", "HEAD"))
    assert all(each["keep"] for each in pruned(app, "--keep", "3").values()), "they may still be made"
    add_release(app, "46")
    switch(app, "46")
    became = pruned(app, "--keep", "3")
    assert [name for name, each in became.items() if not each["keep"]] == ["40", "43", "44", "45"]
    assert releases(app) == ["41", "42", "46"]


def test_what_a_tool_is_making_stays(tmp_path: Path) -> None:
    app = make_recorded_app(tmp_path / "app")
    add_release(app, "43")
    with (app / ".dep/releases_log").open("ab") as log:
        log.write(deployer.compose(1_700_000_043.0, "43", "ada", "HEAD"))
    (app / "release").symlink_to("releases/43")
    add_release(app, "44")
    switch(app, "44")
    assert "deploy tool" in str(pruned(app, "--keep", "1")["43"]["why"])


def test_the_order_is_not_that_of_modification(five: Path) -> None:
    """`ls -t | tail` removes what a backup, an unzip or an editor has not touched last."""
    for age, name in enumerate(("40", "42", "44", "41", "43")):
        os.utime(five / "releases" / name, (1_000_000_000 - age, 1_000_000_000 - age))
    pruned(five, "--keep", "3")
    assert releases(five) == ["42", "43", "44"]


def test_nor_that_of_names(five: Path) -> None:
    for name in ("9", "100", "beta"):
        add_release(five, name)
        switch(five, name)
    pruned(five, "--keep", "3")
    assert releases(five) == ["100", "9", "beta"]


def test_the_last_good_one_stays_however_many_bad_ones_came_after_it(five: Path) -> None:
    assert ctl("-C", five, "rollback").status == 0  # 44 is bad, 43 current, 42 is where a rollback leads
    for name in ("45", "46"):
        add_release(five, name)
        switch(five, name)
        assert ctl("-C", five, "rollback").status == 0
    pruned(five, "--keep", "1")
    assert releases(five) == ["42", "43", "44", "45", "46"], "bad ones are as recent as what stays"
    add_release(five, "47")
    switch(five, "47")
    pruned(five, "--keep", "1")
    assert releases(five) == ["43", "47"]


@only("offline", "mounted")
def test_what_was_made_current_a_moment_ago_stays(anywhere: Path) -> None:
    """Between the decision and the removal somebody goes back to that very release."""
    place = Place(str(anywhere), str(anywhere) if (anywhere / ".relfs/control").exists() else None)
    became = prune(place, Policy(keep=4), before=lambda name: switch(anywhere, name))
    (failed,) = became.failed
    assert (failed.name, failed.why) == ("40", "40: is current, and stays")
    assert releases(anywhere) == ["40", "41", "42", "43", "44"]
    assert (anywhere / "current/index.html").read_text() == "40"


def test_what_somebody_else_removes_meanwhile_is_removed(five: Path) -> None:
    became = prune(Place(str(five), None), Policy(keep=4), before=lambda name: shutil.rmtree(five / "releases" / name))
    assert not became.failed
    assert releases(five) == ["41", "42", "43", "44"]


def test_current_by_way_of_a_link_in_releases(five: Path) -> None:
    (five / "releases/stable").symlink_to("41")
    switch(five, "stable")
    became = pruned(five, "--keep", "1")
    assert became["41"]["why"] == "current"
    assert (five / "current/index.html").read_text() == "41"


@contextmanager
def immovable(release: Path) -> Iterator[None]:
    subprocess.run(["mount", "--bind", release, release], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", release], check=True)


def test_one_that_cannot_be_removed_stops_no_other(five: Path) -> None:
    with immovable(five / "releases/40"):
        done = ctl("-C", five, "prune", "--keep", "2")
        assert done.status == 1
        assert len(done.err.splitlines()) == 1
        assert "40: could not be removed:" in done.err
        assert releases(five) == ["40", "43", "44"]
    assert pruned(five, "--keep", "2").keys() == {"40", "43", "44"}
    assert releases(five) == ["43", "44"]


def test_odd_things_among_the_releases(five: Path) -> None:
    """They are nobody's releases, and in nobody's way; a directory that relfs does not know is told of."""
    (five / "releases/file").write_text("no directory")
    (five / "releases/.git").mkdir()
    (five / "releases/link").symlink_to("/etc")
    (five / "releases/lost+found").mkdir(mode=0)
    became = pruned(five, "--keep", "2")
    assert became.keys() == {"lost+found", "40", "41", "42", "43", "44"}
    assert "--unknown" in str(became["lost+found"]["why"])
    assert sorted(os.listdir(five / "releases")) == [".git", "43", "44", "file", "link", "lost+found"]
    assert not pruned(five, "--keep", "2", "--unknown")["lost+found"]["keep"]
    assert sorted(os.listdir(five / "releases")) == [".git", "43", "44", "file", "link"]


def test_without_permission(open_place: Path) -> None:
    """One line, and nothing has changed; others' cleanup leaves half of a release."""
    app = make_app(open_place / "app")
    activate(app)
    before = snapshot(app)
    done = ctl("-C", app, "prune", "--keep", "1", user=NOBODY)
    assert done.status == 0
    assert all("other users' processes" in row[2] for row in done.rows[:3])
    done = ctl("-C", app, "prune", "--keep", "1", "--unseen", user=NOBODY)
    assert done.status == 1
    assert len(done.err.splitlines()) == 1
    assert "Permission denied" in done.err
    assert snapshot(app) == before


def test_files_of_others_in_a_release(open_place: Path) -> None:
    """What the web server wrote into its cache belongs to it: the release goes at once, that file is told of."""
    app = make_app(open_place / "app")
    activate(app)
    (app / "releases/40/cache").mkdir()
    (app / "releases/40/cache/page").write_text("x")
    for path in (app, *app.rglob("*")):
        if "cache" not in path.parts:
            os.chown(path, NOBODY, NOBODY, follow_symlinks=False)
    done = ctl("-C", app, "prune", "--keep", "4", "--unseen", "--wait", user=NOBODY)
    assert done.status == 0
    assert releases(app) == ["41", "42", "43", "44"]
    assert "trash/40.1: is not deleted yet: page: Permission denied" in done.err
    done = ctl("-C", app, "prune", "--keep", "4", "--wait")
    assert done.err == ""
    assert os.listdir(app / ".relfs/trash") == []


# ---- a mount


@pytest.fixture
def mounted(five: Path, mounts: Mounts) -> Mount:
    return mounts.start(five)


def test_directories_that_their_owner_may_not_write(open_place: Path) -> None:
    """As tools leave what they have downloaded. To move such a directory, too, takes the right to write it."""
    app = make_app(open_place / "app")
    activate(app)
    (app / f"releases/40/{'d/' * 40}").mkdir(parents=True)
    for path in (app, *app.rglob("*")):
        os.chown(path, NOBODY, NOBODY, follow_symlinks=False)
    for directory, _, _ in os.walk(app / "releases/40"):
        os.chmod(directory, 0o555)
    done = ctl("-C", app, "prune", "--keep", "4", "--unseen", "--wait", user=NOBODY)
    assert (done.status, done.err) == (0, "")
    assert releases(app) == ["41", "42", "43", "44"]
    assert os.listdir(app / ".relfs/trash") == []


def test_the_owner_prunes_by_the_daemon(open_place: Path, mounts: Mounts) -> None:
    """Which is root, and sees whom he does not; a stranger may not."""
    app = make_app(open_place / "app")
    activate(app)
    for path in (app, *app.rglob("*")):
        os.chown(path, NOBODY, NOBODY, follow_symlinks=False)
    mounts.start(app)
    before = snapshot(app)
    assert_one_line(ctl("-C", app, "prune", "--keep", "1", user=4711), 3, "may look but not change")
    assert snapshot(app) == before
    assert ctl("-C", app, "prune", "--keep", "2", "--dry-run", user=4711).status == 0
    program = "import os, sys; os.chdir(sys.argv[1]); print('ready', flush=True); input()"
    user = start_python(program, str(app / "releases/41"))
    assert user.stdout is not None
    assert user.stdout.readline() == "ready\n"
    done = ctl("-C", app, "prune", "--keep", "2", "--wait", user=NOBODY)
    assert done.status == 0, done
    assert releases(app) == ["41", "43", "44"]
    who = ctl("-C", app, "--json", "who", "41", user=NOBODY).json
    assert ([use["pid"] for use in who["uses"]], who["blind"]) == ([user.pid], False)
    end(user)


def test_a_sealed_mount(five: Path, mounts: Mounts) -> None:
    (five / ".relfs/config.toml").write_text("seal = true\n")
    mount = mounts.start(five)
    became = pruned(five, "--keep", "2", "--wait")
    assert [name for name, each in became.items() if not each["keep"]] == ["40", "41", "42"]
    assert releases(five) == ["43", "44"]
    assert mount.status()["sealed"] == ["44"]


def test_asked_twice(mounted: Mount) -> None:
    with RawClient(mounted.app / ".relfs") as client:
        first = client.ask("discard", {"release": "41", "request": "once"})
        assert first["result"]["action"] == "prune"
        assert client.ask("discard", {"release": "41", "request": "once"}) == first
        assert client.ask("discard", {"release": "41", "request": "again"})["error"]["code"] == -32003
        assert client.ask("discard", {"release": "44", "request": "live"})["error"]["code"] == -32003
    assert releases(mounted.app) == ["40", "42", "43", "44"]


def test_a_worker_that_is_killed_while_releases_are_removed(mounted: Mount) -> None:
    """Who asked asks the next one."""
    mounted.expect_log("the worker .* has ended")
    place = Place(str(mounted.app), str(mounted.app))
    became = prune(place, Policy(keep=2), before=lambda _: os.kill(mounted.worker_pid, signal.SIGKILL), wait=True)
    assert not became.failed
    assert releases(mounted.app) == ["43", "44"]
    assert os.listdir(mounted.app / ".relfs/trash") == []
    assert [event["release"] for event in mounted.journal() if event["action"] == "prune"] == ["40", "41", "42"]


def test_killed_before_all_is_removed(five: Path) -> None:
    """Some releases have gone, whole, the others are as they were; the next one goes on."""
    program = (
        "import os, signal, sys; from relfs.cli.pruning import prune; from relfs.locate import Place\n"
        "from relfs.releases.pruning import Policy\n"
        "def before(name):\n    if name == '41': os.kill(os.getpid(), signal.SIGKILL)\n"
        "prune(Place(sys.argv[1], None), Policy(keep=2), before=before)"
    )
    process = start_python(program, str(five))
    assert process.wait() == -signal.SIGKILL
    end(process)
    assert releases(five) == ["41", "42", "43", "44"]
    assert os.listdir(five / ".relfs/trash") == ["40.1"]
    pruned(five, "--keep", "2", "--wait")
    assert releases(five) == ["43", "44"]
    assert os.listdir(five / ".relfs/trash") == []


@pytest.mark.parametrize("name", ["", "..", "../shared", ".git", "x\ny"])
def test_what_a_client_may_not_discard(mounted: Mount, name: str) -> None:
    before = snapshot(mounted.app)
    with RawClient(mounted.app / ".relfs") as client:
        assert client.ask("discard", {"release": name, "request": "odd"})["error"]["code"] in (-32002, -32003)
    assert snapshot(mounted.app) == before


def test_who_prunes_respects_the_deploy_lock(five: Path) -> None:
    command = shlex.join(map(str, ctl_command("-C", five, "lock")))
    holder = subprocess.Popen(
        ["sh", "-c", f"{command} && exec cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=clean_environment()
    )  # fmt: skip
    assert holder.stdout is not None
    assert b"deploy lock is yours" in holder.stdout.readline()
    done = ctl("-C", five, "prune", "--keep", "1")
    assert_one_line(done, 4, "the deploy lock is held")
    assert releases(five) == ["40", "41", "42", "43", "44"]
    holder.kill()
    holder.communicate()
    assert ctl("-C", five, "prune", "--keep", "1").status == 0


def test_what_a_crash_has_left_is_deleted_by_the_next_mount(app: Path, deploy: DeployPath, mounts: Mounts) -> None:
    put(deploy, "41")
    mounts.start(app)
    wait_for(lambda: os.listdir(app / ".relfs/trash") == [], "it is deleted", 300)  # after everybody else


def test_and_by_the_next_prune(app: Path, deploy: DeployPath) -> None:
    put(deploy, "41")
    pruned(app, "--wait")
    assert os.listdir(app / ".relfs/trash") == []


@only("mounted")
def test_an_abandoned_staging_directory_goes(anywhere: Path) -> None:
    (anywhere / "releases/.relfs-add-45/sub").mkdir(parents=True)
    became = pruned(anywhere)
    assert became[".relfs-add-45"]["why"] == "whoever was making it has ended before it was finished"
    assert not (anywhere / "releases/.relfs-add-45").exists()


def test_what_relfs_has_made(deploy: DeployPath, app: Path) -> None:
    """By the registry's order; of one that was never finished, too."""
    switch(app, "40")
    registry = Registry(deploy.state_fd)
    for name in ("c", "b", "a", "d"):
        add_release(app, name)
        finish(registry, name)
    add_release(app, "half")
    registry.reserve(lambda _: "half", source="", user="")
    switch(app, "d")
    became = pruned(app, "--keep", "2", "--dry-run")
    assert [name for name, each in became.items() if not each["keep"]] == ["c", "b"]
    assert "may still be made" in str(became["half"]["why"])
    switch(app, "a")
    add_release(app, "e")
    finish(registry, "e")
    pruned(app, "--keep", "2")
    assert releases(app) == ["41", "42", "a", "d", "e"], "41 and 42 are unknown"
    states = {record.name: record.state for record in registry.records()}
    assert (states["c"], states["b"], states["half"]) == ("removed", "removed", "removed")


def finish(registry: Registry, name: str) -> None:
    registry.note(registry.reserve(lambda _: name, source="", user=""), "finished")


def test_a_hook_cannot_prune(five: Path) -> None:
    done: Done = ctl("-C", five, "prune", env={"RELFS_HOOK": "pre-switch", "RELFS_DEPLOY_PATH": str(five)})
    assert_one_line(done, 3, "pre-switch")
