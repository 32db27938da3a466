"""Access control lists through a mount: obeyed, inherited, kept and cached as on a plain directory.

The ordinary mount here is one whose deploy path has a list, for reasons that relfs/fuse/handshake.py gives.
"""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from chaos import Chaos
from mounting import Mount, Mounts, wait_for
from sandbox import make_app
from served import Pair, Served, behind, serving
from sidebyside import (
    ACCESS,
    ADA,
    BOB,
    DEFAULT,
    NOBODY,
    Trace,
    Who,
    access_list,
    acting,
    errno_name,
    get,
    make,
    put,
    run,
)

HARMLESS = access_list(7, 5, 5, 5, u4242=5)


def _give_list(app: Path) -> None:
    os.setxattr(app, ACCESS, HARMLESS)


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with serving(_give_list) as made:
        yield made


def test_lists_grant_and_deny(pair: Pair) -> None:
    """To named users and groups, within the mask, for files and for the way through directories."""

    def script(t: Trace) -> None:
        put("file", b"x", 0o640, Who(0, 2001))
        make("d", 0o750)
        put("d/inner", b"y", 0o666)
        lists = {
            "user": access_list(6, 0, 0, 7, u1000=6),
            "read only": access_list(6, 0, 0, 7, u1000=4),
            "masked": access_list(6, 0, 0, 4, u1000=7),
            "group": access_list(6, 0, 0, 7, g2000=6),
            "denied": access_list(6, 6, 6, 7, u1000=0),
            "denied group": access_list(6, 6, 6, 7, g2000=0),
            "owning group": access_list(6, 6, 0, 7, u4242=0),
            "mode only": access_list(6, 4, 4),
        }
        for label, content in lists.items():
            os.setxattr("file", ACCESS, content)
            os.setxattr("d", ACCESS, content.replace(b"\6\0", b"\7\0"))
            for who in (ADA, BOB, NOBODY):
                with acting(who):
                    say = f"{label} {who.uid} "
                    t.open(f"{say}read", "file", os.O_RDONLY)
                    t.open(f"{say}write", "file", os.O_WRONLY)
                    t(f"{say}access", os.access, "file", os.W_OK, effective_ids=True)
                    t(f"{say}truncate", os.truncate, "file", 1)
                    t(f"{say}list", os.listdir, "d")
                    t(f"{say}inner", get, "d/inner")
                    t(f"{say}make", os.mkdir, f"d/{label} {who.uid}")
            t(f"{label} mode", os.stat, "file")

    seen = pair.same(script)
    assert seen["user 1000 write"] == "opened"
    assert (seen["user 1001 read"], seen["group 1001 read"]) == ("EACCES", "opened")
    assert (seen["denied 1000 read"], seen["denied 65534 read"]) == ("EACCES", "opened")
    assert (seen["masked 1000 read"], seen["masked 1000 write"]) == ("opened", "EACCES")


@pytest.mark.parametrize("umask", [0o000, 0o027, 0o777])
@pytest.mark.parametrize("who", [Who(0, 0), ADA], ids=["root", "user"])
def test_default_lists_are_inherited_instead_of_the_umask(pair: Pair, who: Who, umask: int) -> None:
    def script(t: Trace) -> None:
        make("d", 0o777)
        os.setxattr("d", DEFAULT, access_list(7, 5, 4, 7, u65534=6, g2001=3))
        make("plain", 0o777)
        os.setxattr("plain", DEFAULT, access_list(7, 7, 1))
        make("none", 0o777)
        os.umask(umask)
        with acting(who):
            for base in ("d", "plain", "none"):
                for mode in (0o666, 0o777, 0o640, 0o4711):
                    name = f"{base}/{mode:o}"
                    os.close(os.open(name, os.O_CREAT | os.O_WRONLY, mode))
                    t(f"mkdir {name}", os.mkdir, f"{name} d", mode)
                    t(f"mkfifo {name}", os.mkfifo, f"{name} p", mode)
                    t(f"mknod {name}", os.mknod, f"{name} n", mode | stat.S_IFREG)
                    for kind in ("", " d", " p", " n"):
                        t(f"{name}{kind}", os.lstat, f"{name}{kind}")
                        t(f"{name}{kind} list", os.getxattr, f"{name}{kind}", ACCESS)
                        t(f"{name}{kind} default", os.getxattr, f"{name}{kind}", DEFAULT)
                t(f"symlink {base}", os.symlink, "x", f"{base}/link")
                t(f"the link {base}", os.lstat, f"{base}/link")
            with open("d/redirected", "w") as file:
                file.write("x")
            t("redirected", os.stat, "d/redirected")

    seen = pair.same(script)
    assert int(seen["d/666"][0], 8) & 0o777 == 0o664, "whatever the umask is"
    assert int(seen["none/666"][0], 8) & 0o777 == 0o666 & ~umask
    assert isinstance(seen["d/777 d default"], bytes)


def test_lists_are_kept_and_changed(pair: Pair) -> None:
    """By chmod(2), and by whoever may; what is no list is refused."""

    def script(t: Trace) -> None:
        put("file", b"x", 0o2660, Who(ADA.uid, 2001))
        make("d", 0o755, ADA)
        content = access_list(6, 4, 0, 6, u65534=6)
        t("none", os.getxattr, "file", ACCESS)
        t("remove none", os.removexattr, "file", ACCESS)
        t("a default for a file", os.setxattr, "file", DEFAULT, content)
        t("not a list", os.setxattr, "file", ACCESS, b"\2\0\0\0garbage!")
        t("no mask", os.setxattr, "file", ACCESS, access_list(6, 4, 0, u65534=6))
        t("empty", os.setxattr, "file", ACCESS, b"")
        with acting(BOB):
            t("a stranger's", os.setxattr, "file", ACCESS, content)
            t("a stranger reads", os.getxattr, "file", ACCESS)
        with acting(ADA):
            t("the owner's", os.setxattr, "file", ACCESS, content)
        t("set-group-ID is gone", os.stat, "file")
        t("list", os.getxattr, "file", ACCESS)
        t("names", lambda: sorted(os.listxattr("file")))
        t("chmod", os.chmod, "file", 0o640)
        t("mask", os.getxattr, "file", ACCESS)
        with acting(NOBODY):
            t.open("masked", "file", os.O_WRONLY)
        t("chmod wider", os.chmod, "file", 0o660)
        with acting(NOBODY):
            t.open("unmasked", "file", os.O_WRONLY)
        os.rename("file", "moved")
        os.link("moved", "linked")
        t("moved", os.getxattr, "linked", ACCESS)
        with acting(BOB):
            t("a stranger removes", os.removexattr, "moved", ACCESS)
        t("as a mode", os.setxattr, "moved", ACCESS, access_list(6, 6, 4))
        t("is one", os.stat, "moved")
        t("and no list", os.getxattr, "moved", ACCESS)
        t("remove", os.removexattr, "moved", ACCESS)
        t("default", os.setxattr, "d", DEFAULT, content)
        t("default back", os.getxattr, "d", DEFAULT)
        t("default removed", os.removexattr, "d", DEFAULT)
        os.symlink("moved", "link")
        t("on a link", os.setxattr, "link", ACCESS, content, follow_symlinks=False)
        t("of a link", os.getxattr, "link", ACCESS, follow_symlinks=False)
        os.mkfifo("fifo")
        t("on a fifo", os.setxattr, "fifo", ACCESS, content)

    seen = pair.same(script)
    assert (seen["masked"], seen["unmasked"]) == ("EACCES", "opened")
    assert (seen["a stranger's"], seen["no mask"]) == ("EPERM", "EINVAL")
    assert not int(seen["set-group-ID is gone"][0], 8) & stat.S_ISGID


def test_a_list_holds_for_everybody_at_once(pair: Pair) -> None:
    """Processes that have cached what somebody else's list said do not go on using it."""

    def script(t: Trace) -> None:
        make("d")
        put("d/file", b"x")
        for turn in range(20):
            os.setxattr("d", ACCESS, access_list(7, 5, 5, 7, u65534=5 if turn % 2 else 0))
            with acting(NOBODY):
                for _ in range(3):
                    t(f"{turn}", get, "d/file")

    seen = pair.same(script)
    assert (seen["18"], seen["19"]) == ("EACCES", b"x")


@pytest.mark.parametrize("seed", range(6))
def test_anything_with_lists_in_any_order(pair: Pair, seed: int) -> None:
    def script(t: Trace) -> None:
        make("base", 0o777)
        os.chdir("base")
        chaos = Chaos(seed, t, lists=True)
        for _ in range(400):
            chaos.step()

    assert any(label.startswith("get system") and isinstance(what, bytes) for label, what in pair.same(script).items())


def _visit(path: Path) -> str:
    def script(t: Trace) -> None:
        t("visit", os.stat, path)

    return str(run(script, Path("/"), NOBODY).outcome["visit"])


def test_the_deploy_paths_own_list(open_place: Path, mounts: Mounts) -> None:
    """What many hosts have: 0750, and a list that lets the web server in. Also when it changes, here or behind."""
    app = make_app(open_place / "app")
    app.chmod(0o750)
    os.setxattr(app, ACCESS, access_list(7, 5, 0, 5, u65534=5))
    assert "EACCES" not in _visit(app / "current/index.html")
    mounts.start(app)
    assert "EACCES" not in _visit(app / "current/index.html")
    os.setxattr(app, ACCESS, access_list(7, 5, 0, 5, u4242=5))
    assert _visit(app / "current/index.html") == "EACCES"
    os.setxattr(app, ACCESS, access_list(7, 5, 0, 5, u65534=5))
    assert "EACCES" not in _visit(app / "current/index.html")
    behind(open_place, app, "setfattr -x system.posix_acl_access .")
    wait_for(lambda: _visit(app / "current/index.html") == "EACCES", "the mount notices")


def test_a_list_that_nobody_would_obey_is_refused(mount: Mount) -> None:
    """A mount beside native directories that began without lists does not pretend to obey one on the deploy path."""
    with pytest.raises(OSError) as caught:
        os.setxattr(mount.app, ACCESS, HARMLESS)
    assert errno_name(caught.value) == "ENOTSUP"
    os.setxattr(mount.app, DEFAULT, HARMLESS)
    assert os.getxattr(mount.app, DEFAULT) == HARMLESS


RESOLVE = """
import os, sys
for _ in range(10000):
    os.stat(sys.argv[1])
"""


def _resolve_as_nobody(path: Path) -> None:
    command = [sys.executable, "-c", RESOLVE, str(path)]
    subprocess.run(command, user=NOBODY.uid, group=NOBODY.gid, extra_groups=[], check=True)


def test_readers_do_not_pay_for_lists(open_place: Path, mounts: Mounts) -> None:
    """Who does not own the deploy path resolves `current` without any request, as everybody does."""
    app = make_app(open_place / "app")
    mount = mounts.start(app)
    _resolve_as_nobody(app / "current/index.html")
    before = _asked_for(mount)
    _resolve_as_nobody(app / "current/index.html")
    assert _asked_for(mount) == before


def _asked_for(mount: Mount) -> dict[str, int]:
    """How many requests of each kind there were, but for the supervisor's own: it looks whether the mount answers."""
    return {kind: count for kind, count in mount.requests().items() if kind != "statfs"}


def test_a_file_system_without_lists(open_place: Path, mounts: Mounts) -> None:
    """ramfs has neither lists nor extended attributes: modes decide, and nothing fails for want of a list."""
    place = open_place / "ram"
    place.mkdir()
    subprocess.run(["mount", "-t", "ramfs", "ramfs", place], check=True)
    try:
        place.chmod(0o755)
        app = make_app(place / "app")
        mount = mounts.start(app, "--no-bind")
        (app / "releases/40/private").write_text("x")
        (app / "releases/40/private").chmod(0o600)
        assert "EACCES" not in _visit(app / "current/index.html")
        assert _visit(app / "releases/40/private") != "EACCES", "stat(2) needs no permission"

        def script(t: Trace) -> None:
            t.open("open", "current/index.html", os.O_RDONLY)
            t.open("private", "current/private", os.O_RDONLY)
            t("make", os.mkdir, "releases/40/x")
            t("no list", os.getxattr, "current/index.html", ACCESS)

        seen = run(script, app, NOBODY).outcome
        assert (seen["open"], seen["private"], seen["make"]) == ("opened", "EACCES", "EACCES")
        assert seen["no list"] == "ENODATA", "natively ENOTSUP; the kernel could not go on if it heard that"
        with pytest.raises(OSError) as caught:
            os.setxattr(app / "releases/40/index.html", ACCESS, HARMLESS)
        assert errno_name(caught.value) == "ENOTSUP"
        assert mount.terminate() == 0
    finally:
        subprocess.run(["umount", "-l", place], check=True)
