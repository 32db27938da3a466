"""Who uses a release, asked by a daemon: in a process of its own.

Looking at all processes and walking trees of releases takes Python's lock from the event loop for seconds, and may hang
where a file system does. The process has what the worker has of privileges (privileges.py), and its descriptor of the
covered directory.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Collection

from relfs.errors import RelfsError
from relfs.layout import DeployPath
from relfs.releases.inuse import Uses, uses_of
from relfs.releases.program import program

_SECONDS = 120.0


def ask_who_uses(deploy: DeployPath, names: Collection[str], but: Collection[int]) -> Uses:
    """See inuse.who_uses(). Blocks. Raises RelfsError."""
    question = {"path": deploy.path, "fd": deploy.fd, "releases": list(names), "but": list(but)}
    try:
        done = subprocess.run(
            program("relfs.releases.inuse"),
            input=json.dumps(question), capture_output=True, text=True,
            pass_fds=[deploy.fd], cwd="/", check=True, timeout=_SECONDS,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError) as error:
        raise RelfsError(f"{deploy.path}: there is no telling who uses its releases: {_why(error)}") from error
    return uses_of(json.loads(done.stdout))


def _why(error: Exception) -> str:
    if isinstance(error, subprocess.CalledProcessError):
        return str(error.stderr).strip().rpartition("\n")[2]
    return "a file system does not answer" if isinstance(error, subprocess.TimeoutExpired) else str(error)
