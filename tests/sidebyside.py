"""The same script in two directories: what it sees in each, step by step, and the trees it leaves.

Nothing here knows of mounts; what is compared with what is in served.py.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import pickle
import stat
import struct
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn, ParamSpec, TypeVar

from relfs.libc import AT_FDCWD, renameat2

GIB = 1 << 30

ACCESS, DEFAULT = "system.posix_acl_access", "system.posix_acl_default"

_T = TypeVar("_T")
_P = ParamSpec("_P")


@dataclass(frozen=True)
class Who:
    """Somebody for the kernel: user, group and supplementary groups."""

    uid: int
    gid: int
    groups: tuple[int, ...] = ()


ROOT = Who(0, 0)
NOBODY = Who(65534, 65534)
ADA = Who(1000, 1000, (2000,))
BOB = Who(1001, 1001, (2000, 2001))


@dataclass
class Trace:
    """What a script saw, step by step: results that do not depend on where it ran, and errnos.

    It is called with a label, a function and the function's arguments. `users` has who took each step.
    """

    steps: list[tuple[str, Any]] = field(default_factory=list)
    users: list[int] = field(default_factory=list)

    def __call__(self, label: str, call: Callable[_P, _T], /, *args: _P.args, **kwargs: _P.kwargs) -> _T | None:
        """Note what `call` returns or raises; returns the result, or None."""
        try:
            result = call(*args, **kwargs)
        except OSError as error:
            self.note(label, errno_name(error))
            return None
        self.note(label, _shown(result))
        return result

    def note(self, label: str, value: object) -> None:
        """Note something that the script found out by itself."""
        self.steps.append((label, value))
        self.users.append(os.geteuid())

    def open(self, label: str, path: str | bytes, flags: int, mode: int = 0o666) -> int:
        """Note whether open(2) succeeds; the descriptor, or -1."""
        try:
            fd = os.open(path, flags, mode)
        except OSError as error:
            self.note(label, errno_name(error))
            return -1
        self.note(label, "opened")
        return fd

    @property
    def outcome(self) -> dict[str, Any]:
        """By label; of several steps with one label, the last."""
        return dict(self.steps)


Script = Callable[[Trace], None]


def difference(here: Trace, natively: Trace) -> str:
    """The first step at which two traces differ, with what came before it; "" if they are the same."""
    steps = itertools.zip_longest(here.steps, natively.steps)
    for number, (one, other) in enumerate(steps):
        if one != other:
            before = [label for label, _ in natively.steps[max(0, number - 8) : number]]
            return f"step {number}: {one} here, {other} natively, after {before}"
    return ""


def errno_name(error: OSError) -> str:
    """What its errno is called, like ENOENT."""
    return errno.errorcode[error.errno or 0]


def _shown(result: object) -> object:
    """What of a result does not depend on where it was had; directories have sizes of their own everywhere."""
    if isinstance(result, os.stat_result):
        return (oct(result.st_mode), result.st_nlink, result.st_uid, result.st_gid, result.st_rdev) + (
            () if stat.S_ISDIR(result.st_mode) else (result.st_size,)
        )
    if type(result) is tuple:
        return tuple(_shown(each) for each in result)
    return result


@contextlib.contextmanager
def acting(who: Who) -> Iterator[None]:
    """Be somebody else for file systems (and for capabilities) for a while."""
    os.setgroups(who.groups)
    os.setegid(who.gid)
    os.seteuid(who.uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups([])


def run(script: Script, base: Path, who: Who = ROOT, umask: int = 0o022) -> Trace:
    """Run `script` with `base` as its working directory, in a process of its own."""
    receiving, sending = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(receiving)
        _run_and_exit(script, base, who, umask, sending)
    os.close(sending)
    with os.fdopen(receiving, "rb") as pipe:
        answer = pipe.read()
    os.waitpid(child, 0)
    trace, trouble = pickle.loads(answer)
    assert not trouble, f"in {base}: {trouble}"
    assert isinstance(trace, Trace)
    return trace


def _run_and_exit(script: Script, base: Path, who: Who, umask: int, sending: int) -> NoReturn:
    trace, trouble = Trace(), ""
    try:
        os.umask(umask)
        os.setgroups(who.groups)
        os.setresgid(who.gid, who.gid, who.gid)
        os.setresuid(who.uid, who.uid, who.uid)
        os.chdir(base)
        script(trace)
    except BaseException:
        trouble = traceback.format_exc()
    with os.fdopen(sending, "wb") as pipe:
        pickle.dump((trace, trouble), pipe)
    os._exit(0)


def tree(base: Path, without: frozenset[str] = frozenset()) -> dict[bytes, Any]:
    """All below `base`, with everything about it that should not depend on where it is, but for names at the top."""
    found: dict[bytes, Any] = {}
    pending = [os.fsencode(base / name) for name in set(os.listdir(base)) - without]
    while pending:
        path = pending.pop()
        status = os.lstat(path)
        content: object = None
        if stat.S_ISDIR(status.st_mode):
            pending += [path + b"/" + name for name in os.listdir(path)]
        elif stat.S_ISLNK(status.st_mode):
            content = os.readlink(path)
        elif stat.S_ISREG(status.st_mode) and status.st_size < GIB:
            content = Path(os.fsdecode(path)).read_bytes()
        found[path[len(os.fsencode(base)) + 1 :]] = (_shown(status), content)
    return found


def put(path: str | bytes, data: bytes = b"", mode: int = 0o644, owner: Who = ROOT) -> None:
    """A file with all of this, whatever the umask is."""
    with open(path, "wb") as file:
        file.write(data)
    os.chown(path, owner.uid, owner.gid)
    os.chmod(path, mode)


def make(path: str, mode: int = 0o755, owner: Who = ROOT) -> None:
    """A directory with all of this, whatever the umask is."""
    os.mkdir(path)
    os.chown(path, owner.uid, owner.gid)
    os.chmod(path, mode)


def get(path: str | bytes) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def access_list(owner: int, group: int, other: int, mask: int | None = None, **named: int) -> bytes:
    """An access control list as the extended attribute has it (acl(5), linux/posix_acl_xattr.h). Permissions are bits
    as in a mode; `named` ones are for `u1000` and `g2000` and their like."""
    anybody = 0xFFFFFFFF
    entries = [(1, owner, anybody), (4, group, anybody), (32, other, anybody)]
    entries += [({"u": 2, "g": 8}[name[0]], bits, int(name[1:])) for name, bits in named.items()]
    if mask is not None:
        entries.append((16, mask, anybody))
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in sorted(entries))


def swap(old: str, new: str, flags: int) -> None:
    """renameat2(2)."""
    renameat2(AT_FDCWD, old.encode(), AT_FDCWD, new.encode(), flags)
