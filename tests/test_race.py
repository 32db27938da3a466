"""`relfsctl race`, the engine: readers see the race where there is one, none over a mount, and nothing stays.

The plain half shows that the mounted half could fail: same readers, same commands, and reads are lost. The
printing of the table is not tested here.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from sandbox import end, start_python

from relfs import libc, mountinfo, mounts
from relfs.errors import RelfsError, UsageError
from relfs.race import Commands, RaceResult, Row, children, run_race
from relfs.race.children import ChildError, reader_count, start_reader, start_swapper, swapper_count
from relfs.race.methods import legacy_methods
from relfs.race.scratch import Scratch
from relfs.race.signals import HeldSignals

_MARK = "RELFS_TEST_RACE"
_READERS = 2
_ROUNDS = 20
"""How often a plain directory is given the chance to show its gap, which is one of microseconds."""

_PATIENCE = 60.0
_NO_MOUNT = Commands(mount=(sys.executable, "-c", "import sys; sys.exit('relfs: no /dev/fuse here')"))

_PROGRAM = """
import sys
from relfs.race import run_race
print("start", flush=True)
while True:
    run_race(0.6, 2, sys.argv[1], sys.argv[2] == "mounted", lambda row: print(row, flush=True))
"""
"""Goes on until it is ended, however late that is."""


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> RaceResult:
    """The plain half, run until its gaps have shown."""
    return _showing(tmp_path_factory.mktemp("plain"), "rm + ln -s", "busybox ln -sfn")


def _showing(parent: Path, *methods: str) -> RaceResult:
    """A race on a plain directory in which each of these methods has lost a read; the last one, if none was such."""
    for _ in range(_ROUNDS):
        result = run_race(1.0, _READERS, str(parent), False, _ignore)
        if all(_row(result.rows, method).failed for method in methods):
            break
    return result


def _require_mounts() -> None:
    """What needs a mount fails without one: a suite that skips what the project is for shows nothing."""
    if not os.path.exists("/dev/fuse"):
        pytest.fail("/dev/fuse is missing: `modprobe fuse`, or give the container that device")
    if shutil.which("fusermount3") is None:
        pytest.fail("fusermount3 is missing: `apt-get install fuse3`")


@pytest.fixture
def mountable() -> None:
    """This host can mount."""
    _require_mounts()


@pytest.fixture(scope="module")
def over_mount(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[RaceResult]]:
    """Both halves, run until the plain one has shown its gap; all that was seen until then."""
    _require_mounts()
    parent = tmp_path_factory.mktemp("mounted")
    results: list[RaceResult] = []
    while len(results) < _ROUNDS and not (results and _row(results[-1].rows, "rm + ln -s").failed):
        results.append(run_race(1.0, _READERS, str(parent), True, _ignore))
    yield results
    _detach_all(parent)


@pytest.fixture
def parent(tmp_path: Path) -> Iterator[Path]:
    """Where a test's scratch directories are made; what it left mounted there is detached."""
    path = tmp_path / "parent"
    path.mkdir()
    yield path
    _detach_all(path)


@pytest.fixture
def mark(monkeypatch: pytest.MonkeyPatch) -> str:
    """A word in the environment of every process that is started from here on."""
    word = uuid.uuid4().hex
    monkeypatch.setenv(_MARK, word)
    return word


@pytest.fixture
def held() -> Iterator[HeldSignals]:
    with HeldSignals() as signals:
        yield signals


# ---- the plain half: the race exists, and the readers see it -----------------------------------------------


@pytest.mark.parametrize("method", ["rm + ln -s", "busybox ln -sfn"])
def test_unlink_then_symlink_loses_reads(plain: RaceResult, method: str) -> None:
    row = _row(plain.rows, method)
    assert row.swaps > 0
    assert 0 < row.failed < row.reads
    assert dict(row.errors) == {"ENOENT": row.failed}


def test_one_processor_is_enough_to_see_it(parent: Path) -> None:
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        rows = _showing(parent, "busybox ln -sfn").rows
    finally:
        os.sched_setaffinity(0, before)
    assert _row(rows, "busybox ln -sfn").failed > 0
    assert _row(rows, "rename(2)").failed == 0


def test_rename_loses_no_read(plain: RaceResult) -> None:
    row = _row(plain.rows, "rename(2)")
    assert row.swaps > 0
    assert row.reads > 0
    assert (row.failed, row.neither, row.errors) == (0, 0, ())


def test_every_way_is_a_row_and_says_whose_command_it_is(plain: RaceResult) -> None:
    rows = plain.rows
    names = [row.method.split(" (")[0] for row in rows[:4]]
    assert names == ["rm + ln -s", "ln -sfn", "busybox ln -sfn", "mv -T"]
    assert rows[4].method == "rename(2)"
    assert len(rows) == 5
    assert all("unknown" not in row.method for row in rows)
    assert all((row.swap_failures, row.mounted, row.note) == (0, False, "") for row in rows)
    assert plain.mount_error is None


def test_rows_are_told_as_they_come_and_nothing_stays(parent: Path, mark: str) -> None:
    told: list[Row] = []
    result = run_race(0.1, 1, str(parent), False, told.append)
    assert told == result.rows
    _assert_nothing_left(parent, mark)


def test_an_error_of_the_caller_leaves_nothing(parent: Path, mark: str) -> None:
    def broken(row: Row) -> None:
        raise BrokenPipeError(row.method)

    with pytest.raises(BrokenPipeError):
        run_race(0.1, 1, str(parent), False, broken)
    _assert_nothing_left(parent, mark)


def test_a_host_without_mounts_gets_the_plain_rows_and_the_reason(parent: Path, mark: str) -> None:
    result = run_race(0.1, 1, str(parent), True, _ignore, _NO_MOUNT)
    assert len(result.rows) == 5
    assert not any(row.mounted for row in result.rows)
    assert result.mount_error == "relfs did not mount: relfs: no /dev/fuse here"
    _assert_nothing_left(parent, mark)


@pytest.mark.parametrize(("seconds", "readers"), [(0, 1), (-1, 1), (float("nan"), 1), (float("inf"), 1), (1, 0)])
def test_numbers_that_make_no_sense_are_refused(seconds: float, readers: int, parent: Path) -> None:
    with pytest.raises(UsageError):
        run_race(seconds, readers, str(parent), False, _ignore)
    assert list(parent.iterdir()) == []


def test_a_parent_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(RelfsError, match=f"{tmp_path}/none: No such file"):
        run_race(0.1, 1, f"{tmp_path}/none", False, _ignore)


# ---- the parts ---------------------------------------------------------------------------------------------


def test_a_reader_counts_what_is_in_neither_release(app: Path, held: HeldSignals) -> None:
    (app / "releases/40/f").write_text("v3")
    with start_reader(str(app), held, _stderr()) as reader:
        reader.wait_ready()
        reader.stop()
        count = reader_count(reader)
    assert count.reads > 0
    assert (count.neither, count.failures) == (count.reads, ())


def test_a_reader_counts_failed_reads_by_errno(app: Path, held: HeldSignals) -> None:
    (app / "current").unlink()
    (app / "current").symlink_to("current")
    with start_reader(str(app), held, _stderr()) as reader:
        reader.wait_ready()
        reader.stop()
        count = reader_count(reader)
    assert count.reads > 0
    assert (count.neither, count.failures) == (0, (("ELOOP", count.reads),))


@pytest.mark.parametrize(
    ("command", "error"),
    [
        (["/bin/sh", "-c", "echo no space >&2; exit 1"], "no space"),
        (["/bin/sh", "-c", "exit 7"], "/bin/sh: exit status 7"),
        (["/bin/sh", "-c", "exit 0"], "said that it was done, but current does not lead to v1"),
    ],
    ids=["complains", "fails", "lies"],
)
def test_a_swap_that_did_not_happen_is_a_failure(app: Path, held: HeldSignals, command: list[str], error: str) -> None:
    with start_swapper(str(app), command, held, _stderr()) as swapper:
        swapper.wait_ready()
        swapper.stop()
        count = swapper_count(swapper)
    assert count.failures > 0
    assert (count.swaps, count.error) == (0, error)


def test_a_command_that_hangs_is_given_up_and_ended(
    app: Path, held: HeldSignals, mark: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with start_swapper(str(app), ["/bin/sh", "-c", "sleep 600; exit"], held, _stderr()) as swapper:
        swapper.wait_ready()
        _until(lambda: _runs(mark, "sleep"))
        monkeypatch.setattr(children, "_ANSWER_WITHIN", 0.1)
        swapper.stop()
        with pytest.raises(ChildError, match="did not answer"):
            swapper_count(swapper)
    _until(lambda: not _pids(mark))


def test_what_the_host_has_not_is_a_note(app: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands = _commands_without_t(tmp_path / "bin")
    monkeypatch.setenv("PATH", str(commands))
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    methods = {method.name: method.missing for method in legacy_methods(str(app), str(scratch))}
    assert methods == {
        "rm + ln -s": "",
        "ln -sfn (unknown implementation)": "",
        "busybox ln -sfn": "not available here: no busybox",
        "mv -T (unknown implementation)": "not available here: mv has no -T",
        "rename(2)": "",
    }


@pytest.mark.usefixtures("mountable")
def test_removing_the_scratch_directory_never_reaches_through_a_mount(parent: Path, tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious/file").write_text("keep")
    source = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    scratch = Scratch(str(parent))
    with pytest.raises(RelfsError, match="still mounted"), scratch:
        target = f"{scratch.deploy}/shared"
        os.mkdir(target)
        mounts.attach(source, "precious", target)
    os.close(source)
    assert (tmp_path / "precious/file").read_text() == "keep"
    assert os.path.isdir(f"{scratch.deploy}/releases/v1")


# ---- interrupted -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [*[signal.SIGINT] * 5, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_at_any_moment_leaves_nothing(parent: Path, mark: str, number: int) -> None:
    _interrupt_at_random(parent, "plain", number, within=2.5)
    _assert_nothing_left(parent, mark)


def test_impatient_ctrl_c_does_not_disturb_the_cleaning_up(parent: Path, mark: str) -> None:
    process = _start(parent, "plain")
    try:
        _until(lambda: any("reader.py" in line for line in _marked(mark)))
        while process.poll() is None:
            process.send_signal(signal.SIGINT)
    finally:
        end(process)
    _assert_nothing_left(parent, mark)


def test_readers_and_swapper_end_with_an_engine_that_was_killed(parent: Path, mark: str) -> None:
    process = _start(parent, "plain")
    try:
        _until(lambda: _runs(mark, "/bin/sh"))
    finally:
        end(process)
    _until(lambda: not _pids(mark))


# ---- over a mount ------------------------------------------------------------------------------------------


def test_over_a_mount_no_way_of_swapping_loses_a_read(over_mount: list[RaceResult]) -> None:
    for result in over_mount:
        _assert_no_read_was_lost(result)


def _assert_no_read_was_lost(result: RaceResult) -> None:
    assert result.mount_error is None
    rows = [row for row in result.rows if row.mounted]
    assert len(rows) == 6
    assert rows[0].method == "relfsctl switch"
    assert [row.method for row in rows[1:]] == [row.method for row in result.rows if not row.mounted]
    for row in rows:
        assert row.swaps > 0, row
        assert row.reads > 0, row
        assert (row.failed, row.neither, row.swap_failures, row.note) == (0, 0, 0, ""), row


def test_the_same_readers_lost_reads_without_the_mount(over_mount: list[RaceResult]) -> None:
    assert _row(over_mount[-1].rows, "rm + ln -s").failed > 0


@pytest.mark.usefixtures("mountable")
def test_after_a_mounted_race_nothing_stays(parent: Path, mark: str) -> None:
    assert run_race(0.1, 1, str(parent), True, _ignore).mount_error is None
    _assert_nothing_left(parent, mark)


@pytest.mark.usefixtures("mountable")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_mounted_leaves_nothing(parent: Path, mark: str, number: int) -> None:
    _interrupt_at_random(parent, "mounted", number, within=2.5, after=lambda: bool(_mounted_in(parent)))
    _assert_nothing_left(parent, mark)


@pytest.mark.usefixtures("mountable")
def test_a_mount_that_goes_away_is_told_and_its_row_not_trusted(parent: Path, mark: str) -> None:
    def unmount(row: Row) -> None:
        if row.mounted:
            _detach_all(parent)

    result = run_race(0.1, 1, str(parent), True, unmount)
    assert result.mount_error is not None
    assert [row.note for row in result.rows if row.mounted] == ["", result.mount_error]
    _assert_nothing_left(parent, mark)


@pytest.mark.usefixtures("mountable")
def test_a_daemon_that_stands_still_is_ended_all_the_same(
    parent: Path, mark: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("relfs.race.mount._ENDS_WITHIN", 0.1)
    stopped = []

    def stop(row: Row) -> None:
        if row.mounted and row.method == "rename(2)":
            stopped.extend(_pids(mark, "relfs-"))
            for pid in stopped:
                with suppress(ProcessLookupError):  # what the supervisor asks the mount with comes and goes
                    os.kill(pid, signal.SIGSTOP)

    assert run_race(0.1, 1, str(parent), True, stop).mount_error is None
    assert len(stopped) >= 3
    _assert_nothing_left(parent, mark)


@pytest.mark.usefixtures("mountable")
def test_what_else_is_mounted_there_is_detached_and_kept(parent: Path, tmp_path: Path, mark: str) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious/file").write_text("keep")
    source = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)

    def mount(row: Row) -> None:
        if row.mounted and row.method == "rename(2)":
            (target := next(parent.iterdir()) / "other").mkdir()
            mounts.attach(source, "precious", str(target))

    assert run_race(0.1, 1, str(parent), True, mount).mount_error is None
    os.close(source)
    assert (tmp_path / "precious/file").read_text() == "keep"
    _assert_nothing_left(parent, mark)


# ---- helpers -----------------------------------------------------------------------------------------------


def _ignore(_row: Row) -> None:
    """Nobody listens."""


def _row(rows: list[Row], method: str) -> Row:
    """The plain row of that method."""
    return next(row for row in rows if row.method.split(" (")[0] == method and not row.mounted)


def _stderr() -> int:
    return sys.__stderr__.fileno() if sys.__stderr__ is not None else 2


def _start(parent: Path, half: str) -> subprocess.Popen[str]:
    process = start_python(_PROGRAM, str(parent), half)
    assert process.stdout is not None
    assert process.stdout.readline() == "start\n"
    return process


def _interrupt_at_random(
    parent: Path, half: str, number: int, *, within: float, after: Callable[[], bool] = lambda: True
) -> None:
    """Run a race, and send the signal at a moment up to `within` seconds after `after` is so."""
    delay = random.uniform(0, within)
    process = _start(parent, half)
    try:
        _until(after)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(delay)
        process.send_signal(number)
        assert process.wait(_PATIENCE) == -number, f"after {delay} s"
    finally:
        end(process)


def _commands_without_t(path: Path) -> Path:
    """A directory of commands: ln is some other one, mv makes nothing of -T, and there is no busybox."""
    path.mkdir()
    bodies = {"ln": f'exec {shutil.which("ln")} "$@"', "mv": "exit 0"}
    for name, body in bodies.items():
        (path / name).write_text(f'#!/bin/sh\ncase "$1" in --version) echo what;; *) {body};; esac\n')
        (path / name).chmod(0o755)
    return path


def _assert_nothing_left(parent: Path, mark: str) -> None:
    assert _mounted_in(parent) == []
    assert list(parent.iterdir()) == []
    _until(lambda: not _pids(mark))


def _mounted_in(path: Path) -> list[str]:
    return [mount.target for mount in mountinfo.mounts() if mount.target.startswith(f"{path}/")]


def _detach_all(path: Path) -> None:
    while found := _mounted_in(path):
        libc.detach(found[0])


def _runs(mark: str, command: str) -> bool:
    """Whether a process that carries the mark runs that command."""
    return any(line.startswith(f"{command}\0") for line in _marked(mark))


def _marked(mark: str) -> list[str]:
    """The command lines of all processes that carry the mark."""
    return list(_processes(mark).values())


def _pids(mark: str, word: str = "") -> list[int]:
    """The processes that carry the mark and have the word in their command line."""
    return [pid for pid, line in _processes(mark).items() if word in line]


def _processes(mark: str) -> dict[int, str]:
    found = {}
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdecimal() and mark.encode() in (entry / "environ").read_bytes():
                found[int(entry.name)] = (entry / "cmdline").read_text()
        except OSError:  # it ended, or is somebody else's
            pass
    return found


def _until(condition: Callable[[], bool]) -> None:
    limit = time.monotonic() + _PATIENCE
    while not condition():
        assert time.monotonic() < limit, "waited in vain"
        time.sleep(0.005)
