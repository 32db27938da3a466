"""Where a daemon's log goes: standard error in the foreground, `.relfs/log` in the background.

The log that cannot be written
------------------------------
Some facts. The log is on a disk like any other, which may be full, broken, read-only or frozen (a network file system
whose server is gone, fsfreeze(8)); standard error is a pipe, whose reader may have stopped. Who writes there gets an
error, or waits. logging's own handlers wait along, and answer an error with a traceback on standard error.

The consequence. What serves requests can neither write by itself nor insist that anybody does.

The choice. A thread writes; lines wait for it in a queue of bounded length. What does not fit, or cannot be written, is
lost, and counted: in its place comes a line that tells how many are missing and why, as soon as one can be written, and
until then `status` says so. A process that ends gives the thread a moment; one that is killed loses what was in the
queue.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import threading
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Protocol

from relfs.beneath import open_file
from relfs.errors import RelfsError, reason

LOG = "log"

_OLD_LOG = f"{LOG}.1"
_LOG_BYTES = 1 << 20
_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"

_LINES_MAX = 1000
_LINE_MAX = 1 << 14
"""Characters; a longer line, of a traceback without an end, is cut. Both bound what a frozen disk costs in memory."""

_FLUSH_SECONDS = 2.0
_FLUSH_WAITS = 2
_STALLED_SECONDS = 5.0
_PASSING = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM})
"""What ends by itself. A daemon starts in spite of it: after a crash it may be the disk that is full."""


def log_to_stderr() -> None:
    """For the foreground, where a terminal or a service manager listens."""
    _begin(LossyHandler(_Stream(2)))


def log_to_state(state_fd: int, state_path: str) -> None:
    """To `log` in the state directory, of at most twice a megabyte. By descriptor: the path, which is for people, may
    lead through the mount by now.

    Raises RelfsError for something else in its place; a full disk is none of that.
    """
    file = LogFile(state_fd)
    try:
        file.check()
    except OSError as error:
        if error.errno not in _PASSING:
            raise RelfsError(f"{state_path}/{LOG}: cannot be written: {reason(error)}") from error
    _begin(LossyHandler(file))


def log_trouble() -> str | None:
    """What is wrong with this process's log at the moment."""
    handlers = (each for each in logging.getLogger().handlers if isinstance(each, LossyHandler))
    return next((said for each in handlers if (said := each.trouble()) is not None), None)


def _begin(handler: logging.Handler) -> None:
    handler.setFormatter(logging.Formatter(_FORMAT))
    logging.basicConfig(level=logging.INFO, handlers=[handler])


class Sink(Protocol):
    """Where lines end up."""

    def write(self, line: bytes) -> None:
        """Raises OSError if it is not there, or not all of it. May take for ever."""


@dataclass(frozen=True)
class _Entry:
    """A line, and how many nobody will see that were to be before it. An empty line only tells of those."""

    line: bytes
    lost: int


class LossyHandler(logging.Handler):
    """See "The log that cannot be written".

    GUARDED BY _changed: `_entries`, the first of which is being written since `_since` (monotonic seconds); `_lost`,
    how many after the last entry nobody will see, and `_why`, if it was not for want of room in the queue. A forked
    child begins anew: the thread, and the lines, are its parent's, and whoever holds _changed may be, too.
    """

    def __init__(self, sink: Sink) -> None:
        super().__init__()
        self._sink = sink
        self._begin()

    def _begin(self) -> None:
        self._pid = os.getpid()
        self._changed = threading.Condition()
        self._entries: deque[_Entry] = deque()
        self._since = 0.0
        self._lost = 0
        self._why: str | None = None
        self._thread: threading.Thread | None = None

    def _mind_fork(self) -> None:
        """To be called before _changed is taken."""
        if self._pid != os.getpid():
            self._begin()

    def emit(self, record: logging.LogRecord) -> None:
        """Never blocks, and never raises."""
        self._mind_fork()
        line = self._encode(record)
        with self._changed:
            if len(self._entries) >= _LINES_MAX or not self._has_thread():
                self._lost += 1
                return
            self._queue(line)
            self._changed.notify_all()

    def flush(self) -> None:
        """Wait until all is written, for a moment at the most: in parts, of which a machine that stands still uses up
        one. logging.shutdown() calls it."""
        self._mind_fork()
        with self._changed:
            any(
                self._changed.wait_for(lambda: not self._entries, _FLUSH_SECONDS / _FLUSH_WAITS)
                for _ in range(_FLUSH_WAITS)
            )

    def trouble(self) -> str | None:
        """What is wrong now, in a line; None: nothing."""
        self._mind_fork()
        with self._changed:
            lost = self._lost + sum(each.lost for each in self._entries)
            waiting = time.monotonic() - self._since if self._entries else 0.0
            if waiting > _STALLED_SECONDS:
                return f"the log has been waiting for its disk for {waiting:.0f} s, {lost} lines are lost"
            return f"the log lacks {lost} lines: {self._cause()}" if lost else None

    def _cause(self) -> str:
        return self._why or "too many at once"

    def _encode(self, record: logging.LogRecord) -> bytes:
        try:
            text = self.format(record)
        except Exception:  # its arguments do not go with its text; what it is about is better than nothing
            text = f"{record.levelname} {record.name}: {record.msg!r}"
        return text[:_LINE_MAX].encode("utf-8", "backslashreplace") + b"\n"

    def _queue(self, line: bytes) -> None:
        if not self._entries:
            self._since = time.monotonic()
        self._entries.append(_Entry(line, self._lost))
        self._lost = 0

    def _has_thread(self) -> bool:
        """Start it if there is none. A host may have no thread to give (pids.max); the next line asks again."""
        if self._thread is None:
            thread = threading.Thread(target=self._write_all, name="relfs log", daemon=True)
            try:
                thread.start()
            except RuntimeError as error:
                self._why = str(error)
                return False
            self._thread = thread
        return True

    # ---- on the thread

    def _write_all(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._entries)
                entry = self._entries[0]
                self._since = time.monotonic()
            error = self._write(entry)
            with self._changed:
                self._entries.popleft()
                self._why = reason(error) if error is not None else None
                if error is not None:
                    self._carry_over(entry)
                elif self._lost and not self._entries:
                    self._queue(b"")  # nobody says anything more
                self._changed.notify_all()

    def _write(self, entry: _Entry) -> OSError | None:
        """What is missing is told in the same breath, so that it is neither told twice nor forgotten."""
        try:
            self._sink.write(self._missing(entry.lost) + entry.line if entry.lost else entry.line)
        except OSError as error:
            return error
        return None

    def _carry_over(self, entry: _Entry) -> None:
        """It could not be written: the next one is to tell of it."""
        lost = entry.lost + bool(entry.line)
        if self._entries:
            self._entries[0] = replace(self._entries[0], lost=self._entries[0].lost + lost)
        else:
            self._lost += lost

    def _missing(self, lost: int) -> bytes:
        text = f"{lost} lines are missing here: {self._cause()}"
        return self._encode(logging.LogRecord(__name__, logging.WARNING, __file__, 0, text, None, None))


class _Stream:
    """A descriptor that somebody else has opened."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def write(self, line: bytes) -> None:
        while line:
            line = line[os.write(self._fd, line) :]


class LogFile:
    """`log` in a directory, begun anew when it is large; the one before it is kept, as `log.1`.

    It is opened for each line: several processes write to it, and any of them may begin a new one; and a file system
    with a file that is open for writing cannot be remounted read-only (mount(2), EBUSY).
    """

    def __init__(self, directory: int) -> None:
        """`directory` is a descriptor, of which a copy is kept."""
        self._directory = os.dup(directory)

    def close(self) -> None:
        os.close(self._directory)

    def check(self) -> None:
        """Raise OSError if it cannot be written."""
        os.close(self._open())

    def write(self, line: bytes) -> None:
        while not self._has_taken(line):
            pass  # the next file is smaller

    def _has_taken(self, line: bytes) -> bool:
        """Whether the file did; if not, it has become an old one."""
        fd = self._open()
        try:
            if self._rotate(fd):
                return False
            _append(fd, line)
            return True
        finally:
            os.close(fd)

    def _open(self) -> int:
        """With a mode of its own, since the daemon's umask is 0."""
        return open_file(self._directory, LOG, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o640)

    def _rotate(self, fd: int) -> bool:
        """Whether the file has become an old one. Under its lock, or two would rotate at once, and lose what was in the
        first; whoever comes second finds that the name is another's by then, or nobody's yet."""
        if os.fstat(fd).st_size < _LOG_BYTES:
            return False
        fcntl.flock(fd, fcntl.LOCK_EX)
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(fd), os.lstat(LOG, dir_fd=self._directory)):
                os.rename(LOG, _OLD_LOG, src_dir_fd=self._directory, dst_dir_fd=self._directory)
        return True


def _append(fd: int, line: bytes) -> None:
    before = os.fstat(fd).st_size
    written = os.write(fd, line)
    if written == len(line):
        return
    if os.fstat(fd).st_size == before + written:  # nobody else has written since
        os.ftruncate(fd, before)
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # what a short write means
