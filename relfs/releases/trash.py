"""The trash: where a release goes in one step, and is deleted from when nobody waits for it (deleter.py).

    .relfs/trash/NAME.N          what was releases/NAME
    .relfs/trash/.left           what could not be deleted, and why: a JSON object, by the names here
    releases/.relfs-trash        the same, where .relfs is on another file system, or mounted from one

What goes from releases/ is gone for everybody at once, whole, however long deleting it takes; and what a crash leaves
is found here, and nowhere else. N makes the name new. The order: the rename is made and flushed, the manifest removed,
then the registry tells of it. A crash between leaves a record of a release that is not there, which the next one mends.
So it is with a full disk, which must not keep anybody from making room.

What a killed relfsctl has left of a release that it was making (staging.py), which its maker holds with flock(2) while
it lives, goes the same way.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress

from relfs.beneath import below, open_directory, read_file
from relfs.durable import remove_file, replace_file
from relfs.errors import RefusedError, RelfsError, reason
from relfs.layout import RELEASES, DeployPath, check_name
from relfs.releases.manifest import remove_manifest
from relfs.releases.registry import Record, Registry, State
from relfs.releases.staging import PREFIX
from relfs.releases.tree import open_up

TRASH = "trash"
_IN_RELEASES = ".relfs-trash"
_LEFT = ".left"
_LEFT_MAX = 1 << 20
_NAME_BYTES = 230  # of NAME_MAX, which is 255; the rest is for the number
_MODE = 0o755
_NUMBERS = 1 << 20


def put(deploy: DeployPath, name: str) -> None:
    """Take release `name`, or what is left of one that was being made, out of releases/, durably, and let the registry
    know. The caller holds the change lock, and has seen to it that nobody needs it.

    Raises UsageError, RefusedError (EBUSY where something is mounted there, or it is being made), RelfsError; then it
    is where it was.
    """
    check_name(name)
    shown = f"{deploy.path}/{RELEASES}/{name}"
    if name.startswith(".") and not name.startswith(PREFIX):
        raise RefusedError(f"{shown}: is no release")
    try:
        with below(deploy.fd, RELEASES) as releases, _unused(releases, name, shown):
            _move(deploy, releases, name)
    except FileNotFoundError as error:
        raise RefusedError(f"{shown}: no such release; `relfsctl releases` lists them") from error
    except OSError as error:
        if error.errno == errno.EBUSY:
            raise RefusedError(f"{shown}: something is mounted there, or it is still sealed", errno.EBUSY) from error
        raise RelfsError(f"{shown}: cannot be removed: {reason(error)}") from error
    with suppress(RelfsError, OSError):
        _settle(deploy, name)


def abandoned(deploy: DeployPath) -> list[str]:
    """What was being made by somebody who is gone, by name. Raises RelfsError."""
    try:
        with below(deploy.fd, RELEASES) as releases:
            staged = [name for name in os.listdir(releases) if name.startswith(PREFIX)]
            return sorted(name for name in staged if _is_abandoned(releases, name))
    except OSError as error:
        raise RelfsError(f"{deploy.path}/{RELEASES}: cannot be read: {reason(error)}") from error


def _is_abandoned(releases: int, name: str) -> bool:
    try:
        with _unused(releases, name, name):
            return True
    except (OSError, RefusedError):
        return False


@contextmanager
def _unused(releases: int, name: str, shown: str) -> Iterator[None]:
    """Raises RefusedError if `name` is being made, and keeps its maker's lock meanwhile; OSError for no directory."""
    directory = open_directory(releases, name)
    try:
        if name.startswith(PREFIX):
            fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise RefusedError(f"{shown}: is being made", errno.EBUSY) from error
    finally:
        os.close(directory)


def _move(deploy: DeployPath, releases: int, name: str) -> None:
    if deploy.state_fd is not None:
        try:
            _move_into(deploy.state_fd, TRASH, releases, name, owner=os.fstat(deploy.state_fd))
            return
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
    _move_into(releases, _IN_RELEASES, releases, name, owner=os.fstat(releases))


def _move_into(place: int, trash_name: str, releases: int, name: str, *, owner: os.stat_result) -> None:
    _make(place, trash_name, owner)
    with below(place, trash_name) as trash:
        open_up(releases, name)
        moved = _free_name(trash, name)
        os.rename(name, moved, src_dir_fd=releases, dst_dir_fd=trash)
        try:
            os.fsync(trash)
            os.fsync(releases)
        except OSError:
            os.rename(moved, name, src_dir_fd=trash, dst_dir_fd=releases)
            raise


def _make(place: int, trash_name: str, owner: os.stat_result) -> None:
    """It belongs to whom the place belongs to: who deploys can go on without root."""
    with suppress(FileExistsError):
        os.mkdir(trash_name, _MODE, dir_fd=place)
        with below(place, trash_name) as trash:
            if os.geteuid() == 0:
                os.fchown(trash, owner.st_uid, owner.st_gid)
            os.fsync(place)


def _free_name(trash: int, name: str) -> str:
    """Nobody else makes names here: the caller holds the change lock."""
    start = os.fsdecode(os.fsencode(name.lstrip("."))[:_NAME_BYTES])
    for number in range(1, _NUMBERS):
        try:
            os.lstat(f"{start}.{number}", dir_fd=trash)
        except FileNotFoundError:
            return f"{start}.{number}"
    raise OSError(errno.EEXIST, f"the trash has {_NUMBERS} of that name")


def _settle(deploy: DeployPath, name: str) -> None:
    """Note as removed `name`, and what somebody has removed who did not say so; as given up, what was being made. What
    relfs has not made, the registry does not know.

    A manifest goes first: what is noted as removed, nobody looks at again."""
    if deploy.state_fd is None:
        return
    there = {release.name for release in deploy.releases()}
    registry = Registry(deploy.state_fd)
    for record in registry.records():
        state = _becomes(record, name, there)
        if state is not None:
            remove_manifest(deploy.state_fd, record.name)
            registry.note(record, state)


def _becomes(record: Record, gone: str, there: set[str]) -> State | None:
    """What is to be noted of a record, now that `gone` has left `there`."""
    if record.state == "reserved" and gone == PREFIX + record.name:
        return "given-up"
    if record.state == "finished" and record.name not in there:
        return "removed"
    return "removed" if record.name == gone and record.state != "removed" else None


# ---- what is in it -------------------------------------------------------------------------------------------------


@contextmanager
def opened(deploy: DeployPath) -> Iterator[list[int]]:
    """Descriptors of the directories that are the trash of a deploy path."""
    places = ((deploy.state_fd, TRASH), (deploy.fd, f"{RELEASES}/{_IN_RELEASES}"))
    with ExitStack() as stack:
        found: list[int] = []
        for place, name in places:
            if place is not None:
                with suppress(OSError):
                    found.append(open_directory(place, name))
                    stack.callback(os.close, found[-1])
        yield found


def entries(trash: int) -> list[str]:
    """What is to be deleted, by name, of a trash that is opened. Raises OSError."""
    return sorted(name for name in os.listdir(trash) if not name.startswith("."))


def left(trash: int) -> dict[str, str]:
    """What is still there of what could not be deleted last time, by name, and why it could not."""
    try:
        told = json.loads(read_file(trash, _LEFT, _LEFT_MAX))
        return {name: str(told[name]) for name in entries(trash) if name in told}
    except (OSError, ValueError, TypeError):
        return {}


def note_left(trash: int, told: Mapping[str, str]) -> None:
    """Write down what could not be deleted, and why. Raises OSError."""
    if told:
        replace_file(trash, _LEFT, json.dumps(told).encode("ascii"))
    else:
        remove_file(trash, _LEFT)
