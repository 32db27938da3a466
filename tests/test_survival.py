"""Any process of relfs may die or hang, and any two at once: nobody who uses the mount notices.

Each promise once, on a mount of its own; at random moments and under load, for minutes, is contrib/soak's.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from clients import running
from crew import BLOWS, expect_deaths, kill, mounts_below, pids_of, whole
from deploying import in_shell
from dirstream import Directory
from mounting import Mount, Mounts, relfs_command, relfsctl_command, wait_for
from readers import reading
from sandbox import be_patient, link_of
from soak.site import Pids
from test_hooks import write_hook

import relfs
from relfs.daemon.member import is_alive, who_is
from relfs.errors import EXIT_LOCKED
from relfs.processes import descendants

EVERY_BLOW = pytest.mark.parametrize("blow", BLOWS)
EVERY_DEATH_OF_ONE = pytest.mark.parametrize("part", ["worker", "supervisor"])


@pytest.fixture
def app(app: Path) -> Path:
    """What is begun here goes on after somebody has died, however long that takes."""
    return be_patient(app)


@contextmanager
def replacing(app: Path) -> Iterator[None]:
    """While inside, this process has removed `current` and has not made it again: every resolution asks the worker."""
    os.unlink(app / "current")
    yield
    os.symlink("releases/41", app / "current")


# ---- readers -------------------------------------------------------------------------------------------------------


@EVERY_BLOW
def test_no_reader_notices_and_a_replacement_goes_on(mount: Mount, blow: str) -> None:
    """Each read needs the worker: to those who are not replacing the link, it says where that leads."""
    app = mount.app
    with reading(app / "current/index.html", "40", "41", session=True) as readers:
        with replacing(app):
            for _ in range(2):
                BLOWS[blow](mount)
                assert not os.path.lexists(app / "current"), "it is still withdrawn from who is replacing it"
        assert (app / "current/index.html").read_text() == "41"
        seen = readers.stop()
    assert (seen.failed, seen.neither) == ({}, 0)
    assert seen.contents >= {"40"}
    assert [event["release"] for event in mount.journal() if event["action"] == "switch"] == ["41"]


@EVERY_BLOW
def test_switches_go_on(mount: Mount, blow: str) -> None:
    """The next one after the death, without a wait for anything; by relfsctl, and by a deploy tool."""
    BLOWS[blow](mount)
    done = mount.relfsctl("switch", "41")
    assert (done.returncode, done.stderr) == (0, "")
    assert link_of(mount.app) == "releases/41"
    done = in_shell(mount.app, 'rm "$D/current" && ln -s releases/42 "$D/current"')
    assert (done.returncode, done.stderr) == (0, "")
    assert (mount.app / "current/index.html").read_text() == "42"
    assert [event["release"] for event in mount.journal() if event["action"] == "switch"] == ["41", "42"]
    assert mount.relfsctl("unmount").returncode == 0
    assert link_of(mount.app) == "releases/42"


_DIES_WHILE_IT_READS = """
import os
whole = os.listdir
def dies(where):
    if isinstance(where, int) and os.readlink(f"/proc/self/fd/{{where}}").endswith("/listed"):
        if not os.path.exists({mark!r}):
            open({mark!r}, "w").close()
            begun = os.scandir(where)
            next(begun)
            os.kill(os.getpid(), 9)
    return whole(where)
os.listdir = dies
"""


def test_a_directory_that_was_half_read(app: Path, mounts: Mounts, tmp_path: Path) -> None:
    """The next worker has the same open directory, which goes on where it was left, and has to be read anew."""
    mark = tmp_path / "dead"
    mount = mounts.start(app, patch=_DIES_WHILE_IT_READS.format(mark=str(mark)))
    expect_deaths(mount)
    names = {str(number) for number in range(10)}
    (app / "listed").mkdir()
    for name in names:
        (app / "listed" / name).touch()
    assert set(os.listdir(app / "listed")) == names
    assert mark.exists()


_DIES_OF_BEING_ASKED = """
import os, signal
from relfs.daemon import methods

_status = methods.status

def status(mounted, seen):
    if os.path.exists({mark!r}):
        os.unlink({mark!r})
        os.kill(os.getpid(), signal.SIGKILL)
    return _status(mounted, seen)

methods.status = status
"""
"""A worker that has heard the question how things stand, and dies; once, if there is the file `mark`."""


def test_who_asks_how_things_stand_is_answered(app: Path, mounts: Mounts, tmp_path: Path) -> None:
    """By the next worker, and as if nothing had happened."""
    mark = tmp_path / "mark"
    mount = mounts.start(app, patch=_DIES_OF_BEING_ASKED.format(mark=str(mark)))
    before = mount.status()
    expect_deaths(mount)
    mark.touch()
    after = mount.status()
    assert not mark.exists()
    assert after["worker_pid"] not in (before["worker_pid"], None)
    assert (after["mounted"], after["current"]) == (True, "40")


@EVERY_BLOW
def test_nothing_that_is_mounted_changes(mount: Mount, blow: str) -> None:
    """A native directory whose node were another one would be detached by the kernel (DESIGN.md, hazard 2)."""
    (mount.app / "shared").mkdir()
    native = [".relfs", "releases", "shared"]
    wait_for(lambda: mount.status()["host"]["native"] == native, "shared is native, and that is written down")
    before = mounts_below(mount.app)
    BLOWS[blow](mount)
    for name in ("releases", "shared", ".relfs"):
        assert os.listdir(mount.app / name) is not None
    with pytest.raises(FileNotFoundError):
        os.stat(mount.app / "missing")
    assert mounts_below(mount.app) == before
    assert mount.status()["host"]["native"] == native


def test_two_die_while_the_third_is_only_starting(mount: Mount) -> None:
    """The standby is a process that has not imported anything yet; what it was sent waits for it."""
    app, first = mount.app, whole(mount)
    expect_deaths(mount)
    with reading(app / "current/index.html", "40", session=True) as readers:
        for pid in (first.supervisor, first.standby):
            assert pid is not None
            os.kill(pid, signal.SIGKILL)
        found: list[Pids] = []

        def come() -> bool:
            pids = pids_of(mount)
            found[:] = [pids] if pids is not None else []
            return pids is not None and len({*pids.alive()} - {first.supervisor, first.standby}) == 3

        wait_for(come, "another supervisor has started a standby")
        for pid in (found[0].supervisor, found[0].worker):
            assert pid is not None
            os.kill(pid, signal.SIGKILL)
        whole(mount, gone=(found[0].supervisor or 0, found[0].worker or 0))
        seen = readers.stop()
    assert seen.failed == {}


def test_new_code_takes_over(mount: Mount) -> None:
    """Nobody notices, as with a death: not who is replacing the link, not who has a file open. And who was there before
    is gone to the last trace."""
    app, first = mount.app, whole(mount)
    with (
        reading(app / "current/index.html", "40", "41", session=True) as readers,
        open(app / "file", "w+b", buffering=0) as file,
    ):
        file.write(b"before")
        os.unlink(app / "file")
        with replacing(app):
            done = mount.relfsctl("reload")
            assert (done.returncode, done.stderr) == (0, "")
            assert not os.path.lexists(app / "current")
        file.write(b", after")
        assert os.pread(file.fileno(), 100, 0) == b"before, after"
        seen = readers.stop()
    assert (seen.failed, seen.neither) == ({}, 0)
    second = whole(mount)
    assert second.worker != first.worker
    assert second.standby != first.standby
    assert (app / "current/index.html").read_text() == "41"
    wait_for(lambda: all(each.alive for each in descendants(second.supervisor or 0)), "who has ended is reaped")


_UNFIT = {
    "does not start": ("daemon/start.py", "import logging", "raise SystemExit(1)", "its standby has ended"),
    "other memory": ("survival/ledger.py", "VERSION = 1", "VERSION = 2", "the state is of version 1, not 2"),
    "no process": ("daemon/standby.py", "pid = os.fork()", "raise OSError(11, 'no process')", "loaded: no process"),
    "other words": ("fuse/handshake.py", "= CACHE_SYMLINKS |", "= ", "negotiates otherwise than the one that mounted"),
}
"""New code that cannot take over: a file of it, what is in it, what then is, and what is said."""


@pytest.mark.parametrize("fault", _UNFIT)
def test_new_code_that_cannot_take_over(app: Path, tmp_path: Path, mounts: Mounts, fault: str) -> None:
    """The old one goes on, nobody notices, and a better one may come."""
    copy = tmp_path / "copy"
    shutil.copytree(Path(relfs.__file__).parent, copy / "relfs")
    mount = mounts.start(app, command=lambda *words: ["env", f"PYTHONPATH={copy}", *relfs_command(*words)])
    first = whole(mount)
    name, good, bad, said = _UNFIT[fault]
    source = copy / "relfs" / name
    text, times = source.read_text(), source.stat()
    assert text.count(good) == 1
    source.write_text(text.replace(good, bad))
    os.utime(source, (times.st_atime, times.st_mtime + 10))  # what was compiled goes by that
    mount.expect_log(" WARNING .* the new code does not take over: ")
    mount.expect_log(" ERROR .* cannot be taken over: ")
    with reading(app / "current/index.html", "40", "41", session=True) as readers:
        with replacing(app):
            done = mount.relfsctl("reload")
        seen = readers.stop()
    assert done.returncode == 1
    assert said in done.stderr
    assert done.stderr.endswith("; the old version goes on\n")
    assert (seen.failed, seen.neither) == ({}, 0)
    second = whole(mount)
    assert (second.supervisor, second.standby) == (first.supervisor, first.standby)
    source.write_text(text)
    os.utime(source, (times.st_atime, times.st_mtime))
    assert mount.relfsctl("reload").returncode == 0
    assert mount.relfsctl("switch", "42").returncode == 0


@EVERY_DEATH_OF_ONE
def test_somebody_dies_while_new_code_is_started(mount: Mount, part: str) -> None:
    """It takes over all the same: from a worker that has come meanwhile, and at the word of another supervisor."""
    first = whole(mount)
    expect_deaths(mount)
    with running("-C", mount.app, "reload") as client:
        wait_for(lambda: "new code is started" in mount.log.read_text(), "it is being started")
        os.kill(getattr(first, part), signal.SIGKILL)
        assert client.wait(60) == 0
    second = whole(mount, gone=(first.worker or 0, first.standby or 0, getattr(first, part)))
    assert mount.relfsctl("switch", "41").returncode == 0
    assert pids_of(mount) == second


def test_a_supervisor_that_is_stopped_while_new_code_takes_over(mount: Mount) -> None:
    """It has become another program, and has not told anybody yet; it keeps its process, and the baton."""
    first = whole(mount)
    expect_deaths(mount)
    with running("-C", mount.app, "reload") as client:
        wait_for(lambda: "becomes the new supervisor" in mount.log.read_text(), "it is about to")
        assert first.supervisor is not None
        os.kill(first.supervisor, signal.SIGSTOP)
        assert client.wait(60) == 0
    whole(mount, gone=(first.supervisor,))


# ---- what is open --------------------------------------------------------------------------------------------------


@EVERY_DEATH_OF_ONE
def test_open_files_go_on(mount: Mount, part: str) -> None:
    """Descriptors that were opened by a worker that is dead: read from where they were, append, write, truncate."""
    app = mount.app
    (app / "read").write_bytes(b"abcdefgh")
    with (
        open(app / "read", "rb", buffering=0) as reading_,
        open(app / "append", "ab", buffering=0) as appending,
        open(app / "both", "w+b", buffering=0) as both,
    ):
        assert reading_.read(3) == b"abc"
        appending.write(b"one\n")
        both.write(b"12345678")
        kill(mount, part)
        assert reading_.read() == b"defgh"
        appending.write(b"two\n")
        os.fsync(appending.fileno())
        both.seek(4)
        both.write(b"9")
        both.truncate(6)
        assert os.fstat(both.fileno()).st_size == 6
    assert (app / "append").read_bytes() == b"one\ntwo\n"
    assert (app / "both").read_bytes() == b"123496"


@EVERY_DEATH_OF_ONE
def test_a_file_without_a_name_goes_on(mount: Mount, part: str) -> None:
    """It was unlinked while it was open: there is no path by which a new worker could find it."""
    with open(mount.app / "file", "w+b", buffering=0) as file:
        file.write(b"before")
        os.unlink(mount.app / "file")
        kill(mount, part)
        file.write(b", after")
        assert os.pread(file.fileno(), 100, 0) == b"before, after"
        assert os.fstat(file.fileno()).st_nlink == 0
    assert not (mount.app / "file").exists()


def test_what_was_opened_between_two_deaths_goes_on(mount: Mount) -> None:
    """The supervisor is dead, the standby has not noticed yet: the worker tells whoever comes next, and dies, too."""
    before = whole(mount)
    assert before.supervisor is not None and before.standby is not None and before.worker is not None
    expect_deaths(mount)
    os.kill(before.standby, signal.SIGSTOP)
    os.kill(before.supervisor, signal.SIGKILL)
    wait_for(lambda: _supervisor_of(mount) != before.supervisor, "the worker knows that the supervisor is dead")
    with open(mount.app / "file", "w+b", buffering=0) as file:
        file.write(b"before")
        os.unlink(mount.app / "file")
        os.kill(before.worker, signal.SIGKILL)
        with suppress(ProcessLookupError):  # the worker has not waited for it, and another one has taken its place
            os.kill(before.standby, signal.SIGCONT)
        whole(mount, gone=(before.supervisor, before.worker))
        file.write(b", after")
        assert os.pread(file.fileno(), 100, 0) == b"before, after"


def _supervisor_of(mount: Mount) -> int | None:
    pids = pids_of(mount)
    assert pids is not None
    return pids.supervisor


def test_status_names_nobody_who_is_dead(mount: Mount) -> None:
    """Who goes by it, and kills the worker next, would kill the last."""
    before = whole(mount)
    expect_deaths(mount)
    dead = [who_is(pid) for pid in (before.supervisor, before.standby) if pid is not None]
    for who in dead:
        os.kill(who.pid, signal.SIGKILL)
    wait_for(lambda: not any(map(is_alive, dead)), "both are dead")
    after = pids_of(mount)
    assert after is not None
    assert not {after.supervisor, after.standby} & {who.pid for who in dead}
    whole(mount)


@EVERY_DEATH_OF_ONE
def test_a_list_that_is_half_read_goes_on(mount: Mount, part: str) -> None:
    """Each name once, those that the first worker had told and those that the second tells."""
    names = {f"{number:04}-{'x' * 100}".encode() for number in range(1000)}
    (mount.app / "many").mkdir()
    for name in names:
        (mount.app / "many" / os.fsdecode(name)).touch()
    directory = Directory(str(mount.app / "many"))
    first = [entry.name for _ in range(20) if (entry := directory.read()) is not None]
    kill(mount, part)
    rest = [name for name, _ in directory.rest()]
    directory.close()
    assert sorted([*first, *rest]) == sorted([*names, b".", b".."])


@EVERY_DEATH_OF_ONE
def test_a_working_directory_goes_on(mount: Mount, part: str) -> None:
    """Who stands in a directory that relfs serves itself holds its node, and no name of it."""
    (mount.app / "here").mkdir()
    (mount.app / "here/file").write_text("content")
    place = os.open(mount.app / "here", os.O_PATH | os.O_DIRECTORY)
    try:
        (mount.app / "here").rename(mount.app / "there")
        kill(mount, part)
        with open(os.open("file", os.O_RDONLY, dir_fd=place)) as file:
            assert file.read() == "content"
        os.mkdir("new", dir_fd=place)
        assert sorted(os.listdir(mount.app / "there")) == ["file", "new"]
    finally:
        os.close(place)


@EVERY_DEATH_OF_ONE
def test_locks_on_files_go_on(mount: Mount, part: str) -> None:
    with open(mount.app / "file", "w") as mine:
        fcntl.flock(mine, fcntl.LOCK_EX)
        kill(mount, part)
        with open(mount.app / "file", "w") as other, pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)


# ---- what is under way ---------------------------------------------------------------------------------------------


def _slow_hook(app: Path) -> None:
    """A hook that says that it has begun, and goes on once it may."""
    write_hook(app, f"echo >> {app}/.relfs/begun; until [ -e {app}/.relfs/go ]; do sleep 0.01; done")


@EVERY_DEATH_OF_ONE
def test_a_switch_under_way_is_done_once(mount: Mount, part: str) -> None:
    """The client asks again, by itself, with the same id."""
    _slow_hook(mount.app)
    with running("-C", mount.app, "switch", "41") as client:
        wait_for((mount.app / ".relfs/begun").exists, "the hook runs")
        kill(mount, part)
        (mount.app / ".relfs/go").touch()
        out, err = client.communicate(timeout=60)
    assert (client.returncode, err) == (0, ""), out
    assert (mount.app / "current/index.html").read_text() == "41"
    assert [event["release"] for event in mount.journal() if event["action"] == "switch"] == ["41"]


@EVERY_DEATH_OF_ONE
def test_a_tools_swap_under_way_is_done_once(mount: Mount, part: str) -> None:
    """The system call of a deploy tool goes on as if nothing had happened. It keeps the directory, so that the second
    worker dies while it waits to tell the kernel something: it is replaced before that is over."""
    _slow_hook(mount.app)
    os.symlink("releases/41", mount.app / "new")
    tool = subprocess.Popen(["mv", "-T", mount.app / "new", mount.app / "current"], stderr=subprocess.PIPE, text=True)
    wait_for((mount.app / ".relfs/begun").exists, "the hook runs")
    for _ in range(2):
        kill(mount, part)
    (mount.app / ".relfs/go").touch()
    _, err = tool.communicate(timeout=60)
    assert "does not answer" not in mount.log.read_text()
    assert (tool.returncode, err) == (0, "")
    assert (mount.app / "current/index.html").read_text() == "41"
    assert not os.path.lexists(mount.app / "new")
    assert [event["release"] for event in mount.journal() if event["action"] == "switch"] == ["41"]


@EVERY_DEATH_OF_ONE
def test_the_deploy_lock_keeps_its_holder(mount: Mount, part: str) -> None:
    command = [*relfsctl_command(mount.app, "lock"), "--", "sh", "-c", "echo locked; read -r line"]
    holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd="/")
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "locked\n"
        kill(mount, part)
        assert mount.relfsctl("switch", "41").returncode == EXIT_LOCKED
        holder.communicate("\n", timeout=60)
        assert holder.returncode == 0
        assert mount.relfsctl("switch", "41").returncode == 0
    finally:
        holder.kill()
        holder.wait()
