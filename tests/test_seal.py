"""`seal = true`: the live release cannot be changed or removed, in both ways of sealing; real mounts.

What relfs refuses by itself, operation by operation, is in test_guard.py; the order of things without a mount in
test_seals.py.
"""

from __future__ import annotations

import errno
import os
import shutil
import signal
import stat
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from mounting import Mount, Mounts, detach_all, environment, relfs_command, relfsctl, relfsctl_command, wait_for
from readers import Readers, reading
from sandbox import add_release, make_app
from served import behind
from sidebyside import ROOT, Who, acting, tree
from viewers import reader, views
from writers import Tried, Writer, writing

from relfs.control import change
from relfs.mountinfo import mount_at
from relfs.mountinfo import mounts as all_mounts

WWW = Who(33, 33)
NOBODY = 65534
MANY = 60
_TRIES_A_SWITCH = 10

WHOEVER = pytest.mark.parametrize("who", [ROOT, WWW], ids=["root", "owner"])


@dataclass(frozen=True)
class Way:
    """A way of sealing: what relfs is started with, and the errno of what is refused."""

    arguments: tuple[str, ...]
    errno: int


@pytest.fixture(params=[Way((), errno.EROFS), Way(("--no-bind",), errno.EBUSY)], ids=["native", "passthrough"])
def way(request: pytest.FixtureRequest) -> Way:
    made: Way = request.param
    return made


def ask_for_seals(app: Path) -> Path:
    (app / ".relfs").mkdir(exist_ok=True)
    (app / ".relfs/config.toml").write_text("seal = true\n")
    return app


@pytest.fixture
def app(tmp_path: Path) -> Path:
    return ask_for_seals(make_app(tmp_path / "app"))


def give(place: Path, who: Who) -> None:
    for path in (place, *place.rglob("*")):
        os.chown(path, who.uid, who.gid, follow_symlinks=False)


def mounts_at(app: Path) -> list[str]:
    """Where something is mounted there and below."""
    return [each.target for each in all_mounts() if each.target.startswith(str(app))]


def seals(app: Path) -> list[str]:
    """What is mounted on releases in the mount at `app`, read-only or not."""
    return sorted(os.path.basename(each.target) for each in all_mounts() if each.target.startswith(f"{app}/releases/"))


def can_write(release: Path) -> bool:
    try:
        (release / "probe").touch()
    except OSError as error:
        assert error.errno in (errno.EROFS, errno.EBUSY)
        return False
    (release / "probe").unlink()
    return True


def sealed(app: Path) -> list[str]:
    """The releases that cannot be written."""
    return [name for name in sorted(os.listdir(app / "releases")) if not can_write(app / "releases" / name)]


def wait_for_seals(mount: Mount, names: list[str], what: str) -> None:
    """These are sealed, and no others, as is found and told. That it can be written again is told a moment later."""
    wait_for(lambda: sealed(mount.mountpoint) == names and mount.status()["sealed"] == names, what)


def switch(app: Path, release: str) -> None:
    """As relfsctl does it, without starting it."""
    change((f"{app}/.relfs",), "switch", {"release": release})


def run(script: str, **more: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["sh", "-c", script.format(**more)],
        capture_output=True,
        text=True,
        check=False,
        cwd="/",
        env={**os.environ, "LC_ALL": "C"},
        timeout=120,
    )


@contextmanager
def sitting_in(place: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process with its working directory there."""
    process = subprocess.Popen(["cat"], cwd=place, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


# ---- what some see as current


def test_what_somebody_is_pinned_to(app: Path, mounts: Mounts, way: Way) -> None:
    """Until that ends, whatever is switched, and whoever of relfs dies."""
    mount = mounts.start(app, *way.arguments)
    with reader(mount, "run", "--release", "42") as one, reader(mount, "run", "--release", "42") as other:
        assert (one.sees(), other.sees(), sealed(app)) == ("42", "42", ["40", "42"])
        for release in ("42", "41"):
            switch(app, release)
        assert sealed(app) == ["41", "42"]
        one.end()
        wait_for(lambda: len(views(mount)) == 1, "one of both has ended")
        for _ in range(5):
            os.kill(worker := mount.worker_pid, signal.SIGKILL)
            mount.expect_log(f"worker.*{worker}")
            assert sealed(app) == ["41", "42"], "from the next one's first answer on"
            assert other.sees() == "42"
        mount.kill()
        detach_all(app)
        mount = mounts.start(app, *way.arguments)
        assert (other.sees(), sealed(app)) == ("42", ["41", "42"])
    wait_for(lambda: sealed(app) == ["41"], "nobody sees it any more")


def test_a_canary_is_sealed(app: Path, mounts: Mounts, way: Way) -> None:
    mount = mounts.start(app, *way.arguments)
    assert mount.relfsctl("canary", "42", "--uid", "12345").returncode == 0
    assert sealed(app) == ["40", "42"]
    assert mount.relfsctl("canary", "abort").returncode == 0
    assert sealed(app) == ["40"]
    assert mount.relfsctl("canary", "41", "--uid", "12345").returncode == 0
    switch(app, "42")
    os.kill(worker := mount.worker_pid, signal.SIGKILL)
    mount.expect_log(f"worker.*{worker}")
    assert sealed(app) == ["41", "42"]
    assert mount.relfsctl("canary", "promote").returncode == 0
    assert sealed(app) == ["41"]


def test_who_may_only_pin_puts_no_seal_on(open_place: Path, mounts: Mounts) -> None:
    """It might be in the way of whoever is making that release. But what is sealed stays so for him."""
    app = ask_for_seals(make_app(open_place / "app"))
    mount = mounts.start(app)
    with reader(mount, "run", "--release", "42", user=NOBODY) as his, reader(mount, "run", user=NOBODY) as current:
        assert (his.sees(), current.sees(), sealed(app)) == ("42", "40", ["40"])
        switch(app, "41")
        assert sealed(app) == ["40", "41"]
    wait_for(lambda: sealed(app) == ["41"], "nobody sees it any more")


def test_a_canary_or_a_pin_that_cannot_be_sealed(app: Path, mounts: Mounts) -> None:
    mount = mounts.start(app, patch=_NEVER_42)
    for words in (("canary", "42", "--uid", "12345"), ("run", "--release", "42", "--", "true")):
        done = mount.relfsctl(*words)
        assert (done.returncode, "it cannot be sealed" in done.stderr) == (1, True), done.stderr
    assert (views(mount), sealed(app)) == ([], ["40"])
    assert [event["action"] for event in mount.journal()] == ["adopt"]


_NEVER_42 = """
import errno
from relfs.daemon import seal
cover = seal.cover
def fail(covered, attached, name, options=()):
    if name == "42":
        raise OSError(errno.ENOSPC, "No space left on device")
    return cover(covered, attached, name, options)
seal.cover = fail
"""


# ---- the live release


@WHOEVER
def test_rm_takes_nothing(open_place: Path, mounts: Mounts, way: Way, who: Who) -> None:
    app = ask_for_seals(make_app(open_place / "app"))
    live = app / "releases/40"
    (live / "deep/er").mkdir(parents=True)
    (live / "deep/er/file").write_text("x" * 10_000)
    (live / "link").symlink_to("index.html")
    os.link(live / "index.html", live / "second")
    give(app, who)
    mounts.start(app, *way.arguments)
    before = tree(app, frozenset({".relfs"}))
    with acting(who):
        done = run("rm -rf {app}/releases/40", app=app)
    assert done.returncode == 1
    assert os.strerror(way.errno) in done.stderr
    assert tree(app, frozenset({".relfs"})) == before
    with acting(who):
        assert run("rm -rf {app}/releases/41", app=app).returncode == 0, "what is not live can be removed"
    assert sorted(os.listdir(app / "releases")) == ["40", "42"]


def changes_of(live: Path, other: Path) -> dict[str, Callable[[], object]]:
    """Everything that would change the release `live`, by what it does; `other` is a release that is not."""
    file = live / "file"
    return {
        "create": lambda: os.open(live / "new", os.O_CREAT | os.O_WRONLY),
        "mkdir": lambda: os.mkdir(live / "new"),
        "mknod": lambda: os.mknod(live / "new", 0o600 | 0o010000),
        "symlink": lambda: os.symlink("x", live / "new"),
        "link into it": lambda: os.link(other / "file", live / "new"),
        "unlink": lambda: os.unlink(file),
        "rmdir": lambda: os.rmdir(live / "sub"),
        "rename from": lambda: os.rename(file, other / "new"),
        "rename to": lambda: os.rename(other / "file", live / "new"),
        "rename over": lambda: os.rename(other / "file", file),
        "rename in": lambda: os.rename(file, live / "sub/new"),
        "rename a directory from": lambda: os.rename(live / "sub", other / "new"),
        "open for writing": lambda: os.open(file, os.O_WRONLY),
        "open for both": lambda: os.open(file, os.O_RDWR),
        "open to truncate": lambda: os.open(file, os.O_RDONLY | os.O_TRUNC),
        "truncate": lambda: os.truncate(file, 0),
        "chmod": lambda: os.chmod(file, 0o600),
        "chmod of a directory": lambda: os.chmod(live / "sub", 0o700),
        "fchmod": lambda: fchmod(file),
        "chown": lambda: os.chown(file, WWW.uid, WWW.gid),
        "chown of a link": lambda: os.chown(live / "symlink", WWW.uid, WWW.gid, follow_symlinks=False),
        "utime": lambda: os.utime(file, (1, 1)),
        "setxattr": lambda: os.setxattr(file, "user.new", b"x"),
        "removexattr": lambda: os.removexattr(file, "user.old"),
        "rmdir of it": lambda: os.rmdir(live),
        "rename of it": lambda: os.rename(live, live.parent / "new"),
        "rename onto it": lambda: os.rename(other, live),
        "chmod of it": lambda: os.chmod(live, 0o700),
        "utime of it": lambda: os.utime(live, (1, 1)),
        "setxattr of it": lambda: os.setxattr(live, "user.new", b"x"),
        "as current": lambda: os.open(live.parent.parent / "current/file", os.O_WRONLY),
        "deep": lambda: os.open(live / "sub/deep/new", os.O_CREAT | os.O_WRONLY),
    }


def fchmod(file: Path) -> None:
    fd = os.open(file, os.O_RDONLY)
    try:
        os.fchmod(fd, 0o600)
    finally:
        os.close(fd)


NATIVELY = dict.fromkeys(("rename from", "rename to", "rename over", "rename a directory from"), errno.EXDEV)
"""What does not fail with EROFS: it is between two mounts, or what is mounted on (EBUSY)."""
NATIVELY |= dict.fromkeys(("rmdir of it", "rename of it", "rename onto it"), errno.EBUSY)


def fill(release: Path) -> None:
    (release / "sub/deep").mkdir(parents=True)
    (release / "file").write_text("content")
    (release / "symlink").symlink_to("file")
    os.setxattr(release / "file", "user.old", b"x")


@WHOEVER
def test_every_change_is_refused(open_place: Path, mounts: Mounts, way: Way, who: Who) -> None:
    app = ask_for_seals(make_app(open_place / "app"))
    for name in ("40", "41"):
        fill(app / "releases" / name)
    give(app, who)
    mounts.start(app, *way.arguments)
    before = tree(app, frozenset({".relfs"}))
    outcomes = {}
    for what, attempt in changes_of(app / "releases/40", app / "releases/41").items():
        with acting(who), pytest.raises(OSError) as raised:
            attempt()
        outcomes[what] = errno.errorcode[raised.value.errno or 0]
    expected = dict.fromkeys(outcomes, errno.errorcode[way.errno])
    if way.errno == errno.EROFS:
        expected |= {what: errno.errorcode[native] for what, native in NATIVELY.items()}
    assert outcomes == expected
    assert tree(app, frozenset({".relfs"})) == before
    assert (app / "current/file").read_text() == "content"


def test_the_same_is_allowed_elsewhere(app: Path, mounts: Mounts, way: Way) -> None:
    """Shows that each of these changes something where nothing is sealed."""
    (app / ".relfs/config.toml").write_text("")
    for name in ("40", "41"):
        fill(app / "releases" / name)
    mounts.start(app, *way.arguments)
    for what in changes_of(app / "releases/40", app / "releases/41"):
        for name in ("40", "41", "new"):
            shutil.rmtree(app / "releases" / name, ignore_errors=True)
        for name in ("40", "41"):
            fill(add_release(app, name))
        if what in ("rmdir", "rmdir of it", "rename onto it"):
            shutil.rmtree(app / "releases/40/sub/deep")
        if what in ("rmdir of it", "rename onto it"):
            shutil.rmtree(app / "releases/40/sub")
            for name in ("file", "symlink", "index.html"):
                os.unlink(app / "releases/40" / name)
        if what != "as current" or os.path.exists(app / "current/file"):
            made = changes_of(app / "releases/40", app / "releases/41")[what]()
            if isinstance(made, int):
                os.close(made)


def test_off_by_default(app: Path, mounts: Mounts) -> None:
    (app / ".relfs/config.toml").write_text("")
    mount = mounts.start(app)
    assert mount.status()["sealed"] is None
    assert seals(app) == []
    assert can_write(app / "current/")


# ---- switches


def test_every_switch_moves_the_seal(app: Path, mounts: Mounts, way: Way) -> None:
    mount = mounts.start(app, *way.arguments)
    assert sealed(app) == ["40"]
    for release in ("41", "42", "40", "40", "41"):
        assert mount.relfsctl("switch", release).returncode == 0
        assert sealed(app) == [release], "at once, not a moment later"
        assert (mount.status()["sealed"], mount.status()["unsealing"]) == ([release], [])
    assert mount.relfsctl("rollback").returncode == 0
    assert sealed(app) == ["40"]


TOOLS = {
    "gnu ln -sfn": "ln -sfn {target} {app}/current",
    "gnu mv -T": "ln -s {target} {app}/new && mv -T {app}/new {app}/current",
    "busybox ln -sfn": "busybox ln -sfn {target} {app}/current",
    "rm; ln": "rm {app}/current; ln -s {target} {app}/current",
    "capistrano": "ln -s {app}/{target} {app}/releases/current && mv {app}/releases/current {app}",
}
"""Each holds the mount's top directory locked while the new release is being sealed."""


@pytest.mark.parametrize("tool", TOOLS)
@pytest.mark.parametrize("cold", [False, True], ids=["warm", "cold"])
def test_every_tool_moves_the_seal(app: Path, mounts: Mounts, way: Way, tool: str, cold: bool) -> None:
    """With a cold cache, too: nothing that has to be looked up for a seal waits for the tool."""
    mount = mounts.start(app, *way.arguments)
    for release in ("41", "40", "42"):
        if cold:
            Path("/proc/sys/vm/drop_caches").write_text("2")
        done = run(TOOLS[tool], app=app, target=f"releases/{release}")
        assert (done.returncode, done.stderr) == (0, "")
        assert os.path.realpath(app / "current") == str(app / "releases" / release)
        with pytest.raises(OSError) as raised:
            (app / "current/new").touch()
        assert raised.value.errno == way.errno
        wait_for_seals(mount, [release], "the old release is unsealed")


def test_followed_behind_the_mount(app: Path, mounts: Mounts, tmp_path: Path) -> None:
    mount = mounts.start(app)
    behind(tmp_path, app, "ln -sfn releases/42 current")
    wait_for(lambda: os.readlink(app / "current") == "releases/42", "the mount follows")
    assert not can_write(app / "current/")
    wait_for_seals(mount, ["42"], "the old release is unsealed")


def test_first_deploy(app: Path, mounts: Mounts, way: Way) -> None:
    (app / "current").unlink()
    mount = mounts.start(app, *way.arguments)
    assert mount.status()["sealed"] == []
    assert "nothing: there is no current" in mount.relfsctl("status").stdout
    assert sealed(app) == []
    assert run(TOOLS["gnu ln -sfn"], app=app, target="releases/41").returncode == 0
    assert sealed(app) == ["41"]


def test_a_refused_swap_leaves_the_seals(app: Path, mounts: Mounts, way: Way) -> None:
    mount = mounts.start(app, *way.arguments)
    (app / "releases/empty").mkdir()
    assert run(TOOLS["gnu ln -sfn"], app=app, target="releases/empty").returncode == 1
    assert mount.relfsctl("switch", "gone").returncode == 3
    assert sealed(app) == ["40"]


def test_a_failed_swap_leaves_the_seals(app: Path, mounts: Mounts, way: Way) -> None:
    """The release is sealed already when the disk says no; it is opened again, and the old one stays closed."""
    full = app.parent / "full"
    full.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "nr_inodes=100", "full", full], check=True)
    try:
        site = ask_for_seals(make_app(full / "app"))
        mount = mounts.start(site, *way.arguments)
        fillers = take_all_inodes(site / ".relfs")
        done = mount.relfsctl("switch", "41")
        assert done.returncode == 1
        assert "not switched to: No space left on device" in done.stderr
        for filler in fillers:
            filler.unlink()
        assert sealed(site) == ["40"]
        assert (site / "current/index.html").read_text() == "40"
        assert mount.relfsctl("switch", "41").returncode == 0
        assert sealed(site) == ["41"]
        assert mount.terminate() == 0
    finally:
        detach_all(full)


def take_all_inodes(place: Path) -> list[Path]:
    """Make files until there is no room for another; all that were made."""
    made: list[Path] = []
    with pytest.raises(OSError, match="No space left on device"):
        while True:
            file = place / f"filler-{len(made)}"
            file.touch()
            made.append(file)
    return made


CANNOT_SEAL = """
import errno, os
from relfs.daemon import seal
def fail(covered, attached, name, options=()):
    if name != "40":
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))
    return original(covered, attached, name, options)
original, seal.cover = seal.cover, fail
"""


def test_what_cannot_be_sealed_does_not_become_live(app: Path, mounts: Mounts, tmp_path: Path) -> None:
    mount = mounts.start(app, patch=CANNOT_SEAL)
    done = mount.relfsctl("switch", "41")
    assert done.returncode == 1
    assert "41: not switched to: it cannot be sealed: Operation not permitted; current is still 40" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    mount.expect_log("a swap by pid .* was not done")
    assert "Operation not permitted" in run(TOOLS["gnu ln -sfn"], app=app, target="releases/42").stderr
    assert "Operation not permitted" in run(TOOLS["busybox ln -sfn"], app=app, target="releases/42").stderr
    assert (sealed(app), mount.status()["sealed"], seals(app)) == (["40"], ["40"], ["40"])
    behind(tmp_path, app, "ln -sfn releases/42 current")
    wait_for(lambda: mount.status()["diverged"] is not None, "it is said")
    assert mount.status()["diverged"] == (
        "the real current leads to 42, but it cannot be sealed: Operation not permitted"
    )
    assert (app / "current/index.html").read_text() == "40"


# ---- never a moment


def chase(mount: Mount, *, tools: bool) -> Tried:
    """A writer, readers, and one switch after another to releases that were never live, every other one by a tool if
    asked for; what the writer got."""
    names = [f"r{number}" for number in range(MANY)]
    for name in names:
        add_release(mount.app, name)
    with reading(mount.app / "current/index.html", "40", *names) as readers, writing(mount.app) as writer:
        for number, name in enumerate(names):
            if number % 2 or not tools:
                switch(mount.app, name)
            else:
                assert run(TOOLS["gnu ln -sfn"], app=mount.app, target=f"releases/{name}").returncode == 0
            wait_for(_tried_and_read(writer, readers), "the writer has tried often enough, and the readers have read")
        tried, seen = writer.stop(), readers.stop()
    assert (seen.failed, seen.neither) == ({}, 0)
    assert seen.contents == {"40", *names}, "the readers saw the switches"
    assert tried.tries > _TRIES_A_SWITCH * MANY
    return tried


def _tried_and_read(writer: Writer, readers: Readers) -> Callable[[], bool]:
    """Whether all of them have done something from now on."""
    tries, reads = writer.tries, readers.reads
    return lambda: writer.tries > tries + _TRIES_A_SWITCH and readers.have_read_since(reads)


def test_the_live_release_is_never_open(app: Path, mounts: Mounts, way: Way) -> None:
    tried = chase(mounts.start(app, *way.arguments), tools=True)
    assert tried.live == []
    assert tried.refused.keys() == {errno.errorcode[way.errno]}


BROKEN = {
    "unsealed before the kernel knows": """
import time
from relfs.fuse import changes
def early(seals, drop):
    seals.note_replaced()
    seals.release()
    time.sleep(0.02)
    drop(changes.ROOT, b"current")
changes._drop_current = early
""",
    "sealed after the switch": """
import time
from relfs.fuse import changes
from relfs.seal import Seals
prepare, decided = Seals.prepare, Seals.decided
def note(self, live):
    self.wanted = live
    decided(self, live)
def late(seals, drop):
    drop(changes.ROOT, b"current")
    time.sleep(0.02)
    for target in seals.wanted:
        prepare(seals, target)
    decided(seals, seals.wanted)
    seals.note_replaced()
    seals.release()
Seals.prepare, Seals.decided, changes._drop_current = lambda self, target: None, note, late
""",
}


@pytest.mark.parametrize("order", BROKEN)
def test_a_wrong_order_would_be_seen(app: Path, mounts: Mounts, way: Way, order: str) -> None:
    """By relfsctl alone, which returns when the kernel knows: a tool does not, and the kernel would hear of its swap
    only after the next switch, and find that right."""
    tried = chase(mounts.start(app, *way.arguments, patch=BROKEN[order]), tools=False)
    assert tried.live != []
    assert errno.errorcode[way.errno] in tried.refused


def test_back_and_forth_beside_readers(app: Path, mounts: Mounts) -> None:
    """200 switches by relfsctl's own way and by tools; afterwards there are as many mounts as before."""
    mounts.start(app)
    before = mounts_at(app)
    with reading(app / "current/index.html", "40", "41") as readers:
        for number in range(200):
            release = ("41", "40")[number % 2]
            if number % 4 < 2:
                switch(app, release)
            else:
                assert run(TOOLS["busybox ln -sfn"], app=app, target=f"releases/{release}").returncode == 0
        seen = readers.stop()
    assert (seen.failed, seen.neither) == ({}, 0)
    assert seen.contents == {"40", "41"}
    wait_for(lambda: sorted(mounts_at(app)) == sorted(before), "no reader is in the old release any more")
    assert sealed(app) == ["40"]


def test_two_at_once(app: Path, mounts: Mounts) -> None:
    """Changes overlap: while the kernel is told of one, the next is sealing. The live release is the sealed one."""
    mount = mounts.start(app)
    tool = "for n in $(seq 60); do ln -sfn releases/4$((n % 3)) {app}/current; done"

    def ask() -> None:
        for number in range(60):
            switch(app, f"4{number % 3}")

    asking = threading.Thread(target=ask)
    asking.start()
    assert run(tool, app=app).returncode == 0
    asking.join()
    live = mount.status()["current"]
    wait_for_seals(mount, [live], "only the live release is sealed")
    assert (app / "current/index.html").read_text() == live
    wait_for(lambda: seals(app) == [live], "and only one mount is left")


# ---- what was live


def test_prune_right_after_a_switch(app: Path, mounts: Mounts, way: Way) -> None:
    mount = mounts.start(app, *way.arguments)
    for old, new in (("40", "41"), ("41", "42")):
        assert mount.relfsctl("switch", new).returncode == 0
        done = run("rm -rf {app}/releases/{old}", app=app, old=old)
        assert (done.returncode, done.stderr) == (0, "")
    assert os.listdir(app / "releases") == ["42"]


def test_a_process_that_sits_in_the_old_release(app: Path, mounts: Mounts) -> None:
    """Its working directory goes on being one; the release can be written; only its directory cannot be removed, and
    that as soon as the process is gone."""
    mount = mounts.start(app)
    with sitting_in(app / "current/") as worker:
        switch(app, "41")
        assert mount.status()["unsealing"] == ["40"]
        assert "40: in use, writable, cannot be removed yet" in mount.relfsctl("status").stdout
        assert os.readlink(f"/proc/{worker.pid}/cwd") == str(app / "releases/40")
        assert sorted(os.listdir(f"/proc/{worker.pid}/cwd/..")) == ["40", "41", "42"], "and `..` leads where it did"
        assert sealed(app) == ["41"]
        done = run("rm -rf {app}/releases/40", app=app)
        assert "Device or resource busy" in done.stderr
        assert os.listdir(app / "releases/40") == []
    wait_for(lambda: mount.status()["unsealing"] == [], "the mount is taken away")
    os.rmdir(app / "releases/40")
    assert seals(app) == ["41"]


def test_back_to_a_release_that_is_in_use(app: Path, mounts: Mounts) -> None:
    """The mount that was left there is closed again; one with a file open for writing is covered by another."""
    mount = mounts.start(app)
    with sitting_in(app / "current/") as worker:
        switch(app, "41")
        log = open(f"/proc/{worker.pid}/cwd/log", "w")  # noqa: SIM115
        switch(app, "40")
        assert sealed(app) == ["40"]
        assert seals(app) == ["40", "40"]
        log.write("goes on")
        log.close()
        switch(app, "41")
        wait_for(lambda: seals(app) == ["40", "41"], "the upper one is not in use")
        switch(app, "40")
        assert (sealed(app), seals(app)) == (["40"], ["40"])
    switch(app, "42")
    wait_for(lambda: seals(app) == ["42"], "nothing is left")
    wait_for(lambda: mount.status()["unsealing"] == [], "which is told a moment later")
    assert (app / "releases/40/log").read_text() == "goes on"


def test_what_was_open_for_writing_stays_so(app: Path, mounts: Mounts, way: Way) -> None:
    mounts.start(app, *way.arguments)
    with open(app / "releases/41/log", "w") as log:
        switch(app, "41")
        log.write("written ")
        log.flush()
        os.ftruncate(log.fileno(), 3)
        with pytest.raises(OSError) as raised:
            (app / "releases/41/log").open("a")
        assert raised.value.errno == way.errno
    assert (app / "current/log").read_text() == "wri"


def test_what_was_open_for_writing_loses_its_set_id_bits(app: Path, mounts: Mounts, way: Way) -> None:
    """A write takes them, which the kernel asks us to see to; that is not somebody's change of the file."""
    mounts.start(app, *way.arguments)
    program = app / "releases/41/program"
    program.touch()
    program.chmod(0o4777)
    script = "import os, sys; sys.stdin.readline(); os.write(int(sys.argv[1]), b'x')"
    with open(program, "wb") as file:
        writer = subprocess.Popen(
            ["/usr/bin/python3", "-c", script, str(file.fileno())],
            stdin=subprocess.PIPE, pass_fds=[file.fileno()], user=NOBODY, group=NOBODY, extra_groups=[],
        )  # fmt: skip
        switch(app, "41")
        writer.communicate(b"\n")
        assert writer.returncode == 0
    assert program.read_bytes() == b"x"
    assert stat.S_IMODE(program.stat().st_mode) == 0o777


def test_what_had_its_working_directory_there(app: Path, mounts: Mounts, way: Way) -> None:
    """By the native way, it came there before the seal, and is not under it; relfs itself knows where it is."""
    mounts.start(app, *way.arguments)
    with sitting_in(app / "releases/41") as worker:
        switch(app, "41")
        made = Path(f"/proc/{worker.pid}/cwd/made")
        if way.errno == errno.EROFS:
            made.touch()
        else:
            with pytest.raises(OSError, match="Device or resource busy"):
                made.touch()
    assert not can_write(app / "current/")


def test_a_file_of_several_names_is_not_seen_by_a_mount(app: Path, mounts: Mounts) -> None:
    """What the documentation says that native seals cannot do; relfs itself can (test_guard.py)."""
    os.link(app / "releases/40/index.html", app / "releases/41/second")
    mounts.start(app)
    (app / "releases/41/second").write_text("changed")
    assert (app / "current/index.html").read_text() == "changed"


# ---- what is mounted in a release, links, names


def test_mounts_below_a_release(app: Path, mounts: Mounts, way: Way) -> None:
    """Another file system in a release is seen, and stays as writable as it was; also where mounts propagate."""
    for name in ("40", "41"):
        (app / "releases" / name / "disk").mkdir()
    subprocess.run(["mount", "--bind", app, app], check=True)
    try:
        subprocess.run(["mount", "--make-shared", app], check=True)
        subprocess.run(["mount", "-t", "tmpfs", "disk", app / "releases/40/disk"], check=True)
        (app / "shared").mkdir()
        (app / "shared/file").write_text("shared")
        subprocess.run(["mount", "--bind", app / "shared", app / "releases/41/disk"], check=True)
        (app / "releases/40/disk/file").write_text("kept")
        mount = mounts.start(app, *way.arguments)
        assert (app / "current/disk/file").read_text() == "kept"
        (app / "current/disk/file").write_text("changed")
        assert not can_write(app / "current/")
        switch(app, "41")
        (app / "current/disk/file").write_text("changed, too")
        assert not can_write(app / "current/")
        assert can_write(app / "releases/40")
        switch(app, "40")
        assert sealed(app) == ["40"]
        assert mount.terminate() == 0
        assert (app / "releases/40/disk/file").read_text() == "changed"
        assert (app / "shared/file").read_text() == "changed, too"
        assert can_write(app / "releases/40")
    finally:
        detach_all(app)


@pytest.mark.parametrize(
    "text", ["releases/stable", "releases/stable/", "release", "releases/41/public", "{app}/releases/41"]
)
def test_however_the_release_is_named(app: Path, mounts: Mounts, way: Way, text: str) -> None:
    """What `current` leads to or into is sealed, not what its text says."""
    (app / "releases/41/public").mkdir()
    (app / "releases/41/public/index.php").touch()
    (app / "releases/stable").symlink_to("41")
    (app / "release").symlink_to("releases/stable")
    mount = mounts.start(app, *way.arguments)
    assert run(TOOLS["gnu ln -sfn"], app=app, target=text.format(app=app)).returncode == 0
    wait_for(lambda: can_write(app / "releases/40"), "the old release is unsealed")
    wait_for(lambda: mount.status()["sealed"] == ["41"], "which is told a moment later")
    assert not can_write(app / "releases/41")


@pytest.mark.parametrize("name", ["with space", "42 (deleted)", "\\134 \u00e9", "a\udcffb"])
def test_names_of_all_kinds(app: Path, mounts: Mounts, way: Way, name: str) -> None:
    add_release(app, name)
    mounts.start(app, *way.arguments)
    switch(app, "42")
    assert sealed(app) == ["42"]
    switch(app, name)
    assert sealed(app) == [name]
    switch(app, "41")
    assert sealed(app) == ["41"]
    shutil.rmtree(app / "releases" / name)


def test_current_leads_elsewhere(app: Path, mounts: Mounts, tmp_path: Path) -> None:
    """Nothing is sealed, and status says so."""
    add_release(tmp_path / "elsewhere", "50")
    mount = mounts.start(app)
    assert run(TOOLS["gnu ln -sfn"], app=app, target=str(tmp_path / "elsewhere/releases/50")).returncode == 0
    wait_for_seals(mount, [], "the old release is unsealed")
    assert "nothing: " in mount.relfsctl("status").stdout
    assert "is not below releases/" in mount.relfsctl("status").stdout
    switch(app, "41")
    assert sealed(app) == ["41"]


# ---- mounts of other kinds


def test_mounted_read_only(app: Path, mounts: Mounts) -> None:
    """Unsealing opens nothing that was not open."""
    mounts.start(app, "-o", "ro,noexec")
    with sitting_in(app / "current/"):
        switch(app, "41")
        assert sealed(app) == ["40", "41", "42"]
    (seal,) = (each for each in all_mounts() if each.target == f"{app}/releases/41")
    (native,) = (each for each in all_mounts() if each.target == f"{app}/releases")
    options = subprocess.run(
        ["findmnt", "-no", "VFS-OPTIONS", seal.target], capture_output=True, text=True, check=True
    ).stdout
    assert native.id != seal.id
    assert "noexec" in options


def test_covered_read_only(app: Path, mounts: Mounts, tmp_path: Path) -> None:
    """A deploy path behind a read-only mount of its own does not become writable by being unsealed."""
    subprocess.run(["mount", "--bind", app, app], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", app], check=True)
        (tmp_path / "state").mkdir()
        (tmp_path / "state/config.toml").write_text("seal = true\n")
        mounts.start(app, "--state-dir", tmp_path / "state")
        with sitting_in(app / "current/"):
            assert relfsctl(app, "switch", "41").returncode == 0
            assert sealed(app) == ["40", "41", "42"]
    finally:
        detach_all(app)


def test_elsewhere_as_root(app: Path, mounts: Mounts, tmp_path: Path, way: Way) -> None:
    """What goes through the mount is guarded, whatever style the links have; the deploy path itself is not."""
    live = tmp_path / "live"
    live.mkdir()
    mount = mounts.start(app, *way.arguments, at=live)
    assert sealed(live) == ["40"]
    assert can_write(app / "releases/40")
    assert run(TOOLS["gnu ln -sfn"], app=live, target=str(app / "releases/41")).returncode == 0
    assert os.readlink(live / "current") == str(live / "releases/41"), "a link out of the mount would be a way around"
    assert os.readlink(app / "current") == str(app / "releases/41")
    assert not can_write(live / "current/")
    wait_for_seals(mount, ["41"], "the old release is unsealed")


def mounted_by_nobody(open_place: Path) -> tuple[Path, Path]:
    app, live = ask_for_seals(make_app(open_place / "app")), open_place / "live"
    live.mkdir()
    for place in (app, live):
        give(place, Who(NOBODY, NOBODY))
    return app, live


def test_over_the_deploy_path_as_an_ordinary_user(open_place: Path, mounts: Mounts) -> None:
    app, _ = mounted_by_nobody(open_place)
    mount = mounts.start(app, "-o", "noallow_other", user=NOBODY)
    assert sealed_for_nobody(app) == ["40"]
    as_nobody(*relfsctl_command(app, "switch", "41"))
    assert sealed_for_nobody(app) == ["41"]
    assert mount.terminate() == 0


def sealed_for_nobody(app: Path) -> list[str]:
    """The same as sealed(), asked by the only user who may look there."""
    script = 'cd "$0/releases"; for name in *; do touch "$name/probe" 2>&- && rm "$name/probe" || echo "$name"; done'
    return as_nobody("sh", "-c", script, str(app)).split()


def as_nobody(*command: str) -> str:
    done = subprocess.run(
        command, user=NOBODY, group=NOBODY, extra_groups=[], env=environment(), cwd="/", capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    return done.stdout


def refused_words(*arguments: str | Path, user: int | None = None) -> str:
    """What relfs says when it does not mount."""
    done = subprocess.run(
        relfs_command(*arguments), env=environment(), capture_output=True, text=True, check=False, cwd="/",
        user=user, group=user, extra_groups=[] if user is not None else None,
    )  # fmt: skip
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    return done.stderr


def test_elsewhere_as_an_ordinary_user_is_refused(open_place: Path, mounts: Mounts) -> None:
    """`current` leads out of the mount there, into what nothing covers: the option is not silently without effect."""
    app, live = mounted_by_nobody(open_place)
    words = refused_words("-o", "noallow_other", app, live, user=NOBODY)
    assert "no release can be sealed" in words
    assert "seal = false" in words
    wait_for(lambda: mount_at(str(live)) is None, "nothing is left mounted")
    mount = mounts.start(app, "--no-bind", "-o", "noallow_other", at=live, user=NOBODY)
    assert sealed_for_nobody(live) == ["40"]
    assert mount.terminate() == 0


def test_releases_that_are_a_link_are_refused(app: Path, tmp_path: Path) -> None:
    (app / "releases").rename(tmp_path / "disk")
    (app / "releases").symlink_to(tmp_path / "disk")
    assert "releases: is a link, and what it leads to cannot be sealed" in refused_words(app)
    assert mount_at(str(app)) is None


# ---- the end


@pytest.mark.parametrize("how", ["terminate", "kill"])
def test_the_end_takes_all_seals_away(app: Path, mounts: Mounts, how: str) -> None:
    mount = mounts.start(app)
    with sitting_in(app / "current/"):
        switch(app, "41")
        assert seals(app) == ["40", "41"]
        getattr(mount, how)()
        wait_for(lambda: mount_at(str(app)) is None, "the mount is gone")
    assert seals(app) == []
    assert sealed(app) == []
    shutil.rmtree(app / "releases/40")


def test_a_switch_while_the_mount_goes_away(app: Path, mounts: Mounts, way: Way) -> None:
    """Somebody still is in it, so the daemon lingers, and there is nothing to seal any more."""
    mount = mounts.start(app, *way.arguments)
    with sitting_in(app):
        mount.process.send_signal(signal.SIGTERM)
        wait_for(lambda: mount_at(str(app)) is None, "the mount is gone")
        done = relfsctl(app, "switch", "41")
        assert (done.returncode, done.stderr) == (0, "")
    assert os.readlink(app / "current") == "releases/41"
    assert sealed(app) == []


def test_a_seal_that_somebody_else_took_away(app: Path, mounts: Mounts) -> None:
    mount = mounts.start(app)
    subprocess.run(["umount", app / "releases/40"], check=True)
    switch(app, "41")
    assert (sealed(app), mount.status()["unsealing"]) == (["41"], [])
    switch(app, "40")
    assert (sealed(app), seals(app)) == (["40"], ["40"])
