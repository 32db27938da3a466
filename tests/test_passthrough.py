"""System calls through a mount and on a plain directory, in step: same results, same errnos, same tree afterwards.

What serves here is relfs itself, not a native directory: everything below a `--no-bind` mount, and the top level of an
ordinary one. Where FUSE or pyfuse3 cannot be like the plain directory, KNOWN_DIFFERENCES says so and why.
"""

# What a Trace is given to call, it calls at once, and notes None like any other result.
# ruff: noqa: B023
# mypy: disable-error-code="func-returns-value"

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import mmap
import os
import pickle
import random
import shutil
import socket
import stat
import subprocess
import tempfile
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import pytest
from mounting import Mount, Mounts, relfsctl, wait_for
from sandbox import end, make_app, start_python

from relfs.libc import RENAME_EXCHANGE, RENAME_NOREPLACE, renameat2

SPECIAL = frozenset({"current", "releases", "shared", ".relfs"})
GIB = 1 << 30
AT_FDCWD = -100

_T = TypeVar("_T")
_libc = ctypes.CDLL(None, use_errno=True)


# ---- a script, and where it runs ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Who:
    uid: int
    gid: int
    groups: tuple[int, ...] = ()


ROOT = Who(0, 0)
NOBODY = Who(65534, 65534)
ADA = Who(1000, 1000, (2000,))
BOB = Who(1001, 1001, (2000, 2001))


@dataclass
class Trace:
    """What a script saw, step by step: results that do not depend on where it ran, and errnos."""

    steps: list[tuple[str, Any]] = field(default_factory=list)

    def __call__(self, label: str, call: Callable[..., _T]) -> _T | None:
        """Note what `call` returns or raises; returns it, or None."""
        try:
            result = call()
        except OSError as error:
            self.steps.append((label, errno.errorcode[error.errno or 0]))
            return None
        self.steps.append((label, _shown(result)))
        return result

    def open(self, label: str, path: str | bytes, flags: int, mode: int = 0o666) -> int:
        """Note whether open(2) succeeds; the descriptor, or -1."""
        try:
            fd = os.open(path, flags, mode)
        except OSError as error:
            self.steps.append((label, errno.errorcode[error.errno or 0]))
            return -1
        self.steps.append((label, "opened"))
        return fd

    @property
    def outcome(self) -> dict[str, Any]:
        return dict(self.steps)


Script = Callable[[Trace], None]


def _shown(result: object) -> object:
    if isinstance(result, os.stat_result):
        return (oct(result.st_mode), result.st_nlink, result.st_uid, result.st_gid, result.st_rdev) + (
            () if stat.S_ISDIR(result.st_mode) else (result.st_size,)
        )
    if type(result) is tuple:
        return tuple(_shown(each) for each in result)
    return result


@contextlib.contextmanager
def acting(who: Who) -> Iterator[None]:
    """Be somebody else for file systems (and for capabilities) for a while."""
    os.setgroups(who.groups)
    os.setegid(who.gid)
    os.seteuid(who.uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups([])


def run(script: Script, base: Path, who: Who = ROOT, umask: int = 0o022) -> Trace:
    """Run `script` with `base` as its working directory, in a process of its own."""
    receiving, sending = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(receiving)
        _run_and_exit(script, base, who, umask, sending)
    os.close(sending)
    with os.fdopen(receiving, "rb") as pipe:
        answer = pipe.read()
    os.waitpid(child, 0)
    trace, trouble = pickle.loads(answer)
    assert not trouble, f"in {base}: {trouble}"
    assert isinstance(trace, Trace)
    return trace


def _run_and_exit(script: Script, base: Path, who: Who, umask: int, sending: int) -> NoReturn:
    trace, trouble = Trace(), ""
    try:
        os.chdir(base)
        os.umask(umask)
        os.setgroups(who.groups)
        os.setresgid(who.gid, who.gid, who.gid)
        os.setresuid(who.uid, who.uid, who.uid)
        script(trace)
    except BaseException:
        trouble = traceback.format_exc()
    with os.fdopen(sending, "wb") as pipe:
        pickle.dump((trace, trouble), pipe)
    os._exit(0)


def tree(base: Path, special: frozenset[str] = frozenset()) -> dict[bytes, Any]:
    """All below `base`, with everything about it that should not depend on where it is."""
    found: dict[bytes, Any] = {}
    pending = [os.fsencode(base) + b"/" + name for name in os.listdir(os.fsencode(base))]
    while pending:
        path = pending.pop()
        status = os.lstat(path)
        content: object = None
        if stat.S_ISDIR(status.st_mode):
            pending += [path + b"/" + name for name in os.listdir(path)]
        elif stat.S_ISLNK(status.st_mode):
            content = os.readlink(path)
        elif stat.S_ISREG(status.st_mode) and status.st_size < GIB:
            content = Path(os.fsdecode(path)).read_bytes()
        found[path[len(os.fsencode(base)) + 1 :]] = (_shown(status), content)
    return {path: what for path, what in found.items() if os.fsdecode(path.split(b"/")[0]) not in special}


@dataclass
class Pair:
    """A directory that relfs serves, and a plain one."""

    mount: Mount
    served: Path
    plain: Path
    place: Path

    def fill(self, name: str, count: int) -> None:
        """In both, a directory with that many empty files called 0, 1, 2 …; made natively, which is faster."""
        for script in (f"mkdir {name} && cd {name} && seq 0 {count - 1} | xargs touch",):
            subprocess.run(["sh", "-ec", script], cwd=self.plain, check=True)
            behind(self.place, self.mount.app, f"cd {self.served.relative_to(self.mount.app)} && {script}")

    def remove(self, name: str) -> None:
        """The same as `rm -r` in both."""
        shutil.rmtree(self.plain / name)
        behind(self.place, self.mount.app, f"cd {self.served.relative_to(self.mount.app)} && rm -r {name}")
        wait_for(lambda: not (self.served / name).exists(), "the mount notices")

    def same(self, script: Script, who: Who = ROOT, umask: int = 0o022, *, trees: bool = True) -> dict[str, Any]:
        """Run `script` in both and demand the same; what it saw, by label. Large trees are left to the script."""
        here, natively = run(script, self.served, who, umask), run(script, self.plain, who, umask)
        assert here.steps == natively.steps
        assert not trees or tree(self.served, SPECIAL) == tree(self.plain)
        return here.outcome


@dataclass(frozen=True)
class Served:
    """The module's mounts: one without native directories, one with."""

    bare: Mount
    ordinary: Mount
    place: Path


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    place = Path(tempfile.mkdtemp(prefix="relfs-passthrough-"))
    place.chmod(0o755)
    mounts = Mounts(place)
    try:
        bare = mounts.start(make_app(place / "bare"), "--no-bind")
        yield Served(bare, mounts.start(make_app(place / "ordinary")), place)
    finally:
        mounts.take_away()
        shutil.rmtree(place)


@pytest.fixture(params=["no-bind", "top level"])
def pair(request: pytest.FixtureRequest, served: Served) -> Iterator[Pair]:
    """Below a release of a mount without native directories; the very top of an ordinary mount."""
    plain = Path(tempfile.mkdtemp(prefix="plain-", dir=served.place))
    if request.param == "no-bind":
        mount = served.bare
        base = Path(tempfile.mkdtemp(prefix="case-", dir=mount.app / "releases/42"))
    else:
        mount = served.ordinary
        base = mount.app
    for directory in (plain, base):
        directory.chmod(0o755)
    assert os.stat(base).st_dev != os.stat(plain).st_dev
    yield Pair(mount, base, plain, served.place)
    for directory in (plain, base):
        for name in set(os.listdir(directory)) - SPECIAL:
            remove(directory / name)


def remove(path: Path) -> None:
    if stat.S_ISDIR(os.lstat(path).st_mode):
        shutil.rmtree(path)
    else:
        path.unlink()


def put(path: str | bytes, data: bytes = b"", mode: int = 0o644, owner: Who = ROOT) -> None:
    """A file with all of this, whatever the umask is."""
    with open(path, "wb") as file:
        file.write(data)
    os.chown(path, owner.uid, owner.gid)
    os.chmod(path, mode)


def make(path: str, mode: int = 0o755, owner: Who = ROOT) -> None:
    os.mkdir(path)
    os.chown(path, owner.uid, owner.gid)
    os.chmod(path, mode)


def get(path: str | bytes) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def swap(old: str, new: str, flags: int) -> None:
    renameat2(AT_FDCWD, old.encode(), AT_FDCWD, new.encode(), flags)


# ---- what FUSE and pyfuse3 cannot do ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Known:
    """A documented difference: what a plain directory answers, what relfs honestly answers, and why."""

    reason: str
    script: Script
    natively: Any
    here: Any
    who: Who = ROOT


def _temporary_file(t: Trace) -> None:
    t.open("result", ".", os.O_TMPFILE | os.O_RDWR)


def _seek(whence: int) -> Script:
    def script(t: Trace) -> None:
        with open("sparse", "wb") as file:
            file.truncate(1 << 20)
            file.seek(1 << 19)
            file.write(b"data")
        assert os.path.getsize("sparse") == 1 << 20
        fd = os.open("sparse", os.O_RDONLY)
        t("result", lambda: os.lseek(fd, 0, whence))

    return script


def _fallocate(t: Trace) -> None:
    put("file")
    fd = os.open("file", os.O_RDWR)

    def allocate() -> int:
        if _libc.fallocate(fd, 1, ctypes.c_long(0), ctypes.c_long(4096)) != 0:  # 1: keep the size, so no emulation
            raise OSError(ctypes.get_errno(), "fallocate")
        return 0

    t("result", allocate)


def _flags_of_file(t: Trace) -> None:
    put("file")
    fd = os.open("file", os.O_RDONLY)
    t("result", lambda: len(fcntl.ioctl(fd, 0x80086601, b"\0" * 8)))  # FS_IOC_GETFLAGS: what lsattr(1) asks


def _open_device(t: Trace) -> None:
    os.mknod("null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    t.open("result", "null", os.O_RDWR)


def _set_user_program(t: Trace) -> None:
    shutil.copy("/usr/bin/id", "id")
    os.chmod("id", 0o4755)
    command = ["./id", "-u"]
    t("result", lambda: subprocess.run(command, user=NOBODY.uid, capture_output=True, check=True).stdout)


def _set_group_id_of_a_file_nobody_runs(t: Trace) -> None:
    put("file", b"data", 0o2767, ADA)
    fd = os.open("file", os.O_WRONLY)
    with acting(NOBODY):
        os.write(fd, b"!")
    t("result", lambda: oct(stat.S_IMODE(os.stat("file").st_mode)))


def _dot_dot(t: Trace) -> None:
    make("d")
    listed = _directory_inodes("d")
    t("result", lambda: listed[b".."] == os.stat(".").st_ino)


def _capability_without_root(t: Trace) -> None:
    put("secret", b"x", 0o600)
    keep = [f"--reuid={NOBODY.uid}", "--clear-groups", "--inh-caps=+dac_override", "--ambient-caps=+dac_override"]
    t("result", lambda: subprocess.run(["setpriv", *keep, "cat", "secret"], capture_output=True, check=False).stdout)


def _access_list(entry_permissions: int) -> bytes:
    """user::rw- user:65534:… group::--- mask::rwx other::--- (acl(5), version 2)."""
    entries = [(1, 6, 0xFFFFFFFF), (2, entry_permissions, NOBODY.uid), (4, 0, 0xFFFFFFFF), (16, 7, 0xFFFFFFFF)]
    entries.append((32, 0, 0xFFFFFFFF))
    words = [tag.to_bytes(2, "little") + perm.to_bytes(2, "little") + who.to_bytes(4, "little")
             for tag, perm, who in entries]  # fmt: skip
    return (2).to_bytes(4, "little") + b"".join(words)


def _granted_by_access_list(t: Trace) -> None:
    put("file", b"x", 0o600)
    os.setxattr("file", "system.posix_acl_access", _access_list(6))
    with acting(NOBODY):
        t.open("result", "file", os.O_RDONLY)


KNOWN_DIFFERENCES: dict[str, Known] = {
    "O_TMPFILE": Known(
        "pyfuse3 and libfuse 3.14 have no FUSE_TMPFILE; programs fall back upon EOPNOTSUPP",
        _temporary_file, "opened", "ENOTSUP",
    ),
    "SEEK_DATA": Known(
        "pyfuse3 has no FUSE_LSEEK; the kernel then says, as lseek(2) allows, that all is data",
        _seek(os.SEEK_DATA), 1 << 19, 0,
    ),
    "SEEK_HOLE": Known(
        "as SEEK_DATA: the only hole is the one at the end",
        _seek(os.SEEK_HOLE), 0, 1 << 20,
    ),
    "fallocate": Known(
        "pyfuse3 has no FUSE_FALLOCATE; posix_fallocate(3) writes instead",
        _fallocate, 0, "ENOTSUP",
    ),
    "file flags (lsattr, chattr)": Known(
        "pyfuse3 answers FUSE_IOCTL only through an ioctl handler, and the flags are ext4's own",
        _flags_of_file, 8, "ENOTTY",
    ),
    "devices": Known(
        "FUSE mounts are nodev: a device can be made and seen, not opened",
        _open_device, "opened", "EACCES",
    ),
    "set-user-ID programs": Known(
        "FUSE mounts are nosuid: they run as whoever starts them",
        _set_user_program, b"0\n", b"65534\n",
    ),
    "the set-group-ID bit without the group's execute bit": Known(
        "the kernel clears it for FUSE only together with that bit (fuse_setattr() in fs/fuse/dir.c); nosuid anyway",
        _set_group_id_of_a_file_nobody_runs, "0o767", "0o2767",
    ),
    "the inode number of ..": Known(
        "readdirplus lets only real lookups name an inode, so `..` is listed with the number of `.`",
        _dot_dot, True, False,
    ),
    "capabilities without root": Known(
        "FUSE tells the daemon user and groups, not capabilities(7): CAP_DAC_OVERRIDE alone is not enough",
        _capability_without_root, b"x", b"",
    ),
    "access granted by an access control list alone": Known(
        "pyfuse3 cannot ask for FUSE_POSIX_ACL: the kernel looks at the mode bits, so an entry grants nothing more",
        _granted_by_access_list, "opened", "EACCES",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", KNOWN_DIFFERENCES)
def test_known_differences_are_honest(pair: Pair, name: str) -> None:
    known = KNOWN_DIFFERENCES[name]
    assert run(known.script, pair.plain, known.who).outcome["result"] == known.natively
    assert run(known.script, pair.served, known.who).outcome["result"] == known.here, known.reason


def test_access_lists_never_grant_more_than_natively(pair: Pair) -> None:
    """The kernel sees the mask where it looks for the group's bits; the covered file system has the last word."""

    def script(t: Trace) -> None:
        put("file", b"x", 0o600, Who(0, NOBODY.gid))
        os.setxattr("file", "system.posix_acl_access", _access_list(0))
        with acting(NOBODY):
            t.open("read", "file", os.O_RDONLY)
            t.open("write", "file", os.O_WRONLY)

    assert pair.same(script) == {"read": "EACCES", "write": "EACCES"}


# ---- who may do what ----------------------------------------------------------------------------------------------


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
                t(f"mkdir in {directory}", lambda at=directory: os.mkdir(f"{at}/sub", 0o777))
                t(f"mkfifo in {directory}", lambda at=directory: os.mkfifo(f"{at}/fifo", 0o666))
                t(f"symlink in {directory}", lambda at=directory: os.symlink("x", f"{at}/link"))
                for name in ("file", "sub", "fifo", "link"):
                    t(f"{directory}/{name}", lambda path=f"{directory}/{name}": os.lstat(path))

    seen = pair.same(script, umask=umask)
    assert seen["d/file"][2:4] == (who.uid, who.gid)
    assert seen["inherits/sub"][2:4] == (who.uid, 2000)
    assert int(seen["inherits/sub"][0], 8) & stat.S_ISGID
    assert int(seen["d/sub"][0], 8) & 0o777 == 0o777 & ~umask


def test_permission_bits(pair: Pair) -> None:
    """Every class and every bit, supplementary groups included, for files and directories."""

    def script(t: Trace) -> None:
        for mode in (0o000, 0o400, 0o200, 0o040, 0o020, 0o004, 0o002, 0o640, 0o060):
            put(f"f{mode:o}", b"x", mode, Who(ADA.uid, 2000))
            make(f"d{mode:o}", mode | (mode & 0o444) >> 2, Who(ADA.uid, 2000))
            put(f"d{mode:o}/inner", b"y", 0o666)
        for who in (ADA, BOB, NOBODY):
            with acting(who):
                for mode in (0o000, 0o400, 0o200, 0o040, 0o020, 0o004, 0o002, 0o640, 0o060):
                    say = f"{who.uid} {mode:o} "
                    t.open(f"{say}read", f"f{mode:o}", os.O_RDONLY)
                    t.open(f"{say}write", f"f{mode:o}", os.O_WRONLY)
                    t(f"{say}truncate", lambda at=mode: os.truncate(f"f{at:o}", 1))
                    t(f"{say}list", lambda at=mode: os.listdir(f"d{at:o}"))
                    t(f"{say}inner", lambda at=mode: get(f"d{at:o}/inner"))
                    t(f"{say}create", lambda at=mode: os.mkdir(f"d{at:o}/new"))

    seen = pair.same(script)
    assert seen["1001 40 read"] == "opened", "by the supplementary group"
    assert seen["65534 40 read"] == "EACCES"
    assert seen["65534 4 read"] == "opened"
    assert seen["1000 400 write"] == "EACCES"


def test_access(pair: Pair) -> None:
    def script(t: Trace) -> None:
        for mode in (0o700, 0o070, 0o007, 0o500, 0o644):
            for question in (os.F_OK, os.R_OK, os.W_OK, os.X_OK, os.R_OK | os.W_OK):
                t(f"{mode:o} {question}", lambda at=mode, asked=question: os.access(f"f{at:o}", asked))

    def prepare(t: Trace) -> None:
        for mode in (0o700, 0o070, 0o007, 0o500, 0o644):
            put(f"f{mode:o}", b"", mode, Who(ADA.uid, 2000))
        t("prepared", lambda: True)

    pair.same(prepare)
    for who in (ROOT, ADA, BOB, NOBODY):
        seen = pair.same(script, who)
    assert (seen["7 1"], seen["70 1"], seen["644 6"]) == (True, False, False)


def test_chmod_and_chown_are_the_owners(pair: Pair) -> None:
    def script(t: Trace) -> None:
        put("mine", b"x", 0o644, ADA)
        put("roots", b"x", 0o644)
        with acting(ADA):
            t("chmod mine", lambda: os.chmod("mine", 0o600))
            t("chmod roots", lambda: os.chmod("roots", 0o600))
            t("give away", lambda: os.chown("mine", BOB.uid, -1))
            t("to my own group", lambda: os.chown("mine", -1, 2000))
            t("to a strange group", lambda: os.chown("mine", -1, 2001))
            t("chown roots", lambda: os.chown("roots", ADA.uid, -1))
            t("setgid in my group", lambda: os.chmod("mine", 0o2755))
            t("mine", lambda: os.stat("mine"))
        os.chown("mine", ADA.uid, 2001)
        with acting(ADA):
            t("setgid in a strange group", lambda: os.chmod("mine", 0o2755))
            t("mine again", lambda: os.stat("mine"))
        os.symlink("mine", "link")
        os.lchown("link", ADA.uid, ADA.gid)
        with acting(ADA):
            t("lchown", lambda: os.lchown("link", -1, 2000))
            t("lchown away", lambda: os.lchown("link", BOB.uid, -1))
        t("root gives", lambda: os.chown("mine", 5, 6))
        t("the link stays", lambda: os.lstat("link"))

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
                    t(f"{name} write", lambda to=fd: os.pwrite(to, b"!", 3))
                elif how == "truncate":
                    t(f"{name} truncate", lambda path=name: os.truncate(path, 3))
                elif how == "ftruncate":
                    t(f"{name} ftruncate", lambda to=fd: os.ftruncate(to, 3))
                elif how == "chown":
                    t(f"{name} chown", lambda path=name: os.chown(path, -1, who.gid))
                os.close(fd)
                t(name, lambda path=name: os.stat(path))

    seen = pair.same(script)
    if how == "write":
        assert bool(int(seen["f6777"][0], 8) & 0o6000) == (who == ROOT)


def test_file_capabilities_are_lost_to_a_write(pair: Pair) -> None:
    capability = bytes.fromhex("0100000202000000000000000000000000000000")

    def script(t: Trace) -> None:
        put("program", b"x", 0o777)
        t("set", lambda: os.setxattr("program", "security.capability", capability))
        t("get", lambda: os.getxattr("program", "security.capability"))
        with acting(NOBODY):
            t("not by a user", lambda: os.setxattr("program", "security.capability", capability))
            fd = os.open("program", os.O_WRONLY)
            t("write", lambda: os.write(fd, b"y"))
        t("gone", lambda: os.getxattr("program", "security.capability"))

    seen = pair.same(script)
    assert (seen["get"], seen["not by a user"], seen["gone"]) == (capability, "EPERM", "ENODATA")


def test_sticky_directories(pair: Pair) -> None:
    def script(t: Trace) -> None:
        make("tmp", 0o1777)
        for name in ("a", "b", "c"):
            put(f"tmp/{name}", b"", 0o666, ADA)
        make("tmp/d", 0o777, ADA)
        with acting(BOB):
            t("unlink", lambda: os.unlink("tmp/a"))
            t("rename from", lambda: os.rename("tmp/a", "tmp/mine"))
            os.close(os.open("tmp/new", os.O_CREAT | os.O_WRONLY))
            t("rename over", lambda: os.rename("tmp/new", "tmp/b"))
            t("rmdir", lambda: os.rmdir("tmp/d"))
            t("exchange", lambda: swap("tmp/new", "tmp/c", RENAME_EXCHANGE))
            t("own", lambda: os.unlink("tmp/new"))
        with acting(ADA):
            t("the owner", lambda: os.unlink("tmp/a"))
            t("the owner's directory", lambda: os.rmdir("tmp/d"))

    seen = pair.same(script)
    assert seen["unlink"] == seen["rename from"] == seen["rename over"] == seen["rmdir"] == seen["exchange"] == "EPERM"
    assert (seen["own"], seen["the owner"]) == (None, None)


def test_times_explicit_and_now(pair: Pair) -> None:
    """Who may write the file may touch it; an explicit time is its owner's to set."""

    def script(t: Trace) -> None:
        put("file", b"x", 0o666, ADA)
        put("closed", b"x", 0o644, ADA)
        os.symlink("file", "link")
        with acting(ADA):
            t("owner sets", lambda: os.utime("file", ns=(1_000_000_001, 2_000_000_002)))
            t("set", lambda: (os.stat("file").st_atime_ns, os.stat("file").st_mtime_ns))
            t("before 1970", lambda: os.utime("file", ns=(-5_000_000_000, 2_000_000_002)))
            t("set before 1970", lambda: os.stat("file").st_atime_ns)
            t("after 2038", lambda: os.utime("file", ns=(1, 5_000_000_000_123_456_789)))
            t("set after 2038", lambda: os.stat("file").st_mtime_ns)
        with acting(BOB):
            t("writer sets", lambda: os.utime("file", ns=(3, 4)))
            t("writer touches", lambda: os.utime("file"))
            t("touched", lambda: os.stat("file").st_mtime_ns > 10**18 and os.stat("file").st_atime_ns > 10**18)
            t("reader touches", lambda: os.utime("closed"))
            t("reader sets", lambda: os.utime("closed", ns=(3, 4)))
        t("of the link", lambda: os.utime("link", ns=(7, 8), follow_symlinks=False))
        t("the link's", lambda: os.lstat("link").st_mtime_ns)
        t("not the file's", lambda: os.stat("file").st_mtime_ns == 8)
        t("directory", lambda: (make("d"), os.utime("d", ns=(9, 10)), os.stat("d").st_mtime_ns)[2])

    seen = pair.same(script)
    assert seen["writer sets"] == "EPERM"
    assert seen["writer touches"] is None
    assert seen["reader touches"] == "EACCES"
    assert seen["set"] == (1_000_000_001, 2_000_000_002)


def test_now_is_the_kernels_now(pair: Pair) -> None:
    """A touched file is not older than one written before, nor younger than one written after."""

    def script(t: Trace) -> None:
        for _ in range(50):
            put("before")
            os.utime("before")
            first = os.stat("before").st_mtime_ns
            put("after")
            t("in order", lambda at=first: at <= os.stat("after").st_mtime_ns)

    assert pair.same(script)["in order"] is True


def test_ctime_and_mtime_progress(pair: Pair) -> None:
    def script(t: Trace) -> None:
        put("file", b"x")
        make("d")

        def moves(label: str, path: str, change: Callable[[], object], which: str = "st_ctime_ns") -> None:
            before = getattr(os.stat(path), which)

            def again() -> bool:
                change()
                return bool(getattr(os.stat(path), which) > before)

            wait_for(again, f"{label} moves {which}")  # the clock of file systems ticks every few milliseconds
            t(label, lambda: getattr(os.stat(path), which) > before)

        moves("chmod", "file", lambda: os.chmod("file", 0o600))
        moves("chown", "file", lambda: os.chown("file", 1, 1))
        moves("write", "file", lambda: put("file", b"y"), "st_mtime_ns")
        moves("write, ctime", "file", lambda: put("file", b"y"))
        moves("utime", "file", lambda: os.utime("file", ns=(1, 1)))
        moves("xattr", "file", lambda: os.setxattr("file", "user.x", b"1"))
        moves("link", "file", lambda: (os.link("file", "other"), os.unlink("other")))
        moves("rename", "file", lambda: (os.rename("file", "moved"), os.rename("moved", "file")))
        moves("create", "d", lambda: (put("d/x"), os.unlink("d/x")), "st_mtime_ns")
        os.utime("file", ns=(1, 1))
        t("reading changes atime", lambda: (get("file"), os.stat("file").st_atime_ns > 1)[1])

    seen = pair.same(script)
    assert all(value is True for value in seen.values())


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


# ---- files --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("who", [ROOT, ADA], ids=["root", "user"])
def test_open_flags(pair: Pair, who: Who) -> None:
    def script(t: Trace) -> None:
        make("d", 0o777)
        os.chdir("d")
        with acting(who):
            os.close(t.open("new", "file", os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o640))
            t.open("exclusive again", "file", os.O_CREAT | os.O_EXCL | os.O_RDWR)
            os.close(t.open("not exclusive", "file", os.O_CREAT | os.O_RDWR))
            t.open("missing", "missing", os.O_RDWR)
            t.open("missing directory", "missing/file", os.O_CREAT | os.O_RDWR)
            fd = os.open("file", os.O_WRONLY)
            t("write", lambda: os.write(fd, b"0123456789"))
            t("read what is write-only", lambda: os.read(fd, 1))
            t.open("truncate", "file", os.O_WRONLY | os.O_TRUNC)
            t("truncated", lambda: os.stat("file").st_size)
            os.symlink("file", "link")
            os.symlink("nowhere", "dangling")
            os.symlink("loop", "loop")
            t.open("a link, not followed", "link", os.O_RDONLY | os.O_NOFOLLOW)
            t.open("a link, exclusively", "dangling", os.O_CREAT | os.O_EXCL | os.O_RDWR)
            t.open("create through a link", "dangling", os.O_CREAT | os.O_RDWR)
            t.open("loop", "loop", os.O_RDONLY)
            t.open("a file as directory", "file", os.O_RDONLY | os.O_DIRECTORY)
            t.open("through a file", "file/x", os.O_RDONLY)
            t.open("a directory", ".", os.O_RDONLY | os.O_DIRECTORY)
            t.open("write a directory", ".", os.O_RDWR)
            t.open("create a directory", ".", os.O_CREAT)
            held = t.open("path", "file", os.O_PATH)
            t("fstat of path", lambda: os.fstat(held))
            t("read of path", lambda: os.read(held, 1))
            link = t.open("path of link", "link", os.O_PATH | os.O_NOFOLLOW)
            t("readlinkat of path", lambda: os.readlink("", dir_fd=link))
            os.close(t.open("synchronous", "file", os.O_WRONLY | os.O_SYNC))
            t.open("no access time", "file", os.O_RDONLY | os.O_NOATIME)
            os.close(t.open("unreadable new file", "sealed", os.O_CREAT | os.O_RDWR, 0o000))
            t.open("the sealed file", "sealed", os.O_RDONLY)
            fd_sealed = os.open("sealed2", os.O_CREAT | os.O_RDWR, 0o000)
            t("but it can be written", lambda: (os.write(fd_sealed, b"abc"), os.pread(fd_sealed, 3, 0)))

    seen = pair.same(script, umask=0)
    assert seen["exclusive again"] == "EEXIST"
    assert seen["a link, not followed"] == "ELOOP"
    assert seen["truncated"] == 0


def test_direct_io(pair: Pair) -> None:
    """A file can be opened and made with O_DIRECT; what is written arrives."""

    def script(t: Trace) -> None:
        with mmap.mmap(-1, 8192) as page, mmap.mmap(-1, 8192) as other:  # aligned, as O_DIRECT demands
            page[:] = b"direct! " * 1024
            made = t.open("create", "made", os.O_CREAT | os.O_RDWR | os.O_DIRECT)
            t("write", lambda: os.pwritev(made, [page], 0))
            t("read", lambda: os.preadv(made, [other], 4096))
            put("old", b"." * 16384)
            old = t.open("open", "old", os.O_RDWR | os.O_DIRECT)
            t("write old", lambda: os.pwritev(old, [page], 4096))
            t("read old", lambda: os.preadv(old, [other], 12288))
            t("read past the end", lambda: os.preadv(old, [other], 16384))

    seen = pair.same(script)
    assert (seen["write"], seen["read"], seen["write old"]) == (8192, 4096, 8192)


def test_reading_and_writing_at_offsets(pair: Pair) -> None:
    def script(t: Trace) -> None:
        fd = os.open("file", os.O_CREAT | os.O_RDWR)
        t("write", lambda: os.write(fd, b"0123456789"))
        t("pwrite past the end", lambda: os.pwrite(fd, b"end", 20))
        t("the hole", lambda: os.pread(fd, 100, 8))
        t("pread at the end", lambda: os.pread(fd, 10, 23))
        t("pread beyond", lambda: os.pread(fd, 10, 1 << 40))
        t("negative", lambda: os.pread(fd, 10, -1))
        t("seek", lambda: os.lseek(fd, -3, os.SEEK_END))
        t("read there", lambda: os.read(fd, 10))
        t("seek before the start", lambda: os.lseek(fd, -3, os.SEEK_SET))
        t("big write", lambda: os.pwrite(fd, bytes(range(256)) * 8192, 1))
        t("big read", lambda: os.pread(fd, 1 << 22, 0)[-300:])
        t("vector", lambda: os.pwritev(fd, [b"a" * 5000, b"b" * 5000], 4090))
        t("nothing", lambda: os.pwrite(fd, b"", 5))
        t("copy", lambda: os.copy_file_range(fd, os.open("copy", os.O_CREAT | os.O_RDWR), 5000, 0, 0))
        t("send", lambda: os.sendfile(os.open("sent", os.O_CREAT | os.O_RDWR), fd, 0, 5000))
        t("posix_fallocate", lambda: os.posix_fallocate(fd, 0, 4 << 20))
        t("fadvise", lambda: os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED))
        t("size", lambda: os.fstat(fd))

    seen = pair.same(script)
    assert seen["the hole"] == b"89" + b"\0" * 10 + b"end"


def test_sparse_files_beyond_four_gib(pair: Pair) -> None:
    def script(t: Trace) -> None:
        fd = os.open("huge", os.O_CREAT | os.O_RDWR)
        t("write", lambda: os.pwrite(fd, b"far", 5 * GIB + 7))
        t("size", lambda: os.fstat(fd).st_size)
        t("read", lambda: os.pread(fd, 100, 5 * GIB))
        t("the hole", lambda: os.pread(fd, 5, 4 * GIB))
        t("blocks are few", lambda: os.fstat(fd).st_blocks < 1000)
        t("truncate", lambda: os.truncate("huge", 4 * GIB + 1))
        t("cut", lambda: os.pread(fd, 100, 4 * GIB))
        t("grow", lambda: os.ftruncate(fd, 1 << 40))
        t("grown", lambda: os.stat("huge").st_size)
        t("too far", lambda: os.ftruncate(fd, 1 << 62))
        t("too far to write", lambda: os.pwrite(fd, b"x", (1 << 63) - 2))
        os.unlink("huge")

    seen = pair.same(script)
    assert (seen["size"], seen["grown"]) == (5 * GIB + 10, 1 << 40)


def test_truncation(pair: Pair) -> None:
    def script(t: Trace) -> None:
        put("file", b"0123456789" * 1000)
        fd = os.open("file", os.O_RDWR)
        reading = os.open("file", os.O_RDONLY)
        for size in (5000, 4096, 4095, 7, 0, 9000):
            t(f"ftruncate {size}", lambda to=size: os.ftruncate(fd, to))
            t(f"what is left {size}", lambda: os.pread(reading, 20000, 0))
            t(f"stat {size}", lambda: os.stat("file"))
        t("read-only", lambda: os.ftruncate(reading, 1))
        t("negative", lambda: os.ftruncate(fd, -1))
        t("directory", lambda: os.truncate(".", 1))
        t("missing", lambda: os.truncate("missing", 1))
        put("ro", b"abc", 0o444, ADA)
        with acting(ADA):
            t("without permission", lambda: os.truncate("ro", 1))
        put("sealed", b"abc", 0o644, ADA)
        sealed = os.open("sealed", os.O_RDWR)
        os.chmod("sealed", 0o000)
        with acting(ADA):
            t("of what was opened before", lambda: os.ftruncate(sealed, 1))

    pair.same(script)


APPENDER = """
import os, sys
fd = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND)
sys.stdin.readline()
for number in range(1000):
    os.write(fd, b"%s %d\\n" % (sys.argv[2].encode(), number))
"""


def test_two_writers_append(pair: Pair) -> None:
    put(str(pair.served / "log"))
    writers = [start_python(APPENDER, str(pair.served / "log"), name) for name in ("a", "b")]
    try:
        for writer in writers:
            assert writer.stdin is not None
            writer.stdin.write("\n")
            writer.stdin.flush()
        assert [writer.wait(60) for writer in writers] == [0, 0]
    finally:
        for writer in writers:
            end(writer)
    lines = (pair.served / "log").read_text().splitlines()
    for name in ("a", "b"):
        assert [line for line in lines if line.startswith(name)] == [f"{name} {number}" for number in range(1000)]


def test_append_and_positions(pair: Pair) -> None:
    """Linux appends even with pwrite(2); after F_SETFL has taken O_APPEND away, it no longer does."""

    def script(t: Trace) -> None:
        put("file", b"0123456789")
        fd = os.open("file", os.O_RDWR | os.O_APPEND)
        t("pwrite appends", lambda: os.pwrite(fd, b"X", 0))
        t("then", lambda: get("file"))
        fcntl.fcntl(fd, fcntl.F_SETFL, 0)
        t("pwrite in place", lambda: os.pwrite(fd, b"Y", 0))
        t("in place", lambda: get("file"))
        fcntl.fcntl(fd, fcntl.F_SETFL, os.O_APPEND)
        t("pwrite appends again", lambda: os.pwrite(fd, b"Z", 0))
        t("at last", lambda: get("file"))

    assert pair.same(script)["at last"] == b"Y123456789XZ"


def test_mapped_writes_with_an_appending_writer(pair: Pair) -> None:
    """The kernel writes dirty pages back through any open file of the inode, also one that appends."""

    def script(t: Trace) -> None:
        put("file", b"." * 8192)
        fd = os.open("file", os.O_RDWR)
        appending = os.open("file", os.O_WRONLY | os.O_APPEND)
        with mmap.mmap(fd, 8192) as view:
            view[4096:4102] = b"mapped"
            view.flush()
        t("size", lambda: os.stat("file").st_size)
        t("in place", lambda: get("file")[4096:4102])
        t("append", lambda: os.write(appending, b"more"))
        with mmap.mmap(os.open("file", os.O_RDWR | os.O_APPEND), 8192) as view:
            view[0:4] = b"also"
            view.flush()
        t("and then", lambda: get("file"))

    seen = pair.same(script)
    assert (seen["size"], seen["in place"]) == (8192, b"mapped")


def test_shared_mappings(pair: Pair) -> None:
    def script(t: Trace) -> None:
        put("file", b"." * 10000)
        fd = os.open("file", os.O_RDWR)
        with mmap.mmap(fd, 10000) as view:
            view[5000:5003] = b"abc"
            t("read sees the mapping", lambda: os.pread(fd, 5, 4999))
            os.pwrite(fd, b"xyz", 6000)
            t("the mapping sees the write", lambda: view[5999:6004])
            t("msync", lambda: view.flush())
            with mmap.mmap(os.open("file", os.O_RDONLY), 10000, prot=mmap.PROT_READ) as other:
                view[1:4] = b"two"
                t("another mapping", lambda: other[0:5])
            child = os.fork()
            if child == 0:
                view[9000:9005] = b"child"
                os._exit(0)
            os.waitpid(child, 0)
            t("another process", lambda: view[8999:9006])
        private = mmap.mmap(fd, 10000, flags=mmap.MAP_PRIVATE)
        private[0:1] = b"P"
        t("private stays private", lambda: get("file")[:5])
        os.close(fd)
        t("read-only is refused", lambda: mmap.mmap(os.open("file", os.O_RDONLY), 10000).close())
        t("content", lambda: get("file"))

    seen = pair.same(script)
    assert seen["read sees the mapping"] == b".abc."
    assert seen["another process"] == b".child."


def test_files_without_a_name(pair: Pair) -> None:
    """Everything that works on an open file works after it was removed or replaced."""

    def script(t: Trace) -> None:
        for how in ("unlink", "replace", "unlink and make again"):
            put("file", b"first")
            fd = os.open("file", os.O_RDWR)
            if how == "replace":
                put("new", b"second")
                os.rename("new", "file")
            else:
                os.unlink("file")
            if how == "unlink and make again":
                put("file", b"third")
            t(f"{how}: fstat", lambda: os.fstat(fd))
            t(f"{how}: read", lambda: os.pread(fd, 10, 0))
            t(f"{how}: write", lambda: os.pwrite(fd, b"written", 3))
            t(f"{how}: ftruncate", lambda: os.ftruncate(fd, 7))
            t(f"{how}: fchmod", lambda: os.fchmod(fd, 0o601))
            t(f"{how}: fchown", lambda: os.fchown(fd, 3, 4))
            t(f"{how}: utime", lambda: os.utime(fd, ns=(5, 6)))
            t(f"{how}: xattr", lambda: (os.setxattr(fd, "user.a", b"1"), os.getxattr(fd, "user.a")))
            t(f"{how}: fsync", lambda: os.fsync(fd))
            t(f"{how}: through /proc", lambda: os.stat(f"/proc/self/fd/{fd}"))
            t(f"{how}: reopen", lambda: os.close(os.open(f"/proc/self/fd/{fd}", os.O_RDWR)))
            t(f"{how}: link", lambda: os.link(f"/proc/self/fd/{fd}", "again", follow_symlinks=True))
            t(f"{how}: read again", lambda: os.pread(fd, 20, 0))
            t(f"{how}: fstat again", lambda: (os.fstat(fd), os.fstat(fd).st_mtime_ns))
            os.close(fd)
            t(f"{how}: what has the name", lambda: get("file"))
        make("d")
        held = os.open("d", os.O_RDONLY | os.O_DIRECTORY)
        os.rmdir("d")
        t("removed directory: fstat", lambda: os.fstat(held))
        t("removed directory: list", lambda: os.listdir(held))
        t("removed directory: create", lambda: os.open("x", os.O_CREAT | os.O_WRONLY, dir_fd=held))
        t("removed directory: mkdir", lambda: os.mkdir("x", dir_fd=held))

    seen = pair.same(script)
    assert seen["unlink: read again"] == b"firwrit"
    assert seen["unlink and make again: what has the name"] == b"third"


def test_a_thousand_open_files(pair: Pair) -> None:
    def script(t: Trace) -> None:
        opened = [os.open(f"f{number}", os.O_CREAT | os.O_RDWR) for number in range(1000)]
        for number, fd in enumerate(opened):
            os.write(fd, b"%d" % number)
        for number in range(0, 1000, 2):
            os.unlink(f"f{number}")
        t("all of them", lambda: [os.pread(fd, 10, 0) for fd in opened])
        t("their names", lambda: sorted(set(os.listdir(".")) - SPECIAL))

    assert pair.same(script, trees=False)["all of them"] == [b"%d" % number for number in range(1000)]


def test_sync_and_statvfs(pair: Pair) -> None:
    def script(t: Trace) -> None:
        make("d")
        fd = os.open("d/file", os.O_CREAT | os.O_RDWR)
        os.write(fd, b"data")
        t("fsync", lambda: os.fsync(fd))
        t("fdatasync", lambda: os.fdatasync(fd))
        t("fsync read-only", lambda: os.fsync(os.open("d/file", os.O_RDONLY)))
        directory = os.open("d", os.O_RDONLY | os.O_DIRECTORY)
        t("directory", lambda: os.fsync(directory))
        t("directory's data", lambda: os.fdatasync(directory))
        now = os.statvfs("d")
        t("statvfs", lambda: (now.f_bsize, now.f_frsize, now.f_blocks, now.f_files, now.f_namemax))
        t("fstatvfs", lambda: os.fstatvfs(fd).f_blocks)
        t("there is room", lambda: 0 < now.f_bavail <= now.f_bfree)

    assert pair.same(script)["fsync"] is None


LOCKER = """
import fcntl, os, sys
fd = os.open(sys.argv[1], os.O_RDWR)
lock = {"flock": fcntl.flock, "fcntl": fcntl.lockf}[sys.argv[2]]
for line in sys.stdin:
    try:
        lock(fd, {"lock": fcntl.LOCK_EX, "try": fcntl.LOCK_EX | fcntl.LOCK_NB, "share": fcntl.LOCK_SH | fcntl.LOCK_NB,
                  "unlock": fcntl.LOCK_UN}[line.strip()])
        print("yes", flush=True)
    except OSError as error:
        print(error.errno, flush=True)
"""


@pytest.mark.parametrize("kind", ["flock", "fcntl"])
def test_locks_between_processes(pair: Pair, kind: str) -> None:
    answers = []
    for base in (pair.served, pair.plain):
        put(str(base / "file"), b"x")
        first, second = (start_python(LOCKER, str(base / "file"), kind) for _ in range(2))
        said: list[str] = []

        def ask(process: subprocess.Popen[str], word: str, said: list[str] = said) -> None:
            assert process.stdin is not None
            assert process.stdout is not None
            print(word, file=process.stdin, flush=True)
            said.append(process.stdout.readline().strip())

        try:
            for who, word in ((first, "try"), (second, "try"), (second, "share"), (first, "share"), (second, "share"),
                              (second, "try"), (first, "unlock"), (second, "try"), (first, "try")):  # fmt: skip
                ask(who, word)
            print("lock", file=first.stdin, flush=True)  # waits for
            end(second)
            assert first.stdout is not None
            said.append(first.stdout.readline().strip())
        finally:
            end(first)
            end(second)
        answers.append(said)
    assert answers[0] == answers[1]
    assert answers[0] == ["yes", "11", "11", "yes", "yes", "11", "yes", "yes", "11", "yes"]


# ---- names --------------------------------------------------------------------------------------------------------


def test_names_of_any_bytes(pair: Pair) -> None:
    names = [bytes([byte]) for byte in range(1, 256) if byte not in b"./"]
    names += [b"...", b"a\nb", b"-rf", "Größe 文".encode(), b"\xff\xfe\x80", b"\xed\xa0\x80", b".hidden", b"x~"]

    def script(t: Trace) -> None:
        make("d")
        for name in names:
            put(b"d/" + name, name)
            os.symlink(name, b"d/link to " + name)
            os.setxattr(b"d/" + name, b"user." + name, name)
        t("listed", lambda: sorted(os.listdir(b"d")) == sorted([*names, *(b"link to " + name for name in names)]))
        t("content", lambda: [get(b"d/link to " + name) for name in names] == names)
        t("xattrs", lambda: [os.listxattr(b"d/" + name) for name in names])
        os.rename("d", b"\xff")
        t("renamed", lambda: get(b"\xff/\xff"))

    seen = pair.same(script)
    assert (seen["listed"], seen["content"], seen["renamed"]) == (True, True, b"\xff")


def test_long_names_and_deep_trees(pair: Pair) -> None:
    def script(t: Trace) -> None:
        longest, longer = b"n" * 255, b"n" * 256
        t("255", lambda: put(longest, b"x"))
        t("back", lambda: get(longest))
        t("listed", lambda: longest in os.listdir(b"."))
        for label, name in (("256", longer), ("1024", b"n" * 1024), ("1025", b"n" * 1025), ("4095", b"n" * 4095)):
            t(f"{label} create", lambda at=name: put(at))
            t(f"{label} stat", lambda at=name: os.stat(at))
            t(f"{label} mkdir", lambda at=name: os.mkdir(at))
            t(f"{label} rename", lambda at=name: os.rename(longest, at))
            t(f"{label} symlink", lambda at=name: os.symlink("x", at))
            t(f"{label} unlink", lambda at=name: os.unlink(at))
        t("empty", lambda: os.mkdir(""))
        t("long link", lambda: os.symlink("t" * 4095, "link"))
        t("long link back", lambda: os.readlink("link") == "t" * 4095)
        t("too long link", lambda: os.symlink("t" * 4096, "link2"))
        t("empty link", lambda: os.symlink("", "link3"))
        start = os.getcwd()
        for depth in range(60):
            os.mkdir("deep" * 20)
            os.chdir("deep" * 20)
            put(f"{depth}", b"%d" % depth)
        t("deep down", lambda: get("59"))
        t("up again", lambda: get("../58"))
        os.chdir(start)
        t("by path", lambda: get("/".join(["deep" * 20] * 40) + "/39"))
        t("path too long", lambda: os.stat("/".join(["deep" * 20] * 60)))
        t("remove", lambda: shutil.rmtree("deep" * 20))

    seen = pair.same(script)
    assert (seen["255"], seen["256 create"]) == (None, "ENAMETOOLONG")
    assert seen["by path"] == b"39"


def test_making_and_removing(pair: Pair) -> None:
    def script(t: Trace) -> None:
        put("file", b"x")
        t("mkdir", lambda: os.mkdir("d", 0o750))
        t("mkdir again", lambda: os.mkdir("d"))
        t("mkdir over a file", lambda: os.mkdir("file"))
        t("mkdir below a file", lambda: os.mkdir("file/d"))
        t("rmdir of a file", lambda: os.rmdir("file"))
        t("unlink of a directory", lambda: os.unlink("d"))
        put("d/inner")
        t("rmdir of a full one", lambda: os.rmdir("d"))
        t("rmdir of .", lambda: os.rmdir("d/."))
        t("rmdir of ..", lambda: os.rmdir("d/.."))
        t("unlink of nothing", lambda: os.unlink("nothing"))
        t("symlink", lambda: os.symlink("file", "link"))
        t("symlink again", lambda: os.symlink("other", "link"))
        t("readlink", lambda: os.readlink("link"))
        t("readlink of a file", lambda: os.readlink("file"))
        t("lstat", lambda: os.lstat("link"))
        t("through the link", lambda: get("link"))
        t("trailing slash", lambda: os.stat("link/"))
        t("unlink the link", lambda: os.unlink("link"))
        t("nlink of directories", lambda: (os.mkdir("d/e"), os.stat("d"))[1])
        t("rmdir", lambda: (os.rmdir("d/e"), os.stat("d"))[1])

    assert pair.same(script)["rmdir of a full one"] == "ENOTEMPTY"


@pytest.mark.parametrize("who", [ROOT, ADA], ids=["root", "user"])
def test_special_files(pair: Pair, who: Who) -> None:
    def script(t: Trace) -> None:
        make("d", 0o777)
        os.chdir("d")
        with acting(who):
            t("fifo", lambda: os.mkfifo("fifo", 0o640))
            t("regular", lambda: os.mknod("regular", stat.S_IFREG | 0o600))
            t("character device", lambda: os.mknod("null", stat.S_IFCHR | 0o666, os.makedev(1, 3)))
            t("block device", lambda: os.mknod("loop", stat.S_IFBLK | 0o660, os.makedev(259, 70000)))
            t("socket", lambda: os.mknod("made", stat.S_IFSOCK | 0o600))
            t("directory", lambda: os.mknod("dir", stat.S_IFDIR | 0o600))
            t("again", lambda: os.mkfifo("fifo"))
            for name in ("fifo", "regular", "null", "loop", "made"):
                t(f"stat {name}", lambda at=name: os.lstat(at))
            t("chmod", lambda: os.chmod("fifo", 0o600))
            t("utime", lambda: os.utime("fifo", ns=(1, 2)))
            t("xattr", lambda: os.setxattr("fifo", "user.x", b"1"))
            t("link", lambda: os.link("fifo", "fifo2"))
            t("rename", lambda: os.rename("fifo2", "fifo3"))
            t.open("nobody reads", "fifo", os.O_WRONLY | os.O_NONBLOCK)
            reader = t.open("reader", "fifo", os.O_RDONLY | os.O_NONBLOCK)
            writer = t.open("writer", "fifo3", os.O_WRONLY)
            t("through the fifo", lambda: (os.write(writer, b"hello"), os.read(reader, 10)))
            with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
                t("bind", lambda: server.bind("socket"))
                server.listen()
                t("connect", lambda: client.connect("socket"))
                client.send(b"hi")
                t("through the socket", lambda: server.accept()[0].recv(10))
                t("socket's mode", lambda: os.stat("socket"))

    seen = pair.same(script)
    assert seen["through the fifo"] == (5, b"hello")
    assert seen["character device"] == (None if who == ROOT else "EPERM")
    assert seen["through the socket"] == b"hi"


def test_hard_links(pair: Pair) -> None:
    def script(t: Trace) -> None:
        put("a", b"data", 0o644, ADA)
        make("d")
        t("link", lambda: os.link("a", "b"))
        t("link elsewhere", lambda: os.link("b", "d/c"))
        t("one inode", lambda: len({os.stat(name).st_ino for name in ("a", "b", "d/c")}))
        t("nlink", lambda: [os.stat(name).st_nlink for name in ("a", "b", "d/c")])
        t("write one", lambda: put("d/c", b"changed", 0o600, ADA))
        t("read another", lambda: (get("a"), os.stat("b")))
        t("link over", lambda: os.link("a", "d"))
        t("link a directory", lambda: os.link("d", "e"))
        t("link nothing", lambda: os.link("nothing", "e"))
        t("rename onto itself", lambda: os.rename("a", "b"))
        t("both remain", lambda: sorted(set(os.listdir(".")) - SPECIAL))
        t("unlink one", lambda: os.unlink("a"))
        t("nlink now", lambda: [os.stat(name).st_nlink for name in ("b", "d/c")])
        put("other", b"o")
        t("rename over one", lambda: os.rename("other", "b"))
        t("the last", lambda: os.stat("d/c"))
        os.symlink("d/c", "link")
        t("link a link", lambda: os.link("link", "link2", follow_symlinks=False))
        t("is a link", lambda: os.lstat("link2"))
        put("secret", b"", 0o600)
        with acting(NOBODY):
            t("not one's own", lambda: os.link("secret", "mine"))

    seen = pair.same(script)
    assert (seen["one inode"], seen["nlink"], seen["nlink now"]) == (1, [3, 3, 3], [2, 2])


def test_rename(pair: Pair) -> None:
    def script(t: Trace) -> None:
        put("file", b"file")
        put("file2", b"file2")
        make("d")
        make("full")
        put("full/x", b"x")
        os.symlink("file", "link")
        t("onto itself", lambda: os.rename("file", "file"))
        t("over a file", lambda: os.rename("file2", "file"))
        t("then", lambda: get("file"))
        t("over a link", lambda: (put("new", b"new"), os.rename("new", "link"))[1])
        t("the link is gone", lambda: os.lstat("link"))
        t("a file over a directory", lambda: os.rename("file", "d"))
        t("a directory over a file", lambda: os.rename("d", "file"))
        t("over a full directory", lambda: os.rename("d", "full"))
        t("over an empty directory", lambda: os.rename("full", "d"))
        t("moved", lambda: get("d/x"))
        t("into itself", lambda: os.rename("d", "d/below"))
        t("onto its parent", lambda: os.rename("d/x", "d"))
        t("nothing", lambda: os.rename("nothing", "x"))
        t("into nothing", lambda: os.rename("file", "nothing/x"))
        t(".", lambda: os.rename("d/.", "x"))
        t("up and down", lambda: (os.rename("d/x", "up"), os.rename("up", "d/y"), sorted(os.listdir("d")))[2])
        make("d/sub")
        t("directory to another parent", lambda: os.rename("d/sub", "sub"))
        t("nlinks", lambda: (os.stat("d"), os.stat("sub")))
        t("..", lambda: os.stat("sub/..").st_ino == os.stat(".").st_ino)
        with acting(NOBODY):
            t("without permission", lambda: os.rename("file", "stolen"))

    seen = pair.same(script)
    assert (seen["a file over a directory"], seen["into itself"]) == ("EISDIR", "EINVAL")
    assert seen["moved"] == b"x"


def test_rename_with_flags(pair: Pair) -> None:
    def script(t: Trace) -> None:
        put("a", b"a")
        put("b", b"b")
        make("d")
        put("d/inner", b"inner")
        os.symlink("a", "link")
        t("not replacing", lambda: swap("a", "b", RENAME_NOREPLACE))
        t("not replacing, free", lambda: swap("a", "c", RENAME_NOREPLACE))
        t("exchange", lambda: swap("b", "c", RENAME_EXCHANGE))
        t("contents", lambda: (get("b"), get("c")))
        t("file and directory", lambda: swap("b", "d", RENAME_EXCHANGE))
        t("contents again", lambda: (get("d"), get("b/inner")))
        t("with a link", lambda: swap("link", "c", RENAME_EXCHANGE))
        t("link and file", lambda: (os.readlink("c"), get("link")))
        t("with nothing", lambda: swap("b", "nothing", RENAME_EXCHANGE))
        t("with its parent", lambda: swap("b", "b/inner", RENAME_EXCHANGE))
        t("both flags", lambda: swap("c", "d", RENAME_EXCHANGE | RENAME_NOREPLACE))
        t("an unknown flag", lambda: swap("c", "d", 64))

    seen = pair.same(script)
    assert seen["not replacing"] == "EEXIST"
    assert seen["contents again"] == (b"a", b"inner")


# ---- directories --------------------------------------------------------------------------------------------------


class _Entry(ctypes.Structure):
    """struct dirent of 64-bit glibc."""

    _fields_ = (
        ("ino", ctypes.c_uint64),
        ("off", ctypes.c_int64),
        ("reclen", ctypes.c_uint16),
        ("type", ctypes.c_uint8),
        ("name", ctypes.c_char * 256),
    )


_libc.opendir.restype = ctypes.c_void_p
_libc.readdir.restype = ctypes.POINTER(_Entry)
_libc.telldir.restype = ctypes.c_long


class Directory:
    """opendir(3) and its like, which Python does not offer."""

    def __init__(self, path: str) -> None:
        self._stream = ctypes.c_void_p(_libc.opendir(path.encode()))
        assert self._stream.value is not None

    def read(self) -> _Entry | None:
        entry = _libc.readdir(self._stream)
        return entry.contents if entry else None

    def rest(self) -> list[tuple[bytes, int]]:
        """The names from here on, each with its inode number."""
        found = []
        while (entry := self.read()) is not None:
            found.append((entry.name, entry.ino))
        return found

    def tell(self) -> int:
        return int(_libc.telldir(self._stream))

    def seek(self, position: int) -> None:
        _libc.seekdir(self._stream, ctypes.c_long(position))

    def rewind(self) -> None:
        _libc.rewinddir(self._stream)

    def close(self) -> None:
        _libc.closedir(self._stream)


def _directory_inodes(path: str) -> dict[bytes, int]:
    directory = Directory(path)
    found = directory.rest()
    directory.close()
    return dict(found)


def test_listing_while_entries_come_and_go(pair: Pair) -> None:
    """5,000 entries: none twice, none lost that stays, whatever is made, removed and renamed meanwhile."""

    def script(t: Trace) -> None:
        directory = Directory("d")
        seen: list[bytes] = []
        removed: set[bytes] = set()
        for step in range(400):
            for _ in range(10):
                entry = directory.read()
                assert entry is not None
                seen.append(entry.name)
            os.mknod(f"d/new{step}")
            victim = f"{4999 - step}"
            os.unlink(f"d/{victim}")
            removed.add(victim.encode())
            if step % 10 == 0:
                os.rename(f"d/new{step}", f"d/renamed{step}")
        seen += [name for name, _ in directory.rest()]
        directory.close()
        staying = {b"%d" % number for number in range(5000)} - removed
        t("none twice", lambda: len(seen) == len(set(seen)))
        t("none lost", lambda: staying - set(seen))
        t("dots", lambda: {b".", b".."} <= set(seen))
        t("afterwards", lambda: sorted(os.listdir("d")))

    pair.fill("d", 5000)
    seen = pair.same(script, trees=False)
    pair.remove("d")
    assert (seen["none twice"], seen["none lost"], seen["dots"]) == (True, set(), True)


def test_positions_in_a_directory(pair: Pair) -> None:
    """telldir(3), seekdir(3) and rewinddir(3); a position stays good while entries come and go."""

    def script(t: Trace) -> None:
        directory = Directory("d")
        positions = []
        order = []
        for _ in range(1002):
            positions.append(directory.tell())
            entry = directory.read()
            assert entry is not None
            order.append(entry.name)
        t("the end", lambda: directory.read() is None)
        t("positions differ", lambda: len(set(positions)))
        for place in (1001, 0, 500, 17, 999, 1, 500):
            directory.seek(positions[place])
            entry = directory.read()
            t(f"back to {place}", lambda at=place, found=entry: found is not None and found.name == order[at])
        directory.seek(positions[300])
        for name in order[100:200]:
            if name not in (b".", b".."):
                os.unlink(b"d/" + name)
        t("the rest after removals", lambda: [name for name, _ in directory.rest()] == order[300:])
        os.mknod("d/new")
        directory.rewind()
        again = {name for name, _ in directory.rest()}
        t("rewind looks anew", lambda: b"new" in again and not (set(order[100:200]) - {b".", b".."}) & again)
        directory.close()

    pair.fill("d", 1000)
    seen = pair.same(script, trees=False)
    pair.remove("d")
    assert seen["positions differ"] == 1002
    assert seen["rewind looks anew"] is True


def test_inode_numbers_of_listings(pair: Pair) -> None:
    def script(t: Trace) -> None:
        put("file")
        make("d")
        os.symlink("x", "link")
        os.mkfifo("fifo")
        os.link("file", "file2")
        listed = _directory_inodes(".")
        names = ("file", "d", "link", "fifo", "file2")
        t("as stat says", lambda: [listed[name.encode()] == os.lstat(name).st_ino for name in names])
        t("of .", lambda: listed[b"."] == os.stat(".").st_ino)
        with os.scandir(".") as entries:
            kinds = {each.name: (each.is_file(follow_symlinks=False), each.is_dir(), each.is_symlink())
                     for each in entries if each.name not in SPECIAL}  # fmt: skip
        t("kinds", lambda: kinds)

    assert pair.same(script)["as stat says"] == [True] * 5


def test_listing_of_the_top_holds_everything(served: Served, mounts: Mounts, tmp_path: Path) -> None:
    """Before anything was looked up, and whatever is called `shared`."""
    app = make_app(tmp_path / "app")
    (app / "shared").symlink_to("/srv")
    mounts.start(app, "--no-bind")
    assert sorted(os.listdir(app)) == [".relfs", "current", "releases", "shared"]
    for mount in (served.bare, served.ordinary):
        listed = _directory_inodes(str(mount.app))
        for name in ("current", "releases", ".relfs"):
            assert name.encode() in listed
        assert listed[b"current"] == os.lstat(mount.app / "current").st_ino


def test_inode_numbers_are_stable(pair: Pair) -> None:
    """Also after the kernel has forgotten: tools that remember inode numbers (git, rsync, tar) see the same file."""
    put(str(pair.served / "file"), b"x")
    os.rename(pair.served / "file", pair.served / "remembered")
    before = os.stat(pair.served / "remembered").st_ino
    assert holds(pair.mount, "remembered")
    wait_for(lambda: drop_caches() and not holds(pair.mount, "remembered"), "the kernel forgets")
    assert os.stat(pair.served / "remembered").st_ino == before


# ---- extended attributes ------------------------------------------------------------------------------------------


def test_extended_attributes(pair: Pair) -> None:
    def script(t: Trace) -> None:
        put("file", b"x", 0o644, ADA)
        make("d")
        os.symlink("file", "link")
        for kind in ("user", "trusted", "security"):
            t(f"{kind} missing", lambda at=kind: os.getxattr("file", f"{at}.name"))
            t(f"{kind} set", lambda at=kind: os.setxattr("file", f"{at}.name", b"value\0\xff"))
            t(f"{kind} get", lambda at=kind: os.getxattr("file", f"{at}.name"))
            t(f"{kind} on a directory", lambda at=kind: os.setxattr("d", f"{at}.name", b"v"))
            t(f"{kind} on a link", lambda at=kind: os.setxattr("link", f"{at}.l", b"v", follow_symlinks=False))
        t("list", lambda: sorted(os.listxattr("file")))
        t("list of the link", lambda: sorted(os.listxattr("link", follow_symlinks=False)))
        t("create again", lambda: os.setxattr("file", "user.name", b"2", os.XATTR_CREATE))
        t("create new", lambda: os.setxattr("file", "user.new", b"2", os.XATTR_CREATE))
        t("replace nothing", lambda: os.setxattr("file", "user.nothing", b"2", os.XATTR_REPLACE))
        t("replace", lambda: os.setxattr("file", "user.name", b"3", os.XATTR_REPLACE))
        t("replaced", lambda: os.getxattr("file", "user.name"))
        t("empty", lambda: (os.setxattr("file", "user.empty", b""), os.getxattr("file", "user.empty"))[1])
        t("large", lambda: (os.setxattr("file", "user.large", b"l" * 3000), len(os.getxattr("file", "user.large")))[1])
        t("too large", lambda: os.setxattr("file", "user.huge", b"l" * 65536))
        t("far too large", lambda: os.setxattr("file", "user.huge", b"l" * 65537))
        t("long name", lambda: os.setxattr("file", "user." + "n" * 250, b"1"))
        t("too long name", lambda: os.setxattr("file", "user." + "n" * 251, b"1"))
        t("no name space", lambda: os.setxattr("file", "name", b"1"))
        t("empty name", lambda: os.setxattr("file", "user.", b"1"))
        t("remove", lambda: os.removexattr("file", "user.name"))
        t("remove again", lambda: os.removexattr("file", "user.name"))
        t("probe", lambda: probe(b"file", b"user.large", 0))
        t("too small", lambda: probe(b"file", b"user.large", 100))
        t("just right", lambda: probe(b"file", b"user.large", 3000))
        with acting(ADA):
            t("owner sets", lambda: os.setxattr("file", "user.mine", b"1"))
            t("trusted is root's", lambda: os.setxattr("file", "trusted.mine", b"1"))
            t("trusted is hidden", lambda: os.getxattr("file", "trusted.name"))
            t("security is root's", lambda: os.setxattr("file", "security.mine", b"1"))
            t("security is shown", lambda: os.getxattr("file", "security.name"))
            t("owner's list", lambda: sorted(os.listxattr("file")))
        with acting(BOB):
            t("stranger sets", lambda: os.setxattr("file", "user.theirs", b"1"))
            t("stranger gets", lambda: os.getxattr("file", "user.mine"))
            t("stranger removes", lambda: os.removexattr("file", "user.mine"))

    seen = pair.same(script)
    assert seen["user get"] == seen["trusted get"] == seen["security get"] == b"value\0\xff"
    assert (seen["user missing"], seen["too small"], seen["probe"]) == ("ENODATA", "ERANGE", 3000)
    assert (seen["create again"], seen["replace nothing"]) == ("EEXIST", "ENODATA")


def probe(path: bytes, name: bytes, size: int) -> int:
    """getxattr(2) with a buffer of `size` bytes."""
    buffer = ctypes.create_string_buffer(max(size, 1))
    found = int(_libc.getxattr(path, name, buffer, ctypes.c_size_t(size)))
    if found < 0:
        raise OSError(ctypes.get_errno(), "getxattr")
    return found


# ---- the kernel forgets, others write behind the mount ------------------------------------------------------------


def descriptors(mount: Mount) -> int:
    return len(os.listdir(f"/proc/{mount.process.pid}/fd"))


def holds(mount: Mount, name: str) -> bool:
    """Whether the daemon holds a descriptor of a file called `name`."""
    for each in os.listdir(f"/proc/{mount.process.pid}/fd"):
        with contextlib.suppress(FileNotFoundError):
            if os.readlink(f"/proc/{mount.process.pid}/fd/{each}").endswith(f"/{name}"):
                return True
    return False


def resident(mount: Mount) -> int:
    """The daemon's memory in KiB."""
    for line in Path(f"/proc/{mount.process.pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1])
    raise AssertionError("no VmRSS")


def drop_caches() -> bool:
    """Make the kernel forget what names and inodes it can."""
    Path("/proc/sys/vm/drop_caches").write_text("2\n")
    return True


def test_the_daemon_forgets_what_the_kernel_forgets(served: Served) -> None:
    mount = served.bare
    base = mount.app / "releases/41/growth"
    wait_for(lambda: drop_caches() and not holds(mount, "growth"), "the kernel has forgotten what other tests did")
    before = descriptors(mount)
    after_first = 0
    for turn in range(2):
        base.mkdir()
        for number in range(500):
            path = base / f"new{number}"
            os.mknod(path)
            os.stat(path)
            if number % 2:
                path.unlink()
        behind(served.place, mount.app, "cd releases/41/growth && seq 1 4750 | xargs touch")
        assert sum(os.stat(base / name).st_size for name in os.listdir(base)) == 0
        assert descriptors(mount) > before + 4000, "each inode that the kernel knows is a descriptor"
        wait_for(lambda: drop_caches() and descriptors(mount) <= before + 8, "the descriptors are given back")
        behind(served.place, mount.app, "rm -r releases/41/growth")
        wait_for(lambda: not base.exists(), "the mount notices")
        wait_for(lambda: drop_caches() and descriptors(mount) <= before + 8, "the descriptors are given back")
        if turn == 0:
            after_first = resident(mount)
    assert resident(mount) < after_first + 2048, "5,000 forgotten inodes have left something in memory"


def behind(place: Path, app: Path, script: str) -> None:
    """Run a shell script in the covered directory, where the mount is not."""
    other = place / "behind"
    other.mkdir(exist_ok=True)
    command = f"mount --bind {place} {other} && cd {other}/{app.name} && {script}"
    subprocess.run(["unshare", "-m", "--propagation", "private", "sh", "-ec", command], check=True)


def test_changed_behind_the_mount_without_stale_handles(served: Served) -> None:
    """Whatever others do to the covered directory, the mount shows it soon, and ESTALE and EIO never."""
    app = served.bare.app
    base = app / "releases/40/changing"
    (base / "d/e").mkdir(parents=True)
    (base / "d/e/file").write_text("first")
    held = os.open(base / "d/e/file", os.O_RDONLY)
    directory = os.open(base / "d/e", os.O_RDONLY | os.O_DIRECTORY)
    try:
        for number, change in enumerate(
            (
                "mv d gone && mkdir -p d/e && echo -n {} > d/e/file",
                "rm -r d && mkdir -p d/e && echo -n {} > d/e/file",
                "rm -r d && mkdir -p x/e && mv x d && echo -n {} > d/e/file",
                "echo -n {} > new && mv new d/e/file",
                "rm d/e/file && ln -s target d/e/file && echo -n {} > d/e/target",
                "rm -r d && mkdir -p other/e && ln -s other d && echo -n {} > other/e/file",
            )
        ):
            behind(served.place, app, f"cd releases/40/changing && {change.format(number)}")
            errors: set[int | None] = set()

            def shows(wanted: str = str(number), errors: set[int | None] = errors) -> bool:
                try:
                    os.stat(base / "d/e/file")
                    os.listdir(base / "d/e")
                    return get(str(base / "d/e/file")).decode() == wanted
                except OSError as error:
                    errors.add(error.errno)
                    return False

            wait_for(shows, f"the mount shows change {number}")
            assert errors <= {errno.ENOENT, errno.ENOTDIR}, "as a plain directory might, had it been slower"
        assert os.pread(held, 10, 0) == b"first"
        assert os.fstat(held).st_nlink in (0, 1)
        assert os.stat("file", dir_fd=directory).st_size == len("first"), "it was moved away with its directory"
    finally:
        os.close(held)
        os.close(directory)
        shutil.rmtree(base)


def test_content_changed_behind_the_mount(served: Served) -> None:
    """The kernel's cached pages do not outlive the change by more than a moment, even if a file stays as long."""
    path = served.bare.app / "releases/40/content"
    path.write_text("one")
    assert path.read_text() == "one"
    for text in ("two", "six", "longer", "x"):
        behind(served.place, served.bare.app, f"echo -n {text} > releases/40/content")
        wait_for(lambda wanted=text: path.read_text() == wanted, f"the mount shows {text}")
    path.unlink()


# ---- relfs's own names --------------------------------------------------------------------------------------------


@pytest.fixture(params=["no-bind", "ordinary"])
def top(request: pytest.FixtureRequest, served: Served) -> Iterator[Path]:
    """The top of either mount, with a `file`, a directory `d` and a link `next`; `current` leads to 40 and must do so
    at the end."""
    app = (served.bare if request.param == "no-bind" else served.ordinary).app
    (app / "file").write_text("file")
    (app / "d").mkdir()
    (app / "next").symlink_to("releases/41")
    yield app
    os.chdir("/")
    for name in set(os.listdir(app)) - SPECIAL:
        remove(app / name)
    left = os.readlink(app / "current")
    assert relfsctl(app, "switch", "40").returncode == 0  # for the tests that come after a failed one
    assert left == "releases/40"


def refusal(call: Callable[..., object]) -> str:
    """The errno that `call` ends with; "" if it succeeds."""
    try:
        call()
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return ""


def test_nothing_takes_the_name_current(top: Path) -> None:
    os.chdir(top)
    assert refusal(lambda: os.mkdir("current")) == "EEXIST"
    assert refusal(lambda: os.mkfifo("current")) == "EEXIST"
    assert refusal(lambda: os.mknod("current", stat.S_IFREG)) == "EEXIST"
    assert refusal(lambda: os.link("file", "current")) == "EEXIST"
    assert refusal(lambda: os.link("next", "current", follow_symlinks=False)) == "EEXIST"
    assert refusal(lambda: os.symlink("releases/41", "current")) == "EEXIST"
    assert refusal(lambda: os.close(os.open("current", os.O_CREAT | os.O_EXCL | os.O_WRONLY))) == "EEXIST"
    assert refusal(lambda: os.rmdir("current")) == "ENOTDIR"
    assert refusal(lambda: os.rename("d", "current")) == "ENOTDIR"
    assert refusal(lambda: swap("next", "current", RENAME_NOREPLACE)) == "EEXIST"
    assert refusal(lambda: os.rename("current", "d")) == "EISDIR"
    assert refusal(lambda: os.rename("current", "current")) == ""
    assert os.readlink("current") == "releases/40"
    assert {"d", "file", "next"} <= set(os.listdir("."))


def test_current_stays_a_link(top: Path) -> None:
    """A plain directory would allow these; here `current` can be nothing but a link with one name."""
    os.chdir(top)
    assert refusal(lambda: os.rename("file", "current")) == "EPERM"
    assert refusal(lambda: os.link("current", "other", follow_symlinks=False)) == "EPERM"
    assert refusal(lambda: swap("file", "current", RENAME_EXCHANGE)) == "EPERM"
    assert refusal(lambda: swap("current", "file", RENAME_EXCHANGE)) == "EPERM"
    assert refusal(lambda: swap("d", "current", RENAME_EXCHANGE)) in ("EPERM", "ENOTDIR")
    assert refusal(lambda: os.setxattr("current", "trusted.x", b"1", follow_symlinks=False)) == "EPERM"
    assert refusal(lambda: os.getxattr("current", "trusted.x", follow_symlinks=False)) == "ENODATA"
    assert os.listxattr("current", follow_symlinks=False) == []
    assert (top / "file").read_text() == "file"
    assert os.readlink("current") == "releases/40"


def test_exchange_with_nothing(top: Path) -> None:
    os.chdir(top)
    assert refusal(lambda: swap("nothing", "current", RENAME_EXCHANGE)) == "ENOENT"
    assert refusal(lambda: swap("current", "nothing", RENAME_EXCHANGE)) == "ENOENT"


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("releases/gone", "ENOENT"),
        ("gone", "ENOENT"),
        ("/nonexistent/path", "ENOENT"),
        ("releases/40/index.html", "ENOTDIR"),
        ("file", "ENOTDIR"),
        ("releases/40/index.html/x", "ENOTDIR"),
        ("d", "ENODATA"),
        ("next2", "ELOOP"),
    ],
)
@pytest.mark.parametrize("how", ["rename", "exchange", "remove and link"])
def test_targets_that_serve_nobody_are_refused(top: Path, text: str, answer: str, how: str) -> None:
    """And the old release stays, for everybody and on the disk."""

    def script(t: Trace) -> None:
        os.setsid()  # what is begun here ends with this process
        os.symlink("next2", "next2")
        os.symlink(text, "new")
        if how == "remove and link":
            os.unlink("current")
            t("refused", lambda: os.symlink(text, "current"))
            t("still hidden", lambda: os.path.lexists("current"))
            os.symlink("releases/40", "current")
        else:
            t("refused", lambda: swap("new", "current", RENAME_EXCHANGE if how == "exchange" else 0))
            t("the new link stays", lambda: os.readlink("new") == text)
        t("the old release stays", lambda: os.readlink("current"))

    seen = run(script, top).outcome
    assert seen["refused"] == answer
    assert seen["the old release stays"] == "releases/40"
    assert seen.get("the new link stays", True)


def test_own_directories_cannot_be_moved(top: Path) -> None:
    os.chdir(top)
    for name in ("releases", ".relfs"):
        assert refusal(lambda at=name: os.rmdir(at)) in ("EBUSY", "ENOTEMPTY")
        assert refusal(lambda at=name: os.unlink(at)) == "EISDIR"
        assert refusal(lambda at=name: os.mkdir(at)) == "EEXIST"
        assert refusal(lambda at=name: os.rename(at, "elsewhere")) == "EBUSY"
        assert refusal(lambda at=name: os.rename("d", at)) in ("EBUSY", "ENOTEMPTY")
        assert refusal(lambda at=name: os.rename("file", at)) in ("EBUSY", "EISDIR")
        assert refusal(lambda at=name: os.rename(at, "file")) in ("EBUSY", "ENOTDIR")
        assert refusal(lambda at=name: swap("d", at, RENAME_EXCHANGE)) == "EBUSY"
        assert refusal(lambda at=name: swap(at, "d", RENAME_EXCHANGE)) == "EBUSY"
        assert os.path.isdir(name)


def test_shared_may_be_a_link_or_a_file(top: Path) -> None:
    """Many hosts have `shared -> /srv/data`. It can be made, seen, replaced, renamed and removed like any link."""
    os.chdir(top)
    os.symlink("d", "shared")
    try:
        assert os.readlink("shared") == "d"
        assert "shared" in os.listdir(".")
        assert refusal(lambda: os.rmdir("shared")) == "ENOTDIR"
        os.symlink("releases", "temporary")
        assert refusal(lambda: os.rename("temporary", "shared")) == "", "as `ln -sfn` and `mv -T` do"
        assert os.readlink("shared") == "releases"
        assert refusal(lambda: os.rename("shared", "old")) == ""
        os.symlink("d", "shared")
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink("shared")
    assert not os.path.lexists("shared")
    Path("shared").write_text("a file")
    assert "shared" in os.listdir(".")
    os.unlink("shared")


def test_exchange_with_current(top: Path) -> None:
    """Both ways round; what `current` was is an ordinary link afterwards, under the other name."""
    os.chdir(top)
    for first, second, other in (("next", "current", "releases/40"), ("current", "next", "releases/41")):
        swap(first, second, RENAME_EXCHANGE)
        assert os.readlink("next") == other
        assert os.readlink("current") == ("releases/41" if other == "releases/40" else "releases/40")
        assert refusal(lambda: os.lchown("next", 3, 4)) == ""
        assert (os.lstat("next").st_uid, os.lstat("next").st_gid) == (3, 4)
        assert _directory_inodes(".")[b"next"] == os.lstat("next").st_ino


def test_what_was_current_can_be_linked_at_once(top: Path) -> None:
    """After an exchange, the kernel's name `next` must not lead to the virtual link."""
    os.chdir(top)
    swap("next", "current", RENAME_EXCHANGE)
    try:
        wait_for(lambda: refusal(lambda: os.link("next", "again", follow_symlinks=False)) == "", "it is linked", 5)
        assert (os.lstat("again").st_ino, os.lstat("again").st_nlink) == (os.lstat("next").st_ino, 2)
    finally:
        swap("current", "next", RENAME_EXCHANGE)


def test_current_moved_elsewhere(top: Path) -> None:
    """`mv current old; ln -s … current`: hidden from who does it, and from nobody else."""

    def others_see() -> str:
        return subprocess.run(["readlink", top / "current"], capture_output=True, text=True, check=True).stdout.strip()

    for where in ("old", "d/old"):

        def script(t: Trace, where: str = where) -> None:
            os.setsid()
            os.rename("current", where)
            t("moved", lambda: os.readlink(where))
            t("gone", lambda: os.path.lexists("current"))
            t("again", lambda: os.rename("current", "x"))
            t("an ordinary link", lambda: os.lchown(where, 3, 4))
            t("its owner", lambda: os.lstat(where).st_uid)
            t("no directory", lambda: os.mkdir("current"))
            t("back", lambda: os.rename(where, "current"))
            t("current", lambda: os.readlink("current"))

        seen = run(script, top).outcome
        assert (seen["moved"], seen["gone"], seen["again"]) == ("releases/40", False, "ENOENT")
        assert (seen["an ordinary link"], seen["its owner"]) == (None, 3)
        assert seen["no directory"] == "EPERM"
        assert (seen["back"], seen["current"]) == (None, "releases/40")
        assert others_see() == "releases/40"


def test_moving_current_replaces_files_but_not_directories(top: Path) -> None:
    def script(t: Trace) -> None:
        os.setsid()
        t("onto a directory", lambda: os.rename("current", "d"))
        t("not replacing", lambda: swap("current", "file", RENAME_NOREPLACE))
        t("still there", lambda: os.readlink("current"))
        t("onto a file", lambda: os.rename("current", "file"))
        t("moved", lambda: os.readlink("file"))
        os.symlink("releases/40", "current")

    seen = run(script, top).outcome
    assert (seen["onto a directory"], seen["not replacing"], seen["still there"]) == ("EISDIR", "EEXIST", "releases/40")
    assert (seen["onto a file"], seen["moved"]) == (None, "releases/40")


def test_owner_and_times_of_current(served: Served, top: Path) -> None:
    """They are the real link's, which is what is left when the mount goes."""
    os.chdir(top)
    before = os.lstat("current")
    try:
        os.lchown("current", ADA.uid, 2000)
        os.utime("current", ns=(1_000_000_007, 2_000_000_009), follow_symlinks=False)
        now = os.lstat("current")
        assert (now.st_uid, now.st_gid, now.st_mtime_ns) == (ADA.uid, 2000, 2_000_000_009)
        behind(served.place, top, '[ "$(stat -c %u:%g:%Y current)" = 1000:2000:2 ]')

        def script(t: Trace) -> None:
            t("chown", lambda: os.lchown("current", BOB.uid, -1))
            t("own group", lambda: os.lchown("current", -1, ADA.gid))
            t("times", lambda: os.utime("current", ns=(5, 6), follow_symlinks=False))
            t("now", lambda: os.utime("current", follow_symlinks=False))

        plain = served.place / "plain link"
        plain.mkdir()
        (plain / "current").symlink_to("releases/40")
        os.lchown(plain / "current", ADA.uid, 2000)
        for who, refused in ((BOB, "EPERM"), (ADA, None)):
            here = run(script, top, who).steps
            assert here == run(script, plain, who).steps
            assert ("times", refused) in here
        shutil.rmtree(plain)
        assert stat.S_IMODE(os.lstat("current").st_mode) == 0o777
        assert os.lstat("current").st_size == len("releases/40")
    finally:
        os.lchown("current", before.st_uid, before.st_gid)


def test_strangers_cannot_replace_current(top: Path) -> None:
    def script(t: Trace) -> None:
        os.setsid()
        t("unlink", lambda: os.unlink("current"))
        t("rename", lambda: os.rename("next", "current"))
        t("exchange", lambda: swap("next", "current", RENAME_EXCHANGE))
        t("move", lambda: os.rename("current", "old"))

    assert set(run(script, top, NOBODY).outcome.values()) == {"EACCES"}


def test_temporary_names_are_hidden(served: Served, top: Path) -> None:
    os.chdir(top)
    behind(served.place, top, "ln -s releases/42 .current.relfs; touch .current.relfs.123")
    for name in (".current.relfs", ".current.relfs.123", ".current.relfs.new"):
        assert refusal(lambda at=name: os.lstat(at)) == "ENOENT"
        assert refusal(lambda at=name: os.unlink(at)) == "ENOENT"
        assert refusal(lambda at=name: os.rename(at, "x")) == "ENOENT"
        assert refusal(lambda at=name: os.mkdir(at)) == "EPERM"
        assert refusal(lambda at=name: os.mkfifo(at)) == "EPERM"
        assert refusal(lambda at=name: os.symlink("x", at)) == "EPERM"
        assert refusal(lambda at=name: os.link("file", at)) == "EPERM"
        assert refusal(lambda at=name: os.rename("file", at)) == "EBUSY"
        assert refusal(lambda at=name: os.close(os.open(at, os.O_CREAT | os.O_WRONLY))) == "EPERM"
        assert name not in os.listdir(".")
    os.mkdir("d/.current.relfs")
    assert os.listdir("d") == [".current.relfs"], "below the top it is a name like any other"
    behind(served.place, top, "rm -f .current.relfs .current.relfs.123")


# ---- anything, in any order ---------------------------------------------------------------------------------------


STEPS = 400
NAMES = ("a", "b", "c", "d")


class Chaos:
    """Random operations on few names, so that they meet. What is chosen depends on the seed alone, never on results."""

    def __init__(self, seed: int, t: Trace) -> None:
        self._random = random.Random(seed)
        self._t = t
        self._open: dict[int, int] = {}

    def path(self) -> str:
        return "/".join(self._random.choices(NAMES, k=self._random.choice((1, 1, 2, 2, 3))))

    def step(self) -> None:
        operations = (self.make_file, self.make_directory, self.make_link, self.make_fifo, self.hard_link, self.remove,
                      self.remove_directory, self.rename, self.rename, self.exchange, self.open, self.write, self.read,
                      self.cut, self.close, self.mode, self.owner, self.look, self.list, self.times, self.attribute,
                      self.map)  # fmt: skip
        operation = self._random.choice(operations)
        if self._random.random() < 0.3:
            with acting(self._random.choice((ADA, NOBODY))):
                operation()
        else:
            operation()

    def make_file(self) -> None:
        path, flags, mode = self.path(), self._random.choice((0, os.O_EXCL, os.O_TRUNC)), self._random.choice(
            (0o666, 0o640, 0o777)
        )  # fmt: skip
        fd = self._t.open(f"create {path}", path, os.O_CREAT | os.O_RDWR | os.O_NONBLOCK | flags, mode)
        data = bytes([self._random.randrange(256)]) * self._random.randrange(10000)
        if fd >= 0:
            self._t("fill", lambda: os.write(fd, data))
            os.close(fd)

    def make_directory(self) -> None:
        path, mode = self.path(), self._random.choice((0o777, 0o755, 0o1777, 0o2775))
        self._t(f"mkdir {path}", lambda: os.mkdir(path, mode))
        self._t(f"chmod {path}", lambda: os.chmod(path, mode))

    def make_link(self) -> None:
        path, text = self.path(), self._random.choice((self.path(), "../a", "", "b" * 300))
        self._t(f"symlink {path}", lambda: os.symlink(text, path))
        self._t(f"readlink {path}", lambda: os.readlink(path))

    def make_fifo(self) -> None:
        path = self.path()
        self._t(f"mkfifo {path}", lambda: os.mkfifo(path, 0o664))

    def hard_link(self) -> None:
        old, new = self.path(), self.path()
        self._t(f"link {old} {new}", lambda: os.link(old, new, follow_symlinks=False))

    def remove(self) -> None:
        path = self.path()
        self._t(f"unlink {path}", lambda: os.unlink(path))

    def remove_directory(self) -> None:
        path = self.path()
        self._t(f"rmdir {path}", lambda: os.rmdir(path))

    def rename(self) -> None:
        old, new = self.path(), self.path()
        flags = self._random.choice((0, 0, RENAME_NOREPLACE))
        self._t(f"rename {old} {new} {flags}", lambda: swap(old, new, flags))

    def exchange(self) -> None:
        old, new = self.path(), self.path()
        self._t(f"exchange {old} {new}", lambda: swap(old, new, RENAME_EXCHANGE))

    def open(self) -> None:
        slot, path = self._random.randrange(4), self.path()
        flags = self._random.choice((os.O_RDONLY, os.O_RDWR, os.O_WRONLY, os.O_RDWR | os.O_APPEND, os.O_PATH))
        self._shut(slot)
        fd = self._t.open(f"open {path} {flags}", path, flags | os.O_NONBLOCK)
        if fd >= 0:
            self._open[slot] = fd

    def _shut(self, slot: int) -> None:
        if slot in self._open:
            os.close(self._open.pop(slot))

    def close(self) -> None:
        self._shut(self._random.randrange(4))

    def write(self) -> None:
        slot, at, size = self._random.randrange(4), self._random.randrange(20000), self._random.randrange(9000)
        data = bytes([self._random.randrange(256)]) * size
        if slot in self._open:
            self._t(f"write {size} at {at}", lambda: os.pwrite(self._open[slot], data, at))
            self._t("fstat", lambda: os.fstat(self._open[slot]))

    def read(self) -> None:
        slot, at = self._random.randrange(4), self._random.randrange(20000)
        if slot in self._open:
            self._t(f"read at {at}", lambda: os.pread(self._open[slot], 5000, at))

    def cut(self) -> None:
        slot, size, path = self._random.randrange(4), self._random.randrange(20000), self.path()
        self._t(f"truncate {path} {size}", lambda: os.truncate(path, size))
        if slot in self._open:
            self._t(f"ftruncate {size}", lambda: os.ftruncate(self._open[slot], size // 2))

    def map(self) -> None:
        slot, at = self._random.randrange(4), self._random.randrange(4000)
        letter = bytes([self._random.randrange(256)])

        def scribble() -> bytes:
            with mmap.mmap(self._open[slot], 4096) as view:
                view[at : at + 10] = letter * 10
                view.flush()
                return bytes(view)

        status = os.fstat(self._open[slot]) if slot in self._open else None
        if status is not None and stat.S_ISREG(status.st_mode) and status.st_size >= 4096:
            self._t(f"map {at}", scribble)

    def mode(self) -> None:
        path, mode = self.path(), self._random.choice((0o777, 0o644, 0o600, 0o4755, 0o2755, 0o6777, 0o444))
        self._t(f"chmod {path} {mode:o}", lambda: os.chmod(path, mode))

    def owner(self) -> None:
        path, uid, gid = self.path(), self._random.choice((-1, 0, ADA.uid)), self._random.choice((-1, 0, 2000, 2001))
        self._t(f"chown {path} {uid} {gid}", lambda: os.lchown(path, uid, gid))

    def look(self) -> None:
        path = self.path()
        self._t(f"lstat {path}", lambda: os.lstat(path))
        self._t(f"stat {path}", lambda: os.stat(path))

    def list(self) -> None:
        path = self.path()
        self._t(f"list {path}", lambda: sorted(os.listdir(path)))

    def times(self) -> None:
        path, moment = self.path(), self._random.randrange(1 << 60)
        self._t(f"utime {path}", lambda: os.utime(path, ns=(moment, moment + 1)))
        self._t(f"times {path}", lambda: os.stat(path).st_mtime_ns == moment + 1)

    def attribute(self) -> None:
        path, name = self.path(), f"user.{self._random.choice(NAMES)}"
        value = bytes([self._random.randrange(256)]) * self._random.randrange(500)
        act = self._random.choice(("set", "get", "remove"))
        if act == "set":
            self._t(f"setxattr {path} {name}", lambda: os.setxattr(path, name, value))
        elif act == "get":
            self._t(f"getxattr {path} {name}", lambda: os.getxattr(path, name))
        else:
            self._t(f"removexattr {path} {name}", lambda: os.removexattr(path, name))
        self._t(f"listxattr {path}", lambda: sorted(os.listxattr(path)))


@pytest.mark.parametrize("seed", range(6))
def test_anything_in_any_order(pair: Pair, seed: int) -> None:
    def script(t: Trace) -> None:
        make("base", 0o777)
        os.chdir("base")
        chaos = Chaos(seed, t)
        for _ in range(STEPS):
            chaos.step()

    here, natively = run(script, pair.served), run(script, pair.plain)
    for number, (one, other) in enumerate(zip(here.steps, natively.steps, strict=True)):
        assert one == other, f"step {number}, after {[label for label, _ in here.steps[max(0, number - 8) : number]]}"
    assert tree(pair.served, SPECIAL) == tree(pair.plain)
    assert len({label.split()[0] for label, what in natively.steps if not isinstance(what, str)}) >= 15


def test_the_comparison_can_fail(tmp_path: Path) -> None:
    """Two plain directories with different content are told apart, by their trees and by what a script sees."""
    one, other = tmp_path / "one", tmp_path / "other"
    for path in (one, other):
        path.mkdir()
    (other / "file").write_text("x")
    assert tree(one) != tree(other)

    def script(t: Trace) -> None:
        t.open("open", "file", os.O_RDONLY)

    assert run(script, one).steps == [("open", "ENOENT")]
    assert run(script, other).steps == [("open", "opened")]
