"""The native directories of a mount: which are attached to it, so that their bytes do not pass through us, and what
`current` says, which hangs on that.

How a directory is attached is in relfs/mounts.py; which file systems are mounted below the deploy path, in nested.py.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import stat

from relfs import libc
from relfs.daemon.member import Member
from relfs.daemon.nested import TREE_FD, attach_nested
from relfs.daemon.plan import Plan
from relfs.errors import reason
from relfs.layout import RELEASES, STATE, DeployPath, Target
from relfs.mounts import attach_in, detach_in
from relfs.threads import in_thread

_log = logging.getLogger(__name__)

RELEASES_FD = "releases"
"""What is attached there, if it is to be sealed."""


class NativeDirectories:
    """Those of one mount.

    GUARDED BY the event loop: everything.
    INVARIANT: `_attached` is what the ledger has, by path below the mountpoint; it is attached, or was by the worker
    before this one. What is in `_tried` is not tried again.
    """

    def __init__(self, member: Member, deploy: DeployPath, plan: Plan, *, sealed: bool) -> None:
        self._member = member
        self._deploy = deploy
        self._plan = plan
        self._sealed = sealed
        self._tried: set[str] = set()
        self._attached: set[str] = set(json.loads(member.ledger.attached.load() or b"[]"))

    def __contains__(self, path: str) -> bool:
        return path in self._attached

    @property
    def _mounted(self) -> int:
        """The mount's id, 0 as long as that is not known."""
        return self._member.ledger.mounted

    def names(self) -> tuple[str, ...]:
        """All of them, in order. Contains no `await`."""
        return tuple(sorted(self._attached))

    def show(self, target: Target) -> str:
        """What readers get to read: what was written, since Capistrano's clean-up goes by that. A mount elsewhere
        without native directories leads into the deploy path itself, so that bytes are native there too. Contains no
        `await`."""
        if target.written is not None:
            return target.written
        if not self._plan.over and self._sealed and target.text.startswith("/"):
            inside = self._deploy.inside(target.text)  # what is sealed is sealed in the mount
            return f"{self._plan.mountpoint}/{inside}" if inside is not None else target.text
        if self._plan.over or RELEASES in self._attached or not self._plan.bind or target.text.startswith("/"):
            return target.text
        return f"{self._plan.deploy_path}/{target.text}"

    async def attach(self, name: str) -> None:
        """Attach one if that is asked for, possible and sensible; otherwise it is served by passthrough."""
        source = self._deploy.state_fd if name == STATE else self._deploy.fd
        assert source is not None
        path = "." if name == STATE else name
        if not (self._plan.bind or name == STATE) or name in self._tried | self._attached or not self._mounted:
            return
        if not is_real_directory(source, path):
            return
        self._tried.add(name)  # now: attaching looks the name up, which tells us of it again
        try:
            attached = await in_thread(
                attach_in, self._mounted, self._plan.mountpoint, name, source, path, self._plan.mount_options
            )
        except OSError as error:
            level = logging.INFO if error.errno == errno.EPERM else logging.WARNING
            _log.log(level, "%s is served by passthrough: it cannot be attached: %s", name, reason(error))
            return
        if attached is None:  # there is nothing to be served any more
            return
        self._note(name)
        if name == RELEASES and self._sealed:
            self._member.put(RELEASES_FD, attached)
        else:
            os.close(attached)

    async def attach_nested(self) -> None:
        """What was mounted below the deploy path before it was covered."""
        trees = {name: fd for name, fd in self._member.estate if name.startswith(TREE_FD)}
        await in_thread(attach_nested, trees, self._mounted, self._plan.mountpoint)
        for name in trees:
            self._note(name.removeprefix(TREE_FD))
            self._member.drop(name)

    async def attach_state_again(self) -> None:
        """It was removed and made again. Nothing can be mounted on a directory that was removed, so what is mounted
        there has to go first."""
        if STATE in self._attached:
            await in_thread(detach_in, self._mounted, self._plan.mountpoint, STATE)
        self._tried.discard(STATE)
        self._attached.discard(STATE)
        await self.attach(STATE)

    def _note(self, path: str) -> None:
        self._attached.add(path)
        self._member.ledger.attached.store(json.dumps(sorted(self._attached)).encode("ascii"))


def is_real_directory(directory: int, name: str) -> bool:
    """Not a link to one: what would be mounted on that, would be mounted outside of our mount."""
    try:
        return stat.S_ISDIR(libc.glance(directory, os.fsencode(name))[0])
    except OSError:
        return False
