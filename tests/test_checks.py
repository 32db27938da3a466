"""A swap is a transaction: what may not become current, whoever wants it, and that the old release stays."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from clients import Done, ctl
from mounting import Mount, Mounts, wait_for
from readers import reading
from sandbox import add_release, link_of

from relfs.checks import Checks, check_content
from relfs.config import Config
from relfs.errors import EXIT_REFUSED, RefusedError
from relfs.journal import Actor
from relfs.layout import DeployPath, open_deploy_path
from relfs.libc import AT_FDCWD, RENAME_EXCHANGE, renameat2
from relfs.pointer import Pointer

SWAPS = {
    "gnu ln": "ln -sfn {target} {app}/current",
    "busybox ln": "busybox ln -sfn {target} {app}/current",
    "mv -T": "ln -s {target} {app}/new && mv -T {app}/new {app}/current",
    "mv across mounts": "ln -s {app}/{target} {app}/releases/current && mv {app}/releases/current {app}",
    "rm; ln": "rm {app}/current; ln -s {target} {app}/current",
}
"""One of each kind: symlink and rename, unlink and symlink, rename, EXDEV, two processes."""


def configure(app: Path, text: str) -> None:
    (app / ".relfs").mkdir(exist_ok=True)
    (app / ".relfs/config.toml").write_text(text)


def shell(script: str) -> Done:
    done = subprocess.run(
        ["sh", "-c", script], capture_output=True, text=True, check=False, env={**os.environ, "LC_ALL": "C"}, timeout=60
    )
    return Done(done.returncode, done.stdout, done.stderr)


def lines_of_journal(app: Path) -> int:
    return (app / ".relfs/journal").read_bytes().count(b"\n")


def tells(mount: Mount, words: str) -> bool:
    """Whether the outcome of an event in the journal has `words` in it; the last one may be of what lapsed since."""
    return any(words in event["outcome"] for event in mount.journal())


def swap(app: Path, tool: str, target: str) -> Done:
    return shell(SWAPS[tool].format(app=app, target=target))


# ---- the checks by themselves ----------------------------------------------------------------------------------------


def errno_of(deploy: DeployPath, text: str, checks: Checks | None = None) -> int:
    """The errno with which `text` is refused; 0: it is not."""
    try:
        check_content(deploy, text, checks or Checks())
    except RefusedError as error:
        return error.number
    except OSError as error:
        assert error.errno is not None
        return error.errno
    return 0


def test_what_a_target_must_be(app: Path, deploy: DeployPath) -> None:
    (app / "releases/file").touch()
    (app / "releases/empty").mkdir()
    (app / "releases/marked").mkdir()
    (app / "releases/marked/BAD_RELEASE").touch()
    (app / "releases/dangling").symlink_to("nowhere")
    (add_release(app, "half") / "DEPLOY_UNFINISHED").touch()
    assert errno_of(deploy, "releases/41") == 0
    assert errno_of(deploy, "releases/41/") == 0
    assert errno_of(deploy, f"{app}/releases/41") == 0
    assert errno_of(deploy, "/etc") == 0
    assert errno_of(deploy, "releases/gone") == errno.ENOENT
    assert errno_of(deploy, "releases/dangling") == errno.ENOENT
    assert errno_of(deploy, "releases/file") == errno.ENOTDIR
    assert errno_of(deploy, "releases/empty") == errno.ENODATA
    assert errno_of(deploy, "releases/marked") == errno.ENODATA
    assert errno_of(deploy, "releases/half") == errno.EBUSY


def test_checks_that_do_not_apply(app: Path, deploy: DeployPath) -> None:
    (app / "releases/empty").mkdir()
    (add_release(app, "half") / "DEPLOY_UNFINISHED").touch()
    assert errno_of(deploy, "releases/empty", Checks(empty=False)) == 0
    assert errno_of(deploy, "releases/half", Checks(unfinished=())) == 0
    assert errno_of(deploy, "releases/gone", Checks(empty=False, unfinished=())) == errno.ENOENT


@pytest.mark.parametrize("make", [Path.touch, Path.mkdir, lambda path: path.symlink_to("nowhere")])
def test_markers_of_ones_own(app: Path, deploy: DeployPath, make: Callable[[Path], Any]) -> None:
    """Whatever has that name in the release is the marker: a file, a directory, a link that leads nowhere."""
    make(app / "releases/41/.building")
    checks = Checks(unfinished=("NOT_YET", ".building"))
    assert errno_of(deploy, "releases/41", checks) == errno.EBUSY
    assert errno_of(deploy, "releases/40", checks) == 0


def test_the_mark_of_a_bad_release(app: Path, deploy: DeployPath, actor: Actor) -> None:
    """Ours, or Deployer's: refused if that is asked for, and then --force lifts it."""
    pointer = Pointer(deploy, config=Config(checks=Checks(bad=True)))
    pointer.switch("41", actor, "first")
    pointer.rollback(None, actor, "second")
    (app / "releases/42/BAD_RELEASE").touch()
    for name in ("41", "42"):
        for attempt in (pointer.switch, lambda *words: pointer.replace(f"releases/{words[0]}", *words[1:])):
            with pytest.raises(RefusedError, match=f"{name}: is marked bad") as raised:
                attempt(name, actor, f"attempt at {name}")
            assert raised.value.number == errno.EPERM
        pointer.switch(name, actor, f"force {name}", force=True)
        assert link_of(app) == f"releases/{name}"


def test_rollback_passes_over_configured_markers(app: Path, actor: Actor) -> None:
    config = Config(checks=Checks(unfinished=("NOT_YET",)))
    with closing(open_deploy_path(str(app))) as deploy:
        pointer = Pointer(deploy, config=config)
        pointer.switch("41", actor, "first")
        pointer.switch("42", actor, "second")
        (app / "releases/41/NOT_YET").touch()
        assert pointer.rollback(None, actor, "third").release == "40"


# ---- through the mount -----------------------------------------------------------------------------------------------


def make_empty(app: Path) -> str:
    (app / "releases/empty").mkdir()
    return "releases/empty"


def make_half(app: Path) -> str:
    (add_release(app, "half") / "DEPLOY_UNFINISHED").touch()
    return "releases/half"


def make_file(app: Path) -> str:
    (app / "releases/file").touch()
    return "releases/file"


BROKEN: dict[str, tuple[Callable[[Path], str], str]] = {
    "dangling": (lambda _app: "releases/gone", "No such file or directory"),
    "a file": (make_file, "Not a directory"),
    "empty": (make_empty, "No data available"),
    "unfinished": (make_half, "Device or resource busy"),
}


@pytest.mark.parametrize("tool", SWAPS)
def test_the_tool_is_told_and_the_old_release_stays(app: Path, mounts: Mounts, tool: str) -> None:
    """Beside readers, who notice nothing of all the attempts; each ends in the journal with its reason."""
    configure(app, "[replacement]\ngrace = 3600\n")  # for what `rm` begins not to lapse in between
    mount = mounts.start(app)
    with reading(mount.app / "current/index.html", "40") as readers:
        for make, words in BROKEN.values():
            before = lines_of_journal(app)
            done = swap(mount.app, tool, make(mount.app))
            assert done.status != 0
            assert words in done.err
            assert (mount.app / "current/index.html").read_text() == "40"
            wait_for(lambda before=before: lines_of_journal(app) > before, "the journal tells")
            event = mount.journal()[-1]
            assert (event["action"], event["from"]) == ("replace", "40")
            assert event["outcome"].startswith("refused: ")
            assert event["pid"] > 0
            assert event["command"]
            for left in ("new", "releases/current"):
                (mount.app / left).unlink(missing_ok=True)
        assert swap(mount.app, "gnu ln", "releases/40").status == 0  # ends what `rm` had begun
        seen = readers.stop()
    assert (seen.failed, seen.neither) == ({}, 0)
    assert link_of(mount.app) == "releases/40"


def test_exchange_with_what_cannot_serve(mount: Mount) -> None:
    (mount.app / "other").symlink_to(make_half(mount.app))
    with pytest.raises(OSError, match="busy"):
        renameat2(AT_FDCWD, bytes(mount.app / "other"), AT_FDCWD, bytes(mount.app / "current"), RENAME_EXCHANGE)
    assert (link_of(mount.app), os.readlink(mount.app / "other")) == ("releases/40", "releases/half")


@pytest.mark.parametrize("held", [False, True], ids=["at rest", "being replaced"])
def test_only_a_link_can_be_current(mount: Mount, held: bool) -> None:
    """EEXIST while there is one; for whoever has removed it, EPERM. The others notice neither."""
    remove = "rm {app}/current; " if held else ""
    words = "not permitted" if held else "File exists"
    with reading(mount.app / "current/index.html", "40", session=True) as readers:
        for command in ("mkdir {app}/current", "mkfifo {app}/current"):
            done = shell((remove + command).format(app=mount.app))
            assert (done.status, words in done.err) == (1, True)
        done = shell((remove + "set -C; echo x > {app}/current").format(app=mount.app))
        assert done.status != 0
        seen = readers.stop()
    assert (seen.failed, seen.neither) == ({}, 0)
    assert mount.status()["current"] == "40"


def test_a_directory_or_a_file_is_not_renamed_onto_it(mount: Mount) -> None:
    (mount.app / "directory").mkdir()
    (mount.app / "file").touch()
    for name, number in (("directory", errno.ENOTDIR), ("file", errno.EPERM)):
        with pytest.raises(OSError) as raised:
            os.rename(mount.app / name, mount.app / "current")
        assert raised.value.errno == number
    assert (mount.app / "current/index.html").read_text() == "40"


def test_a_bad_release(app: Path, mounts: Mounts) -> None:
    """By default an explicit wish, which lifts the mark; refused where that is configured, but for --force."""
    mount = mounts.start(app)
    assert ctl("-C", app, "switch", "41").status == 0
    assert ctl("-C", app, "rollback").status == 0
    assert swap(app, "gnu ln", "releases/41").status == 0
    assert ctl("-C", app, "rollback").status == 0
    mount.terminate()
    configure(app, "[checks]\nbad = true\n")
    mounts.start(app)
    for tool in SWAPS:
        done = swap(app, tool, "releases/41")
        assert (done.status == 0, "Operation not permitted" in done.err) == (False, True)
        for left in ("new", "releases/current"):
            (app / left).unlink(missing_ok=True)
    done = ctl("-C", app, "switch", "41")
    assert done.status == EXIT_REFUSED
    assert "41: is marked bad" in done.err
    assert (app / "current/index.html").read_text() == "40"
    assert ctl("-C", app, "switch", "--force", "41").status == 0
    assert swap(app, "gnu ln", "releases/40").status == 0
    assert swap(app, "gnu ln", "releases/41").status == 0


@pytest.mark.parametrize("mounted", [True, False], ids=["mounted", "not mounted"])
def test_relfsctl_and_the_checks(app: Path, mounts: Mounts, mounted: bool) -> None:
    configure(app, '[checks]\nempty = false\nunfinished = ["NOT_YET"]\n')
    make_empty(app)
    make_half(app)
    (add_release(app, "soon") / "NOT_YET").touch()
    if mounted:
        mounts.start(app)
    assert ctl("-C", app, "switch", "empty").status == 0
    assert ctl("-C", app, "switch", "half").status == 0
    refused = ctl("-C", app, "switch", "soon")
    assert refused.status == EXIT_REFUSED
    assert refused.err == "relfsctl: soon: is unfinished: it holds NOT_YET; use --force to switch to it all the same\n"
    assert link_of(app) == "releases/half"
    assert ctl("-C", app, "switch", "--force", "soon").status == 0
    assert link_of(app) == "releases/soon"
