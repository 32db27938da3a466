"""What tests build on without a mount: a sample deploy path, a way to read it, and other Python processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from relfs.journal import Actor, Event, Journal
from relfs.layout import DeployPath
from relfs.records import capistrano, deployer

RELEASES = ("40", "41", "42")

ACTIVATIONS = frozenset({"switch", "rollback", "adopt", "follow"})

ACTOR = Actor(1000, "ada", 4242, "relfsctl switch")


def make_app(path: Path) -> Path:
    """A deploy path at `path`: releases 40, 41 and 42, each with its name in index.html; `current` leads to 40."""
    for name in RELEASES:
        add_release(path, name)
    (path / "current").symlink_to("releases/40")
    return path


def make_recorded_app(path: Path) -> Path:
    """The same where Deployer and Capistrano have been, and left records of all three releases, 42 the last one."""
    make_app(path)
    (path / ".dep").mkdir()
    for number, name in enumerate(RELEASES):
        with (path / ".dep/releases_log").open("ab") as log:
            log.write(deployer.compose(1_700_000_000.0 + number, name, "ada", "HEAD"))
        with (path / "revisions.log").open("ab") as log:
            log.write(capistrano.compose(capistrano.Entry(name, "ada", "main", "0123abc")))
    return path


def be_patient(app: Path) -> Path:
    """Configure that what was begun there may last: on a machine that is busy, a test takes longer than is usual."""
    (app / ".relfs").mkdir(exist_ok=True)
    (app / ".relfs/config.toml").write_text("[replacement]\ngrace = 300\n[hooks]\ntimeout = 300\n")
    return app


def add_release(app: Path, name: str) -> Path:
    """A release with one file, which says the release's name."""
    release = app / "releases" / name
    release.mkdir(parents=True)
    (release / "index.html").write_bytes(os.fsencode(name))
    return release


def link_of(app: Path) -> str:
    """What the real `current` says."""
    return os.readlink(app / "current")


def journal_of(deploy: DeployPath) -> list[Event]:
    """Every event in the journal on disk, oldest first."""
    return list(Journal(deploy.state_fd).events())


def activations_of(deploy: DeployPath) -> list[Event]:
    """The events in the journal on disk that made something current."""
    return [event for event in journal_of(deploy) if event.succeeded and event.action in ACTIVATIONS]


def start_python(program: str, *arguments: str) -> subprocess.Popen[str]:
    """Another Python process, with this one's module path, that runs `program`; end it with `end`."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen(
        [sys.executable, "-c", program, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )


def end(process: subprocess.Popen[str]) -> None:
    """Kill `process` if it still runs, and forget it."""
    process.kill()
    process.communicate()
