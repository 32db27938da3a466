"""Requests outlive a worker where the kernel cannot send them again, or must not be asked to (resend.py): each is in
shared memory (survival/requests.py) from the moment it is read until it is answered.

Standing in between
-------------------
Some facts. What a process has read from /dev/fuse is forgotten by the kernel's queue, and if it dies, its callers wait
for ever. libfuse keeps what it reads in its own memory, and answers by writev(2) on the descriptor it reads from.
It takes whatever keeps message boundaries for /dev/fuse; the INIT handshake lives on that (handshake.py).

The consequence. To keep a request, somebody must read it in libfuse's stead, and must see what it answers.

The choice. The socket pair of the handshake stays: there is no baton. Requests are read here, into a slot, and sent
through the pair; replies are received from it, sent to the kernel, and only then is the slot freed. It is a task beside
libfuse's, on one thread, so that nothing has to be locked, and a process that dies, dies as a whole. The next worker
begins with what it finds in the slots. What was done and not answered yet must not be done again by those who do it;
that is not known here. Requests that have no reply are given up once they are sent: a FORGET may be lost, and is only
ever advice.

Three things have to be seen to. libfuse's writev blocks when the socket is full, and with it the only thread that could
empty it: so a request is sent only if the largest replies to it and to all others that were sent fit in together.
Messages of more than 64 KiB would need physically contiguous memory of an order that the kernel does not promise
(alloc_skb_with_frags(); PAGE_ALLOC_COSTLY_ORDER), and a reply that fails is a caller that hangs: so INIT negotiates
requests no larger than that. And what notifies the kernel must not go this way, since whoever sends it counts on the
kernel having obeyed once it returns: teller.py writes to /dev/fuse itself.

A request that makes every worker die would make them die for ever. It is refused with EIO after three in a row; a later
request's reply acquits it, since libfuse begins them in order.
"""

from __future__ import annotations

import errno
import logging
import os
import socket
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import trio

from relfs.errors import RelfsError, reason
from relfs.fuse.protocol import IN_HEADER, OUT_HEADER, UNANSWERED, failure, reply_size
from relfs.fuse.unanswered import errand_of
from relfs.survival.requests import PAYLOAD_MAX, Requests

_log = logging.getLogger(__name__)

_DEATHS = 3
"""Workers in a row that a request may have been the end of, before it is refused."""

_SOCKET_BUFFER = 1 << 22
"""Bytes; the kernel gives twice what is asked for, or twice net.core.wmem_max."""

_LEAST_BUFFER = 4 * PAYLOAD_MAX


def session_pair() -> tuple[socket.socket, socket.socket]:
    """Our end, and libfuse's, with all the room that we may have. Raises RelfsError if that is too little."""
    pair = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for end in pair:
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SOCKET_BUFFER)
        if end.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) < _LEAST_BUFFER:
            raise RelfsError(f"net.core.wmem_max: too small; sysctl -w net.core.wmem_max={_LEAST_BUFFER}")
    return pair


@dataclass(frozen=True)
class _Due:
    """A request that libfuse has yet to answer. `room` is what its reply may take of the socket, in bytes."""

    slot: int
    room: int


class Relay:
    """Carries requests from the kernel to libfuse and replies back.

    INVARIANT: a slot is freed only after the kernel has its reply, or needs none. `_due` is in the order in which
    requests were sent; `_room` is what the replies to all of them leave free.
    """

    def __init__(self, kernel: int, session: socket.socket, requests: Requests) -> None:
        """`kernel` is the descriptor of /dev/fuse, which never blocks from now on; `session` our end of the pair."""
        os.set_blocking(kernel, False)
        session.setblocking(False)
        self._kernel = kernel
        self._session = session
        self._requests = requests
        self._due: dict[int, _Due] = {}
        self._room = self._all_room = session.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
        self._freed = trio.Event()
        self.expect: Callable[[frozenset[bytes]], object] = lambda _errands: None
        """Called with what a dead worker owes an answer to (Once.expect), before any is answered."""
        self.delivered: Callable[[], object] = lambda: None
        """Called when the kernel has all answers that there are, and before anything else is read from it."""

    async def run(self) -> None:
        """Do what a dead worker has left, and then what comes. Returns when the mount, or the session, is gone.

        Raises OSError if the connection was lost in another way (ECONNABORTED: somebody aborted it).
        """
        lost: OSError | None = None
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._carry_replies, nursery.cancel_scope)
                try:
                    await self._replay()
                    await self._carry_requests()
                except OSError as error:  # caught here, so that the nursery does not wrap it
                    lost = error
                nursery.cancel_scope.cancel()
        finally:
            self.deliver()
        if lost is not None and lost.errno != errno.ENODEV:
            raise lost

    # ---- from the kernel to libfuse

    async def _carry_requests(self) -> None:
        """Raises OSError (ENODEV: unmounted)."""
        while True:
            while (slot := self._requests.reserve()) is None:
                await self._until_freed()
            try:
                await self._read(slot)
            except FileNotFoundError:  # the caller has gone, perhaps in the middle of it
                self._requests.free(slot)
            else:
                await self._hand_on(slot)

    async def _read(self, slot: int) -> None:
        while True:
            try:
                os.readv(self._kernel, [self._requests.buffer(slot)])
                return
            except BlockingIOError:
                await trio.lowlevel.wait_readable(self._kernel)

    async def _hand_on(self, slot: int) -> None:
        request = self._requests[slot]
        _, opcode, unique, *_ = IN_HEADER.unpack_from(request)
        if opcode in UNANSWERED:
            await self._send(request)
            self._requests.free(slot)
            return
        due = _Due(slot, _charge(reply_size(request)))
        while self._is_short_of(due.room):
            await self._until_freed()
        self._room -= due.room
        self._due[unique] = due
        await self._send(request)

    def _is_short_of(self, room: int) -> bool:
        """Never for a request that is alone: the socket takes any one message."""
        return room > self._room and self._room < self._all_room

    async def _send(self, request: memoryview) -> None:
        while True:
            try:
                self._session.send(request)
                return
            except BlockingIOError:
                await trio.lowlevel.wait_writable(self._session)

    async def _until_freed(self) -> None:
        self._freed = trio.Event()
        await self._freed.wait()

    # ---- what a dead worker has left

    async def _replay(self) -> None:
        left = {_unique(self._requests[slot]): slot for slot in self._requests.left()}
        reply = self._requests.laid_down()
        if reply is not None:
            self._answer(reply)
            slot = left.pop(_replied(reply), None)
            if slot is not None:
                self._requests.free(slot)
            self._requests.clear_desk()
        self.expect(frozenset(errand_of(self._requests[slot]) for slot in left.values()))
        if left:
            _log.info("%d requests that were not answered are done now", len(left))
        for slot in left.values():
            if self._requests.accuse(slot) < _DEATHS:
                await self._hand_on(slot)
            else:
                self._refuse(slot)

    def _refuse(self, slot: int) -> None:
        _, opcode, unique, nodeid, *_ = IN_HEADER.unpack_from(self._requests[slot])
        _log.error("request %d of inode %d: %d workers in a row have died of it: refused", opcode, nodeid, _DEATHS)
        self._answer(failure(unique, errno.EIO))
        self._requests.free(slot)

    # ---- from libfuse to the kernel

    async def _carry_replies(self, scope: trio.CancelScope) -> None:
        """Ends all in `scope` when libfuse has closed its end."""
        while self.deliver():
            await trio.lowlevel.wait_readable(self._session)
        scope.cancel()

    def deliver(self) -> bool:
        """Give the kernel all that libfuse has answered so far. False if libfuse has closed its end. No `await`."""
        try:
            while length := self._session.recv_into(self._requests.desk):
                self._requests.lay_down(length)
                self._deliver(self._requests.desk[:length])
        except BlockingIOError:
            self.delivered()
            return True
        return False

    def _deliver(self, reply: memoryview) -> None:
        unique = _replied(reply)
        if unique:
            self._answer(reply)
        else:
            _log.error("libfuse wants to notify the kernel, which would wait for us: dropped")
        if unique in self._due:  # libfuse also answers interruptions that it cannot place, for which nothing is kept
            self._acquit_before(unique)
            due = self._due.pop(unique)
            self._requests.free(due.slot)
            self._room += due.room
        self._requests.clear_desk()
        self._freed.set()

    def _acquit_before(self, unique: int) -> None:
        for earlier, due in self._due.items():
            if earlier == unique:
                break
            self._requests.acquit(due.slot)

    def _answer(self, reply: bytes | memoryview) -> None:
        try:
            os.write(self._kernel, reply)
        except FileNotFoundError:
            pass  # the kernel has the reply, or the connection is gone
        except OSError as error:
            _log.error("the kernel does not take a reply: %s", reason(error))
            with suppress(OSError):
                os.write(self._kernel, failure(_replied(reply), errno.EIO))


def _unique(request: memoryview) -> int:
    return int(IN_HEADER.unpack_from(request)[2])


def _replied(reply: bytes | memoryview) -> int:
    return int(OUT_HEADER.unpack_from(reply)[2])


def _charge(size: int) -> int:
    """What a message of so many bytes takes of a socket's buffer at most: its memory is dealt out in powers of two,
    and comes with the kernel's own records (skb->truesize)."""
    return 2 * size + 2048
