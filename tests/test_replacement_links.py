"""What a link may say, and where it may be made before it becomes `current`: texts by places by kinds of mount."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from deploying import in_shell
from mounting import Mount, Mounts
from readers import reading
from sandbox import make_app

TEXTS = {
    "relative": "releases/$r",
    "relative, trailing slash": "releases/$r/",
    "deploy path": "$APP/releases/$r",
    "deploy path, trailing slash": "$APP/releases/$r/",
    "mount path": "$D/releases/$r",
    "mount path, trailing slash": "$D/releases/$r/",
    "untidy": "./releases/../releases//$r/.",
}

RELEASES = ("41", "40")

PLACES = ("", "releases", ".tmp", "shared", "releases/42/public/deep", "other/place")

BUSYBOX = "busybox mv -T"

MOVES = {
    "mv -T": 'ln -s "$T" "$D/$P/new" && mv -T "$D/$P/new" "$D/current"',
    "mv into": 'mkdir "$D/$P/of" && ln -s "$T" "$D/$P/of/current" && mv "$D/$P/of/current" "$D" && rmdir "$D/$P/of"',
    BUSYBOX: 'ln -s "$T" "$D/$P/new" && busybox mv -T "$D/$P/new" "$D/current"',
}

DIRECT = {
    "ln -sfn": 'ln -sfn "$T" "$D/current"',
    "busybox ln -sfn": 'busybox ln -sfn "$T" "$D/current"',
    "rm; ln": 'rm "$D/current"; ln -s "$T" "$D/current"',
}


@dataclass(frozen=True)
class Site:
    """A mount, and what it does to a text: `elsewhere` means that the mountpoint is not the deploy path."""

    mount: Mount
    elsewhere: bool


@pytest.fixture(scope="module", params=["over", "over, no-bind", "elsewhere"])
def site(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    directory = tmp_path_factory.mktemp("links")
    app = make_app(directory / "app")
    for place in PLACES:
        (app / place).mkdir(parents=True, exist_ok=True)
    live = directory / "live"
    live.mkdir()
    elsewhere = "elsewhere" in request.param
    mounts = Mounts(directory)
    try:
        options = ["--no-bind"] if "no-bind" in request.param else []
        yield Site(mounts.start(app, *options, at=live if elsewhere else None), elsewhere)
    finally:
        mounts.take_away()


def swap(site: Site, script: str, text: str, release: str, place: str = "") -> None:
    """One swap that says nothing, and what is then to be read through the mount and told by the real link."""
    done = in_shell(site.mount.mountpoint, f'r={release}; P={place}; APP={site.mount.app}; T="{text}"; {script}')
    assert (done.returncode, done.stderr) == (0, ""), (script, text, place)
    assert (site.mount.mountpoint / "current/index.html").read_text() == release, (script, text, place)


def is_native(site: Site, place: str) -> bool:
    """Whether a rename from there to `current` is one across mounts (EXDEV)."""
    live = site.mount.mountpoint
    return os.stat(live / place).st_dev != os.stat(live).st_dev


def expected(site: Site, text: str, release: str) -> str:
    """What the tool wrote; but a text through a mountpoint elsewhere would dangle once that is gone."""
    written = text
    if text.startswith("$D"):
        written = os.path.normpath(text.replace("$D", "$APP")) if site.elsewhere else text.replace("$D", "$APP")
    return written.replace("$APP", str(site.mount.app)).replace("$r", release)


@pytest.mark.parametrize("text", TEXTS)
def test_made_anywhere_and_moved(site: Site, text: str) -> None:
    live = site.mount.mountpoint
    before = len(site.mount.journal())
    swaps = [
        (MOVES[tool], place) for tool in MOVES for place in PLACES if tool != BUSYBOX or not is_native(site, place)
    ]
    with reading(live / "current/index.html", "40", "41", count=1) as readers:
        for number, (script, place) in enumerate(swaps):
            swap(site, script, TEXTS[text], RELEASES[number % 2], place)
        seen = readers.stop()
    assert (seen.failed, seen.neither) == ({}, 0)
    assert_truth(site, TEXTS[text], before, len(swaps))
    assert all(os.listdir(live / place) == [] for place in PLACES[2:]), "nothing is left lying about"
    assert sorted(os.listdir(live / "releases")) == ["40", "41", "42"]


@pytest.mark.parametrize("text", TEXTS)
def test_made_in_place(site: Site, text: str) -> None:
    before = len(site.mount.journal())
    swaps = [*DIRECT.values(), *DIRECT.values()]
    with reading(site.mount.mountpoint / "current/index.html", "40", "41", count=1) as readers:
        for number, script in enumerate(swaps):
            swap(site, script, TEXTS[text], RELEASES[number % 2])
        seen = readers.stop()
    assert (seen.failed, seen.neither) == ({}, 0)
    assert_truth(site, TEXTS[text], before, len(swaps))


def assert_truth(site: Site, text: str, before: int, swaps: int) -> None:
    """The journal has every swap under the release's name; readlink gives back what was written last."""
    events = site.mount.journal()[before:]
    assert [event["release"] for event in events] == [RELEASES[number % 2] for number in range(swaps)]
    assert {event["outcome"] for event in events} == {"done"}
    release = RELEASES[(swaps - 1) % 2]
    if not site.elsewhere:
        assert os.readlink(site.mount.app / "current") == expected(site, text, release)
    elif text.startswith("$"):
        live = site.mount.mountpoint
        written = text.replace("$D", str(live)).replace("$APP", str(site.mount.app)).replace("$r", release)
        assert os.readlink(live / "current") == written


def test_what_was_written_is_remembered(tmp_path: Path, mounts: Mounts) -> None:
    """A path through a mountpoint is read back so, also after the mount was away; the real link leads there too."""
    app = make_app(tmp_path / "app")
    live = tmp_path / "live"
    live.mkdir()
    for release in ("41", "42"):
        mount = mounts.start(app, at=live)
        site = Site(mount, elsewhere=True)
        swap(site, DIRECT["ln -sfn"], "$D/releases/$r", release)
        assert os.readlink(live / "current") == f"{live}/releases/{release}"
        assert mount.terminate() == 0
        assert os.readlink(app / "current") == f"{app}/releases/{release}"
        again = mounts.start(app, at=live)
        assert os.readlink(live / "current") == f"{live}/releases/{release}"
        assert again.status()["diverged"] is None
        assert [event["action"] for event in again.journal()].count("follow") == 0
        assert again.terminate() == 0
    other = tmp_path / "other"
    other.mkdir()
    mounts.start(app, at=other)
    assert os.readlink(other / "current") == f"{app}/releases/42"
    assert (other / "current/index.html").read_text() == "42"


def test_the_real_link_says_it_too(tmp_path: Path, mounts: Mounts) -> None:
    """Once the mount is gone: the same words, and they lead to the release."""
    for number, text in enumerate(("releases/$r/", "$APP/releases/$r/", "$D/releases/$r")):
        for elsewhere in (False, True):
            app = make_app(tmp_path / f"app-{number}-{elsewhere}")
            live = tmp_path / f"live-{number}-{elsewhere}"
            live.mkdir()
            site = Site(mounts.start(app, at=live if elsewhere else None), elsewhere)
            swap(site, DIRECT["ln -sfn"], text, "42")
            assert site.mount.terminate() == 0
            assert os.readlink(app / "current") == expected(site, text, "42")
            assert (app / "current/index.html").read_text() == "42"


def test_busybox_mv_across_mounts(site: Site) -> None:
    """It gives up where rename(2) says EXDEV and the link that it is to replace leads to a directory: it looks through
    that link (stat(2), not lstat). It says so, and the old release stays; with `--no-bind` it works."""
    live = site.mount.mountpoint
    before = os.readlink(live / "current")
    done = in_shell(live, 'ln -s releases/41 "$D/releases/new" && busybox mv -T "$D/releases/new" "$D/current"')
    if is_native(site, "releases"):
        (live / "releases/new").unlink()
        assert done.returncode == 1
        assert "can't overwrite directory with non-directory" in done.stderr
        assert os.readlink(live / "current") == before
    else:
        assert (done.returncode, done.stderr) == (0, "")
        assert os.readlink(live / "current").endswith("releases/41")


def test_a_text_that_is_right_only_where_it_was_made(site: Site) -> None:
    """`../releases/41` in .tmp/ leads nowhere once it is `current`: refused, as it would break a plain deploy path."""
    before = os.readlink(site.mount.mountpoint / "current")
    script = 'ln -s --relative "$D/releases/41" "$D/.tmp/new" && mv -T "$D/.tmp/new" "$D/current"'
    done = in_shell(site.mount.mountpoint, script)
    assert (site.mount.mountpoint / ".tmp/new").is_symlink()
    (site.mount.mountpoint / ".tmp/new").unlink()
    assert done.returncode != 0
    assert "No such file or directory" in done.stderr
    assert os.readlink(site.mount.mountpoint / "current") == before
