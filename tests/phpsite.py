"""nginx and php-fpm before a site of PHP, those who visit it without a pause, and what each of them may have seen.

Which process looks `current` up is `Decides`: nginx, with its $realpath_root, once a request; or php-fpm.
"""

from __future__ import annotations

import fcntl
import http.client
import subprocess
import tempfile
import threading
import time
import urllib.request
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from mounting import wait_for
from sandbox import RELEASES, make_app
from web import free_address

PREPEND = Path(__file__).resolve().parent.parent / "contrib/php/relfs.php"
"""What the documents tell people to have run before each page."""

PARTS = 10
_WAYS = 5
_PAGE = f"""<?php
$root = $_SERVER['DOCUMENT_ROOT'];
for ($part = 0; $part < {PARTS}; $part++) {{
    require __DIR__ . "/parts/near$part.php";
    require "$root/parts/far$part.php";
    require_once realpath($root) . "/parts/real$part.php";
    readfile("$root/parts/data$part");
    readfile(dirname($_SERVER['SCRIPT_FILENAME']) . "/parts/data$part");
}}
"""

_MEET = """<?php
touch($_GET['at'] . '/' . getmypid());
flock(fopen($_GET['at'] . '/over', 'r'), LOCK_SH);
echo getmypid(), ' ', basename(__DIR__);
"""
"""Who is asked for it is busy until the meeting is over."""


class Decides(Enum):
    """Who resolves `current`: the value is what nginx tells PHP of the root."""

    NGINX = "$realpath_root"
    PHP = "$document_root"


def make_php_site(path: Path) -> Path:
    """A deploy path whose releases have a page of many parts, included late and in several ways; each says which
    release it is of."""
    app = make_app(path)
    for release in RELEASES:
        parts = app / "releases" / release / "parts"
        parts.mkdir()
        (parts.parent / "page.php").write_text(_PAGE)
        (parts.parent / "meet.php").write_text(_MEET)
        for part in range(PARTS):
            (parts / f"data{part}").write_text(f"{release}\n")
            for kind in ("near", "far", "real"):
                (parts / f"{kind}{part}.php").write_text(f"<?php echo '{release}', PHP_EOL;\n")
    return app


# ---- servers


@dataclass(frozen=True)
class Pool:
    """`name` is that of the pool; its processes are `user`'s, so many `workers`, of whom each is replaced by another
    one after so many `requests`."""

    name: str
    user: str
    workers: int = 3
    requests: int = 300


_FPM = """
[global]
daemonize = no
error_log = {directory}/{name}-fpm.log
"""

_FPM_POOL = """
[{pool.name}]
user = {pool.user}
listen = {directory}/{pool.name}.socket
listen.mode = 0666
pm = static
pm.max_children = {pool.workers}
pm.max_requests = {pool.requests}
{settings}
"""

_NGINX = """
daemon off;
master_process on;
user {user};
worker_processes 3;
pid {directory}/pid;
error_log {directory}/error.log;
events {{ worker_connections 512; }}
http {{
    access_log off;
    client_body_temp_path {directory}; proxy_temp_path {directory}; fastcgi_temp_path {directory};
    uwsgi_temp_path {directory}; scgi_temp_path {directory};
    {servers}
}}
"""

_NGINX_SERVER = """
    server {{
        listen {address}; root {root}; keepalive_requests 1000000;
        location ~ \\.php$ {{
            fastcgi_pass unix:{socket};
            fastcgi_param REQUEST_METHOD $request_method;
            fastcgi_param QUERY_STRING $query_string;
            fastcgi_param SCRIPT_NAME $fastcgi_script_name;
            fastcgi_param SCRIPT_FILENAME {decides.value}$fastcgi_script_name;
            fastcgi_param DOCUMENT_ROOT {decides.value};
        }}
    }}
"""


@contextmanager
def running(command: Sequence[str | Path], *answers: Path) -> Iterator[None]:
    """A server until the end of the block. It is there once `answers` are."""
    process = subprocess.Popen(command, cwd="/")
    try:
        wait_for(lambda: process.poll() is not None or all(each.exists() for each in answers), "the server starts")
        assert process.poll() is None, f"{command} has ended"
        yield
    finally:
        process.terminate()
        process.wait(30)


@contextmanager
def php_fpm(
    directory: Path, pools: Sequence[Pool], settings: Mapping[str, str], within: Sequence[str] = ()
) -> Iterator[list[Path]]:
    """One php-fpm with these pools: their sockets. `settings` are for each of them, `within` is a command that becomes
    php-fpm."""
    first = pools[0].name
    configuration = directory / f"{first}-fpm.conf"
    parts = [_FPM.format(directory=directory, name=first)]
    told = "\n".join(f"php_admin_value[{name}] = {value}" for name, value in settings.items())
    parts += [_FPM_POOL.format(directory=directory, pool=pool, settings=told) for pool in pools]
    configuration.write_text("".join(parts))
    sockets = [directory / f"{pool.name}.socket" for pool in pools]
    program = [_php_fpm_program(), "-n", "-d", "zend_extension=opcache", "-F", "-y", str(configuration)]
    with running([*within, *program], *sockets):
        yield sockets


def _php_fpm_program() -> str:
    """Debian has the version in its name."""
    return str(max(Path("/usr/sbin").glob("php-fpm*")))


def php_fpm_name() -> str:
    """What all of its processes are called."""
    return Path(_php_fpm_program()).name


@contextmanager
def nginx(
    directory: Path, root: Path, sockets: Sequence[Path], decides: Decides, *, user: str = "www-data"
) -> Iterator[list[str]]:
    """One nginx of several workers, with a server for each of PHP's `sockets`: where they answer."""
    addresses = [free_address() for _ in sockets]
    servers = [
        _NGINX_SERVER.format(address=address, root=root, socket=socket, decides=decides)
        for address, socket in zip(addresses, sockets, strict=True)
    ]
    configuration = directory / "nginx.conf"
    configuration.write_text(_NGINX.format(directory=directory, user=user, servers="".join(servers)))
    with running(["nginx", "-e", directory / "error.log", "-c", configuration], directory / "pid"):
        yield addresses


def meet(address: str, count: int, place: Path) -> dict[int, str]:
    """Ask so many workers of php-fpm at once, each of them once: their pids, and the release that each is in. Everybody
    may write in `place`."""
    with tempfile.TemporaryDirectory(dir=place) as name, ThreadPoolExecutor(count) as threads:
        at = Path(name)
        at.chmod(0o777)
        with (at / "over").open("w") as over:
            fcntl.flock(over, fcntl.LOCK_EX)
            answers = [threads.submit(_get, f"http://{address}/meet.php?at={at}") for _ in range(count)]
            wait_for(lambda: len(list(at.iterdir())) == count + 1, "each has a worker of its own")
        told = [each.result().split() for each in answers]
    return {int(pid): release for pid, release in told}


def _get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=120) as answer:
        text: str = answer.read().decode()
        return text


# ---- visitors


@dataclass(frozen=True)
class Visit:
    """An answer of the web server `where`: asked for and complete at these moments (monotonic), it names `releases`, or
    is no good at all."""

    where: str
    began: float
    ended: float
    releases: frozenset[str]


class Visitors:
    """Threads that ask web servers for a page until they are told to stop."""

    def __init__(self, addresses: Sequence[str], each: int = 2) -> None:
        self._visits: dict[str, list[Visit]] = {address: [] for address in addresses}
        self._over = threading.Event()
        self._threads = [
            threading.Thread(target=self._go_on, args=(address,)) for address in addresses for _ in range(each)
        ]  # fmt: skip
        for thread in self._threads:
            thread.start()

    def count(self) -> int:
        return sum(map(len, self._visits.values()))

    def visits(self) -> list[Visit]:
        """All answers so far."""
        return [visit for visits in self._visits.values() for visit in visits]

    def wait_for_more(self, count: int) -> None:
        """Until each server has given so many more answers."""
        wanted = {where: len(visits) + count for where, visits in self._visits.items()}
        wait_for(lambda: all(len(self._visits[where]) >= many for where, many in wanted.items()), "there are visits")

    def stop(self) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _go_on(self, address: str) -> None:
        connection = http.client.HTTPConnection(address, timeout=30)
        while not self._over.is_set():
            self._visits[address].append(_visit(connection, address))
        connection.close()


def _visit(connection: http.client.HTTPConnection, address: str) -> Visit:
    began = time.monotonic()
    try:
        connection.request("GET", "/page.php")
        answer = connection.getresponse()
        lines = answer.read().decode().split("\n")
        good = answer.status == 200 and len(lines) == _WAYS * PARTS + 1
    except (OSError, http.client.HTTPException):
        connection.close()
        good, lines = False, []
    return Visit(address, began, time.monotonic(), frozenset(lines[:-1]) if good else frozenset())


# ---- what they may have seen


@dataclass
class Sight:
    """What those who ask one server are to see: releases, and between which moments each became so."""

    releases: list[str] = field(default_factory=list)
    began: list[float] = field(default_factory=list)
    ended: list[float] = field(default_factory=list)

    def change(self, release: str, began: float, ended: float) -> None:
        self.releases.append(release)
        self.began.append(began)
        self.ended.append(ended)

    def allows(self, visit: Visit) -> bool:
        """Whether it was of one release, which was to be seen at some moment of the visit."""
        first = max(bisect_left(self.ended, visit.began) - 1, 0)
        last = bisect_right(self.began, visit.ended)
        return len(visit.releases) == 1 and visit.releases <= set(self.releases[first:last])
