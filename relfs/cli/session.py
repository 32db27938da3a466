"""What every command of relfsctl shares: its options, and the choice between asking the daemon and doing it here.

Doing it here is the same code, lock and journal; only who runs it differs. It is not done behind a mount whose daemon
does not answer: then the link is the daemon's, and the error says so.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from relfs.control import Connection, NoDaemon, change
from relfs.errors import RelfsError
from relfs.locate import Place, locate

if TYPE_CHECKING:
    from relfs.journal import Event
    from relfs.layout import DeployPath
    from relfs.pointer import Pointer


_LOOK_SECONDS = 10.0


@dataclass(frozen=True)
class Session:
    """The options before the command."""

    path: str | None
    json: bool
    state_dir: str | None

    def place(self) -> Place:
        """Raises UsageError if it is not clear which deploy path is meant."""
        return locate(self.path, self.state_dir)


pass_session = click.make_pass_decorator(Session)


def ask(place: Place, method: str) -> Any:
    """Ask the daemon something that changes nothing; None if there is no daemon."""
    try:
        connection = Connection(place.state_paths)
    except NoDaemon:
        return None
    try:
        return connection.call(method, {}, seconds=_LOOK_SECONDS)
    except ConnectionError:
        return None
    finally:
        connection.close()


def change_current(place: Place, method: str, release: str | None, *, force: bool = False) -> dict[str, Any]:
    """Switch or roll back, through the daemon or here; the journal event, as JSON. Raises RelfsError."""
    params: dict[str, Any] = {"release": release}
    if method == "switch":
        params["force"] = force
    try:
        result: dict[str, Any] = change(place.state_paths, method, params)
        return result
    except NoDaemon:
        refuse_behind_mount(place)
    return _change_here(place, method, release, force=force).as_json()


def refuse_behind_mount(place: Place) -> None:
    """Raises RelfsError if there is a mount, of which the caller knows that its daemon does not answer."""
    if place.mountpoint is not None:
        raise RelfsError(
            f"{place.mountpoint}: is mounted but its daemon does not answer; `relfsctl unmount` uncovers the real link"
        )


def open_here(place: Place, *, create_state: bool) -> DeployPath:
    """The deploy path, for working on it directly. Raises RelfsError."""
    from relfs.layout import open_deploy_path

    return open_deploy_path(place.deploy_path, state_dir=place.state_dir, create_state=create_state)


def _change_here(place: Place, method: str, release: str | None, *, force: bool) -> Event:
    from relfs.journal import this_actor
    from relfs.pointer import Pointer

    deploy = open_here(place, create_state=True)
    try:
        pointer: Pointer = Pointer(deploy)
        request = os.urandom(16).hex()
        if method == "rollback":
            return pointer.rollback(release, this_actor(), request)
        assert release is not None
        return pointer.switch(release, this_actor(), request, force=force)
    finally:
        deploy.close()
