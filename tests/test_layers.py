"""That what stands lower knows nothing of what stands higher (docs/architecture.md, "Parts, and who knows whom")."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import relfs

TOP = Path(relfs.__file__).parent
LAYERS = ("relfs.cli", "relfs.daemon", "relfs.fuse", "relfs.views", "relfs.survival", "relfs.releases")
"""The packages, the highest first."""

ASYNCHRONOUS = ("trio", "pyfuse3")
ABOVE = frozenset({"doctor.py", "threads.py"})
"""Modules of the top level that stand elsewhere: what the command `doctor` does, and how trio waits for threads."""


def imported(file: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            yield from (f"{node.module}.{name.name}" for name in node.names)


def known_to(files: list[Path], higher: tuple[str, ...]) -> list[str]:
    """What they import of that."""
    prefixes = tuple(f"{each}." for each in higher)
    assert files
    found = [(file, name) for file in files for name in imported(file) if f"{name}.".startswith(prefixes)]
    return [f"{file.relative_to(TOP)}: {name}" for file, name in found]


@pytest.mark.parametrize("layer", LAYERS[1:])
def test_a_package_knows_none_above(layer: str) -> None:
    files = list((TOP / layer.removeprefix("relfs.")).rglob("*.py"))
    assert known_to(files, LAYERS[: LAYERS.index(layer)]) == []


@pytest.mark.parametrize("layer", LAYERS[LAYERS.index("relfs.views") :])
def test_below_fuse_nobody_knows_of_trio(layer: str) -> None:
    assert known_to(list((TOP / layer.removeprefix("relfs.")).rglob("*.py")), ASYNCHRONOUS) == []


def test_what_works_on_any_system_knows_neither() -> None:
    """The pointer and all that it needs, at the top level."""
    files = [file for file in TOP.glob("*.py") if file.name not in ABOVE]
    assert known_to(files, (*LAYERS[:-1], *ASYNCHRONOUS)) == []
