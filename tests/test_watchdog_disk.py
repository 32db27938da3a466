"""When it is said that a disk does not answer, on a clock that the test moves. What becomes of the mount meanwhile is
in test_faults_frozen.py.
"""

from __future__ import annotations

import os
import selectors
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from mounting import wait_for

from relfs.daemon import watchdog
from relfs.daemon.probe import Probe
from relfs.daemon.watchdog import Disk


class Silent:
    """A probe that does not answer, since the disk keeps it, or since it is given no processor."""

    starved = False

    def __init__(self, _place: str, _disk: int) -> None:
        self._ends = socket.socketpair()

    def fileno(self) -> int:
        return self._ends[0].fileno()

    def ask(self, what: str) -> None:
        assert what == "disk"

    def wants_to_run(self) -> bool:
        return self.starved

    def close(self) -> None:
        for each in self._ends:
            each.close()


class Starved(Silent):
    starved = True


@pytest.mark.parametrize("probe", [Silent, Starved])
def test_who_has_yet_to_ask_tells_nothing_of_the_disk(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, probe: Callable[..., Silent]
) -> None:
    """Nobody is to be blamed meanwhile, in either case."""
    monkeypatch.setattr(watchdog, "Probe", probe)
    with selectors.DefaultSelector() as selector:
        disk = Disk("/srv/app", 7, selector, lambda _now: None)
        assert all(disk.may_be_to_blame(now) for now in (100.0, 101.0, 102.5, 103.0))
        disk.close()
    assert caplog.text.count("the disk does not answer") == (probe is Silent)


def test_nobody_stays_who_has_asked(tmp_path: Path) -> None:
    """Nothing grows because a machine was busy once."""
    state = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    with selectors.DefaultSelector() as selector:
        disk, before = Disk("/srv/app", state, selector, lambda _now: None), os.listdir("/proc/self/fd")
        assert disk.may_be_to_blame(time.monotonic()), "until it answers"
        wait_for(lambda: _turn(selector) and not selector.get_map(), "it has answered")
        assert os.listdir("/proc/self/fd") == before
    os.close(state)


def _turn(selector: selectors.BaseSelector) -> bool:
    for key, _ in selector.select(0):
        key.data()
    return True


def test_who_wants_to_run() -> None:
    """Whether it is at it, or has to wait for a processor; not, who waits for anything else."""
    probe = Probe("/")
    asking = probe.pid
    try:
        wait_for(lambda: not probe.wants_to_run(), "it waits to be asked")
        with subprocess.Popen(["sh", "-c", "while :; do :; done"]) as spins:
            probe.pid = spins.pid
            wait_for(probe.wants_to_run, "it spins")
            spins.kill()
    finally:
        probe.pid = asking
        probe.close()
