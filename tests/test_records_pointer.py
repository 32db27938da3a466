"""The pointer and deploy tools' records: imported once, in order, whatever fails; told of relfs's own changes only."""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from faults import Calls, Crash, CrashAfter, CrashBefore, CrashTorn, DiskFull, Fails, Fault, ShortWrite, watched
from sandbox import ACTOR, activations_of, add_release, journal_of, link_of

from relfs.errors import RefusedError
from relfs.journal import DONE, IMPORTED, JOURNAL, Event
from relfs.layout import BAD_MARKER, DeployPath, open_deploy_path
from relfs.pointer import Pointer
from relfs.records import capistrano, deployer

FAULTS: tuple[type[Fault], ...] = (CrashBefore, CrashAfter, CrashTorn, Fails, ShortWrite, DiskFull)
BORN = 1_700_000_000
CALLS = 60
"""More system calls than any one method makes where both tools' records are kept; a test checks that."""


def log_line(number: int, release: str) -> bytes:
    return deployer.compose(BORN + 60.0 * number, release, "ada", "main")


@pytest.fixture
def dep(app: Path) -> Path:
    """`app`, as Deployer left it: 40, 41 and 42 were deployed, 42 was left for 41, and 43 is being made."""
    add_release(app, "43")
    (app / ".dep").mkdir()
    (app / ".dep/releases_log").write_bytes(b"".join(log_line(n, str(40 + n)) for n in range(4)))
    (app / ".dep/latest_release").write_text("43\n")
    (app / "releases/42" / BAD_MARKER).write_bytes(deployer.compose_mark(BORN + 150, "bob"))
    (app / "release").symlink_to("releases/43")
    point(app, "41")
    return app


FIRST, SECOND, THIRD = "20260901120000", "20260902120000", "20260903120000"


@pytest.fixture
def cap(app: Path) -> Path:
    """Three releases as Capistrano left them; the last one is current."""
    shutil.rmtree(app / "releases")
    for number, name in enumerate((FIRST, SECOND, THIRD)):
        release = add_release(app, name)
        (release / "REVISION").write_text(f"sha-of-{number}\n")
        os.utime(release, (BORN + number, BORN + number))
    with (app / "revisions.log").open("w") as log:
        for number, name in enumerate((FIRST, SECOND, THIRD)):
            log.write(f"Branch main (at sha-of-{number}) deployed as release {name} by ada\n")
    point(app, THIRD)
    return app


def point(app: Path, release: str) -> None:
    """Make `current` lead to `release`, as somebody else than relfs does."""
    (app / "theirs").symlink_to(f"releases/{release}")
    (app / "theirs").rename(app / "current")


def opened(app: Path, use: Callable[[Pointer], object]) -> list[Event]:
    """What is in the journal after `use` of a new pointer."""
    with closing(open_deploy_path(str(app))) as deploy:
        use(Pointer(deploy))
        return journal_of(deploy)


def looked(app: Path) -> list[Event]:
    """What is in the journal after somebody has opened the pointer."""
    return opened(app, lambda _: None)


def words(events: list[Event]) -> list[str]:
    return [f"{event.action} {event.release} from {event.origin} by {event.actor.user}" for event in events]


def logged(app: Path) -> list[str]:
    lines = (app / ".dep/releases_log").read_bytes().splitlines()
    return [entry.release for line in lines if (entry := deployer.parse(line)) is not None]


def revisions(app: Path) -> list[str]:
    return (app / "revisions.log").read_text().splitlines()


# ---- importing ----------------------------------------------------------------------------------------------------

IMPORTED_OF_DEP = [
    "switch 40 from None by ada",
    "switch 41 from 40 by ada",
    "switch 42 from 41 by ada",
    "rollback 41 from 42 by bob",
    "adopt 41 from 41 by root",
]


def test_what_deployer_recorded_becomes_history(dep: Path) -> None:
    events = looked(dep)
    assert words(events) == IMPORTED_OF_DEP
    assert (events.pop().outcome, len(events)) == (DONE, 4)
    assert {(event.outcome, event.actor.pid) for event in events} == {(IMPORTED, 0)}
    assert [event.time for event in events] == [BORN, BORN + 60, BORN + 120, BORN + 150]
    assert [event.actor.command for event in events] == [*[".dep/releases_log"] * 3, "releases/42/BAD_RELEASE"]


def test_history_answers_from_before_relfs(dep: Path) -> None:
    with closing(open_deploy_path(str(dep))) as deploy:
        pointer = Pointer(deploy)
        assert (pointer.history.previous, pointer.history.bad) == ("40", {"42"})
        assert pointer.history.at(BORN + 70) == "41"
        assert pointer.switch("@previous", ACTOR, "request").release == "40"


def test_it_is_imported_once(dep: Path) -> None:
    first = looked(dep)
    assert looked(dep) == first
    with (dep / ".dep/releases_log").open("ab") as log:
        log.write(log_line(9, "43"))
    assert looked(dep) == first, "the link did not change"


def test_a_journal_that_is_not_empty_gets_nothing_old(dep: Path) -> None:
    (dep / ".dep").rename(dep / "elsewhere")
    adopted = looked(dep)
    (dep / "elsewhere").rename(dep / ".dep")
    point(dep, "40")
    assert words(looked(dep)[1:]) == ["follow 40 from 41 by root"]
    assert adopted[0].action == "adopt"


def test_what_the_log_does_not_explain_is_adopted(dep: Path) -> None:
    add_release(dep, "by-hand")
    point(dep, "by-hand")
    assert words(looked(dep))[-1] == "adopt by-hand from 41 by root"


def test_a_release_that_was_only_made_is_nowhere_to_go_back_to(dep: Path) -> None:
    (dep / "release").unlink()
    with closing(open_deploy_path(str(dep))) as deploy:
        pointer = Pointer(deploy)
        assert pointer.rollback(None, ACTOR, "1").release == "40"
        with pytest.raises(RefusedError):
            pointer.rollback(None, ACTOR, "2")


def test_what_was_done_while_relfs_was_away(dep: Path) -> None:
    before = looked(dep)
    now = time.time() + 60
    with (dep / ".dep/releases_log").open("ab") as log:
        log.write(deployer.compose(now, "43", "ada", "main") + deployer.compose(now + 60, "44", "ada", "main"))
    add_release(dep, "44")
    (dep / "release").unlink()
    (dep / "releases/44" / BAD_MARKER).write_bytes(deployer.compose_mark(now + 90, "bob"))
    point(dep, "43")
    news = looked(dep)[len(before) :]
    assert words(news) == ["switch 43 from 41 by ada", "switch 44 from 43 by ada", "rollback 43 from 44 by bob"]
    assert {event.outcome for event in news} == {IMPORTED}


def test_a_change_that_no_record_tells_of_is_followed(dep: Path) -> None:
    before = looked(dep)
    point(dep, "40")
    assert words(looked(dep)[len(before) :]) == ["follow 40 from 41 by root"]


def test_what_relfs_saw_itself_is_not_imported(dep: Path) -> None:
    def swap(pointer: Pointer) -> None:
        pointer.replace("releases/43", ACTOR, "request")

    before = opened(dep, swap)
    point(dep, "40")
    assert words(looked(dep)[len(before) :]) == ["follow 40 from 43 by root"]


def test_the_old_log(app: Path) -> None:
    (app / ".dep").mkdir()
    (app / ".dep/releases").write_bytes(b"".join(deployer.compose_old(BORN + 60 * n, str(40 + n)) for n in range(3)))
    point(app, "42")
    events = looked(app)[:-1]
    assert words(events) == ["switch 40 from None by ", "switch 41 from 40 by ", "switch 42 from 41 by "]
    assert [event.time for event in events] == [BORN, BORN + 60, BORN + 120]


def test_what_capistrano_recorded_becomes_history(cap: Path) -> None:
    with (cap / "revisions.log").open("a") as log:
        log.write(f"bob rolled back to release {SECOND}\nsomething else\n")
    point(cap, SECOND)
    events = looked(cap)
    assert words(events) == [
        f"switch {FIRST} from None by ada",
        f"switch {SECOND} from {FIRST} by ada",
        f"switch {THIRD} from {SECOND} by ada",
        f"rollback {SECOND} from {THIRD} by bob",
        f"adopt {SECOND} from {SECOND} by root",
    ]
    assert [event.time for event in events[:4]] == [capistrano.time_of(name) for name in (FIRST, SECOND, THIRD, THIRD)]


def test_what_capistrano_did_while_relfs_was_away(cap: Path) -> None:
    before = opened(cap, lambda pointer: pointer.switch(SECOND, ACTOR, "request"))
    fourth = time.strftime("%Y%m%d%H%M%S", time.gmtime(time.time() + 60))
    with (cap / "revisions.log").open("a") as log:
        log.write(f"Branch main (at 4) deployed as release {fourth} by ada\nbob rolled back to release {FIRST}\n")
    point(cap, FIRST)
    news = looked(cap)[len(before) :]
    assert words(news) == [f"switch {fourth} from {SECOND} by ada", f"rollback {FIRST} from {fourth} by bob"]
    point(cap, THIRD)
    assert words(looked(cap)[len(before) + 2 :]) == [f"follow {THIRD} from {FIRST} by root"], "nothing is told twice"


def test_a_rollback_of_capistrano_by_itself_is_followed(cap: Path) -> None:
    """Its line does not tell when; but the release that was left is gone, so that nobody goes back there."""
    before = looked(cap)
    with (cap / "revisions.log").open("a") as log:
        log.write(f"bob rolled back to release {SECOND}\n")
    point(cap, SECOND)
    assert words(looked(cap)[len(before) :]) == [f"follow {SECOND} from {THIRD} by root"]


def test_a_line_of_relfs_is_not_news(cap: Path) -> None:
    before = opened(cap, lambda pointer: pointer.rollback(None, ACTOR, "request"))
    with (cap / "revisions.log").open("a") as log:
        log.write("something else\n")
    point(cap, FIRST)
    assert words(looked(cap)[len(before) :]) == [f"follow {FIRST} from {SECOND} by root"]
    point(cap, THIRD)
    assert words(looked(cap)[len(before) + 1 :]) == [f"follow {THIRD} from {FIRST} by root"]


def test_a_log_of_any_length(app: Path) -> None:
    (app / ".dep").mkdir()
    lines = [log_line(number, str(number)) for number in range(12_000)]
    (app / ".dep/releases_log").write_bytes(b"".join(lines))
    for name in ("11998", "11999"):
        add_release(app, name)
    point(app, "11999")
    events = looked(app)
    assert [event.outcome for event in events] == [IMPORTED] * 10_000 + [DONE]
    assert events[-1].release == "11999"
    point(app, "11998")
    assert words(looked(app)[10_001:]) == ["follow 11998 from 11999 by root"], "nothing is imported a second time"


@pytest.mark.parametrize("content", [b"\xff\xfe\0" * 1000, b"[" * 100_000, b"{}\n" * 100, b"\n\n\n"])
def test_a_log_of_nonsense(app: Path, content: bytes) -> None:
    (app / ".dep").mkdir()
    (app / ".dep/releases_log").write_bytes(content)
    (app / "revisions.log").write_bytes(content)
    assert words(looked(app)) == ["adopt 40 from None by root"]


@pytest.mark.parametrize("name", [".dep", ".dep/releases_log", "revisions.log", "releases/42/BAD_RELEASE"])
@pytest.mark.parametrize("kind", ["link", "fifo"])
def test_nobody_is_led_astray(dep: Path, tmp_path: Path, name: str, kind: str) -> None:
    """Neither is anything written, or waited for, where a deploy user's links and fifos lead."""
    target = tmp_path / "root's"
    victim = dep / name
    if victim.exists():
        victim.rename(target)
    elif kind == "link":
        target.write_text("")
    if kind == "link":
        victim.symlink_to(target)
    else:
        os.mkfifo(victim)
    before = {path: path.read_bytes() for path in (target, *target.rglob("*")) if path.is_file()}
    events = opened(dep, lambda pointer: (pointer.switch("42", ACTOR, "1"), pointer.rollback("40", ACTOR, "2")))
    assert [event.outcome for event in events[-2:]] == [DONE, DONE]
    assert {path: path.read_bytes() for path in before} == before


def test_records_that_cannot_be_read_are_tried_again(dep: Path, caplog: pytest.LogCaptureFixture) -> None:
    calls = _read_fails()
    with closing(open_deploy_path(str(dep))) as deploy:
        with watched(calls):
            pointer = Pointer(deploy)
            assert pointer.target is not None and pointer.target.release == "41"
            pointer.check_invariants()
        assert "Input/output error" in caplog.text
        assert journal_of(deploy) == [], "nothing was adopted, for what was before could not come behind it"
    assert words(looked(dep)) == IMPORTED_OF_DEP


def test_a_change_does_not_wait_for_records_that_cannot_be_read(dep: Path) -> None:
    with closing(open_deploy_path(str(dep))) as deploy, watched(_read_fails()):
        pointer = Pointer(deploy)
        assert pointer.switch("42", ACTOR, "request").outcome == DONE
        assert words(journal_of(deploy)) == ["adopt 41 from None by root", "switch 42 from 41 by ada"]


def _read_fails() -> Calls:
    class ReadFails(Calls):
        def carry_out(self, call):  # type: ignore[no-untyped-def]
            if call.name == "open" and call.arguments[0] == "releases_log":
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return super().carry_out(call)

    return ReadFails()


@pytest.mark.parametrize("kind", FAULTS)
def test_a_fault_at_every_call_of_an_import(dep: Path, kind: type[Fault]) -> None:
    for at in range(CALLS):
        shutil.rmtree(dep / ".relfs", ignore_errors=True)
        calls = Calls(kind(at))
        with closing(open_deploy_path(str(dep))) as deploy, watched(calls):
            try:
                Pointer(deploy)
            except (Crash, Exception):
                assert len(calls.names) > at
        events = looked(dep)
        assert words(events) == IMPORTED_OF_DEP, calls.names[at : at + 1]
        if len(calls.names) <= at:
            return
    pytest.fail("an import makes more calls than were tried")


def test_an_import_that_was_cut_off_is_finished(dep: Path) -> None:
    whole = looked(dep)
    journal = dep / ".relfs" / JOURNAL
    data = journal.read_bytes()
    for length in range(0, len(data), 7):
        journal.write_bytes(data[:length])
        assert words(looked(dep)) == words(whole), length


# ---- telling Deployer ---------------------------------------------------------------------------------------------


def test_a_rollback_is_told_to_deployer(dep: Path) -> None:
    os.chown(dep / "releases/41", 1234, 4321)
    before = (dep / ".dep/releases_log").read_bytes()
    events = opened(dep, lambda pointer: pointer.rollback(None, ACTOR, "request"))
    mark = dep / "releases/41" / BAD_MARKER
    assert deployer.parse_mark(mark.read_bytes()) == deployer.Mark(float(int(events[-1].time)), "ada")
    assert (mark.stat().st_uid, mark.stat().st_gid) == (1234, 4321)
    assert (dep / ".dep/releases_log").read_bytes() == before
    assert not (dep / "releases/40" / BAD_MARKER).exists()


def test_a_switch_clears_the_mark(dep: Path) -> None:
    opened(dep, lambda pointer: pointer.switch("42", ACTOR, "request"))
    assert not (dep / "releases/42" / BAD_MARKER).exists()
    assert not (dep / "releases/41" / BAD_MARKER).exists()


def test_a_release_of_relfs_is_logged(dep: Path) -> None:
    (add_release(dep, "44") / "REVISION").write_text("0123abc\n")
    events = opened(dep, lambda pointer: pointer.switch("44", ACTOR, "request"))
    lines = (dep / ".dep/releases_log").read_bytes().splitlines(keepends=True)
    assert deployer.compose(events[-1].time, "44", "ada", "0123abc") in lines
    assert logged(dep) == ["40", "41", "44", "42", "43"], "43, which is only being made, is not what came before"
    assert (dep / ".dep/latest_release").read_text() == "44\n"


@pytest.mark.parametrize(
    ("latest", "release", "after"),
    [("43\n", "42", "43\n"), ("9\n", "42", "42\n"), ("", "42", "42\n"), ("x\n", "42", "42\n"), ("7\n", "v2", "7\n")],
)
def test_the_next_deployment_finds_a_free_name(dep: Path, latest: str, release: str, after: str) -> None:
    (dep / ".dep/latest_release").write_text(latest)
    add_release(dep, "v2")
    opened(dep, lambda pointer: pointer.switch(release, ACTOR, "request"))
    assert (dep / ".dep/latest_release").read_text() == after


def test_the_log_tells_what_was_before(dep: Path) -> None:
    opened(dep, lambda pointer: pointer.switch("40", ACTOR, "request"))
    assert logged(dep) == ["41", "40", "42", "43"]


def test_a_name_that_json_cannot_say(dep: Path, caplog: pytest.LogCaptureFixture) -> None:
    add_release(dep, os.fsdecode(b"\xff"))
    events = opened(dep, lambda pointer: pointer.switch(os.fsdecode(b"\xff"), ACTOR, "request"))
    assert events[-1].outcome == DONE
    assert "bytes that are no text" in caplog.text
    assert logged(dep) == ["40", "41", "42", "43"]


def test_what_is_only_shown_may_be_anything(dep: Path) -> None:
    (dep / "releases/41/REVISION").write_bytes(b"\xff\x1b\n")
    (dep / ".dep/releases_log").write_bytes(b"")
    strange = type(ACTOR)(1000, os.fsdecode(b"\xfe\n"), 1, "")
    opened(dep, lambda pointer: pointer.switch("41", strange, "request"))
    line = json.loads((dep / ".dep/releases_log").read_bytes())
    assert (line["release_name"], line["user"], line["target"]) == ("41", "??", "??")


def test_a_swap_of_a_tool_is_left_to_the_tool(dep: Path) -> None:
    (dep / "revisions.log").write_text("")
    before = {path: path.read_bytes() for path in (*dep.glob(".dep/*"), dep / "revisions.log")}
    opened(dep, lambda pointer: pointer.replace("releases/42", ACTOR, "request"))
    assert {path: path.read_bytes() for path in before} == before
    assert (dep / "releases/42" / BAD_MARKER).exists()


def test_asked_again_it_writes_nothing(dep: Path) -> None:
    add_release(dep, "44")

    def twice(pointer: Pointer) -> None:
        pointer.switch("44", ACTOR, "request")
        (dep / ".dep/latest_release").write_text("1\n")
        pointer.switch("44", ACTOR, "request")

    opened(dep, twice)
    assert logged(dep).count("44") == 1
    assert (dep / ".dep/latest_release").read_text() == "1\n"


def test_a_path_without_records_gets_none(app: Path) -> None:
    opened(app, lambda pointer: (pointer.switch("42", ACTOR, "1"), pointer.rollback(None, ACTOR, "2")))
    assert sorted(path.name for path in app.iterdir()) == [".relfs", "current", "releases"]
    assert [path.name for path in app.glob("releases/*/*")] == ["index.html"] * 3


def test_the_old_log_is_written_in_its_own_format(app: Path) -> None:
    (app / ".dep").mkdir()
    log = app / ".dep/releases"
    log.write_bytes(b"".join(deployer.compose_old(BORN + 60 * n, str(40 + n)) for n in range(3)))
    before = log.read_bytes()
    point(app, "42")
    events = opened(app, lambda pointer: pointer.switch("40", ACTOR, "request"))
    news = deployer.compose_old(events[-1].time, "42") + deployer.compose_old(events[-1].time, "40")
    assert log.read_bytes() == before + news
    assert os.listdir(app / ".dep") == ["releases"]


# ---- bad marks ----------------------------------------------------------------------------------------------------


def test_what_deployer_calls_bad_is_nowhere_to_go_back_to(dep: Path) -> None:
    with closing(open_deploy_path(str(dep))) as deploy:
        pointer = Pointer(deploy)
        pointer.switch("42", ACTOR, "1")
        pointer.switch("43", ACTOR, "2")
        (dep / "releases/42" / BAD_MARKER).write_text("")  # somebody else's word, without a rollback
        assert pointer.switch("@last-good", ACTOR, "3").release == "41"
        assert pointer.rollback(None, ACTOR, "4").release == "43"


# ---- telling Capistrano -------------------------------------------------------------------------------------------


def newest_first(app: Path) -> list[str]:
    releases = sorted((app / "releases").iterdir(), key=lambda path: (-path.stat().st_mtime_ns, path.name))
    return [path.name for path in releases]


def test_a_rollback_is_told_to_capistrano(cap: Path) -> None:
    opened(cap, lambda pointer: pointer.rollback(None, ACTOR, "request"))
    assert revisions(cap)[3:] == [f"ada rolled back to release {SECOND}"]
    assert newest_first(cap) == [SECOND, FIRST, THIRD]


def test_a_switch_is_told_to_capistrano(cap: Path) -> None:
    opened(cap, lambda pointer: pointer.switch(FIRST, ACTOR, "request"))
    assert revisions(cap)[3:] == [f"Branch main (at sha-of-0) deployed as release {FIRST} by ada"]
    assert newest_first(cap) == [FIRST, THIRD, SECOND]


def test_times_that_mean_something_to_others_are_left(cap: Path) -> None:
    add_release(cap, "hotfix")
    before = newest_first(cap)
    opened(cap, lambda pointer: pointer.rollback(FIRST, ACTOR, "request"))
    assert newest_first(cap) == before
    assert revisions(cap)[-1] == f"ada rolled back to release {FIRST}"


def test_a_user_cannot_forge_a_line(cap: Path) -> None:
    forger = type(ACTOR)(1000, "eve\nroot rolled back to release 1", 1, "")
    opened(cap, lambda pointer: pointer.rollback(None, forger, "request"))
    assert len(revisions(cap)) == 4


# ---- failures -----------------------------------------------------------------------------------------------------


@pytest.fixture
def both(dep: Path) -> Path:
    """A path where both tools have been."""
    (dep / "revisions.log").write_text("Branch main (at 1) deployed as release 40 by ada\n")
    return dep


def test_no_change_makes_more_calls_than_are_tried(both: Path) -> None:
    with closing(open_deploy_path(str(both))) as deploy:
        pointer = Pointer(deploy)
        for number, name in enumerate(("40", "42", "43")):
            with watched(Calls()) as calls:
                pointer.switch(name, ACTOR, f"switch-{number}")
            assert len(calls.names) <= CALLS
            with watched(Calls()) as calls:
                pointer.rollback("41", ACTOR, f"rollback-{number}")
            assert len(calls.names) <= CALLS


@pytest.mark.parametrize("kind", FAULTS)
def test_a_fault_at_every_call_of_a_change(
    both: Path, tmp_path: Path, kind: type[Fault], caplog: pytest.LogCaptureFixture
) -> None:
    """The change is made or is not, as ever; no log loses a line; and after a rollback, the mark comes in the end."""
    caplog.set_level(logging.CRITICAL)
    for at in range(CALLS):
        app = tmp_path / "copy"
        shutil.copytree(both, app, symlinks=True)
        looked(app)
        with closing(open_deploy_path(str(app))) as deploy, watched(Calls(kind(at))):
            try:
                Pointer(deploy).rollback("40", ACTOR, "request")
            except (Crash, Exception) as error:
                assert isinstance(error, Crash) or link_of(app) == "releases/41", error
        events = looked(app)
        rolled_back = link_of(app) == "releases/40"
        assert any(event.id == "request" and event.succeeded for event in events) == rolled_back
        assert sorted(logged(app)) == ["40", "41", "42", "43"]
        assert revisions(app)[0] == "Branch main (at 1) deployed as release 40 by ada"
        if issubclass(kind, (CrashBefore, CrashAfter, CrashTorn)):
            assert (app / "releases/41" / BAD_MARKER).exists() == rolled_back
        shutil.rmtree(app)


def test_records_that_cannot_be_written_are_a_warning(both: Path, caplog: pytest.LogCaptureFixture) -> None:
    (both / ".dep").chmod(0o777)
    os.link(both / ".dep/releases_log", both / "second name")
    (both / ".dep/latest_release").unlink()
    (both / ".dep/latest_release").mkdir()
    events = opened(both, lambda pointer: pointer.switch("40", ACTOR, "request"))
    assert events[-1].outcome == DONE
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert warnings == [
        "40 is current, but .dep/releases_log could not be brought up to date: releases_log has another name "
        "(hard link) elsewhere, and would be changed there",
        "40 is current, but .dep/latest_release could not be brought up to date: Is a directory",
    ]


def test_a_missing_release_is_no_trouble(dep: Path, caplog: pytest.LogCaptureFixture) -> None:
    shutil.rmtree(dep / "releases/41")
    opened(dep, lambda pointer: pointer.rollback("40", ACTOR, "request"))
    assert caplog.text == ""


def test_every_imported_event_is_an_activation(dep: Path, deploy: DeployPath) -> None:
    looked(dep)
    assert len(activations_of(deploy)) == len(IMPORTED_OF_DEP)
