"""A disk that forgets: what may be left of a deploy path if the power fails after any system call.

What was synced is there. Of what was not, the names in each directory are found as they were last synced or as they
are now, and the data of each file likewise or in part, every one on its own. A link's text comes and goes with its
name. Only the disk is simulated: relfs makes its calls on a real directory, and what may be left is written out as one.
"""

from __future__ import annotations

import itertools
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from faults import Call, Calls


@dataclass(eq=False)
class Node:
    """A file or a link: what it holds, and what of that is safe."""

    data: bytes
    safe: bytes
    link: bool = False

    def outcomes(self) -> list[bytes]:
        """What may be found in it after a power cut."""
        if self.data == self.safe:
            return [self.data]
        kept = self.safe if self.data.startswith(self.safe) else b""
        torn = self.data[: (len(kept) + len(self.data)) // 2]
        return [self.data, self.safe, torn]


Names = dict[str, Node]
Remains = dict[str, tuple[bytes, bool]]
"""Path below the deploy path -> what is there, and whether it is a link."""


@dataclass
class Disk:
    """The directories of one deploy path by relative path (`.` is itself): their names now, and those that are safe."""

    names: dict[str, Names] = field(default_factory=dict)
    safe: dict[str, Names] = field(default_factory=dict)

    @classmethod
    def of(cls, app: Path, *, unsynced: tuple[str, ...]) -> Disk:
        """The disk that holds `app`, all of it safe but the data of the files in the directories `unsynced`."""
        disk = cls()
        for directory, _, _ in os.walk(app):
            relative = os.path.relpath(directory, app)
            names = disk.names.setdefault(relative, {})
            for path in Path(directory).iterdir():
                if path.is_symlink():
                    names[path.name] = Node(os.fsencode(os.readlink(path)), b"", link=True)
                elif path.is_file():
                    lost = relative in unsynced
                    names[path.name] = Node(path.read_bytes(), b"" if lost else path.read_bytes())
            disk.safe[relative] = dict(names)
        return disk

    def sync_names(self, directory: str) -> None:
        self.safe[directory] = dict(self.names[directory])

    def sync_everything(self) -> None:
        for directory, names in self.names.items():
            self.sync_names(directory)
            for node in names.values():
                node.safe = node.data

    def remains(self) -> Iterator[Remains]:
        """Everything that may be left if the power fails now."""
        directories = list(self.names)
        for kept in itertools.product(*(self._either(directory) for directory in directories)):
            nodes = [
                (os.path.normpath(f"{directory}/{name}"), node)
                for directory, names in zip(directories, kept, strict=True)
                for name, node in names.items()
            ]
            for data in itertools.product(*([node.data] if node.link else node.outcomes() for _, node in nodes)):
                yield {path: (held, node.link) for (path, node), held in zip(nodes, data, strict=True)}

    def _either(self, directory: str) -> list[Names]:
        now, safe = self.names[directory], self.safe[directory]
        return [now] if now == safe else [now, safe]


def write_out(remains: Remains, app: Path) -> None:
    """Make `app` a deploy path that holds `remains`."""
    (app / ".relfs").mkdir(parents=True)
    for path, (data, link) in remains.items():
        (app / path).parent.mkdir(parents=True, exist_ok=True)
        if link:
            os.symlink(data, os.fsencode(app / path))
        else:
            (app / path).write_bytes(data)


class Recorder(Calls):
    """Makes relfs's calls, does the same to a simulated disk, and keeps all that may be left after each of them.

    `deaf_to` names a syncing call that this disk takes no notice of.
    """

    def __init__(self, app: Path, disk: Disk, *, links: bool, deaf_to: str | None = None) -> None:
        super().__init__(links=links)
        self.after: list[tuple[str, list[Remains]]] = []
        self._app = app
        self._disk = disk
        self._deaf_to = deaf_to
        self._open: dict[int, Node] = {}

    ACKNOWLEDGED = "acknowledged"

    def acknowledged(self) -> None:
        """Note that whoever asked has the answer."""
        self.after.append((self.ACKNOWLEDGED, list(self._disk.remains())))

    def carry_out(self, call: Call) -> Any:
        result = super().carry_out(call)
        if call.name != self._deaf_to:
            self._do(call, result)
        self.after.append((call.name, list(self._disk.remains())))
        return result

    def _do(self, call: Call, result: Any) -> None:
        arguments = call.arguments
        match call.name:
            case "open" if stat.S_ISDIR(os.fstat(result).st_mode):
                self._open.pop(result, None)
            case "open":
                names = self._names(call)
                node = names.setdefault(arguments[0], Node(b"", b""))
                node.data = b"" if arguments[1] & os.O_TRUNC else node.data
                self._open[result] = node
            case "write":
                self._open[arguments[0]].data += arguments[1]
            case "ftruncate":
                self._open[arguments[0]].data = self._open[arguments[0]].data[: arguments[1]]
            case "symlink":
                self._names(call)[arguments[1]] = Node(os.fsencode(arguments[0]), b"", link=True)
            case "rename":
                names = self._names(call)
                names[arguments[1]] = names.pop(arguments[0])
            case "unlink":
                del self._names(call)[arguments[0]]
            case "fsync" | "fdatasync" if arguments[0] in self._open:
                self._open[arguments[0]].safe = self._open[arguments[0]].data
            case "fsync":
                self._disk.sync_names(self._path_of(arguments[0]))
            case "syncfs":
                self._disk.sync_everything()
            case "pwrite":
                pass  # the lock's courtesy, which nobody needs after a power cut
            case other:
                raise NotImplementedError(other)

    def _names(self, call: Call) -> Names:
        assert call.directory is not None
        return self._disk.names[self._path_of(call.directory)]

    def _path_of(self, fd: int) -> str:
        return os.path.relpath(os.readlink(f"/proc/self/fd/{fd}"), self._app)
