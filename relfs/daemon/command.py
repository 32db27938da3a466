"""How one process of relfs starts another (a fresh interpreter, with the code that is installed now), and lets go of
those that have ended.

A forked copy would do for most, but a fresh one holds no more than it needs, and sees a new version of relfs.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress

from relfs.survival.estate import Estate
from relfs.survival.memory import new_memory

ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
"""By which a process is asked to end."""

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


def reap() -> None:
    """Let go of all children of this process that have ended, whoever has started them: the code that it ran before
    become() did, or somebody whose own parent has ended, if this process is the first of a container."""
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def become(part: str, estate: Estate, baton: int) -> None:
    """Run it in this process, and let it keep the estate, and the baton (member.py). Raises OSError, or never
    returns."""
    held = dict(estate)
    told = new_memory("relfs-estate")
    os.write(told, json.dumps(held).encode("ascii"))
    kept = (*held.values(), baton, told)
    for fd in kept:
        os.set_inheritable(fd, True)
    command = start_command(part, str(told), str(baton))
    signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)  # they wait for whoever handles them next
    try:
        os.execv(command[0], command)
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)
        for fd in kept:
            os.set_inheritable(fd, False)
        os.close(told)


def estate_of(told: int) -> Estate:
    """The estate that become() let this process keep."""
    estate = Estate()
    with open(told, "rb") as file:
        file.seek(0)
        for name, fd in json.loads(file.read()).items():
            os.set_inheritable(fd, False)
            estate.put(name, fd)
    return estate
