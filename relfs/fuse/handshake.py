"""The INIT handshake, brokered: libfuse's words, with the flags that pyfuse3 cannot ask for.

Some facts about INIT. The kernel opens every connection with FUSE_INIT, listing what it can do; the daemon answers
with what it wants, once, and that holds for the life of the connection. relfs lives on one flag, FUSE_CACHE_SYMLINKS:
with it the kernel walks through `current` without asking us (1.1 us instead of 266), without it every resolution is a
READLINK. libfuse would ask for it if its init callback said so, but pyfuse3's callback (handlers.pxi, fuse_init) sets
three other flags and gives us no say. And pyfuse3 insists on opening its session by itself; only a mountpoint of the
form /dev/fd/N makes libfuse take a descriptor that exists (libfuse, lib/mount_util.c, fuse_mnt_parse_fuse_fd).

More of its flags make passthrough behave as what it passes through to (protocol.py); what the kernel does not offer
is not asked for. FUSE_POSIX_ACL has a price. The kernel keeps an inode's access control list as long as its attributes,
but not that of the root, which it makes before INIT, when no daemon has asked for lists yet (fuse_init_inode() in
fs/fuse/inode.c: ACL_DONT_CACHE; kept for ever since Linux 6.18.42 and 7.1.6, 6.12.101 and 6.6.148, see CVE-2026-68149).
So every resolution by somebody who does not own the deploy path would ask us twice, though hardly anybody has a list
there, and files in native directories need no help of ours to have theirs obeyed. It is asked for where it matters: if
the deploy path or something at its top has a list, or if everything is served by passthrough. A list that the deploy
path is to get later is refused (ENOTSUP), since nobody would obey it until relfs is mounted anew.

The consequence. Somebody has to stand between libfuse and the kernel for that one exchange, and must be gone after it,
since a broker in the path of every request would cost what the flag saves. (Where a dead worker's requests
cannot be had back otherwise, one stays nevertheless: relay.py.)

The choice. N is first one end of a SOCK_SEQPACKET pair, which keeps message boundaries as /dev/fuse does. The kernel's
INIT is sent through it; libfuse's reply is read from it, gets the flags that the kernel offered and we want, and goes
to the kernel. Then N must become /dev/fuse, at a moment when nobody is reading from it and pyfuse3 is about to wait
again: dup2(2) inside a request handler is that moment, because a handler that is called synchronously runs between two
waits. `forget` is such a handler. So a baton is sent through the pair, a FORGET of node 0 that no kernel ever sends;
Operations.forget() recognises it and calls Handshake.take_over(). Trio's next wait finds that epoll no longer knows N
(the old file is gone with its last descriptor), and registers what N is now. From there on libfuse talks to the kernel
directly, at no cost.

Adoption
--------
A worker that takes over a connection in use makes the same exchange, with the INIT that the first one had: libfuse must
come to the same words, since the kernel has long had its answer. Where it does not (another libfuse), the connection
cannot be adopted. With the baton, the kernel is asked to put what the dead worker had read, and not answered, back into
its queue (FUSE_NOTIFY_RESEND; fuse_resend() in fs/fuse/dev.c).

pyfuse3.close() must be called with unmount=False: for /dev/fd/N, libfuse would unmount that literal path.
"""

from __future__ import annotations

import errno
import os

import trio

from relfs.errors import RelfsError
from relfs.fuse.protocol import (
    CACHE_SYMLINKS,
    DONT_MASK,
    HANDLE_KILLPRIV_V2,
    HAS_RESEND,
    POSIX_ACL,
    InitRequest,
    allow_background,
    baton,
    limit,
    want,
)
from relfs.fuse.relay import session_pair
from relfs.fuse.unanswered import Again, ask_again
from relfs.survival.memory import Cell
from relfs.survival.requests import PAYLOAD_MAX

_REPLY_MAX = 4096
_BACKGROUND = 64
"""More than may wait for other disks (abroad.py), by what the kernel allows otherwise."""


class Handshake:
    """One exchange of FUSE_INIT between the kernel and a libfuse session that reads from `session_path`."""

    def __init__(
        self, connection: int, init: InitRequest, reply: Cell, *, access_lists: bool, adopting: bool, relayed: bool
    ) -> None:
        """`connection` is a descriptor of /dev/fuse, `reply` what the kernel was answered; `access_lists`: the kernel
        shall obey access control lists, at that price; `adopting`: somebody else has served this connection;
        `relayed`: relay.py stands in between for good, so there is no baton, and messages must not be too large."""
        self._connection = connection
        self._reply = reply
        self._resend = adopting and bool(init.flags & HAS_RESEND)
        self._relayed = relayed
        wanted = CACHE_SYMLINKS | DONT_MASK | HANDLE_KILLPRIV_V2 | (POSIX_ACL if access_lists else 0)
        self._wanted = init.flags & wanted
        self.ours, theirs = session_pair()
        self._session_fd = theirs.detach()
        self.ours.send(init.raw)
        self.done = trio.Event()
        self.obeys_access_lists = bool(self._wanted & POSIX_ACL)
        self.caches_links = bool(self._wanted & CACHE_SYMLINKS)

    @property
    def session_path(self) -> str:
        """The mountpoint to give to pyfuse3.init()."""
        return f"/dev/fd/{self._session_fd}"

    async def broker(self) -> None:
        """Carry libfuse's reply to the kernel, and send the baton, or leave `ours` to the relay. Needs pyfuse3.main()
        to be running beside it.

        Raises ValueError if libfuse refuses, RelfsError if it says what the kernel was not told, OSError if the kernel
        refuses.
        """
        await trio.lowlevel.wait_readable(self.ours)
        reply = allow_background(want(self.ours.recv(_REPLY_MAX), self._wanted), _BACKGROUND)
        if self._relayed:
            self._answer(limit(reply, PAYLOAD_MAX))
            return
        with self.ours:
            self.ours.send(baton())
            self._answer(reply)
            await self.done.wait()

    def _answer(self, reply: bytes) -> None:
        """Answer the kernel, then note it: who dies between the two is followed by one that answers again."""
        told = self._reply.load()
        if told:
            if told != reply:
                raise RelfsError("this version of libfuse negotiates otherwise than the one that mounted")
            return
        try:
            os.write(self._connection, reply)
        except OSError as error:
            if error.errno != errno.ENOENT:  # answered already
                raise
        self._reply.store(reply)

    def take_over(self) -> Again | None:
        """Put the kernel behind the session's descriptor. Called by the handler of the baton; no await. What the kernel
        asks again, if it can."""
        os.dup2(self._connection, self._session_fd, inheritable=False)
        self.done.set()
        return ask_again(self._connection) if self._resend else None
