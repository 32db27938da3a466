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
timeout = 10         # seconds that a hook may take
post_switch = "systemctl reload php-fpm"       # a shell's line, or a list of words; likewise the others (hooks.py)

[verify]             # what is asked of the web site once a release is current, for it to stay
url = "http://127.0.0.1/health"
host = "www.example.org"                       # the name to ask that server for
status = 200
contains = "ok"
tries = 3
pause = 1            # seconds between tries
timeout = 5          # seconds that one may take

[add]                # how much an archive may give that becomes a release
members = 1000000
bytes = 68719476736
ratio = 1000         # bytes for each byte of the archive

[shared]             # what is linked into each new release: releases/shared.py

[prune]              # which releases `relfsctl prune` leaves: releases/pruning.py
keep = 5             # so many finished ones; or
age = "90d"          # those that relfs has known for less than this; or
budget = "20G"       # as many as this has room for
unseen = false       # an ordinary user removes releases that others' processes may use
"""

from __future__ import annotations

import os
import tomllib
from dataclasses import dataclass, field, replace
from typing import Any

from relfs.beneath import read_with_status
from relfs.checks import Checks
from relfs.errors import RelfsError, reason
from relfs.hooks import NAMES, Hooks, owner_of_commands
from relfs.releases.archive import Limits, parse_limits
from relfs.releases.pruning import Policy, parse_prune
from relfs.releases.shared import Shared, parse_shared
from relfs.users import gid_of
from relfs.verify import Verify, check_host, check_url

CONFIG = "config.toml"

_BYTES_MAX = 1 << 20
_SEAL = "seal"
_HOOKS = {name.replace("-", "_"): name for name in NAMES}
_TRIES_MAX = 100
_KNOWN = {
    "control": {"group"},
    "replacement": {"grace"},
    "checks": {"empty", "unfinished", "bad"},
    "hooks": {"timeout", *_HOOKS},
    "verify": {"url", "host", "status", "contains", "tries", "pause", "timeout"},
    "add": {"members", "bytes", "ratio"},
    "shared": {"directories", "files", "required", "writable", "group"},
    "prune": {"keep", "age", "budget", "unseen"},
}


@dataclass(frozen=True)
class Config:
    """`group` is a gid, or None; `grace` is in seconds; `seal`: the live release is guarded."""

    group: int | None = None
    grace: float = 10.0
    checks: Checks = field(default_factory=Checks)
    hooks: Hooks = field(default_factory=Hooks)
    verify: Verify = field(default_factory=Verify)
    shared: Shared = field(default_factory=Shared)
    prune: Policy = field(default_factory=Policy)
    seal: bool = False
    add: Limits = field(default_factory=Limits)


def load_config(state_fd: int, shown: str) -> Config:
    """Read the configuration in a state directory; `shown` is its path, for messages. Raises RelfsError."""
    try:
        data, status = read_with_status(state_fd, CONFIG, _BYTES_MAX)
        document = tomllib.loads(data.decode())
    except FileNotFoundError:
        return Config()
    except OSError as error:
        raise RelfsError(f"{shown}/{CONFIG}: cannot be read: {reason(error)}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RelfsError(f"{shown}/{CONFIG}: {error}") from error
    try:
        config = _parse(document)
        if not config.hooks.commands:
            return config
        owner = owner_of_commands(status, os.fstat(state_fd))
        return replace(config, hooks=replace(config.hooks, owner=owner))
    except ValueError as error:
        raise RelfsError(f"{shown}/{CONFIG}: {error}") from error


def _parse(document: dict[str, Any]) -> Config:
    seal = document.pop(_SEAL, False)
    for section, values in document.items():
        if section not in _KNOWN:
            known = ", ".join([_SEAL, *(f"[{name}]" for name in _KNOWN)])
            raise ValueError(f"[{section}] is not known; known are {known}")
        if not isinstance(values, dict):
            raise ValueError(f"[{section}] is not known as a value: it is a section, with its keys below")  # noqa: TRY004 (likewise)
        for key in values:
            if key not in _KNOWN[section]:
                raise ValueError(f"{section}.{key} is not known; known are {', '.join(sorted(_KNOWN[section]))}")
    group = document.get("control", {}).get("group")
    grace = document.get("replacement", {}).get("grace", 10.0)
    return Config(
        group=gid_of("control.group", group) if group is not None else None,
        grace=_seconds("replacement.grace", grace),
        checks=_checks(document.get("checks", {})),
        hooks=_hooks(document.get("hooks", {})),
        verify=_verify(document.get("verify", {})),
        shared=parse_shared(document.get("shared", {})),
        prune=parse_prune(document.get("prune", {})),
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


def _hooks(section: dict[str, Any]) -> Hooks:
    commands = tuple((name, _words(f"hooks.{key}", section[key])) for key, name in _HOOKS.items() if key in section)
    return Hooks(_seconds("hooks.timeout", section.get("timeout", Hooks.timeout)), commands)


def _words(key: str, command: object) -> tuple[str, ...]:
    words = ["/bin/sh", "-c", command] if isinstance(command, str) and command.strip() else command
    if isinstance(words, list) and words and all(isinstance(word, str) and "\0" not in word for word in words):
        return tuple(words)
    raise ValueError(f"{key} must be a line for the shell, or a list of words: a program and its arguments")


def _verify(section: dict[str, Any]) -> Verify:
    default = Verify()
    if section and "url" not in section:
        raise ValueError("verify.url is missing; without it, nothing is asked")
    host = _text("verify.host", section.get("host"))
    return Verify(
        url=check_url(section["url"]) if section else None,
        status=_count("verify.status", section.get("status", default.status), 100, 599),
        contains=_text("verify.contains", section.get("contains")),
        host=check_host(host) if host is not None else None,
        tries=_count("verify.tries", section.get("tries", default.tries), 1, _TRIES_MAX),
        pause=_seconds("verify.pause", section.get("pause", default.pause)),
        timeout=_seconds("verify.timeout", section.get("timeout", default.timeout)),
    )


def _text(key: str, value: object) -> str | None:
    if value is not None and (not isinstance(value, str) or not value or not value.isprintable()):
        raise ValueError(f"{key} must be a line of text")
    return value


def _count(key: str, value: object, least: int, most: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise ValueError(f"{key} must be a whole number from {least} to {most}")
    return value


def _is_name(value: object) -> bool:
    return isinstance(value, str) and value not in ("", ".", "..") and "/" not in value and "\0" not in value


def _switch(key: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"{key} must be true or false")  # noqa: TRY004 (a fault of the file's content)
    return value


def _seconds(key: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 3600:
        raise ValueError(f"{key} must be a number of seconds, more than 0 and at most 3600")
    return float(value)
