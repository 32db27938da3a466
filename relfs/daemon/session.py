"""What a mount was begun with, and never changes: all of its processes read it in the ledger."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from relfs.daemon.plan import Plan
from relfs.layout import DeployPath
from relfs.survival.estate import Estate
from relfs.survival.ledger import Ledger, Who


@dataclass(frozen=True)
class Session:
    """`foreground`: the log goes to standard error. `init` is the kernel's FUSE_INIT, as it was read; `guards` are the
    processes that detach the mount once all others are gone. `state_path` and `aliases` are the DeployPath's."""

    plan: Plan
    foreground: bool
    state_path: str
    aliases: tuple[str, ...]
    init: bytes
    guards: tuple[Who, ...]


def store_session(ledger: Ledger, session: Session) -> None:
    """For everybody to read."""
    ledger.session.store(json.dumps({**asdict(session), "init": session.init.hex()}).encode("ascii"))


def load_session(ledger: Ledger) -> Session:
    """Raises ValueError if there is none."""
    told = json.loads(ledger.session.load())
    plan = {**told["plan"], "mount_options": tuple(told["plan"]["mount_options"])}
    return Session(
        plan=Plan(**plan),
        foreground=told["foreground"],
        state_path=told["state_path"],
        aliases=tuple(told["aliases"]),
        init=bytes.fromhex(told["init"]),
        guards=tuple(Who(**each) for each in told["guards"]),
    )


def deploy_path(session: Session, estate: Estate) -> DeployPath:
    """The deploy path, as it was opened before it was covered. Its descriptors are the estate's."""
    return DeployPath(
        session.plan.deploy_path, estate["deploy"], session.state_path, estate["state"], session.aliases
    )  # fmt: skip
