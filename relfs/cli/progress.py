"""A line on the terminal that tells how far something has come, how fast, and how long it will take. Nothing in a pipe.

It is written over itself on standard error, and gone when it is done, so that the answer stands alone.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Protocol

from relfs.cli.output import size

if TYPE_CHECKING:
    from relfs.releases.workers import Progress

_EVERY_SECONDS = 0.1
_A_FILE = 1 << 14
"""As many bytes take about as long as a file's being a file does."""

_BAR = 20


class Tell(Protocol):
    def __call__(self, progress: Progress, /) -> None: ...


@contextmanager
def progress_line(what: str) -> Iterator[Tell]:
    """Gives what to tell how far it is; `what` is written in front."""
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    line = _Line(what)
    try:
        yield line.tell
    finally:
        line.clear()


class _Line:
    def __init__(self, what: str) -> None:
        self._what = what
        self._start = time.monotonic()
        self._next = 0.0

    def tell(self, progress: Progress) -> None:
        now = time.monotonic()
        if now >= self._next:
            self._next = now + _EVERY_SECONDS
            _write(progress_text(self._what, progress, now - self._start))

    def clear(self) -> None:
        _write("")


def progress_text(what: str, progress: Progress, seconds: float) -> str:
    """What the line says after so many seconds. Without a total there is no bar, and no remaining time."""
    rate = size(int(progress.bytes / seconds)) if seconds > 0 else "0 B"
    done = f"{progress.files:,} files, {size(progress.bytes)}, {rate}/s"
    share = _share(progress)
    if share is None:
        return f"{what}  {done}"
    bar = "#" * int(share * _BAR)
    left = f", {_duration(seconds / share - seconds)} left" if share > 0 else ""
    return f"{what}  [{bar:<{_BAR}}] {share:4.0%}  {done}{left}"


def _share(progress: Progress) -> float | None:
    if progress.files_total is None or progress.bytes_total is None:
        return progress.share
    total = progress.files_total * _A_FILE + progress.bytes_total
    return min((progress.files * _A_FILE + progress.bytes) / total, 1.0) if total else 1.0


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds + 0.5), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}" if minutes >= 60 else f"{minutes}:{rest:02}"


def _write(text: str) -> None:
    """No wider than the terminal: a line that goes on below cannot be written over. The terminal may have been closed
    meanwhile, which is no reason to stop."""
    try:
        width = os.get_terminal_size(sys.stderr.fileno()).columns or 80
    except OSError:
        width = 80
    with suppress(OSError):
        sys.stderr.write(f"\r{text[: width - 1]}\x1b[K")
        sys.stderr.flush()
