"""The table in docs/conformance.md: how many results of which tests were the same, and which are known to differ.

contrib/conformance writes it from a run of the pass-through tests; test_conformance.py holds it to be true. What is
compared, and how, is in sidebyside.py and served.py.
"""

from __future__ import annotations

import importlib
import inspect
import os
import platform
import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from sidebyside import Trace

DOCUMENT = Path(__file__).resolve().parent.parent / "docs/conformance.md"

MODULES = ("files", "names", "directories", "attributes", "permissions", "lists", "errors", "random")
"""Of tests/test_passthrough_*.py those that compare, in the order of the document."""


@dataclass(frozen=True)
class Row:
    """How many results of one test were compared: by root and by users, without native directories and beside them."""

    bare_root: int = 0
    bare_users: int = 0
    native_root: int = 0
    native_users: int = 0

    def plus(self, trace: Trace, *, native: bool) -> Row:
        root = trace.users.count(0)
        users = len(trace.users) - root
        if native:
            return Row(self.bare_root, self.bare_users, self.native_root + root, self.native_users + users)
        return Row(self.bare_root + root, self.bare_users + users, self.native_root, self.native_users)


@dataclass
class Tally:
    """What a session has compared, by module and test."""

    rows: dict[tuple[str, str], Row] = field(default_factory=dict)

    def count(self, module: str, test: str, trace: Trace, *, native: bool) -> None:
        """These results were the same as natively."""
        self.rows[module, test] = self.rows.get((module, test), Row()).plus(trace, native=native)


_HEAD = """# What passthrough does, beside the file system it covers

relfs serves by passthrough what is not native: everything below a `--no-bind` mount, and the top level of an ordinary
one. The test suite runs the same system calls there and in a plain directory of the same file system, and demands the
same results, errnos, trees and changes of times. This page is what it counted; `sudo contrib/conformance` writes it
anew, and a test fails where it no longer agrees with the suite.

A *result* is what one call returned, or its errno, or something that a script found out by several. Those of *users*
were had with an ordinary user's identity; the others are root's. All were the same as natively: a run with a difference
that is not listed below fails, and writes nothing.

{machine}

## What was compared

"""

_DIFFERENCES = """
## What differs

Each of these is tested as well: natively it must be as said here, and through relfs too.

| what | natively | through relfs | where | why |
|---|---|---|---|---|
"""

_TAIL = """
*Everywhere* is what was compared above; *beside native directories* is the top level of an ordinary mount, whose
`releases/` and `shared/` are native and differ in nothing. (Lists were compared on such a mount whose deploy path had
one when relfs was mounted.)

Besides, relfs has names of its own at the top of a mount. What may be done to `current`, `releases`, `shared`, `.relfs`
and to names that begin with `.current.relfs` is said, call by call, in `tests/test_passthrough_special.py`; a rename
between a native directory and the rest is one across mounts (EXDEV).

A user's own mount is served by a daemon that is not root, and is compared in `tests/test_passthrough_own.py`. It
makes and opens files as that user, whoever asks (the kernel has checked that whoever asks may, by mode and list); and
since the deploy path itself is another way in, the kernel keeps nothing, and asks each time. A disk's reserve for root
and hard quotas bind a user natively, and do not through root's daemon, which is what writes.
"""


def render(tally: Tally) -> str:
    """The whole document."""
    machine = (
        f"Last written on Linux {platform.release()} with {_file_system()} underneath, "
        f"pyfuse3 {version('pyfuse3')}, Python {platform.python_version()}."
    )
    return _HEAD.format(machine=machine) + render_rows(tally) + _DIFFERENCES + render_differences() + _TAIL


def render_rows(tally: Tally) -> str:
    """A table a module."""
    return "\n".join(_table(tally, name) for name in MODULES)


def _table(tally: Tally, name: str) -> str:
    module = f"test_passthrough_{name}"
    counted = {test: tally.rows.get((module, test), Row()) for test in comparing_tests(module)}
    rows = [f"| {_words(test)} | {_cells(row)} |\n" for test, row in counted.items()]
    head = "| | `--no-bind`: root | users | top level: root | users |\n|---|--:|--:|--:|--:|\n"
    title = (inspect.getdoc(importlib.import_module(module)) or "").split(":")[0].split("\n")[0].rstrip(".")
    return f"### {title}\n\n{head}{''.join(rows)}"


def comparing_tests(module: str) -> list[str]:
    """The tests of a module that compare something, in their order."""
    found = inspect.getmembers(importlib.import_module(module), inspect.isfunction)
    comparing = [(each.__code__.co_firstlineno, name) for name, each in found
                 if name.startswith("test_") and "pair" in inspect.signature(each).parameters
                 and re.search(r"pair\.(same|compared)|_require_same", inspect.getsource(each))]  # fmt: skip
    return [name for _, name in sorted(comparing)]


def _words(test: str) -> str:
    return test.removeprefix("test_").replace("_", " ")


def _cells(row: Row) -> str:
    counts = (row.bare_root, row.bare_users, row.native_root, row.native_users)
    return " | ".join(f"{count:,}" if count else "" for count in counts)


def render_differences() -> str:
    """A line a known difference."""
    known = importlib.import_module("test_passthrough_differences").KNOWN_DIFFERENCES
    return "".join(
        f"| {name} | {_shown(each.natively)} | {_shown(each.here)} | {each.where} | {each.reason} |\n"
        for name, each in known.items()
    )


def _shown(value: Any) -> str:
    if value is None:
        return "done"
    return value.decode().strip() or "nothing" if isinstance(value, bytes) else str(value)


def written_rows() -> dict[str, str]:
    """The counts of the document as it is, by what stands before them."""
    return dict(_cells_of_lines(DOCUMENT.read_text().splitlines()))


def _cells_of_lines(lines: list[str]) -> Iterator[tuple[str, str]]:
    for line in lines:
        found = re.fullmatch(r"\| ([^|]+) \| ([\d, |]*) \|", line)
        if found:
            yield found[1], found[2]


def counted_rows(tally: Tally) -> dict[str, str]:
    """The same of a tally, which need not be of all tests, and may be of others as well."""
    listed = {f"test_passthrough_{name}" for name in MODULES}
    return {_words(test): _cells(row) for (module, test), row in tally.rows.items() if module in listed}


def _file_system() -> str:
    """Its name in /proc/self/mounts, of where the tests work."""
    device = os.stat(tempfile.gettempdir()).st_dev
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, after = line.split(" - ")
        if before.split()[2] == f"{os.major(device)}:{os.minor(device)}":
            return after.split()[0]
    return "an unknown file system"
