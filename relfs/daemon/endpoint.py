"""Where the control socket is, how it comes to be there, and how it goes away."""

from __future__ import annotations

import errno
import os
import socket
import stat
import tempfile
from contextlib import suppress

from relfs.control import SOCKET
from relfs.errors import RelfsError, reason

_BACKLOG = 4096


def listen(directory: int, *, place: str | None = None) -> socket.socket:
    """Listen on `control` in the state directory; what a dead daemon left there is replaced.

    With `place`, the socket is made in that directory and `control` is a link to it: sockets cannot be reached through
    FUSE (unix(7) knows them by inode). The caller holds the daemon lock. Raises RelfsError.
    """
    where = f"/proc/self/fd/{directory}/{SOCKET}" if place is None else f"{place}/{SOCKET}"
    endpoint = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _remove_stale(SOCKET, directory)
        if place is not None:
            with suppress(FileNotFoundError):
                os.unlink(where)
            os.symlink(where, SOCKET, dir_fd=directory)
        _bind(endpoint, where)
        endpoint.listen(_BACKLOG)
    except OSError as error:
        endpoint.close()
        raise RelfsError(f"{SOCKET}: the control socket cannot be made: {reason(error)}") from error
    return endpoint


def _bind(endpoint: socket.socket, where: str) -> None:
    """Anybody may connect: what he may ask for is decided by who he is. The mode comes from the umask, since a chmod(2)
    by path might meet something else by then."""
    before = os.umask(0)
    try:
        endpoint.bind(where)
    finally:
        os.umask(before)


def _remove_stale(name: str, directory: int) -> None:
    try:
        mode = os.lstat(name, dir_fd=directory).st_mode
    except FileNotFoundError:
        return
    if not (stat.S_ISSOCK(mode) or stat.S_ISLNK(mode)):
        raise OSError(errno.EEXIST, "something that is no socket is in its place")
    os.unlink(name, dir_fd=directory)


def run_directory(state_fd: int) -> str:
    """A directory of our own for a socket that cannot be in the state directory; the same one each time.

    Raises RelfsError if it cannot be made, or somebody else has taken its name.
    """
    path = _run_path(state_fd)
    try:
        with suppress(FileExistsError):
            os.mkdir(path, 0o755)
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except (NotADirectoryError, PermissionError):
        raise RelfsError(f"{path}: belongs to somebody else; remove it") from None
    except OSError as error:
        raise RelfsError(f"{path}: the control socket's directory cannot be made: {reason(error)}") from error
    try:
        if os.fstat(fd).st_uid != os.geteuid():
            raise RelfsError(f"{path}: belongs to somebody else; remove it")
        os.fchmod(fd, 0o755)
    finally:
        os.close(fd)
    return path


def remove_socket(state_fd: int) -> None:
    """The control socket, and its run directory if it has one. No link is read: it may say anything by now. What is
    somebody else's stays."""
    with suppress(OSError):
        _remove_stale(SOCKET, state_fd)
    with suppress(OSError):
        path = _run_path(state_fd)
        os.unlink(f"{path}/{SOCKET}")
        os.rmdir(path)


def _run_path(state_fd: int) -> str:
    base = "/run" if os.geteuid() == 0 else os.environ.get("XDG_RUNTIME_DIR", tempfile.gettempdir())
    status = os.fstat(state_fd)
    return f"{base}/relfs-{status.st_dev:x}-{status.st_ino:x}"
