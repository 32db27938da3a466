"""Real content: two versions of a Debian source package (git), each as upstream's archive and as Debian's unpacked
tree, deployed one after the other under a mount that is read. What is released is what tar(1) and dpkg-source(1)
make of the same: bytes, modes, times, links.

contrib/test fetches the sources; where that cannot be done, this fails.
"""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from clients import SECONDS, Done, ctl
from mounting import Mounts
from trees import described

_SOURCES = Path(sys.prefix, "sources")
_READ = "Makefile"

_SECONDS = 300.0
"""What is removed is deleted after everybody else, on a machine that may be busy."""


@pytest.fixture
def app(tmp_path: Path) -> Path:
    """A deploy path in which nothing has been released."""
    (tmp_path / "app/releases").mkdir(parents=True)
    return tmp_path / "app"


def test_successive_releases_of_real_sources(app: Path, tmp_path: Path, mounts: Mounts) -> None:
    mounts.start(app)
    trees = [tree for suite in ("bookworm", "trixie") for tree in _unpacked(suite, tmp_path / suite)]
    sources = [source for suite in ("bookworm", "trixie") for source in (_archive(suite), tmp_path / suite / "debian")]
    _deploy(app, sources[0])
    with _reading(app / "current" / _READ) as texts:
        for source in sources[1:]:
            _deploy(app, source)
        assert _done(app, "rollback").out.startswith("3 is current")
        assert (app / "current").resolve().name == "3"
        assert _done(app, "switch", "4").status == 0
    assert texts <= {(tree / _READ).read_bytes() for tree in trees}
    for name, tree in zip("1234", trees, strict=True):
        assert _below(app / "releases" / name) == _below(tree), name
        assert _done(app, "check", name).status == 0
    _done(app, "prune", "--keep", "1", "--wait", seconds=_SECONDS)
    assert {path.name for path in (app / "releases").iterdir()} == {"3", "4"}, "3 is where a rollback leads to"
    assert not list((app / ".relfs/trash").glob("[!.]*"))
    assert _below(app / "releases/4") == _below(trees[3])


def _below(top: Path) -> dict[str, Any]:
    """All but the top directory itself, which is left out of an archive (tar's --strip-components, too)."""
    found = described(top)
    del found["."]
    return found


def _unpacked(suite: str, place: Path) -> tuple[Path, Path]:
    """Upstream's, by tar; Debian's, by dpkg-source."""
    (place / "upstream").mkdir(parents=True)
    untar = ["tar", "--delay-directory-restore", "-C", f"{place}/upstream", "-xpf"]  # git-gui is filled in two parts
    subprocess.run([*untar, str(_archive(suite))], check=True)
    words = ["dpkg-source", "--no-check", "-x", str(_only(suite, "*.dsc")), f"{place}/debian"]
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
    (upstream,) = (place / "upstream").iterdir()
    return upstream, place / "debian"


def _archive(suite: str) -> Path:
    return _only(suite, "*.orig.tar.xz")


def _only(suite: str, pattern: str) -> Path:
    found = list((_SOURCES / suite).glob(pattern))
    assert len(found) == 1, f"{_SOURCES}/{suite}/{pattern}: is not there; contrib/test fetches it"
    return found[0]


def _deploy(app: Path, source: Path) -> None:
    strip = ["--strip", "1"] if source.suffix == ".xz" else []
    _done(app, "deploy", *strip, str(source))


def _done(app: Path, *arguments: str, seconds: float = SECONDS) -> Done:
    done = ctl("-C", app, *arguments, seconds=seconds)
    assert (done.status, done.err) == (0, "")
    return done


@contextmanager
def _reading(path: Path) -> Iterator[set[bytes]]:
    """What is read there meanwhile, over and over. That it cannot be read is an error."""
    texts: set[bytes] = set()
    failed: list[OSError] = []
    stop = threading.Event()

    def read() -> None:
        while not stop.is_set():
            try:
                texts.add(path.read_bytes())
            except OSError as error:
                failed.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        yield texts
    finally:
        stop.set()
        reader.join()
    assert not failed
    assert len(texts) > 1, "nothing changed while it was read"
