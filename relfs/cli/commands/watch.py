"""`relfsctl watch`: events as they happen."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from typing import Any

import click

from relfs.cli.output import moment, say, show_json
from relfs.cli.session import Session, open_here, pass_session
from relfs.control import Connection, NoDaemon
from relfs.errors import RelfsError, reason
from relfs.locate import Place

_LOOK_SECONDS = 0.2


@click.command("watch", epilog="\b\nExample:\n  relfsctl --json watch | while read -r event; do ...; done")
@pass_session
def command(session: Session) -> None:
    """Print events as they happen, a line each, until interrupted or the mount ends."""
    for event in _events(session.place()):
        if session.json:
            show_json(event)
        else:
            say(
                f"{moment(event['time'])}  {event['action']}  {event['release']} (was {event['from']})  "
                f"by {event['user']}  {event['outcome']}"
            )


def _events(place: Place) -> Iterator[dict[str, Any]]:
    try:
        connection = Connection(place.state_paths)
    except NoDaemon:
        yield from _follow_journal(place)
        return
    with contextlib.suppress(ConnectionError):
        connection.call("watch", {})
        yield from connection.events()
    raise RelfsError("the daemon has ended the stream: the mount is gone, or this reader was too slow")


def _follow_journal(place: Place) -> Iterator[dict[str, Any]]:
    """Without a daemon, the file is looked at a few times a second."""
    from relfs.journal import JOURNAL, decode

    deploy = open_here(place, create_state=False)
    path = os.path.join(deploy.state_path, JOURNAL)
    position = len(_whole_lines(path, 0))
    while True:
        new = _whole_lines(path, position)
        position += len(new)
        for event in map(decode, new.splitlines()):
            if event is not None:
                yield event.as_json()
        time.sleep(_LOOK_SECONDS)


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
