"""Telling the kernel what to drop, on threads that cannot keep the mount alive.

A thread that waits
-------------------
Some facts. The kernel drops a dentry under its directory's lock (fuse_reverse_inval_entry() in fs/fuse/dir.c), which a
process inside rename(2), symlink(2) or unlink(2) on the mount holds while it waits for an answer of ours. A thread that
waits for that lock cannot be killed; a process of which one thread lives on keeps its descriptors, all of them.

The consequence. Were every process of relfs killed at that moment, that thread would keep the socket whose end the
guards wait for (fuse/connection.py): nobody would detach the mount, and the answer that it waits for would never come.

The choice. The thread has a descriptor table of its own (unshare(2), CLONE_FILES), in which there is nothing but the
connection. So the guards see the end, detach the mount, and end the connection, which wakes whoever waits.
"""

from __future__ import annotations

import logging
import os
import queue
import threading
from dataclasses import dataclass, field

from relfs import libc
from relfs.fuse.protocol import inval_attributes, inval_entry

_log = logging.getLogger(__name__)


@dataclass
class _Errand:
    message: bytes
    done: threading.Event = field(default_factory=threading.Event)
    error: OSError | None = None


class Teller:
    """One thread, and what it is to tell, in order."""

    def __init__(self, connection: int) -> None:
        """`connection` is a descriptor of /dev/fuse that stays open as long as the process lives."""
        self._connection = connection
        self._errands: queue.SimpleQueue[_Errand] = queue.SimpleQueue()
        threading.Thread(target=self._tell_all, name="relfs teller", daemon=True).start()

    def drop(self, parent: int, name: bytes) -> None:
        """Make the kernel forget what `name` in the directory `parent` leads to. Blocks while somebody changes the
        directory. Raises OSError: ENOENT if the kernel does not know it."""
        errand = _Errand(inval_entry(parent, name))
        self._errands.put(errand)
        errand.done.wait()
        if errand.error is not None:
            raise errand.error

    def drop_attributes(self, nodeid: int) -> None:
        """Make the kernel forget the attributes of an inode. Blocks nowhere, so it needs no thread. Raises OSError, as
        drop() does."""
        os.write(self._connection, inval_attributes(nodeid))

    def _tell_all(self) -> None:
        """Runs on the thread."""
        if not libc.keep_only(self._connection):
            _log.info("threads cannot have descriptors of their own here")
        while True:
            errand = self._errands.get()
            try:
                os.write(self._connection, errand.message)
            except OSError as error:
                errand.error = error
            errand.done.set()
