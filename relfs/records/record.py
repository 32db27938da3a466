"""What a deploy tool's records tell: which release became current when, and by whom. Pure."""

from __future__ import annotations

import hashlib
import os
import socket
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from relfs.deadline import TIME_MAX
from relfs.errors import UsageError
from relfs.history import History
from relfs.journal import IMPORTED, Actor, Event
from relfs.layout import check_name

_USER_MAX = 200  # characters; what a log calls a user may be anything
_NOBODY = -1  # the uid of a user of whom only a name is known


@dataclass(frozen=True)
class Record:
    """At `time` (seconds since the epoch) `release` became current, by `action` (switch or rollback).

    `left` is the release that a rollback left, where that is known. `source` is the file that tells, and `key` what
    makes this record out there: reading it again gives the same key, whatever was appended since.
    """

    time: float
    action: str
    release: str
    user: str
    source: str
    key: str
    left: str | None = None


def is_release_name(name: str) -> bool:
    """Whether a name that a log tells can be one of a release: logs belong to whoever deploys, who may write any."""
    try:
        check_name(name)
    except UsageError:
        return False
    return True


def one_line(text: str) -> str:
    """`text` without what would end a line or steer a terminal, for a log of lines."""
    return "".join(character if _harmless(character) else "?" for character in text)


def events_of(records: Sequence[Record], history: History) -> list[Event]:
    """The journal events of those `records` that `history` does not know of, each beginning where the last one ended.

    Known is what was imported before (told by its id), all before that, and all before the last event that relfs wrote
    of its own accord: what happened until then it saw itself.
    """
    named = list(_with_ids(records))
    known = [number for number, (_, name) in enumerate(named) if history.find(name) is not None]
    fresh = named[known[-1] + 1 :] if known else named
    since = history.witnessed
    events = []
    origin = history.path[-1] if history.path else None
    for record, name in fresh:
        if since is None or record.time >= since:
            events.append(_event(record, record.left if record.left is not None else origin, name))
            origin = record.release
    return events


def _with_ids(records: Iterable[Record]) -> Iterator[tuple[Record, str]]:
    """Each with an id that is the same whenever it is read; a repeated record is told apart by counting."""
    seen: Counter[tuple[str, str]] = Counter()
    for record in records:
        own = (record.source, record.key)
        text = "\0".join((*own, str(seen[own])))
        seen[own] += 1
        yield record, "import-" + hashlib.sha256(os.fsencode(text)).hexdigest()[:24]


def _event(record: Record, origin: str | None, event_id: str) -> Event:
    actor = Actor(_NOBODY, one_line(record.user)[:_USER_MAX], 0, record.source)
    host = socket.gethostname()
    moment = min(max(record.time, 0.0), TIME_MAX - 1)  # some are when a file was modified, which may be any time
    return Event(moment, record.action, record.release, origin, actor, host, event_id, IMPORTED)


def _harmless(character: str) -> bool:
    return character.isprintable() or 0xDC80 <= ord(character) <= 0xDCFF  # a byte that is no text (os.fsdecode)
