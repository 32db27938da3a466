"""The pointer, one behaviour at a time: what a switch does and in which order, what it refuses, what failures leave.

test_pointer_model.py tries all of it in any order, test_replay.py what a power cut leaves.
"""

from __future__ import annotations

import errno
import itertools
import os
import threading
import time
from contextlib import closing, suppress
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from disks import small_disk
from faults import Call, Calls, Crash, CrashBefore, Fails, Fault, ShortWrite, watched
from sandbox import activations_of, end, journal_of, link_of, make_app, start_python

import relfs.pointer
from relfs.errors import RefusedError, RelfsError, UsageError
from relfs.journal import DONE, JOURNAL, RECOVERED, Actor, Event, encode
from relfs.layout import DeployPath, Target, open_deploy_path
from relfs.lock import change_lock
from relfs.pending import PENDING, Pending
from relfs.pointer import Pointer


@pytest.fixture
def pointer(deploy: DeployPath) -> Pointer:
    """The pointer of `app`; it is at 40, which the journal knows."""
    return Pointer(deploy)


def release_of(pointer: Pointer) -> str | None:
    """The release that is current in memory."""
    return pointer.target.release if pointer.target is not None else None


def outcomes_of(pointer: Pointer, request: str) -> list[str]:
    """How the journal on disk says that `request` ended."""
    return [event.outcome for event in journal_of(pointer.deploy) if event.id == request]


def replace_link(app: Path, text: str) -> None:
    """What another host's deploy tool, or a person, does to the real link."""
    (app / "theirs").symlink_to(text)
    (app / "theirs").rename(app / "current")


def state_of(app: Path) -> tuple[str | None, bytes]:
    """All that a change changes on disk: the link, and the journal."""
    return link_of(app) if (app / "current").is_symlink() else None, (app / ".relfs" / JOURNAL).read_bytes()


# ---- switching ----------------------------------------------------------------------------------------------------


def test_a_switch(app: Path, pointer: Pointer, actor: Actor) -> None:
    event = pointer.switch("41", actor, "request")
    assert (event.action, event.release, event.origin, event.actor) == ("switch", "41", "40", actor)
    assert (event.id, event.outcome) == ("request", DONE)
    assert journal_of(pointer.deploy)[-1] == event
    assert link_of(app) == "releases/41"
    assert (app / "current" / "index.html").read_text() == release_of(pointer) == "41"
    pointer.check_invariants()


def test_what_a_reference_stands_for_is_told_while_somebody_changes_it(
    deploy: DeployPath, pointer: Pointer, actor: Actor
) -> None:
    pointer.switch("41", actor, "request")
    with change_lock(deploy.state_fd, shown=deploy.state_path), pointer._lock:
        named = [pointer.named(each) for each in ("@current", "@previous", "@latest", "@last-good", "@42")]
    assert named == ["41", "40", "42", "40", "42"]


def test_what_a_reference_stands_for_is_known_before_anything_is_looked_at(
    deploy: DeployPath, pointer: Pointer, actor: Actor
) -> None:
    """By a process that goes on with what another has served."""
    pointer.switch("41", actor, "request")
    next_one = Pointer(deploy, served=pointer.target)
    assert [next_one.named(each) for each in ("@current", "@previous")] == ["41", "40"]


def test_the_first_look_is_written_down(pointer: Pointer) -> None:
    (event,) = journal_of(pointer.deploy)
    assert (event.action, event.release, event.origin) == ("adopt", "40", None)


@pytest.mark.parametrize(
    ("style", "before", "after"),
    [
        (None, "releases/40", "releases/41"),
        (None, "{app}/releases/40", "{app}/releases/41"),
        (None, "/etc", "releases/41"),
        ("absolute", "releases/40", "{app}/releases/41"),
        ("relative", "{app}/releases/40", "releases/41"),
    ],
)
def test_the_text_of_the_link(app: Path, actor: Actor, style: str | None, before: str, after: str) -> None:
    replace_link(app, before.format(app=app))
    with closing(open_deploy_path(str(app))) as deploy:
        chosen = {None: None, "absolute": "absolute", "relative": "relative"}[style]
        Pointer(deploy, style=chosen).switch("41", actor, "request")  # type: ignore[arg-type]
    assert link_of(app) == after.format(app=app)


def test_a_text_that_a_deploy_tool_wrote_through_a_mountpoint(app: Path, deploy: DeployPath, actor: Actor) -> None:
    pointer = Pointer(replace(deploy, aliases=("/srv/seen",)))
    pointer.replace("/srv/seen/releases/42", actor, "request")
    assert link_of(app) == f"{app}/releases/42"
    assert release_of(pointer) == "42"


def test_observers_hear_of_every_event_once(deploy: DeployPath, actor: Actor) -> None:
    heard: list[Event] = []
    pointer = Pointer(deploy, on_event=heard.append)
    pointer.switch("41", actor, "request")
    pointer.record("replace", actor, "another", "lapsed: for a test")
    assert heard == journal_of(deploy)


def test_the_order_of_a_switch(deploy: DeployPath, actor: Actor) -> None:
    """What happens in which order, and what memory says then. That the order is right, test_replay.py shows."""
    steps: list[tuple[str, str | None]] = []

    class Watching(Pointer):
        def _write_pending(self, note: Pending) -> None:
            super()._write_pending(note)
            steps.append(("pending", release_of(self)))

        def _write_line(self, event: Event) -> None:
            steps.append(("line", release_of(self)))
            super()._write_line(event)

    pointer = Watching(deploy)
    steps.clear()

    with watched(Calls()) as calls:
        pointer.switch("41", actor, "request")
    assert steps == [("pending", "40"), ("line", "41")]
    named = [name for name in calls.names if name in ("write", "syncfs", "rename", "fsync", "fdatasync")]
    assert named == ["write", "syncfs", "rename", "fsync", "write", "fdatasync"]
    assert calls.names.index("syncfs") > len(calls.names) - 1 - calls.names[::-1].index("symlink")


# ---- refusing -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("", UsageError),
        ("..", UsageError),
        ("releases/41", UsageError),
        ("4\0", UsageError),
        ("4\n1", UsageError),
        ("x" * 300, UsageError),
        ("\ud800", UsageError),
        ("@nonsense", UsageError),
        ("99", RefusedError),
        ("file", RefusedError),
        ("leaves", RefusedError),
        ("empty", RefusedError),
        ("@previous", RefusedError),
        ("@last-good", RefusedError),
    ],
    ids=ascii,
)
def test_what_is_refused_changes_nothing(
    app: Path, pointer: Pointer, actor: Actor, name: str, error: type[RelfsError]
) -> None:
    (app / "releases" / "file").write_text("")
    (app / "releases" / "leaves").symlink_to("../..")
    (app / "releases" / "empty").mkdir()
    before = state_of(app)
    with pytest.raises(error):
        pointer.switch(name, actor, "request")
    with pytest.raises(error):
        pointer.rollback(name, actor, "another")
    assert state_of(app) == before
    assert release_of(pointer) == "40"


def test_an_empty_release_by_force(app: Path, pointer: Pointer, actor: Actor) -> None:
    (app / "releases" / "empty").mkdir()
    pointer.switch("empty", actor, "request", force=True)
    assert link_of(app) == "releases/empty"


def test_a_previous_target_that_was_no_release(app: Path, actor: Actor) -> None:
    """`@previous` stands for something that is no release: a check refuses it, for the words were right."""
    replace_link(app, "/etc")
    with closing(open_deploy_path(str(app))) as deploy:
        pointer = Pointer(deploy)
        pointer.switch("41", actor, "request")
        with pytest.raises(RefusedError):
            pointer.switch("@previous", actor, "another")
    assert link_of(app) == "releases/41"


# ---- rolling back -------------------------------------------------------------------------------------------------


def test_rolling_back(app: Path, pointer: Pointer, actor: Actor) -> None:
    pointer.switch("41", actor, "first")
    pointer.switch("42", actor, "second")
    event = pointer.rollback(None, actor, "third")
    assert (event.action, event.release, event.origin) == ("rollback", "41", "42")
    assert pointer.history.bad == {"42"}
    assert pointer.rollback(None, actor, "fourth").release == "40"
    before = state_of(app)
    with pytest.raises(RefusedError, match="no earlier release"):
        pointer.rollback(None, actor, "fifth")
    assert state_of(app) == before


def test_rolling_back_over_an_unfinished_release(app: Path, pointer: Pointer, actor: Actor) -> None:
    (app / "releases" / "41" / "DEPLOY_UNFINISHED").write_text("")
    pointer.switch("41", actor, "first", force=True)
    pointer.switch("42", actor, "second")
    assert pointer.rollback(None, actor, "third").release == "40"


def test_rolling_back_to_a_named_release(pointer: Pointer, actor: Actor) -> None:
    pointer.switch("41", actor, "first")
    pointer.switch("42", actor, "second")
    assert pointer.rollback("@previous", actor, "third").release == "41"
    assert pointer.rollback("40", actor, "fourth").release == "40"
    with pytest.raises(RefusedError, match="is current already"):
        pointer.rollback("40", actor, "fifth")


# ---- asking twice -------------------------------------------------------------------------------------------------


def test_asking_again_changes_nothing(app: Path, pointer: Pointer, actor: Actor) -> None:
    first = pointer.switch("41", actor, "request")
    pointer.switch("42", actor, "another")
    before = state_of(app)
    assert pointer.switch("41", actor, "request") == first
    assert pointer.rollback(None, actor, "request") == first
    assert state_of(app) == before


def test_asking_another_process_again(app: Path, pointer: Pointer, actor: Actor) -> None:
    first = pointer.switch("41", actor, "request")
    with closing(open_deploy_path(str(app))) as deploy:
        before = state_of(app)
        assert Pointer(deploy).switch("41", actor, "request") == first
        assert state_of(app) == before


def test_asking_again_what_failed(app: Path, pointer: Pointer, actor: Actor) -> None:
    with pytest.raises(RelfsError), watched(Calls(_failing(pointer, actor, "rename"))):
        pointer.switch("41", actor, "request")
    before = state_of(app)
    with pytest.raises(RelfsError, match="Input/output error"):
        pointer.switch("41", actor, "request")
    assert state_of(app) == before


# ---- failing ------------------------------------------------------------------------------------------------------


def _failing(pointer: Pointer, actor: Actor, name: str, occurrence: int = 0, number: int = errno.EIO) -> Fault:
    """The fault that lets a switch fail at a call `name`; found by a switch to the same release, and undone."""
    with watched(Calls()) as calls:
        pointer.switch("41", actor, os.urandom(8).hex())
    pointer.switch("40", actor, os.urandom(8).hex())
    return Fails([at for at, made in enumerate(calls.names) if made == name][occurrence], number)


@pytest.mark.parametrize(
    ("name", "occurrence"),
    [("write", 0), ("syncfs", 0), ("symlink", 0), ("symlink", 1), ("rename", 0), ("fsync", 0)],
    ids=["pending", "syncing the release", "trying links", "making the link", "renaming it", "syncing it"],
)
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EDQUOT])
def test_a_persist_that_fails_changes_nothing_and_is_journalled(
    app: Path, pointer: Pointer, actor: Actor, name: str, occurrence: int, number: int
) -> None:
    fault = _failing(pointer, actor, name, occurrence, number)
    with pytest.raises(RelfsError, match=rf"{os.strerror(number)}; current is still 40"), watched(Calls(fault)):
        pointer.switch("41", actor, "request")
    assert (release_of(pointer), link_of(app)) == ("40", "releases/40")
    assert outcomes_of(pointer, "request") == [f"failed: {os.strerror(number)}"]
    assert not (app / ".relfs" / PENDING).exists(), "somebody else may make the link say the same"
    pointer.check_invariants()
    pointer.switch("41", actor, "another")
    assert link_of(app) == "releases/41"


def test_a_journal_that_fails_after_the_flip(app: Path, pointer: Pointer, actor: Actor, deploy: DeployPath) -> None:
    fault = _failing(pointer, actor, "write", -1, errno.ENOSPC)
    with watched(Calls(fault)):
        first = pointer.switch("41", actor, "request")
    assert first.outcome == DONE
    assert (release_of(pointer), link_of(app)) == ("41", "releases/41")
    assert outcomes_of(pointer, "request") == []
    pointer.switch("42", actor, "another")
    assert [event.id for event in journal_of(deploy)][-2:] == ["request", "another"]
    assert outcomes_of(pointer, "request") == [DONE]
    pointer.check_invariants()


def test_a_note_of_what_is_pending_that_was_cut_short(app: Path, pointer: Pointer, actor: Actor) -> None:
    fault = ShortWrite(_failing(pointer, actor, "write").at)
    with pytest.raises(RelfsError, match=r"No space left on device; current is still 40"), watched(Calls(fault)):
        pointer.switch("41", actor, "request")
    assert (release_of(pointer), link_of(app)) == ("40", "releases/40")


def test_a_look_that_fails_forgets_nothing(app: Path, pointer: Pointer, actor: Actor) -> None:
    """The journal lacks a line, which memory has: whatever call of the next look fails, memory has it still."""
    fault = _failing(pointer, actor, "write", -1, errno.ENOSPC)
    with watched(Calls()) as calls:
        pointer.refresh()
    for at in range(len(calls.names) + 10):  # there is more to do where something is missing
        with watched(Calls(fault)):
            pointer.switch("41", actor, f"request-{at}")
        with watched(Calls(Fails(at, errno.EIO))), suppress(RelfsError):
            pointer.refresh()
        pointer.check_invariants()
        assert pointer.history.find(f"request-{at}") is not None
        pointer.switch("40", actor, f"another-{at}")
    assert link_of(app) == "releases/40"


class JournalFails(Calls):
    """Nothing can be added to the journal: a call `name` on it fails."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self._name = name
        self._journal = -1

    def carry_out(self, call: Call) -> Any:
        if call.name == self._name and call.arguments[0] == self._journal:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        result = super().carry_out(call)
        if call.name == "open" and result == self._journal:
            self._journal = -1  # it was closed, and this is another file
        if call.name == "open" and call.arguments[0] == JOURNAL:
            self._journal = result
        return result


@pytest.mark.parametrize("name", ["write", "fdatasync"])
def test_a_journal_that_fails_again_and_again(app: Path, pointer: Pointer, actor: Actor, name: str) -> None:
    """Every change that was acknowledged gets its line, and only one."""
    acknowledged = []
    for request, release in [("first", "41"), ("second", "42"), ("third", "40")]:
        with watched(JournalFails(name)):
            try:
                acknowledged.append(pointer.switch(release, actor, request).id)
            except RelfsError:
                assert release_of(pointer) != release
        assert pointer.deploy.target(link_of(app)) == pointer.target
    acknowledged.append(pointer.switch("40", actor, "last").id)
    assert acknowledged[0] == "first"
    assert [event.id for event in activations_of(pointer.deploy)][1:] == acknowledged
    assert all(event.outcome == DONE for event in activations_of(pointer.deploy))


def test_a_stranger_whom_the_journal_could_not_take(app: Path, pointer: Pointer) -> None:
    replace_link(app, "releases/42")
    with watched(JournalFails("write")):
        pointer.refresh()
    assert release_of(pointer) == "42"
    pointer.refresh()
    assert [event.release for event in activations_of(pointer.deploy)] == ["40", "42"]


def test_a_process_that_opens_what_another_could_not_journal(app: Path, pointer: Pointer, actor: Actor) -> None:
    """The second writes the line for the first; the first must not write it again."""
    with watched(Calls(_failing(pointer, actor, "write", -1, errno.ENOSPC))):
        pointer.switch("41", actor, "request")
    with closing(open_deploy_path(str(app))) as deploy:
        other = Pointer(deploy)
        assert outcomes_of(other, "request") == [RECOVERED]
        other.switch("42", actor, "another")
    pointer.switch("40", actor, "last")
    assert [event.id for event in activations_of(pointer.deploy)][-3:] == ["request", "another", "last"]
    pointer.check_invariants()


# ---- crashing -----------------------------------------------------------------------------------------------------


def _crash_before(pointer: Pointer, actor: Actor, name: str, occurrence: int = 0) -> None:
    """Die before the call `name` of a switch to 41 by `request`."""
    fault = _failing(pointer, actor, name, occurrence)
    with pytest.raises(Crash), watched(Calls(CrashBefore(fault.at))):
        pointer.switch("41", actor, "request")


def test_a_crash_before_the_rename(app: Path, pointer: Pointer, actor: Actor) -> None:
    _crash_before(pointer, actor, "rename")
    with closing(open_deploy_path(str(app))) as deploy:
        again = Pointer(deploy)
        assert (release_of(again), link_of(app)) == ("40", "releases/40")
        assert outcomes_of(again, "request") == ["failed: interrupted before it took effect"]
        again.check_invariants()


def test_who_asks_again_after_a_crash_before_the_rename_gets_it_done(app: Path, pointer: Pointer, actor: Actor) -> None:
    """Once: whoever asks a third time is told of that."""
    _crash_before(pointer, actor, "rename")
    with closing(open_deploy_path(str(app))) as deploy:
        again = Pointer(deploy)
        done = again.switch("41", actor, "request")
        assert (done.outcome, link_of(app)) == ("done", "releases/41")
        assert again.switch("41", actor, "request") == done
        assert outcomes_of(again, "request") == ["failed: interrupted before it took effect", "done"]
        again.check_invariants()


def test_a_crash_after_the_rename(app: Path, pointer: Pointer, actor: Actor) -> None:
    _crash_before(pointer, actor, "write", -1)
    for _ in range(2):
        with closing(open_deploy_path(str(app))) as deploy:
            again = Pointer(deploy)
            assert (release_of(again), link_of(app)) == ("41", "releases/41")
            assert outcomes_of(again, "request") == [RECOVERED]
            assert journal_of(deploy)[-1].actor == actor
            again.check_invariants()


def test_a_switch_is_not_recovered_again_after_thousands_of_others(app: Path, pointer: Pointer, actor: Actor) -> None:
    """What memory keeps of the journal is bounded; what is written down as pending must not outlive that."""
    pointer.switch("41", actor, "request")
    line = journal_of(pointer.deploy)[-1]
    with (app / ".relfs" / JOURNAL).open("ab") as journal:
        for number in range(6_000):
            journal.write(encode(replace(line, action="withdraw", id=f"withdraw-{number}")))
    with closing(open_deploy_path(str(app))) as deploy:
        assert outcomes_of(Pointer(deploy), "request") == [DONE]


def test_nothing_is_written_down_through_a_link(app: Path, pointer: Pointer, actor: Actor) -> None:
    """Whoever owns the deploy path must not be able to make root's relfs overwrite something elsewhere."""
    (app / "theirs").write_text("theirs")
    (app / ".relfs" / PENDING).unlink(missing_ok=True)
    (app / ".relfs" / PENDING).symlink_to(app / "theirs")
    with pytest.raises(RelfsError):
        pointer.switch("41", actor, "request")
    assert (app / "theirs").read_text() == "theirs"
    assert link_of(app) == "releases/40"


def test_a_fifo_that_somebody_put_there_hangs_nobody(app: Path, pointer: Pointer, actor: Actor) -> None:
    os.mkfifo(app / ".relfs" / PENDING)
    pointer.switch("41", actor, "request")
    assert link_of(app) == "releases/41"
    assert not (app / ".relfs" / PENDING).exists()


# ---- somebody else ------------------------------------------------------------------------------------------------


def test_a_link_that_somebody_else_changed_is_followed(app: Path, pointer: Pointer) -> None:
    replace_link(app, "releases/42")
    target = pointer.refresh()
    assert target is not None and target.release == "42"
    event = journal_of(pointer.deploy)[-1]
    assert (event.action, event.release, event.origin, event.actor.uid) == ("follow", "42", "40", os.getuid())
    pointer.refresh()
    assert journal_of(pointer.deploy)[-1] == event
    pointer.check_invariants()


def test_a_switch_starts_from_what_somebody_else_did(app: Path, pointer: Pointer, actor: Actor) -> None:
    replace_link(app, "releases/42")
    assert pointer.switch("41", actor, "request").origin == "42"
    assert [event.release for event in activations_of(pointer.deploy)] == ["40", "42", "41"]


# ---- targets are announced ----------------------------------------------------------------------------------------


def test_a_target_is_announced_before_anybody_can_see_it(app: Path, deploy: DeployPath, actor: Actor) -> None:
    heard: list[tuple[str, str | None, str]] = []

    def hear(target: Target) -> None:
        heard.append((target.text, release_of(opened), link_of(app)))

    opened = Pointer(deploy, on_target=hear)
    assert heard == [], "what is in force at first is nothing new"
    opened.switch("41", actor, "request")
    opened.switch("41", actor, "request")
    replace_link(app, "releases/42")
    opened.refresh()
    opened.rollback("40", actor, "another")
    assert heard == [
        ("releases/41", "40", "releases/40"),
        ("releases/42", "41", "releases/42"),
        ("releases/40", "42", "releases/42"),
    ]


def test_a_target_that_is_refused_when_announced(app: Path, deploy: DeployPath, actor: Actor) -> None:
    def refuse(target: Target) -> None:
        if target.release in refused:
            raise OSError(errno.EPERM, "it is not wanted")

    refused = {"41"}
    pointer = Pointer(deploy, on_target=refuse)
    with pytest.raises(RelfsError, match=r"^41: not switched to: it is not wanted; current is still 40$") as raised:
        pointer.switch("41", actor, "request")
    assert isinstance(raised.value.__cause__, OSError)
    assert (release_of(pointer), link_of(app)) == ("40", "releases/40")
    replace_link(app, "releases/41")
    pointer.refresh()
    assert pointer.diverged == "the real current leads to 41, but it is not wanted"
    assert release_of(pointer) == "40"
    refused.clear()
    pointer.refresh()
    assert pointer.diverged is None
    assert release_of(pointer) == "41"
    pointer.check_invariants()


@pytest.mark.parametrize("text", ["releases/99", "/no/such/place", None], ids=["dangling", "away", "gone"])
def test_a_link_that_leads_nowhere_is_not_followed(app: Path, pointer: Pointer, actor: Actor, text: str | None) -> None:
    before = journal_of(pointer.deploy)
    if text is not None:
        replace_link(app, text)
    else:
        (app / "current").unlink()
    assert pointer.refresh() == pointer.deploy.target("releases/40")
    assert pointer.diverged is not None and (text or "gone") in pointer.diverged
    assert journal_of(pointer.deploy) == before
    replace_link(app, "releases/40")
    pointer.refresh()
    assert pointer.diverged is None
    (app / "current").unlink()
    pointer.refresh()
    assert pointer.switch("41", actor, "request").origin == "40"
    assert pointer.diverged is None
    pointer.check_invariants()


def test_a_link_to_what_is_no_directory_is_not_followed(app: Path, pointer: Pointer) -> None:
    """A pipe is not even opened: that would wait for a writer, with the lock held."""
    os.mkfifo(app / "pipe")
    replace_link(app, "pipe")
    looking = threading.Thread(target=pointer.refresh, daemon=True)
    looking.start()
    while looking.is_alive():
        assert not _has_a_reader(app / "pipe")
    assert pointer.diverged is not None


def _has_a_reader(pipe: Path) -> bool:
    """Whether somebody waits for us, who is let go then (fifo(7): nobody else can open it for writing alone)."""
    try:
        os.close(os.open(pipe, os.O_WRONLY | os.O_NONBLOCK))
    except OSError as error:
        assert error.errno == errno.ENXIO
        return False
    return True


def test_a_real_directory_in_the_place_of_the_link(app: Path, pointer: Pointer, actor: Actor) -> None:
    (app / "current").unlink()
    (app / "current").mkdir()
    for ask in (pointer.refresh, lambda: pointer.switch("41", actor, "request")):
        with pytest.raises(RelfsError, match="`relfsctl init"):
            ask()
    assert (app / "current").is_dir() and not (app / "current").is_symlink()
    assert release_of(pointer) == "40"


def test_a_dangling_link_at_first_is_what_there_is(app: Path, actor: Actor) -> None:
    replace_link(app, "releases/99")
    with closing(open_deploy_path(str(app))) as deploy:
        pointer = Pointer(deploy)
        assert release_of(pointer) == "99"
        pointer.switch("41", actor, "request")
        assert (release_of(pointer), pointer.diverged) == ("41", None)


def test_no_link_at_first(app: Path, actor: Actor) -> None:
    (app / "current").unlink()
    with closing(open_deploy_path(str(app))) as deploy:
        pointer = Pointer(deploy)
        assert (pointer.target, pointer.diverged) == (None, None)
        assert pointer.switch("41", actor, "request").origin is None
        assert link_of(app) == "releases/41"


# ---- many at once -------------------------------------------------------------------------------------------------


def test_a_change_waits_for_the_change_lock(deploy: DeployPath, pointer: Pointer, actor: Actor) -> None:
    done = threading.Event()

    def switch() -> None:
        pointer.switch("41", actor, "request")
        done.set()

    with change_lock(deploy.state_fd):
        thread = threading.Thread(target=switch)
        thread.start()
        assert not done.wait(0.1)
        assert release_of(pointer) == "40"
    thread.join()
    assert release_of(pointer) == "41"


def test_threads_switch_one_after_the_other(app: Path, pointer: Pointer, actor: Actor) -> None:
    def switch(name: str) -> None:
        for number in range(20):
            pointer.switch(name, actor, f"{name}-{number}")

    threads = [threading.Thread(target=switch, args=(name,)) for name in ("40", "41", "42")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    check_the_chain(app, {f"{name}-{number}" for name in ("40", "41", "42") for number in range(20)})
    pointer.check_invariants()


SWITCH = """
import sys
from relfs.journal import this_actor
from relfs.layout import open_deploy_path
from relfs.pointer import Pointer
path, releases, label, times = sys.argv[1], sys.argv[2].split(), sys.argv[3], int(sys.argv[4])
pointer = Pointer(open_deploy_path(path))
actor = this_actor()
print("ready", flush=True)
sys.stdin.readline()
for number in range(times):
    pointer.switch(releases[number % len(releases)], actor, f"{label}-{number}")
"""

WITHOUT_LOCK = """
import contextlib
import relfs.pointer
relfs.pointer.change_lock = lambda *_, **__: contextlib.nullcontext()
"""


def switch_in_two_processes(app: Path, program: str, times: int) -> None:
    """Two processes switch `times` times each, at the same time; each of them must come to its end."""
    processes = [
        start_python(program, str(app), releases, label, str(times))
        for label, releases in [("a", "40 41"), ("b", "42 41 40")]
    ]
    try:
        for process in processes:
            assert process.stdout is not None and process.stdout.readline() == "ready\n"
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        for process in processes:
            process.wait()
            assert process.returncode == 0
    finally:
        for process in processes:
            end(process)


def check_the_chain(app: Path, requests: set[str]) -> None:
    """Each request is in the journal once, each line starts where the one before ended, and the link is at the last."""
    with closing(open_deploy_path(str(app))) as deploy:
        events = journal_of(deploy)
        assert all(event.succeeded for event in events)
        ids = [event.id for event in events if event.action == "switch"]
        assert len(ids) == len(set(ids)) == len(requests)
        assert set(ids) == requests
        for before, after in itertools.pairwise(events):
            assert after.origin == before.release
        assert deploy.target(link_of(app)).release == events[-1].release
        assert (app / ".relfs" / JOURNAL).read_bytes() == b"".join(map(encode, events))


def test_two_processes_switch_one_after_the_other(app: Path) -> None:
    switch_in_two_processes(app, SWITCH, 100)
    check_the_chain(app, {f"{label}-{number}" for label in "ab" for number in range(100)})


def test_without_the_lock_they_do_not(app: Path) -> None:
    """The check above can fail."""
    with pytest.raises(AssertionError):
        switch_in_two_processes(app, WITHOUT_LOCK + SWITCH, 500)
        check_the_chain(app, {f"{label}-{number}" for label in "ab" for number in range(500)})


# ---- a clock that is set back


def test_a_clock_that_was_set_back(app: Path, pointer: Pointer, actor: Actor, monkeypatch: pytest.MonkeyPatch) -> None:
    """What follows is not earlier, in this process and in the next; what goes by order is right all the same."""
    then = float(int(time.time()) + 60)  # whole seconds can be named
    monkeypatch.setattr("time.time", lambda: then)
    pointer.switch("41", actor, "before")
    monkeypatch.setattr("time.time", lambda: then - 86_400)
    pointer.switch("42", actor, "after")
    with closing(open_deploy_path(str(app))) as deploy:
        again = Pointer(deploy)
        assert [event.time for event in journal_of(deploy)][-2:] == [then, then]
        assert again.rollback(None, actor, "back").release == "41"
        moment = datetime.fromtimestamp(then).astimezone().isoformat()
        assert again.switch(f"@{moment}", actor, "by time").release == "41"
    monkeypatch.setattr("time.time", lambda: then + 1)
    pointer.switch("42", actor, "right again")
    assert pointer.history.activations[-1].time == then + 1


def test_what_is_flushed_ahead_is_the_disk_of_the_releases_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "app").mkdir()
    with small_disk(tmp_path / "app/releases"), closing(open_deploy_path(str(make_app(tmp_path / "app")))) as deploy:
        pointer, flushed = Pointer(deploy), set[int]()
        monkeypatch.setattr(relfs.pointer, "syncfs", lambda fd: flushed.add(os.fstat(fd).st_dev))
        pointer.flush()
        assert flushed == {os.stat(path).st_dev for path in (tmp_path / "app", tmp_path / "app/releases")}
