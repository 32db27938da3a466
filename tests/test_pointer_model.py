"""The pointer against its model (model.py): any order of changes, faults, crashes, restarts and strangers.

And the model against itself: pointers that are broken on purpose must not get past it.
"""

from __future__ import annotations

from contextlib import closing

import pytest
from faults import Calls, Fault, watched
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test
from model import CALLS, FAULTS, PointerModel
from sandbox import ACTOR, make_recorded_app

from relfs.journal import Event
from relfs.layout import CURRENT, DeployPath
from relfs.pending import Pending
from relfs.pointer import Pointer
from relfs.store import _remove

MODEL = settings(
    max_examples=150,
    stateful_step_count=25,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)

TestPointer = PointerModel.TestCase
TestPointer.settings = MODEL


class _RecordedModel(PointerModel):
    make_app = staticmethod(make_recorded_app)


TestPointerWithRecords = _RecordedModel.TestCase
TestPointerWithRecords.settings = MODEL


# ---- every system call, one by one --------------------------------------------------------------------------------


@pytest.mark.parametrize("links", [True, False], ids=["a link", "a file"])
@pytest.mark.parametrize("kind", FAULTS)
def test_a_fault_at_every_system_call(kind: type[Fault], links: bool) -> None:
    for at in range(CALLS):
        with closing(_model(links)) as model:
            model.switch(name="41", fault=None)
            model.switch(name="42", fault=kind(at))
            model.check()
            model.roll_back(fault=kind(at))
            model.check()
            model.switch(name="40", fault=None)
            model.check()


def test_no_method_makes_more_calls_than_are_tried(deploy: DeployPath) -> None:
    pointer = Pointer(deploy)
    for links in (True, False, True):  # the changes in between are the longest
        with watched(Calls(links=links)) as calls:
            pointer.switch("41", ACTOR, f"request-{links}-{len(pointer.history.path)}")
        assert {"symlink", "rename"} <= set(calls.names)
        assert len(calls.names) <= CALLS


# ---- pointers that the model must find out ------------------------------------------------------------------------


class ForgetsWhatIsPending(Pointer):
    """Does not write down what it is about to do."""

    def _write_pending(self, note: Pending) -> None:
        pass


class FlipsFirst(Pointer):
    """Changes the target in memory before the one on disk."""

    def _write_pending(self, note: Pending) -> None:
        self.target = self.deploy.target(note.wanted)
        super()._write_pending(note)


class JournalsFirst(Pointer):
    """Writes the line before the link."""

    def _write_pending(self, note: Pending) -> None:
        super()._write_pending(note)
        self._write_line(note.event)

    def _write_line(self, event: Event) -> None:
        if self.history.find(event.id) is None:
            super()._write_line(event)


class UnlinksFirst(Pointer):
    """Removes the old link before it makes the new one, as `ln -sfn` does in BusyBox."""

    def _write_pending(self, note: Pending) -> None:
        super()._write_pending(note)
        _remove(CURRENT, self.deploy.fd)


class TrustsItsMemory(Pointer):
    """Never looks at what others may have written."""

    def _reload_history(self) -> None:
        pass


class ForgetsRequests(Pointer):
    """Carries out a request again that it carried out before."""

    def _known(self, request_id: str) -> Event | None:  # noqa: ARG002
        return None


@pytest.mark.parametrize(
    "broken",
    [ForgetsWhatIsPending, FlipsFirst, JournalsFirst, UnlinksFirst, TrustsItsMemory, ForgetsRequests],
)
def test_the_model_finds_a_broken_pointer(broken: type[Pointer]) -> None:
    class Model(PointerModel):
        pointer_class = broken

    hunt = settings(MODEL, phases=[Phase.generate], database=None, derandomize=True, report_multiple_bugs=False)
    with pytest.raises(AssertionError):
        run_state_machine_as_test(Model, settings=hunt)


# ---- inside -------------------------------------------------------------------------------------------------------


class _Model(PointerModel):
    """The model, driven by hand."""

    def check(self) -> None:
        self.the_disk_says_what_was_asked()
        self.memory_says_what_the_disk_says()
        self.the_journal_has_each_request_once()
        self.the_journal_leads_to_the_link()

    def close(self) -> None:
        self.teardown()


def _model(links: bool) -> _Model:
    model = _Model()
    model.begin()
    model.links = links
    return model
