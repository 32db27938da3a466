"""An archive like what composer and npm unpack: packages under vendor/, of small files, some that can be run, and links
to those. The same bytes for the same number of files, on every machine."""

from __future__ import annotations

import io
import random
import tarfile
from collections.abc import Iterator
from pathlib import Path

_FILES_A_PACKAGE = 40
_FILES_A_DIRECTORY = 8
_SMALLEST, _LARGEST = 1 << 10, 8 << 10
_SEED = 20_000


def make_archive(path: Path, files: int) -> Path:
    """A tar file at `path` with that many regular files, of 1 to 8 KiB."""
    random_source = random.Random(_SEED)
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as archive:
        made = {"vendor", "vendor/bin"}
        for name in ("vendor", "vendor/bin"):
            archive.addfile(_entry(name, tarfile.DIRTYPE, 0o755))
        for number, name in enumerate(_names(files)):
            for parent in _missing(name, made):
                archive.addfile(_entry(parent, tarfile.DIRTYPE, 0o755))
            content = random_source.randbytes(random_source.randint(_SMALLEST, _LARGEST))
            program = "/bin/" in name
            archive.addfile(_file(name, content, 0o755 if program else 0o644), io.BytesIO(content))
            if program:
                link = _entry(f"vendor/bin/run-{number}", tarfile.SYMTYPE, 0o777)
                link.linkname = f"../{name.removeprefix('vendor/')}"
                archive.addfile(link)
    return path


def _names(files: int) -> Iterator[str]:
    """The first file of each package is its program; the rest lies three and four directories deep."""
    for number in range(files):
        package, index = divmod(number, _FILES_A_PACKAGE)
        base = f"vendor/maker-{package // 10}/package-{package}"
        if index == 0:
            yield f"{base}/bin/program"
        else:
            depth = "src" if index < _FILES_A_DIRECTORY else f"src/Part{index // _FILES_A_DIRECTORY}"
            yield f"{base}/{depth}/Class{index}.php"


def _missing(name: str, made: set[str]) -> Iterator[str]:
    """The directories above `name` that are not in the archive yet, outermost first."""
    parts = name.split("/")[:-1]
    for end in range(1, len(parts) + 1):
        parent = "/".join(parts[:end])
        if parent not in made:
            made.add(parent)
            yield parent


def _file(name: str, content: bytes, mode: int) -> tarfile.TarInfo:
    entry = _entry(name, tarfile.REGTYPE, mode)
    entry.size = len(content)
    return entry


def _entry(name: str, kind: bytes, mode: int) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.type, entry.mode, entry.mtime = kind, mode, 1_700_000_000
    return entry
