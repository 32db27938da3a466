"""Who may do what through a mount, and what that does to owners and modes: as on a plain directory."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess

import pytest
from served import Pair
from sidebyside import ADA, BOB, NOBODY, ROOT, Trace, Who, acting, get, make, put, swap

from relfs.libc import RENAME_EXCHANGE


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
