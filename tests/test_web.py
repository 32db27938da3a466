"""What relfs is for: a web server under load does not notice any switch. Real mount, real nginx, wrk."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from mounting import Mount, Mounts, held, wait_for
from web import Load, Web, make_site, page, start_directly

from relfs.control import Connection

BY_RELFSCTL = 500
BY_PROTOCOL = 5_000


@pytest.fixture
def site(tmp_path: Path) -> Path:
    return make_site(tmp_path / "app")


@pytest.fixture
def web(site: Path, tmp_path: Path) -> Iterator[Web]:
    directory = tmp_path / "nginx"
    directory.mkdir()
    server = Web(directory, site / "current", start_directly)
    yield server
    server.stop()


@pytest.fixture
def load(web: Web, tmp_path: Path) -> Iterator[Load]:
    running = Load(tmp_path, web.url)
    yield running
    running.end()


@pytest.fixture
def mounted_site(site: Path, mounts: Mounts) -> Mount:
    return mounts.start(site)


def switches(mount: Mount) -> list[str]:
    return [event["release"] for event in mount.journal() if event["action"] == "switch"]


def test_relfsctl_under_load(mounted_site: Mount, web: Web, load: Load) -> None:
    for number in range(BY_RELFSCTL):
        release = f"4{(number + 1) % 3}"
        done = mounted_site.relfsctl("switch", release)
        assert done.returncode == 0, done.stderr
        assert (mounted_site.app / "current/index.html").read_text() == release, "a fresh read sees it"
        assert web.get() == release, "so does a fresh request"
    answers = load.stop()
    assert answers.good > BY_RELFSCTL
    assert (answers.bad, answers.mixed, answers.errors) == (0, 0, 0)
    assert len(switches(mounted_site)) == BY_RELFSCTL


def test_protocol_under_load(mounted_site: Mount, web: Web, load: Load) -> None:
    connection = Connection((str(mounted_site.app / ".relfs"),))
    try:
        for number in range(BY_PROTOCOL):
            release = f"4{(number + 1) % 3}"
            event = connection.call("switch", {"release": release, "request": os.urandom(16).hex()})
            assert event["outcome"] == "done"
            assert (mounted_site.app / "current/index.html").read_text() == release, "a fresh read sees it"
            if number % 50 == 0:
                assert web.get() == release, "so does a fresh request"
    finally:
        connection.close()
    answers = load.stop()
    assert answers.good > BY_PROTOCOL // 10
    assert (answers.bad, answers.mixed, answers.errors) == (0, 0, 0)
    assert len(switches(mounted_site)) == BY_PROTOCOL


def test_mounting_and_unmounting_under_load(site: Path, mounts: Mounts, web: Web, load: Load) -> None:
    """Coming and going is no less unnoticed than switching."""
    for number in range(10):
        mount = mounts.start(site)
        assert mount.relfsctl("switch", f"4{number % 3}").returncode == 0
        assert web.get() == f"4{number % 3}"
        assert mount.terminate() == 0
        assert web.get() == f"4{number % 3}"
    answers = load.stop()
    assert answers.good > 0
    assert (answers.bad, answers.mixed, answers.errors) == (0, 0, 0)


def test_the_load_would_notice(site: Path, load: Load) -> None:
    """The same without relfs, with a swap that leaves a gap, and with a page that is of two releases."""
    (site / "releases/42/page").write_text(page("42")[:-3000] + page("41")[:3000])

    def swapped() -> bool:
        for release in ("40", "41", "42") * 20:
            os.unlink(site / "current")
            os.symlink(f"releases/{release}", site / "current")
        return load.has_seen("bad") and load.has_seen("mixed")

    wait_for(swapped, "it notices")
    answers = load.stop()
    assert answers.bad > 0
    assert answers.mixed > 0


def test_status_under_load(mounted_site: Mount, load: Load) -> None:
    """Serving reaches the daemon only where something changed: a handful of requests, whatever the load."""
    mounted_site.relfsctl("switch", "41")
    (mounted_site.app / "current/page").read_text()
    with held(mounted_site.app / "current"):
        before = mounted_site.requests()
        for _ in range(20):
            assert json.loads(mounted_site.relfsctl("--json", "status").stdout)["current"] == "41"
        after = mounted_site.requests()
    assert load.stop().good > 0
    assert after["readlink"] == before["readlink"]
