"""Who is pinned to which release: also while nothing is mounted, for then processes still bear the marks that the last
mount has given them, and the next one lets them see the same again."""

from __future__ import annotations

import os

from relfs.errors import RelfsError, reason
from relfs.journal import command_line
from relfs.layout import CURRENT, DeployPath
from relfs.processes import process, user_of
from relfs.releases.inuse import Use, Uses
from relfs.users import user_name
from relfs.views.bearers import bearers, take_census
from relfs.views.pins import Pin, pins_on_disk


def with_pinned(uses: Uses, pins: list[Pin], path: str) -> Uses:
    """`uses`, and the processes that are pinned to one of its releases, which they know by `path`. Blocks."""
    found = bearers({pin.mark for pin in pins})
    of = dict(uses.of)
    for pin in pins:
        if pin.release in of:
            pinned = [_use(pid, path) for pid in found[pin.mark] or [pin.pid]]
            of[pin.release] = (*of[pin.release], *pinned)
    return Uses(of, uses.unseen, uses.blind)


def with_pinned_before(uses: Uses, deploy: DeployPath) -> Uses:
    """The same, of the pins that the last mount of `deploy` knew, as far as anybody bears their marks. Blocks. Raises
    RelfsError if there is no telling."""
    try:
        pins = living(pins_on_disk(deploy.state_fd)) if deploy.state_fd is not None else []
    except OSError as error:
        raise RelfsError(f"{deploy.state_path}: who is pinned cannot be seen: {reason(error)}") from error
    return with_pinned(uses, pins, f"{deploy.path}/{CURRENT}") if pins else uses


def living(pins: list[Pin]) -> list[Pin]:
    """Those that somebody may still bear the mark of. Raises OSError if there are no descriptors left."""
    marks = {pin.mark for pin in pins if not _lives(pin)}
    census = take_census(marks)
    for witness in census.witnesses.values():
        os.close(witness.pidfd)
    over = marks - census.witnesses.keys() if census.complete else set()
    return [pin for pin in pins if pin.mark not in over]


def _lives(pin: Pin) -> bool:
    """Whether the process that it was made for does, and counts as pinned."""
    now = process(pin.pid)
    return now is not None and now.alive and now.start == pin.start


def _use(pid: int, path: str) -> Use:
    found = process(pid)
    return Use(pid, found.start if found else 0, user_name(user_of(pid)), command_line(pid), "pinned", path)
