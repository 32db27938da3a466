"""The virtual `current`: what the name leads to, for whom, and what becomes of attempts to replace it.

The link has no state of its own: what it says is Pointer.target, or what the caller sees instead (`sights`); who is
replacing it is `replacements`. Every way of replacing it (unlink and symlink, rename, exchange) ends in
Changes.replace(), after the new target was checked; the covered directory's own `current` is never removed, so that the
real symlink serves at every moment.

The answer that is ready
------------------------
Some facts. While anybody sees another release, each resolution by each process asks us, and the answer is nearly always
the one that was given last. To make it costs more than all that decides which one it is: a look at the real link's
owner and times, and a dozen attributes that are set.

The choice. Of each target the answer is kept, for as long as the kernel would keep it if it were allowed to: until it
is told to drop it (Changes.drop_current), or would be; and not beyond the moment in which another target is flipped to,
which is a new object each time. Only how long the kernel may keep it is set anew, and the kernel's count of the inode
goes up.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import stat
import time
from collections.abc import Callable

import trio
from pyfuse3 import EntryAttributes, FUSEError, InodeT, RequestContext, SetattrFields

from relfs import libc
from relfs.checks import Checks, check_content
from relfs.errors import LockedError, RefusedError, RelfsError, reason
from relfs.fuse.caller import acting_as
from relfs.fuse.changes import Changes
from relfs.fuse.inodes import ROOT, InodeTable
from relfs.fuse.once import Once, errand
from relfs.fuse.passthrough import FOR_EVER, fill
from relfs.hooks import HookError
from relfs.journal import Actor, command_line
from relfs.layout import CURRENT, DeployPath, Target
from relfs.pointer import Pointer
from relfs.processes import process, thread_group
from relfs.store import TEMPORARY, Owner
from relfs.survival.memory import Cell
from relfs.threads import in_thread, user_name_of
from relfs.views.replacement import Replacement, begin_replacement, replacement_of
from relfs.views.sights import Sights

_log = logging.getLogger(__name__)

_NAME = CURRENT.encode()

_CHECK_SECONDS = 5.0
"""How long a new target may take to be looked at. It may lead through this very mount, whose directory the caller of
the request keeps locked: that look ends only when the request is answered."""

_LOOKS = 4
"""How many may be under way at once: one that hangs keeps its thread, and there are other things to do with threads."""

_REPEAT_SECONDS = 10.0
_REFUSALS_MAX = 100
"""The same refusal is journalled once in so many seconds, and no more than so many others."""


class CurrentLink:
    """GUARDED BY the event loop: `replacements`; `_noted`, which has the refusals that were journalled lately, by whom,
    for what text and why, and when; `_ready`, which has answers, and is worth nothing once the pointer has another
    target than `_ready_since`; `_sent_back`, the thread and the inode that the name was to be looked up again for."""

    def __init__(
        self,
        pointer: Pointer,
        changes: Changes,
        table: InodeTable,
        nursery: trio.Nursery,
        *,
        once: Once,
        sights: Sights,
        kept: Cell,
        show: Callable[[Target], str],
        checks: Checks,
        grace: float,
    ) -> None:
        """`show` makes the text that readers get of a target; `grace` is in seconds; `kept` is where the next worker
        finds the replacements."""
        self.replacements: list[Replacement] = []
        self._sights = sights
        self._once = once
        self._kept = kept
        self._pointer = pointer
        self._deploy: DeployPath = pointer.deploy
        self._changes = changes
        self._table = table
        self._nursery = nursery
        self._show = show
        self._checks = checks
        self._grace = grace
        self._looking = trio.CapacityLimiter(_LOOKS)
        self._noted: dict[tuple[int, str, str], float] = {}
        self._ready: dict[Target, EntryAttributes] = {}
        self._ready_since: Target | None = None
        self._sent_back: tuple[int, InodeT] | None = None
        changes.on_drop = self._ready.clear
        self.on_forgotten: Callable[[], object] = lambda: None
        """Called when somebody asks for a link that the kernel has forgotten, though it was not told to."""

    # ---- looking: no `await` in here

    def lookup(self, context: RequestContext) -> EntryAttributes:
        """Raises FUSEError(ENOENT) for whoever is replacing the link, and while there is none."""
        replacing = bool(self.replacements) and self._replacement_of(context) is not None
        target = self._sight_of(context) or self._pointer.target
        if replacing or target is None:
            raise FUSEError(errno.ENOENT)
        return self._entry(target)

    def _sight_of(self, context: RequestContext) -> Target | None:
        """What the caller sees; None: what everybody does."""
        return self._sights.seen_by(context.pid, context.uid, context.gid) if self._sights else None

    def entry(self) -> EntryAttributes | None:
        """What a lookup answers, which takes a reference, who sees what everybody does; None while there is none."""
        target = self._pointer.target
        return self._entry(target) if target is not None else None

    def _entry(self, target: Target) -> EntryAttributes:
        if self._ready_since is not self._pointer.target:
            self._ready.clear()
            self._ready_since = self._pointer.target
        entry = self._ready.get(target)
        if entry is not None and not self._table.count_link(entry.st_ino):
            entry = None
            self.on_forgotten()
        if entry is None:
            self._ready[target] = entry = self.attributes(self._table.link(os.fsencode(self._show(target))))
            self._table.count_link(entry.st_ino)
        entry.entry_timeout = self._kept_for()
        return entry

    def _kept_for(self) -> float:
        """Seconds, by the kernel: none while it depends on who asks."""
        return 0.0 if self.replacements or self._sights else FOR_EVER

    def hidden_from(self, context: RequestContext) -> bool:
        """Whether the caller sees no `current`, or none that could be replaced."""
        if self._pointer.target is None:
            return True
        return bool(self.replacements) and self._replacement_of(context) is not None

    def attributes(self, nodeid: InodeT) -> EntryAttributes:
        """Of any virtual link, this one or an earlier one that the kernel still holds."""
        text = self._table.text(nodeid)
        assert text is not None
        entry = fill(EntryAttributes(), self._status())
        entry.st_ino = nodeid
        entry.st_mode = stat.S_IFLNK | 0o777
        entry.st_nlink = 1
        entry.st_size = len(text)
        entry.attr_timeout = FOR_EVER
        entry.entry_timeout = self._kept_for()
        return entry

    def _status(self) -> os.stat_result:
        """Owner and times are the real link's; the deploy path's where links cannot be."""
        try:
            return os.lstat(CURRENT, dir_fd=self._deploy.fd)
        except OSError:
            return os.fstat(self._deploy.fd)

    def _replacement_of(self, context: RequestContext) -> Replacement | None:
        pid = thread_group(context.pid)
        return next((each for each in self.replacements if each.hides_from(pid)), None)

    # ---- replacing

    def restore(self) -> None:
        """Go on with the replacements that the worker before this one knew of."""
        told = self._kept.load()
        for each in map(replacement_of, json.loads(told) if told else []):
            self.replacements.append(each)
            self._nursery.start_soon(self._lapse, each)

    def _keep(self) -> None:
        """To be called when `replacements` has changed."""
        self._kept.store(json.dumps([each.as_json() for each in self.replacements]).encode("ascii"))

    async def unlink(self, context: RequestContext) -> None:
        """Begin a replacement: the name is withdrawn from the caller, and stays for everybody else."""
        request = errand("unlink", context.pid, ROOT, _NAME)
        begun = self._once.begun(request) is not None
        with self._once.held(request):
            if not (begun and self.replacements and self.hidden_from(context)):
                await self._withdraw(context)

    async def _withdraw(self, context: RequestContext) -> None:
        if self.hidden_from(context):
            raise FUSEError(errno.ENOENT)
        self._require_known(context)
        # Most of the disk's work is done here, while readers still have the cached name: once the tool creates the
        # link, the kernel makes who looks the name up wait for the end of that.
        await self._changes.flush()
        replacement = begin_replacement(await _actor(context), time.time())
        self.replacements.append(replacement)
        self._keep()
        self._nursery.start_soon(self._lapse, replacement)

    def _require_known(self, context: RequestContext) -> None:
        """The name can only be withdrawn from somebody. A process outside of our pid name space (fuse(4): pid 0), or
        one that /proc hides, would go on seeing it, and make its link inside the old release; it is told at once."""
        if process(thread_group(context.pid)) is None:
            _log.warning("%s: a process that /proc here does not show may not remove it", CURRENT)
            raise FUSEError(errno.EPERM)

    async def symlink(self, text: bytes, context: RequestContext) -> EntryAttributes:
        """End a replacement, or make the first `current`."""
        request = errand("symlink", context.pid, ROOT, _NAME, text)
        was = self._once.begun(request)
        request_id = _request_id(was)
        with self._once.held(request, request_id.encode()):
            if not (was is not None and not self.hidden_from(context) and self._is_current(text)):
                if not self.hidden_from(context):
                    raise FUSEError(errno.EEXIST)
                await self._replace(text, context, request_id)
        self._nursery.start_soon(self._changes.drop_current)  # what is sealed follows once the kernel knows
        entry = self.entry()
        assert entry is not None, "a replacement has left no target"
        return entry

    def _is_current(self, text: bytes) -> bool:
        target = self._pointer.target
        return target is not None and os.fsencode(target.as_written) == text

    async def take(self, parent: InodeT, directory: int, name: bytes, flags: int, context: RequestContext) -> None:
        """rename(2) of the link `name` in `directory` (a descriptor; `parent` is its nodeid) onto `current`."""
        request = errand("rename", context.pid, parent, name, ROOT, _NAME, flags)
        await self._take(request, parent, directory, name, flags, context)

    async def _take(
        self, request: bytes, parent: InodeT, directory: int, name: bytes, flags: int, context: RequestContext
    ) -> None:
        was = self._once.begun(request)
        if was is not None and self._is_taken(was, directory, name):
            return
        text = _text_of(directory, name, visible=not self.hidden_from(context))
        exchanged = self._exchanged_text(flags, context)
        request_id = _request_id(was)
        with self._once.held(request, request_id.encode() + text):
            await self._replace(text, context, request_id)
            self._nursery.start_soon(self._changes.drop_current)  # also where the rest fails: the link is replaced
            with acting_as(context):
                if exchanged is None:
                    os.unlink(name, dir_fd=directory)
                else:
                    _put_link(directory, name, exchanged)
        if exchanged is not None:
            self._nursery.start_soon(self._changes.drop_name, parent, name)

    def _is_taken(self, was: bytes, directory: int, name: bytes) -> bool:
        """Whether the worker before this one has done all of it: the text is current, and not `name`'s any more."""
        text = was[_REQUEST_ID_LENGTH:]
        try:
            return self._is_current(text) and os.readlink(name, dir_fd=directory) != text
        except OSError:
            return True

    def _exchanged_text(self, flags: int, context: RequestContext) -> bytes | None:
        hidden = self.hidden_from(context)
        if flags & libc.RENAME_EXCHANGE:
            if hidden or self._pointer.target is None:
                raise FUSEError(errno.ENOENT)
            return os.fsencode(self._pointer.target.as_written)
        if flags & libc.RENAME_NOREPLACE and not hidden:
            raise FUSEError(errno.EEXIST)
        if flags & ~libc.RENAME_NOREPLACE:
            raise FUSEError(errno.EINVAL)
        return None

    async def give(self, parent: InodeT, directory: int, name: bytes, flags: int, context: RequestContext) -> None:
        """rename(2) of `current` to `name` in `directory`: that gets a link, and `current` is being replaced."""
        request = errand("rename", context.pid, ROOT, _NAME, parent, name, flags)
        if flags & libc.RENAME_EXCHANGE:
            await self._take(request, parent, directory, name, flags, context)
            return
        if flags & ~libc.RENAME_NOREPLACE:  # RENAME_WHITEOUT wants a device in the link's place
            raise FUSEError(errno.EINVAL)
        if self._once.begun(request) is not None and self.replacements and self.hidden_from(context):
            return
        with self._once.held(request):
            await self._give(parent, directory, name, flags, context)

    async def _give(self, parent: InodeT, directory: int, name: bytes, flags: int, context: RequestContext) -> None:
        if self.hidden_from(context) or self._pointer.target is None:
            raise FUSEError(errno.ENOENT)
        self._require_known(context)
        with acting_as(context):
            text = os.fsencode(self._pointer.target.as_written)
            if flags & libc.RENAME_NOREPLACE:
                os.symlink(text, name, dir_fd=directory)
            else:
                _put_link(directory, name, text)
        await self._withdraw(context)
        self._nursery.start_soon(self._changes.drop_name, parent, name)

    def setattr(self, nodeid: InodeT, wanted: EntryAttributes, fields: SetattrFields, context: RequestContext) -> None:
        """lchown(2) and utimensat(2) of the link that the caller sees reach the real link; of another one (`nodeid`),
        nothing. Who sees another release than others may change it as well, as he may replace it: a deploy tool that is
        started by something pinned does both."""
        target = self._sight_of(context) or self._pointer.target
        if target is None or self._table.text(nodeid) != os.fsencode(self._show(target)) or self.hidden_from(context):
            raise FUSEError(self._why_not(nodeid, context))
        if fields.update_uid or fields.update_gid:
            uid = wanted.st_uid if fields.update_uid else -1
            gid = wanted.st_gid if fields.update_gid else -1
            with acting_as(context):
                os.chown(CURRENT, uid, gid, dir_fd=self._deploy.fd, follow_symlinks=False)
        if fields.update_atime or fields.update_mtime:
            now = self._status()
            atime = wanted.st_atime_ns if fields.update_atime else now.st_atime_ns
            mtime = wanted.st_mtime_ns if fields.update_mtime else now.st_mtime_ns
            os.utime(CURRENT, ns=(atime, mtime), dir_fd=self._deploy.fd, follow_symlinks=False)
        self._ready.clear()

    def _why_not(self, nodeid: InodeT, context: RequestContext) -> int:
        """Why a link that is not the real one cannot be changed. At first, ESTALE: the VFS looks the name up again, as
        `current` may have moved elsewhere. If that has led to the same, it is a name that always does (preview.py)."""
        asked = (context.pid, nodeid)
        before, self._sent_back = self._sent_back, None
        if before == asked:
            return errno.EPERM
        self._sent_back = asked
        return errno.ESTALE

    async def _replace(self, encoded: bytes, context: RequestContext, request_id: str) -> None:
        mine = self._replacement_of(context) if self.replacements else None
        text = os.fsdecode(encoded)
        actor = await _actor(context)
        try:
            await self._check(text)
            event = await self._changes.replace(text, actor, request_id, owner=Owner(context.uid, context.gid))
        except (OSError, RelfsError) as error:
            if mine is not None:
                mine.refused(thread_group(context.pid))
                self._keep()
            self._nursery.start_soon(self._changes.drop_current)  # the pointer may have followed somebody else first
            raise self._refusal(error, text, actor) from error
        if mine in self.replacements:
            self.replacements.remove(mine)
            self._keep()
        self._nursery.start_soon(self._changes.follow_up, event)

    def _refusal(self, error: OSError | RelfsError, text: str, actor: Actor) -> FUSEError:
        """All that the tool gets to hear is an errno; the rest is for the log, and the journal unless that knows."""
        why = str(error) if isinstance(error, RelfsError) else f"{text}: {reason(error)}"
        refused = isinstance(error, OSError | RefusedError | LockedError)
        level = logging.INFO if refused else logging.WARNING
        _log.log(level, "a swap by pid %d (%s) was not done: %s", actor.pid, actor.command, why)
        if refused and self._is_news((actor.uid, text, why)):
            said = error.output if isinstance(error, HookError) else ""
            self._nursery.start_soon(self._note_refusal, self._deploy.target(text), actor, why, said)
        return FUSEError(_errno_of(error))

    def _is_news(self, refusal: tuple[int, str, str]) -> bool:
        """Whether the journal has not been told lately. A tool that tries again and again says nothing new, and would
        have everybody's changes wait for the disk behind its lines."""
        now = trio.current_time()
        self._noted = {each: since for each, since in self._noted.items() if now - since < _REPEAT_SECONDS}
        if refusal in self._noted or len(self._noted) >= _REFUSALS_MAX:
            return False
        self._noted[refusal] = now
        return True

    async def _note_refusal(self, wanted: Target, actor: Actor, why: str, said: str) -> None:
        await self._record("replace", actor, f"refused: {why}", wanted, said)

    async def _check(self, text: str) -> None:
        """Refuse a target that can serve nobody. Raises as check_content() does, and ELOOP for one that leads back."""
        if self._deploy.leads_back(text):
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
        with trio.move_on_after(_CHECK_SECONDS):
            await in_thread(
                check_content, self._deploy, text, self._checks, limiter=self._looking, abandon_on_cancel=True
            )
            return
        raise RefusedError(f"{text}: could not be looked at within {_CHECK_SECONDS:g} s", errno.EBUSY)

    async def _lapse(self, replacement: Replacement) -> None:
        """After the grace period, a replacement that nobody ended is given up, and said so."""
        left = replacement.since + self._grace - time.time()
        await trio.sleep(min(max(left, 0), self._grace))  # clocks are set
        if replacement not in self.replacements:
            return
        self.replacements.remove(replacement)
        self._keep()
        await self._changes.drop_current()
        outcome = f"lapsed: {CURRENT} was removed and not made again within {self._grace:g} s"
        await self._record("replace", replacement.actor, outcome)

    async def _record(
        self, action: str, actor: Actor, outcome: str, wanted: Target | None = None, said: str = ""
    ) -> None:
        try:
            await self._changes.record(action, actor, os.urandom(16).hex(), outcome, wanted=wanted, output=said)
        except RelfsError as error:
            _log.warning("this is not in the journal: %s by pid %d, %s: %s", action, actor.pid, outcome, error)


def _errno_of(error: OSError | RelfsError) -> int:
    if isinstance(error, LockedError):
        return errno.EBUSY
    if isinstance(error, RefusedError):
        return error.number
    cause = error.__cause__ if isinstance(error, RelfsError) else error
    return (cause.errno if isinstance(cause, OSError) else None) or errno.EIO


_REQUEST_ID_LENGTH = 32


def _request_id(was: bytes | None) -> str:
    """That of the worker before this one, if it had begun; then the journal tells whether it came to an end."""
    return was[:_REQUEST_ID_LENGTH].decode() if was is not None else os.urandom(_REQUEST_ID_LENGTH // 2).hex()


async def _actor(context: RequestContext) -> Actor:
    pid = thread_group(context.pid)
    return Actor(context.uid, await user_name_of(context.uid), pid, command_line(pid))


def _text_of(directory: int, name: bytes, *, visible: bool) -> bytes:
    """The text of the link that is to become `current`. Raises what rename(2) would, and EPERM for what it would do."""
    mode = os.lstat(name, dir_fd=directory).st_mode
    if stat.S_ISLNK(mode):
        return os.readlink(name, dir_fd=directory)
    if stat.S_ISDIR(mode) and visible:
        raise FUSEError(errno.ENOTDIR)
    raise FUSEError(errno.EPERM)


def _put_link(directory: int, name: bytes, text: bytes) -> None:
    """Make `name` a link that says `text`, replacing what is there in one step."""
    temporary = f"{TEMPORARY}.{os.getpid()}".encode()
    os.symlink(text, temporary, dir_fd=directory)
    try:
        os.rename(temporary, name, src_dir_fd=directory, dst_dir_fd=directory)
    except OSError:
        os.unlink(temporary, dir_fd=directory)
        raise
