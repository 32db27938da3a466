"""Records in a file for the next mount: what it finds, and what it does not believe. No mount."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest

from relfs.journal import Actor
from relfs.layout import Target
from relfs.survival import copies
from relfs.survival.copies import read_copy, write_copy
from relfs.survival.ledger import new_ledger
from relfs.views.mark import new_mark
from relfs.views.pins import PINS, Pin, Pins, is_pin, pins_on_disk

RECORDS = [b"", b"\n\0x", b"y" * 70000]


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[int]:
    fd = os.open(tmp_path, os.O_RDONLY)
    yield fd
    os.close(fd)


def test_it_is_what_was_written_last(directory: int, tmp_path: Path) -> None:
    assert read_copy(directory, "x", "a") == []
    write_copy(directory, "x", "a", [b"before"])
    write_copy(directory, "x", "a", RECORDS)
    assert read_copy(directory, "x", "a") == RECORDS
    assert read_copy(directory, "x", "b") == [], "it is about something else"
    assert os.listdir(tmp_path) == ["x"]
    write_copy(directory, "x", "a", [])
    assert os.listdir(tmp_path) == [], "there is nothing to be told"
    with mock.patch.object(copies, "remove_file", side_effect=OSError(errno.EROFS, "Read-only file system")):
        write_copy(directory, "x", "a", [])  # nor to be removed


def test_not_of_another_boot(directory: int) -> None:
    write_copy(directory, "x", "a", RECORDS)
    with mock.patch.object(copies, "boot_id", return_value="another"):
        assert read_copy(directory, "x", "a") == []
    with mock.patch.object(copies, "boot_id", return_value=""):
        write_copy(directory, "x", "a", RECORDS)
        assert read_copy(directory, "x", "a") == [], "nobody knows which one this is"


def test_nor_what_is_not_whole(directory: int, tmp_path: Path) -> None:
    write_copy(directory, "x", "a", RECORDS)
    whole = (tmp_path / "x").read_bytes()
    for end in (0, 5, whole.index(b"\n"), len(whole) - 1):
        (tmp_path / "x").write_bytes(whole[:end])
        assert read_copy(directory, "x", "a") == []
    for head in (b"{}", b"[]", b"\xff", b"[" * 100000):
        (tmp_path / "x").write_bytes(head + b"\n\0\0\0\1z")
        assert read_copy(directory, "x", "a") == []


PIN = Pin(new_mark(), Target("releases/41", "41"), Actor(0, "root", 7, "x"), 1.5, "id", 7, 8)


def test_pins(directory: int) -> None:
    kept = new_ledger().pins
    Pins(kept).add(PIN)
    (record,) = [record for _, record in kept]
    told = json.loads(record)
    strange = [b"", b"[]", b"{}", b"{", b'"x"', b"[" * 100000]
    for name, value in (("mark", 7), ("mark", None), ("target", None), ("pid", "7"), ("since", []), ("more", 1)):
        strange.append(json.dumps({**told, name: value}).encode())
    for target in ({"text": 1, "release": "41"}, {"text": "x", "release": 41}, {"text": "x"}):
        strange.append(json.dumps({**told, "target": target}).encode())
    assert [is_pin(each) for each in strange] == [False] * len(strange)
    write_copy(directory, PINS, "", [*strange, record])
    assert pins_on_disk(directory) == [PIN]
