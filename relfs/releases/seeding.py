"""The first content of what is shared: a copy of what a release ships, in its place in one step, whole.

Nobody may ever find half of it, for what is there is never written again: an empty .env would be the shared one for
good. A process can end amid it, so the copy is made beside its place, and put there when it is whole; the power can
fail, and a name can reach the disk before the bytes do, so it is flushed before it gets its name (syncfs: a tree has
more files than anybody wants to wait for one by one).

What copies is imported when something is copied: all that reads a configuration imports this.
"""

from __future__ import annotations

import os
import shutil
import stat
from contextlib import suppress

from relfs import libc
from relfs.beneath import below
from relfs.libc import syncfs

_SEED = ".relfs-seed"
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


def seed(source: int, name: str, parent: int) -> bool:
    """Put a copy of `name` in the directory `source` into the directory `parent` (descriptors), with all that it has,
    unless somebody else has put something there meanwhile.

    False: there is nothing to copy, or a link, which whoever made the release has led somewhere already. The caller
    holds the lock of `shared/`. Raises OSError, RelfsError for what cannot be copied.
    """
    try:
        mode = os.lstat(name, dir_fd=source).st_mode
    except FileNotFoundError:
        return False
    if stat.S_ISLNK(mode):
        return False
    remove(_SEED, parent)  # a crash may have left it
    if stat.S_ISDIR(mode):
        _copy_directory(source, name, parent)
    else:
        _copy_file(source, name, parent)
    syncfs(parent)
    _put(name, parent, directory=stat.S_ISDIR(mode))
    return True


def remove(name: str, parent: int) -> None:
    """Remove whatever `name` is in a directory (a descriptor), if it is there. Raises OSError."""
    try:
        mode = os.lstat(name, dir_fd=parent).st_mode
    except FileNotFoundError:
        return
    if stat.S_ISDIR(mode):
        shutil.rmtree(name, dir_fd=parent)
    else:
        os.unlink(name, dir_fd=parent)


def _copy_directory(source: int, name: str, parent: int) -> None:
    from relfs.releases.copying import copy_tree

    os.mkdir(_SEED, 0o700, dir_fd=parent)
    with below(source, name) as shipped, below(parent, _SEED) as copy:
        copy_tree(shipped, copy, None, lambda _: None)


def _copy_file(source: int, name: str, parent: int) -> None:
    from relfs.releases.attributes import dresser_for
    from relfs.releases.contents import copy_contents
    from relfs.releases.copying import any_mode

    fd = os.open(name, _READ, dir_fd=source)
    try:
        status = os.fstat(fd)
        with any_mode():
            out = os.open(_SEED, _CREATE, stat.S_IMODE(status.st_mode) & 0o777, dir_fd=parent)
        try:
            copy_contents(fd, out, status, lambda _: None)
            dresser_for(parent).dress(fd, out, status)
        finally:
            os.close(out)
    finally:
        os.close(fd)


def _put(name: str, parent: int, *, directory: bool) -> None:
    if directory:
        os.rename(_SEED, name, src_dir_fd=parent, dst_dir_fd=parent)  # fails on whatever is there but an empty one
        return
    try:
        libc.renameat2(parent, os.fsencode(_SEED), parent, os.fsencode(name), libc.RENAME_NOREPLACE)
    except FileExistsError:
        os.unlink(_SEED, dir_fd=parent)
    except OSError as error:
        if error.errno not in libc.NO_RENAME_FLAGS:
            raise
        _put_by_link(name, parent)


def _put_by_link(name: str, parent: int) -> None:
    """Where there is no renameat2(2), or the file system does not know the flag: link(2) replaces nothing, either; a
    crash amid it leaves a second name."""
    with suppress(FileExistsError):
        os.link(_SEED, name, src_dir_fd=parent, dst_dir_fd=parent, follow_symlinks=False)
    os.unlink(_SEED, dir_fd=parent)
