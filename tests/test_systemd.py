"""contrib/systemd/relfs@.service under the real systemd, which has booted in name spaces of its own (rooms.py)."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from mounting import wait_for
from rooms import ENVIRONMENT, INSTALL, Room, loud_lines, systemd_room
from sandbox import link_of, make_app

from relfs.processes import state_of

_SUCCESSION = "the supervisor has died"

_READER = """
import os, select, sys
path, reads, failures = sys.argv[1], 0, 0
print("begun", flush=True)
while not select.select([0], [], [], 0)[0]:
    try:
        with open(path) as file:
            assert file.read() == "40"
        reads += 1
    except OSError as error:
        print(error, flush=True)
        failures += 1
print(reads, failures)
"""

_AS_WWW_DATA = "setpriv --reuid=www-data --regid=www-data --clear-groups"

_EARLY = """
[Service]
ExecStart=/bin/sleep infinity
PrivateTmp=yes
ProtectSystem=full
PrivateDevices=yes
"""

_NGINX = """
[Service]
Type=oneshot
ExecStart=/bin/sh -c 'findmnt --list --noheadings --types fuse.relfs --output TARGET >/run/seen-by-nginx'
RemainAfterExit=yes
[Install]
WantedBy=multi-user.target
"""


@pytest.fixture(scope="module")
def host() -> Iterator[Room]:
    """A machine that runs systemd, and has relfs's unit."""
    directory = Path("/tmp", f"relfs-room-{os.getpid()}")
    (directory / "room").mkdir(parents=True)
    try:
        with systemd_room(directory) as made:
            made.ok(INSTALL, "--init", "systemd", "--bin", "/usr/local/bin")
            yield made
    finally:
        shutil.rmtree(directory)


@dataclass
class Unit:
    """relfs@.service for the deploy path `app`."""

    host: Room
    app: Path
    log: Path
    expected: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        return self.host.ok("systemd-escape", "--path", "--template", "relfs@.service", self.app).strip()

    def configure(self, *lines: str, section: str = "Service") -> None:
        """As `systemctl edit` does. Tests read what is logged in a file."""
        log = f"[Service]\nStandardError=append:{self.log}\n"
        text = "\n".join([log, f"[{section}]", *lines, ""])
        self.host.put(f"/etc/systemd/system/{self.name}.d/override.conf", text)
        self.host.ok("systemctl", "daemon-reload")

    def systemctl(self, action: str, *options: str) -> None:
        self.host.ok("systemctl", action, *options, self.name)

    def kill(self, number: str, whom: str) -> None:
        self.systemctl("kill", f"--signal={number}", f"--kill-whom={whom}")

    def shows(self, name: str) -> str:
        return self.host.ok("systemctl", "show", "--value", f"--property={name}", self.name).strip()

    def mount_id(self) -> str:
        """As long as a mount is there, no other one has its number."""
        return self.host.ok("findmnt", "--noheadings", "--output", "ID", "--mountpoint", self.app)

    def processes(self) -> set[int]:
        """In the pid name space of the room."""
        group = self.shows("ControlGroup")
        return set(map(int, self.host.ok("cat", f"/sys/fs/cgroup{group}/cgroup.procs").split())) if group else set()


@pytest.fixture
def unit(host: Room, app: Path, tmp_path: Path) -> Iterator[Unit]:
    """Not started yet."""
    made = Unit(host, app, tmp_path / "log")
    made.configure()
    yield made
    host.run("systemctl", "stop", made.name)
    host.run("systemctl", "reset-failed", made.name)
    assert not loud_lines(made.log, *made.expected)


def _guards(host: Room) -> str:
    return host.ok("systemctl", "--no-legend", "--plain", "--type=scope", "list-units", "run-*")


def test_unit_is_valid(host: Room, unit: Unit) -> None:
    done = host.run("systemd-analyze", "--man=no", "--recursive-errors=no", "verify", unit.name)
    assert (done.returncode, done.stderr) == (0, "")


# ---- the mount, and who sees it


def test_start_returns_once_the_mount_answers_and_others_see_it(host: Room, unit: Unit) -> None:
    host.put("/etc/systemd/system/early.service", _EARLY)
    host.ok("systemctl", "daemon-reload")
    host.ok("systemctl", "start", "early.service")
    unit.systemctl("start")
    assert host.mounted(unit.app)
    early = host.ok("systemctl", "show", "--value", "--property=MainPID", "early.service").strip()
    seen = host.ok("nsenter", "--target", early, "--mount", "findmnt", "--noheadings", "--mountpoint", unit.app)
    assert "fuse.relfs" in seen
    ours, theirs = (host.ok("readlink", f"/proc/{pid}/ns/mnt") for pid in (unit.shows("MainPID"), "1"))
    assert ours == theirs
    host.ok("systemctl", "stop", "early.service")


def test_a_unit_that_would_hide_the_mount_is_refused(host: Room, unit: Unit) -> None:
    unit.configure("ProtectSystem=full", "Restart=no")
    assert host.run("systemctl", "start", unit.name).returncode == 1
    (said,) = unit.log.read_text().splitlines()
    assert said.startswith(f"relfs: {unit.name}: has a mount name space of its own")
    assert "take ProtectSystem=, PrivateTmp= and their like out of the unit" in said


def test_stop_uncovers_the_real_link_and_leaves_nothing(host: Room, unit: Unit) -> None:
    unit.systemctl("start")
    host.ok("relfsctl", "-C", unit.app, "switch", "41")
    wait_for(lambda: _guards(host).count(str(unit.app)) == 2, "the guards are in scopes of their own")
    unit.systemctl("stop")
    assert not host.mounted(unit.app)
    assert unit.processes() == set()
    assert unit.shows("NFileDescriptorStore") == "0"
    wait_for(lambda: str(unit.app) not in _guards(host), "the guards end")
    assert link_of(unit.app) == "releases/41"


def test_shutdown_waits_for_nobody(app: Path, tmp_path: Path) -> None:
    """The guards get no signal: they end as soon as the service has."""
    (tmp_path / "room").mkdir()
    with systemd_room(tmp_path) as host:
        host.ok(INSTALL, "--init", "systemd", "--bin", "/usr/local/bin")
        unit = Unit(host, app, tmp_path / "log")
        unit.configure()
        unit.systemctl("start")
        host.ok("systemctl", "--no-block", "exit")
        wait_for(lambda: state_of(host.pid) in ("", "Z"), "systemd ends")
    assert "is being unmounted" in unit.log.read_text()
    assert "timed out" not in (tmp_path / "console").read_text()
    assert not loud_lines(unit.log)


def test_boot_mounts_before_the_web_server_starts(host: Room, unit: Unit) -> None:
    host.put("/etc/systemd/system/nginx.service", _NGINX)
    host.ok("systemctl", "daemon-reload")
    host.ok("systemctl", "enable", "nginx.service", unit.name)
    host.ok("systemctl", "start", "multi-user.target")
    assert host.ok("cat", "/run/seen-by-nginx") == f"{unit.app}\n"
    host.ok("systemctl", "disable", "nginx.service", unit.name)
    host.ok("rm", "/etc/systemd/system/nginx.service")


def test_a_deploy_path_may_have_any_name(host: Room, tmp_path: Path) -> None:
    unit = Unit(host, make_app(tmp_path / "my -o %n $HOME-shop"), tmp_path / "log")
    unit.configure()
    unit.systemctl("start")
    assert host.mounted(unit.app)
    unit.systemctl("stop")


def test_options_and_a_mountpoint_are_set_by_a_drop_in(host: Room, unit: Unit, tmp_path: Path) -> None:
    live = tmp_path / "live"
    live.mkdir()
    unit.configure('Environment="RELFS_OPTIONS=-o noatime --link absolute"', f"Environment=RELFS_MOUNTPOINT={live}")
    unit.systemctl("start")
    assert "noatime" in host.ok("findmnt", "--noheadings", "--output", "OPTIONS", "--mountpoint", live)


def test_a_failure_is_told_and_tried_again_only_so_often(host: Room, unit: Unit) -> None:
    unit.configure("StartLimitBurst=2", section="Unit")
    unit.app.rename(unit.app.with_name("away"))
    assert host.run("systemctl", "start", unit.name).returncode == 1
    wait_for(lambda: unit.shows("ActiveState") == "failed", "systemd gives up")
    said = set(unit.log.read_text().splitlines())
    assert said == {f"relfs: {unit.app}: no such deploy path; `relfsctl init` makes one"}


# ---- restarts and deaths


def test_neither_restarting_nor_killing_is_noticed(host: Room, unit: Unit) -> None:
    """With --no-bind every read is answered by relfs. An open file whose name is gone is kept across a restart."""
    unit.expected += [_SUCCESSION]
    unit.configure("Environment=RELFS_OPTIONS=--no-bind")
    unit.systemctl("start")
    mount = unit.mount_id()
    reading = host.command("python3", "-c", _READER, unit.app / "current/index.html")
    with subprocess.Popen(reading, stdin=-1, stdout=-1, text=True, env=ENVIRONMENT) as reader:
        assert reader.stdin is not None
        assert reader.stdout is not None
        assert reader.stdout.readline() == "begun\n"
        before = unit.processes()
        unit.systemctl("restart")
        assert not before & unit.processes()
        main = unit.shows("MainPID")
        unit.kill("KILL", "main")
        wait_for(lambda: unit.shows("MainPID") not in (main, "0"), "there is another supervisor, and systemd knows it")
        assert host.ok("ps", "-o", "ppid=", unit.shows("MainPID")).strip() == "1", "it will know how it ends"
        before = unit.processes()
        unit.kill("KILL", "all")
        wait_for(lambda: unit.shows("NRestarts") == "1" and unit.shows("SubState") == "running", "it is started again")
        assert not before & unit.processes()
        unit.systemctl("restart")
        out, _ = reader.communicate("enough\n")
    reads, failures = map(int, out.splitlines()[-1].split())
    assert failures == 0, out
    assert reads > 0
    assert unit.mount_id() == mount
    assert unit.shows("Result") == "success"


def test_a_restart_keeps_open_files_that_have_no_name(host: Room, unit: Unit) -> None:
    unit.systemctl("start")
    program = (
        "import os, sys\n"
        "file = open(sys.argv[1], 'w+')\n"
        "file.write('before'); file.flush(); os.unlink(sys.argv[1])\n"
        "print('ready', flush=True); sys.stdin.readline()\n"
        "file.write(' and after'); file.flush(); file.seek(0); print(file.read())\n"
    )
    writing = host.command("python3", "-c", program, unit.app / "written")
    with subprocess.Popen(writing, stdin=-1, stdout=-1, text=True, env=ENVIRONMENT) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
        unit.systemctl("restart")
        out, _ = writer.communicate("go on\n")
    assert out == "before and after\n"


def test_killing_all_keeps_open_files_that_have_a_name(host: Room, unit: Unit) -> None:
    """Their descriptors are lost, and they are opened again, by the way that leads there through relfs."""
    unit.configure("Environment=RELFS_OPTIONS=--no-bind")
    unit.systemctl("start")
    program = (
        "import sys\nfile = open(sys.argv[1])\nprint('ready', flush=True); sys.stdin.readline()\nprint(file.read())\n"
    )
    reading = host.command("python3", "-c", program, unit.app / "current/index.html")
    with subprocess.Popen(reading, stdin=-1, stdout=-1, text=True, env=ENVIRONMENT) as reader:
        assert reader.stdout is not None
        assert reader.stdout.readline() == "ready\n"
        unit.kill("KILL", "all")
        out, _ = reader.communicate("go on\n")
    assert out == "40\n"


def test_a_restart_with_other_options_mounts_anew(host: Room, unit: Unit) -> None:
    unit.systemctl("start")
    unit.configure("Environment=RELFS_OPTIONS=-o\\x20noatime")
    unit.systemctl("restart")
    assert "noatime" in host.ok("findmnt", "--noheadings", "--output", "OPTIONS", "--mountpoint", unit.app)
    assert host.ok("cat", unit.app / "current/index.html") == "40"


def test_a_restart_after_an_unmount_mounts_anew(unit: Unit) -> None:
    unit.configure("ExecStopPost=/bin/umount -i -l ${RELFS_PATH}")
    unit.systemctl("start")
    unit.systemctl("restart")
    assert "the mount that was kept is not taken over: it was unmounted" in unit.log.read_text()
    assert unit.host.mounted(unit.app)


def test_failing_for_good_uncovers_the_real_link(host: Room, unit: Unit) -> None:
    unit.configure("StartLimitBurst=1", section="Unit")
    unit.systemctl("start")
    unit.kill("KILL", "all")
    wait_for(lambda: unit.shows("ActiveState") == "failed", "systemd gives up")
    wait_for(lambda: not host.mounted(unit.app), "the guards detach the mount")
    assert host.ok("cat", unit.app / "current/index.html") == "40"


def test_watchdog_replaces_what_is_stopped_as_a_whole(host: Room, unit: Unit) -> None:
    unit.configure("WatchdogSec=2s")
    unit.systemctl("start")
    mount = unit.mount_id()
    unit.kill("STOP", "all")
    wait_for(lambda: unit.shows("NRestarts") != "0" and unit.shows("SubState") == "running", "systemd starts it again")
    assert unit.mount_id() == mount
    assert host.ok("cat", unit.app / "current/index.html") == "40"


def test_unmounting_by_hand_ends_the_service(host: Room, unit: Unit) -> None:
    unit.systemctl("start")
    host.ok("relfsctl", "-C", unit.app, "unmount")
    wait_for(lambda: unit.shows("ActiveState") == "inactive", "the service ends")
    assert unit.shows("Result") == "success"
    assert not host.mounted(unit.app)


def test_reload_is_no_restart(unit: Unit) -> None:
    unit.systemctl("start")
    mount, main, before = unit.mount_id(), unit.shows("MainPID"), unit.processes()
    unit.systemctl("reload")
    assert unit.mount_id() == mount
    wait_for(lambda: before & unit.processes() <= {int(main)}, "all processes but the supervisor's are new")
    unit.systemctl("restart")  # the supervisor is still becoming the new one, perhaps
    assert unit.mount_id() == mount


# ---- what it may do


def test_restrictions_hold_and_forbid_nothing_that_is_needed(host: Room, unit: Unit) -> None:
    (unit.app / ".relfs").mkdir(exist_ok=True)
    (unit.app / ".relfs/config.toml").write_text("seal = true\n")
    hooks = unit.app / ".relfs/hooks"
    hooks.mkdir()
    (hooks / "pre-switch").write_text(
        "#!/usr/bin/python3\nimport socket\nsocket.socket(socket.AF_INET).close()\nopen('hooked', 'w').close()\n"
    )
    (hooks / "pre-switch").chmod(0o755)
    unit.systemctl("start")
    host.ok("relfsctl", "-C", unit.app, "switch", "41")
    assert (unit.app / "hooked").exists()
    assert host.run("touch", unit.app / "releases/41/new").returncode == 1, "the live release is sealed"
    top = unit.app / "top"
    for words in (
        ("touch", top),
        ("chown", "www-data:www-data", top),
        ("sh", "-c", f"cd '{unit.app}' && exec {_AS_WWW_DATA} sh -c 'echo theirs >top'"),
        ("setcap", "cap_net_bind_service=ep", top),
        ("setfattr", "-n", "trusted.x", "-v", "1", top),
        ("mkfifo", f"{top}.fifo"),
        ("mknod", f"{top}.null", "c", "1", "3"),
        ("chmod", "2775", unit.app),
    ):
        host.ok(*words)
    status = host.ok("cat", f"/proc/{unit.shows('MainPID')}/status")
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    assert fields["Seccomp"] == "2"
    sys_boot, sys_module, sys_time, sys_rawio = (1 << number for number in (22, 16, 25, 17))
    assert not int(fields["CapBnd"], 16) & (sys_boot | sys_module | sys_time | sys_rawio)


def test_a_fstab_line_is_a_unit_that_comes_before_the_web_server(host: Room, app: Path) -> None:
    host.put("/etc/fstab", f"{app} {app} relfs defaults,nofail,x-systemd.before=nginx.service 0 0\n")
    host.ok("systemctl", "daemon-reload")
    name = host.ok("systemd-escape", "--path", "--suffix=mount", app).strip()
    assert "nginx.service" in host.ok("systemctl", "show", "--value", "--property=Before", name).split()
    host.ok("systemctl", "start", name)
    assert host.mounted(app)
    host.ok("systemctl", "stop", name)
    assert not host.mounted(app)
    host.put("/etc/fstab", "")
    host.ok("systemctl", "daemon-reload")


# ---- the installer


def test_installer_enables_and_uninstalls(host: Room, unit: Unit) -> None:
    host.ok(INSTALL, "--init", "systemd", "--bin", "/usr/local/bin", unit.app)
    assert host.mounted(unit.app)
    assert host.ok("systemctl", "is-enabled", unit.name) == "enabled\n"
    host.ok(INSTALL, "--init", "systemd", "--uninstall")
    assert not host.mounted(unit.app)
    left = host.ok("sh", "-c", "find /etc/systemd/system /sbin/ -name '*relfs*' ! -name '*.d'")
    assert left == ""
    host.ok(INSTALL, "--init", "systemd", "--bin", "/usr/local/bin")
