"""The canary on a real mount: who sees it, how it ends, and that it outlives workers, mounts and reboots."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from cgroups import hierarchies, plain_group
from mounting import Mount, Mounts, relfsctl, wait_for
from sandbox import be_patient
from viewers import Reader, pids_of, reader, reader_with_pid, switch, views

from relfs.mountinfo import mount_at
from relfs.processes import descendants
from relfs.survival.copies import read_copy
from relfs.views.mark import mark_of

NOBODY = 65534
DAEMON = 1


@pytest.fixture
def site(app: Path, open_place: Path, mounts: Mounts) -> Mount:
    """A mount that every user can reach."""
    place = open_place / "app"
    app.rename(place)
    return mounts.start(place)


def canary(mount: Mount, *words: str) -> None:
    done = mount.relfsctl("canary", *words)
    assert done.returncode == 0, done.stderr


def test_for_a_user_until_it_is_promoted(site: Mount) -> None:
    with reader(site, user=NOBODY) as his, reader(site, user=DAEMON) as other:
        canary(site, "42", "--uid", "nobody")
        assert (his.sees(), other.sees()) == ("42", "40")
        assert os.readlink(site.app / "current") == "releases/40"
        switch(site, "41")
        assert (his.sees(), other.sees()) == ("42", "41")
        canary(site, "promote")
        assert (his.sees(), other.sees()) == ("42", "42")
    assert views(site) == []
    assert [event["action"] for event in site.journal()][-3:] == ["canary", "switch", "switch"]


def test_who_has_a_directory_open_stays_there(mount: Mount) -> None:
    """Of the release that was current for him, whatever is current for whom by now."""

    def reads() -> tuple[bytes, str]:
        with open("index.html", "rb", opener=lambda name, flags: os.open(name, flags, dir_fd=directory)) as file:
            return file.read(), os.readlink(mount.app / "current")

    directory = os.open(mount.app / "current", os.O_PATH | os.O_DIRECTORY)
    try:
        canary(mount, "42", "--uid", str(os.getuid()))
        assert reads() == (b"40", "releases/42")
        canary(mount, "abort")
        switch(mount, "41")
        assert reads() == (b"40", "releases/41")
    finally:
        os.close(directory)


def test_until_it_is_aborted(site: Mount) -> None:
    with reader(site, user=NOBODY) as his:
        canary(site, "42", "--gid", str(NOBODY))
        assert his.sees() == "42"
        canary(site, "abort")
        assert his.sees() == "40"
    assert [event["action"] for event in site.journal()][-2:] == ["canary", "abort"]
    for words in (("promote",), ("abort",)):
        done = site.relfsctl("canary", *words)
        assert (done.returncode, done.stderr) == (
            3, "relfsctl: there is no canary; `relfsctl canary RELEASE` begins one\n"
        )  # fmt: skip


def test_whoever_else_makes_it_current_promotes_it(site: Mount) -> None:
    canary(site, "42", "--uid", "nobody")
    switch(site, "42")
    wait_for(lambda: views(site) == [], "the canary is over")
    switch(site, "41")
    with reader(site, user=NOBODY) as his:
        assert his.sees() == "41"


def test_a_reused_pid_is_somebody_else(site: Mount) -> None:
    canary(site, "42", "--uid", "nobody")
    with reader(site, user=NOBODY) as his:
        assert his.sees() == "42"
    other = reader_with_pid(site, his.pid)
    assert other.sees() == "40"
    other.end()
    again = reader_with_pid(site, his.pid, user=NOBODY)
    assert again.sees() == "42"
    again.end()


_BECOMES = """
look() { read -r seen <"$1/current/index.html"; echo "$seen"; }
read -r _
look "$1"
[ "$2" = last ] || exec setpriv --reuid=65534 --regid=65534 --clear-groups unshare --user sh -c "$0" "$0" "$1" last
while read -r _; do cat "$1/current/index.html"; echo; done
"""
"""Looks itself each time that it is told to; then executes itself as another user, in a user name space of his; and in
the end has others look."""


def test_for_life_whatever_it_becomes(site: Mount) -> None:
    """And not for those whom it starts when it would not be meant any more."""
    canary(site, "42", "--uid", str(os.getuid()))
    his = Reader(["sh", "-c", _BECOMES, _BECOMES, str(site.mountpoint), "first"])
    assert [his.sees() for _ in range(3)] == ["42", "42", "40"]
    his.end()


def test_for_a_process_and_what_it_has_started(mount: Mount) -> None:
    with reader(mount, before=("sh", "-c", '"$@"; :', "sh")) as family, reader(mount) as other:
        assert family.sees() == "40"
        canary(mount, "42", "--pid", str(family.pid))
        assert (family.sees(), other.sees()) == ("42", "40")


def test_who_was_to_see_one_that_is_refused_bears_no_mark_of_it(mount: Mount) -> None:
    with reader(mount, before=("sh", "-c", '"$@"; :', "sh")) as family:
        assert family.sees() == "40"
        for release, status in (("40", 3), ("99", 3), ("a/b", 2)):
            assert mount.relfsctl("canary", release, "--pid", str(family.pid)).returncode == status
            assert [mark_of(pid) for pid in (family.pid, *(each.pid for each in descendants(family.pid)))] == [0, 0]


def test_a_second_one_takes_nobody_from_the_first(mount: Mount) -> None:
    """Though that would be for the same process; cat(1), which looks, is a new one each time."""
    with reader(mount) as first:
        canary(mount, "42", "--pid", str(first.pid))
        assert mount.relfsctl("canary", "41", "--pid", str(first.pid)).returncode == 3
        assert first.sees() == "42"


def test_a_child_that_is_somebody_elses_is_told_of(app: Path, open_place: Path, mounts: Mounts) -> None:
    """Who may switch, and is not root, can let his own processes see it."""
    os.chown(app, NOBODY, NOBODY)
    app.rename(open_place / "app")
    site = mounts.start(open_place / "app")
    his = ("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups")
    before = ("sh", "-c", f'tail -f --pid=$$ /dev/null >/dev/null & exec {" ".join(his)} "$@"', "sh")
    with reader(site, before=before) as mixed:
        assert mixed.sees() == "40"
        for words, told in (
            (("canary", "42", "--pid", str(mixed.pid)), "go on seeing what they did"),
            (("pin", "--pid", str(mixed.pid)), "are not pinned"),
        ):
            done = relfsctl(site.mountpoint, *words, user=NOBODY)
            assert done.returncode == 0, done.stderr
            assert (done.stderr.split()[0], done.stderr.endswith(f"{told}\n")) == ("1", True), done.stderr
            assert mixed.sees() == "42"


def test_what_is_said_to_be_wrong_marks_nobody(mount: Mount) -> None:
    with reader(mount) as pinned, reader(mount) as other:
        assert mount.relfsctl("pin", "--pid", str(pinned.pid)).returncode == 0
        for words in (("--percent", "10"), ("--pid", str(pinned.pid)), ("--pid", "4194305")):
            assert mount.relfsctl("canary", "42", "--pid", str(other.pid), *words).returncode != 0
            assert mark_of(other.pid) == 0, words


def test_who_is_pinned_stays_so(mount: Mount) -> None:
    with reader(mount, "run") as pinned:
        assert pinned.sees() == "40"
        canary(mount, "42", "--uid", str(os.getuid()))
        assert (pinned.sees(), os.readlink(mount.app / "current")) == ("40", "releases/42")
        done = mount.relfsctl("canary", "abort")
        done = mount.relfsctl("canary", "42", "--pid", str(pinned.pid))
        assert (done.returncode, "is pinned" in done.stderr) == (3, True)


def test_for_a_control_group(mount: Mount) -> None:
    """As a systemd unit's is: by name, and by path."""
    name = f"relfs-test-{os.getpid()}.service"
    with plain_group(hierarchies()[0], name) as group:
        for wanted in (name, f"/{name}"):
            canary(mount, "42", "--cgroup", wanted)
            with reader(mount, before=tuple(group.command())) as inside, reader(mount) as outside:
                assert (inside.sees(), outside.sees()) == ("42", "40")
            canary(mount, "abort")


_NAMED = """
import ctypes, os, sys
ctypes.CDLL(None).prctl(15, sys.argv[2].encode())
for line in sys.stdin:
    print(os.readlink(sys.argv[1] + "/current"), flush=True)
"""


class Crew:
    """Processes that are called `name`."""

    def __init__(self, mount: Mount, name: str) -> None:
        self._command = [sys.executable, "-ISc", _NAMED, str(mount.mountpoint), name]
        self.workers: list[Reader] = []

    def hire(self, count: int) -> None:
        self.workers += [Reader(self._command) for _ in range(count)]

    def dismiss(self, worker: Reader) -> None:
        self.workers.remove(worker)
        worker.end()

    def see(self) -> dict[int, str]:
        """What each of them sees, by pid."""
        return {worker.pid: worker.sees().removeprefix("releases/") for worker in self.workers}


@contextmanager
def crew(mount: Mount, count: int, name: str) -> Iterator[Crew]:
    found = Crew(mount, name)
    try:
        found.hire(count)
        yield found
    finally:
        for worker in list(found.workers):
            found.dismiss(worker)


def chosen(seen: dict[int, str]) -> set[int]:
    return {pid for pid, release in seen.items() if release == "42"}


def test_a_quarter_of_64_workers(mount: Mount) -> None:
    """Are 16, and the same 16 to the end: through the deaths of relfs's own workers, and switches; and still 16 when
    some have been replaced, whichever they were."""
    canary(mount, "42", "--percent", "25", "--of", "relfs-test-work")
    with crew(mount, 64, "relfs-test-work") as crew_of_64, crew(mount, 8, "another") as others:
        first = crew_of_64.see()
        assert len(chosen(first)) == 16
        assert set(others.see().values()) == {"40"}
        switch(mount, "41")
        worker = mount.worker_pid
        mount.expect_log(f"worker.*{worker}")
        os.kill(worker, signal.SIGKILL)
        crew_of_64.workers.reverse()  # who was first to ask is last now
        again = crew_of_64.see()
        assert again == {pid: "42" if pid in chosen(first) else "41" for pid in first}
        for leaves in (chosen(first), first.keys() - chosen(first)):
            going = [each for each in crew_of_64.workers if each.pid in leaves][:6]
            for each in going:
                crew_of_64.dismiss(each)
            crew_of_64.hire(len(going))
            replaced = crew_of_64.see()
            assert len(chosen(replaced)) == 16
            assert all(replaced[pid] == release for pid, release in again.items() if pid in replaced)
        (view,) = views(mount)
        assert (view["release"], pids_of(view)) == ("42", sorted(chosen(replaced)))


def test_the_same_quarter_after_everything_was_killed(mount: Mount, mounts: Mounts) -> None:
    """And those that come later are dealt out as if nothing had been."""
    name = "relfs-test-work"
    canary(mount, "42", "--percent", "25", "--of", name)
    with crew(mount, 8, name) as first, crew(mount, 8, name) as later:
        seen = [each.sees() for each in first.workers]
        assert seen.count("releases/42") == 2
        wait_for(lambda: len(decided(mount)) == 8, "all are written down")
        mount.kill()
        wait_for(lambda: mount_at(str(mount.app)) is None, "the mount is gone")
        again = mounts.start(mount.app)
        assert [each.sees() for each in reversed(first.workers)] == seen[::-1]
        assert sum(each.sees() == "releases/42" for each in (*first.workers, *later.workers)) == 4
        canary(again, "abort")
        wait_for(lambda: not (mount.app / ".relfs/decisions").exists(), "of the next canary nothing is decided yet")


def decided(mount: Mount) -> list[bytes]:
    """What the next mount would know."""
    directory = os.open(mount.app / ".relfs", os.O_RDONLY)
    try:
        return read_copy(directory, "decisions", mount.journal()[-1]["id"])
    finally:
        os.close(directory)


def test_what_each_of_a_name_sees(mount: Mount) -> None:
    """Who has not asked yet is undecided, if a share is; and asking about him decides nothing."""
    name = "relfs-test-name"

    def told() -> dict[int, tuple[str | None, str]]:
        done = mount.relfsctl("--json", "views", "--of", name)
        assert done.returncode == 0, done.stderr
        return {each["pid"]: (each["release"], each["reason"]) for each in json.loads(done.stdout)}

    with crew(mount, 4, name) as four:
        assert set(four.see().values()) == {"40"}
        assert told() == dict.fromkeys(four.see(), ("40", "current"))
        canary(mount, "42", "--percent", "50", "--of", name)
        assert told() == {each.pid: (None, "undecided") for each in four.workers}
        seen = four.see()
        assert sorted(seen.values()) == ["40", "40", "42", "42"]
        assert told() == {pid: (label, "canary" if label == "42" else "current") for pid, label in seen.items()}
        first = four.workers[0]
        assert mount.relfsctl("pin", "--pid", str(first.pid), "--release", "41").returncode == 0
        assert told()[first.pid] == ("41", "pinned")
        assert first.sees() == "releases/41"


@pytest.mark.parametrize("way", ["killed", "unmounted"])
def test_outlives_everything(app: Path, open_place: Path, mounts: Mounts, way: str) -> None:
    """It is in the journal; the next mount knows of nothing else."""
    place = open_place / "app"
    app.rename(place)
    mount = mounts.start(place)
    canary(mount, "42", "--uid", "nobody")
    if way == "unmounted":
        assert mount.relfsctl("unmount").returncode == 0
        mount.process.wait()
    else:
        mount.kill()
        wait_for(lambda: mount_at(str(place)) is None, "the mount is gone")
    mount = mounts.start(place)
    with reader(mount, user=NOBODY) as his, reader(mount) as other:
        assert (his.sees(), other.sees()) == ("42", "40")
        canary(mount, "abort")
        assert his.sees() == "40"


def test_relfs_itself_may_be_of_the_audience(mount: Mount, mounts: Mounts) -> None:
    """Who looks whether a new mount shows what it should, is shown the canary."""
    canary(mount, "42", "--uid", str(os.getuid()))
    mount.kill()
    wait_for(lambda: mount_at(str(mount.app)) is None, "the mount is gone")
    again = mounts.start(mount.app)
    assert os.readlink(again.app / "current") == "releases/42"


def test_before_anything_is_current_for_everybody(app: Path, mounts: Mounts) -> None:
    (app / "current").unlink()
    mount = mounts.start(app)
    with reader(mount, "run", "--release", "41") as pinned, reader(mount, user=NOBODY) as other:
        canary(mount, "42", "--uid", str(os.getuid()))
        assert os.readlink(app / "current") == "releases/42"
        assert (pinned.sees(), other.sees()) == ("41", "")
        canary(mount, "promote")
    assert os.readlink(app / "current") == "releases/42"


def test_is_never_removed(site: Mount) -> None:
    switch(site, "41")
    canary(site, "42", "--uid", "nobody")
    switch(site, "40")
    assert site.relfsctl("prune", "--keep", "1").returncode == 0
    assert (site.app / "releases/42").exists()


def test_only_for_those_who_may_switch(site: Mount) -> None:
    for words in (("42", "--uid", "nobody"), ("promote",), ("abort",)):
        done = relfsctl(site.mountpoint, "canary", *words, user=NOBODY)
        assert done.returncode == 3, done.stderr
    assert views(site) == []


def test_status_tells_that_what_somebody_sees_is_gone(mount: Mount) -> None:
    with reader(mount, "run", "--release", "41") as pinned:
        assert pinned.sees() == "41"
        canary(mount, "42", "--uid", "12345")
        assert mount.status()["health"] == []
        for name in ("41", "42"):
            shutil.rmtree(mount.app / "releases" / name)
        assert mount.status()["health"] == [
            "releases/42: the canary cannot be opened; `relfsctl canary abort` ends it",
            "releases/41: what processes are pinned to cannot be opened; `relfsctl views` tells which",
        ]


def test_what_cannot_be(mount: Mount) -> None:
    me = ("--uid", str(os.getuid()))
    for words, status in (
        (("42",), 2),
        (("42", "--percent", "10"), 2),
        (("42", "--percent", "0", "--of", "sh"), 2),
        (("42", "--uid", "no-such-user"), 2),
        (("42", "--uid", "4294967295"), 2),
        (("42", "--gid", "1" * 5000), 2),
        (("42", "--percent", "10", "--of", ""), 2),
        (("42", *me, "--of", "sh"), 2),
        (("42", *me, "--for", "0"), 2),
        (("42", "--pid", "4194305"), 1),
        (("promote", *me), 2),
        (("99", *me), 3),
        (("40", *me), 3),
        (("a/b", *me), 2),
    ):
        done = mount.relfsctl("canary", *words)
        assert done.returncode == status, (words, done.stderr)
        assert done.stderr.count("\n") == 1
    done = mount.relfsctl("canary", "42", *me)
    assert done.stdout == f"42 is current for user {me[1]}; `relfsctl canary promote` or `canary abort` ends that\n"
    done = mount.relfsctl("canary", "41", *me)
    assert (done.returncode, "promote" in done.stderr) == (3, True)
    listed = json.loads(mount.relfsctl("--json", "releases").stdout)
    assert [each["states"] for each in listed] == [["current"], [], ["canary"]], "though we see it as current"
    status = json.loads(mount.relfsctl("--json", "status").stdout)
    assert [view["reason"] for view in status["views"]] == ["canary 42"]


def test_without_a_mount(app: Path) -> None:
    done = relfsctl(app, "canary", "42", "--uid", "0")
    assert done.returncode == 1
    assert "is not mounted" in done.stderr
    assert subprocess.check_output(["cat", str(app / "current/index.html")]) == b"40"
    for arguments in (["views"], ["views", "--of", "php-fpm"]):
        done = relfsctl(app, *arguments)
        assert (done.returncode, done.stdout, "is not mounted" in done.stderr) == (0, "", True)


@pytest.mark.parametrize("arguments", [["views"], ["views", "--of", "php-fpm"]])
def test_of_no_deploy_path_there_are_no_views(tmp_path: Path, arguments: list[str]) -> None:
    done = relfsctl(tmp_path / "none", *arguments)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"relfsctl: {tmp_path}/none: no such deploy path; `relfsctl init` makes one\n"


def test_views_of_processes_without_a_name(app: Path) -> None:
    done = relfsctl(app, "views", "--of", "")
    assert (done.returncode, done.stderr) == (2, "relfsctl: '': no name that a process has; `ps -eo comm` shows them\n")


def test_taken_back_without_a_mount(mount: Mount, mounts: Mounts) -> None:
    canary(mount, "42", "--uid", str(os.getuid()))
    assert mount.relfsctl("unmount").returncode == 0
    mount.process.wait()
    done = relfsctl(mount.app, "canary", "abort")
    assert done.stdout == "42 is seen by nobody any more; 40 is current for everybody\n", done.stderr
    again = mounts.start(mount.app)
    assert (views(again), os.readlink(mount.app / "current")) == ([], "releases/40")


# ---- deciding by itself


def hook(mount: Mount, name: str, program: str) -> None:
    hooks = mount.app / ".relfs/hooks"
    hooks.mkdir(exist_ok=True)
    (hooks / name).write_text(f"#!/bin/sh\n{program}\n")
    (hooks / name).chmod(0o755)


def actions(mount: Mount) -> list[tuple[str, str]]:
    return [(event["action"], event["outcome"]) for event in mount.journal()][1:]


@pytest.mark.parametrize("killed", [False, True])
def test_is_promoted_if_it_verifies(app: Path, mounts: Mounts, tmp_path: Path, killed: bool) -> None:
    """Also where the worker that asks is killed."""
    mount = mounts.start(be_patient(app))
    asked, hangs = tmp_path / "asked", tmp_path / "hangs"
    hang = f'; [ "$(wc -l <{asked})" -gt 1 ] || {{ echo $$ >{hangs}; exec sleep 1000; }}'
    hook(mount, "verify", f"echo $RELFS_RELEASE >>{asked}{hang * killed}")
    canary(mount, "42", "--uid", "12345", "--for", "0.01")
    if killed:
        wait_for(lambda: hangs.exists() and hangs.read_text().endswith("\n"), "the hook was asked")
        worker = mount.worker_pid
        mount.expect_log(f"worker.*{worker}")
        os.kill(worker, signal.SIGKILL)
    wait_for(lambda: os.readlink(mount.app / "current") == "releases/42", "the canary is promoted")
    if killed:
        os.kill(int(hangs.read_text()), signal.SIGKILL)  # whose worker is dead, nobody ends
    wait_for(lambda: len(actions(mount)) == 4, "the switch is verified, too")
    assert actions(mount) == [("canary", "done"), ("verify", "done"), ("switch", "done"), ("verify", "done")]
    assert views(mount) == []


@pytest.mark.parametrize("program", ["exit 1", None])
def test_is_aborted_if_it_does_not(mount: Mount, program: str | None) -> None:
    """Or if nobody can be asked."""
    if program is not None:
        hook(mount, "verify", program)
    canary(mount, "42", "--uid", str(os.getuid()), "--for", "0.01")
    wait_for(lambda: [action for action, _ in actions(mount)][-1:] == ["abort"], "the canary is aborted")
    wait_for(lambda: os.readlink(mount.app / "current") == "releases/40", "and seen no more, a moment later")
    assert mount.journal()[-1]["why"]


def test_is_aborted_if_its_release_is_gone(mount: Mount) -> None:
    """It is good, for all that the hook says, and cannot be promoted."""
    hook(mount, "verify", "rm -r $RELFS_RELEASE_PATH")
    canary(mount, "42", "--uid", str(os.getuid()), "--for", "0.01")
    wait_for(lambda: [action for action, _ in actions(mount)][-1:] == ["abort"], "the canary is aborted")
    assert "releases/42: " in mount.journal()[-1]["why"]
    wait_for(lambda: os.readlink(mount.app / "current") == "releases/40", "and seen no more, a moment later")


def test_what_was_decided_meanwhile_counts(app: Path, mounts: Mounts, tmp_path: Path) -> None:
    mount = mounts.start(be_patient(app))
    asked, go = tmp_path / "asked", tmp_path / "go"
    os.mkfifo(go)
    hook(mount, "verify", f"touch {asked}; cat {go}")
    canary(mount, "42", "--uid", "12345", "--for", "0.01")
    wait_for(asked.exists, "the hook was asked")
    canary(mount, "abort")
    go.write_text("good")
    wait_for(lambda: len(actions(mount)) == 3, "the hook has answered")
    canary(mount, "41", "--uid", "12345")
    assert os.readlink(mount.app / "current") == "releases/40"
    assert [action for action, _ in actions(mount)] == ["canary", "abort", "verify", "canary"]
