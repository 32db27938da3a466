"""Random operations in any order, by several users: the same through a mount and on a plain directory."""

from __future__ import annotations

import os

import pytest
from chaos import Chaos
from served import SPECIAL, Pair
from sidebyside import Trace, difference, make, run, tree

STEPS = 400


@pytest.mark.parametrize("seed", range(6))
def test_anything_in_any_order(pair: Pair, seed: int) -> None:
    def script(t: Trace) -> None:
        make("base", 0o777)
        os.chdir("base")
        chaos = Chaos(seed, t)
        for _ in range(STEPS):
            chaos.step()

    here, natively = run(script, pair.served), run(script, pair.plain)
    assert not (found := difference(here, natively)), found
    assert tree(pair.served, SPECIAL) == tree(pair.plain)
    assert len({label.split()[0] for label, what in natively.steps if not isinstance(what, str)}) >= 15
