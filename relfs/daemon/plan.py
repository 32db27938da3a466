"""What was asked for on the command line of `relfs`, understood and checked as far as words go."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from relfs.layout import LinkStyle


@dataclass(frozen=True)
class Plan:
    """INVARIANT: paths are absolute and resolved. `mount_options` are mount(8)'s, as given."""

    deploy_path: str
    mountpoint: str
    mount_options: tuple[str, ...] = ()
    bind: bool = True
    link: LinkStyle | None = None
    state_dir: str | None = None
    allow_other: bool | None = None
    nonempty: bool = False

    @property
    def over(self) -> bool:
        """Whether the mount covers the deploy path."""
        return self.mountpoint == self.deploy_path


def as_text(plan: Plan) -> str:
    """A plan, as a word of a command line."""
    return json.dumps(asdict(plan))


def plan_of(text: str) -> Plan:
    """The plan that as_text() told."""
    told = json.loads(text)
    return Plan(**{**told, "mount_options": tuple(told["mount_options"])})
