"""The options of commands that make a release: what it is called, and how it is made from its source."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

_OPTIONS = (
    click.option("--name", metavar="NAME", help="What to call it.  [default: the next number, or the time]"),
    click.option("--link", is_flag=True, help="Share unchanged files with the current release by hard links."),
    click.option("--checksum", is_flag=True, help="Find out by their bytes, not size and time, which are unchanged."),
    click.option(
        "--strip", metavar="N", type=click.IntRange(0, 100), default=0,
        help="Leave out N directories of archives' names.",
    ),
    click.option("--repository", metavar="DIR", help="Where git:TREEISH is.  [default: the working directory]"),
)  # fmt: skip


def source_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """A decorator that adds them."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command
