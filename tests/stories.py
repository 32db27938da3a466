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

from disks import small_disk
from disorder import disordered_command
from mounting import Mounts, environment, relfs_command, relfsctl_command
from recording import (
    ACKNOWLEDGEMENT,
    ELSEWHERE,
    STATE_ELSEWHERE,
    Acknowledged,
    Event,
    MadeDirectory,
    Opened,
    Wrote,
    recording,
)
from replay import Disks
from sandbox import ACTOR, activations_of, add_release

from relfs import pending
from relfs.journal import JOURNAL
from relfs.layout import CURRENT, RELEASES, STATE, DeployPath, open_deploy_path
from relfs.pending import Pending
from relfs.pointer import Pointer
from relfs.records import capistrano, deployer

BEFORE = "not a deploy path"
"""What is current before `relfsctl init`: `current` may be a real directory."""

NAMES = ("4", "42", "421")
"""Each is the beginning of the next, so that a text that is cut short leads somewhere."""

TIMES = ("20260101000000", "20260102000000", "20260103000000")

_LOCKING = (["lock", "--ttl", "86400"], ["lock", "--ttl", "86400", "--reason", "again"], ["unlock"])


@dataclass(frozen=True)
class Story:
    """`disk` is the deploy path as it was before the `events`; `steps` what was current then, and after each change.
    `history` is what the journal tells in the end: action and release. `links` False: the disk can have none. `state`
    is where relfs's state is, seen from the deploy path, if it is on a disk of its own."""

    disk: Disks
    events: list[Event]
    steps: tuple[str | None, ...]
    history: tuple[tuple[str, str | None], ...]
    links: bool = True
    state: str | None = None

    def open(self, app: Path) -> DeployPath:
        """The deploy path, where it is `app`. Raises RelfsError."""
        return _open(app, self.state)


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
    return _offline(app, [["unlock"]], NAMES[:2], disorder, others=others)


def with_deployer(place: Path, disorder: str | None = None) -> Story:
    """There and back, where Deployer keeps records: four lines, of which some may be lost, and others not."""
    changes = [["switch", NAMES[1]], ["rollback"]]
    return _offline(_deployers(place), changes, (*NAMES[:2], NAMES[0]), disorder)


def with_capistrano(place: Path, disorder: str | None = None) -> Story:
    """There and back, where Capistrano keeps records, and goes by the releases' times."""
    app = _app(place, TIMES)
    (app / capistrano.LOG).write_bytes(capistrano.compose(capistrano.Entry(TIMES[0], "ada", "main", "0123abc")))
    for at, name in enumerate(TIMES):
        os.utime(app / RELEASES / name, (1_700_000_000 + at, 1_700_000_000 + at))
    return _offline(app, [["switch", TIMES[1]], ["rollback"]], (*TIMES[:2], TIMES[0]), disorder)


def with_old_deployer(place: Path, disorder: str | None = None) -> Story:
    """There and back, where a Deployer before 7 keeps its log."""
    app = _app(place, NAMES)
    (app / deployer.DIRECTORY).mkdir()
    made = enumerate((NAMES[2], NAMES[0]))
    log = b"".join(deployer.compose_old(1_700_000_000.0 + at, name) for at, name in made)
    (app / deployer.DIRECTORY / deployer.OLD_LOG).write_bytes(log)
    return _offline(app, [["switch", NAMES[1]], ["rollback"]], (*NAMES[:2], NAMES[0]), disorder)


def links_again(place: Path, disorder: str | None = None) -> Story:
    """A disk that had no links has them: what the file told goes into the link, and the file goes away."""
    app = _known(_app(place, NAMES))
    _keep_in_file(app, STATE)
    return _offline(app, [["switch", name] for name in NAMES[1:]], NAMES, disorder, fresh=NAMES[1:])


def recovered(place: Path, disorder: str | None = None) -> Story:
    """What a switch had left undone when the power failed is done, and the power fails again. The release before that
    switch is the first step, and nothing may lead back to it."""
    app = _known(_deployers(place))
    _break_off(app)
    return _offline(app, [["unlock"]], NAMES[:2], disorder)


def locks(place: Path, disorder: str | None = None) -> Story:
    """The deploy lock is taken, taken again, and given back, where relfs had never been and nothing is current."""
    app = _app(place, NAMES[:1])
    (app / CURRENT).unlink()
    return _offline(app, _LOCKING, (None,) * 4, disorder)


# ---- where not all is on one disk -----------------------------------------------------------------------------------


def releases_elsewhere(place: Path, disorder: str | None = None) -> Story:
    """The releases have a disk of their own."""
    (place / "app").mkdir()
    with small_disk(place / "app" / RELEASES):
        app = _known(_app(place, NAMES))
        changes = [["switch", name] for name in NAMES[1:]]
        return _offline(app, changes, NAMES, disorder, fresh=NAMES[1:], disks=[RELEASES])


def switches_elsewhere(place: Path, disorder: str | None = None) -> Story:
    """Two switches, and back."""
    with small_disk(place / "state"):
        app = _known(_app(place, NAMES), STATE_ELSEWHERE)
        changes = [*(["switch", name] for name in NAMES[1:]), ["rollback"]]
        steps = (*NAMES, NAMES[1])
        return _offline(app, changes, steps, disorder, fresh=NAMES[1:], state=STATE_ELSEWHERE)


def first_switch_elsewhere(place: Path, disorder: str | None = None) -> Story:
    """Where relfs had never been: the state directory is made."""
    with small_disk(place / "state"):
        app = _app(place, NAMES[:2])
        return _offline(app, [["switch", NAMES[1]]], NAMES[:2], disorder, fresh=NAMES[1:2], state=STATE_ELSEWHERE)


def followed_elsewhere(place: Path, disorder: str | None = None) -> Story:
    """As `followed`: the journal gets its line on one disk, and the link is on the other."""
    with small_disk(place / "state"):
        app = _known(_app(place, NAMES[:2]), STATE_ELSEWHERE)
        others = f"cd {app}; ln -s {RELEASES}/{NAMES[1]} new; sync -f .; mv -T new {CURRENT}; cd /"
        return _offline(app, [["unlock"]], NAMES[:2], disorder, others=others, state=STATE_ELSEWHERE)


def switches_without_links_elsewhere(place: Path, disorder: str | None = None) -> Story:
    """The target is a file beside the journal, and the release on the other disk, as if that was read-only."""
    with small_disk(place / "state"):
        app = _known(_app(place, NAMES[:2]), STATE_ELSEWHERE)
        fresh, changes = NAMES[1:2], [["switch", NAMES[1]]]
        return _offline(app, changes, NAMES[:2], disorder, fresh=fresh, links=False, state=STATE_ELSEWHERE)


def links_again_elsewhere(place: Path, disorder: str | None = None) -> Story:
    """As `links_again`: from one disk to the other."""
    with small_disk(place / "state"):
        app = _known(_app(place, NAMES[:2]), STATE_ELSEWHERE)
        _keep_in_file(app, STATE_ELSEWHERE)
        return _offline(app, [["switch", NAMES[1]]], NAMES[:2], disorder, fresh=NAMES[1:2], state=STATE_ELSEWHERE)


def with_deployer_elsewhere(place: Path, disorder: str | None = None) -> Story:
    """As `with_deployer`: the records are on one disk, and what has to be told them on the other."""
    with small_disk(place / "state"):
        app = _deployers(place)
        changes = [["switch", NAMES[1]], ["rollback"]]
        return _offline(app, changes, (*NAMES[:2], NAMES[0]), disorder, state=STATE_ELSEWHERE)


def adoption_elsewhere(place: Path, disorder: str | None = None) -> Story:
    """As `adoption`."""
    with small_disk(place / "state"):
        app = place / "app"
        (app / CURRENT).mkdir(parents=True)
        (app / CURRENT / "index.html").write_text("1")
        return _offline(app, [["init", str(app)]], (BEFORE, "1"), disorder, state=STATE_ELSEWHERE)


def locks_elsewhere(place: Path, disorder: str | None = None) -> Story:
    """As `locks`."""
    with small_disk(place / "state"):
        app = _app(place, NAMES[:1])
        (app / CURRENT).unlink()
        return _offline(app, _LOCKING, (None,) * 4, disorder, state=STATE_ELSEWHERE)


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


def replacements_elsewhere(place: Path, disorder: str | None = None) -> Story:
    """A tool's replacement, and a switch that the daemon makes, where the state is on another disk."""
    assert disorder is None, "only relfsctl can be put in disorder"
    with small_disk(place / "state"):
        app = _known(_app(place, NAMES), STATE_ELSEWHERE)
        removing = f"cd {app} && rm {CURRENT} && ln -s {RELEASES}/{NAMES[1]} {CURRENT}"
        changes = [["sh", "-ec", removing], relfsctl_command(app, "switch", NAMES[2])]
        return _mounted(app, changes, NAMES, fresh=NAMES[1:], state=STATE_ELSEWHERE)


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
        with_old_deployer,
        with_capistrano,
        links_again,
        recovered,
        locks,
        releases_elsewhere,
        switches_elsewhere,
        first_switch_elsewhere,
        followed_elsewhere,
        switches_without_links_elsewhere,
        links_again_elsewhere,
        with_deployer_elsewhere,
        adoption_elsewhere,
        locks_elsewhere,
        mounted_switches,
        legacy_replacements,
        replacements_elsewhere,
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


def _deployers(place: Path) -> Path:
    """The same where Deployer keeps records."""
    app = _app(place, NAMES)
    (app / deployer.DIRECTORY).mkdir()
    made = enumerate((NAMES[2], NAMES[0]) * 2)
    log = b"".join(deployer.compose(1_700_000_000.0 + at, name, "ada", "HEAD") for at, name in made)
    (app / deployer.DIRECTORY / deployer.LOG).write_bytes(log)
    (app / deployer.DIRECTORY / deployer.LATEST).write_text(f"{NAMES[0]}\n")
    return app


def _known(app: Path, state: str | None = None) -> Path:
    """The same where relfs has been before: opening it flushes nothing."""
    with closing(_open(app, state)) as deploy:
        Pointer(deploy)
    return app


def _open(app: Path, state: str | None) -> DeployPath:
    return open_deploy_path(str(app), state_dir=str(app / state) if state is not None else None)


def _break_off(app: Path) -> None:
    """A switch, after which neither journal nor Deployer's records know of it, but what was pending does."""
    told = [app / STATE / JOURNAL, *(app / deployer.DIRECTORY).iterdir()]
    before = {path: path.read_bytes() for path in told}
    with closing(open_deploy_path(str(app))) as deploy:
        event = Pointer(deploy).switch(NAMES[1], ACTOR, "switch")
        pending.write(deploy.state_fd, Pending(event, f"{RELEASES}/{NAMES[1]}", tell=True))
    for path, data in before.items():
        path.write_bytes(data)


def _keep_in_file(app: Path, state: str) -> None:
    """The target is in a file in the state directory, and the link says something else."""
    (app / state / CURRENT).write_text(f"{RELEASES}/{NAMES[0]}\n")
    (app / CURRENT).unlink()
    (app / CURRENT).symlink_to(f"{RELEASES}/{NAMES[-1]}")


def _offline(
    app: Path,
    changes: Sequence[Sequence[str]],
    steps: tuple[str | None, ...],
    disorder: str | None,
    *,
    fresh: Sequence[str] = (),
    links: bool = True,
    others: str = ":",
    state: str | None = None,
    disks: Sequence[str] = (),
) -> Story:
    """`changes` are what relfsctl is asked for, one after the other, after `others` did something; `fresh` releases are
    unpacked just before each."""
    disks = [*disks, *([ELSEWHERE] if state is not None else [])]
    commands = [others, *(then_acknowledged(app, relfsctl_text(app, change, disorder, state)) for change in changes)]
    unpacked = [f"{RELEASES}/{name}" for name in fresh]
    disk, events = record(app, commands, disks, without=unpacked, fails=None if links else "symlinkat:EPERM")
    return Story(disk, list(_with_unpacking(events, fresh)), steps, _history(app, state), links, state)


def record(
    app: Path, commands: Sequence[str], disks: Sequence[str], *, without: Sequence[str] = (), fails: str | None = None
) -> tuple[Disks, list[Event]]:
    """What there was before one shell runs `commands`, but for the paths `without`, and what these do to it."""
    before = Disks.of(app, without=without, others=disks)
    with recording(app.parent, fails=fails) as tape:
        subprocess.run(
            [*tape.command, "sh", "-ec", "\n".join(commands)],
            stdout=subprocess.DEVNULL, env=environment(), cwd="/", check=True, timeout=120,
        )  # fmt: skip
        return before, tape.events(app, disks)


def then_acknowledged(app: Path, command: str) -> str:
    """For record()."""
    return f"{command}; mkdir {_mark(app)}; rmdir {_mark(app)}"


def relfsctl_text(app: Path, change: Sequence[str], disorder: str | None, state: str | None) -> str:
    arguments = [*(["--state-dir", str(app / state)] if state is not None else []), *change]
    if disorder is None:
        return shlex.join(relfsctl_command(app, *arguments))
    return shlex.join(disordered_command(disorder, "-C", str(app), *arguments))


def _mounted(
    app: Path,
    changes: Sequence[Sequence[str]],
    steps: tuple[str | None, ...],
    *,
    fresh: Sequence[str],
    state: str | None = None,
) -> Story:
    """`changes` are commands that are run one after the other, while a mount is up whose daemon is recorded."""
    disks = [ELSEWHERE] if state is not None else []
    disk = Disks.of(app, without=[f"{RELEASES}/{name}" for name in fresh], others=disks)
    where = ["--state-dir", str(app / state)] if state is not None else []
    mounts = Mounts(app.parent)
    with recording(app.parent) as tape:
        try:
            mounts.start(app, *where, command=lambda *arguments: [*tape.command, *relfs_command(*arguments)])
            for change in changes:
                subprocess.run(change, stdout=subprocess.DEVNULL, env=environment(), cwd="/", check=True, timeout=120)
                _mark(app).mkdir()
                _mark(app).rmdir()
        finally:
            mounts.take_away()
        events = tape.events(app, disks)
    return Story(disk, list(_with_unpacking(events, fresh)), steps, _history(app, state), state=state)


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


def _history(app: Path, state: str | None) -> tuple[tuple[str, str | None], ...]:
    with closing(_open(app, state)) as deploy:
        return tuple((event.action, event.release) for event in activations_of(deploy))
