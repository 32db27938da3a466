"""New code takes a mount over: relfsctl reload.

Some facts. A standby is a process of the code that was installed when it was started; the workers that it forks are of
that code, too. A worker that ends is replaced without anybody noticing. exec(2) keeps a process's descriptors and pid.

The choice. A standby of the new code is started beside the old one. Once it is ready, the worker is told to retire, and
the new standby forks the next. When that has answered, the old standby is dismissed, and the supervisor runs the new
code in its own process. Whatever fails before that (it does not start, its ledger is of another version, its libfuse
negotiates otherwise), the old standby is still there.

The worker that is asked for it dies of it, and the supervisor becomes another. So what is asked for, and how it went,
is in the ledger: a worker writes there only when nothing is under way, and the supervisor only when something is.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from typing import Any

from relfs.daemon.company import NEXT, STANDBY, WORKER, Company, Comrade
from relfs.survival.ledger import Ledger
from relfs.survival.memory import Cell

_log = logging.getLogger(__name__)

_SECONDS = 30.0

_EARLIER = 16
"""How many outcomes are kept for those who ask again, because they have lost the worker that was to tell them."""


def outcome_of(cell: Cell, request: str) -> str | None:
    """How the reload of this id went: "done", or "failed: " and why. None as long as it is under way, or another one
    is that was asked for before; it is asked for when its turn has come. For the worker. Contains no `await`."""
    told = _told(cell)
    outcomes: dict[str, str | None] = {**told["earlier"], told["id"]: told["outcome"]}
    if request not in outcomes and told["outcome"] is not None:
        earlier = dict(list(outcomes.items())[-_EARLIER:])
        cell.store(json.dumps({"id": request, "outcome": None, "earlier": earlier}).encode("ascii"))
    return outcomes.get(request)


def _told(cell: Cell) -> dict[str, Any]:
    """The `id` of the latest request, its `outcome`, which is null until there is one, and those of `earlier` ones."""
    told: dict[str, Any] = {"id": "", "outcome": "", "earlier": {}, **json.loads(cell.load() or b"{}")}
    return told


@dataclass
class _Reload:
    """One that is under way, `since` then (monotonic seconds). `retired`: the last worker of the old code, if there was
    one when it was told to retire; whoever comes after that is of the new code."""

    since: float
    has_retired: bool = False
    retired: Comrade | None = None

    def is_new(self, worker: Comrade) -> bool:
        return self.has_retired and worker is not self.retired


class Reloading:
    """What becomes of a reload. Contains nothing that blocks."""

    def __init__(self, company: Company, ledger: Ledger) -> None:
        self._company = company
        self._ledger = ledger
        self._reload: _Reload | None = None
        self._refused: Comrade | None = None

    @property
    def forker(self) -> str:
        """Who forks the next worker."""
        return NEXT if self._reload is not None and self._reload.has_retired else STANDBY

    def begin(self, now: float) -> bool:
        """Whether one is begun: then the caller starts the next standby. It is under way, or done, otherwise."""
        if self._reload is not None or _told(self._ledger.reload)["outcome"] is not None:
            return False
        _log.info("new code is started")
        self._reload = _Reload(now)
        return True

    def retire_worker(self) -> None:
        """The next standby is ready: let a worker of it take over."""
        worker = self._company.get(WORKER)
        if self._reload is not None:
            self._reload.has_retired, self._reload.retired = True, worker
            if worker is not None:
                worker.tell("retire")

    def refuse(self, each: Comrade, why: str) -> None:
        """A standby or worker says that it cannot take over. Only new code has an old one to go back to."""
        if self._reload is not None and (each.role == NEXT or self._reload.is_new(each)):
            self._refused = each
            self.undo(why)

    def explains(self, ended: Comrade) -> bool:
        """Whether the end of a process belongs to a reload, and is no death: the old worker was told to retire. That of
        anybody else undoes it. What somebody has said at last may be heard only now, and has undone it then."""
        if self._reload is None:
            return ended.role == NEXT or ended is self._refused
        if ended.role == NEXT:
            self.undo("its standby has ended")
            return True
        if ended.role != WORKER or not self._reload.has_retired:
            return False
        if self._reload.is_new(ended):
            self.undo("its worker has ended, without having answered")
        return True

    def is_done(self) -> bool:
        """The mount has answered: was it the new worker? Then the next standby is the standby."""
        worker = self._company.get(WORKER)
        if self._reload is None or worker is None or not (worker.serves and self._reload.is_new(worker)):
            return False
        self._company.dismiss(self._company.get(STANDBY))
        self._company.promote()
        self._reload = None
        self._note("done")
        return True

    def watch(self, now: float) -> None:
        """Undo it if it takes too long."""
        if self._reload is not None and now - self._reload.since > _SECONDS:
            self.undo("the new code does not come up")

    def undo(self, why: str) -> None:
        """The old standby goes on."""
        reload, self._reload = self._reload, None
        if reload is None:
            return
        _log.warning("the new code does not take over: %s; the old one goes on", why)
        worker = self._company.get(WORKER)
        self._company.dismiss(self._company.get(NEXT))
        if worker is not None and reload.is_new(worker):
            self._company.dismiss(worker)
        self._note(f"failed: {why}")

    def _note(self, outcome: str) -> None:
        """For whoever has asked."""
        cell = self._ledger.reload
        cell.store(json.dumps({**_told(cell), "outcome": outcome}).encode("ascii"))
