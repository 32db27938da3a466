"""Who may have how many connections of the control socket. Only counted here; server.py serves them.

Connections are descriptors and memory of the process that the file system runs in. Strangers, who may only look, get a
few each, and all of them together half of what there is. Root and the deploy path's owner have a quarter each: they are
never turned away while one of their own connections has nothing to do, a watcher's included: the one that has been idle
for the longest is closed then. A relfsctl that still wants something connects again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import trio

_EACH_STRANGER = 64


class TooManyError(Exception):
    """There is no room for one more connection of this user."""


class Client:
    """One connection. `idle_since` is None while a request of it is being served."""

    def __init__(self, hang_up: Callable[[], None]) -> None:
        self.hang_up = hang_up
        self.idle_since: float | None = trio.current_time()

    @contextmanager
    def busy(self) -> Iterator[None]:
        self.idle_since = None
        try:
            yield
        finally:
            self.idle_since = trio.current_time()


class Clients:
    """GUARDED BY the event loop: everything; no method contains an `await`.

    INVARIANT: no more than `most` clients, half of them strangers at the most; of each user no more than his share.
    """

    def __init__(self, most: int, trusted: frozenset[int]) -> None:
        """`most` connections at a time; `trusted` are the uids that are never turned away."""
        self._half = max(most // 2, 1)
        self._share = max(self._half // len(trusted), 1)
        self._trusted: dict[int, list[Client]] = {uid: [] for uid in trusted}
        self._strangers: Counter[int] = Counter()

    @contextmanager
    def admitted(self, uid: int, hang_up: Callable[[], None]) -> Iterator[Client]:
        """A place for a connection of user `uid`, which `hang_up` ends. Raises TooManyError."""
        client = Client(hang_up)
        mine = self._trusted.get(uid)
        with self._strangers_place(uid) if mine is None else self._trusted_place(mine, client):
            yield client

    @contextmanager
    def _trusted_place(self, mine: list[Client], client: Client) -> Iterator[None]:
        if len(mine) >= self._share:
            _make_room(mine)
        mine.append(client)
        try:
            yield
        finally:
            if client in mine:
                mine.remove(client)

    @contextmanager
    def _strangers_place(self, uid: int) -> Iterator[None]:
        if self._strangers[uid] >= _EACH_STRANGER or self._strangers.total() >= self._half:
            raise TooManyError
        self._strangers[uid] += 1
        try:
            yield
        finally:
            self._strangers[uid] -= 1
            self._strangers += Counter()  # drops those who have none


def _make_room(clients: list[Client]) -> None:
    idle = [(each.idle_since, number) for number, each in enumerate(clients) if each.idle_since is not None]
    if not idle:
        raise TooManyError
    clients.pop(min(idle)[1]).hang_up()
