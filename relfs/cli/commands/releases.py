"""`relfsctl releases`: every release and its states."""

from __future__ import annotations

from typing import Any

import click

from relfs.cli.output import moment, show_json, show_table, size
from relfs.cli.session import Session, open_here, pass_session
from relfs.layout import DeployPath


@click.command("releases", epilog="\b\nExample:\n  relfsctl releases --size")
@click.option("--size", "with_size", is_flag=True, help="Add what each takes on disk (reads every directory).")
@pass_session
def command(session: Session, with_size: bool) -> None:
    """List the releases, oldest first: name, created, states, revision.

    The states are current, previous, unconfirmed, canary, bad, dirty and unfinished.
    """
    deploy = open_here(session.place(), create_state=False)
    try:
        listing = _listing(deploy, with_size=with_size)
    finally:
        deploy.close()
    if session.json:
        show_json(listing)
        return
    header = ["NAME", "CREATED", "STATES", "REVISION", *(["SIZE"] if with_size else [])]
    show_table(header, [_row(entry) for entry in listing])


def _row(entry: dict[str, Any]) -> list[str]:
    row = [entry["name"], moment(entry["created"]), ", ".join(entry["states"]), entry["revision"] or ""]
    return [*row, size(entry["size"])] if "size" in entry else row


def _listing(deploy: DeployPath, *, with_size: bool) -> list[dict[str, Any]]:
    from relfs.config import Config, load_config
    from relfs.history import History
    from relfs.journal import Journal
    from relfs.records import made_at, revision, revision_time
    from relfs.releases.space import Space
    from relfs.store import current_release

    history = History(Journal(deploy.state_fd).events())
    config = load_config(deploy.state_fd, deploy.state_path) if deploy.state_fd is not None else Config()
    markers = config.checks.unfinished
    current = current_release(deploy)
    listing: list[dict[str, Any]] = []
    for release in deploy.releases():
        states = {
            "current": release.name == current,
            "previous": release.name == history.previous,
            "unconfirmed": history.unconfirmed is not None and release.name == history.unconfirmed.release,
            "canary": history.canary is not None and release.name == history.canary.release,
            "bad": release.name in history.bad or deploy.is_marked_bad(release.name),
            "dirty": deploy.is_dirty(release.name),
            "unfinished": deploy.unfinished_marker(release.name, markers) is not None,
        }
        entry = {
            "name": release.name,
            "created": made_at(deploy, release),
            "states": [state for state, holds in states.items() if holds],
            "revision": revision(deploy, release.name),
            "revision_time": revision_time(deploy, release.name),
        }
        if with_size:
            entry["size"] = Space(deploy).of(release.name)
        listing.append(entry)
    return listing
