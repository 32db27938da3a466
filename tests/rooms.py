"""A machine of one's own, as far as mounts, processes and files of the system go: /sbin, /etc and /run can be written,
what starts ends with it, and nobody outside sees any of it. The kernel, and everything below /tmp, are the real ones.

Commands run in it by nsenter(1). Its relfs is the one that is being tested, in /usr/local/bin.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from mounting import environment, wait_for

from relfs.mountinfo import mounts

INSTALL = Path(__file__).resolve().parent.parent / "contrib/install-service"

_SECONDS = 60
_LOUD = re.compile(r"^\S+ \S+ (?:WARNING|ERROR|CRITICAL) .*$", re.MULTILINE)
ENVIRONMENT = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8"}

_FURNISH = """
set -e
mount -t proc proc /proc
findmnt --list --noheadings --types fuse.relfs --output TARGET | while IFS= read -r other; do
    # Of another test; this copy would keep its daemon. None comes later: nothing that is mounted outside is seen here.
    # Its directory may be removed just now, which takes all copies away (detach_mounts() in fs/namespace.c).
    words=$(umount --internal-only --lazy "$other" 2>&1) && continue
    ! findmnt --types fuse.relfs --mountpoint "$other" >/dev/null || { echo "$words"; exit 1; }
done
mount -t tmpfs room "$1"
for each in usr etc; do
    mkdir -p "$1/$each/upper" "$1/$each/work"
    mount -t overlay room -o "lowerdir=/$each,upperdir=$1/$each/upper,workdir=$1/$each/work" "/$each"
done
mount -t tmpfs room /run
mount --make-rprivate /
shift
for name in relfs relfsctl; do
    printf '#!/bin/sh\\nexport PYTHONPATH=%s\\nexec %s -m relfs.cli.%s "$@"\\n' "$PYTHONPATH" "$1" "$name" \\
        >"/usr/local/bin/$name"
    chmod 755 "/usr/local/bin/$name"
done
shift
"""

IDLE = """
echo ready
read -r _
"""
"""An init that starts nothing; bash(1) collects the orphans."""


class Room:
    """INVARIANT: `pid` is the first process of the room's pid and mount name spaces."""

    def __init__(self, pid: int) -> None:
        self.pid = pid

    def command(self, *command: str | Path) -> list[str]:
        """What runs a command in the room; its environment is `ENVIRONMENT`."""
        enter = ("nsenter", "--target", str(self.pid), "--mount", "--pid", "--uts", "--cgroup", "--")
        return [*enter, *map(str, command)]

    def run(self, *command: str | Path) -> subprocess.CompletedProcess[str]:
        """Run a command in the room; the caller looks at the status."""
        return subprocess.run(
            self.command(*command),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            env=ENVIRONMENT,
            check=False,
            timeout=_SECONDS,
        )

    def ok(self, *command: str | Path) -> str:
        """The same for what must succeed: its output."""
        done = self.run(*command)
        assert done.returncode == 0, f"{command}: status {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout

    def put(self, path: str, text: str) -> None:
        """Write a file of the room."""
        self.ok("sh", "-c", 'mkdir -p "${1%/*}" && printf %s "$2" >"$1"', "put", path, text)

    def mounted(self, path: Path) -> bool:
        """Whether relfs is mounted there."""
        return self.run("findmnt", "--types", "fuse.relfs", "--mountpoint", path).returncode == 0


@contextmanager
def room(
    directory: Path, init: str = IDLE, arguments: Sequence[str | Path] = (), within: Sequence[str | Path] = ()
) -> Iterator[Room]:
    """A room until the end of the block, furnished in the empty `directory`. `init` is a bash(1) script, run with
    `arguments` once all is in place; it prints "ready" when the room can be used. `within` is a command that becomes
    the one that makes the room."""
    process = subprocess.Popen(
        [
            *within,
            "unshare", "--mount", "--pid", "--uts", "--cgroup", "--propagation", "private", "--fork", "--kill-child",
            "bash", "-c", _FURNISH + init, "room", str(directory), sys.executable, *map(str, arguments),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment(),
        cwd="/",
    )  # fmt: skip
    try:
        assert process.stdout is not None
        said = process.stdout.readline()
        if said != "ready\n":
            process.kill()  # it may have gone on, and would say no more
            raise AssertionError(said + process.stdout.read())
        yield Room(_only_child(process.pid))
    finally:
        process.send_signal(signal.SIGKILL)  # and the room's first process with it, and all others with that
        process.communicate()


def _only_child(pid: int) -> int:
    return int(Path(f"/proc/{pid}/task/{pid}/children").read_text())


def loud_lines(log: Path, *expected: str) -> list[str]:
    """What relfs logged above INFO there, but for lines in which an `expected` pattern is found."""
    text = log.read_text(errors="replace") if os.path.lexists(log) else ""
    return [line for line in _LOUD.findall(text) if not any(re.search(each, line) for each in expected)]


# ---- with systemd --------------------------------------------------------------------------------------------------

_BOOT = """
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -t tmpfs units /etc/systemd/system
mkdir /run/units
cd /usr/lib/systemd/system
cp basic.target sysinit.target shutdown.target umount.target final.target exit.target systemd-exit.service \\
    local-fs-pre.target local-fs.target remote-fs.target multi-user.target system.slice /run/units 2>/dev/null || true
: >"$1"
mount --bind "$1" /dev/console
mount --make-rshared /
echo ready
exec env -i PATH="$PATH" container=room SYSTEMD_LOG_TARGET=console \\
    SYSTEMD_UNIT_PATH=/etc/systemd/system:/run/systemd/generator:/run/units \\
    /lib/systemd/systemd --system --unit=basic.target </dev/null >/dev/null 2>&1
"""
"""The real one, as process 1 of the room's pid name space, with a cgroup of its own, and without the host's units."""


@contextmanager
def systemd_room(directory: Path) -> Iterator[Room]:
    """A room in which systemd has booted; what it says is in `directory`/console."""
    with _cgroup() as own:
        joining = ("sh", "-c", 'echo $$ >"$0/cgroup.procs" && exec "$@"', own)
        with room(directory / "room", _BOOT, [directory / "console"], within=joining) as made:
            wait_for(lambda: made.run("systemctl", "is-active", "basic.target").returncode == 0, "systemd boots")
            yield made


@contextmanager
def _cgroup() -> Iterator[Path]:
    """A new cgroup, for the length of the block."""
    top = next((mount.target for mount in mounts() if mount.fstype == "cgroup2"), None)
    assert top is not None, "systemd is tested in a cgroup (version 2) of its own, and none is mounted here"
    own = Path(tempfile.mkdtemp(prefix="relfs-test-", dir=top))
    try:
        yield own
    finally:
        wait_for(lambda: "populated 0" in (own / "cgroup.events").read_text(), "the room's cgroup is empty")
        for each in sorted([own, *own.rglob("*/")], reverse=True):
            each.rmdir()
