"""Accepting connections, for as long as there is a listener, whatever accept(2) has to say about it.

trio.serve_listeners() ends at an error that it does not know (a security module's EPERM, a client that has gone again),
and logs one that says that there are no descriptors ten times a second.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable

import trio

from relfs.errors import reason

_log = logging.getLogger(__name__)

_NO_ROOM = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_PAUSE = 0.05
_PAUSE_MAX = 1.0


class Acceptor:
    """GUARDED BY the event loop. `trouble` tells why connections have to wait now; None: they do not."""

    def __init__(self, listener: trio.SocketListener) -> None:
        self.trouble: str | None = None
        self._listener = listener

    async def run(self, serve: Callable[[trio.SocketStream], None]) -> None:
        """Give every connection to `serve`, which takes it over. Ends when the listener is closed, or with its task."""
        pause = _PAUSE
        while True:
            try:
                stream = await self._listener.accept()
            except trio.ClosedResourceError:
                return
            except OSError as error:
                if error.errno in _NO_ROOM:
                    self._note(error)
                    await trio.sleep(pause)
                    pause = min(2 * pause, _PAUSE_MAX)
                continue  # any other is that one connection's own affair (accept(2), "Error handling")
            self._note(None)
            pause = _PAUSE
            serve(stream)

    def _note(self, error: OSError | None) -> None:
        """Log the beginning and the end of it."""
        trouble = f"no connection to the control socket can be accepted: {reason(error)}" if error is not None else None
        if (trouble is None) is not (self.trouble is None):
            _log.log(
                logging.WARNING if trouble is not None else logging.INFO,
                "%s", trouble or "connections to the control socket are accepted again",
            )  # fmt: skip
        self.trouble = trouble
