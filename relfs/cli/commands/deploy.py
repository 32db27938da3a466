"""`relfsctl deploy`: a new release, all the way to being current."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from relfs.cli.output import say, show_json
from relfs.cli.session import Session, pass_session, refuse_in_hook
from relfs.cli.source import source_options

if TYPE_CHECKING:
    from relfs.cli.deploying import Deployed


@click.command("deploy", epilog="\b\nExamples:\n  relfsctl deploy build/\n  git archive HEAD | relfsctl deploy -")
@click.argument("source")
@source_options
@click.option("--no-prune", is_flag=True, help="Leave old releases.")
@pass_session
def command(
    session: Session,
    source: str,
    name: str | None,
    link: bool,
    checksum: bool,
    strip: int,
    repository: str | None,
    no_prune: bool,
) -> None:
    """Make a release from SOURCE, as `add` does, make it current, verify it, and remove what is old.

    The deploy lock is held meanwhile. What fails, or is interrupted, before the switch leaves nothing. After it the new
    release stays, unless verifying it says no: then the one before is current again, and the exit status is 3. If this
    is killed, the next command finishes or undoes what it left, and says so.
    """
    from relfs.cli.deploying import Wanted, deploy_here
    from relfs.interrupts import ending_by_exception
    from relfs.releases.sharing import Sharing
    from relfs.releases.sources import open_source

    place = session.place()
    refuse_in_hook(place)
    with ending_by_exception():
        opened = open_source(source, repository=repository, strip=strip)
        try:
            done = deploy_here(place, Wanted(opened, name, Sharing(link, checksum), prune=not no_prune))
        finally:
            opened.close()
    if session.json:
        show_json(asdict(done))
    else:
        say(_sentence(done))


def _sentence(done: Deployed) -> str:
    was = f" (was {done.previous})" if done.previous else ""
    gone = [decision["name"] for decision in done.pruned.get("decisions", ()) if not decision["keep"]]
    removed = f"; removed: {', '.join(gone)}" if gone else ""
    return f"{done.release} is current{was}: {done.added['files']} files{removed}"
