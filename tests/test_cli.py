"""relfsctl as people and programs meet it: every command, offline and on a mount; what it says, and what it refuses.

What the daemon does with clients that are not relfsctl is in test_control.py.
"""

from __future__ import annotations

import json
import os
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from clients import (
    SECONDS,
    Done,
    assert_one_line,
    clean_environment,
    ctl,
    ctl_command,
    ctl_on_terminal,
    has_looked,
    next_line,
    running,
    snapshot,
)
from mounting import Mount, Mounts, environment, relfs_command, wait_for
from sandbox import add_release, end, link_of, make_app, start_python

from relfs import locate as locate_module
from relfs.cli.commands.status import _status_here
from relfs.cli.relfsctl import _COMMANDS
from relfs.errors import UsageError
from relfs.locate import Place, locate
from relfs.mountinfo import mount_at, relfs_mounts
from relfs.mounts import detach

NOBODY = 65534

EVENT_FIELDS = {"time", "action", "release", "from", "user", "pid", "command", "outcome"}
STATUS_FIELDS = {
    "deploy_path", "mountpoint", "mounted", "current", "previous", "since", "by",
    "supervisor_pid", "worker_pid", "standby_pid", "views", "host",
}  # fmt: skip


@pytest.fixture(params=["offline", "mounted"])
def anywhere(request: pytest.FixtureRequest, app: Path) -> Path:
    """A deploy path on which everything must work the same, mounted or not."""
    if request.param == "mounted":
        request.getfixturevalue("mounts").start(app)
    return app


@pytest.fixture(scope="module", params=["offline", "mounted"])
def settled(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A deploy path for many refusals, since none of them changes anything; one switch has been made in it."""
    app = make_app(tmp_path_factory.mktemp("settled") / "app")
    (app / "releases/empty").mkdir()
    (app / "releases/file").write_text("no directory")
    (app / "releases/out").symlink_to("/etc")
    (app / "releases/up").symlink_to("../../app/releases/../..")
    (app / "releases/loop").symlink_to("loop")
    mounts = Mounts(tmp_path_factory.mktemp("logs"))
    if request.param == "mounted":
        mounts.start(app)
    assert ctl("-C", app, "switch", "41").status == 0
    yield app
    mounts.take_away()


# ---- each command


def test_programs_get_json(anywhere: Path) -> None:
    """One document a command, or one a line; the field names are a promise."""
    switched = ctl("-C", anywhere, "--json", "switch", "41").json
    assert switched.keys() >= EVENT_FIELDS
    assert (switched["action"], switched["release"], switched["from"]) == ("switch", "41", "40")
    status = ctl("-C", anywhere, "--json", "status").json
    assert status.keys() >= STATUS_FIELDS
    assert (status["current"], status["previous"], status["by"]) == ("41", "40", "root")
    assert (status["deploy_path"], status["mounted"]) == (str(anywhere), mount_at(str(anywhere)) is not None)
    releases = ctl("-C", anywhere, "--json", "releases").json
    assert [entry["name"] for entry in releases] == ["40", "41", "42"]
    assert [entry["states"] for entry in releases] == [["previous"], ["current"], []]
    assert all(entry.keys() == {"name", "created", "states", "revision", "revision_time"} for entry in releases)
    assert ctl("-C", anywhere, "--json", "rollback").json["action"] == "rollback"
    log = [json.loads(line) for line in ctl("-C", anywhere, "--json", "log").out.splitlines()]
    assert [event["action"] for event in log] == ["adopt", "switch", "rollback"]
    assert all(event.keys() >= EVENT_FIELDS for event in log)
    assert log[1]["command"].endswith("switch 41"), "the command that asked, not the daemon"


def test_status_of_a_mount_that_ends_meanwhile(app: Path) -> None:
    """It was there when the deploy path was looked for, and gone before anybody answered."""
    told = _status_here(Place(str(app), str(app)))
    assert (told["mounted"], told["mountpoint"], told["current"]) == (False, None, "40")


def test_json_is_one_line(anywhere: Path) -> None:
    for command in ("status", "releases", "doctor"):
        assert len(ctl("-C", anywhere, "--json", command).out.splitlines()) == 1, command


def test_pipes_get_tabs(anywhere: Path) -> None:
    """A line a row, no header, no colour, nothing padded."""
    assert ctl("-C", anywhere, "switch", "41").out == "41 is current (was 40)\n"
    assert ctl("-C", anywhere, "rollback").out == "40 is current again; 41 is marked bad\n"
    status = dict(ctl("-C", anywhere, "status").rows)
    assert (status["deploy path"], status["current"]) == (str(anywhere), "40")
    releases = ctl("-C", anywhere, "releases").rows
    assert [(row[0], row[2]) for row in releases] == [("40", "current"), ("41", "bad"), ("42", "")]
    log = ctl("-C", anywhere, "log").rows
    assert [(row[1], row[2], row[3]) for row in log] == [
        ("adopt", "40", ""),
        ("switch", "41", "40"),
        ("rollback", "40", "41"),
    ]
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", row[0]) for row in log)
    assert {row[0] for row in ctl("-C", anywhere, "doctor").rows} <= {"ok", "note", "fail"}


def test_terminals_get_tables(anywhere: Path) -> None:
    """A header, and columns that begin where the header's words begin."""
    assert ctl("-C", anywhere, "switch", "40").status == 0
    for command, first in (("releases", "NAME"), ("log", "TIME"), ("doctor", "")):
        status, shown = ctl_on_terminal("-C", anywhere, command)
        assert status == 0, shown
        assert "\t" not in shown
        header, *rows = re.sub(r"\x1b\[[0-9;]*m", "", shown).splitlines()
        assert header.startswith(first)
        second = re.search(r"(?<=  )\S", header)
        assert second is not None
        assert rows and all(row[second.start() - 2 : second.start()] == "  " for row in rows), shown
    status, shown = ctl_on_terminal("-C", anywhere, "status")
    assert status == 0
    assert re.search(r"current\W.* 40\n", shown)


def test_what_deployer_left_in_releases(anywhere: Path) -> None:
    (anywhere / "releases/41/BAD_RELEASE").touch()
    (anywhere / "releases/42/DIRTY_RELEASE").touch()
    (anywhere / "releases/40/REVISION").write_bytes(b"0123abc\n")
    (anywhere / "releases/41/REVISION").write_bytes(b"\xff\x1b[2J\tred\nmore\n")
    (anywhere / "releases/42/REVISION").symlink_to("/etc/passwd")
    entries = ctl("-C", anywhere, "--json", "releases").json
    assert [entry["states"] for entry in entries] == [["current"], ["bad"], ["dirty"]]
    assert [entry["revision"] for entry in entries] == ["0123abc", "\udcff\x1b[2J\tred", None]
    shown = ctl("-C", anywhere, "releases").rows
    assert [row[3] for row in shown] == ["0123abc", r"\xff\x1b[2J\x09red", ""]
    (anywhere / "releases/41/REVISION").write_bytes(b"x" * 1_000_000)
    assert len(ctl("-C", anywhere, "--json", "releases").json[1]["revision"]) == 100


@pytest.mark.parametrize(
    ("content", "time"),
    [(b"1700000000\n", 1700000000), (b"0", 0), (b"", None), (b"yesterday\n", None), (b"-1\n", None), (b"9" * 40, None)],
)
def test_when_the_revision_was_made(anywhere: Path, content: bytes, time: int | None) -> None:
    """As Capistrano writes it; whatever else is there, and a link to somebody's file, tells nothing."""
    (anywhere / "releases/41/REVISION_TIME").write_bytes(content)
    (anywhere / "elsewhere").write_text("1700000000\n")
    (anywhere / "releases/42/REVISION_TIME").symlink_to(anywhere / "elsewhere")
    listing = {each["name"]: each["revision_time"] for each in ctl("-C", anywhere, "--json", "releases").json}
    assert listing == {"40": None, "41": time, "42": None}


def test_sizes_on_request(anywhere: Path) -> None:
    (anywhere / "releases/41/data").write_bytes(b"x" * 100_000)
    os.link(anywhere / "releases/41/data", anywhere / "releases/41/again")
    sizes = {entry["name"]: entry["size"] for entry in ctl("-C", anywhere, "--json", "releases", "--size").json}
    assert 100_000 <= sizes["41"] < 200_000, "a hard link takes no room of its own"
    assert sizes["40"] < 100_000
    assert ctl("-C", anywhere, "releases", "--size").rows[1][4].endswith("KiB")


def test_log_of_the_last(app: Path) -> None:
    for release in ("41", "42", "40", "41"):
        assert ctl("-C", app, "switch", release).status == 0
    assert [row[2] for row in ctl("-C", app, "log", "-n", "2").rows] == ["40", "41"]
    assert ctl("-C", app, "log", "-n", "0").out == ""
    assert len(ctl("-C", app, "log", "-n", "1000").rows) == 5
    for wrong in ("-1", "x"):
        assert_one_line(ctl("-C", app, "log", "-n", wrong), 2, wrong)


def test_reading_makes_nothing(app: Path) -> None:
    """Commands that only look leave a deploy path that relfs never saw as it was."""
    before = snapshot(app)
    for command in ("status", "releases", "log", "doctor"):
        assert ctl("-C", app, command).status == 0, command
    assert snapshot(app) == before


def test_reading_works_for_those_who_cannot_write(open_place: Path) -> None:
    app = make_app(open_place / "app")
    assert ctl("-C", app, "switch", "41").status == 0
    assert dict(ctl("-C", app, "status", user=NOBODY).rows)["current"] == "41"
    assert len(ctl("-C", app, "log", user=NOBODY).rows) == 2
    before = snapshot(app)
    assert_one_line(ctl("-C", app, "switch", "42", user=NOBODY), 1, str(app), "Permission denied")
    assert snapshot(app) == before


def test_rollback_goes_further_back(anywhere: Path) -> None:
    """By what was really activated, past what is bad or gone; never forth."""
    add_release(anywhere, "43")
    for release in ("42", "41", "43"):
        assert ctl("-C", anywhere, "switch", release).status == 0
    assert ctl("-C", anywhere, "rollback").out.startswith("41 is current again; 43 ")
    assert ctl("-C", anywhere, "rollback").out.startswith("42 is current again; 41 ")
    assert ctl("-C", anywhere, "rollback").out.startswith("40 is current again; 42 ")
    before = snapshot(anywhere)
    assert_one_line(ctl("-C", anywhere, "rollback"), 3, "no earlier release")
    assert snapshot(anywhere) == before
    states = {row[0]: row[2] for row in ctl("-C", anywhere, "releases").rows}
    assert states == {"40": "current", "41": "bad", "42": "bad", "43": "bad"}
    assert ctl("-C", anywhere, "switch", "43").status == 0
    assert {row[0]: row[2] for row in ctl("-C", anywhere, "releases").rows}["43"] == "current", "good once more"


def test_rollback_passes_over_what_cannot_serve(app: Path) -> None:
    for release in ("41", "42"):
        assert ctl("-C", app, "switch", release).status == 0
    (app / "releases/41/DEPLOY_UNFINISHED").touch()
    assert ctl("-C", app, "rollback").out.startswith("40 is current again")
    assert ctl("-C", app, "rollback", "42").out.startswith("42 is current again; 40 ")
    assert_one_line(ctl("-C", app, "rollback", "42"), 3, "is current already")


def test_names_with_an_at(anywhere: Path) -> None:
    ctl("-C", anywhere, "switch", "41")
    for reference, expected in (("@previous", "40"), ("@latest", "42"), ("@last-good", "40"), ("@current", "40")):
        assert ctl("-C", anywhere, "--json", "switch", reference).json["release"] == expected, reference
    now = datetime.now()
    assert ctl("-C", anywhere, "--json", "switch", f"@{now.isoformat()}").json["release"] == "40"
    for moment in ("2001-01-01T00:00", (now + timedelta(hours=1)).isoformat()):
        assert_one_line(ctl("-C", anywhere, "switch", f"@{moment}"), 3, f"@{moment}")
    assert_one_line(ctl("-C", anywhere, "switch", "@tomorrow"), 2, "@tomorrow")


def test_rollback_from_nothing(app: Path) -> None:
    """There is no release to mark bad, and none is claimed to be."""
    (app / "current").unlink()
    done = ctl("-C", app, "rollback", "41")
    assert "None" not in done.out, done


# ---- bad input

REFUSALS = [
    ("a/b", 2, "'a/b'"),
    ("../releases/40", 2, "'../releases/40'"),
    ("..", 2, "'..'"),
    (".", 2, "'.'"),
    ("", 2, "''"),
    ("4\n2", 2, r"'4\n2'"),
    ("4\t2", 2, r"'4\t2'"),
    ("4\x1b[2J", 2, r"'4\x1b[2J'"),
    ("9" * 300, 2, "300 bytes"),
    ("\N{BUG}" * 64, 2, "256 bytes"),
    ("gone", 3, "releases/gone: no such release"),
    ("file", 3, "releases/file: is not a directory"),
    ("out", 3, "releases/out: is a symbolic link that leaves releases/"),
    ("up", 3, "releases/up: is a symbolic link that leaves releases/"),
    ("loop", 3, "releases/loop: too many levels"),
    ("empty", 3, "releases/empty: is an empty directory"),
    ("@nonsense", 2, "@nonsense"),
]


@pytest.mark.parametrize(("name", "status", "words"), REFUSALS, ids=[repr(row[0])[:20] for row in REFUSALS])
def test_refused_releases(settled: Path, name: str, status: int, words: str) -> None:
    before = snapshot(settled)
    assert_one_line(ctl("-C", settled, "switch", "--", name), status, words)
    if name in ("..", "4\n2", "gone", "empty", "@nonsense"):
        assert_one_line(ctl("-C", settled, "rollback", "--", name), status, words)
    assert snapshot(settled) == before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["switch"], "RELEASE"),
        (["switch", "40", "41"], "41"),
        (["switch", "-4"], "-4"),
        (["switch", "--frob", "41"], "--frob"),
        (["frobnicate"], "frobnicate"),
        (["--frob", "status"], "--frob"),
        (["status", "now"], "now"),
        (["log", "-n"], "-n"),
    ],
)
def test_wrong_usage(settled: Path, arguments: list[str], words: str) -> None:
    before = snapshot(settled)
    assert_one_line(ctl("-C", settled, *arguments), 2, words)
    assert snapshot(settled) == before


@pytest.mark.parametrize(
    ("arguments", "command"),
    [
        (["-C"], "relfsctl"),
        (["frobnicate"], "relfsctl"),
        (["log", "-n"], "relfsctl log"),
        (["shared", "check", "--frob"], "relfsctl shared check"),
    ],
)
def test_wrong_usage_tells_whose_help_shows_how(arguments: list[str], command: str) -> None:
    assert_one_line(ctl(*arguments), 2, f"; `{command} --help` shows how")


def test_without_a_command_the_help_is_shown() -> None:
    done = ctl()
    assert done.status == 2
    assert "Commands:" in done.out + done.err
    assert not done.err.startswith("relfsctl: Usage"), "help is no error message"


def test_empty_release_by_force(anywhere: Path) -> None:
    (anywhere / "releases/empty").mkdir()
    assert_one_line(ctl("-C", anywhere, "switch", "empty"), 3, "--force")
    assert ctl("-C", anywhere, "switch", "--force", "empty").status == 0
    assert link_of(anywhere) == "releases/empty"
    assert_one_line(ctl("-C", anywhere, "switch", "--force", "gone"), 3, "gone")


@pytest.mark.parametrize(
    ("where", "words"),
    [
        ("missing", "no such deploy path"),
        ("file", "not a directory"),
        ("file/below", "not a directory"),
        ("bare", "has no releases/"),
        ("odd", "releases: not a directory"),
        ("x" * 300, "File name too long"),
    ],
)
def test_no_deploy_path(tmp_path: Path, where: str, words: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "bare").mkdir()
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd/releases").touch()
    before = snapshot(tmp_path)
    for command in (["switch", "41"], ["status"], ["watch"]):
        assert_one_line(ctl("-C", tmp_path / where, *command), 1, f"{tmp_path}/{where}"[:200], words)
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("odd", ["new\nline", "tab\there", "esc\x1b[31m"])
def test_control_characters_in_a_path(tmp_path: Path, odd: str) -> None:
    """What relfs says about it is one line that a terminal does not obey, and nothing is made there."""
    before = snapshot(tmp_path)
    for command in (["status"], ["switch", "41"], ["init", str(tmp_path / odd)]):
        done = ctl("-C", tmp_path / odd, *command)
        if command[0] == "init" and done.status == 0:  # fine for what can be mounted afterwards
            assert "\n" not in odd, "`relfs` refuses such a path, so `init` must not make it"
            shutil.rmtree(tmp_path / odd)
            continue
        assert_one_line(done, done.status)
        assert done.status in (1, 2)
        assert done.err[:-1].isprintable(), done
    assert snapshot(tmp_path) == before


def test_an_empty_name_is_not_a_choice(app: Path, tmp_path: Path, mounts: Mounts) -> None:
    """`-C "$UNSET"` must never mean whatever else there is: a switch of somebody else's application."""
    mounts.start(app)
    before = snapshot(app)
    (tmp_path / "elsewhere").mkdir()
    for arguments in (["-C", "", "switch", "42"], ["-C", "", "unmount"]):
        assert_one_line(ctl(*arguments, cwd=app), 2)
    assert_one_line(ctl("init", "", cwd=tmp_path / "elsewhere"), 2)
    assert snapshot(app) == before
    assert os.listdir(tmp_path / "elsewhere") == []


def test_a_real_directory_is_not_switched(app: Path) -> None:
    (app / "current").unlink()
    (app / "current").mkdir()
    (app / "current/index.html").write_text("kept")
    before = snapshot(app)
    for command in (["switch", "41"], ["status"], ["releases"], ["rollback"]):
        assert_one_line(ctl("-C", app, *command), 1, f"{app}/current", "relfsctl init")
    assert {k: v for k, v in snapshot(app).items() if not k.startswith(".relfs")} == before


def test_a_dangling_link_can_be_mended(app: Path) -> None:
    shutil.rmtree(app / "releases/40")
    assert dict(ctl("-C", app, "status").rows)["current"] == "40"
    doctor = ctl("-C", app, "doctor")
    assert doctor.status == 1
    assert "leads to releases/40, which is no directory; `relfsctl switch RELEASE`" in doctor.out
    assert ctl("-C", app, "switch", "41").status == 0
    assert link_of(app) == "releases/41"


def test_a_name_that_cannot_be_leaves_no_trace(app: Path) -> None:
    """Also in a deploy path that relfs never saw before."""
    before = snapshot(app)
    assert ctl("-C", app, "switch", "a/b").status == 2
    assert snapshot(app) == before


def test_state_files_are_never_followed_as_links(app: Path, tmp_path: Path) -> None:
    """Root's relfsctl works in a directory of the deploy path's owner, who must not thereby write root's files."""
    assert ctl("-C", app, "switch", "41").status == 0
    for name in ("pending", "journal", "lock", "current", ".current.relfs"):
        precious = tmp_path / f"precious-{name.strip('.')}"
        precious.write_text("precious")
        (app / ".relfs" / name).unlink(missing_ok=True)
        (app / ".relfs" / name).symlink_to(precious)
        done = ctl("-C", app, "switch", "42")
        assert precious.read_text() == "precious", name
        assert done.status in (0, 1), done
        assert len(done.err.splitlines()) == done.status, done
        (app / ".relfs" / name).unlink(missing_ok=True)


@pytest.mark.parametrize("name", ["pending", "journal", "lock"])
def test_state_that_cannot_be_read(app: Path, name: str) -> None:
    """Something unreadable in the place of a state file is one line, never a traceback."""
    assert ctl("-C", app, "switch", "41").status == 0
    (app / ".relfs" / name).unlink(missing_ok=True)
    (app / ".relfs" / name).mkdir()
    assert_one_line(ctl("-C", app, "switch", "42"), 1, name if name != "pending" else "")
    assert link_of(app) == "releases/41"


# ---- which deploy path


def test_found_by_where_one_stands(app: Path) -> None:
    assert ctl("-C", app, "switch", "41").status == 0
    for place in (app, app / "releases", app / "releases/40", app / ".relfs"):
        assert ctl("--json", "status", cwd=place).json["deploy_path"] == str(app), place
    assert ctl("--json", "status", cwd=app / "current").json["current"] == "41"


def test_found_by_name(app: Path, tmp_path: Path) -> None:
    """-C before $RELFS_PATH before where one stands; relative names and links are resolved."""
    other = make_app(tmp_path / "other")
    (tmp_path / "alias").symlink_to("app")

    def found(*arguments: str | Path, cwd: Path, **env: str) -> str:
        return str(ctl(*arguments, "--json", "status", cwd=cwd, env=env).json["deploy_path"])

    assert found("-C", "app", cwd=tmp_path) == str(app)
    assert found("-C", "../app/.", cwd=other) == str(app)
    assert found("-C", "alias", cwd=tmp_path) == str(app)
    assert found("-C", tmp_path / "alias", cwd=other) == str(app)
    assert found(cwd=other, RELFS_PATH=str(app)) == str(app)
    assert found("-C", other, cwd=tmp_path, RELFS_PATH=str(app)) == str(other)
    assert found(cwd=other, RELFS_PATH="") == str(other), "an empty variable is one that is not set"


def test_a_working_directory_that_is_gone(tmp_path: Path) -> None:
    """As after pruning the release in which one stood."""
    (tmp_path / "gone").mkdir()
    command = ["sh", "-c", 'cd "$0" && rmdir "$0" && exec "$@"', str(tmp_path / "gone"), *ctl_command("status")]
    done = subprocess.run(
        command, capture_output=True, text=True, env=clean_environment(), check=False, timeout=SECONDS
    )
    assert "Traceback" not in done.stderr, done.stderr
    assert (done.returncode == 0) == (done.stderr == "")


def mounted_are(monkeypatch: pytest.MonkeyPatch, *pairs: tuple[str, str]) -> None:
    """Pretend that these are the mounts (mountpoint, deploy path), and that we stand nowhere."""
    monkeypatch.setattr(locate_module, "mounted_paths", lambda: list(pairs))
    monkeypatch.setattr(locate_module, "_around_here", lambda: None)
    monkeypatch.delenv("RELFS_PATH", raising=False)
    monkeypatch.delenv("RELFS_STATE_DIR", raising=False)


def test_the_only_one_mounted(monkeypatch: pytest.MonkeyPatch) -> None:
    mounted_are(monkeypatch, ("/live", "/srv/app"), ("/live2", "/srv/app"))
    assert locate(None, None) == Place("/srv/app", "/live")
    with pytest.raises(UsageError):
        locate("", None)  # not named is one thing, named as nothing another
    assert locate("/live2", None) == Place("/srv/app", "/live2"), "the mountpoint that was named"
    assert locate("/live", None).state_paths == ("/srv/app/.relfs", "/live/.relfs")


def test_several_mounted_are_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    mounted_are(monkeypatch, ("/srv/b", "/srv/b"), ("/srv/a", "/srv/a"))
    with pytest.raises(UsageError, match="mounted are /srv/a, /srv/b"):
        locate(None, None)
    mounted_are(monkeypatch)
    with pytest.raises(UsageError, match="none is mounted"):
        locate(None, None)
    assert locate("/srv/a", "/state") == Place("/srv/a", None, "/state")
    assert locate("/srv/a", "/state").state_paths == ("/state",)


def test_by_its_mountpoint_elsewhere(app: Path, tmp_path: Path, mounts: Mounts) -> None:
    live = tmp_path / "live"
    live.mkdir()
    mounts.start(app, at=live)
    for given, cwd in ((live, "/"), (app, "/"), (None, live), (None, live / "releases/40")):
        arguments: list[str | Path] = ["-C", given] if given is not None else []
        status = ctl(*arguments, "--json", "status", cwd=cwd).json
        assert (status["deploy_path"], status["mountpoint"]) == (str(app), str(live)), (given, cwd)
    assert ctl("-C", live, "switch", "41").status == 0
    assert [row[2] for row in ctl("-C", live, "log").rows] == ["40", "41"]


def test_state_elsewhere(app: Path, tmp_path: Path, mounts: Mounts) -> None:
    """`--state-dir` for a mount elsewhere: whoever names the mount sees the whole history, too."""
    live, state = tmp_path / "live", tmp_path / "state"
    live.mkdir()
    mounts.start(app, "--state-dir", state, at=live)
    assert ctl("-C", live, "switch", "41").status == 0
    assert not (app / ".relfs").exists()
    given: list[list[str | Path]] = [["-C", live, "--state-dir", state], ["-C", live], ["-C", app]]
    for arguments in given:
        assert [row[2] for row in ctl(*arguments, "log").rows] == ["40", "41"], arguments
        assert [row[2] for row in ctl(*arguments, "releases").rows] == ["previous", "current", ""], arguments


# ---- init


def test_init_makes_a_deploy_path(tmp_path: Path) -> None:
    done = ctl("--json", "init", tmp_path / "deep/new")
    assert done.json == {"deploy_path": str(tmp_path / "deep/new"), "current": None, "adopted": None}
    assert sorted(os.listdir(tmp_path / "deep/new")) == [".relfs", "releases", "shared"]
    once = snapshot(tmp_path)
    again = ctl("init", tmp_path / "deep/new")
    assert (again.status, again.err) == (0, "")
    assert snapshot(tmp_path) == once, "the second time changes nothing"
    add_release(tmp_path / "deep/new", "1")
    assert ctl("-C", tmp_path / "deep/new", "switch", "1").status == 0


def test_init_adopts_what_is_there(app: Path) -> None:
    before = snapshot(app)
    assert ctl("init", cwd=app).out.endswith("is a deploy path; 40 is current\n")
    after = snapshot(app)
    assert before.items() <= after.items(), "nothing is lost"
    assert after.keys() - before.keys() >= {"shared", ".relfs"}
    once = snapshot(app)
    assert ctl("-C", app, "init").status == 0
    assert snapshot(app) == once


def with_real_current(app: Path) -> Path:
    """`current` as a real directory, as before there were releases."""
    (app / "current").unlink()
    (app / "current").mkdir()
    (app / "current/index.html").write_text("served")
    return app


READ_CURRENT = """
import os, select, sys
reads = failed = 0
print("reading", flush=True)
while not select.select([sys.stdin], [], [], 0)[0]:
    for _ in range(100):
        reads += 1
        try:
            with open(sys.argv[1] + "/current/index.html") as file:
                wrong = file.read() != "served"
        except OSError:
            wrong = True
        if wrong and not failed:
            print("failed", flush=True)
        failed += wrong
print(reads, failed, flush=True)
"""


@contextmanager
def reader_of(app: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that reads a file through `current` all the time; it says so at once when a read fails."""
    reader = start_python(READ_CURRENT, str(app))
    try:
        assert next_line(reader) == "reading\n"
        yield reader
    finally:
        end(reader)


def failed_reads(reader: subprocess.Popen[str]) -> int:
    """Stop reading; how many reads failed."""
    out, _ = reader.communicate("\n", timeout=SECONDS)
    reads, failed = map(int, out.splitlines()[-1].split())
    assert reads >= 100
    return failed


def test_init_adopts_a_real_directory_under_load(app: Path) -> None:
    """A reader loops meanwhile, and no read fails."""
    inode = os.stat(with_real_current(app) / "current").st_ino
    for number in range(2):
        with reader_of(app) as reader:
            assert ctl("init", app, "--release", f"first-{number}").status == 0
            assert failed_reads(reader) == 0
        assert os.stat(app / f"releases/first-{number}").st_ino == inode, "the same directory, not a copy"
        assert link_of(app) == f"releases/first-{number}"
        (app / "current").unlink()
        (app / f"releases/first-{number}").rename(app / "current")


def test_adopting_by_hand_fails_readers(app: Path) -> None:
    """mv, then ln -s, under the same reader, which is left the time to notice: this is what `init` is for."""
    with_real_current(app)
    with reader_of(app) as reader:
        (app / "current").rename(app / "releases/first")
        assert next_line(reader) == "failed\n"
        (app / "current").symlink_to("releases/first")
        assert failed_reads(reader) > 0


def test_init_takes_the_next_number(app: Path) -> None:
    made = ctl("--json", "init", with_real_current(app)).json
    assert (made["current"], made["adopted"]) == ("43", "43")
    assert ctl("-C", app, "--json", "log").json["action"] == "adopt"
    assert ctl("-C", app, "switch", "42").status == 0
    assert ctl("-C", app, "rollback").out.startswith("43 is current again")


def test_init_does_not_take_a_name_that_is_taken(app: Path) -> None:
    with_real_current(app)
    (app / "releases/link").symlink_to("40")
    before = snapshot(app)
    assert_one_line(ctl("init", app, "--release", "42"), 3, "releases/42: exists")
    assert_one_line(ctl("init", app, "--release", "link"), 3, "releases/link: exists")
    assert_one_line(ctl("init", app, "--release", "a/b"), 2, "'a/b'")
    assert before.items() <= snapshot(app).items()
    assert (app / "current").is_dir() and not (app / "current").is_symlink()


def test_init_on_a_mount_or_a_file(mount: Mount, tmp_path: Path) -> None:
    before = snapshot(mount.app)
    assert_one_line(ctl("init", mount.app), 1, str(mount.app), "is mounted")
    assert snapshot(mount.app) == before
    (tmp_path / "file").write_text("kept")
    assert_one_line(ctl("init", tmp_path / "file"), 1, f"{tmp_path}/file")
    assert (tmp_path / "file").read_text() == "kept"


# ---- watch


def test_watch_tells_what_happens(anywhere: Path) -> None:
    if mount_at(str(anywhere)) is None:
        assert ctl("-C", anywhere, "switch", "40").status == 0  # adopted before anybody watches
    with running("-C", anywhere, "--json", "watch") as watcher:
        release = "41"

        def heard() -> bool:
            """A switch, until the watcher, whose start nobody is told of, has heard one."""
            assert ctl("-C", anywhere, "switch", release).status == 0
            assert watcher.stdout is not None
            return bool(select.select([watcher.stdout], [], [], 0.3)[0])

        wait_for(heard, "the watcher hears a switch", SECONDS)
        event = json.loads(next_line(watcher))
        assert event.keys() >= EVENT_FIELDS
        assert (event["action"], event["release"], event["outcome"]) == ("switch", "41", "done")
        assert ctl("-C", anywhere, "switch", "42").status == 0
        while event["release"] != "42":
            event = json.loads(next_line(watcher))
        assert ctl("-C", anywhere, "rollback").status == 0
        assert json.loads(next_line(watcher))["action"] == "rollback"


def test_watch_ends_with_the_mount(mount: Mount) -> None:
    with running("-C", mount.app, "watch") as watcher:
        wait_for(lambda: _listens_as_watcher(mount, watcher), "it watches")
        assert mount.relfsctl("unmount").returncode == 0
        assert watcher.wait(SECONDS) == 1
        assert watcher.stderr is not None
        assert "the mount is gone" in watcher.stderr.read()


def _listens_as_watcher(mount: Mount, watcher: subprocess.Popen[str]) -> bool:
    assert mount.relfsctl("switch", "41").returncode == 0
    assert watcher.stdout is not None
    return bool(select.select([watcher.stdout], [], [], 0.2)[0])


def test_watch_after_a_torn_line(app: Path) -> None:
    """The next writer removes what a crash has torn; whoever already watched must not lose its place."""
    assert ctl("-C", app, "switch", "41").status == 0
    with open(app / ".relfs/journal", "ab") as journal:
        journal.write(b'{"time":1.5,"action":"swi')
    with running("-C", app, "--json", "watch") as watcher:
        wait_for(lambda: has_looked(watcher), "it watches")
        assert ctl("-C", app, "switch", "42").status == 0
        assert json.loads(next_line(watcher))["release"] == "42"


# ---- doctor


def finding(done: Done, what: str) -> dict[str, str]:
    found: dict[str, str] = next(each for each in done.json if each["what"] == what)
    assert found.keys() == {"state", "what", "text"}
    return found


def test_doctor_on_a_good_host(anywhere: Path) -> None:
    done = ctl("-C", anywhere, "--json", "doctor")
    assert (done.status, done.err) == (0, "")
    assert {each["state"] for each in done.json} <= {"ok", "note"}
    assert finding(done, "current")["text"] == f"{anywhere}: 40"
    expected = "daemon answers" if mount_at(str(anywhere)) else "not mounted"
    assert expected in finding(done, "mount")["text"]


def test_doctor_leaves_nothing_behind(app: Path, tmp_path: Path) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    before = snapshot(app)
    assert ctl("-C", app, "doctor", env={"TMPDIR": str(scratch)}).status == 0
    assert (snapshot(app), os.listdir(scratch)) == (before, [])
    assert not [mount for mount in relfs_mounts() if mount.target.startswith(str(scratch))]


def test_doctor_misses_the_helper(app: Path, tmp_path: Path) -> None:
    done = ctl("-C", app, "--json", "doctor", env={"PATH": str(tmp_path)})
    assert done.status == 1
    assert finding(done, "fusermount3") == {
        "state": "fail", "what": "fusermount3", "text": "not found; install fuse3 (apt install fuse3)",
    }  # fmt: skip


def test_doctor_misses_the_device(app: Path) -> None:
    """In a mount name space of its own, where /dev/fuse is something else."""
    script = 'mount -t tmpfs none /dev && exec "$@"'
    command = ["unshare", "-m", "sh", "-c", script, "sh", *ctl_command("-C", app, "--json", "doctor")]
    process = subprocess.run(command, capture_output=True, text=True, env=clean_environment(), check=False)
    done = Done(process.returncode, process.stdout, process.stderr)
    assert done.status == 1, done
    assert finding(done, "/dev/fuse")["state"] == "fail"
    assert "modprobe fuse" in finding(done, "/dev/fuse")["text"]


@pytest.mark.parametrize("allowed", [True, False])
def test_doctor_knows_who_may_mount_for_all(tmp_path: Path, allowed: bool) -> None:
    (tmp_path / "fuse.conf").write_text("# user_allow_other\n" + "user_allow_other\n" * allowed)
    (tmp_path / "fuse.conf").chmod(0o644)
    script = 'mount --bind "$0" /etc/fuse.conf && exec setpriv --reuid 65534 --regid 65534 --clear-groups "$@"'
    command = ["unshare", "-m", "sh", "-c", script, str(tmp_path / "fuse.conf"), *ctl_command("--json", "doctor")]
    process = subprocess.run(command, capture_output=True, text=True, env=clean_environment(), check=False, cwd="/")
    found = finding(Done(process.returncode, process.stdout, process.stderr), "allow_other")
    assert found["state"] == ("ok" if allowed else "note"), process
    assert ("put user_allow_other into /etc/fuse.conf" in found["text"]) != allowed


@pytest.mark.parametrize("user", [65534, 0])
def test_doctor_knows_who_may_unmount(user: int) -> None:
    """In a mount name space of its own, with a /etc that has no mtab."""
    script = 'mount -t tmpfs none /etc && exec setpriv --reuid "$0" --regid "$0" --clear-groups "$@"'
    command = ["unshare", "-m", "sh", "-c", script, str(user), *ctl_command("--json", "doctor")]
    process = subprocess.run(command, capture_output=True, text=True, env=clean_environment(), check=False, cwd="/")
    found = [each for each in json.loads(process.stdout) if each["what"] == "unmounting"]
    assert [each["state"] for each in found] == (["note"] if user else [])
    assert not user or "/etc/mtab is missing: fusermount3 can unmount for root only" in found[0]["text"]
    assert not [each for each in ctl("--json", "doctor", user=NOBODY).json if each["what"] == "unmounting"]


def test_doctor_tells_of_sealing(app: Path, tmp_path: Path) -> None:
    """What this host can, and whether what the deploy path asks for can be kept."""
    (app / ".relfs").mkdir()
    done = ctl("-C", app, "--json", "doctor")
    assert finding(done, "seal")["state"] == "ok"
    assert not [each for each in done.json if each["what"] == "sealing"]
    (app / ".relfs/config.toml").write_text("seal = true\n")
    found = finding(ctl("-C", app, "--json", "doctor"), "sealing")
    assert (found["state"], "only while it is mounted" in found["text"]) == ("note", True)
    (app / "releases").rename(tmp_path / "disk")
    (app / "releases").symlink_to(tmp_path / "disk")
    done = ctl("-C", app, "--json", "doctor")
    assert done.status == 1
    assert finding(done, "sealing")["state"] == "fail"


def test_doctor_of_a_user_tells_how_far_sealing_goes() -> None:
    found = finding(ctl("--json", "doctor", user=NOBODY), "seal")
    assert found["state"] == "note"
    assert "--no-bind" in found["text"]


def test_doctor_reads_the_configuration(app: Path) -> None:
    """What keeps `relfs` from mounting must not look healthy."""
    (app / ".relfs").mkdir()
    (app / ".relfs/config.toml").write_text("[control]\ngroup = 'no-such-group'\n")
    mounting = subprocess.run(
        relfs_command(app), env=environment(), capture_output=True, text=True, check=False, timeout=SECONDS
    )
    assert mounting.returncode == 1
    assert "no-such-group" in mounting.stderr
    done = ctl("-C", app, "doctor")
    assert done.status == 1
    assert "no-such-group" in done.out


@pytest.mark.parametrize(
    ("ruin", "what", "words"),
    [
        ("rm -r releases", "deploy path", "has no releases/"),
        ("rm current; mkdir current", "current", "relfsctl init"),
        ("rm current; touch current", "current", "not a symbolic link"),
        ("ln -sfn releases/gone current", "current", "leads to releases/gone"),
    ],
)
def test_doctor_on_a_bad_deploy_path(app: Path, ruin: str, what: str, words: str) -> None:
    subprocess.run(["sh", "-ec", ruin], cwd=app, check=True)
    done = ctl("-C", app, "--json", "doctor")
    assert (done.status, finding(done, what)["state"]) == (1, "fail")
    assert words in finding(done, what)["text"]


def test_doctor_without_a_deploy_path(tmp_path: Path) -> None:
    assert ctl("doctor", cwd=tmp_path).status == 0
    done = ctl("-C", tmp_path / "none", "--json", "doctor")
    assert (done.status, finding(done, "deploy path")["state"]) == (1, "fail")


def children(pid: int) -> list[int]:
    """Of a process with one thread."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def name_of(pid: int) -> str | None:
    """What a process is called; None: it has ended."""
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except (FileNotFoundError, ProcessLookupError):
        return None


def test_a_mount_that_nobody_serves(mount: Mount) -> None:
    """The daemon and its guards are killed, so nobody detaches: each command says what to do, and that works."""
    mount.expect_log(".")
    helpers = [child for child in children(mount.process.pid) if name_of(child) in ("fusermount3", "sh")]
    assert len(helpers) == 2
    for helper in helpers:
        os.kill(helper, signal.SIGKILL)
    mount.kill()
    assert mount_at(str(mount.app)) is not None, "what this test is about"
    assert_one_line(ctl("-C", mount.app, "switch", "41"), 1, str(mount.app))
    done = ctl("-C", mount.app, "doctor")
    assert done.status == 1
    assert "Traceback" not in done.err
    done = ctl("-C", mount.app, "unmount")
    assert (done.status, done.err) == (0, "")
    assert mount_at(str(mount.app)) is None
    assert link_of(mount.app) == "releases/40"


# ---- help, completion, signals, pipes


def test_every_help_has_an_example() -> None:
    assert "Example" in ctl("--help").out
    for command in _COMMANDS:
        done = ctl(command, "--help")
        assert done.status == 0, done
        assert re.search(rf"Examples?:\n(.*\n)*.*relfsctl.* {command}", done.out), command
    relfs = subprocess.run(relfs_command("--help"), env=environment(), capture_output=True, text=True, check=True)
    assert re.search(r"Examples?:\n.*relfs /var/www/app", relfs.stdout)


def test_completion(tmp_path: Path) -> None:
    """The script that click makes loads in bash and asks relfsctl, which knows the commands and their options."""
    launcher = tmp_path / "relfsctl"
    launcher.write_text(f'#!/bin/sh\nexec {sys.executable} -c "import sys; sys.argv[0] = \'relfsctl\'; '
                        'from relfs.cli.relfsctl import main; main()" "$@"\n')  # fmt: skip
    launcher.chmod(0o755)
    script = """
        set -e; eval "$(_RELFSCTL_COMPLETE=bash_source relfsctl)"
        COMP_WORDS=(relfsctl sw); COMP_CWORD=1; _relfsctl_completion relfsctl; echo "${COMPREPLY[*]}"
        COMPREPLY=(); COMP_WORDS=(relfsctl switch --f); COMP_CWORD=2
        _relfsctl_completion relfsctl; echo "${COMPREPLY[*]}"
    """
    path = f"{tmp_path}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", script], env=clean_environment(PATH=path), capture_output=True, text=True, check=False
    )
    assert done.stdout.splitlines() == ["switch", "--force"], done


@pytest.mark.parametrize("times", [1, 2])
def test_interrupted(app: Path, times: int) -> None:
    """Ctrl-C, and Ctrl-C again, at a relfsctl that waits for a daemon that does not answer."""
    (app / ".relfs").mkdir()
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(app / ".relfs/control"))
        silent.listen()
        silent.settimeout(SECONDS)
        with running("-C", app, "switch", "41") as process:
            asking, _ = silent.accept()
            with asking:
                assert b'"switch"' in asking.recv(1 << 16)
                for _ in range(times):
                    process.send_signal(signal.SIGINT)
                _, stderr = process.communicate(timeout=SECONDS)
    assert process.returncode in (130, -signal.SIGINT)
    assert "Traceback" not in stderr
    assert link_of(app) == "releases/40"


@pytest.mark.parametrize("command", ["log", "watch", "status", "switch"])
def test_a_closed_pipe_is_no_failure(app: Path, command: str) -> None:
    """`relfsctl log | head -1`: who has enough is not told of it, and the status is that of the work done."""
    assert ctl("-C", app, "switch", "41").status == 0
    arguments = ["switch", "42"] if command == "switch" else [command]
    reading, writing = os.pipe()
    os.close(reading)
    process = subprocess.Popen(
        ctl_command("-C", app, *arguments), stdout=writing, stderr=subprocess.PIPE, env=clean_environment(), cwd="/"
    )
    os.close(writing)
    try:
        if command == "watch":
            wait_for(lambda: has_looked(process), "it watches")
            assert ctl("-C", app, "switch", "40").status == 0
        _, stderr = process.communicate(timeout=SECONDS)
    finally:
        process.kill()
        process.wait()
    assert stderr == b""
    assert process.returncode == 0
    assert command != "switch" or link_of(app) == "releases/42"


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_started_with_closed_streams(app: Path, closed: str) -> None:
    """As some programs start others: nothing of ours gets their numbers, and is printed into."""
    for command, status in (("switch 41", 0), ("releases", 0), ("switch 99", 3)):
        script = f'exec "$@" {command} {closed}'
        done = subprocess.run(
            ["sh", "-c", script, "sh", *ctl_command("-C", app)],
            capture_output=True, stdin=subprocess.DEVNULL, env=clean_environment(), cwd="/", check=False,
        )  # fmt: skip
        assert (done.returncode, b"Traceback" in done.stderr) == (status, False), done
    assert link_of(app) == "releases/41"


def test_an_answer_that_cannot_be_written(app: Path) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            ctl_command("-C", app, "switch", "41"),
            stdout=full, stderr=subprocess.PIPE, env=clean_environment(), cwd="/", check=False,
        )  # fmt: skip
    said = b"relfsctl: standard output: cannot be written: No space left on device; all else was done\n"
    assert (done.returncode, done.stderr) == (1, said)
    assert link_of(app) == "releases/41"


# ---- names and places of all kinds

ODD_NAMES = [
    "with space, comma\\",
    "Grüße-\N{SNOWMAN}",
    os.fsdecode(b"bytes-\xff\xfe"),
    "-rf",
    "--help",
    "*$(id)",
    ".hidden",
    "n" * 255,
]


def test_releases_of_odd_names(anywhere: Path) -> None:
    """Each can be switched to, is listed, is logged, and survives JSON. A terminal that is strict about text is no
    reason to fail either."""
    for name in ODD_NAMES:
        add_release(anywhere, name)
    strict = {"PYTHONIOENCODING": "utf-8:strict"}
    for name in ODD_NAMES:
        done = ctl("-C", anywhere, "--json", "switch", "--", name, env=strict)
        assert (done.status, done.err) == (0, ""), name
        assert done.json["release"] == name
        assert link_of(anywhere) == f"releases/{name}"
        assert (anywhere / "current/index.html").read_bytes() == os.fsencode(name)
    assert ctl("-C", anywhere, "--json", "status", env=strict).json["current"] == ODD_NAMES[-1]
    listed = [entry["name"] for entry in ctl("-C", anywhere, "--json", "releases", env=strict).json]
    assert sorted(listed) == sorted(["40", "41", "42", *(name for name in ODD_NAMES if name != ".hidden")])
    last = [json.loads(line)["release"] for line in ctl("-C", anywhere, "--json", "log").out.splitlines()]
    assert last[1:] == ODD_NAMES


def test_odd_names_are_shown_to_people(anywhere: Path) -> None:
    """Plain output of every command, on an output that takes no bytes that are no text."""
    odd = os.fsdecode(b"bytes-\xff")
    add_release(anywhere, odd)
    strict = {"PYTHONIOENCODING": "utf-8:strict"}
    for arguments in (["switch", odd], ["status"], ["releases"], ["log"], ["switch", "41"], ["rollback"]):
        done = ctl("-C", anywhere, *arguments, env=strict)
        assert (done.status, done.err) == (0, ""), arguments
    assert_one_line(ctl("-C", anywhere, "switch", odd + "x", env=strict), 3, "bytes-")


ODD_PLACES = [
    "with space, commas\\and #50%",
    "Grüße",
    os.fsdecode(b"bytes-\xff"),
    "/".join(["long" * 20] * 3),
    "-dash",
]


@pytest.mark.parametrize("place", ODD_PLACES, ids=[ascii(place)[:20] for place in ODD_PLACES])
def test_deploy_paths_of_odd_names(tmp_path: Path, mounts: Mounts, place: str) -> None:
    """Mounted, known by name again, switched, detached."""
    app = make_app(tmp_path / place)
    mount = mounts.start(app)
    status = ctl("--json", "status", cwd=app / "releases/42").json
    assert (status["deploy_path"], status["mountpoint"]) == (str(app), str(app))
    assert status["supervisor_pid"] == mount.process.pid, "it was the daemon that answered"
    assert ctl("-C", app, "switch", "41").status == 0
    assert (app / "current/index.html").read_text() == "41"
    assert ctl("-C", app, "status", env={"PYTHONIOENCODING": "utf-8:strict"}).status == 0
    done = ctl("-C", app, "unmount", env={"PYTHONIOENCODING": "utf-8:strict"})
    assert (done.status, done.err) == (0, "")
    assert mount_at(str(app)) is None
    assert link_of(app) == "releases/41"


def test_mounted_through_a_link_and_a_relative_path(app: Path, tmp_path: Path) -> None:
    (tmp_path / "alias").symlink_to("app")
    try:
        command = relfs_command("alias/../alias")
        done = subprocess.run(
            command, cwd=tmp_path, env=environment(), capture_output=True, text=True, check=False, timeout=SECONDS
        )
        assert (done.returncode, done.stderr) == (0, "")
        for given in (tmp_path / "alias", app):
            assert ctl("-C", given, "--json", "status").json["mountpoint"] == str(app)
        assert ctl("-C", "alias", "switch", "42", cwd=tmp_path).status == 0
        assert (app / "current/index.html").read_text() == "42"
        assert ctl("-C", "./alias/", "unmount", cwd=tmp_path).status == 0
    finally:
        if (found := mount_at(str(app))) is not None and found.fstype == "fuse.relfs":
            detach(str(app))


@pytest.mark.parametrize("odd", ["new\nline", "tab\there"])
def test_mounting_a_path_with_control_characters(tmp_path: Path, odd: str) -> None:
    """Either it is one clear line, or it works."""
    app = make_app(tmp_path / odd)
    try:
        done = subprocess.run(
            relfs_command(app), env=environment(), capture_output=True, text=True, check=False, timeout=SECONDS
        )
        if done.returncode == 0:
            assert ctl("-C", app, "--json", "status").json["mountpoint"] == str(app)
            assert ctl("-C", app, "switch", "41").status == 0
            assert ctl("-C", app, "unmount").status == 0
        else:
            assert done.returncode in (1, 2)
            assert len(done.stderr.splitlines()) == 1, done.stderr
            assert link_of(app) == "releases/40"
    finally:
        if mount_at(str(app)) is not None:
            detach(str(app))
