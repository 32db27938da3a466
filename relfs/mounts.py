"""Attaching native directories to a mount, and taking a mount away. Linux only.

Attaching
---------
Some facts about bind mounts. A plain bind of `shared` hides what is mounted below it (a network disk at
shared/storage is an empty directory there); a recursive one shows it. But a recursive bind of a tree whose mounts
propagate (systemd makes every mount shared) joins their peer groups, and unmounting it, lazily and from the top as
relfs goes away, travels back and unmounts the original network disk (mount_namespaces(7); the known trap of
`umount -R` on an --rbind). The consequence: the copy must be made a slave before anybody can see it, which receives
mounts and sends none. The choice: open_tree(2) a detached recursive copy, mount_setattr(2) it to slave, move_mount(2)
it into place, all by descriptors. Kernels before 5.12 cannot do that; there relfs serves the directory itself, which
follows nested mounts and costs speed only.

The mount may be taken away in any moment, and what its path leads to then is the directory below it, where what is
attached would stay. So the place, too, is a descriptor: the root of that very mount, where the kernel attaches nothing
any more once it is unmounted (EINVAL).
"""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from relfs import libc
from relfs.errors import RelfsError, reason
from relfs.mountinfo import Mount, mount_id, mounts

_ATTRIBUTES = {
    "ro": libc.MOUNT_ATTR_RDONLY,
    "nosuid": libc.MOUNT_ATTR_NOSUID,
    "nodev": libc.MOUNT_ATTR_NODEV,
    "noexec": libc.MOUNT_ATTR_NOEXEC,
}


def attach(source_dir: int, name: str, target: str, options: Iterable[str] = ()) -> None:
    """Make the directory `name` in `source_dir`, and all mounted below it, appear at `target`; see "Attaching".

    Of the mount(8) `options`, ro, nosuid, nodev and noexec hold for what is attached, too.
    Raises OSError: EPERM without CAP_SYS_ADMIN, ENOSYS on kernels that cannot.
    """
    os.close(attach_and_hold(source_dir, name, target, options))


def attach_and_hold(
    source_dir: int, name: str, target: str, options: Iterable[str] = (), target_dir: int = libc.AT_FDCWD
) -> int:
    """The same, and returns what is attached as a descriptor (O_PATH): no path is walked to reach it, then. `target`
    may be relative to `target_dir`."""
    tree = copy(source_dir, name, options)
    try:
        libc.move_mount(tree, os.fsencode(target), target_dir)
    except BaseException:
        os.close(tree)
        raise
    return tree


def attach_in(
    number: int, mountpoint: str, target: str, source_dir: int, name: str, options: Iterable[str]
) -> int | None:
    """The same at `target` in the mount with this id at `mountpoint`. None: that is there no more."""
    try:
        with root_of(number, mountpoint) as root:
            return attach_and_hold(source_dir, name, target, options, root)
    except OSError:
        if is_mounted(number, mountpoint):
            raise
        return None


def detach_in(number: int, mountpoint: str, target: str) -> None:
    """Unmount lazily what is on top at `target` in the mount with this id at `mountpoint`, if that is still there.
    Raises OSError."""
    try:
        with root_of(number, mountpoint) as root:
            libc.detach(f"/proc/self/fd/{root}/{target}")
    except OSError:
        if is_mounted(number, mountpoint):
            raise


@contextmanager
def root_of(number: int, mountpoint: str) -> Iterator[int]:
    """The root of the mount with this id, as a descriptor. Raises OSError: ENODEV if it is not what is on top at
    `mountpoint`."""
    root = os.open(mountpoint, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if mount_id(root) != number:
            raise OSError(errno.ENODEV, "it was unmounted, or something is mounted over it")
        yield root
    finally:
        os.close(root)


def is_mounted(number: int, mountpoint: str | None = None) -> bool:
    """Whether there is a mount with this id; at `mountpoint`, where nobody holds it: another may have got that id."""
    return any(mount.id == number and mountpoint in (None, mount.target) for mount in mounts())


@dataclass(frozen=True)
class Cover:
    """A read-only mount: its id (mountinfo.mount_id), and whether it was read-only before it was made so."""

    id: int
    was_read_only: bool


def cover(source_dir: int, target_dir: int, name: str, options: Iterable[str] = ()) -> Cover:
    """Attach the directory `name` in `source_dir` over the one of that name in `target_dir`, read-only.

    What is mounted below it is there too, as writable as it was: it is another file system's affair.
    Raises OSError as attach() does. No step of a path leads out of the two directories.
    """
    tree = copy(source_dir, name, options)
    try:
        was_read_only = bool(os.fstatvfs(tree).f_flag & os.ST_RDONLY)
        libc.set_mount_attributes(tree, add=libc.MOUNT_ATTR_RDONLY)
        libc.move_mount(tree, os.fsencode(name), target_dir)
        return Cover(mount_id(tree), was_read_only)
    finally:
        os.close(tree)


def copy(source_dir: int, name: str, options: Iterable[str]) -> int:
    """A detached slave of the directory `name` and all mounted below it, as a descriptor. Raises OSError as attach()
    does."""
    flags = libc.OPEN_TREE_CLONE | libc.AT_RECURSIVE | libc.AT_SYMLINK_NOFOLLOW
    tree = libc.open_tree(source_dir, os.fsencode(name), flags)
    try:
        libc.make_slave(tree, sum(_ATTRIBUTES.get(option, 0) for option in set(options)))
    except BaseException:
        os.close(tree)
        raise
    return tree


def alone(directory: int) -> int:
    """A directory without what is mounted below it, as a descriptor, which others' mounts do not reach either. Raises
    OSError as attach() does."""
    tree = libc.open_tree(directory, b"", libc.OPEN_TREE_CLONE | libc.AT_EMPTY_PATH)
    try:
        libc.make_private(tree)
        return os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=tree)
    finally:
        os.close(tree)


def detach(mountpoint: str) -> None:
    """Unmount what is on top there lazily, with all that is mounted below: as root by itself, as a user through
    fusermount3.

    Raises RelfsError.
    """
    _detach(mountpoint, mountpoint)


def detach_only(mount: Mount) -> None:
    """The same for this mount, and nothing else that is on top there by now; that somebody else has been faster is no
    failure. Raises RelfsError.

    umount2(2) goes by the path: of two that have seen a mount and detach it, the second takes what was below. A
    descriptor means one mount, which cannot be detached twice, and whose id nobody else gets as long as it is open.
    """
    try:
        _detach_that(mount.id, mount.target)
    except RelfsError:
        if is_mounted(mount.id, mount.target):
            raise


def _detach_that(number: int, mountpoint: str) -> None:
    """Raises RelfsError."""
    try:
        place = os.open(mountpoint, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise RelfsError(f"{mountpoint}: cannot be unmounted: {reason(error)}") from error
    try:
        if mount_id(place) == number:
            _detach(f"/proc/self/fd/{place}", mountpoint)
    finally:
        os.close(place)


def _detach(path: str, mountpoint: str) -> None:
    """`path` leads to the mount, too. What is no mount any more was detached by somebody else (EINVAL)."""
    try:
        libc.detach(path)
        return
    except PermissionError:
        pass
    except OSError as error:
        if path != mountpoint and error.errno == errno.EINVAL:
            return
        raise RelfsError(f"{mountpoint}: cannot be unmounted: {reason(error)}") from error
    helper = shutil.which("fusermount3") or "fusermount3"
    done = subprocess.run([helper, "-u", "-z", "--", mountpoint], capture_output=True, check=False)
    if done.returncode:
        raise RelfsError(f"{mountpoint}: cannot be unmounted: {os.fsdecode(done.stderr).strip()}")
