"""What a release can be made from: a directory, an archive, a tree in a git repository, or standard input.

    DIRECTORY     copied as it is
    FILE          a tar archive, compressed or not, or a zip
    git:TREEISH   what `git archive` gives of a commit, tag, branch or subdirectory (git:v1.2, git:HEAD:app)
    -             a tar archive on standard input

A source is opened before a name is spent on it, so that a word mistyped costs nothing.
"""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import BinaryIO, Protocol, cast

from relfs.errors import RelfsError, UsageError, reason
from relfs.releases.archive import Limits
from relfs.releases.copying import Copied, copy_tree
from relfs.releases.reading import open_archive, running
from relfs.releases.sharing import Previous
from relfs.releases.unpacking import Owner, unpack
from relfs.releases.workers import Progress

GIT = "git:"
STDIN = "-"


@dataclass(frozen=True)
class Into:
    """Where a release is made (`fd`: an empty directory), what it can share, and what holds of it.

    `owner` is whose the files of an archive shall be; None: whoever makes them.
    """

    fd: int
    previous: Previous | None
    limits: Limits
    owner: Owner | None
    on_progress: Callable[[Progress], None]


class Source(Protocol):
    """Something that releases are made from. `label` is what to call it."""

    @property
    def label(self) -> str: ...

    @property
    def directory(self) -> str | None:
        """Its real path, if it is a directory that is copied."""

    def fill(self, into: Into) -> Copied:
        """Make all of it. Raises RelfsError, and OSError with the path of what cannot be read or written."""

    def close(self) -> None:
        """It is not needed any more."""


def open_source(text: str, *, repository: str | None = None, strip: int = 0) -> Source:
    """What the words of a command mean: `text` as above, `repository` a directory in a git repository (None: the
    working directory), `strip` how many directories to leave out in front of archives' names.

    Raises UsageError for what is nothing of these, RelfsError for what cannot be read.
    """
    if text == STDIN:
        return _open_stream("standard input", os.dup(sys.stdin.fileno()), strip)
    if text.startswith(GIT):
        return _open_git(text[len(GIT) :], repository or ".", strip)
    return _open_path(text, strip)


def _open_stream(shown: str, fd: int, strip: int) -> Source:
    """Without a buffer: a thread may be reading when the program ends (reading.py)."""
    return _Archive(shown, cast(BinaryIO, open(fd, "rb", buffering=0)), strip)


def _open_path(path: str, strip: int) -> Source:
    if not path or "\0" in path:
        raise UsageError(f"{path!r}: not a source: give a directory, an archive, git:TREEISH, or - for standard input")
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise UsageError(f"{path}: no such directory or archive") from error
    except OSError as error:
        raise RelfsError(f"{path}: cannot be read: {reason(error)}") from error
    mode = os.fstat(fd).st_mode
    if stat.S_ISDIR(mode):
        return _Directory(path, os.path.realpath(path), fd)
    if stat.S_ISREG(mode):
        return _open_stream(path, fd, strip)
    os.close(fd)
    raise UsageError(f"{path}: is neither a directory nor a file; give what a fifo or device has on standard input (-)")


def _open_git(treeish: str, repository: str, strip: int) -> Source:
    """What it names is looked up here, so that what is added is what was named, even if a branch moves meanwhile."""
    shown = f"{GIT}{treeish}"
    command = ["git", "-C", repository, "rev-parse", "--verify", "--end-of-options", treeish]
    try:
        done = subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL, check=False)
    except FileNotFoundError as error:
        raise RelfsError(f"{shown}: there is no program `git` here; install it") from error
    if done.returncode != 0:
        why = os.fsdecode(done.stderr).strip().partition("\n")[0].removeprefix("fatal: ")
        raise RelfsError(f"{shown}: in {repository}: {why}; name another repository with --repository")
    return _Git(shown, repository, done.stdout.decode("ascii", "replace").strip(), strip)


@dataclass(frozen=True)
class _Directory:
    label: str
    directory: str | None
    fd: int

    def fill(self, into: Into) -> Copied:
        return copy_tree(self.fd, into.fd, into.previous, into.on_progress)

    def close(self) -> None:
        os.close(self.fd)


@dataclass(frozen=True)
class _Archive:
    label: str
    file: BinaryIO
    strip: int
    directory: str | None = None

    def fill(self, into: Into) -> Copied:
        return _unpack(self.file, self.label, self.strip, into)

    def close(self) -> None:
        self.file.close()


@dataclass(frozen=True)
class _Git:
    shown: str
    repository: str
    object: str
    strip: int
    directory: str | None = None

    @property
    def label(self) -> str:
        return f"{self.shown} ({self.object[:12]})"

    def fill(self, into: Into) -> Copied:
        command = ["git", "-C", self.repository, "archive", "--format=tar", self.object]
        with running(command, self.shown) as process:
            assert process.stdout is not None
            return _unpack(cast(BinaryIO, process.stdout), self.shown, self.strip, into)

    def close(self) -> None:
        """Nothing is open."""


def _unpack(file: BinaryIO, shown: str, strip: int, into: Into) -> Copied:
    with open_archive(file, shown, strip) as reading:
        return unpack(
            reading, shown, into.fd, into.previous, limits=into.limits, owner=into.owner, on_progress=into.on_progress
        )
