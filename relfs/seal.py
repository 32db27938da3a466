"""Which releases are sealed, and in which order: what anybody sees as `current` cannot be changed or removed, at any
moment.

The order of a sealed switch
----------------------------
Some facts. A release becomes visible as `current` the moment the target in memory is flipped, and stays visible after
that, to whoever has the old link in the kernel's cache, until the kernel was told to drop it. Several changes may be at
different stages of this at once: while the kernel is being told of one, the next may be about to flip.

The choice.

    1. the new release is sealed               prepare(), by the pointer, under its locks; failing, nothing changes
    2. disk and memory are flipped             (or not, and then the release is as good as replaced)
    3. it is settled what is live now          decided(), still in the thread that made the change
    4. what need not be sealed is noted        note_replaced(), before
    5. the kernel drops the old link
    6. what was noted is unsealed              release(), less what was prepared again meanwhile

Step 5 may take long, if somebody has the directory locked. Whatever is prepared after 4 is not released in 6, even if
it was live and has been replaced by then: its own link may still be in the cache. One thread at a time does 4 to 6.

A path walk that had read the old link before 5 may end in the old release after 6. It meets a release that is not the
live one, as it would had it come a moment later.

A canary is announced and decided about like what is live, of which there are two then. Pins come and go beside all
that: each holds its release (hold()) until it is over, and then it is as good as replaced.

How a release is sealed is a Sealer's business (daemon/seal.py, fuse/guard.py). This module knows neither FUSE nor trio.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable
from typing import Protocol

from relfs.errors import reason
from relfs.layout import DeployPath, Target

_log = logging.getLogger(__name__)


class Sealer(Protocol):
    """One way to keep releases from being changed. Its methods block, and may run in several threads."""

    def seal(self, name: str) -> None:
        """When it returns, release `name` cannot be changed. Raises OSError."""

    def unseal(self, name: str) -> bool:
        """Let release `name` be changed again. False: somebody keeps a part of the seal busy. Raises OSError."""


class Seals:
    """The seals of one mount.

    LOCK ORDERING: the pointer's locks, then `_lock`. It is not held while a release is sealed, which may take as long
    as reading all of it.
    GUARDED BY _lock: everything. `sealed`, `left` and `begun` may be read without it, being references to immutable
    values.
    INVARIANT: from begin() on, what is live or about to be, or held, is in `sealed`; nothing is in `sealed` and `left`.
    """

    def __init__(self, deploy: DeployPath) -> None:
        self.sealed: frozenset[str] = frozenset()
        self.left: frozenset[str] = frozenset()
        """Unsealed, but for a part that somebody keeps busy: a mount, which makes the directory's removal EBUSY."""
        self._deploy = deploy
        self._live: frozenset[str] = frozenset()
        self._coming: dict[Target, str | None] = {}
        self._replaced: frozenset[str] = frozenset()
        self._held: list[tuple[Target, str]] = []
        self._sealer: Sealer | None = None
        self._lock = threading.Lock()

    def begin(self, sealer: Sealer, live: Iterable[Target], left: frozenset[str] = frozenset()) -> None:
        """Seal from now on. `left` was sealed by somebody else before, and still has to be unsealed. Raises OSError if
        what is live cannot be sealed."""
        with self._lock:
            self._sealer = sealer
            self.left |= left
        live = tuple(live)
        for target in live:
            self.prepare(target)
        self.decided(live)

    def prepare(self, target: Target) -> None:
        """Seal what is about to become live; nothing, if that is no release. Raises OSError that says what failed."""
        before = self._coming
        try:
            name = self._deploy.release_of(target.text)
            self._mark(target, name)
            if name is not None:
                self._close(name)
        except OSError as error:
            with self._lock:
                self._coming = before
            raise OSError(error.errno, f"it cannot be sealed: {reason(error)}") from error

    def _mark(self, target: Target, name: str | None) -> None:
        """From here on release() lets it be."""
        with self._lock:
            self._coming = {**self._coming, target: name}
            self._replaced -= {name}

    @property
    def begun(self) -> bool:
        """Whether anything is ever sealed."""
        return self._sealer is not None

    def hold(self, target: Target, *, anew: bool) -> bool:
        """Keep what somebody sees, besides those who see what is live, sealed until let_go(); seal it, if it is not and
        that shall be done `anew`. Not to be called while a change is being made.

        Whether it is held; not so what is no release, or while nothing is sealed. Raises OSError that says what failed.
        """
        if self._sealer is None:
            return False
        try:
            name = self._deploy.release_of(target.text)
            with self._lock:
                if name is None or not (anew or name in self.sealed):
                    return False
                self._held.append((target, name))
                self._replaced -= {name}
            self._close(name)
        except OSError as error:
            self.let_go(target)
            raise OSError(error.errno, f"it cannot be sealed: {reason(error)}") from error
        return True

    def let_go(self, target: Target) -> None:
        """What hold() has done once is over; what need not be sealed any more is, after the kernel was told."""
        with self._lock:
            found = next((each for each in self._held if each[0] == target), None)
            if found is not None:
                self._held.remove(found)

    def _close(self, name: str) -> None:
        """Raises OSError."""
        sealer = self._sealer
        if sealer is None:
            return
        if name not in self.sealed:
            sealer.seal(name)
        with self._lock:
            self.sealed |= {name}
            self.left -= {name}

    def decided(self, live: Iterable[Target]) -> None:
        """A change has ended, well or not, and these are the targets in force. No other is under way."""
        with self._lock:
            self._coming = {target: self._coming[target] for target in live if target in self._coming}
            self._live = _names(self._coming)

    def note_replaced(self) -> None:
        """Before the kernel is told: note what is sealed and need not be, once nobody sees it as `current` any more."""
        with self._lock:
            self._replaced = self.sealed - self._needed()

    def release(self) -> None:
        """After the kernel was told: unseal what was noted. What somebody keeps busy is in `left`."""
        with self._lock:
            self._unseal(self._replaced)
            self._replaced = frozenset()

    def retry(self) -> None:
        """Try to free what is `left`."""
        with self._lock:
            self._unseal(self.left)

    def end(self) -> None:
        """The mount is about to go, and all seals with it. Changes that are still made are not sealed any more."""
        with self._lock:
            self._sealer = None
            self.sealed = self.left = frozenset()

    def _needed(self) -> frozenset[str]:
        return self._live | _names(self._coming) | {name for _, name in self._held}

    def _unseal(self, names: frozenset[str]) -> None:
        if self._sealer is None:
            return
        for name in sorted(names - self._needed()):
            try:
                free = self._sealer.unseal(name)
            except OSError as error:
                _log.warning("%s is not live any more but cannot be unsealed: %s", name, reason(error))
                free = False
            self.sealed -= {name}
            self.left = self.left - {name} if free else self.left | {name}


def _names(targets: dict[Target, str | None]) -> frozenset[str]:
    return frozenset(name for name in targets.values() if name is not None)
