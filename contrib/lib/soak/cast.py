"""The actors of a soak: which there are, and how they begin and end. What they told is kept in a file each.

Two readers see another release than everybody: one is pinned, one is all of a canary's audience. While they are there,
the kernel keeps nothing of `current` for anybody: every resolution, whoever's it is, needs an answer of relfs's.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from soak import evidence
from soak.evidence import Told
from soak.site import CANARY, PINNED, Site, SoakError

READERS = ("reader-0", "reader-1", "reader-2")
VIEWERS = {"pinned": PINNED, "canary": CANARY}
"""Readers, and the one release that each is to see."""

OBSERVER = "observer"

_HERE = Path(__file__).resolve().parent
_PAUSES = ("50", "300", "2000")
"""Of the readers, in microseconds: together they leave room for relfs and for everybody else on two processors."""

_VIEWERS_PAUSE = "5000"
"""Likewise. After each of their reads, the kernel asks for the next one of somebody else twice."""

_OF_AUDIENCE = '"$0" -C "$1" canary "$2" --pid $$ >/dev/null && shift 2 && exec "$@"'
"""A shell that becomes one of a canary's audience, and then the reader, which so never sees anything else."""

_READY_SECONDS = 30.0
_END_SECONDS = 60.0


def compile_reader(program: Path) -> str:
    """Make the reader; its path. Raises SoakError."""
    source = _HERE / "actors/reader.c"
    words = ["gcc", "-O2", "-Wall", "-D_GNU_SOURCE", "-o", str(program), str(source)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SoakError(f"{source} cannot be compiled: {done.stderr.strip()}")
    return str(program)


def python_actor(name: str, *arguments: str) -> list[str]:
    """The command that runs an actor that is written in Python."""
    return [sys.executable, "-S", "-m", f"soak.actors.{name}", *arguments]


class Cast:
    """Actors, started and ended by name. GUARDED BY nothing: one thread."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Cast:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._running.values():
            process.kill()
            process.wait()

    def start(self, name: str, words: Sequence[str], cwd: Path | str = "/") -> None:
        """Start an actor, in a session of its own, and wait until it has begun. Raises SoakError if it does not."""
        with open(self._file(name), "wb") as told:
            self._running[name] = subprocess.Popen(
                words, stdin=subprocess.PIPE, stdout=told, cwd=cwd, start_new_session=True, env=_environment()
            )
        end = time.monotonic() + _READY_SECONDS
        while b'"ready"' not in self._file(name).read_bytes():
            if self._running[name].poll() is not None or time.monotonic() > end:
                raise SoakError(f"the {name} does not begin")
            time.sleep(0.01)

    def started(self, names: Iterable[str]) -> list[str]:
        """Those of them that there are, in this order."""
        return [name for name in names if name in self._running]

    def end(self, name: str) -> None:
        """Tell an actor to end, and wait for it. One that hangs is killed, and its last line is missing."""
        process = self._running[name]
        assert process.stdin is not None
        process.stdin.close()
        try:
            process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()

    def told(self, name: str) -> Told:
        """What it has told up to now: it may go on faster than anybody can read."""
        with open(self._file(name), "rb") as file:
            content = file.read(os.fstat(file.fileno()).st_size)
        return evidence.read(name, content.decode(errors="replace").splitlines(keepends=True))

    def _file(self, name: str) -> Path:
        return self._directory / f"{name}.told"


def start_actors(cast: Cast, site: Site, reader: str, seed: int) -> None:
    """All that work through the mount; the switcher last, when everybody watches."""
    app = str(site.app)
    for name, pause in zip(READERS, _PAUSES, strict=True):
        cast.start(name, [reader, str(site.page), pause])
    cast.start("appender", python_actor("appender", f"{app}/appended"))
    for work in ("rename", "directories", "files"):
        cast.start(work, python_actor("shuffler", work, app))
    cast.start("switcher", python_actor("switcher", app, str(seed), site.relfsctl))


def start_viewers(cast: Cast, site: Site, reader: str) -> None:
    """Those who see what is not current: from their first read on, so nothing else of them is right."""
    words = [reader, str(site.page), _VIEWERS_PAUSE]
    cast.start("pinned", [site.relfsctl, "-C", str(site.app), "run", "--release", PINNED, "--", *words])
    cast.start("canary", ["sh", "-c", _OF_AUDIENCE, site.relfsctl, str(site.app), CANARY, *words])


def start_observer(cast: Cast, site: Site, reader: str) -> None:
    """Before the deploy path is covered: who stands in it then sees what is on the disk, for ever."""
    cast.start(OBSERVER, [reader, "current/index.html", "1000"], cwd=site.app)


ACTORS = ("switcher", OBSERVER, *READERS, *VIEWERS, "appender", "rename", "directories", "files")
"""In the order in which they end: the readers see the last switch."""


def _environment() -> dict[str, str]:
    path = os.pathsep.join(part for part in (str(_HERE.parent), os.environ.get("PYTHONPATH")) if part)
    return {**os.environ, "PYTHONPATH": path}
