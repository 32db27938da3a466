"""What relfs tells a person when it cannot do as asked: one line, and the exit status of the contract.

Nothing here knows who will print it. A message names the thing first and ends with what to do about it.
"""

from __future__ import annotations

import errno

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_REFUSED = 3
EXIT_LOCKED = 4
EXIT_INTERRUPTED = 130  # as a shell has it: 128 and SIGINT

_MESSAGE_MAX = 1000


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


def one_line(message: str) -> str:
    """`message` on one line, whatever names are in it, and not too long: what would end a line or steer a terminal is
    spelled out. Bytes that are no text stay as os.fsdecode() has them."""
    shown = "".join(each if each.isprintable() or _is_surrogate(each) else _spelled(each) for each in message)
    return shown if len(shown) <= _MESSAGE_MAX else f"{shown[: _MESSAGE_MAX - 3]}..."


def _is_surrogate(character: str) -> bool:
    return 0xD800 <= ord(character) <= 0xDFFF


def _spelled(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def reason(error: OSError) -> str:
    """What the operating system said, without the errno and paths that OSError's own text adds."""
    return error.strerror or str(error)
