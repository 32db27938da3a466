"""What this host, and a deploy path, can do: found out by trying, and by its version only where trying would be
dangerous (fuse/resend.py).

Trying leaves nothing behind: the FUSE handshake is begun on a directory of its own and dropped, a detached copy of a
mount is made and closed. The deploy path is only looked at.
"""

from __future__ import annotations

import ctypes.util
import importlib.util
import os
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from relfs import libc
from relfs.config import load_config
from relfs.control import Connection, NoDaemon
from relfs.daemon.privileges import can_filter
from relfs.errors import RelfsError, reason
from relfs.fuse.connection import connect
from relfs.fuse.protocol import CACHE_SYMLINKS, InitRequest
from relfs.fuse.resend import survival
from relfs.layout import RELEASES, DeployPath, open_deploy_path
from relfs.locate import Place
from relfs.mountinfo import mount_at
from relfs.mounts import detach
from relfs.store import peek

_FUSE_CONF = "/etc/fuse.conf"
_MTAB = "/etc/mtab"
_REQUEST_TIMEOUT = "/proc/sys/fs/fuse/max_request_timeout"

State = Literal["ok", "note", "fail"]


@dataclass(frozen=True)
class Finding:
    """`note`: relfs works, but the administrator may want to know. `fail`: it does not work."""

    state: State
    what: str
    text: str


def examine(place: Place | None) -> list[Finding]:
    """All findings, the host's first. Raises nothing that belongs to a check: that is its finding."""
    checks: list[Callable[[], Iterator[Finding]]] = [
        _kernel, _device, _helper, _unmounting, _library, _allow_other, _handshake, _native, _sealing, _privileges,
        _paths, _request_timeout, _tools,
    ]  # fmt: skip
    findings = [finding for check in checks for finding in check()]
    if place is not None:
        findings += _deploy_path(place)
    return findings


def _kernel() -> Iterator[Finding]:
    system = os.uname()
    state: State = "ok" if system.sysname == "Linux" else "fail"
    yield Finding(
        state, "kernel", f"{system.sysname} {system.release}" + ("" if state == "ok" else ": mounting needs Linux")
    )


def _device() -> Iterator[Finding]:
    try:
        os.close(os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC))
        yield Finding("ok", "/dev/fuse", "can be opened")
    except FileNotFoundError:
        yield Finding(
            "fail", "/dev/fuse", "missing; load the module (modprobe fuse), or give the device to the container"
        )
    except PermissionError:  # fusermount3 is setuid root, but opens it as the user
        yield Finding("fail", "/dev/fuse", "only root may open it; udev gives it mode 0666 (chmod 666 /dev/fuse)")
    except OSError as error:
        yield Finding("fail", "/dev/fuse", f"cannot be opened: {reason(error)}")


def _helper() -> Iterator[Finding]:
    path = shutil.which("fusermount3")
    if path is None:
        yield Finding("fail", "fusermount3", "not found; install fuse3 (apt install fuse3)")
        return
    version = _output([path, "-V"]).removeprefix("fusermount3 version: ")
    if os.geteuid() != 0 and not os.stat(path).st_mode & 0o4000:
        yield Finding("fail", "fusermount3", f"{path} {version} is not setuid root, so only root can mount")
        return
    yield Finding("ok", "fusermount3", f"{path} {version}")


def _unmounting() -> Iterator[Finding]:
    """For a user, fusermount3 looks there whether a mount is his (libfuse, util/fusermount.c, may_unmount())."""
    if os.geteuid() != 0 and not os.path.exists(_MTAB):
        yield Finding(
            "note", "unmounting",
            f"{_MTAB} is missing: fusermount3 can unmount for root only, so that a user's mount stays when relfs has "
            f"ended; ln -s /proc/self/mounts {_MTAB}",
        )  # fmt: skip


def _library() -> Iterator[Finding]:
    missing = [name for name in ("pyfuse3", "trio") if importlib.util.find_spec(name) is None]
    if missing:
        yield Finding("fail", "python", f"{', '.join(missing)} not installed in this Python; install relfs again")
    elif ctypes.util.find_library("fuse3") is None:
        yield Finding("fail", "libfuse3", "not found; install libfuse3-3 (apt install libfuse3-3)")
    else:
        yield Finding("ok", "python", "pyfuse3, trio and libfuse3 are installed")


def _allow_other() -> Iterator[Finding]:
    if os.geteuid() == 0:
        yield Finding("ok", "allow_other", "root may mount for all users")
        return
    try:
        with open(_FUSE_CONF, encoding="utf-8") as file:
            allowed = any(line.strip() == "user_allow_other" for line in file)
    except OSError:
        allowed = False
    if allowed:
        yield Finding("ok", "allow_other", f"{_FUSE_CONF} lets users mount for all")
    else:
        yield Finding(
            "note", "allow_other",
            f"users may mount for themselves only (-o noallow_other), which a web server cannot read; "
            f"put user_allow_other into {_FUSE_CONF}",
        )  # fmt: skip


def _handshake() -> Iterator[Finding]:
    try:
        init = _offered()
    except (RelfsError, OSError) as error:
        yield Finding("fail", "handshake", str(error))
        return
    yield Finding("ok", "handshake", f"FUSE protocol {init.major}.{init.minor}")
    if init.flags & CACHE_SYMLINKS:
        yield Finding("ok", "link cache", "the kernel caches `current` (FUSE_CACHE_SYMLINKS)")
    else:
        yield Finding(
            "note", "link cache", "this kernel asks relfs for every resolution: correct, but slower (Linux 4.20 caches)"
        )
    yield _in_flight(init)


def _in_flight(init: InitRequest) -> Finding:
    found = survival(init.flags)
    if found.by == "resend":
        return Finding("ok", "in flight", f"requests outlive a worker, the kernel sends them again: {found.reason}")
    return Finding(
        "note", "in flight",
        f"requests outlive a worker, relfs keeps them itself, which makes what it serves itself slower: {found.reason}",
    )  # fmt: skip


def _offered() -> InitRequest:
    """What the kernel offers to a connection that is dropped before it is answered."""
    directory = tempfile.mkdtemp(prefix="relfs-doctor-")
    try:
        connection = connect(directory, ["fsname=relfs-doctor", "subtype=relfs-doctor"])
        try:
            return connection.init
        finally:
            if mount_at(directory) is not None:
                detach(directory)
            connection.close()
    finally:
        os.rmdir(directory)


def _native() -> Iterator[Finding]:
    directory = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        tree = libc.open_tree(directory, b"tmp", libc.OPEN_TREE_CLONE)
        try:
            libc.make_slave(tree)
        finally:
            os.close(tree)
        yield Finding("ok", "native", "directories can be attached natively")
    except PermissionError:
        yield Finding(
            "note", "native", "only root can attach directories: mount elsewhere, and links lead to native bytes"
        )
    except OSError as error:
        yield Finding(
            "note", "native", f"directories cannot be attached ({reason(error)}): all is served by passthrough"
        )
    finally:
        os.close(directory)


def _sealing() -> Iterator[Finding]:
    """What `seal = true` would do here."""
    directory = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        tree = libc.open_tree(directory, b"tmp", libc.OPEN_TREE_CLONE)
        try:
            libc.set_mount_attributes(tree, add=libc.MOUNT_ATTR_RDONLY)
        finally:
            os.close(tree)
        yield Finding("ok", "seal", "live releases can be sealed by read-only mounts (`seal = true` in config.toml)")
    except OSError as error:
        yield Finding(
            "note", "seal",
            f"no read-only mounts ({reason(error)}): releases can be sealed only where relfs serves them itself, "
            "over the deploy path or with --no-bind",
        )  # fmt: skip
    finally:
        os.close(directory)


def _privileges() -> Iterator[Finding]:
    """What a daemon that this user starts gives up before it serves."""
    if os.geteuid() != 0:
        yield Finding("ok", "privileges", "a user's daemon has no capabilities, so it needs to give up none")
    elif can_filter() and libc.has_seccomp_filters():
        text = "the daemon keeps the capabilities that it needs, and may make no system calls that it has no use for"
        yield Finding("ok", "privileges", text)
    else:
        text = "the daemon keeps the capabilities that it needs; system calls cannot be filtered on this host (seccomp)"
        yield Finding("note", "privileges", text)


def _paths() -> Iterator[Finding]:
    """How what belongs to others is opened without following their links."""
    directory = os.open("/", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.close(libc.openat2(directory, b".", os.O_RDONLY, 0, libc.RESOLVE_BENEATH | libc.RESOLVE_NO_SYMLINKS))
        yield Finding("ok", "paths", "no link of a deploy path's owner is followed (openat2)")
    except OSError as error:
        text = f"no link of a deploy path's owner is followed; without openat2 ({reason(error)}), step by step"
        yield Finding("ok", "paths", text)
    finally:
        os.close(directory)


def _request_timeout() -> Iterator[Finding]:
    try:
        with open(_REQUEST_TIMEOUT, encoding="ascii") as file:
            seconds = int(file.read())
    except (OSError, ValueError):
        return
    if seconds:
        yield Finding(
            "note", "timeout",
            f"fs.fuse.max_request_timeout is {seconds} s: the kernel ends a mount that takes longer to answer, "
            "for instance while a switch waits for a slow disk",
        )  # fmt: skip


def _tools() -> Iterator[Finding]:
    if shutil.which("ln") is not None:
        version = _output(["ln", "--version"])
        name = version.splitlines()[0] if version else "unknown"
        yield Finding("ok", "ln", f"{name}; on a mount every `ln -sfn` is atomic")
    has_t = "no-target-directory" in _output(["mv", "--help"]) or "-T" in _output(["mv", "--help"])
    yield Finding(
        "ok" if has_t else "note", "mv -T", "available" if has_t else "not available here; `relfsctl switch` needs none"
    )


def _deploy_path(place: Place) -> Iterator[Finding]:
    try:
        deploy = open_deploy_path(
            place.deploy_path, state_dir=place.state_dir, create_state=False,
            mounted=place.mountpoint == place.deploy_path,
        )  # fmt: skip
    except RelfsError as error:
        yield Finding("fail", "deploy path", str(error))
        return
    try:
        text = peek(deploy)
        if text is None:
            yield Finding("note", "current", f"{deploy.path}: nothing is current yet")
        elif deploy.leads_somewhere(text):
            yield Finding("ok", "current", f"{deploy.path}: {deploy.target(text).label}")
        else:
            yield Finding(
                "fail", "current", f"{deploy.path}: leads to {text}, which is no directory; `relfsctl switch RELEASE`"
            )
        if not os.access(deploy.path, os.W_OK):
            yield Finding(
                "note",
                "writing",
                f"{deploy.path}: user {os.geteuid()} cannot write here; use --state-dir if nobody can",
            )
    except (RelfsError, OSError) as error:
        yield Finding("fail", "current", str(error))
    try:
        if deploy.state_fd is not None and load_config(deploy.state_fd, deploy.state_path).seal:
            yield _seal_asked_for(place, deploy)
    except RelfsError as error:
        yield Finding("fail", "config", str(error))
    finally:
        deploy.close()
    yield _mounted(place)


def _seal_asked_for(place: Place, deploy: DeployPath) -> Finding:
    if stat.S_ISLNK(os.lstat(RELEASES, dir_fd=deploy.fd).st_mode):
        text = f"{deploy.path}/{RELEASES}: is a link, and what it leads to cannot be sealed; relfs will not mount"
        return Finding("fail", "sealing", text)
    if place.mountpoint is None:
        return Finding("note", "sealing", f"{deploy.path}: asked for, and holds only while it is mounted")
    return Finding("ok", "sealing", f"{deploy.path}: `relfsctl status` tells what is sealed")


def _mounted(place: Place) -> Finding:
    if place.mountpoint is None:
        return Finding("note", "mount", f"{place.deploy_path}: not mounted; the real link serves")
    try:
        Connection(place.state_paths).close()
    except NoDaemon:
        return Finding("fail", "mount", f"{place.mountpoint}: mounted, but no daemon answers; `relfsctl unmount`")
    except RelfsError as error:
        return Finding("fail", "mount", str(error))
    return Finding("ok", "mount", f"{place.mountpoint}: mounted, the daemon answers")


def _output(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, check=False, env={**os.environ, "LC_ALL": "C"})
    except OSError:
        return ""
    return os.fsdecode(done.stdout or done.stderr).strip()
