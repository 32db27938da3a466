"""`relfsctl lock`: the deploy lock, held by whoever runs this, or while a command runs."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Callable
from types import FrameType

import click

from relfs.cli.holding import take_lock
from relfs.cli.output import moment, say, show_json
from relfs.cli.session import Session, pass_session
from relfs.errors import RelfsError, UsageError, reason

_NOT_FOUND = 127
_NOT_RUNNABLE = 126


@click.command(
    "lock",
    epilog='\b\nExample:\n  relfsctl lock --reason "database migration"\n  relfsctl lock -- ./deploy.sh',
)
@click.option("--reason", default="", metavar="TEXT", help="What to tell those who are stopped by it.")
@click.option(
    "--ttl", type=float, metavar="SECONDS",
    help="Hold it for so long, whoever has ended by then.",
)  # fmt: skip
@click.argument("words", nargs=-1, metavar="[-- COMMAND...]")
@pass_session
def command(session: Session, reason: str, ttl: float | None, words: tuple[str, ...]) -> int:
    """Let nobody but the caller make a release current: neither with relfsctl, nor with a tool that swaps the link.

    The lock is held by the process that runs this, usually a shell, with all that it starts, and ends with it, or with
    `relfsctl unlock`. With COMMAND, it is held for that, while it runs; the exit status is the command's.
    """
    if words and ttl is not None:
        raise UsageError("--ttl: a lock that is held for a command ends with it; leave one of them out")
    lock = take_lock(session.place(), own=bool(words), why=reason, ttl=ttl)
    if words:
        return _run(words)
    if session.json:
        show_json(lock)
    else:
        until = f"until {moment(lock['until'])}" if lock["until"] else f"until process {lock['pid']} ends"
        say(f"the deploy lock is yours {until}, or `relfsctl unlock`")
    return 0


def _run(words: tuple[str, ...]) -> int:
    """The command gets Ctrl-C from the terminal as we do, and what we are told to end with, be it before it has begun;
    we end when it has."""
    begun: list[subprocess.Popen[bytes]] = []
    early: list[int] = []

    def hand_on(number: int, _frame: FrameType | None) -> None:
        if begun:
            begun[0].send_signal(number)
        else:
            early.append(number)

    _instead_of(signal.SIGINT, lambda _number, _frame: None)  # and not SIG_IGN, which the command would inherit
    for each in (signal.SIGTERM, signal.SIGHUP):
        _instead_of(each, hand_on)
    begun.append(_started(words))
    for number in early:
        begun[0].send_signal(number)
    status = begun[0].wait()
    return status if status >= 0 else 128 - status


def _started(words: tuple[str, ...]) -> subprocess.Popen[bytes]:
    """Raises RelfsError."""
    try:
        return subprocess.Popen(words)
    except OSError as error:
        failure = RelfsError(f"{words[0]}: cannot be run: {reason(error)}")
        failure.status = _NOT_FOUND if isinstance(error, FileNotFoundError) else _NOT_RUNNABLE
        raise failure from error


def _instead_of(number: signal.Signals, do: Callable[[int, FrameType | None], None]) -> None:
    """What is ignored, as nohup(1) has it, stays so."""
    if signal.getsignal(number) != signal.SIG_IGN:
        signal.signal(number, do)
