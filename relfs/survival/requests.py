"""Requests of the kernel that outlive the worker which has read them. No call to the kernel's FUSE is made here;
fuse/relay.py does that.

A request that is never torn
----------------------------
Some facts. A read of /dev/fuse that has begun is finished whatever signal came, with one exception: where a page of the
buffer is missing, or cannot be written yet, and the process is to die, get_user_pages() fails. The kernel then answers
the request by itself, with EIO (fuse_dev_do_read(), fuse_copy_fill() in fs/fuse/dev.c). It copies in order, a page at a
time, the header first; and a request's first field, its length, is never 0.

The consequence. The kernel itself can mark a slot as taken, by the very copy that fills it, with no moment in between.

The choice. A slot is taken exactly if its first word is not 0. Before each read, one store a page makes every page
present and writable, and leaves a mark there that the request will overwrite: a request whose last page still bears the
mark was not read to its end, and the kernel has answered it. A slot is freed by one store of 0. What the kernel is to
be answered is laid on one desk, shared likewise, before it is sent: a worker that finds it there sends it again, and
the kernel takes it, or knows that it has it (ENOENT). So nothing that was answered is ever done again.
"""

from __future__ import annotations

import heapq
from array import array
from struct import unpack_from

from relfs.survival.memory import Area, Memory, Number

COUNT = 128
"""More than the 99 requests that pyfuse3 serves at a time."""

PAYLOAD_MAX = 1 << 16
"""Bytes of a file in one request or reply, to be negotiated; fuse/relay.py tells why."""

_REPLY_MAX = 1 << 20  # more than was ever negotiated; what is never written to takes no memory

_WORD = 8
_PAGE = 4096  # where pages are larger, so is what a store makes present
_WORDS = _PAGE // _WORD
_SLOT = PAYLOAD_MAX + _PAGE  # the kernel refuses to be read with less than max_write and two headers
_MARK = int.from_bytes(b"unread\xfb\xfe", "little")
_MARKS = array("Q", [0] + [_MARK] * (_SLOT // _PAGE - 1))
_UNIQUE_AT = 8


class Requests:
    """The slots, numbered from 0, and the desk.

    GUARDED BY the event loop of the one worker that uses it.
    INVARIANT: `_free` has the slots whose first word is 0, but for the one that reserve() has given out.
    """

    def __init__(self, memory: Memory, where: Area) -> None:
        self._bytes = memory.bytes
        self._words = memory.words
        self._on_desk = Number(memory, where.start)
        self._tries = where.start // _WORD + 1
        self._desk = where.start + _PAGE
        self._first = self._desk + _REPLY_MAX
        self._free = [slot for slot in range(COUNT) if not self._words[self._word(slot)]]

    @staticmethod
    def room() -> int:
        """Bytes that all this takes."""
        return _PAGE + _REPLY_MAX + COUNT * _SLOT

    # ---- requests

    def reserve(self) -> int | None:
        """The lowest free slot, to be read into; None if all are taken. What is read takes it; free() gives it back."""
        if not self._free:
            return None
        slot = heapq.heappop(self._free)
        self._words[self._tries + slot] = 0
        word = self._word(slot)
        self._words[word : word + len(_MARKS) * _WORDS : _WORDS] = memoryview(_MARKS)
        return slot

    def buffer(self, slot: int) -> memoryview:
        """Where to read to."""
        at = self._at(slot)
        return self._bytes[at : at + _SLOT]

    def __getitem__(self, slot: int) -> memoryview:
        """The request in a slot that is taken."""
        at = self._at(slot)
        (length,) = unpack_from("=I", self._bytes, at)
        return self._bytes[at : at + length]

    def free(self, slot: int) -> None:
        """Nobody needs this request any more."""
        self._words[self._word(slot)] = 0
        heapq.heappush(self._free, slot)

    def left(self) -> list[int]:
        """The slots with what a dead worker has not answered, in the order in which the kernel had numbered it. What
        that was not given whole is freed: the kernel has answered it."""
        taken = [slot for slot in range(COUNT) if self._words[self._word(slot)]]
        whole = [slot for slot in taken if self._is_whole(slot)]
        for slot in set(taken) - set(whole):
            self.free(slot)
        return sorted(whole, key=lambda slot: self._words[self._word(slot) + _UNIQUE_AT // _WORD])

    def _is_whole(self, slot: int) -> bool:
        last_page = (len(self[slot]) - 1) // _PAGE
        return not last_page or self._words[self._word(slot) + last_page * _WORDS] != _MARK

    # ---- suspicion

    def accuse(self, slot: int) -> int:
        """Count one more worker that has died while it had this request; how many in a row that makes."""
        self._words[self._tries + slot] += 1
        return self._words[self._tries + slot]

    def acquit(self, slot: int) -> None:
        """It has been seen that workers survive this request."""
        self._words[self._tries + slot] = 0

    # ---- the reply that is being sent

    @property
    def desk(self) -> memoryview:
        """Where to receive a reply."""
        return self._bytes[self._desk : self._desk + _REPLY_MAX]

    def lay_down(self, length: int) -> None:
        """So many bytes on the desk are a whole reply, which is going to be sent."""
        self._on_desk.value = length

    def laid_down(self) -> memoryview | None:
        """The reply that is being sent, or that a dead worker may have sent or not."""
        length = self._on_desk.value
        return self._bytes[self._desk : self._desk + length] if length else None

    def clear_desk(self) -> None:
        """It has been sent, and its request freed."""
        self._on_desk.value = 0

    def _at(self, slot: int) -> int:
        return self._first + slot * _SLOT

    def _word(self, slot: int) -> int:
        return self._at(slot) // _WORD
