"""A switch that has to be confirmed: it is taken back in time, whoever has died meanwhile, and whoever comes next."""

from __future__ import annotations

import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from unittest import mock

import pytest
from clients import ctl
from crew import kill
from mounting import Mount, Mounts, wait_for
from readers import reading
from sandbox import ACTOR, journal_of, link_of
from test_checks import configure

from relfs.confirm import as_json, overdue, protected
from relfs.deadline import Deadline, deadline_in
from relfs.errors import EXIT_REFUSED, EXIT_USAGE, RefusedError, UsageError
from relfs.history import CONFIRM, History
from relfs.journal import RECOVERED, Event, Journal
from relfs.layout import DeployPath
from relfs.mountinfo import mount_at
from relfs.pointer import Pointer
from relfs.processes import boot_id
from relfs.releases.program import program

SOON = 0.05
LATER = 3600.0
TAKEN_BACK = "was not confirmed in time"


@pytest.fixture
def pointer(deploy: DeployPath) -> Pointer:
    """The pointer of `app`; it is at 40, which the journal knows."""
    return Pointer(deploy)


def release_of(pointer: Pointer) -> str | None:
    return pointer.target.release if pointer.target is not None else None


def switch_soon_over(deploy: DeployPath) -> Event:
    """What a relfsctl has left that was killed with all of relfs: 41, whose time is over, and nobody has looked yet."""
    event = Pointer(deploy).switch("41", ACTOR, "request", confirm=SOON)
    wait_for(lambda: event.confirm is not None and event.confirm.is_over(), "the time is over")
    return event


# ---- the deadline


def test_a_deadline_of_this_boot_is_not_moved_by_the_clock() -> None:
    with mock.patch("time.time", lambda: 1e6):
        deadline = deadline_in(LATER)
    assert not deadline.is_over()
    assert 0 < deadline.left() <= LATER


@pytest.mark.parametrize(("until", "over"), [(-1.0, True), (LATER, False)])
def test_after_a_reboot_the_clock_counts(until: float, over: bool) -> None:
    assert Deadline(time.time() + until, 1e12 if over else 0.0, "another boot").is_over() == over


def test_without_a_boot_to_be_known_by() -> None:
    assert Deadline(time.time() - 1, None, boot_id()).is_over()


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), float("inf"), 1e12])
def test_what_is_no_time(pointer: Pointer, seconds: float) -> None:
    with pytest.raises(UsageError, match="not a time to confirm in"):
        pointer.switch("41", ACTOR, "request", confirm=seconds)
    assert release_of(pointer) == "40"


# ---- what waits


def test_it_waits_in_the_journal_alone(pointer: Pointer, deploy: DeployPath) -> None:
    event = pointer.switch("41", ACTOR, "request", confirm=LATER)
    history = History(journal_of(deploy))
    assert history.unconfirmed == event == journal_of(deploy)[-1]
    told = as_json(history)
    assert told is not None
    assert (told["release"], told["back_to"], told["id"]) == ("41", "40", "request")
    assert overdue(history) is None


def test_it_is_confirmed_once(pointer: Pointer, deploy: DeployPath) -> None:
    pointer.switch("41", ACTOR, "request", confirm=SOON * 2000)
    first = pointer.confirm("41", ACTOR, "confirmation")
    assert (first.action, first.release, first.origin) == (CONFIRM, "41", "40")
    assert pointer.confirm(None, ACTOR, "confirmation") == first
    with pytest.raises(RefusedError, match="nothing waits for being confirmed"):
        pointer.confirm(None, ACTOR, "another")
    assert as_json(History(journal_of(deploy))) is None


def test_another_is_not_confirmed(pointer: Pointer) -> None:
    pointer.switch("41", ACTOR, "request", confirm=LATER)
    with pytest.raises(RefusedError, match="42: does not wait for being confirmed; 41 does"):
        pointer.confirm("42", ACTOR, "confirmation")
    assert pointer.history.unconfirmed is not None


OVERTAKEN: dict[str, Callable[[Pointer], object]] = {
    "by another": lambda pointer: pointer.switch("42", ACTOR, "next"),
    "by itself": lambda pointer: pointer.switch("41", ACTOR, "next"),
    "by a tool": lambda pointer: pointer.replace("releases/42", ACTOR, "next"),
    "by going back": lambda pointer: pointer.rollback(None, ACTOR, "next"),
}


@pytest.mark.parametrize("overtake", OVERTAKEN.values(), ids=OVERTAKEN.keys())
def test_whatever_becomes_current_ends_it(pointer: Pointer, overtake: Callable[[Pointer], object]) -> None:
    pointer.switch("41", ACTOR, "request", confirm=LATER)
    overtake(pointer)
    assert pointer.history.unconfirmed is None
    with pytest.raises(RefusedError, match="nothing waits"):
        pointer.confirm(None, ACTOR, "confirmation")


def test_somebody_behind_our_back_ends_it(app: Path, pointer: Pointer) -> None:
    pointer.switch("41", ACTOR, "request", confirm=LATER)
    (app / "theirs").symlink_to("releases/42")
    (app / "theirs").rename(app / "current")
    pointer.refresh()
    assert (release_of(pointer), pointer.history.unconfirmed) == ("42", None)


def test_the_last_of_two_counts(pointer: Pointer) -> None:
    pointer.switch("41", ACTOR, "request", confirm=LATER)
    pointer.switch("42", ACTOR, "next", confirm=LATER)
    assert pointer.confirm(None, ACTOR, "confirmation").release == "42"


@pytest.mark.parametrize(
    ("prepare", "words"),
    [
        (lambda app: (app / "releases/43").mkdir(), "40: is current already"),
        (lambda app: (app / "current").unlink(), "there is no current release"),
        (lambda app: (app / "releases/40/BAD_RELEASE").touch(), "40: is no good release"),
        (lambda app: shutil.rmtree(app / "releases/40"), "40: is no good release"),
    ],
)
def test_where_there_would_be_no_way_back(
    app: Path, deploy: DeployPath, prepare: Callable[[Path], object], words: str
) -> None:
    prepare(app)
    with pytest.raises(RefusedError, match=words):
        Pointer(deploy).switch("40" if words.startswith("40: is current") else "41", ACTOR, "request", confirm=LATER)
    assert all(event.action != "switch" for event in journal_of(deploy))


def test_neither_of_the_two_may_be_removed(pointer: Pointer, deploy: DeployPath) -> None:
    assert protected(deploy, History(Journal(deploy.state_fd).events())) == {}
    pointer.switch("41", ACTOR, "request", confirm=LATER)
    assert protected(deploy, History(Journal(deploy.state_fd).events())).keys() == {"41", "40"}
    pointer.confirm(None, ACTOR, "confirmation")
    assert protected(deploy, History(Journal(deploy.state_fd).events())) == {}


# ---- being taken back


def test_whoever_comes_next_takes_it_back(deploy: DeployPath, app: Path, caplog: pytest.LogCaptureFixture) -> None:
    switch_soon_over(deploy)
    again = Pointer(deploy)
    assert (release_of(again), link_of(app)) == ("40", "releases/40")
    back = journal_of(deploy)[-1]
    assert again.taken_back == back
    assert (back.action, back.release, back.origin) == ("rollback", "40", "41")
    assert back.why is not None and TAKEN_BACK in back.why
    assert TAKEN_BACK in caplog.text
    assert "41" in again.history.bad
    again.check_invariants()
    with pytest.raises(RefusedError, match="and 40 is current again; there is nothing to confirm"):
        again.confirm(None, ACTOR, "too late")
    with pytest.raises(RefusedError, match="no earlier release"):
        again.rollback(None, ACTOR, "further")


def test_before_anything_else(pointer: Pointer) -> None:
    pointer.switch("41", ACTOR, "request", confirm=SOON)
    wait_for(lambda: overdue(pointer.history) is not None, "the time is over")
    event = pointer.switch("42", ACTOR, "next")
    assert (event.release, event.origin) == ("42", "40")


def test_going_back_at_the_last_moment_does_not_go_too_far(pointer: Pointer) -> None:
    """Whoever asks for a rollback means what he sees; it has just been taken back."""
    pointer.switch("42", ACTOR, "first")
    pointer.switch("41", ACTOR, "request", confirm=SOON)
    wait_for(lambda: overdue(pointer.history) is not None, "the time is over")
    assert pointer.rollback(None, ACTOR, "back").release == "42"
    assert release_of(pointer) == "42"


def test_neither_a_lock_nor_a_hook_keeps_it(app: Path, deploy: DeployPath) -> None:
    switch_soon_over(deploy)
    (app / ".relfs/hooks").mkdir()
    (app / ".relfs/hooks/pre-switch").write_text("#!/bin/sh\nexit 1\n")
    (app / ".relfs/hooks/pre-switch").chmod(0o755)
    (app / ".dep").mkdir()
    (app / ".dep/deploy.lock").write_text("ada")
    assert release_of(Pointer(deploy)) == "40"


def test_nowhere_to_go(app: Path, pointer: Pointer, caplog: pytest.LogCaptureFixture) -> None:
    """It is said once, and nobody is kept from making another current."""
    pointer.switch("41", ACTOR, "request", confirm=SOON)
    shutil.rmtree(app / "releases/40")
    wait_for(lambda: overdue(pointer.history) is not None, "the time is over")
    assert [pointer.take_stock(), pointer.take_stock()] == [None, None]
    assert (release_of(pointer), caplog.text.count("cannot be taken back")) == ("41", 1)
    assert pointer.switch("42", ACTOR, "next").release == "42"


def test_a_crash_before_the_journal_has_it(app: Path, deploy: DeployPath, pointer: Pointer) -> None:
    """The link says 41, the journal does not; `pending` tells both that it is current and until when."""
    with mock.patch.object(Journal, "append", side_effect=OSError(28, "full")):
        pointer.switch("41", ACTOR, "request", confirm=LATER)
    assert journal_of(deploy)[-1].release == "40"
    again = Pointer(deploy)
    assert (release_of(again), link_of(app)) == ("41", "releases/41")
    waiting = again.history.unconfirmed
    assert waiting is not None
    assert (waiting.outcome, waiting.id) == (RECOVERED, "request")


def test_a_crash_before_the_link_says_so(deploy: DeployPath, pointer: Pointer) -> None:
    """One that waits goes on waiting when the next one, with its own deadline, was never made."""
    pointer.switch("41", ACTOR, "request", confirm=LATER)
    with mock.patch("os.rename", side_effect=KeyboardInterrupt), pytest.raises(KeyboardInterrupt):
        pointer.switch("42", ACTOR, "next", confirm=LATER)
    again = Pointer(deploy)
    assert release_of(again) == "41"
    assert again.history.unconfirmed is not None
    assert again.history.unconfirmed.id == "request"


def test_taking_back_is_found_when_the_crash_came_amid_it(deploy: DeployPath) -> None:
    switch_soon_over(deploy)
    with mock.patch.object(Journal, "append", side_effect=OSError(28, "full")):
        assert release_of(Pointer(deploy)) == "40"
    again = Pointer(deploy)
    assert (release_of(again), again.history.bad) == ("40", {"41"})
    assert [event.release for event in journal_of(deploy) if event.action == "rollback"] == ["40"]


# ---- the whole program, without a mount


def waiters(app: Path) -> list[int]:
    """The processes that wait for a confirmation here: this very relfs, wherever Python would look for one."""
    return [pid for pid in map(int, filter(str.isdecimal, os.listdir("/proc"))) if _waits(pid, app)]


def _waits(pid: int, app: Path) -> bool:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return os.fsencode(app) in words and words[3:5] == [os.fsencode(word) for word in program("relfs.cli.waiter")[3:]]


@pytest.fixture(autouse=True)
def nobody_waits_for_ever(app: Path) -> Iterator[None]:
    yield
    end_waiters(app)


def end_waiters(app: Path) -> None:
    for pid in waiters(app):
        with suppress(ProcessLookupError):  # it has ended by itself since
            os.kill(pid, 9)


def test_somebody_is_left_to_wait(app: Path) -> None:
    done = ctl("-C", app, "switch", "41", "--confirm", "1")
    assert done.status == 0
    assert done.out.startswith("41 is current (was 40)\nback to 40 at ")
    wait_for(lambda: link_of(app) == "releases/40", "it is taken back")
    wait_for(lambda: not waiters(app), "who waited has ended")
    assert "bad" in ctl("-C", app, "releases").out


def test_confirmed(app: Path) -> None:
    assert ctl("-C", app, "switch", "41", "--confirm", "600").status == 0
    assert ctl("-C", app, "--json", "status").json["confirm"]["back_to"] == "40"
    assert ctl("-C", app, "--json", "releases").json[1]["states"] == ["current", "unconfirmed"]
    assert len(waiters(app)) == 1
    assert ctl("-C", app, "confirm").out == "41 is confirmed, and stays\n"
    wait_for(lambda: not waiters(app), "who waited has ended")
    assert ctl("-C", app, "confirm").status == EXIT_REFUSED
    assert ctl("-C", app, "--json", "status").json["confirm"] is None


def test_refused_leaves_nobody(app: Path) -> None:
    assert ctl("-C", app, "switch", "40", "--confirm", "600").status == EXIT_REFUSED
    assert ctl("-C", app, "switch", "41", "--confirm", "0").status == EXIT_USAGE
    wait_for(lambda: not waiters(app), "who waited has ended")


def test_after_a_reboot_any_command_does_it(app: Path, deploy: DeployPath) -> None:
    """Those that only look, too; and it is said."""
    switch_soon_over(deploy)
    done = ctl("-C", app, "--json", "status")
    assert (done.status, done.json["current"]) == (0, "40")
    assert "41 was not confirmed in time: 40 is current again" in done.err


# ---- mounted


def test_the_daemon_takes_it_back(mount: Mount) -> None:
    mount.expect_log(TAKEN_BACK)
    app = mount.app
    with reading(app / "current/index.html", "40", "41") as readers:
        assert ctl("-C", app, "switch", "41", "--confirm", "1").status == 0
        wait_for(lambda: (app / "current/index.html").read_text() == "40", "it is taken back")
        seen = readers.stop()
    assert (seen.failed, seen.neither) == ({}, 0)
    assert mount.journal()[-1]["why"] == "41 was not confirmed in time"
    assert ctl("-C", app, "confirm").status == EXIT_REFUSED


def test_the_seal_goes_back_too(app: Path, mounts: Mounts) -> None:
    configure(app, "seal = true\n")
    mount = mounts.start(app)
    mount.expect_log(TAKEN_BACK)
    assert ctl("-C", app, "switch", "41", "--confirm", "0.5").status == 0
    wait_for(lambda: (app / "current/index.html").read_text() == "40", "it is taken back")
    wait_for(lambda: mount.status()["sealed"] == ["40"], "the seal has followed")
    with pytest.raises(OSError, match="Read-only"):
        (app / "releases/40/index.html").write_text("changed")
    (app / "releases/41/index.html").write_text("changed")


def test_confirmed_while_mounted(mount: Mount) -> None:
    assert ctl("-C", mount.app, "switch", "41", "--confirm", "600").status == 0
    assert mount.status()["confirm"]["release"] == "41"
    assert json.loads(ctl("-C", mount.app, "--json", "confirm").out)["action"] == CONFIRM
    assert mount.status()["confirm"] is None
    wait_for(lambda: not waiters(mount.app), "who waited has ended")


@pytest.mark.parametrize("parts", [("worker",), ("worker", "supervisor")], ids="+".join)
def test_who_takes_over_goes_on_waiting(mount: Mount, parts: tuple[str, ...]) -> None:
    """Nobody but the mount's processes is left to do it."""
    mount.expect_log(TAKEN_BACK)
    assert ctl("-C", mount.app, "switch", "41", "--confirm", "2").status == 0
    end_waiters(mount.app)
    kill(mount, *parts)
    wait_for(lambda: (mount.app / "current/index.html").read_text() == "40", "it is taken back")
    assert mount.journal()[-1]["release"] == "40"


def test_all_of_the_mount_is_killed(mount: Mount) -> None:
    mount.expect_log(TAKEN_BACK)
    assert ctl("-C", mount.app, "switch", "41", "--confirm", "3").status == 0
    mount.kill()
    wait_for(lambda: mount_at(str(mount.app)) is None, "the mount is gone")
    wait_for(lambda: not waiters(mount.app), "who waited has ended")
    assert link_of(mount.app) == "releases/40"
    assert [event["release"] for event in mount.journal()][-2:] == ["41", "40"]


def test_a_mount_that_begins_too_late(app: Path, deploy: DeployPath, mounts: Mounts) -> None:
    switch_soon_over(deploy)
    mount = mounts.start(app)
    mount.expect_log(TAKEN_BACK)
    assert mount.status()["current"] == "40"
    assert (app / "current/index.html").read_text() == "40"


def test_a_journal_that_others_wrote(deploy: DeployPath, pointer: Pointer, caplog: pytest.LogCaptureFixture) -> None:
    """A deadline that is none is no event, as any line that is none."""
    caplog.set_level(logging.WARNING)
    event = pointer.switch("41", ACTOR, "request", confirm=LATER)
    odd = {**replace(event, id="odd").as_json(), "confirm": {"until": "soon"}}
    with open(f"{deploy.state_path}/journal", "a", encoding="ascii") as file:
        file.write(json.dumps(odd) + "\n")
    again = Pointer(deploy)
    assert again.history.unconfirmed == event
