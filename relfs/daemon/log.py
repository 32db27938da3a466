"""Where a daemon's log goes: standard error in the foreground, `.relfs/log` in the background."""

from __future__ import annotations

import logging
import logging.handlers
import os
import sys
from io import TextIOWrapper

from relfs.errors import RelfsError, reason
from relfs.names import STATE

LOG = "log"

_LOG_BYTES = 1 << 20
_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


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
