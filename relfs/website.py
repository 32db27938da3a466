"""Asking the web site itself whether it works: one URL, by HTTP, a few times. What follows from that is in
aftermath.py. A redirection is an answer like any other, and not followed: it says that another URL works, if any.

Not imported before there is something to ask: http.client takes longer than all the rest of a command.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from ssl import create_default_context
from urllib.parse import SplitResult, urlsplit

from relfs.errors import RefusedError
from relfs.verify import Verify, host_of

_BODY_MAX = 1 << 20


def ask_site(wanted: Verify, show: Callable[[str], None]) -> None:
    """Return once the site answers as it should; `show` is told of each try that it does not. Raises RefusedError."""
    if wanted.url is None:
        return
    for number in range(1, wanted.tries + 1):
        trouble = _try(wanted, urlsplit(wanted.url))
        if trouble is None:
            return
        show(f"{wanted.url}: {trouble} (try {number} of {wanted.tries})")
        if number < wanted.tries:
            time.sleep(wanted.pause)
    raise RefusedError(f"{wanted.url}: {trouble}")


def _try(wanted: Verify, url: SplitResult) -> str | None:
    """What is wrong with the answer."""
    connection = _connection(url, wanted)
    try:
        connection.connect()
        with _ended_after(connection.sock, wanted.timeout):
            path = (url.path or "/") + (f"?{url.query}" if url.query else "")
            connection.request("GET", path, headers={"User-Agent": "relfs", **_host(wanted), "Connection": "close"})
            return _trouble_with(connection.getresponse(), wanted)
    except TimeoutError:
        return f"no answer within {wanted.timeout:g} s"
    except (OSError, HTTPException, UnicodeError) as error:  # of a name that can be no host's, from its IDNA form
        return getattr(error, "strerror", None) or str(error) or type(error).__name__
    finally:
        connection.close()


def _connection(url: SplitResult, wanted: Verify) -> HTTPConnection:
    assert url.hostname is not None, "it was checked"
    if url.scheme == "http":
        return HTTPConnection(url.hostname, url.port, timeout=wanted.timeout)
    return _Secure(url.hostname, url.port, timeout=wanted.timeout, name=wanted.host)


class _Secure(HTTPSConnection):
    """One whose server has to show a certificate for the `name` that it is asked for, wherever it was found."""

    def __init__(self, host: str, port: int | None, *, timeout: float, name: str | None) -> None:
        super().__init__(host, port, timeout=timeout)
        self._name = host_of(name) if name is not None else host

    def connect(self) -> None:
        HTTPConnection.connect(self)
        self.sock = create_default_context().wrap_socket(self.sock, server_hostname=self._name)


def _host(wanted: Verify) -> dict[str, str]:
    return {"Host": wanted.host} if wanted.host is not None else {}


@contextmanager
def _ended_after(endpoint: socket.socket, seconds: float) -> Iterator[None]:
    """A socket's own timeout is for each byte: who sends one now and then would keep us for ever. Raises TimeoutError
    when the time is up, whatever was made of the answer until then: its end may look like a good one."""
    over = threading.Event()

    def end() -> None:
        over.set()
        with suppress(OSError):  # it was closed in this moment
            endpoint.shutdown(socket.SHUT_RDWR)  # whoever reads from it returns

    timer = threading.Timer(seconds, end)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        if over.is_set():
            raise TimeoutError


def _trouble_with(response: HTTPResponse, wanted: Verify) -> str | None:
    if response.status != wanted.status:
        to = response.headers.get("Location")
        return f"status {response.status}{f' (to {to})' if to else ''}, not {wanted.status}"
    if wanted.contains is not None and wanted.contains.encode() not in response.read(_BODY_MAX):
        return f"the answer does not contain {wanted.contains!r}"
    return None
