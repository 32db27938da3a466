"""What the pass-through tests compare: a directory that relfs serves, and a plain one beside it.

relfs itself serves everything below a `--no-bind` mount, and the top level of an ordinary one. The fixtures `served`
and `pair` are in conftest.py, the comparison itself in sidebyside.py.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mounting import Mount, Mounts, wait_for
from sandbox import end, make_app, start_python
from sidebyside import ROOT, Script, Trace, Who, difference, run, tree

SPECIAL = frozenset({"current", "current.new", "releases", "shared", ".relfs"})
"""What a script finds at the top of a mount, and did not make; `current.new` while somebody switches."""


@dataclass
class Pair:
    """A directory that relfs serves, and a plain one; `native`: the mount has native directories. `compared` is told of
    each trace that was the same in both."""

    mount: Mount
    served: Path
    plain: Path
    place: Path
    native: bool
    compared: Callable[[Trace], None] = lambda _trace: None

    def fill(self, name: str, count: int) -> None:
        """In both, a directory with that many empty files called 0, 1, 2 …; made natively, which is faster."""
        script = f"mkdir {name} && cd {name} && seq 0 {count - 1} | xargs touch"
        self.natively(script)

    def remove(self, name: str) -> None:
        """The same as `rm -r` in both."""
        shutil.rmtree(self.plain / name)
        self._behind(f"rm -r {name}")
        wait_for(lambda: not (self.served / name).exists(), "the mount notices")

    def natively(self, script: str) -> None:
        """Run a shell script in both, past the mount."""
        subprocess.run(["sh", "-ec", script], cwd=self.plain, check=True)
        self._behind(script)

    def _behind(self, script: str) -> None:
        behind(self.place, self.mount.app, f"cd {self.served.relative_to(self.mount.app)} && {script}")

    def same(self, script: Script, who: Who = ROOT, umask: int = 0o022, *, trees: bool = True) -> dict[str, Any]:
        """Run `script` in both and demand the same; what it saw, by label. Large trees are left to the script."""
        here, natively = run(script, self.served, who, umask), run(script, self.plain, who, umask)
        assert not (found := difference(here, natively)), found
        assert not trees or tree(self.served, SPECIAL) == tree(self.plain)
        self.compared(natively)
        return here.outcome


@dataclass(frozen=True)
class Served:
    """Two mounts, one without native directories and one with; `place` holds both, and is not served."""

    bare: Mount
    ordinary: Mount
    place: Path


@contextlib.contextmanager
def serving(prepare: Callable[[Path], None] = lambda _app: None) -> Iterator[Served]:
    """Both mounts, for as long as they are needed. `prepare` does something to the deploy paths before."""
    place = Path(tempfile.mkdtemp(prefix="relfs-passthrough-"))
    place.chmod(0o755)
    mounts = Mounts(place)
    try:
        for name in ("bare", "ordinary"):
            prepare(make_app(place / name))
        yield Served(mounts.start(place / "bare", "--no-bind"), mounts.start(place / "ordinary"), place)
    finally:
        mounts.take_away()
        shutil.rmtree(place)


@contextlib.contextmanager
def below_a_release(served: Served) -> Iterator[Pair]:
    """A new directory of the mount without native directories, and a plain one."""
    base = Path(tempfile.mkdtemp(prefix="case-", dir=served.bare.app / "releases/42"))
    with _pair(served, served.bare, base) as made:
        yield made


@contextlib.contextmanager
def top_level(served: Served) -> Iterator[Pair]:
    """The very top of the ordinary mount, and a plain directory."""
    with _pair(served, served.ordinary, served.ordinary.app) as made:
        yield made


@contextlib.contextmanager
def _pair(served: Served, mount: Mount, base: Path) -> Iterator[Pair]:
    plain = Path(tempfile.mkdtemp(prefix="plain-", dir=served.place))
    for directory in (plain, base):
        directory.chmod(0o755)
    assert os.stat(base).st_dev != os.stat(plain).st_dev
    yield Pair(mount, base, plain, served.place, mount is served.ordinary)
    for directory in (plain, base):
        clear(directory)


_SWITCHER = """
import itertools, os, select, sys
from pathlib import Path
from clients import RawClient
app = Path(sys.argv[1])
with RawClient(app / ".relfs") as client:
    for number in itertools.count(1):
        release = f"4{number % 3}"
        if number % 2:
            answer = client.switch(release, f"{os.getpid()}-{number}")
            assert "result" in answer, answer
        else:
            os.symlink(f"releases/{release}", app / "current.new")
            os.rename(app / "current.new", app / "current")
        assert os.readlink(app / "current") == f"releases/{release}"
        if number == 2:
            print("ready", flush=True)
        if number >= 2 and select.select([0], [], [], 0)[0]:
            break
print(number, flush=True)
"""


@contextlib.contextmanager
def switching(mount: Mount) -> Iterator[None]:
    """While inside, somebody switches without a pause: by the control socket, and by a rename as deploy tools do it."""
    process = start_python(_SWITCHER, str(mount.app))
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield
        assert process.poll() is None, "the switching went on to the end"
        out, _ = process.communicate("\n")
        assert process.returncode == 0
        assert int(out) > 2
    finally:
        end(process)


def clear(directory: Path) -> None:
    """Remove what a test made in `directory`."""
    for name in set(os.listdir(directory)) - SPECIAL:
        path = directory / name
        if stat.S_ISDIR(os.lstat(path).st_mode):
            shutil.rmtree(path)
        else:
            path.unlink()


def behind(place: Path, app: Path, script: str) -> None:
    """Run a shell script in the covered directory, where the mount is not."""
    other = place / "behind"
    other.mkdir(exist_ok=True)
    command = f"mount --bind {place} {other} && cd {other}/{app.name} && {script}"
    subprocess.run(["unshare", "-m", "--propagation", "private", "sh", "-ec", command], check=True)
