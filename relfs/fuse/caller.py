"""Acting as the caller: what a user makes through the mount is his, and what he may not do fails as it would natively.

The kernel has checked modes already (default_permissions); this makes the covered file system check again, by the
caller's user, groups and capabilities, and gives new files their owner. Capabilities that are not about file access
stay root's (capabilities(7), "Effect of user ID changes"), so a disk's reserve and hard quotas do not bind. Only root
can do it; a user's own daemon acts as that user for everybody, and says so in the documentation.

The umask
---------
Some facts. A umask does not apply where the directory has a default access control list (acl(5)), and only the covered
file system knows whether it has one. It takes the umask of whoever makes the file: ours. That is one for all threads of
a process, some of which make files of relfs's own; but each may leave the others (unshare(2), CLONE_FS).

The choice. While something is being made for a caller, this thread has a umask of its own, which is the caller's. A
thread that is started later shares it again, though never such a moment: hence it is left again each time, which
costs nothing where there is nobody to leave. Looking for the list first would cost four times as much.
"""

from __future__ import annotations

import functools
import os
from contextlib import AbstractContextManager, nullcontext

from pyfuse3 import RequestContext

from relfs import libc
from relfs.processes import credentials, is_in_our_user_namespace

_IS_ROOT = os.geteuid() == 0
_OWN_GROUPS = tuple(os.getgroups())

CAP_FOWNER = 1 << 3
_CAP_SYS_ADMIN = 1 << 21
_FILE_CAPABILITIES = 0x1F | 1 << 9 | 1 << 27 | 1 << 32
"""Those that setfsuid(2) takes and gives back: CAP_CHOWN to CAP_FSETID, CAP_LINUX_IMMUTABLE, CAP_MKNOD and
CAP_MAC_OVERRIDE (CAP_FS_SET in the kernel)."""

_AS_OURSELVES = nullcontext()


@functools.cache
def _own_capabilities() -> int:
    """Asked for with the first request: by then, those that we have no use for are given up (daemon/privileges.py)."""
    return libc.capabilities_of(0) or 0


def acting_as(context: RequestContext, *, lend: int = 0) -> AbstractContextManager[None]:
    """Give this thread the caller's file system identity (credentials(7)), and capabilities that he has not, where the
    kernel has found that he needs none. The body must contain no `await`."""
    if not _IS_ROOT or (context.uid == 0 and context.gid == 0 and _may_all(context.pid)):
        return _AS_OURSELVES
    return _Acting(context, lend)


def creating_as(context: RequestContext) -> AbstractContextManager[None]:
    """The same, with the caller's umask. The body must contain no `await`."""
    return _Creating(context)


def is_administrator(context: RequestContext) -> bool:
    """Whether the caller has CAP_SYS_ADMIN, which shows him attributes that are called `trusted.` (xattr(7))."""
    capabilities = libc.capabilities_of(context.pid) if context.pid else None
    if capabilities is None:
        return context.uid == 0
    return bool(capabilities & _CAP_SYS_ADMIN) and is_in_our_user_namespace(context.pid)


def _may_all(tid: int) -> bool:
    """Whether root has all of root's capabilities, which containers and services often have not. Whoever is gone, or
    outside of our pid name space (fuse(4): 0), is taken for what root mostly is; the kernel has checked him anyway."""
    capabilities = libc.capabilities_of(tid) if tid else None
    return capabilities is None or not (_own_capabilities() & _FILE_CAPABILITIES & ~capabilities)


class _Acting:
    """Somebody else's file system identity, for as long as a `with` lasts."""

    def __init__(self, context: RequestContext, lent: int) -> None:
        self._uid, self._gid = context.uid, context.gid
        found = credentials(context.pid)
        self._groups = found.groups
        kept = found.capabilities & _FILE_CAPABILITIES
        if self._uid != 0 and kept and not is_in_our_user_namespace(context.pid):
            kept = 0  # over what belongs to his name space; that no user's own may give him any power here is vital
        self._capabilities = _own_capabilities() & (kept | lent | ~_FILE_CAPABILITIES)

    def __enter__(self) -> None:
        try:
            libc.set_thread_groups(self._groups)
            libc.set_thread_fsids(self._uid, self._gid)
            if self._differs():
                libc.set_thread_capabilities(self._capabilities)
        except BaseException:
            self.__exit__()
            raise

    def _differs(self) -> bool:
        """Whether they are others than setfsuid(2) has left."""
        left = _own_capabilities() if self._uid == 0 else _own_capabilities() & ~_FILE_CAPABILITIES
        return self._capabilities != left

    def __exit__(self, *_: object) -> None:
        libc.set_thread_fsids(0, 0)
        if self._uid == 0 and self._differs():  # otherwise setfsuid(2) has given them back
            libc.set_thread_capabilities(_own_capabilities())
        libc.set_thread_groups(_OWN_GROUPS)


class _Creating:
    """The caller's identity and umask, for as long as a `with` lasts."""

    def __init__(self, context: RequestContext) -> None:
        self._umask = context.umask
        self._acting = acting_as(context)

    def __enter__(self) -> None:
        self._acting.__enter__()
        libc.unshare_umask()
        os.umask(self._umask)

    def __exit__(self, *_: object) -> None:
        os.umask(0)
        self._acting.__exit__(None, None, None)
