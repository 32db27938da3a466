"""Requests in shared memory: what a worker leaves is what the next one finds, whatever instruction it was killed at."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator

import pytest

from relfs.survival.memory import Memory, area, new_memory
from relfs.survival.requests import COUNT, PAYLOAD_MAX, Requests

PAGE = 4096


def request(unique: int, body: bytes = b"") -> bytes:
    return struct.pack("=IIQQIIII", 40 + len(body), 16, unique, 1, 0, 0, 77, 0) + body


@pytest.fixture
def memory() -> Iterator[int]:
    fd = new_memory("relfs-test")
    yield fd
    os.close(fd)


def worker(memory: int) -> Requests:
    """What the next worker sees."""
    where = area(None, Requests.room())
    return Requests(Memory(memory, where.end), where)


def keep(requests: Requests, raw: bytes) -> int:
    slot = requests.reserve()
    assert slot is not None
    requests.buffer(slot)[: len(raw)] = raw
    return slot


def test_what_was_read_is_found_by_the_next_worker(memory: int) -> None:
    first = worker(memory)
    slot = keep(first, request(6, b"x" * 9))
    keep(first, request(4, b"y" * PAYLOAD_MAX))
    second = worker(memory)
    assert [bytes(second[each]) for each in second.left()] == [request(4, b"y" * PAYLOAD_MAX), request(6, b"x" * 9)]
    second.free(slot)
    assert [bytes(second[each])[8] for each in worker(memory).left()] == [4]


def test_a_slot_that_was_prepared_and_not_read_into_is_free(memory: int) -> None:
    first = worker(memory)
    first.reserve()
    assert worker(memory).left() == []
    assert worker(memory).reserve() == 0


def test_slots_are_used_again_and_do_run_out(memory: int) -> None:
    requests = worker(memory)
    taken = [keep(requests, request(2 * each + 2)) for each in range(COUNT)]
    assert len(set(taken)) == COUNT
    assert requests.reserve() is None
    requests.free(taken[5])
    assert requests.reserve() == taken[5]


@pytest.mark.parametrize("size", [1, PAGE - 40, PAGE - 39, 5000, PAYLOAD_MAX - 40, PAYLOAD_MAX])
def test_a_request_that_was_not_read_to_its_end_is_none(memory: int, size: int) -> None:
    """The kernel copies a page at a time; the last may be missing."""
    whole = request(2, b"z" * size)
    pages = -(-len(whole) // PAGE)
    for copied in range(1, pages + 1):
        requests = worker(memory)
        slot = keep(requests, whole[: copied * PAGE])
        assert worker(memory).left() == ([slot] if copied == pages else [])
        worker(memory).free(slot)


def test_what_was_in_a_slot_before_does_not_pass_for_a_whole_request(memory: int) -> None:
    requests = worker(memory)
    requests.free(keep(requests, request(2, b"old" * 20_000)))
    keep(requests, request(4, b"new" * 20_000)[:PAGE])
    following = worker(memory)
    assert following.left() == []
    assert following.reserve() == 0


def test_a_reply_on_the_desk_outlives_its_worker_until_it_is_cleared(memory: int) -> None:
    first = worker(memory)
    assert first.laid_down() is None
    first.desk[:5] = b"reply"
    assert worker(memory).laid_down() is None
    first.lay_down(5)
    assert bytes(worker(memory).laid_down() or b"") == b"reply"
    worker(memory).clear_desk()
    assert first.laid_down() is None


def test_suspicion_is_counted_across_workers_and_ends_with_the_request(memory: int) -> None:
    slot = keep(worker(memory), request(2))
    assert [worker(memory).accuse(slot) for _ in range(3)] == [1, 2, 3]
    worker(memory).acquit(slot)
    last = worker(memory)
    assert last.accuse(slot) == 1
    last.free(slot)
    assert keep(last, request(4)) == slot
    assert last.accuse(slot) == 1
