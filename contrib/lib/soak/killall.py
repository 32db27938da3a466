"""Everything of relfs is killed at once, again and again: the real symlink must answer, and relfs start again at once.

Everything but the guards, that is, who are there to detach the mount then. From the kill on, whoever opens the page may
get errors until that is done, and must then get the release that was last acknowledged; for that there is a second.
Then relfs is started again, without any pause.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from soak.actors.switcher import RELEASES
from soak.judge import Verdict
from soak.site import Site, SoakError, new_site

ANSWER_SECONDS = 1.0

_GIVE_UP_SECONDS = 30.0


@dataclass(frozen=True)
class Death:
    """`release` was acknowledged last; `seen` is what the page said first after the kill, so many seconds later."""

    release: str
    seen: str
    answered: float


@dataclass(frozen=True)
class Deaths:
    """All rounds; `worst` is the longest time in seconds until the site answered."""

    rounds: int
    worst: float
    verdicts: tuple[Verdict, ...]

    @property
    def kept(self) -> bool:
        return all(verdict.kept for verdict in self.verdicts)


def kill_all(rounds: int, directory: Path, variables: dict[str, str], say: Callable[[str], None]) -> Deaths:
    """In the existing, empty `directory`. Raises SoakError if relfs cannot be started at all."""
    deaths: list[Death] = []
    stuck: tuple[str, ...] = ()
    with new_site(directory, variables) as site:
        site.mount()
        try:
            for number in range(rounds):
                deaths.append(_die(site, str(number % (RELEASES - 1) + 2)))
                site.mount()
                say(f"{number + 1} of {rounds}: answered after {deaths[-1].answered * 1e3:.0f} ms")
        except SoakError as error:
            stuck = (str(error),)
    worst = max((death.answered for death in deaths), default=0.0)
    return Deaths(len(deaths), worst, (*_judge(deaths), Verdict("relfs starts again at once", stuck)))


def _judge(deaths: list[Death]) -> tuple[Verdict, ...]:
    late = [f"after {each.answered:.2f} s" for each in deaths if each.answered > ANSWER_SECONDS]
    other = [f"{each.seen} instead of {each.release}" for each in deaths if each.seen != each.release]
    return (
        Verdict("the site answers within a second", tuple(late)),
        Verdict("it shows the release last acknowledged", tuple(other)),
    )


def _die(site: Site, release: str) -> Death:
    site.wait_for_pids(lambda pids: len(pids.alive()) == 3, _GIVE_UP_SECONDS)
    site.ctl("switch", release)
    begin = _kill_everything(site)
    seen = _first_answer(site.page, begin + _GIVE_UP_SECONDS)
    return Death(release, seen, time.monotonic() - begin)


def _kill_everything(site: Site) -> float:
    """When the last was killed: one that dies a moment later than another may have brought that up again."""
    last = time.monotonic()
    while victims := site.processes():
        last = time.monotonic()
        for pid in victims:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    return last


def _first_answer(page: Path, until: float) -> str:
    """What the page says once it can be read. Raises SoakError after `until`."""
    while True:
        try:
            return page.read_text().strip()
        except OSError as error:
            if time.monotonic() > until:
                raise SoakError(f"{page}: {error}") from error
