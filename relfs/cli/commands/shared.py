"""`relfsctl shared check`: whether what outlives releases is there, and linked."""

from __future__ import annotations

from dataclasses import asdict

import click

from relfs.cli.output import show_json, show_table
from relfs.cli.session import Session, named_release, open_here, pass_session
from relfs.errors import EXIT_REFUSED


@click.group("shared", epilog="\b\nExample:\n  relfsctl shared check")
def command() -> None:
    """What outlives releases: the directories and files that [shared] in .relfs/config.toml names."""


@command.command("check", epilog="\b\nExample:\n  relfsctl shared check 42")
@click.argument("release", required=False)
@pass_session
def check(session: Session, release: str | None) -> int:
    """Look whether all that is shared is there, and is linked into RELEASE (by default the current one).

    The exit status is 3 where something is wrong; nothing is changed.
    """
    from relfs.config import Config, load_config
    from relfs.releases.shared import check_shared

    deploy = open_here(session.place(), create_state=False)
    try:
        config = load_config(deploy.state_fd, deploy.state_path) if deploy.state_fd is not None else Config()
        found = check_shared(deploy, config.shared, named_release(deploy, release))
    finally:
        deploy.close()
    if session.json:
        show_json([asdict(each) for each in found])
    else:
        show_table(["STATE", "PATH", "FOUND"], [[each.state, each.path, each.text] for each in found])
    return EXIT_REFUSED if any(each.state == "fail" for each in found) else 0
