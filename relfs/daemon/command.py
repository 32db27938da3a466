"""How one process of relfs starts another: a fresh interpreter, with the code that is installed now.

A forked copy would do for most, but a fresh one holds no more than it needs, and sees a new version of relfs.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence

_BOOT = "import sys; sys.path.insert(0, sys.argv.pop(1)); from relfs.daemon.start import main; main()"
_ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def start_command(part: str, *arguments: str) -> list[str]:
    """The command that runs a `part` (start.py). It finds this very relfs, and nothing in the working directory."""
    return [sys.executable, "-P", "-c", _BOOT, _ROOT, f"relfs-{part}", *arguments]


def start(part: str, *arguments: str, fds: Sequence[int]) -> subprocess.Popen[bytes]:
    """Run it, in a session of its own, with these descriptors besides the standard ones. Raises OSError."""
    return subprocess.Popen(
        start_command(part, *arguments), pass_fds=fds, stdin=subprocess.DEVNULL, cwd="/", start_new_session=True
    )
