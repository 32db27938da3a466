"""Views and containers: who was pinned goes into one, is one, or is in one. Real mount, real containers (crun)."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from containers import Container, new_container
from mounting import Mount, Mounts, relfsctl_command, wait_for
from viewers import Reader, pids_of, reader_command, switch, views

from relfs.users import user_name

NO_USER = 100_000


@pytest.fixture
def mount(app: Path, open_place: Path, mounts: Mounts) -> Mount:
    """One that every user can reach."""
    place = open_place / "app"
    app.rename(place)
    return mounts.start(place)


@pytest.fixture
def container(mount: Mount, open_place: Path) -> Container:
    """It has the mount, and a user name space of its own."""
    return new_container(open_place / "container", mount.mountpoint, root=NO_USER)


@contextmanager
def running(command: list[str]) -> Iterator[Reader]:
    started = Reader(command)
    try:
        yield started
    finally:
        started.end()


def run(mount: Mount, *command: str) -> list[str]:
    return relfsctl_command(mount.mountpoint, "run", "--", *command)


def test_who_is_pinned_goes_into_one(mount: Mount, container: Container) -> None:
    """By its runtime, and by the name spaces; who is in it already is not pinned by that."""
    with running(container.start(*reader_command(mount))) as first:
        assert first.sees() == "40"
        pid = str(_youngest(first.pid))
        enter = ("nsenter", "--target", pid, "--mount", "--pid", "--ipc", "--net", "--", *reader_command(mount))
        with (
            running(run(mount, *container.enter(*reader_command(mount)))) as executed,
            running(run(mount, *enter)) as entered,
        ):
            assert (executed.sees(), entered.sees()) == ("40", "40")
            switch(mount, "41")
            assert (executed.sees(), entered.sees(), first.sees()) == ("40", "40", "41")
            assert [view["release"] for view in views(mount)] == ["40", "40"]
    wait_for(lambda: views(mount) == [], "the views have ended with the container")


def test_who_is_pinned_becomes_one(mount: Mount, container: Container) -> None:
    with running(run(mount, *container.start(*reader_command(mount)))) as pinned:
        assert pinned.sees() == "40"
        switch(mount, "41")
        assert pinned.sees() == "40"
        with running(container.enter(*reader_command(mount))) as other:
            assert other.sees() == "41", "who comes in from outside is nobody's descendant here"
    wait_for(lambda: views(mount) == [], "the view has ended with the container")


@pytest.mark.parametrize("root", [0, NO_USER])
def test_who_is_in_one_pins_himself(mount: Mount, open_place: Path, root: int) -> None:
    """By a socket that was bound in with the mount, as whom he is outside."""
    container = new_container(open_place / "container", mount.mountpoint, root=root)
    with running(container.start(*reader_command(mount))) as first:
        assert first.sees() == "40"
        with running(container.enter(*run(mount, *reader_command(mount)))) as pinned:
            assert pinned.sees() == "40"
            switch(mount, "41")
            assert (first.sees(), pinned.sees()) == ("41", "40")
            (view,), who = views(mount), user_name(root)
            assert (view["by"], [each["user"] for each in view["processes"]]) == (who, [who])
            done = subprocess.run(
                container.enter(*relfsctl_command(mount.mountpoint, "pin", "--pid", "1")), check=False, timeout=60
            )  # fmt: skip
            assert done.returncode == 0, "who is the first one in there"
            switch(mount, "42")
            assert (first.sees(), pinned.sees()) == ("41", "40")
    wait_for(lambda: views(mount) == [], "the views have ended with the container")


def test_who_is_in_one_is_pinned_from_outside(mount: Mount, container: Container) -> None:
    """And is a canary's audience."""
    with running(container.start(*reader_command(mount))) as first:
        assert first.sees() == "40"
        pid = str(_youngest(first.pid))
        done = mount.relfsctl("canary", "42", "--pid", pid)
        assert done.returncode == 0, done.stderr
        assert first.sees() == "42"
        assert mount.relfsctl("canary", "abort").returncode == 0
        assert first.sees() == "40"
        done = mount.relfsctl("pin", "--pid", pid)
        assert done.returncode == 0, done.stderr
        switch(mount, "41")
        assert first.sees() == "40"
        (view,) = views(mount)
        assert pid in map(str, pids_of(view))


def test_where_the_daemon_cannot_be_reached(mount: Mount, open_place: Path) -> None:
    """It is told why; and who is pinned from outside sees what he is to see."""
    container = new_container(open_place / "container", mount.mountpoint, root=0, alone=True)
    with running(container.start(*reader_command(mount))) as first:
        assert first.sees() == "40"
        for command in (run(mount, "true"), relfsctl_command(mount.mountpoint, "views")):
            done = subprocess.run(
                container.enter(*command), stderr=subprocess.PIPE, text=True, check=False, timeout=60
            )  # fmt: skip
            assert done.returncode == 1
            assert done.stderr.endswith("do that with `mount --rbind`, or bind its .relfs in as well\n")
        assert mount.relfsctl("pin", "--pid", str(_youngest(first.pid))).returncode == 0
        switch(mount, "41")
        assert first.sees() == "40"


def _youngest(pid: int) -> int:
    """The last one in the line of children that begins with `pid`."""
    while children := Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        pid = int(children[0])
    return pid
