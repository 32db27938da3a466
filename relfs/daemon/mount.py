"""One mount from beginning to end: parts are built, tied together, run, and taken down.

Order at the start: the deploy path is opened (so that it can be reached once it is covered), the pointer is read, the
connection is made, INIT is brokered, native directories are attached, the live release is sealed if that is asked for,
the control socket listens; then the mount is asked through its own front door, and only if it answers are we ready.
Requests that arrive meanwhile wait in the kernel; none fails.

Order at the end: the mount is detached, which uncovers the real symlink for every new lookup at once; those that are
under way, or have a file open through us, are served until the kernel says that the last has gone, or for a while.
"""

from __future__ import annotations

import errno
import logging
import os
import resource
import signal
import stat
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack

import pyfuse3
import trio

from relfs.config import Config, load_config
from relfs.daemon.endpoint import listen, run_directory
from relfs.daemon.methods import Mounted, methods
from relfs.daemon.plan import Plan
from relfs.daemon.preflight import (
    check_mountpoint,
    clear_broken,
    daemon_lock,
    raise_descriptor_limit,
    require_servable,
)
from relfs.daemon.privileges import drop
from relfs.daemon.seal import Binds
from relfs.daemon.server import ControlServer, EventHub
from relfs.daemon.service import notify
from relfs.daemon.watcher import follow_link, until_unmounted
from relfs.errors import EXIT_FAILED, RelfsError, reason
from relfs.fuse.changes import Changes
from relfs.fuse.connection import Connection, connect, escape_option
from relfs.fuse.current import CurrentLink
from relfs.fuse.guard import Guard
from relfs.fuse.handshake import Handshake
from relfs.fuse.inodes import ROOT, STATE_NODE, InodeTable
from relfs.fuse.operations import NATIVE, Operations
from relfs.fuse.passthrough import Passthrough, has_access_lists
from relfs.fuse.wakeup import interrupted_reads
from relfs.journal import Event
from relfs.layout import CURRENT, RELEASES, STATE, DeployPath, Target, open_deploy_path
from relfs.mountinfo import FSTYPE, mount_at
from relfs.mountinfo import mounts as all_mounts
from relfs.mounts import attach_and_hold, detach
from relfs.pointer import Pointer
from relfs.seal import Sealer, Seals
from relfs.trust import identity

_log = logging.getLogger(__name__)

_WITHOUT_SEAL = "`seal = false` in config.toml mounts it unguarded"
_LINGER_SECONDS = 5.0
_ANSWER_SECONDS = 10.0


def run(plan: Plan, ready: Callable[[], None], begin_logging: Callable[[int], None]) -> int:
    """Mount as planned and serve until unmounted. Calls `ready` once the mount answers. Raises RelfsError.

    `begin_logging` is told the state directory's descriptor.
    """
    clear_broken(plan)
    check_mountpoint(plan)
    deploy = open_deploy_path(
        plan.deploy_path, state_dir=plan.state_dir, aliases=() if plan.over else (plan.mountpoint,)
    )
    assert deploy.state_fd is not None
    begin_logging(deploy.state_fd)
    config = load_config(deploy.state_fd, deploy.state_path)
    os.umask(0)  # ours must not be added to the caller's, which fuse/caller.py applies
    raise_descriptor_limit()
    drop()  # before there is a thread
    with daemon_lock(plan, deploy.state_fd):
        return trio.run(_Mount(plan, deploy, config, ready).run)


class _Mount:
    """The parts of a running mount, and the order in which they come and go."""

    def __init__(self, plan: Plan, deploy: DeployPath, config: Config, ready: Callable[[], None]) -> None:
        self._plan = plan
        self._deploy = deploy
        self._config = config
        self._ready = ready
        self._hub = EventHub()
        self._table = InodeTable(resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2)  # the rest is for open files
        self._seals = Seals(deploy)
        self._guard = Guard(self._table, deploy.fd)
        self._mount_id = 0
        self._status = 0
        self._tried: set[str] = set()
        self._attached: set[str] = set()
        self._attached_releases: int | None = None
        self._leaving = False
        self._signals: AsyncIterator[int]

    async def run(self) -> int:
        """Returns the exit status. Raises RelfsError where the mount cannot be brought up."""
        token = trio.lowlevel.current_trio_token()

        def publish(event: Event) -> None:
            token.run_sync_soon(self._hub.publish, event)

        pointer = await trio.to_thread.run_sync(lambda: self._open_pointer(publish))
        require_servable(pointer)
        connection = await trio.to_thread.run_sync(connect, self._plan.mountpoint, _mount_options(self._plan))
        failure: RelfsError | None = None
        try:
            with ExitStack() as session:
                self._signals = session.enter_context(
                    trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
                )
                session.enter_context(interrupted_reads())
                failure = await self._serve(pointer, connection, session)
        finally:
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(connection.close)
            self._table.close()
        if failure is not None:
            raise failure
        if not self._mount_id:
            raise RelfsError(f"{self._plan.mountpoint}: was unmounted while it was being mounted")
        return self._status

    def _open_pointer(self, publish: Callable[[Event], None]) -> Pointer:
        on_target = self._seals.prepare if self._config.seal else None
        return Pointer(
            self._deploy, style=self._plan.link, config=self._config, hide=self._plan.mountpoint,
            on_event=publish, on_target=on_target,
        )  # fmt: skip

    async def _serve(self, pointer: Pointer, connection: Connection, session: ExitStack) -> RelfsError | None:
        """Run everything between mounting and the end of the connection. What went wrong is returned, not raised,
        so that it is not wrapped in the nursery's exception group. `session` outlives the nursery."""
        async with trio.open_nursery() as nursery:
            changes = Changes(pointer, self._seals)
            current = CurrentLink(
                pointer, changes, self._table, nursery,
                show=self._show, checks=self._config.checks, grace=self._config.grace,
            )  # fmt: skip
            access_lists = not self._plan.bind or has_access_lists(self._deploy.fd, without=NATIVE)
            handshake = Handshake(connection, access_lists=access_lists)
            operations = self._operations(current, handshake, nursery)
            pyfuse3.init(operations, handshake.session_path, set())
            session.callback(pyfuse3.close, unmount=False)
            nursery.start_soon(self._until_disconnected, nursery)

            def leave() -> None:
                nursery.start_soon(self._leave)

            mounted = Mounted(
                self._plan, pointer, changes, current, operations, connection.init, handshake.caches_links,
                self._seals if self._config.seal else None, self._native, leave,
            )  # fmt: skip
            nursery.start_soon(self._obey_signals, leave)
            try:
                await handshake.broker()
                await self._bring_up(nursery, mounted)
                await trio.sleep_forever()
            except (RelfsError, OSError, ValueError) as error:
                await self._detach()
                nursery.cancel_scope.cancel()
                return error if isinstance(error, RelfsError) else RelfsError(f"{self._plan.mountpoint}: {error}")
        return None

    def _operations(self, current: CurrentLink, handshake: Handshake, nursery: trio.Nursery) -> Operations:
        self._table.pin(ROOT, os.dup(self._deploy.fd))
        state_fd = self._deploy.state_fd
        assert state_fd is not None
        self._table.pin(STATE_NODE, os.dup(state_fd)).volatile = True
        files = Passthrough(self._table, exclusive=self._plan.over)

        def on_native(name: str) -> None:
            nursery.start_soon(self._attach, name)

        return Operations(self._table, files, current, handshake, on_native, self._guard)

    async def _bring_up(self, nursery: trio.Nursery, mounted: Mounted) -> None:
        found = mount_at(self._plan.mountpoint)
        if found is None or found.fstype != FSTYPE:
            raise RelfsError(f"{self._plan.mountpoint}: was unmounted while it was being mounted")
        self._mount_id = found.id
        for name in NATIVE:
            await self._attach(os.fsdecode(name))
        if self._config.seal:
            await trio.to_thread.run_sync(self._begin_sealing, mounted.pointer)
            nursery.start_soon(mounted.changes.keep_unsealing)
        await mounted.changes.drop_current()  # what it shows may depend on what could be attached
        await self._check_answer(mounted.pointer)
        states = await trio.to_thread.run_sync(self._states)
        server = ControlServer(
            methods(mounted), self._hub, owner=os.fstat(self._deploy.fd).st_uid, group=self._config.group, states=states
        )
        nursery.start_soon(server.serve, self._listen())
        nursery.start_soon(follow_link, self._deploy.fd, mounted.changes)
        nursery.start_soon(self._notice_unmount, mounted.leave)
        label = mounted.pointer.target.label if mounted.pointer.target is not None else "nothing yet"
        _log.info("%s is mounted at %s; current is %s", self._plan.deploy_path, self._plan.mountpoint, label)
        notify("READY=1", f"STATUS={self._plan.mountpoint}: current is {label}", f"MAINPID={os.getpid()}")
        self._ready()

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
        if not (self._plan.bind or name == STATE) or name in self._tried or not _is_real_directory(source, path):
            return
        self._tried.add(name)  # now: attaching looks the name up, which tells us of it again
        try:
            attached = await trio.to_thread.run_sync(
                attach_and_hold, source, path, f"{self._plan.mountpoint}/{name}", self._plan.mount_options
            )
        except OSError as error:
            level = logging.INFO if error.errno == errno.EPERM else logging.WARNING
            _log.log(level, "%s is served by passthrough: it cannot be attached: %s", name, reason(error))
            return
        self._attached.add(name)
        if name == RELEASES and self._config.seal:
            self._attached_releases = attached
        else:
            os.close(attached)

    # ---- sealing

    def _begin_sealing(self, pointer: Pointer) -> None:
        """Seal what is live, and from now on what becomes so. Raises RelfsError where that cannot be kept."""
        live = (pointer.target,) if pointer.target is not None else ()
        try:
            self._seals.begin(self._sealer(), live)
        except OSError as error:
            raise RelfsError(f"{self._deploy.path}/{CURRENT}: {reason(error)}; {_WITHOUT_SEAL}") from error

    def _sealer(self) -> Sealer:
        if self._attached_releases is not None:
            return Binds(self._deploy, self._attached_releases, self._plan.mount_options)
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
        """What the state directory is, as it is and as the mount shows it."""
        assert self._deploy.state_fd is not None
        return identity(self._deploy.state_fd), identity(f"{self._plan.mountpoint}/{STATE}")

    def _listen(self) -> trio.SocketListener:
        """The socket is in the state directory where clients can reach that natively, in a run directory otherwise."""
        assert self._deploy.state_fd is not None
        native = STATE in self._attached or not self._plan.over
        return listen(self._deploy.state_fd, place=None if native else run_directory(self._deploy.state_fd))

    # ---- life and end

    async def _until_disconnected(self, nursery: trio.Nursery) -> None:
        try:
            await pyfuse3.main()
        except OSError as error:
            _log.error("%s: the connection to the kernel was lost: %s", self._plan.mountpoint, reason(error))
            self._status = EXIT_FAILED
        nursery.cancel_scope.cancel()

    async def _check_answer(self, pointer: Pointer) -> None:
        """Ask the mount through its own front door."""
        with trio.move_on_after(_ANSWER_SECONDS):
            await trio.to_thread.run_sync(self._ask, pointer, abandon_on_cancel=True)
            return
        raise RelfsError(f"{self._plan.mountpoint}: was mounted but did not answer within {_ANSWER_SECONDS:g} s")

    def _ask(self, pointer: Pointer) -> None:
        target = pointer.target
        try:
            os.stat(self._plan.mountpoint)
            answer = os.readlink(f"{self._plan.mountpoint}/{CURRENT}") if target is not None else None
        except OSError as error:
            raise RelfsError(f"{self._plan.mountpoint}: was mounted but answers: {reason(error)}") from error
        if target is not None and answer != self._show(target):
            raise RelfsError(f"{self._plan.mountpoint}: was mounted but {CURRENT} leads to {answer}")

    async def _obey_signals(self, leave: Callable[[], None]) -> None:
        async for _ in self._signals:
            if self._leaving:  # asked twice: at once
                pyfuse3.terminate()
                return
            leave()

    async def _notice_unmount(self, leave: Callable[[], None]) -> None:
        await until_unmounted(self._mount_id)
        leave()

    async def _leave(self) -> None:
        """Unmount, and end once nobody needs us any more."""
        if self._leaving:
            return
        self._leaving = True
        notify("STOPPING=1")
        _log.info("%s is being unmounted", self._plan.mountpoint)
        await trio.to_thread.run_sync(self._seals.end)  # a switch that is still asked for does without
        await self._detach()
        await trio.sleep(_LINGER_SECONDS)
        _log.info("%s: a process still uses what was mounted; it gets errors from now on", self._plan.mountpoint)
        pyfuse3.terminate()

    def _native(self) -> tuple[str, ...]:
        return tuple(sorted(self._attached))

    async def _detach(self) -> None:
        """Take our own mount away, with all on it, wherever it has been moved. Ours only: somebody may have mounted
        over it, or unmounted it."""
        found = next((each for each in all_mounts() if each.id == self._mount_id), None)
        if not self._mount_id:
            found = mount_at(self._plan.mountpoint)
        if found is None or found.fstype != FSTYPE or mount_at(found.target) != found:
            return
        try:
            await trio.to_thread.run_sync(detach, found.target)
        except RelfsError as error:
            _log.error("%s", error)


def _mount_options(plan: Plan) -> list[str]:
    options = [f"fsname={escape_option(plan.deploy_path)}", "subtype=relfs", "default_permissions", "auto_unmount"]
    options += ["nosuid", "nodev"]  # unless the plan says otherwise
    if plan.allow_other is not False:
        options.append("allow_other")
    return [*options, *plan.mount_options]


def _is_real_directory(directory: int, name: str) -> bool:
    """Not a link to one: what would be mounted on that, would be mounted outside of our mount."""
    try:
        return stat.S_ISDIR(os.lstat(name, dir_fd=directory).st_mode)
    except OSError:
        return False
