"""The status document of `relfsctl status`: the same with a mount and without one. Pure: told, not found out."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field

from relfs import confirm
from relfs.history import History
from relfs.hold import Hold
from relfs.layout import Target


@dataclass(frozen=True)
class View:
    """Somebody who does not see what everybody sees. `since` is in seconds since the epoch."""

    reason: str
    pid: int
    user: str
    command: str
    since: float


@dataclass(frozen=True)
class Host:
    """What this host gives the mount; None where only a mount would tell. `resend`: the kernel offers to send requests
    again; `survival`: "resend" if that is how they outlive a worker, "relay" if relfs keeps them itself.
    `capabilities` are those that the worker has kept, by their names in capabilities(7); `seccomp`: system calls that
    it has no use for are refused to it."""

    kernel: str
    caches_links: bool | None = None
    resend: bool | None = None
    survival: str | None = None
    native: tuple[str, ...] = ()
    capabilities: tuple[str, ...] | None = None
    seccomp: bool | None = None


@dataclass(frozen=True)
class Status:
    """Published field names; `since` is in seconds since the epoch, `requests` counts what reached the daemon.

    `supervisor_pid` and `standby_pid` are None for one that has died, and was not replaced yet: who kills the others as
    well, kills the mount.
    `confirm` tells what waits for being confirmed, until when, and where it goes back to otherwise.
    `gave_up` tells when and why a mount was detached because nobody could serve it.
    `sealed` names the releases that cannot be changed now (None: sealing is not asked for, or nothing is mounted);
    `unsealing` those that can be, but whose directory somebody's use of an old seal keeps from being removed. `health`
    has a line for each thing that is wrong now (health.py).
    """

    deploy_path: str
    mountpoint: str | None
    mounted: bool
    current: str | None
    target: str | None
    previous: str | None
    since: float | None
    by: str | None
    supervisor_pid: int | None
    worker_pid: int | None
    standby_pid: int | None
    host: Host
    lock: dict[str, object] | None = None
    confirm: dict[str, object] | None = None
    views: tuple[View, ...] = ()
    diverged: str | None = None
    sealed: tuple[str, ...] | None = None
    unsealing: tuple[str, ...] = ()
    health: tuple[str, ...] = ()
    gave_up: str | None = None
    requests: dict[str, int] = field(default_factory=dict)

    def as_json(self) -> dict[str, object]:
        return asdict(self)


def unmounted_status(
    deploy_path: str, target: Target | None, history: History, kernel: str, lock: Hold | None
) -> Status:
    """What the disk alone tells. `lock` is who holds the deploy lock."""
    last = last_activation(history, target)
    return Status(
        deploy_path=deploy_path,
        mountpoint=None,
        mounted=False,
        current=target.label if target is not None else None,
        target=target.text if target is not None else None,
        previous=history.previous,
        since=last[0],
        by=last[1],
        supervisor_pid=None,
        worker_pid=None,
        standby_pid=None,
        host=Host(kernel),
        lock=lock.as_json() if lock is not None else None,
        confirm=confirm.as_json(history),
    )


def last_activation(history: History, target: Target | None) -> tuple[float | None, str | None]:
    """Since when, and by whom, the target is current; unknown if the journal does not speak of it."""
    if target is None or not history.activations or history.activations[-1].release != target.label:
        return None, None
    return history.activations[-1].time, history.activations[-1].by
