"""nginx under load, near to a deploy whose tools leave a gap on a plain directory: as the child of the deploying shell,
and as the child of its parent, in one session with it.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from mounting import Mount, Mounts, environment
from web import Answers, Load, Web, make_site, start_directly

SWAPS = 200

SCRIPTS = {
    "rm; ln": 'rm "$D/current"; ln -s "$R" "$D/current"',
    "busybox ln -sfn": 'busybox ln -sfn "$R" "$D/current"',
    "mv across mounts": 'ln -s "$D/$R" "$D/releases/current" && mv "$D/releases/current" "$D"',
}

_LOOP = 'i=0; while [ $i -lt "$N" ]; do i=$((i + 1)); R=releases/4$((i %% 2)); { %s; } || break; done; echo $i'

_SERVE_AND_DEPLOY = """
"$@" & server=$!
trap 'kill $server' TERM
read -r go && { %s; }
wait
wait
"""
"""The shell starts nginx, deploys when it is told to, and ends nginx when it is to end itself: the signal
interrupts the first `wait`."""


@pytest.fixture
def mount(tmp_path: Path, mounts: Mounts) -> Mount:
    return mounts.start(make_site(tmp_path / "app"))


def shell(app: Path, script: str, *arguments: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        ["sh", "-c", script, "deploy", *arguments], cwd="/", stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        env=environment(D=str(app), N=str(SWAPS)),
    )  # fmt: skip


@contextmanager
def serving(server: Web) -> Iterator[Web]:
    try:
        yield server
    finally:
        server.stop()


def assert_unnoticed(mount: Mount, answers: Answers) -> None:
    assert (answers.bad, answers.mixed, answers.errors) == (0, 0, 0)
    assert answers.good > 0
    assert [event["release"] for event in mount.journal() if event["action"] == "switch"] == ["41", "40"] * (SWAPS // 2)


@pytest.mark.parametrize("tool", SCRIPTS)
def test_the_parents_child(mount: Mount, tmp_path: Path, tool: str) -> None:
    with serving(Web(tmp_path, mount.app / "current", start_directly)) as web:
        load = Load(tmp_path, web.url)
        try:
            deploying = shell(mount.app, _LOOP % SCRIPTS[tool])
            assert deploying.communicate(timeout=1200)[0] == f"{SWAPS}\n".encode()
            assert_unnoticed(mount, load.stop())
        finally:
            load.end()


@pytest.mark.parametrize("tool", SCRIPTS)
def test_the_deploying_shells_child(mount: Mount, tmp_path: Path, tool: str) -> None:
    started: list[subprocess.Popen[bytes]] = []

    def start(command: list[str]) -> subprocess.Popen[bytes]:
        started.append(shell(mount.app, _SERVE_AND_DEPLOY % (_LOOP % SCRIPTS[tool]), *command))
        return started[0]

    with serving(Web(tmp_path, mount.app / "current", start)) as web:
        load = Load(tmp_path, web.url)
        try:
            tell, told = started[0].stdin, started[0].stdout
            assert tell is not None
            assert told is not None
            with tell, told:
                tell.write(b"go\n")
                tell.flush()
                assert told.readline() == f"{SWAPS}\n".encode()
            assert_unnoticed(mount, load.stop())
        finally:
            load.end()
