"""What relfs reads from disk, under contents that nobody has written there: the owner of a deploy path may.

Each parser by itself: it tells nothing, or something that can be written, read again and shown. And all of them
together: whatever the files say, the pointer opens, or says in one line why not; and a switch ends either with the new
release, or with an error and the old one.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from fuzzing import as_json, cut_and_mended, fuzzed, nearly, scratch, silence, values
from hypothesis import example, given
from hypothesis import strategies as st
from sandbox import ACTOR, link_of, make_recorded_app

from relfs.cli.output import moment, plain
from relfs.config import load_config
from relfs.errors import RelfsError
from relfs.history import History
from relfs.hold import HELD, held, take
from relfs.journal import JOURNAL, Actor, Event, Journal, decode, encode
from relfs.layout import open_deploy_path
from relfs.pending import PENDING
from relfs.pointer import Pointer
from relfs.records import capistrano, deployer
from relfs.store import TEMPORARY

EVENT = Event(1.7e9, "switch", "41", "40", Actor(0, "root", 1, "relfsctl switch 41"), "web1", "id-1", "done")
HOLD = {"pid": os.getpid(), "start": 1, "boot": "b", "user": "ada", "command": "sh", "since": 1.7e9, "until": None,
        "reason": "why"}  # fmt: skip
NOTE = {**EVENT.as_json(), "wanted": "releases/41", "tell": True}
DEPLOYER = {"created_at": "2026-09-01T12:00:00+0000", "release_name": "41", "user": "ada", "target": "HEAD"}
CONFIG = b'seal = false\n[control]\ngroup = "root"\n[checks]\nbad = true\n[hooks]\ntimeout = 10\n'
CAPISTRANO = capistrano.compose(capistrano.Entry("41", "ada", "main", "0123abc")).rstrip(b"\n")


def lines(document: dict[str, Any]) -> st.SearchStrategy[bytes]:
    """Lines of JSON: right, nearly right, of something else, and none."""
    right = as_json(document)
    return (
        st.just(right)
        | nearly(document).map(as_json)
        | cut_and_mended(right)
        | values.map(as_json)
        | st.binary(max_size=30)
        | st.just(b"[" * 3000)
        | st.just(b'{"time":' + b"9" * 5000)
    )


journal_lines = lines(EVENT.as_json())


@fuzzed(300)
@given(journal_lines)
@example(encode(EVENT).replace(b"1700000000.0", b"1e300"))
@example(encode(EVENT).replace(b"1700000000.0", b"-1e300"))
def test_a_journal_line_tells_nothing_or_an_event_that_can_be_shown(line: bytes) -> None:
    event = decode(line)
    if event is None:
        return
    assert decode(encode(event)) == event
    json.dumps(event.as_json())
    moment(event.time), time.gmtime(event.time), plain(str(event.as_json()))
    History([event, EVENT]).check_invariants()


@fuzzed(200)
@given(lines(DEPLOYER) | cut_and_mended(b"20260901120000,41"))
@example(as_json({**DEPLOYER, "created_at": "0948-11-14T11:13:20+0000"}))
@example(b"00010901120000,41")
def test_a_line_of_deployer_tells_nothing_or_what_can_be_written_again(line: bytes) -> None:
    entry = deployer.parse(line)
    if entry is not None:
        again = deployer.parse(deployer.compose(entry.created, entry.release, entry.user, "HEAD"))
        assert again is not None and (again.created, again.release) == (entry.created, entry.release)
        assert entry.created >= 0
    old = deployer.parse_old(line)
    if old is not None:
        assert deployer.parse_old(deployer.compose_old(old.created, old.release)) is not None
    mark = deployer.parse_mark(line)
    if mark.time is not None:
        deployer.compose_mark(mark.time, mark.user)


@fuzzed(200)
@given(cut_and_mended(CAPISTRANO) | st.binary(max_size=60))
def test_a_line_of_capistrano_tells_nothing_or_what_can_be_written_again(line: bytes) -> None:
    entry = capistrano.parse(line)
    if entry is not None:
        written = capistrano.compose(entry)  # controls are not written again
        assert written.count(b"\n") == 1
        again = capistrano.parse(written.rstrip(b"\n"))
        assert again is not None and capistrano.compose(again) == written
        assert again.release == entry.release
        capistrano.time_of(entry.release)


# ---- all of it together

many = st.lists(journal_lines, max_size=5).map(b"\n".join)
files = st.fixed_dictionaries(
    {},
    optional={
        f".relfs/{JOURNAL}": many,
        f".relfs/{PENDING}": lines(NOTE).map(lambda line: line + b"\n"),
        f".relfs/{HELD}": lines(HOLD),
        f".relfs/{TEMPORARY}": st.binary(max_size=9),
        ".relfs/current": st.sampled_from([b"releases/41", b"releases/41\n", b"", b"\0", b"/", b"current", b"\xff"]),
        ".relfs/lock": st.binary(max_size=9),
        ".relfs/config.toml": cut_and_mended(CONFIG),
        ".dep/releases_log": st.lists(lines(DEPLOYER), max_size=4).map(b"\n".join),
        ".dep/releases": st.lists(cut_and_mended(b"20260901120000,41"), max_size=3).map(b"\n".join),
        ".dep/latest_release": st.binary(max_size=30) | st.just(b"9" * 5000),
        "releases/41/BAD_RELEASE": cut_and_mended(b"2026-09-01T12:00:00+0000,ada\n"),
        "releases/41/REVISION": st.binary(max_size=30),
        "revisions.log": st.lists(cut_and_mended(CAPISTRANO), max_size=4).map(b"\n".join),
    },
)


@contextlib.contextmanager
def _may_fail() -> Iterator[None]:
    """Saying why in a line."""
    try:
        yield
    except RelfsError as error:
        assert str(error)


def _write(app: Path, contents: dict[str, bytes]) -> None:
    (app / ".relfs").mkdir()
    for path, data in contents.items():
        (app / path).write_bytes(data)


@fuzzed(100)
@given(files)
def test_no_file_keeps_a_switch_from_ending(contents: dict[str, bytes]) -> None:
    with scratch() as place, silence("records cannot be read", "could not be brought up to date"):
        app = make_recorded_app(place / "app")
        _write(app, contents)
        deploy = open_deploy_path(str(app))
        assert deploy.state_fd is not None
        try:
            with _may_fail():
                load_config(deploy.state_fd, deploy.state_path)
            with _may_fail():
                take(deploy.state_fd, ACTOR, os.getpid(), why="", seconds=None)
            with _may_fail():
                json.dumps(hold.as_json() if (hold := held(deploy.state_fd)) else None)
            _switch_and_go_back(deploy, app)
        finally:
            deploy.close()


def _switch_and_go_back(deploy: Any, app: Path) -> None:
    with _may_fail():
        pointer = Pointer(deploy)
        changes: list[Callable[[], Event]] = [
            lambda: pointer.switch("42", ACTOR, "one"),
            lambda: pointer.rollback(None, ACTOR, "two"),
            lambda: pointer.switch("@previous", ACTOR, "three"),
        ]
        for change in changes:
            before = pointer.target
            try:
                event = change()
                assert pointer.target is not None and pointer.target.release == event.release
                assert (app / pointer.target.text / "index.html").is_file()
                assert link_of(app) == pointer.target.text
            except RelfsError:
                assert pointer.target == before
            pointer.history.check_invariants()
        for event in Journal(deploy.state_fd).events():
            assert decode(encode(event)) == event
            moment(event.time)
    link_of(app)
