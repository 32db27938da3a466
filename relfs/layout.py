"""Where things are below a deploy path, and what counts as a release.

    DEPLOY_PATH/current        the real symbolic link
    DEPLOY_PATH/releases/NAME  one directory a release
    DEPLOY_PATH/shared         what outlives releases
    DEPLOY_PATH/.relfs         relfs's own state (or elsewhere: --state-dir)

Everything is reached through one directory descriptor, opened once. Under a mount that covers the deploy path,
that descriptor goes on meaning the covered directory while the path means the mount; so this module never
resolves the path a second time. It knows nothing of FUSE, trio or the command line, and works on any POSIX system.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import posixpath
import stat
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Literal

from relfs.errors import RefusedError, RelfsError, UsageError, reason
from relfs.libc import syncfs
from relfs.names import CURRENT, RELEASES, SHARED, STATE

__all__ = ["CURRENT", "RELEASES", "SHARED", "STATE", "DeployPath", "LinkStyle", "Release", "Target"]
__all__ += ["BAD_MARKER", "UNFINISHED_MARKER", "check_name", "find_marker", "is_empty", "make_state"]
__all__ += ["open_deploy_path"]

UNFINISHED_MARKER = "DEPLOY_UNFINISHED"
"""What ansible's deploy_helper leaves in a release, and appends to a link, until it is done."""

BAD_MARKER = "BAD_RELEASE"
"""What Deployer leaves in a release that somebody rolled back from."""

DIRTY_MARKER = "DIRTY_RELEASE"
"""What `dep push` leaves in a release that somebody changed in place."""

_MARKERS = frozenset({BAD_MARKER, DIRTY_MARKER})

LinkStyle = Literal["relative", "absolute"]

_NAME_MAX = 255
_LINK_HOPS = 8
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


@dataclass(frozen=True)
class Release:
    """A directory in releases/. `created` is its modification time in seconds since the epoch."""

    name: str
    created: float


@dataclass(frozen=True)
class Target:
    """Where `current` leads: the text of the link, and the release it means (None: none below releases/).

    `written` is what a tool wrote, if that is a path through a mountpoint, which the real link must not hold.
    """

    text: str
    release: str | None
    written: str | None = None

    @property
    def as_written(self) -> str:
        """What whoever made the link expects to read."""
        return self.written if self.written is not None else self.text

    @property
    def label(self) -> str:
        """What to call it when talking to people."""
        return self.release if self.release is not None else self.text


@dataclass(frozen=True)
class DeployPath:
    """An open deploy path.

    INVARIANT: `fd` is a descriptor of the directory that `path` named when it was opened, and stays open for as
    long as this object is used; `state_fd` likewise for `state_path` (None: there is no state directory, nothing was
    ever recorded). `aliases` are other absolute paths under which the same directory is seen (a mountpoint), so
    that links written through them are understood. `told` tells the text of `current` where the link itself does not:
    a mount may show us another release than everybody, or none (None: the link does; raises OSError, RelfsError).
    """

    path: str
    fd: int
    state_path: str
    state_fd: int | None
    aliases: tuple[str, ...] = field(default=())
    told: Callable[[], str | None] | None = field(default=None, compare=False)

    def close(self) -> None:
        if self.state_fd is not None:
            os.close(self.state_fd)
        os.close(self.fd)

    # ---- names and link texts -------------------------------------------------------------------------------

    def link_text(self, name: str, style: LinkStyle) -> str:
        """The text that makes `current` lead to release `name`."""
        relative = f"{RELEASES}/{name}"
        return relative if style == "relative" else f"{self.path}/{relative}"

    def target(self, text: str) -> Target:
        """Read a link text. Purely lexical: the release need not exist."""
        inner = self.inside(text)
        if inner is None:
            return Target(text, None)
        head, _, name = inner.partition("/")
        if head != RELEASES or not name or "/" in name:
            return Target(text, None)
        return Target(text, name)

    def inside(self, text: str) -> str | None:
        """`text` as a normalised path relative to the deploy path; None if it does not lead below it.

        Lexical: `..` is taken textually, as in the texts that deploy tools write.
        """
        if text.startswith("/"):
            plain = posixpath.normpath(text)
            for prefix in (self.path, *self.aliases):
                if plain.startswith(prefix.rstrip("/") + "/"):
                    return plain[len(prefix.rstrip("/")) + 1 :]
            return None
        plain = posixpath.normpath(text)
        return None if plain in (".", "..") or plain.startswith("../") else plain

    def persistent_text(self, text: str) -> str:
        """`text` as the real symlink must hold it: a path through an alias would dangle once the mount is gone."""
        if not text.startswith("/") or self.inside(text) is None:
            return text
        if posixpath.normpath(text).startswith(self.path.rstrip("/") + "/"):
            return text
        return f"{self.path}/{self.inside(text)}"

    def open_target(self, text: str) -> int:
        """A descriptor of the directory that a link saying `text` leads to; raises OSError if there is none.

        A path below the deploy path is walked from its descriptor, so that it means the covered directory.
        """
        inner = self.inside(text)
        return os.open(inner if inner is not None else text, _DIRECTORY, dir_fd=self.fd)

    def leads_somewhere(self, text: str) -> bool:
        """Whether a link saying `text` leads to a directory that can be opened."""
        try:
            os.close(self.open_target(text))
        except (OSError, ValueError):
            return False
        return True

    def leads_back(self, text: str) -> bool:
        """Whether a link that says `text` would lead through `current` itself, also by way of other links."""
        for _ in range(_LINK_HOPS):
            inner = self.inside(text)
            if inner is None:
                return False
            if inner.split("/", 1)[0] == CURRENT:
                return True
            try:
                found = os.readlink(inner, dir_fd=self.fd)
            except (OSError, ValueError):
                return False
            text = found if found.startswith("/") else posixpath.join(posixpath.dirname(inner), found)
        return True

    def release_of(self, text: str) -> str | None:
        """The directory in releases/ that a link saying `text` leads to or into; None if it leads elsewhere.

        Links on the way, at the top and in releases/, are followed by their texts, so that no path is walked that might
        lead through a mount. Raises OSError where there is nothing to follow.
        """
        for _ in range(_LINK_HOPS):
            head, _, rest = (self.inside(text) or "").partition("/")
            name, _, below = rest.partition("/")
            step = f"{RELEASES}/{name}" if head == RELEASES and name else head
            if not step or step == RELEASES:
                return None
            mode = os.lstat(step, dir_fd=self.fd).st_mode
            if not stat.S_ISLNK(mode):
                return name if step != head and stat.S_ISDIR(mode) else None
            found = os.readlink(step, dir_fd=self.fd)
            text = posixpath.join(posixpath.dirname(step), found, below if step != head else rest)
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))

    # ---- releases -------------------------------------------------------------------------------------------

    def releases(self) -> list[Release]:
        """Every release, oldest first: by number where all names are numbers, by time of modification otherwise.

        A directory whose name starts with a dot is somebody's staging area, and a link is not a release.
        Raises RelfsError if releases/ cannot be read.
        """
        found = []
        try:
            listing = self._open(RELEASES)
            try:
                with os.scandir(listing) as entries:
                    for entry in entries:
                        release = _release_of(entry)
                        if release is not None:
                            found.append(release)
            finally:
                os.close(listing)
        except OSError as error:
            raise RelfsError(f"{self.path}/{RELEASES}: cannot be read: {reason(error)}") from error
        if all(release.name.isdecimal() for release in found):
            return sorted(found, key=lambda release: (int(release.name), release.name))
        return sorted(found, key=lambda release: (release.created, release.name))

    def unfinished_marker(self, name: str, markers: Iterable[str] = (UNFINISHED_MARKER,)) -> str | None:
        """The first of the `markers`, which say that its deployment has not ended, that the release holds."""
        try:
            directory = self._open(f"{RELEASES}/{name}")
        except (OSError, ValueError):
            return None
        try:
            return find_marker(directory, markers)
        finally:
            os.close(directory)

    def is_marked_bad(self, name: str) -> bool:
        """Whether the release carries Deployer's mark that somebody rolled back from it; the journal may know more."""
        return self._has_file(name, BAD_MARKER)

    def is_dirty(self, name: str) -> bool:
        """Whether the release carries Deployer's mark that somebody changed it in place."""
        return self._has_file(name, DIRTY_MARKER)

    def is_good(self, name: str, markers: Iterable[str] = (UNFINISHED_MARKER,)) -> bool:
        """Whether nothing in the release speaks against going back to it."""
        return self.unfinished_marker(name, markers) is None and not self.is_marked_bad(name)

    def _has_file(self, name: str, marker: str) -> bool:
        try:
            return stat.S_ISREG(os.stat(f"{RELEASES}/{name}/{marker}", dir_fd=self.fd).st_mode)  # test -f
        except (OSError, ValueError):
            return False

    def check_release(self, name: str, *, allow_empty: bool) -> None:
        """Refuse what cannot be served.

        Raises UsageError for what can never be a name, RefusedError for a name that leads to no servable release.
        """
        check_name(name)
        shown = f"{self.path}/{RELEASES}/{name}"
        found = self._follow_inside(name, shown)
        try:
            directory = self._open(f"{RELEASES}/{found}", os.O_NOFOLLOW)
        except OSError as error:
            raise RefusedError(f"{shown}: cannot be opened: {reason(error)}") from error
        try:
            empty = is_empty(directory)
        except OSError as error:
            raise RefusedError(f"{shown}: cannot be read: {reason(error)}") from error
        finally:
            os.close(directory)
        if empty and not allow_empty:
            raise RefusedError(f"{shown}: is an empty directory; fill it, or use --force to switch to it all the same")

    def _follow_inside(self, name: str, shown: str) -> str:
        """The directory that `name` is a link to, found by the links' texts: none is ever walked out of releases/."""
        for _ in range(_LINK_HOPS):
            try:
                mode = os.lstat(f"{RELEASES}/{name}", dir_fd=self.fd).st_mode
            except OSError as error:
                if error.errno == errno.ENOENT:
                    raise RefusedError(f"{shown}: no such release; `relfsctl releases` lists them") from error
                raise RefusedError(f"{shown}: {reason(error)}") from error
            if stat.S_ISDIR(mode):
                return name
            if not stat.S_ISLNK(mode):
                raise RefusedError(f"{shown}: is not a directory; a release is a directory in {RELEASES}/")
            inner = self._inside_releases(os.readlink(f"{RELEASES}/{name}", dir_fd=self.fd))
            if inner is None:
                raise RefusedError(f"{shown}: is a symbolic link that leaves {RELEASES}/; name a directory in it")
            name = inner
        raise RefusedError(f"{shown}: too many levels of symbolic links")

    def _inside_releases(self, text: str) -> str | None:
        steps = [step for step in text.split("/") if step not in ("", ".")]
        if ".." in itertools.dropwhile(lambda step: step == ".." and not text.startswith("/"), steps):
            return None  # what `..` means after a name that may itself be a link, the text does not tell
        inner = self.inside(text if text.startswith("/") else f"{RELEASES}/{text}")
        if inner is None or not inner.startswith(f"{RELEASES}/"):
            return None
        name = inner[len(RELEASES) + 1 :]
        return None if "/" in name else name

    def _open(self, relative: str, flags: int = 0) -> int:
        return os.open(relative, _DIRECTORY | flags, dir_fd=self.fd)


def open_deploy_path(
    path: str, *, state_dir: str | None = None, create_state: bool = True, aliases: tuple[str, ...] = ()
) -> DeployPath:
    """Open `path`, and its state directory, which is made (mode 0755) if `create_state` and it is missing.

    Raises RelfsError if either cannot be used.
    """
    real = _resolve(path)
    fd = _open_directory(real, path, "no such deploy path; `relfsctl init` makes one")
    try:
        _require_releases(fd, real)
        state_path = _resolve(state_dir) if state_dir is not None else f"{real}/{STATE}"
        state_fd = _open_state(fd, state_path, state_dir, create=create_state)
    except BaseException:
        os.close(fd)
        raise
    given = os.path.abspath(path)  # through a link, perhaps, and deploy tools write that into theirs
    return DeployPath(real, fd, state_path, state_fd, aliases if given == real else (*aliases, given))


def _resolve(path: str) -> str:
    try:
        encoded = os.fsencode(path)
    except UnicodeEncodeError as error:
        raise UsageError(f"{path!r}: not a path: it cannot be written in bytes") from error
    if not encoded or b"\0" in encoded:
        raise UsageError(f"{path!r}: not a path")
    return os.path.realpath(path)


def check_name(name: str) -> None:
    """Raise UsageError unless `name` can be a release: any bytes but `/`, NUL and control characters."""
    shown = repr(name) if len(name) <= 80 else repr(name[:60]) + "..."
    if name in ("", ".", ".."):
        raise UsageError(f"{shown}: not a release name")
    if "/" in name:
        raise UsageError(f"{shown}: not a release name: it has a slash; give the name of a directory in {RELEASES}/")
    if any(ord(character) < 32 or ord(character) == 127 for character in name):
        raise UsageError(f"{shown}: not a release name: it has a control character")
    try:
        length = len(os.fsencode(name))
    except UnicodeEncodeError as error:
        raise UsageError(f"{shown}: not a release name: it cannot be written in bytes") from error
    if length > _NAME_MAX:
        raise UsageError(f"{shown}: not a release name: {length} bytes, {_NAME_MAX} at most")


def is_empty(directory: int) -> bool:
    """Whether there is nothing to serve in `directory` (a descriptor): the marks that deploy tools leave are none.

    Raises OSError.
    """
    with os.scandir(directory) as entries:
        return all(os.fsdecode(entry.name) in _MARKERS for entry in entries)


def find_marker(directory: int, markers: Iterable[str]) -> str | None:
    """The first of the names `markers` that there is in `directory` (a descriptor)."""
    for name in markers:
        try:
            os.lstat(name, dir_fd=directory)
        except (OSError, ValueError):
            continue
        return name
    return None


def _release_of(entry: os.DirEntry[str]) -> Release | None:
    name = os.fsdecode(entry.name)
    if name.startswith(".") or not entry.is_dir(follow_symlinks=False):
        return None
    try:
        return Release(name, entry.stat(follow_symlinks=False).st_mtime)
    except FileNotFoundError:  # removed while we were reading
        return None


def _open_directory(real: str, given: str, missing: str) -> int:
    try:
        return os.open(real, _DIRECTORY)
    except FileNotFoundError as error:
        raise RelfsError(f"{given}: {missing}") from error
    except NotADirectoryError as error:
        raise RelfsError(f"{given}: not a directory; a deploy path is a directory with {RELEASES}/ in it") from error
    except (OSError, ValueError) as error:
        raise RelfsError(f"{given}: {reason(error) if isinstance(error, OSError) else error}") from error


def _open_state(fd: int, state_path: str, given: str | None, *, create: bool) -> int | None:
    """The state directory: below the deploy path's own descriptor unless the user put it elsewhere."""
    name, dir_fd = (STATE, fd) if given is None else (state_path, None)
    flags = _DIRECTORY | os.O_NOFOLLOW
    try:
        return os.open(name, flags, dir_fd=dir_fd)
    except FileNotFoundError:
        if not create:
            return None
    except OSError as error:
        raise RelfsError(f"{state_path}: cannot be opened: {reason(error)}") from error
    try:
        return make_state(name, dir_fd)
    except OSError as error:
        hint = "; name a writable one with --state-dir" if error.errno == errno.EROFS else ""
        raise RelfsError(f"{state_path}: cannot be made: {reason(error)}{hint}") from error


def make_state(name: str, directory: int | None) -> int:
    """A descriptor of the state directory `name`, which is made, and lasts. Raises OSError.

    What is written there is flushed with its own directory (fsync(2)), and that does not keep the directory's name.
    """
    with contextlib.suppress(FileExistsError):  # another process came first
        os.mkdir(name, 0o755, dir_fd=directory)
    made = os.open(name, _DIRECTORY | os.O_NOFOLLOW, dir_fd=directory)
    try:
        _flush_name_of(made)
    except OSError:
        os.close(made)
        raise
    return made


def _flush_name_of(made: int) -> None:
    try:
        parent = os.open("..", _DIRECTORY, dir_fd=made)
    except PermissionError:  # one may be allowed to make what one may not list
        syncfs(made)
        return
    try:
        os.fsync(parent)
    finally:
        os.close(parent)


def _require_releases(fd: int, path: str) -> None:
    try:
        mode = os.stat(RELEASES, dir_fd=fd).st_mode
    except FileNotFoundError as error:
        raise RelfsError(f"{path}: has no {RELEASES}/; `relfsctl init {path}` makes it") from error
    except OSError as error:
        raise RelfsError(f"{path}/{RELEASES}: {reason(error)}") from error
    if not stat.S_ISDIR(mode):
        raise RelfsError(f"{path}/{RELEASES}: not a directory; releases are directories in it")
