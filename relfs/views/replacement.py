"""Who sees no `current` at all, because he is busy replacing it.

The legacy replacement
----------------------
Some facts. Many tools replace `current` in two system calls, unlink(2) and symlink(2): BusyBox `ln -sfn` in one
process, `rm current; ln -s ...` in two, a PHP script in itself and in what it runs. Between the two, the tool needs to
see that the name is free, or symlink(2) fails (and ln(1) makes its link inside the old release); everybody else needs
to see the old release. FUSE tells us the thread that asks.

The consequence. The name is withdrawn from whoever is replacing it, and from nobody else, until the link comes or a
grace period ends. So we must tell who "whoever" is, and err on neither side: a reader taken for the tool fails, a tool
taken for a reader breaks its deploy.

The choice. A replacement belongs to one process at a time, its *actor*. That is first the process that called
unlink(2). While it lives, nobody else is meant: BusyBox ln will make the link itself. When it has ended, whoever
waited for it goes on: its parent becomes the actor, and so on upwards, each only when the one below has ended, and
never past the session (setsid(2)), since what started a session (sshd, cron, a web server) is not a deploy script.
One kind of session is no end: `sudo rm current; sudo ln -s ...`, typed or in a script that somebody runs in a terminal,
makes one for each command (sudoers(5), use_pty, on by default), as script(1) and `su --pty` do. Whoever holds the other
end of the terminal that the session runs on only stands in between, so the chain goes on through him.
With the actor belong its descendants that were started after the unlink, unless something that was running already
stands between. So a reader or a web server that was started earlier from the same shell, and whatever that starts
now, keeps the old release; so does the shell itself as long as the script that it started is running.

If the link is refused (it would lead nowhere), whoever tried may try again, or the script that ran it; when those have
ended too, there is nobody to wait for.

What this cannot serve: `rm` in one session and `ln` in another (two ssh commands). When the last actor has ended, the
replacement is abandoned and the name is back for all.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from relfs.journal import Actor
from relfs.processes import Process, all_pids, process, runs_terminal_of, ticks_now

_DEPTH_MAX = 64


@dataclass(eq=False)
class Replacement:
    """A replacement of `current` that has begun, at `since` (seconds since the epoch).

    INVARIANT: `chain` is the process that began it and ancestors in its session, nearest first, as they were then; and
    whoever runs the session's terminal, with ancestors in his.
    """

    actor: Actor
    since: float
    chain: tuple[Process, ...]
    _running: frozenset[int] = field(repr=False)
    _began: int = field(repr=False)

    def as_json(self) -> dict[str, Any]:
        """For whoever takes over."""
        return {**asdict(self), "_running": sorted(self._running)}

    def hides_from(self, pid: int) -> bool:
        """Whether process `pid` is the one who is replacing the link, or works for it."""
        acting = self.acting()
        asking = process(pid)
        for _ in range(_DEPTH_MAX):
            if acting is None or asking is None:
                return False
            if asking.same(acting):
                return True
            if self._was_running(asking):
                return False
            asking = process(asking.parent) if asking.parent else None
        return False

    def acting(self) -> Process | None:
        """The process whose turn it is; None: all are gone, nobody will end this."""
        for member in self.chain:
            now = process(member.pid)
            if now is not None and now.same(member) and now.alive:
                return member
        return None

    def refused(self, pid: int) -> None:
        """Process `pid` could not make the link: from now on this is up to it, and to whoever in the chain ran it."""
        asking = process(pid)
        for _ in range(_DEPTH_MAX):
            if asking is None:
                return
            for place, member in enumerate(self.chain):
                if asking.same(member):
                    self.chain = self.chain[: place + 1]
                    return
            asking = process(asking.parent) if asking.parent else None

    def _was_running(self, asking: Process) -> bool:
        """Ticks are 10 ms wide, so the list of pids decides within one, and the tick guards against a reused pid. The
        list lacks who began it: another one who has that number, even within the tick, has come later."""
        return asking.pid in self._running and asking.start <= self._began


def begin_replacement(actor: Actor, since: float) -> Replacement:
    """The replacement that process `actor.pid` begins by removing the name. Contains no `await`: a snapshot."""
    first = process(actor.pid)
    chain = _chain(first) if first is not None else ()
    return Replacement(actor, since, chain, all_pids() - {actor.pid}, ticks_now())


def replacement_of(told: dict[str, Any]) -> Replacement:
    """The replacement that as_json() told of."""
    actor, chain = Actor(**told["actor"]), tuple(Process(**each) for each in told["chain"])
    return Replacement(actor, told["since"], chain, frozenset(told["_running"]), told["_began"])


def _chain(first: Process) -> tuple[Process, ...]:
    chain = [first]
    while len(chain) < _DEPTH_MAX and chain[-1].parent > 1:
        parent = process(chain[-1].parent)
        if parent is None:
            break
        if parent.session != chain[-1].session and not runs_terminal_of(parent.pid, chain[-1]):
            break
        chain.append(parent)
    return tuple(chain)
