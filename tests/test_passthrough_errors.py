"""Every call on every kind of thing, by root and by users: which fail, with which errno, and what that changes.

The ground that POSIX suites of other people cover (pjdfstest, xfstests, LTP), against the plain directory: errnos, and
what each call does to the times, the link count and the number of the thing itself and of its directory.
"""

from __future__ import annotations

import errno
import os
import resource
import shutil
import signal
import stat
import subprocess

import pytest
from calls import CALLS, KINDS, make_kind, make_kinds
from served import Pair
from sidebyside import ADA, BOB, NOBODY, ROOT, Trace, Who, acting, get, make, put, swap

from relfs.libc import RENAME_EXCHANGE, RENAME_NOREPLACE


def _is_of_a_device(call: str, kind: str) -> bool:
    """FUSE mounts are nodev, a known difference."""
    return kind == "device" and call.startswith("open") and call != "open O_PATH" and "O_EXCL" not in call


def _seen(path: str) -> object:
    """What there is at `path`, but for times."""
    try:
        status = os.lstat(path)
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    size = 0 if stat.S_ISDIR(status.st_mode) else status.st_size
    return (oct(status.st_mode), status.st_nlink, status.st_uid, status.st_gid, size)


_PATHS = [("root", ROOT, ""), ("owner", ADA, ""), ("stranger", BOB, "")]
_PATHS += [(f"owner {suffix}", ADA, suffix) for suffix in ("/", "/.", "/..", "/below")]


@pytest.mark.parametrize(("who", "suffix"), [case[1:] for case in _PATHS], ids=[case[0] for case in _PATHS])
def test_every_call_on_every_kind(pair: Pair, who: Who, suffix: str) -> None:
    """Each in a directory of its own, by its path, with and without something behind it."""

    def script(t: Trace) -> None:
        os.umask(0)
        start = os.getcwd()
        for name, call in CALLS.items():
            for kind in KINDS:
                if _is_of_a_device(name, kind):
                    continue
                make_kinds("base", ADA, kind)
                os.chdir("base")
                with acting(who):
                    t(f"{name} {kind}", call, f"{kind}{suffix}")
                os.chdir(start)
                t.note(f"after {name} {kind}", (_seen(f"base/{kind}"), sorted(os.listdir("base"))))
                shutil.rmtree("base")

    seen = pair.same(script, trees=False)
    if not suffix:
        assert (seen["rmdir full"], seen["mkdir file"]) == ("EACCES" if who == BOB else "ENOTEMPTY", "EEXIST")
        assert (seen["stat loop"], seen["open O_RDONLY dangling"]) == ("ELOOP", "ENOENT")


def _tick(moment: int) -> None:
    """Wait until the clock of the file system is past `moment`, which it is every few milliseconds."""
    os.utime("clock")
    while os.stat("clock").st_ctime_ns <= moment:
        os.utime("clock")


def _stamps(path: str) -> tuple[int, ...]:
    """What a call may change of the times, the number and the links of a thing; zeros if it is not there."""
    try:
        status = os.lstat(path)
    except OSError:
        return (0,) * 4
    return status.st_ctime_ns, status.st_mtime_ns, status.st_ino, status.st_nlink


def _changed(before: tuple[int, ...], after: tuple[int, ...]) -> list[str]:
    if before[2] != after[2]:
        return ["another"]
    return [label for label, old, new in zip(("ctime", "mtime"), before, after, strict=False) if old != new]


@pytest.mark.parametrize("who", [ROOT, BOB], ids=["root", "stranger"])
@pytest.mark.parametrize("kind", ["file", "empty", "full", "link", "fifo", "nothing"])
def test_what_a_call_does_to_times_and_links(pair: Pair, who: Who, kind: str) -> None:
    """Times of the thing, of its directory and of what else is concerned move natively or not at all; a call that fails
    moves none. Numbers stay."""

    def script(t: Trace) -> None:
        put("clock", b"", 0o666)
        for name, call in CALLS.items():
            make_kinds("base", ADA, kind)
            places = (f"base/{kind}", "base", "base/spare", "base/spare dir", "base/other")
            before = [_stamps(place) for place in places]
            _tick(max(max(each[:2]) for each in before))
            start = os.getcwd()
            os.chdir("base")
            with acting(who):
                t(f"{name}", call, kind)
            os.chdir(start)
            after = [_stamps(place) for place in places]
            for place, one, other in zip(places, before, after, strict=True):
                t.note(f"{name}: {place}", (_changed(one, other), other[3]))
            shutil.rmtree("base")

    seen = pair.same(script, trees=False)
    if kind == "file" and who == ROOT:
        assert seen["chmod: base/file"][0] == ["ctime"]
        assert seen["unlink: base"][0] == ["ctime", "mtime"]
        assert seen["rename from: base/other"][1] == 1
    if kind == "file" and who == BOB:
        assert (seen["chmod"], seen["chmod: base/file"][0]) == ("EPERM", [])


def _kinds_of_rename(t: Trace, who: Who) -> None:
    for source in KINDS:
        for target in KINDS:
            for flags in (0, RENAME_NOREPLACE, RENAME_EXCHANGE):
                make_kinds("from", who, source)
                make_kinds("to", who, target)
                with acting(who):
                    t(f"{source} to {target} {flags}", swap, f"from/{source}", f"to/{target}", flags)
                t.note("then", (_seen(f"from/{source}"), _seen(f"to/{target}"), os.stat("from").st_nlink))
                for name in ("from", "to"):
                    shutil.rmtree(name)


def test_renames_of_every_kind_onto_every_kind(pair: Pair) -> None:
    def script(t: Trace) -> None:
        _kinds_of_rename(t, ADA)

    seen = pair.same(script, trees=False)
    assert (seen["file to empty 0"], seen["empty to file 0"], seen["full to empty 0"]) == ("EISDIR", "ENOTDIR", None)


OWNERS = {"root": ROOT, "ada": ADA, "bob": BOB}


@pytest.mark.parametrize("mode", [0o1777, 0o777, 0o1775, 0o755], ids=oct)
def test_whose_is_what_in_sticky_directories(pair: Pair, mode: int) -> None:
    """Every owner of a directory and of what is in it, and ADA, who removes, renames, replaces and exchanges."""

    def script(t: Trace) -> None:
        for directory_owner in OWNERS:
            for owner in OWNERS:
                for kind in ("file", "empty", "link"):
                    say = f"{directory_owner} {owner} {kind} "
                    make("d", mode, OWNERS[directory_owner])
                    make("own", 0o777, ADA)
                    for number in range(6):
                        make_kind("d", kind, OWNERS[owner])
                        os.rename(f"d/{kind}", f"d/{number}")
                    put("own/file", b"", 0o644, ADA)
                    make("own/empty", 0o755, ADA)
                    mine = "own/empty" if kind == "empty" else "own/file"
                    with acting(ADA):
                        t(f"{say}unlink", os.rmdir if kind == "empty" else os.unlink, "d/0")
                        t(f"{say}rename in place", os.rename, "d/1", "d/new")
                        t(f"{say}rename away", os.rename, "d/2", "own/new")
                        t(f"{say}exchange", swap, mine, "d/3", RENAME_EXCHANGE)
                        t(f"{say}replace", os.rename, mine, "d/4")
                        t(f"{say}link", os.link, "d/5", "own/linked", follow_symlinks=False)
                    t.note(f"{say}left", (sorted(os.listdir("d")), sorted(os.listdir("own"))))
                    shutil.rmtree("d")
                    shutil.rmtree("own")

    seen = pair.same(script, trees=False)
    if mode == 0o1777:
        assert (seen["root bob file unlink"], seen["ada bob file unlink"]) == ("EPERM", None)


def test_programs_that_run_and_files_that_are_written(pair: Pair) -> None:
    """ETXTBSY, both ways round; and what may be done to a running program all the same."""

    def script(t: Trace) -> None:
        shutil.copy("/bin/sleep", "program")
        running = subprocess.Popen(["./program", "60"])
        t.open("write", "program", os.O_WRONLY)
        t.open("create", "program", os.O_CREAT | os.O_RDWR)
        t("truncate", os.truncate, "program", 1)
        t.open("read", "program", os.O_RDONLY)
        t("chmod", os.chmod, "program", 0o700)
        t("link", os.link, "program", "again")
        t("rename", os.rename, "program", "moved")
        t("unlink", os.unlink, "moved")
        running.kill()
        running.wait()
        t.open("afterwards", "again", os.O_WRONLY)
        shutil.copy("/bin/true", "busy")
        writing = os.open("busy", os.O_WRONLY)
        t("run", lambda: subprocess.run(["./busy"], check=False).returncode)
        os.close(writing)
        t("run then", lambda: subprocess.run(["./busy"], check=False).returncode)

    seen = pair.same(script, trees=False)
    assert (seen["write"], seen["truncate"], seen["run"], seen["run then"]) == ("ETXTBSY", "ETXTBSY", "ETXTBSY", 0)


def test_limits_of_size(pair: Pair) -> None:
    """EFBIG by RLIMIT_FSIZE, for writes, truncations and allocations, as root too."""

    def script(t: Trace) -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        put("file", b"x" * 5000, 0o666)
        resource.setrlimit(resource.RLIMIT_FSIZE, (8192, resource.RLIM_INFINITY))
        for who in (ROOT, ADA):
            with acting(who):
                fd = os.open("file", os.O_RDWR)
                t("up to it", os.pwrite, fd, b"y" * 8192, 4096)
                t("beyond", os.pwrite, fd, b"z", 8192)
                t("truncate", os.ftruncate, fd, 8193)
                t("allocate", os.posix_fallocate, fd, 0, 10000)
                t("smaller", os.ftruncate, fd, 100)
                os.close(fd)

    assert pair.same(script)["beyond"] == "EFBIG"


def test_ways_through_directories(pair: Pair) -> None:
    """Search permission of every directory on the way, for every kind of call, also where the path is long or loops."""

    def script(t: Trace) -> None:
        make("a")
        make("a/b")
        make_kinds("a/b/c", ADA, "file")
        os.symlink("../b", "a/b/up")
        for mode in (0o755, 0o700, 0o744, 0o711, 0o755):
            os.chmod("a", mode)
            for name, call in CALLS.items():
                if name == "chdir":
                    continue
                with acting(NOBODY):
                    t(f"{mode:o} {name}", call, "a/b/c/file")
                    t(f"{mode:o} {name} up", call, "a/b/up/c/nothing/x")
        os.symlink("a", "l0")
        for number in range(45):
            os.symlink(f"l{number}", f"l{number + 1}")
        t("40 links", os.stat, "l39")
        t("41 links", os.stat, "l40")
        t("long path", os.stat, "a/" * 2047)
        t("longer path", os.access, "a/../" * 819, os.F_OK)
        t("too long path", os.stat, "a/../" * 820)
        t("empty path", os.stat, "")

    seen = pair.same(script)
    assert (seen["40 links"] != "ELOOP", seen["41 links"]) == (True, "ELOOP")
    assert seen["744 stat"] == "EACCES"


def test_across_file_systems(pair: Pair) -> None:
    def script(t: Trace) -> None:
        put("file", b"x")
        make("d")
        t("rename out", os.rename, "file", "/dev/shm/relfs-test-file")
        t("link out", os.link, "file", "/dev/shm/relfs-test-file")
        t("rename in", os.rename, "/proc/self/status", "status")
        t("link in", os.link, "/proc/self/status", "status")
        os.symlink("/proc/self/status", "link")
        t("a link out", lambda: get("link").startswith(b"Name:"))

    assert pair.same(script)["rename out"] == "EXDEV"


def test_a_read_only_file_system(pair: Pair) -> None:
    """Remounted, as an administrator or an error on the disk does; what was open for writing stays so, as far as the
    kernel lets it."""

    def script(t: Trace) -> None:
        os.chdir("ro")
        for name, call in CALLS.items():
            for kind in KINDS:
                if not _is_of_a_device(name, kind) and name not in ("chdir", "stat", "lstat", "statvfs"):
                    t(f"{name} {kind}", call, kind)

    make_kinds(str(pair.served / "ro"), ROOT)
    make_kinds(str(pair.plain / "ro"), ROOT)
    for base in (pair.served, pair.plain):
        subprocess.run(["mount", "--bind", base / "ro", base / "ro"], check=True)
        subprocess.run(["mount", "-o", "remount,bind,ro", base / "ro"], check=True)
    try:
        seen = pair.same(script, trees=False)
    finally:
        for base in (pair.served, pair.plain):
            subprocess.run(["umount", base / "ro"], check=True)
    assert (seen["mkdir nothing"], seen["unlink file"], seen["chmod file"]) == ("EROFS", "EROFS", "EROFS")


_BOTH_ARE_ERRORS = ("rename a file to", "rename a directory to", "rmdir", "unlink", "access")


@pytest.mark.parametrize("flag", ["i", "a"])
def test_files_that_are_immutable_or_only_appended_to(pair: Pair, flag: str) -> None:
    """chattr(1), set past the mount. The calls left out are among the known differences."""
    calls = {name: call for name, call in CALLS.items() if name not in (*_BOTH_ARE_ERRORS, "chdir")}

    def script(t: Trace) -> None:
        for name, call in calls.items():
            for place in ("file", "full/x", "full/new"):
                t(f"{name} {place}", call, f"base/{place}")
                if os.path.lexists("other"):
                    os.unlink("other")
        fd = os.open("base/file", os.O_RDONLY)
        t("ftruncate", os.ftruncate, fd, 1)
        if flag == "a":
            t("append", lambda: os.write(os.open("base/file", os.O_WRONLY | os.O_APPEND), b"more"))
        t("content", get, "base/file")

    def prepare(t: Trace) -> None:
        make_kinds("base", ADA, "file", "full")
        t.note("prepared", True)

    pair.same(prepare)
    pair.natively(f"chattr +{flag} base/file base/full")
    try:
        seen = pair.same(script, trees=False)
    finally:
        pair.natively(f"chattr -{flag} base/file base/full")
    assert (seen["rename from file"], seen["chmod file"]) == ("EPERM", "EPERM")
    assert seen["open O_APPEND file"] == ("EPERM" if flag == "i" else None)


def test_files_of_many_processes(pair: Pair) -> None:
    """Ten processes make, rename, link and remove the same few names at once: nothing is lost, nothing is left over."""

    def script(t: Trace) -> None:
        make("d", 0o777)
        children = []
        for number in range(10):
            child = os.fork()
            if child == 0:
                _scramble(number)
                os._exit(0)
            children.append(child)
        t("ends", lambda: [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children])
        t("left", lambda: sorted(os.listdir("d")))

    assert pair.same(script)["ends"] == [0] * 10


def _scramble(number: int) -> None:
    """Only errnos that others' doings explain may come."""
    expected = {errno.ENOENT, errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR, errno.EISDIR}
    mine = f"d/own{number}"
    for turn in range(60):
        shared, other = f"d/{turn % 5}", f"d/{(turn + number) % 5}"
        put(mine, b"%d" % turn)
        assert get(mine) == b"%d" % turn
        for call, arguments in ((os.mkdir, (shared,)), (os.rename, (shared, other)), (os.link, (mine, other)),
                                (os.rename, (mine, shared)), (os.rmdir, (other,)), (os.unlink, (shared,))):  # fmt: skip
            try:
                call(*arguments)
            except OSError as error:
                assert error.errno in expected, error
    for name in (mine, *(f"d/{each}" for each in range(5))):
        for remove in (os.unlink, os.rmdir):
            try:
                remove(name)
            except OSError as error:
                assert error.errno in expected, error
