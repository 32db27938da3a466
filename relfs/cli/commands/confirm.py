"""`relfsctl confirm`: let stay what `switch --confirm` made current."""

from __future__ import annotations

import click

from relfs.cli.deploying import settle_left
from relfs.cli.output import say, show_json
from relfs.cli.session import Session, confirm_current, pass_session


@click.command("confirm", epilog="\b\nExample:\n  relfsctl switch 42 --confirm 60 && ./looks-good && relfsctl confirm")
@click.argument("release", required=False)
@pass_session
def command(session: Session, release: str | None) -> None:
    """Let the release stay that waits for being confirmed. With RELEASE, only if it is that one."""
    place = session.place()
    settle_left(place)
    event = confirm_current(place, release)
    if session.json:
        show_json(event)
    else:
        say(f"{event['release']} is confirmed, and stays")
