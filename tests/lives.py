"""The life of releases, told as stories.py tells of switches, for replay.py to cut off: they are added, deployed, found
bad, pruned.

What must be found after a power cut, once the next command has settled it, is in settled.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from disks import small_disk
from recording import ELSEWHERE, STATE_ELSEWHERE, Event
from replay import Disks
from sandbox import ACTOR, activations_of, add_release
from stories import record, relfsctl_text, then_acknowledged

from relfs.layout import CURRENT, RELEASES, STATE, DeployPath, open_deploy_path
from relfs.pointer import Pointer
from relfs.releases.adding import add
from relfs.releases.sources import open_source

SHIPPED = (".env", "storage/logs/first", "storage/second")
"""What each source ships that may be shared: what one says is its path and whose it is."""

_SHARED = '[shared]\ndirectories = ["storage"]\nfiles = [".env"]\n'
REFUSED = 3
"""The exit status of a command that was told no."""


@dataclass(frozen=True)
class Step:
    """One command. `path`: what is current, one after the other, first what was so before, last what stays. `made` is
    the release that it makes, `removed` are those that it removes."""

    path: tuple[str, ...]
    made: str | None = None
    removed: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Life:
    """`disk` is the deploy path as it was before the `events`, and `history` what had been made current there. `stays`
    are releases that nothing removes, `by_hand` those that relfs has not made; `shared` are paths that are in `shared/`
    from the first step on; `state` is as in stories.Story."""

    disk: Disks
    events: list[Event]
    steps: tuple[Step, ...]
    history: tuple[str, ...]
    stays: frozenset[str]
    by_hand: frozenset[str]
    shared: tuple[str, ...] = ()
    state: str | None = None

    def open(self, app: Path) -> DeployPath:
        """The deploy path, where it is `app`. Raises RelfsError."""
        return _open(app, self.state)


Teller = Callable[[Path, str | None], Life]
"""Makes a life in an empty directory; in a disorder, if it is told its name."""


def added(place: Path, disorder: str | None = None) -> Life:
    """Where relfs had never been: the state directory, the registry and what holds the manifests are made, too."""
    app = place / "app"
    add_release(app, "1")
    (app / CURRENT).symlink_to(f"{RELEASES}/1")
    step = Step(("1",), made="2")
    return _Telling(app, disorder).tell([["add", make_source(place, "2")]], [step], {"1"})


def deployed(place: Path, disorder: str | None = None) -> Life:
    """The third release; it is the first to ship what is shared from now on, and the first release goes."""
    app = _lived(place, 2, f"{_SHARED}[prune]\nkeep = 2\n")
    return _deployed(_Telling(app, disorder), place)


def deployed_elsewhere(place: Path, disorder: str | None = None) -> Life:
    """The same where the state is on another disk, and so the trash is in `releases/`."""
    with small_disk(place / "state"):
        app = _lived(place, 2, f"{_SHARED}[prune]\nkeep = 2\n", STATE_ELSEWHERE)
        return _deployed(_Telling(app, disorder, STATE_ELSEWHERE), place)


def _deployed(telling: _Telling, place: Path) -> Life:
    step = Step(("2", "3"), made="3", removed=frozenset("1"))
    return telling.tell([["deploy", make_source(place, "3")]], [step], {"2"}, shared=SHIPPED)


def found_bad(place: Path, disorder: str | None = None) -> Life:
    """A deployment that is not verified, and taken back; and one more."""
    app = _lived(place, 1, '[hooks]\nverify = "exit 1"\n')
    steps = [Step(("1", name, "1"), made=name) for name in "23"]
    return _Telling(app, disorder).tell([["deploy", make_source(place, name)] for name in "23"], steps, {"1"})


def pruned(place: Path, disorder: str | None = None) -> Life:
    """Two releases go, and are deleted."""
    app = _lived(place, 4)
    step = Step(("4",), removed=frozenset("12"))
    return _Telling(app, disorder).tell([["prune", "--keep", "1", "--wait"]], [step], {"3", "4"})


LIVES: dict[str, Teller] = {
    teller.__name__.replace("_", "-"): teller
    for teller in (
        added,
        deployed,
        deployed_elsewhere,
        found_bad,
        pruned,
    )
}


def make_source(place: Path, name: str) -> str:
    """A directory that says whose it is, in each of its files."""
    top = place / "sources" / name
    for path in ("index.html", *SHIPPED):
        (top / path).parent.mkdir(parents=True, exist_ok=True)
        (top / path).write_text(said(path, name))
    return str(top)


def said(path: str, name: str) -> str:
    """What a file of a source says."""
    return name if path == "index.html" else f"{path} of {name}"


# ---- inside ---------------------------------------------------------------------------------------------------------


@dataclass
class _Telling:
    """A deploy path, and how it is told of."""

    app: Path
    disorder: str | None
    state: str | None = None
    disks: list[str] = field(init=False)

    def __post_init__(self) -> None:
        self.disks = [ELSEWHERE] if self.state is not None else []

    def tell(
        self, changes: Sequence[Sequence[str]], steps: Sequence[Step], stays: set[str], shared: tuple[str, ...] = ()
    ) -> Life:
        """`changes` are what relfsctl is asked for, one after the other; it may say no."""
        commands = [then_acknowledged(self.app, self._text(change)) for change in changes]
        with closing(_open(self.app, self.state, create=False)) as deploy:
            made = [event.release for event in activations_of(deploy) if event.release is not None]
        disk, events = record(self.app, commands, self.disks)
        by_hand = frozenset(stays.difference(made))
        return Life(disk, events, tuple(steps), tuple(made), frozenset(stays), by_hand, shared, self.state)

    def _text(self, change: Sequence[str]) -> str:
        return f"{relfsctl_text(self.app, change, self.disorder, self.state)} || test $? = {REFUSED}"


def _lived(place: Path, count: int, configuration: str = "", state: str | None = None) -> Path:
    """A deploy path whose releases relfs has made, and made current, one after the other; then it was configured."""
    app = place / "app"
    (app / RELEASES).mkdir(parents=True)
    for name in map(str, range(1, count + 1)):
        with closing(_open(app, state)) as deploy:
            add(deploy, open_source(make_source(place, name)))
            Pointer(deploy).switch(name, ACTOR, f"switch-{name}")
    (app / (state or STATE) / "config.toml").write_text(configuration)
    return app


def _open(app: Path, state: str | None, *, create: bool = True) -> DeployPath:
    state_dir = str(app / state) if state is not None else None
    return open_deploy_path(str(app), state_dir=state_dir, create_state=create)
