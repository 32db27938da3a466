"""Hooks: programs of the administrator that are asked before something is done, `.relfs/hooks/pre-switch` so far.

Whose word it is
----------------
Some facts. The daemon is root; the state directory may belong to the user who deploys. A file that this user can write
must not run as root. And a tool that swaps the link waits in the kernel with the mount's top directory locked until
the swap is answered: a hook that looks up an uncached name there would wait for the tool, which waits for the hook.

The choice. A hook runs as the owner of its file, with that user's groups and no more; the file and the directories
`hooks` and `.relfs` must not be writable for anybody else, and belong to the same user or to root: whoever can write
them chooses what is run. It starts in the deploy path as it is below the mount, and where relfs can (as root), it sees
that everywhere: it gets a mount name space of its own, from which the mount has been removed. Its `current` is the real
link, which still says the old release.

A hook that fails, or that takes too long, refuses what it was asked about. What it prints goes to the log; its last
line is part of the refusal. One that takes too long is killed, but not waited for: it may hang in the kernel until the
tool that we keep waiting has its answer, as it does where the mount could not be removed from its sight.
"""

from __future__ import annotations

import errno
import logging
import os
import pwd
import signal
import stat
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import IO

from relfs.beneath import open_directory
from relfs.errors import RefusedError, RelfsError, reason
from relfs.layout import DeployPath

HOOKS = "hooks"
PRE_SWITCH = "pre-switch"

_log = logging.getLogger(__name__)

_OUTPUT_MAX = 1 << 16
_PRINTED_MAX = 1 << 24
_SHOWN_MAX = 200
_LOOK_SECONDS = 0.1
_KILLED_SECONDS = 1.0
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def run_hook(
    name: str, deploy: DeployPath, variables: Mapping[str, str], *, seconds: float, hide: str | None = None
) -> None:
    """Run hook `name`, if there is one, with `variables` added to its environment, for `seconds` at most.

    `hide` is a mountpoint that it shall not see. Raises RefusedError if it fails (EPERM) or takes too long (EBUSY);
    RelfsError if it cannot be run.
    """
    shown = f"{deploy.state_path}/{HOOKS}/{name}"
    try:
        with _found(deploy, name) as directory:
            if directory is None:
                return
            owner = _owner(directory, deploy.state_fd, name, shown)
            words = [*_hiding(hide), *_becoming(owner), f"/proc/self/fd/{directory}/{name}"]
            _run(words, shown, directory, deploy, {**_environment(owner), **variables}, seconds)
    except OSError as error:
        raise RelfsError(f"{shown}: cannot be run: {reason(error)}") from error


@contextmanager
def _found(deploy: DeployPath, name: str) -> Iterator[int | None]:
    """The directory of the hooks, opened; None: hook `name` is not there."""
    try:
        directory = open_directory(deploy.state_fd, HOOKS) if deploy.state_fd is not None else None
    except FileNotFoundError:
        directory = None
    if directory is None:
        yield None
        return
    try:
        yield directory if name in os.listdir(directory) else None
    finally:
        os.close(directory)


def _owner(directory: int, state_fd: int | None, name: str, shown: str) -> int:
    """The uid that the hook runs as. Raises RefusedError for one that is not to be run."""
    file = os.lstat(name, dir_fd=directory)
    places = [os.fstat(place) for place in (directory, state_fd) if place is not None]
    if not stat.S_ISREG(file.st_mode) or not file.st_mode & stat.S_IXUSR:
        raise RefusedError(f"{shown}: not a program; make it a file that its owner may execute, or remove it")
    if any(each.st_mode & (stat.S_IWGRP | stat.S_IWOTH) for each in (file, *places)):
        raise RefusedError(f"{shown}: others than its owner may write it, or a directory above: chmod go-w all three")
    if any(place.st_uid not in (0, file.st_uid) for place in places):
        raise RefusedError(f"{shown}: a directory above belongs to somebody else: chown all three to the same user")
    if os.geteuid() not in (0, file.st_uid):
        raise RefusedError(f"{shown}: belongs to user {file.st_uid}, as whom user {os.geteuid()} cannot run it")
    return file.st_uid


def _hiding(mountpoint: str | None) -> list[str]:
    """What removes the mount from the hook's sight (unshare(1), umount(8)); only root may."""
    if mountpoint is None or os.geteuid() != 0:
        return []
    script = 'umount --lazy --internal-only -- "$0" && exec "$@"'
    return ["unshare", "--mount", "--propagation", "private", "--", "sh", "-c", script, mountpoint]


def _becoming(uid: int) -> list[str]:
    """What turns root into the hook's owner (setpriv(1))."""
    if uid == os.geteuid():
        return []
    try:
        user = pwd.getpwuid(uid)
    except KeyError:
        return ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups", "--inh-caps=-all", "--"]
    return ["setpriv", f"--reuid={uid}", f"--regid={user.pw_gid}", "--init-groups", "--inh-caps=-all", "--"]


def _environment(uid: int) -> dict[str, str]:
    """Nothing of the daemon's own, which a service manager or somebody's shell gave it."""
    try:
        user = pwd.getpwuid(uid)
    except KeyError:
        return {"PATH": _PATH, "HOME": "/"}
    return {"PATH": _PATH, "HOME": user.pw_dir, "USER": user.pw_name, "LOGNAME": user.pw_name}


def _run(
    words: list[str], shown: str, directory: int, deploy: DeployPath, environment: Mapping[str, str], seconds: float
) -> None:
    """Output goes to a file without a name, so that a process that the hook leaves behind keeps nobody waiting."""
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            words,
            cwd=f"/proc/self/fd/{deploy.fd}",
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            pass_fds=[directory],
            umask=0o022,
            start_new_session=True,
        )
        try:
            status = _wait(process, output, shown, seconds)
        finally:
            if process.poll() is None:
                _kill(process)
        last = _log_output(output, shown)
    if status != 0:
        how = f"exit status {status}" if status > 0 else f"ended by signal {-status}"
        raise RefusedError(f"{shown}: {how}{': ' + last if last else ''}")


def _wait(process: subprocess.Popen[bytes], output: IO[bytes], shown: str, seconds: float) -> int:
    """Its exit status. Raises RefusedError if it does not end in time, or fills the disk with what it prints."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            return process.wait(max(0.0, min(_LOOK_SECONDS, deadline - time.monotonic())))
        except subprocess.TimeoutExpired:
            if os.fstat(output.fileno()).st_size > _PRINTED_MAX:
                raise RefusedError(f"{shown}: printed more than {_PRINTED_MAX >> 20} MiB") from None
            if time.monotonic() >= deadline:
                raise RefusedError(f"{shown}: did not end within {seconds:g} s", errno.EBUSY) from None


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Kill it with all that it started. Should it hang in the kernel, subprocess reaps it when the next one is run."""
    os.killpg(process.pid, signal.SIGKILL)  # a session's leader cannot leave its group (setpgid(2))
    with suppress(subprocess.TimeoutExpired):
        process.wait(_KILLED_SECONDS)


def _log_output(output: IO[bytes], shown: str) -> str:
    """Log what was printed, and return the last line of it."""
    size = output.seek(0, os.SEEK_END)
    output.seek(max(0, size - _OUTPUT_MAX))
    lines = [line for line in os.fsdecode(output.read()).splitlines() if line.strip()]
    for line in lines:
        _log.info("%s: %s", shown, line)
    return lines[-1].strip()[:_SHOWN_MAX] if lines else ""
