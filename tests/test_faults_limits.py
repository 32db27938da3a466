"""Faults of the world around the daemon: its limit of descriptors, used up by who opens files through the
mount, of memory, and of threads.
"""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import trio
from cgroups import Group, control_group
from clients import SECONDS, ctl, running
from crew import expect_deaths, whole
from mounting import Mounts, relfs_command, wait_for
from readers import reading
from test_survival import replacing

from relfs.threads import in_thread

_MEGABYTE = 1 << 20


def with_few_descriptors(*arguments: str | Path) -> list[str]:
    """relfs, unable to raise its limit of 256."""
    few = ("setpriv", "--bounding-set=-sys_resource", "prlimit", "--nofile=256:256")
    return [*few, *relfs_command(*arguments)]


@contextmanager
def all_descriptors_used_up(file: Path, flags: int) -> Iterator[OSError]:
    """Open `file` until that is refused, and keep it so."""
    opened: list[int] = []
    try:
        with pytest.raises(OSError, match=r".") as caught:
            for _ in range(1000):
                opened.append(os.open(file, flags))
        yield caught.value
    finally:
        for each in opened:
            os.close(each)


@pytest.mark.parametrize("flags", [os.O_RDONLY, os.O_RDONLY | os.O_DIRECTORY], ids=["files", "directories"])
def test_clients_that_open_all_they_can(app: Path, mounts: Mounts, flags: int) -> None:
    """They get EMFILE; whoever switches, asks, looks or watches does not."""
    file = app / "file"
    if flags & os.O_DIRECTORY:
        file.mkdir()
    else:
        file.write_text("content")
    (app / ".relfs/hooks").mkdir(parents=True)
    hook = app / ".relfs/hooks/pre-switch"
    hook.write_text("#!/bin/sh\nexit 0\n")
    hook.chmod(0o755)
    mount = mounts.start(app, command=with_few_descriptors)
    with reading(app / "current/index.html", "40", "41", "42") as readers:
        with all_descriptors_used_up(file, flags) as error:
            assert error.errno == errno.EMFILE
            assert "no more can be opened" in " ".join(mount.status()["health"])
            assert ctl("-C", app, "switch", "41").status == 0
            (app / "release").symlink_to("releases/42")
            os.rename(app / "release", app / "current")
            with pytest.raises(OSError, match=os.strerror(errno.EMFILE)):
                (app / "new").touch()
        wait_for(lambda: mount.status()["health"] == [], "they have been closed")
        assert not (app / "new").exists(), "what could not be opened was not made"
        (app / "new").write_text("made")
        seen = readers.stop()
    assert (seen.failed, seen.neither) == ({}, 0)
    assert os.readlink(app / "current") == "releases/42"


def test_a_memory_limit(app: Path, mounts: Mounts) -> None:
    """What goes through the daemon is not kept by it: ten times as much as it may have, both ways."""
    with control_group("memory") as group:
        mount = mounts.start(app, command=lambda *words: group.command(*relfs_command(*words)))
        pid = mount.status()["worker_pid"]
        (app / "warm").write_bytes(bytes(_MEGABYTE))
        group.limit(group.used + 8 * _MEGABYTE)
        with reading(app / "current/index.html", "40", "41") as readers:
            _write_and_read(app / "large", 80)
            assert ctl("-C", app, "switch", "41").status == 0
            seen = readers.stop()
        assert (seen.failed, seen.neither) == ({}, 0)
        assert mount.status()["worker_pid"] == pid
        mount.terminate()


@pytest.mark.parametrize("part", ["worker", "standby"])
def test_who_is_killed_for_a_memory_limit(app: Path, mounts: Mounts, part: str) -> None:
    """By the kernel, in earnest: the limit is reached by somebody else in the group, and one of relfs's pays for it."""
    with control_group("memory") as group:
        mount = mounts.start(app, command=lambda *words: group.command(*relfs_command(*words)))
        before = whole(mount)
        mount.expect_log(f"the {part} .* has ended; another one takes its place")
        with reading(app / "current/index.html", "40", "41", session=True) as readers, replacing(app):
            killed = getattr(before, part)
            Path(f"/proc/{killed}/oom_score_adj").write_text("1000")
            group.limit(group.used + 8 * _MEGABYTE)
            with _someone_greedy(group, until=killed):
                group.limit(None)
            assert whole(mount, gone=(killed,))
            seen = readers.stop()
        assert (seen.failed, seen.neither) == ({}, 0)
        assert group.kills == 1
        (app / "file").write_text("written")
        assert ctl("-C", app, "switch", "42").status == 0
        mount.terminate()


@contextmanager
def _someone_greedy(group: Group, until: int) -> Iterator[None]:
    """A process of the group that takes more and more memory, until process `until` is killed for it."""
    command = group.command(sys.executable, "-c", _GREEDY, str(until))
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as greedy:
        assert greedy.stdout is not None
        assert greedy.stdout.readline() == b"gone\n"
        yield
        greedy.communicate()


_GREEDY = """
import os, sys
taken = []
while os.path.exists(f"/proc/{sys.argv[1]}/exe"):
    taken.append(bytearray(os.urandom(1 << 16)))
taken.clear()
print("gone", flush=True)
sys.stdin.read()
"""


def _write_and_read(file: Path, megabytes: int) -> None:
    with open(file, "wb", buffering=0) as writer:
        for number in range(megabytes):
            writer.write(bytes([number]) * _MEGABYTE)
    with open(file, "rb", buffering=0) as reader:
        for number in range(megabytes):
            os.posix_fadvise(reader.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)  # from the daemon, not from the page cache
            assert reader.read(_MEGABYTE) == bytes([number]) * _MEGABYTE


def test_a_limit_of_threads(app: Path, mounts: Mounts) -> None:
    """There is no new one for anybody: those there are do what is to be done, one thing after the other."""
    with control_group("pids") as group:
        mount = mounts.start(app, command=lambda *words: group.command(*relfs_command(*words)))
        pid = mount.status()["worker_pid"]
        with reading(app / "current/index.html", "40", "41", "42") as readers, ExitStack() as clients:
            group.limit(1)
            switching = [clients.enter_context(running("-C", app, "switch", name)) for name in ["41", "42"] * 3]
            with pytest.raises(FileNotFoundError):
                _swap(app, "releases/none")
            _swap(app, "releases/41")
            assert [each.wait(SECONDS) for each in switching] == [0] * 6
            group.limit(None)
            seen = readers.stop()
        assert (seen.failed, seen.neither) == ({}, 0)
        assert mount.status()["worker_pid"] == pid
        mount.terminate()


def test_a_limit_of_processes(app: Path, mounts: Mounts) -> None:
    """While nobody can be started, who is dead is not replaced, which is said once; then all come at once, and the
    standby that could not fork is still the same."""
    with control_group("pids") as group:
        mount = mounts.start(app, command=lambda *words: group.command(*relfs_command(*words)))
        before = whole(mount)
        expect_deaths(mount)
        mount.expect_log(f"can be started: {os.strerror(errno.EAGAIN)}$")
        assert before.supervisor is not None
        assert before.worker is not None
        with reading(app / "current/index.html", "40", "41", session=True) as readers, replacing(app):
            group.limit(1)
            os.kill(before.supervisor, signal.SIGKILL)
            wait_for(lambda: "no supervisor can be started" in mount.log.read_text(), "it is said")
            group.limit(None)
            between = whole(mount, gone=(before.supervisor,))
            group.limit(1)
            os.kill(before.worker, signal.SIGKILL)
            wait_for(lambda: "nor worker can be started" in mount.log.read_text(), "it is said")
            group.limit(None)
            after = whole(mount, gone=(before.worker,))
            seen = readers.stop()
        assert (seen.failed, seen.neither) == ({}, 0)
        assert between.standby == before.standby
        assert after.standby == before.standby
        assert mount.log.read_text().count("no supervisor can be started") <= 2, "each of two says it once"
        assert mount.relfsctl("unmount").returncode == 0


def _swap(app: Path, text: str) -> None:
    (app / "next").unlink(missing_ok=True)
    (app / "next").symlink_to(text)
    os.rename(app / "next", app / "current")


def test_a_thread_that_cannot_be_had_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    refusals = iter([True, True, False])

    async def run_or_not(call: Callable[..., object], *arguments: object, **_options: object) -> object:
        if next(refusals):
            raise RuntimeError("can't start new thread")
        return call(*arguments)

    async def main() -> None:
        assert await in_thread(divmod, 7, 2) == (3, 1)

    monkeypatch.setattr(trio.to_thread, "run_sync", run_or_not)
    trio.run(main)
    assert next(refusals, None) is None


def test_an_error_of_the_work_is_no_want_of_threads() -> None:
    def fail() -> None:
        raise RuntimeError("of its own")

    with pytest.raises(RuntimeError, match="of its own"):
        trio.run(in_thread, fail)
