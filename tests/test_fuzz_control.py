"""The control server and all its methods, under messages that nobody would write.

Whatever is sent, in whatever pieces: each answer is one line of JSON-RPC with a result or an error that a person can
read, nothing is logged above INFO, no request is an internal error, the next client is served, and `current` leads to
a release that is there. The kernel, which would be told of each switch, is left out: there is no mount.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, cast
from unittest import mock

import trio
from fuzzing import as_json, cut_and_mended, fuzzed, nearly, scratch, silence, texts, values
from hypothesis import example, given
from hypothesis import strategies as st
from sandbox import journal_of, link_of, make_app

from relfs.aftermath import Aftermath
from relfs.config import Config
from relfs.control import INTERNAL_ERROR, MESSAGE_MAX
from relfs.daemon.endpoint import listen
from relfs.daemon.methods import Mounted, methods
from relfs.daemon.server import ControlServer, EventHub
from relfs.fuse.changes import Changes
from relfs.layout import DeployPath, open_deploy_path
from relfs.pointer import Pointer
from relfs.seal import Seals

# What a client says of the state directory, and `watch`, are the server's own.
CALLS: list[dict[str, Any]] = [
    {"method": "switch", "params": {"request": "r", "release": "41", "force": False, "state": "1:2"}},
    {"method": "switch", "params": {"request": "s", "release": "41", "confirm": 60}, "live": True},
    {"method": "confirm", "params": {"request": "c", "release": None}},
    {"method": "rollback", "params": {"request": "r", "release": None}},
    {"method": "discard", "params": {"request": "r", "release": "39"}},
    {"method": "lock", "params": {"request": "r", "own": True, "reason": "why", "ttl": 5.0}},
    {"method": "unlock", "params": {"request": "r"}},
    {"method": "nothing of the kind", "params": {}},
    {"method": "watch", "params": {}},
]

calls = st.sampled_from(CALLS).flatmap(
    lambda call: st.builds(
        lambda params, number: {"jsonrpc": "2.0", "id": number, **call, "params": params},
        nearly(call["params"]),
        values,
    )
)
requests = calls | calls.flatmap(nearly)
messages = (
    requests.map(as_json)
    | requests.map(as_json).flatmap(cut_and_mended)
    | values.map(as_json)
    | st.binary(max_size=40)
    | st.sampled_from([("[", 2000), ("9", 5000), (" ", MESSAGE_MAX + 1)]).map(lambda run: run[0].encode() * run[1])
)
conversations = st.tuples(st.lists(messages, min_size=1, max_size=6), st.integers(1, 4000))


class _NoKernel(Changes):
    """There is no mount whose dentries could be dropped."""

    async def drop_current(self) -> None:
        await trio.lowlevel.checkpoint()


def _methods(deploy: DeployPath) -> ControlServer:
    pointer = Pointer(deploy)
    changes = _NoKernel(pointer, Seals(deploy), mock.Mock(), Aftermath(pointer, Config()))
    parts: dict[str, Any] = {name: mock.Mock() for name in Mounted.__annotations__}
    offered = methods(Mounted(**{**parts, "pointer": pointer, "changes": changes}))
    for about_the_mount in ("status", "unmount", "reload", "clean", "who"):
        del offered[about_the_mount]
    return ControlServer(offered, EventHub(), owner=os.getuid(), group=None, states=("1:2",))


async def _converse(state: Path, said: list[bytes], piece: int) -> bytes:
    """Send all of it in pieces, and nothing more; what is answered until the server closes the connection."""
    stream = await trio.open_unix_socket(f"{state}/control")
    heard = bytearray()
    async with stream, trio.open_nursery() as nursery:

        async def hear() -> None:
            try:
                async for data in stream:
                    heard.extend(data)
            except trio.BrokenResourceError:
                pass  # it closed the connection before it had read all

        nursery.start_soon(hear)
        data = b"".join(message.replace(b"\n", b" ") + b"\n" for message in said)
        try:
            for begin in range(0, len(data), piece):
                await stream.send_all(data[begin : begin + piece])
            await stream.send_eof()
        except trio.BrokenResourceError:
            pass
    return bytes(heard)


async def _serve(app: Path, said: list[bytes], piece: int) -> tuple[bytes, bytes]:
    deploy = open_deploy_path(str(app))
    try:
        assert deploy.state_fd is not None
        server = _methods(deploy)
        async with trio.open_nursery() as nursery:
            endpoint = trio.socket.from_stdlib_socket(listen(deploy.state_fd))
            nursery.start_soon(server.serve, trio.SocketListener(endpoint))
            state = Path(deploy.state_path)
            with trio.fail_after(60):
                heard = await _converse(state, said, piece)
                after = await _converse(state, [as_json({"id": 1, "method": "unlock", "params": {"request": "z"}})], 9)
            nursery.cancel_scope.cancel()
        assert all(len(event.id) <= 128 for event in journal_of(deploy))
    finally:
        deploy.close()
    return heard, after


def _check_answer(line: bytes) -> None:
    answer = cast(dict[str, Any], json.loads(line))
    assert answer["jsonrpc"] == "2.0"
    if "result" in answer:
        return
    code, message = answer["error"]["code"], answer["error"]["message"]
    assert type(code) is int and code != INTERNAL_ERROR, answer
    assert all(each.isprintable() or "\ud800" <= each <= "\udfff" for each in message), answer
    assert 0 < len(message) <= 1000, answer


@fuzzed(60)
@given(conversations)
@example(([as_json({"method": "lock", "params": {"request": "r", "ttl": 10**400}})], 100))
@example(([as_json({"method": "a\nb", "params": {}})], 100))
@example(([as_json({"method": "lock", "params": {"request": "r", "reason": "\ud800" * 9000}})], 1000))
def test_no_conversation_harms_the_server(conversation: tuple[list[bytes], int]) -> None:
    said, piece = conversation
    with scratch() as place, silence():
        app = make_app(place / "app")
        heard, after = trio.run(_serve, app, said, piece)
        lines = heard.splitlines()
        assert len([line for line in lines if b'"id"' in line]) <= len(said) + 1
        for line in lines:
            _check_answer(line)
        assert "result" in json.loads(after), "the next client was not served"
        assert (app / link_of(app) / "index.html").is_file()


@fuzzed(150)
@given(st.lists(texts, min_size=1, max_size=4))
def test_nothing_else_than_a_release_is_switched_to(references: list[str]) -> None:
    """By the words of clients alone: each names one of the releases there are, or is refused."""
    with scratch() as place:
        app = make_app(place / "app")
        said = [as_json({"id": 1, "method": "switch", "params": {"request": f"{number}", "release": reference}})
                for number, reference in enumerate(references)]  # fmt: skip
        trio.run(_serve, app, said, 500)
        assert link_of(app) in {f"releases/{name}" for name in ("40", "41", "42")}
