"""What it costs that processes which see different releases take turns, and the names by which that is little, which
nobody else meets."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest
from crew import kill
from mounting import Mount, wait_for
from viewers import Reader, reader, switch

from relfs.names import SECOND_NAME
from relfs.processes import name_of

_TURNS = 20


def _asked(mount: Mount, pinned: Reader, sees: str, current: str) -> tuple[float, float]:
    """Lookups and readlinks a resolution, where it takes turns with this process; each sees what it should."""
    assert (pinned.sees(), os.readlink(mount.app / "current")) == (sees, f"releases/{current}")
    before = mount.requests()
    for _ in range(_TURNS):
        assert (pinned.sees(), os.readlink(mount.app / "current")) == (sees, f"releases/{current}")
    after = mount.requests()
    lookups, readlinks = (after.get(name, 0) - before.get(name, 0) for name in ("lookup", "readlink"))
    return lookups / (2 * _TURNS), readlinks / (2 * _TURNS)


def _wait_for_less(mount: Mount, pinned: Reader, sees: str, current: str) -> None:
    """While the kernel is still told of a change, or of a new worker, it may have nothing that it would ask about."""

    def is_least() -> bool:
        lookups, readlinks = _asked(mount, pinned, sees, current)
        assert lookups <= 2
        return (lookups, readlinks) == (2, 0)

    wait_for(is_least, "the kernel keeps both links")


def test_taking_turns_is_two_lookups_and_nothing_else(mount: Mount) -> None:
    """Also after a switch; with the next worker; and where another supervisor has to have the names looked up."""
    with reader(mount, "run", "--release", "42") as pinned:
        _wait_for_less(mount, pinned, "42", "40")
        switch(mount, "41")
        _wait_for_less(mount, pinned, "42", "41")
        kill(mount, "worker")
        _wait_for_less(mount, pinned, "42", "41")
        kill(mount, "supervisor")
        switch(mount, "40")
        with reader(mount, "run", "--release", "41") as other:
            switch(mount, "42")
            _wait_for_less(mount, other, "41", "42")


def test_they_are_the_same_links_while_they_are_needed(mount: Mount) -> None:
    current = mount.app / "current"
    first, second = (mount.app / f"{SECOND_NAME}{number}" for number in range(2))
    with reader(mount, "run", "--release", "42") as pinned:
        wait_for(lambda: name_of(pinned.pid) == "sh", "it is pinned")
        for release in ("40", "41"):
            switch(mount, release)
            assert [os.readlink(current) for _ in range(_TURNS)] == [f"releases/{release}"] * _TURNS
        assert not os.path.lexists(first), "nobody has taken turns"
        _wait_for_less(mount, pinned, "42", "41")
        assert [os.readlink(first), os.readlink(second)] == ["releases/41", "releases/42"]
        assert os.lstat(first).st_ino == os.lstat(current).st_ino
        for none in ("2", "", "x", "-1", "0x", "9" * 200):
            assert not os.path.lexists(mount.app / f"{SECOND_NAME}{none}"), none
        assert not [name for name in os.listdir(mount.app) if name.startswith(SECOND_NAME)]
    wait_for(lambda: not os.path.lexists(first), "nobody sees another release")


def test_nobody_can_use_such_a_name(mount: Mount) -> None:
    """One that leads where `current` does cannot be renamed to that: to the kernel, the two are the same already."""
    taken, seen = (mount.app / f"{SECOND_NAME}{number}" for number in range(2))
    other = mount.app / "other"
    other.symlink_to("releases/41")
    acts: dict[str, Callable[[], object]] = {
        "mkdir": taken.mkdir,
        "symlink": lambda: taken.symlink_to("releases/41"),
        "create": lambda: os.open(taken, os.O_CREAT | os.O_EXCL),
        "unlink": taken.unlink,
        "rename": lambda: taken.rename(mount.app / "new"),
        "rename to": lambda: other.rename(taken),
        "make current": lambda: seen.rename(mount.app / "current"),
        "link": lambda: os.link(taken, mount.app / "new", follow_symlinks=False),
    }
    with reader(mount, "run", "--release", "42") as pinned:
        _wait_for_less(mount, pinned, "42", "40")
        for name, act in acts.items():
            with pytest.raises(OSError, match=SECOND_NAME):
                act()
                pytest.fail(f"{name} was done")
            assert os.readlink(taken) == "releases/40", name
        assert (pinned.sees(), os.readlink(mount.app / "current")) == ("42", "releases/40")
    assert sorted(os.listdir(mount.app / "releases")) == ["40", "41", "42"]
