"""Reading archives: what is in them, a member at a time, and each member's bytes while it is its turn.

tar in any of its dialects, from a stream that is read once; compressed by gzip, bzip2 or xz, which Python knows, or by
zstd, lz4, lzip or compress, whose programs are run; and zip, from a file. Which it is, its first bytes tell. What may
be in an archive is archive.py's business.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import shutil
import stat
import subprocess
import tarfile
import tempfile
import threading
import time
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from tarfile import EOFHeaderError  # type: ignore[attr-defined]
from typing import IO, BinaryIO, NoReturn, Protocol, Self, cast

from relfs.errors import RefusedError, RelfsError
from relfs.releases.archive import Kind, Member, clean_path
from relfs.releases.contents import BUFFER
from relfs.releases.survey import kind_of

_PROGRAMS = {
    b"\x28\xb5\x2f\xfd": "zstd",
    b"\x04\x22\x4d\x18": "lz4",
    b"LZIP": "lzip",
    b"\x1f\x9d": "gzip",  # compress(1)
}
_GZIP, _BZIP2, _XZ, _ZIP = b"\x1f\x8b", b"BZh", b"\xfd7zXZ\0", (b"PK\x03\x04", b"PK\x05\x06")
_START = 512
_MODES: dict[Kind, int] = {"directory": 0o755, "file": 0o644, "symlink": 0o777, "hardlink": 0o644}
_PERMISSIONS = 0o7777
_LINK_MAX = 4096
_PADDING_MAX = 1 << 26
_HEADERS_MAX = 1 << 22
"""Bytes of headers that one member may have, or that hold for all: names are short, but a map of holes may be long."""

_TIME_MAX = 1 << 40  # seconds since the epoch
_ZIP_UNIX = 3
_ZIP_UTF8 = 1 << 11
_BROKEN = (
    tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, NotImplementedError, ValueError,
    OverflowError, RecursionError,
)  # fmt: skip


class Reading(Protocol):
    """An archive that is being read."""

    def __iter__(self) -> Iterator[tuple[Member, BinaryIO | None]]:
        """The members, and for files what gives their bytes until the next is asked for. Raises RelfsError for an
        archive that is broken, RefusedError for a member that is no file, directory or link."""

    def consumed(self) -> int | None:
        """How many bytes of the archive were read so far; None where nobody knows."""

    def share(self) -> float | None:
        """How much of it was read so far, from 0 to 1; None where nobody knows."""


@contextmanager
def open_archive(file: BinaryIO, shown: str, strip: int) -> Iterator[Reading]:
    """What `file`, which messages call `shown`, holds. Raises RelfsError for what is no archive."""
    counted = _Counted(file)
    start = counted.peek(_START)
    if start.startswith(_ZIP):
        with _broken(shown):
            yield _Zip(_seekable(file, shown), strip, shown)
        return
    with ExitStack() as stack:
        plain = _decompressed(counted, start, shown, stack)
        with _broken(shown):
            yield _Tar(plain, counted, strip, shown)


class _Counted(io.RawIOBase):
    """A stream that can be looked at before it is read, and knows how much was read."""

    def __init__(self, file: BinaryIO) -> None:
        super().__init__()
        self.count = 0
        self._file = file
        self._ahead = b""

    def peek(self, size: int) -> bytes:
        while len(self._ahead) < size and (part := self._file.read(size - len(self._ahead))):
            self._ahead += part
        return self._ahead

    def share(self) -> float | None:
        size = os.fstat(self._file.fileno()).st_size if self._file.seekable() else 0
        return min(self.count / size, 1.0) if size else None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        data = self._ahead[: len(buffer)] or self._file.read(len(buffer))
        self._ahead = self._ahead[len(buffer) :]
        buffer[: len(data)] = data
        self.count += len(data)
        return len(data)


def _seekable(file: BinaryIO, shown: str) -> BinaryIO:
    if not file.seekable():
        raise RelfsError(f"{shown}: is a zip archive, whose list is at its end; give it as a file")
    file.seek(0)
    return file


def _decompressed(counted: _Counted, start: bytes, shown: str, stack: ExitStack) -> BinaryIO:
    buffered = stack.enter_context(io.BufferedReader(counted, 1 << 18))
    program = next((name for magic, name in _PROGRAMS.items() if start.startswith(magic)), None)
    if program is not None:
        return stack.enter_context(_through(program, buffered, shown))
    if start.startswith(_GZIP):
        return cast(BinaryIO, stack.enter_context(gzip.GzipFile(fileobj=buffered, mode="rb")))
    if start.startswith(_BZIP2):
        return cast(BinaryIO, stack.enter_context(bz2.BZ2File(buffered)))
    if start.startswith(_XZ):
        return cast(BinaryIO, stack.enter_context(lzma.LZMAFile(buffered)))
    return buffered


@contextmanager
def _through(program: str, source: BinaryIO, shown: str) -> Iterator[BinaryIO]:
    """What `program` makes of the stream, which a thread feeds to it: it may be no file, and was looked at already."""
    if shutil.which(program) is None:
        raise RelfsError(f"{shown}: is compressed by {program}, and there is no such program here; install it")
    with running([program, "-dc"], shown, stdin=subprocess.PIPE) as process:
        threading.Thread(target=_feed, args=(source, process.stdin), daemon=True).start()
        yield cast(BinaryIO, process.stdout)


def _feed(source: BinaryIO, program: IO[bytes]) -> None:
    with suppress(OSError, ValueError), program:  # it has ended, or was ended
        shutil.copyfileobj(source, program, 1 << 18)


@contextmanager
def running(
    command: Sequence[str], shown: str, *, stdin: int = subprocess.DEVNULL
) -> Iterator[subprocess.Popen[bytes]]:
    """A program whose output is read to its end. Raises RelfsError with the first line of what it complains of, if it
    fails; it is ended if the reader does not get there."""
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(command, stdin=stdin, stdout=subprocess.PIPE, stderr=errors, start_new_session=True)
        try:
            yield process
            assert process.stdout is not None
            process.stdout.close()
            if process.wait() != 0:
                errors.seek(0)
                why = os.fsdecode(errors.read(1000)).strip().partition("\n")[0] or f"status {process.returncode}"
                raise RelfsError(f"{shown}: {command[0]} failed: {why}")
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()


@contextmanager
def _broken(shown: str) -> Iterator[None]:
    """What the libraries say of an archive that is none, in one line."""
    try:
        yield
    except RelfsError:
        raise
    except OSError as error:
        if error.errno is not None:
            raise
        raise RelfsError(f"{shown}: is no archive, or a broken one: {error}") from error  # what gzip and bz2 raise
    except _BROKEN as error:
        raise RelfsError(f"{shown}: is no archive, or a broken one: {error or type(error).__name__}") from error


class _Info(tarfile.TarInfo):
    """Tells the end of an archive, which is written there, from the end of what there is of it."""

    @classmethod
    def fromtarfile(cls, tarfile: tarfile.TarFile) -> Self:
        try:
            return super().fromtarfile(tarfile)
        except EOFHeaderError:
            tarfile.relfs_ended = True  # type: ignore[attr-defined]
            raise


class _Metered:
    """A stream of which no more than a few bytes can be read while the next member is looked for: tarfile keeps in
    memory all that a member's headers hold, and these may say of themselves that they are as long as they like."""

    def __init__(self, file: BinaryIO, shown: str) -> None:
        self._file = file
        self._shown = shown
        self._left: int | None = _HEADERS_MAX  # tarfile looks for the first one as it opens

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size)
        if self._left is not None:
            self._left -= len(data)
            if self._left < 0:
                self.refuse()
        return data

    def refuse(self) -> NoReturn:
        raise RefusedError(f"{self._shown}: has headers of more than {_HEADERS_MAX >> 20} MiB; it is broken or hostile")

    @contextmanager
    def looking(self, passed_over: int) -> Iterator[None]:
        """Meanwhile, headers are read, and `passed_over` bytes of a file that nobody wanted."""
        self._left = passed_over + _HEADERS_MAX
        try:
            yield
        finally:
            self._left = None


@dataclass(frozen=True)
class _Tar:
    plain: BinaryIO
    counted: _Counted
    strip: int
    shown: str

    def consumed(self) -> int | None:
        return self.counted.count

    def share(self) -> float | None:
        return self.counted.share()

    def __iter__(self) -> Iterator[tuple[Member, BinaryIO | None]]:
        metered, passed_over = _Metered(self.plain, self.shown), 0
        with tarfile.open(
            fileobj=cast(BinaryIO, metered), mode="r|", tarinfo=_Info, encoding="utf-8", errors="surrogateescape"
        ) as archive:
            while (info := _next(archive, metered, passed_over)) is not None:
                member = _tar_member(info, self.strip)
                passed_over = info.size if member is None else 0
                if member is not None:
                    yield member, cast(BinaryIO, archive.extractfile(info)) if member.kind == "file" else None
            if not getattr(archive, "relfs_ended", False):
                raise RelfsError(f"{self.shown}: ends too early: it was cut off, or is broken")
        self._drain()

    def _drain(self) -> None:
        """What compressed it wrote a checksum behind it; and who writes into a pipe has to be able to end."""
        read = 0
        while part := self.plain.read(BUFFER):
            read += len(part)
            if read > _PADDING_MAX:
                raise RelfsError(f"{self.shown}: goes on after its end; it is more than one archive, or a broken one")


def _next(archive: tarfile.TarFile, metered: _Metered, passed_over: int) -> tarfile.TarInfo | None:
    with metered.looking(passed_over):
        info = archive.next()
    archive.members = []  # type: ignore[attr-defined] # it would remember them all
    if sum(len(key) + len(value) for key, value in archive.pax_headers.items()) > _HEADERS_MAX:
        metered.refuse()
    return info


def _tar_member(info: tarfile.TarInfo, strip: int) -> Member | None:
    path = clean_path(info.name, strip)
    kind = _tar_kind(info)
    if path is None:
        return None
    link = info.linkname
    if kind == "hardlink":
        link = clean_path(info.linkname, strip) or ""
    return Member(path, kind, info.mode & _PERMISSIONS, max(info.size, 0), _nanoseconds(info), link, info.issparse())


def _tar_kind(info: tarfile.TarInfo) -> Kind:
    if info.isdir():
        return "directory"
    if info.isreg():
        return "file"
    if info.issym():
        return "symlink"
    if info.islnk():
        return "hardlink"
    what = "a fifo" if info.isfifo() else "a device" if info.isdev() else f"of a kind {info.type!r} that is not known"
    raise RefusedError(f"{info.name}: is {what}; a release has only directories, files and links")


def _nanoseconds(info: tarfile.TarInfo) -> int:
    """A float is not exact enough."""
    try:
        seconds = Decimal(info.pax_headers.get("mtime", str(info.mtime)))
    except InvalidOperation as error:
        raise RelfsError(f"{info.name}: has no time that can be read") from error
    if not seconds.is_finite() or abs(seconds) >= _TIME_MAX:
        raise RelfsError(f"{info.name}: has a time that no file can have")
    return int(seconds * 1_000_000_000)


@dataclass
class _Zip:
    file: BinaryIO
    strip: int
    shown: str
    done: float = 0.0

    def consumed(self) -> int | None:
        return os.fstat(self.file.fileno()).st_size

    def share(self) -> float | None:
        return self.done

    def __iter__(self) -> Iterator[tuple[Member, BinaryIO | None]]:
        with zipfile.ZipFile(self.file) as archive:
            infos = archive.infolist()
            for number, info in enumerate(infos):
                self.done = number / len(infos)
                if info.flag_bits & 1:
                    raise RelfsError(f"{self.shown}: {info.filename} is encrypted; unpack it, and add the directory")
                member = self._member(archive, info)
                if member is None:
                    continue
                if member.kind != "file":
                    yield member, None
                    continue
                with archive.open(info) as data:
                    yield member, cast(BinaryIO, data)

    def _member(self, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Member | None:
        """Made on a Unix, it has a mode; on other systems there is none, and only the name tells a directory."""
        name = _zip_name(info)
        path = clean_path(name, self.strip)
        if path is None:
            return None
        mode = info.external_attr >> 16 if info.create_system == _ZIP_UNIX else 0
        kind = _zip_kind(name, mode)
        link = ""
        if kind == "symlink":
            with archive.open(info) as data:
                link = os.fsdecode(data.read(_LINK_MAX))
        permissions = mode & _PERMISSIONS or _MODES[kind]
        return Member(path, kind, permissions, info.file_size, _zip_time(info), link)


def _zip_name(info: zipfile.ZipInfo) -> str:
    """Where nothing says that it is UTF-8, the library takes it for what DOS had (code page 437). zip(1) says nothing,
    and writes the bytes that the name has on its Unix. Other systems' programs may have backslashes in it."""
    if info.create_system != _ZIP_UNIX:
        return info.filename.replace("\\", "/")
    return info.filename if info.flag_bits & _ZIP_UTF8 else os.fsdecode(info.filename.encode("cp437"))


def _zip_kind(name: str, mode: int) -> Kind:
    if name.endswith("/"):
        return "directory"
    kinds: dict[int, Kind] = {0: "file", stat.S_IFREG: "file", stat.S_IFLNK: "symlink"}
    kind = kinds.get(stat.S_IFMT(mode))
    if kind is None:
        raise RefusedError(f"{name}: is {kind_of(mode)}; a release has only directories, files and links")
    return kind


def _zip_time(info: zipfile.ZipInfo) -> int:
    """It is in the local time of whoever made it, which is taken for ours; in steps of two seconds."""
    try:
        return int(time.mktime((*info.date_time, 0, 0, -1))) * 1_000_000_000
    except (ValueError, OverflowError):
        return 0
