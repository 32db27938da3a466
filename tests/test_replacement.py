"""Every way in which deploy tools replace `current`, run with the real tool beside readers that never pause.

On a plain directory the same must fail where the tool is known to leave a gap: that shows that the readers can see it.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from deploying import assert_journalled, assert_nobody_noticed, deploy
from deploytools import TOOLS
from mounting import Mount

SWAPS = 200

ROUNDS = 50
"""How often a plain directory is given the chance to show its gap, which some tools leave for microseconds only."""


@pytest.mark.parametrize("tool", TOOLS)
def test_no_reader_notices(mount: Mount, tool: str) -> None:
    before = len(mount.journal())
    run = deploy(mount.app, TOOLS[tool], SWAPS)
    assert_nobody_noticed(run)
    assert all(seen.contents == {"40", "41"} for seen in run.seen.values()), "every reader saw both"
    assert_journalled(mount, TOOLS[tool], SWAPS, skip=before)
    assert os.path.realpath(mount.app / "current") == str(mount.app / "releases/40")
    assert sorted(os.listdir(mount.app)) == [".relfs", "current", "releases"], "nothing is left lying about"
    assert sorted(os.listdir(mount.app / "releases")) == ["40", "41", "42"]
    assert all(os.listdir(mount.app / "releases" / name) == ["index.html"] for name in ("40", "41", "42"))


@pytest.mark.parametrize("tool", ["busybox ln -sfn", "rm; ln", "rm -f && ln", "unlink, symlink: perl"])
def test_the_gap_is_real_on_a_plain_directory(app: Path, tool: str) -> None:
    """Shows that the readers would notice: without relfs, they do."""
    failures = 0
    for _ in range(ROUNDS):
        run = deploy(app, TOOLS[tool], SWAPS)
        assert (run.status, run.errors) == (0, "")
        failures += run.failures()
        if failures:
            break
    assert failures > 0
