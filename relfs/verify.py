"""What config.toml says, in [verify], of asking the web site whether what has just become current works. Asking it is
in website.py, what follows from the answer in aftermath.py."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import urlsplit


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
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # not a port
        usable = False
    if not usable or not str(url).isascii() or any(ord(each) <= 32 for each in str(url)):
        raise ValueError("verify.url must be http://HOST[:PORT]/PATH, or https://")
    return str(url)
