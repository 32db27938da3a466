"""What relfs tells a person when it cannot do as asked: one line, and the exit status of the contract.

Nothing here knows who will print it. A message names the thing first and ends with what to do about it.
"""

from __future__ import annotations

import errno

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_REFUSED = 3
EXIT_LOCKED = 4


class RelfsError(Exception):
    """The command failed; nothing was changed unless the message says so."""

    status = EXIT_FAILED


class UsageError(RelfsError):
    """The words of the command are wrong."""

    status = EXIT_USAGE


class RefusedError(RelfsError):
    """A check refused it. `number` is the errno with which a file system says the same to a tool."""

    status = EXIT_REFUSED

    def __init__(self, message: str, number: int = errno.EPERM) -> None:
        super().__init__(message)
        self.number = number


class LockedError(RelfsError):
    """Somebody else is changing the deploy path and did not finish in time."""

    status = EXIT_LOCKED


_BY_STATUS: dict[int, type[RelfsError]] = {
    cls.status: cls for cls in (RelfsError, UsageError, RefusedError, LockedError)
}


def error_for(status: int, message: str) -> RelfsError:
    """The error that carries `status`: how one that crossed the control socket becomes itself again."""
    return _BY_STATUS.get(status, RelfsError)(message)


def reason(error: OSError) -> str:
    """What the operating system said, without the errno and paths that OSError's own text adds."""
    return error.strerror or str(error)
