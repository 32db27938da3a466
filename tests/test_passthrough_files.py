"""Open files through a mount: flags, offsets, mappings, locks, files without a name. As on a plain directory."""

from __future__ import annotations

import fcntl
import mmap
import os
import subprocess
from pathlib import Path

import pytest
from sandbox import end, start_python
from served import SPECIAL, Pair
from sidebyside import ADA, GIB, ROOT, Trace, Who, acting, get, make, put


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
            t("write", os.write, fd, b"0123456789")
            t("read what is write-only", os.read, fd, 1)
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
            t("fstat of path", os.fstat, held)
            t("read of path", os.read, held, 1)
            link = t.open("path of link", "link", os.O_PATH | os.O_NOFOLLOW)
            t("readlinkat of path", os.readlink, "", dir_fd=link)
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
            t("write", os.pwritev, made, [page], 0)
            t("read", os.preadv, made, [other], 4096)
            put("old", b"." * 16384)
            old = t.open("open", "old", os.O_RDWR | os.O_DIRECT)
            t("write old", os.pwritev, old, [page], 4096)
            t("read old", os.preadv, old, [other], 12288)
            t("read past the end", os.preadv, old, [other], 16384)

    seen = pair.same(script)
    assert (seen["write"], seen["read"], seen["write old"]) == (8192, 4096, 8192)


def test_reading_and_writing_at_offsets(pair: Pair) -> None:
    def script(t: Trace) -> None:
        fd = os.open("file", os.O_CREAT | os.O_RDWR)
        t("write", os.write, fd, b"0123456789")
        t("pwrite past the end", os.pwrite, fd, b"end", 20)
        t("the hole", os.pread, fd, 100, 8)
        t("pread at the end", os.pread, fd, 10, 23)
        t("pread beyond", os.pread, fd, 10, 1 << 40)
        t("negative", os.pread, fd, 10, -1)
        t("seek", os.lseek, fd, -3, os.SEEK_END)
        t("read there", os.read, fd, 10)
        t("seek before the start", os.lseek, fd, -3, os.SEEK_SET)
        t("big write", lambda: os.pwrite(fd, bytes(range(256)) * 8192, 1))
        t("big read", lambda: os.pread(fd, 1 << 22, 0)[-300:])
        t("vector", os.pwritev, fd, [b"a" * 5000, b"b" * 5000], 4090)
        t("nothing", os.pwrite, fd, b"", 5)
        t("copy", lambda: os.copy_file_range(fd, os.open("copy", os.O_CREAT | os.O_RDWR), 5000, 0, 0))
        t("send", lambda: os.sendfile(os.open("sent", os.O_CREAT | os.O_RDWR), fd, 0, 5000))
        t("posix_fallocate", os.posix_fallocate, fd, 0, 4 << 20)
        t("fadvise", os.posix_fadvise, fd, 0, 0, os.POSIX_FADV_DONTNEED)
        t("size", os.fstat, fd)

    seen = pair.same(script)
    assert seen["the hole"] == b"89" + b"\0" * 10 + b"end"


def test_sparse_files_beyond_four_gib(pair: Pair) -> None:
    def script(t: Trace) -> None:
        fd = os.open("huge", os.O_CREAT | os.O_RDWR)
        t("write", os.pwrite, fd, b"far", 5 * GIB + 7)
        t("size", lambda: os.fstat(fd).st_size)
        t("read", os.pread, fd, 100, 5 * GIB)
        t("the hole", os.pread, fd, 5, 4 * GIB)
        t("blocks are few", lambda: os.fstat(fd).st_blocks < 1000)
        t("truncate", os.truncate, "huge", 4 * GIB + 1)
        t("cut", os.pread, fd, 100, 4 * GIB)
        t("grow", os.ftruncate, fd, 1 << 40)
        t("grown", lambda: os.stat("huge").st_size)
        t("too far", os.ftruncate, fd, 1 << 62)
        t("too far to write", os.pwrite, fd, b"x", (1 << 63) - 2)
        os.unlink("huge")

    seen = pair.same(script)
    assert (seen["size"], seen["grown"]) == (5 * GIB + 10, 1 << 40)


def test_truncation(pair: Pair) -> None:
    def script(t: Trace) -> None:
        put("file", b"0123456789" * 1000)
        fd = os.open("file", os.O_RDWR)
        reading = os.open("file", os.O_RDONLY)
        for size in (5000, 4096, 4095, 7, 0, 9000):
            t(f"ftruncate {size}", os.ftruncate, fd, size)
            t(f"what is left {size}", os.pread, reading, 20000, 0)
            t(f"stat {size}", os.stat, "file")
        t("read-only", os.ftruncate, reading, 1)
        t("negative", os.ftruncate, fd, -1)
        t("directory", os.truncate, ".", 1)
        t("missing", os.truncate, "missing", 1)
        put("ro", b"abc", 0o444, ADA)
        with acting(ADA):
            t("without permission", os.truncate, "ro", 1)
        put("sealed", b"abc", 0o644, ADA)
        sealed = os.open("sealed", os.O_RDWR)
        os.chmod("sealed", 0o000)
        with acting(ADA):
            t("of what was opened before", os.ftruncate, sealed, 1)

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
        t("pwrite appends", os.pwrite, fd, b"X", 0)
        t("then", get, "file")
        fcntl.fcntl(fd, fcntl.F_SETFL, 0)
        t("pwrite in place", os.pwrite, fd, b"Y", 0)
        t("in place", get, "file")
        fcntl.fcntl(fd, fcntl.F_SETFL, os.O_APPEND)
        t("pwrite appends again", os.pwrite, fd, b"Z", 0)
        t("at last", get, "file")

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
        t("append", os.write, appending, b"more")
        with mmap.mmap(os.open("file", os.O_RDWR | os.O_APPEND), 8192) as view:
            view[0:4] = b"also"
            view.flush()
        t("and then", get, "file")

    seen = pair.same(script)
    assert (seen["size"], seen["in place"]) == (8192, b"mapped")


def test_shared_mappings(pair: Pair) -> None:
    def script(t: Trace) -> None:
        put("file", b"." * 10000)
        fd = os.open("file", os.O_RDWR)
        with mmap.mmap(fd, 10000) as view:
            view[5000:5003] = b"abc"
            t("read sees the mapping", os.pread, fd, 5, 4999)
            os.pwrite(fd, b"xyz", 6000)
            t("the mapping sees the write", lambda: view[5999:6004])
            t("msync", view.flush)
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
        t("content", get, "file")

    seen = pair.same(script)
    assert seen["read sees the mapping"] == b".abc."
    assert seen["another process"] == b".child."


def _use(t: Trace, how: str, fd: int) -> None:
    """Everything that works on an open file."""
    t(f"{how}: fstat", os.fstat, fd)
    t(f"{how}: read", os.pread, fd, 10, 0)
    t(f"{how}: write", os.pwrite, fd, b"written", 3)
    t(f"{how}: ftruncate", os.ftruncate, fd, 7)
    t(f"{how}: fchmod", os.fchmod, fd, 0o601)
    t(f"{how}: fchown", os.fchown, fd, 3, 4)
    t(f"{how}: utime", os.utime, fd, ns=(5, 6))
    t(f"{how}: set xattr", os.setxattr, fd, "user.a", b"1")
    t(f"{how}: xattr", os.getxattr, fd, "user.a")
    t(f"{how}: fsync", os.fsync, fd)
    t(f"{how}: through /proc", os.stat, f"/proc/self/fd/{fd}")
    t(f"{how}: reopen", lambda: os.close(os.open(f"/proc/self/fd/{fd}", os.O_RDWR)))
    t(f"{how}: link", os.link, f"/proc/self/fd/{fd}", "again", follow_symlinks=True)
    t(f"{how}: read again", os.pread, fd, 20, 0)
    t(f"{how}: fstat again", lambda: (os.fstat(fd), os.fstat(fd).st_mtime_ns))


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
            _use(t, how, fd)
            os.close(fd)
            t(f"{how}: what has the name", get, "file")
        make("d")
        held = os.open("d", os.O_RDONLY | os.O_DIRECTORY)
        os.rmdir("d")
        t("removed directory: fstat", os.fstat, held)
        t("removed directory: list", os.listdir, held)
        t("removed directory: create", os.open, "x", os.O_CREAT | os.O_WRONLY, dir_fd=held)
        t("removed directory: mkdir", os.mkdir, "x", dir_fd=held)

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
        t("fsync", os.fsync, fd)
        t("fdatasync", os.fdatasync, fd)
        t("fsync read-only", lambda: os.fsync(os.open("d/file", os.O_RDONLY)))
        directory = os.open("d", os.O_RDONLY | os.O_DIRECTORY)
        t("directory", os.fsync, directory)
        t("directory's data", os.fdatasync, directory)
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


def _ask(process: subprocess.Popen[str], word: str) -> str:
    print(word, file=process.stdin, flush=True)
    return _answer(process)


def _answer(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def _lock_in_turn(path: Path, kind: str) -> list[str]:
    """What two processes are told that lock one file in turn."""
    put(str(path), b"x")
    first, second = (start_python(LOCKER, str(path), kind) for _ in range(2))
    asked = ((first, "try"), (second, "try"), (second, "share"), (first, "share"), (second, "share"), (second, "try"),
             (first, "unlock"), (second, "try"), (first, "try"))  # fmt: skip
    try:
        said = [_ask(who, word) for who, word in asked]
        print("lock", file=first.stdin, flush=True)  # waits for
        end(second)
        return [*said, _answer(first)]
    finally:
        end(first)
        end(second)


@pytest.mark.parametrize("kind", ["flock", "fcntl"])
def test_locks_between_processes(pair: Pair, kind: str) -> None:
    here, natively = (_lock_in_turn(base / "file", kind) for base in (pair.served, pair.plain))
    assert here == natively
    assert here == ["yes", "11", "11", "yes", "yes", "11", "yes", "yes", "11", "yes"]
    trace = Trace()
    for answer in natively:
        trace.note("lock", answer)
    pair.compared(trace)
