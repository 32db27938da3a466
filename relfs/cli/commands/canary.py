"""`relfsctl canary`: a release that some see before everybody does."""

from __future__ import annotations

from typing import Any

import click

from relfs.audience import Audience, audience_of
from relfs.cli.canarying import abort_canary, begin_canary, group_id, promote_canary, user_id
from relfs.cli.output import say, say_error, show_json
from relfs.cli.session import Session, pass_session
from relfs.errors import UsageError

_PROMOTE = "promote"
_ABORT = "abort"


@click.command(
    "canary",
    epilog="\b\nExample:\n  relfsctl canary 42 --uid www-beta\n  relfsctl canary 42 --percent 25 --of php-fpm8.2\n"
    "  relfsctl canary promote",
)
@click.argument("what", metavar="RELEASE | promote | abort")
@click.option("--uid", "users", multiple=True, metavar="USER", help="Processes of this user.")
@click.option("--gid", "groups", multiple=True, metavar="GROUP", help="Processes that are in this group.")
@click.option(
    "--cgroup", "cgroups", multiple=True, metavar="PATH",
    help="Processes in this control group: a systemd unit or slice, or a path of /proc/PID/cgroup.",
)  # fmt: skip
@click.option("--pid", "pids", multiple=True, type=int, metavar="PID", help="This process, and what it has started.")
@click.option("--percent", type=float, metavar="N", help="So many per cent of the processes that --of names.")
@click.option("--of", "name", metavar="NAME", help="Processes that are called so (as `ps -o comm` has it).")
@click.option(
    "--for", "seconds", type=float, metavar="SECONDS",
    help="Then decide: promote it if it verifies (hook `verify`, `[verify]` of config.toml), abort it if not.",
)  # fmt: skip
@click.option("--force", is_flag=True, help="Pass over the checks of the release.")
@pass_session
def command(
    session: Session, what: str, users: tuple[str, ...], groups: tuple[str, ...], cgroups: tuple[str, ...],
    pids: tuple[int, ...], percent: float | None, name: str | None, seconds: float | None,
    force: bool,
) -> None:  # fmt: skip
    """Let some processes see RELEASE as `current`, until `canary promote` makes it current for all, in one step, or
    `canary abort` takes it back.

    Options of several kinds narrow it down: a process has to be all of that. Of one kind, each adds somebody. Each
    process is decided about once; then it sees the same until it ends. Whoever may switch may do this.
    """
    audience = Audience(tuple(map(user_id, users)), tuple(map(group_id, groups)), cgroups, (), percent, name)
    place, others = session.place(), 0
    if what in (_PROMOTE, _ABORT):
        if audience != Audience() or pids or force or seconds is not None:
            raise UsageError(f"canary {what}: is for all who see it; leave the options out")
        event = promote_canary(place) if what == _PROMOTE else abort_canary(place)
    else:
        event, others = begin_canary(place, what, audience, pids, force=force, seconds=seconds)
    if session.json:
        show_json(event)
    else:
        say(_told(what, event))
    if others:
        say_error(f"{others} processes that they have started are somebody else's, and go on seeing what they did")


def _told(what: str, event: dict[str, Any]) -> str:
    if what == _PROMOTE:
        return f"{event['release']} is current for everybody"
    if what == _ABORT:
        return f"{event['release']} is seen by nobody any more; {event['from']} is current for everybody"
    audience = audience_of(event["audience"])
    return f"{event['release']} is current for {audience}; `relfsctl canary promote` or `canary abort` ends that"
