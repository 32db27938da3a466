"""The note that a supervisor leaves when nobody could serve a mount: `.relfs/gave-up`, until it is mounted again."""

from __future__ import annotations

import os
import time
from contextlib import suppress

from relfs.beneath import open_file, read_file

_NOTE = "gave-up"
_NOTE_MAX = 4096


def note_giving_up(state_fd: int, words: str) -> None:
    """Leave it, if that can be: the log has it as well."""
    with suppress(OSError):
        fd = open_file(state_fd, _NOTE, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
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
        return os.fsdecode(read_file(state_fd, _NOTE, _NOTE_MAX)).strip()
    except OSError:
        return None
