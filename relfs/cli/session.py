"""What every command of relfsctl shares: its options, and the choice between asking the daemon and doing it here.

Doing it here is the same code, lock and journal; only who runs it differs. It is not done behind a mount whose daemon
does not answer: then the link is the daemon's, and the error says so.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from relfs.control import Connection, NoDaemon, change
from relfs.errors import RefusedError, RelfsError
from relfs.locate import Place, locate, mounted_paths

if TYPE_CHECKING:
    from relfs.journal import Event
    from relfs.layout import DeployPath
    from relfs.pointer import Pointer


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


_BETWEEN_SECONDS = 3.0
"""How long a mount whose daemon does not answer is taken for one that comes or goes just now."""

_PAUSE = 0.05


def ask(place: Place, method: str) -> Any:
    """Ask the daemon something that changes nothing; None if there is no daemon."""
    try:
        connection = Connection(place.state_paths)
    except NoDaemon:
        return None
    try:
        return connection.call(method, {})
    except ConnectionError:
        return None
    finally:
        connection.close()


def change_current(place: Place, method: str, release: str | None, *, force: bool = False) -> dict[str, Any]:
    """Switch or roll back, through the daemon or here; the journal event, as JSON. Raises RelfsError.

    If the mount ends while we ask, it is done here under the same id, so that it is done once.
    """
    refuse_in_hook(place)
    request_id = os.urandom(16).hex()
    params: dict[str, Any] = {"release": release}
    if method == "switch":
        params["force"] = force
    deadline = time.monotonic() + _BETWEEN_SECONDS
    while True:
        try:
            result: dict[str, Any] = change(
                place.state_paths, method, params, request_id=request_id, mounted=lambda: is_mounted(place)
            )
            return result
        except NoDaemon:
            if not is_mounted(place):
                break
            if time.monotonic() > deadline:
                refuse_behind_mount(place)
        time.sleep(_PAUSE)
    return _change_here(place, method, release, request_id, force=force).as_json()


def is_mounted(place: Place) -> bool:
    """Whether the deploy path is mounted somewhere at this moment."""
    return any(source == place.deploy_path for _, source in mounted_paths())


def refuse_behind_mount(place: Place) -> None:
    """Raises RelfsError if there is a mount, of which the caller knows that its daemon does not answer."""
    if is_mounted(place):
        raise RelfsError(
            f"{place.mountpoint or place.deploy_path}: is mounted but its daemon does not answer; "
            "`relfsctl unmount` uncovers the real link"
        )


def refuse_in_hook(place: Place) -> None:
    """Raises RefusedError for a hook that wants to change what it is being asked about: each waits for the other, until
    the hook's time is up; then its own change is next, for which the hook is asked, and so on for ever."""
    hook = os.environ.get("RELFS_HOOK")
    if hook and os.environ.get("RELFS_DEPLOY_PATH") == place.deploy_path:
        raise RefusedError(f"{place.deploy_path}: the hook {hook} is asked before a change here, and cannot make one")


def open_here(place: Place, *, create_state: bool) -> DeployPath:
    """The deploy path, for working on it directly. Raises RelfsError.

    Its state may be elsewhere, and then a mount shows where.
    """
    from relfs.layout import open_deploy_path
    from relfs.names import STATE

    state_dir = place.state_dir
    own = f"{place.deploy_path}/{STATE}"
    if state_dir is None and place.mountpoint not in (None, place.deploy_path) and not os.path.isdir(own):
        state_dir = f"{place.mountpoint}/{STATE}"
    return open_deploy_path(place.deploy_path, state_dir=state_dir, create_state=create_state)


def named_release(deploy: DeployPath, reference: str | None) -> str | None:
    """The release that `reference` names, which exists; without one, the current release, if there is one.

    Raises UsageError, RefusedError.
    """
    from relfs.history import History, resolve
    from relfs.journal import Journal
    from relfs.store import peek

    text = peek(deploy)
    current = deploy.target(text).release if text is not None else None
    if reference is None:
        return current
    history = History(Journal(deploy.state_fd).events())
    name = resolve(reference, history, current, deploy.releases(), deploy.is_good)
    deploy.check_release(name, allow_empty=True)
    return name


def _change_here(place: Place, method: str, release: str | None, request_id: str, *, force: bool) -> Event:
    from relfs.journal import this_actor
    from relfs.layout import check_name

    if release is not None and not release.startswith("@"):
        check_name(release)  # before anything is made
    with pointer_here(place) as pointer:
        if method == "rollback":
            return pointer.rollback(release, this_actor(), request_id)
        assert release is not None
        return pointer.switch(release, this_actor(), request_id, force=force)


@contextmanager
def pointer_here(place: Place) -> Iterator[Pointer]:
    """The pointer, for changing things without a daemon. Raises RelfsError."""
    import logging

    from relfs.config import load_config
    from relfs.pointer import Pointer

    logging.basicConfig(level=logging.WARNING, format="relfsctl: %(message)s")
    deploy = open_here(place, create_state=True)
    try:
        assert deploy.state_fd is not None, "it was made"
        yield Pointer(deploy, config=load_config(deploy.state_fd, deploy.state_path))
    finally:
        deploy.close()
