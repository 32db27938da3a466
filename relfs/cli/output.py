"""How relfsctl shows things: tables for people, tab-separated lines for pipes, JSON for programs."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from typing import Any

import click


def show_json(document: Any) -> None:
    """One document on one line."""
    click.echo(json.dumps(document))


def show_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Aligned, under a header, on a terminal; one line a row, separated by tabs, in a pipe."""
    if not sys.stdout.isatty():
        for row in rows:
            click.echo("\t".join(_plain(cell) for cell in row))
        return
    table = [[_plain(cell) for cell in row] for row in (header, *rows)]
    widths = [max(len(row[column]) for row in table) for column in range(len(header))]
    for number, row in enumerate(table):
        line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        click.echo(click.style(line, bold=True) if number == 0 else line)


def show_fields(fields: Sequence[tuple[str, str]]) -> None:
    """Names and values, a line each."""
    for name, value in fields:
        if sys.stdout.isatty():
            click.echo(f"{click.style(name.ljust(12), bold=True)}  {_plain(value)}")
        else:
            click.echo(f"{name}\t{_plain(value)}")


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


def _plain(cell: str) -> str:
    """Names may hold bytes that are no text, and control characters that a terminal would obey."""
    return "".join(c if c.isprintable() else f"\\x{ord(c) & 0xFF:02x}" for c in cell)
