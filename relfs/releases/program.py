"""Running a module of relfs as a program of its own: this very relfs, wherever it is, and nothing that the working
directory or the environment offer instead."""

from __future__ import annotations

import os
import sys

_BOOT = "import sys; sys.path.insert(0, sys.argv.pop(1)); from {} import main; main()"
_ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def program(module: str, *arguments: str) -> list[str]:
    """The command that calls `main()` of `module`."""
    return [sys.executable, "-P", "-c", _BOOT.format(module), _ROOT, *arguments]
