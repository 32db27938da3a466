"""`relfsctl log`: the history of `current`."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

import click

from relfs.cli.output import moment, show_json, show_table
from relfs.cli.session import Session, open_here, pass_session

if TYPE_CHECKING:
    from relfs.journal import Event


@click.command("log", epilog="\b\nExample:\n  relfsctl log -n 10\n  relfsctl --json log | tail -1")
@click.option("-n", "number", type=click.IntRange(min=0), metavar="N", help="Only the last N events.")
@pass_session
def command(session: Session, number: int | None) -> None:
    """The history of `current`, oldest first: who made what current when, and what came of it."""
    from relfs.journal import Journal

    deploy = open_here(session.place(), create_state=False)
    try:
        events = list(deque(Journal(deploy.state_fd).events(), number))
    finally:
        deploy.close()
    if session.json:
        for event in events:
            show_json(event.as_json())
        return
    show_table(
        ["TIME", "ACTION", "RELEASE", "FROM", "USER", "PID", "OUTCOME", "COMMAND"],
        [
            [
                moment(event.time), event.action, event.release or "", event.origin or "", event.actor.user,
                str(event.actor.pid), _outcome(event), event.actor.command,
            ]
            for event in events
        ],
    )  # fmt: skip


def _outcome(event: Event) -> str:
    return event.outcome if event.why is None else f"{event.outcome}: {event.why}"
