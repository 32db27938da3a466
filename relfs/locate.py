"""Which deploy path is meant: by name, by where one stands, or because there is only one."""

from __future__ import annotations

import os
from dataclasses import dataclass

from relfs.errors import UsageError
from relfs.names import CURRENT, RELEASES, STATE


@dataclass(frozen=True)
class Place:
    """A deploy path, resolved, and where it is mounted (None: nowhere that this process sees)."""

    deploy_path: str
    mountpoint: str | None
    state_dir: str | None = None

    @property
    def state_paths(self) -> tuple[str, ...]:
        """Where the daemon's socket may be. A mount shows the state directory wherever that really is."""
        if self.state_dir is not None:
            return (self.state_dir,)
        own = f"{self.deploy_path}/{STATE}"
        return (own,) if self.mountpoint in (None, self.deploy_path) else (own, f"{self.mountpoint}/{STATE}")


def locate(given: str | None, state_dir: str | None) -> Place:
    """The deploy path that `given` names (it, or its mountpoint), else $RELFS_PATH, else the one around the working
    directory, else the only one mounted. Raises UsageError that lists the candidates."""
    for name, value in (("-C", given), ("--state-dir", state_dir)):
        if value is not None and (not value or "\0" in value):
            raise UsageError(f"{name} {value!r}: not a path")
    path = given or os.environ.get("RELFS_PATH") or _around_here() or _only_mounted()
    state = state_dir or os.environ.get("RELFS_STATE_DIR")
    return _place(path, os.path.realpath(state) if state else None)


def _place(path: str, state_dir: str | None) -> Place:
    """A mount is recognised by its name first: resolving the path asks the daemon, which may be stopped."""
    found = mounted_paths()
    for resolve in (os.path.abspath, os.path.realpath):
        name = resolve(path)
        for mountpoint, deploy_path in found:
            if name in (mountpoint, deploy_path):
                return Place(deploy_path, mountpoint, state_dir)
    return Place(name, None, state_dir)


def mounted_paths() -> list[tuple[str, str]]:
    """Mountpoint and deploy path of every relfs mount that is to be believed; none where there is no mountinfo."""
    from relfs.mountinfo import relfs_mounts
    from relfs.trust import speaks_for

    return [(mount.target, mount.source) for mount in relfs_mounts() if speaks_for(mount)]


def _around_here() -> str | None:
    """The deploy path that the working directory is in."""
    try:
        directory = os.getcwd()
    except FileNotFoundError:  # it was removed under our feet
        return None
    while True:
        if os.path.isdir(f"{directory}/{RELEASES}") and (
            os.path.isdir(f"{directory}/{STATE}") or os.path.lexists(f"{directory}/{CURRENT}")
        ):
            return directory
        parent = os.path.dirname(directory)
        if parent == directory:
            return None
        directory = parent


def _only_mounted() -> str:
    sources = sorted({source for _, source in mounted_paths()})
    if len(sources) == 1:
        return sources[0]
    candidates = f"mounted are {', '.join(sources)}" if sources else "none is mounted"
    raise UsageError(f"which deploy path? name it with -C or $RELFS_PATH, or go there; {candidates}")
