"""The deploy lock that people take: who holds it, whom it stops, and that it never outlives its reason."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from clients import SECONDS, clean_environment, ctl, ctl_command
from mounting import Mount, Mounts, wait_for
from sandbox import ACTOR, link_of
from test_checks import SWAPS, shell, swap, tells

from relfs import hold
from relfs.errors import EXIT_LOCKED, EXIT_USAGE, LockedError, RelfsError
from relfs.journal import Actor
from relfs.processes import boot_id, process


@contextmanager
def a_shell() -> Iterator[subprocess.Popen[str]]:
    """Somebody's shell, which runs what it is told line by line."""
    process = subprocess.Popen(
        ["sh"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env=clean_environment(), cwd="/",
    )  # fmt: skip
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def tell(shell: subprocess.Popen[str], command: str) -> str:
    """Run `command` there; its output, standard error included."""
    assert shell.stdin is not None
    assert shell.stdout is not None
    shell.stdin.write(f"{command}\necho; echo end\n")
    shell.stdin.flush()
    lines = list(iter(shell.stdout.readline, "end\n"))
    return "".join(lines).rstrip("\n")


def lock_command(app: Path, *words: str) -> str:
    return " ".join([*ctl_command("-C", app, "lock"), *words])


@pytest.fixture(params=["mounted", "not mounted"])
def anywhere(request: pytest.FixtureRequest, app: Path) -> Path:
    if request.param == "mounted":
        request.getfixturevalue("mounts").start(app)
    return app


def actor_of(pid: int) -> Actor:
    return Actor(ACTOR.uid, ACTOR.user, pid, ACTOR.command)


# ---- the file --------------------------------------------------------------------------------------------------------


def test_held_by_a_process_and_what_it_starts(state: int) -> None:
    hold.take(state, ACTOR, os.getpid(), why="a migration", seconds=None)
    found = hold.held(state)
    assert found is not None
    assert (found.pid, found.user, found.reason, found.until) == (os.getpid(), "ada", "a migration", None)
    hold.require(state, os.getpid())
    with subprocess.Popen(["sleep", "1000"]) as child:
        hold.require(state, child.pid)
        child.kill()
    for stranger in (os.getppid(), 1, 0):
        with pytest.raises(LockedError, match=r"held by ada .*: a migration; `relfsctl unlock` ends that"):
            hold.require(state, stranger)


def test_it_ends_with_its_holder(state: int) -> None:
    with subprocess.Popen(["sleep", "1000"]) as child:
        hold.take(state, actor_of(child.pid), child.pid, why="", seconds=None)
        assert hold.held(state) is not None
        with pytest.raises(LockedError):
            hold.take(state, ACTOR, os.getpid(), why="", seconds=None)
        child.kill()
    assert hold.held(state) is None
    hold.take(state, ACTOR, os.getpid(), why="", seconds=None)


def test_a_zombie_holds_nothing(state: int) -> None:
    child = subprocess.Popen(["sleep", "1000"])
    hold.take(state, actor_of(child.pid), child.pid, why="", seconds=None)
    child.kill()
    wait_for(lambda: not (found := process(child.pid)) or not found.alive, "it is dead")
    assert hold.held(state) is None
    child.wait()


def test_a_pid_that_is_used_again_is_not_the_holder(state: int) -> None:
    hold.take(state, ACTOR, os.getpid(), why="", seconds=None)
    document = json.loads(_read(state))
    for key, other in (("start", document["start"] - 1), ("boot", "another")):
        _write(state, json.dumps({**document, key: other}))
        assert hold.held(state) is None
    _write(state, json.dumps(document))
    assert hold.held(state) is not None
    assert boot_id() == document["boot"]


def test_a_time_to_live(state: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """It outlives the holder, and is nobody's then; it ends when the time is over, whoever lives."""
    with subprocess.Popen(["sleep", "1000"]) as child:
        hold.take(state, actor_of(child.pid), child.pid, why="", seconds=60)
        hold.require(state, child.pid)
        child.kill()
    with pytest.raises(LockedError, match="until"):
        hold.require(state, os.getpid())
    now = time.clock_gettime(time.CLOCK_BOOTTIME)
    monkeypatch.setattr(time, "clock_gettime", lambda _clock: now + 61)
    assert hold.held(state) is None


@pytest.mark.parametrize("change", [-86_400, 86_400])
def test_a_clock_that_is_set_changes_no_time_to_live(
    state: int, monkeypatch: pytest.MonkeyPatch, change: float
) -> None:
    hold.take(state, ACTOR, os.getpid(), why="", seconds=60)
    now, since_boot = time.time(), time.clock_gettime(time.CLOCK_BOOTTIME)
    monkeypatch.setattr(time, "time", lambda: now + change)
    assert hold.held(state) is not None
    monkeypatch.setattr(time, "clock_gettime", lambda _clock: since_boot + 61)
    assert hold.held(state) is None


def test_a_time_to_live_goes_on_after_a_boot(state: int, monkeypatch: pytest.MonkeyPatch) -> None:
    hold.take(state, ACTOR, os.getpid(), why="", seconds=60)
    _write(state, json.dumps({**json.loads(_read(state)), "boot": "the last one"}))
    monkeypatch.setattr(time, "clock_gettime", lambda _clock: 0.0)
    assert hold.held(state) is not None
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 61)
    assert hold.held(state) is None


@pytest.mark.parametrize("content", ["", "{", "[]", '{"pid": 1}', "[" * 5000, '{"pid": "x"}'])
def test_what_was_torn_is_no_lock(state: int, content: str) -> None:
    _write(state, content)
    assert hold.held(state) is None
    hold.take(state, ACTOR, os.getpid(), why="", seconds=None)
    assert hold.held(state) is not None


@pytest.mark.parametrize("field", ["since", "until", "ends"])
@pytest.mark.parametrize("number", ["NaN", "Infinity", "1e300", "-1"])
def test_what_is_no_time_is_no_lock(state: int, field: str, number: str) -> None:
    hold.take(state, ACTOR, os.getpid(), why="", seconds=60)
    _write(state, json.dumps({**json.loads(_read(state)), field: float(number)}))
    assert hold.held(state) is None
    hold.require(state, os.getppid())


def test_no_link_is_followed(state: int, tmp_path: Path) -> None:
    os.symlink("elsewhere", hold.HELD, dir_fd=state)
    with pytest.raises(RelfsError, match="cannot be read"):
        hold.held(state)
    assert not (tmp_path / "elsewhere").exists()
    hold.give_back(state)
    hold.take(state, ACTOR, os.getpid(), why="", seconds=None)


def test_a_holder_that_cannot_be_seen(state: int) -> None:
    with pytest.raises(RelfsError, match="--ttl"):
        hold.take(state, ACTOR, 0, why="", seconds=None)
    hold.take(state, ACTOR, 0, why="", seconds=60)
    with pytest.raises(LockedError):
        hold.require(state, os.getpid())
    assert hold.give_back(state) is not None
    assert hold.give_back(state) is None


def _read(state: int) -> str:
    with open(f"/proc/self/fd/{state}/{hold.HELD}") as file:
        return file.read()


def _write(state: int, content: str) -> None:
    with open(f"/proc/self/fd/{state}/{hold.HELD}", "w") as file:
        file.write(content)


# ---- the commands ----------------------------------------------------------------------------------------------------


def test_others_are_stopped_and_the_holder_is_not(anywhere: Path) -> None:
    with a_shell() as holder:
        assert "the deploy lock is yours" in tell(holder, lock_command(anywhere, "--reason", "'a migration'"))
        done = ctl("-C", anywhere, "switch", "41")
        assert done.status == EXIT_LOCKED
        assert f"held by root (pid {holder.pid}: sh) since " in done.err
        assert ": a migration; `relfsctl unlock` ends that" in done.err
        assert ctl("-C", anywhere, "rollback").status == EXIT_LOCKED
        assert ctl("-C", anywhere, "lock").status == EXIT_LOCKED
        assert link_of(anywhere) == "releases/40"
        status = ctl("-C", anywhere, "--json", "status").json
        assert (status["lock"]["pid"], status["lock"]["reason"]) == (holder.pid, "a migration")
        assert "a migration" in ctl("-C", anywhere, "status").out
        tell(holder, " ".join(ctl_command("-C", anywhere, "switch", "42")))
        assert link_of(anywhere) == "releases/42"
    assert ctl("-C", anywhere, "switch", "41").status == 0
    assert ctl("-C", anywhere, "--json", "status").json["lock"] is None


@pytest.mark.parametrize("tool", SWAPS)
def test_a_swap_by_anybody_but_the_holder(mount: Mount, tool: str) -> None:
    """EBUSY for all others; the holder's own swap is done."""
    with a_shell() as holder:
        tell(holder, lock_command(mount.app))
        done = swap(mount.app, tool, "releases/41")
        assert (done.status == 0, "busy" in done.err) == (False, True)
        assert link_of(mount.app) == "releases/40"
        wait_for(lambda: tells(mount, "refused: the deploy lock is held"), "the journal tells")
        for left in ("new", "releases/current"):
            (mount.app / left).unlink(missing_ok=True)
        assert tell(holder, SWAPS[tool].format(app=mount.app, target="releases/42")) == ""
        assert link_of(mount.app).endswith("releases/42")


def test_unlock(anywhere: Path) -> None:
    with a_shell() as holder:
        tell(holder, lock_command(anywhere))
        done = ctl("-C", anywhere, "unlock")
        assert (done.status, "it was held by root" in done.out) == (0, True)
        assert ctl("-C", anywhere, "switch", "41").status == 0
    assert ctl("-C", anywhere, "unlock").out == "nobody held the deploy lock\n"
    assert ctl("-C", anywhere, "--json", "unlock").json == {"unlocked": None}


def test_while_a_command_runs(anywhere: Path) -> None:
    """The lock is the command's, its status is ours, and nothing has to be given back."""
    switch = ctl_command("-C", anywhere, "switch", "41")
    assert ctl("-C", anywhere, "lock", "--", *switch).status == 0
    assert link_of(anywhere) == "releases/41"
    assert ctl("-C", anywhere, "lock", "--", "sh", "-c", "exit 7").status == 7
    assert ctl("-C", anywhere, "lock", "--", "sh", "-c", "kill -9 $$").status == 128 + 9
    gone = ctl("-C", anywhere, "lock", "--", "no-such-command")
    assert (gone.status, gone.err) == (127, "relfsctl: no-such-command: cannot be run: No such file or directory\n")
    with subprocess.Popen(
        ctl_command("-C", anywhere, "lock", "--", "sh", "-c", "echo running; read line"),
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=clean_environment(), cwd="/",
    ) as running:  # fmt: skip
        assert running.stdout is not None
        assert running.stdout.readline() == b"running\n"
        assert ctl("-C", anywhere, "switch", "40").status == EXIT_LOCKED
        running.communicate(b"\n", timeout=SECONDS)
    assert ctl("-C", anywhere, "switch", "40").status == 0


def test_by_way_of_sudo(anywhere: Path) -> None:
    """sudo ends with the command that it runs; the lock is the shell's."""
    with a_shell() as holder:
        python_path = f"PYTHONPATH={clean_environment()['PYTHONPATH']}"
        assert "the deploy lock is yours" in tell(holder, f"sudo -n env {python_path} {lock_command(anywhere)}")
        assert ctl("-C", anywhere, "switch", "41").status == EXIT_LOCKED
        assert ctl("-C", anywhere, "--json", "status").json["lock"]["pid"] == holder.pid
        tell(holder, f"sudo -n env {python_path} " + " ".join(ctl_command("-C", anywhere, "switch", "42")))
        assert link_of(anywhere) == "releases/42"


def test_a_script_of_the_holders_takes_it_again(anywhere: Path) -> None:
    """And does not end it for the holder by ending."""
    with a_shell() as holder:
        tell(holder, lock_command(anywhere, "--reason", "outer"))
        assert tell(holder, lock_command(anywhere, "--reason", "inner", "--", "echo", "done")) == "done"
        tell(holder, f"sh -c '{lock_command(anywhere)}; true'")
        assert ctl("-C", anywhere, "switch", "41").status == EXIT_LOCKED
        assert ctl("-C", anywhere, "--json", "status").json["lock"]["reason"] == "outer"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT], ids=["SIGTERM", "SIGHUP", "SIGINT"])
def test_a_command_that_is_ended(anywhere: Path, number: signal.Signals) -> None:
    """SIGTERM and SIGHUP are handed on; Ctrl-C the terminal gives to both. The command decides, then we end."""
    script = (
        "import signal, sys, time\n"
        "def end(*_): print('tidy', flush=True); sys.exit(5)\n"
        "for each in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT): signal.signal(each, end)\n"
        "print('running', flush=True)\n"
        "while True: time.sleep(1000)\n"
    )
    with subprocess.Popen(
        ctl_command("-C", anywhere, "lock", "--", sys.executable, "-c", script),
        stdout=subprocess.PIPE, env=clean_environment(), cwd="/", start_new_session=True,
    ) as running:  # fmt: skip
        assert running.stdout is not None
        assert running.stdout.readline() == b"running\n"
        if number == signal.SIGINT:
            os.killpg(running.pid, number)
        else:
            running.send_signal(number)
        assert running.stdout.read() == b"tidy\n"
        assert running.wait(SECONDS) == 5


_TOLD_EARLY = """
import os, signal, subprocess, sys
from relfs.cli.commands import lock
start = subprocess.Popen
def told(words):
    os.kill(os.getpid(), signal.Signals[sys.argv[1]])
    return start(words)
subprocess.Popen = told
sys.exit(lock._run(("sleep", "1000")))
"""


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_told_to_end_before_the_command_has_begun(name: str) -> None:
    """It is handed on all the same: the command must not go on without whoever holds the lock for it."""
    command = [sys.executable, "-c", _TOLD_EARLY, name]
    done = subprocess.run(command, env=clean_environment(), timeout=SECONDS, check=False)
    assert done.returncode == 128 + signal.Signals[name]


def test_a_lock_survives_the_mount_and_its_end(app: Path, mounts: Mounts) -> None:
    with a_shell() as holder:
        tell(holder, lock_command(app))
        mount = mounts.start(app)
        assert ctl("-C", app, "switch", "41").status == EXIT_LOCKED
        assert mount.terminate() == 0
        assert ctl("-C", app, "switch", "41").status == EXIT_LOCKED


def test_lock_that_makes_no_sense(app: Path) -> None:
    for words in (["--ttl", "5", "--", "true"], ["--ttl", "0"], ["--ttl", "x"], ["--ttl", "nan"]):
        done = ctl("-C", app, "lock", *words)
        assert (done.status, len(done.err.splitlines())) == (EXIT_USAGE, 1)
    assert not (app / ".relfs/held").exists()


def test_a_time_to_live_from_the_command_line(anywhere: Path) -> None:
    with a_shell() as holder:
        tell(holder, lock_command(anywhere, "--ttl", "1000"))
        status = ctl("-C", anywhere, "--json", "status").json
        assert 0 < status["lock"]["until"] - time.time() <= 1000
        tell(holder, " ".join(ctl_command("-C", anywhere, "switch", "41")))
    assert link_of(anywhere) == "releases/41"
    done = ctl("-C", anywhere, "switch", "42")
    assert (done.status, " until " in done.err) == (EXIT_LOCKED, True)
    assert ctl("-C", anywhere, "unlock").status == 0
    assert ctl("-C", anywhere, "switch", "42").status == 0


def test_a_time_to_live_outlasts_what_its_holder_runs(anywhere: Path) -> None:
    """Which may take longer than that, and holds the lock by itself meanwhile."""
    with a_shell() as holder:
        tell(holder, lock_command(anywhere, "--ttl", "1000", "--reason", "freeze"))
        words = ctl_command("-C", anywhere, "--json", "status")
        inside = json.loads(tell(holder, lock_command(anywhere, "--", *words)))["lock"]
        assert (inside["until"], inside["reason"]) == (None, "")
        assert ctl("-C", anywhere, "--json", "status").json["lock"]["reason"] == "freeze"
        tell(holder, " ".join(ctl_command("-C", anywhere, "deploy", str(anywhere / "releases/42"))))
    assert link_of(anywhere) == "releases/43"
    done = ctl("-C", anywhere, "switch", "42")
    assert (done.status, ": freeze; " in done.err) == (EXIT_LOCKED, True)


def test_what_is_put_aside_has_its_own_end(state: int, monkeypatch: pytest.MonkeyPatch) -> None:
    hold.take(state, ACTOR, os.getpid(), why="outer", seconds=60)
    with subprocess.Popen(["sleep", "1000"]) as child:
        hold.take(state, actor_of(child.pid), child.pid, why="inner", seconds=30)
        hold.take(state, actor_of(child.pid), child.pid, why="again", seconds=30)
        child.kill()
    assert [found.reason for found in _chain(state)] == ["again", "outer"]
    now = time.clock_gettime(time.CLOCK_BOOTTIME)
    monkeypatch.setattr(time, "clock_gettime", lambda _clock: now + 31)
    assert [found.reason for found in _chain(state)] == ["outer"]
    monkeypatch.setattr(time, "clock_gettime", lambda _clock: now + 61)
    assert _chain(state) == []


def _chain(state: int) -> list[hold.Hold]:
    found, chain = hold.held(state), list[hold.Hold]()
    while found is not None:
        chain.append(found)
        found = found.outer
    return chain


# ---- Deployer's own lock


def test_deployers_lock_stops_relfsctl_but_not_the_tool(anywhere: Path) -> None:
    (anywhere / ".dep").mkdir()
    (anywhere / ".dep/deploy.lock").write_text("grace\n")
    for words in (["switch", "41"], ["rollback"]):
        done = ctl("-C", anywhere, *words)
        assert done.status == EXIT_LOCKED
        assert ".dep/deploy.lock: grace is deploying with Deployer since " in done.err
        assert "`dep deploy:unlock` ends that" in done.err
    assert link_of(anywhere) == "releases/40"
    assert swap(anywhere, "gnu ln", "releases/41").status == 0
    assert link_of(anywhere) == "releases/41"
    assert ctl("-C", anywhere, "switch", "--force", "42").status == 0
    (anywhere / ".dep/deploy.lock").unlink()
    assert ctl("-C", anywhere, "switch", "40").status == 0


@pytest.mark.parametrize("make", ["mkfifo deploy.lock", "ln -s /etc/shadow deploy.lock", "mkdir deploy.lock"])
def test_a_lock_of_deployers_that_is_no_file(app: Path, make: str) -> None:
    (app / ".dep").mkdir()
    assert shell(f"cd {app}/.dep && {make}").status == 0
    done = ctl("-C", app, "switch", "41")
    assert done.status == EXIT_LOCKED
    assert ".dep/deploy.lock: somebody is deploying" in done.err
