"""`relfsctl deploy`, as a whole: all goes well, something says no, and it is killed, interrupted, or out of disk at any
step; then the next command. Offline and on a mount."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections import Counter
from pathlib import Path

import pytest
from clients import SECONDS, Done, assert_one_line, clean_environment, ctl, ctl_command, running
from disks import fill, small_disk
from mounting import Mounts, wait_for
from sandbox import make_app

from relfs import health
from relfs.layout import DeployPath
from relfs.mountinfo import mount_at
from relfs.releases.deployment import Deployment, forget_deployment, write_deployment
from relfs.releases.staging import PREFIX
from relfs.store import TEMPORARY

STEPS = (
    "fsync,fdatasync,syncfs,rename,renameat,renameat2,mkdir,mkdirat,unlink,unlinkat,symlink,symlinkat,connect,sendto"
)
"""Whatever changes something on the disk, or asks a daemon to (strace(1))."""


@pytest.fixture(params=["offline", "mounted"])
def anywhere(request: pytest.FixtureRequest, app: Path, mounts: Mounts) -> Path:
    if request.param == "mounted":
        mounts.start(app)
    return app


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """What is deployed: it says in two files that it is `new`."""
    place = tmp_path / "source"
    (place / "sub").mkdir(parents=True)
    (place / "index.html").write_text("new")
    (place / "sub/other.html").write_text("new")
    return place


def configure(app: Path, text: str) -> None:
    (app / ".relfs").mkdir(exist_ok=True)
    (app / ".relfs/config.toml").write_text(text)


def names(app: Path) -> set[str]:
    return set(os.listdir(app / "releases"))


def current(app: Path) -> str:
    return os.path.basename(os.readlink(app / "current"))


# ---- all goes well ---------------------------------------------------------------------------------------------------


def test_a_release_is_deployed(anywhere: Path, source: Path) -> None:
    configure(anywhere, '[shared]\ndirectories = ["storage"]\n')
    done = ctl("-C", anywhere, "deploy", source)
    assert (done.status, done.out, done.err) == (0, "43 is current (was 40): 2 files\n", "")
    assert (anywhere / "current/sub/other.html").read_text() == "new"
    assert os.readlink(anywhere / "releases/43/storage") == "../../shared/storage"
    assert ctl("-C", anywhere, "check", "43").status == 0
    assert not (anywhere / ".relfs/deploy").exists()
    assert ctl("-C", anywhere, "switch", "41").status == 0, "the lock has ended with it"


def test_what_is_old_goes(anywhere: Path, source: Path) -> None:
    configure(anywhere, "[prune]\nkeep = 2\n")
    for _ in range(2):
        assert ctl("-C", anywhere, "deploy", source).status == 0
    done = ctl("-C", anywhere, "--json", "deploy", source)
    assert done.status == 0
    told = done.json
    assert (told["release"], told["previous"], told["switched"]["from"]) == ("45", "44", "44")
    assert [each["name"] for each in told["pruned"]["decisions"] if not each["keep"]] == ["43"]
    assert names(anywhere) >= {"41", "42", "44", "45"}, "what relfs does not know stays"
    assert not names(anywhere) & {"40", "43"}


def test_nothing_goes_if_that_is_said(app: Path, source: Path) -> None:
    configure(app, "[prune]\nkeep = 1\n")
    for _ in range(2):
        assert ctl("-C", app, "deploy", "--no-prune", source).status == 0
    assert names(app) == {"40", "41", "42", "43", "44"}


def test_from_standard_input_within_a_lock_that_one_has(app: Path, source: Path) -> None:
    script = 'tar -C "$1" -c . | "$2" -m relfs.cli.relfsctl -C "$3" deploy -'
    words = ["sh", "-c", script, "sh", str(source), ctl_command()[0], str(app)]
    done = subprocess.run(
        [*ctl_command("-C", app, "lock", "--"), *words],
        env=clean_environment(), capture_output=True, text=True, check=False, timeout=SECONDS,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert current(app) == "43"


# ---- something says no -----------------------------------------------------------------------------------------------


def _refused(app: Path, source: Path, *words: str) -> Done:
    before = names(app)
    done = ctl("-C", app, "deploy", source)
    assert_one_line(done, 3, *words)
    assert (names(app), current(app)) == (before, "40")
    assert not (app / ".relfs/deploy").exists()
    return done


def test_an_empty_source_is_refused_and_leaves_nothing(anywhere: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    _refused(anywhere, tmp_path / "empty", "empty directory")


@pytest.mark.parametrize("hook", ["pre_add", "pre_switch"])
def test_a_hook_says_no_and_nothing_is_left(anywhere: Path, source: Path, mounts: Mounts, hook: str) -> None:
    configure(anywhere, f'[hooks]\n{hook} = "exit 3"\n')
    if mount_at(str(anywhere)) is not None:  # it has read its configuration already
        assert ctl("-C", anywhere, "unmount").status == 0
        mounts.start(anywhere)
    _refused(anywhere, source, "exit status 3")


def test_a_required_file_is_missing(app: Path, source: Path) -> None:
    configure(app, '[shared]\nfiles = [".env"]\nrequired = [".env"]\n')
    _refused(app, source, "shared/.env", "required")


def test_verify_says_no_and_the_one_before_is_current_again(app: Path, source: Path) -> None:
    configure(app, '[hooks]\nverify = "test ! -e releases/43"\n[prune]\nkeep = 1\n')
    done = ctl("-C", app, "deploy", source)
    assert done.status == 3
    assert "43: not verified" in done.err
    assert current(app) == "40"
    assert "43" in names(app), "it stays, for whoever wants to know why"
    releases = {each["name"]: each["states"] for each in ctl("-C", app, "--json", "releases").json}
    assert "bad" in releases["43"]
    assert not (app / ".relfs/deploy").exists()


def test_who_is_locked_out_is_told_by_whom(app: Path, source: Path) -> None:
    with running("-C", app, "lock", "--reason", "migration", "--", "sleep", "1000") as holder:
        wait_for((app / ".relfs/held").exists, "the lock is taken")
        done = ctl("-C", app, "deploy", source)
        assert_one_line(done, 4, "migration")
        assert names(app) == {"40", "41", "42"}
        assert ctl("-C", app, "switch", "41").status == 4, "who lost has not taken the lock away"
        holder.terminate()
        holder.wait(SECONDS)


def test_while_a_tool_deploys_nothing_is_begun(anywhere: Path, source: Path) -> None:
    (anywhere / ".dep").mkdir()
    (anywhere / ".dep/deploy.lock").write_text("grace\n")
    assert_one_line(ctl("-C", anywhere, "deploy", source), 4, "grace is deploying with Deployer")
    assert names(anywhere) == {"40", "41", "42"}
    assert not (anywhere / ".relfs/releases").exists()


def test_a_tool_that_begins_meanwhile_stops_it_and_nothing_is_left(anywhere: Path, source: Path) -> None:
    configure(anywhere, "[hooks]\npre_add = 'mkdir .dep && echo grace >.dep/deploy.lock'\n")
    assert_one_line(ctl("-C", anywhere, "deploy", source), 4, "grace is deploying with Deployer")
    assert names(anywhere) == {"40", "41", "42"}
    assert not (anywhere / ".relfs/deploy").exists()


def test_a_name_that_was_ever_given_is_refused(app: Path, source: Path) -> None:
    assert ctl("-C", app, "deploy", "--name", "x", source).status == 0
    done = ctl("-C", app, "deploy", "--name", "x", source)
    assert_one_line(done, 3, "x")
    assert current(app) == "x"


@pytest.mark.parametrize("missing", ["no-such-directory", "no-such.tar.gz"])
def test_a_source_that_is_not_there(app: Path, missing: str) -> None:
    done = ctl("-C", app, "deploy", missing)
    assert done.status in (1, 2)
    assert_one_line(done, done.status, missing)
    assert names(app) == {"40", "41", "42"}


@pytest.mark.parametrize("leads_to", ["releases/40", "releases/41"])
def test_a_temporary_link_that_was_left_is_not_entered(app: Path, source: Path, leads_to: str) -> None:
    """`mv new current`, where `new` is old and `current` a link to a directory, lands in the release that is live.
    (Through a mount, nobody can make such a link.)"""
    (app / TEMPORARY).symlink_to(leads_to)
    assert ctl("-C", app, "deploy", source).status == 0
    assert current(app) == "43"
    assert os.listdir(app / "releases/40") == os.listdir(app / "releases/41") == ["index.html"]


# ---- killed at any step ----------------------------------------------------------------------------------------------


def _deploy_with(app: Path, source: Path, step: tuple[str, int], fault: str) -> subprocess.CompletedProcess[str]:
    """Deploy while strace(1) injects a fault at one step, into relfsctl itself."""
    inject = f"inject={step[0]}:{fault}:when={step[1]}"
    return subprocess.run(
        ["strace", "-o", "/dev/null", "-e", inject, *ctl_command("-C", app, "deploy", source)],
        env=clean_environment(), cwd="/", capture_output=True, text=True, check=False, timeout=SECONDS,
    )  # fmt: skip


def _steps(app: Path, source: Path) -> list[tuple[str, int]]:
    """Deploy once, and tell the steps of it: the call's name, and which of its kind it is (strace counts so)."""
    words = ["strace", "-e", f"trace={STEPS}", *ctl_command("-C", app, "deploy", source)]
    done = subprocess.run(words, env=clean_environment(), cwd="/", stderr=subprocess.PIPE, text=True, check=True)
    counts = Counter(line.partition("(")[0] for line in done.stderr.splitlines() if "(" in line)
    return [(call, number + 1) for call, count in counts.items() for number in range(count)]


def _content(app: Path) -> set[str]:
    """What the current release says; relfs's own say `new`, in both of their files, the others their name."""
    top = app / "current"
    return {path.read_text() for path in (top / "index.html", top / "sub/other.html") if path.exists()}


def _assert_whole(app: Path) -> None:
    now = current(app)
    assert _content(app) == ({now} if now in ("40", "41", "42") else {"new"})
    assert len([name for name in names(app) if name.startswith(PREFIX)]) <= 1


def _assert_settled(app: Path) -> None:
    """Nothing is lost, nothing is half, nothing is left, and all that is there can be relied on."""
    _assert_whole(app)
    assert not [name for name in names(app) if name.startswith(".")]
    assert not (app / ".relfs/deploy").exists()
    log = [json.loads(line) for line in (app / ".relfs/journal").read_text().splitlines()]
    made_current = {event["release"] for event in log if event["action"] == "switch"}
    assert names(app) - {"40", "41", "42"} <= made_current, "what was never current is not left"


@pytest.mark.parametrize("ending", ["kill", "interrupt"])
def test_ended_at_any_step(anywhere: Path, source: Path, ending: str) -> None:
    """SIGKILL leaves what it leaves, and the next command settles it; SIGINT is settled at once, before the switch."""
    configure(anywhere, "[prune]\nkeep = 3\n")
    number = signal.SIGKILL if ending == "kill" else signal.SIGINT
    ended = 0
    for step in _steps(anywhere, source):
        before = current(anywhere)
        done = _deploy_with(anywhere, source, step, f"signal={number.name}")
        ended += done.returncode != 0
        _assert_whole(anywhere)
        if ending == "interrupt" and current(anywhere) == before:
            assert not [name for name in names(anywhere) if name.startswith(".")]
        _assert_next_command_settles(anywhere, before)
    assert ended > 20, "there is that much to be ended at"


def _assert_next_command_settles(app: Path, before: str) -> None:
    """A switch to what is current already changes nothing but what was left."""
    after = current(app)
    was_left = (app / ".relfs/deploy").exists()
    done = ctl("-C", app, "switch", after)
    if was_left and done.status != 0:  # the very switch that it waited for was made or undone meanwhile
        done = ctl("-C", app, "switch", current(app))
    assert done.status == 0, done.err
    assert not was_left or "interrupted" in done.err
    assert current(app) in (before, after)
    _assert_settled(app)


def test_told_once_what_was_left(app: Path, source: Path) -> None:
    """Which is found by whatever command comes next."""
    for command in (["add", source], ["switch", "41"], ["rollback"], ["prune"], ["deploy", source]):
        assert _deploy_with(app, source, ("renameat2", 1), "signal=SIGKILL").returncode != 0
        assert (app / ".relfs/deploy").exists()
        assert any("was interrupted" in line for line in ctl("-C", app, "--json", "status").json["health"])
        done = ctl("-C", app, *command)
        assert done.status == 0, done.err
        assert "was interrupted before the switch; what it had made was removed" in done.err
        again = ctl("-C", app, "switch", "42")
        assert (again.status, again.err) == (0, "")


def test_one_that_goes_on_is_left_alone(app: Path, source: Path) -> None:
    """Other commands do not take it for interrupted; those that would change what is current are locked out."""
    os.mkfifo(source / "wait")
    configure(app, '[hooks]\ntimeout = 300\npre_add = "read line < wait"\n')
    os.mkfifo(app / "wait")
    os.unlink(source / "wait")
    with running("-C", app, "deploy", source) as deploying:
        wait_for((app / ".relfs/deploy").exists, "it is under way")
        assert ctl("-C", app, "switch", "41").status == 4
        assert ctl("-C", app, "--json", "status").json["health"] == []
        assert (app / ".relfs/deploy").exists()
        (app / "wait").write_text("\n")
        assert deploying.wait(SECONDS) == 0
    assert current(app) == "43"


def test_one_that_has_just_ended_was_not_interrupted(deploy: DeployPath, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the look at how far it has come, and the look who holds the lock."""

    def ends(directory: int) -> None:
        forget_deployment(directory)

    assert deploy.state_fd is not None
    write_deployment(deploy.state_fd, Deployment("id-1", "pruning", "43", "42", "/src", "ada", 5.0))
    (told,) = health.health(deploy, None)
    assert "was interrupted" in told
    monkeypatch.setattr(health, "held", ends)
    assert health.health(deploy, None) == ()


# ---- the disk is full at any step ------------------------------------------------------------------------------------


def test_no_room_at_any_step(app: Path, source: Path) -> None:
    """Whatever cannot be written: one line, and what was current is current, or the new one is, whole."""
    failed = 0
    for step in _steps(app, source):
        before = current(app)
        done = _deploy_with(app, source, step, "error=ENOSPC")
        failed += done.returncode != 0
        _assert_whole(app)
        assert done.returncode in (0, 1), done.stderr
        assert bool(done.stderr) >= done.returncode
        assert all(line.startswith("relfsctl: ") for line in done.stderr.splitlines()), done.stderr
        settled = ctl("-C", app, "switch", current(app))
        assert settled.status == 0, settled.err
        assert current(app) != before or done.returncode == 1
        _assert_settled(app)
    assert failed > 10


def test_a_disk_that_is_really_full(tmp_path: Path, source: Path) -> None:
    (source / "large").write_bytes(os.urandom(1 << 20))
    with small_disk(tmp_path / "disk", "size=8m") as disk:
        app = make_app(disk / "app")
        assert ctl("-C", app, "switch", "41").status == 0
        filler = fill(disk)
        done = ctl("-C", app, "deploy", source)
        assert_one_line(done, 1, "No space left")
        assert current(app) == "41"
        filler.unlink()
        assert ctl("-C", app, "deploy", source).status == 0
        _assert_settled(app)
        assert (app / "current/large").read_bytes() == (source / "large").read_bytes()
