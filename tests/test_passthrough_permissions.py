"""Who may do what through a mount, and what that does to owners and modes: as on a plain directory."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest
from mounting import Mounts
from sandbox import make_app
from served import Pair
from sidebyside import (
    ACCESS,
    ADA,
    BOB,
    NOBODY,
    ROOT,
    Trace,
    Who,
    access_list,
    acting,
    difference,
    get,
    make,
    put,
    run,
    swap,
)

from relfs.libc import RENAME_EXCHANGE, set_thread_capabilities


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
@pytest.mark.parametrize("who", [ROOT, ADA], ids=["root", "user"])
def test_new_files_owner_and_mode(pair: Pair, who: Who, umask: int) -> None:
    def script(t: Trace) -> None:
        make("d", 0o777)
        make("inherits", 0o2777, Who(0, 2000))
        os.umask(umask)
        with acting(who):
            for directory in ("d", "inherits"):
                os.close(t.open(f"create in {directory}", f"{directory}/file", os.O_CREAT | os.O_WRONLY, 0o6777))
                t(f"mkdir in {directory}", os.mkdir, f"{directory}/sub", 0o777)
                t(f"mkfifo in {directory}", os.mkfifo, f"{directory}/fifo", 0o666)
                t(f"symlink in {directory}", os.symlink, "x", f"{directory}/link")
                for name in ("file", "sub", "fifo", "link"):
                    t(f"{directory}/{name}", os.lstat, f"{directory}/{name}")

    seen = pair.same(script, umask=umask)
    assert seen["d/file"][2:4] == (who.uid, who.gid)
    assert seen["inherits/sub"][2:4] == (who.uid, 2000)
    assert int(seen["inherits/sub"][0], 8) & stat.S_ISGID
    assert int(seen["d/sub"][0], 8) & 0o777 == 0o777 & ~umask


def test_permission_bits(pair: Pair) -> None:
    """Every class and every bit, supplementary groups included, for files and directories."""
    modes = (0o000, 0o400, 0o200, 0o040, 0o020, 0o004, 0o002, 0o640, 0o060)

    def script(t: Trace) -> None:
        for mode in modes:
            put(f"f{mode:o}", b"x", mode, Who(ADA.uid, 2000))
            make(f"d{mode:o}", mode | (mode & 0o444) >> 2, Who(ADA.uid, 2000))
            put(f"d{mode:o}/inner", b"y", 0o666)
        for who in (ADA, BOB, NOBODY):
            with acting(who):
                for mode in modes:
                    say = f"{who.uid} {mode:o} "
                    t.open(f"{say}read", f"f{mode:o}", os.O_RDONLY)
                    t.open(f"{say}write", f"f{mode:o}", os.O_WRONLY)
                    t(f"{say}truncate", os.truncate, f"f{mode:o}", 1)
                    t(f"{say}list", os.listdir, f"d{mode:o}")
                    t(f"{say}inner", get, f"d{mode:o}/inner")
                    t(f"{say}create", os.mkdir, f"d{mode:o}/new")

    seen = pair.same(script)
    assert seen["1001 40 read"] == "opened", "by the supplementary group"
    assert seen["65534 40 read"] == "EACCES"
    assert seen["65534 4 read"] == "opened"
    assert seen["1000 400 write"] == "EACCES"


def test_access(pair: Pair) -> None:
    modes = (0o700, 0o070, 0o007, 0o500, 0o644)

    def script(t: Trace) -> None:
        for mode in modes:
            for question in (os.F_OK, os.R_OK, os.W_OK, os.X_OK, os.R_OK | os.W_OK):
                t(f"{mode:o} {question}", os.access, f"f{mode:o}", question)

    def prepare(t: Trace) -> None:
        for mode in modes:
            put(f"f{mode:o}", b"", mode, Who(ADA.uid, 2000))
        t.note("prepared", True)

    pair.same(prepare)
    for who in (ROOT, ADA, BOB, NOBODY):
        seen = pair.same(script, who)
    assert (seen["7 1"], seen["70 1"], seen["644 6"]) == (True, False, False)


def test_chmod_and_chown_are_the_owners(pair: Pair) -> None:
    def script(t: Trace) -> None:
        put("mine", b"x", 0o644, ADA)
        put("roots", b"x", 0o644)
        with acting(ADA):
            t("chmod mine", os.chmod, "mine", 0o600)
            t("chmod roots", os.chmod, "roots", 0o600)
            t("give away", os.chown, "mine", BOB.uid, -1)
            t("to my own group", os.chown, "mine", -1, 2000)
            t("to a strange group", os.chown, "mine", -1, 2001)
            t("chown roots", os.chown, "roots", ADA.uid, -1)
            t("setgid in my group", os.chmod, "mine", 0o2755)
            t("mine", os.stat, "mine")
        os.chown("mine", ADA.uid, 2001)
        with acting(ADA):
            t("setgid in a strange group", os.chmod, "mine", 0o2755)
            t("mine again", os.stat, "mine")
        os.symlink("mine", "link")
        os.lchown("link", ADA.uid, ADA.gid)
        with acting(ADA):
            t("lchown", os.lchown, "link", -1, 2000)
            t("lchown away", os.lchown, "link", BOB.uid, -1)
        t("root gives", os.chown, "mine", 5, 6)
        t("the link stays", os.lstat, "link")

    seen = pair.same(script)
    assert seen["chmod roots"] == seen["give away"] == seen["to a strange group"] == "EPERM"
    assert int(seen["mine"][0], 8) & 0o7777 == 0o2755
    assert int(seen["mine again"][0], 8) & 0o7777 == 0o755


@pytest.mark.parametrize("who", [ROOT, NOBODY, ADA], ids=["root", "stranger", "owner"])
@pytest.mark.parametrize("how", ["write", "truncate", "ftruncate", "O_TRUNC", "chown"])
def test_set_id_bits_are_lost(pair: Pair, who: Who, how: str) -> None:
    """To a write by anybody but root, to a truncation, to a change of owner; never a permission error."""

    def script(t: Trace) -> None:
        for mode in (0o6777, 0o4777, 0o2777, 0o4767):
            name = f"f{mode:o}"
            put(name, b"some data", mode, ADA)
            with acting(who):
                fd = os.open(name, os.O_WRONLY | (os.O_TRUNC if how == "O_TRUNC" else 0))
                if how == "write":
                    t(f"{name} write", os.pwrite, fd, b"!", 3)
                elif how == "truncate":
                    t(f"{name} truncate", os.truncate, name, 3)
                elif how == "ftruncate":
                    t(f"{name} ftruncate", os.ftruncate, fd, 3)
                elif how == "chown":
                    t(f"{name} chown", os.chown, name, -1, who.gid)
                os.close(fd)
                t(name, os.stat, name)

    seen = pair.same(script)
    if how == "write":
        assert bool(int(seen["f6777"][0], 8) & 0o6000) == (who == ROOT)


def test_file_capabilities_are_lost_to_a_write(pair: Pair) -> None:
    capability = bytes.fromhex("0100000202000000000000000000000000000000")

    def script(t: Trace) -> None:
        put("program", b"x", 0o777)
        t("set", os.setxattr, "program", "security.capability", capability)
        t("get", os.getxattr, "program", "security.capability")
        with acting(NOBODY):
            t("not by a user", os.setxattr, "program", "security.capability", capability)
            fd = os.open("program", os.O_WRONLY)
            t("write", os.write, fd, b"y")
        t("gone", os.getxattr, "program", "security.capability")

    seen = pair.same(script)
    assert (seen["get"], seen["not by a user"], seen["gone"]) == (capability, "EPERM", "ENODATA")


def test_sticky_directories(pair: Pair) -> None:
    def script(t: Trace) -> None:
        make("tmp", 0o1777)
        for name in ("a", "b", "c"):
            put(f"tmp/{name}", b"", 0o666, ADA)
        make("tmp/d", 0o777, ADA)
        with acting(BOB):
            t("unlink", os.unlink, "tmp/a")
            t("rename from", os.rename, "tmp/a", "tmp/mine")
            os.close(os.open("tmp/new", os.O_CREAT | os.O_WRONLY))
            t("rename over", os.rename, "tmp/new", "tmp/b")
            t("rmdir", os.rmdir, "tmp/d")
            t("exchange", swap, "tmp/new", "tmp/c", RENAME_EXCHANGE)
            t("own", os.unlink, "tmp/new")
        with acting(ADA):
            t("the owner", os.unlink, "tmp/a")
            t("the owner's directory", os.rmdir, "tmp/d")

    seen = pair.same(script)
    assert seen["unlink"] == seen["rename from"] == seen["rename over"] == seen["rmdir"] == seen["exchange"] == "EPERM"
    assert (seen["own"], seen["the owner"]) == (None, None)


def test_programs_run_without_read_permission(pair: Pair) -> None:
    """execve(2) needs execute permission only."""

    def script(t: Trace) -> None:
        shutil.copy("/bin/true", "program")
        os.chmod("program", 0o711)
        with acting(NOBODY):
            t.open("read", "program", os.O_RDONLY)
        t("run", lambda: subprocess.run(["./program"], user=NOBODY.uid, group=NOBODY.gid, check=False).returncode)
        os.chmod("program", 0o700)
        t("not run", lambda: subprocess.run(["./program"], user=NOBODY.uid, group=NOBODY.gid, check=False).returncode)

    seen = pair.same(script)
    assert (seen["read"], seen["run"], seen["not run"]) == ("EACCES", 0, "EACCES")


CAPABILITIES = {"CHOWN": 0, "DAC_OVERRIDE": 1, "DAC_READ_SEARCH": 2, "FOWNER": 3, "FSETID": 4, "MKNOD": 27}
"""Those that are about files (capabilities(7)), and their numbers (linux/capability.h)."""


def _try_everything(t: Trace, say: str) -> None:
    """What each of those capabilities allows, in a directory that is somebody else's."""
    t.open(f"{say} read", "d/secret", os.O_RDONLY)
    t.open(f"{say} write", "d/secret", os.O_WRONLY)
    t(f"{say} list", os.listdir, "closed")
    t(f"{say} search", os.stat, "closed/inner")
    t(f"{say} truncate", os.truncate, "d/secret", 3)
    t(f"{say} chmod", os.chmod, "d/secret", 0o640)
    t(f"{say} set-group-ID", os.chmod, "d/secret", 0o2640)
    t(f"{say} chown", os.chown, "d/given", 5, 6)
    t(f"{say} given", os.stat, "d/given")
    t(f"{say} utime", os.utime, "d/secret", ns=(1, 2))
    t(f"{say} sticky", os.unlink, "sticky/theirs")
    t(f"{say} device", os.mknod, f"open/{say}", stat.S_IFCHR | 0o600, os.makedev(1, 3))
    t(f"{say} make", os.mkdir, f"d/{say}")
    t(f"{say} xattr", os.setxattr, "d/secret", "user.x", b"1")
    t(f"{say} trusted", os.setxattr, "d/secret", "trusted.x", b"1")
    t(f"{say} names", lambda: sorted(os.listxattr("d/secret")))
    t(f"{say} link", os.link, "d/secret", f"open/{say} link")
    t.open(f"{say} no access time", "d/secret", os.O_RDONLY | os.O_NOATIME)
    fd = t.open(f"{say} set-id", "set-id", os.O_WRONLY)
    if fd >= 0:
        t(f"{say} overwrite", os.write, fd, b"!")
    t(f"{say} still set-id", os.stat, "set-id")


@pytest.mark.parametrize("who", [ROOT, NOBODY], ids=["root", "user"])
def test_capabilities(pair: Pair, who: Who) -> None:
    """Users that have one, and root that has only one, may do what each allows, and nothing else."""

    def script(t: Trace) -> None:
        os.umask(0)
        for name, number in {"none": -1, **CAPABILITIES}.items():
            make(name, 0o777)
            os.chdir(name)
            for directory, mode in {"d": 0o755, "closed": 0o700, "sticky": 0o1777, "open": 0o777}.items():
                make(directory, mode, ADA)
            for path in ("d/secret", "d/given", "closed/inner", "sticky/theirs"):
                put(path, b"secret", 0o600, ADA)
            put("set-id", b"program", 0o6777, ADA)
            os.setxattr("d/secret", "trusted.before", b"1")
            with acting(who):
                set_thread_capabilities(1 << number if number >= 0 else 0)
                _try_everything(t, name)
                set_thread_capabilities(-1)
            os.chdir("..")

    seen = pair.same(script)
    assert (seen["none read"], seen["DAC_READ_SEARCH read"]) == ("EACCES", "opened")
    assert (seen["DAC_READ_SEARCH write"], seen["DAC_OVERRIDE write"]) == ("EACCES", "opened")
    assert (seen["FOWNER chmod"], seen["CHOWN chmod"], seen["CHOWN chown"]) == (None, "EPERM", None)
    assert (seen["MKNOD device"], seen["FOWNER device"]) == (None, "EPERM")
    assert int(seen["FSETID still set-id"][0], 8) & 0o6000


def test_capabilities_of_a_users_own_name_space_mean_nothing(pair: Pair) -> None:
    """Anybody can have them all in a user name space of his own (user_namespaces(7)). The kernel would let this file be
    read by its mode; it is the covered file system, and whom we say we are, that must not."""

    def script(t: Trace) -> None:
        put("denied", b"x", 0o644)
        os.setxattr("denied", ACCESS, access_list(6, 4, 4, 4, u65534=0))

        def read_in_name_space(path: str) -> int:
            command = ["unshare", "--map-root-user", "cat", path]
            return subprocess.run(command, user=NOBODY.uid, group=NOBODY.gid, extra_groups=[], check=False).returncode

        for path in ("denied", "/dev/null"):
            t(path, read_in_name_space, path)

    assert pair.same(script) == {"denied": 1, "/dev/null": 0}


def test_a_write_takes_set_id_bits_and_a_strangers_chown_does_not(pair: Pair) -> None:
    """To the kernel's request the two look alike. Also where the writer may not write any more, but holds the file."""

    def script(t: Trace) -> None:
        for mode in (0o6755, 0o2745, 0o4711):
            put("file", b"data", mode, ADA)
            with acting(NOBODY):
                t(f"{mode:o} chown", os.chown, "file", -1, -1)
            t(f"{mode:o} kept", os.stat, "file")
            fd = os.open("file", os.O_WRONLY)
            with acting(BOB):
                t(f"{mode:o} write", os.write, fd, b"!")
            t(f"{mode:o} taken", os.stat, "file")
            os.close(fd)
            os.chmod("file", mode)
            with acting(ADA):
                t(f"{mode:o} owner's chown", os.chown, "file", -1, -1)
            t(f"{mode:o} by the owner", os.stat, "file")

    seen = pair.same(script)
    assert (seen["6755 chown"], seen["6755 write"], seen["6755 owner's chown"]) == ("EPERM", 1, None)
    assert int(seen["6755 kept"][0], 8) & 0o6000 == 0o6000
    assert int(seen["6755 taken"][0], 8) & 0o6000 == 0


def test_a_kernel_that_offers_less(open_place: Path, mounts: Mounts) -> None:
    """Without FUSE_DONT_MASK and FUSE_HANDLE_KILLPRIV_V2 it applies the umask, and takes set-id bits, by itself."""
    program = """if True:
        import relfs.fuse.handshake as handshake
        handshake.DONT_MASK = handshake.HANDLE_KILLPRIV_V2 = 0"""
    app = make_app(open_place / "app")
    mounts.start(app, "--no-bind", patch=program)

    def script(t: Trace) -> None:
        make("d", 0o777)
        os.umask(0o027)
        with acting(ADA):
            os.close(t.open("create", "d/file", os.O_CREAT | os.O_WRONLY, 0o666))
            t("mkdir", os.mkdir, "d/sub")
        for name in ("d/file", "d/sub"):
            t(name, os.stat, name)
        for writer in (ROOT, BOB):
            put("program", b"data", 0o6777, ADA)
            with acting(writer):
                t("write", os.write, os.open("program", os.O_WRONLY), b"!")
            t(f"set-id after {writer.uid}", os.stat, "program")

    plain = open_place / "plain"
    plain.mkdir()
    natively = run(script, plain)
    assert not (found := difference(run(script, app / "releases/40"), natively)), found
    assert int(natively.outcome["set-id after 1001"][0], 8) & 0o6000 == 0
