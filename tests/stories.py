"""What is done to a deploy path, for replay.py to cut off: a story has steps, each of which somebody asks for and is
told of, and after each of them something is current.

Told by the real commands, or by a tool on a real mount, and recorded as recording.py does. What must be found after a
power cut is in verdict.py.
"""

from __future__ import annotations

import os
import shlex
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from disorder import disordered_command
from mounting import Mounts, environment, relfs_command, relfsctl_command
from recording import ACKNOWLEDGEMENT, Acknowledged, Event, MadeDirectory, Opened, Wrote, recording
from replay import Disk
from sandbox import activations_of, add_release

from relfs.layout import CURRENT, RELEASES, open_deploy_path
from relfs.pointer import Pointer
from relfs.records import capistrano, deployer

BEFORE = "not a deploy path"
"""What is current before `relfsctl init`: `current` may be a real directory."""

NAMES = ("4", "42", "421")
"""Each is the beginning of the next, so that a text that is cut short leads somewhere."""

TIMES = ("20260101000000", "20260102000000", "20260103000000")


@dataclass(frozen=True)
class Story:
    """`disk` is the deploy path as it was before the `events`; `steps` what was current then, and after each change.
    `history` is what the journal tells in the end: action and release. `links` False: the disk can have none."""

    disk: Disk
    events: list[Event]
    steps: tuple[str | None, ...]
    history: tuple[tuple[str, str | None], ...]
    links: bool = True


Teller = Callable[[Path, str | None], Story]
"""Makes a story in an empty directory; in a disorder, if it is told its name."""


# ---- without a mount ------------------------------------------------------------------------------------------------


def switches(place: Path, disorder: str | None = None) -> Story:
    """Two switches: the second meets what the first left unsynced."""
    app = _known(_app(place, NAMES))
    return _offline(app, [["switch", name] for name in NAMES[1:]], NAMES, disorder, fresh=NAMES[1:])


def switches_without_links(place: Path, disorder: str | None = None) -> Story:
    """The same on a file system that has no symbolic links, as vfat."""
    app = _known(_app(place, NAMES))
    changes = [["switch", name] for name in NAMES[1:]]
    return _offline(app, changes, NAMES, disorder, fresh=NAMES[1:], links=False)


def first_switch(place: Path, disorder: str | None = None) -> Story:
    """There was no `current`, and relfs had never been there."""
    app = _app(place, NAMES[:1])
    (app / CURRENT).unlink()
    return _offline(app, [["switch", NAMES[0]]], (None, NAMES[0]), disorder, fresh=NAMES[:1])


def rollback(place: Path, disorder: str | None = None) -> Story:
    """There and back, where relfs had never been."""
    app = _app(place, NAMES[:2])
    return _offline(app, [["switch", NAMES[1]], ["rollback"]], (*NAMES[:2], NAMES[0]), disorder, fresh=NAMES[1:2])


def to_be_confirmed(place: Path, disorder: str | None = None) -> Story:
    """The first switch waits for being confirmed, until there is another."""
    app = _known(_app(place, NAMES))
    changes = [["switch", NAMES[1], "--confirm", "3600"], ["switch", NAMES[2]]]
    return _offline(app, changes, NAMES, disorder, fresh=NAMES[1:])


def adoption(place: Path, disorder: str | None = None) -> Story:
    """A real directory `current` becomes a release."""
    app = place / "app"
    (app / CURRENT).mkdir(parents=True)
    (app / CURRENT / "index.html").write_text("1")
    return _offline(app, [["init", str(app)]], (BEFORE, "1"), disorder)


def initialisation(place: Path, disorder: str | None = None) -> Story:
    """A deploy path is made of an empty directory."""
    app = place / "app"
    app.mkdir()
    return _offline(app, [["init", str(app)]], (BEFORE, None), disorder)


def followed(place: Path, disorder: str | None = None) -> Story:
    """Somebody else changed the link, and has not flushed it, when relfs finds out."""
    app = _known(_app(place, NAMES[:2]))
    others = f"cd {app}; ln -s {RELEASES}/{NAMES[1]} new; sync -f .; mv -T new {CURRENT}; cd /"
    return _offline(app, [["lock", "--ttl", "60"]], NAMES[:2], disorder, others=others)


def with_deployer(place: Path, disorder: str | None = None) -> Story:
    """There and back, where Deployer keeps records: four lines, of which some may be lost, and others not."""
    app = _app(place, NAMES)
    (app / deployer.DIRECTORY).mkdir()
    made = enumerate((NAMES[2], NAMES[0]) * 2)
    log = b"".join(deployer.compose(1_700_000_000.0 + at, name, "ada", "HEAD") for at, name in made)
    (app / deployer.DIRECTORY / deployer.LOG).write_bytes(log)
    (app / deployer.DIRECTORY / deployer.LATEST).write_text(f"{NAMES[0]}\n")
    return _offline(app, [["switch", NAMES[1]], ["rollback"]], (*NAMES[:2], NAMES[0]), disorder)


def with_capistrano(place: Path, disorder: str | None = None) -> Story:
    """There and back, where Capistrano keeps records, and goes by the releases' times."""
    app = _app(place, TIMES)
    (app / capistrano.LOG).write_bytes(capistrano.compose(capistrano.Entry(TIMES[0], "ada", "main", "0123abc")))
    for at, name in enumerate(TIMES):
        os.utime(app / RELEASES / name, (1_700_000_000 + at, 1_700_000_000 + at))
    return _offline(app, [["switch", TIMES[1]], ["rollback"]], (*TIMES[:2], TIMES[0]), disorder)


# ---- through a mount ------------------------------------------------------------------------------------------------


def mounted_switches(place: Path, disorder: str | None = None) -> Story:
    """A switch and a rollback that the daemon makes."""
    assert disorder is None, "only relfsctl can be put in disorder"
    app = _known(_app(place, NAMES[:2]))
    changes = [relfsctl_command(app, "switch", NAMES[1]), relfsctl_command(app, "rollback")]
    return _mounted(app, changes, (*NAMES[:2], NAMES[0]), fresh=NAMES[1:2])


def legacy_replacements(place: Path, disorder: str | None = None) -> Story:
    """What tools do: `rm` and `ln`, and a link that is renamed."""
    assert disorder is None, "only relfsctl can be put in disorder"
    app = _known(_app(place, NAMES))
    removing = f"cd {app} && rm {CURRENT} && ln -s {RELEASES}/{NAMES[1]} {CURRENT}"
    renaming = f"cd {app} && ln -s {RELEASES}/{NAMES[2]} new && mv -T new {CURRENT}"
    return _mounted(app, [["sh", "-ec", removing], ["sh", "-ec", renaming]], NAMES, fresh=NAMES[1:])


STORIES: dict[str, Teller] = {
    teller.__name__.replace("_", "-"): teller
    for teller in (
        switches,
        switches_without_links,
        first_switch,
        rollback,
        to_be_confirmed,
        adoption,
        initialisation,
        followed,
        with_deployer,
        with_capistrano,
        mounted_switches,
        legacy_replacements,
    )
}


# ---- inside ---------------------------------------------------------------------------------------------------------


def _app(place: Path, names: Sequence[str]) -> Path:
    """A deploy path with these releases, the first one current."""
    app = place / "app"
    for name in names:
        add_release(app, name)
    (app / CURRENT).symlink_to(f"{RELEASES}/{names[0]}")
    return app


def _known(app: Path) -> Path:
    """The same where relfs has been before: opening it flushes nothing."""
    with closing(open_deploy_path(str(app))) as deploy:
        Pointer(deploy)
    return app


def _offline(
    app: Path,
    changes: Sequence[Sequence[str]],
    steps: tuple[str | None, ...],
    disorder: str | None,
    *,
    fresh: Sequence[str] = (),
    links: bool = True,
    others: str = ":",
) -> Story:
    """`changes` are what relfsctl is asked for, one after the other, after `others` did something; `fresh` releases are
    unpacked just before each."""
    disk = Disk.of(app, without=[f"{RELEASES}/{name}" for name in fresh])
    acknowledge = f"mkdir {_mark(app)}; rmdir {_mark(app)}"
    script = "\n".join([others, *(f"{_relfsctl(app, change, disorder)}; {acknowledge}" for change in changes)])
    with recording(app.parent, fails=None if links else "symlinkat:EPERM") as tape:
        subprocess.run(
            [*tape.command, "sh", "-ec", script],
            stdout=subprocess.DEVNULL, env=environment(), cwd="/", check=True, timeout=120,
        )  # fmt: skip
        events = tape.events(app)
    return Story(disk, list(_with_unpacking(events, fresh)), steps, _history(app), links)


def _relfsctl(app: Path, change: Sequence[str], disorder: str | None) -> str:
    if disorder is None:
        return shlex.join(relfsctl_command(app, *change))
    return shlex.join(disordered_command(disorder, "-C", str(app), *change))


def _mounted(
    app: Path, changes: Sequence[Sequence[str]], steps: tuple[str | None, ...], *, fresh: Sequence[str]
) -> Story:
    """`changes` are commands that are run one after the other, while a mount is up whose daemon is recorded."""
    disk = Disk.of(app, without=[f"{RELEASES}/{name}" for name in fresh])
    mounts = Mounts(app.parent)
    with recording(app.parent) as tape:
        try:
            mounts.start(app, command=lambda *arguments: [*tape.command, *relfs_command(*arguments)])
            for change in changes:
                subprocess.run(
                    change, stdout=subprocess.DEVNULL, env=environment(), cwd="/", check=True, timeout=120
                )
                _mark(app).mkdir()
                _mark(app).rmdir()
        finally:
            mounts.take_away()
        events = tape.events(app)
    return Story(disk, list(_with_unpacking(events, fresh)), steps, _history(app))


def _with_unpacking(events: Sequence[Event], fresh: Sequence[str]) -> Iterator[Event]:
    """Nobody records who unpacks a release: under a mount, that goes to the disk without passing the daemon."""
    releases = iter(fresh)
    yield from _unpacking(next(releases, None))
    for event in events:
        yield event
        if isinstance(event, Acknowledged):
            yield from _unpacking(next(releases, None))


def _unpacking(name: str | None) -> Iterator[Event]:
    if name is not None:
        index = f"{RELEASES}/{name}/index.html"
        yield MadeDirectory(f"{RELEASES}/{name}")
        yield Opened(index, truncate=False, append=False)
        yield Wrote(index, name.encode(), None)


def _mark(app: Path) -> Path:
    return app / ACKNOWLEDGEMENT


def _history(app: Path) -> tuple[tuple[str, str | None], ...]:
    with closing(open_deploy_path(str(app))) as deploy:
        return tuple((event.action, event.release) for event in activations_of(deploy))
