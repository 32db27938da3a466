"""What config.toml says, in [verify], of asking the web site whether what has just become current works. Asking it is
in website.py, what follows from the answer in aftermath.py."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import SplitResult, urlsplit


@dataclass(frozen=True)
class Verify:
    """What config.toml says of it: the URL (None: nothing is asked), the `status` and what the body must have in it,
    the name of the `host` to ask for (default: the URL's), how often it is tried, the seconds between tries, and those
    that one may take."""

    url: str | None = None
    status: int = 200
    contains: str | None = None
    host: str | None = None
    tries: int = 3
    pause: float = 1.0
    timeout: float = 5.0


def check_url(url: object) -> str:
    """Raises ValueError for what cannot be asked."""
    try:
        parts = urlsplit(url if isinstance(url, str) else "")
        usable = parts.scheme in ("http", "https") and _is_asked_for(parts)
    except ValueError:  # not a port
        usable = False
    if not usable or not _is_plain(str(url)):
        raise ValueError("verify.url must be http://HOST[:PORT]/PATH, or https://")
    return str(url)


def check_host(host: str) -> str:
    """Raises ValueError for what is no name of a host, with or without a port."""
    try:
        parts = urlsplit(f"//{host}")
        usable = parts.netloc == host and _is_asked_for(parts)
    except ValueError:
        usable = False
    if not usable or not _is_plain(host):
        raise ValueError("verify.host must be HOST[:PORT], as a URL has it")
    return host


def host_of(host: str) -> str | None:
    """The name, without the port."""
    return urlsplit(f"//{host}").hostname


def _is_asked_for(parts: SplitResult) -> bool:
    """A name and a password are nothing that we would tell."""
    return bool(parts.hostname) and parts.port != 0 and "@" not in parts.netloc


def _is_plain(text: str) -> bool:
    return text.isascii() and all(ord(each) > 32 for each in text)
