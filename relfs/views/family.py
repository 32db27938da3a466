"""Marking processes that run already: one, and all that descend from it. The kernel decides who may: everybody his own,
root all (prlimit(2)).

What is started by a marked process is marked. So a process is marked first, and then those are looked for that it had
started before; and so on, until none is found. One whose parent has ended before anybody asked belongs to no family
that /proc knows of, and is not found.

In many containers root is not allowed to set others' limits (CAP_SYS_RESOURCE), and still to become others
(CAP_SETUID): then it does that, in a process of its own, and sets them as whom they belong to.
"""

from __future__ import annotations

import os
from collections.abc import Collection

from relfs.errors import RefusedError, RelfsError
from relfs.processes import Process, descendants, is_of_the_kernel, process, sole_owner, thread_group
from relfs.views.mark import MarkRefusedError, mark_of, put_mark

_INIT = 1
_KTHREADD = 2
"""On a host: who has started all threads of the kernel. In a container, that is anybody."""


def whole_process(pid: int) -> int:
    """The process that is meant by `pid`, which may be one of its threads. Raises RelfsError if there is none, or
    nobody can mean it and all that it has started, which may be the whole machine."""
    of_the_kernel = is_of_the_kernel(pid)  # first: it takes who has ended meanwhile for one
    found = process(thread_group(pid))
    if found is None or not found.alive:
        raise RelfsError(f"process {pid}: there is none")
    if of_the_kernel:
        raise RefusedError(f"process {pid}: is a thread of the kernel, which needs no release")
    if pid == _INIT and process(_KTHREADD) is not None and is_of_the_kernel(_KTHREADD):
        raise RefusedError(f"process {pid}: has started all processes of this machine; name one of those")
    return found.pid


def mark_family(pid: int, mark: int, *, leave: Collection[int] = ()) -> int:
    """Let process `pid` and its descendants bear `mark`, but for those that bear one of the marks `leave`. How many of
    the descendants may not be marked by us. Blocks.

    Raises RelfsError if `pid` itself cannot be marked.
    """
    _put(pid, mark)
    seen = {pid}
    refused = 0
    while new := [each for each in descendants(pid) if each.pid not in seen]:
        seen |= {each.pid for each in new}
        refused += sum(not _mark_child(each, mark, leave) for each in new)
    return refused


def _mark_child(child: Process, mark: int, leave: Collection[int]) -> bool:
    """False if we may not."""
    now = process(child.pid)
    if now is None or not now.same(child) or mark_of(child.pid) in (mark, *leave):
        return True
    try:
        _put(child.pid, mark)
    except RelfsError:
        return process(child.pid) is None
    return True


def _put(pid: int, mark: int) -> None:
    try:
        put_mark(pid, mark)
    except MarkRefusedError:
        owner = sole_owner(pid) if os.geteuid() == 0 else None
        if owner is None or not _put_as(*owner, pid, mark):
            raise


def _put_as(uid: int, gid: int, pid: int, mark: int) -> bool:
    """Whether that user could do it."""
    child = os.fork()
    if not child:
        status = 1
        try:
            os.setgroups([])
            os.setresgid(gid, gid, gid)
            os.setresuid(uid, uid, uid)
            put_mark(pid, mark)
            status = 0
        finally:
            os._exit(status)
    return os.waitpid(child, 0)[1] == 0
