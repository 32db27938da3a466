"""What the documents, and contrib/kernels, name is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TABLES = {"reliability.md": "## The failure table", "releases.md": "## What others do to releases"}


def names_of_tests() -> set[str]:
    return {
        name
        for file in (ROOT / "tests").glob("test_*.py")
        for name in re.findall(r"^def (test_\w+)\(", file.read_text(), re.MULTILINE)
    }


@pytest.mark.parametrize(("document", "title"), TABLES.items())
def test_every_fault_has_a_test_that_exists(document: str, title: str) -> None:
    table = (ROOT / "docs" / document).read_text().split(title)[1].split("\n## ")[0]
    rows = [line.split("|") for line in table.splitlines() if line.startswith("| ")][1:]
    assert len(rows) > 10
    for row in rows:
        named = re.findall(r"`(test_\w+)`", row[-2])
        assert named, f"no test for: {row[1]}"
        assert set(named) <= names_of_tests(), row[1]


@pytest.mark.parametrize("document", ["reliability.md", "architecture.md"])
def test_every_module_that_is_named_exists(document: str) -> None:
    """And has the essay that it is named for."""
    text = (ROOT / "docs" / document).read_text()
    cells = re.findall(r'`((?:\w+/)*\w+\.py)`(?:, "([^"]+)")?', text)
    assert len(cells) > 10
    for path, essay in cells:
        source = ROOT / (path if path.startswith("relfs/") else f"relfs/{path}")
        assert source.exists(), path
        assert not essay or essay in source.read_text().replace("\n", " "), f"{path} has no {essay!r}"


def test_every_test_for_other_kernels_exists() -> None:
    """Where they run, nobody looks at each change."""
    named = set(re.findall(r"\btest_\w+\b", (ROOT / "contrib/kernels").read_text()))
    files = {file.stem for file in (ROOT / "tests").glob("test_*.py")}
    assert len(named - files) > 10
    assert named <= files | names_of_tests()
