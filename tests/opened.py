"""What a process has open, as /proc tells it (proc(5)): it goes on opening and closing while it is looked at."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path


def opened_by(pid: int | None) -> list[str]:
    """What each descriptor of a process leads to: a path, or the likes of `socket:[4711]`.

    Raises FileNotFoundError if there is no such process.
    """
    found = []
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found.append(os.readlink(descriptor))
    return found
