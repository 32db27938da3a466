"""Deletes what is in the trash, in a process of its own, which comes after everybody else: nice 19, idle I/O.

Unnoticed
---------
Some facts. Each unlink(2) is a part of the file system's journal, and who waits for an fsync(2), as a database does,
waits for all that was in the journal before. The scheduler of the disk has no say in that, and neither has nice(1). A
directory is locked while a name in it is removed, but only that one, which nobody else uses. What is read of a
directory takes memory as long as it is kept.

The choice. It works in short turns and rests after each for twice as long, so that a journal is never full of it
(`contrib/bench/prune` measures who waits for it); of each directory, no more is known than the kernel hands out at a
time; and a tree is gone through depth first, with at most _DEPTH directories open: what lies deeper is moved up, to the
top of the trash, and is an entry like others. Being so nice has a price where no processor is free: who flushes may
have to wait until the deleter, interrupted in the middle of an unlink(2), has its next turn.

Nothing outside of the trash is ever touched: no link is followed, and what is mounted in a release is not entered
(tree.py). What cannot be deleted is told of, and left; the next run tries again. What somebody uses is left, too: he
may have come in after it was looked whether anybody does, and before it was moved here.

One process at a time deletes: the one that holds flock(2) on the trash's own descriptor. What comes in while it is
about to end is not overlooked: it looks once more after it has let go.
"""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import time
from collections.abc import Collection
from contextlib import suppress

from relfs import libc
from relfs.errors import reason
from relfs.layout import DeployPath
from relfs.releases.inuse import Uses, who_uses_below, why_in_use
from relfs.releases.program import program
from relfs.releases.trash import entries, left, note_left, opened
from relfs.releases.tree import enter, open_up

_DEPTH = 32
_TURN_SECONDS = 0.005
_NICE = 19


def start_deleting(deploy: DeployPath, *, but: Collection[int] = ()) -> bool:
    """Have whatever is in the trash deleted, in the background, by a process that outlives this one. False: there is
    nothing to do. That processes `but` use something does not count. Raises OSError if it cannot be started."""
    with opened(deploy) as trashes:
        if not any(map(entries, trashes)):
            return False
        subprocess.run(
            program("relfs.releases.deleter", ",".join(map(str, but)), *map(str, trashes)),
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            pass_fds=trashes, cwd="/", start_new_session=True, check=False,
        )  # fmt: skip
        return True


def wait_until_deleted(deploy: DeployPath) -> frozenset[str]:
    """Wait until nobody deletes any more. Returns what is there all the same, and is not known to have been tried: it
    has just come in, or whoever deleted was killed."""
    with opened(deploy) as trashes:
        for trash in trashes:
            fcntl.flock(trash, fcntl.LOCK_SH)
        return frozenset(name for trash in trashes for name in set(entries(trash)) - left(trash).keys())


def main() -> None:
    """Delete what is in the trashes whose descriptors are named, as a child of process 1. The locks are had when the
    process that was started ends, so that whoever started it can wait for them."""
    _, but, *named = sys.argv
    trashes = [trash for trash in map(int, named) if _lock(trash)]
    if not trashes or os.fork():
        os._exit(0)
    _come_last()
    for trash in trashes:
        empty(trash, but=frozenset(map(int, but.split(",") if but else ())))


def _come_last() -> None:
    with suppress(OSError):
        os.nice(_NICE)
    with suppress(OSError):
        libc.set_idle_io()


def empty(trash: int, *, but: Collection[int] = (), pace: float = 2.0) -> None:
    """Delete all that is in an opened trash, unless somebody else does; for `but`, see above. `pace` is how long it
    rests, for each second that it works. Raises OSError."""
    tried: frozenset[str] = frozenset()
    while _lock(trash):
        try:
            tried = _Run(trash, but, pace).run()
        finally:
            fcntl.flock(trash, fcntl.LOCK_UN)
        if tried.issuperset(entries(trash)):
            return


def _lock(trash: int) -> bool:
    """Whether this process may delete now. Having the lock, it gets it again."""
    try:
        fcntl.flock(trash, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


class _Run:
    """One run through the trash. `_left` says why something is still there, by its entry."""

    def __init__(self, trash: int, but: Collection[int], pace: float) -> None:
        self._trash = trash
        self._but = but
        self._pace = pace
        self._left: dict[str, str] = {}
        self._moved_up: set[str] = set()
        self._entry = ""
        self._turn_ends = time.monotonic() + _TURN_SECONDS

    def run(self) -> frozenset[str]:
        """Returns the entries that could not be deleted."""
        while waiting := [name for name in entries(self._trash) if name not in self._left]:
            self._pass_over_used([name for name in waiting if name not in self._moved_up])
            for name in waiting:
                if name not in self._left:
                    self._delete(name)
            self._moved_up &= set(entries(self._trash))
        with suppress(OSError):
            note_left(self._trash, self._left)
        return frozenset(self._left)

    def _pass_over_used(self, names: list[str]) -> None:
        uses = who_uses_below(self._trash, names, but=self._but) if names else Uses({})
        self._left.update({name: why_in_use(found) for name, found in uses.of.items() if found})

    def _delete(self, name: str) -> None:
        self._entry = name
        self._remove(self._trash, name, is_directory=True, depth=0)
        with suppress(OSError):
            os.lstat(name, dir_fd=self._trash)
            self._left.setdefault(name, "somebody goes on putting things into it")

    def _remove(self, directory: int, name: str, *, is_directory: bool, depth: int) -> bool:
        """Whether it is gone."""
        self._rest()
        try:
            if not is_directory:
                os.unlink(name, dir_fd=directory)
            elif depth >= _DEPTH:
                self._move_up(directory, name)
            else:
                self._empty(directory, name, depth)
                os.rmdir(name, dir_fd=directory)
        except FileNotFoundError:
            pass
        except NotADirectoryError:  # an entry at the top of the trash that somebody has put there
            return self._remove(directory, name, is_directory=False, depth=depth)
        except OSError as error:
            self._left.setdefault(self._entry, f"{name}: {reason(error)}")
            return False
        return True

    def _empty(self, directory: int, name: str, depth: int) -> None:
        """A directory that is read while it is emptied may pass something over, so it is read until nothing changes."""
        open_up(directory, name)
        top = enter(directory, name)
        try:
            while self._empty_once(top, depth):
                pass
        finally:
            os.close(top)

    def _empty_once(self, top: int, depth: int) -> bool:
        """Whether anything was removed."""
        removed = False
        with os.scandir(top) as found:
            for each in found:
                is_directory = each.is_dir(follow_symlinks=False)
                removed |= self._remove(top, each.name, is_directory=is_directory, depth=depth + 1)
        return removed

    def _move_up(self, directory: int, name: str) -> None:
        """To a name that nobody else has."""
        open_up(directory, name)
        new = f"deep-{os.urandom(8).hex()}"
        os.rename(name, new, src_dir_fd=directory, dst_dir_fd=self._trash)
        self._moved_up.add(new)

    def _rest(self) -> None:
        now = time.monotonic()
        if now < self._turn_ends:
            return
        if self._pace:
            time.sleep(_TURN_SECONDS * self._pace)
        self._turn_ends = time.monotonic() + _TURN_SECONDS
