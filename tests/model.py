"""The model that the pointer is held against: what may be on disk, in memory and in the journal after anything.

It knows what was asked and what was acknowledged, lets faults.py strike at any system call, and after each step
compares. test_pointer_model.py runs it against relfs's Pointer, and against pointers that are broken on purpose.
"""

from __future__ import annotations

import itertools
import os
import shutil
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from faults import (
    Calls,
    Crash,
    CrashAfter,
    CrashBefore,
    CrashLastByte,
    CrashTorn,
    DiskFull,
    Fails,
    Fault,
    ShortWrite,
    watched,
)
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from sandbox import ACTOR, RELEASES, activations_of, journal_of, make_app

from relfs.errors import RelfsError
from relfs.journal import Event
from relfs.layout import DeployPath, open_deploy_path
from relfs.pointer import Pointer
from relfs.store import peek

EMPTY = "empty"
MISSING = "99"
FAULTS: tuple[type[Fault], ...] = (CrashBefore, CrashAfter, CrashTorn, CrashLastByte, Fails, ShortWrite, DiskFull)
CALLS = 40
"""More system calls than any one method makes; test_pointer_model.py checks that."""

names = st.sampled_from(RELEASES)
faults = st.none() | st.builds(lambda kind, at: kind(at), st.sampled_from(FAULTS), st.integers(0, CALLS))


class PointerModel(RuleBasedStateMachine):
    """Drives one Pointer at a time over one deploy path. `pointer_class` is what a broken subclass replaces."""

    pointer_class: type[Pointer] = Pointer
    make_app: Callable[[Path], Path] = staticmethod(make_app)

    deploy: DeployPath
    pointer: Pointer

    @initialize()
    def begin(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="relfs-model-", dir=memory()))
        self.app = self.make_app(self.directory / "app")
        (self.app / "releases" / EMPTY).mkdir()
        self.links = True
        self.current: str | None = "40"  # what the disk must say
        self.unseen = False  # somebody else changed the link, and the pointer has not looked yet
        self.requests = 0
        self.acknowledged: set[str] = set()
        self.owed: set[str] = set()  # acknowledged, but the journal could not be written
        self._open()

    def teardown(self) -> None:
        if hasattr(self, "directory"):
            self.deploy.close()
            shutil.rmtree(self.directory)

    # ---- what can happen ------------------------------------------------------------------------------------------

    @rule(name=names, fault=faults)
    def switch(self, name: str, fault: Fault | None) -> None:
        self._ask(lambda request: self.pointer.switch(name, ACTOR, request), {name}, fault)

    @rule(fault=faults)
    def force_the_empty_release(self, fault: Fault | None) -> None:
        self._ask(lambda request: self.pointer.switch(EMPTY, ACTOR, request, force=True), {EMPTY}, fault)

    @rule(name=st.sampled_from([MISSING, EMPTY, "..", "releases/40"]), fault=faults)
    def switch_to_what_cannot_be_served(self, name: str, fault: Fault | None) -> None:
        self._ask(lambda request: self.pointer.switch(name, ACTOR, request), set(), fault)

    @rule(fault=faults)
    def roll_back(self, fault: Fault | None) -> None:
        self._ask(lambda request: self.pointer.rollback(None, ACTOR, request), set(RELEASES), fault)

    @rule(name=names, fault=faults)
    def roll_back_to(self, name: str, fault: Fault | None) -> None:
        self._ask(lambda request: self.pointer.rollback(name, ACTOR, request), {name}, fault)

    @precondition(lambda self: self.acknowledged)
    @rule(name=names, data=st.data())
    def ask_again(self, name: str, data: st.DataObject) -> None:
        request = data.draw(st.sampled_from(sorted(self.acknowledged)))
        with self._system():
            event = self.pointer.switch(name, ACTOR, request)
        assert event.id == request
        self.unseen = False

    @rule(fault=faults)
    def restart(self, fault: Fault | None) -> None:
        self._restart(fault)

    @rule(fault=faults)
    def look_at_the_disk(self, fault: Fault | None) -> None:
        try:
            with self._system(fault):
                self.pointer.refresh()
        except Crash:
            self._restart()
            return
        except RelfsError:
            return
        self.unseen = self.unseen and fault is not None  # a link that cannot be opened is not followed
        if fault is not None:
            self._owe("what it found", fault)

    @precondition(lambda self: self.links and not (self.app / ".relfs" / "current").exists())
    @rule(name=st.sampled_from([*RELEASES, MISSING]), absolute=st.booleans())
    def somebody_else_links(self, name: str, absolute: bool) -> None:
        text = f"releases/{name}"
        (self.app / "theirs").symlink_to(self.app / text if absolute else text)
        (self.app / "theirs").rename(self.app / "current")
        self.current = name
        self._somebody_else_was_here()

    @precondition(lambda self: self.links and self.current and not (self.app / ".relfs" / "current").exists())
    @rule()
    def somebody_else_unlinks(self) -> None:
        (self.app / "current").unlink()
        self.current = None
        self._somebody_else_was_here()

    @rule()
    def links_come_and_go(self) -> None:
        self.links = not self.links

    # ---- what must hold -------------------------------------------------------------------------------------------

    @invariant()
    def the_disk_says_what_was_asked(self) -> None:
        assert self._on_disk() == self.current

    @invariant()
    def memory_says_what_the_disk_says(self) -> None:
        if self.unseen:
            return
        if self.pointer.diverged is not None:
            assert self.current in (None, MISSING)
            return
        assert (self.pointer.target.release if self.pointer.target is not None else None) == self.current
        with self._system():
            self.pointer.check_invariants()

    @invariant()
    def the_journal_has_each_request_once(self) -> None:
        succeeded = [event.id for event in activations_of(self.deploy)]
        assert len(succeeded) == len(set(succeeded)), "a change is in the journal twice"
        assert self.acknowledged - self.owed <= set(succeeded), "an acknowledged change is not in the journal"

    @invariant()
    def the_journal_leads_to_the_link(self) -> None:
        steps = activations_of(self.deploy)
        for before, after in itertools.pairwise(steps):
            assert after.origin in (before.release, None), "a gap in the journal"  # None: the link was gone
        if not self.owed and not self.unseen and self.pointer.diverged is None and self.current is not None:
            assert steps[-1].release == self.current

    # ---- inside ---------------------------------------------------------------------------------------------------

    def _ask(self, ask: Callable[[str], Event], wanted: set[str], fault: Fault | None) -> None:
        """Ask for a change that may lead to any release in `wanted`, while `fault` is about."""
        self.requests += 1
        request = f"request-{self.requests}"
        try:
            with self._system(fault):
                event = ask(request)
        except Crash:
            self._after_crash(request, wanted)
            return
        except RelfsError:
            return  # nothing changed, says the invariants' next look
        assert event.id == request
        assert event.release in wanted
        self.current, self.unseen = event.release, False
        self.acknowledged.add(request)
        self._owe(request, fault)

    def _owe(self, what: str, fault: Fault | None) -> None:
        """A line may be missing if the journal could not be written; a change without a fault pays all debts."""
        self.owed = {*self.owed, what} if fault is not None else set()

    def _somebody_else_was_here(self) -> None:
        """Whether a change that the journal lacks took effect can no longer be told after a restart."""
        self.unseen = True
        self.acknowledged -= self.owed

    def _after_crash(self, request: str, wanted: set[str]) -> None:
        found = self._on_disk()
        assert found == self.current or found in wanted
        took_effect, self.current = found != self.current, found
        self._restart()
        recorded = {event.id: event.succeeded for event in journal_of(self.deploy)}
        assert not took_effect or recorded.get(request), "a change is in effect, and not in the journal"

    def _restart(self, fault: Fault | None = None) -> None:
        self.deploy.close()
        try:
            self._open(fault)
        except (Crash, RelfsError):
            self._open()
            fault = None
        self.unseen = False
        self._owe("what the restart found", fault)

    def _open(self, fault: Fault | None = None) -> None:
        self.deploy = open_deploy_path(str(self.app))
        with self._system(fault):
            self.pointer = self.pointer_class(self.deploy)

    def _system(self, fault: Fault | None = None) -> AbstractContextManager[Calls]:
        return watched(Calls(fault, links=self.links))

    def _on_disk(self) -> str | None:
        text = peek(self.deploy)
        return self.deploy.target(text).release if text is not None else None


def memory() -> str | None:
    """A file system in memory where there is one: these tests need many deploy paths, and no disk."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
