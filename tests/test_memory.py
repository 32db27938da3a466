"""Shared memory: whoever is killed at whatever store, the next one finds the old or the new, and nothing else
changed."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relfs.survival.memory import Area, Cell, Memory, Number, Slots, area, new_memory

SIZE = 32
ROOM = area(None, Slots.room(SIZE, 16))


class KilledError(Exception):
    """The writer is killed here."""


class Fuse:
    """A view of memory through which only so many stores are made; the last long one is torn."""

    def __init__(self, view: Any, left: list[int]) -> None:
        self._view = view
        self._left = left

    def __getitem__(self, place: Any) -> Any:
        return self._view[place]

    def __setitem__(self, place: Any, value: Any) -> None:
        if not self._left[0]:
            if isinstance(place, slice):
                half = (place.stop - place.start) // 2
                self._view[place.start : place.start + half] = value[:half]
            raise KilledError
        self._left[0] -= 1
        self._view[place] = value


class Mortal(Memory):
    """Memory whose user is killed after so many stores."""

    def __init__(self, fd: int, size: int, stores: int) -> None:
        super().__init__(fd, size)
        left = [stores]
        self.bytes = Fuse(self.bytes, left)  # type: ignore[assignment]
        self.words = Fuse(self.words, left)  # type: ignore[assignment]


@pytest.fixture
def fd() -> Iterator[int]:
    made = new_memory("test")
    yield made
    os.close(made)


def slots(memory: Memory) -> Slots:
    return Slots(memory, ROOM, SIZE)


def contents(fd: int) -> dict[int, bytes]:
    return dict(slots(Memory(fd, ROOM.end)))


def every_death(
    fd: int, prepare: Callable[[Slots], Any], change: Callable[[Slots, Any], Any]
) -> list[dict[int, bytes]]:  # fmt: skip
    """What is found after a death at each store of `change`, and at last after none."""
    found = []
    for stores in range(100):
        os.ftruncate(fd, 0)
        given = prepare(slots(Memory(fd, ROOM.end)))
        try:
            change(slots(Mortal(fd, ROOM.end, stores)), given)
        except KilledError:
            found.append(contents(fd))
        else:
            return [*found, contents(fd)]
    raise AssertionError("it never ends")


def test_a_record_is_there_or_not(fd: int) -> None:
    found = every_death(fd, lambda empty: empty.put(b"first"), lambda table, _: table.put(b"second"))
    assert len(found) > 2
    assert all(each == {1: b"first"} for each in found[:-1])
    assert found[-1] == {1: b"first", 2: b"second"}


def test_a_record_is_gone_or_not(fd: int) -> None:
    found = every_death(fd, lambda empty: (empty.put(b"first"), empty.put(b"second")), lambda table, _: table.free(1))
    assert found == [{1: b"first", 2: b"second"}, {2: b"second"}]


def test_a_slot_is_used_again(fd: int) -> None:
    """What stood there shows at no moment."""
    found = every_death(fd, lambda empty: empty.free(empty.put(b"x" * SIZE)), lambda table, _: table.put(b"short"))
    assert {tuple(each.values()) for each in found} == {(), (b"short",)}


def test_who_maps_the_memory_early_takes_nobodys_slot(fd: int) -> None:
    """A standby has it for hours, and the workers that it forks begin with what it knew."""
    one, gone = slots(memory := Memory(fd, ROOM.end)).put(b"one"), slots(memory).put(b"gone")
    slots(memory).free(gone)
    early = slots(Memory(fd, ROOM.end))
    other = slots(memory).put(b"other")
    assert other == gone, "the slot that was free when the memory was mapped"
    new = early.put(b"new")
    assert [early.get(number) for number in (one, other, new)] == [b"one", b"other", b"new"]


def test_a_word_of_a_record(fd: int) -> None:
    table = slots(Memory(fd, ROOM.end))
    number = table.put(bytes(24))
    table.set_word(number, 1, 7)
    assert contents(fd) == {number: bytes(8) + (7).to_bytes(8, "little") + bytes(8)}


def test_no_more_room(fd: int) -> None:
    table = slots(Memory(fd, ROOM.end))
    numbers = [table.put(b"x") for _ in range(1000)]
    most = max(numbers)
    assert numbers == [*range(1, most + 1), *[0] * (1000 - most)]
    table.free(5)
    assert (table.put(b"again"), table.put(b"none")) == (5, 0)
    table.free(6)
    assert (table.put(b"x" * (SIZE + 1)), table.put(b"again")) == (0, 6), "who is too long takes no slot"
    table.free(0)
    assert len(contents(fd)) == most


@given(st.lists(st.one_of(st.binary(max_size=SIZE), st.integers(0, 30))))
def test_slots_are_a_dictionary(steps: list[bytes | int]) -> None:
    fd = new_memory("test")
    try:
        memory, model = Memory(fd, area(None, Slots.room(SIZE, 256)).end), dict[int, bytes]()
        table = Slots(memory, area(None, Slots.room(SIZE, 256)), SIZE)
        for step in steps:
            if isinstance(step, bytes):
                model[table.put(step)] = step
            elif step in model:
                table.free(step)
                del model[step]
        again = Slots(memory, area(None, Slots.room(SIZE, 256)), SIZE)
        assert dict(table) == dict(again) == model
        assert again.put(b"new") not in model
    finally:
        os.close(fd)


@pytest.mark.parametrize("before", [b"", b"old", b"a longer one"])
def test_a_value_is_the_old_or_the_new(fd: int, before: bytes) -> None:
    where = area(None, 200)
    found = []
    for stores in range(10):
        os.ftruncate(fd, 0)
        if before:
            Cell(Memory(fd, where.end), where).store(before)
        try:
            Cell(Mortal(fd, where.end, stores), where).store(b"new value")
        except KilledError:
            found.append(Cell(Memory(fd, where.end), where).load())
    assert found
    assert set(found) == {before}
    assert Cell(Memory(fd, where.end), where).load() == b"new value"


def test_a_value_that_is_too_long_changes_nothing(fd: int) -> None:
    where = Area(0, 4096)
    cell = Cell(Memory(fd, where.end), where)
    cell.store(b"kept")
    with pytest.raises(ValueError, match="too many"):
        cell.store(bytes(4096))
    assert cell.load() == b"kept"


def test_numbers_and_areas_are_apart(fd: int) -> None:
    first = area(None, 10)
    second = area(first, 5000)
    assert (first.start, first.end, second.start, second.end) == (0, 4096, 4096, 12288)
    memory = Memory(fd, second.end)
    Number(memory, 8).value = 1 << 63
    Cell(memory, second).store(b"x" * 1000)
    assert Number(memory, 8).value == 1 << 63
    assert Number(Memory(fd, second.end), 8).value == 1 << 63
