"""A shell that deploys, beside readers in every place where a web server can stand: a child of that very shell, started
before it deploys; a child of the shell's parent, in the same session; and one in a session of its own.
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from deploytools import Tool
from mounting import Mount, environment
from readers import READY, Seen, reader_command, reading, total

TESTS = Path(__file__).parent

CHILD, SIBLING, STRANGER = "the shell's child", "the parent's child", "another session"

_EACH = """
"$@" </dev/fd/$IN >/dev/fd/$OUT &
read -r go
export R
i=0
while [ $i -lt "$N" ]; do
    i=$((i + 1))
    R=releases/4$((i %% 2))
    {
        %s
    } </dev/null || exit
done
"""
_WHOLE = """
"$@" </dev/fd/$IN >/dev/fd/$OUT &
read -r go
%s
"""
"""The reader is the shell's child; nothing has replaced `current` before `go`, when every reader is reading."""


@dataclass(frozen=True)
class Run:
    """What a shell that deployed said, and what the readers saw, by where they stood."""

    status: int
    errors: str
    seen: dict[str, Seen]

    def failures(self) -> int:
        return sum(sum(seen.failed.values()) for seen in self.seen.values())


def deploy(app: Path, tool: Tool, swaps: int, *, user: int | None = None) -> Run:
    """Swap `swaps` times, to releases 41 and 40 by turns, in one shell; as `user`, who owns the deploy path."""
    file = app / "current/index.html"
    with (
        reading(file, "40", "41", count=1) as siblings,
        reading(file, "40", "41", count=1, session=True) as strangers,
        tempfile.TemporaryFile() as errors,  # no pipe, whose end would wait for the shell's reader, too
    ):
        shell = _Shell(app, tool, swaps, user, errors)
        status = shell.deploy()
        seen = {CHILD: shell.stop_reader(), SIBLING: siblings.stop(), STRANGER: strangers.stop()}
        errors.seek(0)
        return Run(status, errors.read().decode(), seen)


class _Shell:
    """The shell, with a reader that it started itself. Two pipes lead to that reader, past the shell."""

    def __init__(self, app: Path, tool: Tool, swaps: int, user: int | None, errors: IO[bytes]) -> None:
        (stopped, stop), (seen, tell) = os.pipe(), os.pipe()
        for end in (stopped, tell):  # which the reader opens again, as that user
            os.fchown(end, user if user is not None else -1, -1)
        self._stop, self._seen = os.fdopen(stop, "wb", buffering=0), os.fdopen(seen, "rb")
        self._process = subprocess.Popen(
            ["sh", "-c", _script(tool), "deploy", *reader_command(app / "current/index.html", "40", "41")],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            pass_fds=(stopped, tell),
            cwd="/",
            env=_environment(app, N=str(swaps), IN=str(stopped), OUT=str(tell)),
            user=user,
            group=user,
            extra_groups=[] if user is not None else None,
        )
        os.close(stopped)
        os.close(tell)

    def deploy(self) -> int:
        """Once the reader reads, let the shell deploy; its status."""
        assert self._seen.readline() == READY
        self._process.communicate(b"go\n", timeout=1200)
        return self._process.returncode

    def stop_reader(self) -> Seen:
        with self._stop, self._seen:
            self._stop.write(b"\n")
            return total([self._seen.readline()])


def _script(tool: Tool) -> str:
    return (_WHOLE if tool.whole else _EACH) % tool.script


def _environment(app: Path, **more: str) -> dict[str, str]:
    return environment(D=str(app), TESTS=str(TESTS), LC_ALL="C.UTF-8", **more)


def assert_nobody_noticed(run: Run) -> None:
    """The tool had nothing to complain of; no reader failed, and none read what is of neither release."""
    assert (run.status, run.errors) == (0, "")
    for place, seen in run.seen.items():
        assert (seen.failed, seen.neither) == ({}, 0), place


def assert_journalled(mount: Mount, tool: Tool, swaps: int, *, user: str = "root", skip: int) -> None:
    """After `skip` events, one for each swap, in order, that names who did it and with which command."""
    events = mount.journal()[skip:]
    assert [event["release"] for event in events] == ["41", "40"] * (swaps // 2)
    named = re.compile(tool.named.format(D=re.escape(str(mount.mountpoint)), TESTS=re.escape(str(TESTS))))
    for event in events:
        assert (event["action"], event["outcome"], event["user"]) == ("switch", "done", user), event
        assert event["pid"] > 0
        assert named.match(event["command"]), event


def in_shell(app: Path, script: str, *, cwd: Path | None = None, **more: Any) -> subprocess.CompletedProcess[str]:
    """Run `script` in a shell of its own, with $D the deploy path; the caller looks at the status."""
    return subprocess.run(
        ["sh", "-c", script],
        cwd=cwd if cwd is not None else "/",
        env=_environment(app),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        **more,
    )
