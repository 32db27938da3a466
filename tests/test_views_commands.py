"""relfsctl, run by somebody who sees another release than everybody, or no `current` at all: what it tells of, and goes
by, is what everybody sees."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from subprocess import CompletedProcess

import pytest
from deploying import in_shell
from mounting import Mount, relfsctl_command

Ask = Callable[..., CompletedProcess[str]]


@pytest.fixture(params=["of the audience", "pinned", "replacing"])
def ask(request: pytest.FixtureRequest, mount: Mount) -> Ask:
    """Run relfsctl as one to whom `current` does not lead to 41, as it does for everybody, after 40."""
    assert mount.relfsctl("switch", "41").returncode == 0
    if request.param == "of the audience":
        assert mount.relfsctl("canary", "42", "--uid", "0").returncode == 0

    def run(*arguments: str) -> CompletedProcess[str]:
        command = relfsctl_command(mount.app, *arguments)
        if request.param == "pinned":
            return mount.relfsctl("run", "--release", "42", "--", *command)
        if request.param == "replacing":
            return in_shell(mount.app, f'rm "$D/current"; {shlex.join(command)}; ln -s releases/41 "$D/current"')
        return mount.relfsctl(*arguments)

    return run


def test_what_is_current_for_everybody_counts(mount: Mount, ask: Ask) -> None:
    """So what a rollback leads to is not removed, either."""
    listed = json.loads(ask("--json", "releases").stdout)
    assert [each["name"] for each in listed if "current" in each["states"]] == ["41"]
    decisions = json.loads(ask("--json", "prune", "--keep", "1").stdout)["decisions"]
    pruned = {each["name"]: each["why"] for each in decisions}
    assert (pruned["40"], pruned["41"]) == ("the last good one, which a rollback leads to", "current")
    assert (mount.app / "releases/40").is_dir()
