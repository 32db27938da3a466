"""The mark that pinned processes bear: real processes, no mount. It must get past all that a process may do."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import pytest
from mounting import environment, wait_for

from relfs.errors import RelfsError
from relfs.views.bearers import bearers, has_ended, take_census
from relfs.views.mark import mark_of, new_mark, put_mark

_LOCKS = 10
NOBODY = 65534


@contextmanager
def running(*command: str, mark: int = 0) -> Iterator[subprocess.Popen[str]]:
    """A process that bears `mark` from its first moment on, and prints something once it is ready."""

    def bear() -> None:
        if mark:
            put_mark(os.getpid(), mark)

    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, preexec_fn=bear
    ) as process:  # fmt: skip
        try:
            yield process
        finally:
            process.kill()


def sleeping(mark: int = 0) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(["sleep", "1000"])
    if mark:
        put_mark(process.pid, mark)
    return process


def first_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


_SHOW = "echo $(($(grep 'file locks' /proc/self/limits | tr -s ' ' | cut -d' ' -f4)))"


@pytest.mark.parametrize(
    "way",
    [
        ["sh", "-c"],
        ["env", "-i", "sh", "-c"],
        ["setsid", "--wait", "sh", "-c"],
        ["unshare", "--pid", "--fork", "--mount-proc", "sh", "-c"],
        ["unshare", "--user", "--map-root-user", "sh", "-c"],
        ["unshare", "--uts", "--ipc", "--net", "--cgroup", "sh", "-c"],
        ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "sh", "-c"],
        ["chroot", "/", "sh", "-c"],
    ],
    ids=lambda way: " ".join(way[:2]),
)
def test_survives(way: list[str]) -> None:
    mark = new_mark()
    with running(*way, _SHOW, mark=mark) as process:
        assert int(first_line(process)) == mark


def test_a_daemon_bears_it() -> None:
    """Its parent has ended, it has a session of its own, and nothing open that it was given."""
    mark = new_mark()
    daemon = "(setsid sh -c 'exec 3>&1; echo $$ >&3; exec sleep 1000 <&- >&- 2>&- 3>&-' &)"
    with running("sh", "-c", daemon, mark=mark) as process:
        pid = int(first_line(process))
        process.wait()
    assert mark_of(pid) == mark
    census = take_census({mark})
    try:
        assert census.complete
        assert bearers({mark}) == {mark: [pid]}
        os.kill(pid, 9)
        wait_for(lambda: has_ended(census.witnesses[mark]), "the daemon has ended")
    finally:
        os.close(census.witnesses[mark].pidfd)
    assert take_census({mark}).witnesses == {}


def test_who_has_none() -> None:
    assert mark_of(os.getpid()) == 0
    assert mark_of(0) == 0, "a process outside of our pid name space"
    assert mark_of(2**22 + 1) == 0, "no pid is that high"


def test_a_limit_that_somebody_has_set_is_no_mark() -> None:
    process = sleeping()
    resource.prlimit(process.pid, _LOCKS, (1000, -1))
    assert mark_of(process.pid) == 0
    process.kill()
    process.wait()


def test_a_hard_limit_is_told_of() -> None:
    process = sleeping()
    resource.prlimit(process.pid, _LOCKS, (1000, 1000))
    with pytest.raises(RelfsError, match="hard limit of file locks"):
        put_mark(process.pid, new_mark())
    process.kill()
    process.wait()
    with pytest.raises(RelfsError, match="is gone"):
        put_mark(process.pid, new_mark())


def test_an_ordinary_user_sees_everybodys_and_sets_his_own() -> None:
    program = """
import os, sys
from relfs.errors import RelfsError
from relfs.views.mark import mark_of, new_mark, put_mark
pid, mark = int(sys.argv[1]), new_mark()
assert mark_of(pid) == int(sys.argv[2]), mark_of(pid)
try:
    put_mark(pid, mark)
except RelfsError as error:
    assert "somebody else's" in str(error)
else:
    raise AssertionError("may mark root's process")
for mark in (mark, new_mark()):
    put_mark(os.getpid(), mark)
    assert mark_of(os.getpid()) == mark, "replaced, without privileges"
"""
    mark = new_mark()
    process = sleeping(mark)
    try:
        subprocess.run(
            [sys.executable, "-c", program, str(process.pid), str(mark)],
            check=True, env=environment(), user=NOBODY, group=NOBODY, extra_groups=[],
        )  # fmt: skip
    finally:
        process.kill()
        process.wait()


_THREAD = """
import threading
def run():
    print(threading.get_native_id(), flush=True)
    input()
threading.Thread(target=run).start()
"""


def test_a_thread_is_its_process() -> None:
    mark = new_mark()
    with running(sys.executable, "-c", _THREAD, mark=mark) as process:
        thread = int(first_line(process))
        assert thread != process.pid
        assert mark_of(thread) == mark


_COMET = """
import os, time
while True:
    if os.fork():
        os._exit(0)
    time.sleep(0.001)
"""


def test_one_that_is_never_there_for_long_is_found() -> None:
    """Each starts the next and ends: at every moment there is one, under another pid."""
    mark = new_mark()
    comet = subprocess.Popen(
        [sys.executable, "-c", _COMET], preexec_fn=lambda: put_mark(os.getpid(), mark), process_group=0
    )  # fmt: skip
    try:
        comet.wait()
        for _ in range(20):
            census = take_census({mark})
            for witness in census.witnesses.values():
                os.close(witness.pidfd)
            assert census.witnesses or not census.complete
    finally:
        os.killpg(comet.pid, 9)  # who is being born does not escape that (fork(2), ERESTARTNOINTR)
    wait_for(lambda: not bearers({mark})[mark], "it has ended")
    census = take_census({mark})
    assert (census.witnesses, census.complete) == ({}, True)


def test_one_that_ends_while_it_is_listed_has_left_a_child() -> None:
    """Whose pid is lower, since pids have just begun anew: so it is not in that listing."""
    mark = new_mark()
    child = sleeping(mark)
    listings = [{os.getpid()}, {os.getpid()}, {os.getpid(), child.pid}]
    try:
        with mock.patch("relfs.views.bearers.all_pids", side_effect=listings):
            census = take_census({mark})
        for witness in census.witnesses.values():
            os.close(witness.pidfd)
        assert [witness.pid for witness in census.witnesses.values()] == [child.pid]
    finally:
        child.kill()
        child.wait()


_CROWDED = """
import errno, os, resource
from relfs.descriptors import descriptors
from relfs.views.bearers import hold
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
while os.open("/dev/null", os.O_RDONLY) < descriptors().mark - 2:
    pass
assert hold(os.getpid()) is not None
try:
    hold(os.getpid())
except OSError as error:
    assert error.errno == errno.EMFILE
    os.open("/dev/null", os.O_RDONLY)
    print("refused")
"""


def test_who_is_pinned_leaves_descriptors_for_switching() -> None:
    done = subprocess.run([sys.executable, "-c", _CROWDED], check=True, stdout=subprocess.PIPE, env=environment())
    assert done.stdout == b"refused\n"


def test_a_zombie_has_ended() -> None:
    mark = new_mark()
    process = sleeping(mark)
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert mark_of(process.pid) == mark, "it is still there"
    assert take_census({mark}).witnesses == {}
    process.wait()
