"""nginx with a root that leads through `current`, and wrk, which asks it without a pause and looks at every answer."""

from __future__ import annotations

import random
import re
import signal
import socket
import subprocess
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mounting import wait_for
from sandbox import RELEASES, make_app

_CONFIGURATION = """
daemon off;
master_process on;
user {user};
worker_processes 2;
pid {directory}/pid;
error_log {directory}/error.log;
events {{ worker_connections 512; }}
http {{
    access_log off;
    client_body_temp_path {directory}; proxy_temp_path {directory}; fastcgi_temp_path {directory};
    uwsgi_temp_path {directory}; scgi_temp_path {directory};
    server {{ listen unix:{directory}/probe; listen {address}; root {root}; }}
}}
"""

_LOOK = """
local threads = {}
function setup(thread) table.insert(threads, thread) end
function init() good, bad, mixed = 0, 0, 0 end
local function count(kind)
    if _G[kind] == 0 then io.open(directory .. "/seen-" .. kind, "w"):close() end
    _G[kind] = _G[kind] + 1
end
function response(status, headers, body)
    local first = status == 200 and body:match("^(%d+)\\n")
    if status ~= 200 then
        count("bad")
    elseif first and body == string.rep(first .. "\\n", #body / (#first + 1)) and #body > 1000 then
        count("good")
    else
        count("mixed")
    end
end
function done(summary, latency, requests)
    local all = {good = 0, bad = 0, mixed = 0}
    for _, thread in ipairs(threads) do
        for name in pairs(all) do all[name] = all[name] + thread:get(name) end
    end
    local e = summary.errors
    print(string.format("RESULT good=%d bad=%d mixed=%d errors=%d", all.good, all.bad, all.mixed,
          e.connect + e.read + e.write + e.timeout + e.status))
end
"""

PAGE_LINES = 4000


def page(release: str) -> str:
    """A body that takes more than one read to send, every line of which names its release."""
    return f"{release}\n" * PAGE_LINES


@dataclass(frozen=True)
class Answers:
    """What wrk saw: `good` answers were 200 and of one release from the first line to the last."""

    good: int
    bad: int
    mixed: int
    errors: int


class Web:
    """A running nginx on a loopback address, which `start` started: by itself, or by way of a shell."""

    def __init__(
        self,
        directory: Path,
        root: Path,
        start: Callable[[list[str]], subprocess.Popen[bytes]],
        *,
        user: str = "root",
    ) -> None:
        """`user` is whom its workers run as."""
        address = free_address()
        self.url = f"http://{address}/page"
        self._directory = directory
        configuration = directory / "nginx.conf"
        configuration.write_text(_CONFIGURATION.format(directory=directory, root=root, address=address, user=user))
        self._process = start(["nginx", "-e", str(directory / "error.log"), "-c", str(configuration)])
        wait_for(self._answers, "nginx answers")

    def _answers(self) -> bool:
        assert self._process.poll() is None, (self._directory / "error.log").read_text()
        try:
            return bool(self.get())
        except OSError:
            return False

    def get(self) -> str:
        """The first line of a fresh answer."""
        with urllib.request.urlopen(self.url, timeout=30) as answer:
            line: bytes = answer.readline()
            return line.decode().strip()

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(30)


def start_directly(command: list[str]) -> subprocess.Popen[bytes]:
    """nginx as this process's child, in this session."""
    return subprocess.Popen(command, cwd="/")


def free_address() -> str:
    """Where nobody else listens before nginx does: all of 127.0.0.0/8 is this machine, and others take 127.0.0.1."""
    host = f"127.{random.randint(1, 254)}.{random.randint(0, 255)}.{random.randint(1, 254)}"
    with socket.socket() as probe:
        probe.bind((host, 0))
        return f"{host}:{probe.getsockname()[1]}"


def make_site(path: Path) -> Path:
    """A deploy path whose releases each have a page that names them in every line."""
    app = make_app(path)
    for release in RELEASES:
        (app / "releases" / release / "page").write_text(page(release))
    return app


class Load:
    """A running wrk, which has had an answer. It ends when it is told to, and says what it saw."""

    def __init__(self, directory: Path, url: str) -> None:
        self._directory = directory
        script = directory / "look.lua"
        script.write_text(f'local directory = "{directory}"\n{_LOOK}')
        self._process = subprocess.Popen(
            ["wrk", "-t", "1", "-c", "8", "-d", "3600", "--timeout", "30", "-s", script, url],
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            wait_for(lambda: self.has_seen("good") and self._can_be_stopped(), "wrk has had an answer")
        except BaseException:
            self.end()
            raise

    def has_seen(self, kind: str) -> bool:
        """Whether an answer was "good", "bad" or "mixed" (see Answers)."""
        return (self._directory / f"seen-{kind}").exists()

    def _can_be_stopped(self) -> bool:
        """It handles SIGINT only once its threads are at work, and would die of one before that."""
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        caught = int(status.split("SigCgt:")[1].split()[0], 16)
        return bool(caught >> (signal.SIGINT - 1) & 1)

    def stop(self) -> Answers:
        self._process.send_signal(signal.SIGINT)
        out, _ = self._process.communicate(timeout=60)
        found = re.search(r"RESULT good=(\d+) bad=(\d+) mixed=(\d+) errors=(\d+)", out)
        assert found is not None, out
        return Answers(*map(int, found.groups()))

    def end(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
