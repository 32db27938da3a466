"""The pointer: which release `current` leads to. One value, one lock, and an order that a power cut cannot spoil.

The order of a durable switch
-----------------------------
The facts. A file system may write data, directory entries and files in any order until it is told otherwise; rename(2)
makes a change atomic for those who look now, and only fsync(2) of the directory makes it last. A release that was
unpacked a second ago may be a tree of empty files after a power cut, however old its directory entry is. And a journal
line written before the rename may tell of a switch that never was; one written after it may be missing. A link has
data, too: its text, which no call flushes but one for the whole file system, for a link cannot be opened. btrfs used to
leave an empty link if one was made, renamed, and its directory fsynced (fstests generic/690, kernel commit
d0e64a981fd8); f2fs says itself that it does no more than its best (f2fs_symlink).

The choice.

    0. whether it may be made is asked: the deploy lock, the checks, the hook pre-switch
    1. `.relfs/pending` is written anew: what is about to be done, and by whom
    2. the new link is made under another name
    3. syncfs(2) of every file system that has a part in it: the release's data, `pending` and the link's text are safe
    4. the link is renamed over `current`, and the directory is fsynced
    5. the target in memory is flipped
    6. the journal line is appended and fdatasynced
    7. deploy tools' records are brought up to date, each in a way that a power cut cannot spoil (records/files.py)
    8. `pending` is removed

Whatever happens before 4 leaves the old release, whole. A crash between 4 and 6 leaves the new release and a journal
that does not know it: whoever opens the pointer next finds `pending` telling what the link says, and writes the line;
one before 8, records that nobody told: whoever comes next tells them, which changes nothing if they have been told.
If `pending` names something the link does not say, the switch never happened, and that is written.
An error in 1 to 4 changes nothing in memory. An error in 6 does not undo what everybody already sees: the line is
written as after a crash, by whoever looks next, and until it is, `pending` is not overwritten and nothing else changes.

A link that somebody else made is flushed, too, before the journal tells of it, and so are the releases: nobody else
does that.

Several disks. The state directory may be on a disk of its own (`--state-dir`), and so may the releases. One disk may be
found as it was long before the other, and no call orders the two but waiting for one. That is done between 3 and 4, and
between 4 and 6: the link is never there without the release and `pending`, nor the line without the link. Between 6 and
8 nothing has to be waited for: an old `pending` that comes back finds its line in the journal.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace

from relfs import confirm as confirming
from relfs import hold, pending, records
from relfs import journal as journal_module
from relfs.admission import Admission
from relfs.audience import Audience
from relfs.config import Config
from relfs.deadline import Deadline
from relfs.errors import RefusedError, RelfsError, reason
from relfs.history import ABORT, CANARY, CONFIRM, History, resolve, rollback_target
from relfs.hold import Hold
from relfs.hooks import HookError, Show
from relfs.journal import RECOVERED, Actor, Event, Journal, new_event, this_actor
from relfs.layout import CURRENT, RELEASES, DeployPath, LinkStyle, Target, check_name
from relfs.libc import syncfs
from relfs.lock import change_lock
from relfs.pending import Pending
from relfs.releases import trash
from relfs.releases.inventory import PRUNE, live_releases
from relfs.store import Owner, open_store, peek
from relfs.users import user_name

_log = logging.getLogger(__name__)

_INTERRUPTED = "failed: interrupted before it took effect"

_NOBODY_KNOWN = Actor(-1, "unknown", 0, "")


def remark_id(about: Event, action: str) -> str:
    """The id of what is written about an event: whoever asks again finds that it was done."""
    return f"{about.id}.{action}"


class Pointer:
    """The one current target of a deploy path, for a process that may change it.

    LOCK ORDERING: `_lock`, then the change lock. Neither is ever held while the kernel is asked to drop a dentry:
    that is for the caller, after the method has returned.
    GUARDED BY _lock: everything. `target` may be read without it, being one reference to an immutable value; what
    `status` and named() read of the rest without it may be a moment old.
    INVARIANT: while no method runs, `target` is what the store told when this process last held the change lock,
    except where `diverged` says that the disk holds something that cannot be served.

    Every method blocks (on the lock, on the disk); none may be called from a trio task without a thread.
    """

    def __init__(
        self,
        deploy: DeployPath,
        *,
        style: LinkStyle | None = None,
        config: Config = Config(),  # noqa: B008 (frozen)
        hide: str | None = None,
        on_event: Callable[[Event], None] | None = None,
        on_target: Callable[[Target], None] | None = None,
        on_flip: Callable[[Target | None], None] | None = None,
        served: Target | None = None,
    ) -> None:
        """Open the pointer, finishing in the journal what a crash left open. `style` None keeps the present one's.

        `hide` is a mountpoint that hooks shall not see. `on_event` is called with each event once it is in the
        journal, by whichever thread wrote it. `on_target` is called with each new target before anybody can see it,
        under both locks; OSError keeps the one there is. `on_flip` is called, likewise, once the disk has it. `served`
        is what another process has served up to now, and this one goes on with, without looking at anything, until
        refresh() or a change. `taken_back` is what this has taken back at once, nobody having confirmed it in time.
        Raises RelfsError if the target on disk cannot be read, LockedError if somebody keeps the change lock.
        """
        self.deploy = deploy
        self.target = served
        self.diverged: str | None = None
        self.history = History()
        self._style = style
        self._admission = Admission(deploy, config, hide)
        self._lock = threading.Lock()
        self._journal = Journal(deploy.state_fd)
        self._on_event = on_event
        self._on_target = on_target
        self._on_flip = on_flip
        self._seen: tuple[int, int, int] | None = None
        self._unwritten: Event | None = None
        self._behind: OSError | None = None
        self._in_vain: str | None = None
        self._blind = served is not None
        self.taken_back: Event | None = None
        if not self._blind:
            with self._locked():
                self.taken_back = self._take_stock(first=True)

    # ---- changes ----------------------------------------------------------------------------------------------

    def switch(
        self,
        reference: str,
        actor: Actor,
        request_id: str,
        *,
        force: bool = False,
        confirm: float | None = None,
        owner: Owner | None = None,
        show: Show | None = None,
    ) -> Event:
        """Make the release that `reference` names current. See history.resolve() for `@` names.

        If it is not confirmed within `confirm` seconds, it is taken back (confirm.py). `show` is called with what the
        hook prints. `force` passes over the checks that the configuration asks for, and over the lock file of a deploy
        tool; never over relfs's own lock, or a hook. Asked again with the same `request_id`, it changes nothing and
        tells what the first asking led to. Raises UsageError, RefusedError, LockedError, RelfsError.
        """
        if not reference.startswith("@"):
            check_name(reference)
        until = confirming.deadline(confirm) if confirm is not None else None
        with self._locked():
            self._take_stock()
            known = self._known(request_id)
            if known is not None:
                return known
            name, current = self._admitted(reference, actor, force=force), self._current_release()
            if until is not None:
                confirming.require_way_back(name, current, usable=current is not None and self._is_usable(current))
            return self._ask_and_change(
                "switch", self._text_for(name), actor, request_id, owner, tell=True, until=until, show=show
            )  # fmt: skip

    def promote(
        self,
        actor: Actor,
        request_id: str,
        *,
        begun_by: str | None = None,
        owner: Owner | None = None,
        show: Show | None = None,
    ) -> Event:
        """Make the canary current for all, the one that event `begun_by` has begun if that is given. Which one it is,
        and that nobody has aborted it meanwhile, is asked under the lock. Raises as switch(); RefusedError also if
        there is none."""
        with self._locked():
            self._take_stock()
            known = self._known(request_id)
            if known is not None:
                return known
            name = self._canary(begun_by).release
            assert name is not None, "a canary is a release"
            self._admission.require_unlocked(actor, tools=True)
            self._admission.check_release(name, self.history, force=False)
            return self._ask_and_change(
                "switch", self._text_for(name), actor, request_id, owner, tell=True, show=show
            )  # fmt: skip

    def rollback(
        self,
        reference: str | None,
        actor: Actor,
        request_id: str,
        *,
        owner: Owner | None = None,
        show: Show | None = None,
    ) -> Event:
        """Go back to the last good release, or to `reference`; the one that is left is marked bad. If one has been
        taken back in this moment, because nobody had confirmed it, that was what is asked for. Raises as switch."""
        with self._locked():
            taken_back = self._take_stock()
            known = self._known(request_id)
            if known is not None:
                return known
            if taken_back is not None and reference is None:
                return taken_back
            self._admission.require_unlocked(actor, tools=True)
            current = self._current_release()
            if reference is None:
                name = self._way_back()
            else:
                name = resolve(reference, self.history, current, self.deploy.releases(), self._admission.judge())
            if name == current:
                raise RefusedError(f"{name}: is current already; there is nothing to roll back")
            self._admission.check_release(name, self.history, force=False)
            return self._ask_and_change(
                "rollback", self._text_for(name), actor, request_id, owner, tell=True, show=show
            )  # fmt: skip

    def take_back(self, event: Event, why: str, *, owner: Owner | None = None) -> Event | None:
        """Undo the switch `event`: a rollback that asks nobody, done once, however often it is asked for. None:
        something else has become current since.

        Raises RefusedError if there is nowhere to go; LockedError,
        RelfsError.
        """
        with self._locked():
            self._take_stock()
            if self.history.active == event.id:
                return self._take_back(why, event.actor, owner)
            last = self.history.find(self.history.active or "")
            return last if last is not None and (last.origin, last.why) == (event.release, why) else None

    def confirm(self, release: str | None, actor: Actor, request_id: str) -> Event:
        """Let what waits for being confirmed stay; `release` says which that is, if given.

        Raises RefusedError if nothing waits, or another release; LockedError, RelfsError.
        """
        with self._locked():
            self._take_stock()
            known = self._known(request_id)
            if known is not None:
                return known
            waiting = self.history.unconfirmed
            if waiting is None or release not in (None, waiting.release):
                raise RefusedError(confirming.nothing_waits(self.history, release))
            event = self._event(CONFIRM, waiting.release, waiting.origin, actor, request_id)
            self._write_or_fail(event)
            return event

    def take_stock(self) -> Event | None:
        """Bring all in line with the disk and the clock; what was taken back, if nobody has confirmed it in time.
        Raises LockedError, RelfsError."""
        with self._locked():
            return self._take_stock()

    def replace(self, text: str, actor: Actor, request_id: str, *, owner: Owner | None = None) -> Event:
        """Make a link text current that somebody's deploy tool wrote; the caller has checked what it leads to. What the
        tool has for records, it keeps by itself.

        Raises RefusedError, LockedError, RelfsError.
        """
        with self._locked():
            self._take_stock()
            known = self._known(request_id)
            if known is not None:
                return known
            self._admission.require_unlocked(actor, tools=False)
            self._admission.check_mark(self.deploy.target(text).release, self.history)
            return self._ask_and_change("switch", text, actor, request_id, owner)

    def record(
        self,
        action: str,
        actor: Actor,
        request_id: str,
        outcome: str,
        *,
        wanted: Target | None = None,
        output: str = "",
    ) -> Event:
        """Write an event that changes nothing: a replacement that was given up, or one that was refused (`wanted`),
        by a hook that printed `output`.

        Raises LockedError, RelfsError.
        """
        with self._locked():
            self._reload_history()
            label = self.target.label if self.target is not None else None
            release = wanted.label if wanted is not None else label
            event = replace(
                self._event(action, release, label, actor, request_id), outcome=outcome, output=output or None
            )  # fmt: skip
            self._write_or_fail(event)
            return event

    def remark(self, about: Event, action: str, outcome: str, output: str) -> Event:
        """Write what came of a hook (`action`) that was run because of event `about`.

        Raises LockedError, RelfsError.
        """
        with self._locked():
            self._reload_history()
            event = self._event(action, about.release, about.origin, about.actor, remark_id(about, action))
            event = replace(event, outcome=outcome, output=output or None)
            self._write_or_fail(event)
            return event

    def discard(self, name: str, actor: Actor, request_id: str, *, force: bool = False) -> Event:
        """Move release `name`, which nobody can make current meanwhile, to the trash (releases/trash.py).

        `force` passes over the lock file of a deploy tool, as it does for a switch. Asked again with the same
        `request_id`, it tells what the first asking led to. Raises as switch();
        RefusedError also for the release that is current.
        """
        with self._locked():
            self._take_stock()
            known = self._known(request_id)
            if known is not None:
                return known
            self._admission.require_unlocked(actor, tools=not force)
            if name in live_releases(self.deploy, self.target):
                raise RefusedError(f"{name}: is current, and stays")
            why = confirming.protected(self.deploy, self.history).get(name)
            if why is not None:
                raise RefusedError(f"{name}: {why}, and stays")
            if self.history.canary is not None and self.history.canary.release == name:
                raise RefusedError(f"{name}: is a canary, which some see already, and stays")
            trash.put(self.deploy, name)
            event = self._event(PRUNE, name, None, actor, request_id)
            self._write_or_owe(event)
            return event

    def begin_canary(
        self,
        reference: str,
        audience: Audience,
        actor: Actor,
        request_id: str,
        *,
        force: bool = False,
        seconds: float | None = None,
    ) -> Event:
        """Let the release that `reference` names be current for `audience`. It is written in the journal, and for the
        caller to do, as long as History.canary says so; and to decide about in so many `seconds`, if they are given.

        Raises as switch(); RefusedError also while there is another canary.
        """
        if not reference.startswith("@"):
            check_name(reference)
        until = confirming.deadline(seconds, "decide") if seconds is not None else None
        with self._locked():
            self._take_stock()
            known = self._known(request_id)
            if known is not None:
                return known
            name, current = self._admitted(reference, actor, force=force), self._current_release()
            _require_no_canary(name, current, self.history.canary)
            try:
                self._announce(self.target_of(name))
            except OSError as error:
                raise RelfsError(f"{name}: is no canary: {reason(error)}") from error
            event = replace(self._event(CANARY, name, current, actor, request_id), audience=audience, confirm=until)
            self._write_or_fail(event)
            return event

    def abort_canary(
        self, actor: Actor, request_id: str, *, begun_by: str | None = None, why: str | None = None
    ) -> Event:
        """Let everybody see what is current, if the canary is the one that event `begun_by` has begun, or that is not
        given. Raises RefusedError if there is none; LockedError, RelfsError."""
        with self._locked():
            self._take_stock()
            known = self._known(request_id)
            if known is not None:
                return known
            canary = self._canary(begun_by)
            event = replace(self._event(ABORT, canary.release, self._current_release(), actor, request_id), why=why)
            self._write_or_fail(event)
            return event

    @property
    def live(self) -> tuple[Target, ...] | None:
        """What is current, for everybody or, as a canary, for some; None as long as the journal has not been read."""
        if self._blind:
            return None
        canary = self.history.canary
        shown = self.target_of(canary.release) if canary is not None and canary.release is not None else None
        return tuple(each for each in (self.target, shown) if each is not None)

    def target_of(self, name: str) -> Target:
        """What a link to release `name` says here."""
        return self.deploy.target(self._text_for(name))

    def sight(self, reference: str) -> Target:
        """What `reference` would make current, for somebody who is only to see it. As named().

        Raises UsageError, RefusedError, RelfsError.
        """
        if not reference.startswith("@"):
            check_name(reference)
        name = self.named(reference)
        self.deploy.check_release(name, allow_empty=True)
        return self.target_of(name)

    def hold(self, actor: Actor, holder: int, *, why: str, seconds: float | None) -> Hold:
        """Let process `holder` hold the deploy lock; see hold.py. Raises LockedError, RelfsError."""
        with self._locked():
            assert self.deploy.state_fd is not None, "the lock was had"
            return hold.take(self.deploy.state_fd, actor, holder, why=why, seconds=seconds)

    def give_back(self) -> Hold | None:
        """End whatever hold there is, and tell which it was. Raises LockedError, RelfsError."""
        with self._locked():
            assert self.deploy.state_fd is not None, "the lock was had"
            return hold.give_back(self.deploy.state_fd)

    def refresh(self) -> Target | None:
        """Look whether the target on disk was changed by somebody else, and follow it if it can be served.

        Returns the target now in force. Raises LockedError, RelfsError.
        """
        before = self.target
        try:
            settled = self.diverged is None and self._behind is None and not self._blind
            if settled and peek(self.deploy) == (before.text if before is not None else None):
                return before
        except (OSError, RelfsError):
            pass  # said below, if it still is so once nobody is changing it
        with self._locked():
            self._take_stock()
            return self.target

    def named(self, reference: str) -> str:
        """The release that `reference` stands for now (history.resolve()), for somebody who changes nothing. It takes
        no lock: what another thread is changing is seen as it was before, or is after.

        Raises UsageError, RefusedError, RelfsError.
        """
        history = History(self._journal.events()) if self._blind else self.history
        is_good = self._admission.judge()
        return resolve(reference, history, self._current_release(), self.deploy.releases(), is_good)

    def flush(self) -> None:
        """Write out what the file systems of the link, the releases and the state still hold in memory: ahead of a
        switch that is coming, or behind one that somebody else has made. Raises OSError."""
        self._flush_target(RELEASES if self.deploy.leads_somewhere(RELEASES) else ".")

    @property
    def is_blind(self) -> bool:
        """Whether this goes on with what another process has served, and has read no journal yet."""
        return self._blind

    @property
    def behind(self) -> str | None:
        """Why the journal lacks what has happened; None: it does not."""
        error = self._behind
        return f"the journal cannot be written: {reason(error)}; nothing can be switched" if error is not None else None

    def check_invariants(self) -> None:
        """For tests: raise AssertionError where an INVARIANT does not hold. No other method may be running."""
        self.history.check_invariants()
        if self.diverged is None:
            assert (self.target.text if self.target is not None else None) == peek(self.deploy)
            if self.target is not None:
                assert self.history.path[-1:] == [self.target.label]

    # ---- inside: all of it runs under both locks ------------------------------------------------------------------

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with self._lock, change_lock(self.deploy.state_fd, shown=self.deploy.state_path):
            try:
                yield
            except OSError as error:
                raise RelfsError(f"{self.deploy.path}: {CURRENT} cannot be changed: {reason(error)}") from error

    def _current_release(self) -> str | None:
        return self.target.release if self.target is not None else None

    def _known(self, request_id: str) -> Event | None:
        """What became of a request that was made before; None: nothing, so that it can be done now. Raises RelfsError
        for what was refused."""
        event = self.history.find(request_id)
        if event is not None and event.outcome == _INTERRUPTED:  # and whoever asks again still wants it
            return None
        if event is not None and not event.succeeded:
            raise RelfsError(f"{event.release}: {event.outcome}")
        return event

    def _ask_and_change(
        self,
        action: str,
        text: str,
        actor: Actor,
        request_id: str,
        owner: Owner | None,
        *,
        tell: bool = False,
        until: Deadline | None = None,
        show: Show | None = None,
    ) -> Event:
        """The hook is asked last, when nothing else can be in the way; deploy tools are told (`tell`) afterwards."""
        self._require_journal()
        target = self._target_of(text)
        try:
            said = self._admission.ask_hook(target, self._current_release(), actor, show)
        except HookError as error:
            if tell:  # a tool's refusal is noted by whoever answers the tool
                self._note_refusal(action, target, actor, error)
            raise
        event = replace(self._event_of(action, target, actor, request_id), confirm=until, output=said or None)
        return self._change(event, target, owner, tell=tell)

    def _note_refusal(self, action: str, target: Target, actor: Actor, error: HookError) -> None:
        """Under an id of its own: whoever asks again under his own is to be heard again."""
        event = self._event_of(action, target, actor, os.urandom(8).hex())
        self._write_or_owe(replace(event, outcome=f"refused: {error}", output=error.output or None))

    def _take_back(self, why: str, actor: Actor, owner: Owner | None = None) -> Event:
        """Neither the deploy lock nor a hook is asked: confirm.py tells why."""
        self._require_journal()
        target = self._target_of(self._text_for(self._way_back()))
        back = replace(self._event_of("rollback", target, actor, os.urandom(8).hex()), why=why)
        return self._change(back, target, owner, tell=True)

    def _take_back_overdue(self) -> Event | None:
        """What fails is said once, and tried again by whoever comes next: what that one wants, he may have."""
        event = confirming.overdue(self.history)
        if event is None or self.diverged is not None:
            return None
        why = confirming.why_taken_back(event)
        try:
            back = self._take_back(why, this_actor())
        except RelfsError as error:
            if self._in_vain != event.id:
                _log.warning("%s, but cannot be taken back: %s", why, error)
            self._in_vain = event.id
            return None
        _log.warning("%s: %s is current again", why, back.release)
        return back

    def _way_back(self) -> str:
        """Where going back leads to. Raises RefusedError."""
        usable = filter(self._admission.judge(), (release.name for release in self.deploy.releases()))
        return rollback_target(self.history, self._current_release(), usable)

    def _is_usable(self, name: str) -> bool:
        return any(release.name == name for release in self.deploy.releases()) and self._admission.judge()(name)

    def _admitted(self, reference: str, actor: Actor, *, force: bool) -> str:
        """The release that `reference` names, which `actor` may make current. Raises as switch()."""
        self._admission.require_unlocked(actor, tools=not force)
        releases, is_good = self.deploy.releases(), self._admission.judge()
        name = resolve(reference, self.history, self._current_release(), releases, is_good)
        self._admission.check_release(name, self.history, force=force)
        return name

    def _canary(self, begun_by: str | None) -> Event:
        """The event that has begun it. Raises RefusedError."""
        canary = self.history.canary
        if canary is None or begun_by not in (None, canary.id):
            raise RefusedError("there is no canary; `relfsctl canary RELEASE` begins one")
        return canary

    def _text_for(self, name: str) -> str:
        style = self._style
        if style is None:
            absolute = self.target is not None and self.target.text.startswith("/") and self.target.release is not None
            style = "absolute" if absolute else "relative"
        return self.deploy.link_text(name, style)

    def _require_journal(self) -> None:
        if self._behind is not None:
            raise RelfsError(
                f"the journal cannot be written: {reason(self._behind)}; nothing was changed"
            ) from self._behind

    def _event_of(self, action: str, target: Target, actor: Actor, request_id: str) -> Event:
        """The event of making `target` current."""
        origin = self.target.label if self.target is not None else None
        return replace(self._event(action, target.label, origin, actor, request_id), text=target.written)

    def _change(self, event: Event, target: Target, owner: Owner | None, *, tell: bool) -> Event:
        """Steps 1 to 8; `tell` deploy tools of it, in their records."""
        origin = event.origin
        try:
            self._journal.probe()
            self._announce(target)
            self._write_pending(Pending(event, target.text, tell))
            open_store(self.deploy).write(target.text, owner, flush=lambda: self._flush_target(target.text))
        except OSError as error:
            self._write_or_owe(replace(event, outcome=f"failed: {reason(error)}"))
            self._forget_pending()
            kept = f"{CURRENT} is still {origin}" if origin is not None else f"there is still no {CURRENT}"
            raise RelfsError(f"{target.label}: not switched to: {reason(error)}; {kept}") from error
        self._flip(target)
        self.diverged = None
        self._write_or_owe(event)
        if tell:
            records.tell(self.deploy, event, self.history)
        self._forget_pending()
        if self._behind is not None:
            _log.warning("%s is current, but that is not in the journal yet: %s", target.label, reason(self._behind))
        return event

    def _target_of(self, text: str) -> Target:
        """What a link saying `text` leads to, with the text that the real link is to hold."""
        persistent = self.deploy.persistent_text(text)
        return replace(self.deploy.target(persistent), written=text if text != persistent else None)

    def _target_on_disk(self, text: str) -> Target:
        """The target that the real link tells, as it was written if the journal knows that it was written otherwise."""
        written = self.history.written
        known = written is not None and self.deploy.persistent_text(written) == text
        return replace(self.deploy.target(text), written=written if known else None)

    def _announce(self, target: Target) -> None:
        if self._on_target is not None:
            self._on_target(target)

    def _flush_target(self, text: str) -> None:
        """syncfs(2) where the release lives, where the link is made, and where `pending` is: once for each device."""
        release = self.deploy.open_target(text)
        try:
            flushed: set[int] = set()
            for directory in (release, self.deploy.fd, self.deploy.state_fd):
                if directory is not None and (device := os.fstat(directory).st_dev) not in flushed:
                    syncfs(directory)
                    flushed.add(device)
        finally:
            os.close(release)

    # ---- pending and the journal

    def _write_pending(self, note: Pending) -> None:
        pending.write(self.deploy.state_fd, note)

    def _forget_pending(self) -> None:
        """Once the journal has the line, nothing is pending. If this fails, the line's id tells the same."""
        if self._behind is None:
            with suppress(OSError):
                pending.forget(self.deploy.state_fd)

    def _event(self, action: str, release: str | None, origin: str | None, actor: Actor, request_id: str) -> Event:
        """One that happens now. A clock that was set back does not make it earlier than what it follows: the order of
        the journal is that of its lines, and `@2026-09-01T12:00` goes by it."""
        event = new_event(action, release, origin, actor, request_id)
        return replace(event, time=max(event.time, self.history.witnessed or 0.0))

    def _write_line(self, event: Event) -> None:
        self._write_lines([event])

    def _write_lines(self, events: Sequence[Event]) -> None:
        self._journal.append(*events)
        for event in events:
            self.history.add(event)
        self._seen = self._journal_identity()
        for event in events:
            if self._on_event is not None:
                self._on_event(event)

    def _write_or_fail(self, event: Event) -> None:
        try:
            self._write_line(event)
        except OSError as error:
            raise RelfsError(f"the journal cannot be written: {reason(error)}") from error

    def _write_or_owe(self, event: Event) -> None:
        """Write the line; if that fails, whoever takes stock next finds that it is missing, and tries again."""
        try:
            self._write_line(event)
        except OSError as error:
            self._owe(error, event)

    def _owe(self, error: OSError, *events: Event) -> None:
        for event in events:
            self.history.add(event)
            self._unwritten, self._behind, self._seen = event, error, None
            _log.info("%s of %s, %s, is not in the journal: %s", event.action, event.release, event.outcome, error)

    def _journal_identity(self) -> tuple[int, int, int] | None:
        try:
            status = os.lstat(journal_module.JOURNAL, dir_fd=self.deploy.state_fd)
        except FileNotFoundError:
            return None
        return status.st_ino, status.st_size, status.st_mtime_ns

    def _reload_history(self) -> None:
        """Take in what another holder of the change lock wrote."""
        identity = self._journal_identity()
        if identity is None or identity != self._seen:
            self.history = History(self._journal.events())
            self._seen = identity

    # ---- what is on disk

    def _take_stock(self, *, first: bool = False) -> Event | None:
        """Bring memory and journal in line with the disk, which others may have changed, or a crash; then take back
        what nobody has confirmed in time. Where the disk does not tell, memory stays as it was: it may know of a line
        that the journal could not take."""
        history, behind = self.history, self._behind
        try:
            self._compare(first=first)
        except (OSError, RelfsError):
            self.history, self._behind, self._seen = history, behind, None
            raise
        return self._take_back_overdue()

    def _compare(self, *, first: bool) -> None:
        self._behind = None
        text = peek(self.deploy)
        self._reload_history()
        self._finish_pending(text)
        found = self._target_on_disk(text) if text is not None else None
        self.diverged = None if first or found == self.target else self._trouble_with(found)
        if self.diverged is not None:
            found = self.target
        if found is not None and (self.history.witnessed is None or self.history.path[-1:] != [found.label]):
            self._note_change(found, first=first)
        if first or found != self.target:
            self._flip(found)
        self._blind = False

    def _flip(self, target: Target | None) -> None:
        if self._on_flip is not None:
            self._on_flip(target)
        self.target = target

    def _trouble_with(self, found: Target | None) -> str | None:
        """Why a target that somebody else put on the disk cannot be followed; None: it can be, and is about to be."""
        if found is None:
            return f"the real {CURRENT} is gone"
        if not self.deploy.leads_somewhere(found.text):
            return f"the real {CURRENT} leads nowhere: {found.text}"
        try:
            self._announce(found)
        except OSError as error:
            return f"the real {CURRENT} leads to {found.label}, but {reason(error)}"
        return None

    def _finish_pending(self, text: str | None) -> None:
        note = pending.read(self.deploy.state_fd)
        if note is None:
            return
        known = self.history.find(note.event.id)
        if known is None:
            outcome = RECOVERED if note.wanted == text else _INTERRUPTED
            ours = self._unwritten if self._unwritten is not None and self._unwritten.id == note.event.id else None
            self._write_or_owe(ours or replace(note.event, outcome=outcome))
        if note.tell and note.wanted == text and (known is None or known.succeeded):
            records.tell(self.deploy, note.event, self.history)
        self._forget_pending()

    def _note_change(self, found: Target, *, first: bool) -> None:
        """The link says what the journal does not: the first record of it, or somebody went behind our back. Deploy
        tools' records may tell more of it.

        `adopt` is written last of all, so that a journal without it shows that taking over the records was cut off: it
        is begun again then, for a power cut may have left the end of a write without its beginning. Where they cannot
        be read as yet, none is written, for the next opening to try again; only a change that is to be written cannot
        wait for that.
        """
        fresh = self.history.witnessed is None
        told = self._untold(found, History() if fresh else self.history)
        own: list[Event] = []
        before = [event.release for event in (told or ())[-1:]] or self.history.path[-1:]
        if fresh or before != [found.label]:
            origin = before[0] if before else None
            action = "adopt" if fresh else "follow"
            own.append(self._event(action, found.label, origin, self._owner_of_link(), os.urandom(8).hex()))
        if told is None and fresh and first:
            self.history.add(own[-1])
            self._seen = None
            return
        self._write_durably(told or [], own, anew=fresh and bool(told))

    def _write_durably(self, *batches: Sequence[Event], anew: bool) -> None:
        """What others did is flushed before the journal tells of it, and each batch is safe before the next is begun.
        `anew`: what the journal has is forgotten."""
        left = [batch for batch in batches if batch]
        try:
            self.flush()
            if anew and self.history.path:
                self.history = History()
                self._journal.clear()
            while left:
                self._write_lines(left[0])
                del left[0]
        except OSError as error:
            self._owe(error, *(event for batch in left for event in batch))

    def _untold(self, found: Target, history: History) -> list[Event] | None:
        """What deploy tools' records tell and `history` does not; None if they cannot be read."""
        try:
            return records.untold(self.deploy, found.release, history)
        except (OSError, RelfsError) as error:
            why = reason(error) if isinstance(error, OSError) else error
            _log.warning("%s: deploy tools' records cannot be read: %s", self.deploy.path, why)
            return None

    def _owner_of_link(self) -> Actor:
        """All that the disk can tell about who changed the link."""
        try:
            uid = os.lstat(CURRENT, dir_fd=self.deploy.fd).st_uid
        except OSError:
            return _NOBODY_KNOWN
        return Actor(uid, user_name(uid), 0, "")


def _require_no_canary(name: str, current: str | None, canary: Event | None) -> None:
    """Raises RefusedError if `name` cannot be one now."""
    if canary is not None:
        raise RefusedError(f"{canary.release}: is a canary; `relfsctl canary promote` or `abort` that first")
    if name == current:
        raise RefusedError(f"{name}: is current for everybody already")
