"""Deployer's records: what `dep releases` shows, and what `dep rollback` and `dep deploy` go by (deployer.org).

    .dep/releases_log          JSON a line: created_at, release_name, user, target  (7: recipe/deploy/release.php)
    .dep/latest_release        the number of the last release: the next one gets the next
    .dep/releases              the log of versions 4 to 6: YYYYMMDDHHMMSS,NAME in the host's time, as date(1)
    releases/NAME/BAD_RELEASE  `time,user`: somebody rolled back from it         (7: recipe/deploy/rollback.php)
    release                    a link to the release that is being made

What the log tells
------------------
Some facts. A line is written when a release is made, not when it becomes current; a release that never did is removed
by the next deployment, and until then the link `release` leads to it. `dep rollback` goes to the release that is logged
last before the current one and is not marked bad. It has no other memory: where somebody goes back to 2 by hand, the
log still tells 1, 2, 3, 4, and a rollback leads to 1, though 4 was current before.

The consequence for reading. A line before the current release's own is believed to tell an activation. One after it
is believed only of a release that is marked bad, for that is how it was left.

The consequence for writing. The order of the lines is the only place where it can be said what was current before
what, so that is where it is said: where the log would lead elsewhere than relfs would, the current release's line moves
behind that of the release that a rollback leads to. A second line for it would be shorter to write, but
`dep deploy:cleanup` counts lines, and removes what is beyond the ones to keep, the current release included. In the
old log second lines count for nothing, so there they are the way.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial

from relfs.history import History
from relfs.journal import Event
from relfs.layout import BAD_MARKER, RELEASES, DeployPath
from relfs.records import files
from relfs.records.record import Record, is_release_name, one_line
from relfs.records.releases import revision, ways_back

DIRECTORY = ".dep"
LOG = "releases_log"
OLD_LOG = "releases"
LATEST = "latest_release"
UNFINISHED_LINK = "release"

_MAX_LINES = 10_000
_WINDOW = 15
"""Lines of the log that Deployer reads, from its end: keep_releases, by default 10, and 5 (5 to 7 read as many)."""

_ATTEMPTS = 5
_OLD_TIME = "%Y%m%d%H%M%S"
_OLD_TIME_DIGITS = 14
_NUMBER_DIGITS = 18  # PHP's integers have 64 bits
_SMALL = 4096  # bytes; more than a marker or a number takes


@dataclass(frozen=True)
class Entry:
    """One line of a log: `release` was made at `created` (seconds since the epoch) by `user`."""

    created: float
    release: str
    user: str


@dataclass(frozen=True)
class Mark:
    """That a release was left for being bad: at `time` (None: nobody knows), by `user`."""

    time: float | None
    user: str


# ---- lines ----------------------------------------------------------------------------------------------------------


def parse(line: bytes) -> Entry | None:
    """What a line of releases_log tells; None where Deployer would not read it either."""
    try:
        fields = json.loads(line.decode("utf-8"))
        name, user = fields["release_name"], fields.get("user")
        release = str(name) if type(name) is int else name
        entry = Entry(_parse_time(fields["created_at"]), release, user if isinstance(user, str) else "")
        (release + entry.user).encode("utf-8")  # half of a pair of surrogates is none of PHP's characters
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
        return None
    return entry if is_release_name(release) else None


def compose(created: float, release: str, user: str, target: str) -> bytes:
    """A line of releases_log, as PHP's json_encode() writes it. Raises OSError for a name that JSON cannot say."""
    fields = {
        "created_at": _compose_time(created),
        "release_name": release,
        "user": _as_text(user),
        "target": _as_text(target),
    }
    return b"{%s}\n" % b",".join(_php_string(name) + b":" + _php_string(value) for name, value in fields.items())


def parse_old(line: bytes) -> Entry | None:
    """What a line of the old log tells."""
    moment, _, release = line.decode("utf-8", "surrogateescape").strip().partition(",")
    try:
        if len(moment) != _OLD_TIME_DIGITS:
            return None
        created = _since_epoch(time.mktime(time.strptime(moment, _OLD_TIME)))
    except (ValueError, OverflowError):
        return None
    return Entry(created, release, "") if is_release_name(release) else None


def compose_old(created: float, release: str) -> bytes:
    """A line of the old log."""
    moment = time.strftime(_OLD_TIME, time.localtime(created))
    return f"{moment},{release}\n".encode("utf-8", "surrogateescape")


def parse_mark(text: bytes) -> Mark:
    """What BAD_RELEASE tells; whatever it says, the release is bad."""
    moment, _, user = text.decode("utf-8", "surrogateescape").partition("\n")[0].partition(",")
    try:
        return Mark(_parse_time(moment), user)
    except (ValueError, OverflowError):
        return Mark(None, "")


def compose_mark(moment: float, user: str) -> bytes:
    return f"{_compose_time(moment)},{one_line(user)}\n".encode("utf-8", "surrogateescape")


def _parse_time(text: str) -> float:
    return _since_epoch(datetime.strptime(text, "%Y-%m-%dT%H:%M:%S%z").timestamp())


def _since_epoch(moment: float) -> float:
    """What is older was never deployed, and would not be written again as it was read (strftime(3), %Y)."""
    if moment < 0:
        raise ValueError("before the epoch")
    return moment


def _compose_time(moment: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S+0000", time.gmtime(math.floor(moment)))


def _as_text(text: str) -> str:
    """What is only shown may lose what JSON cannot hold."""
    return one_line(text).encode("utf-8", "replace").decode("utf-8")


def _php_string(text: str) -> bytes:
    """As json.dumps(), but that json_encode() escapes the slash, and does not escape DEL."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise OSError(None, f"{text!r} has bytes that are no text, which JSON cannot hold") from error
    plain = (json.dumps(part)[1:-1].replace("/", "\\/") for part in text.split("\x7f"))
    return b'"%s"' % "\x7f".join(plain).encode("ascii")


# ---- reading --------------------------------------------------------------------------------------------------------


def records(deploy: DeployPath, current: str | None) -> list[Record]:
    """What Deployer's records tell of the past, oldest first; `current` is the release that the link leads to.

    Raises OSError, RelfsError if they are there and cannot be read.
    """
    found = _read_log(deploy)
    if found is None:
        return []
    name, contents = found
    entries = _entries(name, contents)
    logged = {entry.release for entry in entries}
    marks = {name: _mark_of(deploy, name) for name in _marked(deploy) if name in logged}
    return activations(entries, current, being_made(deploy), marks, f"{DIRECTORY}/{name}")


def made(deploy: DeployPath) -> dict[str, float]:
    """When each release that the log names was first made, in seconds since the epoch: also those that were never
    current. Raises as records()."""
    found = _read_log(deploy)
    first: dict[str, float] = {}
    for entry in _entries(*found) if found is not None else ():
        first.setdefault(entry.release, entry.created)
    return first


def _entries(name: str, contents: files.Contents) -> list[Entry]:
    read = parse if name == LOG else parse_old
    return [entry for line in _lines(contents.data)[-_MAX_LINES:] if (entry := read(line)) is not None]


def activations(
    entries: Sequence[Entry], current: str | None, unfinished: str | None, marks: Mapping[str, Mark], source: str
) -> list[Record]:
    """What `entries` and `marks` tell of what was current. See "What the log tells"."""
    own = [number for number, entry in enumerate(entries) if entry.release == current]
    last = own[-1] if own else len(entries)
    story = _Story(marks, source)
    for number, entry in enumerate(entries):
        if entry.release == unfinished != current or (number > last and entry.release not in marks):
            continue
        story.roll_back(until=entry.created)
        story.switch(entry)
    story.roll_back(until=math.inf)
    if current is not None and own and story.told[-1].action == "rollback":
        story.end_at(current)
    return story.told


class _Story:
    """Puts switches and rollbacks in order. `told` is the outcome."""

    def __init__(self, marks: Mapping[str, Mark], source: str) -> None:
        self.told: list[Record] = []
        self._marks = marks
        self._source = source
        self._made: dict[str, None] = {}  # in the order of their last lines
        self._left: set[str] = set()

    def switch(self, entry: Entry) -> None:
        self._made.pop(entry.release, None)
        self._made[entry.release] = None
        key = f"{entry.created!r} {entry.release}"
        self.told.append(Record(entry.created, "switch", entry.release, entry.user, self._source, key))

    def roll_back(self, *, until: float) -> None:
        """Tell of the releases made so far that were left by then, in the order of leaving."""
        due = [name for name in self._marks if name in self._made and name not in self._left]
        if not due:
            return
        order = list(self._made)
        leaving = sorted((self._left_at(name), -order.index(name), name) for name in due)
        for moment, place, name in leaving:
            if moment > until:
                break
            self._left.add(name)
            to = next((release for release in reversed(order[:-place]) if release not in self._left), None)
            if to is not None:
                self.told.append(self._rollback(name, to, moment))

    def _left_at(self, name: str) -> float:
        """-infinite, which is at once, if nobody knows when."""
        moment = self._marks[name].time
        return moment if moment is not None else -math.inf

    def _rollback(self, left: str, to: str, moment: float) -> Record:
        known = self.told[-1].time if math.isinf(moment) else moment
        source = f"{RELEASES}/{left}/{BAD_MARKER}"
        return Record(known, "rollback", to, self._marks[left].user, source, f"{moment!r} {left}", left)

    def end_at(self, release: str) -> None:
        """The last rollback led to what is current; Deployer can be told to go elsewhere than it would by itself."""
        self.told[-1] = replace(self.told[-1], release=release)


def _read_log(deploy: DeployPath) -> tuple[str, files.Contents] | None:
    """The log that is in use, by name: the old one only where there is no other."""
    try:
        with files.below(deploy.fd, DIRECTORY) as directory:
            for name in (LOG, OLD_LOG):
                contents = files.read_end(directory, name)
                if contents is not None:
                    return name, contents
    except OSError as error:
        if not files.is_absent(error):
            raise
    return None


def _lines(data: bytes) -> list[bytes]:
    """With their ends: bytes.splitlines() would also split at a carriage return."""
    return [line + b"\n" for line in data.removesuffix(b"\n").split(b"\n")] if data else []


def _marked(deploy: DeployPath) -> list[str]:
    return [release.name for release in deploy.releases() if deploy.is_marked_bad(release.name)]


def _mark_of(deploy: DeployPath, name: str) -> Mark:
    text = None
    try:
        with files.below(deploy.fd, RELEASES, name) as directory:
            text = files.read_start(directory, BAD_MARKER, _SMALL)
    except OSError as error:
        if not files.is_absent(error):
            raise
    return parse_mark(text or b"")


def being_made(deploy: DeployPath) -> str | None:
    """The release that Deployer is making, or was when it failed: where the link `release` leads."""
    try:
        return deploy.target(os.readlink(UNFINISHED_LINK, dir_fd=deploy.fd)).release
    except OSError:
        return None


# ---- writing --------------------------------------------------------------------------------------------------------


def writes(deploy: DeployPath, event: Event, history: History) -> Iterator[files.Write]:
    """What there is to write, now that relfs has made `event.release` current. Raises OSError, RelfsError."""
    found = _read_log(deploy)
    if found is None or event.release is None:
        return
    name, _ = found
    current = event.release
    if deploy.is_marked_bad(current):
        yield f"{RELEASES}/{current}/{BAD_MARKER}", partial(_clear_mark, deploy, current)
    left = event.origin
    if event.action == "rollback" and left is not None and left != current and is_release_name(left):
        yield f"{RELEASES}/{left}/{BAD_MARKER}", partial(_mark, deploy, left, event)
    yield f"{DIRECTORY}/{name}", partial(_update_log, deploy, event, current, history)
    if name == LOG and current.isascii() and current.isdecimal() and len(current) <= _NUMBER_DIGITS:
        yield f"{DIRECTORY}/{LATEST}", partial(_raise_latest, deploy, int(current))


def _clear_mark(deploy: DeployPath, name: str) -> None:
    with files.below(deploy.fd, RELEASES, name) as directory:
        files.remove(directory, BAD_MARKER)


def _mark(deploy: DeployPath, name: str, event: Event) -> None:
    try:
        with files.below(deploy.fd, RELEASES, name) as directory:
            files.overwrite(directory, BAD_MARKER, compose_mark(event.time, event.actor.user))
    except FileNotFoundError:
        pass  # the release that was left is gone, and nobody can go back to it


def _raise_latest(deploy: DeployPath, number: int) -> None:
    with files.below(deploy.fd, DIRECTORY) as directory:
        if number > _php_intval(files.read_start(directory, LATEST, _SMALL) or b""):
            files.overwrite(directory, LATEST, b"%d\n" % number)


def last_number(deploy: DeployPath) -> int:
    """The number that Deployer gave last; 0 if it has given none, or does not tell."""
    try:
        with files.below(deploy.fd, DIRECTORY) as directory:
            return _php_intval(files.read_start(directory, LATEST, _SMALL) or b"")
    except OSError:
        return 0


def _php_intval(text: bytes) -> int:
    digits = text.strip()
    length = next((at for at, byte in enumerate(digits) if not 0x30 <= byte <= 0x39), len(digits))
    return int(digits[: min(length, _NUMBER_DIGITS + 1)] or b"0")


def _update_log(deploy: DeployPath, event: Event, current: str, history: History) -> None:
    existing = [release.name for release in deploy.releases()]
    usable = [name for name in existing if not deploy.is_marked_bad(name)]
    back = next(ways_back(deploy, history, current), None)
    with files.below(deploy.fd, DIRECTORY) as directory:
        for _ in range(_ATTEMPTS):
            found = _read_log(deploy)
            if found is None:
                return
            name, contents = found
            lines = _lines(contents.data)
            if name == OLD_LOG:
                new = with_old_lines(lines, current, back, existing, event.time)
            else:
                new = with_lines(lines, current, back, usable, being_made(deploy), partial(_new_line, deploy, event))
            if _put(directory, name, contents, lines, new):
                return
    raise OSError(None, "it keeps being changed by others")


def _put(directory: int, name: str, contents: files.Contents, old: Sequence[bytes], new: Sequence[bytes]) -> bool:
    """Write what is new: in a new file, or where that cannot be, at the end if that is all. False: the log has changed
    meanwhile."""
    grown = list(new[: len(old)]) == list(old)
    if grown and len(new) == len(old):
        return True
    try:
        if contents.complete:
            return files.replace(directory, name, contents.data, b"".join(new))
    except PermissionError:
        if not grown:
            raise
    if not grown:
        raise OSError(None, f"it is longer than {files.MAX_BYTES} bytes, and is not rewritten")
    for line in new[len(old) :]:
        files.append(directory, name, line)
    return True


def _new_line(deploy: DeployPath, event: Event, release: str) -> bytes:
    return compose(event.time, release, event.actor.user, revision(deploy, release) or "HEAD")


def rollback_of(names: Sequence[str | None], current: str, usable: Collection[str]) -> str | None:
    """Where `dep rollback` goes (Deployer 7), if the log tells `names` (None: an unreadable line); `usable` exist and
    are not marked bad."""
    reversed_names = [name for name in reversed(names[-_WINDOW:]) if name is not None]
    if current not in reversed_names:
        return None
    before = reversed_names[reversed_names.index(current) + 1 :]
    return next((name for name in before if name != current and name in usable), None)


def with_lines(
    lines: Sequence[bytes],
    current: str,
    back: str | None,
    usable: Collection[str],
    unfinished: str | None,
    new_line: Callable[[str], bytes],
) -> list[bytes]:
    """The lines of releases_log that make `dep rollback` lead from `current` to `back`. If that is None, relfs knows of
    nowhere to go, and Deployer may know better; but not to `unfinished`, which is being made.

    `usable` as in rollback_of(); `new_line` composes the line of a release.
    """
    new = list(lines)
    entries = [parse(line) for line in new]
    names = [entry.release if entry is not None else None for entry in entries]
    for name in (back, current):
        if name is not None and name not in names:
            new.append(new_line(name))
            names.append(name)
    leads = rollback_of(names, current, usable)
    if leads == back or (back is None and leads != unfinished):
        return new
    if back is None:
        new.append(new.pop(_last(names, unfinished)))
        return new
    *repeated, own = [line for line, name in zip(new, names, strict=True) if name == current]
    rest = [(line, name) for line, name in zip(new, names, strict=True) if name != current]
    at = _last((name for _, name in rest), back)
    if len(rest) - at + 1 > _WINDOW:  # too far up for Deployer to see
        rest.append(rest.pop(at))
        at = len(rest) - 1
    others = [line for line, _ in rest]
    return [*others[:at], *repeated, others[at], own, *others[at + 1 :]]


def with_old_lines(
    lines: Sequence[bytes], current: str, back: str | None, existing: Collection[str], now: float
) -> list[bytes]:
    """The lines of the old log that make `dep rollback` lead to `back`: to the second one, from the end, that exists,
    repetitions not counted, whatever is current (Deployer 4 to 6)."""
    new = list(lines)
    names = [entry.release for line in lines[-_WINDOW:] if (entry := parse_old(line)) is not None]
    steps = [name for name in dict.fromkeys(reversed(names)) if name in existing]
    wanted = [name for name in (current, back) if name is not None]
    if steps[: len(wanted)] != wanted:
        new += [compose_old(now, name) for name in reversed(wanted)]
    return new


def _last(names: Iterable[str | None], wanted: str | None) -> int:
    return max(number for number, name in enumerate(names) if name == wanted)
