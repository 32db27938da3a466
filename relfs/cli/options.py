"""The comma list of mount(8): which options are relfs's, which go to fusermount3, which are only for other programs."""

from __future__ import annotations

from dataclasses import dataclass

from relfs.errors import UsageError
from relfs.layout import LinkStyle

_PASSED_ON = frozenset(
    {"rw", "ro", "nosuid", "nodev", "exec", "noexec", "atime", "noatime", "sync", "async", "dirsync"}
)
_IGNORED = frozenset(
    {
        "defaults",
        "suid",
        "dev",
        "auto",
        "noauto",
        "user",
        "nouser",
        "users",
        "owner",
        "group",
        "nofail",
        "_netdev",
        "default_permissions",
    }
)
"""Read by mount(8) and service managers from /etc/fstab, or always on. So are suid and dev, which mount.fuse(8) adds by
itself, never on: what is served natively has the flags of its own disk."""
_IGNORED_PREFIXES = ("x-", "X-", "comment=")


@dataclass(frozen=True)
class MountOptions:
    """What `-o` said; None where it did not."""

    passed_on: tuple[str, ...] = ()
    bind: bool | None = None
    link: LinkStyle | None = None
    state_dir: str | None = None
    allow_other: bool | None = None
    nonempty: bool = False


def parse_mount_options(lists: tuple[str, ...]) -> MountOptions:
    """Read `-o` arguments. Raises UsageError that names the option that is not known."""
    passed_on = []
    found: dict[str, str | bool] = {}
    for option in (word for each in lists for word in each.split(",") if word):
        name, _, value = option.partition("=")
        if option in _PASSED_ON:
            passed_on.append(option)
        elif option in ("allow_other", "noallow_other"):
            found["allow_other"] = option == "allow_other"
        elif option == "nonempty":
            found["nonempty"] = True
        elif option in ("bind", "no_bind"):
            found["bind"] = option == "bind"
        elif name == "link" and value in ("relative", "absolute"):
            found["link"] = value
        elif name == "state_dir" and value:
            found["state_dir"] = value
        elif option not in _IGNORED and not option.startswith(_IGNORED_PREFIXES):
            raise UsageError(f"-o {option}: no such mount option; `relfs --help` lists them")
    return MountOptions(tuple(passed_on), **found)  # type: ignore[arg-type]
