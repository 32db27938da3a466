"""The first deploy, where there is no `current` yet, in every way in which one is replaced later."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from deploying import in_shell
from deploytools import TOOLS
from mounting import Mounts, wait_for
from sandbox import add_release

FIRST = {
    **{name: TOOLS[name].script for name in ("gnu mv -T", "gnu ln -sfn", "busybox ln -sfn", "busybox mv -T")},
    "gnu ln -nfs --relative": TOOLS["gnu ln -nfs --relative"].script,
    "capistrano": TOOLS["capistrano"].script,
    "capistrano's mv": 'ln -s "$D/$R" "$D/releases/current" && mv "$D/releases/current" "$D"',
    "deploy_helper": TOOLS["deploy_helper"].script,
    "rm -f && ln": TOOLS["rm -f && ln"].script,
    "php": 'php -r \'is_link($argv[1]) && unlink($argv[1]); symlink($argv[2], $argv[1]);\' -- "$D/current" "$R"',
    "mv from .tmp": 'mkdir "$D/.tmp" && ln -s "$R" "$D/.tmp/current" && mv "$D/.tmp/current" "$D" && rmdir "$D/.tmp"',
    "mv -n": 'ln -s "$R" "$D/new" && mv -nT "$D/new" "$D/current"',
}


@pytest.mark.parametrize("bind", ["bind", "no-bind"])
@pytest.mark.parametrize("tool", FIRST)
def test_first_deploy(tmp_path: Path, mounts: Mounts, tool: str, bind: str) -> None:
    app = tmp_path / "app"
    add_release(app, "41")
    mount = mounts.start(app, *(["--no-bind"] if bind == "no-bind" else []))
    assert not os.path.lexists(app / "current")
    done = in_shell(app, f"export R=releases/41 N=1; {FIRST[tool]}")
    assert (done.returncode, done.stderr) == (0, "")
    assert (app / "current/index.html").read_text() == "41"
    (event,) = mount.journal()
    assert (event["release"], event["from"], event["outcome"], event["user"]) == ("41", None, "done", "root")
    assert event["command"]
    assert mount.terminate() == 0
    assert (app / "current/index.html").read_text() == "41", "the real link says so, too"


def test_first_deploy_of_what_cannot_be_served(tmp_path: Path, mounts: Mounts) -> None:
    app = tmp_path / "app"
    add_release(app, "41")
    mount = mounts.start(app)
    done = in_shell(app, 'ln -s releases/gone "$D/current"')
    assert done.returncode != 0
    assert "No such file or directory" in done.stderr
    assert not os.path.lexists(app / "current")
    wait_for(lambda: len(mount.journal()) == 1, "the journal tells")
    (event,) = mount.journal()
    assert (event["action"], event["release"], event["from"]) == ("replace", "gone", None)
    assert event["outcome"] == "refused: releases/gone: No such file or directory"
