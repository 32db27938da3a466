"""The records of deploy tools, line by line: written as the tool writes them, and read as it reads them."""

from __future__ import annotations

import json
import os
import stat
import subprocess
from calendar import timegm
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from faults import Calls, DiskFull, watched
from hypothesis import given, settings
from hypothesis import strategies as st
from tools import Dep

from relfs.records import capistrano, deployer, files
from relfs.records.deployer import Entry, Mark
from relfs.records.record import is_release_name

text = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=40)
bytes_as_text = st.binary(max_size=40).map(os.fsdecode)
release_names = text.filter(is_release_name)
seconds = st.integers(0, 4_000_000_000).map(float)

BORN = 1_636_231_845.0
LINE = (
    rb'{"created_at":"2021-11-06T20:50:45+0000","release_name":"1","user":"Anton \u00c9","target":"feature\/x"}' + b"\n"
)


# ---- Deployer's lines ---------------------------------------------------------------------------------------------


def test_a_line_as_deployer_writes_it() -> None:
    assert deployer.compose(BORN, "1", "Anton É", "feature/x") == LINE
    assert deployer.parse(LINE) == Entry(BORN, "1", "Anton É")


@given(seconds, release_names, text, text)
def test_a_composed_line_is_read_again(created: float, release: str, user: str, target: str) -> None:
    line = deployer.compose(created + 0.9, release, user, target)
    entry = deployer.parse(line)
    assert entry is not None
    assert (entry.created, entry.release) == (created, release)
    assert line.count(b"\n") == 1
    assert list(json.loads(line)) == ["created_at", "release_name", "user", "target"]


@settings(max_examples=30, deadline=None)
@given(text.filter(str.isprintable) | st.sampled_from(["\x7f", "\x01\b\f\n\r\t\x1f", "\u2028\ufeff\U0001f600"]))
def test_strings_are_what_php_makes_of_them(tmp_path_factory: pytest.TempPathFactory, string: str) -> None:
    line = deployer.compose(0.0, string, "", "")
    spelled = line[line.index(b'"release_name":') + len(b'"release_name":') : line.index(b',"user":""')]
    assert spelled.decode() == Dep(tmp_path_factory.getbasetemp())("encode", string.encode().hex())


@pytest.mark.parametrize(
    "line",
    [
        b"", b"\n", b"{", b"null", b"5", b"[]", b'"1"', b"{}", b"\xff", b"\xef\xbb\xbf" + LINE,
        LINE.replace(b'"1"', b"null"), LINE.replace(b'"1"', b"true"), LINE.replace(b'"1"', b'["1"]'),
        LINE.replace(b'"1"', b'"..\\/..\\/etc"'), LINE.replace(b'"1"', b'".."'), LINE.replace(b'"1"', b'"a\\nb"'),
        LINE.replace(b'"1"', b'"\\ud800"'), LINE.replace(rb"\u00c9", b"\xe9"), LINE.replace(b"2021", b"today"),
        LINE.replace(b"+0000", b""), b"[" * 100_000,
    ],
)  # fmt: skip
def test_an_unreadable_line_is_passed_over(line: bytes) -> None:
    assert deployer.parse(line) is None


@pytest.mark.parametrize(
    "line", [b"\xff", b"\xef\xbb\xbf" + LINE, LINE.replace(rb"\u00c9", b"\xe9"), LINE.replace(rb"\u00c9", rb"\ud800")]
)
def test_php_cannot_read_these_either(tmp_path: Path, line: bytes) -> None:
    assert Dep(tmp_path)("decode", line.hex()) is None


def test_a_number_is_as_good_as_a_name() -> None:
    assert deployer.parse(LINE.replace(b'"1"', b"12")) == Entry(BORN, "12", "Anton É")


def test_other_time_zones() -> None:
    assert deployer.parse(LINE.replace(b"+0000", b"+0200")) == Entry(BORN - 7200, "1", "Anton É")


@given(release_names.filter(lambda name: name == name.strip()), st.integers(1, 4_000_000_000))
def test_a_line_of_the_old_log(release: str, created: int) -> None:
    line = deployer.compose_old(created + 0.5, release)
    assert line.count(b"\n") == 1
    entry = deployer.parse_old(line)
    assert entry is not None and entry.release == release
    assert abs(entry.created - created) in (0.0, 3600.0), "an hour that the clock tells twice"


@pytest.mark.parametrize(
    "line", [b"", b"20211106205045", b"20211106205045,", b"2021110620504,1", b"20211306205045,1", b",1"]
)
def test_unreadable_lines_of_the_old_log(line: bytes) -> None:
    assert deployer.parse_old(line) is None


@given(seconds, text.filter(lambda user: user.isprintable()))
def test_a_mark(moment: float, user: str) -> None:
    assert deployer.parse_mark(deployer.compose_mark(moment, user)) == Mark(moment, user)


@pytest.mark.parametrize("content", [b"", b"\n", b"bad!", b"\xff,\xff", b",ada", b"yesterday,ada\n"])
def test_any_mark_marks(content: bytes) -> None:
    assert deployer.parse_mark(content) == Mark(None, "")


@given(text)
def test_nobody_can_write_lines_by_being_called_so(user: str) -> None:
    assert deployer.compose_mark(0.0, user).count(b"\n") == 1
    assert capistrano.compose(capistrano.Entry("1", user)).count(b"\n") == 1


# ---- what Deployer's log tells ------------------------------------------------------------------------------------


def told(
    *names: str, current: str | None, unfinished: str | None = None, bad: dict[str, float | None] | None = None
) -> list[str]:
    """What a log of `names`, made a minute apart, tells in words: `<41` is a rollback to 41."""
    entries = [Entry(60.0 * number, name, "ada") for number, name in enumerate(names)]
    marks = {name: Mark(moment, "bob") for name, moment in (bad or {}).items()}
    records = deployer.activations(entries, current, unfinished, marks, "log")
    return [("<" if record.action == "rollback" else "") + record.release for record in records]


@pytest.mark.parametrize(
    ("story", "expected"),
    [
        (told(current=None), []),
        (told("1", "2", "3", current="3"), ["1", "2", "3"]),
        (told("1", "2", "3", current="3", unfinished="3"), ["1", "2", "3"]),
        (told("1", "2", "3", current="2", unfinished="3"), ["1", "2"]),
        (told("1", "2", "3", current="2"), ["1", "2"]),  # 3 was made, and nothing tells that it ever was current
        (told("1", "2", "3", current="2", bad={"3": 200.0}), ["1", "2", "3", "<2"]),
        (told("1", "2", "3", current="1", bad={"3": 200.0, "2": 300.0}), ["1", "2", "3", "<2", "<1"]),
        (told("1", "2", "3", current="3", bad={"2": 90.0}), ["1", "2", "<1", "3"]),
        (told("1", "2", "3", current="1", bad={"3": 200.0}), ["1", "3", "<1"]),  # dep rollback -o rollback_candidate=1
        (told("1", "2", "3", current="2", bad={"3": None}), ["1", "2", "3", "<2"]),
        (told("1", "2", current="2", bad={"1": 90.0}), ["1", "2"]),  # left for what the log does not know
        (told("1", "2", "1", current="1"), ["1", "2", "1"]),
        (told("1", "2", "3", current="9"), ["1", "2", "3"]),
        (told("1", "2", "3", current="9", unfinished="3"), ["1", "2"]),
    ],
)
def test_what_a_log_tells(story: list[str], expected: list[str]) -> None:
    assert story == expected


def test_who_rolled_back_and_when() -> None:
    entries = [Entry(0.0, "1", "ada"), Entry(60.0, "2", "ada")]
    last = deployer.activations(entries, "1", None, {"2": Mark(90.0, "bob")}, "log")[-1]
    assert (last.time, last.user, last.left, last.source) == (90.0, "bob", "2", "releases/2/BAD_RELEASE")


# ---- where Deployer's log leads -----------------------------------------------------------------------------------


def lines_of(*names: str) -> list[bytes]:
    return [deployer.compose(60.0 * number, name, "ada", "HEAD") for number, name in enumerate(names)]


def names_in(lines: list[bytes]) -> list[str]:
    return [entry.release if (entry := deployer.parse(line)) is not None else "?" for line in lines]


def relined(lines: list[bytes], current: str, back: str | None, *usable: str) -> list[bytes]:
    """With 5 being made."""
    return deployer.with_lines(
        lines, current, back, usable, "5", lambda name: deployer.compose(9e8, name, "relfs", "HEAD")
    )


@pytest.mark.parametrize(
    ("log", "current", "back", "expected"),
    [
        ("1 2 3", "3", "2", "1 2 3"),
        ("1 2 3", "2", "1", "1 2 3"),
        ("1 2 3", "2", "3", "1 3 2"),
        ("1 2 3", "2", None, "1 2 3"),
        ("1 2 3 5", "2", "3", "1 3 2 5"),  # 5 stays out of the way
        ("5 2", "2", None, "2 5"),
        ("1 5 2", "2", None, "1 2 5"),
        ("1 2", "3", "2", "1 2 3"),
        ("", "3", "2", "2 3"),
        ("1", "3", "2", "1 2 3"),
        ("1 3 2 2", "2", "1", "2 1 2 3"),
    ],
)
def test_the_log_leads_where_relfs_would(log: str, current: str, back: str | None, expected: str) -> None:
    lines = relined(lines_of(*log.split()), current, back, "1", "2", "3", "5")
    assert names_in(lines) == expected.split()


def test_lines_that_move_stay_what_they_are() -> None:
    lines = [lines_of("1")[0], b"not a line\n", *lines_of("2", "3")]
    assert sorted(relined(lines, "2", "3", "1", "2", "3")) == sorted(lines)


@settings(max_examples=1000, deadline=None)
@given(st.lists(st.sampled_from("123456"), max_size=40), st.sampled_from("1234567"), st.data())
def test_it_always_leads_there(log: list[str], current: str, data: st.DataObject) -> None:
    back = data.draw(st.sampled_from([name for name in "1234567" if name != current]))
    usable = {back, *data.draw(st.sets(st.sampled_from("1234567")))}
    lines = relined(lines_of(*log), current, back, *usable)
    assert deployer.rollback_of(names_in(lines), current, usable) == back
    assert relined(lines, current, back, *usable) == lines, "told again, it has nothing to change"


@given(st.lists(st.sampled_from("12345"), max_size=40), st.sampled_from("12345"), st.data())
def test_the_old_log_leads_there_too(log: list[str], current: str, data: st.DataObject) -> None:
    back = data.draw(st.sampled_from([name for name in "12345" if name != current]))
    lines = [deployer.compose_old(1e9, name) for name in log]
    new = deployer.with_old_lines(lines, current, back, "12345", 1e9)
    steps = list(dict.fromkeys(entry.release for line in reversed(new) if (entry := deployer.parse_old(line))))
    assert steps[:2] == [current, back]
    assert new[: len(lines)] == lines, "it is only appended to"
    assert deployer.with_old_lines(new, current, back, "12345", 1e9) == new


# ---- Capistrano ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "entry"),
    [
        (
            b"Branch main (at 0123abc) deployed as release 20260901120000 by grace",
            capistrano.Entry("20260901120000", "grace", "main", "0123abc"),
        ),
        (
            b"Branch fix (at last) (at ) deployed as release 20260901120000 by ",
            capistrano.Entry("20260901120000", "", "fix (at last)", ""),
        ),
        (b"Grace H. rolled back to release 20260901120000", capistrano.Entry("20260901120000", "Grace H.")),
        (b" rolled back to release 20260901120000", capistrano.Entry("20260901120000", "")),
        (b"\xff rolled back to release 2\xff", capistrano.Entry("2\udcff", "\udcff")),
    ],
)
def test_a_line_of_capistrano(line: bytes, entry: capistrano.Entry) -> None:
    assert capistrano.parse(line) == entry
    assert capistrano.compose(entry) == line + b"\n"


@pytest.mark.parametrize("line", [b"", b"deployed", b"x rolled back to release ../..", b"x rolled back to release .."])
def test_other_lines_tell_nothing(line: bytes) -> None:
    assert capistrano.parse(line) is None


@given(st.from_regex(r"\A\d{14}\Z"), bytes_as_text.filter(str.isprintable), st.booleans())
def test_what_is_composed_is_parsed(release: str, user: str, rollback: bool) -> None:
    if not release.isascii() or "\n" in user:
        return
    entry = capistrano.Entry(release, user, *([] if rollback else ["main", "0123abc"]))
    assert capistrano.parse(capistrano.compose(entry)) == entry


@pytest.mark.parametrize(
    ("name", "moment"),
    [
        ("20260901120000", timegm((2026, 9, 1, 12, 0, 0))),
        ("2026090112000", None), ("20261301120000", None), ("20260901250000", None), ("release-1", None),
        ("２０２６０９０１１２００００", None),  # noqa: RUF001 (digits that are not ASCII)
    ],
)  # fmt: skip
def test_the_time_that_a_name_tells(name: str, moment: float | None) -> None:
    assert capistrano.time_of(name) == moment


def test_the_times_of_a_log() -> None:
    first, second = "20260901120000", "20260902120000"
    entries = [
        capistrano.Entry(first, "a", "main", "1"), capistrano.Entry(second, "b", "main", "2"),
        capistrano.Entry(first, "c"), capistrano.Entry(second, "d"),
    ]  # fmt: skip
    records = capistrano.activations(entries, 2e9)
    born = [capistrano.time_of(first), capistrano.time_of(second)]
    assert [record.time for record in records] == [*born, born[1], born[1]]
    assert [record.time for record in capistrano.activations(entries[2:], 2e9)] == [2e9, 2e9]
    assert [record.action for record in records] == ["switch", "switch", "rollback", "rollback"]
    assert [record.left for record in records] == [None, None, second, first]


@given(st.dictionaries(st.sampled_from("abcdef"), st.integers(0, 5), min_size=1), st.data())
def test_times_are_dealt_in_order(times: dict[str, int], data: st.DataObject) -> None:
    first = data.draw(st.permutations(sorted(times)))[: data.draw(st.integers(1, len(times)))]
    last = data.draw(st.sets(st.sampled_from("abcdef"))) - set(first)
    times = {name: moment * 10**9 for name, moment in times.items()}
    after = {**times, **capistrano.dealt(times, first, last)}
    listed = sorted(after, key=lambda name: (-after[name], name))
    rest = [name for name in sorted(times, key=lambda name: (-times[name], name)) if name not in first]
    good, bad = ([name for name in rest if (name in last) == of_the_last] for of_the_last in (False, True))
    assert listed == [*first, *good, *bad]
    assert max(after.values()) <= max(times.values())
    assert capistrano.dealt(after, first, last) == {}


# ---- other people's files -----------------------------------------------------------------------------------------


@pytest.fixture
def place(tmp_path: Path) -> Iterator[int]:
    (tmp_path / "place").mkdir(mode=0o755)
    fd = os.open(tmp_path / "place", os.O_RDONLY | os.O_DIRECTORY)
    yield fd
    os.close(fd)


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """A file that is none of a deploy user's."""
    path = tmp_path / "secret"
    path.write_bytes(b"secret\n")
    return path


def _hostile(kind: str, path: Path, secret: Path) -> None:
    match kind:
        case "link":
            path.symlink_to(secret)
        case "dangling link":
            path.symlink_to("/nowhere/at/all")
        case "fifo":
            os.mkfifo(path)
        case "directory":
            path.mkdir()
        case "device":
            os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 5))  # /dev/zero


KINDS = ["link", "dangling link", "fifo", "directory", "device"]


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_but_a_file_is_read(tmp_path: Path, place: int, secret: Path, kind: str) -> None:
    _hostile(kind, tmp_path / "place/log", secret)
    assert files.read_end(place, "log") is None
    assert files.read_start(place, "log", 100) is None


@pytest.mark.parametrize("kind", [*KINDS, "hard link"])
def test_nothing_but_a_file_with_one_name_is_written(tmp_path: Path, place: int, secret: Path, kind: str) -> None:
    if kind == "hard link":
        (tmp_path / "place").chmod(0o777)
        os.link(secret, tmp_path / "place/log")
    else:
        _hostile(kind, tmp_path / "place/log", secret)
    for write in (
        lambda: files.append(place, "log", b"x\n"),
        lambda: files.overwrite(place, "log", b"x\n"),
        lambda: files.replace(place, "log", b"secret\n", b"x\n"),
    ):
        with pytest.raises(OSError):
            write()
    assert secret.read_bytes() == b"secret\n"
    assert os.listdir(place) == ["log"]


def test_no_link_is_walked_through(tmp_path: Path, place: int) -> None:
    (tmp_path / "place/way").symlink_to(tmp_path)
    with pytest.raises(OSError), files.below(place, "way"):
        pass


def test_only_the_end_of_a_long_log_is_read(tmp_path: Path, place: int) -> None:
    line = b"x" * 99 + b"\n"
    with (tmp_path / "place/log").open("wb") as file:
        file.truncate(1 << 40)  # a terabyte of nothing
        file.seek(0, os.SEEK_END)
        file.write(b"\n" + line * 3)
    contents = files.read_end(place, "log")
    assert contents is not None and not contents.complete
    assert contents.data == line * 3


def test_a_log_without_its_last_newline_gets_one(tmp_path: Path, place: int) -> None:
    (tmp_path / "place/log").write_bytes(b"torn")
    files.append(place, "log", b"line\n")
    assert (tmp_path / "place/log").read_bytes() == b"torn\nline\n"


@pytest.mark.parametrize("left", [b"", b"a ", b"a line", b"\0\0\0\0\0\0\0", b"\0\0\0ine\n"])
@pytest.mark.parametrize("before", [b"", b"a line that is longer\n", b"\n"])
def test_what_a_power_cut_has_left_of_a_line_is_taken_away(
    tmp_path: Path, place: int, left: bytes, before: bytes
) -> None:
    (tmp_path / "place/log").write_bytes(before + left)
    files.append(place, "log", b"a line\n")
    assert (tmp_path / "place/log").read_bytes() == before + b"a line\n"


@pytest.mark.parametrize("before", [b"another\n", b"a line\n", b"the end of a line that ends in a li"])
def test_what_others_wrote_is_not_taken_away(tmp_path: Path, place: int, before: bytes) -> None:
    (tmp_path / "place/log").write_bytes(before)
    files.append(place, "log", b"a line\n")
    assert (tmp_path / "place/log").read_bytes() == before.removesuffix(b"\n") + b"\na line\n"


def test_a_full_disk_leaves_no_part_of_a_line(tmp_path: Path, place: int) -> None:
    (tmp_path / "place/log").write_bytes(b"1\n")
    with watched(Calls(DiskFull(0))), pytest.raises(OSError, match="No space left"):
        files.append(place, "log", b"a line\n")
    assert (tmp_path / "place/log").read_bytes() == b"1\n"


def test_what_is_made_belongs_to_whom_the_directory_belongs(tmp_path: Path, place: int) -> None:
    os.chown(place, 1234, 4321)
    os.chmod(place, 0o2775)
    files.overwrite(place, "mark", b"x\n")
    status = (tmp_path / "place/mark").stat()
    assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (1234, 4321, 0o664)


def test_a_replaced_file_keeps_owner_and_mode_and_what_came_late(tmp_path: Path, place: int) -> None:
    log = tmp_path / "place/log"
    log.write_bytes(b"1\n2\n")
    os.chown(log, 1234, 4321)
    log.chmod(0o640)
    assert not files.replace(place, "log", b"1\n", b"2\n"), "it says more by now"
    assert log.read_bytes() == b"1\n2\n"
    assert files.replace(place, "log", b"1\n2\n", b"2\n1\n")
    assert log.read_bytes() == b"2\n1\n"
    status = log.stat()
    assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (1234, 4321, 0o640)
    assert os.listdir(place) == ["log"]


def test_a_line_that_is_appended_while_the_file_is_replaced_is_kept(
    tmp_path: Path, place: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "place/log"
    log.write_bytes(b"1\n2\n")
    rename = os.rename

    def late(*arguments: Any, **named: Any) -> None:
        subprocess.run(["sh", "-c", f"echo 3 >> {log}"], check=True)
        rename(*arguments, **named)

    monkeypatch.setattr(os, "rename", late)
    assert files.replace(place, "log", b"1\n2\n", b"2\n1\n")
    assert log.read_bytes() == b"2\n1\n3\n"
