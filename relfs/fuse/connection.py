"""Owning the connection: fusermount3 mounts, and its descriptor of /dev/fuse comes here, not to libfuse.

fusermount3 is asked through the socket that _FUSE_COMMFD names (libfuse, util/fusermount.c); it works for root and,
being setuid, for users. With `auto_unmount` it stays, holding the other end of the socket: once every process that
holds ours is gone, however it died, the helper detaches the mount lazily, and the real symlink shows again.

The helper runs as root, and looks at the mount before it detaches it: at one that only its user may look at (no
allow_other) it fails, and leaves it dead; and somebody may have killed it. So there is a second guard, as the user who
mounted: a shell that waits for the end of a pipe that we hold, and then detaches this mount, if it still is there. It
also ends the connection by the kernel's own switch (/sys/fs/fuse/connections, where that is mounted), if a process that
was killed in the middle of a system call still keeps it: else who waits for an answer would wait for ever.

Ours, and nobody else's
-----------------------
Some facts. The ids of mounts, and the minor device numbers of what is mounted, are given out again, the lowest first:
what is mounted next, anywhere, has those of what went just now. umount2(2) goes by the path, and takes what is on top
there. Deploy paths are often mountpoints of disks.

The consequence. A guard that wakes when our mount is gone already may take another for it, and detach the disk that was
below ours, or end the connection of somebody else's file system; so may two guards that look and detach at once.

The choice. The second guard waits for the end of the first. It goes by id, device and mountpoint together; and as long
as it lives it holds the daemon lock, so that the next relfs mounts there only after it. The connection it reaches by a
working directory that it took when that was ours: one of the same number is another directory.
"""

from __future__ import annotations

import os
import re
import select
import shutil
import socket
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

from relfs.errors import RelfsError
from relfs.fuse.protocol import READ_SIZE, InitRequest, parse_init
from relfs.mountinfo import FSTYPE, Mount, mount_at

_INIT_WAIT_MS = 10_000
_HINTS = {
    "allow_other": "; put user_allow_other into /etc/fuse.conf, or mount for yourself alone with -o noallow_other",
    "/dev/fuse": "; users need it to have mode 0666, which udev gives it (chmod 666 /dev/fuse)",
}


@dataclass(frozen=True)
class Connection:
    """A mounted FUSE connection.

    INVARIANT: until close(), `fd` is the open file description of /dev/fuse that the mount was made with, and
    `guard` is the socket whose closing, in all processes, makes the helper detach the mount; `watch` is the pipe whose
    closing wakes the second guard.
    """

    fd: int
    guard: int
    watch: int
    helper: subprocess.Popen[bytes]
    second: subprocess.Popen[bytes]
    init: InitRequest

    def close(self) -> None:
        """Let go: the mount is detached if it still is there, and who does that is waited for."""
        for fd in (self.fd, self.guard, self.watch):
            os.close(fd)
        self.helper.wait()
        self.second.wait()


def connect(
    mountpoint: str, options: Sequence[str], within: Sequence[str] = (), holding: Sequence[int] = ()
) -> Connection:
    """Mount at `mountpoint` and read the kernel's FUSE_INIT, which is not answered yet: requests wait for that.

    `within` is a command that becomes the one that it is told: what stays to guard the mount is run by it. The second
    guard has the descriptors `holding` open until it ends.
    Raises RelfsError with fusermount3's own words.
    """
    helper_path = shutil.which("fusermount3")
    if helper_path is None:
        raise RelfsError("fusermount3: not found; install fuse3 (apt install fuse3)")
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with theirs:
        helper = subprocess.Popen(
            [*within, helper_path, "-o", ",".join(options), "--", mountpoint],
            env=dict(os.environ, _FUSE_COMMFD=str(theirs.fileno()), LC_ALL="C"),
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            cwd="/",
        )
    _, descriptors, _, _ = socket.recv_fds(ours, 1, 1)
    if not descriptors:
        ours.close()
        words = _last_words(helper)
        hint = next((hint for word, hint in _HINTS.items() if word in words), "")
        raise RelfsError(f"{mountpoint}: cannot be mounted: {words}{hint}")
    os.set_inheritable(descriptors[0], False)
    assert helper.stderr is not None
    try:
        with helper.stderr:
            init = _read_init(descriptors[0], mountpoint)
            second, watch = _start_second_guard(helper_path, mountpoint, within, helper.stderr.fileno(), holding)
    except BaseException:
        os.close(descriptors[0])
        ours.close()
        helper.wait()
        raise
    return Connection(descriptors[0], ours.detach(), watch, helper, second, init)


_CONNECTIONS = "/sys/fs/fuse/connections"

_SECOND_GUARD = """
trap "" TERM HUP INT
cd "$4" 2>/dev/null && abort=abort || abort=/dev/null
read -r _
[ ! -w "$abort" ] || echo 1 >"$abort"
while read -r _; do :; done </proc/self/fd/"$3"
while read -r id _ device _ at _; do [ "$id $device $at" != "$2" ] || "$0" -u -z -- "$1"; done </proc/self/mountinfo
"""
"""$0 is fusermount3, $1 the mountpoint, $2 how mountinfo tells of the mount, $3 a pipe that ends with the first guard,
$4 the connection's directory."""


def _start_second_guard(
    helper: str, mountpoint: str, within: Sequence[str], first: int, holding: Sequence[int]
) -> tuple[subprocess.Popen[bytes], int]:
    """The guard, and the pipe that it waits for the end of; `first` is a pipe that ends with the first guard. The
    kernel's number of the connection is the minor device number of the mount."""
    found = mount_at(mountpoint)
    if found is None or not found.fstype.startswith(FSTYPE):
        raise RelfsError(f"{mountpoint}: was unmounted while it was being mounted")
    waiting, watch = os.pipe()
    connection = f"{_CONNECTIONS}/{found.device.removeprefix('0:')}"
    try:
        guard = subprocess.Popen(
            [*within, "/bin/sh", "-c", _SECOND_GUARD, helper, mountpoint, _as_told(found), str(first), connection],
            stdin=waiting,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=[first, *holding],
            cwd="/",
            start_new_session=True,
        )
    except BaseException:
        os.close(watch)
        raise
    finally:
        os.close(waiting)
    return guard, watch


def _as_told(mount: Mount) -> str:
    """Its id, device and mountpoint, as mountinfo has them (show_mountinfo() in fs/proc_namespace.c)."""
    at = re.sub(r"[ \t\n\\]", lambda found: f"\\{ord(found[0]):03o}", mount.target)
    return f"{mount.id} {mount.device} {at}"


def escape_option(value: str) -> str:
    """`value` for fusermount3's comma list."""
    return value.replace("\\", "\\\\").replace(",", "\\,")


def _read_init(fd: int, mountpoint: str) -> InitRequest:
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    if not poll.poll(_INIT_WAIT_MS):
        raise RelfsError(f"{mountpoint}: the kernel did not begin the FUSE handshake")
    try:
        return parse_init(os.read(fd, READ_SIZE))
    except ValueError as error:
        raise RelfsError(f"{mountpoint}: {error}") from error


def _last_words(helper: subprocess.Popen[bytes]) -> str:
    _, stderr = helper.communicate()
    lines = [line.removeprefix("fusermount3: ") for line in os.fsdecode(stderr).splitlines() if line.strip()]
    return lines[-1] if lines else f"fusermount3 ended with status {helper.returncode}"
