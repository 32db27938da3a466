"""What a file has besides its bytes: owner, mode, extended attributes (access control lists are some), times.

Which of them can be kept depends on who copies: only root can give files away; others can give them to groups of their
own. What only the system itself can set for us (an SELinux label, somebody else's trusted.*) is left to it.
"""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import dataclass

_SPECIAL = stat.S_ISUID | stat.S_ISGID | stat.S_ISVTX
_LABEL = "security.selinux"
_PRIVILEGED = ("security.", "trusted.")
_HAS_XATTRS = hasattr(os, "listxattr")
_NO_XATTRS = frozenset({errno.EOPNOTSUPP, errno.ENOSYS})


@dataclass(frozen=True)
class Dresser:
    """Makes files look like those that they were copied from.

    `uid` and `gid` are what a new file in the staging directory gets by itself; `exact`: its mode has to be set
    explicitly, because an access control list of the directory changes what open(2) is told.
    """

    uid: int
    gid: int
    exact: bool
    groups: frozenset[int]

    def dress(self, fd: int, out: int, status: os.stat_result) -> None:
        """Give `out`, which was made with the permissions in `status`, all else that `fd` has. Raises OSError.

        The times come last, since all other calls change them, and a mode after the owner, who changes it (chown(2)).
        """
        changed = self._give(out, status)
        xattrs = xattr_names(fd)
        if xattrs:
            os.fchmod(out, 0o600)  # the owner of a file that he may not write cannot set all of them (xattr(7))
            copy_xattrs(fd, out, xattrs)
        if xattrs or changed or self.exact or status.st_mode & _SPECIAL:
            os.fchmod(out, stat.S_IMODE(status.st_mode))
        os.utime(out, ns=(status.st_atime_ns, status.st_mtime_ns))

    def dress_made(self, fd: int, out: int, status: os.stat_result) -> None:
        """The same for a directory, which was made with other permissions. Raises OSError."""
        self._give(out, status)
        copy_xattrs(fd, out, xattr_names(fd))
        os.fchmod(out, stat.S_IMODE(status.st_mode))
        os.utime(out, ns=(status.st_atime_ns, status.st_mtime_ns))

    def dress_link(self, directory: int, name: str, status: os.stat_result) -> None:
        """The same for a symbolic link, which has an owner and times only. Raises OSError."""
        uid, gid = self._owner(status)
        if uid != -1 or gid != -1:
            os.chown(name, uid, gid, dir_fd=directory, follow_symlinks=False)
        times = (status.st_atime_ns, status.st_mtime_ns)
        os.utime(name, ns=times, dir_fd=directory, follow_symlinks=False)

    def _give(self, out: int, status: os.stat_result) -> bool:
        uid, gid = self._owner(status)
        if uid == -1 and gid == -1:
            return False
        os.fchown(out, uid, gid)
        return True

    def _owner(self, status: os.stat_result) -> tuple[int, int]:
        """What to tell chown(2): -1 for what is right by itself or cannot be changed."""
        if self.uid == 0:
            uid = status.st_uid if status.st_uid != self.uid else -1
            return uid, status.st_gid if status.st_gid != self.gid else -1
        return -1, status.st_gid if status.st_gid != self.gid and status.st_gid in self.groups else -1


def dresser_for(directory: int) -> Dresser:
    """For files that are made below `directory` (a descriptor). Raises OSError."""
    status = os.fstat(directory)
    gid = status.st_gid if status.st_mode & stat.S_ISGID else os.getegid()
    exact = any(name.startswith("system.posix_acl_default") for name in xattr_names(directory))
    return Dresser(os.geteuid(), gid, exact, frozenset((*os.getgroups(), os.getegid())))


def xattr_names(file: int | str) -> list[str]:
    """Of a descriptor or path (of which the last link is not followed); none where there are no such things."""
    if not _HAS_XATTRS:
        return []
    try:
        return os.listxattr(file) if isinstance(file, int) else os.listxattr(file, follow_symlinks=False)
    except OSError as error:
        if error.errno not in _NO_XATTRS:
            raise
        return []


def xattrs_of(file: int) -> dict[str, bytes]:
    """What is copied of a descriptor's extended attributes. Raises OSError."""
    return {name: os.getxattr(file, name) for name in xattr_names(file) if _can_be_copied(name)}


def copy_xattrs(fd: int, out: int, names: list[str]) -> None:
    """Raises OSError, also where the file system of `out` has no room for them, or no such things."""
    for name in names:
        if _can_be_copied(name):
            os.setxattr(out, name, os.getxattr(fd, name))


def _can_be_copied(name: str) -> bool:
    return name != _LABEL and (os.geteuid() == 0 or not name.startswith(_PRIVILEGED))
