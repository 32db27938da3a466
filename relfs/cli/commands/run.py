"""`relfsctl run`: a command that sees one release until it ends."""

from __future__ import annotations

import os
import signal

import click

from relfs.cli.pinning import pin_self
from relfs.cli.session import Session, pass_session
from relfs.errors import RelfsError, UsageError, reason

_NOT_FOUND = 127
_NOT_RUNNABLE = 126
_IGNORED_BY_PYTHON = ("SIGPIPE", "SIGXFSZ")


@click.command(
    "run",
    context_settings={"allow_interspersed_args": False},  # what follows COMMAND is COMMAND's
    epilog="\b\nExample:\n  relfsctl run -- php artisan queue:work\n  relfsctl run --release 41 -- ./migrate",
)
@click.option("--release", metavar="RELEASE", help="What it is to see.  [default: what it sees now]")
@click.argument("words", nargs=-1, required=True, metavar="[--] COMMAND...")
@pass_session
def command(session: Session, release: str | None, words: tuple[str, ...]) -> None:
    """Run COMMAND such that it, and all that it starts, sees one release as `current` until the last of them ends,
    whatever is switched to meanwhile. A pinned release is never pruned.

    It is run in the place of relfsctl itself: with its process id, for whoever waits for that or sends it signals. So
    the exit status is COMMAND's; 127 if there is no such command, 126 if it cannot be run; and relfsctl's own (see
    `relfsctl --help`) if it cannot be pinned.
    """
    if session.json:
        raise UsageError("--json: `run` prints nothing of its own")
    pin_self(session.place(), release)
    _become(words)


def _become(words: tuple[str, ...]) -> None:
    """Raises RelfsError, with the status that a shell has for it, if it cannot be run."""
    for name in _IGNORED_BY_PYTHON:
        signal.signal(getattr(signal, name), signal.SIG_DFL)  # what is ignored stays so (execve(2))
    try:
        os.execvp(words[0], words)
    except OSError as error:
        failure = RelfsError(f"{words[0]}: cannot be run: {reason(error)}")
        failure.status = _NOT_FOUND if isinstance(error, FileNotFoundError) else _NOT_RUNNABLE
        raise failure from error
