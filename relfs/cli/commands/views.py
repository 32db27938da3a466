"""`relfsctl views`: who does not see what everybody sees."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from relfs.cli.output import moment, say_error, show_json, show_table
from relfs.cli.session import Session, ask, open_here, pass_session, refuse_behind_mount
from relfs.errors import UsageError

if TYPE_CHECKING:
    from relfs.locate import Place

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
    place = session.place()
    found = _asked(place, name)
    if session.json:
        show_json(found)
    elif name is not None:
        rows = [[str(each["pid"]), each["release"] or "", each["reason"]] for each in found]
        show_table(["PID", "RELEASE", "REASON"], rows)
    else:
        show_table(["RELEASE", "REASON", "SINCE", "BY", "PROCESSES"], [_row(view) for view in found])


def _asked(place: Place, name: str | None) -> list[dict[str, Any]]:
    """What the mount tells: nothing, where there is none, which is said. Raises RelfsError if it does not answer, or
    there is no deploy path at all."""
    if name == "":
        raise UsageError(f"{name!r}: no name that a process has; `ps -eo comm` shows them")
    found = ask(place, "views") if name is None else ask(place, "sees", {"name": name})
    if found is not None:
        told: list[dict[str, Any]] = found
        return told
    refuse_behind_mount(place)
    open_here(place, create_state=False).close()
    say_error(f"{place.deploy_path}: is not mounted, so everybody sees what the real link says")
    return []


def _row(view: dict[str, Any]) -> list[str]:
    processes = ", ".join(f"{each['pid']} ({each['command']})" for each in view["processes"][:_SHOWN])
    if len(view["processes"]) > _SHOWN:
        processes += f" and {len(view['processes']) - _SHOWN} more"
    return [view["release"] or "", view["reason"], moment(view["since"]), view["by"], processes]
