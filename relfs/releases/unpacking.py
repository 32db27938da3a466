"""Writing the members of an archive into a new release, one after the other, as they come.

No name that is written is reached through a link: archive.py lets no member pass that is below one, and nobody else can
enter the staging directory. Owners and extended attributes in archives are those of another host, and not taken over:
what root unpacks belongs to whoever owns `releases/`.

A file whose bytes are those that the release before has under the same name is shared with it, if that can be done.
What its bytes are is known only when they were read, so it is written first.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import BinaryIO

from relfs.errors import RelfsError
from relfs.releases.archive import Gate, Limits, Member
from relfs.releases.contents import BUFFER, write_all
from relfs.releases.copying import Copied, any_mode, naming
from relfs.releases.manifest import DIGEST_SIZE, NO_DIGEST, Entry, digest_of, entry_of
from relfs.releases.reading import Reading
from relfs.releases.sharing import Previous
from relfs.releases.workers import Progress

_CREATE = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_TOP_MODE = 0o755
_ZEROS = bytes(BUFFER)


@dataclass(frozen=True)
class Owner:
    """Whose the files shall be."""

    uid: int
    gid: int


def unpack(
    reading: Reading,
    shown: str,
    target: int,
    previous: Previous | None,
    *,
    limits: Limits,
    owner: Owner | None,
    on_progress: Callable[[Progress], None],
) -> Copied:
    """Write all that an archive, which messages call `shown`, holds into an empty directory (a descriptor).

    Raises RefusedError for what must not be in a release, RelfsError for a broken archive, OSError with the path.
    """
    unpacker = _Unpacker(target, previous, Gate(limits, shown), owner, reading, on_progress)
    with any_mode():
        for member, data in reading:
            unpacker.take(member, data)
        unpacker.gate.finish()
        if not unpacker.entries:
            raise RelfsError(f"{shown}: holds nothing")
        unpacker.dress_directories()
    return Copied(list(unpacker.entries.values()), unpacker.shared_files, unpacker.shared_bytes)


@dataclass
class _Unpacker:
    target: int
    previous: Previous | None
    gate: Gate
    owner: Owner | None
    reading: Reading
    on_progress: Callable[[Progress], None]
    entries: dict[str, Entry] = field(default_factory=dict)
    directories: dict[str, Member] = field(default_factory=dict)
    shared_files: int = 0
    shared_bytes: int = 0

    def take(self, member: Member, data: BinaryIO | None) -> None:
        """Write one member. Raises as unpack() does."""
        for path in self.gate.admit(member):
            self._make_directory(Member(path, "directory", _TOP_MODE, 0, member.mtime), first=False)
        with naming(member.path):
            if member.kind == "directory":
                self._make_directory(member, first=True)
            elif member.kind == "symlink":
                self._make_link(member)
            elif member.kind == "hardlink":
                os.link(member.link, member.path, src_dir_fd=self.target, dst_dir_fd=self.target, follow_symlinks=False)
                self.entries[member.path] = self.entries[member.link]._replace(path=member.path)
            else:
                assert data is not None
                self._make_file(member, data)
        self._tell()

    def _tell(self) -> None:
        self.on_progress(Progress(len(self.entries), self.gate.bytes, share=self.reading.share()))

    def _make_directory(self, member: Member, *, first: bool) -> None:
        """What a member says of a directory counts more than that others are in it."""
        known = member.path in self.directories
        if not known and member.path != ".":
            with naming(member.path):
                os.mkdir(member.path, 0o700, dir_fd=self.target)
        if first or not known:
            self.directories[member.path] = member

    def _make_link(self, member: Member) -> None:
        os.symlink(member.link, member.path, dir_fd=self.target)
        if self.owner is not None:
            os.chown(member.path, self.owner.uid, self.owner.gid, dir_fd=self.target, follow_symlinks=False)
        os.utime(member.path, ns=(member.mtime, member.mtime), dir_fd=self.target, follow_symlinks=False)
        status = os.lstat(member.path, dir_fd=self.target)
        self._note(member.path, status, digest_of(os.fsencode(member.link)))

    def _make_file(self, member: Member, data: BinaryIO) -> None:
        out = os.open(member.path, _CREATE, member.mode & 0o777, dir_fd=self.target)
        try:
            digest = self._write(out, member, data)
            shared = self._clone(out, member, digest)
            if self.owner is not None:
                os.fchown(out, self.owner.uid, self.owner.gid)
            os.fchmod(out, member.mode)
            os.utime(out, ns=(member.mtime, member.mtime))
            status = os.fstat(out)
        finally:
            os.close(out)
        linked = None if shared else self._link(member, status, digest)
        if shared or linked is not None:
            self.shared_files += 1
            self.shared_bytes += status.st_size
        self._note(member.path, linked or status, digest)

    def _write(self, out: int, member: Member, data: BinaryIO) -> str:
        if member.sparse:  # what it is in full was to be written by somebody, or hashed
            self.gate.count(member.size, None)
        digest = blake2b(digest_size=DIGEST_SIZE)
        size = 0
        while part := data.read(BUFFER):
            self.gate.count(0 if member.sparse else len(part), self.reading.consumed())
            self._tell()
            digest.update(part)
            size += len(part)
            if member.sparse and part == _ZEROS[: len(part)]:
                os.lseek(out, len(part), os.SEEK_CUR)
            else:
                write_all(out, part)
        if size != member.size:
            raise RelfsError(f"{member.path}: has {size} bytes in the archive, and should have {member.size}")
        os.ftruncate(out, size)
        return digest.hexdigest()

    def _twin(self, path: str, digest: str, size: int) -> bool:
        """Whether the release before has the same bytes under this name, as its manifest says."""
        entry = self.previous.entries.get(path) if self.previous is not None else None
        return entry is not None and entry.kind == "f" and (entry.digest, entry.size) == (digest, size) and size > 0

    def _clone(self, out: int, member: Member, digest: str) -> bool:
        if self.previous is None or not self.previous.clones or not self._twin(member.path, digest, member.size):
            return False
        return self.previous.clone_path(member.path, out, digest)

    def _link(self, member: Member, status: os.stat_result, digest: str) -> os.stat_result | None:
        """What is known of the file that is there instead now."""
        if self.previous is None or not self.previous.how.link or not self._twin(member.path, digest, member.size):
            return None
        return self.previous.link_path(member.path, self.target, status, digest)

    def _note(self, path: str, status: os.stat_result, digest: str) -> None:
        self.entries[path] = entry_of(path, status, digest)

    def dress_directories(self) -> None:
        """Those in others first; the top, which an archive need not mention, last."""
        self.directories.setdefault(".", Member(".", "directory", _TOP_MODE, 0, _latest(self.entries.values())))
        for path in sorted(self.directories, key=lambda path: (path != ".", path), reverse=True):
            member = self.directories[path]
            with naming(path):
                self._dress(path, member)

    def _dress(self, path: str, member: Member) -> None:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self.target)
        try:
            if self.owner is not None:
                os.fchown(fd, self.owner.uid, self.owner.gid)
            os.fchmod(fd, stat.S_IMODE(member.mode))
            os.utime(fd, ns=(member.mtime, member.mtime))
            self._note(path, os.fstat(fd), NO_DIGEST)
        finally:
            os.close(fd)


def _latest(entries: Iterable[Entry]) -> int:
    return max((entry.mtime for entry in entries), default=0)
