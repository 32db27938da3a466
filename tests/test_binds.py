"""Read-only mounts over releases (relfs/daemon/seal.py), while others mount and unmount there: real mounts, no daemon.

What a seal keeps from whom, in a mount of relfs, is in test_seal.py.
"""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from mounting import detach_all

from relfs import libc
from relfs.daemon.seal import Binds
from relfs.layout import DeployPath
from relfs.mountinfo import mounts as all_mounts
from relfs.mounts import detach
from relfs.survival.memory import Area, Cell, Memory

_NAME = "40"
_ROOM = Area(0, 4096)


@pytest.fixture
def attached(deploy: DeployPath, tmp_path: Path) -> Iterator[Path]:
    """`releases`, attached elsewhere, as it is in a mount of relfs."""
    place = tmp_path / "attached"
    place.mkdir()
    subprocess.run(["mount", "--bind", "--make-private", f"{deploy.path}/releases", place], check=True)
    yield place
    detach_all(place)


@pytest.fixture
def binds(deploy: DeployPath, attached: Path) -> Iterator[Binds]:
    with contextlib.ExitStack() as opened:
        fds = os.open(attached, os.O_PATH | os.O_DIRECTORY), os.memfd_create("kept")
        for fd in fds:
            opened.callback(os.close, fd)
        yield Binds(deploy, fds[0], (), Cell(Memory(fds[1], _ROOM.end), _ROOM))


def seals(attached: Path) -> int:
    """How many mounts there are on the release."""
    return sum(each.target == f"{attached}/{_NAME}" for each in all_mounts())


def everything(attached: Path) -> None:
    detach(str(attached))


def the_seal(attached: Path) -> None:
    detach(f"{attached}/{_NAME}")


@pytest.mark.parametrize("somebody_takes", [everything, the_seal])
@pytest.mark.parametrize("before", ["set_mount_attributes", "unmount"])
def test_it_goes_while_it_is_taken_away(
    before: str,
    somebody_takes: Callable[[Path], None],
    binds: Binds,
    attached: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Somebody else has unmounted it, or the whole mount, in the moment before relfs would: it is gone, and that is
    all that was wanted."""
    binds.seal(_NAME)
    assert seals(attached) == 1
    taken = []
    really = getattr(libc, before)

    def too_late(*arguments: object, **others: object) -> None:
        taken.append(1)
        somebody_takes(attached)
        really(*arguments, **others)

    monkeypatch.setattr(libc, before, too_late)
    assert binds.unseal(_NAME)
    assert taken, "it never came to that"
    assert not seals(attached)


def test_it_is_sealed_when_all_is_taken_away(binds: Binds, attached: Path) -> None:
    """Anew, or again where somebody is still in it: a switch is not refused because nothing is mounted any more."""
    binds.seal(_NAME)
    inside = os.open(attached / _NAME, os.O_PATH | os.O_DIRECTORY)
    try:
        assert not binds.unseal(_NAME)
        detach_all(attached)
        for name in (_NAME, "41"):
            binds.seal(name)
            assert binds.unseal(name)
    finally:
        os.close(inside)


def test_what_is_not_there_cannot_be_sealed(binds: Binds) -> None:
    with pytest.raises(FileNotFoundError):
        binds.seal("99")


def test_it_cannot_be_unmounted(binds: Binds, attached: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the kernel refuses about a seal that is there is said."""

    def refuse(path: str) -> None:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), path)

    binds.seal(_NAME)
    with monkeypatch.context() as patched:
        patched.setattr(libc, "unmount", refuse)
        with pytest.raises(OSError, match="Invalid argument"):
            binds.unseal(_NAME)
    assert seals(attached) == 1
    assert binds.unseal(_NAME)
    assert not seals(attached)


def test_somebody_is_in_it(binds: Binds, attached: Path) -> None:
    """What is in use stays, writable, and is taken away later."""
    binds.seal(_NAME)
    inside = os.open(attached / _NAME, os.O_PATH | os.O_DIRECTORY)
    try:
        assert os.fstatvfs(inside).f_flag & os.ST_RDONLY
        assert not binds.unseal(_NAME)
        assert not os.fstatvfs(inside).f_flag & os.ST_RDONLY
    finally:
        os.close(inside)
    assert binds.unseal(_NAME)
    assert not seals(attached)
