"""`relfsctl check`: whether a release is still what was added."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from relfs.cli.output import say, show_json, show_table
from relfs.cli.session import Session, named_release, open_here, pass_session

if TYPE_CHECKING:
    from relfs.layout import DeployPath
    from relfs.locate import Place
    from relfs.releases.checking import Checked

_EXIT_DIFFERS = 1


@click.command("check", epilog="\b\nExample:\n  relfsctl check @current")
@click.argument("release")
@click.pass_context
@pass_session
def command(session: Session, context: click.Context, release: str) -> None:
    """Read all of RELEASE, and compare it with what was written down when it was added: paths, modes, sizes, bytes.

    Lists what differs (missing, added, kind, mode, size, content); the exit status is 1 then.
    """
    from relfs.interrupts import ending_by_exception

    with ending_by_exception():
        checked = _check(session.place(), release)
    if session.json:
        show_json({**asdict(checked), "ok": not checked.differences})
    elif checked.differences:
        show_table(["CHANGE", "PATH"], [(each.change, each.path) for each in checked.differences])
    else:
        say(f"{checked.release} is as it was added: {checked.entries} entries")
    if checked.differences:
        context.exit(_EXIT_DIFFERS)


def _check(place: Place, release: str) -> Checked:
    from relfs.cli.progress import progress_line
    from relfs.releases.checking import check

    deploy = open_here(place, create_state=False)
    try:
        name = named_release(deploy, release)
        assert name is not None, "it was named"
        with progress_line("checking") as tell:
            return check(deploy, name, writable=_writable(deploy), on_progress=tell)
    finally:
        deploy.close()


def _writable(deploy: DeployPath) -> tuple[str, ...]:
    """What the application may write into."""
    from relfs.config import load_config

    return load_config(deploy.state_fd, deploy.state_path).shared.writable if deploy.state_fd is not None else ()
