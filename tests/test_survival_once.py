"""What a worker has carried out, and dies before it has answered, is not done twice: the kernel asks the next one again
(FUSE_NOTIFY_RESEND), and that has to know. Each change is held at exactly that moment (held.py).

What is right is what the same change does to a plain directory. So a change that is lost is found, too.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from clients import running
from crew import expect_deaths, whole
from held import held_after, killed_before
from mounting import Mount, Mounts, wait_for
from opened import opened_by
from sandbox import be_patient
from served import SPECIAL
from sidebyside import tree


@dataclass(frozen=True)
class Change:
    """Python for the change, and the system call that carries it out: the first that is about `path`."""

    program: str
    calls: str
    path: str = "new"


_ROOT = str(Path(__file__).resolve().parent.parent)
_RENAME = "rename,renameat,renameat2"

_CHANGES = {
    "mkdir": Change("os.mkdir('new')", "mkdir,mkdirat"),
    "rmdir": Change("os.rmdir('directory')", "rmdir,unlinkat", "directory"),
    "create": Change("os.fsync(os.open('new', os.O_CREAT | os.O_EXCL | os.O_WRONLY))", "openat"),
    "mknod": Change("os.mkfifo('new')", "mknod,mknodat"),
    "symlink": Change("os.symlink('file', 'new')", "symlink,symlinkat"),
    "link": Change("os.link('file', 'new')", "link,linkat"),
    "unlink": Change("os.unlink('file')", "unlink,unlinkat", "file"),
    "rename": Change("os.rename('file', 'new')", _RENAME),
    "rename over": Change("os.rename('file', 'other')", _RENAME, "other"),
    "append": Change("os.write(os.open('file', os.O_WRONLY | os.O_APPEND), b'more')", "write,pwrite64", "{app}/file"),
    "write": Change("os.write(os.open('file', os.O_WRONLY), b'more')", "write,pwrite64", "{app}/file"),
    "truncate": Change("os.ftruncate(os.open('file', os.O_WRONLY), 2)", "ftruncate", "{app}/file"),
}


def _fill(directory: Path) -> None:
    (directory / "file").write_text("content")
    (directory / "other").write_text("other")
    (directory / "directory").mkdir()


def _run(program: str, cwd: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-S", "-c", f"import os\n{program}"], cwd=cwd, stderr=subprocess.PIPE, text=True
    )


@pytest.fixture
def app(app: Path) -> Path:
    """What is begun here goes on after somebody has died, however long that takes."""
    return be_patient(app)


@pytest.fixture
def covered(app: Path) -> Iterator[Path]:
    """The deploy path as it is below the mount, and stays."""
    fd = os.open(app, os.O_RDONLY | os.O_DIRECTORY)
    yield Path(f"/proc/self/fd/{fd}")
    os.close(fd)


@contextmanager
def _killed_after(mount: Mount, calls: str, path: str | None) -> Iterator[int]:
    """The worker, whose pid this is, is held after that call, and at the end killed there; another one serves then."""
    worker = whole(mount).worker
    assert worker is not None
    expect_deaths(mount)
    with held_after(worker, calls, path):
        yield worker
        os.kill(worker, signal.SIGKILL)
    whole(mount, gone=(worker,))


@contextmanager
def _killed_before(mount: Mount, calls: str) -> Iterator[None]:
    """The worker dies at the next such call, and another one serves."""
    worker = whole(mount).worker
    assert worker is not None
    expect_deaths(mount)
    with killed_before(worker, calls):
        yield
    whole(mount, gone=(worker,))


def _is_alike(covered: Path, plain: Path) -> bool:
    """Asked while it changes: what was listed may have another name by the time it is looked at."""
    try:
        return tree(covered, SPECIAL) == tree(plain)
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("name", _CHANGES)
def test_a_change_that_is_not_answered_is_not_done_twice(
    app: Path, covered: Path, mount: Mount, tmp_path: Path, name: str
) -> None:
    change, plain = _CHANGES[name], tmp_path / "plain"
    plain.mkdir()
    for directory in (plain, app):
        _fill(directory)
    assert _run(change.program, plain).wait(60) == 0
    with _killed_after(mount, change.calls, change.path.format(app=app)):
        process = _run(change.program, app)
        wait_for(lambda: _is_alike(covered, plain), "it is carried out")
        assert process.poll() is None, "it is not answered"
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")
    assert tree(app, SPECIAL) == tree(plain)


_OPENED = {
    "create": ("os.close(os.open('new', os.O_CREAT | os.O_EXCL | os.O_WRONLY))", "new"),
    "open": ("os.close(os.open('file', os.O_RDONLY))", "file"),
    "opendir": ("os.close(os.open('directory', os.O_RDONLY))", "directory"),
}


@pytest.mark.parametrize("name", _OPENED)
@pytest.mark.parametrize("sent", [True, False], ids=["sent", "not sent"])
def test_what_is_opened_and_not_answered_is_closed_with_its_user(
    app: Path, mount: Mount, name: str, *, sent: bool
) -> None:
    """The worker has a handle, and dies as soon as it has sent it to the supervisor, or is about to: nobody but the
    next worker knows whose it is, and it is that handle which the next worker has to give away."""
    _fill(app)
    program, opened = _OPENED[name]
    before = whole(mount)
    assert before.worker is not None
    with _killed_after(mount, "sendmsg", None) if sent else _killed_before(mount, "sendmsg"):
        process = _run(program, app)
        if sent:
            wait_for(lambda: _opened_by(before.supervisor, f"{app}/{opened}") == 1, "the supervisor has a copy")
            assert process.poll() is None, "it is not answered"
        else:
            wait_for(lambda: mount.status()["worker_pid"] != before.worker, "the worker is dead")
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")
    pids = whole(mount)
    wait_for(lambda: _opened_by(pids.supervisor, f"{app}/{opened}") == 0, "the supervisor lets go of it")
    wait_for(lambda: _opened_by(pids.worker, f"{app}/{opened}") <= 1, "the worker has the inode, and no handle")


def _opened_by(pid: int | None, path: str) -> int:
    """How many descriptors of a path a process has."""
    return opened_by(pid).count(path)


_AGAIN = {
    "open": """
one = os.open('file', os.O_RDWR | os.O_APPEND)
kill()
other = os.open('file', os.O_RDWR | os.O_APPEND)
os.close(one)
os.write(other, b'more')
""",
    "opendir": """
one = os.open('directory', os.O_RDONLY)
kill()
other = os.open('directory', os.O_RDONLY)
os.close(one)
assert os.listdir(other) == []
""",
    "unlink": """
os.unlink('file')
kill()
os.rename('other', 'file')
os.unlink('file')
assert not os.path.exists('file')
""",
    "removexattr": """
os.setxattr('file', 'user.x', b'')
os.removexattr('file', 'user.x')
kill()
try:
    os.removexattr('file', 'user.x')
except OSError:
    pass
else:
    raise AssertionError('there was none')
""",
}


@pytest.mark.parametrize("name", _AGAIN)
def test_what_was_answered_is_done_again_if_somebody_asks_again(app: Path, mount: Mount, name: str) -> None:
    """The same thread asks for the same thing once more, and has had its answer right before the worker died. What it
    got the first time is not given out twice."""
    _fill(app)
    worker = whole(mount).worker
    expect_deaths(mount)
    process = _run(f"def kill():\n    os.kill({worker}, 9)\n{_AGAIN[name]}", app)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")


_DIES_OF_AN_ATTRIBUTE = """
import os
whole = os.setxattr
def setxattr(*what):
    whole(*what)
    if os.path.exists({mark!r}):
        os.unlink({mark!r})
        os.kill(os.getpid(), 9)
os.setxattr = setxattr
"""
"""It is set, and not answered; once, if there is the file `mark`."""


def test_an_attribute_is_made_once(app: Path, mounts: Mounts, tmp_path: Path) -> None:
    """What is only to be made, or only to be replaced (setxattr(2)), is so by the worker that has died."""
    mark, file = tmp_path / "mark", app / "file"
    mount = mounts.start(app, patch=_DIES_OF_AN_ATTRIBUTE.format(mark=str(mark)))
    expect_deaths(mount)
    _fill(app)
    for value, how in ((b"made", os.XATTR_CREATE), (b"replaced", os.XATTR_REPLACE)):
        mark.touch()
        os.setxattr(file, "user.x", value, how)
        assert not mark.exists(), "the worker has died of it"
        assert os.getxattr(file, "user.x") == value
    with pytest.raises(FileExistsError):
        os.setxattr(file, "user.x", b"once more", os.XATTR_CREATE)


_DIES_OF_A_LOOKUP = """
import os, sys
from relfs.fuse.once import Once
whole = Once.settle
def settle(self):
    caller = sys._getframe(1)
    if not os.path.exists({mark!r}):
        whole(self)
    elif caller.f_locals.get("name") == "lookup" and caller.f_locals["args"][1] == b"missing":
        os.unlink({mark!r})
        os.kill(os.getpid(), 9)
Once.settle = settle
"""
"""While there is the file `mark`: a worker that dies when it has read the lookup of `missing`, and has not looked after
anything that it has answered before."""


@pytest.mark.parametrize("relayed", [False, True], ids=["resent", "relayed"])
def test_what_was_answered_is_not_taken_for_what_is_owed(
    app: Path, mounts: Mounts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, relayed: bool
) -> None:
    """A thread has had its answer, and waits for another one when the worker dies. It then wants the first thing done
    once more, of another file."""
    if relayed:
        monkeypatch.setenv("RELFS_NO_RESEND", "1")
    mark = tmp_path / "mark"
    mount = mounts.start(app, patch=_DIES_OF_A_LOOKUP.format(mark=str(mark)))
    expect_deaths(mount)
    _fill(app)
    with (app / "file").open():
        mark.touch()
        (app / "file").unlink()
        assert not (app / "missing").exists()
        assert not mark.exists(), "the worker has died of it"
        (app / "other").rename(app / "file")
        (app / "file").unlink()
        assert not (app / "file").exists()


def test_a_switch_that_is_not_answered_is_not_done_twice(covered: Path, mount: Mount) -> None:
    """The link on the disk is made, and nobody has been told: not the memory, not the kernel, not the journal."""
    with ExitStack() as clients:
        with _killed_after(mount, _RENAME, "current"):
            client = clients.enter_context(running("-C", mount.app, "switch", "41"))
            wait_for(lambda: os.readlink(covered / "current") == "releases/41", "it is carried out")
        _assert_switched_once(mount, client)


_SWAPS = {
    "unlink, symlink": "os.unlink('current'); os.symlink('releases/41', 'current')",
    "rename": "os.symlink('releases/41', 'next'); os.rename('next', 'current')",
    "exchange": """
from relfs.libc import RENAME_EXCHANGE, renameat2
os.symlink('releases/41', 'next')
here = os.open('.', os.O_RDONLY)
renameat2(here, b'current', here, b'next', RENAME_EXCHANGE)
assert os.readlink('next') == 'releases/40', os.readlink('next')
""",
}


@pytest.mark.parametrize("how", _SWAPS)
def test_a_tools_swap_that_is_not_answered_is_not_done_twice(covered: Path, mount: Mount, how: str) -> None:
    with _killed_after(mount, _RENAME, "current"):
        tool = _run(f"import sys; sys.path.insert(0, {_ROOT!r})\n{_SWAPS[how]}", mount.app)
        wait_for(lambda: os.readlink(covered / "current") == "releases/41", "it is carried out")
    _assert_switched_once(mount, tool)


def _assert_switched_once(mount: Mount, client: subprocess.Popen[str]) -> None:
    _, err = client.communicate(timeout=60)
    assert (client.returncode, err) == (0, "")
    assert (mount.app / "current/index.html").read_text() == "41"
    events = [event for event in mount.journal() if event["action"] != "adopt"]
    assert [(event["action"], event["release"]) for event in events] == [("switch", "41")]
    assert events[0]["outcome"] in ("done", "recovered")
