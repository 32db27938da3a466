"""Starting in the background: the command returns once the mount answers, with the status that this deserves.

Forking happens before anything heavy is imported, and before there is a thread.
"""

from __future__ import annotations

import logging
import logging.handlers
import os
import signal
import sys
from collections.abc import Callable
from io import TextIOWrapper

from relfs.errors import EXIT_FAILED, RelfsError, error_for, reason
from relfs.names import STATE

LOG = "log"

_LOG_BYTES = 1 << 20
_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"

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


def log_to_stderr() -> None:
    """For the foreground, where a terminal or a service manager listens."""
    logging.basicConfig(level=logging.INFO, format=_FORMAT, stream=sys.stderr)


def log_to_state(state_fd: int) -> None:
    """To `.relfs/log`, of at most twice a megabyte. By descriptor: the path may lead through the mount by now.

    Raises RelfsError if that cannot be written.
    """
    try:
        handler = _LogFile(f"/proc/self/fd/{state_fd}/{LOG}", maxBytes=_LOG_BYTES, backupCount=1)
    except OSError as error:
        raise RelfsError(f"{STATE}/{LOG}: cannot be written: {reason(error)}") from error
    handler.setFormatter(logging.Formatter(_FORMAT))
    logging.basicConfig(level=logging.INFO, handlers=[handler])


class _LogFile(logging.handlers.RotatingFileHandler):
    """Made with a mode of its own, since the daemon's umask is 0."""

    def _open(self) -> TextIOWrapper:
        def opener(path: str, flags: int) -> int:
            return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o640)  # a fifo would keep us waiting

        return open(self.baseFilename, "a", encoding="utf-8", errors="backslashreplace", opener=opener)
