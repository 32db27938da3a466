"""Who uses a release: in each way that there is, in another mount name space and chroot, and by another name.

Each process is made to use something, and says that it does, before it is looked for.
"""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from clients import ctl
from mounting import Mount, Mounts, detach_all, environment, wait_for
from sandbox import add_release, end, start_python

from relfs.layout import DeployPath
from relfs.mounts import detach
from relfs.processes import is_exiting, is_of_the_kernel
from relfs.releases import inuse
from relfs.releases.inuse import Use, who_uses, why_in_use

NOBODY = 65534

_WAIT = "\nprint('ready', flush=True)\nsys.stdin.read()\n"

_WAYS = {
    "cwd": "os.chdir(path + '/sub')",
    "root": "os.chroot(path + '/sub')",
    "open": "held = os.open(path + '/sub/file', os.O_RDONLY)",
    "open, to write": "held = open(path + '/sub/file', 'a')",
    "open, for its name": "held = os.open(path + '/sub', os.O_PATH)",
    "mapped": "held = os.open(path + '/sub/file', os.O_RDONLY); map_privately(held); os.close(held)",
    "cwd, of a thread": "in_a_thread(lambda: (unshare(), os.chdir(path)))",
    "open, its first thread has ended": "held = os.open(path, os.O_PATH); in_a_thread(after_the_first); exit_this()",
}

_PROLOGUE = """
import ctypes, os, sys, threading, time
path = sys.argv[1]
libc = ctypes.CDLL(None)
def wait():
    print('ready', flush=True)
    sys.stdin.read()
def unshare():
    assert libc.unshare(0x200) == 0  # CLONE_FS
def in_a_thread(does):
    done = threading.Event()
    threading.Thread(target=lambda: (does(), done.set(), sys.stdin.read())).start()
    if does is not after_the_first:
        done.wait()
def map_privately(fd):
    assert libc.mmap(None, 1, 1, 2, fd, ctypes.c_long(0)) != -1  # PROT_READ, MAP_PRIVATE; Python's own keeps it open
def exit_this():
    libc.pthread_exit(None)
def after_the_first():
    while open(f'/proc/{os.getpid()}/stat').read().rpartition(')')[2].split()[0] != 'Z':
        time.sleep(0.001)
    wait()
"""


@pytest.fixture
def release(app: Path) -> Path:
    """41, with something in it."""
    path = app / "releases/41"
    (path / "sub").mkdir()
    (path / "sub/file").write_text("something")
    return path


@contextmanager
def using(release: Path, does: str) -> Iterator[int]:
    """A process that uses something: its pid."""
    process = start_python(_PROLOGUE + does + _WAIT, str(release))
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield process.pid
    finally:
        end(process)


def found(deploy: DeployPath, name: str = "41") -> tuple[Use, ...]:
    return who_uses(deploy, [name]).of[name]


def by(pid: int, uses: tuple[Use, ...]) -> list[str]:
    return [use.how for use in uses if use.pid == pid]


@pytest.mark.parametrize("way", _WAYS)
def test_each_way_of_using(deploy: DeployPath, release: Path, way: str) -> None:
    with using(release, _WAYS[way]) as pid:
        assert by(pid, found(deploy)) == [way.partition(",")[0]]
        assert not found(deploy, "40"), "nobody uses that"
    assert not found(deploy), "it has ended"


def test_a_thread_that_ends_while_it_is_looked_at(
    deploy: DeployPath, release: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it had is others' now."""
    look, ended = inuse._Look._look_at, set[int]()

    def end_first(self: inuse._Look, pid: int, whole: int, threads: Iterable[int]) -> None:
        if whole == watched:
            ended.add(whole)
            raise ProcessLookupError
        look(self, pid, whole, threads)

    with using(release, "held = os.open(path + '/sub', os.O_PATH); in_a_thread(lambda: None)") as watched:
        monkeypatch.setattr(inuse._Look, "_look_at", end_first)
        monkeypatch.setattr(inuse, "is_exiting", lambda tid: tid in ended or is_exiting(tid))
        assert by(watched, found(deploy)) == ["open"]
    assert ended


def test_a_program(deploy: DeployPath, release: Path) -> None:
    program = release / "sub/program"
    program.write_bytes(Path("/bin/sleep").read_bytes())
    program.chmod(0o755)
    process = subprocess.Popen([program, "120"])
    try:
        wait_for(lambda: by(process.pid, found(deploy)) == ["exe", "mapped"], "it runs, and is found")
    finally:
        process.kill()
        process.wait()


def test_what_is_told_of_a_use(deploy: DeployPath, release: Path) -> None:
    with using(release, _WAYS["cwd"]) as pid:
        (use,) = found(deploy)
        assert (use.pid, use.user, use.path) == (pid, "root", f"{release}/sub")
        assert use.start > 0
        assert str(release) in use.command
        assert why_in_use([use]).startswith(f"in use by process {pid} (")
        assert why_in_use([use, Use(pid + 1, 1, "", "", "cwd", "/")]).endswith(" and 1 other")


def test_what_was_removed_is_not_used(deploy: DeployPath, release: Path) -> None:
    with using(release, _WAYS["open"]):
        (release / "sub/file").unlink()
        (release / "sub/file").write_text("another one")
        assert not found(deploy)


def test_a_release_that_was_renamed(deploy: DeployPath, app: Path, release: Path) -> None:
    """A process is found where its files are now, not where they were."""
    with using(release, _WAYS["open"]) as pid:
        release.rename(app / "releases/39")
        assert by(pid, found(deploy, "39")) == ["open"]
        assert not found(deploy), "there is none of that name"


def test_hard_links(deploy: DeployPath, app: Path, release: Path) -> None:
    """A file that releases share is used in the one that it was opened in."""
    os.link(release / "sub/file", app / "releases/42/file")
    with using(app / "releases/42", "held = open(path + '/file')") as pid:
        assert not found(deploy)
        assert by(pid, found(deploy, "42")) == ["open"]
    with using(release, _WAYS["mapped"]) as pid:
        assert by(pid, found(deploy)) == ["mapped"]
        assert not found(deploy, "42")


def test_a_hard_link_outside_of_releases_may_be_it(deploy: DeployPath, app: Path, release: Path) -> None:
    """By what name a container knows a release, nobody can tell."""
    os.link(release / "sub/file", app / "file")
    with using(app, "held = open(path + '/file')") as pid:
        assert by(pid, found(deploy)) == ["open"]


# ---- other name spaces


@contextmanager
def contained(script: str, *arguments: str | Path) -> Iterator[int]:
    """A process in a mount name space of its own that has done `script`, and then waits: its pid."""
    process = subprocess.Popen(
        ["unshare", "--mount", "--propagation", "private", "sh", "-ec", f"{script}\necho ready\nexec cat", "sh",
         *map(str, arguments)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield process.pid
    finally:
        process.kill()
        process.communicate()


def test_in_a_container_by_another_name(deploy: DeployPath, release: Path, tmp_path: Path) -> None:
    """Part of a release is bound elsewhere, so that no path leads up to it."""
    place = tmp_path / "srv"
    place.mkdir()
    with contained('mount --bind "$1/sub" "$2"; cd "$2"; exec 3< file', release, place) as pid:
        assert by(pid, found(deploy)) == ["cwd", "mounted", "open"]
        assert {use.path for use in found(deploy)} == {str(place), f"{place}/file"}


def test_bound_into_a_container_that_does_not_use_it_now(deploy: DeployPath, release: Path, tmp_path: Path) -> None:
    """It would miss it at its next request."""
    place = tmp_path / "srv"
    place.mkdir()
    with contained('mount --bind "$1" "$2"', release, place) as pid:
        assert by(pid, found(deploy)) == ["mounted"]
        assert not found(deploy, "40")


def test_in_a_container_of_its_own_root(deploy: DeployPath, release: Path, tmp_path: Path) -> None:
    """As container engines do it (pivot_root(2)), with the release in it."""
    root = tmp_path / "root"
    root.mkdir()
    script = (
        'mount --bind / "$2"; mkdir -p "$2$3"; mount -t tmpfs none "$2$3"; mkdir "$2$3/app" "$2$3/old"; '
        'mount --bind "$1" "$2$3/app"; cd "$2"; pivot_root . "$2$3/old"; busybox umount -n -l "$3/old"; cd "$3/app/sub"'
    )
    inside = tmp_path / "inside"
    with contained(script, release, root, inside) as pid:
        assert by(pid, found(deploy)) == ["cwd", "mounted"]


def test_after_a_lazy_unmount(deploy: DeployPath, release: Path, tmp_path: Path) -> None:
    """What a process has of a mount that is gone has a path that begins there: here, `/sub`."""
    place = tmp_path / "srv"
    place.mkdir()
    with contained('mount --bind "$1" "$2"; cd "$2/sub"; umount -l "$2"', release, place) as pid:
        assert os.readlink(f"/proc/{pid}/cwd") == "/sub"
        assert by(pid, found(deploy)) == ["cwd"]


@pytest.fixture
def dead(tmp_path: Path) -> Iterator[Path]:
    """A mount whose daemon is dead: whoever asks it anything gets ENOTCONN."""
    place = tmp_path / "dead"
    place.mkdir()
    connection = os.open("/dev/fuse", os.O_RDWR)
    options = f"fd={connection},rootmode=40000,user_id=0,group_id=0"
    subprocess.run(["mount", "-i", "-t", "fuse", "-o", options, "none", place], pass_fds=[connection], check=True)
    os.close(connection)
    yield place
    detach_all(place)


def test_what_else_is_dead_does_not_hide_it(deploy: DeployPath, release: Path, dead: Path) -> None:
    """A process that has something of a dead mount that is unmounted: that cannot be looked at, the rest can."""
    with using(release, f"held = os.open('{dead}', os.O_PATH); os.chdir(path)") as pid:
        detach(str(dead))
        with pytest.raises(OSError, match=os.strerror(errno.ENOTCONN)):
            os.stat(f"/proc/{pid}/fd/{_fd_of(pid, '/')}")
        assert by(pid, found(deploy)) == ["cwd"]


def _fd_of(pid: int, path: str) -> str:
    fds = os.listdir(f"/proc/{pid}/fd")
    return next(fd for fd in fds if os.readlink(f"/proc/{pid}/fd/{fd}") == path)


def test_what_is_mounted_in_a_release(deploy: DeployPath, release: Path) -> None:
    """It would go with the release, and who is in there is not looked at: it may not answer."""
    with contained('mount -t tmpfs none "$1/sub"; cd "$1/sub"', release) as pid:
        assert by(pid, found(deploy)) == ["mounted"]


def test_a_mount_of_the_host_is_no_threads_of_the_kernel(deploy: DeployPath, release: Path) -> None:
    """They are the first that see it."""
    subprocess.run(["mount", "-t", "tmpfs", "none", release / "sub"], check=True)
    try:
        (use,) = found(deploy)
        assert (use.how, use.path) == ("mounted", f"{release}/sub")
        assert not is_of_the_kernel(use.pid)
        assert why_in_use([use]) == f"in use by a mount of it, or in it: {release}/sub, as process {use.pid} sees it"
        assert why_in_use([use, Use(use.pid + 1, 1, "", "x", "cwd", "/")]).endswith(" (x) and 1 other")
    finally:
        detach(str(release / "sub"))


# ---- by whom


def test_an_ordinary_user_is_blind(deploy: DeployPath, release: Path) -> None:
    program = "import json, sys; from relfs.releases.inuse import main; main()"
    question = {"path": deploy.path, "fd": deploy.fd, "releases": ["41"], "but": []}
    with using(release, _WAYS["cwd"]):
        done = subprocess.run(
            [sys.executable, "-c", program], input=json.dumps(question), capture_output=True, text=True,
            pass_fds=[deploy.fd], env=environment(), cwd="/", user=NOBODY, group=NOBODY, extra_groups=[], check=False,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["blind"] is True
    assert answer["unseen"] > 0
    assert answer["uses"] == {"41": []}


def test_processes_that_are_passed_over(deploy: DeployPath, release: Path) -> None:
    with using(release, _WAYS["cwd"]) as pid:
        assert not who_uses(deploy, ["41"], but=[pid]).of["41"]


# ---- with a mount


@pytest.fixture(params=[[], ["--no-bind"]], ids=["native", "no-bind"])
def any_mount(request: pytest.FixtureRequest, app: Path, release: Path, mounts: Mounts) -> Mount:  # noqa: ARG001
    return mounts.start(app, *request.param)


def test_through_a_mount(any_mount: Mount, release: Path) -> None:
    """Natively, or by relfs itself; relfs's own processes do not count."""
    with ExitStack() as stack:
        ways = {way: stack.enter_context(using(release, _WAYS[way])) for way in ("cwd", "open", "mapped")}
        uses = json.loads(any_mount.relfsctl("--json", "who", "41").stdout)["uses"]
        assert {(use["how"], use["pid"]) for use in uses} == set(ways.items())
    assert json.loads(any_mount.relfsctl("--json", "who", "41").stdout)["uses"] == []


def test_from_before_the_mount_and_after_it(app: Path, release: Path, mounts: Mounts) -> None:
    with using(release, _WAYS["cwd"]) as before:
        mount = mounts.start(app)
        with using(release, _WAYS["cwd"]) as during:
            uses = json.loads(mount.relfsctl("--json", "who", "41").stdout)["uses"]
            assert {use["pid"] for use in uses} == {before, during}
            assert ctl("-C", app, "unmount").status == 0
            uses = ctl("-C", app, "--json", "who", "41").json["uses"]
            assert {use["pid"] for use in uses} == {before, during}


def test_who_for_people(app: Path, release: Path) -> None:
    with using(release, _WAYS["open"]) as pid:
        (row,) = ctl("-C", app, "who", "41").rows
        assert row[:4] == [str(pid), "root", "open", f"{release}/sub/file"]
    assert ctl("-C", app, "who", "41").rows == []
    assert ctl("-C", app, "who", "@current").status == 0
    assert ctl("-C", app, "who", "39").status == 3


def test_who_is_not_for_everybody(open_place: Path, mounts: Mounts) -> None:
    """What others have open, the daemon tells those who may switch."""
    app = open_place / "app"
    add_release(app, "41")
    (app / "current").symlink_to("releases/41")
    mounts.start(app)
    with using(app / "releases/41", "os.chdir(path)"):
        told = ctl("-C", app, "--json", "who", "41", user=NOBODY).json
        assert (told["uses"], told["blind"]) == ([], True)
