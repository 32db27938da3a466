"""What strace says, and what is made of it. That it says all there is, test_replay.py shows: what it plays must fit."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from recording import (
    Acknowledged,
    AddedName,
    Dated,
    Event,
    MadeDirectory,
    MadeLink,
    Opened,
    Removed,
    Renamed,
    Synced,
    SyncedAll,
    Truncated,
    Wrote,
    parse,
)


def _hex(text: str) -> str:
    return "".join(f"\\x{byte:02x}" for byte in text.encode())


APP, OTHER, F, G = _hex("/app"), _hex("/application"), _hex("f"), _hex("g")
TIMES = "[{tv_sec=1, tv_nsec=2}, {tv_sec=3, tv_nsec=4} /* then */]"


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ([f'1 openat(3<{APP}>, "{F}", O_RDWR|O_TRUNC, 0644) = 4'], [Opened("f", truncate=True, append=False)]),
        ([f'1 openat(3<{APP}>, "{F}", O_WRONLY|O_APPEND) = 4'], [Opened("f", truncate=False, append=True)]),
        ([f'1 openat(3<{APP}>, "{F}", O_RDONLY) = 4'], []),
        ([f'1 openat(3<{APP}>, "{F}", O_WRONLY) = -1 ENOENT (No such file or directory)'], []),
        ([f'1 openat(3<{OTHER}>, "{F}", O_WRONLY|O_CREAT, 0644) = 4'], []),
        ([f'1 openat(3<{APP}>, "{_hex(".relfs/lock")}", O_RDWR|O_CREAT, 0644) = 4'], []),
        ([f'1 mkdir("{APP}\\x2f{F}", 0755) = 0'], [MadeDirectory("f")]),
        ([f'1 mkdir("{_hex("/app/acknowledged")}", 0755) = 0'], [Acknowledged()]),
        ([f'1 rmdir("{_hex("/app/acknowledged")}") = 0'], []),
        ([f'1 write(4<{APP}\\x2f{F}>, "{_hex("ab")}", 2) = 1'], [Wrote("f", b"a", None)]),
        ([f'1 write(4<{APP}\\x2f{F}>(deleted), "{_hex("a")}", 1) = 1'], []),
        ([f'1 pwrite64(4<{APP}\\x2f{F}>, "{_hex("a")}", 1, 7) = 1'], [Wrote("f", b"a", 7)]),
        ([f"1 ftruncate(4<{APP}\\x2f{F}>, 5) = 0"], [Truncated("f", 5)]),
        ([f"1 utimensat(4<{APP}\\x2f{F}>, NULL, {TIMES}, 0) = 0"], [Dated("f", 3_000_000_004)]),
        ([f"1 utimensat(4<{APP}\\x2f{F}>, NULL, NULL, 0) = 0"], []),
        ([f'1 utimensat(3<{APP}>, "{F}", {TIMES}, AT_SYMLINK_NOFOLLOW) = 0'], [Dated("f", 3_000_000_004)]),
        ([f'1 symlinkat("{_hex("to")}", 3<{APP}>, "{F}") = 0'], [MadeLink("f", "to")]),
        ([f'1 renameat(3<{APP}>, "{F}", 3<{APP}>, "{G}") = 0'], [Renamed("f", "g", exchange=False)]),
        ([f'1 renameat2(3<{APP}>, "{F}", 3<{APP}>, "{G}", RENAME_EXCHANGE) = 0'], [Renamed("f", "g", exchange=True)]),
        ([f'1 linkat(3<{APP}>, "{F}", 3<{APP}>, "{G}", 0) = 0'], [AddedName("f", "g")]),
        ([f'1 unlinkat(3<{APP}>, "{F}", 0) = 0'], [Removed("f")]),
        (
            [f"1 fsync(3<{APP}> <unfinished ...>", f"2 syncfs(3<{APP}>) = 0", "1 <... fsync resumed>) = 0"],
            [SyncedAll("."), Synced(".")],
        ),
        ([f"1 fsync(3<{APP}> <unfinished ...>"], []),
    ],
)
def test_what_strace_says(lines: Sequence[str], expected: Sequence[Event]) -> None:
    assert list(parse(lines, "/app")) == expected


@pytest.mark.parametrize(
    "line",
    [
        f"1 fallocate(4<{APP}\\x2f{F}>, 0, 0, 10) = 0",
        f'1 openat(3<{APP}>, "{F}", O_WRONLY|O_DSYNC) = 4',
        f'1 rename("{APP}\\x2f{F}", "{OTHER}") = 0',
    ],
)
def test_what_is_not_understood_is_not_passed_over(line: str) -> None:
    with pytest.raises(NotImplementedError):
        list(parse([line], "/app"))


def test_another_disk_is_seen_from_the_deploy_path() -> None:
    state = _hex("/state/relfs")
    lines = [f'1 openat(3<{state}>, "{_hex(name)}", O_RDWR|O_CREAT, 0644) = 4' for name in ("lock", "journal")]
    lines += [f"1 syncfs(3<{state}>) = 0", f"1 syncfs(3<{_hex('/states')}>) = 0"]
    assert list(parse(lines, "/app", ["../state"])) == [
        Opened("../state/relfs/journal", truncate=False, append=False),
        SyncedAll("../state/relfs"),
    ]
