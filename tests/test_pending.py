"""What is about to be done: no part of a note is taken for the whole. That it lasts in time, test_replay.py shows."""

from __future__ import annotations

from pathlib import Path

import pytest
from sandbox import ACTOR

from relfs import pending
from relfs.journal import new_event
from relfs.pending import PENDING, Pending

NOTE = Pending(new_event("switch", "42", "4", ACTOR, "request"), "releases/42", tell=True)


def test_what_is_noted_is_read_until_it_is_forgotten(state: int) -> None:
    assert pending.read(state) is None
    pending.write(state, NOTE)
    assert pending.read(state) == NOTE
    pending.forget(state)
    assert pending.read(state) is None
    pending.forget(state)


def test_a_text_of_any_bytes(state: int) -> None:
    note = Pending(NOTE.event, "releases/\udcff\n", tell=False)
    pending.write(state, note)
    assert pending.read(state) == note


@pytest.mark.parametrize("hole", [False, True], ids=["cut short", "zeros"])
def test_no_part_of_a_note_is_taken_for_the_whole(tmp_path: Path, state: int, hole: bool) -> None:
    pending.write(state, NOTE)
    whole = (tmp_path / PENDING).read_bytes()
    for length in range(len(whole)):
        rest = bytes(len(whole) - length) if hole else b""
        for part in (whole[:length] + rest, rest + whole[len(rest) :]):
            (tmp_path / PENDING).write_bytes(part)
            assert pending.read(state) is None or part == whole, length


@pytest.mark.parametrize("other", [b'{"time": 1}\n', b"[]\n", b"null\n", b"\xff\n", b"{" * 100_000 + b"\n"])
def test_what_somebody_else_wrote_is_no_note(tmp_path: Path, state: int, other: bytes) -> None:
    (tmp_path / PENDING).write_bytes(other)
    assert pending.read(state) is None


def test_nothing_of_an_older_note_shows_through(tmp_path: Path, state: int) -> None:
    """It is another file: what was not flushed of the new one cannot be filled up with the old one's."""
    pending.write(state, NOTE)
    before = (tmp_path / PENDING).read_bytes()
    with (tmp_path / PENDING).open("rb") as older:
        pending.write(state, Pending(NOTE.event, "releases/43", tell=False))
        assert older.read() == before
    assert pending.read(state) == Pending(NOTE.event, "releases/43", tell=False)
