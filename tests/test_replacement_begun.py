"""A replacement that is under way, or was begun and never ended: who sees what, and where it is told.

How it is decided who is replacing the link is tested without a mount, in test_replacement_views.py.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
from pathlib import Path

import pytest
from deploying import in_shell
from mounting import Mount, Mounts, environment, relfsctl_command, wait_for
from readers import reading
from sandbox import be_patient

BEGINNINGS = {
    "rm": 'rm "$D/current"',
    "mv away": 'mv "$D/current" "$D/releases/old"',
    "killed by itself": "perl -e 'unlink $ARGV[0] or die; kill 9, $$' \"$D/current\"",
}


@pytest.fixture
def mount(app: Path, mounts: Mounts) -> Mount:
    """One on which a replacement that was begun lasts until the test is over."""
    return mounts.start(be_patient(app))


@pytest.fixture
def hasty(app: Path, mounts: Mounts) -> Mount:
    """A mount that waits no more than a second for the end of a replacement."""
    (app / ".relfs").mkdir()
    (app / ".relfs/config.toml").write_text("[replacement]\ngrace = 1\n")
    return mounts.start(app)


def lapsed(mount: Mount) -> list[dict[str, object]]:
    return [event for event in mount.journal() if event["action"] == "replace"]


@pytest.mark.parametrize("beginning", BEGINNINGS)
def test_begun_and_gone_for_the_rest_of_the_script(mount: Mount, beginning: str) -> None:
    done = in_shell(mount.app, f"{{ {BEGINNINGS[beginning]}; }} 2>&-; ! test -L $D/current && echo gone")
    assert (done.returncode, done.stdout) == (0, "gone\n")


@pytest.mark.parametrize("beginning", BEGINNINGS)
def test_begun_and_never_ended(hasty: Mount, beginning: str) -> None:
    """The tool dies after unlink: everybody else keeps the old release; the rest of the script gets it back in time."""
    rest = "while ! test -L $D/current; do :; done"
    with reading(hasty.app / "current/index.html", "40") as readers:
        done = in_shell(hasty.app, f"{{ {BEGINNINGS[beginning]}; }} 2>&-; {rest}")
        wait_for(lambda: lapsed(hasty), "the journal tells")
        seen = readers.stop()
    assert done.returncode == 0
    assert (seen.failed, seen.neither) == ({}, 0)
    (event,) = lapsed(hasty)
    assert event["outcome"] == "lapsed: current was removed and not made again within 1 s"
    assert (event["release"], event["user"]) == ("40", "root")
    assert str(event["command"]).split(" ")[0] in ("rm", "mv", "perl")
    assert os.readlink(hasty.app / "current") == "releases/40"
    assert hasty.status()["views"] == []


def test_the_whole_script_is_killed(hasty: Mount) -> None:
    """Nobody is left who could end it, so nobody is waited for: the next tool finds the link, and replaces it."""
    script = 'rm "$D/current"; kill -9 $$'
    done = in_shell(hasty.app, script, start_new_session=True)
    assert done.returncode == -9
    assert (hasty.app / "current/index.html").read_text() == "40"
    assert in_shell(hasty.app, 'ln -sfn releases/41 "$D/current"').returncode == 0
    assert (hasty.app / "current/index.html").read_text() == "41"
    wait_for(lambda: lapsed(hasty), "the journal tells")


def test_log_and_watch_tell_it(hasty: Mount) -> None:
    command = relfsctl_command(hasty.app, "--json", "watch")
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment(), cwd="/") as watch:
        assert watch.stdout is not None
        stream = watch.stdout

        def heard() -> bool:
            """Whether the watcher, whose start nobody is told of, has heard of what is begun here."""
            in_shell(hasty.app, 'rm "$D/current"')
            return bool(select.select([stream], [], [], 3.0)[0])

        try:
            wait_for(heard, "the watcher hears of it", 60)
            event = json.loads(stream.readline())
        finally:
            watch.kill()
    assert (event["action"], event["command"]) == ("replace", f"rm {hasty.app}/current")
    assert event["outcome"].startswith("lapsed")
    log = hasty.relfsctl("log")
    assert "lapsed" in log.stdout
    assert f"rm {hasty.app}/current" in log.stdout


def test_status_tells_of_a_replacement_under_way(mount: Mount) -> None:
    with subprocess.Popen(
        ["sh", "-c", f"rm {mount.app}/current; echo removed; read line"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as script:
        assert script.stdout is not None
        assert script.stdout.readline() == b"removed\n"
        (view,) = mount.status()["views"]
        assert view["reason"] == "replacing current"
        assert view["command"] == f"rm {mount.app}/current"
        assert f"rm {mount.app}/current" in mount.relfsctl("status").stdout
        assert f"(rm {mount.app}/current)" in mount.relfsctl("views").stdout
        script.communicate(b"\n")


def test_refused_and_tried_again(mount: Mount) -> None:
    """A script whose link was refused may make another: the name stays free for it, and for nobody else."""
    script = 'rm "$D/current"; ln -s releases/gone "$D/current" || ln -s releases/41 "$D/current"'
    with reading(mount.app / "current/index.html", "40", "41") as readers:
        done = in_shell(mount.app, script)
        seen = readers.stop()
    assert done.returncode == 0
    assert (seen.failed, seen.neither) == ({}, 0)
    assert os.readlink(mount.app / "current") == "releases/41"
