"""The beginnings of relfs's processes: what each does before it is what it is. Standard library only, except for the
standby's part.

    mount     the supervisor of a new mount: looks whether it can be made, makes it, and goes on as its supervisor
    succeed   the supervisor of a mount whose supervisor has died (member.py)
    resume    the supervisor that was there already, of another version (relfsctl reload)
    standby   see standby.py

Order of `mount`: the deploy path is opened (so that it can be reached once it is covered), the pointer is read, the
connection is made; whatever is wrong is said before anything is covered.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
from collections.abc import Callable

from relfs.aftermath import Aftermath
from relfs.config import load_config
from relfs.daemon.background import Answer
from relfs.daemon.command import estate_of, start
from relfs.daemon.gaveup import forget_giving_up
from relfs.daemon.log import log_to_state, log_to_stderr
from relfs.daemon.member import take_baton, who_is
from relfs.daemon.nested import set_apart
from relfs.daemon.plan import Plan, plan_of
from relfs.daemon.preflight import (
    check_mountpoint,
    clear_broken,
    raise_descriptor_limit,
    require_servable,
    take_daemon_lock,
)
from relfs.daemon.restart import kept_mount
from relfs.daemon.service import require_common_mounts, scope_of_its_own
from relfs.daemon.session import Session, begin_logging, load_session, store_session
from relfs.daemon.standby import take_in
from relfs.daemon.supervisor import Supervisor
from relfs.errors import EXIT_FAILED, EXIT_INTERRUPTED, RelfsError
from relfs.fuse.connection import Connection, connect, escape_option
from relfs.fuse.resend import survival
from relfs.layout import DeployPath, open_deploy_path
from relfs.pointer import Pointer
from relfs.survival.channel import Channel, channel_of, pair, until_readable
from relfs.survival.estate import Estate
from relfs.survival.ledger import Ledger
from relfs.survival.memory import new_memory
from relfs.views.mark import take_off_mark

_ORPHAN_SECONDS = 0.001

_log = logging.getLogger(__name__)

_STANDBY_SECONDS = 30.0


def main() -> None:
    """Be the part that the command line names (command.py). Never returns."""
    _, part, *arguments = sys.argv
    os.umask(0)  # what is made for a caller has the caller's, which fuse/caller.py applies
    take_off_mark(os.getpid())  # hooks see what everybody does, whoever has mounted
    status = EXIT_FAILED
    try:
        status = _PARTS[part.removeprefix("relfs-")](*arguments)
    except KeyboardInterrupt:
        status = EXIT_INTERRUPTED
    except EOFError as error:
        _log.info("%s", error)
    sys.exit(status)


# ---- mount


def _mount(plan: str, answer_fd: str) -> int:
    """Mount, and tell whoever waits: the command that runs in the background by a pipe, else standard error."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])  # background.py has it wait until here
    answer = Answer(int(answer_fd) if answer_fd else None)
    try:
        return _mount_as(plan_of(plan), answer, foreground=not answer_fd)
    except RelfsError as error:
        answer.fail(str(error))
        return error.status
    except Exception as error:
        _log.exception("ended by an error")
        answer.fail(f"{type(error).__name__}: {error}")
        return EXIT_FAILED


def _mount_as(plan: Plan, answer: Answer, *, foreground: bool) -> int:
    require_common_mounts()
    if foreground:
        log_to_stderr()
    raise_descriptor_limit()  # for the standby, too, which holds what the supervisor does
    ours, theirs = pair()
    standby = start("standby", str(theirs.fileno()), fds=[theirs.fileno()])  # it takes the longest
    theirs.close()
    try:
        estate, ledger = kept_mount(plan) or _begin(plan, ours, foreground=foreground)
        baton = take_baton(estate["baton"])
        assert baton is not None, "nobody else has heard of it yet"
    except BaseException:
        ours.close()
        standby.kill()
        standby.wait()
        raise
    supervisor = Supervisor(plan, estate, ledger, baton, answer)
    supervisor.adopt_standby(standby, ours)
    return supervisor.run()


def _begin(plan: Plan, standby: Channel, *, foreground: bool) -> tuple[Estate, Ledger]:
    """Mount, so that requests wait for somebody to answer them: not before there is somebody. Raises RelfsError."""
    clear_broken(plan)
    check_mountpoint(plan)
    aliases = () if plan.over else (plan.mountpoint,)
    deploy = open_deploy_path(plan.deploy_path, state_dir=plan.state_dir, aliases=aliases)
    assert deploy.state_fd is not None
    if not foreground:
        log_to_state(deploy.state_fd, deploy.state_path)
    config = load_config(deploy.state_fd, deploy.state_path)
    lock = take_daemon_lock(plan, deploy.state_fd)
    pointer = Pointer(deploy, style=plan.link, config=config, hide=plan.mountpoint)
    if pointer.taken_back is not None:
        Aftermath(pointer, config).tell(pointer.taken_back)
    require_servable(pointer)
    forget_giving_up(deploy.state_fd)
    apart = set_apart(deploy, plan)
    until_readable(standby, _STANDBY_SECONDS)
    within = scope_of_its_own(f"takes {plan.mountpoint} away, should relfs be gone")
    connection = connect(plan.mountpoint, _mount_options(plan), within=within, holding=[lock])
    estate, ledger = _settle(deploy, {"lock": lock, **apart}, connection)
    guards = tuple(map(who_is, (connection.helper.pid, connection.second.pid)))
    session = Session(
        plan, foreground, deploy.state_path, deploy.aliases, connection.init.raw, guards,
        relayed=survival(connection.init.flags).by == "relay", config=config,
    )  # fmt: skip
    store_session(ledger, session)
    return estate, ledger


def _mount_options(plan: Plan) -> list[str]:
    """What fusermount3 is asked for."""
    options = [f"fsname={escape_option(plan.deploy_path)}", "subtype=relfs", "default_permissions", "auto_unmount"]
    options += ["nosuid", "nodev"]  # unless the plan says otherwise
    if plan.allow_other is not False:
        options.append("allow_other")
    return [*options, *plan.mount_options]


def _settle(deploy: DeployPath, more: dict[str, int], connection: Connection) -> tuple[Estate, Ledger]:
    """All that is there to be kept, `more` included."""
    assert deploy.state_fd is not None
    estate, memory = Estate(), new_memory("relfs-ledger")
    inbox, outbox = pair()
    held = {
        "connection": connection.fd, "guard": connection.guard, "watch": connection.watch,
        "deploy": deploy.fd, "state": deploy.state_fd, "ledger": memory, "baton": new_memory("relfs-baton"),
        "inbox": inbox.detach(), "outbox": outbox.detach(), **more,
    }  # fmt: skip
    for name, fd in held.items():
        estate.put(name, fd)
    return estate, Ledger(memory)


# ---- succeed


def _succeed(channel_fd: str, baton: str) -> int:
    """Be the next supervisor. The baton is inherited, locked."""
    _become_orphan()
    channel = channel_of(int(channel_fd))
    estate = Estate()
    take_in(estate, channel)
    channel.close()
    return _go_on(estate, int(baton), "the supervisor has died; process %d takes its place", logging.WARNING)


def _become_orphan() -> None:
    """Go on as a child of process 1: a service manager learns how its main process ends only if that is its child, and
    would take the death of all for a service that is done."""
    parent = os.getpid()
    try:
        child = os.fork()
    except OSError:  # a limit of processes. It is that child once its parent has ended, too
        return
    if child:
        os._exit(0)
    while os.getppid() == parent:
        time.sleep(_ORPHAN_SECONDS)


def _resume(told: str, baton: str) -> int:
    """Be the same supervisor, of another version."""
    return _go_on(estate_of(int(told)), int(baton), "process %d is the new supervisor", logging.INFO)


def _go_on(estate: Estate, baton: int, words: str, level: int) -> int:
    os.set_inheritable(baton, False)
    ledger = Ledger(estate["ledger"])
    session = load_session(ledger)
    begin_logging(session, estate)
    _log.log(level, words, os.getpid())
    supervisor = Supervisor(session.plan, estate, ledger, baton, Answer(None))
    supervisor.go_on()
    try:
        return supervisor.run()
    except RelfsError as error:
        _log.error("%s", error)
        return error.status


def _standby(channel_fd: str) -> int:
    from relfs.daemon.standby import run_standby

    return run_standby(int(channel_fd))


_PARTS: dict[str, Callable[..., int]] = {"mount": _mount, "succeed": _succeed, "resume": _resume, "standby": _standby}
