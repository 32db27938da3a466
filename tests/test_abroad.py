"""Another disk below the deploy path that relfs serves itself (--no-bind, an ordinary user's mount): it is as it is
natively, outlives a worker, and keeps nobody who does not use it, however many wait for it.
"""

from __future__ import annotations

import errno
import itertools
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from chaos import Chaos
from clients import SECONDS, ctl
from crew import kill
from disks import broken_disk, small_disk
from mounting import Mount, Mounts, detach_all, environment, wait_for
from sandbox import make_app
from sidebyside import ROOT, Script, Trace, difference, make, run, tree
from test_faults_frozen import someone_who_waits, waits

from relfs.fuse.abroad import ROOM
from relfs.mountinfo import mount_at

MANY = 3 * ROOM


@pytest.fixture
def storage(app: Path) -> Path:
    made = app / "storage"
    made.mkdir()
    (made / "file").write_text("on the other disk")
    return made


# ---- as it is natively


@pytest.fixture(scope="module")
def sides() -> Iterator[tuple[Path, Path]]:
    """A directory of another disk through the mount, and one of a disk like it."""
    place = Path(tempfile.mkdtemp(prefix="relfs-abroad-"))
    place.chmod(0o755)
    mounts = Mounts(place)
    app = make_app(place / "app")
    with small_disk(app / "storage") as here, small_disk(place / "plain") as plain:
        try:
            mounts.start(app, "--no-bind")
            yield here, plain
        finally:
            mounts.take_away()
    shutil.rmtree(place)


def _operations(seed: int, base: str) -> Script:
    def script(t: Trace) -> None:
        make(base, 0o777)
        os.chdir(base)
        chaos = Chaos(seed, t)
        for _ in range(300):
            chaos.step()

    return script


@pytest.mark.parametrize("seed", range(3))
def test_anything_in_any_order(sides: tuple[Path, Path], seed: int) -> None:
    here, plain = sides
    seen, natively = (run(_operations(seed, f"base{seed}"), base, ROOT) for base in (here, plain))
    assert not (found := difference(seen, natively)), f"seed {seed}: {found}"
    assert tree(here) == tree(plain), f"seed {seed}: other trees are left"


def test_no_name_is_moved_from_one_to_the_other(app: Path, mounts: Mounts) -> None:
    with small_disk(app / "storage") as disk:
        mount = mounts.start(app, "--no-bind")
        (app / "ours").write_text("ours")
        (disk / "theirs").symlink_to("releases/41")
        for call, one, other in (
            (os.rename, app / "ours", disk / "new"), (os.rename, disk / "theirs", app / "current"),
            (os.link, app / "ours", disk / "new"), (os.link, disk / "theirs", app / "new"),
        ):  # fmt: skip
            with pytest.raises(OSError, match=os.strerror(errno.EXDEV)):
                call(one, other)
        with pytest.raises(OSError, match=os.strerror(errno.EBUSY)):
            disk.rmdir()
        assert {"current", "ours", "storage"} <= set(os.listdir(app))
        mount.terminate()


# ---- whoever dies


@pytest.mark.parametrize("how", ["asked again", "relayed"])
def test_it_outlives_a_worker(app: Path, mounts: Mounts, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    """What is open goes on, and so does who works in it."""
    if how == "relayed":
        monkeypatch.setenv("RELFS_NO_RESEND", "1")
    with small_disk(app / "storage") as disk:
        mount = mounts.start(app, "--no-bind")
        (disk / "inner").mkdir()
        inner = os.open(disk / "inner", os.O_RDONLY | os.O_DIRECTORY)
        with open(disk / "log", "ab", buffering=0) as log, open(disk / "log", "rb", buffering=0) as reading:
            for number in range(2):
                log.write(b"%d" % number)
                os.close(os.open(f"made{number}", os.O_CREAT | os.O_EXCL, dir_fd=inner))
                kill(mount, "worker")
            log.write(b"2")
            assert reading.read() == b"012"
        assert sorted(os.listdir(inner)) == ["made0", "made1"]
        os.close(inner)
        mount.terminate()


@pytest.mark.parametrize("how", ["asked again", "relayed"])
def test_a_worker_that_is_killed_while_it_does_not_answer(
    app: Path, storage: Path, tmp_path: Path, mounts: Mounts, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    if how == "relayed":
        monkeypatch.setenv("RELFS_NO_RESEND", "1")
    with broken_disk(storage, tmp_path / "mood") as disk:
        mount = mounts.start(app, "--no-bind")
        disk.hangs()
        with someone_who_waits(storage / "file") as waiting:
            wait_for(lambda: waits(waiting), "it waits for the disk")
            for release in ("41", "42"):
                kill(mount, "worker")
                assert ctl("-C", app, "switch", release).status == 0
                (app / "upload").write_text("at the top level")
            assert waiting.poll() is None, "it did not wait"
            disk.works()
            assert waiting.communicate(timeout=SECONDS)[0] == "on the other disk\n"
        mount.terminate()


def test_all_die_while_it_does_not_answer(app: Path, storage: Path, tmp_path: Path, mounts: Mounts) -> None:
    """The thread that waits for the disk keeps nothing that keeps the mount."""
    with broken_disk(storage, tmp_path / "mood") as disk:
        mount = mounts.start(app, "--no-bind")
        mounted = mount_at(str(app))
        disk.hangs()
        with someone_who_waits(storage / "file") as waiting:
            wait_for(lambda: waits(waiting), "it waits for the disk")
            mount.signal(signal.SIGKILL)
            wait_for(lambda: mount_at(str(app)) != mounted, "the mount is gone")
            assert (app / "current/index.html").read_text() == "40"
            disk.works()


# ---- many who wait

_MANY = """
import os, sys, threading
paths, how = [f"{sys.argv[1]}/{number}" for number in range(int(sys.argv[2]))], sys.argv[3]
fds = [os.open(path, os.O_RDONLY) for path in paths] if how == "read" else []
print("ready", flush=True)
sys.stdin.readline()
def ask(number):
    try:
        os.read(fds[number], 1 << 16) if how == "read" else os.stat(paths[number])
        told = "answered"
    except OSError as error:
        told = os.strerror(error.errno)
    os.write(1, f"{told}\\n".encode())  # in one piece: the others tell, too
threads = [threading.Thread(target=ask, args=(number,)) for number in range(len(paths))]
for each in threads: each.start()
for each in threads: each.join()
"""


@contextmanager
def _many(directory: Path, how: str) -> Iterator[subprocess.Popen[str]]:
    """A process of which `MANY` threads at once read, or ask for, a file each, once it is told to."""
    process = subprocess.Popen(
        [sys.executable, "-c", _MANY, str(directory), str(MANY), how],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment(),
    )  # fmt: skip
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("how", ["read", "stat"])
def test_more_who_wait_than_are_kept(app: Path, storage: Path, tmp_path: Path, mounts: Mounts, how: str) -> None:
    """Some get ETIMEDOUT, so that there is always room for who wants something else."""
    with ExitStack() as stack:
        for number in range(MANY):
            (storage / str(number)).write_text("a file")
        disk = stack.enter_context(broken_disk(storage, tmp_path / "mood"))
        mount = mounts.start(app, "--no-bind")
        (app / "large").write_bytes(bytes(1 << 20))
        process = stack.enter_context(_many(storage, how))
        stack.callback(disk.works)
        disk.hangs()
        process.stdin.write("\n")  # type: ignore[union-attr]
        process.stdin.flush()  # type: ignore[union-attr]
        refused = process.stdout.readline().strip()  # type: ignore[union-attr]
        assert refused == os.strerror(errno.ETIMEDOUT)
        assert (app / "large").read_bytes() == bytes(1 << 20)
        assert ctl("-C", app, "switch", "41").status == 0
        assert mount.status()["health"] == []
        disk.works()
        answers = process.communicate(timeout=SECONDS)[0].splitlines()
        assert answers.count("answered") >= ROOM // 2
        assert set(answers) <= {"answered", refused}
        mount.terminate()


def test_a_rename_that_is_not_answered_lets_others_rename(
    app: Path, storage: Path, tmp_path: Path, mounts: Mounts
) -> None:
    """The kernel lets one process at a time move something from one directory to another in a whole mount."""
    (storage / "one").mkdir()
    (storage / "other").mkdir()
    (storage / "one/file").write_text("moved")
    with broken_disk(storage, tmp_path / "mood") as disk:
        mount = mounts.start(app, "--no-bind")
        for name in ("from", "to"):
            (app / name).mkdir()
        (app / "from/file").write_text("ours")
        command = "import os, sys; os.chdir(sys.argv[1]); print(); input(); os.rename('one/file', 'other/file')"
        renaming = subprocess.Popen(
            [sys.executable, "-u", "-c", command, storage], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            stderr=subprocess.PIPE,
        )  # fmt: skip
        assert renaming.stdout is not None
        assert renaming.stdin is not None
        renaming.stdout.readline()
        disk.hangs()
        renaming.stdin.write("\n")
        renaming.stdin.flush()
        wait_for(lambda: waits(renaming), "it waits for the disk")
        os.rename(app / "from/file", app / "to/file")
        assert (app / "to/file").read_text() == "ours"
        disk.works()
        renaming.communicate(timeout=SECONDS)
        mount.terminate()


# ---- an ordinary user's mount, elsewhere

USER = 1000


@pytest.fixture
def live(open_place: Path, mounts: Mounts) -> tuple[Path, Mount]:
    """The user's deploy path, with a directory `storage`, and his mount of it."""
    for name in ("home", "home/live"):
        (open_place / name).mkdir()
    app = make_app(open_place / "home/app")
    (app / "storage").mkdir()
    (app / "storage/file").write_text("on the other disk")
    subprocess.run(["chown", "-R", f"{USER}:{USER}", open_place / "home"], check=True)
    place = open_place / "home/live"
    return app, mounts.start(app, "-o", "noallow_other", at=place, user=USER)


def _as_user(words: str, place: Path) -> str:
    """What a shell of the user's says, in a directory of his."""
    shell = ["sh", "-ec", f'cd "$0"; {words}', str(place)]
    command = ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups", *shell]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, timeout=SECONDS).stdout


def test_a_users_mount(live: tuple[Path, Mount], tmp_path: Path) -> None:
    """Of a disk that was mounted later, too."""
    app, mount = live
    place = mount.mountpoint
    with broken_disk(app / "storage", tmp_path / "mood") as disk:
        assert _as_user("cat storage/file", place) == "on the other disk"
        disk.hangs()
        with someone_who_waits(place / "storage/file", user=USER) as waiting:
            wait_for(lambda: waits(waiting), "it waits for the disk")
            assert mount.relfsctl("switch", "41").returncode == 0
            assert {"upload", "storage", "releases"} <= set(_as_user("echo ours > upload; ls", place).split())
            assert mount.status()["health"] == []
            assert waiting.poll() is None, "it did not wait"
            disk.works()
            assert waiting.communicate(timeout=SECONDS)[0] == "on the other disk\n"


def test_what_the_kernel_has_forgotten_can_be_unmounted(live: tuple[Path, Mount]) -> None:
    app, mount = live
    subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=755", "none", app / "storage"], check=True)
    try:
        (app / "storage/file").write_text("of the new disk")
        assert _as_user("cat storage/file", mount.mountpoint) == "of the new disk"

        tries = itertools.count()

        def unmounted() -> bool:
            if next(tries) % 50 == 0:  # the kernel tells us some time later
                Path("/proc/sys/vm/drop_caches").write_text("2")
            return subprocess.run(["umount", app / "storage"], capture_output=True, check=False).returncode == 0

        wait_for(unmounted, "the disk can be unmounted")
    finally:
        detach_all(app / "storage")
    assert _as_user("cat storage/file", mount.mountpoint) == "on the other disk"
