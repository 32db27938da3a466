"""Opening below a directory that belongs to somebody else: no link is followed, nothing hangs, and no file is changed
that has another name. By openat2(2), and by the walk that replaces it where there is none; both must answer alike.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from mounting import environment
from sandbox import ACTOR, make_app

from relfs import libc
from relfs.beneath import below, open_beneath, open_directory, open_file, read_file
from relfs.config import CONFIG, load_config
from relfs.errors import RelfsError
from relfs.hold import HELD, held, require_no_tool
from relfs.journal import JOURNAL
from relfs.layout import open_deploy_path
from relfs.lock import LOCK, change_lock
from relfs.pending import PENDING
from relfs.pointer import Pointer
from relfs.store import LinkStore, Owner

ANSWERS = [errno.ENOSYS, errno.EPERM]
"""What openat2(2) says before Linux 5.6, and in a sandbox that does not know it."""


@pytest.fixture(params=[None, *ANSWERS], ids=["openat2", "no openat2", "forbidden openat2"])
def top(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """A descriptor of tmp_path/top, below which is a/b/file; beside it is `outside`, with a file `secret`."""
    if request.param is not None:

        def refused(*_: object) -> int:
            raise OSError(request.param, os.strerror(request.param))

        monkeypatch.setattr(libc, "openat2", refused)
    (tmp_path / "top/a/b").mkdir(parents=True)
    (tmp_path / "top/a/b/file").write_text("inside")
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/secret").write_text("secret")
    fd = os.open(tmp_path / "top", os.O_RDONLY | os.O_DIRECTORY)
    yield fd
    os.close(fd)


def refusal(call: Callable[[], int]) -> int | None:
    """The errno that it fails with; None: it is opened."""
    try:
        os.close(call())
    except OSError as error:
        return error.errno
    return None


def test_what_is_there_is_opened(top: int) -> None:
    for path in ("a/b/file", "./a//b/./file"):
        assert read_file(top, path, 100) == b"inside"
    with below(top, "a", "b") as directory:
        assert os.listdir(directory) == ["file"]
    with below(top) as directory:
        assert os.listdir(directory) == ["a"]


def test_what_is_opened_is_not_inherited(top: int) -> None:
    for path in ("a", "a/b"):
        fd = open_directory(top, path)
        assert fcntl.fcntl(fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC
        os.close(fd)


@pytest.mark.parametrize("path", ["..", "../outside/secret", "a/../../outside/secret", "a/../a/b/file", "/etc/passwd"])
def test_no_path_leads_out(top: int, path: str) -> None:
    """Nor is `..` taken where it would stay inside: nobody here has a use for it, and a rename can move it out."""
    refused = refusal(lambda: open_beneath(top, path, os.O_RDONLY))
    assert refused == errno.EXDEV


@pytest.mark.parametrize("text", ["../outside", "b", ".", "/etc", "/proc/self/fd/0", "nowhere", "link"])
@pytest.mark.parametrize("path", ["a/link", "a/link/secret", "a/link/b/file", "link", "link/secret"])
def test_no_link_is_followed(top: int, tmp_path: Path, text: str, path: str) -> None:
    for place in ("top/link", "top/a/link"):
        (tmp_path / place).symlink_to(text)
    assert refusal(lambda: open_beneath(top, path, os.O_RDONLY)) in (errno.ELOOP, errno.ENOTDIR)
    assert refusal(lambda: open_beneath(top, path, os.O_RDONLY | os.O_DIRECTORY)) in (errno.ELOOP, errno.ENOTDIR)
    assert refusal(lambda: open_file(top, path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)) in (errno.ELOOP, errno.ENOTDIR)
    assert (tmp_path / "outside/secret").read_text() == "secret"


def test_a_race_of_links_and_directories_never_leads_out(top: int, tmp_path: Path) -> None:
    """Somebody exchanges a directory on the way and a link that leads out, as fast as he can, while we look."""
    (tmp_path / "outside/file").write_text("secret")
    (tmp_path / "top/trap").symlink_to("../outside")
    (tmp_path / "top/real").mkdir()
    (tmp_path / "top/real/file").write_text("inside")
    ended = threading.Event()

    def exchange() -> None:
        names = (top, b"trap", top, b"real", libc.RENAME_EXCHANGE)
        while not ended.is_set():
            libc.renameat2(*names)

    exchanging = threading.Thread(target=exchange)
    exchanging.start()
    seen: Counter[bytes] = Counter()
    try:
        while len(seen) < 2 or seen.total() < 2000:
            try:
                seen[read_file(top, "trap/file", 100)] += 1
            except OSError as error:
                assert error.errno in (errno.ELOOP, errno.ENOTDIR, errno.EAGAIN)
                seen[b"refused"] += 1
    finally:
        ended.set()
        exchanging.join()
    assert set(seen) == {b"refused", b"inside"}


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))


KINDS: dict[str, Callable[[Path], object]] = {
    "fifo": os.mkfifo,
    "directory": os.mkdir,
    "socket": _socket,
    "device": lambda path: os.mknod(path, 0o600 | 0o020000, os.makedev(1, 3)),
    "link": lambda path: path.symlink_to("/etc/passwd"),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("flags", [os.O_RDONLY, os.O_WRONLY, os.O_RDWR | os.O_CREAT, os.O_WRONLY | os.O_TRUNC])
def test_only_regular_files_are_opened_and_nothing_waits(top: int, tmp_path: Path, kind: str, flags: int) -> None:
    KINDS[kind](tmp_path / "top/thing")
    before = os.lstat(tmp_path / "top/thing")
    with pytest.raises(OSError):
        open_file(top, "thing", flags)
    assert os.lstat(tmp_path / "top/thing").st_mode == before.st_mode


def test_no_file_with_another_name_is_changed(top: int, tmp_path: Path) -> None:
    """Not even emptied, which O_TRUNC would do before anybody could look."""
    (tmp_path / "top").chmod(0o777)
    os.link(tmp_path / "outside/secret", tmp_path / "top/thing")
    for flags in (os.O_WRONLY, os.O_RDWR | os.O_CREAT, os.O_WRONLY | os.O_TRUNC, os.O_WRONLY | os.O_APPEND):
        with pytest.raises(PermissionError, match="another name"):
            open_file(top, "thing", flags)
    assert (tmp_path / "outside/secret").read_text() == "secret"
    assert read_file(top, "thing", 100) == b"secret"


def test_in_a_directory_of_ours_a_backup_may_have_another_name(top: int, tmp_path: Path) -> None:
    os.link(tmp_path / "top/a/b/file", tmp_path / "outside/backup")
    with below(top, "a/b") as directory:
        fd = open_file(directory, "file", os.O_WRONLY | os.O_TRUNC)
        os.close(fd)
    assert (tmp_path / "top/a/b/file").read_bytes() == b""


def test_no_file_is_read_without_end(top: int, tmp_path: Path) -> None:
    path = tmp_path / "top/big"
    path.touch()
    os.truncate(path, 1 << 40)
    with pytest.raises(OSError, match="big is larger than 1 KiB") as caught:
        read_file(top, "big", 1024)
    assert caught.value.errno == errno.EFBIG
    os.truncate(path, 1024)
    assert read_file(top, "big", 1024) == bytes(1024)


def test_descriptors_are_closed_whatever_happens(top: int, tmp_path: Path) -> None:
    (tmp_path / "top/a/link").symlink_to("b")
    before = os.listdir("/proc/self/fd")
    for path in ("a/b/file", "a/link/file", "a/b/nothing", "../outside", "a/b"):
        refusal(lambda path=path: open_file(top, path, os.O_RDONLY))  # type: ignore[misc]
    assert os.listdir("/proc/self/fd") == before


# ---- what is built on it


@pytest.mark.parametrize("name", [JOURNAL, PENDING, LOCK, HELD, CONFIG, "current"])
@pytest.mark.parametrize("kind", ["link", "hard link", "fifo", "device", "endless"])
def test_nothing_that_lies_in_the_state_directory_is_written_through(tmp_path: Path, name: str, kind: str) -> None:
    """Its owner is another user, whom protected_hardlinks (off here, as it were: root makes the link) does not stop."""
    secret = tmp_path / "secret"
    secret.write_text("secret\n")
    app = make_app(tmp_path / "app")
    (app / ".relfs").mkdir()
    os.chown(app / ".relfs", 65534, 65534)
    thing = app / ".relfs" / name
    if kind == "hard link":
        os.link(secret, thing)
    elif kind == "endless":
        thing.touch()
        os.truncate(thing, 1 << 40)
    elif kind == "link":
        thing.symlink_to(secret)
    else:
        KINDS[kind](thing)
    deploy = open_deploy_path(str(app))
    assert deploy.state_fd is not None
    try:
        for use in (
            lambda: load_config(deploy.state_fd or -1, deploy.state_path),
            lambda: held(deploy.state_fd),
            lambda: Pointer(deploy).switch("41", ACTOR, "request"),
        ):
            try:
                use()
            except (RelfsError, OSError) as error:
                assert str(error)
    finally:
        deploy.close()
    assert secret.read_text() == "secret\n"
    assert secret.stat().st_mode & 0o777 == 0o644


def test_the_lock_of_a_tool_is_not_looked_for_behind_a_link(tmp_path: Path) -> None:
    """What the first line of somebody else's file says is no affair of ours."""
    (tmp_path / "private").mkdir()
    (tmp_path / "private/deploy.lock").write_text("secret\n")
    app = make_app(tmp_path / "app")
    (app / ".dep").symlink_to(tmp_path / "private")
    deploy = open_deploy_path(str(app))
    require_no_tool(deploy)
    deploy.close()


def test_only_a_link_is_given_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The owner of the deploy path puts another file in the place of the new link, before it is given to him."""
    app = make_app(tmp_path / "app")
    (app / "secret").write_text("secret")
    deploy = open_deploy_path(str(app))
    real = os.symlink

    def symlink_and_lose_a_race(text: str, name: str, *, dir_fd: int) -> None:
        real(text, name, dir_fd=dir_fd)
        os.rename("secret", name, src_dir_fd=dir_fd, dst_dir_fd=dir_fd)

    monkeypatch.setattr(os, "symlink", symlink_and_lose_a_race)
    LinkStore(deploy).write("releases/41", Owner(65534, 65534))
    deploy.close()
    assert os.lstat(app / "current").st_uid == os.getuid()


def test_nothing_is_adopted_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    app = tmp_path / "app"
    (app / "current").mkdir(parents=True)
    (app / "releases").symlink_to(tmp_path / "elsewhere")
    command = [sys.executable, "-m", "relfs.cli.relfsctl", "init", str(app)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), check=False)
    assert done.returncode == 1
    assert f"{app}/releases: is a link" in done.stderr and len(done.stderr.splitlines()) == 1
    assert os.listdir(tmp_path / "elsewhere") == []
    assert (app / "current").is_dir() and not (app / "current").is_symlink()


def test_the_change_lock_empties_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir(mode=0o777)
    (tmp_path / "state").chmod(0o777)
    (tmp_path / "secret").write_text("secret")
    os.link(tmp_path / "secret", tmp_path / "state" / LOCK)
    state = os.open(tmp_path / "state", os.O_RDONLY | os.O_DIRECTORY)
    with pytest.raises(RelfsError, match="another name"), change_lock(state):
        pass
    os.close(state)
    assert (tmp_path / "secret").read_text() == "secret"
