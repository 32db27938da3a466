"""The standby: has all that a worker needs imported, holds the whole estate, and forks a worker when it is told to.

A fork of it is a worker a millisecond later, and shares its memory with the next one. Nothing is ever run in this
process but the loop below, and no thread but the log's (log.py), whose lock a fork does not inherit.
"""

from __future__ import annotations

import gc
import os
import signal
from contextlib import suppress

from relfs.daemon.command import reap
from relfs.daemon.member import TICK, Member
from relfs.daemon.session import begin_logging, load_session
from relfs.errors import EXIT_FAILED, reason
from relfs.survival.channel import Channel, Message, channel_of, until_readable
from relfs.survival.estate import Estate
from relfs.survival.ledger import Ledger


def run_standby(channel_fd: int) -> int:
    """Be the standby of the supervisor on the other end, and of those that succeed it, until it says that it is
    over."""
    import relfs.daemon.worker  # noqa: F401 (all that takes time, before it matters)

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # the supervisor says when
    channel = channel_of(channel_fd)
    with suppress(ConnectionError):  # the supervisor is dead; what it has sent is there all the same
        channel.send("imported")
    estate = Estate()
    forks = take_in(estate, channel)
    gc.collect()
    gc.freeze()  # a collection in a forked worker would copy all pages
    try:
        ledger = Ledger(estate["ledger"])
        session = load_session(ledger)
    except ValueError as error:
        channel.send("unfit", words=str(error))
        return EXIT_FAILED
    begin_logging(session, estate)
    member = Member("standby", estate, ledger, channel)
    member.tell("ready")
    return _Standby(member).run(forks)


def take_in(estate: Estate, channel: Channel) -> list[Message]:
    """Take over what the other side holds, to the last. Returns what was said besides. Raises EOFError if it ended."""
    said: list[Message] = []
    while True:
        until_readable(channel)
        message = channel.receive()
        if message is None:
            raise EOFError("the supervisor has ended before it had told everything")
        if message.kind == "all":
            return said
        if not _apply(estate, message):
            said.append(message)


def _apply(estate: Estate, message: Message) -> bool:
    """Do what the message says about the estate; whether it says anything about that. A descriptor that there was no
    room for is lost on the way (unix(7), MSG_CTRUNC): nothing has its name then, and who needs it opens it again."""
    if message.kind not in ("keep", "drop"):
        return False
    name = str(message.values["name"])
    if message.fds:
        estate.put(name, message.fds[0])
    else:
        estate.drop(name)
    return True


class _Standby:
    def __init__(self, member: Member) -> None:
        self._member = member
        self._over = False

    def run(self, said: list[Message]) -> int:
        while not self._over:
            for message in said:
                self._obey(message)
            until_readable(self._member, TICK)
            said = self._member.hear()
            self._member.turn()
            reap()
        return 0

    def _obey(self, message: Message) -> None:
        if _apply(self._member.estate, message):
            return
        if message.kind == "fork" and message.fds:
            self._fork(message)
        elif message.kind == "end":
            self._over = True

    def _fork(self, message: Message) -> None:
        try:
            pid = os.fork()
        except OSError as error:  # a limit of processes: the supervisor asks again
            _refuse(channel_of(message.fds[0]), reason(error))
            return
        if pid == 0:
            self._be_worker(message)
        message.close()

    def _be_worker(self, message: Message) -> None:
        """Never returns."""
        from relfs.daemon.worker import run_worker

        status = 1
        try:
            self._member.leave()
            os.setsid()
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                signal.signal(number, signal.SIG_DFL)
            channel = channel_of(message.fds[0])
            member = Member("worker", self._member.estate, self._member.ledger, channel)
            status = run_worker(member, adopting=bool(message.values["adopting"]))
        finally:
            os._exit(status)


def _refuse(channel: Channel, words: str) -> None:
    """Tell the supervisor, instead of a worker, that there is none."""
    with suppress(ConnectionError):
        channel.send("refused", words=words)
    channel.close()
