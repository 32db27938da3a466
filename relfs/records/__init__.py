"""The records that deploy tools keep beside the releases: read to know what happened without relfs, and written so that
they go on telling the truth when relfs has made a change.

A path uses Deployer if it has one of its logs in `.dep`, and Capistrano if it has `revisions.log`; it may use both.
Who calls this holds the change lock. How files of other people are touched is in files.py, what they mean in a module
a tool; nothing here knows of FUSE, trio or the command line.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from relfs.errors import RelfsError, reason
from relfs.history import History
from relfs.journal import Event
from relfs.layout import DeployPath, Release
from relfs.records import capistrano, deployer
from relfs.records.deployer import last_number
from relfs.records.record import events_of
from relfs.records.releases import revision, revision_time

__all__ = ["TOP_NAMES", "being_made", "last_number", "logged", "made_at", "revision", "revision_time", "tell", "untold"]

TOP_NAMES = (deployer.DIRECTORY, capistrano.LOG)
"""The names in the deploy path that tell() writes, or writes below."""

_log = logging.getLogger(__name__)


def untold(deploy: DeployPath, current: str | None, history: History) -> list[Event]:
    """Events, oldest first, that deploy tools' records tell of and `history` does not, `current` being where the link
    leads. Raises OSError, RelfsError if records that are there cannot be read."""
    tools = [records for records in (deployer.records(deploy, current), capistrano.records(deploy, history)) if records]
    told = [record for records in tools for record in records]
    if len(tools) > 1:
        told.sort(key=lambda record: record.time)
    return events_of(told, history)


def tell(deploy: DeployPath, event: Event, history: History) -> None:
    """Bring deploy tools' records up to date after a switch or rollback that relfs made, and that is in `history`.

    Telling them again changes nothing. What cannot be written is logged, and no failure: the release is current.
    """
    for tool in (deployer.writes, capistrano.writes):
        try:
            for shown, write in tool(deploy, event, history):
                _attempt(shown, event, write)
        except (OSError, RelfsError) as error:
            _warn(f"{tool.__module__.rpartition('.')[2].capitalize()}'s records", event, error)


def made_at(deploy: DeployPath, release: Release) -> float:
    """When the release was made, in seconds since the epoch: its name may tell better than its directory's times."""
    named = capistrano.time_of(release.name) if capistrano.is_used(deploy) else None
    return named if named is not None else release.created


def logged(deploy: DeployPath) -> dict[str, float]:
    """When each release that a tool's log names as soon as it is begun was begun, in seconds since the epoch. (What
    Capistrano logs has been current; untold() has it.) Raises OSError, RelfsError."""
    return deployer.made(deploy)


def being_made(deploy: DeployPath) -> str | None:
    """The release that a tool is making now, or was when it failed, as far as it says so."""
    return deployer.being_made(deploy)


def _attempt(shown: str, event: Event, write: Callable[[], None]) -> None:
    try:
        write()
    except (OSError, RelfsError) as error:
        _warn(shown, event, error)


def _warn(shown: str, event: Event, error: Exception) -> None:
    why = reason(error) if isinstance(error, OSError) else str(error)
    _log.warning("%s is current, but %s could not be brought up to date: %s", event.release, shown, why)
