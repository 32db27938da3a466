"""The ways of swapping that people use, and which of them this host has. Measuring them is the engine's."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import dataclass

_PROBE_WITHIN = 5.0

_RM_LN = 'cd "$1" || exit; rm current; ln -s "releases/$2" current'
_LN = 'cd "$1" || exit; ln -sfn "releases/$2" current'
_BUSYBOX_LN = 'cd "$1" || exit; busybox ln -sfn "releases/$2" current'
_MV = """
cd "$1" || exit
ln -s "releases/$2" current.next && mv -T current.next current || { rm -f current.next; exit 1; }
"""

_VERSIONS = (
    re.compile(r"\(([^()]*coreutils)\) (\S+)"),  # GNU's, and uutils', which says so in the same place
    re.compile(r"(BusyBox|toybox) (v?[\d.]+)"),
)


@dataclass(frozen=True)
class Method:
    """One way of swapping.

    `command` gets the release's name as its last word; if it is empty, the swapper does it by system calls.
    `missing` says why this host cannot do it; empty: it can.
    """

    name: str
    command: tuple[str, ...]
    missing: str = ""


def legacy_methods(path: str, scratch: str) -> list[Method]:
    """What people use without relfs, for the deploy path `path`. What is there is tried in `scratch`."""
    return [
        Method("rm + ln -s", _shell(_RM_LN, path)),
        _probed("ln", ["ln", "-sfn"], _LN, path, scratch),
        _probed("busybox ln", ["busybox", "ln", "-sfn"], _BUSYBOX_LN, path, scratch),
        _probed("mv", ["mv", "-T"], _MV, path, scratch),
        Method("rename(2)", ()),
    ]


def _probed(name: str, probe: list[str], script: str, path: str, scratch: str) -> Method:
    label = f"{name} {probe[-1]}"
    if shutil.which(probe[0]) is None:
        return Method(label, (), f"not available here: no {probe[0]}")
    label = f"{label} ({_implementation(probe[:-1])})"
    if not _replaces_link(probe, scratch):
        return Method(label, (), f"not available here: {name} has no {probe[-1]}")
    return Method(label, _shell(script, path))


def _replaces_link(probe: list[str], scratch: str) -> bool:
    """Whether the command replaces a link to a directory, which is all that a swap asks of it."""
    source, link = f"{scratch}/probe.source", f"{scratch}/probe.link"
    for place, text in ((source, "elsewhere"), (link, ".")):
        if os.path.lexists(place):
            os.unlink(place)
        os.symlink(text, place)
    # One that goes through the link to the directory leaves the link as it was, even if its status is 0.
    return _output([*probe, source, link]) is not None and os.readlink(link) != "."


def _implementation(command: list[str]) -> str:
    text = _output([*command, "--version"], any_status=True) or ""
    for version in _VERSIONS:
        found = version.search(text)
        if found:
            return f"{found[1]} {found[2]}"
    return "unknown implementation"


def _output(command: list[str], *, any_status: bool = False) -> str | None:
    """What it printed to either stream; None if it failed."""
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            errors="replace",
            timeout=_PROBE_WITHIN,
            env={**os.environ, "LC_ALL": "C"},
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if any_status or done.returncode == 0 else None


def _shell(script: str, path: str) -> tuple[str, ...]:
    return ("/bin/sh", "-c", script, "sh", path)
