"""How relfsctl shows things: tables for people, tab-separated lines for pipes, JSON for programs."""

from __future__ import annotations

import errno
import json
import os
import sys
import time
from collections.abc import Sequence
from typing import Any, TextIO

import click

from relfs.errors import RelfsError, reason

_NOBODY_READS = frozenset({errno.EPIPE, errno.EIO})
"""Of a pipe, and of a terminal that was closed."""


def say(text: str) -> None:
    """A line for people. A reader who has seen enough and closed the pipe is no failure of what was done.

    Raises RelfsError, as all here do, where it cannot be written."""
    _echo(plain(text))


def say_path(path: str) -> None:
    """A path on a line of its own: for people as say() has it, for a program byte by byte."""
    _echo(plain(path) if sys.stdout.isatty() else os.fsencode(path))


def say_error(text: str) -> None:
    """A line on standard error: what is not the command's own answer. That nobody is left to read it, the terminal or
    the pipe being closed, changes nothing of what is being done: no hook has failed by that."""
    try:
        click.echo(plain(text), err=True)
    except OSError:
        _forget(sys.stderr)


def show_json(document: Any) -> None:
    """One document on one line."""
    _echo(json.dumps(document))


def show_table(header: Sequence[str], rows: Sequence[Sequence[str]], *, always_header: bool = False) -> None:
    """Aligned under a header on a terminal; a line a row, separated by tabs, in a pipe (with the header on request)."""
    if not sys.stdout.isatty():
        for row in (header, *rows) if always_header else rows:
            _echo("\t".join(plain(cell) for cell in row))
        return
    table = [[plain(cell) for cell in row] for row in (header, *rows)]
    widths = [max(len(row[column]) for row in table) for column in range(len(header))]
    for number, row in enumerate(table):
        line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        _echo(click.style(line, bold=True) if number == 0 else line)


def show_fields(fields: Sequence[tuple[str, str]]) -> None:
    """Names and values, a line each."""
    for name, value in fields:
        if sys.stdout.isatty():
            _echo(f"{click.style(name.ljust(12), bold=True)}  {plain(value)}")
        else:
            _echo(f"{name}\t{plain(value)}")


def moment(seconds: float | None) -> str:
    """Local time, to the second; empty where there is none."""
    return "" if seconds is None else time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


def size(count: int) -> str:
    """Bytes, in the unit that fits."""
    amount = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if amount < 1024:
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1024
    return f"{amount:.1f} TiB"


def plain(text: str) -> str:
    """Names may hold bytes that are no text, and controls that a terminal would obey: these are spelled out."""
    return "".join(character if character.isprintable() else _spelled(character) for character in text)


def _spelled(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # a byte that is no text (os.fsdecode)
        return f"\\x{code - 0xDC00:02x}"
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def _echo(line: str | bytes) -> None:
    try:
        click.echo(line)
    except OSError as error:
        _forget(sys.stdout)
        if error.errno not in _NOBODY_READS:
            raise RelfsError(f"standard output: cannot be written: {reason(error)}; all else was done") from error
        sys.exit(0)


def _forget(stream: TextIO) -> None:
    """Let what Python flushes at its end go nowhere: it would fail, and be the exit status."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
