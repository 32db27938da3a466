"""`relfsctl add` and `relfsctl check`: offline and on a mount, on a terminal and in a pipe, and when interrupted."""

from __future__ import annotations

import fcntl
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from clients import SECONDS, assert_one_line, clean_environment, ctl, ctl_command, ctl_on_terminal
from mounting import Mounts, wait_for
from trees import described, make_archive, make_tree, member, write

from relfs.cli.progress import progress_line, progress_text
from relfs.releases.staging import PREFIX
from relfs.releases.workers import Progress

DEPLOYER = 1234
ENDING = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129, signal.SIGKILL: -9}


@pytest.fixture(params=["offline", "mounted", "mounted without binds"])
def anywhere(request: pytest.FixtureRequest, app: Path, mounts: Mounts) -> Path:
    """A deploy path on which everything must work the same."""
    if request.param != "offline":
        mounts.start(app, *(["--no-bind"] if "without" in request.param else []))
    return app


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return make_tree(tmp_path / "tree")


@contextmanager
def started(*arguments: str | Path) -> Iterator[subprocess.Popen[bytes]]:
    """A relfsctl that reads what it is given, and is ended."""
    process = subprocess.Popen(
        ctl_command(*arguments), stdin=subprocess.PIPE, stderr=subprocess.PIPE, env=clean_environment(), cwd="/"
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def staged(app: Path) -> list[Path]:
    return list((app / "releases").glob(f"{PREFIX}*"))


def is_abandoned(app: Path) -> bool:
    """Whether there is a staging directory that no process holds."""
    for path in staged(app):
        fd = os.open(path, os.O_RDONLY)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        finally:
            os.close(fd)
    return bool(staged(app))


# ---- what it does and says


def test_a_release_is_added_and_switched_to(anywhere: Path, tree: Path) -> None:
    done = ctl("-C", anywhere, "add", tree, "--switch")
    assert (done.status, done.err) == (0, "")
    assert done.out == "43 is added: 8 files, 10.2 MiB\n43 is current (was 40)\n"
    assert (anywhere / "current/index.php").read_bytes() == b"<?php echo 1;\n"
    assert ctl("-C", anywhere, "check", "@current").out == "43 is as it was added: 15 entries\n"
    second = ctl("-C", anywhere, "--json", "add", tree, "--name", "next", "--link").json
    assert second.keys() == {
        "name", "path", "sequence", "source", "files", "directories", "links", "bytes", "shared_files", "shared_bytes",
        "previous", "switched",
    }  # fmt: skip
    assert (second["name"], second["previous"], second["switched"]) == ("next", "43", None)
    assert second["shared_files"] > 0
    assert ctl("-C", anywhere, "--json", "check", "next").json["ok"] is True


def test_a_release_from_standard_input(anywhere: Path, tmp_path: Path) -> None:
    archive = make_archive(tmp_path / "a.tar", member("app-1.0/index.html", b"hello"))
    subprocess.run(["gzip", archive], check=True)
    with started("-C", anywhere, "add", "-", "--strip", "1") as process:
        process.communicate((tmp_path / "a.tar.gz").read_bytes(), timeout=SECONDS)
    assert process.returncode == 0
    assert (anywhere / "releases/43/index.html").read_bytes() == b"hello"


def test_what_is_shared_is_linked_before_it_can_be_switched_to(app: Path, tree: Path) -> None:
    write(app / ".relfs/config.toml", b'[shared]\ndirectories = ["storage"]\nwritable = ["empty"]\n')
    assert ctl("-C", app, "add", tree).status == 0
    assert os.readlink(app / "releases/43/storage") == "../../shared/storage"
    write(app / "releases/43/empty/cached", b"x")
    assert ctl("-C", app, "check", "43").status == 0


def test_what_a_hook_changes_is_part_of_the_release(app: Path, tree: Path) -> None:
    command = "cd $RELFS_RELEASE_PATH; echo built > app/built; echo changed >> index.php"
    write(app / ".relfs/config.toml", f"[hooks]\npre_add = '{command}'\n".encode())
    assert ctl("-C", app, "add", tree).status == 0
    assert (app / "releases/43/app/built").read_bytes() == b"built\n"
    assert ctl("-C", app, "check", "43").out == "43 is as it was added: 16 entries\n"


def test_what_is_sealed_is_not_linked_to(app: Path, tree: Path, mounts: Mounts) -> None:
    """Nobody could change it by its new name, then; so its files are copied."""
    write(app / ".relfs/config.toml", b"seal = true\n")
    mounts.start(app)
    assert ctl("-C", app, "add", tree, "--switch").status == 0
    added = ctl("-C", app, "--json", "add", tree, "--link").json
    assert (added["previous"], added["shared_files"]) == ("43", 0)
    assert described(app / "releases/44") == described(tree)


def test_what_differs_is_listed(app: Path, tree: Path) -> None:
    assert ctl("-C", app, "add", tree).status == 0
    write(app / "releases/43/index.php", b"<?php echo 2;\n")
    (app / "releases/43/empty.txt").unlink()
    done = ctl("-C", app, "check", "43")
    assert (done.status, done.err) == (1, "")
    assert done.rows == [["missing", "empty.txt"], ["content", "index.php"], ["content", "public/index.php"]]
    report = ctl("-C", app, "--json", "check", "43")
    assert (report.status, report.json["ok"]) == (1, False)
    assert report.json["differences"][0] == {"path": "empty.txt", "change": "missing"}


@pytest.mark.parametrize(
    ("arguments", "status", "named"),
    [
        (["add", "/no/such"], 2, "/no/such"),
        (["add", ""], 2, "''"),
        (["add", "/dev/null"], 2, "/dev/null"),
        (["add", "TREE", "--name", "41"], 3, "41"),
        (["add", "TREE", "--name", "a/b"], 2, "a/b"),
        (["add", "TREE", "--strip", "-1"], 2, "--strip"),
        (["add", "git:HEAD", "--repository", "/"], 1, "git:HEAD"),
        (["check", "41"], 1, "41"),
        (["check", "77"], 3, "77"),
        (["check", "@previous"], 3, "@previous"),
    ],
)
def test_bad_input_is_one_line(app: Path, tree: Path, arguments: list[str], status: int, named: str) -> None:
    words = [str(tree) if word == "TREE" else word for word in arguments]
    assert_one_line(ctl("-C", app, *words), status, named)
    assert sorted(os.listdir(app / "releases")) == ["40", "41", "42"]


def test_a_terminal_sees_how_far_it_is(app: Path, tree: Path) -> None:
    status, shown = ctl_on_terminal("-C", app, "add", tree)
    assert status == 0
    assert "adding  [" in shown
    assert re.search(r"adding  \[.* left", shown)
    assert shown.splitlines()[-1].endswith("43 is added: 8 files, 10.2 MiB"), "the line is gone in the end"


@pytest.mark.parametrize(
    ("progress", "seconds", "text"),
    [
        (Progress(1, 0, 2, 0), 60.0, "adding  [##########          ]  50%  1 files, 0 B, 0 B/s, 1:00 left"),
        (Progress(0, 0, 2, 0), 0.0, "adding  [                    ]   0%  0 files, 0 B, 0 B/s"),
        (Progress(0, 0, 0, 0), 1.0, "adding  [####################] 100%  0 files, 0 B, 0 B/s, 0:00 left"),
        (Progress(7, 9, share=0.25), 30.0, "adding  [#####               ]  25%  7 files, 9 B, 0 B/s, 1:30 left"),
        (Progress(1200, 3 << 20), 2.0, "adding  1,200 files, 3.0 MiB, 1.5 MiB/s"),
        (Progress(1, 0, 101, 0), 72.0, "adding  [                    ]   1%  1 files, 0 B, 0 B/s, 2:00:00 left"),
    ],
)
def test_the_line_tells_rate_and_remaining_time(progress: Progress, seconds: float, text: str) -> None:
    assert progress_text("adding", progress, seconds) == text


def test_a_terminal_that_was_closed_stops_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """It goes on where SIGHUP is ignored (nohup(1), disown)."""
    ours, theirs = os.openpty()
    with open(theirs, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        with progress_line("adding") as tell:
            tell(Progress(1, 2))
            assert os.read(ours, 100).startswith(b"\radding  1 files")
            os.close(ours)
            monkeypatch.setattr(time, "monotonic", lambda: float("inf"))
            tell(Progress(2, 3))
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), theirs)  # for what is flushed at its end


def test_a_deploy_user_goes_on_where_root_has_begun(open_place: Path, tmp_path: Path) -> None:
    app = open_place / "app"
    (app / "releases").mkdir(parents=True)
    (app / ".relfs").mkdir()
    for path in (app, app / "releases", app / ".relfs"):
        os.chown(path, DEPLOYER, DEPLOYER)
    source = write(open_place / "source/file", b"x").parent
    assert ctl("-C", app, "add", source).status == 0
    assert ctl("-C", app, "add", source, user=DEPLOYER).out == "2 is added: 1 files, 1 B\n"
    assert ctl("-C", app, "add", make_archive(tmp_path / "a.tar", member("f"))).status == 0
    assert (app / "releases/3/f").stat().st_uid == DEPLOYER
    assert (app / "releases/2/file").stat().st_uid == DEPLOYER
    assert ctl("-C", app, "check", "1", user=DEPLOYER).status == 0


def test_a_mount_elsewhere_is_the_deploy_path_too(app: Path, tmp_path: Path, mounts: Mounts) -> None:
    (tmp_path / "live").mkdir()
    mounts.start(app, "--no-bind", at=tmp_path / "live")
    for path in (tmp_path / "live", tmp_path / "live/releases"):
        assert_one_line(ctl("-C", app, "add", path), 2, str(path), "holds all releases")
    assert ctl("-C", app, "add", tmp_path / "live/releases/41").status == 0


# ---- interrupted


@pytest.mark.parametrize("number", ENDING)
def test_an_interrupted_add_from_an_archive_leaves_nothing(
    anywhere: Path, tmp_path: Path, number: signal.Signals
) -> None:
    archive = make_archive(tmp_path / "a.tar", member("first", b"x" * 100_000), member("second", b"y" * 10_000_000))
    with started("-C", anywhere, "add", "-") as process:
        assert process.stdin is not None
        process.stdin.write(archive.read_bytes()[:5_000_000])
        process.stdin.flush()
        wait_for(lambda: any((path / "second").exists() for path in staged(anywhere)), "it unpacks")
        _end(process, number)
    _assert_undone(anywhere, number)


@pytest.mark.parametrize("number", ENDING)
def test_an_interrupted_add_from_a_directory_leaves_nothing(app: Path, tmp_path: Path, number: signal.Signals) -> None:
    """Several processes are at it, where there are several processors, which end with the first; it is more than they
    could do in the time."""
    at_once = min(2, len(os.sched_getaffinity(0)))
    source = tmp_path / "source"
    for each in range(400):
        write(source / str(each % 7) / str(each), b"x")
    for each in range(4):
        with open(source / str(each) / "huge", "wb") as file:
            file.truncate(1 << 42)
    with started("-C", app, "add", source) as process:
        wait_for(lambda: len([each for path in staged(app) for each in path.rglob("huge")]) >= at_once, "they copy")
        _end(process, number)
    _assert_undone(app, number)


def _end(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    process.send_signal(number)
    process.wait(SECONDS)
    assert process.returncode == ENDING[number]
    assert process.stderr is not None
    assert process.stderr.read().strip() == b""


def _assert_undone(app: Path, number: signal.Signals) -> None:
    """By itself, or, where it was killed, by the next."""
    if number == signal.SIGKILL:
        wait_for(lambda: is_abandoned(app), "its children have ended")
        assert ctl("-C", app, "add", write(app.parent / "small/file", b"x").parent).status == 0
        assert sorted(os.listdir(app / "releases")) == ["40", "41", "42", "44"]
    else:
        assert sorted(os.listdir(app / "releases")) == ["40", "41", "42"]
    lines = (app / ".relfs/releases").read_text().splitlines()
    assert any('"name":"43","state":"given-up"' in line for line in lines)
    assert not (app / ".relfs/manifests/43").exists()


def test_two_at_once_get_two_names(anywhere: Path, tree: Path) -> None:
    command = ctl_command("-C", anywhere, "add", tree)
    environment = clean_environment()
    processes = [subprocess.Popen(command, env=environment, cwd="/", stdout=subprocess.PIPE) for _ in range(4)]
    assert [process.communicate(timeout=SECONDS)[0].split()[1:3] for process in processes] == [[b"is", b"added:"]] * 4
    assert sorted(os.listdir(anywhere / "releases")) == ["40", "41", "42", "43", "44", "45", "46"]
    for name in ("43", "44", "45", "46"):
        assert described(anywhere / "releases" / name) == described(tree)
