"""What fuzz tests share: how many examples, values as nobody expects them, and what is nearly right.

The suite's run is short and the same each time. `contrib/fuzz` sets $RELFS_FUZZ_EXAMPLES, and then each run is another.
"""

from __future__ import annotations

import json
import logging
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

_LONG = os.environ.get("RELFS_FUZZ_EXAMPLES")


def fuzzed(examples: int) -> settings:
    """Settings for a test that tries `examples` examples in the suite."""
    return settings(
        max_examples=int(_LONG) if _LONG else examples,
        derandomize=_LONG is None,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


# Text may hold lone surrogates, which JSON can say and UTF-8 cannot, and what a terminal or a line would obey.
texts = st.text(st.characters(codec=None), max_size=30) | st.sampled_from(
    ["", ".", "..", "/", "a/b", "\0", "\ud800", "\udcff", "a\nb", "\x1b[2J", "x" * 300, "@", "@current", "@latest",
     "@previous", "@last-good", "@2026-09-01T12:00", "@0001-01-01", "@9999-12-31T23:59:59", "40", "41", "42", "43"]
)  # fmt: skip
numbers = st.sampled_from([0, 1, -1, 2**31, 2**63, 2**64, -(2**64), 10**300, 10**400, 1e300, 1e-300, -0.5])
numbers |= st.floats() | st.integers()
scalars = st.none() | st.booleans() | numbers | texts
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3), max_leaves=6
)


def as_json(value: Any) -> bytes:
    """One line. NaN and Infinity are in it as Python writes and reads them."""
    return json.dumps(value).encode("ascii")


def nearly(document: dict[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
    """`document` with some of its fields replaced or removed, and perhaps one more."""
    replaced = st.fixed_dictionaries({}, optional=dict.fromkeys(document, values))
    removed = st.sets(st.sampled_from(sorted(document)), max_size=2) if document else st.just(set[str]())
    extra = st.dictionaries(texts, values, max_size=1)

    def build(new: dict[str, Any], gone: set[str], more: dict[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in {**more, **document, **new}.items() if name not in gone}

    return st.builds(build, replaced, removed, extra)


def cut_and_mended(data: bytes) -> st.SearchStrategy[bytes]:
    """`data` with one stretch of it replaced by other bytes."""
    places = st.tuples(st.integers(0, len(data)), st.integers(0, len(data)), st.binary(max_size=8))
    return places.map(lambda place: data[: min(place[:2])] + place[2] + data[max(place[:2]) :])


@contextmanager
def scratch() -> Iterator[Path]:
    """A directory for one example, in memory where there is one: nothing here depends on what a disk keeps."""
    memory = next(filter(os.path.isdir, ("/dev/shm", "/tmp")))
    with tempfile.TemporaryDirectory(prefix="relfs-test-", dir=memory) as place:
        yield Path(place)


class _Loud(logging.Handler):
    """Keeps what is logged above INFO."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append(self.format(record))


@contextmanager
def silence(*but: str) -> Iterator[None]:
    """Fail if anything is logged above INFO meanwhile, other than lines with one of the words `but` in them."""
    handler = _Loud()
    logging.getLogger("relfs").addHandler(handler)
    try:
        yield
    finally:
        logging.getLogger("relfs").removeHandler(handler)
    loud = [line for line in handler.said if not any(word in line for word in but)]
    assert not loud, loud
