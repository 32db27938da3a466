"""The journal: what is written comes back, and whatever a crash or a full disk leaves of the last line does no harm."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from faults import Calls, Crash, CrashTorn, DiskFull, Fails, Fault, watched
from hypothesis import given
from hypothesis import strategies as st

from relfs import journal
from relfs.deadline import Deadline
from relfs.errors import RelfsError
from relfs.journal import DONE, JOURNAL, Actor, Event, Journal, command_line, decode, encode, new_event, this_actor

names = st.binary(max_size=40).map(os.fsdecode)
numbers = st.integers(-(2**31), 2**31)
moments = st.floats(0, 1e11)
deadlines = st.builds(Deadline, until=moments, ends=st.none() | moments, boot=names)
actors = st.builds(Actor, numbers, names, numbers, names)
events = st.builds(
    Event,
    time=st.floats(0, 1e11),
    action=st.sampled_from(["switch", "rollback", "adopt"]),
    release=st.none() | names,
    origin=st.none() | names,
    actor=actors,
    host=names,
    id=names,
    outcome=st.sampled_from([DONE, "recovered", "failed: No space left on device"]),
    confirm=st.none() | deadlines,
    why=st.none() | names,
    output=st.none() | names,
)

FIRST, SECOND, THIRD = (
    Event(1e9 + number, "switch", f"4{number}", None, Actor(0, "root", 1, "relfsctl"), "web1", f"id-{number}", DONE)
    for number in range(3)
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the journal of `state` is."""
    return tmp_path / JOURNAL


# ---- lines --------------------------------------------------------------------------------------------------------


@given(events)
def test_an_event_comes_back_from_its_line(event: Event) -> None:
    line = encode(event)
    assert decode(line) == event
    assert line.endswith(b"\n") and line.count(b"\n") == 1
    assert line.isascii()


@given(events)
def test_no_part_of_a_line_is_a_line(event: Event) -> None:
    line = encode(event).rstrip(b"\n")
    assert all(decode(line[:length]) is None for length in range(len(line)))


@given(st.binary() | st.recursive(st.none() | st.integers() | st.text(), st.lists).map(json.dumps).map(str.encode))
def test_what_is_no_line_is_told_without_raising(line: bytes) -> None:
    assert decode(line) is None


FIELDS = FIRST.as_json()
wrong_values: st.SearchStrategy[object] = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.lists(st.integers(), max_size=2)
)


@given(st.sampled_from(sorted(FIELDS)), wrong_values)
def test_a_wrong_value_in_a_line_never_raises(field: str, value: object) -> None:
    event = decode(json.dumps({**FIELDS, field: value}).encode())
    assert event is None or decode(encode(event)) == event, "what is taken for an event can be written again"


@given(st.sampled_from(sorted(set(FIELDS) - {"release", "from"})))
def test_a_line_without_a_field_is_none(field: str) -> None:
    assert decode(json.dumps({key: value for key, value in FIELDS.items() if key != field}).encode()) is None


@pytest.mark.parametrize("line", [b"[" * 100_000, b'{"time":' + b"9" * 5000 + b"}", b"\xff\xfe{", b"\0" * 100])
def test_hostile_lines(line: bytes) -> None:
    assert decode(line) is None


# ---- the file -----------------------------------------------------------------------------------------------------


def test_no_journal_is_an_empty_one(state: int) -> None:
    assert list(Journal(state).events()) == []
    assert list(Journal(None).events()) == []


def test_read_while_a_line_is_being_written(state: int, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The half that is there is read, then the other half and another line are written: the history has no holes."""
    Journal(state).append(FIRST)
    half = encode(SECOND)[:20]
    with path.open("ab") as file:
        file.write(half)

    def slowly(line: bytes) -> Event | None:
        if line == half:
            with path.open("ab") as file:
                file.write(encode(SECOND)[20:] + encode(THIRD))
        return decode(line)

    monkeypatch.setattr(journal, "decode", slowly)
    assert list(Journal(state).events()) == [FIRST]
    assert list(Journal(state).events()) == [FIRST, SECOND, THIRD]


def test_events_are_read_in_the_order_they_were_written(state: int, path: Path) -> None:
    written = [FIRST, SECOND, THIRD]
    for event in written:
        Journal(state).append(event)
    assert list(Journal(state).events()) == written
    assert path.read_bytes() == b"".join(map(encode, written))
    assert path.stat().st_mode & 0o777 == 0o644


def test_a_line_torn_at_every_byte(state: int, path: Path) -> None:
    whole, torn = encode(FIRST), encode(SECOND)
    for length in range(len(torn) - 1):
        path.write_bytes(whole + torn[:length])
        assert list(Journal(state).events()) == [FIRST], length
        Journal(state).append(THIRD)
        assert path.read_bytes() == whole + encode(THIRD), length


def test_a_line_that_lacks_only_its_newline_counts(state: int, path: Path) -> None:
    """For readers as for the next writer: what one of them takes for done the other must not drop, or write again."""
    path.write_bytes(encode(FIRST) + encode(SECOND).rstrip(b"\n"))
    before = list(Journal(state).events())
    Journal(state).append(THIRD)
    assert list(Journal(state).events()) == [*before, THIRD] == [FIRST, SECOND, THIRD]


@pytest.mark.parametrize("length", [1, 4096, 1 << 18, (1 << 18) + 1, 1 << 20])
def test_a_torn_line_of_any_length(state: int, path: Path, length: int) -> None:
    """A file system may leave zeros where a line was to be, and nothing here bounds the id that a client makes."""
    path.write_bytes(encode(FIRST) + b"\0" * length)
    Journal(state).append(SECOND)
    Journal(state).append(THIRD)
    assert list(Journal(state).events()) == [FIRST, SECOND, THIRD]


@pytest.mark.parametrize("garbage", [b"", b"\n", b"# a note\n", b"{}\n", b"\0\0\0\n", b"\xff\n", b"null\n", b"[]\n"])
def test_lines_that_are_none_are_passed_over(state: int, path: Path, garbage: bytes) -> None:
    path.write_bytes(garbage + encode(FIRST) + garbage + encode(SECOND) + garbage)
    assert list(Journal(state).events()) == [FIRST, SECOND]
    Journal(state).append(THIRD)
    assert path.read_bytes() == garbage + encode(FIRST) + garbage + encode(SECOND) + garbage + encode(THIRD)


def _fails_at(name: str, kind: Callable[[int], Fault]) -> Callable[[list[str]], Fault]:
    return lambda calls: kind(calls.index(name))


@pytest.mark.parametrize(
    "fault",
    [
        _fails_at("write", DiskFull),
        _fails_at("write", lambda at: Fails(at, errno.ENOSPC)),
        _fails_at("fdatasync", Fails),
        _fails_at("open", lambda at: Fails(at, errno.EROFS)),
    ],
    ids=["a short write", "no space", "an error on syncing", "read-only"],
)
def test_a_failing_append_leaves_the_journal_as_it_was(
    state: int, path: Path, fault: Callable[[list[str]], Fault]
) -> None:
    journal = Journal(state)
    journal.append(FIRST)
    with watched(Calls()) as calls:
        journal.append(SECOND)
    before = path.read_bytes()
    with pytest.raises(OSError), watched(Calls(fault(calls.names))):
        journal.append(THIRD)
    assert path.read_bytes() == before
    journal.append(THIRD)
    assert list(journal.events()) == [FIRST, SECOND, THIRD]


def test_an_append_that_dies_half_way_is_repaired(state: int) -> None:
    journal = Journal(state)
    with watched(Calls()) as calls:
        journal.append(FIRST)
    with pytest.raises(Crash, match="amid write"), watched(Calls(CrashTorn(calls.names.index("write")))):
        journal.append(SECOND)
    assert list(journal.events()) == [FIRST]
    journal.append(THIRD)
    assert list(journal.events()) == [FIRST, THIRD]


def test_of_many_events_any_beginning_may_survive(state: int, path: Path) -> None:
    journal = Journal(state)
    journal.append(FIRST)
    journal.append(SECOND, THIRD)
    assert list(journal.events()) == [FIRST, SECOND, THIRD]
    data = path.read_bytes()
    for length in range(len(data)):
        path.write_bytes(data[:length])
        journal.append(FIRST)
        events = list(journal.events())
        assert [*events[:-1], FIRST] == [*[FIRST, SECOND, THIRD][: len(events) - 1], FIRST], length


def test_a_line_is_safe_before_append_returns(state: int) -> None:
    with watched(Calls()) as first:
        Journal(state).append(FIRST)
    with watched(Calls()) as later:
        Journal(state).append(SECOND)
    assert first.names == ["open", "write", "fdatasync", "fsync"]  # the last is of the directory: the name is new
    assert later.names == ["open", "write", "fdatasync"]


def test_a_journal_that_cannot_be_read(state: int, path: Path) -> None:
    path.mkdir()
    with pytest.raises(RelfsError, match="cannot be read"):
        list(Journal(state).events())


def test_nothing_is_written_through_a_link(state: int, path: Path, tmp_path: Path) -> None:
    """Whoever owns the deploy path must not be able to make root's relfs write elsewhere."""
    (tmp_path / "theirs").write_text("")
    path.symlink_to("theirs")
    with pytest.raises(OSError):
        Journal(state).append(FIRST)
    assert (tmp_path / "theirs").read_text() == ""


# ---- who ----------------------------------------------------------------------------------------------------------


def test_this_process_is_known() -> None:
    me = this_actor()
    assert (me.uid, me.pid) == (os.getuid(), os.getpid())
    assert "pytest" in me.command
    assert new_event("switch", "41", "40", me, "id").succeeded


@pytest.mark.parametrize("pid", [0, -1, 2**31 - 1])
def test_a_process_that_cannot_be_known(pid: int) -> None:
    assert command_line(pid) == ""


def test_an_outcome_that_failed(actor: Actor) -> None:
    event = new_event("switch", "41", "40", actor, "id")
    assert not replace(event, outcome="failed: no reason").succeeded
