"""Acting as the caller: what a user makes through the mount is his, and what he may not do fails as it would natively.

The kernel has checked modes already (default_permissions); this makes the covered file system check again, with its
access control lists, and gives new files their owner. Capabilities that are not about file access stay root's
(capabilities(7), "Effect of user ID changes"), so a disk's reserve and hard quotas do not bind. Only root can do it; a
user's own daemon acts as that user for everybody, and says so in the documentation.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from pyfuse3 import RequestContext

from relfs.libc import set_thread_fsids, set_thread_groups
from relfs.processes import groups

_IS_ROOT = os.geteuid() == 0
_OWN_GROUPS = tuple(os.getgroups())


@contextmanager
def acting_as(context: RequestContext) -> Iterator[None]:
    """Give this thread the caller's file system identity (credentials(7)). The body must contain no `await`."""
    if not _IS_ROOT or (context.uid == 0 and context.gid == 0):
        yield
        return
    set_thread_groups(groups(context.pid))
    set_thread_fsids(context.uid, context.gid)
    try:
        yield
    finally:
        set_thread_fsids(0, 0)
        set_thread_groups(_OWN_GROUPS)
