"""A user's own mount, elsewhere and for himself alone: for him it is as the plain directory is.

The daemon is his, not root's. What anybody else may do there, the kernel and the daemon's own rights decide.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from calls import CALLS, KINDS, make_kinds
from chaos import Chaos
from mounting import Mounts
from sandbox import make_app
from sidebyside import Script, Trace, Who, difference, get, put, run, tree

OWNER = Who(1000, 1000)

_THINGS = tuple(kind for kind in KINDS if kind != "device")
"""Devices are root's to make."""


@pytest.fixture
def both(open_place: Path, mounts: Mounts) -> Iterator[tuple[Path, Path, Path]]:
    """A directory of the mount, which only OWNER can see, the one that it covers, and a plain one."""
    for name in ("home", "home/live"):
        (open_place / name).mkdir()
    app = make_app(open_place / "home/app")
    for name in ("case", "plain"):
        (app / name).mkdir()
    subprocess.run(["chown", "-R", f"{OWNER.uid}:{OWNER.gid}", open_place / "home"], check=True)
    live = open_place / "home/live"
    mounts.start(app, "--no-bind", "-o", "noallow_other", at=live, user=OWNER.uid)
    with pytest.raises(PermissionError):
        os.stat(live / "case")
    yield live / "case", app / "case", app / "plain"


def _same(both: tuple[Path, Path, Path], script: Script) -> Trace:
    here, covered, plain = both
    seen, natively = run(script, here, OWNER), run(script, plain, OWNER)
    assert not (found := difference(seen, natively)), found
    assert tree(covered) == tree(plain)
    return natively


def test_every_call_on_every_kind(both: tuple[Path, Path, Path]) -> None:
    def script(t: Trace) -> None:
        start = os.getcwd()
        for name, call in CALLS.items():
            for kind in _THINGS:
                make_kinds("base", OWNER, kind)
                os.chdir("base")
                t(f"{name} {kind}", call, kind)
                os.chdir(start)
                t.note("after", sorted(os.listdir("base")))
                shutil.rmtree("base")

    assert len(_same(both, script).steps) == 2 * len(CALLS) * len(_THINGS)


@pytest.mark.parametrize("seed", range(3))
def test_anything_in_any_order(both: tuple[Path, Path, Path], seed: int) -> None:
    def script(t: Trace) -> None:
        chaos = Chaos(seed, t, users=(), lists=True)
        for _ in range(400):
            chaos.step()

    _same(both, script)


def test_set_id_bits_are_lost_to_a_write(both: tuple[Path, Path, Path]) -> None:
    """Also where the daemon may write, by the group, but does not own the file."""
    _, covered, plain = both

    def script(t: Trace) -> None:
        put("own", b"data", 0o6755, OWNER)
        for name in ("own", "roots"):
            with open(name, "r+b") as file:
                t(f"write {name}", file.write, b"!")
            t(f"taken {name}", os.stat, name)
            t(f"content {name}", get, name)

    for base in (covered, plain):
        put(str(base / "roots"), b"data")
        os.chown(base / "roots", 0, OWNER.gid)
        os.chmod(base / "roots", 0o4775)
    seen = _same(both, script).outcome
    assert (seen["taken roots"][0], seen["content roots"]) == ("0o100775", b"!ata")


def test_umask_and_owner(both: tuple[Path, Path, Path]) -> None:
    def script(t: Trace) -> None:
        for umask in (0o000, 0o027, 0o777):
            os.umask(umask)
            t("make", os.mkdir, f"{umask:o} d")
            os.close(t.open("create", f"{umask:o} f", os.O_CREAT | os.O_RDWR, 0o6666))
            for name in (f"{umask:o} d", f"{umask:o} f"):
                t("seen", os.stat, name)
            os.chmod(f"{umask:o} f", 0o600)

    _same(both, script)
