"""`relfsctl prune`: remove the releases that nobody needs any more."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import TYPE_CHECKING

import click

from relfs.cli.output import say_error, show_json, show_table
from relfs.cli.session import Session, pass_session
from relfs.errors import RelfsError

if TYPE_CHECKING:
    from relfs.cli.pruning import Pruned
    from relfs.locate import Place
    from relfs.releases.pruning import Decision, Policy


@click.command("prune", epilog="\b\nExample:\n  relfsctl prune --keep 5 --dry-run\n  relfsctl prune --budget 20G")
@click.option("--keep", type=click.IntRange(min=1), metavar="N", help="Keep so many finished releases.  [default: 5]")
@click.option("--age", metavar="SPAN", help="Keep those that relfs has known for less than this: 90d, 12h.")
@click.option("--budget", metavar="SIZE", help="Keep as many as this has room for on disk: 20G.")
@click.option("--unknown", is_flag=True, help="Treat what relfs does not know as older than all that it knows.")
@click.option("--unseen", is_flag=True, help="Though other users' processes, which may use them, cannot be looked at.")
@click.option("--dry-run", is_flag=True, help="Change nothing; explain what would become of each release.")
@click.option("--wait", is_flag=True, help="Until all is deleted; otherwise that goes on in the background.")
@pass_session
def command(
    session: Session,
    keep: int | None,
    age: str | None,
    budget: str | None,
    unknown: bool,
    unseen: bool,
    dry_run: bool,
    wait: bool,
) -> None:
    """Remove old releases: those beyond what --keep, --age or --budget (or [prune] in .relfs/config.toml) allow.

    Never the current one, the last good one, one that a process uses, or one that relfs does not know. A release that
    was never finished counts for nothing. The exit status is 1 if something that should go could not be removed.
    """
    from relfs.cli.deploying import settle_left
    from relfs.cli.pruning import prune

    place = session.place()
    if not dry_run:
        settle_left(place)
    policy = _policy(place, keep, age, budget)
    chosen = replace(policy, unknown=unknown, unseen=unseen or policy.unseen)
    pruned = prune(place, chosen, dry_run=dry_run, wait=wait)
    if session.json:
        show_json({**asdict(pruned), "dry_run": dry_run})
    else:
        _show(pruned, dry_run=dry_run)
    _complain(pruned)


def _policy(place: Place, keep: int | None, age: str | None, budget: str | None) -> Policy:
    """What the configuration says, unless something else is asked for. Raises UsageError, RelfsError."""
    from relfs.cli.session import configuration
    from relfs.releases.pruning import limited, parse_size, parse_span

    configured = configuration(place).prune
    if keep is None and age is None and budget is None:
        return configured
    seconds = parse_span(age) if age is not None else None
    count = parse_size(budget) if budget is not None else None
    return limited(keep, seconds, count, unseen=configured.unseen)


def _show(pruned: Pruned, *, dry_run: bool) -> None:
    rows = [[decision.name, _fate(decision, dry_run=dry_run), decision.why] for decision in pruned.decisions]
    show_table(["RELEASE", "", "WHY"], rows)
    for name, why in pruned.left.items():
        say_error(f"relfsctl: trash/{name}: is not deleted yet: {why}")


def _fate(decision: Decision, *, dry_run: bool) -> str:
    if decision.keep:
        return "failed" if decision.failed else "stays"
    return "would go" if dry_run else "removed"


def _complain(pruned: Pruned) -> None:
    """Raises RelfsError if something that should go could not."""
    if pruned.failed:
        first, more = pruned.failed[0], len(pruned.failed) - 1
        others = f" (and {more} more could not be removed)" if more else ""
        raise RelfsError(f"{first.name}: could not be removed: {first.why}{others}")
