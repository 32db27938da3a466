"""What outlives releases: directories and files in `shared/`, linked into each new release before it can be current.

    [shared]
    directories = ["storage"]      # shared/storage, seen as releases/N/storage
    files = [".env"]               # shared/.env, seen as releases/N/.env
    required = [".env"]            # those of the files that must be there
    writable = ["cache"]           # directories that the application may write, in the release or in what is shared
    group = "www-data"             # whom `writable` is for, besides the owner; none: the directory's own group

First everything is looked at, then anything is changed: a release that cannot be linked leaves `shared/` as it was.

Whose links are followed
------------------------
The facts. relfsctl may run as root in a directory that belongs to who deploys, and a release may have come out of
somebody's archive. The consequence: a link in the release, say `public -> /etc`, would make us remove and write
elsewhere. A link in `shared/`, on the other hand, is how an administrator puts uploads on another disk. The choice: in
a release no link is followed. In `shared/` one is, for looking; what is missing there is made only where no link is on
the way to it.

What is shipped seeds what is missing, once (seeding.py). What is there already is never written. Who does this holds
flock(2) on `shared/`.
"""

from __future__ import annotations

import errno
import fcntl
import os
import posixpath
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from relfs.beneath import below, open_directory
from relfs.errors import RefusedError, reason
from relfs.layout import RELEASES, SHARED, DeployPath
from relfs.libc import syncfs
from relfs.releases.seeding import remove, seed
from relfs.users import gid_of

_DIRECTORY_MODE = 0o755
_WRITABLE = stat.S_IRWXU | stat.S_IRWXG | stat.S_ISGID


@dataclass(frozen=True)
class Shared:
    """What is to be linked into each release. INVARIANT: no path of `directories` and `files` is, or is in, another;
    all of `required` are in `files`, and none of `writable` is, or is in one. `group` is a gid."""

    directories: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    required: tuple[str, ...] = ()
    writable: tuple[str, ...] = ()
    group: int | None = None

    def check_invariants(self) -> None:
        """For tests, and for what was read: raise ValueError where the INVARIANT does not hold."""
        linked = sorted(self.directories + self.files, key=lambda path: path.split("/"))
        for path, other in pairwise(linked):
            if path == other:
                raise ValueError(f"shared: {path} is named twice")
            if other.startswith(f"{path}/"):
                raise ValueError(f"shared: {other} is in {path}, which is shared as a whole; name only one of the two")
        for path in self.required:
            if path not in self.files:
                raise ValueError(f"shared.required: {path} is not in shared.files")
        for path in self.writable:
            if _is_in(path, self.files):
                raise ValueError(f"shared.writable: {path} must be a directory, and shared.files says otherwise")


@dataclass(frozen=True)
class Finding:
    """What a look at one shared path found: `state` is ok, note (not wrong, but one may want to know) or fail."""

    state: str
    path: str
    text: str


# ---- what the configuration says ------------------------------------------------------------------------------------


def parse_shared(section: dict[str, Any]) -> Shared:
    """Read the section `[shared]`. Raises ValueError that names what is wrong."""
    group = section.get("group")
    shared = Shared(
        **{key: _paths(key, section.get(key, [])) for key in ("directories", "files", "required", "writable")},
        group=gid_of("shared.group", group) if group is not None else None,
    )
    shared.check_invariants()
    return shared


def _paths(key: str, value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(path, str) for path in value):
        raise ValueError(f"shared.{key} must be a list of paths, as they are in a release")
    return tuple(_path(key, path) for path in value)


def _path(key: str, given: str) -> str:
    path = posixpath.normpath(given) if given else ""
    if path in ("", ".") or path.startswith(("/", "../")) or path == ".." or not path.isprintable():
        raise ValueError(f"shared.{key}: {given!r} is not a path inside of a release")
    return path


# ---- linking --------------------------------------------------------------------------------------------------------


def link_shared(deploy: DeployPath, release: int, name: str, shared: Shared) -> bool:
    """Link what is shared into the release that the descriptor `release` is of, and make `writable` what shall be so;
    whether there is any of either.

    `name` is what to call the release in messages. It must lie in releases/ itself, for the links are relative.
    Raises RefusedError that names what is in the way; then `shared/` is as it was. May be done again.
    """
    if shared == Shared():
        return False
    linker = _Linker(deploy, release, name)
    problems = [finding for finding in _look(deploy, shared) if finding.state == "fail"]
    if problems:
        raise RefusedError(f"{problems[0].path}: {problems[0].text}")
    try:
        for path in shared.directories:
            linker.require(path, stat.S_ISDIR, "a directory")
        for path in shared.files:
            linker.require(path, stat.S_ISREG, "a file")
        for path in shared.writable:
            if not _is_in(path, shared.directories):
                linker.require_own(path)
        with _made(deploy.fd, SHARED) as directory:
            fcntl.flock(directory, fcntl.LOCK_EX)
            _link(linker, shared)
            syncfs(directory)
    except OSError as error:
        raise RefusedError(f"{name}: what is shared cannot be linked: {_told(error)}") from error
    return True


def _link(linker: _Linker, shared: Shared) -> None:
    for path in shared.directories:
        linker.link(path, directory=True)
    for path in shared.files:
        linker.link(path, directory=False)
    for path in shared.writable:
        linker.make_writable(path, shared)


class _Linker:
    """One release that gets its links."""

    def __init__(self, deploy: DeployPath, release: int, name: str) -> None:
        self._deploy = deploy
        self._release = release
        self._name = name

    def require(self, path: str, is_right: Any, kind: str) -> None:
        """Raises RefusedError if the release ships something else than `kind`, or a link on the way to it."""
        where, last = posixpath.split(path)
        try:
            with self._inside(where) as parent:
                mode = os.lstat(last, dir_fd=parent).st_mode
        except FileNotFoundError:
            return
        except OSError as error:
            raise self._in_the_way(where, error) from error
        if not stat.S_ISLNK(mode) and not is_right(mode):
            raise RefusedError(f"{self._name}/{path}: is not {kind}, as shared.{_KEYS[kind]} says it is")

    def require_own(self, path: str) -> None:
        """Raises RefusedError if the release ships something else than a directory: a link, too, is not followed."""
        try:
            with below(self._release, path):
                pass
        except FileNotFoundError:
            return
        except OSError as error:
            if error.errno not in (errno.ELOOP, errno.ENOTDIR):
                raise
            raise RefusedError(f"{self._name}/{path}: is not a directory, as shared.writable says it is") from error

    def link(self, path: str, *, directory: bool) -> None:
        where, last = posixpath.split(path)
        self._seed(path, where, last, directory=directory)
        text = "../" * (2 + path.count("/")) + f"{SHARED}/{path}"
        with self._inside(where, make=True) as parent:
            remove(last, parent)
            os.symlink(text, last, dir_fd=parent)
            _give_as(parent, last)

    def _seed(self, path: str, where: str, last: str, *, directory: bool) -> None:
        """Where `shared/` has nothing, what the release ships; an empty directory where that is nothing, either."""
        if _exists(self._deploy, path):
            return
        with _made(self._deploy.fd, posixpath.join(SHARED, where)) as parent:
            if not self._seed_in(where, last, parent) and directory:
                _make_directory(last, parent)

    def _seed_in(self, where: str, last: str, parent: int) -> bool:
        """False if the release ships nothing."""
        try:
            with self._inside(where) as source:
                return seed(source, last, parent)
        except FileNotFoundError:
            return False

    def make_writable(self, path: str, shared: Shared) -> None:
        """The directory itself, where it is shared: what is in it is the application's, and what is behind a link is
        its maker's. All of it in the release."""
        if _is_in(path, shared.directories):
            with suppress(NotADirectoryError), _made(self._deploy.fd, posixpath.join(SHARED, path)) as directory:
                _open_up(directory, shared.group)
            return
        with self._inside(path, make=True) as directory:
            for _, _, _, each in os.fwalk(".", dir_fd=directory):
                _open_up(each, shared.group)

    @contextmanager
    def _inside(self, path: str, *, make: bool = False) -> Iterator[int]:
        """A directory of the release, walked without following a link. Raises OSError, RefusedError for what is no
        directory."""
        try:
            with _made(self._release, path) if make else below(self._release, path) as fd:
                yield fd
        except OSError as error:
            if error.errno not in (errno.ELOOP, errno.ENOTDIR):
                raise
            raise self._in_the_way(path, error) from error

    def _in_the_way(self, path: str, error: OSError) -> RefusedError:
        return RefusedError(f"{self._name}/{path}: is in the way of what is shared below it: {reason(error)}")


_KEYS = {"a directory": "directories", "a file": "files"}


# ---- looking --------------------------------------------------------------------------------------------------------


def check_shared(deploy: DeployPath, shared: Shared, name: str | None) -> list[Finding]:
    """What is right and wrong with `shared/`, and with its links in release `name`; changes nothing. Raises OSError if
    the release cannot be looked at."""
    found = list(_look(deploy, shared))
    if name is not None:
        with below(deploy.fd, f"{RELEASES}/{name}") as release:
            found += [_look_at_link(release, name, path) for path in shared.directories + shared.files]
    return found


def _look(deploy: DeployPath, shared: Shared) -> Iterator[Finding]:
    for path in shared.directories:
        yield _look_at(deploy, path, stat.S_ISDIR, "directory")
    for path in shared.files:
        found = _look_at(deploy, path, stat.S_ISREG, "file")
        missing = path in shared.required and found.state == "note"
        yield Finding("fail", found.path, "is required, and not there; put it there") if missing else found
    for path in shared.writable:  # in a shared one; what is missing there is made
        if _is_in(path, shared.directories) and path not in shared.directories:
            found = _look_at(deploy, path, stat.S_ISDIR, "directory")
            yield from [found] if found.state == "fail" else []


def _look_at(deploy: DeployPath, path: str, is_right: Any, kind: str) -> Finding:
    shown = f"{deploy.path}/{SHARED}/{path}"
    try:
        mode = os.stat(f"{SHARED}/{path}", dir_fd=deploy.fd).st_mode
    except FileNotFoundError:
        return _look_for_reason(deploy, path, shown, kind)
    except OSError as error:
        return Finding("fail", shown, reason(error))
    if is_right(mode):
        return Finding("ok", shown, f"is a {kind}")
    return Finding("fail", shown, f"is not a {kind}; move it away, or correct [shared] in config.toml")


def _look_for_reason(deploy: DeployPath, path: str, shown: str, kind: str) -> Finding:
    """Nothing is made where a link is on the way; and one that leads nowhere is somebody's mistake."""
    names = (SHARED, *path.split("/"))
    for count in range(len(names)):
        step = "/".join(names[: count + 1])
        with suppress(OSError):
            text = os.readlink(step, dir_fd=deploy.fd)
            why = f"is not there; {step} is a link to {text}, where relfs makes nothing; make it"
            return Finding("fail", shown, why)
    return Finding("note", shown, f"is not there yet; the first release that ships this {kind} seeds it")


def _look_at_link(release: int, name: str, path: str) -> Finding:
    shown = f"{RELEASES}/{name}/{path}"
    wanted = "../" * (2 + path.count("/")) + f"{SHARED}/{path}"
    try:
        with below(release, posixpath.dirname(path)) as parent:
            text = os.readlink(posixpath.basename(path), dir_fd=parent)
    except OSError as error:
        what = "is not a link into shared/" if error.errno == errno.EINVAL else reason(error)
        return Finding("fail", shown, what)
    leads = posixpath.normpath(posixpath.join(RELEASES, name, posixpath.dirname(path), text))
    if leads == f"{SHARED}/{path}" or text.endswith(f"/{SHARED}/{path}"):
        return Finding("ok", shown, f"leads to {SHARED}/{path}")
    return Finding("fail", shown, f"leads to {text}, not to {wanted}")


# ---- hands ----------------------------------------------------------------------------------------------------------


def _exists(deploy: DeployPath, path: str) -> bool:
    try:
        os.stat(f"{SHARED}/{path}", dir_fd=deploy.fd)
    except FileNotFoundError:
        return False
    return True


@contextmanager
def _made(directory: int, path: str) -> Iterator[int]:
    """The directory `path`, made with all that is missing on the way. Raises OSError, also for a link there."""
    fd = os.dup(directory)
    try:
        for name in filter(None, path.split("/")):
            _make_directory(name, fd)
            step = open_directory(fd, name)
            os.close(fd)
            fd = step
        yield fd
    finally:
        os.close(fd)


def _make_directory(name: str, parent: int) -> None:
    with suppress(FileExistsError):
        os.mkdir(name, _DIRECTORY_MODE, dir_fd=parent)
        _give_as(parent, name)


def _give_as(parent: int, name: str) -> None:
    """What root makes for somebody belongs to him, whose directory it is made in."""
    if os.geteuid() == 0:
        status = os.fstat(parent)
        os.chown(name, status.st_uid, status.st_gid, dir_fd=parent, follow_symlinks=False)


def _open_up(directory: int, group: int | None) -> None:
    """Its owner and its group may write it, and what is made in it belongs to that group (mkdir(2), S_ISGID)."""
    status = os.fstat(directory)
    if group is not None and status.st_gid != group:
        os.fchown(directory, -1, group)
    os.fchmod(directory, stat.S_IMODE(status.st_mode) | _WRITABLE)


def _is_in(path: str, directories: tuple[str, ...]) -> bool:
    return any(path == each or path.startswith(f"{each}/") for each in directories)


def _told(error: OSError) -> str:
    return f"{error.filename}: {reason(error)}" if error.filename else reason(error)
