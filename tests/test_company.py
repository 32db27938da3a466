"""The processes of a mount, as its supervisor knows them: what is left when it knows nobody any more. No mount."""

from __future__ import annotations

import os
import selectors

from relfs.daemon.company import STANDBY, Company, Comrade
from relfs.survival.channel import pair, until_readable
from relfs.survival.ledger import new_ledger


def test_what_nobody_has_heard_keeps_nothing() -> None:
    """fusermount3 waits for the last copy of a descriptor to be closed, and a supervisor that ends, for fusermount3."""
    inbox, outbox = pair()
    tie, theirs = pair()
    reading, writing = os.pipe()
    with selectors.DefaultSelector() as selector:
        company = Company(new_ledger(), selector, inbox, lambda _each, _message: None, lambda _each: None)
        company.add(Comrade(STANDBY, tie))
        outbox.send("join", writing)
        theirs.send("keep", writing)
        os.close(writing)
        assert not until_readable(reading, 0), "both carry a copy"
        company.close()
        assert until_readable(reading, 60)
        assert os.read(reading, 1) == b""
        assert not selector.get_map()
    for each in (outbox, theirs):
        each.close()
    os.close(reading)
