"""Capistrano's records: what its `revisions.log` tells, and what `cap deploy:rollback` goes by (capistranorb.com).

    revisions.log            Branch B (at SHA) deployed as release R by U           (lib/capistrano/i18n.rb)
                             U rolled back to release R
    releases/R               R is the time of its deployment, in UTC, as 14 digits
    releases/R/REVISION      the SHA; REVISION_TIME, when that was committed, which only `relfsctl releases` shows

Both lines are written when the release is current already, so each tells of an activation; a line of the first kind
tells when, but for seconds, and one of the second kind does not. Other lines (`set :revision_log_message`) tell nothing
that can be relied on.

Where `cap deploy:rollback` goes
--------------------------------
Some facts. It never reads its log. It goes to the second of the releases as `ls -t` has them (the last but one that
was modified), whatever is current, and then archives and removes the first if that has not become current
(lib/capistrano/tasks/deploy.rake: rollback_release_path, cleanup_rollback). This is right where the current release is
the first, as it is after each of its own deployments and rollbacks; and wrong after anybody else's: from 2, with 3
marked bad, it would go to 2, and from 1 forth to 2.

The consequence. The modification times of the releases' directories are the only place where it can be told what came
before what. So relfs deals them out anew: the newest to the current release, the next to the one that a rollback leads
to, and so on, the oldest to bad ones; the same times as before, so that none is in the future. Only where all releases
are named by time, so that these times mean nothing to anybody else.
"""

from __future__ import annotations

import math
import os
import re
import stat
from calendar import timegm
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from relfs.history import History
from relfs.journal import Event
from relfs.layout import RELEASES, DeployPath
from relfs.records import files
from relfs.records.record import Record, is_release_name, one_line
from relfs.records.releases import revision, ways_back

LOG = "revisions.log"

_MAX_LINES = 10_000
_SECOND = 1_000_000_000  # nanoseconds

_NAME = re.compile(r"(\d{4})(\d\d)(\d\d)(\d\d)(\d\d)(\d\d)", re.ASCII)
_DEPLOYED = re.compile(
    r"Branch (?P<branch>.*) \(at (?P<sha>.*?)\) deployed as release (?P<release>\S+) by (?P<user>.*)"
)
_ROLLED_BACK = re.compile(r"(?P<user>.*) rolled back to release (?P<release>\S+)")


@dataclass(frozen=True)
class Entry:
    """One line of the log. `branch` and `sha` are None for a rollback."""

    release: str
    user: str
    branch: str | None = None
    sha: str | None = None


# ---- lines ----------------------------------------------------------------------------------------------------------


def parse(line: bytes) -> Entry | None:
    """What a line of revisions.log tells; None for one that says something of its own."""
    text = os.fsdecode(line.removesuffix(b"\n"))
    found = _DEPLOYED.fullmatch(text) or _ROLLED_BACK.fullmatch(text)
    if found is None or not is_release_name(found["release"]):
        return None
    return Entry(**found.groupdict())


def compose(entry: Entry) -> bytes:
    """The line that says it. The release has the name that it has, which cannot end a line."""
    user = one_line(entry.user)
    if entry.branch is None:
        text = f"{user} rolled back to release {entry.release}"
    else:
        made_of = f"Branch {one_line(entry.branch)} (at {one_line(entry.sha or '')})"
        text = f"{made_of} deployed as release {entry.release} by {user}"
    return os.fsencode(text) + b"\n"


def time_of(name: str) -> float | None:
    """When a release of that name was deployed, in seconds since the epoch; None for a name that is no time."""
    digits = _NAME.fullmatch(name)
    if digits is None:
        return None
    year, month, day, hour, minute, second = map(int, digits.groups())
    if year < 1970 or not (1 <= month <= 12 and 1 <= day <= 31 and hour < 24 and minute < 60 and second <= 60):
        return None
    return float(timegm((year, month, day, hour, minute, second)))


# ---- reading --------------------------------------------------------------------------------------------------------


def is_used(deploy: DeployPath) -> bool:
    """Whether Capistrano's log is there."""
    try:
        return stat.S_ISREG(os.lstat(LOG, dir_fd=deploy.fd).st_mode)
    except OSError:
        return False


def records(deploy: DeployPath, history: History) -> list[Record]:
    """What the log tells of the past, oldest first: nothing that could be new, if its last word is the history's.

    Raises OSError if it is there and cannot be read.
    """
    contents = files.read_end(deploy.fd, LOG)
    if contents is None:
        return []
    entries = _entries(contents)
    if entries and [entries[-1].release] == history.path[-1:]:
        return []
    # When the log was modified says nothing of what is new in it, for relfs itself may have done that.
    return activations(entries, contents.modified if history.witnessed is None else -math.inf)


def activations(entries: Sequence[Entry], otherwise: float) -> list[Record]:
    """What `entries` tell. One without a time of its own has that of the one before it, the first ones `otherwise`."""
    told: list[Record] = []
    moment = otherwise
    for entry in entries:
        deployed = entry.branch is not None
        named = time_of(entry.release) if deployed else None
        moment = named if named is not None else moment
        left = told[-1].release if told and not deployed else None
        action = "switch" if deployed else "rollback"
        told.append(Record(moment, action, entry.release, entry.user, LOG, repr(entry), left))
    return told


def _entries(contents: files.Contents) -> list[Entry]:
    lines = contents.data.split(b"\n")[-_MAX_LINES - 1 :]
    return [entry for line in lines if (entry := parse(line)) is not None]


# ---- writing --------------------------------------------------------------------------------------------------------


def writes(deploy: DeployPath, event: Event, history: History) -> Iterator[files.Write]:
    """What there is to write, now that relfs has made `event.release` current. Raises OSError, RelfsError."""
    contents = files.read_end(deploy.fd, LOG)
    if contents is None or event.release is None:
        return
    entries = _entries(contents)
    told = contents.data.endswith(b"\n")  # or a power cut may have left a part of it
    if not told or not entries or entries[-1].release != event.release:  # or its last word is true
        line = compose(_entry_of(deploy, event, event.release, entries))
        yield LOG, partial(files.append, deploy.fd, LOG, line)
    yield f"{RELEASES}/*", partial(_deal_times, deploy, event.release, history)


def _entry_of(deploy: DeployPath, event: Event, release: str, entries: Sequence[Entry]) -> Entry:
    if event.action == "rollback":
        return Entry(release, event.actor.user)
    deployed = [entry for entry in reversed(entries) if entry.branch is not None]
    own = next((entry for entry in deployed if entry.release == release), None)
    branch = next((entry.branch for entry in (own, *deployed) if entry is not None), None)
    sha = revision(deploy, release) or (own.sha if own is not None else None)
    return Entry(release, event.actor.user, branch or "HEAD", sha or "unknown")


def _deal_times(deploy: DeployPath, current: str, history: History) -> None:
    with files.below(deploy.fd, RELEASES) as directory:
        times = {release.name: _modified(directory, release.name) for release in deploy.releases()}
        if any(time_of(name) is None for name in times) or current not in times:
            return
        first = [current, *ways_back(deploy, history, current)]
        last = {name for name in times if name in history.bad or deploy.is_marked_bad(name)} - {current}
        changed = dealt(times, first, last)
        for name, moment in changed.items():
            with files.below(directory, name) as release:
                os.utime(release, ns=(os.fstat(release).st_atime_ns, moment))
        for name in changed:  # now, for the first flush takes the others along
            with files.below(directory, name) as release:
                os.fsync(release)


def _modified(directory: int, name: str) -> int:
    return os.lstat(name, dir_fd=directory).st_mtime_ns


def dealt(times: Mapping[str, int], first: Sequence[str], last: Collection[str]) -> dict[str, int]:
    """The modification times (in nanoseconds) to be changed, so that `ls -t` tells `first` first and `last` last, and
    the others between, as it does now."""
    listed = sorted(times, key=lambda name: (-times[name], name))
    others = [name for name in listed if name not in first]
    wanted = [*first, *sorted(others, key=lambda name: name in last)]  # stable
    if listed == wanted:
        return {}
    moments: list[int] = []
    for moment in sorted(times.values(), reverse=True):
        moments.append(moment if not moments or moment < moments[-1] else moments[-1] - _SECOND)
    return {name: moment for name, moment in zip(wanted, moments, strict=True) if times[name] != moment}
