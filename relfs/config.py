"""`.relfs/config.toml`: what may be set for a deploy path. Every key has a default; unknown ones are errors.

seal = true          # the live release cannot be changed or removed through the mount

[control]
group = "deploy"     # members may switch, besides root and the deploy path's owner

[replacement]
grace = 10           # seconds until a `current` that a tool removed and did not make again is back for it

[checks]             # what is not made current, by relfsctl or by a tool
empty = true         # an empty directory
unfinished = ["DEPLOY_UNFINISHED"]     # a release that holds one of these names
bad = false          # a release that is marked bad, as rolling back from it does

[hooks]
timeout = 10         # seconds that .relfs/hooks/pre-switch may take

[add]                # how much an archive may give that becomes a release
members = 1000000
bytes = 68719476736
ratio = 1000         # bytes for each byte of the archive

[shared]             # what is linked into each new release: releases/shared.py
"""

from __future__ import annotations

import grp
import tomllib
from dataclasses import dataclass, field
from typing import Any

from relfs.beneath import read_file
from relfs.checks import Checks
from relfs.errors import RelfsError, reason
from relfs.releases.archive import Limits, parse_limits
from relfs.releases.shared import Shared, parse_shared

CONFIG = "config.toml"

_BYTES_MAX = 1 << 20
_SEAL = "seal"
_KNOWN = {
    "control": {"group"},
    "replacement": {"grace"},
    "checks": {"empty", "unfinished", "bad"},
    "hooks": {"timeout"},
    "add": {"members", "bytes", "ratio"},
    "shared": {"directories", "files", "required", "writable", "group"},
}


@dataclass(frozen=True)
class Config:
    """`group` is a gid, or None; `grace` and `hook_timeout` are in seconds; `seal`: the live release is guarded."""

    group: int | None = None
    grace: float = 10.0
    checks: Checks = field(default_factory=Checks)
    hook_timeout: float = 10.0
    shared: Shared = field(default_factory=Shared)
    seal: bool = False
    add: Limits = field(default_factory=Limits)


def load_config(state_fd: int, shown: str) -> Config:
    """Read the configuration in a state directory; `shown` is its path, for messages. Raises RelfsError."""
    try:
        document = tomllib.loads(read_file(state_fd, CONFIG, _BYTES_MAX).decode())
    except FileNotFoundError:
        return Config()
    except OSError as error:
        raise RelfsError(f"{shown}/{CONFIG}: cannot be read: {reason(error)}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RelfsError(f"{shown}/{CONFIG}: {error}") from error
    try:
        return _parse(document)
    except ValueError as error:
        raise RelfsError(f"{shown}/{CONFIG}: {error}") from error


def _parse(document: dict[str, Any]) -> Config:
    seal = document.pop(_SEAL, False)
    for section, values in document.items():
        if section not in _KNOWN or not isinstance(values, dict):
            known = ", ".join([_SEAL, *(f"[{name}]" for name in _KNOWN)])
            raise ValueError(f"[{section}] is not known; known are {known}")
        for key in values:
            if key not in _KNOWN[section]:
                raise ValueError(f"{section}.{key} is not known; known are {', '.join(sorted(_KNOWN[section]))}")
    group = document.get("control", {}).get("group")
    grace = document.get("replacement", {}).get("grace", 10.0)
    timeout = document.get("hooks", {}).get("timeout", 10.0)
    return Config(
        group=_gid(group) if group is not None else None,
        grace=_seconds("replacement.grace", grace),
        checks=_checks(document.get("checks", {})),
        hook_timeout=_seconds("hooks.timeout", timeout),
        shared=parse_shared(document.get("shared", {})),
        seal=_switch(_SEAL, seal),
        add=parse_limits(document.get("add", {})),
    )


def _checks(section: dict[str, Any]) -> Checks:
    default = Checks()
    unfinished = section.get("unfinished", list(default.unfinished))
    if not isinstance(unfinished, list) or not all(_is_name(name) for name in unfinished):
        raise ValueError("checks.unfinished must be a list of file names, as they are found in a release")
    return Checks(
        empty=_switch("checks.empty", section.get("empty", default.empty)),
        unfinished=tuple(unfinished),
        bad=_switch("checks.bad", section.get("bad", default.bad)),
    )


def _is_name(value: object) -> bool:
    return isinstance(value, str) and value not in ("", ".", "..") and "/" not in value and "\0" not in value


def _switch(key: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"{key} must be true or false")  # noqa: TRY004 (a fault of the file's content)
    return value


def _gid(group: object) -> int:
    if not isinstance(group, str):
        raise ValueError("control.group must be the name of a group")  # noqa: TRY004 (a fault of the file's content)
    try:
        return grp.getgrnam(group).gr_gid
    except (KeyError, ValueError):
        raise ValueError(f"control.group: there is no group {group!r}") from None


def _seconds(key: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 3600:
        raise ValueError(f"{key} must be a number of seconds, more than 0 and at most 3600")
    return float(value)
