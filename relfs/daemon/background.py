"""Starting in the background: the command returns once the mount answers, with the status that this deserves.

The mount's own processes are fresh ones (command.py), of a session of their own; the command waits at the end of a
pipe. In the foreground there is nobody who waits, and the command itself becomes the first of them.
"""

from __future__ import annotations

import os
import signal
import sys

from relfs.daemon.command import start_command
from relfs.daemon.plan import Plan, as_text
from relfs.errors import EXIT_FAILED, error_for

_READY = b"ready"


def run_in_foreground(plan: Plan) -> None:
    """Become the supervisor of the mount. Never returns. Raises OSError.

    Ctrl-C waits until that has its modules, and can end without a traceback (start.py).
    """
    command = start_command("mount", as_text(plan), "")
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        os.execv(command[0], command)
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])


def run_in_background(plan: Plan) -> int:
    """Have it mounted by processes of their own. Returns 0 once it answers.

    Raises the RelfsError that was met there, or one that says that it ended before.
    """
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        _be_supervisor(plan, writing)
    os.close(writing)
    return _wait_for(pid, reading)


def _be_supervisor(plan: Plan, writing: int) -> None:
    """Never returns."""
    try:
        os.setsid()
        os.chdir("/")
        nowhere = os.open(os.devnull, os.O_RDWR)
        for fd in range(3):
            os.dup2(nowhere, fd)
        os.set_inheritable(writing, True)
        command = start_command("mount", as_text(plan), str(writing))
        os.execv(command[0], command)
    except BaseException as error:
        os.write(writing, os.fsencode(f"{type(error).__name__}: {error}"))
    finally:
        os._exit(EXIT_FAILED)


class Answer:
    """What whoever waits for the mount is told, once: by the pipe, or on standard error if nobody waits at one."""

    def __init__(self, writing: int | None) -> None:
        self._writing = writing
        if writing is not None:
            os.set_inheritable(writing, False)

    def ready(self) -> None:
        """The mount answers."""
        if self._writing is not None:
            self._say(_READY)

    def fail(self, text: str) -> None:
        """It does not, and why."""
        if self._writing is not None:
            self._say(os.fsencode(text))
        else:
            print(f"relfs: {text}", file=sys.stderr, flush=True)

    def _say(self, words: bytes) -> None:
        """The descriptor is somebody else's afterwards."""
        if self._writing is None:
            return
        try:
            os.write(self._writing, words)
        except BrokenPipeError:  # whoever waited was killed
            pass
        os.close(self._writing)
        self._writing = None


def _wait_for(pid: int, reading: int) -> int:
    def end(number: int, _frame: object) -> None:
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, end)
    try:
        with open(reading, "rb") as pipe:
            said = pipe.read()
        if said == _READY:
            return 0
        _, status = os.waitpid(pid, 0)
    except BaseException:  # Ctrl-C, or told to end: then it shall not be mounted later, behind our back
        os.kill(pid, signal.SIGTERM)
        os.waitpid(pid, 0)
        raise
    exit_status = os.waitstatus_to_exitcode(status) if os.WIFEXITED(status) else EXIT_FAILED
    raise error_for(exit_status, os.fsdecode(said.removeprefix(_READY)) or "ended without a word")
