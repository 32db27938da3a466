"""`relfsctl who`: the processes that use a release."""

from __future__ import annotations

from dataclasses import asdict

import click

from relfs.cli.output import say_error, show_json, show_table
from relfs.cli.session import Session, named_release, open_here, pass_session


@click.command("who", epilog="\b\nExample:\n  relfsctl who 41\n  relfsctl who @previous")
@click.argument("release")
@pass_session
def command(session: Session, release: str) -> None:
    """Which processes use RELEASE: work in it (cwd, root), run from it (exe), or have something of it open, mapped or
    mounted; in any container that this host can see.

    An ordinary user sees all of them where relfs is mounted and he may switch; otherwise only his own.
    """
    from relfs.cli.pruning import look

    place = session.place()
    deploy = open_here(place, create_state=False)
    try:
        name = named_release(deploy, release)
        assert name is not None, "it was named"
        found = look(place, deploy, [name])
    finally:
        deploy.close()
    uses = found.of.get(name, ())
    if session.json:
        shown = [asdict(use) for use in uses]
        show_json({"release": name, "uses": shown, "unseen": found.unseen, "blind": found.blind})
        return
    rows = [[str(use.pid), use.user, use.how, use.path, use.command] for use in uses]
    show_table(["PID", "USER", "HOW", "PATH", "COMMAND"], rows)
    if found.blind:
        say_error("relfsctl: other users' processes cannot be looked at; root sees them")
    elif found.unseen:
        say_error(f"relfsctl: {found.unseen} processes or directories cannot be looked at, even by root")
