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

import json
import logging
import os
import signal
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import ExitStack
from dataclasses import replace
from functools import partial

import pyfuse3
import trio

from relfs.aftermath import Aftermath
from relfs.daemon.canarying import Canarying
from relfs.daemon.confirming import take_back_in_time
from relfs.daemon.copying import Copied
from relfs.daemon.departure import Departure
from relfs.daemon.endpoint import listen, remove_socket, run_directory
from relfs.daemon.member import TICK, Member
from relfs.daemon.methods import Mounted, clean, methods
from relfs.daemon.native import NativeDirectories
from relfs.daemon.nested import HOME_FD
from relfs.daemon.pinning import Pinning
from relfs.daemon.preflight import raise_descriptor_limit, replace_daemon_lock
from relfs.daemon.privileges import drop
from relfs.daemon.reader import become_reader
from relfs.daemon.sealing import begin_sealing, choose_sealer
from relfs.daemon.server import ControlServer, EventHub
from relfs.daemon.session import Session, deploy_path, load_session
from relfs.daemon.upkeep import Gone, keep_up, make_state_again
from relfs.daemon.watcher import follow_link
from relfs.descriptors import descriptors
from relfs.errors import EXIT_FAILED, RelfsError, reason
from relfs.fuse.abroad import Abroad
from relfs.fuse.changes import Changes
from relfs.fuse.current import CurrentLink
from relfs.fuse.guard import Guard
from relfs.fuse.handles import Handles
from relfs.fuse.handshake import Handshake
from relfs.fuse.inodes import ROOT, STATE_NODE, InodeTable
from relfs.fuse.once import Once
from relfs.fuse.operations import NATIVE, Operations
from relfs.fuse.passthrough import Passthrough, has_access_lists
from relfs.fuse.preview import Preview
from relfs.fuse.protocol import POSIX_ACL, parse_init, reply_flags
from relfs.fuse.relay import Relay
from relfs.fuse.second_names import SecondNames
from relfs.fuse.teller import Teller
from relfs.fuse.wakeup import interrupted_reads
from relfs.journal import Event
from relfs.layout import STATE, DeployPath, Target
from relfs.mountinfo import FSTYPE, mount_at
from relfs.mountinfo import mounts as all_mounts
from relfs.pointer import Pointer
from relfs.seal import Seals
from relfs.threads import in_thread
from relfs.trust import identity
from relfs.views.canary import DECISIONS, Canary, Stage, is_decision
from relfs.views.pins import PINS, Pins, is_pin
from relfs.views.sights import Sights

_log = logging.getLogger(__name__)

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
        self._native = NativeDirectories(member, deploy, session.plan, sealed=session.config.seal)
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
                once=self._once, sights=sights, kept=self._ledger.replacements, show=self._native.show,
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
            departure = Departure(self._member, self._plan.mountpoint, self._seals, nursery)
            nursery.start_soon(self._until_disconnected, pyfuse3.main, departure, nursery)
            mounted = Mounted(
                self._plan, self._member, pointer, changes, current, sights, pinning, canarying, operations, self._init,
                handshake.caches_links, self._relayed, self._seals if self._config.seal else None, self._native.names,
                departure.begin,
            )  # fmt: skip
            nursery.start_soon(departure.obey_signals, self._signals)
            nursery.start_soon(departure.obey_supervisor, changes)
            try:
                await handshake.broker()
                if self._relayed:
                    relay = await self._relay(handshake.ours, operations)
                    nursery.start_soon(self._until_disconnected, relay, departure, nursery)
                await self._bring_up(nursery, mounted, departure)
                await trio.sleep_forever()
            except (RelfsError, OSError, ValueError) as error:
                if not self._adopting:
                    await departure.detach()
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
        preview = Preview(pointer, current, self._table, files, show=self._native.show)
        second_names = SecondNames(
            pointer, sights, current, self._table, show=self._native.show, ask=lambda: self._member.tell("links")
        )  # fmt: skip
        if self._adopting:
            abroad.restore()

        def on_native(name: str) -> None:
            nursery.start_soon(self._native.attach, name)

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

    async def _bring_up(self, nursery: trio.Nursery, mounted: Mounted, departure: Departure) -> None:
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
            await self._native.attach(os.fsdecode(name))
        await self._native.attach_nested()
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
        nursery.start_soon(keep_up, self._deploy, lambda: self._member["lock"], make_again, departure.begin)
        nursery.start_soon(follow_link, self._deploy.fd, mounted.changes)
        nursery.start_soon(departure.notice_unmount)
        nursery.start_soon(take_back_in_time, mounted.pointer, mounted.changes, self._every_beat)
        for copy in self._copies:
            copy.write_again()  # whoever died may have had no time for it
            nursery.start_soon(copy.run)
        nursery.start_soon(mounted.pinning.run)
        nursery.start_soon(mounted.canarying.decide_in_time, self._every_beat)
        self._say_serving(mounted.pointer, mounted.sights.canary.stage)
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

    def _say_serving(self, pointer: Pointer, canary: Stage | None) -> None:
        """The supervisor sees what is current or the canary, or what is current later, if somebody switches just now:
        `noted` tells it that."""
        if self._adopting:
            _log.info("process %d has taken over %s", os.getpid(), self._plan.mountpoint)
            return
        noted, target = self._ledger.served.load().decode("ascii"), pointer.target
        label = target.label if target is not None else "nothing yet"
        _log.info("%s is mounted at %s; current is %s", self._plan.deploy_path, self._plan.mountpoint, label)
        targets = (target, canary.target if canary is not None else None)
        current = [self._native.show(each) for each in targets if each is not None]
        self._member.tell("serving", current=current, noted=noted)

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
        while True:
            self._ledger.beat.value += 1
            self._once.beat()
            for act in self._every_beat:
                act()
            self._member.turn()
            await trio.sleep(TICK)

    def _begin_sealing(self, pointer: Pointer, sights: Sights) -> None:
        """Blocks. Raises RelfsError."""
        choose = partial(choose_sealer, self._member, self._deploy, self._plan, self._guard)
        begin_sealing(self._seals, choose, self._deploy, pointer, sights)
        self._guard.settle()

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
            native = STATE in self._native or not self._plan.over
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
            await self._native.attach_state_again()
            server.states = self._states()
        elif what is Gone.LOCK:
            self._member.put("lock", replace_daemon_lock(state_fd))
        else:
            self._member.drop(_LISTENER_FD)
            nursery.start_soon(server.serve, self._listen())
        for copy in self._copies:
            copy.write_again()  # whoever removed that, may have removed all

    # ---- life and end

    async def _relay(self, session: socket.socket, operations: Operations) -> Callable[[], Awaitable[None]]:
        """What carries requests and replies."""
        await become_reader(self._ledger)
        relay = Relay(self._member["connection"], session, self._ledger.requests())
        self._once.deliver = relay.deliver
        relay.delivered = self._once.delivered
        relay.expect = operations.expect
        return relay.run

    async def _until_disconnected(
        self, serve: Callable[[], Awaitable[None]], departure: Departure, nursery: trio.Nursery
    ) -> None:
        try:
            await serve()
        except* OSError as errors:  # pyfuse3's come out of a nursery of its own
            error = _first(errors)
            if not departure.is_unmounted(error):
                _log.error("%s: the connection to the kernel was lost: %s", self._plan.mountpoint, reason(error))
                self._status = EXIT_FAILED
        nursery.cancel_scope.cancel()


def _first(errors: BaseExceptionGroup[OSError]) -> OSError:
    """One of them, out of whatever groups it is in."""
    first: OSError | BaseExceptionGroup[OSError] = errors
    while isinstance(first, BaseExceptionGroup):
        first = first.exceptions[0]
    return first
