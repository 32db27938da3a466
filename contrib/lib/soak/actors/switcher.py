"""Switches `current` all the time, in every way that users do: `python -m soak.actors.switcher APP SEED RELFSCTL...`.

RELFSCTL is the command. In turns: by relfsctl; by `rm; ln -s` in a shell; and by a replacement that is held for
seconds: this process removes the link, and makes it again at last, while relfsctl switches as well. As long as that is
so, this process alone must not see the name.

It is the only one that switches, so that each switch has its place in one order, and `current` must lead to the last
one when it has been answered. Releases are APP/releases/1 to RELEASES, in turns: none comes back soon.
"""

from __future__ import annotations

import itertools
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress

from soak.actors.telling import Teller, Wrong, told_to_end

RELEASES = 100

_HELD_SECONDS = (0.2, 4.0)
_LOOK_SECONDS = 0.005
_SLOW_COMMAND_SECONDS = 1.0
_SHELL = 'rm "$0" && ln -s "$1" "$0"'


class _Switcher:
    """GUARDED BY nothing: one thread."""

    def __init__(self, app: str, seed: int, relfsctl: list[str]) -> None:
        self._current = f"{app}/current"
        self._relfsctl = [*relfsctl, "-C", app, "switch"]
        self._random = random.Random(seed)
        self._teller = Teller()
        self._releases = itertools.cycle([*map(str, range(2, RELEASES + 1)), "1"])
        self._last = "1"

    def run(self) -> None:
        self._teller.ready()
        ways: tuple[Callable[[], None], ...] = (self._by_relfsctl, self._by_relfsctl, self._by_shell, self._held)
        for way in itertools.cycle(ways):
            with suppress(OSError, Wrong):  # told
                way()
            if told_to_end(self._random.uniform(0.0, 0.1)):
                break
        self._teller.end()

    def _by_relfsctl(self) -> None:
        self._ask_relfsctl()
        self._expect()

    def _by_shell(self) -> None:
        release = next(self._releases)
        with self._teller.switch(release, "rm; ln -s", _SLOW_COMMAND_SECONDS):
            _command(["sh", "-c", _SHELL, self._current, f"releases/{release}"])
        self._last = release
        self._expect()

    def _held(self) -> None:
        with self._teller.attempt("unlink current"):
            os.unlink(self._current)
        try:
            self._hold()
        finally:
            release = next(self._releases)
            with self._teller.switch(release, "symlink"):
                os.symlink(f"releases/{release}", self._current)
            self._last = release
        self._expect()

    def _hold(self) -> None:
        until = time.monotonic() + self._random.uniform(*_HELD_SECONDS)
        while time.monotonic() < until:
            self._expect_hidden()
            if self._random.random() < 0.01:
                self._ask_relfsctl()
            time.sleep(_LOOK_SECONDS)

    def _ask_relfsctl(self) -> None:
        release = next(self._releases)
        with self._teller.switch(release, "relfsctl", _SLOW_COMMAND_SECONDS):
            _command([*self._relfsctl, release])
        self._last = release

    def _expect(self) -> None:
        with self._teller.attempt("readlink current"):
            if (text := os.readlink(self._current)) != f"releases/{self._last}":
                raise Wrong(f"current leads to {text} once {self._last} was made current")

    def _expect_hidden(self) -> None:
        with self._teller.attempt("look for the name that is withdrawn"):
            try:
                text = os.readlink(self._current)
            except FileNotFoundError:
                return
            raise Wrong(f"current, which this process has removed, leads to {text}")


def _command(words: list[str]) -> None:
    done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True, cwd="/", check=False)
    if done.returncode != 0:
        raise Wrong(f"{' '.join(words)}: status {done.returncode}: {done.stderr.strip()}")


def main(app: str, seed: str, *relfsctl: str) -> None:
    _Switcher(app, int(seed), list(relfsctl)).run()


if __name__ == "__main__":
    main(*sys.argv[1:])
