"""Whom relfsctl believes: who listens on a control socket, which the kernel tells (SO_PEERCRED, unix(7)), and which
mounts are what they say. That a daemon serves this deploy path, and not another, is for the daemon to say no to.

Somebody else's answers
-----------------------
Some facts. Whoever can write in a state directory can put a socket of his own there, or a link to one. relfsctl may be
run by root: its answers are acted upon by scripts, and what it asks for is done by root's authority, wherever the
socket leads. And any user may mount something of his own that says to be relfs's mount of any deploy path: fusermount3
takes his word for both. The consequence: three things can go wrong. A stranger may answer "it is switched"; a link may
lead to the daemon of another deploy path, which would rightly do as root asks, in the wrong place; and a stranger's
mount may have relfsctl ask him, or keep it from working without a daemon.

The choice. Believed are root, relfsctl's own user, and the owner of the state directory, who could have made the mount.
A mount elsewhere counts if it is root's, relfsctl's own user's, or that of the deploy path's owner; then its owner is
believed in it. (Who mounts over the deploy path can write there: fusermount3 sees to that.) And every change says in
which state directory the socket was found (device and inode, which are the same in every container and under every
name); the daemon refuses one that is not its own. In an unmapped user name space, root and the directory's owner are
both "nobody": that is one and the same, too.

Standard library only, and quick to import.
"""

from __future__ import annotations

import os
import re
import socket
import struct
from typing import TYPE_CHECKING

from relfs.errors import RelfsError

if TYPE_CHECKING:
    from relfs.mountinfo import Mount

_CREDENTIALS = struct.Struct("3i")


def require_believed(endpoint: socket.socket, state_path: str) -> None:
    """Raises RelfsError unless who listens at the other end may speak for the state directory; OSError."""
    uid = peer_uid(endpoint)
    if uid is None or uid in (0, os.geteuid(), os.lstat(state_path).st_uid) or uid in _mount_owners(state_path):
        return
    raise RelfsError(
        f"{state_path}: user {_name(uid)} listens on the control socket, who is neither root nor its owner, and is "
        "not believed; remove the socket, and mount again"
    )


def peer_uid(endpoint: socket.socket) -> int | None:
    """The user who called listen(2) at the other end of a connection; None where a system does not tell."""
    option = getattr(socket, "SO_PEERCRED", None)
    if option is None:
        return None
    uid: int = _CREDENTIALS.unpack(endpoint.getsockopt(socket.SOL_SOCKET, option, _CREDENTIALS.size))[1]
    return uid


def identity(state: int | str) -> str:
    """What tells a state directory, given by descriptor or path, from every other on this host. Raises OSError.

    In its place, a link to another one's state directory is itself, and so nobody's.
    """
    status = os.fstat(state) if isinstance(state, int) else os.lstat(state)
    return f"{os.major(status.st_dev)}:{os.minor(status.st_dev)}:{status.st_ino}"


def _mount_owners(state_path: str) -> set[int]:
    """Who made the mounts of relfs that the state directory is looked at through (mountinfo; fuse(4), user_id)."""
    from relfs.mountinfo import relfs_mounts

    around = (mount for mount in relfs_mounts() if state_path.startswith(mount.target.rstrip("/") + "/"))
    return {owner for mount in around if speaks_for(mount) and (owner := _owner(mount)) is not None}


def speaks_for(mount: Mount) -> bool:
    """Whether a mount of relfs is one of the deploy path that it names, and not a stranger's that only says so."""
    if mount.target == mount.source or _owner(mount) in (0, os.geteuid()):
        return True
    try:
        return os.lstat(mount.source).st_uid == _owner(mount)
    except OSError:
        return False


def _owner(mount: Mount) -> int | None:
    found = re.search(r"(?:^|,)user_id=(\d+)", mount.options)
    return int(found[1]) if found is not None else None


def _name(uid: int) -> str:
    import pwd

    try:
        return pwd.getpwuid(uid).pw_name
    except (KeyError, OverflowError):
        return str(uid)
