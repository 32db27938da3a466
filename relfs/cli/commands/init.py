"""`relfsctl init`: make a deploy path, or adopt what is there."""

from __future__ import annotations

import os

import click

from relfs.cli.output import say, show_json
from relfs.cli.session import Session, pass_session
from relfs.errors import UsageError


@click.command("init", epilog="\b\nExample:\n  relfsctl init /var/www/app")
@click.argument("path", required=False)
@click.option(
    "--release", metavar="NAME", help="What to call a real directory `current` as a release.  [default: next number]"
)
@pass_session
def command(session: Session, path: str | None, release: str | None) -> None:
    """Make PATH a deploy path, or adopt one: what is missing is made, nothing is copied, nothing is lost.

    A real directory `current` becomes a release, and a link to it takes its place in one step.
    """
    from relfs.adopt import initialise

    given = path if path is not None else session.path
    if given is not None and (not given or "\0" in given or "\n" in given):
        raise UsageError(f"{given!r}: not a path")
    made = initialise(os.path.realpath(given or os.environ.get("RELFS_PATH") or "."), release, session.state_dir)
    if session.json:
        show_json({"deploy_path": made.deploy_path, "current": made.current, "adopted": made.adopted})
        return
    say(
        f"{made.deploy_path} is a deploy path; "
        + (f"{made.current} is current" if made.current else "nothing is current yet")
    )
    if made.adopted:
        say(f"the directory `current` is now releases/{made.adopted}")
