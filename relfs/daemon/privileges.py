"""What a worker gives up before it serves: the capabilities that it has no use for, and system calls that nothing here
makes. What is left is named below, each with its use. Asked for once; told by `relfsctl status`.

What is given up, and what cannot be
------------------------------------
Some facts. To pass files through for everybody, and to attach and detach mounts, the worker stays root, with
CAP_SYS_ADMIN and the right to read and write any file. So this is no sandbox: whoever takes the worker over owns the
files of the host. It ends what leads on from there without a file: another kernel (kexec, modules, bpf), the clock,
other processes' memory, raw disks and the network's configuration, and the parts of the kernel that are most often the
way in (io_uring, userfaultfd, keys, perf). Root that executes a program has all of the bounding set again
(capabilities(7)), so that is lowered, too, and the hooks and helpers that the worker starts are bound as well.

A filter (seccomp(2)) costs nothing for calls that it lets pass by their number alone, from Linux 5.11 on; a second one
would be asked each time besides the first, it is inherited, and a worker may descend from another that has one. How
does it know? Nothing in /proc tells whose filter is on. The consequence: the filter itself has to say so.

The choice. A list of what is refused, with EPERM, not of what is allowed: libc and Python may take to new calls, and
hooks are anybody's programs. Also refused is every call by another machine's numbers (32-bit programs on a 64-bit
kernel), which the list does not know. prctl(2) with an option that no kernel has answers EALREADY under this filter,
and EINVAL without it. no_new_privs, which an ordinary user needs for a filter, would take from fusermount3(1) and from
the sudo(8) in a hook what they are setuid for; so a user's own daemon has no filter. It has no capabilities, either.
"""

from __future__ import annotations

import errno
import logging
import os
import struct
import zlib
from dataclasses import dataclass

from relfs import libc
from relfs.errors import reason

_log = logging.getLogger(__name__)

_KEPT = {
    "CAP_CHOWN": 0,  # what a caller makes becomes his; the link belongs to whoever switched
    "CAP_DAC_OVERRIDE": 1,  # root's own requests, and directories of users that shut root out
    "CAP_DAC_READ_SEARCH": 2,  # callers that have only this, as backups do
    "CAP_FOWNER": 3,  # chmod, utimens and sticky directories of others; lent where the kernel has found it in order
    "CAP_FSETID": 4,  # or set-group-ID bits vanish from root's files
    "CAP_KILL": 5,  # a hook that runs as its owner, when its time is up
    "CAP_SETGID": 6,  # setfsgid(2), setgroups(2): acting as the caller; hooks become their owner
    "CAP_SETUID": 7,  # the same with setfsuid(2)
    "CAP_SYS_PTRACE": 19,  # /proc/PID/fd and ns of others: who replaces the link, and who uses a release
    "CAP_SYS_ADMIN": 21,  # mounts, seals, trusted.* attributes, and the filter below
    "CAP_SYS_RESOURCE": 24,  # descriptors by the hundred thousand; a full disk's reserve for root's own requests; marks
    "CAP_MKNOD": 27,  # devices and overlay whiteouts, for callers that have it
    "CAP_AUDIT_WRITE": 29,  # sudo(8) and su(1) in a hook of root's
    "CAP_SETFCAP": 31,  # security.capability, as unpacking a release as root sets it
    "CAP_MAC_OVERRIDE": 32,  # root's own requests, where Smack labels files
}


@dataclass(frozen=True)
class _Machine:
    """An architecture: its AUDIT_ARCH_ number (linux/audit.h), and its numbers of the calls that are refused."""

    audit: int
    prctl: int
    refused: tuple[int, ...]


_REFUSED = {
    # call: (on x86_64, by the generic table that aarch64 has); None: it has no such call
    "ptrace": (101, 117),
    "syslog": (103, 116),
    "modify_ldt": (154, None),
    "pivot_root": (155, 41),
    "adjtimex": (159, 171),
    "chroot": (161, 51),
    "acct": (163, 89),
    "settimeofday": (164, 170),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "reboot": (169, 142),
    "sethostname": (170, 161),
    "setdomainname": (171, 162),
    "iopl": (172, None),
    "ioperm": (173, None),
    "init_module": (175, 105),
    "delete_module": (176, 106),
    "quotactl": (179, 60),
    "lookup_dcookie": (212, 18),
    "clock_settime": (227, 112),
    "kexec_load": (246, 104),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "migrate_pages": (256, 238),
    "move_pages": (279, 239),
    "perf_event_open": (298, 241),
    "clock_adjtime": (305, 266),
    "setns": (308, 268),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "kcmp": (312, 272),
    "finit_module": (313, 273),
    "kexec_file_load": (320, 294),
    "bpf": (321, 280),
    "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "quotactl_fd": (443, 443),
}
"""None of these is made by relfs, by fusermount3, or by the programs that hooks are started with (unshare, umount,
setpriv)."""

_OURS = 0x72660000 | zlib.crc32(repr(_REFUSED).encode()) & 0xFFFF
"""The option of prctl(2) that no kernel has: `rf`, and which list it is, for a newer relfs may have another."""


@dataclass(frozen=True)
class Privileges:
    """What this process has: its capabilities by name, whether our filter is on, and how many calls that refuses."""

    capabilities: tuple[str, ...]
    seccomp: bool
    refused: int


def drop() -> Privileges:
    """Give up what is not needed, for good, and tell what is left. Doing so again changes nothing.

    To be called while the process has one thread: each has capabilities and filters of its own. Where the host refuses
    (an ordinary user; a kernel without filters), less is given up; `Privileges` tells.
    """
    assert len(os.listdir("/proc/self/task")) == 1, "a thread would keep all"
    libc.limit_capabilities(sum(1 << number for number in _KEPT.values()))
    _add_filter()  # last, since it may log, which starts a thread
    return present()


def present() -> Privileges:
    """What this thread has now."""
    effective = libc.capabilities_of(0) or 0
    names = tuple(name for name, number in _KEPT.items() if effective >> number & 1)
    return Privileges(names + _others(effective), is_filtered(), len(_REFUSED) if is_filtered() else 0)


def _others(effective: int) -> tuple[str, ...]:
    """Those that a worker has no use for, before it has given them up."""
    rest = effective & ~sum(1 << number for number in _KEPT.values())
    return tuple(f"CAP {number}" for number in range(64) if rest >> number & 1)


def is_filtered() -> bool:
    """Whether this thread makes its calls under our filter; see above."""
    try:
        libc.prctl(_OURS)
    except OSError as error:
        return error.errno == errno.EALREADY
    return False


def can_filter() -> bool:
    """Whether this machine is one whose numbers of calls are known here."""
    return _machine() is not None


def _add_filter() -> None:
    machine = _machine()
    if machine is None or is_filtered():
        return
    try:
        libc.add_seccomp_filter(_program(machine))
    except PermissionError:
        pass  # an ordinary user's daemon: see above
    except OSError as error:
        _log.info("system calls are not filtered: %s", reason(error))


def _machine() -> _Machine | None:
    if struct.calcsize("P") != 8:
        return None  # a 32-bit Python, whose numbers are others
    columns = {"x86_64": (0, 0xC000003E, 157), "aarch64": (1, 0xC00000B7, 167)}
    found = columns.get(os.uname().machine)
    if found is None:
        return None
    column, audit, prctl = found
    numbers = (call[column] for call in _REFUSED.values())
    return _Machine(audit, prctl, tuple(number for number in numbers if number is not None))


# ---- the program (linux/filter.h, linux/seccomp.h): it sees the number of the call, the machine, and the arguments

_LOAD, _EQUAL, _AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06
"""BPF_LD | BPF_W | BPF_ABS, BPF_JMP | BPF_JEQ | BPF_K, BPF_JMP | BPF_JGE | BPF_K, BPF_RET | BPF_K."""

_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT = 0, 4, 16
"""Where they are in struct seccomp_data; of an argument, its lower half, on little-endian machines."""

_ALLOW = 0x7FFF0000
_ERRNO = 0x00050000
_X32 = 0x40000000
"""x86_64's numbers from here on are those of its 32-bit calls (x32)."""


def _program(machine: _Machine) -> bytes:
    """Ten instructions, and two for each call that is refused."""
    refuse = _instruction(_RETURN, _ERRNO | errno.EPERM)
    code = [
        _instruction(_LOAD, _ARCHITECTURE),
        _instruction(_EQUAL, machine.audit, if_true=1),
        refuse,
        _instruction(_LOAD, _NUMBER),
        _instruction(_AT_LEAST, _X32, if_false=1),
        refuse,
        _instruction(_EQUAL, machine.prctl, if_false=4),
        _instruction(_LOAD, _FIRST_ARGUMENT),
        _instruction(_EQUAL, _OURS, if_false=1),
        _instruction(_RETURN, _ERRNO | errno.EALREADY),
        _instruction(_RETURN, _ALLOW),
    ]
    for number in machine.refused:
        code += [_instruction(_EQUAL, number, if_false=1), refuse]
    return b"".join([*code, _instruction(_RETURN, _ALLOW)])


def _instruction(code: int, operand: int, *, if_true: int = 0, if_false: int = 0) -> bytes:
    """struct sock_filter; the jumps are numbers of instructions to pass over."""
    return struct.pack("=HBBI", code, if_true, if_false, operand)
