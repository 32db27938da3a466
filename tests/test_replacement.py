"""Every way in which tools replace `current`, run with the real tool beside readers that never pause.

On a plain directory the same must fail where the tool is known to leave a gap: that shows that the readers can see it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from mounting import Mount, Mounts, environment, relfs_command, relfsctl, wait_for
from readers import Readers, reading
from sandbox import add_release

SWAPS = 40

TOOLS = {
    "gnu mv -T": "ln -s {target} {app}/new && mv -T {app}/new {app}/current",
    "gnu ln -sfn": "ln -sfn {target} {app}/current",
    "gnu ln -nfs --relative": "ln -nfs --relative {app}/{target} {app}/current",
    "busybox ln -sfn": "busybox ln -sfn {target} {app}/current",
    "busybox mv -T": "busybox ln -s {target} {app}/new && busybox mv -T {app}/new {app}/current",
    "capistrano": "ln -s {app}/{target} {app}/releases/current && mv {app}/releases/current {app}",
    "deploy_helper": (
        "ln -s {app}/{target} {app}/current.DEPLOY_UNFINISHED && "
        "perl -e 'rename $ARGV[0], $ARGV[1] or die' {app}/current.DEPLOY_UNFINISHED {app}/current"
    ),
    "rm; ln": "rm {app}/current; ln -s {target} {app}/current",
    "rm && ln": "rm -f {app}/current && ln -s {target} {app}/current",
    "unlink; symlink": "perl -e 'unlink $ARGV[1]; symlink $ARGV[0], $ARGV[1] or die' {target} {app}/current",
    "trailing slash": "ln -sfn {target}/ {app}/current",
    "absolute": "ln -sfn {app}/{target} {app}/current",
    "rm in a child, link by itself": (
        "perl -e 'system \"rm $ARGV[1]\"; symlink $ARGV[0], $ARGV[1] or die' {target} {app}/current"
    ),
    "nested shells": "sh -c 'sh -c \"rm {app}/current; true\"; true'; sh -c 'ln -s {target} {app}/current; true'",
    "mv away, mv here": (
        "ln -s {target} {app}/new && mv {app}/current {app}/old && mv {app}/new {app}/current && rm {app}/old"
    ),
}

LEAVES_A_GAP = ("busybox ln -sfn", "rm; ln", "rm && ln")


def swap(app: Path, script: str, release: str) -> None:
    command = script.format(app=app, target=f"releases/{release}")
    done = subprocess.run(["sh", "-c", command], cwd="/", capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, ""), command


def swap_until(app: Path, script: str, enough: Callable[[int], bool]) -> int:
    done = 0
    while not enough(done):
        swap(app, script, ("41", "40")[done % 2])
        done += 1
    return done


@pytest.mark.parametrize("tool", TOOLS)
def test_no_reader_notices(mount: Mount, tool: str) -> None:
    before = len(mount.journal())
    with reading(mount.app / "current/index.html", "40", "41") as readers:
        swap_until(mount.app, TOOLS[tool], lambda done: done == SWAPS)
        seen = readers.stop()
    assert (seen.failed, seen.neither) == ({}, 0)
    assert seen.contents == {"40", "41"}
    written = mount.journal()[before:]
    assert [event["release"] for event in written] == ["41", "40"] * (SWAPS // 2)
    assert all(event["outcome"] == "done" and event["pid"] > 0 and event["command"] for event in written)
    assert os.path.realpath(mount.app / "current") == str(mount.app / "releases/40")
    assert sorted(os.listdir(mount.app)) == [".relfs", "current", "releases"], "nothing is left lying about"
    assert sorted(os.listdir(mount.app / "releases")) == ["40", "41", "42"]


@pytest.mark.parametrize("tool", LEAVES_A_GAP)
def test_the_gap_is_real_on_a_plain_directory(app: Path, tool: str) -> None:
    """Shows that the readers would notice: without relfs, they do."""
    with reading(app / "current/index.html", "40", "41") as readers:
        swap_until(app, TOOLS[tool], lambda done: done == 10 * SWAPS)
        seen = readers.stop()
    assert seen.failed.get("ENOENT", 0) > 0


def test_readers_in_sessions_of_their_own(mount: Mount) -> None:
    with reading(mount.app / "current/index.html", "40", "41", session=True) as readers:
        swap_until(mount.app, TOOLS["rm; ln"], lambda done: done == SWAPS)
        seen = readers.stop()
    assert (seen.failed, seen.neither) == ({}, 0)


def test_reader_started_from_the_deploying_shell(mount: Mount) -> None:
    """A web server that the very shell started, which then deploys: it is the shell's child, as rm and ln are."""
    script = (
        "import sys; sys.path.insert(0, sys.argv[2]); from readers import Readers; from pathlib import Path\n"
        "import subprocess\n"
        "app = Path(sys.argv[1])\n"
        "readers = Readers(app / 'current/index.html', ('40', '41'), 2, session=False)\n"
        f"for n in range({SWAPS}):\n"
        "    subprocess.run(['rm', app / 'current'], check=True)\n"
        "    subprocess.run(['ln', '-s', f'releases/4{1 - n % 2}', app / 'current'], check=True)\n"
        "seen = readers.stop()\n"
        "print(seen.failed, seen.neither, sorted(seen.contents))\n"
    )
    done = subprocess.run(
        ["python3", "-c", script, mount.app, Path(__file__).parent], capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == "{} 0 ['40', '41']", done.stderr


def test_absolute_text_is_kept(mount: Mount) -> None:
    """Capistrano's cleanup protects `current` only if readlink gives it back what it wrote."""
    swap(mount.app, TOOLS["capistrano"], "41")
    assert os.readlink(mount.app / "current") == f"{mount.app}/releases/41"
    assert mount.journal()[-1]["release"] == "41"


def test_text_through_the_mountpoint_is_translated(app: Path, mounts: Mounts, tmp_path: Path) -> None:
    """A link that leads through a mountpoint elsewhere would dangle once the mount is gone."""
    live = tmp_path / "live"
    live.mkdir()
    mount = mounts.start(app, at=live)
    swap(live, TOOLS["absolute"], "42")
    assert mount.terminate() == 0
    assert os.readlink(app / "current") == f"{app}/releases/42"
    assert (app / "current/index.html").read_text() == "42"


def test_begun_and_never_ended(app: Path, mounts: Mounts) -> None:
    """The tool dies after unlink: everybody else keeps the old release; the rest of the script gets it back in time."""
    (app / ".relfs").mkdir()
    (app / ".relfs/config.toml").write_text("[replacement]\ngrace = 0.2\n")
    mount = mounts.start(app)
    script = f"rm {app}/current && ! test -L {app}/current && echo gone && while ! test -L {app}/current; do :; done"
    with reading(app / "current/index.html", "40") as readers:
        done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=False, timeout=60)
        seen = readers.stop()
    assert (done.returncode, done.stdout) == (0, "gone\n")
    assert (seen.failed, seen.neither) == ({}, 0)
    wait_for(lambda: mount.journal()[-1]["action"] == "replace", "the journal tells")
    assert "lapsed" in mount.journal()[-1]["outcome"]
    assert os.readlink(app / "current") == "releases/40"


def test_status_tells_of_a_replacement_under_way(mount: Mount) -> None:
    with subprocess.Popen(
        ["sh", "-c", f"rm {mount.app}/current; echo removed; read line"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as script:
        assert script.stdout is not None
        assert script.stdout.readline() == b"removed\n"
        (view,) = mount.status()["views"]
        assert view["reason"] == "replacing current"
        assert view["command"] == f"rm {mount.app}/current"
        script.communicate(b"\n")


@pytest.mark.parametrize(
    ("make", "command", "words"),
    [
        (None, "ln -sfn releases/gone {app}/current", "No such file or directory"),
        ("file", "ln -sfn releases/file {app}/current", "Not a directory"),
        ("empty", "ln -sfn releases/empty {app}/current", "No data available"),
        (None, "ln -s releases/gone {app}/new && mv -T {app}/new {app}/current", "No such file or directory"),
        (None, "busybox ln -sfn releases/gone {app}/current", "No such file or directory"),
    ],
)
def test_refused_targets(mount: Mount, make: str | None, command: str, words: str) -> None:
    """A swap to what can serve nobody fails in the tool, and the old release stays."""
    if make == "file":
        (mount.app / "releases/file").touch()
    elif make == "empty":
        (mount.app / "releases/empty").mkdir()
    done = subprocess.run(
        ["sh", "-c", command.format(app=mount.app)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "LC_ALL": "C"},
    )
    assert done.returncode != 0
    assert words in done.stderr
    assert os.readlink(mount.app / "current") == "releases/40"
    assert (mount.app / "current/index.html").read_text() == "40"


def test_refused_and_tried_again(mount: Mount) -> None:
    """A script whose link was refused may make another: the name stays free for it, and for nobody else."""
    script = "rm {app}/current; ln -s releases/gone {app}/current || ln -s releases/41 {app}/current"
    with reading(mount.app / "current/index.html", "40", "41") as readers:
        done = subprocess.run(["sh", "-c", script.format(app=mount.app)], capture_output=True, check=False)
        seen = readers.stop()
    assert done.returncode == 0
    assert (seen.failed, seen.neither) == ({}, 0)
    assert os.readlink(mount.app / "current") == "releases/41"


def test_target_that_leads_through_the_mount_itself(mount: Mount) -> None:
    """A link below releases/ may lead anywhere, back into the mount too: nothing hangs."""
    (mount.app / "releases/round").symlink_to(mount.app / "current")
    done = subprocess.run(
        ["ln", "-sfn", "releases/round", mount.app / "current"], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 1
    assert "Too many levels of symbolic links" in done.stderr
    assert (mount.app / "current/index.html").read_text() == "40"
    assert mount.relfsctl("switch", "41").returncode == 0
    assert (mount.app / "current/index.html").read_text() == "41"


def test_exchange(mount: Mount) -> None:
    (mount.app / "other").symlink_to("releases/42")
    from relfs.libc import AT_FDCWD, RENAME_EXCHANGE, renameat2

    renameat2(AT_FDCWD, bytes(mount.app / "other"), AT_FDCWD, bytes(mount.app / "current"), RENAME_EXCHANGE)
    assert os.readlink(mount.app / "current") == "releases/42"
    assert os.readlink(mount.app / "other") == "releases/40"
    renameat2(AT_FDCWD, bytes(mount.app / "current"), AT_FDCWD, bytes(mount.app / "other"), RENAME_EXCHANGE)
    assert os.readlink(mount.app / "current") == "releases/40"
    wait_for(lambda: os.readlink(mount.app / "other") == "releases/42", "the other name is looked up anew")


def test_first_deploy_in_each_way(app: Path, mounts: Mounts) -> None:
    for number, tool in enumerate(("gnu ln -sfn", "gnu mv -T", "busybox ln -sfn", "capistrano")):
        site = app.parent / f"site{number}"
        add_release(site, "40")
        mount = mounts.start(site)
        swap(site, TOOLS[tool], "40")
        assert (site / "current/index.html").read_text() == "40"
        assert mount.terminate() == 0
        assert (site / "current/index.html").read_text() == "40"


def test_tools_and_relfsctl_together(mount: Mount) -> None:
    """Two tools and relfsctl at once: every swap is done or refused, none hangs, and all agree in the end."""
    assert shutil.which("busybox") is not None
    script = "for n in $(seq 30); do ln -sfn releases/4$((n % 3)) {app}/current; done"
    boxed = "for n in $(seq 30); do busybox ln -sfn releases/4$((n % 3)) {app}/current; done"
    readers: Readers
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
        swap(app, TOOLS["gnu ln -sfn"], "41")
        assert (app / "current/index.html").read_text() == "41"
        done = subprocess.run(["rm", app / "current"], capture_output=True, text=True, check=False)
        assert done.returncode == 1
        assert "Operation not permitted" in done.stderr
        assert (app / "current/index.html").read_text() == "41"
    finally:
        relfsctl(app, "unmount")
        sidecar.communicate(b"\n")
    assert os.listdir(app / "releases/41") == ["index.html"]
