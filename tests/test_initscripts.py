"""The scripts of init systems without units: contrib/sysv/relfs as insserv(8) orders it and init runs it, and
contrib/openrc/relfs with the real OpenRC.

Debian's packages of those are unpacked by contrib/test: installing them would replace the host's init.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from rooms import INSTALL, Room, loud_lines, room
from sandbox import make_app

_OTHER_INITS = Path(sys.prefix, "other-inits")
_NOT_RUNNING = 3
_SCRIPT = "/etc/init.d/relfs"

_STUB_LSB = """#!/bin/sh
### BEGIN INIT INFO
# Provides:          nginx
# Required-Start:    $local_fs $remote_fs
# Required-Stop:     $local_fs $remote_fs
# Default-Start:     2 3 4 5
# Default-Stop:      0 1 6
### END INIT INFO
"""

_STUB_OPENRC = """#!/sbin/openrc-run
start() {
    findmnt --list --noheadings --types fuse.relfs --output TARGET >/run/seen-by-nginx
}
"""


@pytest.fixture
def host(app: Path, tmp_path: Path) -> Iterator[Room]:
    """A machine without systemd."""
    assert _OTHER_INITS.is_dir(), f"{_OTHER_INITS}: missing; contrib/test unpacks it"
    furniture = tmp_path / "room"
    furniture.mkdir()
    with room(furniture) as made:
        made.ok("mount", "-t", "tmpfs", "room", "/sys/fs/cgroup")  # OpenRC would make some of the real ones
        made.ok("cp", "-a", f"{_OTHER_INITS}/etc/.", "/etc")
        for name in ("usr/.", "lib", "sbin", "bin"):
            made.ok("cp", "-a", f"{_OTHER_INITS}/{name}", "/usr")
        made.ok("sh", "-c", "rm -f /etc/init.d/* /etc/rc?.d/*; rc-status; touch /run/openrc/softlevel")
        yield made
    assert not loud_lines(app / ".relfs/log")


def _install(host: Room, init: str, *paths: Path) -> None:
    host.ok(INSTALL, "--init", init, "--bin", "/usr/local/bin", *paths)


def _worker(host: Room, app: Path) -> str:
    return host.ok("sh", "-c", f"relfsctl -C '{app}' --json status | grep worker_pid")


def _mount_id(host: Room, app: Path) -> str:
    return host.ok("findmnt", "--noheadings", "--output", "ID", "--mountpoint", app)


def _openrc_service(host: Room) -> str:
    return host.ok("sh", "-c", "cd /etc/init.d; echo relfs.*").strip()


# ---- scripts with LSB headers


def test_init_mounts_before_the_web_server_and_unmounts_after_it(host: Room) -> None:
    host.put("/etc/init.d/nginx", _STUB_LSB)
    host.ok("chmod", "755", "/etc/init.d/nginx")
    _install(host, "sysv")
    host.ok("update-rc.d", "nginx", "defaults")
    links = host.ok("sh", "-c", "cd /etc; ls rc2.d rc5.d rc0.d rc6.d").split()
    assert [links.count(each) for each in ("S01relfs", "S02nginx", "K01nginx", "K02relfs")] == [2, 2, 2, 2], links


def test_script_starts_and_stops_every_path_that_is_named(host: Room, app: Path, tmp_path: Path) -> None:
    shop = make_app(tmp_path / "my shop")
    _install(host, "sysv", app, shop)
    assert host.mounted(app)
    assert host.mounted(shop)
    assert host.ok(_SCRIPT, "status") == f"{app} is mounted\n{shop} is mounted\n"
    host.ok(_SCRIPT, "start")
    host.ok(_SCRIPT, "stop")
    assert not host.mounted(app)
    assert not host.mounted(shop)
    assert host.run(_SCRIPT, "status").returncode == _NOT_RUNNING
    host.ok(_SCRIPT, "stop")
    host.ok(_SCRIPT, "restart")
    assert host.mounted(app)


def test_script_passes_options_and_a_mountpoint_on(host: Room, app: Path, tmp_path: Path) -> None:
    live = tmp_path / "live"
    live.mkdir()
    _install(host, "sysv")
    host.put("/etc/default/relfs", f"RELFS_MOUNTS='\n# a comment\n\n{app} {live} -o noatime --link absolute\n'\n")
    host.ok(_SCRIPT, "start")
    assert "noatime" in host.ok("findmnt", "--noheadings", "--output", "OPTIONS", "--mountpoint", live)
    host.ok(_SCRIPT, "stop")


def test_script_goes_on_after_a_path_that_fails(host: Room, app: Path, tmp_path: Path) -> None:
    _install(host, "sysv")
    host.put("/etc/default/relfs", f"RELFS_MOUNTS='\n{tmp_path}/missing\n{app}\n'\n")
    done = host.run(_SCRIPT, "start")
    assert done.returncode == 1
    assert f"{tmp_path}/missing: no such deploy path" in done.stderr
    assert host.mounted(app)


def test_script_goes_on_after_a_line_that_no_shell_reads(host: Room, app: Path) -> None:
    _install(host, "sysv")
    host.put("/etc/default/relfs", f"RELFS_MOUNTS='\n\"/missing\n{app}\n'\n")
    done = host.run(_SCRIPT, "start")
    assert (done.returncode, done.stderr) == (2, 'relfs: /etc/default/relfs: a quote is missing in: "/missing\n')
    assert host.mounted(app)


def test_script_says_that_nothing_is_configured(host: Room) -> None:
    _install(host, "sysv")
    done = host.run(_SCRIPT, "start")
    assert (done.returncode, done.stderr) == (6, "relfs: no deploy path is named in /etc/default/relfs\n")


def test_script_puts_new_processes_behind_a_mount_that_stays(host: Room, app: Path) -> None:
    _install(host, "sysv", app)
    for action in ("restart", "force-reload"):
        mount, worker = _mount_id(host, app), _worker(host, app)
        host.ok(_SCRIPT, action)
        assert _mount_id(host, app) == mount
        assert _worker(host, app) != worker


def test_script_starts_over_what_a_crash_has_left(host: Room, app: Path) -> None:
    _install(host, "sysv", app)
    host.ok("sh", "-c", "kill -9 -1")  # all in one moment (kill(2)): who is left brings up others
    host.ok(_SCRIPT, "start")
    assert host.ok("cat", app / "current/index.html") == "40"
    host.ok(_SCRIPT, "stop")


# ---- OpenRC


def test_openrc_runs_a_service_a_path(host: Room, app: Path) -> None:
    _install(host, "openrc")
    host.ok("ln", "-s", "relfs", "/etc/init.d/relfs.app")
    host.put("/etc/conf.d/relfs.app", f"RELFS_PATH={app}\nRELFS_OPTIONS='-o noatime'\n")
    host.ok("rc-service", "relfs.app", "start")
    assert "noatime" in host.ok("findmnt", "--noheadings", "--output", "OPTIONS", "--mountpoint", app)
    host.ok("rc-service", "relfs.app", "status")
    host.ok("rc-service", "relfs.app", "stop")
    assert not host.mounted(app)
    assert host.run("rc-service", "relfs.app", "status").returncode == _NOT_RUNNING


def test_openrc_mounts_before_the_web_server(host: Room, app: Path) -> None:
    host.put("/etc/init.d/nginx", _STUB_OPENRC)
    host.ok("chmod", "755", "/etc/init.d/nginx")
    host.ok("rc-update", "add", "nginx", "default")
    host.ok(INSTALL, "--init", "openrc", "--bin", "/usr/local/bin", app)
    host.ok("rc-service", _openrc_service(host), "stop")
    host.ok("rc-update", "--update")  # it goes by seconds, and all of this was one
    host.ok("openrc", "default")
    assert host.ok("cat", "/run/seen-by-nginx") == f"{app}\n"


def test_openrc_puts_new_processes_behind_a_mount_that_stays(host: Room, app: Path) -> None:
    _install(host, "openrc", app)
    for action in ("restart", "reload"):
        mount, worker = _mount_id(host, app), _worker(host, app)
        host.ok("rc-service", _openrc_service(host), action)
        assert _mount_id(host, app) == mount
        assert _worker(host, app) != worker


def test_openrc_says_that_nothing_is_configured(host: Room) -> None:
    _install(host, "openrc")
    done = host.run("rc-service", "relfs", "start")
    assert done.returncode == 1
    assert "set RELFS_PATH in /etc/conf.d/relfs" in done.stderr


# ---- the installer


@pytest.mark.parametrize("init", ["sysv", "openrc"])
def test_uninstalling_takes_all_back_but_configuration(host: Room, app: Path, init: str) -> None:
    _install(host, init, app)
    host.ok(INSTALL, "--init", init, "--uninstall")
    assert not host.mounted(app)
    left = host.ok("sh", "-c", "cd /; find etc sbin/ -name '*relfs*'").split()
    assert all(each.startswith(("etc/conf.d/", "etc/default/")) for each in left), left


def test_installing_again_changes_nothing(tmp_path: Path) -> None:
    (tmp_path / "srv/app").mkdir(parents=True)

    def install() -> dict[str, str]:
        for init in ("sysv", "openrc", "systemd"):
            words = ["--root", str(tmp_path), "--init", init, "--bin", "/opt/relfs/bin", "/srv/app"]
            subprocess.run([INSTALL, *words], check=True, capture_output=True)
        files = [path for path in tmp_path.rglob("*") if not path.is_dir()]
        return {str(path): path.read_text() for path in files if path.is_file()} | {
            str(path): str(path.readlink()) for path in files if path.is_symlink()
        }

    first = install()
    assert install() == first
    assert not any("/usr/local/bin/relfs" in text for text in first.values())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--colour"], "--colour: no such option; usage: "),
        (["--init", "runit"], "--init runit: one of systemd, openrc, sysv"),
        (["--root", "/nowhere"], "/nowhere: no such directory to install into"),
        (["--uninstall", "/srv"], "--uninstall takes no deploy path"),
        (["--bin", "/nowhere"], "/nowhere: has no relfs and relfsctl; name the directory with --bin"),
        (["srv/app"], "srv/app: name deploy paths from / on"),
        (["/srv/missing"], "/srv/missing: no such deploy path"),
    ],
)
def test_installer_names_what_is_wrong(tmp_path: Path, words: list[str], said: str) -> None:
    (tmp_path / "etc/init.d").mkdir(parents=True)
    words = words if words[0] in ("--root", "--bin") else ["--root", str(tmp_path), "--bin", "/x", *words]
    done = subprocess.run([INSTALL, "--init", "sysv", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert said in done.stderr
    assert not (tmp_path / "etc/init.d/relfs").exists()
