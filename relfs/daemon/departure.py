"""How a worker's time ends: it is asked to unmount, the mount is gone, the connection is lost, or another worker is to
take its place. Order at the end: worker.py."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import AsyncIterator

import pyfuse3
import trio

from relfs.daemon.member import Member
from relfs.errors import RelfsError
from relfs.fuse.changes import Changes
from relfs.mountinfo import FSTYPE, Mount, mount_at
from relfs.mountinfo import mounts as all_mounts
from relfs.mounts import detach_only
from relfs.seal import Seals
from relfs.threads import in_thread

_log = logging.getLogger(__name__)

_LOOK_SECONDS = 2.0
_LINGER_SECONDS = 5.0
_RETIRE_SECONDS = 5.0


class Departure:
    """Of the worker of one mount. To be asked twice is to end at once.

    An id is another mount's as soon as ours is gone. The number of its file system is not, as long as that has a
    worker: a connection that has ended is another end.

    GUARDED BY the event loop: `_leaving`, which stays true; `_device`, that number, once it was looked at.
    """

    def __init__(self, member: Member, mountpoint: str, seals: Seals, nursery: trio.Nursery) -> None:
        self._member = member
        self._mountpoint = mountpoint
        self._seals = seals
        self._nursery = nursery
        self._leaving = False
        self._device: str | None = None

    def begin(self) -> None:
        """Unmount, and end once nobody needs us any more. Contains no `await`."""
        self._nursery.start_soon(self._leave)

    async def obey_signals(self, signals: AsyncIterator[int]) -> None:
        """Each of `signals` asks to unmount."""
        async for _ in signals:
            if self._asked():
                return

    async def obey_supervisor(self, changes: Changes) -> None:
        """Do what it says, until that is to end."""
        while True:
            for message in self._member.hear():
                message.close()
                if message.kind == "leave" and self._asked():
                    return
                if message.kind == "retire":
                    await _retire(changes)
                elif message.kind == "end":
                    pyfuse3.terminate()
                    return
            with trio.move_on_after(self._member.pause):
                await trio.lowlevel.wait_readable(self._member)

    async def notice_unmount(self) -> None:
        """Somebody else may do it."""
        while self._is_mounted():
            await trio.sleep(_LOOK_SECONDS)
        self.begin()

    def _asked(self) -> bool:
        """Whether it was the second time. Contains no `await`."""
        if self._leaving:
            pyfuse3.terminate()
            return True
        self.begin()
        return False

    async def _leave(self) -> None:
        if self._leaving:
            return
        self._leaving = True
        self._member.tell("leaving")
        _log.info("%s is being unmounted", self._mountpoint)
        await in_thread(self._seals.end)  # a switch that is still asked for does without
        await self.detach()
        await trio.sleep(_LINGER_SECONDS)
        _log.info("%s: a process still uses what was mounted; it gets errors from now on", self._mountpoint)
        pyfuse3.terminate()

    async def detach(self) -> None:
        """Take our own mount away, with all on it, wherever it has been moved. Ours only: somebody may have mounted
        over it, or unmounted it."""
        found = self._own() if self._member.ledger.mounted else mount_at(self._mountpoint)
        if found is None or found.fstype != FSTYPE:
            return
        try:
            await in_thread(detach_only, found)
        except RelfsError as error:
            _log.error("%s", error)

    def is_unmounted(self, lost: OSError) -> bool:
        """Whether the connection was `lost` with the mount. The kernel says ENODEV then, but ECONNABORTED in the midst
        of handing over a request (fuse_dev_do_read() in fs/fuse/dev.c), as it does if somebody aborts the connection
        of what is mounted."""
        return lost.errno == errno.ENODEV or (lost.errno == errno.ECONNABORTED and not self._is_mounted())

    def _own(self) -> Mount | None:
        """Our mount, if it is still there. Raises OSError (EMFILE, ENFILE)."""
        number = self._member.ledger.mounted
        found = next((each for each in all_mounts() if (each.id, each.fstype) == (number, FSTYPE)), None)
        if found is not None and self._device is None:
            self._device = found.device
        return found if found is not None and found.device == self._device else None

    def _is_mounted(self) -> bool:
        """As far as can be seen: where there is no descriptor for a look, nothing is known to be gone."""
        try:
            return self._own() is not None
        except OSError:
            return True


async def _retire(changes: Changes) -> None:
    """Make room for a worker of another version, which finds all as a dead one would leave it; but what is being
    changed is brought to its end, if that does not take too long."""
    with trio.move_on_after(_RETIRE_SECONDS):
        await changes.settle()
    _log.info("process %d retires", os.getpid())
    logging.shutdown()
    os._exit(0)
