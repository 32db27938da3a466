"""Names through a mount: made, linked, renamed and removed, whatever they are made of. As on a plain directory."""

from __future__ import annotations

import os
import shutil
import socket
import stat

import pytest
from served import SPECIAL, Pair
from sidebyside import ADA, NOBODY, ROOT, Trace, Who, acting, get, make, put, swap

from relfs.libc import RENAME_EXCHANGE, RENAME_NOREPLACE


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
        t("renamed", get, b"\xff/\xff")

    seen = pair.same(script)
    assert (seen["listed"], seen["content"], seen["renamed"]) == (True, True, b"\xff")


def test_long_names_and_deep_trees(pair: Pair) -> None:
    def script(t: Trace) -> None:
        longest, longer = b"n" * 255, b"n" * 256
        t("255", put, longest, b"x")
        t("back", get, longest)
        t("listed", lambda: longest in os.listdir(b"."))
        for label, name in (("256", longer), ("1024", b"n" * 1024), ("1025", b"n" * 1025), ("4095", b"n" * 4095)):
            t(f"{label} create", put, name)
            t(f"{label} stat", os.stat, name)
            t(f"{label} mkdir", os.mkdir, name)
            t(f"{label} rename", os.rename, longest, name)
            t(f"{label} symlink", os.symlink, "x", name)
            t(f"{label} unlink", os.unlink, name)
        t("empty", os.mkdir, "")
        t("long link", os.symlink, "t" * 4095, "link")
        t("long link back", lambda: os.readlink("link") == "t" * 4095)
        t("too long link", os.symlink, "t" * 4096, "link2")
        t("empty link", os.symlink, "", "link3")
        start = os.getcwd()
        for depth in range(60):
            os.mkdir("deep" * 20)
            os.chdir("deep" * 20)
            put(f"{depth}", b"%d" % depth)
        t("deep down", get, "59")
        t("up again", get, "../58")
        os.chdir(start)
        t("by path", lambda: get("/".join(["deep" * 20] * 40) + "/39"))
        t("path too long", lambda: os.stat("/".join(["deep" * 20] * 60)))
        t("remove", shutil.rmtree, "deep" * 20)

    seen = pair.same(script)
    assert (seen["255"], seen["256 create"]) == (None, "ENAMETOOLONG")
    assert seen["by path"] == b"39"


def test_making_and_removing(pair: Pair) -> None:
    def script(t: Trace) -> None:
        put("file", b"x")
        t("mkdir", os.mkdir, "d", 0o750)
        t("mkdir again", os.mkdir, "d")
        t("mkdir over a file", os.mkdir, "file")
        t("mkdir below a file", os.mkdir, "file/d")
        t("rmdir of a file", os.rmdir, "file")
        t("unlink of a directory", os.unlink, "d")
        put("d/inner")
        t("rmdir of a full one", os.rmdir, "d")
        t("rmdir of .", os.rmdir, "d/.")
        t("rmdir of ..", os.rmdir, "d/..")
        t("unlink of nothing", os.unlink, "nothing")
        t("symlink", os.symlink, "file", "link")
        t("symlink again", os.symlink, "other", "link")
        t("readlink", os.readlink, "link")
        t("readlink of a file", os.readlink, "file")
        t("lstat", os.lstat, "link")
        t("through the link", get, "link")
        t("trailing slash", os.stat, "link/")
        t("unlink the link", os.unlink, "link")
        t("mkdir below", os.mkdir, "d/e")
        t("nlink of directories", os.stat, "d")
        t("rmdir", os.rmdir, "d/e")
        t("nlink again", os.stat, "d")

    assert pair.same(script)["rmdir of a full one"] == "ENOTEMPTY"


@pytest.mark.parametrize("who", [ROOT, ADA], ids=["root", "user"])
def test_special_files(pair: Pair, who: Who) -> None:
    def script(t: Trace) -> None:
        make("d", 0o777)
        os.chdir("d")
        with acting(who):
            t("fifo", os.mkfifo, "fifo", 0o640)
            t("regular", os.mknod, "regular", stat.S_IFREG | 0o600)
            t("character device", lambda: os.mknod("null", stat.S_IFCHR | 0o666, os.makedev(1, 3)))
            t("block device", lambda: os.mknod("loop", stat.S_IFBLK | 0o660, os.makedev(259, 70000)))
            t("socket", os.mknod, "made", stat.S_IFSOCK | 0o600)
            t("directory", os.mknod, "dir", stat.S_IFDIR | 0o600)
            t("again", os.mkfifo, "fifo")
            for name in ("fifo", "regular", "null", "loop", "made"):
                t(f"stat {name}", os.lstat, name)
            t("chmod", os.chmod, "fifo", 0o600)
            t("utime", os.utime, "fifo", ns=(1, 2))
            t("xattr", os.setxattr, "fifo", "user.x", b"1")
            t("link", os.link, "fifo", "fifo2")
            t("rename", os.rename, "fifo2", "fifo3")
            t.open("nobody reads", "fifo", os.O_WRONLY | os.O_NONBLOCK)
            reader = t.open("reader", "fifo", os.O_RDONLY | os.O_NONBLOCK)
            writer = t.open("writer", "fifo3", os.O_WRONLY)
            t("through the fifo", lambda: (os.write(writer, b"hello"), os.read(reader, 10)))
            with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
                t("bind", server.bind, "socket")
                server.listen()
                t("connect", client.connect, "socket")
                client.send(b"hi")
                t("through the socket", lambda: server.accept()[0].recv(10))
                t("socket's mode", os.stat, "socket")

    seen = pair.same(script)
    assert seen["through the fifo"] == (5, b"hello")
    assert seen["character device"] == (None if who == ROOT else "EPERM")
    assert seen["through the socket"] == b"hi"


def test_hard_links(pair: Pair) -> None:
    def script(t: Trace) -> None:
        put("a", b"data", 0o644, ADA)
        make("d")
        t("link", os.link, "a", "b")
        t("link elsewhere", os.link, "b", "d/c")
        t("one inode", lambda: len({os.stat(name).st_ino for name in ("a", "b", "d/c")}))
        t("nlink", lambda: [os.stat(name).st_nlink for name in ("a", "b", "d/c")])
        t("write one", put, "d/c", b"changed", 0o600, ADA)
        t("read another", lambda: (get("a"), os.stat("b")))
        t("link over", os.link, "a", "d")
        t("link a directory", os.link, "d", "e")
        t("link nothing", os.link, "nothing", "e")
        t("rename onto itself", os.rename, "a", "b")
        t("both remain", lambda: sorted(set(os.listdir(".")) - SPECIAL))
        t("unlink one", os.unlink, "a")
        t("nlink now", lambda: [os.stat(name).st_nlink for name in ("b", "d/c")])
        put("other", b"o")
        t("rename over one", os.rename, "other", "b")
        t("the last", os.stat, "d/c")
        os.symlink("d/c", "link")
        t("link a link", os.link, "link", "link2", follow_symlinks=False)
        t("is a link", os.lstat, "link2")
        put("secret", b"", 0o600)
        with acting(NOBODY):
            t("not one's own", os.link, "secret", "mine")

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
        t("onto itself", os.rename, "file", "file")
        t("over a file", os.rename, "file2", "file")
        t("then", get, "file")
        put("new", b"new")
        t("over a link", os.rename, "new", "link")
        t("the link is gone", os.lstat, "link")
        t("a file over a directory", os.rename, "file", "d")
        t("a directory over a file", os.rename, "d", "file")
        t("over a full directory", os.rename, "d", "full")
        t("over an empty directory", os.rename, "full", "d")
        t("moved", get, "d/x")
        t("into itself", os.rename, "d", "d/below")
        t("onto its parent", os.rename, "d/x", "d")
        t("nothing", os.rename, "nothing", "x")
        t("into nothing", os.rename, "file", "nothing/x")
        t(".", os.rename, "d/.", "x")
        t("up", os.rename, "d/x", "up")
        t("down", os.rename, "up", "d/y")
        t("up and down", lambda: sorted(os.listdir("d")))
        make("d/sub")
        t("directory to another parent", os.rename, "d/sub", "sub")
        t("nlinks", lambda: (os.stat("d"), os.stat("sub")))
        t("..", lambda: os.stat("sub/..").st_ino == os.stat(".").st_ino)
        with acting(NOBODY):
            t("without permission", os.rename, "file", "stolen")

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
        t("not replacing", swap, "a", "b", RENAME_NOREPLACE)
        t("not replacing, free", swap, "a", "c", RENAME_NOREPLACE)
        t("exchange", swap, "b", "c", RENAME_EXCHANGE)
        t("contents", lambda: (get("b"), get("c")))
        t("file and directory", swap, "b", "d", RENAME_EXCHANGE)
        t("contents again", lambda: (get("d"), get("b/inner")))
        t("with a link", swap, "link", "c", RENAME_EXCHANGE)
        t("link and file", lambda: (os.readlink("c"), get("link")))
        t("with nothing", swap, "b", "nothing", RENAME_EXCHANGE)
        t("with its parent", swap, "b", "b/inner", RENAME_EXCHANGE)
        t("both flags", swap, "c", "d", RENAME_EXCHANGE | RENAME_NOREPLACE)
        t("an unknown flag", swap, "c", "d", 64)

    seen = pair.same(script)
    assert seen["not replacing"] == "EEXIST"
    assert seen["contents again"] == (b"a", b"inner")
