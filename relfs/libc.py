"""System calls that Python's os module does not offer. Each raises OSError like its neighbours there."""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import sys

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long

RENAME_NOREPLACE = 1
RENAME_EXCHANGE = 2
RENAME_WHITEOUT = 4

NO_RENAME_FLAGS = frozenset({errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP})
"""What renameat2() fails with where there is no such call, or the file system does not know the flag."""

AT_FDCWD = -100
AT_RECURSIVE = 0x8000
AT_SYMLINK_NOFOLLOW = 0x100
AT_EMPTY_PATH = 0x1000
OPEN_TREE_CLONE = 1
MOVE_MOUNT_F_EMPTY_PATH = 4
MS_PRIVATE = 1 << 18
MS_SLAVE = 1 << 19
MNT_DETACH = 2
UMOUNT_NOFOLLOW = 8
MOUNT_ATTR_RDONLY = 1
MOUNT_ATTR_NOSUID = 2
MOUNT_ATTR_NODEV = 4
MOUNT_ATTR_NOEXEC = 8

RESOLVE_NO_XDEV = 1
RESOLVE_NO_SYMLINKS = 4
RESOLVE_BENEATH = 8

# Numbers that every architecture shares (the 64-bit unified table, since Linux 5.x).
_SYS_OPEN_TREE = 428
_SYS_MOVE_MOUNT = 429
_SYS_OPENAT2 = 437
_SYS_MOUNT_SETATTR = 442


def syncfs(fd: int) -> None:
    """Flush the file system that holds `fd` (syncfs(2)); everything, where there is no such call."""
    if not hasattr(_libc, "syncfs"):
        os.sync()
        return
    _check(_libc.syncfs(fd))


def renameat2(old_dir: int, old: bytes, new_dir: int, new: bytes, flags: int) -> None:
    """renameat2(2), for its flags. Raises OSError(ENOSYS) where there is no such call."""
    if not hasattr(_libc, "renameat2"):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    _check(_libc.renameat2(old_dir, old, new_dir, new, ctypes.c_uint(flags)))


def openat2(directory: int, path: bytes, flags: int, mode: int, resolve: int) -> int:
    """openat2(2), Linux 5.6, for its RESOLVE_* flags. Raises OSError(ENOSYS) where there is no such call."""
    if not _IS_LINUX:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    makes = flags & (os.O_CREAT | getattr(os, "O_TMPFILE", 0) & ~os.O_DIRECTORY)
    how = _OPEN_HOW(flags, mode if makes else 0, resolve)
    return _check(_libc.syscall(_SYS_OPENAT2, directory, path, ctypes.byref(how), _OPEN_HOW_SIZE))


_IS_LINUX = sys.platform == "linux"
_OPEN_HOW = ctypes.c_uint64 * 3  # struct open_how: flags, mode, resolve
_OPEN_HOW_SIZE = ctypes.c_size_t(ctypes.sizeof(_OPEN_HOW))


def hold_here(directory: int, name: bytes) -> int:
    """The inode `name` in `directory`, as O_PATH. Raises OSError(EXDEV) where something is mounted on it (openat2(2),
    RESOLVE_NO_XDEV), unless the kernel has no such call."""
    fd = _libc.syscall(_SYS_OPENAT2, directory, name, _HOLD_HERE, _OPEN_HOW_SIZE)
    if fd >= 0:
        return int(fd)
    number = ctypes.get_errno()
    if number in (errno.ENOSYS, errno.EPERM):  # before Linux 5.6, or in a sandbox that does not know it
        return os.open(name, _HOLD, dir_fd=directory)
    raise OSError(number, os.strerror(number))


_HOLD = getattr(os, "O_PATH", 0) | os.O_NOFOLLOW | os.O_CLOEXEC
_HOLD_HERE = _OPEN_HOW(_HOLD, 0, RESOLVE_NO_XDEV)  # made once: it is on the way of every lookup


def glance(directory: int, name: bytes = b"") -> tuple[int, tuple[int, int]]:
    """Type and mode, and (st_dev, st_ino), of what has this name (no link is followed), or of the descriptor itself: as
    lstat(2) tells, but no file system asks anybody else for it (statx(2), AT_STATX_DONT_SYNC), so that one that does
    not answer keeps nobody waiting. The type is true, and so is the number; the mode may be old."""
    if not hasattr(_libc, "statx"):
        status = os.lstat(name, dir_fd=directory) if name else os.fstat(directory)
        return status.st_mode, (status.st_dev, status.st_ino)
    told = ctypes.create_string_buffer(_STATX_ROOM)
    _check(_libc.statx(directory, name, _GLANCE, _STATX_KEY, told))
    mode, inode, major, minor = _STATX.unpack_from(told)
    return mode, (os.makedev(major, minor), inode)


_GLANCE = 0x4000 | 0x800 | AT_SYMLINK_NOFOLLOW | AT_EMPTY_PATH  # AT_STATX_DONT_SYNC, AT_NO_AUTOMOUNT
_STATX_KEY = 0x103  # STATX_TYPE, STATX_MODE, STATX_INO
_STATX_ROOM = 256
_STATX = struct.Struct("=28xH2xQ96xII")  # struct statx: stx_mode, stx_ino, stx_dev_major, stx_dev_minor


def chown_open(fd: int, uid: int, gid: int) -> None:
    """fchownat(2) with AT_EMPTY_PATH: of whatever is open, also as O_PATH, which may be a link."""
    _check(_libc.fchownat(fd, b"", ctypes.c_uint(uid), ctypes.c_uint(gid), AT_EMPTY_PATH))


def open_tree(directory: int, path: bytes, flags: int) -> int:
    """A detached copy of the mount (with AT_RECURSIVE: tree) at `path`, as a descriptor (open_tree(2), Linux 5.2)."""
    return _check(_libc.syscall(_SYS_OPEN_TREE, directory, path, ctypes.c_uint(flags | os.O_CLOEXEC)))


def make_slave(tree: int, flags: int = 0) -> None:
    """Let no unmount inside the detached tree travel back to its origin, and set MOUNT_ATTR_* `flags` on all of it
    (mount_setattr(2), Linux 5.12)."""
    attributes = (ctypes.c_uint64 * 4)(flags, 0, MS_SLAVE, 0)  # struct mount_attr: set, clear, propagation, userns
    size = ctypes.c_size_t(ctypes.sizeof(attributes))
    how = ctypes.c_uint(AT_EMPTY_PATH | AT_RECURSIVE)
    _check(_libc.syscall(_SYS_MOUNT_SETATTR, tree, b"", how, ctypes.byref(attributes), size))


def make_private(tree: int) -> None:
    """Let no mount or unmount come into the detached tree, nor out of it (mount_setattr(2), Linux 5.12)."""
    attributes = (ctypes.c_uint64 * 4)(0, 0, MS_PRIVATE, 0)
    size = ctypes.c_size_t(ctypes.sizeof(attributes))
    _check(_libc.syscall(_SYS_MOUNT_SETATTR, tree, b"", ctypes.c_uint(AT_EMPTY_PATH), ctypes.byref(attributes), size))


def set_mount_attributes(mount: int, *, add: int = 0, remove: int = 0) -> None:
    """Change MOUNT_ATTR_* flags of the one mount whose root the descriptor `mount` is (mount_setattr(2), Linux 5.12).

    Raises OSError(EBUSY) for MOUNT_ATTR_RDONLY while a file is open for writing through that mount.
    """
    attributes = (ctypes.c_uint64 * 4)(add, remove, 0, 0)  # struct mount_attr, as above
    size = ctypes.c_size_t(ctypes.sizeof(attributes))
    _check(_libc.syscall(_SYS_MOUNT_SETATTR, mount, b"", ctypes.c_uint(AT_EMPTY_PATH), ctypes.byref(attributes), size))


def move_mount(tree: int, target: bytes, directory: int = AT_FDCWD) -> None:
    """Attach a detached tree at the path `target`, which may be relative to `directory` (move_mount(2), Linux 5.2)."""
    _check(_libc.syscall(_SYS_MOVE_MOUNT, tree, b"", directory, target, ctypes.c_uint(MOVE_MOUNT_F_EMPTY_PATH)))


def unmount(path: str) -> None:
    """umount2(2) of the topmost mount at `path`. Raises OSError(EBUSY) while anybody uses it."""
    _check(_libc.umount2(os.fsencode(path), UMOUNT_NOFOLLOW))


def detach(path: str) -> None:
    """umount2(2) with MNT_DETACH: the mount, and all that is mounted on it, is gone from the name space at once."""
    _check(_libc.umount2(os.fsencode(path), MNT_DETACH))


def set_thread_fsids(uid: int, gid: int) -> None:
    """setfsgid(2) and setfsuid(2), which are per thread and never fail visibly."""
    _libc.setfsgid(ctypes.c_uint(gid))
    _libc.setfsuid(ctypes.c_uint(uid))


def set_thread_groups(groups: tuple[int, ...]) -> None:
    """The raw setgroups(2), which is per thread; glibc's own would change every thread."""
    array = (ctypes.c_uint * len(groups))(*groups)
    _check(_libc.syscall(_SYS_SETGROUPS, ctypes.c_size_t(len(groups)), array))


def capabilities_of(tid: int) -> int | None:
    """The effective capabilities of a thread (capget(2), capabilities(7)), a bit each; None if it is gone."""
    header, data = _capability_header(tid), _CapabilitySets()
    if _libc.capget(header, data) < 0:
        return None
    return data[0] | data[3] << 32


def set_thread_capabilities(effective: int) -> None:
    """Make these, of those that are permitted, the effective capabilities of this thread (capset(2), per thread)."""
    header, data = _capability_header(0), _CapabilitySets()
    _check(_libc.capget(header, data))
    data[0], data[3] = data[1] & effective & 0xFFFFFFFF, data[4] & effective >> 32
    _check(_libc.capset(header, data))


def limit_capabilities(kept: int) -> None:
    """Give up all capabilities but `kept`, in every set of this thread, for good (capabilities(7)).

    Where the bounding set cannot be lowered (without CAP_SETPCAP), a program that root executes can have them again.
    """
    header, data = _capability_header(0), _CapabilitySets()
    _check(_libc.capget(header, data))
    _prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL)  # Linux 4.3
    excess = bounding_capabilities() & ~kept
    for number in range(64):
        if excess >> number & 1:
            _prctl(_PR_CAPBSET_DROP, number)
    for upper in (0, 1):
        part = kept >> 32 * upper & 0xFFFFFFFF
        data[3 * upper : 3 * upper + 3] = [data[3 * upper] & part, data[3 * upper + 1] & part, 0]
    _check(_libc.capset(header, data))


def bounding_capabilities() -> int:
    """What a program that this thread executes can have at most, a bit each (capabilities(7))."""
    return sum(1 << number for number in range(64) if _prctl(_PR_CAPBSET_READ, number) > 0)


def prctl(option: int) -> None:
    """prctl(2) with no further arguments. Raises OSError: EINVAL for an option that there is not."""
    _check(_prctl(option))


def die_with_parent(number: int) -> None:
    """Let the kernel send signal `number` to this process when the thread that forked it ends (PR_SET_PDEATHSIG,
    prctl(2)). Nothing, where there is no such call; nor if the parent has ended by now, which is for the caller to see.
    """
    if hasattr(_libc, "prctl"):
        _check(_prctl(_PR_SET_PDEATHSIG, number))


def add_seccomp_filter(program: bytes) -> None:
    """Let a classic BPF program decide on each system call of this thread and its children from now on (seccomp(2)).

    Raises OSError: EACCES without CAP_SYS_ADMIN (and without no_new_privs), EINVAL where the kernel has no filters.
    """
    code = ctypes.create_string_buffer(program, len(program))
    header = _FilterProgram(len(program) // 8, ctypes.addressof(code))
    _check(_prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.addressof(header)))


def _prctl(option: int, first: int = 0, second: int = 0) -> int:
    """The kernel wants to see that what is not used is 0."""
    return int(_libc.prctl(option, *map(ctypes.c_ulong, (first, second, 0, 0))))


def has_seccomp_filters() -> bool:
    """Whether the kernel has them: then it misses the program that it is given here (seccomp(2), EFAULT)."""
    return _prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER) < 0 and ctypes.get_errno() == errno.EFAULT


class _FilterProgram(ctypes.Structure):
    """struct sock_fprog."""

    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_void_p))


_PR_SET_PDEATHSIG = 1
_PR_SET_SECCOMP = 22
_PR_CAPBSET_READ = 23
_PR_CAPBSET_DROP = 24
_PR_CAP_AMBIENT = 47
_PR_CAP_AMBIENT_CLEAR_ALL = 4
_SECCOMP_MODE_FILTER = 2


def _capability_header(tid: int) -> ctypes.Array[ctypes.c_uint32]:
    return (ctypes.c_uint32 * 2)(_LINUX_CAPABILITY_VERSION_3, tid)


_LINUX_CAPABILITY_VERSION_3 = 0x20080522
_CapabilitySets = ctypes.c_uint32 * 6
"""Effective, permitted, inheritable; and the same again, for the upper 32."""


def unshare_umask() -> None:
    """Give this thread an umask (and a working directory) of its own, if it has none yet (unshare(2), CLONE_FS).

    Where a sandbox forbids that, nothing happens.
    """
    if hasattr(_libc, "unshare"):
        _libc.unshare(_CLONE_FS)


_CLONE_FS = 0x200
_CLONE_FILES = 0x400


def keep_only(*fds: int) -> bool:
    """Give this thread a descriptor table of its own, with nothing in it but `fds` (unshare(2), CLONE_FILES).

    False where a sandbox forbids that; then nothing has happened.
    """
    if not hasattr(_libc, "unshare") or _libc.unshare(_CLONE_FILES) < 0:
        return False
    first = 0
    for fd in sorted(fds):
        os.closerange(first, fd)
        first = fd + 1
    os.closerange(first, os.sysconf("SC_OPEN_MAX"))
    return True


def set_idle_io() -> None:
    """Let others' reads and writes come before this process's (ioprio_set(2), IOPRIO_CLASS_IDLE), where the disk's
    scheduler knows of such things. Raises OSError."""
    _check(_libc.syscall(_SYS_IOPRIO_SET, _IOPRIO_WHO_PROCESS, 0, _IOPRIO_CLASS_IDLE << _IOPRIO_CLASS_SHIFT))


_IOPRIO_WHO_PROCESS = 1
_IOPRIO_CLASS_IDLE = 3
_IOPRIO_CLASS_SHIFT = 13
_SYS_IOPRIO_SET = {"x86_64": 251, "s390x": 282, "ppc64": 273, "ppc64le": 273}.get(
    os.uname().machine if ctypes.sizeof(ctypes.c_void_p) == 8 else "",
    30 if os.uname().machine in ("aarch64", "riscv64", "loongarch64") else -1,
)  # fmt: skip
"""Of the machines that Debian knows; -1, which no kernel has, for another."""


def _setgroups_number() -> int:
    """Of the machines that Debian knows; -1, which no kernel has, for another, or for 32 bits on a 64-bit kernel."""
    if ctypes.sizeof(ctypes.c_void_p) == 4:
        return {"i386": 206, "i586": 206, "i686": 206, "armv6l": 206, "armv7l": 206}.get(os.uname().machine, -1)
    numbers = {"x86_64": 116, "s390x": 206, "ppc64": 81, "ppc64le": 81}
    generic = dict.fromkeys(("aarch64", "riscv64", "loongarch64"), 159)
    return {**numbers, **generic}.get(os.uname().machine, -1)


_SYS_SETGROUPS = _setgroups_number()


def _check(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return int(result)
