"""Who bears a mark: all processes are asked. How it is known that nobody does any more.

Nobody is missed
----------------
Some facts. The kernel tells when one process has ended (pidfd_open(2)), not when the last of a family has. Listing
/proc is no snapshot: a process may start another behind our back, and end before it is its turn to be asked.

The consequence. One look at all of /proc proves nothing.

The choice. Looks are repeated, each at the processes that were not looked at before, until two listings in a row have
no new one. Then nobody bears the mark. For suppose that some process did when the last listing began. If it lived until
it was listed, it was not new: it had been looked at before, and bore no mark. But a mark is inherited at birth, or put
on by somebody whom the pin watches until he is done (daemon/pinning.py), so that look was at another process, of the
same pid; and pids are given out in turn, all others first, which takes longer than looking. If it ended before it was
listed, what it had started goes on bearing the mark, under a higher pid, and listings go upwards (proc_pid_readdir() in
fs/proc/base.c): so that one was listed, and the same is true of it. Its pid is lower only if the pids had just come to
their end, and begun anew; that does not happen in two listings in a row.

Of a family that is found, one is held by its pidfd, the witness, and while that lives there is nothing to look for.
"""

from __future__ import annotations

import os
import select
from collections.abc import Collection
from dataclasses import dataclass

from relfs.descriptors import descriptors
from relfs.processes import all_pids
from relfs.views.mark import mark_of

_QUIET = 2
"""Listings in a row that have nobody new; see "Nobody is missed"."""

_LOOKS_MAX = 100
"""Where others start faster than we look there may be somebody new each time."""


@dataclass(frozen=True)
class Witness:
    """A process that lived when it was last looked at; `pidfd` tells when it has ended, and is to be closed."""

    pid: int
    pidfd: int


@dataclass(frozen=True)
class Census:
    """`witnesses` has one living bearer of each mark that was asked for and has one; they are the caller's to close.
    `complete`: the others have none."""

    witnesses: dict[int, Witness]
    complete: bool


def take_census(marks: Collection[int]) -> Census:
    """Look for somebody who bears each of the `marks`. Blocks for as long as looking at all processes takes, about 5 µs
    each. Raises OSError if there are no descriptors left."""
    missing, witnesses = set(marks), dict[int, Witness]()
    seen, quiet = set[int](), 0
    try:
        for _ in range(_LOOKS_MAX):
            new = all_pids() - seen
            for pid in new:
                mark = mark_of(pid)
                if mark in missing and (witness := _hold(pid, mark)) is not None:
                    witnesses[mark] = witness
                    missing.discard(mark)
            quiet = 0 if new else quiet + 1
            if not missing or quiet == _QUIET:
                return Census(witnesses, complete=True)
            seen |= new
    except OSError:
        for witness in witnesses.values():
            os.close(witness.pidfd)
        raise
    return Census(witnesses, complete=False)


def bearers(marks: Collection[int]) -> dict[int, list[int]]:
    """The processes that bear each of the `marks` at about this moment, for showing them to people."""
    found: dict[int, list[int]] = {mark: [] for mark in marks}
    for pid in sorted(all_pids()):
        mark = mark_of(pid)
        if mark in found:
            found[mark].append(pid)
    return found


def hold(pid: int) -> Witness | None:
    """Process `pid`, None if it has ended. Raises OSError if there are no descriptors left that whoever asks to be
    pinned may have."""
    try:
        witness = Witness(pid, descriptors().for_inode(os.pidfd_open(pid)))
    except (ProcessLookupError, ValueError):
        return None
    if not has_ended(witness):
        return witness
    os.close(witness.pidfd)
    return None


def has_ended(witness: Witness) -> bool:
    """Whether the process has, though its parent may not know yet."""
    waiting = select.poll()
    waiting.register(witness.pidfd, select.POLLIN)
    return bool(waiting.poll(0))


def _hold(pid: int, mark: int) -> Witness | None:
    """hold(), if that is still the process that bears `mark`."""
    witness = hold(pid)
    if witness is None or (mark_of(pid) == mark and not has_ended(witness)):
        return witness
    os.close(witness.pidfd)
    return None
