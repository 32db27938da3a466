"""What is a release and what is not, what link texts mean, and what is said about a deploy path that is none."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from sandbox import add_release

from relfs.errors import EXIT_FAILED, EXIT_REFUSED, EXIT_USAGE, RefusedError, RelfsError, UsageError
from relfs.layout import UNFINISHED_MARKER, DeployPath, check_name, open_deploy_path

MOUNTPOINT = "/srv/seen/elsewhere"


@pytest.fixture
def seen_elsewhere(deploy: DeployPath) -> DeployPath:
    """The deploy path, which a mountpoint shows too."""
    return replace(deploy, aliases=(MOUNTPOINT,))


# ---- names --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "../40", "releases/40", "/40", "40/", "4\0", "4\n0", "4\x7f", "x" * 300, "é" * 128, "\ud800"],
    ids=ascii,
)
def test_what_can_never_be_a_name(deploy: DeployPath, name: str) -> None:
    with pytest.raises(UsageError) as caught:
        deploy.check_release(name, allow_empty=True)
    assert caught.value.status == EXIT_USAGE
    assert str(caught.value).isprintable(), "one line, whatever the name"


@pytest.mark.parametrize("name", ["x" * 255, "é" * 127, "...", "-f", "@", "2026-09-01 12:00", os.fsdecode(b"\xff\x80")])
def test_what_can_be_a_name(name: str) -> None:
    check_name(name)


@pytest.mark.parametrize("name", ["x" * 255, "40 (copy)", os.fsdecode(b"\xff\x80")], ids=ascii)
def test_a_release_of_any_name(app: Path, deploy: DeployPath, name: str) -> None:
    add_release(app, name)
    deploy.check_release(name, allow_empty=False)
    assert name in [release.name for release in deploy.releases()]


# ---- what a name must lead to -------------------------------------------------------------------------------------


def _missing(_: Path) -> None: ...


def _file(path: Path) -> None:
    path.write_text("")


def _fifo(path: Path) -> None:
    os.mkfifo(path)


def _link(text: str) -> Callable[[Path], None]:
    return lambda path: path.symlink_to(text)


def _link_through(name: str, leads: str, text: str) -> Callable[[Path], None]:
    """A link whose text goes through another link, and up from there."""

    def make(path: Path) -> None:
        (path.parent / name).symlink_to(leads)
        path.symlink_to(text)

    return make


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (_missing, "no such release"),
        (_file, "not a directory"),
        (_fifo, "not a directory"),
        (_link("../shared"), "leaves releases/"),
        (_link(".."), "leaves releases/"),
        (_link("."), "leaves releases/"),
        (_link("/etc"), "leaves releases/"),
        (_link("40/static"), "leaves releases/"),
        (_link("../../app/releases/40"), "leaves releases/"),
        (_link_through("way", "../shared/deep", "way/../40"), "leaves releases/"),
        (_link("gone"), "no such release"),
        (_link("43"), "too many levels"),
        (_link_through("way", "43", "way"), "too many levels"),
    ],
    ids=[
        "missing", "file", "fifo", "shared", "up", "releases", "absolute", "inside a release", "up and back",
        "up from a link", "dangling", "itself", "loop",
    ],
)  # fmt: skip
def test_what_leads_to_no_release(app: Path, deploy: DeployPath, make: Callable[[Path], None], says: str) -> None:
    (app / "shared" / "deep").mkdir(parents=True)
    (app / "shared" / "40").mkdir()
    make(app / "releases" / "43")
    with pytest.raises(RefusedError, match=says) as caught:
        deploy.check_release("43", allow_empty=True)
    assert caught.value.status == EXIT_REFUSED
    assert f"{app}/releases/" in str(caught.value)


@pytest.mark.parametrize("text", ["42", "./42", "42/", "../releases/42", "{app}/releases/42", "stable"])
def test_a_link_that_stays(app: Path, deploy: DeployPath, text: str) -> None:
    (app / "releases" / "stable").symlink_to("42")
    (app / "releases" / "next").symlink_to(text.format(app=app))
    deploy.check_release("next", allow_empty=False)


@pytest.mark.parametrize(
    ("text", "release"),
    [
        ("releases/42", "42"),
        ("./releases//42/", "42"),
        ("{app}/releases/42", "42"),
        ("releases/42/public", "42"),
        ("releases/42/no/such/thing", "42"),
        ("releases/stable", "42"),
        ("releases/stable/public", "42"),
        ("releases/hop", "42"),
        ("release", "42"),
        ("release/public", "42"),
        ("link-to-releases/stable", "42"),
        ("shared/40", None),
        ("releases", None),
        ("releases/file", None),
        ("releases/out", None),
        ("/srv/elsewhere", None),
        ("../elsewhere/releases/42", None),
        (".", None),
    ],
)
def test_the_release_that_a_link_leads_to(app: Path, deploy: DeployPath, text: str, release: str | None) -> None:
    (app / "shared/40").mkdir(parents=True)
    (app / "releases/file").touch()
    (app / "releases/stable").symlink_to("./42")
    (app / "releases/hop").symlink_to(app / "releases/stable/public")
    (app / "releases/out").symlink_to(app / "shared/40")
    (app / "release").symlink_to("releases/stable/")
    (app / "link-to-releases").symlink_to("releases")
    assert deploy.release_of(text.format(app=app)) == release


@pytest.mark.parametrize("text", ["releases/gone", "gone", "releases/round", "round"])
def test_a_link_that_leads_to_nothing(app: Path, deploy: DeployPath, text: str) -> None:
    (app / "releases/round").symlink_to("round")
    (app / "round").symlink_to("round")
    with pytest.raises(OSError, match=r"No such file or directory|Too many levels of symbolic links"):
        deploy.release_of(text)


def test_an_empty_release_is_allowed_only_by_name(app: Path, deploy: DeployPath) -> None:
    (app / "releases" / "43").mkdir()
    with pytest.raises(RefusedError, match=r"empty directory.*--force"):
        deploy.check_release("43", allow_empty=False)
    deploy.check_release("43", allow_empty=True)


def test_a_release_is_known_by_its_directory(app: Path, deploy: DeployPath) -> None:
    (app / "releases" / "file").write_text("")
    assert deploy.leads_somewhere("releases/40")
    assert not any(deploy.leads_somewhere(f"releases/{name}") for name in ("file", "99", "\0", "\ud800"))


def test_the_marker_of_an_unfinished_release(app: Path, deploy: DeployPath) -> None:
    (app / "releases" / "42" / "DEPLOY_UNFINISHED").write_text("")
    assert deploy.unfinished_marker("42") == UNFINISHED_MARKER
    assert deploy.unfinished_marker("41") is None


def test_a_mark_does_not_fill_a_release(app: Path, deploy: DeployPath) -> None:
    (app / "releases" / "50").mkdir()
    (app / "releases" / "50" / "BAD_RELEASE").touch()
    with pytest.raises(RefusedError, match="is an empty directory"):
        deploy.check_release("50", allow_empty=False)
    deploy.check_release("50", allow_empty=True)
    (app / "releases" / "50" / "index.html").touch()
    deploy.check_release("50", allow_empty=False)


def test_the_markers_of_deployer(app: Path, deploy: DeployPath) -> None:
    (app / "releases" / "41" / "BAD_RELEASE").touch()
    (app / "releases" / "42" / "DIRTY_RELEASE").touch()
    (app / "releases" / "40" / "BAD_RELEASE").mkdir()  # test -f
    assert [deploy.is_marked_bad(name) for name in ("40", "41", "42", "99")] == [False, True, False, False]
    assert [deploy.is_dirty(name) for name in ("40", "41", "42", "99")] == [False, False, True, False]
    (app / "releases" / "42" / "DEPLOY_UNFINISHED").touch()
    assert [deploy.is_good(name) for name in ("40", "41", "42")] == [True, False, False]


# ---- link texts ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "release"),
    [
        ("releases/42", "42"),
        ("./releases/42", "42"),
        ("releases/42/", "42"),
        ("releases//42/.", "42"),
        ("shared/../releases/42", "42"),
        ("{app}/releases/42", "42"),
        ("{app}/./releases/42/", "42"),
        (MOUNTPOINT + "/releases/42", "42"),
        (MOUNTPOINT + "/x/../releases/42/", "42"),
        ("releases/gone", "gone"),
        ("releases", None),
        ("releases/", None),
        ("releases/..", None),
        ("releases/42/public", None),
        ("shared/42", None),
        ("../app/releases/42", None),
        ("{app}-old/releases/42", None),
        ("/releases/42", None),
        (MOUNTPOINT + "er/releases/42", None),
        (".", None),
        ("/", None),
        ("", None),
    ],
)
def test_what_a_link_text_means(app: Path, seen_elsewhere: DeployPath, text: str, release: str | None) -> None:
    target = seen_elsewhere.target(text.format(app=app))
    assert target.text == text.format(app=app)
    assert target.release == release
    assert target.label == (release if release is not None else target.text)


@pytest.mark.parametrize("style", ["relative", "absolute"])
def test_a_text_that_relfs_writes_means_what_it_was_written_for(deploy: DeployPath, style: str) -> None:
    text = deploy.link_text("42", "absolute" if style == "absolute" else "relative")
    assert text.startswith("/") == (style == "absolute")
    assert deploy.target(text).release == "42"


@pytest.mark.parametrize(
    ("text", "persistent"),
    [
        ("releases/42", "releases/42"),
        ("./releases/42/", "./releases/42/"),
        ("{app}/releases/42", "{app}/releases/42"),
        (MOUNTPOINT + "/releases/42", "{app}/releases/42"),
        (MOUNTPOINT + "/releases/42/", "{app}/releases/42"),
        (MOUNTPOINT, MOUNTPOINT),
        ("/etc", "/etc"),
        ("../elsewhere", "../elsewhere"),
    ],
)
def test_no_text_on_disk_needs_the_mount(app: Path, seen_elsewhere: DeployPath, text: str, persistent: str) -> None:
    assert seen_elsewhere.persistent_text(text.format(app=app)) == persistent.format(app=app)


def test_a_text_through_a_link_to_the_deploy_path(app: Path, tmp_path: Path) -> None:
    """Where /var/www is a link, deploy tools write texts that go through it."""
    (tmp_path / "www").symlink_to(tmp_path)
    with closing(open_deploy_path(f"{tmp_path}/www/app")) as deploy:
        assert deploy.path == str(app)
        assert deploy.target(f"{tmp_path}/www/app/releases/42").release == "42"


# ---- the list of releases -----------------------------------------------------------------------------------------


@pytest.fixture
def empty(app: Path) -> Iterator[DeployPath]:
    """The deploy path, with no release."""
    (app / "releases").rename(app / "old")
    (app / "releases").mkdir()
    with closing(open_deploy_path(str(app))) as deploy:
        yield deploy


def _made_in_order(app: Path, *names: str) -> None:
    for age, name in enumerate(names):
        (app / "releases" / name).mkdir()
        os.utime(app / "releases" / name, (0, 1_000_000 + age))


def _names(deploy: DeployPath) -> list[str]:
    return [release.name for release in deploy.releases()]


def test_numbers_are_ordered_as_numbers(app: Path, empty: DeployPath) -> None:
    _made_in_order(app, "100", "20260901120000", "9", "010", "10")
    assert _names(empty) == ["9", "010", "10", "100", "20260901120000"]


def test_other_names_are_ordered_by_time(app: Path, empty: DeployPath) -> None:
    _made_in_order(app, "z", "10", "a", "9")
    assert _names(empty) == ["z", "10", "a", "9"]
    assert [release.created for release in empty.releases()] == [1_000_000.0 + age for age in range(4)]


def test_what_is_not_listed(app: Path, empty: DeployPath) -> None:
    _made_in_order(app, "41", ".staging")
    (app / "releases" / "file").write_text("")
    (app / "releases" / "stable").symlink_to("41")
    assert _names(empty) == ["41"]


def test_no_release_at_all(empty: DeployPath) -> None:
    assert _names(empty) == []


def test_releases_that_cannot_be_read(app: Path, deploy: DeployPath) -> None:
    (app / "releases").rename(app / "old")
    with pytest.raises(RelfsError, match=f"{app}/releases: cannot be read"):
        deploy.releases()


# ---- opening ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("gone", "gone: no such deploy path"),
        ("file", "file: not a directory"),
        ("bare", "bare: has no releases/"),
        ("odd", "odd/releases: not a directory"),
        ("loop", "loop: .*symbolic links"),
        ("shut", r"shut/\.relfs: cannot be opened"),
        ("x" * 300, "name too long"),
    ],
    ids=["missing", "file", "no releases", "releases is a file", "loop", "state is a file", "too long"],
)
def test_what_is_no_deploy_path(tmp_path: Path, path: str, says: str) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "bare").mkdir()
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "releases").write_text("")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "shut" / "releases").mkdir(parents=True)
    (tmp_path / "shut" / ".relfs").write_text("")
    descriptors = os.listdir("/proc/self/fd")
    with pytest.raises(RelfsError, match=f"(?i){says}") as caught:
        open_deploy_path(f"{tmp_path}/{path}")
    assert caught.value.status == EXIT_FAILED
    assert os.listdir("/proc/self/fd") == descriptors, "a descriptor was left open"


@pytest.mark.parametrize("path", ["", "/srv/\0", "\ud800"], ids=ascii)
def test_what_is_no_path(path: str) -> None:
    with pytest.raises(UsageError):
        open_deploy_path(path)


def test_the_state_directory_is_made_or_not(app: Path, tmp_path: Path) -> None:
    with closing(open_deploy_path(str(app), create_state=False)) as deploy:
        assert deploy.state_fd is None
    assert not (app / ".relfs").exists()
    with closing(open_deploy_path(str(app), state_dir=str(tmp_path / "state"))) as deploy:
        assert deploy.state_path == str(tmp_path / "state")
    assert not (app / ".relfs").exists()
    with closing(open_deploy_path(str(app))) as deploy:
        assert deploy.state_path == str(app / ".relfs")
    assert (app / ".relfs").stat().st_mode & 0o7777 == 0o755


def test_a_link_is_no_state_directory(app: Path, tmp_path: Path) -> None:
    """Whoever owns the deploy path must not be able to make root's relfs write elsewhere."""
    (tmp_path / "theirs").mkdir()
    (app / ".relfs").symlink_to(tmp_path / "theirs")
    with pytest.raises(RelfsError, match=r"\.relfs: cannot be opened"):
        open_deploy_path(str(app))


def test_two_may_make_the_state_directory_at_once(app: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.mkdir

    def late(path: str, mode: int = 0o777, *, dir_fd: int | None = None) -> None:
        real(path, mode, dir_fd=dir_fd)  # somebody else
        real(path, mode, dir_fd=dir_fd)

    monkeypatch.setattr(os, "mkdir", late)
    with closing(open_deploy_path(str(app))) as deploy:
        assert deploy.state_fd is not None


def test_the_deploy_path_stays_the_one_that_was_opened(app: Path, deploy: DeployPath) -> None:
    """As under a mount, where the path comes to mean something else."""
    moved = app.rename(app.parent / "moved")
    (app / "releases" / "other").mkdir(parents=True)
    assert _names(deploy) == sorted(os.listdir(moved / "releases"))
