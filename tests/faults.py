"""System calls that fail, or at which the process dies: what relfs's modules see in the place of `os`.

A fault strikes at the n-th call that relfs makes while it is armed. A crash is a BaseException, so that no `except
OSError` takes it for an error, and from then on every further call raises it too: the dead clean up nothing. Power
cuts are not here but in replay.py.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any
from unittest import mock

import relfs.beneath
import relfs.journal
import relfs.layout
import relfs.libc
import relfs.lock
import relfs.pending
import relfs.pointer
import relfs.records.files
import relfs.store

CHANGING = frozenset({"open", "write", "pwrite", "mkdir", "symlink", "unlink", "rename", "chown", "ftruncate"})
SYNCING = frozenset({"fsync", "fdatasync", "syncfs"})

_MODULES = (
    relfs.beneath, relfs.journal, relfs.layout, relfs.lock, relfs.pending, relfs.pointer, relfs.records.files,
    relfs.store,
)  # fmt: skip


class Crash(BaseException):
    """The process died here."""


@dataclass(frozen=True)
class Call:
    """One system call that is about to be made."""

    name: str
    make: Callable[[], Any]
    arguments: tuple[Any, ...]
    directory: int | None

    def make_part(self, length: int) -> int:
        """Of a write, carry out the first `length` bytes; of any other call, nothing."""
        return os.write(self.arguments[0], self.data[:length]) if self.data else 0

    @property
    def data(self) -> bytes:
        """What is to be written."""
        return bytes(self.arguments[1]) if self.name == "write" else b""

    @property
    def needs_space(self) -> bool:
        """Whether a full disk refuses it."""
        if self.name != "open":
            return self.name in ("write", "mkdir", "symlink")
        return bool(self.arguments[1] & os.O_CREAT) and not self._exists()

    def _exists(self) -> bool:
        try:
            os.lstat(self.arguments[0], dir_fd=self.directory)
        except FileNotFoundError:
            return False
        return True


@dataclass(frozen=True)
class Fault:
    """Strike at call number `at` (from 0). Subclasses say how."""

    at: int

    def reaches(self, number: int, call: Call) -> bool:  # noqa: ARG002 (a fault that lasts looks at the call)
        return number == self.at

    def strike(self, call: Call) -> Any:
        raise NotImplementedError


@dataclass(frozen=True)
class CrashBefore(Fault):
    """Die before the call has any effect."""

    def strike(self, call: Call) -> Any:
        raise Crash(f"before {call.name}{call.arguments}")


@dataclass(frozen=True)
class CrashAfter(Fault):
    """Die when the call has taken effect, before anybody hears of it."""

    def strike(self, call: Call) -> Any:
        with suppress(OSError):
            call.make()
        raise Crash(f"after {call.name}{call.arguments}")


@dataclass(frozen=True)
class CrashTorn(Fault):
    """Die in the middle of a write; other calls have no middle."""

    def strike(self, call: Call) -> Any:
        call.make_part(len(call.data) // 2)
        raise Crash(f"amid {call.name}{call.arguments}")


@dataclass(frozen=True)
class CrashLastByte(Fault):
    """Die when a write lacks only its last byte: the newline of a journal line."""

    def strike(self, call: Call) -> Any:
        call.make_part(len(call.data) - 1)
        raise Crash(f"amid {call.name}{call.arguments}")


@dataclass(frozen=True)
class Fails(Fault):
    """The call fails and has no effect."""

    number: int = errno.EIO

    def strike(self, call: Call) -> Any:
        raise OSError(self.number, os.strerror(self.number), call.name)


@dataclass(frozen=True)
class ShortWrite(Fault):
    """Half of the data is written; other calls do as they should."""

    def strike(self, call: Call) -> Any:
        return call.make_part(len(call.data) // 2) if call.data else call.make()


@dataclass(frozen=True)
class DiskFull(Fault):
    """From that call on nothing finds space, though a write still gets half of its data out."""

    def reaches(self, number: int, call: Call) -> bool:
        return number >= self.at and call.needs_space

    def strike(self, call: Call) -> Any:
        if len(call.data) > 1:
            return call.make_part(len(call.data) // 2)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), call.name)


class Calls:
    """Stands between relfs and the system: counts the calls, and lets a fault strike.

    Syncing calls are counted but not made, for a process that dies leaves the page cache whole. `links` False is a
    file system that has no symbolic links.
    """

    def __init__(self, fault: Fault | None = None, *, links: bool = True) -> None:
        self.names: list[str] = []
        self._fault = fault
        self._links = links
        self._dead: Crash | None = None

    def carry_out(self, call: Call) -> Any:
        """Make the call, unless the fault has it otherwise."""
        if self._dead is not None:
            raise self._dead
        number = len(self.names)
        self.names.append(call.name)
        if call.name == "symlink" and not self._links:
            raise OSError(errno.EPERM, os.strerror(errno.EPERM), call.name)
        if self._fault is None or not self._fault.reaches(number, call):
            return call.make()
        try:
            return self._fault.strike(call)
        except Crash as crash:
            self._dead = crash
            raise


class _Os:
    """`os`, but for the calls that change something."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls

    def __getattr__(self, name: str) -> Any:
        real = getattr(os, name)
        return _through(self._calls, name, real) if name in CHANGING | SYNCING else real


def _through(calls: Calls, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
    def stand_in(*arguments: Any, **named: Any) -> Any:
        def make() -> Any:
            return None if name in SYNCING else real(*arguments, **named)

        directory = named.get("dir_fd", named.get("src_dir_fd"))
        return calls.carry_out(Call(name, make, arguments, directory))

    return stand_in


@contextmanager
def watched(calls: Calls) -> Iterator[Calls]:
    """While this lasts, relfs's modules make their system calls through `calls`; everybody else is left alone."""
    with ExitStack() as stack:
        for module in _MODULES:
            stack.enter_context(mock.patch.object(module, "os", _Os(calls)))
        syncfs = _through(calls, "syncfs", relfs.libc.syncfs)
        chown = _through(calls, "chown", relfs.libc.chown_open)
        stack.enter_context(mock.patch.object(relfs.libc, "chown_open", chown))
        for flushing in (relfs.pointer, relfs.store):
            stack.enter_context(mock.patch.object(flushing, "syncfs", syncfs))
        yield calls
