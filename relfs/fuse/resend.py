"""Whether the kernel's RESEND can be trusted, and by what requests survive a worker's death in consequence.

Some facts. FUSE_NOTIFY_RESEND (protocol 7.40, Linux 6.9) puts the requests that a dead worker had read, and not
answered, back in the queue. Where the flag FUSE_HAS_RESEND is not offered, there is no such thing, and those requests
would wait for ever. Where it is, fuse_resend() in fs/fuse/dev.c may use a request after it was freed, if its caller is
killed at that moment (CVE-2026-64265): in 6.9 to 6.12.95, 6.13 to 6.18.38 and 6.19 to 7.1.3. Of stable series, only
those that were still maintained have been mended.

No flag tells, and trying it is the one thing that must not be done; so the version decides, here alone. Distributions
number in ways of their own: Debian's `uname -r` may say 6.12.0 where `uname -v` says "Debian 6.12.94-1". Others repair
without changing the first three numbers; they are judged unsafe, which costs time and nothing else (relay.py).
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from relfs.fuse.protocol import HAS_RESEND

REFUSE = "RELFS_NO_RESEND"
ACCEPT = "RELFS_RESEND"

_FIRST_MENDED = {(6, 12): 96, (6, 18): 39, (7, 1): 4}
_MENDED_SINCE = (7, 2)
_FAULT = "CVE-2026-64265"

_DEBIAN = re.compile(r"\bDebian (\d+)\.(\d+)\.(\d+)")
_NUMBERS = re.compile(r"(\d+)\.(\d+)(?:\.(\d+))?")


@dataclass(frozen=True)
class Resend:
    """What the kernel's RESEND is worth; `reason` is for people."""

    state: Literal["missing", "unsafe", "safe"]
    reason: str


@dataclass(frozen=True)
class Survival:
    """How unanswered requests outlive the worker that had read them: the kernel sends them again, or relay.py does."""

    by: Literal["resend", "relay"]
    reason: str


def survival(flags: int) -> Survival:
    """On this host, whose kernel offered `flags` in its FUSE_INIT."""
    system = os.uname()
    return choose(judge(system.release, system.version, flags), os.environ)


def judge(release: str, version: str, flags: int) -> Resend:
    """Of a kernel that has these in `uname -r` and `uname -v` and offered `flags` in its FUSE_INIT."""
    if not flags & HAS_RESEND:
        return Resend("missing", "the kernel does not offer FUSE_HAS_RESEND (Linux 6.9 does)")
    found = _DEBIAN.search(version) or _NUMBERS.match(release)
    if found is None:
        return Resend("unsafe", f"no version can be read from {release!r}, so it may have {_FAULT}")
    major, minor, patch = (int(number or 0) for number in found.groups())
    name = f"Linux {major}.{minor}.{patch}"
    if (major, minor) >= _MENDED_SINCE or patch >= _FIRST_MENDED.get((major, minor), patch + 1):
        return Resend("safe", f"{name} is not affected by {_FAULT}")
    return Resend("unsafe", f"{name} may use memory after it was freed ({_FAULT})")


def choose(resend: Resend, environment: Mapping[str, str]) -> Survival:
    """$RELFS_NO_RESEND=1 refuses what is safe, for tests; $RELFS_RESEND=1 accepts what is unsafe, for a kernel that was
    mended under its old number."""
    if environment.get(REFUSE) == "1":
        return Survival("relay", f"${REFUSE} is set")
    if resend.state == "safe" or (resend.state == "unsafe" and environment.get(ACCEPT) == "1"):
        return Survival("resend", resend.reason)
    return Survival("relay", resend.reason)
