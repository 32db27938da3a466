"""The worker: serves one mount. Parts are built, tied together, run, and taken down.

Order for the first worker of a mount: the pointer is read, INIT is brokered, native directories are attached, the live
release is sealed if that is asked for, the control socket listens; then the supervisor asks the mount through its own
front door, and only if it answers is it ready. Requests that arrive meanwhile wait in the kernel; none fails.

Order for one that takes over: what the dead worker knew is read from the ledger and the estate before the kernel is
asked for anything; then readers are served at once, with the release that was served; all that nobody waits for
follows.

Order at the end: the mount is detached, which uncovers the real symlink for every new lookup at once; those that are
under way, or have a file open through us, are served until the kernel says that the last has gone, or for a while.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import signal
import socket
import stat
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import ExitStack
from dataclasses import replace
from functools import partial

import pyfuse3
import trio

from relfs import libc
from relfs.aftermath import Aftermath
from relfs.daemon.canarying import Canarying
from relfs.daemon.confirming import take_back_in_time
from relfs.daemon.copying import Copied
from relfs.daemon.endpoint import listen, remove_socket, run_directory
from relfs.daemon.member import TICK, Member
from relfs.daemon.methods import Mounted, clean, methods
from relfs.daemon.nested import HOME_FD, TREE_FD, attach_nested
from relfs.daemon.pinning import Pinning
from relfs.daemon.preflight import raise_descriptor_limit, replace_daemon_lock
from relfs.daemon.privileges import drop
from relfs.daemon.reader import become_reader
from relfs.daemon.seal import Binds
from relfs.daemon.server import ControlServer, EventHub
from relfs.daemon.session import Session, deploy_path, load_session
from relfs.daemon.upkeep import Gone, keep_up, make_state_again
from relfs.daemon.watcher import follow_link, until_unmounted
from relfs.descriptors import descriptors
from relfs.errors import EXIT_FAILED, RelfsError, reason
from relfs.fuse.abroad import Abroad
from relfs.fuse.changes import Changes
from relfs.fuse.current import CurrentLink
from relfs.fuse.guard import Guard
from relfs.fuse.handles import Handles
from relfs.fuse.handshake import Handshake
from relfs.fuse.inodes import ROOT, STATE_NODE, InodeTable
from relfs.fuse.once import LEFT_SECONDS, Once
from relfs.fuse.operations import NATIVE, Operations
from relfs.fuse.passthrough import Passthrough, has_access_lists
from relfs.fuse.preview import Preview
from relfs.fuse.protocol import POSIX_ACL, parse_init, reply_flags
from relfs.fuse.relay import Relay
from relfs.fuse.second_names import SecondNames
from relfs.fuse.teller import Teller
from relfs.fuse.wakeup import interrupted_reads
from relfs.journal import Event
from relfs.layout import CURRENT, RELEASES, STATE, DeployPath, Target
from relfs.mountinfo import FSTYPE, mount_at
from relfs.mountinfo import mounts as all_mounts
from relfs.mounts import attach_and_hold, detach, detach_only
from relfs.pointer import Pointer
from relfs.seal import Sealer, Seals
from relfs.survival.ledger import Ledger
from relfs.threads import in_thread
from relfs.trust import identity
from relfs.views.canary import DECISIONS, Canary, Stage, is_decision
from relfs.views.pins import PINS, Pin, Pins, is_pin
from relfs.views.sights import Sights

_log = logging.getLogger(__name__)

_WITHOUT_SEAL = "`seal = false` in config.toml mounts it unguarded"
_LINGER_SECONDS = 5.0
_RETIRE_SECONDS = 5.0

_RELEASES_FD = "releases"
_LISTENER_FD = "listener"


def run_worker(member: Member, *, adopting: bool) -> int:
    """Serve until the mount is gone, and tell the supervisor how it ended. To be called in a process of its own."""
    drop()  # before there is a thread, and the log has one
    who = member.who
    member.ledger.note("worker", who)
    member.tell("hello", pid=who.pid, start=who.start)
    try:
        status, words = _outcome(member, adopting=adopting)
    except Exception:
        _log.exception("ended by an error")  # without a word to the supervisor, who takes that for a death
        logging.shutdown()
        return EXIT_FAILED
    if adopting and words:
        _log.error("%s: cannot be taken over: %s", load_session(member.ledger).plan.mountpoint, words)
        member.tell("unfit", words=words)
    else:
        member.tell("ended", status=status, words=words)
    logging.shutdown()
    return status


def _outcome(member: Member, *, adopting: bool) -> tuple[int, str]:
    """The exit status, and what went wrong. Raises what nobody foresaw, once the mount was served."""
    try:
        return _serve(member, adopting=adopting), ""
    except RelfsError as error:
        return error.status, str(error)
    except Exception as error:
        if member.ledger.mounted:  # the next one may do better
            raise
        _log.exception("ended by an error")
        return EXIT_FAILED, f"{type(error).__name__}: {error}"


def _serve(member: Member, *, adopting: bool) -> int:
    session = load_session(member.ledger)
    deploy = deploy_path(session, member.estate)
    raise_descriptor_limit()
    return trio.run(_Mount(member, session, deploy, adopting=adopting).run)


class _Mount:
    """The parts of a running mount, and the order in which they come and go."""

    def __init__(self, member: Member, session: Session, deploy: DeployPath, *, adopting: bool) -> None:
        self._member = member
        self._ledger = member.ledger
        self._plan = session.plan
        self._init = parse_init(session.init)
        self._relayed = session.relayed
        self._deploy = deploy
        self._config = session.config
        self._adopting = adopting
        self._hub = EventHub()
        self._table = InodeTable(descriptors().inodes, member.ledger)
        self._once = Once(member.ledger)
        self._seals = Seals(deploy)
        self._guard = Guard(self._table, member[HOME_FD], member.ledger.seals)
        self._status = 0
        self._every_beat: list[Callable[[], None]] = []
        self._tried: set[str] = set()
        self._attached: set[str] = _attached(member.ledger)
        self._leaving = False
        self._canarying: Canarying | None = None
        self._copies = (
            Copied(self._ledger.pins, deploy, PINS, is_pin),
            Copied(self._ledger.decisions, deploy, DECISIONS, is_decision, self._canary_id),
        )
        self._signals: AsyncIterator[int]

    async def run(self) -> int:
        """Returns the exit status. Raises RelfsError where the mount cannot be brought up, or taken over."""
        token = trio.lowlevel.current_trio_token()

        def publish(event: Event) -> None:
            token.run_sync_soon(self._publish, event)

        pointer = await in_thread(lambda: self._open_pointer(publish))
        with ExitStack() as session:
            self._signals = session.enter_context(
                trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
            )
            session.enter_context(interrupted_reads())
            failure = await self._serve(pointer, session)
        if failure is not None:
            raise failure
        if not self._ledger.mounted:
            raise RelfsError(f"{self._plan.mountpoint}: was unmounted while it was being mounted")
        return self._status

    def _publish(self, event: Event) -> None:
        self._hub.publish(event)
        if self._canarying is not None:
            self._canarying.follow()

    def _open_pointer(self, publish: Callable[[Event], None]) -> Pointer:
        on_target = self._seals.prepare if self._config.seal else None
        return Pointer(
            self._deploy, style=self._plan.link, config=self._config, hide=self._plan.mountpoint,
            on_event=publish, on_target=on_target,
            on_flip=self._note_served, served=self._served() if self._adopting else None,
        )  # fmt: skip

    def _note_served(self, target: Target | None) -> None:
        """Before anybody can see it."""
        told = json.dumps([target.text, target.written]) if target is not None else ""
        self._ledger.served.store(told.encode("ascii"))

    def _served(self) -> Target | None:
        """What the worker before this one served."""
        told = self._ledger.served.load()
        if not told:
            return None
        text, written = json.loads(told)
        return replace(self._deploy.target(text), written=written)

    async def _serve(self, pointer: Pointer, session: ExitStack) -> RelfsError | None:
        """Run everything until the end of the connection. What went wrong is returned, not raised, so that it is not
        wrapped in the nursery's exception group. `session` outlives the nursery."""
        async with trio.open_nursery() as nursery:
            aftermath = Aftermath(pointer, self._config)
            changes = Changes(pointer, self._seals, Teller(self._member["connection"]), aftermath)
            pins, decisions = self._copies
            sights = Sights(Pins(pins), Canary(self._ledger.canary, decisions))
            pinning = Pinning(sights.pins, changes, pins.written)
            self._canarying = canarying = Canarying(sights.canary, pointer, changes)
            current = CurrentLink(
                pointer, changes, self._table, nursery,
                once=self._once, sights=sights, kept=self._ledger.replacements, show=self._show,
                checks=self._config.checks, grace=self._config.grace,
            )  # fmt: skip
            handshake = self._handshake()
            operations = self._operations(pointer, sights, current, handshake, nursery)
            if self._adopting:
                self._restore(current, operations)
            else:
                canarying.follow()
                await self._load_copies()
            pinning.restore()
            sights.canary.restore()
            pyfuse3.init(operations, handshake.session_path, set())
            session.callback(pyfuse3.close, unmount=False)
            nursery.start_soon(self._until_disconnected, pyfuse3.main, nursery)

            def leave() -> None:
                nursery.start_soon(self._leave)

            mounted = Mounted(
                self._plan, self._member, pointer, changes, current, sights, pinning, canarying, operations, self._init,
                handshake.caches_links, self._relayed, self._seals if self._config.seal else None, self._native, leave,
            )  # fmt: skip
            nursery.start_soon(self._obey_signals, leave)
            nursery.start_soon(self._obey_supervisor, changes, leave)
            try:
                await handshake.broker()
                if self._relayed:
                    nursery.start_soon(self._until_disconnected, await self._relay(handshake.ours, operations), nursery)
                await self._bring_up(nursery, mounted)
                await trio.sleep_forever()
            except (RelfsError, OSError, ValueError) as error:
                if not self._adopting:
                    await self._detach()
                nursery.cancel_scope.cancel()
                return error if isinstance(error, RelfsError) else RelfsError(f"{self._plan.mountpoint}: {error}")
        return None

    def _handshake(self) -> Handshake:
        told = self._ledger.reply.load()
        if told:
            access_lists = bool(reply_flags(told) & POSIX_ACL)
        else:
            access_lists = not self._plan.bind or has_access_lists(self._member[HOME_FD], without=NATIVE)
        connection = self._member["connection"]
        return Handshake(
            connection, self._init, self._ledger.reply, access_lists=access_lists, adopting=self._adopting,
            relayed=self._relayed,
        )  # fmt: skip

    def _operations(
        self, pointer: Pointer, sights: Sights, current: CurrentLink, handshake: Handshake, nursery: trio.Nursery
    ) -> Operations:
        self._table.pin(ROOT, os.dup(self._member[HOME_FD]))
        state_fd = self._deploy.state_fd
        assert state_fd is not None
        self._table.pin(STATE_NODE, os.dup(state_fd)).volatile = True
        handles = Handles(self._table, self._ledger, self._member)
        abroad = Abroad(self._table, self._member, lambda: self._once.deliver())
        files = Passthrough(self._table, handles, exclusive=self._plan.over, beyond=abroad.beyond)
        preview = Preview(pointer, current, self._table, files, show=self._show)
        second_names = SecondNames(
            pointer, sights, current, self._table, show=self._show, ask=lambda: self._member.tell("links")
        )  # fmt: skip
        if self._adopting:
            abroad.restore()

        def on_native(name: str) -> None:
            nursery.start_soon(self._attach, name)

        return Operations(
            self._table, files, current, preview, second_names, handshake, on_native, self._guard, self._once, abroad
        )

    def _restore(self, current: CurrentLink, operations: Operations) -> None:
        """Know what the worker before this one knew. Contains no `await`."""
        operations.pin_native()
        self._table.restore()
        self._guard.restore()
        operations.restore()
        self._once.restore()
        current.restore()

    async def _load_copies(self) -> None:
        """Know what the mount before this one knew of processes that still live."""
        for copy in self._copies:
            await copy.load()

    def _canary_id(self) -> str:
        """What the decisions are about."""
        stage = self._canarying.canary.stage if self._canarying is not None else None
        return stage.id if stage is not None else ""

    async def _bring_up(self, nursery: trio.Nursery, mounted: Mounted) -> None:
        nursery.start_soon(self._beat)
        if not self._ledger.mounted:
            found = mount_at(self._plan.mountpoint)
            if found is None or found.fstype != FSTYPE:
                raise RelfsError(f"{self._plan.mountpoint}: was unmounted while it was being mounted")
            self._ledger.mounted = found.id
        if self._adopting:
            self._member.tell("serving", current=[])
            await self._show_anew(nursery, mounted.changes)  # the one before may have died before it told the kernel
            mounted.changes.drop_root_attributes()
        for name in NATIVE:
            await self._attach(os.fsdecode(name))
        await self._attach_nested()
        if self._config.seal:
            await in_thread(self._begin_sealing, mounted.pointer, mounted.sights)
            nursery.start_soon(mounted.changes.keep_unsealing)
        await self._show_anew(nursery, mounted.changes)  # what it shows may depend on what could be attached
        server = ControlServer(
            methods(mounted), self._hub,
            owner=os.fstat(self._deploy.fd).st_uid, group=self._config.group, states=self._states(),
        )  # fmt: skip
        nursery.start_soon(server.serve, self._listen())
        make_again = partial(self._make_again, server, nursery)
        nursery.start_soon(keep_up, self._deploy, lambda: self._member["lock"], make_again, mounted.leave)
        nursery.start_soon(follow_link, self._deploy.fd, mounted.changes)
        nursery.start_soon(self._notice_unmount, mounted.leave)
        nursery.start_soon(take_back_in_time, mounted.pointer, mounted.changes, self._every_beat)
        for copy in self._copies:
            copy.write_again()  # whoever died may have had no time for it
            nursery.start_soon(copy.run)
        nursery.start_soon(mounted.pinning.run)
        nursery.start_soon(mounted.canarying.decide_in_time, self._every_beat)
        self._say_serving(mounted.pointer.target, mounted.sights.canary.stage)
        nursery.start_soon(self._go_on_deleting, mounted)
        if self._adopting:
            await self._take_stock(mounted.changes)

    async def _show_anew(self, nursery: trio.Nursery, changes: Changes) -> None:
        """Not waited for by one who takes over: a tool whose swap goes on for as long as a hook takes keeps the
        directory meanwhile, and the control socket is needed all the same."""
        if self._adopting:
            nursery.start_soon(changes.drop_current)
        else:
            await changes.drop_current()

    def _say_serving(self, target: Target | None, canary: Stage | None) -> None:
        """The supervisor sees one of the two, or the other if the canary's time is over just now."""
        if self._adopting:
            _log.info("process %d has taken over %s", os.getpid(), self._plan.mountpoint)
            return
        label = target.label if target is not None else "nothing yet"
        _log.info("%s is mounted at %s; current is %s", self._plan.deploy_path, self._plan.mountpoint, label)
        targets = (target, canary.target if canary is not None else None)
        self._member.tell("serving", current=[self._show(each) for each in targets if each is not None])

    async def _take_stock(self, changes: Changes) -> None:
        """Finish what the worker before this one had begun, once nobody has to wait for it."""
        try:
            await changes.refresh()
            if self._canarying is not None:
                self._canarying.follow()
            if self._config.seal:
                await changes.seal_live()
        except (RelfsError, OSError) as error:
            _log.warning("the real link cannot be looked at: %s", error)

    async def _go_on_deleting(self, mounted: Mounted) -> None:
        """What was removed, and a crash has kept from being deleted."""
        try:
            await clean(mounted)
        except RelfsError as error:
            _log.warning("%s", error)

    async def _beat(self) -> None:
        """Show that the event loop goes round, and do what is due now and then."""
        began = trio.current_time()
        while True:
            self._ledger.beat.value += 1
            self._once.settle()
            if trio.current_time() - began > LEFT_SECONDS:
                self._once.expire()
            for act in self._every_beat:
                act()
            self._member.turn()
            await trio.sleep(TICK)

    def _show(self, target: Target) -> str:
        """What readers get to read: what was written, since Capistrano's clean-up goes by that. A mount elsewhere
        without native directories leads into the deploy path itself, so that bytes are native there too."""
        if target.written is not None:
            return target.written
        if not self._plan.over and self._config.seal and target.text.startswith("/"):
            inside = self._deploy.inside(target.text)  # what is sealed is sealed in the mount
            return f"{self._plan.mountpoint}/{inside}" if inside is not None else target.text
        if self._plan.over or RELEASES in self._attached or not self._plan.bind or target.text.startswith("/"):
            return target.text
        return f"{self._plan.deploy_path}/{target.text}"

    # ---- native directories

    async def _attach(self, name: str) -> None:
        """Attach one if that is asked for, possible and sensible; otherwise it is served by passthrough."""
        source = self._deploy.state_fd if name == STATE else self._deploy.fd
        assert source is not None
        path = "." if name == STATE else name
        if not (self._plan.bind or name == STATE) or name in self._tried | self._attached:
            return
        if not _is_real_directory(source, path):
            return
        self._tried.add(name)  # now: attaching looks the name up, which tells us of it again
        try:
            attached = await in_thread(
                attach_and_hold, source, path, f"{self._plan.mountpoint}/{name}", self._plan.mount_options
            )
        except OSError as error:
            level = logging.INFO if error.errno == errno.EPERM else logging.WARNING
            _log.log(level, "%s is served by passthrough: it cannot be attached: %s", name, reason(error))
            return
        self._note_attached(name)
        if name == RELEASES and self._config.seal:
            self._member.put(_RELEASES_FD, attached)
        else:
            os.close(attached)

    async def _attach_nested(self) -> None:
        """What was mounted below the deploy path before it was covered."""
        trees = {name: fd for name, fd in self._member.estate if name.startswith(TREE_FD)}
        await in_thread(attach_nested, trees, self._plan.mountpoint)
        for name in trees:
            self._note_attached(name.removeprefix(TREE_FD))
            self._member.drop(name)

    def _note_attached(self, path: str) -> None:
        self._attached.add(path)
        self._ledger.attached.store(json.dumps(sorted(self._attached)).encode("ascii"))

    # ---- sealing

    def _begin_sealing(self, pointer: Pointer, sights: Sights) -> None:
        """Seal what is live, and from now on what becomes so. Raises RelfsError where that cannot be kept."""
        stage = sights.canary.stage
        live = [pointer.target] if pointer.target is not None else []
        if stage is not None and self._deploy.leads_somewhere(stage.target.text):  # else there is nothing to be kept
            live.append(stage.target)
        try:
            sealer = self._sealer()
            self._seals.begin(sealer, live, sealer.covered if isinstance(sealer, Binds) else frozenset())
        except OSError as error:
            raise RelfsError(f"{self._deploy.path}/{CURRENT}: {reason(error)}; {_WITHOUT_SEAL}") from error
        for pin in sights.pins:
            self._seal_again(pin)
        self._guard.settle()

    def _seal_again(self, pin: Pin) -> None:
        """Of a pin from before us. What it is pinned to may have been removed while nothing was mounted."""
        try:
            if pin.seals:
                self._seals.hold(pin.target, anew=True)
        except OSError as error:
            _log.warning("process %d is pinned to %s: %s", pin.pid, pin.release, reason(error))

    def _sealer(self) -> Sealer:
        if _RELEASES_FD in self._member:
            return Binds(self._deploy, self._member[_RELEASES_FD], self._plan.mount_options, self._ledger.seals)
        if not _is_real_directory(self._deploy.fd, RELEASES):
            raise RelfsError(
                f"{self._deploy.path}/{RELEASES}: is a link, and what it leads to cannot be sealed; {_WITHOUT_SEAL}"
            )
        if self._plan.over or not self._plan.bind:
            return self._guard
        raise RelfsError(
            f"{self._plan.mountpoint}: no release can be sealed: {CURRENT} leads into {self._deploy.path}, which this "
            f"mount does not cover; mount over it, or with --no-bind; {_WITHOUT_SEAL}"
        )

    def _states(self) -> tuple[str, ...]:
        """What the state directory is, as it is, and as the mount shows it: which is not looked at, since a tool may
        keep the mount's directory."""
        assert self._deploy.state_fd is not None
        own = identity(self._deploy.state_fd)
        return own, *(f"{each.device}:{STATE_NODE}" for each in all_mounts() if each.id == self._ledger.mounted)

    def _listen(self) -> trio.SocketListener:
        """The socket is in the state directory where clients can reach that natively, in a run directory otherwise."""
        assert self._deploy.state_fd is not None
        if _LISTENER_FD not in self._member:
            native = STATE in self._attached or not self._plan.over
            made = listen(self._deploy.state_fd, place=None if native else run_directory(self._deploy.state_fd))
            self._member.put(_LISTENER_FD, made.detach())
        own = socket.socket(fileno=os.dup(self._member[_LISTENER_FD]))
        own.setblocking(False)
        return trio.SocketListener(trio.socket.from_stdlib_socket(own))

    # ---- what somebody may remove

    async def _make_again(self, server: ControlServer, nursery: trio.Nursery, what: Gone) -> None:
        state_fd = self._deploy.state_fd
        assert state_fd is not None
        if what is Gone.STATE:
            remove_socket(state_fd)
            await in_thread(make_state_again, self._deploy)  # its path may lead through the mount
            self._member.tell("keep", state_fd, name="state")
            self._table.pin(STATE_NODE, os.dup(state_fd)).volatile = True
            await self._attach_state_again()
            server.states = self._states()
        elif what is Gone.LOCK:
            self._member.put("lock", replace_daemon_lock(state_fd))
        else:
            self._member.drop(_LISTENER_FD)
            nursery.start_soon(server.serve, self._listen())
        for copy in self._copies:
            copy.write_again()  # whoever removed that, may have removed all

    async def _attach_state_again(self) -> None:
        """Nothing can be mounted on a directory that was removed, so what is mounted there has to go first."""
        if STATE in self._attached:
            await in_thread(detach, f"{self._plan.mountpoint}/{STATE}")
        self._tried.discard(STATE)
        self._attached.discard(STATE)
        await self._attach(STATE)

    # ---- life and end

    async def _relay(self, session: socket.socket, operations: Operations) -> Callable[[], Awaitable[None]]:
        """What carries requests and replies."""
        await become_reader(self._ledger)
        relay = Relay(self._member["connection"], session, self._ledger.requests())
        self._once.deliver = relay.deliver
        relay.delivered = self._once.delivered
        relay.expect = operations.expect
        return relay.run

    async def _until_disconnected(self, serve: Callable[[], Awaitable[None]], nursery: trio.Nursery) -> None:
        try:
            await serve()
        except* OSError as errors:  # pyfuse3's come out of a nursery of its own
            error = _first(errors)
            if not self._is_unmounted(error):
                _log.error("%s: the connection to the kernel was lost: %s", self._plan.mountpoint, reason(error))
                self._status = EXIT_FAILED
        nursery.cancel_scope.cancel()

    def _is_unmounted(self, lost: OSError) -> bool:
        """Whether the connection was `lost` with the mount. The kernel says ENODEV then, but ECONNABORTED in the midst of
        handing over a request (fuse_dev_do_read() in fs/fuse/dev.c), as it does if somebody aborts the connection of
        what is mounted."""
        if lost.errno == errno.ECONNABORTED:
            return not any(each.id == self._ledger.mounted for each in all_mounts())
        return lost.errno == errno.ENODEV

    async def _obey_signals(self, leave: Callable[[], None]) -> None:
        async for _ in self._signals:
            if self._leaving:  # asked twice: at once
                pyfuse3.terminate()
                return
            leave()

    async def _obey_supervisor(self, changes: Changes, leave: Callable[[], None]) -> None:
        while True:
            for message in self._member.hear():
                message.close()
                if message.kind == "leave" and self._leaving:
                    pyfuse3.terminate()
                    return
                if message.kind == "leave":
                    leave()
                elif message.kind == "retire":
                    await self._retire(changes)
                elif message.kind == "end":
                    pyfuse3.terminate()
                    return
            with trio.move_on_after(self._member.pause):
                await trio.lowlevel.wait_readable(self._member)

    async def _retire(self, changes: Changes) -> None:
        """Make room for a worker of another version, which finds all as a dead one would leave it; but what is being
        changed is brought to its end, if that does not take too long."""
        with trio.move_on_after(_RETIRE_SECONDS):
            await changes.settle()
        _log.info("process %d retires", os.getpid())
        logging.shutdown()
        os._exit(0)

    async def _notice_unmount(self, leave: Callable[[], None]) -> None:
        await until_unmounted(self._ledger.mounted)
        leave()

    async def _leave(self) -> None:
        """Unmount, and end once nobody needs us any more."""
        if self._leaving:
            return
        self._leaving = True
        self._member.tell("leaving")
        _log.info("%s is being unmounted", self._plan.mountpoint)
        await in_thread(self._seals.end)  # a switch that is still asked for does without
        await self._detach()
        await trio.sleep(_LINGER_SECONDS)
        _log.info("%s: a process still uses what was mounted; it gets errors from now on", self._plan.mountpoint)
        pyfuse3.terminate()

    def _native(self) -> tuple[str, ...]:
        return tuple(sorted(self._attached))

    async def _detach(self) -> None:
        """Take our own mount away, with all on it, wherever it has been moved. Ours only: somebody may have mounted
        over it, or unmounted it."""
        found = next((each for each in all_mounts() if each.id == self._ledger.mounted), None)
        if not self._ledger.mounted:
            found = mount_at(self._plan.mountpoint)
        if found is None or found.fstype != FSTYPE:
            return
        try:
            await in_thread(detach_only, found)
        except RelfsError as error:
            _log.error("%s", error)


def _attached(ledger: Ledger) -> set[str]:
    """The native directories that are attached already."""
    told = ledger.attached.load()
    return set(json.loads(told)) if told else set()


def _first(errors: BaseExceptionGroup[OSError]) -> OSError:
    """One of them, out of whatever groups it is in."""
    first: OSError | BaseExceptionGroup[OSError] = errors
    while isinstance(first, BaseExceptionGroup):
        first = first.exceptions[0]
    return first


def _is_real_directory(directory: int, name: str) -> bool:
    """Not a link to one: what would be mounted on that, would be mounted outside of our mount."""
    try:
        return stat.S_ISDIR(libc.glance(directory, os.fsencode(name))[0])
    except OSError:
        return False
