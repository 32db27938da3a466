"""`relfsctl views`: who does not see what everybody sees."""

from __future__ import annotations

from typing import Any

import click

from relfs.cli.output import moment, show_json, show_table
from relfs.cli.session import Session, ask, pass_session


@click.command("views", epilog="\b\nExample:\n  relfsctl views\n  relfsctl --json views | jq '.[].processes[].pid'")
@pass_session
def command(session: Session) -> None:
    """Every view: the release that somebody sees, why, since when, who asked for it, and the processes."""
    views = ask(session.place(), "views") or []
    if session.json:
        show_json(views)
        return
    show_table(["RELEASE", "REASON", "SINCE", "BY", "PROCESSES"], [_row(view) for view in views])


def _row(view: dict[str, Any]) -> list[str]:
    processes = ", ".join(f"{each['pid']} ({each['command']})" for each in view["processes"])
    return [view["release"] or "", view["reason"], moment(view["since"]), view["by"], processes]
