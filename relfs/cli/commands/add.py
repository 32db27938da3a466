"""`relfsctl add`: make a new release."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from relfs.cli.output import say, show_json, size
from relfs.cli.session import Session, change_current, open_here, pass_session, refuse_in_hook
from relfs.cli.source import source_options

if TYPE_CHECKING:
    from relfs.locate import Place
    from relfs.releases.adding import Added
    from relfs.releases.sharing import Sharing
    from relfs.releases.sources import Source


@click.command("add", epilog="\b\nExamples:\n  relfsctl add build/\n  relfsctl add app.tar.zst --strip 1 --switch")
@click.argument("source")
@click.option("--switch", is_flag=True, help="Make it current.")
@source_options
@pass_session
def command(
    session: Session,
    source: str,
    name: str | None,
    switch: bool,
    link: bool,
    checksum: bool,
    strip: int,
    repository: str | None,
) -> None:
    """Make a release from SOURCE: a directory, an archive (tar, compressed or not; zip), git:TREEISH, or - for a tar
    archive on standard input.

    It is made beside the others and gets its name when it is complete and on the disk; an add that is interrupted
    leaves nothing. Where the file system can, unchanged files share their blocks with the current release.
    """
    from relfs.cli.deploying import settle_left
    from relfs.interrupts import ending_by_exception
    from relfs.releases.sharing import Sharing
    from relfs.releases.sources import open_source

    place = session.place()
    refuse_in_hook(place)
    settle_left(place)
    with ending_by_exception():
        opened = open_source(source, repository=repository, strip=strip)
        try:
            added = _add(place, opened, name, Sharing(link, checksum))
        finally:
            opened.close()
    if not session.json:
        say(_sentence(added))
    event = change_current(place, "switch", added.name) if switch else None
    if session.json:
        show_json({**asdict(added), "switched": event})
    elif event is not None:
        say(f"{added.name} is current" + (f" (was {event['from']})" if event["from"] else ""))


def _add(place: Place, source: Source, name: str | None, share: Sharing) -> Added:
    from relfs.cli.adding import add_release
    from relfs.config import load_config

    deploy = open_here(place, create_state=True)
    try:
        assert deploy.state_fd is not None, "it was made"
        return add_release(deploy, load_config(deploy.state_fd, deploy.state_path), source, share, name=name)
    finally:
        deploy.close()


def _sentence(added: Added) -> str:
    shared = f", {added.shared_files} of them shared with {added.previous}" if added.shared_files else ""
    return f"{added.name} is added: {added.files} files{shared}, {size(added.bytes)}"
