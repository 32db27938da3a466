"""What outlives releases: what the configuration may say, what is linked, what is seeded, and what is in the way."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from clients import ctl, snapshot
from sandbox import add_release

from relfs.errors import EXIT_FAILED, EXIT_REFUSED, RefusedError
from relfs.layout import open_deploy_path
from relfs.releases.shared import Shared, check_shared, link_shared, parse_shared

_STORAGE = Shared(directories=("storage",))
_ENV = Shared(files=(".env",))


@pytest.fixture
def release(app: Path) -> Path:
    """A release that ships files, beside those that are there."""
    made = add_release(app, "43")
    (made / "storage/app").mkdir(parents=True)
    (made / "storage/app/seed").write_text("shipped")
    (made / ".env").write_text("shipped")
    return made


def link(app: Path, shared: Shared, name: str = "43") -> None:
    with closing(open_deploy_path(str(app), create_state=False)) as deploy:
        release = os.open(app / "releases" / name, os.O_RDONLY)
        try:
            link_shared(deploy, release, name, shared)
        finally:
            os.close(release)


def states(app: Path, shared: Shared, name: str | None = "43") -> dict[str, str]:
    with closing(open_deploy_path(str(app), create_state=False)) as deploy:
        return {found.path.removeprefix(f"{app}/"): found.state for found in check_shared(deploy, shared, name)}


# ---- the configuration ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("section", "told"),
    [
        ({"directories": "storage"}, "shared.directories must be a list"),
        ({"directories": [1]}, "shared.directories must be a list"),
        ({"directories": ["/etc"]}, "'/etc' is not a path inside of a release"),
        ({"files": ["../x"]}, "'../x' is not"),
        ({"files": ["a/../.."]}, "is not a path inside"),
        ({"writable": ["."]}, "'.' is not"),
        ({"writable": [""]}, "'' is not"),
        ({"files": ["a\nb"]}, "is not a path inside"),
        ({"directories": ["a", "a/b"]}, "a/b is in a, which is shared as a whole"),
        ({"directories": ["a", "a-b"], "files": ["a/b/c"]}, "a/b/c is in a,"),
        ({"directories": ["a"], "files": ["./a"]}, "a is named twice"),
        ({"required": ["b"], "files": ["c"]}, "b is not in shared.files"),
        ({"files": ["b"], "writable": ["b"]}, "shared.writable: b must be a directory"),
        ({"files": ["b"], "writable": ["b/c"]}, "shared.writable: b/c must be a directory"),
        ({"group": "no-such-group"}, "there is no group 'no-such-group'"),
        ({"group": 3}, "must be the name of a group"),
    ],
)
def test_what_cannot_be_shared_is_named(section: dict[str, object], told: str) -> None:
    with pytest.raises(ValueError, match="shared") as error:
        parse_shared(section)
    assert told in str(error.value)


def test_a_wrong_configuration_is_one_line(app: Path) -> None:
    (app / ".relfs").mkdir(exist_ok=True)
    (app / ".relfs/config.toml").write_text('[shared]\ndirectories = ["a", "a/b"]\n')
    done = ctl("-C", app, "shared", "check")
    assert (done.status, done.err.count("\n")) == (EXIT_FAILED, 1)
    assert "config.toml: shared: a/b is in a" in done.err


# ---- links and seeds ------------------------------------------------------------------------------------------------


def test_a_directory_is_linked_and_seeded_once(app: Path, release: Path) -> None:
    link(app, _STORAGE)
    assert os.readlink(release / "storage") == "../../shared/storage"
    assert (release / "storage/app/seed").read_text() == "shipped"
    (app / "shared/storage/app/seed").write_text("in use")
    newer = add_release(app, "44")
    (newer / "storage/app").mkdir(parents=True)
    (newer / "storage/app/seed").write_text("shipped again")
    link(app, _STORAGE, "44")
    assert (newer / "storage/app/seed").read_text() == "in use"
    assert os.listdir(app / "shared") == ["storage"]


def test_a_file_is_linked_and_seeded_once(app: Path, release: Path) -> None:
    link(app, _ENV)
    assert os.readlink(release / ".env") == "../../shared/.env"
    (app / "shared/.env").write_text("secret")
    (add_release(app, "44") / ".env").write_text("shipped again")
    link(app, _ENV, "44")
    assert (app / "releases/44/.env").read_text() == "secret"


def test_seeds_keep_their_modes_times_and_links(app: Path, release: Path) -> None:
    os.chmod(release / "storage/app/seed", 0o640)
    os.utime(release / "storage/app/seed", (1, 2))
    os.symlink("seed", release / "storage/app/other")
    os.chown(release / "storage/app", 33, 33)
    link(app, _STORAGE)
    found = os.stat(app / "shared/storage/app/seed")
    assert (stat.S_IMODE(found.st_mode), found.st_mtime) == (0o640, 2)
    assert os.readlink(app / "shared/storage/app/other") == "seed"
    assert os.stat(app / "shared/storage/app").st_uid == 33


def test_deep_paths_lead_up_far_enough(app: Path, release: Path) -> None:
    link(app, Shared(directories=("public/uploads",), files=("config/a/b.yml",)))
    (app / "shared/config/a/b.yml").write_text("later")
    (app / "shared/public/uploads/picture").write_text("picture")
    assert os.readlink(release / "config/a/b.yml") == "../../../../shared/config/a/b.yml"
    assert (release / "config/a/b.yml").read_text() == "later"
    assert (release / "public/uploads/picture").read_text() == "picture"


def test_what_is_missing_everywhere(app: Path, release: Path) -> None:
    """A directory is made; a file is linked all the same, and may come later."""
    link(app, Shared(directories=("cache",), files=("key",)))
    assert os.listdir(release / "cache") == []
    assert not (release / "key").exists()
    (app / "shared/key").write_text("now")
    assert (release / "key").read_text() == "now"


@pytest.mark.usefixtures("release")
def test_linking_again_changes_nothing(app: Path) -> None:
    shared = Shared(directories=("storage",), files=(".env",), writable=("tmp",))
    link(app, shared)
    before = snapshot(app)
    link(app, shared)
    assert snapshot(app) == before


def test_a_link_in_shared_may_lead_to_another_disk(app: Path, release: Path, tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (app / "shared").mkdir(exist_ok=True)
    os.symlink(tmp_path / "disk", app / "shared/storage")
    link(app, _STORAGE)
    (release / "storage/file").write_text("there")
    assert (tmp_path / "disk/file").read_text() == "there"


def test_what_root_makes_belongs_to_whose_directory_it_is(app: Path, release: Path) -> None:
    (app / "shared").mkdir(exist_ok=True)
    for each in (app / "shared", release):
        os.chown(each, 33, 34)
    link(app, Shared(directories=("a/b",), files=("key",)))
    made = [app / "shared/a", app / "shared/a/b", release / "a", release / "a/b", release / "key"]
    assert {(os.lstat(each).st_uid, os.lstat(each).st_gid) for each in made} == {(33, 34)}


def test_writable(app: Path, release: Path) -> None:
    """All directories of the release's own; of what is shared, only the one that is named."""
    (release / "tmp/cache").mkdir(parents=True)
    (app / "shared/storage/kept").mkdir(parents=True)
    link(app, Shared(directories=("storage",), writable=("tmp", "storage/logs", "storage"), group=34))
    modes = {
        path: (stat.S_IMODE(os.stat(app / path).st_mode), os.stat(app / path).st_gid)
        for path in ("releases/43/tmp", "releases/43/tmp/cache", "shared/storage", "shared/storage/logs")
    }
    assert set(modes.values()) == {(0o2775, 34)}
    assert os.stat(app / "shared/storage/kept").st_gid != 34


def test_what_is_behind_a_link_in_shared_keeps_its_mode(app: Path, release: Path, tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir(mode=0o750)
    (app / "shared").mkdir()
    (app / "shared/storage").symlink_to(tmp_path / "disk")
    link(app, Shared(directories=("storage",), writable=("storage",), group=34))
    assert (release / "storage").resolve() == tmp_path / "disk"
    assert (stat.S_IMODE((tmp_path / "disk").stat().st_mode), (tmp_path / "disk").stat().st_gid) == (0o750, 0)


# ---- what is in the way ---------------------------------------------------------------------------------------------


def _file_for_directory(app: Path) -> None:
    (app / "releases/43/cache").write_text("")


def _directory_for_file(app: Path) -> None:
    (app / "releases/43/key").mkdir()


def _link_on_the_way(app: Path) -> None:
    os.symlink("/etc", app / "releases/43/public")


def _file_on_the_way(app: Path) -> None:
    (app / "releases/43/public").write_text("")


def _shared_file_for_directory(app: Path) -> None:
    (app / "shared/cache").write_text("")


def _shared_directory_for_file(app: Path) -> None:
    (app / "shared/key").mkdir()


def _shared_dangling(app: Path) -> None:
    os.symlink("nowhere", app / "shared/cache")


def _file_for_writable(app: Path) -> None:
    (app / "releases/43/tmp").write_text("")


def _link_for_writable(app: Path) -> None:
    (app / "releases/43/tmp").symlink_to("/tmp")


def _shared_file_for_writable(app: Path) -> None:
    (app / "shared/storage").mkdir()
    (app / "shared/storage/logs").write_text("")


def _shared_link_before_writable(app: Path) -> None:
    (app / "shared/storage").symlink_to("../releases/40")


def _shared_link_on_the_way(app: Path) -> None:
    os.symlink("/etc", app / "shared/public")


@pytest.mark.usefixtures("release")
@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (_file_for_directory, "43/cache: is not a directory"),
        (_directory_for_file, "43/key: is not a file"),
        (_link_on_the_way, "43/public: is in the way"),
        (_file_on_the_way, "43/public: is in the way"),
        (_shared_file_for_directory, "shared/cache: is not a directory"),
        (_shared_directory_for_file, "shared/key: is not a file"),
        (_shared_dangling, "shared/cache is a link to nowhere"),
        (_shared_link_on_the_way, "shared/public is a link to /etc"),
        (_file_for_writable, "43/tmp: is not a directory, as shared.writable says it is"),
        (_link_for_writable, "43/tmp: is not a directory, as shared.writable says it is"),
        (_shared_file_for_writable, "shared/storage/logs: is not a directory"),
        (_shared_link_before_writable, "shared/storage/logs: is not there; shared/storage is a link to ../releases/40"),
    ],
)
def test_what_is_in_the_way_is_named(app: Path, spoil: Callable[[Path], None], told: str) -> None:
    (app / "shared").mkdir(exist_ok=True)
    spoil(app)
    before = snapshot(app)
    with pytest.raises(RefusedError) as error:
        link(
            app,
            Shared(
                directories=("storage", "cache", "public/uploads"), files=("key",), writable=("tmp", "storage/logs")
            ),
        )
    assert told in str(error.value)
    assert snapshot(app) == before


def test_a_required_file_that_is_missing_is_named(app: Path, release: Path) -> None:
    """Whether the release ships one or not: what is required is the host's own."""
    with pytest.raises(RefusedError, match=r"shared/\.env: is required, and not there"):
        link(app, Shared(files=(".env",), required=(".env",)))
    assert (release / ".env").read_text() == "shipped"


def test_what_is_behind_a_link_of_the_release_is_left_alone(app: Path, release: Path, tmp_path: Path) -> None:
    """A release that ships a link where a directory is shared: the link goes, not what it leads to."""
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious/file").write_text("precious")
    os.symlink(tmp_path / "precious", release / "cache")
    link(app, Shared(directories=("cache",)))
    assert (tmp_path / "precious/file").read_text() == "precious"
    assert os.readlink(release / "cache") == "../../shared/cache"
    assert os.listdir(app / "shared/cache") == []


# ---- looking --------------------------------------------------------------------------------------------------------


@pytest.fixture
def configured(app: Path, release: Path) -> Path:  # noqa: ARG001 (it makes it)
    (app / ".relfs").mkdir(exist_ok=True)
    (app / ".relfs/config.toml").write_text('[shared]\ndirectories = ["storage"]\nfiles = [".env", "key"]\n')
    return app


def test_states(app: Path, release: Path) -> None:
    shared = Shared(directories=("storage",), files=(".env", "key"), required=("key",))
    assert states(app, shared) == {
        "shared/storage": "note", "shared/.env": "note", "shared/key": "fail",
        "releases/43/storage": "fail", "releases/43/.env": "fail", "releases/43/key": "fail",
    }  # fmt: skip
    (app / "shared").mkdir(exist_ok=True)
    (app / "shared/key").write_text("")
    link(app, shared)
    assert set(states(app, shared).values()) == {"ok"}
    os.unlink(release / "key")
    os.symlink("../../shared/other", release / "key")
    assert states(app, shared)["releases/43/key"] == "fail"


def test_shared_check(configured: Path) -> None:
    before = snapshot(configured)
    done = ctl("-C", configured, "--json", "shared", "check", "43")
    assert done.status == EXIT_REFUSED
    assert {each["path"].removeprefix("releases/43/"): each["state"] for each in done.json[3:]} == {
        "storage": "fail", ".env": "fail", "key": "fail"
    }  # fmt: skip
    assert snapshot(configured) == before
    link(configured, Shared(directories=("storage",), files=(".env", "key")))
    done = ctl("-C", configured, "shared", "check", "43")
    assert (done.status, done.err) == (0, "")
    assert ["ok", "releases/43/storage", "leads to shared/storage"] in done.rows


def test_shared_check_by_a_link(configured: Path) -> None:
    (configured / "releases/stable").symlink_to("42")
    by_name, by_link = (ctl("-C", configured, "shared", "check", name) for name in ("42", "stable"))
    assert (by_link.status, by_link.out, by_link.err) == (by_name.status, by_name.out, "")


def test_shared_check_without_a_name_is_about_the_current_release(configured: Path) -> None:
    link(configured, Shared(directories=("storage",), files=(".env", "key")))
    assert ctl("-C", configured, "switch", "43").status == 0
    assert ctl("-C", configured, "shared", "check").status == 0


@pytest.mark.parametrize(("reference", "status"), [("none", EXIT_REFUSED), ("a/b", 2), ("@nothing", 2)])
def test_shared_check_of_what_is_no_release(configured: Path, reference: str, status: int) -> None:
    done = ctl("-C", configured, "shared", "check", reference)
    assert (done.status, done.out, done.err.count("\n")) == (status, "", 1)
