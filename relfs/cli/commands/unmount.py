"""`relfsctl unmount`: detach the mount."""

from __future__ import annotations

import time

import click

from relfs.cli.output import say, show_json
from relfs.cli.session import Session, is_mounted, pass_session
from relfs.control import Connection, NoDaemon, Silent, change
from relfs.errors import RelfsError
from relfs.locate import Place

_SECONDS = 15.0
_PAUSE = 0.01


@click.command("unmount", epilog="\b\nExample:\n  relfsctl -C /var/www/app unmount")
@pass_session
def command(session: Session) -> None:
    """Detach the mount, native directories included. The real link says the same, and serves from now on."""
    place = session.place()
    if place.mountpoint is None:
        raise RelfsError(f"{place.deploy_path}: is not mounted; `relfs {place.deploy_path}` mounts it")
    try:
        change(place.state_paths, "unmount", {}, mounted=lambda: is_mounted(place))
        _wait_for_end(place)
    except (NoDaemon, Silent):
        _detach_here(place.mountpoint)
    if session.json:
        show_json({"unmounted": place.mountpoint})
    else:
        say(f"{place.mountpoint} is unmounted")


def _detach_here(mountpoint: str) -> None:
    """Without the daemon's help: it is gone, or stopped. Uncovering the real link needs none."""
    from relfs.mountinfo import relfs_mounts
    from relfs.mounts import detach_only

    for mount in relfs_mounts():
        if mount.target == mountpoint:
            detach_only(mount)


def _wait_for_end(place: Place) -> None:
    """Until the mount is gone and its daemon listens no more."""
    from relfs.mountinfo import relfs_mounts

    deadline = time.monotonic() + _SECONDS
    while any(mount.target == place.mountpoint for mount in relfs_mounts()) or _listens(place):
        if time.monotonic() > deadline:
            raise RelfsError(f"{place.mountpoint}: the daemon did not end; it may have to be killed")
        time.sleep(_PAUSE)


def _listens(place: Place) -> bool:
    try:
        Connection(place.state_paths).close()
    except NoDaemon:
        return False
    return True
