"""Other file systems that are mounted below the deploy path, when relfs covers it.

A disk that does not answer
---------------------------
Some facts. A network file system whose server is gone (a stopped sshfs, NFS) keeps whoever asks it anything, for ever,
and passthrough runs in the event loop, which everybody else waits for. Natively, nothing of this is ours.

The choice. Passthrough gets the covered directory without what is mounted below it: a copy of its mount that nobody
else sees (open_tree(2) without AT_RECURSIVE). What is mounted below is attached at the same place in the mount,
natively, as `shared` is; releases, shared and relfs's own state bring along what is mounted in them. So relfs neither
asks these file systems anything, nor is it asked for what is in them, and one that hangs keeps those who use it.

Where there is nothing mounted, or nothing can be attached (--no-bind, an ordinary user, kernels before 5.12), it is the
directory itself; what is mounted below it is served in threads of their own then (fuse/abroad.py).
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack

from relfs import libc
from relfs.beneath import open_beneath
from relfs.daemon.plan import Plan
from relfs.errors import RelfsError, reason
from relfs.layout import CURRENT, RELEASES, SHARED, STATE, DeployPath
from relfs.mountinfo import mount_id, mounts
from relfs.mounts import alone, copy, root_of

_BROUGHT_ALONG = frozenset({RELEASES, SHARED, STATE, CURRENT})


HOME_FD = "home"
"""Where passthrough works."""

TREE_FD = "nested."
"""With the path of what is mounted below it behind: a copy of that, detached until it is attached in the mount."""


def set_apart(deploy: DeployPath, plan: Plan) -> dict[str, int]:
    """The covered directory, and what is mounted below it, apart, as descriptors by name; see "A disk that does not
    answer". To be called before anything is mounted over the deploy path."""
    paths = nested_mounts(deploy) if plan.bind else []
    try:
        return _taken_apart(deploy, paths, plan.mount_options)
    except OSError:
        return {HOME_FD: os.dup(deploy.fd)}


def _taken_apart(deploy: DeployPath, paths: Sequence[str], options: Sequence[str]) -> dict[str, int]:
    with ExitStack() as undo:
        apart: dict[str, int] = {}
        for path in paths:
            apart[TREE_FD + path] = copy(deploy.fd, path, options)
            undo.callback(os.close, apart[TREE_FD + path])
        apart[HOME_FD] = alone(deploy.fd) if paths else os.dup(deploy.fd)
        undo.pop_all()
    return apart


def attach_nested(trees: Mapping[str, int], number: int, mountpoint: str) -> None:
    """Attach in the mount with this id, which must answer, what set_apart() has set apart. Raises RelfsError."""
    attached = {mount.id for mount in mounts()}
    for name, tree in trees.items():
        path = name.removeprefix(TREE_FD)
        try:
            if mount_id(tree) not in attached:  # a worker that has died since may have done it
                with root_of(number, mountpoint) as root:
                    libc.move_mount(tree, os.fsencode(path), root)
        except OSError as error:
            raise RelfsError(
                f"{mountpoint}/{path}: what is mounted there cannot be attached: {reason(error)}; unmount it, and "
                "mount it again when relfs is mounted, or use --no-bind"
            ) from error


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
        fd = open_beneath(deploy.fd, path, os.O_PATH)
    except OSError:
        return False
    try:
        return mount_id(fd) != mount_id(deploy.fd)
    finally:
        os.close(fd)
