"""Replacing `current` where more than one is at it, or where the daemon cannot see who is; and exchanging it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from deploying import in_shell
from mounting import Mount, environment, relfs_command, relfsctl, wait_for
from readers import reading

from relfs.libc import AT_FDCWD, RENAME_EXCHANGE, renameat2


def test_tools_and_relfsctl_together(mount: Mount) -> None:
    """Two tools and relfsctl at once: every swap is done or refused, none hangs, and all agree in the end."""
    script = "for n in $(seq 30); do ln -sfn releases/4$((n % 3)) {app}/current; done"
    boxed = "for n in $(seq 30); do busybox ln -sfn releases/4$((n % 3)) {app}/current; done"
    with reading(mount.app / "current/index.html", "40", "41", "42") as readers:
        tools = [
            subprocess.Popen(["sh", "-c", each.format(app=mount.app)], stderr=subprocess.DEVNULL)
            for each in (script, boxed)
        ]
        for number in range(10):
            assert mount.relfsctl("switch", f"4{number % 3}").returncode == 0
        for tool in tools:
            tool.wait(120)
        seen = readers.stop()
    assert (seen.failed, seen.neither) == ({}, 0)
    assert mount.journal()[-1]["release"] == (mount.app / "current/index.html").read_text()
    wait_for(lambda: mount.status()["views"] == [], "no replacement is left over")


def test_exchange(mount: Mount) -> None:
    (mount.app / "other").symlink_to("releases/42")
    renameat2(AT_FDCWD, bytes(mount.app / "other"), AT_FDCWD, bytes(mount.app / "current"), RENAME_EXCHANGE)
    assert os.readlink(mount.app / "current") == "releases/42"
    assert os.readlink(mount.app / "other") == "releases/40"
    renameat2(AT_FDCWD, bytes(mount.app / "current"), AT_FDCWD, bytes(mount.app / "other"), RENAME_EXCHANGE)
    assert os.readlink(mount.app / "current") == "releases/40"
    wait_for(lambda: os.readlink(mount.app / "other") == "releases/42", "the other name is looked up anew")


def test_a_tool_outside_of_our_pid_name_space(app: Path) -> None:
    """The daemon cannot see who asks (pid 0), so the name could be withdrawn from nobody: the tool is told at once, and
    its link is not made inside the live release. What replaces the link in one step works as ever."""
    relfs = " ".join(relfs_command(app))
    sidecar = subprocess.Popen(
        ["unshare", "-p", "-f", "sh", "-c", f"{relfs} && echo mounted; read line"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment(),
        cwd="/",
    )
    try:
        assert sidecar.stdout is not None
        assert sidecar.stdout.readline() == b"mounted\n"
        assert in_shell(app, 'ln -sfn releases/41 "$D/current"').returncode == 0
        assert (app / "current/index.html").read_text() == "41"
        done = in_shell(app, 'rm "$D/current"')
        assert done.returncode == 1
        assert "Operation not permitted" in done.stderr
        assert (app / "current/index.html").read_text() == "41"
    finally:
        relfsctl(app, "unmount")
        sidecar.communicate(b"\n")
    assert os.listdir(app / "releases/41") == ["index.html"]
