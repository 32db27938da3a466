"""The control protocol and its client: JSON-RPC 2.0, one message a line, over a Unix socket.

    socket       `.relfs/control` in the deploy path (or a link to where it is)
    requests     {"jsonrpc": "2.0", "id": N, "method": M, "params": {...}}, at most MESSAGE_MAX bytes
    errors       {"code": -32000 - STATUS, "message": ONE LINE}, STATUS being the exit status of the contract
    changes      carry "request": an id made by the client; asking again with it changes nothing twice; and may carry
                 "state": which state directory is meant (trust.identity); a daemon of another one refuses
    output       with "live": true beside "params", {"method": "output", "params": {"line": LINE}} before the answer, as
                 hooks print lines
    watch        after its result, {"method": "event", "params": {...}} as events happen

Standard library only, and imported by every relfsctl: nothing here may be slow to import.
"""

from __future__ import annotations

import errno
import json
import os
import select
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

from relfs.errors import RelfsError, error_for
from relfs.trust import identity, require_believed

SOCKET = "control"
MESSAGE_MAX = 1 << 16

PARSE_ERROR = -32700
INVALID_REQUEST = -32600
METHOD_NOT_FOUND = -32601
INVALID_PARAMS = -32602
INTERNAL_ERROR = -32603
FAILED_BASE = -32000
"""A RelfsError of exit status S has the code FAILED_BASE - S."""

_NOBODY_THERE = frozenset(
    {errno.ENOENT, errno.ECONNREFUSED, errno.ENOTDIR, errno.ENOTCONN, errno.ECONNABORTED, errno.EIO}
)
"""No socket, nobody listening on it, or a mount in the way whose daemon is gone."""

_READ = 1 << 16
_ANSWER_SECONDS = 10.0
_RETRY_SECONDS = 10.0
"""For how long, in all, a daemon that has gone away is waited for."""

_RETRY_PAUSE = 0.05


_GIBBERISH = "what listens on the control socket does not answer in JSON-RPC; is it relfs?"


class NoDaemon(RelfsError):  # noqa: N818 (a state of the world, not a mistake)
    """Nobody listens on the control socket."""


class Silent(RelfsError):  # noqa: N818
    """Somebody listens on the control socket, but does not answer: a daemon that is stopped, or hangs."""


class Connection:
    """One connection to a daemon. Its methods raise RelfsError, and ConnectionError when the daemon goes away."""

    def __init__(self, state_paths: tuple[str, ...]) -> None:
        """Connect to the daemon whose state directory is the first of `state_paths` in which one answers.

        Raises NoDaemon if none does; RelfsError for one that is not to be believed.
        """
        self._buffer = b""
        self._kept: dict[str, Any] | None = None
        self._id = 0
        self._state_paths = state_paths
        for state_path in state_paths:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                _connect(self._socket, state_path)
                require_believed(self._socket, state_path)
                self.state = identity(state_path)
                return
            except BaseException as error:
                self._socket.close()
                if not isinstance(error, OSError):
                    raise
                if error.errno in _NOBODY_THERE:
                    continue
                raise RelfsError(f"{state_path}: the daemon of relfs cannot be reached: {error.strerror}") from error
        raise NoDaemon(f"{state_paths[0]}: no daemon of relfs answers")

    def close(self) -> None:
        self._socket.close()

    def call(self, method: str, params: dict[str, Any], *, seconds: float = _ANSWER_SECONDS) -> Any:
        """Ask, and wait for the answer, for `seconds` at most.

        Raises the RelfsError that the daemon answered with; ConnectionError.
        """
        self.ask(method, params)
        self._wait(seconds)
        return self.answer()

    def ask(self, method: str, params: dict[str, Any], *, live: bool = False) -> None:
        """Send a request; `answer` is to follow. `live`: what hooks print is to be sent."""
        self._id += 1
        message = {"jsonrpc": "2.0", "id": self._id, "method": method, "params": params, "live": live}
        with suppress(BrokenPipeError):  # turned away: why, it has said before it closed, and `answer` hears it
            self._socket.sendall(json.dumps(message).encode("ascii") + b"\n")

    def answered(self) -> bool:
        """Whether there is something to receive, or the end of the connection, within a moment."""
        return b"\n" in self._buffer or bool(select.select([self._socket], [], [], _ANSWER_SECONDS)[0])

    def output(self) -> str | None:
        """Receive the next line that a hook has printed; None: it is the answer, which `answer` is to tell.

        Raises RelfsError, ConnectionError.
        """
        message = self._receive()
        if message.get("method") != "output":
            self._kept = message
            return None
        try:
            return str(message["params"]["line"])
        except (KeyError, TypeError) as error:
            raise RelfsError(_GIBBERISH) from error

    def answer(self) -> Any:
        """Receive what was asked for last. Raises as `call` does."""
        answer, self._kept = self._kept or self._receive(), None
        try:
            if "error" not in answer:
                return answer["result"]
            status, said = FAILED_BASE - int(answer["error"]["code"]), str(answer["error"]["message"])
        except (KeyError, TypeError, ValueError) as error:
            raise RelfsError(_GIBBERISH) from error
        raise error_for(status, said)

    def events(self) -> Iterator[dict[str, Any]]:
        """Events as they happen, until the daemon goes away. Call `watch` first."""
        while True:
            try:
                message = self._receive()
            except ConnectionError:
                return
            if message.get("method") == "event":
                yield message["params"]

    def _receive(self) -> dict[str, Any]:
        while b"\n" not in self._buffer:
            data = self._socket.recv(_READ)
            if not data:
                raise ConnectionResetError("the daemon closed the connection")
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        try:
            message = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise RelfsError(_GIBBERISH) from error
        if not isinstance(message, dict):
            raise RelfsError(_GIBBERISH)
        return message

    def _wait(self, seconds: float) -> None:
        """Until there is something to read. Raises Silent after `seconds`."""
        if not select.select([self._socket], [], [], seconds)[0]:
            raise Silent(
                f"{self._state_paths[0]}: the daemon does not answer; it may be stopped, or hang "
                "(what was asked for may still be done when it goes on)"
            )


def change(
    state_paths: tuple[str, ...],
    method: str,
    params: dict[str, Any],
    *,
    request_id: str | None = None,
    mounted: Callable[[], bool] = lambda: True,
    show: Callable[[str], None] | None = None,
) -> Any:
    """Ask for a change, and ask again with the same id (made here if none is given) if the connection is lost. `show`
    is called with each line that a hook prints meanwhile.

    Raises NoDaemon if there is no daemon, also if it went away and `mounted` says that there is no mount any more;
    RelfsError.
    """
    params = {**params, "request": request_id or os.urandom(16).hex()}
    tries = iter(range(round(_RETRY_SECONDS / _RETRY_PAUSE)))
    connection = Connection(state_paths)
    while True:
        try:
            connection.ask(method, {**params, "state": connection.state}, live=show is not None)
            return _await_answer(connection, state_paths, show)
        except ConnectionError as error:
            lost = error
        finally:
            connection.close()
        connection = _reconnect(state_paths, tries, lost, mounted)


def _await_answer(connection: Connection, state_paths: tuple[str, ...], show: Callable[[str], None] | None) -> Any:
    while True:
        while not connection.answered():  # a switch waits for the disk, or for hooks; but is there anybody?
            _require_life(state_paths)
        line = connection.output() if show is not None else None
        if show is None or line is None:
            return connection.answer()
        show(line)


def _require_life(state_paths: tuple[str, ...]) -> None:
    """Raises Silent if the daemon, which is busy with what we asked for, does not answer anything else either."""
    probe = Connection(state_paths)
    try:
        probe.call("status", {})
    finally:
        probe.close()


def _reconnect(
    state_paths: tuple[str, ...], tries: Iterator[int], cause: ConnectionError, mounted: Callable[[], bool]
) -> Connection:
    """As long as there are `tries` left, be it from the last time. They are counted, not timed: for how long a daemon
    worked before it went away, and a machine stood still, uses up none of them."""
    for _ in tries:
        time.sleep(_RETRY_PAUSE)
        try:
            return Connection(state_paths)
        except NoDaemon:
            if not mounted():
                raise
    raise RelfsError("the daemon went away before it answered; `relfsctl status` tells what is current") from cause


def _connect(endpoint: socket.socket, state_path: str) -> None:
    """Socket addresses hold 107 bytes (unix(7)): a longer path is reached through a descriptor of its directory."""
    path = f"{state_path}/{SOCKET}"
    if len(os.fsencode(path)) < 108:
        endpoint.connect(path)
        return
    directory = os.open(state_path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        endpoint.connect(f"/proc/self/fd/{directory}/{SOCKET}")
    finally:
        os.close(directory)
