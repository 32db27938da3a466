"""Who is replacing `current`: real processes, no mount. A `Replacement` is asked of each whether the name is hidden."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest

from relfs.journal import Actor
from relfs.processes import process
from relfs.views.replacement import Replacement, begin_replacement


class Shell:
    """A process that does what it is told, a line at a time: stands for the script that deploys."""

    def __init__(self, *, session: bool = True) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", _PROGRAM], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            start_new_session=session,
        )  # fmt: skip
        self.pid = self.process.pid

    def do(self, command: str) -> int:
        """`start`, `start-shell`, `reap PID`: the pid that it is about."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()


_PROGRAM = """
import os, subprocess, sys
children = {}
for line in sys.stdin:
    word, *rest = line.split()
    if word == "start":
        child = subprocess.Popen(["sleep", "1000"])
        children[child.pid] = child
    elif word == "start-shell":
        child = subprocess.Popen(["sh", "-c", "echo ready; sleep 1000 & wait"], stdout=subprocess.PIPE)
        child.stdout.readline()
        children[child.pid] = child
    elif word == "kill":
        child = children[int(rest[0])]
        child.kill()
    elif word == "reap":
        child = children[int(rest[0])]
        child.kill()
        child.wait()
    print(child.pid, flush=True)
"""


@contextmanager
def shell(*, session: bool = True) -> Iterator[Shell]:
    started = Shell(session=session)
    pids: list[int] = []
    do = started.do

    def remembering(command: str) -> int:
        pids.append(do(command))
        return pids[-1]

    started.do = remembering  # type: ignore[method-assign]
    try:
        yield started
    finally:
        for pid in pids:  # ours: the shell has not reaped those that it still has
            found = process(pid)
            if found is not None and found.parent == started.pid:
                for child in _children(pid):
                    os.kill(child, 9)
                os.kill(pid, 9)
        started.close()


def _children(pid: int) -> list[int]:
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        return [int(word) for word in file.read().split()]


def begun_by(pid: int) -> Replacement:
    return begin_replacement(Actor(0, "root", pid, "rm current"), 0.0)


@pytest.fixture
def script() -> Iterator[Shell]:
    with shell() as started:
        yield started


def test_only_the_tool_itself_while_it_lives(script: Shell) -> None:
    """BusyBox ln unlinks and links in one process: neither its shell nor its siblings are meant."""
    reader = script.do("start")
    tool = script.do("start")
    replacement = begun_by(tool)
    late = script.do("start")
    assert replacement.hides_from(tool)
    assert not replacement.hides_from(script.pid)
    assert not replacement.hides_from(reader)
    assert not replacement.hides_from(late)
    assert not replacement.hides_from(os.getpid())


def test_the_script_goes_on_when_the_tool_has_ended(script: Shell) -> None:
    """`rm current; ln -s ... current`: rm ends, ln is started after it."""
    reader = script.do("start")
    remover = script.do("start")
    replacement = begun_by(remover)
    script.do(f"reap {remover}")
    linker = script.do("start")
    assert replacement.hides_from(linker)
    assert replacement.hides_from(script.pid), "a script may link by itself"
    assert not replacement.hides_from(reader), "what was running already is a reader"
    assert not replacement.hides_from(os.getpid())


def test_a_zombie_has_ended(script: Shell) -> None:
    remover = script.do("start")
    replacement = begun_by(remover)
    script.do(f"kill {remover}")
    while (found := process(remover)) is not None and found.alive:
        pass
    assert found is not None, "a zombie, not reaped"
    assert replacement.hides_from(script.pid)


_FIRST_THREAD_ENDS = """
import ctypes, threading, time
threading.Thread(target=time.sleep, args=(1000,)).start()
print("ready", flush=True)
ctypes.CDLL(None).pthread_exit(None)
"""


def test_a_process_lives_as_long_as_one_of_its_threads() -> None:
    tool = subprocess.Popen([sys.executable, "-c", _FIRST_THREAD_ENDS], stdout=subprocess.PIPE)
    try:
        assert tool.stdout is not None
        tool.stdout.readline()
        with open(f"/proc/{tool.pid}/stat") as stat:
            while ") Z " not in stat.read():
                stat.seek(0)
        replacement = begun_by(tool.pid)
        assert replacement.hides_from(tool.pid)
        assert not replacement.hides_from(os.getpid())
    finally:
        tool.kill()
        tool.communicate()
    assert not replacement.hides_from(tool.pid)


def test_through_a_terminal_that_somebody_made_for_it() -> None:
    """`script -c "rm current"; ln -s ...`: a session, and a terminal, for one command."""
    script = "script -qec 'echo $$; exec sleep 1000' /dev/null; :"
    with subprocess.Popen(["sh", "-c", script], stdout=subprocess.PIPE, stdin=subprocess.DEVNULL) as deploy:
        assert deploy.stdout is not None
        remover = process(int(deploy.stdout.readline()))
        assert remover is not None
        replacement = begun_by(remover.pid)
        os.kill(remover.pid, 9)
    assert remover.session == remover.pid, "a session of its own"
    members = [member.pid for member in replacement.chain]
    assert members[0] == remover.pid
    assert members.index(deploy.pid) < members.index(os.getpid()), "on from there, in the order of ancestry"


def test_what_a_reader_starts_later_is_a_reader(script: Shell) -> None:
    """A loop that runs `cat current/file` beside the deploy, in the same shell."""
    loop = script.do("start-shell")
    remover = script.do("start")
    replacement = begun_by(remover)
    script.do(f"reap {remover}")
    (child,) = _children(loop)
    assert not replacement.hides_from(loop)
    assert not replacement.hides_from(child)


def test_never_past_the_session() -> None:
    """What started the session (sshd, cron, a web server) is not a deploy script; its other children are not either."""
    with shell(session=False) as server, shell() as deploy:
        other = server.do("start")
        remover = deploy.do("start")
        replacement = begun_by(remover)
        deploy.do(f"reap {remover}")
        assert replacement.hides_from(deploy.pid)
        deploy.close()
        assert replacement.acting() is None, "all are gone: nobody will end this"
        assert not replacement.hides_from(os.getpid())
        assert not replacement.hides_from(other)


def test_a_process_that_nobody_knows() -> None:
    """A caller from another pid name space has pid 0 (fuse(4)): the name is withdrawn from nobody."""
    replacement = begun_by(0)
    assert replacement.acting() is None
    assert not replacement.hides_from(os.getpid())
    assert not replacement.hides_from(0)


def test_a_reused_pid_is_not_its_former_owner(script: Shell) -> None:
    tool = script.do("start")
    replacement = begun_by(tool)
    former = replacement.chain[0]
    stolen = Replacement(
        replacement.actor,
        0.0,
        (type(former)(former.pid, former.start - 1, former.parent, former.session, True),),
        frozenset(),
        former.start,
    )
    assert not stolen.hides_from(tool)


def test_who_gets_the_number_of_who_removed_the_link_within_the_tick_came_later(script: Shell) -> None:
    """rm has ended, and ln has its number: what runs here is ln, as rm is said to have begun a tick before it."""
    replacement = begun_by(script.do("start"))
    remover = replacement.chain[0]
    replacement.chain = (replace(remover, start=remover.start - 1), *replacement.chain[1:])
    assert replacement.hides_from(remover.pid)
