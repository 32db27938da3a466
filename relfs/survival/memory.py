"""Shared memory whose contents are whole at every moment, whoever is killed at whatever instruction.

Whole by one store
------------------
Some facts. What a process has stored into a shared mapping is there for the next process, in the order in which it was
stored, even if the first was killed between two instructions (SIGKILL stops it, and undoes nothing). An aligned word of
eight bytes is stored by one instruction on all machines that relfs runs on; anything longer may be found half written.

The consequence. There is no need for a log, whose compaction would have readers wait. What is needed is that each
change takes effect with one word.

The choice. A record (Slots) has a word in front of it that says whether it is there: it is written first, and said to
be there afterwards. A value that is replaced (Cell) is written beside the old one, and then a word says which of the
two counts. A number is a word. Nobody but the present worker writes, so there are no locks.

The memory is far larger than what is used, and none of it exists before it is written to (memfd_create(2) makes sparse
files), so nothing ever has to be moved to make room.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from dataclasses import dataclass

_WORD = 8
_PAGE = 4096


class Memory:
    """A memfd, mapped. Raises OSError where it cannot be had."""

    def __init__(self, fd: int, size: int) -> None:
        """Map `size` bytes of `fd`, which is the caller's to close."""
        if os.fstat(fd).st_size < size:
            os.ftruncate(fd, size)
        self._mapped = mmap.mmap(fd, size)
        self.bytes = memoryview(self._mapped)
        self.words = self.bytes.cast("Q")

    def close(self) -> None:
        self.words.release()
        self.bytes.release()
        self._mapped.close()


def new_memory(name: str) -> int:
    """A descriptor of empty memory (memfd_create(2)), closed on exec."""
    return os.memfd_create(name, os.MFD_CLOEXEC)


@dataclass(frozen=True)
class Area:
    """A part of the memory: `size` bytes from `start` on, both whole pages."""

    start: int
    size: int

    @property
    def end(self) -> int:
        return self.start + self.size


def area(after: Area | None, size: int) -> Area:
    """An area of at least `size` bytes behind another one."""
    return Area(after.end if after is not None else 0, -(-size // _PAGE) * _PAGE)


class Slots:
    """Records of at most `size` bytes, each of which is there or is not; known by their numbers, from 1 on.

    The first word of the area is how many numbers were ever in use. A slot is a word, 0 or the record's length + 1, and
    the record.
    """

    def __init__(self, memory: Memory, where: Area, size: int) -> None:
        self._memory = memory
        self._start = where.start
        self._stride = -(-(size + _WORD) // _WORD) * _WORD
        self._capacity = where.size // self._stride - 1
        self._size = size
        self._free: list[int] | None = None

    @staticmethod
    def room(size: int, count: int) -> int:
        """Bytes that `count` records take."""
        return (count + 1) * (-(-(size + _WORD) // _WORD) * _WORD)

    def put(self, record: bytes) -> int:
        """Keep a record; its number, or 0 if there is no room for it. Contains no `await`."""
        if len(record) > self._size:
            return 0
        free = self._free_numbers()
        number = free.pop() if free else self._used + 1
        if number > self._capacity:
            return 0
        at = self._at(number) + _WORD
        self._memory.bytes[at : at + len(record)] = record
        if number > self._used:
            self._memory.words[self._start // _WORD] = number
        self._memory.words[self._at(number) // _WORD] = len(record) + 1
        return number

    def free(self, number: int) -> None:
        """Forget a record. Number 0 is none."""
        if number:
            self._memory.words[self._at(number) // _WORD] = 0
            if self._free is not None:
                self._free.append(number)

    def _free_numbers(self) -> list[int]:
        """Looked for when the first is needed: a process that maps the memory long before it writes to it, or is forked
        from one that did, knows nothing of what others did meanwhile."""
        if self._free is None:
            self._free = [number for number in range(self._used, 0, -1) if not self._mark(number)]
        return self._free

    def set_word(self, number: int, index: int, value: int) -> None:
        """Replace the record's aligned word `index`. Number 0 is none."""
        if number:
            self._memory.words[self._at(number) // _WORD + 1 + index] = value

    def get(self, number: int) -> bytes | None:
        """The record, if there is one of this number."""
        mark = self._mark(number) if 0 < number <= self._used else 0
        at = self._at(number) + _WORD
        return bytes(self._memory.bytes[at : at + mark - 1]) if mark else None

    def __iter__(self) -> Iterator[tuple[int, bytes]]:
        """All records, with their numbers."""
        for number in range(1, self._used + 1):
            record = self.get(number)
            if record is not None:
                yield number, record

    @property
    def _used(self) -> int:
        return self._memory.words[self._start // _WORD]

    def _mark(self, number: int) -> int:
        return self._memory.words[self._at(number) // _WORD]

    def _at(self, number: int) -> int:
        return self._start + number * self._stride


class Cell:
    """A value of at most half the area, replaced at once. The first word says which half counts, 0 for neither."""

    def __init__(self, memory: Memory, where: Area) -> None:
        self._memory = memory
        self._start = where.start
        self._half = (where.size - _WORD) // (2 * _WORD) * _WORD

    def store(self, value: bytes) -> None:
        """Replace the value. Raises ValueError if it is too long. Contains no `await`."""
        if len(value) > self._half - _WORD:
            raise ValueError(f"{len(value)} bytes are too many to be kept")
        which = 2 if self._which == 1 else 1
        at = self._at(which)
        self._memory.words[at // _WORD] = len(value)
        self._memory.bytes[at + _WORD : at + _WORD + len(value)] = value
        self._memory.words[self._start // _WORD] = which

    def load(self) -> bytes:
        """The value; empty if there never was one."""
        if not self._which:
            return b""
        at = self._at(self._which)
        length = self._memory.words[at // _WORD]
        return bytes(self._memory.bytes[at + _WORD : at + _WORD + length])

    @property
    def _which(self) -> int:
        return self._memory.words[self._start // _WORD]

    def _at(self, which: int) -> int:
        return self._start + _WORD + (which - 1) * self._half


class Number:
    """One number of 64 bits."""

    def __init__(self, memory: Memory, at: int) -> None:
        """`at` is its place in the memory, in bytes, a multiple of eight."""
        self._memory = memory
        self._index = at // _WORD

    @property
    def value(self) -> int:
        return self._memory.words[self._index]

    @value.setter
    def value(self, value: int) -> None:
        self._memory.words[self._index] = value
