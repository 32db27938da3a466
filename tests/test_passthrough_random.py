"""Random operations in any order, by several users: the same through a mount and on a plain directory, step by step and
in what they leave; also while `current` is switched all the time, and by several processes at once.

A failure names its seed, which makes the same operations again, and the first step that differs.
"""

from __future__ import annotations

import os

import pytest
from chaos import Chaos
from served import SPECIAL, Pair, switching
from sidebyside import Script, Trace, difference, make, run, tree

STEPS = 400


def _operations(seed: int, base: str = "base") -> Script:
    def script(t: Trace) -> None:
        make(base, 0o777)
        os.chdir(base)
        chaos = Chaos(seed, t)
        for _ in range(STEPS):
            chaos.step()

    return script


def _require_same(pair: Pair, here: Trace, natively: Trace, seed: int) -> None:
    assert not (found := difference(here, natively)), f"seed {seed}: {found}"
    assert tree(pair.served, SPECIAL) == tree(pair.plain), f"seed {seed}: other trees are left"
    pair.compared(natively)


@pytest.mark.parametrize("seed", range(6))
def test_anything_in_any_order(pair: Pair, seed: int) -> None:
    here, natively = (run(_operations(seed), base) for base in (pair.served, pair.plain))
    _require_same(pair, here, natively, seed)
    assert len({label.split()[0] for label, what in natively.steps if not isinstance(what, str)}) >= 15


@pytest.mark.parametrize("seed", range(100, 106))
def test_anything_while_switching(pair: Pair, seed: int) -> None:
    natively = run(_operations(seed), pair.plain)
    with switching(pair.mount):
        here = run(_operations(seed), pair.served)
    _require_same(pair, here, natively, seed)


def test_several_at_once_while_switching(pair: Pair) -> None:
    """Each in a directory of its own: what one does is nothing to the others."""
    seeds = range(200, 204)

    def script(t: Trace) -> None:
        children = []
        for seed in seeds:
            child = os.fork()
            if child == 0:
                _operations(seed, f"base{seed}")(Trace())
                os._exit(0)
            children.append(child)
        t("ends", lambda: [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children])

    with switching(pair.mount):
        seen = pair.same(script)
    assert seen["ends"] == [0] * len(seeds)
