"""Atheris's part of contrib/fuzz: one input is given to every parser of what others may have written to disk.

A parser may find nothing, and load_config() may say why not; whatever else is raised is a fault. What was found must be
such that it can be written and shown.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time

import atheris

with atheris.instrument_imports(include=["relfs"]):
    from relfs.cli.output import moment, plain
    from relfs.config import CONFIG, load_config
    from relfs.errors import RelfsError
    from relfs.history import History
    from relfs.hold import HELD, held
    from relfs.journal import Actor, Event, decode, encode
    from relfs.records import capistrano, deployer

_STATE = tempfile.mkdtemp(prefix="relfs-fuzz-", dir="/dev/shm")
_STATE_FD = os.open(_STATE, os.O_RDONLY | os.O_DIRECTORY)


def one(data: bytes) -> None:
    journal(data)
    records(data)
    files(data)


def journal(data: bytes) -> None:
    events = [event for line in data.split(b"\n") if (event := decode(line)) is not None]
    for event in events:
        assert decode(encode(event)) == event
        assert moment(event.time) and plain(str(event.as_json()))
    History(iter(events)).check_invariants()


def records(data: bytes) -> None:
    for line in data.split(b"\n"):
        entry = deployer.parse(line)
        if entry is not None:
            again = deployer.parse(deployer.compose(entry.created, entry.release, entry.user, "HEAD"))
            assert again is not None and (again.created, again.release) == (entry.created, entry.release)
        old = deployer.parse_old(line)
        if old is not None:
            deployer.compose_old(old.created, old.release)
        mark = deployer.parse_mark(line)
        if mark.time is not None:
            deployer.compose_mark(mark.time, mark.user)
        told = capistrano.parse(line)
        if told is not None:
            time.gmtime(capistrano.time_of(told.release) or 0.0)
            assert capistrano.parse(capistrano.compose(told).rstrip(b"\n")) is not None


def files(data: bytes) -> None:
    for name in (CONFIG, HELD):
        with open(f"{_STATE}/{name}", "wb") as file:
            file.write(data)
    try:
        load_config(_STATE_FD, _STATE)
    except RelfsError as error:
        assert str(error)
    hold = held(_STATE_FD)
    assert hold is None or str(hold)


SEEDS = (
    encode(Event(1.7e9, "switch", "41", "40", Actor(0, "root", 1, "relfsctl switch 41"), "web1", "id-1", "done")),
    deployer.compose(1.7e9, "41", "ada", "HEAD"),
    deployer.compose_old(1.7e9, "41"),
    deployer.compose_mark(1.7e9, "ada"),
    capistrano.compose(capistrano.Entry("20260901120000", "ada", "main", "0123abc")),
    capistrano.compose(capistrano.Entry("20260901120000", "ada")),
    b'seal = true\n[control]\ngroup = "root"\n[checks]\nunfinished = ["X"]\n[hooks]\ntimeout = 10\n',
    b'{"pid":1,"start":1,"boot":"","user":"a","command":"b","since":1,"until":9e9,"reason":"c"}',
)


def plant(corpus: str) -> None:
    """What is right, to begin with."""
    for number, seed in enumerate(SEEDS):
        with open(f"{corpus}/seed-{number}", "wb") as file:
            file.write(seed)


if __name__ == "__main__":
    plant(sys.argv[1])
    atheris.Setup(sys.argv, one)
    atheris.Fuzz()
