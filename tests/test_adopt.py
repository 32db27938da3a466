"""Adopting a real directory `current`, at the points where it can go wrong. See test_cli.py for the command."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from relfs import adopt
from relfs.adopt import initialise
from relfs.errors import RelfsError
from relfs.names import STATE


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A web site that never had releases: `current` is a directory."""
    (tmp_path / "current").mkdir()
    (tmp_path / "current/index.html").write_text("old")
    return tmp_path


def test_a_name_of_any_bytes(site: Path) -> None:
    name = os.fsdecode(b"\xff")
    assert initialise(str(site), name).adopted == name
    assert os.readlink(bytes(site / "current")) == b"releases/\xff"
    assert (site / "current/index.html").read_text() == "old"


def test_what_cannot_be_made_to_last_is_taken_back(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(_fd: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", fails)
        with pytest.raises(RelfsError, match=r"\.relfs: cannot be made: Input/output error"):
            initialise(str(site), "1")
        (site / STATE).mkdir(exist_ok=True)
        with pytest.raises(RelfsError, match="cannot be adopted: Input/output error"):
            initialise(str(site), "1")
    assert not (site / "current").is_symlink()
    assert (site / "current/index.html").read_text() == "old"
    assert os.listdir(site / "releases") == []
    assert initialise(str(site), "1").current == "1"


def test_what_was_cut_off_before_the_exchange_is_no_obstacle(site: Path) -> None:
    (site / "releases").mkdir()
    (site / "releases/1").symlink_to("releases/1")
    assert initialise(str(site), None).adopted == "1"
    assert (site / "releases/1/index.html").read_text() == "old"


def test_where_names_cannot_be_exchanged(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def cannot(*_arguments: object) -> None:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    monkeypatch.setattr(adopt, "renameat2", cannot)
    with pytest.raises(RelfsError, match="mv current releases/1 && ln -s releases/1 current"):
        initialise(str(site), None)
    assert (site / "current/index.html").read_text() == "old"
    assert os.listdir(site / "releases") == []
