"""Records of the ledger that are copied to the disk as well, for the next mount (survival/copies.py).

When a copy is written
----------------------
Some facts. Who sees a canary is decided in a lookup, and a disk may be full, slow or frozen. There may be 100,000
decisions, and a hundred new ones in a second, each of which has all of the file written again.

The consequence. No lookup waits for the disk. So there is a moment in which something holds already and is not in the
file; what was decided in the last moment before everything was killed at once, is decided anew.

The choice. Writing begins as soon as there is something new, on a thread; then nothing is written for nine times as
long as that took. So the moment is a few milliseconds long where there is little to write, and writing never takes more
than a tenth of one processor. Who has promised something to somebody (a pin) does not wait for the pause, and is told
when it is written.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator

import trio

from relfs.errors import reason
from relfs.layout import DeployPath
from relfs.survival.copies import read_copy, write_copy
from relfs.threads import in_thread
from relfs.views.pins import Kept

_log = logging.getLogger(__name__)

_REST = 9
_PATIENCE_SECONDS = 2.0


class Copied:
    """Is `Kept`, and in a file. GUARDED BY the event loop: everything."""

    def __init__(
        self, kept: Kept, deploy: DeployPath, name: str, is_one: Callable[[bytes], bool],
        about: Callable[[], str] = lambda: "",
    ) -> None:  # fmt: skip
        """The copy of what is in `kept` is file `name` of the state directory. A record there counts if it `is_one`,
        and as long as it is `about` the same."""
        self._kept = kept
        self._deploy = deploy
        self._name = name
        self._is_one = is_one
        self._about = about
        self._records = dict(kept)
        self._changed = trio.Event()
        self._urgent = trio.Event()
        self._written = trio.Event()
        self._trouble: str | None = None

    def put(self, record: bytes) -> int:
        number = self._kept.put(record)
        if number:
            self._records[number] = record
            self.write_again()
        return number

    def free(self, number: int) -> None:
        self._kept.free(number)
        if self._records.pop(number, None) is not None:
            self.write_again()

    def __iter__(self) -> Iterator[tuple[int, bytes]]:
        return iter(list(self._records.items()))

    async def load(self) -> None:
        """Begin with what is in the file, if it is about the same: for the first worker of a mount."""
        try:
            records = await in_thread(read_copy, self._state, self._name, self._about())
        except OSError as error:
            _log.warning("%s/%s: cannot be read: %s", self._deploy.state_path, self._name, reason(error))
            return
        for record in filter(self._is_one, records):
            self.put(record)

    def write_again(self) -> None:
        """The file says something else, or may be gone."""
        self._changed.set()

    async def written(self) -> None:
        """Return when what is kept now is in the file; or cannot be written, or not soon: it holds all the same."""
        self._urgent.set()
        self._changed.set()
        with trio.move_on_after(_PATIENCE_SECONDS):
            await self._written.wait()

    async def run(self) -> None:
        """Write it whenever something has changed. Never returns."""
        while True:
            await self._changed.wait()
            began = trio.current_time()
            await self._write()
            with trio.move_on_after(_REST * (trio.current_time() - began)):
                await self._urgent.wait()

    async def _write(self) -> None:
        self._changed, self._urgent = trio.Event(), trio.Event()
        written, self._written = self._written, trio.Event()
        before, self._trouble = self._trouble, await in_thread(
            self._try, self._about(), list(self._records.values()), abandon_on_cancel=True
        )  # fmt: skip
        if self._trouble is not None and self._trouble != before:  # a disk that stays full is said once
            _log.warning(
                "%s/%s: cannot be written, so the next mount will not know of it: %s",
                self._deploy.state_path, self._name, self._trouble,
            )  # fmt: skip
        written.set()

    def _try(self, about: str, records: list[bytes]) -> str | None:
        """Why it cannot be written. Runs on a thread."""
        try:
            write_copy(self._state, self._name, about, records)
        except OSError as error:
            return reason(error)
        return None

    @property
    def _state(self) -> int:
        assert self._deploy.state_fd is not None
        return self._deploy.state_fd
