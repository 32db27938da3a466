"""Starting in the background: the command returns once the mount answers, with the status that this deserves.

Forking happens before anything heavy is imported, and before there is a thread.
"""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Callable

from relfs.errors import EXIT_FAILED, RelfsError, error_for

Ready = Callable[[], None]


def run_in_background(body: Callable[[Ready], int]) -> int:
    """Run `body` in a process of its own session. Returns 0 once it calls its argument.

    Raises the RelfsError that `body` raised there, or one that says that it ended before.
    """
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        _be_child(body, writing)
    os.close(writing)
    return _wait_for(pid, reading)


def _be_child(body: Callable[[Ready], int], writing: int) -> None:
    """Never returns."""
    status = EXIT_FAILED
    answer = _Answer(writing)
    try:
        os.setsid()
        os.chdir("/")
        nowhere = os.open(os.devnull, os.O_RDWR)
        for fd in range(3):
            os.dup2(nowhere, fd)
        status = body(lambda: answer.give("ready"))
    except RelfsError as error:
        status = error.status
        answer.give(str(error))
    except BaseException as error:
        logging.getLogger(__name__).exception("ended by an error")
        answer.give(f"{type(error).__name__}: {error}")
    finally:
        logging.shutdown()  # which os._exit() leaves out
        os._exit(status)


class _Answer:
    """What the command that waits is told, once: its descriptor is somebody else's afterwards."""

    def __init__(self, writing: int) -> None:
        self._writing: int | None = writing

    def give(self, text: str) -> None:
        if self._writing is not None:
            os.write(self._writing, os.fsencode(text))
            os.close(self._writing)
            self._writing = None


def _wait_for(pid: int, reading: int) -> int:
    def end(number: int, _frame: object) -> None:
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, end)
    try:
        with open(reading, "rb") as pipe:
            said = pipe.read()
        if said == b"ready":
            return 0
        _, status = os.waitpid(pid, 0)
    except BaseException:  # Ctrl-C, or told to end: then it shall not be mounted later, behind our back
        os.kill(pid, signal.SIGTERM)
        os.waitpid(pid, 0)
        raise
    exit_status = os.waitstatus_to_exitcode(status) if os.WIFEXITED(status) else EXIT_FAILED
    raise error_for(exit_status, os.fsdecode(said.removeprefix(b"ready")) or "ended without a word")
