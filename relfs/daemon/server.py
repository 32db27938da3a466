"""The control server: JSON-RPC on `.relfs/control`, see control.py for the protocol.

Who asks is what the kernel says (SO_PEERCRED and SO_PEERGROUPS, unix(7)), never what the message says. Everybody may
read; root, the deploy path's owner and the configured group may change things. A client that breaks the rules, sends
too much, does not finish its message or does not read its answers is cut off, and nobody else notices. How many there
may be, clients.py knows.
"""

from __future__ import annotations

import contextlib
import json
import logging
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator
from dataclasses import dataclass, replace
from typing import Any

import trio

from relfs.control import (
    FAILED_BASE,
    INTERNAL_ERROR,
    INVALID_PARAMS,
    INVALID_REQUEST,
    MESSAGE_MAX,
    METHOD_NOT_FOUND,
    PARSE_ERROR,
)
from relfs.daemon.accepting import Acceptor
from relfs.daemon.clients import Client, Clients, TooManyError
from relfs.descriptors import descriptors
from relfs.errors import RefusedError, RelfsError, one_line
from relfs.hooks import Show
from relfs.journal import Actor, Event, command_line
from relfs.store import Owner
from relfs.threads import user_name_of

_log = logging.getLogger(__name__)

_MESSAGE_SECONDS = 10.0
"""How long a client may take to end a message that it has begun, or to read an answer."""

_REQUEST_ID_MAX = 128
_EVENTS_MAX = 1000
_LINES_MAX = 1000
_SO_PEERGROUPS = 59
_GROUPS_MAX = 256
"""As many as fit into the 1024 bytes that Python's getsockopt() takes; a peer with more has none here."""


@dataclass(frozen=True)
class Peer:
    """Who is on the other end. `pid` is 0 if it lives outside our pid name space. `may_change`: he is one of those who
    may change things, which only a method that is `for_all` has to ask. `show`, which any thread may call,
    sends it a line of what a hook prints, if that was asked for."""

    pid: int
    uid: int
    gid: int
    groups: frozenset[int]
    show: Show | None = None
    may_change: bool = False

    async def actor(self) -> Actor:
        """As the journal names him."""
        return Actor(self.uid, await user_name_of(self.uid), self.pid, command_line(self.pid))

    @property
    def owner(self) -> Owner:
        return Owner(self.uid, self.gid)


@dataclass(frozen=True)
class Method:
    """What a method does, and whether it changes something. `params` names the parameters it takes, with types.
    `for_all`: everybody may ask for such a change, and `run` decides who gets what."""

    run: Callable[[Peer, dict[str, Any]], Awaitable[Any]]
    changes: bool
    params: dict[str, type | tuple[type, ...]]
    for_all: bool = False


class _ProtocolError(Exception):
    """What a client said wrong, as a JSON-RPC error. The connection is closed after it if `fatal`."""

    def __init__(self, code: int, message: str, *, fatal: bool = False) -> None:
        super().__init__(message)
        self.code = code
        self.fatal = fatal


class EventHub:
    """Events for whoever watches. One that does not keep up is cut off. GUARDED BY the event loop."""

    def __init__(self) -> None:
        self._watchers: set[trio.MemorySendChannel[Event]] = set()

    def publish(self, event: Event) -> None:
        """Contains no `await`."""
        for watcher in list(self._watchers):
            try:
                watcher.send_nowait(event)
            except (trio.WouldBlock, trio.BrokenResourceError):
                self._watchers.discard(watcher)
                watcher.close()

    @contextlib.contextmanager
    def subscription(self) -> Iterator[trio.MemoryReceiveChannel[Event]]:
        sender, receiver = trio.open_memory_channel[Event](_EVENTS_MAX)
        self._watchers.add(sender)
        try:
            yield receiver
        finally:
            self._watchers.discard(sender)
            sender.close()


class ControlServer:
    """GUARDED BY the event loop: everything."""

    def __init__(
        self, methods: dict[str, Method], hub: EventHub, *, owner: int, group: int | None, states: Collection[str] = ()
    ) -> None:
        """`owner` is the uid, `group` the gid (or None), that may change things besides root. `states` is what clients
        may take our state directory for (trust.identity); without any, what they say of it is not looked at. It is
        replaced when the directory is."""
        self._methods = methods
        self._hub = hub
        self._owner = owner
        self._group = group
        self.states = states
        self._clients = Clients(descriptors().connections, frozenset({0, owner}))

    async def serve(self, listener: trio.SocketListener) -> None:
        """Serve until cancelled."""
        async with trio.open_nursery() as nursery:
            await Acceptor(listener).run(lambda stream: nursery.start_soon(self._serve_client, stream))

    async def _serve_client(self, stream: trio.SocketStream) -> None:
        """Nothing but the server's own end gets out."""
        async with stream:
            try:
                peer = _peer(stream.socket)
                with trio.CancelScope() as scope, self._clients.admitted(peer.uid, scope.cancel) as client:
                    await self._serve_peer(stream, peer, client)
            except TooManyError:
                text = f"user {await user_name_of(peer.uid)} has too many connections to the control socket; close some"
                await _send_quietly(stream, _error(None, INVALID_REQUEST, text))
            except _ProtocolError as error:
                await _send_quietly(stream, _error(None, error.code, str(error)))
            except (trio.BrokenResourceError, trio.ClosedResourceError, trio.TooSlowError, OSError):
                pass  # it went away, or was cut off: its own affair
            except Exception:
                _log.exception("a control connection failed")

    async def _serve_peer(self, stream: trio.SocketStream, peer: Peer, client: Client) -> None:
        async for line in _lines(stream):
            if not await self._converse(stream, peer, client, line):
                return

    async def _converse(self, stream: trio.SocketStream, peer: Peer, client: Client, line: bytes) -> bool:
        """Answer one message. False: the conversation is over."""
        request_id: object = None
        try:
            request_id, name, params, live = _parse(line)
            if name == "watch":
                await self._watch(stream, request_id)
                return False
            with client.busy():
                if live:
                    result = await _with_output(
                        stream, lambda show: self._call(replace(peer, show=show), name, params)
                    )  # fmt: skip
                else:
                    result = await self._call(peer, name, params)
            await _send(stream, {"jsonrpc": "2.0", "id": request_id, "result": result})
        except _ProtocolError as error:
            await _send(stream, _error(request_id, error.code, str(error)))
            return not error.fatal
        except RelfsError as error:
            await _send(stream, _error(request_id, FAILED_BASE - error.status, str(error)))
        except (trio.BrokenResourceError, trio.ClosedResourceError, trio.TooSlowError):
            raise
        except Exception as error:
            _log.exception("a request on the control socket failed")
            await _send(stream, _error(request_id, INTERNAL_ERROR, f"{type(error).__name__}: {error}"))
        return True

    async def _call(self, peer: Peer, name: str, params: dict[str, Any]) -> Any:
        method = self._methods.get(name)
        if method is None:
            raise _ProtocolError(METHOD_NOT_FOUND, f"{name}: no such method")
        if method.changes:
            self._require_meant(params.pop("state", None))
        for key, value in params.items():
            if key not in method.params:
                raise _ProtocolError(INVALID_PARAMS, f"{name}: {key}: no such parameter")
            if not isinstance(value, method.params[key]):
                raise _ProtocolError(INVALID_PARAMS, f"{name}: {key}: wrong type")
        if method.changes:
            if not 0 < len(params.get("request", "")) <= _REQUEST_ID_MAX:
                raise _ProtocolError(
                    INVALID_PARAMS, f"{name}: a change needs a `request` id of at most {_REQUEST_ID_MAX} characters"
                )
            peer = replace(peer, may_change=self._may_change(peer))
            if not (peer.may_change or method.for_all):
                await self._refuse(peer)
        return await method.run(peer, params)

    def _require_meant(self, state: object) -> None:
        """A client may have been led here by a link that somebody else has made, and mean another deploy path."""
        if state is not None and self.states and state not in self.states:
            raise RefusedError(
                "the control socket has led to the daemon of another deploy path; remove the socket (or its link) that "
                "is in the place of your own"
            )

    def _may_change(self, peer: Peer) -> bool:
        if peer.uid in (0, self._owner):
            return True
        return self._group is not None and (peer.gid == self._group or self._group in peer.groups)

    async def _refuse(self, peer: Peer) -> None:
        user, owner = await user_name_of(peer.uid), await user_name_of(self._owner)
        raise RefusedError(
            f"user {user} may look but not change anything here; root, {owner} and the configured group may"
        )

    async def _watch(self, stream: trio.SocketStream, request_id: object) -> None:
        with self._hub.subscription() as events:
            await _send(stream, {"jsonrpc": "2.0", "id": request_id, "result": {"watching": True}})
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_end_with_client, stream, nursery.cancel_scope)
                try:
                    async for event in events:
                        await _send(stream, {"jsonrpc": "2.0", "method": "event", "params": event.as_json()})
                except (trio.BrokenResourceError, trio.TooSlowError):
                    pass  # it went away, or was cut off
                nursery.cancel_scope.cancel()


def _peer(endpoint: trio.socket.SocketType) -> Peer:
    raw = endpoint.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    pid, uid, gid = struct.unpack("3i", raw)
    try:
        groups = endpoint.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, 4 * _GROUPS_MAX)
    except OSError:  # before Linux 4.13
        groups = b""
    return Peer(pid, uid, gid, frozenset(struct.unpack(f"{len(groups) // 4}I", groups)))


async def _lines(stream: trio.SocketStream) -> AsyncIterator[bytes]:
    """Whole messages. Raises _ProtocolError for one that is too long, or not ended in time after its first byte."""
    buffer = bytearray()
    deadline = float("inf")
    while True:
        with trio.move_on_at(deadline) as waiting:
            data = await stream.receive_some(MESSAGE_MAX)
        if waiting.cancelled_caught:
            raise _ProtocolError(INVALID_REQUEST, f"the message was not ended within {_MESSAGE_SECONDS:g} s")
        if not data:
            return
        buffer += data
        *lines, rest = buffer.split(b"\n")
        if any(len(line) > MESSAGE_MAX for line in (*lines, rest)):
            raise _ProtocolError(INVALID_REQUEST, f"a message has at most {MESSAGE_MAX} bytes")
        for line in lines:
            yield bytes(line)
        if not rest:
            deadline = float("inf")
        elif lines or deadline == float("inf"):
            deadline = trio.current_time() + _MESSAGE_SECONDS
        buffer = rest


def _parse(line: bytes) -> tuple[object, str, dict[str, Any], bool]:
    try:
        message = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise _ProtocolError(PARSE_ERROR, "the message is not JSON", fatal=True) from error
    if not isinstance(message, dict) or not isinstance(message.get("method"), str):
        raise _ProtocolError(INVALID_REQUEST, "the message is not a JSON-RPC request", fatal=True)
    params = message.get("params", {})
    if not isinstance(params, dict):
        raise _ProtocolError(INVALID_PARAMS, "params must be an object")
    request_id = message.get("id")
    shown = request_id if isinstance(request_id, str | int) else None
    return shown, message["method"], params, message.get("live") is True


async def _with_output(stream: trio.SocketStream, call: Callable[[Show], Awaitable[Any]]) -> Any:
    """Run a method, and send the client the lines that it shows, all of them before the answer. Raises what it does."""
    token = trio.lowlevel.current_trio_token()
    sender, receiver = trio.open_memory_channel[str](_LINES_MAX)
    result: Any = None
    failure: Exception | None = None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_pass_on, stream, receiver)
        try:
            result = await call(lambda line: token.run_sync_soon(_offer, sender, line))
        except Exception as error:  # raised below, so that it is not wrapped in the nursery's exception group
            failure = error
        finally:
            sender.close()
    if failure is not None:
        raise failure
    return result


def _offer(sender: trio.MemorySendChannel[str], line: str) -> None:
    """A client that does not keep up loses lines, and nobody waits for it."""
    with contextlib.suppress(trio.WouldBlock, trio.BrokenResourceError, trio.ClosedResourceError):
        sender.send_nowait(line)


async def _pass_on(stream: trio.SocketStream, lines: trio.MemoryReceiveChannel[str]) -> None:
    """Until there are no more. A client that is gone, or does not read at all, is cut off."""
    async with lines:
        try:
            async for line in lines:
                await _send(stream, {"jsonrpc": "2.0", "method": "output", "params": {"line": line}})
        except (trio.BrokenResourceError, trio.ClosedResourceError, trio.TooSlowError):
            await trio.aclose_forcefully(stream)


def _error(request_id: object, code: int, message: str) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": request_id, "error": {"code": code, "message": one_line(message)}}


async def _send(stream: trio.SocketStream, message: dict[str, Any]) -> None:
    with trio.fail_after(_MESSAGE_SECONDS):
        await stream.send_all(json.dumps(message).encode("ascii") + b"\n")


async def _send_quietly(stream: trio.SocketStream, message: dict[str, Any]) -> None:
    try:
        await _send(stream, message)
    except (trio.BrokenResourceError, trio.TooSlowError, OSError):
        pass


async def _end_with_client(stream: trio.SocketStream, scope: trio.CancelScope) -> None:
    """A watcher has nothing more to say; when its side ends, so does ours."""
    try:
        while await stream.receive_some(MESSAGE_MAX):
            pass
    except trio.BrokenResourceError:
        pass
    scope.cancel()
