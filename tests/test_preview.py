"""Names with an @ at the top of the mount: which release they lead to and when, and files that have such a name."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from crew import kill
from mounting import Mount, Mounts, environment, relfsctl, relfsctl_command, wait_for
from readers import reading
from sandbox import add_release, link_of
from web import Load, Web, make_site, start_directly

from relfs.control import Connection
from relfs.errors import EXIT_REFUSED, EXIT_USAGE

WORDS = ("@current", "@previous", "@latest", "@last-good")


def seen(mount: Mount, name: str) -> str:
    """The release that `name` leads to, by what is read there."""
    return (mount.mountpoint / name / "index.html").read_text()


def switch(mount: Mount, *releases: str) -> None:
    for release in releases:
        done = mount.relfsctl("switch", release)
        assert done.returncode == 0, done.stderr


# ---- what they lead to ---------------------------------------------------------------------------------------------


def test_every_release_before_it_is_current_and_after(mount: Mount) -> None:
    assert [seen(mount, f"@{name}") for name in ("40", "41", "42")] == ["40", "41", "42"]
    switch(mount, "41")
    assert [seen(mount, f"@{name}") for name in ("40", "41", "42")] == ["40", "41", "42"]
    assert os.readlink(mount.app / "@42") == "releases/42"


def test_the_words_follow_each_switch_at_once(mount: Mount) -> None:
    switch(mount, "41")
    assert [seen(mount, word) for word in WORDS] == ["41", "40", "42", "40"]
    switch(mount, "42")
    assert [seen(mount, word) for word in WORDS] == ["42", "41", "42", "41"]
    assert mount.relfsctl("rollback").returncode == 0
    assert [seen(mount, word) for word in WORDS] == ["41", "40", "42", "40"]


def test_who_reads_without_a_pause_keeps_no_word_from_following(mount: Mount) -> None:
    """Whatever the kernel is just asking when a switch comes."""
    switch(mount, "41")
    connection = Connection((str(mount.app / ".relfs"),))
    with reading(mount.app / "@previous/index.html", "40", "41", "42") as readers:
        for number in range(100):
            connection.call("switch", {"release": f"4{number % 3}", "request": os.urandom(16).hex()})
            assert seen(mount, "@current") == f"4{number % 3}"
            assert seen(mount, "@previous") == (f"4{(number - 1) % 3}" if number else "41")
        result = readers.stop()
    connection.close()
    assert (result.failed, result.neither) == ({}, 0)


def test_a_new_release_is_there_at_once_and_the_latest_in_a_moment(mount: Mount) -> None:
    assert seen(mount, "@latest") == "42"
    with pytest.raises(FileNotFoundError):
        seen(mount, "@43")
    add_release(mount.app, "43")
    assert seen(mount, "@43") == "43"
    wait_for(lambda: seen(mount, "@latest") == "43", "the kernel asks again")


def test_a_moment_shows_what_was_current_then(mount: Mount) -> None:
    moments = {}
    for release in ("41", "42", "40"):
        switch(mount, release)
        moments[datetime.now().isoformat()] = release
    for moment, release in moments.items():
        assert seen(mount, f"@{moment}") == release
    for unknown in ("@1999-12-31T23:59", f"@{(datetime.now() + timedelta(hours=1)).isoformat()}"):
        with pytest.raises(FileNotFoundError):
            seen(mount, unknown)


def test_a_name_that_stands_for_nothing_is_not_there(mount: Mount) -> None:
    for name in (b"@", b"@99", b"@next", b"@..", b"@.relfs", b"@2026-13-01", b"@" + b"x" * 254, b"@\xff"):
        with pytest.raises(FileNotFoundError):
            os.lstat(os.fsencode(mount.app) + b"/" + name)


def test_they_are_at_the_top_only(mount: Mount) -> None:
    (mount.app / "directory").mkdir()
    assert not os.path.lexists(mount.app / "directory/@42")


def test_without_releases_there_is_none_and_nothing_fails(mount: Mount) -> None:
    """Somebody has taken them away."""
    for name in ("40", "41", "42"):
        shutil.rmtree(mount.app / "releases" / name)
    assert not os.path.lexists(mount.app / "@latest")
    assert not os.path.lexists(mount.app / "@42")


@pytest.mark.parametrize("options", [(), ("--no-bind",)])
def test_mounted_elsewhere(app: Path, mounts: Mounts, tmp_path: Path, options: tuple[str, ...]) -> None:
    place = tmp_path / "place"
    place.mkdir()
    mount = mounts.start(app, *options, at=place)
    assert [seen(mount, name) for name in ("@42", "@latest", "@current")] == ["42", "42", "40"]
    shutil.rmtree(app / "releases/42")
    wait_for(lambda: not os.path.lexists(place / "@42"), "what changes behind the mount is seen")
    switch(mount, "41")
    assert [seen(mount, word) for word in WORDS] == ["41", "40", "41", "40"]


# ---- they are not in the way ---------------------------------------------------------------------------------------


def test_no_listing_has_them(mount: Mount) -> None:
    before = sorted(os.listdir(mount.app))
    assert seen(mount, "@42") == seen(mount, "@latest") == "42"
    assert sorted(os.listdir(mount.app)) == before == [".relfs", "current", "releases"]


def test_what_is_really_there_is_what_a_name_means(app: Path, mounts: Mounts) -> None:
    (app / "@42").mkdir()
    (app / "@42/index.html").write_text("mine")
    (app / "@latest").write_text("mine, too")
    mount = mounts.start(app)
    assert seen(mount, "@42") == "mine"
    assert (app / "@latest").read_text() == "mine, too"
    assert {"@42", "@latest"} <= set(os.listdir(app))
    shutil.rmtree(app / "@42")
    (app / "@latest").rename(app / "@mine")
    wait_for(lambda: seen(mount, "@42") == "42", "the name is free, and means the release")
    assert seen(mount, "@latest") == "42"


def test_a_name_that_stands_for_nothing_is_anybodys(mount: Mount) -> None:
    app = mount.app
    (app / "@scope").mkdir()
    (app / "@file").write_text("x")
    (app / "@link").symlink_to("@file")
    os.link(app / "@file", app / "@other")
    (app / "@file").rename(app / "@moved")
    assert (app / "@moved").read_text() == (app / "@other").read_text() == "x"
    for name in ("@moved", "@other", "@link"):
        (app / name).unlink()
    (app / "@scope").rmdir()
    with pytest.raises(FileNotFoundError):
        (app / "@moved").unlink()


@pytest.mark.parametrize("name", ["@42", "@previous"])
def test_a_name_that_stands_for_a_release_cannot_be_changed(mount: Mount, name: str) -> None:
    switch(mount, "41")
    app, other = mount.app, mount.app / "other"
    taken = app / name
    text = os.readlink(taken)
    other.write_text("x")
    attempts: dict[str, tuple[Callable[[], object], int]] = {
        "mkdir": (lambda: taken.mkdir(), errno.EEXIST),
        "symlink": (lambda: taken.symlink_to("x"), errno.EEXIST),
        "link": (lambda: os.link(other, taken), errno.EEXIST),
        "link from": (lambda: os.link(taken, app / "new", follow_symlinks=False), errno.EPERM),
        "create": (lambda: os.open(taken, os.O_CREAT | os.O_EXCL | os.O_WRONLY), errno.EEXIST),
        "write": (lambda: taken.write_text("x"), errno.EISDIR),
        "unlink": (lambda: taken.unlink(), errno.EPERM),
        "rmdir": (lambda: taken.rmdir(), errno.ENOTDIR),
        "rename": (lambda: taken.rename(app / "new"), errno.EPERM),
        "rename to": (lambda: other.rename(taken), errno.EPERM),
        "make current": (lambda: taken.rename(app / "current"), errno.EPERM),
        "touch": (lambda: os.utime(taken, follow_symlinks=False), errno.EPERM),
        "chown": (lambda: os.chown(taken, 1, 1, follow_symlinks=False), errno.EPERM),
        "current renamed to": (lambda: (app / "current").rename(taken), errno.EPERM),
    }
    for what, (attempt, number) in attempts.items():
        with pytest.raises(OSError) as caught:
            attempt()
        assert caught.value.errno == number, what
    assert os.readlink(taken) == text
    assert (other.read_text(), link_of(app)) == ("x", "releases/41")
    assert sorted(os.listdir(app)) == [".relfs", "current", "other", "releases"]


def test_two_names_of_one_link_are_not_moved(mount: Mount) -> None:
    """To rename one to the other does nothing, rename(2) says; the kernel does not even ask."""
    (mount.app / "current").rename(mount.app / "@current")
    (mount.app / "@40").rename(mount.app / "current")
    assert sorted(os.listdir(mount.app)) == [".relfs", "current", "releases"]
    assert seen(mount, "current") == seen(mount, "@current") == seen(mount, "@40") == "40"


def test_nobody_can_make_current_lead_through_one(mount: Mount) -> None:
    """It would lead nowhere without the mount."""
    done = subprocess.run(["ln", "-sfn", "@42", mount.app / "current"], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "No such file" in done.stderr
    assert seen(mount, "current") == "40"


# ---- what they cost ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["@42", "@latest", "@current"])
def test_the_kernel_keeps_them_for_a_moment(mount: Mount, name: str) -> None:
    switch(mount, "42")
    assert seen(mount, name) == "42"
    before = mount.requests()["lookup"]
    for _ in range(200):
        assert seen(mount, name) == "42"
    assert mount.requests()["lookup"] - before < 100


_HANGS = """
import threading
import relfs.fuse.preview
from relfs.pointer import Pointer

relfs.fuse.preview._LOOK_SECONDS = 0.2
Pointer.named = lambda self, reference: threading.Event().wait()
"""


def test_releases_that_do_not_answer_keep_nobody_else(app: Path, mounts: Mounts) -> None:
    """However many ask for them."""
    mount = mounts.start(app, patch=_HANGS)
    for number in range(10):
        with pytest.raises(TimeoutError):
            os.lstat(app / f"@{number}")
        (app / f"file-{number}").write_text("x")
    assert seen(mount, "current") == "40"


# ---- who dies ------------------------------------------------------------------------------------------------------


def test_a_worker_that_takes_over_knows_what_each_means(mount: Mount) -> None:
    switch(mount, "41", "42")
    then = datetime.now().isoformat()
    switch(mount, "40")
    known = {name: seen(mount, name) for name in (*WORDS, "@41", f"@{then}")}
    assert list(known.values()) == ["40", "42", "42", "42", "41", "42"]
    directory = os.open(mount.app / "@41", os.O_PATH)
    link = os.lstat(mount.app / "@41").st_ino
    with reading(mount.app / "@previous/index.html", "42") as readers:
        kill(mount, "worker")
        result = readers.stop()
    assert (result.failed, result.neither) == ({}, 0)
    assert {name: seen(mount, name) for name in known} == known
    assert os.lstat(mount.app / "@41").st_ino == link
    os.close(directory)


def test_a_worker_that_knows_no_history_yet_reads_it(app: Path, mounts: Mounts) -> None:
    """It serves before it looks at anything; here, it never comes to that."""
    patch = """
import trio
from relfs.daemon.worker import _Mount

async def never(self, changes):
    await trio.sleep_forever()

_Mount._take_stock = never
"""
    mount = mounts.start(app, patch=patch)
    switch(mount, "41", "42")
    kill(mount, "worker")
    assert [seen(mount, word) for word in WORDS] == ["42", "41", "42", "41"]


# ---- relfsctl path -------------------------------------------------------------------------------------------------


def path_of(app: Path, reference: str) -> str:
    """What relfsctl says."""
    done = relfsctl(app, "path", reference)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.removesuffix("\n")


def test_relfsctl_tells_the_same_with_a_mount_and_without(app: Path, mounts: Mounts) -> None:
    (app / ".relfs").mkdir()
    (app / ".relfs/config.toml").write_text('[checks]\nunfinished = ["NOT_YET"]\n')
    mount = mounts.start(app)
    switch(mount, "41", "42")
    then = f"@{datetime.now().isoformat()}"
    switch(mount, "40")
    (app / "releases/42/NOT_YET").touch()
    add_release(app, "43")
    wait_for(lambda: seen(mount, "@last-good") == "41" and seen(mount, "@latest") == "43", "the mount knows")
    known = {name: seen(mount, name) for name in (*WORDS, "@41", then)}
    assert list(known.values()) == ["40", "42", "43", "41", "41", "42"]
    assert {name: os.path.realpath(app / name) for name in known} == {name: path_of(app, name) for name in known}
    assert mount.terminate() == 0
    assert {name: path_of(app, name) for name in known} == {n: f"{app}/releases/{r}" for n, r in known.items()}


def test_a_path_of_any_bytes_and_for_programs(app: Path) -> None:
    name = os.fsdecode(b"r\xe9lease")
    add_release(app, name)
    for reference in (name, f"@{name}"):
        command = relfsctl_command(app, "path", reference)
        done = subprocess.run(command, capture_output=True, env=environment(), check=True)
        assert done.stdout == os.fsencode(f"{app}/releases/{name}\n")
    done_json = relfsctl(app, "--json", "path", "@current")
    assert json.loads(done_json.stdout) == {"release": "40", "path": f"{app}/releases/40"}


@pytest.mark.parametrize(
    ("reference", "status"),
    [("@previous", EXIT_REFUSED), ("44", EXIT_REFUSED), ("@44", EXIT_USAGE), ("..", EXIT_USAGE)],
)
def test_a_path_that_there_is_not(app: Path, reference: str, status: int) -> None:
    done = relfsctl(app, "path", reference)
    assert (done.returncode, done.stdout) == (status, "")
    assert done.stderr.count("\n") == 1
    assert reference in done.stderr


# ---- a web server --------------------------------------------------------------------------------------------------


@pytest.fixture
def site(tmp_path: Path) -> Path:
    return make_site(tmp_path / "app")


@pytest.fixture
def second_root(site: Path, mounts: Mounts, tmp_path: Path) -> Iterator[tuple[Mount, Web, Web]]:
    """nginx with `current` for a root, and another with `@latest`."""
    mount = mounts.start(site)
    servers = []
    for name in ("current", "@latest"):
        directory = tmp_path / f"nginx-{name}"
        directory.mkdir()
        servers.append(Web(directory, site / name, start_directly))
    yield mount, servers[0], servers[1]
    for server in servers:
        server.stop()


def test_a_second_root_shows_what_comes_next(second_root: tuple[Mount, Web, Web]) -> None:
    mount, live, preview = second_root
    assert (live.get(), preview.get()) == ("40", "42")
    shutil.copytree(mount.app / "releases/42", mount.app / "releases/43")
    (mount.app / "releases/43/page").write_text("43\n")
    wait_for(lambda: preview.get() == "43", "the latest is another")
    assert live.get() == "40"
    for release in ("41", "42", "43", "40"):
        switch(mount, release)
        assert (live.get(), preview.get()) == (release, "43")


def test_a_root_that_follows_switches_under_load(site: Path, mounts: Mounts, tmp_path: Path) -> None:
    """Each answer is of one release, from the first byte to the last, and a fresh one of the release before."""
    mount = mounts.start(site)
    switch(mount, "41")
    directory = tmp_path / "nginx"
    directory.mkdir()
    web = Web(directory, site / "@previous", start_directly)
    load = Load(tmp_path, web.url)
    connection = Connection((str(site / ".relfs"),))
    try:
        for number in range(200):
            connection.call("switch", {"release": f"4{number % 3}", "request": os.urandom(16).hex()})
            if number % 10 == 9:
                assert web.get() == f"4{(number - 1) % 3}"
        answers = load.stop()
    finally:
        connection.close()
        load.end()
        web.stop()
    assert answers.good > 0
    assert (answers.bad, answers.mixed, answers.errors) == (0, 0, 0)
