"""What releases tell of themselves, and which of them relfs would go back to."""

from __future__ import annotations

import os
from collections.abc import Iterator

from relfs.history import History, ways_back_among
from relfs.layout import RELEASES, DeployPath
from relfs.records import files

REVISION = "REVISION"
"""Where Deployer and Capistrano write which commit a release was made from."""

REVISION_TIME = "REVISION_TIME"
"""Where Capistrano, since 3.8, writes when that commit was made, in seconds since the epoch."""

_LINE_MAX = 100  # bytes; a commit takes 40 or 64
_TIME_DIGITS = 12


def revision(deploy: DeployPath, name: str) -> str | None:
    """The first line of the release's REVISION, if there is one; bytes that are no text as os.fsdecode() has them."""
    return os.fsdecode(_first_line(deploy, name, REVISION)) or None


def revision_time(deploy: DeployPath, name: str) -> int | None:
    """What the release's REVISION_TIME tells, if it is a time."""
    line = _first_line(deploy, name, REVISION_TIME)
    return int(line) if line.isdigit() and len(line) <= _TIME_DIGITS else None


def _first_line(deploy: DeployPath, name: str, file: str) -> bytes:
    try:
        with files.below(deploy.fd, RELEASES, name) as directory:
            contents = files.read_start(directory, file, _LINE_MAX)
    except OSError:
        return b""
    return contents.partition(b"\n")[0].strip() if contents is not None else b""


def ways_back(deploy: DeployPath, history: History, current: str | None) -> Iterator[str]:
    """The releases that going back again and again leads to. Raises RelfsError if there is no telling which exist."""
    return ways_back_among(history, current, (each.name for each in deploy.releases() if deploy.is_good(each.name)))
