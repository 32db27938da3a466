"""The mark: a number that a process bears, and all that descend from it, by which relfs knows what they are to see.

A number that is inherited
--------------------------
Some facts. Who asks us for `current` is a thread id, and nothing else. That it descends from a process that somebody
pinned, /proc tells only as long as everybody between the two lives: a daemon's parent has ended, and its new one is
init. What a process hands down to its children may be looked at from outside, but most of it is lost on the way: an
environment by `env -i`, sudo(8) and whoever writes his title over it; descriptors by who closes all; a process group
and a session by setsid(2); a subreaper has to live, and gets to wait for children that it does not expect. A control
group is inherited, but it is the service manager's, only root may make one, and a container has its own. The process
connector (PROC_EVENT_FORK) would tell us of every fork of the whole host, and nothing while no worker listens.

One thing of a process is copied by fork(2), kept by execve(2), setuid(2), setsid(2), and by name spaces and root
directories whatever they are; may be set by its owner without privileges, and for others by root (CAP_SYS_RESOURCE);
holds 64 bits; is read by one system call; and means nothing: the soft limit of file locks, RLIMIT_LOCKS, which the
kernel has not looked at since Linux 2.4.25 (getrlimit(2)), and still keeps. Nobody but a shell's `ulimit -x`, and
pam_limits(8) where `locks` is set for a user, writes to it.

The choice. A pinned process has a random number there, the mark, and relfs remembers what that stands for. No walk and
no start time decide who somebody is: a process that begins anew under an old pid has what its own parent
had. The hard limit stays as it is, so that a mark may be replaced by another.

What it cannot do: stop a process from ending its own view, or from taking over one that it read from another's
/proc/PID/limits. Both are nothing that it could not have had for the asking.
"""

from __future__ import annotations

import os
import resource
import secrets
from contextlib import suppress

from relfs.errors import RelfsError, reason

_RLIMIT_LOCKS = 10  # asm-generic/resource.h; the same on every architecture
_TAG = 0x52
_TAG_AT = 56
_LIMITS_MAX = 1 << 12
_LIMITS_LINE = b"\nMax file locks"


class MarkRefusedError(RelfsError):
    """The process is not ours to mark."""


def new_mark() -> int:
    """One that nobody bears."""
    return _TAG << _TAG_AT | secrets.randbits(_TAG_AT)


def is_mark(number: int) -> bool:
    """Whether it may be one."""
    return number >> _TAG_AT == _TAG


def mark_of(tid: int) -> int:
    """The mark of the process of thread (or process) `tid`; 0 if it has none, is gone, or lives outside of our pid name
    space (then the kernel calls it 0)."""
    if not tid:
        return 0
    try:
        limit = resource.prlimit(tid, _RLIMIT_LOCKS)[0]
    except PermissionError:  # it is another user's, and we are not root, or without CAP_SYS_RESOURCE
        limit = _as_proc_tells(tid)
    except OSError:
        return 0
    return limit if is_mark(limit) else 0


def put_mark(pid: int, mark: int) -> None:
    """Let process `pid` bear `mark`, and whoever it starts from now on. Raises RelfsError if that cannot be,
    MarkRefusedError if only we may not."""
    try:
        hard = resource.prlimit(pid, _RLIMIT_LOCKS)[1]
        if hard != resource.RLIM_INFINITY and hard < mark:
            raise RelfsError(
                f"process {pid}: its hard limit of file locks (`ulimit -Hx`) is {hard}; it has to be unlimited, since "
                "relfs marks by that limit what a process sees"
            )
        resource.prlimit(pid, _RLIMIT_LOCKS, (mark, hard))
    except ProcessLookupError as error:
        raise RelfsError(f"process {pid}: is gone") from error
    except PermissionError as error:
        raise MarkRefusedError(f"process {pid}: is somebody else's; only he and root can let it be pinned") from error
    except OSError as error:
        raise RelfsError(f"process {pid}: cannot be marked: {reason(error)}") from error


def take_off_mark(pid: int) -> None:
    """Let process `pid`, which is ours to mark, bear none."""
    with suppress(OSError):  # it has ended
        if mark_of(pid):
            hard = resource.prlimit(pid, _RLIMIT_LOCKS)[1]
            resource.prlimit(pid, _RLIMIT_LOCKS, (hard, hard))


def _as_proc_tells(tid: int) -> int:
    """The same from proc(5), which everybody may read."""
    try:
        fd = os.open(f"/proc/{tid}/limits", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return 0
    try:
        told = os.read(fd, _LIMITS_MAX)
    except OSError:
        return 0
    finally:
        os.close(fd)
    word = told.partition(_LIMITS_LINE)[2].split(maxsplit=1)[:1]
    return int(word[0]) if word and word[0].isdigit() else 0
