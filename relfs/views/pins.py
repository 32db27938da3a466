"""Pins: processes that see one release until they end, whatever becomes current meanwhile.

A pin is a mark (mark.py) and what that stands for. Which processes it is for is nowhere written down: those that bear
the mark. It ends when nobody does any more, which daemon/pinning.py finds out.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from relfs.errors import RelfsError
from relfs.journal import Actor
from relfs.layout import Target
from relfs.survival.copies import read_copy
from relfs.views.mark import is_mark, mark_of

PINS = "pins"
"""The file of the state directory that has them, too (survival/copies.py)."""

_COMMAND_MAX = 1000  # characters, so that a pin has room in the ledger


@dataclass(frozen=True)
class Pin:
    """Whoever bears `mark` sees `target`. It was asked for by `actor` under `id`, at `since` (seconds since the epoch),
    for process `pid`, whose start time in clock ticks after boot is `start`; that one counts as a bearer while it
    lives: it may be about to put the mark on. `seals`: as long as it lasts, the release is sealed."""

    mark: int
    target: Target
    actor: Actor
    since: float
    id: str
    pid: int
    start: int
    seals: bool = False

    @property
    def release(self) -> str:
        return self.target.label


class Kept(Protocol):
    """Records that outlive us (survival/memory.py, Slots)."""

    def put(self, record: bytes) -> int:
        """The number of the record from now on, 0 if there is no room."""

    def free(self, number: int) -> None:
        """Forget a record."""

    def __iter__(self) -> Iterator[tuple[int, bytes]]:
        """All that there are, with their numbers."""


def pins_on_disk(directory: int) -> list[Pin]:
    """Those that the last mount knew, by its state directory (a descriptor). Nobody may bear their marks any more.
    Blocks. Raises OSError if that cannot be read."""
    return [_pin_of(record) for record in read_copy(directory, PINS, "") if is_pin(record)]


class Pins:
    """All of a mount. GUARDED BY the event loop. Nothing in here waits. INVARIANT: each is kept, under its number, and
    nothing else is."""

    def __init__(self, kept: Kept) -> None:
        """`kept` is where the next worker finds them. `on_change` is called when there is one more or less, or
        somebody may have put on the mark of one."""
        self.on_change: Callable[[], None] = lambda: None
        self._kept = kept
        self._pins: dict[int, Pin] = {}
        self._numbers: dict[int, int] = {}

    def restore(self) -> None:
        """Know those that the worker before this one knew, or the mount before this one."""
        for number, raw in self._kept:
            pin = _pin_of(raw)
            self._pins[pin.mark] = pin
            self._numbers[pin.mark] = number

    def __len__(self) -> int:
        return len(self._pins)

    def __iter__(self) -> Iterator[Pin]:
        return iter(list(self._pins.values()))

    def get(self, mark: int) -> Pin | None:
        return self._pins.get(mark)

    def of(self, tid: int) -> Pin | None:
        """That of the process of thread `tid`. One system call; none while there are no pins."""
        return self._pins.get(mark_of(tid)) if self._pins else None

    def asked_for(self, request_id: str) -> Pin | None:
        """The one that this request has led to."""
        return next((pin for pin in self._pins.values() if pin.id == request_id), None)

    def add(self, pin: Pin) -> None:
        """Raises RelfsError if there are too many."""
        number = self._kept.put(_record(pin))
        if not number:
            raise RelfsError(f"{len(self._pins)} pins are as many as there may be; `relfsctl views` lists them")
        self._pins[pin.mark] = pin
        self._numbers[pin.mark] = number
        self.on_change()

    def drop(self, mark: int) -> None:
        if self._pins.pop(mark, None) is not None:
            self._kept.free(self._numbers.pop(mark))
            self.on_change()

    def check_invariants(self) -> None:
        """For tests: raise AssertionError where the INVARIANT does not hold."""
        kept = {number: _pin_of(raw).mark for number, raw in self._kept}
        assert kept == {number: mark for mark, number in self._numbers.items()}
        assert self._numbers.keys() == self._pins.keys()


def _record(pin: Pin) -> bytes:
    command = pin.actor.command[:_COMMAND_MAX]
    return json.dumps({**asdict(pin), "actor": {**asdict(pin.actor), "command": command}}).encode("ascii")


def is_pin(record: bytes) -> bool:
    """Whether that is what is kept of a pin: whoever owns the state directory may have written it."""
    try:
        pin = _pin_of(record)
        texts = (pin.target.text, pin.release, pin.target.as_written, pin.actor.user, pin.actor.command, pin.id)
        numbers = (pin.pid, pin.start, pin.since, pin.actor.uid, pin.actor.pid)
        wrong = [*(each for each in texts if not isinstance(each, str)), *(each for each in numbers if each < 0)]
        return is_mark(pin.mark) and not wrong
    except (ValueError, TypeError, KeyError, RecursionError):
        return False


def _pin_of(record: bytes) -> Pin:
    told: dict[str, Any] = json.loads(record)
    return Pin(**{**told, "target": Target(**told["target"]), "actor": Actor(**told["actor"])})
