"""Makes, renames and removes things in one directory: `python -m soak.actors.shuffler WORK DIRECTORY`.

WORK is `rename`, `directories` or `files`. A round of it leaves the directory as it was, so every call has one right
answer: what is done twice, or not at all, makes this call or the next one fail. After a failure, what is left is
removed and a new round begins.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from soak.actors.telling import Teller, Wrong, told_to_end

_PAUSE = 0.002


def _rename(teller: Teller, place: str) -> None:
    """To and fro, and a new file over the old one, as editors do."""
    one, other = f"{place}/shuffled-one", f"{place}/shuffled-other"
    _create(teller, one, b"first")
    with teller.attempt("rename"):
        os.rename(one, other)
    with teller.attempt("rename back"):
        os.rename(other, one)
    _create(teller, other, b"second")
    with teller.attempt("rename over"):
        os.rename(other, one)
    _expect(teller, one, b"second")
    with teller.attempt("unlink"):
        os.unlink(one)


def _directories(teller: Teller, place: str) -> None:
    outer, inner = f"{place}/shuffled-outer", f"{place}/shuffled-outer/inner"
    with teller.attempt("mkdir"):
        os.mkdir(outer)
    with teller.attempt("mkdir"):
        os.mkdir(inner)
    with teller.attempt("list"):
        if os.listdir(outer) != ["inner"]:
            raise Wrong("the directory does not list what was just made in it")
    with teller.attempt("rmdir"):
        os.rmdir(inner)
    with teller.attempt("rmdir"):
        os.rmdir(outer)


def _files(teller: Teller, place: str) -> None:
    file, other, link = (f"{place}/shuffled-{name}" for name in ("file", "hard", "soft"))
    _create(teller, file, b"content")
    with teller.attempt("link"):
        os.link(file, other)
    with teller.attempt("symlink"):
        os.symlink("shuffled-hard", link)
    _expect(teller, link, b"content")
    with teller.attempt("chmod"):
        os.chmod(file, 0o600)
    with teller.attempt("truncate"):
        os.truncate(file, 3)
    _expect(teller, link, b"con")
    for name in (link, other, file):
        with teller.attempt("unlink"):
            os.unlink(name)


def _create(teller: Teller, path: str, content: bytes) -> None:
    with teller.attempt("create"):
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    try:
        with teller.attempt("write"):
            os.write(fd, content)
    finally:
        os.close(fd)


def _expect(teller: Teller, path: str, content: bytes) -> None:
    with teller.attempt("read"):
        fd = os.open(path, os.O_RDONLY)
        try:
            if (found := os.read(fd, 100)) != content:
                raise Wrong(f"read {found!r} instead of {content!r}")
        finally:
            os.close(fd)


@dataclass(frozen=True)
class _Work:
    """A round, and the names that it makes, so that they can be removed in this order."""

    round: Callable[[Teller, str], None]
    names: tuple[str, ...]

    def clear(self, place: str) -> None:
        """Nothing but these, and no whole trees: what answers is under suspicion."""
        for name in self.names:
            for remove in (os.unlink, os.rmdir):
                with suppress(OSError):
                    remove(f"{place}/shuffled-{name}")


_WORKS = {
    "rename": _Work(_rename, ("one", "other")),
    "directories": _Work(_directories, ("outer/inner", "outer")),
    "files": _Work(_files, ("soft", "hard", "file")),
}


def main(work: str, place: str) -> None:
    teller = Teller()
    teller.ready()
    while not told_to_end(_PAUSE):
        try:
            _WORKS[work].round(teller, place)
        except (OSError, Wrong):  # told
            _WORKS[work].clear(place)
    teller.end()


if __name__ == "__main__":
    main(*sys.argv[1:])
