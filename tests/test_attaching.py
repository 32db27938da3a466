"""Attaching directories to a mount (relfs/mounts.py) that somebody takes away meanwhile: real mounts, no daemon."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from mounting import detach_all

from relfs import libc
from relfs.daemon.nested import TREE_FD, attach_nested
from relfs.errors import RelfsError
from relfs.layout import DeployPath
from relfs.mountinfo import mount_at
from relfs.mounts import attach_in, copy, detach, detach_in, detach_only


def mounted_over(place: Path) -> int:
    """Mount the directory over itself, as relfs does, so that what is below has the same names; the mount's id."""
    subprocess.run(["mount", "--bind", "--make-private", place, place], check=True)
    found = mount_at(str(place))
    assert found is not None
    return found.id


@pytest.fixture
def number(app: Path, deploy: DeployPath) -> Iterator[int]:
    """A mount over `app`, which `deploy` is below."""
    assert deploy.path == str(app)
    yield mounted_over(app)
    detach_all(app / "releases")
    detach_all(app)


def test_as_long_as_it_is_mounted(number: int, app: Path, deploy: DeployPath) -> None:
    attached = attach_in(number, str(app), "releases", deploy.fd, "releases", ())
    assert attached is not None
    os.close(attached)
    assert mount_at(f"{app}/releases") is not None


@pytest.mark.parametrize("before", ["open_tree", "move_mount"])
def test_it_goes_while_it_is_attached_to(
    before: str, number: int, app: Path, deploy: DeployPath, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is left on the directory that was below it, where nobody would ever unmount it."""
    really = getattr(libc, before)

    def too_late(*arguments: object) -> object:
        detach(str(app))
        return really(*arguments)

    monkeypatch.setattr(libc, before, too_late)
    assert attach_in(number, str(app), "releases", deploy.fd, "releases", ()) is None
    assert mount_at(f"{app}/releases") is None


def test_what_is_attached_goes(number: int, app: Path, deploy: DeployPath) -> None:
    """As long as the mount is there; what is mounted below that is somebody else's."""
    for _ in range(2):
        attached = attach_in(number, str(app), "releases", deploy.fd, "releases", ())
        assert attached is not None
        os.close(attached)
        detach_in(number, str(app), "releases")
        assert mount_at(f"{app}/releases") is None
    with pytest.raises(OSError, match="Invalid argument"):
        detach_in(number, str(app), "releases")
    detach(str(app))
    others = mounted_over(app / "releases")
    detach_in(number, str(app), "releases")
    found = mount_at(f"{app}/releases")
    assert found is not None
    assert found.id == others


def test_it_was_gone_before(number: int, app: Path, deploy: DeployPath) -> None:
    detach(str(app))
    assert attach_in(number, str(app), "releases", deploy.fd, "releases", ()) is None
    with pytest.raises(RelfsError, match="releases: what is mounted there cannot be attached: it was unmounted"):
        attach_nested({f"{TREE_FD}releases": copy(deploy.fd, "releases", ())}, number, str(app))
    assert mount_at(f"{app}/releases") is None


def test_something_else_is_mounted_over_it(number: int, app: Path, deploy: DeployPath) -> None:
    mounted_over(app)
    with pytest.raises(OSError, match="something is mounted over it") as raised:
        attach_in(number, str(app), "releases", deploy.fd, "releases", ())
    assert raised.value.errno == errno.ENODEV


# ---- detaching


@pytest.mark.usefixtures("number")
def test_it_and_its_directory_go_while_it_is_detached(app: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody was faster, and that is all that was wanted."""
    found = mount_at(str(app))
    assert found is not None
    really = os.open

    def too_late(*arguments: object, **others: object) -> int:
        if app.exists():
            detach(str(app))
            app.rename(app.parent / "moved")
        return really(*arguments, **others)  # type: ignore[arg-type]

    with monkeypatch.context() as patched:
        patched.setattr(os, "open", too_late)
        detach_only(found)
    assert mount_at(str(app)) is None


@pytest.mark.usefixtures("number")
def test_who_may_not_and_has_been_forestalled(app: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a mount's guard, say: fusermount3 knows it by its path alone, and finds it gone."""
    found = mount_at(str(app))
    assert found is not None
    really = libc.detach

    def forbidden(path: str) -> None:
        really(path)
        raise PermissionError

    monkeypatch.setattr(libc, "detach", forbidden)
    detach_only(found)
    assert mount_at(str(app)) is None
