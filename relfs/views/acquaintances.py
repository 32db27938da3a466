"""Threads that are known again without a look at /proc.

A thread is known by its number, and its number may be another's tomorrow. Its start time tells the two apart, and costs
a file of /proc to be opened, read and closed with every lookup, which is a third of what a lookup costs. The choice:
who is known is held by a pidfd, all of them in one epoll(7). The kernel reports the end of a thread there before its
number can be given to another one (release_task() in kernel/exit.c comes after do_notify_pidfd()); so whoever is not
reported now is still the same. That is one system call that does nothing, whoever asks, and however many are known.

A pidfd of a single thread takes Linux 6.9 (PIDFD_THREAD); before that only first threads, that is processes, are known.
"""

from __future__ import annotations

import os
import select
from collections.abc import Callable
from contextlib import suppress
from typing import Generic, TypeVar

from relfs.descriptors import descriptors

_PIDFD_THREAD = os.O_EXCL  # linux/pidfd.h
_MOST = 4096

_T = TypeVar("_T")


class Acquaintances(Generic[_T]):
    """What was noted of threads that live. GUARDED BY the event loop. INVARIANT: each key of `_noted` has a pidfd in
    `_ends`, which `_threads` leads back to it."""

    def __init__(self, on_end: Callable[[int], None] = lambda _tid: None) -> None:
        """`on_end` is called with the number of each that has ended."""
        self._on_end = on_end
        self._ends = select.epoll()
        self._noted: dict[int, tuple[int, _T]] = {}
        self._threads: dict[int, int] = {}

    def of(self, tid: int) -> _T | None:
        """What was noted of thread `tid`; None if nothing was, or that was another one."""
        while ended := self._ends.poll(0):
            for fd, _ in ended:
                self._on_end(self._forget(fd))
        found = self._noted.get(tid)
        return found[1] if found is not None else None

    def meet(self, tid: int) -> int | None:
        """Hold thread `tid`, before it is looked at. What note() takes; None: it cannot be held, or too many are."""
        if tid in self._noted:
            return self._noted[tid][0]
        if tid <= 0 or len(self._noted) >= _MOST:
            return None
        with suppress(OSError):
            return descriptors().for_inode(_open(tid))
        return None

    def note(self, tid: int, held: int, value: _T) -> None:
        """Remember `value` of thread `tid` for as long as it lives."""
        if tid not in self._noted:
            self._threads[held] = tid
            self._ends.register(held, select.EPOLLIN)
        self._noted[tid] = (held, value)

    def clear(self) -> None:
        """Know nobody."""
        for fd in list(self._threads):
            self._forget(fd)

    def __len__(self) -> int:
        return len(self._noted)

    def check_invariants(self) -> None:
        """For tests: raise AssertionError where the INVARIANT does not hold."""
        assert self._threads == {fd: tid for tid, (fd, _) in self._noted.items()}

    def _forget(self, fd: int) -> int:
        tid = self._threads.pop(fd)
        del self._noted[tid]
        self._ends.unregister(fd)
        os.close(fd)
        return tid


def _open(tid: int) -> int:
    """Raises OSError."""
    try:
        return os.pidfd_open(tid, _PIDFD_THREAD)
    except OSError:  # an older kernel, or it is gone
        return os.pidfd_open(tid)
