"""The run of a race: which methods, in which order, over what, and what came of each."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field, replace

from relfs.errors import UsageError
from relfs.race.children import (
    Child,
    ChildError,
    ReaderCount,
    SwapperCount,
    reader_count,
    start_reader,
    start_swapper,
    swapper_count,
)
from relfs.race.methods import Method, legacy_methods
from relfs.race.mount import Mount, MountError
from relfs.race.scratch import Scratch
from relfs.race.signals import HeldSignals, Interrupted

# -P: what lies in the working directory is none of ours, and must not be imported.
_OURS = (sys.executable, "-P", "-m")

_READERS_MAX = 64
_SECONDS_MAX = 3600.0


@dataclass(frozen=True)
class Row:
    """What one method did.

    `swaps` are those whose command said that it was done, after which a fresh read saw the new release;
    `swap_failures` are the others. `reads` are attempts; `failed` of them failed, as `errors` says by name of
    errno; `neither` of them saw what is in neither release. `note` says why a row is empty or not to be
    trusted, or what the last failing swap said.
    """

    method: str
    mounted: bool
    swaps: int = 0
    swap_failures: int = 0
    reads: int = 0
    failed: int = 0
    neither: int = 0
    errors: tuple[tuple[str, int], ...] = ()
    note: str = ""


@dataclass(frozen=True)
class RaceResult:
    """All rows, in order. `mount_error` says why mounted rows are missing, if they are."""

    rows: list[Row]
    mount_error: str | None


def _mount_command() -> tuple[str, ...]:
    # Most hosts do not let an ordinary user mount for others, and the readers are the same user.
    options = () if os.geteuid() == 0 else ("-o", "noallow_other")
    return (*_OURS, "relfs.cli.relfs", "-f", *options)


@dataclass(frozen=True)
class Commands:
    """How relfs is run: `mount` gets the deploy path as its last word; `switch` gets the release's name, and
    every `{path}` in it is replaced by the deploy path."""

    mount: tuple[str, ...] = field(default_factory=_mount_command)
    switch: tuple[str, ...] = (*_OURS, "relfs.cli.relfsctl", "-C", "{path}", "switch")


def run_race(
    seconds: float,
    readers: int,
    parent: str | None,
    mounted: bool,
    on_row: Callable[[Row], None],
    commands: Commands | None = None,
) -> RaceResult:
    """Run every method for `seconds` against `readers` processes; `on_row` gets each row when it is there.

    The scratch directory is made in `parent` (None: where temporary files go), so that its file system is the
    one measured. With `mounted`, everything is done again over a relfs mount, after `relfsctl switch`; if
    there can be no mount, the plain rows are returned all the same. Afterwards, and after Ctrl-C at any
    moment, no process, mount or directory is left; SIGINT, SIGTERM and SIGHUP are delivered when that is so.
    Raises UsageError for numbers that make no sense, RelfsError if the scratch directory cannot be made or
    removed.
    """
    if not 1 <= readers <= _READERS_MAX:
        raise UsageError(f"{readers}: not a number of readers; 1 to {_READERS_MAX}")
    if not 0 < seconds <= _SECONDS_MAX:
        raise UsageError(f"{seconds}: not a time for a method; up to {_SECONDS_MAX:.0f} seconds")
    result = None
    with HeldSignals() as held:
        try:
            with Scratch(parent) as scratch:
                race = _Race(seconds, readers, scratch, held, on_row, commands or Commands())
                result = race.run(mounted)
        except Interrupted:
            pass
    if result is None:  # somebody's own handler took the signal and went on
        raise KeyboardInterrupt
    return result


class _Race:
    """One race. `_rows` only grows."""

    def __init__(
        self,
        seconds: float,
        readers: int,
        scratch: Scratch,
        held: HeldSignals,
        on_row: Callable[[Row], None],
        commands: Commands,
    ) -> None:
        self._seconds = seconds
        self._readers = readers
        self._scratch = scratch
        self._held = held
        self._on_row = on_row
        self._commands = commands
        self._rows: list[Row] = []

    def run(self, mounted: bool) -> RaceResult:
        methods = legacy_methods(self._scratch.deploy, self._scratch.path)
        for method in methods:
            self._add(self._row(method, mounted=False))
        error = self._run_mounted(methods) if mounted else None
        return RaceResult(self._rows, error)

    def _run_mounted(self, methods: list[Method]) -> str | None:
        """Why it could not be done, or not to the end."""
        switch = tuple(word.replace("{path}", self._scratch.deploy) for word in self._commands.switch)
        try:
            with Mount(self._scratch, self._commands.mount, self._held) as mount:
                for method in (Method("relfsctl switch", switch), *methods):
                    row = self._row(method, mounted=True)
                    self._add_checked(row, mount)
        except MountError as error:
            return str(error)
        return None

    def _add_checked(self, row: Row, mount: Mount) -> None:
        try:
            mount.check()
        except MountError as error:
            self._add(replace(row, note=str(error)))
            raise
        self._add(row)

    def _add(self, row: Row) -> None:
        self._held.check()
        self._rows.append(row)
        self._on_row(row)

    def _row(self, method: Method, *, mounted: bool) -> Row:
        row = Row(method.name, mounted, note=method.missing)
        if method.missing:
            return row
        with ExitStack() as stack:
            try:
                return self._measured(row, method, stack)
            except ChildError as error:
                return replace(row, note=f"not measured: {error}")

    def _measured(self, row: Row, method: Method, stack: ExitStack) -> Row:
        path, log = self._scratch.deploy, self._scratch.log
        readers = [stack.enter_context(start_reader(path, self._held, log)) for _ in range(self._readers)]
        for reader in readers:
            reader.wait_ready()
        swapper = stack.enter_context(start_swapper(path, method.command, self._held, log))
        swapper.wait_ready()
        # Whoever says something before it is told to stop has failed, and is found out below.
        self._held.wait([child.output for child in (swapper, *readers)], self._seconds)
        return _filled(row, *_stopped(swapper, readers))


def _stopped(swapper: Child, readers: list[Child]) -> tuple[SwapperCount, list[ReaderCount | ChildError]]:
    """What they counted. The swapper stops first, so that its every swap was watched.

    A reader that says nothing is an answer too: its last read never ended.
    """
    swapper.stop()
    swaps = swapper_count(swapper)
    for reader in readers:
        reader.stop()
    counts: list[ReaderCount | ChildError] = []
    for reader in readers:
        try:
            counts.append(reader_count(reader))
        except ChildError as error:
            counts.append(error)
    return swaps, counts


def _filled(row: Row, swaps: SwapperCount, counts: list[ReaderCount | ChildError]) -> Row:
    errors: Counter[str] = Counter()
    notes = [swaps.error] if swaps.error else []
    reads = neither = 0
    for count in counts:
        if isinstance(count, ChildError):
            reads += 1
            errors["no answer"] += 1
            notes.append(str(count))
        else:
            reads += count.reads
            neither += count.neither
            errors.update(dict(count.failures))
    return replace(
        row,
        swaps=swaps.swaps,
        swap_failures=swaps.failures,
        reads=reads,
        failed=errors.total(),
        neither=neither,
        errors=tuple(sorted(errors.items())),
        note="; ".join(notes),
    )
