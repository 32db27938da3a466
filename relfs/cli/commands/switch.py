"""`relfsctl switch`: make a release current."""

from __future__ import annotations

import click

from relfs.cli.output import say, show_json
from relfs.cli.session import Session, change_current, pass_session


@click.command("switch", epilog="\b\nExample:\n  relfsctl switch 42")
@click.argument("release")
@click.option("--force", is_flag=True, help="Pass over the checks, and over the lock file of a deploy tool.")
@pass_session
def command(session: Session, release: str, force: bool) -> None:
    """Make RELEASE current.

    When this returns 0, every new lookup sees it, and the choice survives a power cut.
    """
    event = change_current(session.place(), "switch", release, force=force)
    if session.json:
        show_json(event)
    else:
        say(f"{event['release']} is current" + (f" (was {event['from']})" if event["from"] else ""))
