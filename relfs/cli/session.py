"""What every command of relfsctl shares: its options, and the choice between asking the daemon and doing it here.

Doing it here is the same code, lock and journal; only who runs it differs. It is not done behind a mount whose daemon
does not answer: then the link is the daemon's, and the error says so.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from relfs.cli.output import say_error
from relfs.control import SOCKET, Connection, NoDaemon, change
from relfs.errors import RefusedError, RelfsError
from relfs.locate import Place, locate, mounted_paths
from relfs.names import RELEASES, STATE

if TYPE_CHECKING:
    from relfs.aftermath import Aftermath
    from relfs.config import Config
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
        """Where there is no mount to do it, what was not confirmed in time is taken back first.

        Raises UsageError if it is not clear which deploy path is meant.
        """
        place = locate(self.path, self.state_dir)
        if place.mountpoint is None:
            from relfs.cli.waiter import take_back_overdue

            take_back_overdue(place)
        return place


pass_session = click.make_pass_decorator(Session)


_PAUSE = 0.05
_TRIES = 60
"""How often a mount whose daemon does not answer is taken for one that comes or goes just now: counted, since an answer
that a daemon owes may have been waited for, and the machine may have stood still."""


def ask(place: Place, method: str, params: dict[str, Any] | None = None) -> Any:
    """Ask the daemon something that changes nothing; None if there is no daemon. Where a worker dies before it has
    answered, the next one is asked."""
    for _ in range(_TRIES):
        try:
            connection = Connection(place.state_paths)
        except NoDaemon:
            return None
        try:
            return connection.call(method, params or {})
        except ConnectionError:
            if not is_mounted(place):
                return None
        finally:
            connection.close()
        time.sleep(_PAUSE)
    return None


def change_current(
    place: Place,
    method: str,
    release: str | None,
    *,
    force: bool = False,
    confirm: float | None = None,
    request_id: str | None = None,
) -> dict[str, Any]:
    """Switch or roll back, through the daemon or here, with all that follows; the journal event, as JSON. What hooks
    print is shown on standard error. Asked again with the same `request_id`, it finishes what was begun. Raises
    RelfsError.

    If the mount ends while we ask, it is done here under the same id, so that it is done once.
    """
    refuse_in_hook(place)
    request_id = request_id or os.urandom(16).hex()
    params: dict[str, Any] = {"release": release}
    if force:
        params["force"] = True
    if confirm is not None:
        from relfs.cli.waiter import start_waiter

        params["confirm"] = confirm
        start_waiter(place, request_id)
    return _ask_or(place, method, params, request_id, lambda: _change_here(place, method, params, request_id))


def confirm_current(place: Place, release: str | None) -> dict[str, Any]:
    """Confirm what waits for it, likewise."""
    refuse_in_hook(place, before_only=True)
    request_id = os.urandom(16).hex()
    params = {"release": release}
    return _ask_or(place, "confirm", params, request_id, lambda: _change_here(place, "confirm", params, request_id))


def _ask_or(
    place: Place, method: str, params: dict[str, Any], request_id: str, do_it: Callable[[], Event]
) -> dict[str, Any]:
    """Ask the daemon; where there is none, and no mount either, do it here."""
    for _ in range(_TRIES):
        try:
            result: dict[str, Any] = change(
                place.state_paths, method, params,
                request_id=request_id, mounted=lambda: is_mounted(place), show=say_error,
            )  # fmt: skip
            return result
        except NoDaemon:
            if not is_mounted(place):
                break
        time.sleep(_PAUSE)
    else:
        refuse_behind_mount(place)
    return do_it().as_json()


def is_mounted(place: Place) -> bool:
    """Whether the deploy path is mounted somewhere at this moment."""
    return any(source == place.deploy_path for _, source in mounted_paths())


def refuse_behind_mount(place: Place) -> None:
    """Raises RelfsError if there is a mount, of which the caller knows that its daemon does not answer."""
    if not is_mounted(place):
        return
    where = place.mountpoint or place.deploy_path
    if _is_seen_alone(where):
        raise RelfsError(
            f"{where}: its daemon cannot be reached, since this mount was bound in here without what is mounted below "
            "it; do that with `mount --rbind`, or bind its .relfs in as well"
        )
    raise RelfsError(f"{where}: is mounted but its daemon does not answer; `relfsctl unmount` uncovers the real link")


def _is_seen_alone(mountpoint: str) -> bool:
    """Whether the control socket is seen by way of FUSE, where nobody ever listens (unix_find_bsd() in net/unix goes by
    the inode), and where relfs would have put a link if it could not attach its state."""
    try:
        found, mount = os.lstat(f"{mountpoint}/{STATE}/{SOCKET}"), os.lstat(mountpoint)
    except OSError:
        return False
    return stat.S_ISSOCK(found.st_mode) and found.st_dev == mount.st_dev


def refuse_in_hook(place: Place, *, before_only: bool = False) -> None:
    """Raises RefusedError for a hook that wants to change what it is being asked about: each waits for the other, until
    the hook's time is up; then its own change is next, for which the hook is asked, and so on for ever. So it would go
    on with one that is run after a switch, and switches; `before_only`: that one may."""
    hook = in_hook(place)
    if hook is None:
        return
    if hook.startswith("pre-"):
        raise RefusedError(f"{place.deploy_path}: the hook {hook} is asked before a change here, and cannot make one")
    if not before_only:
        raise RefusedError(f"{place.deploy_path}: the hook {hook} is run after a change here, and cannot make another")


def in_hook(place: Place) -> str | None:
    """The hook of this deploy path that runs us."""
    hook = os.environ.get("RELFS_HOOK")
    return hook if hook and os.environ.get("RELFS_DEPLOY_PATH") == place.deploy_path else None


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
    aliases = (place.mountpoint,) if place.mountpoint not in (None, place.deploy_path) else ()
    return open_deploy_path(
        place.deploy_path, state_dir=state_dir, create_state=create_state, aliases=aliases,
        mounted=place.mountpoint == place.deploy_path,
    )  # fmt: skip


def configuration(place: Place) -> Config:
    """What is set for the deploy path. Raises RelfsError."""
    from relfs.config import Config, load_config

    deploy = open_here(place, create_state=False)
    try:
        return load_config(deploy.state_fd, deploy.state_path) if deploy.state_fd is not None else Config()
    finally:
        deploy.close()


def named_release(deploy: DeployPath, reference: str | None) -> str | None:
    """The release that `reference` names, itself or by a link to it, which exists; without one, the current release, if
    there is one.

    Raises UsageError, RefusedError.
    """
    from relfs.store import current_release

    name = _meaning(deploy, reference) if reference is not None else current_release(deploy)
    if name is None:
        return None
    deploy.check_release(name, allow_empty=True)
    return deploy.release_of(f"{RELEASES}/{name}")


def _meaning(deploy: DeployPath, reference: str) -> str:
    """The release that `reference` names, or stands for, as a mount would say. Raises RelfsError."""
    if not reference.startswith("@"):
        return reference
    from relfs.admission import Admission
    from relfs.config import Config, load_config
    from relfs.history import History, resolve
    from relfs.journal import Journal
    from relfs.store import current_release

    config = load_config(deploy.state_fd, deploy.state_path) if deploy.state_fd is not None else Config()
    history = History(Journal(deploy.state_fd).events())
    is_good = Admission(deploy, config, hide=None).judge()
    return resolve(reference, history, current_release(deploy), deploy.releases(), is_good)


def _change_here(place: Place, method: str, params: dict[str, Any], request_id: str) -> Event:
    from relfs.journal import this_actor
    from relfs.layout import check_name

    release = params["release"]
    if release is not None and not release.startswith("@"):
        check_name(release)  # before anything is made
    with _pointer_and_more(place) as (pointer, aftermath):
        if method == "confirm":
            return pointer.confirm(release, this_actor(), request_id)
        if method == "rollback":
            event = pointer.rollback(release, this_actor(), request_id, show=say_error)
            _tell_hook(aftermath, event)
            return event
        event = pointer.switch(
            release, this_actor(), request_id,
            force=params.get("force", False), confirm=params.get("confirm"), show=say_error,
        )  # fmt: skip
        _tell_hook(aftermath, event)
        why = aftermath.verify(event, say_error)
        if why is not None:
            aftermath.take_back(event, why)
        return event


def _tell_hook(aftermath: Aftermath, event: Event) -> None:
    failed = aftermath.tell(event, say_error)
    if failed is not None:
        say_error(failed)


@contextmanager
def pointer_here(place: Place) -> Iterator[Pointer]:
    """The pointer, for changing things without a daemon. Raises RelfsError."""
    with _pointer_and_more(place) as (pointer, _):
        yield pointer


@contextmanager
def _pointer_and_more(place: Place) -> Iterator[tuple[Pointer, Aftermath]]:
    import logging

    from relfs.aftermath import Aftermath
    from relfs.config import load_config
    from relfs.pointer import Pointer

    logging.basicConfig(level=logging.WARNING, format="relfsctl: %(message)s")
    deploy = open_here(place, create_state=True)
    try:
        assert deploy.state_fd is not None, "it was made"
        config = load_config(deploy.state_fd, deploy.state_path)
        pointer = Pointer(deploy, config=config)
        aftermath = Aftermath(pointer, config)
        if pointer.taken_back is not None:
            _tell_hook(aftermath, pointer.taken_back)
        yield pointer, aftermath
    finally:
        deploy.close()
