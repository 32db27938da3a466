"""`relfsctl reload`: let the installed version of relfs take a mount over."""

from __future__ import annotations

from typing import Any

import click

from relfs.cli.output import say, show_json
from relfs.cli.session import Session, pass_session, refuse_in_hook
from relfs.control import NoDaemon, change
from relfs.errors import RelfsError


@click.command("reload", epilog="\b\nExample:\n  pip install --upgrade relfs && relfsctl -C /var/www/app reload")
@pass_session
def command(session: Session) -> None:
    """Let the version of relfs that is installed now take the mount over. No read fails meanwhile.

    If the new version does not come up, or cannot take over, the old one goes on. Only root, and the user who mounted,
    may do this.
    """
    place = session.place()
    refuse_in_hook(place)
    try:
        result: dict[str, Any] = change(place.state_paths, "reload", {})
    except NoDaemon:
        raise RelfsError(f"{place.deploy_path}: is not mounted; there is nothing to reload") from None
    if session.json:
        show_json(result)
    else:
        say(f"relfs {result['version']} serves, by process {result['worker_pid']}")
