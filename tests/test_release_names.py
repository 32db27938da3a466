"""What new releases are called, and what is written down about them: never a name twice, and any bytes survive."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sandbox import add_release

from relfs.errors import RefusedError, UsageError
from relfs.layout import DeployPath
from relfs.releases.manifest import Entry, decode, encode
from relfs.releases.naming import Spent, chooser, next_name, spent_names
from relfs.releases.registry import Record, Registry

NOW = 1_800_000_000  # 2027-01-15 08:00:00 UTC


@pytest.mark.parametrize(
    ("present", "past", "counted", "name"),
    [
        ([], [], 0, "1"),
        (["1", "2"], [], 0, "3"),
        (["9", "10"], [], 0, "11"),
        (["1", "2"], ["7"], 0, "8"),
        ([], ["7"], 0, "8"),
        (["5"], [], 12, "13"),
        (["007"], [], 0, "8"),
        (["v1", "2"], [], 0, "3"),
        (["20260101120000"], [], 0, "20270115080000"),
        ([], ["20260101120000"], 0, "20270115080000"),
        (["20270115080000"], [], 0, "20270115080001"),
        (["20280101000000"], [], 0, "20280101000001"),
        (["20270115075959"], ["20270115080005"], 0, "20270115080006"),
        (["20261399000000"], [], 0, "20261399000001"),
        (["1", "20260101120000"], [], 0, "2"),
        (["20260101120000", "hotfix", "42-rc1"], [], 0, "20270115080000"),
        (["hotfix"], ["20260101120000"], 0, "20270115080000"),
        (["hotfix"], ["7"], 0, "8"),
    ],
)
def test_names_go_on_as_the_others_do(present: list[str], past: list[str], counted: int, name: str) -> None:
    assert next_name(Spent(frozenset(present), frozenset(past), counted), NOW) == name


def test_a_name_is_never_given_twice(deploy: DeployPath, app: Path) -> None:
    registry = Registry(deploy.state_fd)
    given_before = {"40", "41", "42"}
    for _ in range(5):
        name = registry.reserve(chooser(spent_names(deploy), None), source="x", user="x").name
        assert name not in given_before
        given_before.add(name)
    with pytest.raises(RefusedError, match=r"^44: .* was given before"):
        registry.reserve(chooser(spent_names(deploy), "44"), source="x", user="x")
    add_release(app, "mine")
    with pytest.raises(RefusedError, match=r"^mine: .* there is such a release"):
        registry.reserve(chooser(spent_names(deploy), "mine"), source="x", user="x")


def test_deployers_count_is_gone_on_with(deploy: DeployPath, app: Path) -> None:
    (app / ".dep").mkdir()
    (app / ".dep/latest_release").write_text("57\n")
    assert chooser(spent_names(deploy), None)([]) == "58"


def test_what_the_registry_has_given_up_is_spent() -> None:
    record = Record(1, "7", "given-up", 0.0, "x", "x")
    assert chooser(Spent(frozenset(), frozenset()), None)([record]) == "8"


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", ".hidden", "@current", "a\nb", "x" * 245])
def test_what_can_be_no_name(name: str) -> None:
    with pytest.raises(UsageError):
        chooser(Spent(frozenset(), frozenset()), name)


_PATHS = st.binary(min_size=1, max_size=40).filter(lambda path: b"\0" not in path).map(os.fsdecode)


@given(path=_PATHS, mode=st.integers(0, 0o7777), size=st.integers(0, 1 << 62), mtime=st.integers(-(1 << 62), 1 << 62))
def test_a_manifest_line_keeps_any_bytes(path: str, mode: int, size: int, mtime: int) -> None:
    entry = Entry(path, "f", mode, size, mtime, "0" * 64)
    line = encode(entry)
    assert line.count(b"\n") == 1
    assert decode(line) == entry
