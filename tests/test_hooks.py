"""The hook pre-switch: it is asked before every swap, told what is about to happen, and its no is the last word."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from clients import SECONDS, clean_environment, ctl, ctl_command
from mounting import Mount, Mounts, wait_for
from readers import reading
from sandbox import link_of, make_app
from test_checks import SWAPS, configure, shell, swap, tells

from relfs.errors import EXIT_FAILED, EXIT_REFUSED

USER = 1000


def write_hook(app: Path, body: str, *, owner: int = 0, mode: int = 0o755) -> Path:
    hook = app / ".relfs/hooks/pre-switch"
    hook.parent.mkdir(parents=True, exist_ok=True)
    hook.write_text(f"#!/bin/sh\n{body}\n")
    hook.chmod(mode)
    os.chown(hook, owner, owner)
    return hook


@pytest.fixture
def site(open_place: Path) -> Path:
    """A deploy path that every user can reach."""
    return make_app(open_place / "app")


@pytest.fixture(params=["mounted", "not mounted"])
def anywhere(request: pytest.FixtureRequest, app: Path) -> Iterator[Path]:
    """The deploy path; mounted after the test has written its hook, if it is."""
    if request.param == "mounted":
        request.getfixturevalue("mounts").start(app)
    yield app


def test_its_no_is_the_last_word(anywhere: Path) -> None:
    write_hook(anywhere, "echo asking around; echo no migration for $RELFS_RELEASE >&2; exit 7")
    done = ctl("-C", anywhere, "switch", "41")
    assert done.status == EXIT_REFUSED
    assert "pre-switch: exit status 7: no migration for 41" in done.err
    assert len(done.err.splitlines()) == 1
    assert link_of(anywhere) == "releases/40"
    assert ctl("-C", anywhere, "switch", "--force", "41").status == EXIT_REFUSED
    write_hook(anywhere, "exit 0")
    assert ctl("-C", anywhere, "switch", "41").status == 0


def test_what_it_is_told(anywhere: Path) -> None:
    out = anywhere / "told"
    write_hook(anywhere, f"env | grep ^RELFS_ | sort > {out}; pwd >> {out}; ls >> {out}")
    assert ctl("-C", anywhere, "switch", "41").status == 0
    told = dict(line.partition("=")[::2] for line in out.read_text().splitlines() if line.startswith("RELFS_"))
    assert told.pop("RELFS_COMMAND").endswith("switch 41")
    assert int(told.pop("RELFS_PID")) > 0
    assert told == {
        "RELFS_HOOK": "pre-switch",
        "RELFS_DEPLOY_PATH": str(anywhere),
        "RELFS_RELEASE": "41",
        "RELFS_RELEASE_PATH": f"{anywhere}/releases/41",
        "RELFS_PREVIOUS": "40",
        "RELFS_PREVIOUS_PATH": f"{anywhere}/releases/40",
        "RELFS_USER": "root",
    }
    assert f"\n{anywhere}\n" in out.read_text()


def test_nothing_of_the_daemons_own_environment(anywhere: Path) -> None:
    write_hook(anywhere, f"env > {anywhere}/told")
    assert ctl("-C", anywhere, "switch", "41").status == 0
    names = {line.partition("=")[0] for line in (anywhere / "told").read_text().splitlines()}
    assert {name for name in names if not name.startswith("RELFS_")} <= {
        "PATH", "HOME", "USER", "LOGNAME", "PWD", "OLDPWD", "SHLVL", "_",
    }  # fmt: skip


def test_rolling_back_is_a_switch_too(anywhere: Path) -> None:
    assert ctl("-C", anywhere, "switch", "41").status == 0
    write_hook(anywhere, "test $RELFS_RELEASE != 40")
    assert ctl("-C", anywhere, "rollback").status == EXIT_REFUSED
    assert link_of(anywhere) == "releases/41"


@pytest.mark.parametrize("tool", SWAPS)
def test_a_tool_is_refused(mount: Mount, tool: str) -> None:
    """It gets an errno; the log and the journal have the hook's own words. Readers see nothing."""
    write_hook(mount.app, "echo the database is not there yet; exit 1")
    with reading(mount.app / "current/index.html", "40", "41") as readers:
        done = swap(mount.app, tool, "releases/41")
        assert (done.status == 0, "Operation not permitted" in done.err) == (False, True)
        wait_for(lambda: tells(mount, "exit status 1: the database is not there yet"), "the journal tells")
        wait_for(lambda: "the database is not there yet" in mount.log.read_text(), "the log tells")
        shutil.rmtree(mount.app / ".relfs/hooks")
        assert swap(mount.app, "gnu ln", "releases/41").status == 0
        seen = readers.stop()
    assert (seen.failed, seen.neither) == ({}, 0)


@pytest.mark.parametrize("tool", SWAPS)
def test_it_may_look_at_anything_in_the_deploy_path(mount: Mount, tool: str) -> None:
    """Also at names that the kernel has not cached, whose lookup would wait for the tool that waits for the hook: what
    the hook sees is the directory below the mount, with the real link, which still leads to the old release."""
    (mount.app / "uncached").touch()
    write_hook(
        mount.app,
        'test "$(cat $RELFS_DEPLOY_PATH/current/index.html)" = 40 && test -e $RELFS_DEPLOY_PATH/uncached '
        '&& test ! -e $RELFS_DEPLOY_PATH/no-such-name && test "$(cat $RELFS_RELEASE_PATH/index.html)" = 41 '
        "&& touch $RELFS_DEPLOY_PATH/made && touch $RELFS_DEPLOY_PATH/shared-by-hook",
    )
    done = swap(mount.app, tool, "releases/41")
    assert (done.status, done.err) == (0, "")
    assert (mount.app / "current/index.html").read_text() == "41"
    wait_for(lambda: (mount.app / "made").exists(), "what it made is seen through the mount")


def test_mounted_elsewhere(app: Path, mounts: Mounts, tmp_path: Path) -> None:
    (tmp_path / "live").mkdir()
    mounts.start(app, at=tmp_path / "live")
    write_hook(app, f"test $RELFS_DEPLOY_PATH = {app} && cat $RELFS_DEPLOY_PATH/current/index.html > {app}/told")
    assert swap(tmp_path / "live", "busybox ln", "releases/41").status == 0
    assert (app / "told").read_text() == "40"
    write_hook(app, f"test ! -e {tmp_path}/live/uncached")
    assert swap(tmp_path / "live", "gnu ln", "releases/42").status == 0


def test_it_takes_too_long(app: Path, mounts: Mounts) -> None:
    configure(app, "[hooks]\ntimeout = 0.3\n")
    write_hook(app, "exec sleep 1000")
    mounts.start(app)
    done = ctl("-C", app, "switch", "41")
    assert done.status == EXIT_REFUSED
    assert "pre-switch: did not end within 0.3 s" in done.err
    wait_for(lambda: not _hooks_of(app), "it was ended")
    assert "busy" in swap(app, "gnu ln", "releases/41").err
    assert (app / "current/index.html").read_text() == "40"


def _hooks_of(app: Path) -> list[str]:
    """The processes that are asked about `app`, however far they have come: by their environment (proc(5))."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended, or shows itself to nobody
            if f"RELFS_DEPLOY_PATH={app}\0".encode() in (process / "environ").read_bytes():
                found.append(process.name)
    return found


def test_it_prints_without_an_end(app: Path) -> None:
    """Neither is the disk filled meanwhile, nor the log with it."""
    configure(app, "[hooks]\ntimeout = 3600\n")
    write_hook(app, "exec yes")
    done = ctl("-C", app, "switch", "41")
    assert done.status == EXIT_REFUSED
    assert "pre-switch: printed more than 16 MiB" in done.err
    wait_for(lambda: not _hooks_of(app), "it was ended")


def test_it_hangs_in_the_kernel(open_place: Path, mounts: Mounts) -> None:
    """A user's own daemon cannot keep the mount from its hook. If that looks there at what the tool keeps locked,
    nothing can end it before the tool is answered; so the tool is."""
    app = make_app(open_place / "app")
    configure(app, "[hooks]\ntimeout = 0.3\n")
    write_hook(app, "test -e $RELFS_DEPLOY_PATH/uncached")
    subprocess.run(["chown", "-R", str(USER), app], check=True)
    mounts.start(app, "-o", "noallow_other", user=USER)
    for _ in range(2):
        done = subprocess.run(
            ["ln", "-sfn", "releases/41", app / "current"], user=USER, group=USER, env={"LC_ALL": "C"},
            capture_output=True, text=True, check=False, timeout=SECONDS,
        )  # fmt: skip
        assert (done.returncode, "busy" in done.stderr) == (1, True), done.stderr
    assert ctl("-C", app, "--json", "status", user=USER).json["current"] == "40"


def test_what_it_leaves_running_keeps_nobody_waiting(app: Path, mounts: Mounts) -> None:
    write_hook(app, "setsid sleep 1000 & echo $! > $RELFS_DEPLOY_PATH/pid")
    mounts.start(app)
    try:
        assert ctl("-C", app, "switch", "41").status == 0
    finally:
        os.kill(int((app / "pid").read_text()), 9)


@pytest.mark.parametrize("words", ["switch 42", "rollback", "lock", "unlock"])
def test_it_cannot_change_what_it_is_asked_about(anywhere: Path, words: str) -> None:
    """It may look, though. Otherwise the change that it asks for would be made after it, and ask it again."""
    env = f"PYTHONPATH={clean_environment()['PYTHONPATH']}"
    look, change = (" ".join([*ctl_command("-C", anywhere), each]) for each in ("status", words))
    write_hook(anywhere, f"export {env}; {look} && {change}")
    done = ctl("-C", anywhere, "switch", "41")
    assert done.status == EXIT_REFUSED
    assert "the hook pre-switch is asked before a change here, and cannot make one" in done.err
    assert link_of(anywhere) == "releases/40"


def test_it_may_change_another_deploy_path(anywhere: Path, tmp_path: Path) -> None:
    other = make_app(tmp_path / "other")
    env = f"PYTHONPATH={clean_environment()['PYTHONPATH']}"
    write_hook(anywhere, f"{env} {' '.join(ctl_command('-C', other, 'switch', '42'))}")
    assert ctl("-C", anywhere, "switch", "41").status == 0
    assert link_of(other) == "releases/42"


def test_a_failing_interpreter_is_no_consent(app: Path) -> None:
    hook = write_hook(app, "exit 0")
    hook.write_text("#!/no/such/interpreter\n")
    done = ctl("-C", app, "switch", "41")
    assert done.status == EXIT_FAILED
    assert "hooks/pre-switch: cannot be run" in done.err
    assert link_of(app) == "releases/40"


# ---- whose word it is


@pytest.mark.parametrize("mounted", [True, False], ids=["mounted", "not mounted"])
def test_it_runs_as_its_owner(site: Path, mounts: Mounts, mounted: bool) -> None:
    """A user who may write the state directory does not become root by it."""
    write_hook(site, f"id -u > {site}/shared/told; id -G >> {site}/shared/told; test ! -w /etc/passwd", owner=USER)
    os.chown(site / ".relfs/hooks", USER, USER)
    (site / "shared").mkdir()
    os.chown(site / "shared", USER, USER)
    if mounted:
        mounts.start(site)
    assert ctl("-C", site, "switch", "41").status == 0
    assert (site / "shared/told").read_text().split()[0] == str(USER)
    assert "0" not in (site / "shared/told").read_text().split()


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        ("chmod g+w pre-switch", "others than its owner may write it"),
        ("chmod o+w .", "others than its owner may write it"),
        ("chown 1001 .", "belongs to somebody else"),
        ("chmod a-x pre-switch", "not a program"),
        ("mv pre-switch other && ln -s other pre-switch", "not a program"),
        ("rm pre-switch && mkdir pre-switch", "not a program"),
    ],
)
def test_one_that_is_not_to_be_trusted(app: Path, spoil: str, words: str) -> None:
    hook = write_hook(app, "exit 0", owner=USER)
    assert shell(f"cd {hook.parent} && {spoil}").status == 0
    done = ctl("-C", app, "switch", "41")
    assert done.status == EXIT_REFUSED
    assert words in done.err
    assert link_of(app) == "releases/40"


def test_the_directory_of_hooks_is_no_link(app: Path, tmp_path: Path) -> None:
    write_hook(app, "exit 0")
    shutil.move(app / ".relfs/hooks", tmp_path / "hooks")
    (app / ".relfs/hooks").symlink_to(tmp_path / "hooks")
    done = ctl("-C", app, "switch", "41")
    assert done.status == EXIT_FAILED
    assert "cannot be run" in done.err
    assert link_of(app) == "releases/40"
