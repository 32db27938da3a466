"""What a release consists of, written down when it is made: `.relfs/manifests/NAME`, outside of the release.

    relfs manifest 1 blake2b-256
    d 755 0 0 - .
    f 644 1234 1700000000123456789 HEX index.php      kind, mode (octal), bytes, mtime (ns), BLAKE2b, path
    l 777 9 1700000000123456789 HEX public/storage    the digest of a link is that of its text
    end 3 HEX                                         how many; the digest of all lines above

A path is relative to the release and has the bytes that it has, but for a line's end and the backslash, which are
written \\n and \\\\. Entries are in the order of their paths, as bytes. The last line vouches for the others: what
was cut off or changed is an error, never a shorter release.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import NamedTuple

from relfs.beneath import belong_to_owner, open_directory, open_file
from relfs.errors import RelfsError, reason

MANIFESTS = "manifests"
DIGEST_SIZE = 32
NO_DIGEST = "-"

_HEADER = b"relfs manifest 1 blake2b-256\n"
_END = b"end"
_KINDS = {stat.S_IFDIR: "d", stat.S_IFREG: "f", stat.S_IFLNK: "l"}
_FIELDS = 6


class Entry(NamedTuple):
    """One name in a release; there are many, and a tuple is made and sent quickest.

    `mtime` is in ns since the epoch; `digest` is hexadecimal.
    """

    path: str
    kind: str
    mode: int
    size: int
    mtime: int
    digest: str = NO_DIGEST


def entry_of(path: str, status: os.stat_result, digest: str) -> Entry:
    """What `status` says of it. A directory's size and time say nothing about it."""
    kind = _KINDS[stat.S_IFMT(status.st_mode)]
    mode = stat.S_IMODE(status.st_mode)
    if kind == "d":
        return Entry(path, kind, mode, 0, 0)
    return Entry(path, kind, mode, status.st_size, status.st_mtime_ns, digest)


def digest_of(data: bytes) -> str:
    """What a manifest says of these bytes."""
    return hashlib.blake2b(data, digest_size=DIGEST_SIZE).hexdigest()


def write_manifest(state: int, name: str, entries: Iterable[Entry]) -> None:
    """Write, durably and in one step, what release `name` consists of. Raises OSError."""
    directory = _make_directory(state)
    new = _unfinished(name)
    try:
        with suppress(FileNotFoundError):
            os.unlink(new, dir_fd=directory)  # a crash may have left it
        _write(directory, new, entries)
        os.rename(new, name, src_dir_fd=directory, dst_dir_fd=directory)
        os.fsync(directory)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(new, dir_fd=directory)
        raise
    finally:
        os.close(directory)


def read_manifest(state: int, name: str) -> dict[str, Entry]:
    """The entries of release `name`, by path. Raises FileNotFoundError if it has no manifest, RelfsError for one that
    is damaged or cannot be read."""
    try:
        directory = open_directory(state, MANIFESTS)
        try:
            fd = open_file(directory, name, os.O_RDONLY)
        finally:
            os.close(directory)
        with open(fd, "rb", buffering=1 << 18) as file:
            return {entry.path: entry for entry in _decoded(file, name)}
    except FileNotFoundError:
        raise
    except OSError as error:
        raise RelfsError(f"{MANIFESTS}/{name}: cannot be read: {reason(error)}") from error


def remove_manifest(state: int, name: str) -> None:
    """Forget, durably, what release `name` consisted of, also what a crash has left half written; nothing, if nothing
    was known. Raises OSError."""
    with suppress(FileNotFoundError):
        directory = open_directory(state, MANIFESTS)
        try:
            for each in (name, _unfinished(name)):
                with suppress(FileNotFoundError):
                    os.unlink(each, dir_fd=directory)
            os.fsync(directory)
        finally:
            os.close(directory)


def encode(entry: Entry) -> bytes:
    """The line of one entry."""
    path = os.fsencode(entry.path).replace(b"\\", b"\\\\").replace(b"\n", b"\\n")
    head = f"{entry.kind} {entry.mode:o} {entry.size} {entry.mtime} {entry.digest} "
    return head.encode("ascii") + path + b"\n"


def decode(line: bytes) -> Entry:
    """The entry on a line. Raises ValueError for what is none."""
    fields = line[:-1].split(b" ", _FIELDS - 1)
    if len(fields) != _FIELDS or not line.endswith(b"\n"):
        raise ValueError("not an entry")
    kind, mode, size, mtime, digest = (field.decode("ascii") for field in fields[:-1])
    return Entry(_path(fields[-1]), kind, int(mode, 8), int(size), int(mtime), digest)


def _path(written: bytes) -> str:
    if b"\\" in written:
        written = b"\\".join(part.replace(b"\\n", b"\n") for part in written.split(b"\\\\"))
    return os.fsdecode(written)


def _write(directory: int, name: str, entries: Iterable[Entry]) -> None:
    digest = hashlib.blake2b(digest_size=DIGEST_SIZE)
    count = 0
    fd = open_file(directory, name, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    with open(fd, "wb", buffering=1 << 18) as file:
        belong_to_owner(fd, directory)
        for line in _lines(entries):
            count += 1
            digest.update(line)
            file.write(line)
        file.write(b"%s %d %s\n" % (_END, count - 1, digest.hexdigest().encode("ascii")))
        file.flush()
        os.fsync(fd)


def _lines(entries: Iterable[Entry]) -> Iterator[bytes]:
    yield _HEADER
    for entry in sorted(entries, key=lambda entry: os.fsencode(entry.path)):
        yield encode(entry)


def _decoded(lines: Iterable[bytes], name: str) -> Iterator[Entry]:
    digest = hashlib.blake2b(digest_size=DIGEST_SIZE)
    count, ended = -1, False
    try:
        for line in lines:
            if line.startswith(_END):
                ended = line == b"%s %d %s\n" % (_END, count, digest.hexdigest().encode("ascii"))
                break
            if count >= 0:
                yield decode(line)
            elif line != _HEADER:
                break
            digest.update(line)
            count += 1
    except ValueError:
        ended = False
    if not ended:
        raise RelfsError(f"{MANIFESTS}/{name}: is damaged: its last line does not vouch for the others")


def _make_directory(state: int) -> int:
    """Its own name is flushed, too, or a power cut takes it away with all that is in it."""
    with suppress(FileExistsError):
        os.mkdir(MANIFESTS, 0o755, dir_fd=state)
    directory = open_directory(state, MANIFESTS)
    belong_to_owner(directory, state)
    os.fsync(state)
    return directory


def _unfinished(name: str) -> str:
    """What a manifest is called while it is written."""
    return f".{name}.new" if len(os.fsencode(name)) < 250 else ".new"
