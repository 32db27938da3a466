"""Messages with descriptors."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator

import pytest

from relfs.survival.channel import Channel, channel_of, pair
from relfs.survival.estate import Estate


@pytest.fixture
def ends() -> Iterator[tuple[Channel, Channel]]:
    one, other = pair()
    yield one, other
    one.close()
    other.close()


def open_descriptors() -> set[str]:
    gc.collect()  # what other tests have left
    return set(os.listdir("/proc/self/fd"))


def test_a_message_carries_values_and_descriptors(ends: tuple[Channel, Channel]) -> None:
    reading, writing = os.pipe()
    ends[0].send("keep", writing, name="n\udcff")
    os.close(writing)
    message = ends[1].receive()
    assert message is not None
    assert (message.kind, message.values) == ("keep", {"name": "n\udcff"})
    os.write(message.fds[0], b"x")
    assert os.read(reading, 9) == b"x"
    assert not os.get_inheritable(message.fds[0])
    message.close()
    assert os.read(reading, 9) == b"", "no copy is left"
    os.close(reading)


def test_nothing_there_and_nobody_there(ends: tuple[Channel, Channel]) -> None:
    with pytest.raises(BlockingIOError):
        ends[0].receive()
    ends[1].send("last")
    ends[1].close()
    message = ends[0].receive()
    assert message is not None
    assert message.kind == "last"
    assert ends[0].receive() is None
    with pytest.raises(ConnectionError):
        ends[0].send("anybody?")


def test_what_there_is_no_room_for_is_owed(ends: tuple[Channel, Channel]) -> None:
    """A supervisor that is stopped must not stop the worker; all arrives, in order, once it goes on."""
    before = open_descriptors()
    null = os.open(os.devnull, os.O_RDONLY)
    for number in range(2000):
        ends[0].send("keep", null, number=number)
    assert not ends[0].flush()
    numbers: list[int] = []
    while len(numbers) < 2000:
        message = ends[1].receive()
        assert message is not None
        numbers.append(message.values["number"])
        message.close()
        ends[0].flush()
    assert numbers == list(range(2000))
    os.close(null)
    assert open_descriptors() == before


def test_an_end_that_is_closed_owes_nothing() -> None:
    before = open_descriptors()
    null = os.open(os.devnull, os.O_RDONLY)
    one, other = pair()
    for _ in range(2000):
        one.send("keep", null)
    one.close()
    other.close()
    os.close(null)
    assert open_descriptors() == before


def test_what_is_under_way_lives_in_the_pair() -> None:
    """The inbox: whoever left a message may die, and so may whoever it was for."""
    one, other = pair()
    kept = os.dup(other.fileno())
    one.send("join", role="worker")
    one.close()
    other.close()
    message = channel_of(kept).receive()
    assert message is not None
    assert message.values == {"role": "worker"}


def test_an_estate_closes_what_it_holds() -> None:
    before = open_descriptors()
    estate = Estate()
    for _ in range(2):
        estate.put("file.1", os.open(os.devnull, os.O_RDONLY))
    estate.put("lock", os.open(os.devnull, os.O_RDONLY))
    assert ("lock" in estate, "nothing" in estate) == (True, False)
    estate.drop("nothing")
    os.close(estate.take("lock"))
    assert [name for name, _ in estate] == ["file.1"]
    estate.close()
    assert open_descriptors() == before
