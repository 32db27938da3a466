"""`relfsctl path`: where a release is."""

from __future__ import annotations

import click

from relfs.cli.output import say_path, show_json
from relfs.cli.session import Session, named_release, open_here, pass_session
from relfs.names import RELEASES


@click.command("path", epilog="\b\nExample:\n  diff -r $(relfsctl path @previous) $(relfsctl path 42)")
@click.argument("release")
@pass_session
def command(session: Session, release: str) -> None:
    """The path of RELEASE's directory, as it is now: what an `@` name stands for may be another a moment later.

    In a mount, the same names lead there by themselves, each time anew: DEPLOY_PATH/@previous.
    """
    place = session.place()
    deploy = open_here(place, create_state=False)
    try:
        name = named_release(deploy, release)
    finally:
        deploy.close()
    assert name is not None, "it was named"
    path = f"{place.deploy_path}/{RELEASES}/{name}"
    if session.json:
        show_json({"release": name, "path": path})
    else:
        say_path(path)
