"""What must hold of a release before it becomes current, whoever makes it so: relfsctl, or a tool that swaps the link.

That a target exists and is a directory goes without saying. The rest is for `.relfs/config.toml` to say; by default
refused is only what can serve nobody: an empty directory, and one whose own deploy tool says that it is not all there.
Hooks, which ask somebody else, are in hooks.py.
"""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass

from relfs.errors import RefusedError
from relfs.layout import UNFINISHED_MARKER, DeployPath, find_marker, is_empty


@dataclass(frozen=True)
class Checks:
    """Which checks apply. `unfinished` are the names, in a release, that say that its deployment has not ended."""

    empty: bool = True
    unfinished: tuple[str, ...] = (UNFINISHED_MARKER,)
    bad: bool = False


def check_content(deploy: DeployPath, text: str, checks: Checks) -> None:
    """Refuse a link that says `text` for what the directory that it leads to holds, or does not hold.

    Raises OSError as the look at it does (ENOENT, ENOTDIR, ...); RefusedError with ENODATA for an empty directory,
    with EBUSY for an unfinished one. May hang where the target's file system does.
    """
    directory = deploy.open_target(text)
    try:
        if checks.empty and is_empty(directory):
            raise RefusedError(f"{text}: is an empty directory", errno.ENODATA)
        marker = find_marker(directory, checks.unfinished)
    finally:
        os.close(directory)
    if marker is not None:
        raise RefusedError(f"{text}: is unfinished: it holds {marker}", errno.EBUSY)
