"""Walking the tree of a release: down to its leaves, along no link, and into nothing that is mounted in it; and into
directories of our own that keep us out.

What is mounted in a release is somebody else's, be it of the same file system (mount --bind), which st_dev does not
tell. So each step is taken with RESOLVE_NO_XDEV (openat2(2)), which refuses to cross any mount.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import suppress

from relfs import libc
from relfs.beneath import open_beneath
from relfs.mountinfo import mount_id

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_RESOLVE = libc.RESOLVE_BENEATH | libc.RESOLVE_NO_SYMLINKS | libc.RESOLVE_NO_XDEV
_NO_OPENAT2 = frozenset({errno.ENOSYS, errno.EPERM})


def enter(directory: int, path: str) -> int:
    """A descriptor of the directory `path` below the descriptor `directory`.

    Raises OSError: EXDEV if something is mounted on the way, ELOOP or ENOTDIR for a link.
    """
    try:
        return libc.openat2(directory, os.fsencode(path), _DIRECTORY, 0, _RESOLVE)
    except OSError as error:
        if error.errno not in _NO_OPENAT2:
            raise
    return _enter_and_compare(directory, path)


def _enter_and_compare(directory: int, path: str) -> int:
    """Before Linux 5.6: whether a mount was crossed is seen afterwards."""
    found = open_beneath(directory, path, _DIRECTORY)
    if _mount(found) != _mount(directory):
        os.close(found)
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
    return found


def _mount(directory: int) -> tuple[int, int]:
    """What is the same for two directories only if no mount is between them, as far as the system tells."""
    try:
        return os.fstat(directory).st_dev, mount_id(directory)
    except FileNotFoundError:  # no /proc, and nothing like mount --bind
        return os.fstat(directory).st_dev, 0


def open_up(directory: int, name: str) -> None:
    """Let our own directory `name` be listed, emptied and moved by us, who may have locked ourselves out (`chmod a-w`),
    as tools do with what they have downloaded. What may not be written cannot be moved, either: its `..` changes
    (rename(2), EACCES). For root, nothing happens, who has no need of it."""
    with suppress(OSError):
        mode = stat.S_IMODE(os.lstat(name, dir_fd=directory).st_mode)
        if os.geteuid() != 0 and mode & stat.S_IRWXU != stat.S_IRWXU:
            os.chmod(name, mode | stat.S_IRWXU, dir_fd=directory)  # at worst where a link of ours leads, as ourselves


def walk(top: int, on_error: Callable[[str, OSError], None]) -> Iterator[tuple[str, os.DirEntry[str]]]:
    """Everything below the directory `top` (a descriptor), in no order: its path from there, and its entry.

    `on_error` is called with the path of a directory that cannot be read, and with why. An entry that is stat()ed must
    be so before the next one is asked for.
    """
    waiting = [""]
    while waiting:
        path = waiting.pop()
        try:
            directory = enter(top, path or ".")
        except OSError as error:
            on_error(path, error)
            continue
        try:
            with os.scandir(directory) as entries:
                for entry in entries:
                    below = f"{path}/{entry.name}" if path else entry.name
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(below)
                    yield below, entry
        except OSError as error:
            on_error(path, error)
        finally:
            os.close(directory)
