"""What must hold before anything is mounted, and the lock that keeps it so.

Each check raises a RelfsError that says what to do; none changes anything but what a killed daemon left behind.
"""

from __future__ import annotations

import errno
import fcntl
import itertools
import os
import resource
import threading
import time

from relfs.beneath import open_file
from relfs.daemon.plan import Plan
from relfs.errors import RelfsError, reason
from relfs.layout import CURRENT
from relfs.mountinfo import FSTYPE, Mount, mount_at, relfs_mounts
from relfs.mounts import detach_only
from relfs.pointer import Pointer

DAEMON_LOCK = "daemon.lock"

_HELPER_LOOKS = 150
"""Three seconds, if the machine does not stand still: then the helper did, too."""

_PREDECESSOR_SECONDS = 10.0
_PAUSE = 0.02
_LOOK_SECONDS = 2.0
_WAITS = 2


def clear_broken(plan: Plan) -> None:
    """Remove what a killed daemon left. Its helper is about to do so, and must be given the time: it goes by the path,
    and would unmount what we mount there."""
    for looks in itertools.count():
        found = _mounted(plan.mountpoint)
        if found is None or not _is_broken(plan.mountpoint):
            return
        if looks >= _HELPER_LOOKS:
            detach_only(found)
        time.sleep(_PAUSE)


def _mounted(path: str) -> Mount | None:
    """The mount of relfs there, if there is one."""
    found = mount_at(path)
    return found if found is not None and found.fstype == FSTYPE else None


def _is_broken(path: str) -> bool:
    """Whether `path` is a FUSE mount whose daemon is gone. One whose daemon is stopped gives no answer: it is not. That
    is waited for in parts, of which a machine that stands still uses up one."""
    answers: list[int | None] = []

    def look() -> None:
        try:
            os.statvfs(path)  # the kernel knows the attributes of a dead mount's root for ever
            answers.append(None)
        except OSError as error:
            answers.append(error.errno)

    looking = threading.Thread(target=look, daemon=True)
    looking.start()
    for _ in range(_WAITS):
        looking.join(_LOOK_SECONDS / _WAITS)
    return bool(answers) and answers[0] in (errno.ENOTCONN, errno.ECONNABORTED)


def check_mountpoint(plan: Plan) -> None:
    """Raises RelfsError if nothing can be mounted there, or something is."""
    if _mounted(plan.mountpoint) is not None:
        raise RelfsError(f"{plan.mountpoint}: already mounted; `relfsctl unmount` ends that")
    if not os.path.isdir(plan.mountpoint):
        if plan.over:
            return  # said by open_deploy_path(), in the deploy path's terms
        raise RelfsError(f"{plan.mountpoint}: no such directory to mount on; make it first")
    if plan.over:
        return
    if plan.deploy_path.startswith(plan.mountpoint.rstrip("/") + "/"):
        raise RelfsError(f"{plan.mountpoint}: busy: the deploy path is below it and would be hidden")
    if not plan.nonempty and os.listdir(plan.mountpoint):
        raise RelfsError(f"{plan.mountpoint}: busy: it is not empty, and what it holds would be hidden (-o nonempty)")


def require_servable(pointer: Pointer) -> None:
    """A first `current` may come later, a broken one is said before anything is covered."""
    target = pointer.target
    deploy = pointer.deploy
    if target is None or deploy.leads_somewhere(target.text):
        return
    raise RelfsError(
        f"{deploy.path}/{CURRENT}: leads to {target.text}, which is no directory; "
        f"`relfsctl -C {deploy.path} switch RELEASE` makes it lead to a release"
    )


def take_daemon_lock(plan: Plan, state_fd: int) -> int:
    """Only one mount of a deploy path: a descriptor that keeps others away as long as any process has it open. One that
    is on its way out, its mount gone, is waited for."""
    try:
        fd = _open_lock(state_fd)
    except OSError as error:
        raise RelfsError(f"{plan.deploy_path}: the state directory cannot be written: {reason(error)}") from error
    try:
        deadline = time.monotonic() + _PREDECESSOR_SECONDS
        while not _try_lock(fd):
            where = [mount.target for mount in relfs_mounts() if mount.source == plan.deploy_path]
            if where or time.monotonic() > deadline:
                shown = f"at {where[0]}" if where else "by another name, or in another mount name space"
                raise RelfsError(f"{plan.deploy_path}: already mounted {shown}; `relfsctl unmount` ends that")
            time.sleep(_PAUSE)
    except BaseException:
        os.close(fd)
        raise
    return fd


def replace_daemon_lock(state_fd: int) -> int:
    """The same again for a mount that there is, whose lock somebody has removed. Raises OSError, if somebody else was
    first, too."""
    fd = _open_lock(state_fd)
    if not _try_lock(fd):
        os.close(fd)
        raise BlockingIOError(errno.EAGAIN, "another daemon has taken it")
    return fd


def _open_lock(state_fd: int) -> int:
    """Not for writing, since a file system with a file that is open for that cannot be remounted read-only; but where
    nothing else will do, as with NFS (flock(2))."""
    fd = open_file(state_fd, DAEMON_LOCK, os.O_CREAT | os.O_RDONLY)
    try:
        _try_lock(fd)
    except OSError as error:
        os.close(fd)
        if error.errno != errno.EBADF:
            raise
        fd = open_file(state_fd, DAEMON_LOCK, os.O_CREAT | os.O_RDWR)
    return fd


def _try_lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def raise_descriptor_limit() -> None:
    """Each inode that the kernel knows through passthrough is a descriptor here: as many as we can get."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    with open("/proc/sys/fs/nr_open", "rb") as file:
        most = max(hard, int(file.read()))
    for limit in (most, hard):  # the first takes CAP_SYS_RESOURCE
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
            return
        except (ValueError, OSError):
            pass
