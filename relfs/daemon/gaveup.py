"""The note that a supervisor leaves when nobody could serve a mount: `.relfs/gave-up`, until it is mounted again."""

from __future__ import annotations

import os
import time
from contextlib import suppress

_NOTE = "gave-up"
_NOTE_MAX = 4096


def note_giving_up(state_fd: int, words: str) -> None:
    """Leave it, if that can be: the log has it as well."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    with suppress(OSError):
        fd = os.open(_NOTE, flags, 0o644, dir_fd=state_fd)
        try:
            os.write(fd, os.fsencode(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {words}\n"))
        finally:
            os.close(fd)


def forget_giving_up(state_fd: int) -> None:
    """It is being mounted again."""
    with suppress(OSError):
        os.unlink(_NOTE, dir_fd=state_fd)


def gave_up(state_fd: int) -> str | None:
    """When, and why; None if nobody did."""
    try:
        fd = os.open(_NOTE, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=state_fd)
    except OSError:
        return None
    try:
        return os.fsdecode(os.read(fd, _NOTE_MAX)).strip()
    except OSError:
        return None
    finally:
        os.close(fd)
