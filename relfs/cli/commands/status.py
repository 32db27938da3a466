"""`relfsctl status`: how things stand."""

from __future__ import annotations

import os
from typing import Any

import click

from relfs.cli.output import moment, show_fields, show_json
from relfs.cli.session import Session, ask, is_mounted, open_here, pass_session
from relfs.locate import Place


@click.command("status", epilog="\b\nExample:\n  relfsctl status\n  relfsctl --json status | jq -r .current")
@pass_session
def command(session: Session) -> None:
    """What is current, since when and by whom, how the mount is, and what this host gives it."""
    place = session.place()
    status = ask(place, "status") or _status_here(place)
    if session.json:
        show_json(status)
    else:
        show_fields(_fields(status, answers=status["worker_pid"] is not None))


def _status_here(place: Place) -> dict[str, Any]:
    from dataclasses import replace

    from relfs.daemon.gaveup import gave_up
    from relfs.health import health
    from relfs.history import History
    from relfs.hold import held
    from relfs.journal import Journal
    from relfs.status import unmounted_status
    from relfs.store import peek

    deploy = open_here(place, create_state=False)
    try:
        text = peek(deploy)
        target = deploy.target(text) if text is not None else None
        history = History(Journal(deploy.state_fd).events())
        lock = held(deploy.state_fd)
        status = unmounted_status(deploy.path, target, history, os.uname().release, lock)
        wrong = health(deploy, target)
        mountpoint = place.mountpoint if is_mounted(place) else None  # it may have ended while we asked
        why = gave_up(deploy.state_fd) if deploy.state_fd is not None else None
        return replace(
            status, mountpoint=mountpoint, mounted=mountpoint is not None, health=wrong, gave_up=why
        ).as_json()  # fmt: skip
    finally:
        deploy.close()


def _fields(status: dict[str, Any], *, answers: bool) -> list[tuple[str, str]]:
    host = status["host"]
    fields = [("deploy path", status["deploy_path"]), ("current", status["current"] or "nothing yet")]
    if status["since"] is not None:
        fields.append(("since", f"{moment(status['since'])} by {status['by']}"))
    fields.append(("previous", status["previous"] or ""))
    fields += [("attention", wrong) for wrong in status["health"]]
    if status["gave_up"] is not None:
        fields.append(("gave up", status["gave_up"]))
    if status.get("confirm"):  # a daemon of an older version has none
        fields.append(("unconfirmed", _unconfirmed(status["confirm"])))
    if status["lock"]:
        fields.append(("locked", _locked(status["lock"])))
    fields.append(("mounted", _mounted(status, answers=answers)))
    if answers:
        fields.append(("native", ", ".join(host["native"]) or "nothing: all is served by passthrough"))
        if status["sealed"] is not None:
            fields.append(("sealed", _sealed(status)))
        if status["unsealing"]:
            fields.append(("unsealing", f"{', '.join(status['unsealing'])}: in use, writable, cannot be removed yet"))
        fields.append(("privileges", _privileges(host)))
        fields.append(("link cache", "yes" if host["caches_links"] else "no: this kernel asks us each time"))
        fields.append(("in flight", _IN_FLIGHT[host["survival"]]))
    for view in status["views"]:
        fields.append(
            ("view", f"{view['reason']}: {view['command']} (pid {view['pid']}) since {moment(view['since'])}")
        )
    return fields


_IN_FLIGHT = {
    "resend": "requests outlive a worker: the kernel sends them again",
    "relay": "requests outlive a worker: relfs keeps them itself, and is slower for it (`relfsctl doctor` says why)",
}


def _unconfirmed(confirm: dict[str, Any]) -> str:
    until = f"back to {confirm['back_to']} at {moment(confirm['until'])}"
    return f"{confirm['release']}: {until}, unless `relfsctl confirm` comes first"


def _locked(lock: dict[str, Any]) -> str:
    until = f" until {moment(lock['until'])}" if lock["until"] is not None else ""
    why = f": {lock['reason']}" if lock["reason"] else ""
    return f"by {lock['user']} (pid {lock['pid']}: {lock['command']}) since {moment(lock['since'])}{until}{why}"


def _privileges(host: dict[str, Any]) -> str:
    if not host["capabilities"]:
        return "a user's: no capabilities"
    calls = "only system calls that it needs" if host["seccomp"] else "system calls are not filtered"
    return f"{len(host['capabilities'])} capabilities, {calls}"


def _sealed(status: dict[str, Any]) -> str:
    if status["sealed"]:
        return ", ".join(status["sealed"])
    current = status["current"]
    return f"nothing: {current} is not below releases/" if current is not None else "nothing: there is no current"


def _mounted(status: dict[str, Any], *, answers: bool) -> str:
    if not status["mounted"]:
        return "no: the real link serves"
    if not answers:
        return f"at {status['mountpoint']}, but the daemon does not answer"
    others = [f"{role} {pid}" for role in ("supervisor", "standby") if (pid := status[f"{role}_pid"]) is not None]
    return f"at {status['mountpoint']}, by process {status['worker_pid']} ({', '.join(others)})"
