"""docs/conformance.md agrees with the suite: as far as this session has run it, and in a part run for the purpose.

The machine it was written on, and results of random operations, are left out: they may differ from host to host.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from conformance import DOCUMENT, MODULES, Tally, comparing_tests, counted_rows, render_differences, written_rows
from mounting import environment

_TESTS = Path(__file__).resolve().parent


def _comparable(rows: dict[str, str]) -> dict[str, str]:
    random = {test.removeprefix("test_").replace("_", " ") for test in comparing_tests("test_passthrough_random")}
    return {name: cells for name, cells in rows.items() if name not in random}


def test_known_differences_are_in_the_document() -> None:
    assert render_differences() in DOCUMENT.read_text()


def test_every_comparing_test_is_in_the_document() -> None:
    names = [test for module in MODULES for test in comparing_tests(f"test_passthrough_{module}")]
    assert [name.removeprefix("test_").replace("_", " ") for name in names] == list(written_rows())


def test_no_comparing_test_is_forgotten() -> None:
    modules = {path.stem.removeprefix("test_passthrough_") for path in _TESTS.glob("test_passthrough_*.py")}
    comparing = {name for name in modules if comparing_tests(f"test_passthrough_{name}")}
    assert comparing == {*MODULES, "differences"}


def test_the_document_says_what_this_session_counted(pytestconfig: pytest.Config, tally: Tally) -> None:
    """Of whole files of tests, that is; with parts of one there is nothing to compare."""
    parts = pytestconfig.getoption("keyword") or any("::" in each for each in pytestconfig.args)
    counted = {} if parts else _comparable(counted_rows(tally))
    written = written_rows()
    assert counted == {name: written.get(name) for name in counted}


def test_the_document_says_what_is_counted_anew(tmp_path: Path) -> None:
    """Whatever this session ran, of one file of tests."""
    file = tmp_path / "conformance.md"
    command = [sys.executable, "-m", "pytest", "-q", f"--conformance={file}", "tests/test_passthrough_attributes.py"]
    subprocess.run(command, cwd=_TESTS.parent, env=environment(), check=True, stdout=subprocess.DEVNULL)
    names = [test.removeprefix("test_").replace("_", " ") for test in comparing_tests("test_passthrough_attributes")]
    written = written_rows()
    lines = file.read_text().splitlines()
    assert len(names) > 3
    for name in names:
        assert f"| {name} | {written[name]} |" in lines
