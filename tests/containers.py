"""Containers as a runtime makes them (crun(1), which podman and Kubernetes use), with a mount of relfs bound in at its
own path, and the relfs that is being tested. Their programs are this machine's.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mounting import environment

from relfs.mountinfo import mounts

_ROOT = Path(__file__).resolve().parent.parent
_NAMESPACES = ("pid", "mount", "ipc", "uts", "network")
_RUNTIME = ("crun", "--cgroup-manager=disabled", "--root")

_CROWDED = 'mount -t cgroup2 none /sys/fs/cgroup && exec "$@"'
"""crun refuses to work where a host has both versions of control groups: it is shown one."""


@dataclass(frozen=True)
class Container:
    """One that `start` makes, and that ends with its first process; `name` is free, `directory` its own."""

    directory: Path
    name: str

    def start(self, *command: str) -> list[str]:
        """What starts it, with `command` as its first process."""
        config = json.loads(self._config.read_text())
        config["process"]["args"] = command
        self._config.write_text(json.dumps(config))
        return self._runtime("run", "--bundle", str(self.directory), self.name)

    def enter(self, *command: str) -> list[str]:
        """What runs `command` in it."""
        return self._runtime("exec", self.name, *command)

    @property
    def _config(self) -> Path:
        return self.directory / "config.json"

    def _runtime(self, *words: str) -> list[str]:
        state = str(self.directory / "state")
        return ["unshare", "--mount", "sh", "-c", _CROWDED, "sh", *_RUNTIME, state, *words]


def new_container(directory: Path, mounted: Path, *, root: int, alone: bool = False) -> Container:
    """Its bundle in the new `directory`, which every user has to reach. It has a user name space of its own unless
    `root` is 0; its root has no capabilities. `alone`: nothing is bound in that is mounted below `mounted`."""
    (directory / "rootfs").mkdir(parents=True)
    os.chown(directory / "rootfs", root, root)
    container = Container(directory, f"relfs-test-{os.getpid()}-{directory.name}")
    config: dict[str, Any] = {
        "ociVersion": "1.0.0",
        "process": {
            "user": {"uid": 0, "gid": 0}, "cwd": "/", "noNewPrivileges": True, "capabilities": {}, "args": [],
            "env": [f"{name}={environment()[name]}" for name in ("PATH", "PYTHONPATH")],
        },
        "root": {"path": "rootfs"},
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs"},
            *(_bound(path, "rbind", "ro") for path in _programs()),
            *([_bound(str(mounted), "bind")] if alone else _bound_with_all_below(mounted)),
        ],
        "linux": {"namespaces": [{"type": each} for each in _NAMESPACES]},
    }  # fmt: skip
    if root:
        mapping = [{"containerID": 0, "hostID": root, "size": 1000}]
        config["linux"]["namespaces"].append({"type": "user"})
        config["linux"] |= {"uidMappings": mapping, "gidMappings": mapping}
    (directory / "config.json").write_text(json.dumps(config))
    return container


def _programs() -> Sequence[str]:
    """Where Python, what it needs, and relfs are."""
    found = ["/usr", "/bin", "/lib", "/lib64", sys.prefix, str(_ROOT)]
    return list(dict.fromkeys(path for path in found if Path(path).exists()))


def _bound_with_all_below(mounted: Path) -> list[dict[str, Any]]:
    """By its own name, too, what is mounted below it: in a user name space, crun 1.8 takes `rbind` for `bind`."""
    below = [each.target for each in mounts() if Path(each.target).is_relative_to(mounted)]
    return [_bound(path, "rbind") for path in dict.fromkeys([str(mounted), *below])]


def _bound(path: str, *options: str) -> dict[str, Any]:
    return {"destination": path, "type": "bind", "source": path, "options": options}
