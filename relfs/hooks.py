"""Hooks: programs of the administrator that are run before or after something is done. Which there are, and when each
is run, is told by the names below; what becomes of a refusal is for whoever runs it.

    pre-add, pre-switch, pre-prune   may refuse it            post-switch   is told of it
    verify                           says whether what has just become current works (aftermath.py)

A hook is a program `.relfs/hooks/NAME`, or a command in config.toml, [hooks]; where there are both, the program first.

Whose word it is
----------------
Some facts. The daemon is root; the state directory may belong to the user who deploys. A file that this user can write
must not run as root. And a tool that swaps the link waits in the kernel with the mount's top directory locked until
the swap is answered: a hook that looks up an uncached name there would wait for the tool, which waits for the hook.

The choice. A hook runs as the owner of its file, with that user's groups and no more; the file and the directories
`hooks` and `.relfs` must not be writable for anybody else, and belong to the same user or to root: whoever can write
them chooses what is run. A command runs as the owner of config.toml, as it was when that was read, for which the same
holds. A hook starts in the deploy path as it is below the mount, and where relfs can (as root), it sees that
everywhere: it gets a mount name space of its own, from which the mount has been removed. Its `current` is the real
link, which, before a switch, still says the old release. What comes after a switch is an exception: it has to see what
everybody sees, and nobody waits for it in the kernel.

A hook that fails, or that takes too long, refuses what it was asked about. What it prints goes to the log, to whoever
watches (`show`), and the last of it into the journal; its last line is part of the refusal. One that takes too long is
killed, but not waited for: it may hang in the kernel until the tool that we keep waiting has its answer, as it does
where the mount could not be removed from its sight.
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
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import IO

from relfs.beneath import open_directory
from relfs.errors import RefusedError, RelfsError, reason
from relfs.journal import Actor
from relfs.layout import RELEASES, DeployPath

HOOKS = "hooks"
PRE_ADD = "pre-add"
PRE_SWITCH = "pre-switch"
POST_SWITCH = "post-switch"
VERIFY = "verify"
PRE_PRUNE = "pre-prune"
NAMES = (PRE_ADD, PRE_SWITCH, POST_SWITCH, VERIFY, PRE_PRUNE)

_log = logging.getLogger(__name__)

_OUTPUT_MAX = 1 << 16
_PRINTED_MAX = 1 << 24
_SHOWN_MAX = 200
_LIVE_MAX = 1 << 20
_LINE_MAX = 1 << 12
_KEPT_LINES = 20
_KEPT_MAX = 4000
_LOOK_SECONDS = 0.1
_KILLED_SECONDS = 1.0
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

Show = Callable[[str], None]
"""What is called with each line that a hook prints, while it runs."""


@dataclass(frozen=True)
class Hooks:
    """What config.toml says of hooks: how long each may take, in seconds; the words of the `commands`, by the names of
    the hooks; and the uid as whom they run."""

    timeout: float = 10.0
    commands: tuple[tuple[str, tuple[str, ...]], ...] = ()
    owner: int = 0


class HookError(RefusedError):
    """A hook said no, or did not end in time. `output` is the last that it printed."""

    def __init__(self, message: str, number: int = errno.EPERM, *, output: str = "") -> None:
        super().__init__(message, number)
        self.output = output


@dataclass(frozen=True)
class _Hook:
    """What is run: `words`, as `owner`; `directory` is a descriptor that it needs for being found."""

    shown: str
    words: Sequence[str]
    owner: int
    directory: int | None = None


def run_hook(
    name: str,
    deploy: DeployPath,
    variables: Mapping[str, str],
    *,
    hooks: Hooks,
    hide: str | None = None,
    show: Show | None = None,
) -> str:
    """Run hook `name`, if there is one, with `variables` added to its environment; the last that it printed.

    `hide` is a mountpoint that it shall not see; `show` is called with each line as it is printed, from this thread.
    Raises HookError if it fails (EPERM) or takes too long (EBUSY); RefusedError if it is not to be trusted; RelfsError
    if it cannot be run.
    """
    said = []
    with _found(deploy, name) as directory:
        for hook in _all(name, deploy, hooks, directory):
            try:
                said.append(_run(hook, deploy, {**_environment(hook.owner), **variables}, hooks.timeout, hide, show))
            except OSError as error:
                raise RelfsError(f"{hook.shown}: cannot be run: {reason(error)}") from error
    return "\n".join(filter(None, said))


def has_hook(name: str, deploy: DeployPath, hooks: Hooks) -> bool:
    """Whether there is a hook `name` to be run. Raises RelfsError."""
    if any(each == name for each, _ in hooks.commands):
        return True
    with _found(deploy, name) as directory:
        return directory is not None


def variables_of(name: str, deploy: DeployPath, actor: Actor, **more: str) -> dict[str, str]:
    """What hook `name` is told: that it is one, where, and because of whom; `more` by lower case names, without the
    RELFS_ before each."""
    told = {
        "hook": name, "deploy_path": deploy.path, "user": actor.user, "pid": str(actor.pid), "command": actor.command,
        **more,
    }  # fmt: skip
    return {f"RELFS_{key.upper()}": value for key, value in told.items()}


def releases_of(deploy: DeployPath, release: str, previous: str | None) -> dict[str, str]:
    """`more` for variables_of(): the release that it is about, and the one that is current, or was; with paths."""
    path = f"{deploy.path}/{RELEASES}"
    return {
        "release": release, "release_path": f"{path}/{release}",
        "previous": previous or "", "previous_path": f"{path}/{previous}" if previous else "",
    }  # fmt: skip


def owner_of_commands(file: os.stat_result, directory: os.stat_result) -> int:
    """The uid that the commands in config.toml run as. Raises ValueError if others could have written it, `directory`
    being what it is in."""
    if any(each.st_mode & (stat.S_IWGRP | stat.S_IWOTH) for each in (file, directory)):
        raise ValueError("has commands in [hooks], and others than its owner may write it, or .relfs: chmod go-w both")
    if directory.st_uid not in (0, file.st_uid):
        raise ValueError("has commands in [hooks], and .relfs belongs to somebody else: chown both to the same user")
    return file.st_uid


def _all(name: str, deploy: DeployPath, hooks: Hooks, directory: int | None) -> Iterator[_Hook]:
    if directory is not None:
        shown = f"{deploy.state_path}/{HOOKS}/{name}"
        try:
            owner = _owner(directory, deploy.state_fd, name, shown)
        except OSError as error:
            raise RelfsError(f"{shown}: cannot be run: {reason(error)}") from error
        yield _Hook(shown, [f"/proc/self/fd/{directory}/{name}"], owner, directory)
    for each, words in hooks.commands:
        if each == name:
            shown = f"{deploy.state_path}/config.toml: hooks.{name.replace('-', '_')}"
            _require_can_become(hooks.owner, shown)
            yield _Hook(shown, words, hooks.owner)


@contextmanager
def _found(deploy: DeployPath, name: str) -> Iterator[int | None]:
    """The directory of the hooks, opened; None: there is no program `name` in it. Raises RelfsError."""
    directory = None
    try:
        if deploy.state_fd is not None:
            with suppress(FileNotFoundError):
                directory = open_directory(deploy.state_fd, HOOKS)
        there = directory is not None and name in os.listdir(directory)
    except OSError as error:
        raise RelfsError(f"{deploy.state_path}/{HOOKS}/{name}: cannot be run: {reason(error)}") from error
    try:
        yield directory if there else None
    finally:
        if directory is not None:
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
    _require_can_become(file.st_uid, shown)
    return file.st_uid


def _require_can_become(uid: int, shown: str) -> None:
    if os.geteuid() not in (0, uid):
        raise RefusedError(f"{shown}: belongs to user {uid}, as whom user {os.geteuid()} cannot run it")


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
    hook: _Hook, deploy: DeployPath, environment: Mapping[str, str], seconds: float, hide: str | None, show: Show | None
) -> str:
    """Output goes to a file without a name, so that a process that the hook leaves behind keeps nobody waiting."""
    with tempfile.TemporaryFile() as file:
        process = subprocess.Popen(
            [*_hiding(hide), *_becoming(hook.owner), *hook.words],
            cwd=f"/proc/self/fd/{deploy.fd}",
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            pass_fds=[hook.directory] if hook.directory is not None else [],
            umask=0o022,
            start_new_session=True,
        )
        output = _Output(file, hook.shown, show)
        try:
            status = _wait(process, output, hook.shown, seconds)
        finally:
            if process.poll() is None:
                _kill(process)
        lines = output.end()
    if status != 0:
        how = f"exit status {status}" if status > 0 else f"ended by signal {-status}"
        last = lines[-1].strip()[:_SHOWN_MAX] if lines else ""
        raise HookError(f"{hook.shown}: {how}{': ' + last if last else ''}", output=_kept(lines))
    return _kept(lines)


class _Output:
    """What a hook prints: shown line by line as it comes, up to a limit, logged at its end."""

    def __init__(self, file: IO[bytes], shown: str, show: Show | None) -> None:
        self._file = file
        self._shown = shown
        self._show = show
        self._at = 0

    def size(self) -> int:
        return os.fstat(self._file.fileno()).st_size

    def look(self, *, ended: bool = False) -> None:
        """Show the lines that are new; with `ended`, the last one, too, if it is not a whole one."""
        if self._show is None or self._at >= _LIVE_MAX:
            return
        data = os.pread(self._file.fileno(), _OUTPUT_MAX, self._at)
        whole = len(data) if ended or len(data) == _OUTPUT_MAX else data.rfind(b"\n") + 1
        self._at += whole
        for line in _lines(data[:whole]):
            self._show(line[:_LINE_MAX])

    def end(self) -> list[str]:
        """Log what was printed, the end of it if it is long, and return that."""
        while self._show is not None and self._at < min(self.size(), _LIVE_MAX):
            self.look(ended=True)
        lines = _lines(os.pread(self._file.fileno(), _OUTPUT_MAX, max(0, self.size() - _OUTPUT_MAX)))
        for line in lines:
            _log.info("%s: %s", self._shown, line)
        return lines


def _kept(lines: Sequence[str]) -> str:
    """What the journal keeps of it."""
    return "\n".join(lines[-_KEPT_LINES:])[-_KEPT_MAX:]


def _lines(data: bytes) -> list[str]:
    return [line for line in os.fsdecode(data).splitlines() if line.strip()]


def _wait(process: subprocess.Popen[bytes], output: _Output, shown: str, seconds: float) -> int:
    """Its exit status. Raises RefusedError if it does not end in time, or fills the disk with what it prints."""
    deadline = time.monotonic() + seconds
    while True:
        output.look()
        try:
            return process.wait(max(0.0, min(_LOOK_SECONDS, deadline - time.monotonic())))
        except subprocess.TimeoutExpired:
            if output.size() > _PRINTED_MAX:
                raise HookError(f"{shown}: printed more than {_PRINTED_MAX >> 20} MiB") from None
            if time.monotonic() >= deadline:
                late = f"{shown}: did not end within {seconds:g} s"
                raise HookError(late, errno.EBUSY, output=_kept(output.end())) from None


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Kill it with all that it started. Should it hang in the kernel, subprocess reaps it when the next one is run."""
    os.killpg(process.pid, signal.SIGKILL)  # a session's leader cannot leave its group (setpgid(2))
    with suppress(subprocess.TimeoutExpired):
        process.wait(_KILLED_SECONDS)
