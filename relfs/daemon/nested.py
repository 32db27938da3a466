"""Other file systems that are mounted below the deploy path, when relfs covers it.

A disk that does not answer
---------------------------
Some facts. A network file system whose server is gone (a stopped sshfs, NFS) keeps whoever asks it anything, for ever,
and passthrough runs in the event loop, which everybody else waits for. Whether a name leads to another file system is
only known once it was walked to.

The consequence. Passthrough must not walk into other file systems at all.

The choice. It gets the covered directory without what is mounted below it: a copy of its mount that nobody else sees
(open_tree(2) without AT_RECURSIVE). What is mounted below is attached at the same place in the mount, natively, as
`shared` is; releases, shared and relfs's own state bring along what is mounted in them. So relfs neither asks these
file systems anything, nor is it asked for what is in them, and one that hangs keeps those who use it.

Where there is nothing mounted, or nothing can be attached (--no-bind, an ordinary user, kernels before 5.12), it is the
directory itself; a file system that hangs is waited for then.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass

from relfs import libc
from relfs.errors import RelfsError, reason
from relfs.layout import CURRENT, RELEASES, SHARED, STATE, DeployPath
from relfs.mountinfo import mount_id, mounts
from relfs.mounts import alone, copy

_BROUGHT_ALONG = frozenset({RELEASES, SHARED, STATE, CURRENT})


@dataclass(frozen=True)
class Nested:
    """INVARIANT: `home`, a descriptor, is where passthrough works. `trees` are detached copies of what is mounted below
    it, by the path from there, as descriptors; nothing of them can be reached by way of `home`, unless there are none.
    """

    home: int
    trees: dict[str, int]

    def attach(self, mountpoint: str) -> tuple[str, ...]:
        """Attach all of them in the mount, which must answer; their paths. Raises RelfsError."""
        for path, tree in self.trees.items():
            target = f"{mountpoint}/{path}"
            try:
                libc.move_mount(tree, os.fsencode(target))
            except OSError as error:
                raise RelfsError(
                    f"{target}: what is mounted there cannot be attached: {reason(error)}; unmount it, and mount it "
                    "again when relfs is mounted, or use --no-bind"
                ) from error
        self.close_trees()
        return tuple(self.trees)

    def close_trees(self) -> None:
        for tree in self.trees.values():
            os.close(tree)


def set_apart(deploy: DeployPath, options: Iterable[str]) -> Nested:
    """The covered directory, and what is mounted below it, apart; see "A disk that does not answer". For root, before
    anything is mounted over the deploy path. `options` are mount(8)'s, as attach_and_hold() takes them."""
    paths = nested_mounts(deploy)
    with ExitStack() as undo:
        trees = {}
        try:
            for path in paths:
                trees[path] = copy(deploy.fd, path, options)
                undo.callback(os.close, trees[path])
            home = alone(deploy.fd) if trees else os.dup(deploy.fd)
        except OSError:
            return Nested(os.dup(deploy.fd), {})
        undo.pop_all()
    return Nested(home, trees)


def nested_mounts(deploy: DeployPath) -> list[str]:
    """Where something is mounted below the deploy path, as paths from there; not below another such place."""
    base = deploy.path.rstrip("/") + "/"
    found: list[str] = []
    for target in sorted({mount.target for mount in mounts() if mount.target.startswith(base)}):
        path = target.removeprefix(base)
        if path.split("/", 1)[0] in _BROUGHT_ALONG or any(path.startswith(f"{each}/") for each in found):
            continue
        if _is_there(deploy, path):
            found.append(path)
    return found


def _is_there(deploy: DeployPath, path: str) -> bool:
    """Whether it can be seen from the deploy path, where other mounts may hide it. No file system is asked for more
    than its root."""
    try:
        fd = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=deploy.fd)
    except OSError:
        return False
    try:
        return mount_id(fd) != mount_id(deploy.fd)
    finally:
        os.close(fd)
