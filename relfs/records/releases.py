"""What releases tell of themselves, and which of them relfs would go back to."""

from __future__ import annotations

import os
from collections.abc import Iterator

from relfs.history import History, ways_back_among
from relfs.layout import RELEASES, DeployPath
from relfs.records import files

REVISION = "REVISION"
"""Where Deployer and Capistrano write which commit a release was made from."""

_REVISION_MAX = 100  # characters; a commit takes 40 or 64


def revision(deploy: DeployPath, name: str) -> str | None:
    """The first line of the release's REVISION, if there is one; bytes that are no text as os.fsdecode() has them."""
    try:
        with files.below(deploy.fd, RELEASES, name) as directory:
            contents = files.read_start(directory, REVISION, _REVISION_MAX)
    except OSError:
        return None
    line = contents.partition(b"\n")[0].strip() if contents is not None else b""
    return os.fsdecode(line) or None


def ways_back(deploy: DeployPath, history: History, current: str | None) -> Iterator[str]:
    """The releases that going back again and again leads to. Raises RelfsError if there is no telling which exist."""
    return ways_back_among(history, current, (each.name for each in deploy.releases() if deploy.is_good(each.name)))
