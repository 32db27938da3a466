"""The mount itself: how it comes up, what it shows, how it goes away. Real mounts, as root and as a user."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from mounting import END_SECONDS, Mount, Mounts, environment, held, relfs_command, relfsctl, relfsctl_command, wait_for
from sandbox import make_app

from relfs.daemon import preflight, watcher
from relfs.daemon.plan import Plan
from relfs.errors import RelfsError
from relfs.layout import DeployPath
from relfs.mountinfo import Mount as MountInfo
from relfs.mountinfo import mount_at, mount_id, relfs_mounts
from relfs.mountinfo import mounts as all_mounts
from relfs.mounts import detach, detach_only

NOBODY = 65534


def read_current(where: Path) -> str:
    return (where / "current" / "index.html").read_text()


def is_mounted(where: Path) -> bool:
    return any(mount.target == str(where) for mount in relfs_mounts())


@pytest.fixture
def other_place(tmp_path: Path) -> Path:
    place = tmp_path / "live"
    place.mkdir()
    return place


def test_shows_what_is_there(mount: Mount) -> None:
    assert sorted(os.listdir(mount.app)) == [".relfs", "current", "releases"]
    assert os.readlink(mount.app / "current") == "releases/40"
    assert read_current(mount.app) == "40"
    assert mount.status()["mounted"] is True
    assert mount.status()["supervisor_pid"] == mount.process.pid


def test_data_is_native(mount: Mount, tmp_path: Path) -> None:
    """The file that `current` leads to is on the file system that holds it, not on FUSE."""
    assert os.stat(mount.app / "current/index.html").st_dev == os.stat(tmp_path).st_dev
    assert os.stat(mount.app).st_dev != os.stat(tmp_path).st_dev
    assert mount.status()["host"]["native"] == [".relfs", "releases"]
    assert [each.target for each in all_mounts() if each.target == f"{mount.app}/releases"] == [f"{mount.app}/releases"]


def test_read_only(app: Path, mounts: Mounts) -> None:
    """-o ro holds for what is native, too; switching is not writing to the mount."""
    mount = mounts.start(app, "-o", "ro")
    for path in (app / "file", app / "releases/file", app / "releases/40/file"):
        with pytest.raises(OSError, match="Read-only file system"):
            path.touch()
    assert mount.relfsctl("switch", "41").returncode == 0
    assert read_current(app) == "41"


def test_shared_is_native_even_if_it_comes_later(mount: Mount, tmp_path: Path) -> None:
    (mount.app / "shared").mkdir()
    wait_for(lambda: "shared" in mount.status()["host"]["native"], "shared is attached")
    assert os.stat(mount.app / "shared").st_dev == os.stat(tmp_path).st_dev


def test_releases_elsewhere_through_a_link(app: Path, mounts: Mounts, tmp_path: Path) -> None:
    """A link `releases` to another disk is shown as the link that it is, and nothing is mounted where it leads."""
    (app / "releases").rename(tmp_path / "disk")
    (app / "releases").symlink_to(tmp_path / "disk")
    mount = mounts.start(app)
    assert mount.relfsctl("switch", "41").returncode == 0
    assert read_current(app) == "41"
    assert os.readlink(app / "releases") == str(tmp_path / "disk")
    assert mount.terminate() == 0
    assert mount_at(str(tmp_path / "disk")) is None
    assert read_current(app) == "41"


@pytest.mark.parametrize("how", ["terminate", "kill"])
def test_nested_mounts_stay_visible_and_survive(app: Path, mounts: Mounts, how: str) -> None:
    """A network disk below shared/ is seen through the mount, and is still there after relfs is gone, also where mounts
    propagate, as on every host with systemd; and so is the disk that the deploy path is."""
    (app / "shared/storage").mkdir(parents=True)
    subprocess.run(["mount", "--bind", app, app], check=True)
    try:
        subprocess.run(["mount", "--make-shared", app], check=True)
        subprocess.run(["mount", "-t", "tmpfs", "disk", app / "shared/storage"], check=True)
        (app / "shared/storage/file").write_text("kept")
        mount = mounts.start(app)
        assert (app / "shared/storage/file").read_text() == "kept"
        getattr(mount, how)()
        assert mounts.start(app).terminate() == 0  # not before those who detach the first are done
        assert (app / "shared/storage/file").read_text() == "kept"
    finally:
        detach(str(app))


@pytest.fixture
def shared_disk(tmp_path: Path) -> Iterator[Path]:
    """What is mounted on it, and on what is bound from it, propagates."""
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "disk", disk], check=True)
    try:
        subprocess.run(["mount", "--make-shared", disk], check=True)
        yield disk
    finally:
        detach(str(disk))


@pytest.mark.parametrize("how", ["terminate", "kill"])
def test_over_a_directory_that_is_bound_to_itself(shared_disk: Path, mounts: Mounts, how: str) -> None:
    """The mount is there twice then, once between the two, which is the last in the list."""
    app = make_app(shared_disk / "app")
    subprocess.run(["mount", "--bind", app, app], check=True)
    mount = mounts.start(app)
    assert len([each for each in relfs_mounts() if each.target == str(app)]) == 2, "it was not propagated"
    top = os.open(app, os.O_PATH)
    try:
        found = mount_at(str(app))
        assert found is not None
        assert (found.id, found.fstype) == (mount_id(top), "fuse.relfs")
    finally:
        os.close(top)
    assert mount.status()["host"]["native"] == [".relfs", "releases"]
    getattr(mount, how)()
    wait_for(lambda: not any(each.target == str(app) for each in relfs_mounts()), "both are gone")
    assert read_current(app) == "40"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signals_unmount_cleanly(mount: Mount, number: signal.Signals) -> None:
    assert mount.relfsctl("switch", "41").returncode == 0
    mount.process.send_signal(number)
    assert mount.process.wait(END_SECONDS) == 0
    assert not is_mounted(mount.app)
    assert mount_at(str(mount.app / "releases")) is None
    assert read_current(mount.app) == "41"


def test_mounted_by_another_name(deploy: DeployPath, app: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where the deploy path is bound in elsewhere: no mount that is seen says that it is of this one."""
    monkeypatch.setattr(preflight, "_PREDECESSOR_SECONDS", 0)
    assert deploy.state_fd is not None
    plan = Plan(str(app), str(app))
    lock = preflight.take_daemon_lock(plan, deploy.state_fd)
    try:
        with pytest.raises(RelfsError, match="already mounted by another name, or in another mount name space"):
            preflight.take_daemon_lock(plan, deploy.state_fd)
    finally:
        os.close(lock)


def test_what_a_killed_daemon_left_is_not_taken_from_its_helper(app: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However long the machine stood still, and the helper with it: that goes by the path, and would come second."""
    left = MountInfo(1, str(app), "fuse.relfs", str(app), "rw", "0:99", "/")
    answers, now = iter((True, True, False)), itertools.count(step=1000.0)
    monkeypatch.setattr(preflight, "_mounted", lambda _path: left)
    monkeypatch.setattr(preflight, "_is_broken", lambda _path: next(answers))
    monkeypatch.setattr(time, "monotonic", lambda: next(now))
    monkeypatch.setattr(preflight, "detach_only", lambda found: pytest.fail(f"{found.target} is detached"))
    preflight.clear_broken(Plan(str(app), str(app)))
    assert next(answers, None) is None


INTERRUPT = """
import sys
class _Interrupting:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            import os, signal
            sys.meta_path.remove(self)
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, _Interrupting())
"""
"""Ctrl-C at the moment in which a module is looked for (site.py)."""


@pytest.mark.parametrize("module", ["relfs.pointer", "relfs.daemon.supervisor"])
def test_ctrl_c_before_it_is_mounted(app: Path, tmp_path: Path, module: str) -> None:
    """It ends without a word, as commands do, and nothing is mounted."""
    (tmp_path / "sitecustomize.py").write_text(INTERRUPT.format(module=module))
    path = f"{tmp_path}:{environment()['PYTHONPATH']}"
    done = subprocess.run(
        relfs_command("-f", app), capture_output=True, text=True, env=environment(PYTHONPATH=path), cwd="/", check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")
    assert not is_mounted(app)


def test_unmount_command(mount: Mount) -> None:
    done = mount.relfsctl("unmount")
    assert (done.returncode, done.stderr) == (0, "")
    assert not is_mounted(mount.app)
    assert mount.process.wait(END_SECONDS) == 0
    again = relfsctl(mount.app, "unmount")
    assert again.returncode == 1
    assert "is not mounted" in again.stderr


def test_unmounted_by_somebody_else(mount: Mount) -> None:
    """umount -l, with a shell that still has its working directory in the mount: the daemon ends all the same."""
    inside = subprocess.Popen(["sleep", "1000"], cwd=mount.app)
    try:
        detach(str(mount.app))
        assert mount.process.wait(END_SECONDS) == 0
    finally:
        inside.kill()
        inside.wait()
    assert read_current(mount.app) == "40"


def test_killed_and_the_real_link_serves(mount: Mount) -> None:
    """auto_unmount: a killed daemon uncovers the real link, native directories included."""
    assert mount.relfsctl("switch", "42").returncode == 0
    mount.kill()
    wait_for(lambda: not is_mounted(mount.app), "the mount is gone")
    assert read_current(mount.app) == "42"
    assert mount_at(str(mount.app / "releases")) is None


def test_mounts_again_at_once_after_a_kill(app: Path, mounts: Mounts) -> None:
    """Over the broken mount, over the dead control socket, and while the helper of the first is still busy."""
    for release in ("41", "42", "40"):
        mount = mounts.start(app)
        assert mount.relfsctl("switch", release).returncode == 0
        mount.kill()
    last = mounts.start(app)
    assert read_current(app) == "40"
    assert last.relfsctl("switch", "41").returncode == 0
    assert is_mounted(app)


def test_background_returns_when_it_answers(app: Path) -> None:
    try:
        done = subprocess.run(relfs_command(app), env=environment(), capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")
        assert is_mounted(app)
        assert read_current(app) == "40"
        assert relfsctl(app, "unmount").returncode == 0
    finally:
        if is_mounted(app):
            detach(str(app))
    assert "is mounted at" in (app / ".relfs/log").read_text()
    assert (app / ".relfs/log").stat().st_mode & 0o777 == 0o640


def test_background_with_a_fifo_for_a_log(app: Path) -> None:
    (app / ".relfs").mkdir()
    os.mkfifo(app / ".relfs/log")
    done = subprocess.run(
        relfs_command(app), env=environment(), capture_output=True, text=True, check=False, timeout=120
    )
    said = f"relfs: {app}/.relfs/log: cannot be written: No such device or address\n"
    assert (done.returncode, done.stderr) == (1, said)
    assert not is_mounted(app)


def test_second_mount_is_refused(mount: Mount, other_place: Path) -> None:
    for arguments in ([mount.app], [mount.app, other_place]):
        done = subprocess.run(relfs_command(*arguments), env=environment(), capture_output=True, text=True, check=False)
        assert done.returncode == 1
        assert "already mounted" in done.stderr
        assert len(done.stderr.splitlines()) == 1
    assert read_current(mount.app) == "40"


def test_elsewhere_as_root(app: Path, mounts: Mounts, other_place: Path) -> None:
    mount = mounts.start(app, at=other_place)
    assert os.readlink(other_place / "current") == "releases/40"
    assert os.stat(other_place / "current/index.html").st_dev == os.stat(app).st_dev
    assert mount.relfsctl("switch", "41").returncode == 0
    assert read_current(other_place) == "41"
    assert relfsctl(app, "switch", "42").returncode == 0, "by the deploy path's own name, too"
    assert (read_current(other_place), read_current(app)) == ("42", "42")


def test_no_bind_serves_everything_itself(app: Path, mounts: Mounts) -> None:
    mount = mounts.start(app, "--no-bind")
    assert os.stat(app / "current/index.html").st_dev == os.stat(app).st_dev
    assert read_current(app) == "40"
    assert mount.relfsctl("switch", "41").returncode == 0
    assert read_current(app) == "41"


def test_as_an_ordinary_user(open_place: Path, mounts: Mounts) -> None:
    """Elsewhere, with absolute links into the deploy path: bytes are native there too."""
    app, live = make_app(open_place / "app"), open_place / "live"
    live.mkdir()
    for path in (app, *app.rglob("*"), live):
        os.chown(path, NOBODY, NOBODY, follow_symlinks=False)
    mounts.start(app, "-o", "noallow_other", at=live, user=NOBODY)
    assert as_nobody("readlink", f"{live}/current") == f"{app}/releases/40"
    assert as_nobody("cat", f"{live}/current/index.html") == "40"
    assert int(as_nobody("stat", "-c", "%d", f"{live}/current/")) == os.stat(app).st_dev
    as_nobody(*relfsctl_command(live, "switch", "41"))
    assert as_nobody("cat", f"{live}/current/index.html") == "41"
    assert os.readlink(app / "current") == "releases/41", "the real link stays relative"


def test_over_the_deploy_path_as_an_ordinary_user(open_place: Path, mounts: Mounts) -> None:
    """All of it is passthrough then, and the control socket is where FUSE is not."""
    app = make_app(open_place / "app")
    for path in (app, *app.rglob("*")):
        os.chown(path, NOBODY, NOBODY, follow_symlinks=False)
    mount = mounts.start(app, "-o", "noallow_other", user=NOBODY)
    as_nobody(*relfsctl_command(app, "switch", "41"))
    assert as_nobody("cat", f"{app}/current/index.html") == "41"
    as_nobody("sh", "-c", f"echo text > {app}/file && busybox ln -sfn releases/42 {app}/current")
    assert as_nobody("cat", f"{app}/current/index.html", f"{app}/file") == "42text"
    socket = as_nobody("readlink", f"{app}/.relfs/control")
    assert mount.terminate() == 0
    assert not os.path.exists(os.path.dirname(socket))


@pytest.mark.parametrize("over", [True, False])
def test_an_ordinary_users_daemon_is_killed(open_place: Path, mounts: Mounts, over: bool) -> None:
    """The helper that detaches cannot look at a mount that is only its user's; somebody else has to do it."""
    app, live = make_app(open_place / "app"), open_place / "live"
    live.mkdir()
    for path in (app, *app.rglob("*"), live):
        os.chown(path, NOBODY, NOBODY, follow_symlinks=False)
    mount = mounts.start(app, "-o", "noallow_other", user=NOBODY, at=None if over else live)
    as_nobody(*relfsctl_command(app, "switch", "41"))
    mount.kill()
    wait_for(lambda: not is_mounted(mount.mountpoint), "the mount is gone")
    assert read_current(app) == "41"


def as_nobody(*command: str) -> str:
    """What a command says when an ordinary user runs it; it must succeed."""
    done = subprocess.run(
        command,
        user=NOBODY,
        group=NOBODY,
        extra_groups=[],
        env=environment(),
        cwd="/",
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_read_only_deploy_path(tmp_path: Path, mounts: Mounts) -> None:
    """The target is kept in the state directory; the real link, which cannot follow, is left alone."""
    disk, state = tmp_path / "disk", tmp_path / "state"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "none", disk], check=True)
    try:
        app = make_app(disk / "app")
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        refused = subprocess.run(relfs_command(app), env=environment(), capture_output=True, text=True, check=False)
        assert refused.returncode == 1
        assert "Read-only file system; name a writable one with --state-dir" in refused.stderr
        for before, after in (("40", "41"), ("41", "42")):
            mount = mounts.start(app, "--state-dir", state)
            assert read_current(app) == before, "what was chosen survives the mount"
            done = mount.relfsctl("switch", after)
            assert done.returncode == 0, done.stderr
            assert read_current(app) == after
            assert mount.terminate() == 0
        assert read_current(app) == "40"
        assert json.loads(relfsctl(app, "--state-dir", str(state), "--json", "status").stdout)["current"] == "42"
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


def test_absolute_links_on_request(app: Path, mounts: Mounts) -> None:
    mount = mounts.start(app, "--link", "absolute")
    assert mount.relfsctl("switch", "41").returncode == 0
    assert os.readlink(app / "current") == f"{app}/releases/41"
    assert read_current(app) == "41"


@pytest.mark.parametrize(
    ("prepare", "arguments", "words"),
    [
        (lambda app: shutil.rmtree(app), [], "no such deploy path"),
        (lambda app: shutil.rmtree(app / "releases"), [], "has no releases/"),
        (lambda app: shutil.rmtree(app / "releases/40"), [], "leads to releases/40, which is no directory"),
        (lambda app: (app / "current").unlink() or (app / "current").mkdir(), [], "relfsctl init"),
        (lambda app: (app / "current").unlink() or (app / "current").touch(), [], "not a symbolic link"),
        (
            lambda app: (app / ".relfs").mkdir() or (app / ".relfs/config.toml").write_text("[x]"),
            [],
            "[x] is not known",
        ),
        (lambda _: None, ["-o", "frobnicate"], "frobnicate: no such mount option"),
        (lambda _: None, ["/nonexistent/mountpoint"], "/nonexistent/mountpoint: no such directory"),
    ],
)
def test_what_cannot_be_mounted(app: Path, prepare: object, arguments: list[str], words: str) -> None:
    assert callable(prepare)
    prepare(app)
    command = relfs_command(*(a for a in arguments if a.startswith("-") or "=" in a or a == "frobnicate"), app)
    command += [a for a in arguments if a.startswith("/")]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode in (1, 2)
    assert words in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not is_mounted(app)


def test_helper_missing(app: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        relfs_command(app), env=environment(PATH=str(tmp_path)), capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "fusermount3: not found; install fuse3" in done.stderr


def test_device_missing(app: Path) -> None:
    """Where /dev has no fuse in it: a container that was not given it, or a kernel without the module."""
    script = 'mount -t tmpfs none /dev && mknod -m 666 /dev/null c 1 3 && exec "$@"'
    done = subprocess.run(
        ["unshare", "-m", "sh", "-ec", script, "sh", *relfs_command(app)],
        env=environment(),
        cwd="/",
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert f"{app}: cannot be mounted" in done.stderr
    assert "fuse" in done.stderr.removeprefix(f"relfs: {app}")
    assert len(done.stderr.splitlines()) == 1
    assert read_current(app) == "40"


def test_allow_other_is_not_allowed(open_place: Path) -> None:
    """A user on a host whose fuse.conf does not let him mount for others; what to do is said, nothing is mounted."""
    app, live, conf = make_app(open_place / "app"), open_place / "live", open_place / "fuse.conf"
    live.mkdir()
    conf.touch()
    for path in (app, *app.rglob("*"), live):
        os.chown(path, NOBODY, NOBODY, follow_symlinks=False)
    script = f'mount --bind {conf} /etc/fuse.conf && exec setpriv --reuid {NOBODY} --regid {NOBODY} --clear-groups "$@"'
    done = subprocess.run(
        ["unshare", "-m", "sh", "-ec", script, "sh", *relfs_command(app, live)],
        env=environment(),
        cwd="/",
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "put user_allow_other into /etc/fuse.conf, or mount for yourself alone with -o noallow_other" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert os.listdir(live) == []


def test_busy_mountpoint(app: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").touch()
    for place, words in ((tmp_path / "full", "not empty"), (tmp_path, "would be hidden")):
        done = subprocess.run(relfs_command(app, place), env=environment(), capture_output=True, text=True, check=False)
        assert done.returncode == 1
        assert words in done.stderr


def test_without_inotify(app: Path, mounts: Mounts) -> None:
    """Where there are no more inotify instances, looking now and then has to do."""
    program = (
        "import ctypes; plain = ctypes.CDLL\n"
        "class Without(plain):\n"
        "    def __getattr__(self, name):\n"
        "        return (lambda *_: -1) if name == 'inotify_init1' else super().__getattr__(name)\n"
        "import relfs.libc; ctypes.CDLL = Without"
    )
    mount = mounts.start(app, patch=program)
    mount.expect_log("inotify: .*looked at every few seconds only")
    assert mount.relfsctl("switch", "41").returncode == 0
    assert read_current(app) == "41"
    assert mount.process.poll() is None


def test_first_deploy(app: Path, mounts: Mounts) -> None:
    """A deploy path without `current` mounts, and the first switch makes it."""
    (app / "current").unlink()
    mount = mounts.start(app)
    assert not os.path.lexists(app / "current")
    assert "current" not in os.listdir(app)
    assert mount.relfsctl("switch", "42").returncode == 0
    assert read_current(app) == "42"
    assert "current" in os.listdir(app)


def test_kernel_answers_by_itself(mount: Mount) -> None:
    """With nothing switching, no resolution of `current/...` reaches the daemon: all are the kernel's cache."""
    assert mount.status()["host"]["caches_links"] is True
    read_current(mount.app)
    before = mount.requests()
    for _ in range(10_000):
        os.stat(mount.app / "current/index.html")
    after = mount.requests()
    counted = ("lookup", "readlink", "getattr")
    assert {name: after[name] - before[name] for name in counted} == dict.fromkeys(counted, 0)
    assert mount.relfsctl("switch", "41").returncode == 0
    assert read_current(mount.app) == "41"
    assert mount.requests()["readlink"] == after["readlink"] + 1, "the counter does count"


def test_a_kernel_that_does_not_cache_links(app: Path, mounts: Mounts) -> None:
    """Without FUSE_CACHE_SYMLINKS every resolution asks the daemon: slower, and no less right. (That also shows that
    the test above can fail.)"""
    mount = mounts.start(app, patch="import relfs.fuse.handshake as h; h.CACHE_SYMLINKS = 0")
    assert mount.status()["host"]["caches_links"] is False
    before = mount.requests()["readlink"]
    for _ in range(100):
        assert read_current(app) == "40"
    assert mount.requests()["readlink"] >= before + 100
    for release in ("41", "42") * 10:
        assert mount.relfsctl("switch", release).returncode == 0
        assert read_current(app) == release


def test_idle_when_nobody_asks(mount: Mount) -> None:
    """Nothing that the daemon does by itself makes it do more: after a switch it comes to rest."""
    assert mount.relfsctl("switch", "41").returncode == 0

    def context_switches() -> int:
        status = Path(f"/proc/{mount.worker_pid}/status").read_text()
        return int(status.split("voluntary_ctxt_switches:")[1].split()[0])

    def rests() -> bool:
        """Its heartbeat is a dozen a second, which count where a hundred thousand of these take longer than that."""
        before, since = context_switches(), time.monotonic()
        for _ in range(100_000):
            os.stat(mount.app / "current/index.html")
        return context_switches() - before < 20 * max(1.0, time.monotonic() - since)

    wait_for(rests, "the daemon comes to rest")


def test_changed_behind_the_mount(mount: Mount, tmp_path: Path) -> None:
    """Somebody in another mount name space, where the covered directory is seen, replaces the real link."""
    behind = tmp_path / "behind"
    behind.mkdir()

    def do_behind(script: str) -> None:
        """Where the mount is not: a copy of the directory's own mount, without what is mounted on it."""
        command = f"mount --bind {tmp_path} {behind} && cd {behind}/app && {script}"
        subprocess.run(["unshare", "-m", "--propagation", "private", "sh", "-ec", command], check=True)

    do_behind("ln -sfn releases/42 current")
    wait_for(lambda: read_current(mount.app) == "42", "the mount follows")
    assert mount.journal()[-1]["action"] == "follow"
    do_behind("ln -sfn releases/gone current")
    wait_for(lambda: mount.status()["diverged"] is not None, "the daemon reports it")
    assert "releases/gone" in mount.status()["diverged"]
    assert read_current(mount.app) == "42", "what cannot be served is not followed"
    do_behind("ln -sfn releases/41 current")
    wait_for(lambda: read_current(mount.app) == "41", "the mount follows again")
    assert mount.status()["diverged"] is None


def test_permissions_changed_behind_the_mount(mount: Mount, tmp_path: Path) -> None:
    """The root's attributes are kept for ever by the kernel, and dropped when they change."""
    behind = tmp_path / "behind"
    behind.mkdir()
    assert os.stat(mount.app).st_mode & 0o777 == 0o755
    command = f"mount --bind {tmp_path} {behind} && chmod 750 {behind}/app"
    subprocess.run(["unshare", "-m", "--propagation", "private", "sh", "-ec", command], check=True)
    wait_for(lambda: os.stat(mount.app).st_mode & 0o777 == 0o750, "the mount shows it")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("touch -d yesterday releases; chmod 700 releases", set()),
        ("touch -h -d yesterday current", {b"current"}),
        ("chmod 700 .", {b""}),
        ("mkdir shared; mv shared elsewhere; rmdir elsewhere", {b"shared", b"elsewhere"}),
    ],
)
def test_what_is_noticed_of_the_deploy_path(app: Path, change: str, told: set[bytes]) -> None:
    """Its own attributes, and its names; those of what is in it are nothing to it."""
    directory = os.open(app, os.O_PATH | os.O_DIRECTORY)
    watch = watcher._watch_directory(directory)
    assert watch is not None
    try:
        subprocess.run(["sh", "-ec", change], cwd=app, check=True)
        assert watcher._names(os.read(watch, 4096)) == told
    finally:
        os.close(watch)
        os.close(directory)


def test_status_fields(mount: Mount) -> None:
    status = mount.status()
    contract = {
        "deploy_path", "mountpoint", "mounted", "current", "previous", "since", "by",
        "supervisor_pid", "worker_pid", "standby_pid", "views", "host",
    }  # fmt: skip
    assert contract <= status.keys()
    assert (status["deploy_path"], status["mountpoint"]) == (str(mount.app), str(mount.app))


def test_fstab_line(app: Path, tmp_path: Path) -> None:
    """mount(8) runs `relfs` with an option list of its own. (For the type fuse.relfs it runs the one that is installed;
    the older way of writing the line lets us name the one that is tested.)"""
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "relfs").write_text(
        f'#!/bin/sh\nPYTHONPATH={environment()["PYTHONPATH"]} exec {" ".join(relfs_command())} "$@"\n'
    )
    (tools / "relfs").chmod(0o755)
    table = tmp_path / "fstab"
    table.write_text(f"{tools}/relfs#{app} {app} fuse defaults,nofail,x-systemd.before=nginx.service 0 0\n")
    try:
        done = subprocess.run(["mount", "-T", table, app], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        found = mount_at(str(app))
        assert found is not None
        assert found.fstype == "fuse.relfs"
        assert json.loads(relfsctl(app, "--json", "status").stdout)["current"] == "40"
        assert relfsctl(app, "unmount").returncode == 0
    finally:
        if is_mounted(app):
            detach(str(app))


_HASTY = """
from relfs import control
from relfs.cli.relfsctl import main
control._ANSWER_SECONDS = control.Connection.call.__kwdefaults__["seconds"] = 1.0
main()
"""
"""relfsctl that waits for an answer no longer than that, where there will be none."""


def test_a_stopped_daemon_is_said_and_can_be_got_rid_of(mount: Mount) -> None:
    """Readers go on by the kernel's cache; status says so; unmount, the way out, needs no daemon."""
    assert read_current(mount.app) == "40"
    pids = mount.pids().values()
    with held(mount.app / "current"):
        mount.signal(signal.SIGSTOP)
        assert read_current(mount.app) == "40"
    status, unmount = (
        subprocess.run(
            [sys.executable, "-c", _HASTY, "-C", mount.app, command],
            env=environment(), capture_output=True, text=True, check=False, cwd="/",
        )
        for command in ("status", "unmount")
    )  # fmt: skip
    assert status.returncode == 1
    assert "the daemon does not answer" in status.stderr
    assert unmount.returncode == 0
    assert not is_mounted(mount.app)
    assert read_current(mount.app) == "40"
    for pid in pids:
        os.kill(pid, signal.SIGCONT)
    assert mount.process.wait(END_SECONDS) == 0


@pytest.fixture
def private_place(tmp_path: Path) -> Iterator[Path]:
    """`tmp_path`, as a mount that propagates nothing: from any other, mount --move refuses to take something away."""
    subprocess.run(["mount", "--bind", "--make-private", tmp_path, tmp_path], check=True)
    yield tmp_path
    detach(str(tmp_path))


@pytest.mark.usefixtures("private_place")
def test_who_detaches_second_takes_nothing_else(other_place: Path) -> None:
    """Not what was below, nor what was mounted over it meanwhile."""
    for disk in ("lower", "upper"):
        subprocess.run(["mount", "-t", "tmpfs", disk, other_place], check=True)
    upper = _disk_at(other_place)
    for _ in range(2):
        detach_only(upper)
        assert _disk_at(other_place).source == "lower"
    lower = _disk_at(other_place)
    subprocess.run(["mount", "-t", "tmpfs", "over", other_place], check=True)
    detach_only(lower)
    assert _disk_at(other_place).source == "over"


def _disk_at(place: Path) -> MountInfo:
    found = mount_at(str(place))
    assert found is not None
    return found


@pytest.mark.usefixtures("private_place")
def test_moved_and_then_unmounted(app: Path, mounts: Mounts, other_place: Path) -> None:
    mount = mounts.start(app)
    subprocess.run(["mount", "--move", mount.app, other_place], check=True)
    assert mount.terminate() == 0
    assert not is_mounted(other_place)
    assert not is_mounted(mount.app)


def test_a_blocking_read_is_interrupted() -> None:
    """A read that holds the interpreter, as pyfuse3's does, ends with EINTR although nothing comes to be read."""
    program = (
        "import ctypes, errno, os\n"
        "from relfs.fuse.wakeup import interrupted_reads\n"
        "libc = ctypes.PyDLL(None, use_errno=True)\n"
        "reading, writing = os.pipe()\n"
        "with interrupted_reads():\n"
        "    result = libc.read(reading, ctypes.create_string_buffer(1), 1)\n"
        "print(result, errno.errorcode[ctypes.get_errno()])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment(), capture_output=True, text=True, check=False, timeout=60
    )
    assert done.stdout == "-1 EINTR\n", done.stderr
