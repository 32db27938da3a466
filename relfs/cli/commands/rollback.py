"""`relfsctl rollback`: back to the last good release."""

from __future__ import annotations

import click

from relfs.cli.deploying import settle_left
from relfs.cli.output import say, show_json
from relfs.cli.session import Session, change_current, pass_session


@click.command("rollback", epilog="\b\nExample:\n  relfsctl rollback")
@click.argument("release", required=False)
@pass_session
def command(session: Session, release: str | None) -> None:
    """Go back to RELEASE, or to the last good release before the current one, and mark the one left as bad.

    The way back follows what was really activated; rolling back again goes further back, not forth.
    """
    place = session.place()
    settle_left(place)
    event = change_current(place, "rollback", release)
    if session.json:
        show_json(event)
    else:
        say(f"{event['release']} is current again" + (f"; {event['from']} is marked bad" if event["from"] else ""))
