"""Running one of the two commands: what went wrong becomes one line on standard error, and the exit status."""

from __future__ import annotations

import os
import sys
from typing import NoReturn

import click

from relfs.cli.output import say_error
from relfs.errors import EXIT_INTERRUPTED, RelfsError


def run_command(name: str, command: click.Command) -> NoReturn:
    """Run `command`, and exit as the contract says."""
    _open_standard_streams()
    try:
        status = command(standalone_mode=False)
    except RelfsError as error:
        say_error(f"{name}: {error}")
        status = error.status
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        status = error.exit_code
    except click.ClickException as error:
        shows = " ".join((name, *_command_of(error), "--help"))
        say_error(f"{name}: {error.format_message().rstrip('.')}; `{shows}` shows how")
        status = error.exit_code
    except (click.Abort, KeyboardInterrupt):
        status = EXIT_INTERRUPTED
    sys.exit(status if isinstance(status, int) else 0)


def _command_of(error: click.ClickException) -> tuple[str, ...]:
    """The command of ours that was used wrongly, if it came to that, after those that it is one of."""
    context = error.ctx if isinstance(error, click.UsageError) else None
    names: list[str] = []
    while context is not None and context.parent is not None:
        names.insert(0, context.info_name or "")
        context = context.parent
    return tuple(names)


def _open_standard_streams() -> None:
    """Whoever started us may have closed them (`>&-`): then a file of ours would have the number, and be printed into.
    Each gets the lowest number that is free (open(2)), which is its own."""
    sys.stdin = sys.stdin or open(os.devnull)  # noqa: SIM115 (open to the end)
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115
