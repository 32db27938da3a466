"""nginx with a root that leads through `current`, and wrk, which asks it without a pause and looks at every answer."""

from __future__ import annotations

import re
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
user root;
worker_processes 2;
pid {directory}/pid;
error_log {directory}/error.log;
events {{ worker_connections 512; }}
http {{
    access_log off;
    client_body_temp_path {directory}; proxy_temp_path {directory}; fastcgi_temp_path {directory};
    uwsgi_temp_path {directory}; scgi_temp_path {directory};
    server {{ listen unix:{directory}/probe; listen 127.0.0.1:{port}; root {root}; }}
}}
"""

_LOOK = """
local threads = {}
function setup(thread) table.insert(threads, thread) end
function init() good, bad, mixed = 0, 0, 0 end
function response(status, headers, body)
    if status ~= 200 then bad = bad + 1; return end
    local first = body:match("^(%d+)\\n")
    if first and body == string.rep(first .. "\\n", #body / (#first + 1)) and #body > 1000 then
        good = good + 1
    else
        mixed = mixed + 1
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
    """A running nginx on a loopback port, which `start` started: by itself, or by way of a shell."""

    def __init__(self, directory: Path, root: Path, start: Callable[[list[str]], subprocess.Popen[bytes]]) -> None:
        port = _free_port()
        self.url = f"http://127.0.0.1:{port}/page"
        self._directory = directory
        configuration = directory / "nginx.conf"
        configuration.write_text(_CONFIGURATION.format(directory=directory, root=root, port=port))
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


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def make_site(path: Path) -> Path:
    """A deploy path whose releases each have a page that names them in every line."""
    app = make_app(path)
    for release in RELEASES:
        (app / "releases" / release / "page").write_text(page(release))
    return app


class Load:
    """A running wrk. It ends when it is told to, and says what it saw."""

    def __init__(self, directory: Path, url: str) -> None:
        script = directory / "look.lua"
        script.write_text(_LOOK)
        self._process = subprocess.Popen(
            ["wrk", "-t", "1", "-c", "8", "-d", "3600", "--timeout", "30", "-s", script, url],
            stdout=subprocess.PIPE,
            text=True,
        )

    def stop(self) -> Answers:
        self._process.send_signal(2)
        out, _ = self._process.communicate(timeout=60)
        found = re.search(r"RESULT good=(\d+) bad=(\d+) mixed=(\d+) errors=(\d+)", out)
        assert found is not None, out
        return Answers(*map(int, found.groups()))

    def end(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
