"""`relfsctl race`: the proof, on this host."""

from __future__ import annotations

import dataclasses
import sys
from typing import TYPE_CHECKING

import click

from relfs.cli.output import show_json, show_table
from relfs.cli.session import Session, pass_session
from relfs.errors import EXIT_FAILED

if TYPE_CHECKING:
    from relfs.race import Row

_HEADER = ["WHERE", "METHOD", "SWAPS", "READS", "FAILED", "NEITHER", "NOTE"]


@click.command("race", epilog="\b\nExample:\n  relfsctl race --seconds 5 --in /var/www")
@click.option("--seconds", type=float, default=2.0, show_default=True, help="How long each method runs.")
@click.option("--readers", type=int, default=2, show_default=True, help="How many processes read meanwhile.")
@click.option("--in", "parent", metavar="DIR", help="Make the scratch directory here, on the file system of interest.")
@click.option("--no-mount", is_flag=True, help="Only on a plain directory.")
@pass_session
def command(session: Session, seconds: float, readers: int, parent: str | None, no_mount: bool) -> None:
    """Show the race: swap `current` in each way while processes read through it, without relfs and with it.

    Works in a scratch directory of its own and leaves nothing behind. Exit status 1 if the mount could not be made,
    or a read failed on it.
    """
    from relfs.race import run_race

    progress = sys.stderr.isatty() and not session.json
    result = run_race(seconds, readers, parent, not no_mount, _announce if progress else lambda _row: None)
    if session.json:
        show_json({"rows": [dataclasses.asdict(row) for row in result.rows], "mount_error": result.mount_error})
    else:
        show_table(_HEADER, [_cells(row) for row in result.rows], always_header=True)
    if result.mount_error is not None:
        click.echo(f"relfsctl: the mount could not be raced: {result.mount_error}", err=True)
    if result.mount_error is not None or any(row.mounted and (row.failed or row.neither) for row in result.rows):
        sys.exit(EXIT_FAILED)


def _announce(row: Row) -> None:
    click.echo(
        f"{'relfs' if row.mounted else 'plain'}: {row.method}: {row.failed} of {row.reads} reads failed", err=True
    )


def _cells(row: Row) -> list[str]:
    swaps = f"{row.swaps}" + (f" ({row.swap_failures} failed)" if row.swap_failures else "")
    where = "relfs" if row.mounted else "plain"
    if row.swaps == row.reads == 0:
        return [where, row.method, "-", "-", "-", "-", row.note]
    return [where, row.method, swaps, str(row.reads), str(row.failed), str(row.neither), row.note]
