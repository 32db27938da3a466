"""`relfsctl views`: who does not see what everybody sees."""

from __future__ import annotations

from typing import Any

import click

from relfs.cli.output import moment, say_error, show_json, show_table
from relfs.cli.session import Session, ask, pass_session, refuse_behind_mount

_SHOWN = 8
"""Processes of a view that people are shown; programs are told of all (--json)."""


@click.command(
    "views",
    epilog="\b\nExample:\n  relfsctl views --of php-fpm8.2\n  relfsctl --json views | jq '.[].processes[].pid'",
)
@click.option("--of", "name", metavar="NAME", help="What each process sees that is called so (as `ps -o comm` has it).")
@pass_session
def command(session: Session, name: str | None) -> None:
    """Every view: the release that somebody sees, why, since when, who asked for it, and the processes. With NAME: all
    processes of that name, those that see what everybody sees as well.
    """
    if name is not None:
        _show_all_of(session, name)
        return
    views = _asked(session, "views", {})
    if session.json:
        show_json(views)
        return
    show_table(["RELEASE", "REASON", "SINCE", "BY", "PROCESSES"], [_row(view) for view in views])


def _asked(session: Session, method: str, params: dict[str, Any]) -> list[dict[str, Any]]:
    """What the daemon answers; nothing where nothing is mounted, which people are told. Raises RelfsError for a mount
    whose daemon does not answer."""
    place = session.place()
    found: list[dict[str, Any]] | None = ask(place, method, params)
    if found is None:
        refuse_behind_mount(place)
        if not session.json:
            say_error(f"{place.deploy_path}: is not mounted, so everybody sees what the real link says")
    return found or []


def _show_all_of(session: Session, name: str) -> None:
    found = _asked(session, "sees", {"name": name})
    if session.json:
        show_json(found)
        return
    rows = [[str(each["pid"]), each["release"] or "", each["reason"]] for each in found]
    show_table(["PID", "RELEASE", "REASON"], rows)


def _row(view: dict[str, Any]) -> list[str]:
    processes = ", ".join(f"{each['pid']} ({each['command']})" for each in view["processes"][:_SHOWN])
    if len(view["processes"]) > _SHOWN:
        processes += f" and {len(view['processes']) - _SHOWN} more"
    return [view["release"] or "", view["reason"], moment(view["since"]), view["by"], processes]
