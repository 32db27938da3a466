"""Who uses a release: which processes have something open or mapped in it, run from it, or work in it.

What a process tells about what it uses
---------------------------------------
Some facts. /proc/PID/cwd, root, exe, fd/N and map_files/N are links that lead to the very thing that is used, and not
to a path (proc(5)): stat(2) through them tells its device and inode, in whichever name space, container or chroot the
process lives. What readlink(2) tells of them is a path, in the mount name space of the process, which need not be ours:
a release that is bound to /app in a container is /app there, and after a lazy unmount a path begins where the mount
did. Of a file there is no way back to the directory that it is in. A file that two releases share (hard link) is one
inode, whichever was opened. stat() asks the file system: one that does not answer would keep us for ever. And the
kernel tells only who may trace a process (ptrace(2), PTRACE_MODE_READ_FSCREDS) what that uses: its own user, if it has
no more capabilities, and CAP_SYS_PTRACE.

The choice. What is used is known by device and inode, collected from all processes; then the release's tree is
walked, and what is found in both is used. The tree is read anyway when it is removed. The path counts in three cases:
for a file with several names, which does not count if the path says that it was opened in another release; for what is
open through a mount of relfs that serves releases itself, where device and inode are the mount's; and where the path is
below another mount, which is not touched at all. A mapping whose link must not be followed (that takes CAP_SYS_ADMIN or
CAP_CHECKPOINT_RESTORE) is known by what /proc/PID/maps says of it. Of threads that have unshared their working
directory (CLONE_FS) all are looked at; of those that have unshared their descriptors (CLONE_FILES), only the first.

A container may have a release bound into it, and use it only now and then; so what is mounted from a release counts as
used by the first process of that name space, and so does what something is mounted in.

Who cannot be looked at is counted. There may be such processes for root, too: those of an outer user name space, which
no host can see into. Only one without CAP_SYS_PTRACE is `blind`: for him, whatever another user runs is hidden.
"""

from __future__ import annotations

import json
import os
import stat
import sys
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

from relfs.beneath import open_directory
from relfs.errors import reason
from relfs.journal import command_line
from relfs.layout import RELEASES, DeployPath
from relfs.libc import capabilities_of
from relfs.mountinfo import FSTYPE, Mount, mount_id, mounts
from relfs.processes import all_pids, is_exiting, is_of_the_kernel, process, user_of
from relfs.releases.tree import walk
from relfs.users import user_name

_Key = tuple[int, int]
"""st_dev and st_ino."""

_CAP_SYS_PTRACE = 19
_LOOK = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_MAPPED_FIELDS = 6
_MOUNTED = "mounted"


@dataclass(frozen=True)
class Use:
    """A process that uses a release. `start` is its start time in clock ticks after boot; `how` is cwd, root, exe,
    open, mapped, mounted or pinned; `path` is what the process knows it by."""

    pid: int
    start: int
    user: str
    command: str
    how: str
    path: str


@dataclass(frozen=True)
class Uses:
    """Who uses which release, by pid. `unseen` counts the processes, and the directories of releases, that could not be
    looked at; `blind`: other users' may be hidden altogether (proc(5), hidepid)."""

    of: Mapping[str, tuple[Use, ...]]
    unseen: int = 0
    blind: bool = False

    def as_json(self) -> dict[str, Any]:
        uses = {name: [asdict(use) for use in uses] for name, uses in self.of.items()}
        return {"uses": uses, "unseen": self.unseen, "blind": self.blind}


def uses_of(document: dict[str, Any]) -> Uses:
    """What as_json() made."""
    of = {str(name): tuple(Use(**use) for use in uses) for name, uses in document["uses"].items()}
    return Uses(of, int(document["unseen"]), bool(document["blind"]))


def why_in_use(uses: Collection[Use]) -> str:
    """In a few words. Whoever is the first to see a mount may have nothing to do with it."""
    first = min(uses, key=lambda use: (use.how == _MOUNTED, use.pid))
    if first.how == _MOUNTED:
        return f"in use by a mount of it, or in it: {first.path}, as process {first.pid} sees it"
    others = len({use.pid for use in uses}) - 1
    more = f" and {others} other{'s' if others > 1 else ''}" if others else ""
    return f"in use by process {first.pid} ({first.command or 'of unknown name'}){more}"


def who_uses(deploy: DeployPath, names: Iterable[str], *, but: Collection[int] = ()) -> Uses:
    """Who uses the releases `names`, as far as this process may look; processes `but` are passed over, and so is this
    one. Reads /proc once, and each release's tree. May hang where the releases' file system does.
    """
    with suppress(FileNotFoundError):
        releases = os.open(RELEASES, _LOOK, dir_fd=deploy.fd)
        try:
            return _who_uses(_Ground(releases, deploy.path), names, but, _may_be_in)
        finally:
            os.close(releases)
    return Uses({})


def who_uses_below(directory: int, names: Iterable[str], *, but: Collection[int] = ()) -> Uses:
    """The same, of directories that are not releases any more, in `directory` (a descriptor)."""
    return _who_uses(_Ground(directory, None), names, but, lambda path, name: name in path.split("/"))


def _who_uses(
    ground: _Ground, names: Iterable[str], but: Collection[int], may_be_in: Callable[[str, str], bool]
) -> Uses:
    look = _Look(ground, may_be_in)
    for pid in sorted(all_pids() - {os.getpid(), *but}):
        look.at(pid)
    found, unread = {}, 0
    for name in sorted(set(names)):
        traces, errors = look.traces_in(name)
        unread += errors
        found[name] = tuple(sorted({look.use(trace) for trace in traces}, key=lambda use: (use.pid, use.how, use.path)))
    blind = not (capabilities_of(0) or 0) >> _CAP_SYS_PTRACE & 1
    return Uses(found, look.unseen + unread, blind)


# ---- where releases are, for this process and others ---------------------------------------------------------------


class _Ground:
    """What there is to know of where releases are, before any process is looked at."""

    def __init__(self, releases: int, deploy_path: str | None) -> None:
        self.releases = releases
        self.device = os.fstat(releases).st_dev
        own = {mount.id: mount for mount in mounts()}
        at = own.get(mount_id(releases))
        self.raw_device = at.device if at is not None else ""
        """As mountinfo and maps have it, which may be another than st_dev (btrfs has one for each subvolume)."""
        self.root = _path_in(at, os.readlink(f"/proc/self/fd/{releases}")) if at is not None else None
        """The path of releases/ in its file system."""
        self.served = {each.device for each in own.values() if each.fstype == FSTYPE and each.source == deploy_path}
        """The devices of relfs's mounts of this deploy path."""
        self.wanted = self.served | {self.raw_device}

    def name_served(self, at: Mount, path: str) -> str | None:
        """The release that `path`, which is below a mount of relfs, is in."""
        names = _path_in(at, path).split("/")
        return names[2] if len(names) > 2 and names[1] == RELEASES else None

    def name_mounted(self, at: Mount) -> str | None:
        """The release that `at` shows something of. A seal shows a release at its own place."""
        name, rest = self._release_at(at.device, at.root)
        return None if not rest and at.target.endswith(f"/{RELEASES}/{name}") else name

    def name_mounted_in(self, around: Mount | None, at: Mount) -> str | None:
        """The release that `at` is mounted in; `around` is what that place belongs to."""
        if around is None:
            return None
        name, rest = self._release_at(around.device, _path_in(around, at.target))
        return name if rest else None

    def _release_at(self, device: str, path: str) -> tuple[str | None, str]:
        """The release that a path in a file system is in, and where in it."""
        if self.root is None or device != self.raw_device or not path.startswith(f"{self.root}/"):
            return None, ""
        name, _, rest = path[len(self.root) + 1 :].partition("/")
        return name, rest


def _path_in(at: Mount, path: str) -> str:
    """What is `path` in a mount name space is this in the file system that is mounted there."""
    return at.root.rstrip("/") + path[len(at.target.rstrip("/")) :]


class _Names:
    """The mounts of one mount name space, by where they are."""

    def __init__(self, file_name: str) -> None:
        self._at = {mount.target: mount for mount in mounts(file_name)}  # the last one is on top

    def __iter__(self) -> Iterator[Mount]:
        return iter(self._at.values())

    def mount_of(self, path: str) -> Mount | None:
        while path not in self._at:
            if path in ("/", ""):
                return None
            path = os.path.dirname(path)
        return self._at[path]


# ---- looking at processes ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Trace:
    """Something that a process uses. `shared`: it is a file with more than one name."""

    pid: int
    how: str
    path: str
    shared: bool = False


class _Look:
    """What all processes use, of what may be in releases."""

    def __init__(self, ground: _Ground, may_be_in: Callable[[str, str], bool]) -> None:
        """`may_be_in` says of a file with several names whether the one that it was opened by may be in a release."""
        self.unseen = 0
        self._ground = ground
        self._may_be_in = may_be_in
        self._held: defaultdict[_Key, list[_Trace]] = defaultdict(list)
        self._named: defaultdict[str, list[_Trace]] = defaultdict(list)  # by the release's name
        self._names: dict[str, _Names | None] = {}
        self._mapped: dict[tuple[str, int], tuple[_Key, bool] | None] = {}

    def at(self, pid: int) -> None:
        """Look at a process. Threads of the kernel use nothing, though they see the mounts of the host."""
        try:
            while not (is_of_the_kernel(pid) or self._has_looked_at(pid)):
                pass
        except PermissionError:
            found = process(pid)
            self.unseen += found is not None and found.alive
        except OSError:
            pass  # it has ended

    def _has_looked_at(self, pid: int) -> bool:
        """False: the thread that was looked at has ended meanwhile (pthread_exit(3)), and had nothing any more, while
        others go on with what was its. Raises OSError."""
        threads = sorted(map(int, os.listdir(f"/proc/{pid}/task")))
        whole = next((tid for tid in threads if not is_exiting(tid) and _readlink(f"/proc/{tid}/ns/mnt")), None)
        if whole is None:
            return True
        try:
            self._look_at(pid, whole, threads)
        except OSError:
            if not is_exiting(whole):
                raise
        return not is_exiting(whole)

    def _look_at(self, pid: int, whole: int, threads: Iterable[int]) -> None:
        """`whole` is one of the threads, and has all that they share."""
        names = self._names_of(pid, whole)
        self._note(pid, "exe", f"/proc/{whole}/exe", names)
        for fd in os.listdir(f"/proc/{whole}/fd"):
            self._note(pid, "open", f"/proc/{whole}/fd/{fd}", names)
        for how in ("cwd", "root"):
            links = {_readlink(link): link for link in (f"/proc/{tid}/{how}" for tid in threads)}
            for link in links.values():
                self._note(pid, how, link, names)
        self._look_at_mappings(pid, whole, names)

    def _names_of(self, pid: int, tid: int) -> _Names | None:
        """The mount name space of a thread; None if all in it so far have their root elsewhere, so that paths cannot be
        told by their mounts."""
        space = os.readlink(f"/proc/{tid}/ns/mnt")
        if self._names.get(space) is None:
            is_ours = space == os.readlink("/proc/self/ns/mnt")
            usable = is_ours or _readlink(f"/proc/{tid}/root") == "/"
            mountinfo = "/proc/self/mountinfo" if is_ours else f"/proc/{tid}/mountinfo"
            self._names[space] = names = _Names(mountinfo) if usable else None
            if names is not None:
                self._note_mounts(pid, names)
        return self._names[space]

    def _note_mounts(self, pid: int, names: _Names) -> None:
        for each in names:
            around = names.mount_of(os.path.dirname(each.target))
            found = self._ground.name_mounted(each) or self._ground.name_mounted_in(around, each)
            if found is not None:
                self._named[found].append(_Trace(pid, _MOUNTED, each.target))

    def _look_at_mappings(self, pid: int, tid: int, names: _Names | None) -> None:
        with open(f"/proc/{tid}/maps", "rb") as file:
            lines = file.read().splitlines()
        seen: set[tuple[str, int]] = set()
        for line in lines:
            fields = line.split(None, _MAPPED_FIELDS - 1)
            if len(fields) < _MAPPED_FIELDS or not fields[5].startswith(b"/"):
                continue
            raw = _raw_device(fields[3]), int(fields[4])
            if raw not in seen:
                seen.add(raw)
                first, _, last = fields[0].partition(b"-")
                link = f"/proc/{tid}/map_files/{int(first, 16):x}-{int(last, 16):x}"
                self._note_mapping(pid, link, raw, os.fsdecode(fields[5]), names)

    def _note_mapping(self, pid: int, link: str, raw: tuple[str, int], path: str, names: _Names | None) -> None:
        """Files that many have mapped, as libraries are, are looked at once."""
        if self._note_served(pid, "mapped", path, names) or not self._is_near(path, names):
            return
        if raw not in self._mapped:
            self._mapped[raw] = self._identify(link, raw)
        found = self._mapped[raw]
        if found is not None:
            self._held[found[0]].append(_Trace(pid, "mapped", path, found[1]))

    def _identify(self, link: str, raw: tuple[str, int]) -> tuple[_Key, bool] | None:
        try:
            return _identity(os.stat(link))
        except OSError:
            return ((self._ground.device, raw[1]), True) if raw[0] == self._ground.raw_device else None

    def _note(self, pid: int, how: str, link: str, names: _Names | None) -> None:
        path = _readlink(link)
        if self._note_served(pid, how, path, names) or not self._is_near(path, names):
            return
        with suppress(OSError):  # gone meanwhile, or of a mount that is dead: then it is in no release
            key, shared = _identity(os.stat(link))
            if key[0] == self._ground.device:
                self._held[key].append(_Trace(pid, how, path, shared))

    def _note_served(self, pid: int, how: str, path: str, names: _Names | None) -> bool:
        """Whether that is open through a mount of relfs, which serves it itself."""
        at = names.mount_of(path) if names is not None else None
        if at is None or at.device not in self._ground.served or at.device == self._ground.raw_device:
            return False
        name = self._ground.name_served(at, path)
        if name is not None:
            self._named[name].append(_Trace(pid, how, path))
        return True

    def _is_near(self, path: str, names: _Names | None) -> bool:
        """Whether it may be in releases; what is below another mount is not, and is better not touched."""
        if not path.startswith("/"):
            return False  # a socket, a pipe
        at = names.mount_of(path) if names is not None else None
        return at is None or at.target == "/" or at.device in self._ground.wanted

    # ---- and at releases

    def traces_in(self, name: str) -> tuple[list[_Trace], int]:
        """What is used of a release; and in how many directories of it could not be looked."""
        errors: list[str] = []
        found = list(self._named[name])
        try:
            top = open_directory(self._ground.releases, name)  # which may be sealed: that is a mount
        except OSError:
            return found, 0  # it is gone
        try:
            found += self._held.get((self._ground.device, os.fstat(top).st_ino), [])
            for _, entry in walk(top, lambda path, error: errors.append(f"{path}: {reason(error)}")):
                for trace in self._held.get((self._ground.device, entry.inode()), ()):
                    if not trace.shared or self._may_be_in(trace.path, name):
                        found.append(trace)
        finally:
            os.close(top)
        return found, len(errors)

    def use(self, trace: _Trace) -> Use:
        """Who that is."""
        found = process(trace.pid)
        start = found.start if found is not None else 0
        return Use(trace.pid, start, user_name(user_of(trace.pid)), command_line(trace.pid), trace.how, trace.path)


def _readlink(link: str) -> str:
    """Empty where it leads nowhere any more: a descriptor was closed meanwhile, a process has no program."""
    try:
        return os.readlink(link)
    except (FileNotFoundError, ProcessLookupError):
        return ""


def _identity(status: os.stat_result) -> tuple[_Key, bool]:
    shared = status.st_nlink > 1 and not stat.S_ISDIR(status.st_mode)
    return (status.st_dev, status.st_ino), shared


def _may_be_in(path: str, name: str) -> bool:
    """Whether `path` does not say that it is in a release, or says that it is in the one that is called `name`."""
    steps = path.split("/")
    named = [steps[number + 1] for number, step in enumerate(steps[:-2]) if step == RELEASES]
    return not named or name in named


def _raw_device(field: bytes) -> str:
    """As mountinfo has it, of what maps has (hexadecimal)."""
    major, _, minor = field.partition(b":")
    return f"{int(major, 16)}:{int(minor, 16)}"


# ---- as a program of its own ---------------------------------------------------------------------------------------


def main() -> None:
    """Read a question from standard input, and answer it on standard output: for a daemon whose thread must neither
    hang in a file system, nor keep its event loop waiting. See daemon/inuse.py."""
    question = json.load(sys.stdin)
    deploy = DeployPath(question["path"], question["fd"], question["path"], None)
    json.dump(who_uses(deploy, question["releases"], but=question["but"]).as_json(), sys.stdout)
