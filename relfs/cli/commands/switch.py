"""`relfsctl switch`: make a release current."""

from __future__ import annotations

import click

from relfs.cli.deploying import settle_left
from relfs.cli.output import moment, say, show_json
from relfs.cli.session import Session, change_current, pass_session


@click.command("switch", epilog="\b\nExample:\n  relfsctl switch 42\n  relfsctl switch 42 --confirm 60")
@click.argument("release")
@click.option("--force", is_flag=True, help="Pass over the checks, and over the lock file of a deploy tool.")
@click.option(
    "--confirm", type=float, metavar="SECONDS",
    help="Back to the release before, unless `relfsctl confirm` comes within so many seconds.",
)  # fmt: skip
@pass_session
def command(session: Session, release: str, force: bool, confirm: float | None) -> None:
    """Make RELEASE current.

    When this returns 0, every new lookup sees it, and the choice survives a power cut. If it is verified (config.toml,
    [verify], or a hook), and does not work, it is taken back, and marked bad: exit status 3.
    """
    place = session.place()
    settle_left(place)
    event = change_current(place, "switch", release, force=force, confirm=confirm)
    if session.json:
        show_json(event)
        return
    say(f"{event['release']} is current" + (f" (was {event['from']})" if event["from"] else ""))
    if "confirm" in event:
        say(f"back to {event['from']} at {moment(event['confirm']['until'])}, unless `relfsctl confirm` comes first")
