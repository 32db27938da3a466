"""The processes of a mount, as its supervisor knows them. No mount."""

from __future__ import annotations

import errno
import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from disks import broken_disk
from mounting import wait_for

import relfs
from relfs.daemon.background import Answer
from relfs.daemon.company import STANDBY, WORKER, Company, Comrade
from relfs.daemon.member import Telling, myself, who_is
from relfs.daemon.plan import Plan
from relfs.daemon.reloading import outcome_of
from relfs.daemon.supervisor import Supervisor
from relfs.processes import is_killed, state_of
from relfs.survival.channel import Channel, Message, channel_of, pair, until_readable
from relfs.survival.estate import Estate
from relfs.survival.ledger import new_ledger
from relfs.survival.memory import new_memory


def _ignore(*_: object) -> None:
    """Nobody is asked for anything here."""


@pytest.fixture
def estate() -> Iterator[Estate]:
    estate = Estate()
    inbox, outbox = pair()
    estate.put("inbox", inbox.detach())
    estate.put("outbox", outbox.detach())
    yield estate
    estate.close()


def test_the_supervisor_is_of_the_standard_library_alone() -> None:
    """It starts at once, and nothing that a worker dies of is in it."""
    root = Path(relfs.__file__).parent.parent
    command = [sys.executable, "-S", "-c", "import relfs.daemon.start"]  # -S: without what is installed besides
    done = subprocess.run(command, env={"PYTHONPATH": str(root)}, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_what_changed_before_the_standby_joined_it_is_told(estate: Estate, tmp_path: Path) -> None:
    """A worker that has joined sooner opens one file and closes another."""
    (tmp_path / "opened").write_text("opened")
    with selectors.DefaultSelector() as selector:
        company = Company(estate, new_ledger(), selector, _ignore, _ignore)
        standby = Comrade(STANDBY, None)
        company.add(standby, myself())
        estate.put("file.1", os.open(tmp_path / "opened", os.O_RDONLY))
        for name in ("file.1", "file.2"):
            company.pass_on(Comrade(WORKER, None), name)
        ours = _join(estate)
        for key, _ in selector.select(0):
            key.data()
        said = {message.values["name"]: message for message in _heard(ours) if message.kind != "welcome"}
        assert standby.can_fork
    assert {name: message.kind for name, message in said.items()} == {"file.1": "keep", "file.2": "drop"}
    assert os.pread(said["file.1"].fds[0], 10, 0) == b"opened"
    said["file.1"].close()
    ours.close()


def test_a_standby_that_does_not_listen_costs_no_descriptors(estate: Estate) -> None:
    """However much is opened and closed meanwhile; and when it listens, it hears what there is then."""
    ours, theirs = pair()
    with selectors.DefaultSelector() as selector:
        company = Company(estate, new_ledger(), selector, _ignore, _ignore)
        standby = Comrade(STANDBY, ours, told=Telling(estate, ours, last="all"))
        company.add(standby)
        before = os.listdir("/proc/self/fd")
        for number in range(1000):
            name = f"file.{number}"
            estate.put(name, os.open(os.devnull, os.O_RDONLY))
            company.pass_on(Comrade(WORKER, None), name)
            estate.drop(name)
            company.pass_on(Comrade(WORKER, None), name)
        assert os.listdir("/proc/self/fd") == before
        held: set[str] = set()
        said = _heard(theirs)
        assert len(said) < 2000, "there was no room for all"
        while said:
            for message in said:
                message.close()
                if message.kind == "keep":
                    held.add(message.values["name"])
                elif message.kind == "drop":
                    held.discard(message.values["name"])
            standby.flush()
            said = _heard(theirs)
        assert standby.can_fork
    assert held == {"inbox", "outbox"}
    theirs.close()


def test_who_asks_for_a_reload_while_one_is_under_way_has_his_turn() -> None:
    """And whoever asks again, because the worker that was to tell him is gone, hears how his own went."""
    ledger = new_ledger()
    cell = ledger.reload

    def end(outcome: str) -> None:
        cell.store(json.dumps({**json.loads(cell.load()), "outcome": outcome}).encode())

    assert [outcome_of(cell, "one"), outcome_of(cell, "other")] == [None, None]
    end("failed: no")
    assert [outcome_of(cell, "other"), outcome_of(cell, "one")] == [None, "failed: no"]
    end("done")
    assert [outcome_of(cell, "one"), outcome_of(cell, "other")] == ["failed: no", "done"]
    ledger.close()


@pytest.fixture
def supervisor(estate: Estate, tmp_path: Path) -> Iterator[Supervisor]:
    """Of nothing that is mounted."""
    estate.put("state", os.open(tmp_path, os.O_PATH))
    ledger = new_ledger()
    yield Supervisor(Plan(str(tmp_path), str(tmp_path)), estate, ledger, new_memory("relfs-baton"), Answer(None))
    ledger.close()


def test_a_worker_that_hangs_when_it_is_to_unmount_is_ended(
    supervisor: Supervisor, caplog: pytest.LogCaptureFixture
) -> None:
    """Nobody can ask the mount, which is to go; but readers wait for it."""
    ours, theirs = pair()
    worker = subprocess.Popen(["sleep", "1000"])
    try:
        wait_for(lambda: state_of(worker.pid) == "S", "it does not wait for a processor, which would be no time")
        supervisor._company.add(Comrade(WORKER, ours), who_is(worker.pid))
        supervisor._on_signal()
        said = theirs.receive()
        assert said is not None
        assert said.kind == "leave"
        for later in (0, 1, 9):
            supervisor._watch(time.monotonic() + later)
        assert worker.poll() is None
        supervisor._watch(time.monotonic() + 11)
        assert worker.wait(60) == -signal.SIGKILL
    finally:
        worker.kill()
        worker.wait()
    assert "does not come to its end" in caplog.text
    supervisor._bring_up_members()
    assert supervisor._outcome == (0, "")
    theirs.close()


def test_a_worker_that_was_killed_is_not_blamed_for_what_keeps_it(
    supervisor: Supervisor, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A disk that is slow to answer, be it because the machine is busy: another one takes its place all the same."""
    ours, theirs = pair()
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk/file").touch()
    with broken_disk(tmp_path / "disk", tmp_path / "mood") as disk:
        disk.hangs()
        worker = subprocess.Popen(["cat", tmp_path / "disk/file"])
        wait_for(
            lambda: "request_wait_answer" in Path(f"/proc/{worker.pid}/stack").read_text(), "it waits for the disk"
        )
        supervisor._company.add(Comrade(WORKER, ours), who_is(worker.pid))
        assert not is_killed(worker.pid)
        worker.kill()
        assert is_killed(worker.pid)
        supervisor._on_signal()
        supervisor._watch(time.monotonic() + 11)
        assert worker.poll() is None
        assert supervisor._company.get(WORKER) is None
        disk.works()
        assert worker.wait(60) == -signal.SIGKILL
    assert "does not come to its end" not in caplog.text
    theirs.close()


def test_what_nobody_has_heard_keeps_nothing(estate: Estate) -> None:
    """fusermount3 waits for the last copy of a descriptor to be closed, and a supervisor that ends, for fusermount3."""
    tie, theirs = pair()
    reading, writing = os.pipe()
    with selectors.DefaultSelector() as selector:
        company = Company(estate, new_ledger(), selector, _ignore, _ignore)
        company.add(Comrade(STANDBY, tie))
        outbox = channel_of(os.dup(estate["outbox"]))
        outbox.send("join", writing)
        theirs.send("keep", writing)
        os.close(writing)
        assert not until_readable(reading, 0), "both carry a copy"
        company.close()
        estate.drop("inbox")
        assert until_readable(reading, 60)
        assert os.read(reading, 1) == b""
        assert not selector.get_map()
    for each in (outbox, theirs):
        each.close()
    os.close(reading)


def test_who_cannot_be_watched_over_is_ended(
    estate: Estate, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """There is no descriptor for that: should it go on, another worker would serve beside it."""

    def pidfd_open(_pid: int) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    ended: list[Comrade] = []
    tie, theirs = pair()
    with selectors.DefaultSelector() as selector, subprocess.Popen(["sleep", "infinity"]) as process:
        company = Company(estate, new_ledger(), selector, _ignore, ended.append)
        worker = Comrade(WORKER, tie)
        company.add(worker)
        monkeypatch.setattr(os, "pidfd_open", pidfd_open)
        try:
            company.identify(worker, who_is(process.pid))
            assert process.wait(60) == -signal.SIGKILL
        finally:
            process.kill()
    assert ended == [worker]
    assert company.get(WORKER) is None
    assert os.strerror(errno.EMFILE) in caplog.text
    theirs.close()


def _join(estate: Estate) -> Channel:
    """Be the standby that leaves a tie to itself."""
    ours, theirs = pair()
    outbox = channel_of(os.dup(estate["outbox"]))
    who = myself()
    outbox.send("join", theirs.fileno(), role=STANDBY, pid=who.pid, start=who.start)
    outbox.close()
    theirs.close()
    return ours


def _heard(channel: Channel) -> list[Message]:
    said = []
    with suppress(BlockingIOError):
        while (message := channel.receive()) is not None:
            said.append(message)
    return said
