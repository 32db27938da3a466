"""What an archive may hold that is to become a release, whoever made it: the refusals, before anything is written.

    names     absolute, or with `..`; the same name twice; below what is no directory
    links     that lead out of the release, also by way of other links; hard links to what is not there
    kinds     devices, fifos, sockets; programs that run as their owner (setuid, setgid)
    bombs     more members or bytes than the limits say, or bytes out of all proportion to the archive's own

A directory on this host is trusted more (it is copied as it is), since who can write there has no need of an archive.
Nothing here opens or writes a file.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass, field
from typing import Any, Literal

from relfs.errors import RefusedError
from relfs.releases.survey import DEPTH_MAX

Kind = Literal["directory", "file", "symlink", "hardlink"]

_RATIO_FREE = 1 << 26
"""Bytes that any archive may give, however small it is: a text file of zeros is no bomb."""

_PATH_MAX = 4095
_LINK_HOPS = 40  # as the kernel has it (path_resolution(7))


@dataclass(frozen=True)
class Limits:
    """How much an archive may give: members, bytes (holes count as the zeros that they are read as), and bytes for each
    byte of the archive."""

    members: int = 1_000_000
    bytes: int = 1 << 36
    ratio: int = 1000


def parse_limits(section: dict[str, Any]) -> Limits:
    """The section [add] of the configuration, whose keys are known. Raises ValueError."""
    for key, value in section.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"add.{key} must be a whole number, at least 1")
    return Limits(**section)


@dataclass(frozen=True)
class Member:
    """One member. `mode` are its permissions, `mtime` is in ns since the epoch, `link` what it is a link to: a text, or
    the name of another member; `sparse`: zeros in it are holes."""

    path: str
    kind: Kind
    mode: int
    size: int
    mtime: int
    link: str = ""
    sparse: bool = False


@dataclass
class Gate:
    """What has passed so far, and what may pass next; `shown` is what to call the archive.

    INVARIANT: `kinds` has every name that passed and every directory that one of them is in.
    """

    limits: Limits
    shown: str = "it"
    kinds: dict[str, Kind] = field(default_factory=lambda: {".": "directory"})
    links: dict[str, str] = field(default_factory=dict)
    members: int = 0
    bytes: int = 0

    def admit(self, member: Member) -> list[str]:
        """Let a member pass; the directories that it is in and that no member has made, outermost first.

        Raises RefusedError that names what is wrong.
        """
        self.members += 1
        if self.members > self.limits.members:
            raise RefusedError(f"{self.shown}: has more than {self.limits.members} members; {_raise('members')}")
        _require_depth(member.path)
        if member.kind == "file" and member.mode & (stat.S_ISUID | stat.S_ISGID):
            raise RefusedError(f"{member.path}: would run as its owner (setuid); unpack it, and add the directory")
        missing = self._parents(member.path)
        self._require_free(member)
        if member.kind == "symlink":
            self.links[member.path] = member.link
        if member.kind == "hardlink" and self.kinds.get(member.link) != "file":
            raise RefusedError(f"{member.path}: is a hard link to {member.link}, which is no file before it")
        self.kinds[member.path] = "file" if member.kind == "hardlink" else member.kind
        return missing

    def count(self, size: int, read: int | None) -> None:
        """Bytes were taken out, `read` of the archive having been read so far (None: nobody knows).

        Raises RefusedError.
        """
        self.bytes += size
        if self.bytes > self.limits.bytes:
            raise RefusedError(f"{self.shown}: holds more than {self.limits.bytes} bytes; {_raise('bytes')}")
        if read is not None and self.bytes > max(_RATIO_FREE, read * self.limits.ratio):
            times = f"{self.limits.ratio} times its own size"
            raise RefusedError(f"{self.shown}: unpacks to {times} and more; {_raise('ratio')}")

    def finish(self) -> None:
        """All members have passed, so it is known where links lead. Raises RefusedError."""
        for path, text in self.links.items():
            if self._leads_out(path, text):
                raise RefusedError(f"{path}: is a link that leads out of the release, to {text}")

    def _require_free(self, member: Member) -> None:
        before = self.kinds.get(member.path)
        if before is not None and (before, member.kind) != ("directory", "directory"):
            raise RefusedError(f"{member.path}: is there twice")

    def _parents(self, path: str) -> list[str]:
        """Note the directories that it is in; those that are new."""
        missing = []
        names = path.split("/")
        for end in range(1, len(names)):
            parent = "/".join(names[:end])
            kind = self.kinds.setdefault(parent, "directory")
            if kind != "directory":
                raise RefusedError(f"{path}: is below {parent}, which is a {kind}")
            missing.append(parent)
        return missing

    def _leads_out(self, path: str, text: str) -> bool:
        """Walk the way that the kernel would, with the archive's own links."""
        place = path.split("/")[:-1]
        ahead = text.split("/")[::-1]
        hops = 0
        if text.startswith("/"):
            return True
        while ahead:
            name = ahead.pop()
            if name == "..":
                if not place:
                    return True
                place.pop()
            elif name not in ("", "."):
                place.append(name)
                link = self.links.get("/".join(place))
                if link is not None:
                    hops += 1
                    if link.startswith("/"):
                        return True
                    if hops > _LINK_HOPS:  # it leads nowhere (ELOOP)
                        return False
                    place.pop()
                    ahead += link.split("/")[::-1]
        return False


def clean_path(name: str, strip: int = 0) -> str | None:
    """A member's name as a path in the release, without its first `strip` directories; None if nothing is left of it.

    Raises RefusedError for one that could lead anywhere else.
    """
    if name.startswith("/"):
        raise RefusedError(f"{name}: is an absolute name")
    if "\0" in name:
        raise RefusedError(f"{name!r}: is no name of a file")
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise RefusedError(f"{name}: has a .. in it")
    if not parts:
        return "." if strip == 0 else None
    if strip and len(parts) <= strip:
        return None
    return "/".join(parts[strip:])


def _require_depth(path: str) -> None:
    if path.count("/") >= DEPTH_MAX or len(os.fsencode(path)) > _PATH_MAX:
        raise RefusedError(f"{path[:80]}...: is too deep; at most {DEPTH_MAX} directories can be in each other")
    if any(len(os.fsencode(name)) > 255 for name in path.split("/")):
        raise RefusedError(f"{path[:80]}...: is too long a name; it can have 255 bytes")


def _raise(key: str) -> str:
    return f"if it is to be trusted, raise add.{key} in config.toml, or unpack it and add the directory"
