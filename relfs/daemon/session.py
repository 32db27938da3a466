"""What a mount was begun with, and never changes: all of its processes read it in the ledger."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from typing import Any

from relfs.config import Config
from relfs.daemon.log import log_to_state, log_to_stderr
from relfs.daemon.plan import Plan, as_text, plan_of
from relfs.errors import RelfsError
from relfs.layout import DeployPath
from relfs.survival.estate import Estate
from relfs.survival.ledger import Ledger, Who


@dataclass(frozen=True)
class Session:
    """`foreground`: the log goes to standard error. `init` is the kernel's FUSE_INIT, as it was read; `guards` are the
    processes that detach the mount once all others are gone; `relayed`: relfs keeps requests itself (fuse/resend.py).
    `state_path` and `aliases` are the DeployPath's. `config` is what the file said at the beginning, for it may be half
    edited, or unreadable, when a worker takes over."""

    plan: Plan
    foreground: bool
    state_path: str
    aliases: tuple[str, ...]
    init: bytes
    guards: tuple[Who, ...]
    relayed: bool
    config: Config


def store_session(ledger: Ledger, session: Session) -> None:
    """For everybody to read."""
    ledger.session.store(json.dumps(_told(session)).encode("ascii"))


def _told(session: Session) -> dict[str, object]:
    return {**asdict(session), "plan": as_text(session.plan), "init": session.init.hex()}


def load_session(ledger: Ledger) -> Session:
    """Raises ValueError if there is none, or one that other code has written and this does not understand."""
    try:
        return _session(json.loads(ledger.session.load()))
    except (KeyError, TypeError) as error:
        raise ValueError(f"what was mounted was noted by another version ({error})") from error


def _session(told: dict[str, Any]) -> Session:
    """Raises KeyError and TypeError where something is missing, or too much."""
    return Session(
        plan=plan_of(told["plan"]),
        foreground=told["foreground"],
        state_path=told["state_path"],
        aliases=tuple(told["aliases"]),
        init=bytes.fromhex(told["init"]),
        guards=tuple(Who(**each) for each in told["guards"]),
        relayed=told["relayed"],
        config=_config(told["config"]),
    )


def _config(told: dict[str, Any]) -> Config:
    """Each section of the configuration is a dataclass of its own, whose lists are tuples."""
    kinds: dict[str, Any] = {each.name: each.default_factory for each in fields(Config)}
    sections = {
        name: kinds[name](**{key: _tuples(value) for key, value in section.items()})
        for name, section in told.items()
        if isinstance(section, dict)
    }
    return Config(**{**told, **sections})


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def deploy_path(session: Session, estate: Estate) -> DeployPath:
    """The deploy path, as it was opened before it was covered. Its descriptors are the estate's."""
    return DeployPath(
        session.plan.deploy_path, estate["deploy"], session.state_path, estate["state"], session.aliases
    )  # fmt: skip


def begin_logging(session: Session, estate: Estate) -> None:
    """To where this mount's log goes. What cannot be written is lost, and counted (log.py)."""
    if session.foreground:
        log_to_stderr()
    else:
        with suppress(RelfsError):
            log_to_state(estate["state"], session.state_path)
