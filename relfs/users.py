"""What users are called, as far as that can be found out in time.

Names come from wherever the administrator wants them (nsswitch.conf(5)): a directory service may be slow, or gone, and
getpwuid(3) waits for it. For relfs a name is decoration: what may be done is decided by numbers. So it is asked for in
a thread, for a second at the most; who is not known by then goes by his number. A machine may stand still for longer
than that (a guest that its host does not run), and then nobody had the time to answer: so it is waited for twice, half
as long each. Standard library only.
"""

from __future__ import annotations

import grp
import pwd
import queue
import threading
import time
from contextlib import suppress

_SECONDS = 1.0
_WAITS = 2
_FRESH_SECONDS = 60.0

_asking = threading.BoundedSemaphore(4)
"""How many may ask at a time; while so many get no answer, nobody waits for one."""

_known: dict[int, tuple[str, float]] = {}
"""Names and numbers that were told, by uid, and until when they are (monotonic seconds). GUARDED BY the interpreter:
each is put and looked up in one step."""


def user_name(uid: int) -> str:
    """The login name of `uid`, or its number. Waits for a second at the most."""
    known = known_name(uid)
    if known is not None or not _asking.acquire(blocking=False):
        return known if known is not None else str(uid)
    answers: queue.SimpleQueue[str] = queue.SimpleQueue()
    try:
        threading.Thread(target=_ask, args=(uid, answers), name="relfs user", daemon=True).start()
    except RuntimeError:  # no more threads
        _asking.release()
        return str(uid)
    for _ in range(_WAITS):
        with suppress(queue.Empty):
            return answers.get(timeout=_SECONDS / _WAITS)
    return _know(uid, str(uid))


def known_name(uid: int) -> str | None:
    """What user_name() has told lately; None if it would have to ask."""
    name, until = _known.get(uid, ("", 0.0))
    return name if time.monotonic() < until else None


def gid_of(key: str, group: object) -> int:
    """The number of the group that the configuration names under `key`, on which rights depend: this waits for it.
    Raises ValueError."""
    if not isinstance(group, str):
        raise ValueError(f"{key} must be the name of a group")  # noqa: TRY004 (a fault of the file's content)
    try:
        return grp.getgrnam(group).gr_gid
    except (KeyError, ValueError):
        raise ValueError(f"{key}: there is no group {group!r}") from None


def _ask(uid: int, answers: queue.SimpleQueue[str]) -> None:
    """Runs in a thread."""
    try:
        name = pwd.getpwuid(uid).pw_name
    except (KeyError, OverflowError, OSError):
        name = str(uid)
    finally:
        _asking.release()
    answers.put(_know(uid, name))


def _know(uid: int, name: str) -> str:
    _known[uid] = (name, time.monotonic() + _FRESH_SECONDS)
    return name
