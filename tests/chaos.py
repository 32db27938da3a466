"""Random operations on few names, for a script that runs in two directories. What is compared is not decided here."""

from __future__ import annotations

import mmap
import os
import random
import stat
from collections.abc import Sequence

from sidebyside import ACCESS, ADA, DEFAULT, NOBODY, Trace, Who, access_list, acting, swap

from relfs.libc import RENAME_EXCHANGE, RENAME_NOREPLACE

NAMES = ("a", "b", "c", "d")


class Chaos:
    """Random operations on few names, so that they meet. What is chosen depends on the seed alone, never on results."""

    def __init__(self, seed: int, t: Trace, users: Sequence[Who] = (ADA, NOBODY), *, lists: bool = False) -> None:
        """`users` do some of it instead of root; `lists`: access control lists are set, too."""
        self._users = users
        self._lists = lists
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
        operation = self._random.choice((*operations, self.access_list) if self._lists else operations)
        if self._users and self._random.random() < 0.3:
            with acting(self._random.choice(self._users)):
                operation()
        else:
            operation()

    def make_file(self) -> None:
        path, flags = self.path(), self._random.choice((0, os.O_EXCL, os.O_TRUNC))
        mode = self._random.choice((0o666, 0o640, 0o777))
        fd = self._t.open(f"create {path}", path, os.O_CREAT | os.O_RDWR | os.O_NONBLOCK | flags, mode)
        data = bytes([self._random.randrange(256)]) * self._random.randrange(10000)
        if fd >= 0:
            self._t("fill", os.write, fd, data)
            os.close(fd)

    def make_directory(self) -> None:
        path, mode = self.path(), self._random.choice((0o777, 0o755, 0o1777, 0o2775))
        self._t(f"mkdir {path}", os.mkdir, path, mode)
        self._t(f"chmod {path}", os.chmod, path, mode)

    def make_link(self) -> None:
        path, text = self.path(), self._random.choice((self.path(), "../a", "", "b" * 300))
        self._t(f"symlink {path}", os.symlink, text, path)
        self._t(f"readlink {path}", os.readlink, path)

    def make_fifo(self) -> None:
        path = self.path()
        self._t(f"mkfifo {path}", os.mkfifo, path, 0o664)

    def hard_link(self) -> None:
        old, new = self.path(), self.path()
        self._t(f"link {old} {new}", os.link, old, new, follow_symlinks=False)

    def remove(self) -> None:
        path = self.path()
        self._t(f"unlink {path}", os.unlink, path)

    def remove_directory(self) -> None:
        path = self.path()
        self._t(f"rmdir {path}", os.rmdir, path)

    def rename(self) -> None:
        old, new = self.path(), self.path()
        flags = self._random.choice((0, 0, RENAME_NOREPLACE))
        self._t(f"rename {old} {new} {flags}", swap, old, new, flags)

    def exchange(self) -> None:
        old, new = self.path(), self.path()
        self._t(f"exchange {old} {new}", swap, old, new, RENAME_EXCHANGE)

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
            self._t(f"write {size} at {at}", os.pwrite, self._open[slot], data, at)
            self._t("fstat", os.fstat, self._open[slot])

    def read(self) -> None:
        slot, at = self._random.randrange(4), self._random.randrange(20000)
        if slot in self._open:
            self._t(f"read at {at}", os.pread, self._open[slot], 5000, at)

    def cut(self) -> None:
        slot, size, path = self._random.randrange(4), self._random.randrange(20000), self.path()
        self._t(f"truncate {path} {size}", os.truncate, path, size)
        if slot in self._open:
            self._t(f"ftruncate {size}", os.ftruncate, self._open[slot], size // 2)

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
        self._t(f"chmod {path} {mode:o}", os.chmod, path, mode)

    def owner(self) -> None:
        path, uid, gid = self.path(), self._random.choice((-1, 0, ADA.uid)), self._random.choice((-1, 0, 2000, 2001))
        self._t(f"chown {path} {uid} {gid}", os.lchown, path, uid, gid)

    def access_list(self) -> None:
        path, kind = self.path(), self._random.choice((ACCESS, DEFAULT))
        owner, group, other, mask, named = (self._random.randrange(8) for _ in range(5))
        name = self._random.choice(("u1000", "u65534", "g2000"))
        self._t(f"set {kind} {path}", os.setxattr, path, kind, access_list(owner, group, other, mask, **{name: named}))
        self._t(f"get {kind} {path}", os.getxattr, path, kind)

    def look(self) -> None:
        path = self.path()
        self._t(f"lstat {path}", os.lstat, path)
        self._t(f"stat {path}", os.stat, path)

    def list(self) -> None:
        path = self.path()
        self._t(f"list {path}", lambda: sorted(os.listdir(path)))

    def times(self) -> None:
        path, moment = self.path(), self._random.randrange(1 << 60)
        self._t(f"utime {path}", os.utime, path, ns=(moment, moment + 1))
        self._t(f"times {path}", lambda: os.stat(path).st_mtime_ns == moment + 1)

    def attribute(self) -> None:
        path, name = self.path(), f"user.{self._random.choice(NAMES)}"
        value = bytes([self._random.randrange(256)]) * self._random.randrange(500)
        act = self._random.choice(("set", "get", "remove"))
        if act == "set":
            self._t(f"setxattr {path} {name}", os.setxattr, path, name, value)
        elif act == "get":
            self._t(f"getxattr {path} {name}", os.getxattr, path, name)
        else:
            self._t(f"removexattr {path} {name}", os.removexattr, path, name)
        self._t(f"listxattr {path}", lambda: sorted(os.listxattr(path)))
