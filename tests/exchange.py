"""A deploy tool that keeps two links and exchanges them: renameat2(2), RENAME_EXCHANGE. Run by test_replacement.py as
`exchange.py DEPLOY_PATH SWAPS`; releases 41 and 40 by turns.
"""

from __future__ import annotations

import ctypes
import os
import sys

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


def _exchange(first: str, second: str) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    names = (_AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second))
    if libc.renameat2(*names, ctypes.c_uint(_RENAME_EXCHANGE)) != 0:
        raise OSError(ctypes.get_errno(), "renameat2")


def main(deploy_path: str, swaps: int) -> None:
    """Check after each swap that both names say what the other said."""
    current, other = f"{deploy_path}/current", f"{deploy_path}/other"
    os.symlink("releases/41", other)
    for number in range(swaps):
        before = (os.readlink(current), os.readlink(other))
        _exchange(other, current)
        assert (os.readlink(other), os.readlink(current)) == before, f"swap {number}"
    os.unlink(other)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
