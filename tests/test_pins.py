"""Pinned processes, on a real mount: what they see, until when, who may pin whom, and that it outlives workers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
from mounting import Mount, Mounts, environment, held, relfs_command, relfsctl, relfsctl_command, wait_for
from sandbox import be_patient
from viewers import pids_of, reader, reader_with_pid, switch, views

from relfs.control import change
from relfs.errors import RefusedError
from relfs.mountinfo import mount_at
from relfs.views.mark import mark_of, new_mark, put_mark
from relfs.views.pins import Pin, pins_on_disk

NOBODY = 65534


@pytest.fixture
def open_mount(app: Path, open_place: Path, mounts: Mounts) -> Mount:
    """A mount of root's that everybody can reach."""
    place = open_place / "app"
    app.rename(place)
    return mounts.start(place)


def test_run_sees_one_release_until_it_ends(mount: Mount) -> None:
    with reader(mount) as other, reader(mount, "run") as pinned:
        for release in ("41", "42", "40", "41"):
            assert pinned.sees() == "40"
            switch(mount, release)
            assert (pinned.sees(), other.sees()) == ("40", release)
    wait_for(lambda: views(mount) == [], "the view has ended with the last process")


def test_a_release_that_is_not_current(mount: Mount) -> None:
    with reader(mount, "run", "--release", "42") as pinned, reader(mount, "run", "--release", "@current") as other:
        assert (pinned.sees(), other.sees()) == ("42", "40")
        switch(mount, "41")
        assert (pinned.sees(), other.sees()) == ("42", "40")


def test_in_the_place_of_relfsctl(mount: Mount) -> None:
    """Its pid, its exit status, and signals as they were."""
    program = ["sh", "-c", "echo $$; sh -c 'kill -PIPE $$'; echo $?; exit 7"]
    done = subprocess.Popen(
        relfsctl_command(mount.mountpoint, "run", "--", *program), stdout=subprocess.PIPE, text=True, env=environment()
    )
    output, _ = done.communicate()
    assert output.split() == [str(done.pid), str(128 + signal.SIGPIPE)]
    assert done.returncode == 7
    for words, status in (
        (("--", "no-such-command"), 127),
        (("--", "/etc/passwd"), 126),
        (("sh", "-c", "exit 7"), 7),
        (("--release", "41", "grep", "-q", "41", f"{mount.app}/current/index.html"), 0),
    ):
        assert mount.relfsctl("run", *words).returncode == status, words


_WAYS = {
    "env": ("env", "-i"),
    "session": ("setsid", "--wait"),
    "pid name space": ("unshare", "--pid", "--fork", "--mount-proc"),
    "user": ("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"),
    "run again": ("nice", "-n1", "sh", "-c", 'exec "$@"', "sh"),
}


def test_whatever_they_do(open_mount: Mount) -> None:
    with ExitStack() as stack:
        pinned = {
            way: stack.enter_context(reader(open_mount, "run", before=before)) for way, before in _WAYS.items()
        }  # fmt: skip
        for release in ("40", "41", "42"):
            switch(open_mount, release)
            assert {way: each.sees() for way, each in pinned.items()} == dict.fromkeys(_WAYS, "40")


def test_a_daemon(mount: Mount, tmp_path: Path) -> None:
    """It is nobody's child; the view is over with it."""
    fifo, seen = tmp_path / "fifo", tmp_path / "seen"
    os.mkfifo(fifo)
    told = f"echo $$ >{seen}; while read -r _ <{fifo}; do cat {mount.mountpoint}/current/index.html >>{seen}; done"
    daemonise = f"(setsid sh -c '{told}' </dev/null >/dev/null 2>&1 &)"
    assert mount.relfsctl("run", "--", "sh", "-c", daemonise).returncode == 0
    wait_for(lambda: seen.exists() and seen.read_text().endswith("\n"), "the daemon runs")
    pid = int(seen.read_text())
    try:
        switch(mount, "41")
        fifo.write_text("\n")
        wait_for(lambda: seen.read_text() == f"{pid}\n40", "the daemon sees what was current when it was started")
        wait_for(lambda: [pids_of(view) for view in views(mount)] == [[pid]], "cat(1) has ended")
        (view,) = views(mount)
        assert (view["release"], view["reason"]) == ("40", "pinned")
    finally:
        os.kill(pid, signal.SIGKILL)
    wait_for(lambda: views(mount) == [], "the view has ended with the daemon")


def test_pin_a_running_process_and_its_children(mount: Mount) -> None:
    """A child that was there before as well as those that come; nobody else."""
    with reader(mount, before=("sh", "-c", '"$@"; :', "sh")) as family, reader(mount) as other:
        assert family.sees() == "40"
        done = mount.relfsctl("pin", "--pid", str(family.pid))
        assert done.returncode == 0, done.stderr
        switch(mount, "41")
        assert (family.sees(), other.sees()) == ("40", "41")
        (view,) = views(mount)
        assert family.pid in pids_of(view)
        assert len(pids_of(view)) == 2
        again = mount.relfsctl("pin", "--pid", str(family.pid), "--release", "42")
        assert again.returncode == 0, again.stderr
        assert family.sees() == "42"
        wait_for(lambda: [view["release"] for view in views(mount)] == ["42"], "nobody is pinned to the other any more")
        wait_for(lambda: pinned_to(mount, "42") in pids_of(views(mount)[0]), "it is told who is, not who has asked")
        assert mount.relfsctl("pin", "--pid", str(family.pid), "--end").returncode == 0
        assert family.sees() == "41"


def pinned_to(mount: Mount, release: str) -> int:
    """The process on account of which it is not removed."""
    with pytest.raises(RefusedError, match="is pinned to it") as refused:
        change((f"{mount.mountpoint}/.relfs",), "discard", {"release": release})
    return int(str(refused.value).split()[2])


def test_a_reused_pid_is_somebody_else(mount: Mount) -> None:
    """At once, while the pin may still be there."""
    with reader(mount, "run", "--release", "42") as pinned, reader(mount, "run", "--release", "41"):
        assert pinned.sees() == "42"
        pinned.end()
        other = reader_with_pid(mount, pinned.pid)
        assert other.sees() == "40"
        other.end()


def test_nested(mount: Mount) -> None:
    """The inner one counts for its family, the outer one for the rest."""
    show = f"cat {mount.app}/current/index.html"
    inner = " ".join(relfsctl_command(mount.mountpoint, "run", "--release", "42", "--", show))
    outer = ["run", "--release", "41", "--", "sh", "-c", f"{show}; echo; {inner}; echo; {show}"]
    done = mount.relfsctl(*outer)
    assert done.stdout.split() == ["41", "42", "41"], done.stderr


def test_nested_and_nothing_named(mount: Mount) -> None:
    """Whoever descends from a pinned process goes on seeing what it does, also if it has itself pinned anew."""
    show = f"cat {mount.app}/current/index.html"
    inner = " ".join(relfsctl_command(mount.mountpoint, "run", "--", show))
    pin = " ".join(relfsctl_command(mount.mountpoint, "pin", "--pid", "$$"))
    done = mount.relfsctl("run", "--release", "41", "--", "sh", "-c", f"{inner}; echo; {pin}; {show}")
    assert (done.stdout.split()[0], done.stdout.split()[-1]) == ("41", "41"), done.stderr
    assert mount.relfsctl("canary", "42", "--uid", str(os.getuid())).returncode == 0
    with reader(mount, "run") as pinned, reader(mount) as other:
        assert (pinned.sees(), other.sees()) == ("42", "42")
        assert mount.relfsctl("pin", "--pid", str(other.pid)).returncode == 0
        assert mount.relfsctl("canary", "abort").returncode == 0
        assert (pinned.sees(), other.sees()) == ("42", "42")


def test_relfs_itself_sees_what_everybody_does(app: Path, mounts: Mounts) -> None:
    """Hooks do, therefore: neither who mounts nor who is pinned with all that it has started changes that."""
    mark = new_mark()
    mount = mounts.start(app, command=lambda *words: ["prlimit", f"--locks={mark}:", *relfs_command(*words)])
    assert [mark_of(pid) for pid in mount.pids().values()] == [0, 0, 0]
    for pid in mount.pids().values():
        done = mount.relfsctl("pin", "--pid", str(pid), "--release", "42")
        assert (done.returncode, "is one of relfs's own" in done.stderr) == (3, True)
    with reader(mount) as other:
        put_mark(mount.worker_pid, mark)
        assert mount.relfsctl("pin", "--pid", str(other.pid), "--release", "42").returncode == 0
    assert [mark_of(pid) for pid in mount.pids().values()] == [0, 0, 0]


def test_outlives_workers(mount: Mount) -> None:
    with reader(mount, "run") as pinned:
        assert pinned.sees() == "40"
        switch(mount, "41")
        for _ in range(3):
            worker = mount.worker_pid
            mount.expect_log(f"worker.*{worker}")
            os.kill(worker, signal.SIGKILL)
            assert pinned.sees() == "40"
            wait_for(lambda was=worker: mount.pids().get("worker", was) != was, "another worker serves")
        assert len(views(mount)) == 1
    wait_for(lambda: views(mount) == [], "the worker that did not begin the view ends it")


@pytest.mark.parametrize("role", ["supervisor", "standby"])
def test_outlives_the_others(mount: Mount, role: str) -> None:
    with reader(mount, "run") as pinned:
        assert pinned.sees() == "40"
        switch(mount, "41")
        wait_for(lambda: len(mount.pids()) == 3, "all are there")
        pid = mount.pids()[role]
        mount.expect_log(role)
        os.kill(pid, signal.SIGKILL)
        assert pinned.sees() == "40"
        wait_for(lambda: mount.pids().get(role, pid) != pid, "there is another one")
        os.kill(worker := mount.worker_pid, signal.SIGKILL)
        mount.expect_log(f"worker.*{worker}")
        assert pinned.sees() == "40"
    wait_for(lambda: views(mount) == [], "the view has ended")


def test_outlives_a_reload(mount: Mount) -> None:
    with reader(mount, "run") as pinned:
        assert pinned.sees() == "40"
        switch(mount, "41")
        done = mount.relfsctl("reload")
        assert done.returncode == 0, done.stderr
        assert pinned.sees() == "40"
    wait_for(lambda: views(mount) == [], "the view has ended")


@pytest.mark.parametrize("way", ["killed", "unmounted"])
def test_outlives_everything(mount: Mount, mounts: Mounts, way: str) -> None:
    """The next mount knows of those that live, and of nobody else."""
    with reader(mount, "run") as pinned, reader(mount, "run") as gone:
        assert (pinned.sees(), gone.sees()) == ("40", "40")
        switch(mount, "41")
        if way == "killed":
            mount.kill()
            wait_for(lambda: mount_at(str(mount.app)) is None, "the mount is gone")
        else:
            assert mount.relfsctl("unmount").returncode == 0
            mount.process.wait()
        gone.end()
        assert pinned.sees() == "41", "nobody is asked"
        again = mounts.start(mount.app)
        assert pinned.sees() == "40"
        wait_for(lambda: [pids_of(view) for view in views(again)] == [[pinned.pid]], "it is known who has ended")
    wait_for(lambda: views(again) == [], "the view has ended")
    wait_for(lambda: not (mount.app / ".relfs/pins").exists(), "and the next mount will not hear of it")


def test_a_disk_that_does_not_take_it(mount: Mount) -> None:
    """It holds all the same, and outlives what it can; that is said once."""
    state = mount.app / ".relfs"
    (state / "pins.new").mkdir()
    mount.expect_log("pins: cannot be written, so the next mount will not know of it")
    with reader(mount, "run") as first, reader(mount, "run") as second:
        assert (first.sees(), second.sees()) == ("40", "40")
        assert not (state / "pins").exists()
        (state / "pins.new").rmdir()
        with reader(mount, "run") as third:
            assert third.sees() == "40"
            wait_for(lambda: len(pins_in(state)) == 3, "all are written down")
    assert mount.log.read_text().count("cannot be written") == 1
    wait_for(lambda: not (state / "pins").exists(), "all have ended")


def pins_in(state: Path) -> list[Pin]:
    directory = os.open(state, os.O_RDONLY)
    try:
        return pins_on_disk(directory)
    finally:
        os.close(directory)


def test_is_not_removed_while_nothing_is_mounted(mount: Mount) -> None:
    switch(mount, "41")
    switch(mount, "42")
    with reader(mount, "run", "--release", "40", before=("sh", "-c", 'cd /; exec "$@"', "sh")) as pinned:
        assert pinned.sees() == "40"
        assert mount.relfsctl("unmount").returncode == 0
        mount.process.wait()
        done = relfsctl(mount.app, "prune", "--keep", "1")
        assert done.returncode == 0, done.stderr
        assert (mount.app / "releases/40").exists()
        (use,) = json.loads(relfsctl(mount.app, "--json", "who", "40").stdout)["uses"]
        assert (use["pid"], use["how"]) == (pinned.pid, "pinned")
    assert relfsctl(mount.app, "prune", "--keep", "1").returncode == 0
    assert not (mount.app / "releases/40").exists(), "whoever was pinned has ended"


def test_is_over_when_nobody_watched(mount: Mount) -> None:
    """The process ends while there is no worker."""
    with reader(mount, "run") as pinned:
        assert pinned.sees() == "40"
        worker = mount.worker_pid
        mount.expect_log(f"worker.*{worker}")
        os.kill(worker, signal.SIGSTOP)
        pinned.end()
        with suppress(ProcessLookupError):  # its supervisor may have done so, as it is stopped
            os.kill(worker, signal.SIGKILL)
    wait_for(lambda: views(mount) == [], "the next worker finds out")


def test_is_never_removed(mount: Mount) -> None:
    """By prune, nor by who asks for that release."""
    switch(mount, "41")
    switch(mount, "42")
    with reader(mount, "run", "--release", "40", before=("sh", "-c", 'cd /; exec "$@"', "sh")) as pinned:
        assert pinned.sees() == "40"
        done = mount.relfsctl("prune", "--keep", "1")
        assert done.returncode == 0, done.stderr
        assert (mount.app / "releases/40").exists()
        uses = json.loads(mount.relfsctl("--json", "who", "40").stdout)["uses"]
        assert [(use["pid"], use["how"]) for use in uses] == [(pinned.pid, "pinned")]
        assert pinned.sees() == "40"
    wait_for(lambda: views(mount) == [], "the view has ended")
    assert mount.relfsctl("prune", "--keep", "1").returncode == 0
    assert not (mount.app / "releases/40").exists()


def test_costs_nothing_when_it_is_over(mount: Mount) -> None:
    """The kernel is asked for nothing more, and answers by itself."""
    with reader(mount, "run") as pinned:
        assert pinned.sees() == "40"
    wait_for(lambda: views(mount) == [], "the view has ended")
    with held(mount.app / "current"):
        for _ in range(3):  # with the first, it is told to keep the name
            before = mount.requests().get("lookup", 0)
            for _ in range(100):
                os.readlink(mount.app / "current")
        assert mount.requests().get("lookup", 0) == before


def test_one_lookup_a_resolution(mount: Mount) -> None:
    with reader(mount, "run", "--release", "42") as pinned:
        assert pinned.sees() == "42"
        os.readlink(mount.app / "current")
        before = mount.requests()
        for _ in range(100):
            os.readlink(mount.app / "current")
        after = mount.requests()
    assert after["lookup"] - before["lookup"] == 100
    assert after.get("readlink", 0) == before.get("readlink", 0)


def test_the_link_is_as_it_is_now(app: Path, tmp_path: Path, mounts: Mounts) -> None:
    """Whoever touches it, through the mount or behind it; and whoever sees another release, in between."""
    live = tmp_path / "live"
    live.mkdir()
    mount = mounts.start(app, at=live)
    with reader(mount, "run", "--release", "42") as pinned:
        for place, moment in ((live, 1_000_000_000), (app, 1_100_000_000)):
            assert (pinned.sees(), os.readlink(live / "current")) == ("42", "releases/40")
            os.utime(place / "current", (moment, moment), follow_symlinks=False)
            wait_for(lambda at=moment: os.lstat(live / "current").st_mtime == at, "its time is shown")
        switch(mount, "41")
        assert (pinned.sees(), os.readlink(live / "current")) == ("42", "releases/41")
        assert os.lstat(live / "current").st_mtime == os.lstat(app / "current").st_mtime


@pytest.mark.parametrize("how", ["rm $D/current; ln -s $R $D/current", "ln -s $R $D/new; mv -T $D/new $D/current"])
def test_a_tool_that_is_pinned_swaps_for_the_others(mount: Mount, how: str) -> None:
    """It goes on seeing what it saw, but for the moment in which it has removed the name; and whose the link is, and
    of when, is the real link's, for it as for all."""
    then = "chown -h 12:34 $D/current && touch -hd @1000 $D/current && stat -c '%N %u %g %Y' $D/current"
    script = f"R=releases/41; D={mount.app}; {how}; {then}"
    done = mount.relfsctl("run", "--release", "42", "--", "sh", "-c", script)
    assert done.stdout == f"'{mount.app}/current' -> 'releases/42' 12 34 1000\n", done.stderr
    found = os.lstat(mount.app / "current")
    assert (found.st_uid, found.st_gid, found.st_mtime) == (12, 34, 1000)
    assert os.readlink(mount.app / "current") == "releases/41"
    assert os.listdir(mount.app / "releases/42") == ["index.html"], "the link was not made inside"


def test_nobody_waits_for_a_switch_to_be_pinned(app: Path, mounts: Mounts, tmp_path: Path) -> None:
    """Whose hook takes longer than that: it would be refused if it took too long."""
    mount = mounts.start(be_patient(app))
    asked, go = tmp_path / "asked", tmp_path / "go"
    hook = mount.app / ".relfs/hooks/pre-switch"
    hook.parent.mkdir()
    hook.write_text(f"#!/bin/sh\ntouch {asked}; until [ -e {go} ]; do sleep 0.1; done\n")
    hook.chmod(0o755)
    with subprocess.Popen(relfsctl_command(mount.app, "switch", "41"), env=environment()) as switching:
        wait_for(asked.exists, "the hook is asked")
        done = mount.relfsctl("run", "--", "readlink", f"{mount.app}/current")
        go.touch()
    assert (switching.returncode, done.stdout) == (0, "releases/40\n")


def test_relfsctl_tells_a_pinned_process_what_is_current_for_all(mount: Mount) -> None:
    """Likewise where `current` is not there for it, as it is about to replace that."""
    ask = " && ".join(
        f'"$@" {words}' for words in ("path @current", "--json releases", "--json prune --keep 1 --dry-run")
    )
    for script in (ask, f"rm {mount.app}/current && {{ {ask}; }}"):
        command = ["sh", "-c", script, "sh", *relfsctl_command(mount.app)]
        done = mount.relfsctl("run", "--release", "42", "--", *command)
        path, releases, pruned = done.stdout.splitlines()
        assert path == f"{mount.app}/releases/40"
        assert [each["name"] for each in json.loads(releases) if "current" in each["states"]] == ["40"]
        assert [each["name"] for each in json.loads(pruned)["decisions"] if each["why"] == "current"] == ["40"]


def test_a_users_own_mount(app: Path, open_place: Path, mounts: Mounts) -> None:
    place, live = open_place / "app", open_place / "live"
    app.rename(place)
    live.mkdir()
    subprocess.run(["chown", "-R", f"{NOBODY}:{NOBODY}", place, live], check=True)
    mount = mounts.start(place, "-o", "noallow_other", at=live, user=NOBODY)
    with reader(mount, "run", user=NOBODY) as pinned, reader(mount, user=NOBODY) as other:
        assert pinned.sees() == "40"
        switch(mount, "41")
        assert (pinned.sees(), other.sees()) == ("40", "41")
    wait_for(lambda: views(mount) == [], "the views have ended")


# ---- who may


def test_everybody_may_pin_his_own(open_mount: Mount) -> None:
    with reader(open_mount, user=NOBODY) as his, reader(open_mount, "run", user=NOBODY) as run:
        assert run.sees() == "40"
        done = relfsctl(open_mount.mountpoint, "pin", "--pid", str(his.pid), user=NOBODY)
        assert done.returncode == 0, done.stderr
        switch(open_mount, "41")
        assert (his.sees(), run.sees()) == ("40", "40")
        done = relfsctl(open_mount.mountpoint, "pin", "--pid", str(his.pid), "--end", user=NOBODY)
        assert done.returncode == 0, done.stderr
        assert his.sees() == "41"


def test_and_nobody_elses(open_mount: Mount) -> None:
    with reader(open_mount) as roots, reader(open_mount, "run", "--release", "42") as pinned:
        assert pinned.sees() == "42"
        for pid, words, status in ((roots.pid, (), 1), (pinned.pid, (), 1), (pinned.pid, ("--end",), 3)):
            done = relfsctl(open_mount.mountpoint, "pin", "--pid", str(pid), *words, user=NOBODY)
            assert done.returncode == status, done.stderr
        assert mark_of(roots.pid) == 0
        assert pinned.sees() == "42"
        assert relfsctl(open_mount.mountpoint, "switch", "41", user=NOBODY).returncode == 3


def test_not_by_a_mark_that_they_bear(open_mount: Mount) -> None:
    """Such as one of another mount, or of a view that is over."""
    program = """
import os, sys
from relfs.control import change
from relfs.errors import RefusedError
from relfs.views.mark import new_mark
for mark in map(int, sys.argv[2:]):
    try:
        change((sys.argv[1],), "pin", {"mark": mark, "release": "41"})
    except RefusedError as error:
        print(error)
assert change((sys.argv[1],), "pin", {"mark": new_mark(), "release": "41"})["release"] == "41"
"""
    with reader(open_mount) as roots, reader(open_mount, "run", "--release", "42") as pinned:
        assert pinned.sees() == "42"
        put_mark(roots.pid, new_mark())
        marks = (mark_of(roots.pid), mark_of(pinned.pid))
        done = subprocess.run(
            [sys.executable, "-c", program, f"{open_mount.mountpoint}/.relfs", *map(str, marks)],
            check=True, stdout=subprocess.PIPE, text=True, env=environment(),
            user=NOBODY, group=NOBODY, extra_groups=[],
        )  # fmt: skip
        assert [line.split(":")[0] for line in done.stdout.splitlines()] == [
            f"process {roots.pid}", f"process {pinned.pid}"
        ]  # fmt: skip
        assert (roots.sees(), pinned.sees()) == ("40", "42")


def test_not_all_that_there_may_be(app: Path, open_place: Path, mounts: Mounts) -> None:
    """A user has so many; others have theirs."""
    place = open_place / "app"
    app.rename(place)
    mount = mounts.start(place, patch="from relfs.daemon import viewing\nviewing.PINS_EACH = 2")
    with reader(mount, "run", user=NOBODY) as first, reader(mount, "run", user=NOBODY) as second:
        assert (first.sees(), second.sees()) == ("40", "40")
        done = relfsctl(mount.mountpoint, "run", "--", "true", user=NOBODY)
        assert (done.returncode, "as many as a user may have" in done.stderr) == (3, True)
        assert mount.relfsctl("run", "--", "true").returncode == 0
        assert relfsctl(mount.mountpoint, "run", "--", "true", user=1).returncode == 0


def test_root_may_pin_everybodys(open_mount: Mount) -> None:
    with reader(open_mount, user=NOBODY) as his:
        assert his.sees() == "40"
        done = open_mount.relfsctl("pin", "--pid", str(his.pid))
        assert (done.returncode, done.stderr) == (0, "")
        switch(open_mount, "41")
        assert his.sees() == "40"


def test_what_cannot_be_pinned(mount: Mount) -> None:
    for words, status in (
        (("run", "--release", "99", "--", "true"), 3),
        (("run", "--release", "a/b", "--", "true"), 2),
        (("pin", "--pid", "4194305"), 1),
        (("pin", "--pid", "2"), 3),
        (("canary", "41", "--pid", "2"), 3),
        (("pin", "--pid", "1", "--end"), 3),
        (("pin", "--pid", "4194305", "--end"), 1),
        (("run",), 2),
    ):
        done = mount.relfsctl(*words)
        assert done.returncode == status, done.stderr
        assert done.stderr.count("\n") == 1
    assert views(mount) == []


def test_a_zombie_is_nobody(mount: Mount) -> None:
    with subprocess.Popen(["true"]) as ended:
        os.waitid(os.P_PID, ended.pid, os.WEXITED | os.WNOWAIT)
        done = mount.relfsctl("pin", "--pid", str(ended.pid))
        assert (done.returncode, done.stderr) == (1, f"relfsctl: process {ended.pid}: there is none\n")


def test_a_thread_is_its_process(mount: Mount) -> None:
    """With all that this has started."""
    program = """
import os, subprocess, sys, threading
def run():
    print(threading.get_native_id(), flush=True)
    input()
    print(os.readlink(sys.argv[1]), flush=True)
    child.communicate("\\n")
child = subprocess.Popen(["sh", "-c", 'read -r _; readlink "$0"', sys.argv[1]], stdin=subprocess.PIPE, text=True)
threading.Thread(target=run).start()
"""
    with subprocess.Popen(
        [sys.executable, "-c", program, mount.app / "current"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        thread = process.stdout.readline().strip()
        assert thread != str(process.pid)
        done = mount.relfsctl("pin", "--pid", thread, "--release", "42")
        assert done.returncode == 0, done.stderr
        output, _ = process.communicate("\n")
    assert output.split() == ["releases/42"] * 2


def test_without_a_mount(app: Path) -> None:
    done = relfsctl(app, "run", "--", "true")
    assert done.returncode == 1
    assert "is not mounted" in done.stderr
