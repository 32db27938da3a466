"""`relfsctl unlock`: end whoever's hold of the deploy lock."""

from __future__ import annotations

from typing import Any

import click

from relfs.cli.output import say, show_json
from relfs.cli.session import Session, pass_session, pointer_here, refuse_behind_mount, refuse_in_hook
from relfs.control import NoDaemon, change
from relfs.locate import Place


@click.command("unlock", epilog="\b\nExample:\n  relfsctl unlock")
@pass_session
def command(session: Session) -> None:
    """Give the deploy lock back, whoever holds it. A deploy tool's own lock file is that tool's affair."""
    was = _give_back(session.place())
    if session.json:
        show_json({"unlocked": was})
    elif was is None:
        say("nobody held the deploy lock")
    else:
        say(f"the deploy lock is free; it was held by {was['user']} (pid {was['pid']}: {was['command']})")


def _give_back(place: Place) -> dict[str, Any] | None:
    refuse_in_hook(place)
    try:
        was: dict[str, Any] | None = change(place.state_paths, "unlock", {})
        return was
    except NoDaemon:
        refuse_behind_mount(place)
    with pointer_here(place) as pointer:
        hold = pointer.give_back()
        return hold.as_json() if hold is not None else None
