"""`relfsctl watch`: events as they happen."""

from __future__ import annotations

import contextlib
import itertools
import os
import time
from collections.abc import Iterator
from typing import Any

import click

from relfs.cli.output import moment, say, show_json
from relfs.cli.session import Session, is_mounted, open_here, pass_session
from relfs.control import Connection, NoDaemon
from relfs.errors import RelfsError, reason
from relfs.journal import JOURNAL, decode
from relfs.locate import Place

_LOOK_SECONDS = 0.2
_AGAIN_SECONDS = 10.0


@click.command("watch", epilog="\b\nExample:\n  relfsctl --json watch | while read -r event; do ...; done")
@pass_session
def command(session: Session) -> None:
    """Print events as they happen, a line each, until interrupted or the mount ends. None is left out if relfs is
    replaced meanwhile."""
    for event in _events(session.place()):
        if session.json:
            show_json(event)
        else:
            say(
                f"{moment(event['time'])}  {event['action']}  {event['release']} (was {event['from']})  "
                f"by {event['user']}  {event['outcome']}"
            )


def _events(place: Place) -> Iterator[dict[str, Any]]:
    """What a daemon tells, whichever that is; what happened while none did is in the journal."""
    with contextlib.closing(open_here(place, create_state=False)) as deploy:
        yield from _follow(place, os.path.join(deploy.state_path, JOURNAL))


def _follow(place: Place, path: str) -> Iterator[dict[str, Any]]:
    try:
        connection = Connection(place.state_paths)
    except NoDaemon:
        yield from _follow_journal(path)
        return
    position, last = len(_whole_lines(path, 0)), ""
    while True:
        with contextlib.suppress(ConnectionError):
            connection.call("watch", {})
            missed = _missed(path, position, last)
            told = {event["id"] for event in missed}
            for event in itertools.chain(missed, (each for each in connection.events() if each["id"] not in told)):
                last = event["id"]
                yield event
        connection.close()
        connection = _again(place)


def _missed(path: str, position: int, last: str) -> list[dict[str, Any]]:
    """The events behind the one with the id `last` that the journal has from `position` on."""
    events = list(_read(_whole_lines(path, position)))
    known = [index for index, event in enumerate(events) if event["id"] == last]
    return events[known[-1] + 1 :] if known else events


def _again(place: Place) -> Connection:
    """The daemon has ended the stream: it was replaced, or this reader was too slow. Raises RelfsError if there is none
    any more."""
    deadline = time.monotonic() + _AGAIN_SECONDS
    while is_mounted(place) and time.monotonic() < deadline:
        with contextlib.suppress(NoDaemon):
            return Connection(place.state_paths)
        time.sleep(_LOOK_SECONDS)
    raise RelfsError("the daemon has ended the stream: the mount is gone")


def _follow_journal(path: str) -> Iterator[dict[str, Any]]:
    """Without a daemon, the file is looked at a few times a second."""
    position = len(_whole_lines(path, 0))
    while True:
        new = _whole_lines(path, position)
        position += len(new)
        yield from _read(new)
        time.sleep(_LOOK_SECONDS)


def _read(lines: bytes) -> Iterator[dict[str, Any]]:
    for event in map(decode, lines.splitlines()):
        if event is not None:
            yield event.as_json()


def _whole_lines(path: str, position: int) -> bytes:
    """What follows `position`, up to the last newline: a torn line is removed by the next writer."""
    try:
        with open(path, "rb") as file:
            file.seek(position)
            whole, newline, _ = file.read().rpartition(b"\n")
            return whole + newline
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise RelfsError(f"{path}: cannot be read: {reason(error)}") from error
