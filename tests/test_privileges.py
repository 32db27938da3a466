"""What the worker has given up: by the kernel's own tables, by what the kernel says of a process that has done it, and
on a mount. Whatever gives something up is a process of its own, for nobody gets it back.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import pwd
import re
import signal
import struct
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from mounting import Mount, Mounts, environment, wait_for

from relfs import libc
from relfs.daemon import privileges
from relfs.daemon.privileges import can_filter

DAEMON = pwd.getpwnam("daemon").pw_uid

_TABLES = {
    "x86_64": ("/usr/include/x86_64-linux-gnu/asm/unistd_64.h", 0, 0xC000003E),
    "aarch64": ("/usr/include/asm-generic/unistd.h", 1, 0xC00000B7),
}
"""Where linux-libc-dev, which a compiler needs, has the numbers of a machine's calls; and its AUDIT_ARCH_ number."""

_DROP = "import json; from relfs.daemon import privileges; from relfs import libc; given = privileges.drop()\n"


def run(program: str, *arguments: str, user: int | None = None) -> Any:
    """What a Python process that runs `program` prints, as JSON."""
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        capture_output=True, text=True, env=environment(), cwd="/", check=False, timeout=60,
        user=user, group=user, extra_groups=[] if user is not None else None,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def status_of(pid: int | str) -> dict[str, str]:
    """/proc/PID/status."""
    return parsed(Path(f"/proc/{pid}/status").read_text())


def statuses_of_threads(pid: int) -> list[dict[str, str]]:
    """Of each thread that has not ended meanwhile: one that has nothing to do for the event loop ends by itself."""
    found = []
    for tid in os.listdir(f"/proc/{pid}/task"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # before it is opened, and before it is read
            found.append(status_of(f"{pid}/task/{tid}"))
    return found


def parsed(status: str) -> dict[str, str]:
    pairs = (line.partition(":") for line in status.splitlines())
    return {name: value.strip() for name, _, value in pairs}


def status_after(program: str, *, user: int | None = None) -> dict[str, str]:
    """The same of a process that has given up what it can, and run `program`."""
    return parsed(run(f"{_DROP}{program}print(json.dumps(open('/proc/self/status').read()))", user=user))


# ---- the list, and the program that is made of it


@pytest.mark.parametrize("machine", _TABLES)
def test_the_numbers_are_the_kernels(machine: str) -> None:
    path, column, _ = _TABLES[machine]
    found = dict(re.findall(r"^#define __NR_(\w+)\s+(\d+)$", Path(path).read_text(), re.MULTILINE))
    ours = {name: numbers[column] for name, numbers in privileges._REFUSED.items()}
    assert ours == {name: int(found[name]) if name in found else None for name in ours}


def decision(program: bytes, audit: int, number: int, argument: int = 0) -> int:
    """What a kernel would make of the program: the few instructions that it may have, as linux/filter.h has them."""
    data = struct.pack("=iIQQ", number, audit, 0, argument)
    code = list(struct.iter_unpack("=HBBI", program))
    accumulator, position = 0, 0
    while True:
        operation, if_true, if_false, operand = code[position]
        position += 1
        match operation:
            case 0x20:
                accumulator = int.from_bytes(data[operand : operand + 4], "little")
            case 0x15:
                position += if_true if accumulator == operand else if_false
            case 0x35:
                position += if_true if accumulator >= operand else if_false
            case 0x06:
                return int(operand)
            case other:
                raise AssertionError(f"not an instruction of seccomp: {other:#x}")


@pytest.mark.parametrize("machine", _TABLES)
def test_the_program_refuses_what_is_on_the_list_and_nothing_else(
    machine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, column, audit = _TABLES[machine]
    uname = os.uname()
    monkeypatch.setattr(os, "uname", lambda: os.uname_result((*uname[:4], machine)))
    made = privileges._machine()
    assert made is not None and made.audit == audit
    program = privileges._program(made)
    allow, refuse = 0x7FFF0000, 0x00050000 | errno.EPERM
    refused = {numbers[column] for numbers in privileges._REFUSED.values()} - {None}
    for number in range(600):
        first = decision(program, audit, number, number + 1000)
        assert first == (refuse if number in refused else allow), number
    foreign = next(other for name, (_, _, other) in _TABLES.items() if name != machine)
    for strange in (foreign, 0x40000003):
        assert decision(program, strange, made.prctl) == refuse
    assert decision(program, audit, 0x40000000 | 101) == refuse, "x86_64's 32-bit calls"
    assert decision(program, audit, made.prctl, privileges._OURS) == 0x00050000 | errno.EALREADY
    assert decision(program, audit, made.prctl, 4) == allow


def test_machines_whose_numbers_are_not_known_have_no_filter(monkeypatch: pytest.MonkeyPatch) -> None:
    uname = os.uname()
    for machine in ("riscv64", "s390x", "i686", "armv7l"):
        monkeypatch.setattr(os, "uname", lambda machine=machine: os.uname_result((*uname[:4], machine)))
        assert not can_filter()
        privileges._add_filter()
    assert not privileges.is_filtered()


# ---- a process that has done it


def test_every_set_is_lowered_for_good() -> None:
    status = status_after("")
    kept = sum(1 << number for number in privileges._KEPT.values())
    had = int(status_of("self")["CapBnd"], 16)
    for name in ("CapBnd", "CapPrm", "CapEff"):
        assert int(status[name], 16) == had & kept, name
    for name in ("CapInh", "CapAmb"):
        assert int(status[name], 16) == 0
    assert status["Seccomp"] == "2"
    assert status["NoNewPrivs"] == "0", "or sudo in a hook would not work"


def test_a_program_that_it_executes_has_no_more() -> None:
    program = _DROP + "import subprocess; print(json.dumps(subprocess.run(['cat', '/proc/self/status'], text=True,\n"
    status = parsed(run(program + "capture_output=True).stdout))"))
    kept = sum(1 << number for number in privileges._KEPT.values())
    assert int(status["CapEff"], 16) & ~kept == 0
    assert status["Seccomp"] == "2"


def test_doing_it_again_changes_nothing() -> None:
    """Nor does a worker that descends from one put a second filter before each of its calls."""
    again = "import os; pid = os.fork() or [privileges.drop(), os._exit(0)]; os.waitpid(pid, 0)\n"
    status = status_after(again + "assert privileges.drop() == given\n")
    assert status["Seccomp_filters"] == "1"


def test_what_is_left_is_told() -> None:
    told = run(_DROP + "print(json.dumps([given.capabilities, given.seccomp, given.refused]))")
    effective = int(status_after("")["CapEff"], 16)
    assert told[0] == [name for name, number in privileges._KEPT.items() if effective >> number & 1]
    assert told[1:] == [True, len(privileges._REFUSED)]


def test_every_call_on_the_list_is_refused() -> None:
    """With arguments that none of them can make sense of."""
    program = (
        "import ctypes, errno, sys; libc_ = ctypes.CDLL(None, use_errno=True); bad = ctypes.c_long(-1)\n"
        "def fails(number): libc_.syscall(ctypes.c_long(number), *[bad] * 6); return ctypes.get_errno()\n"
        "print(json.dumps([fails(int(number)) for number in sys.argv[1:]]))"
    )
    machine = privileges._machine()
    assert machine is not None
    numbers = [str(number) for number in machine.refused]
    assert set(run(_DROP + program, *numbers)) == {errno.EPERM}
    before = run(f"import json\n{program}", *numbers)
    assert len([number for number in before if number != errno.EPERM]) > len(numbers) // 2


def test_a_thread_would_keep_all() -> None:
    ended = threading.Event()
    other = threading.Thread(target=ended.wait)
    other.start()
    try:
        with pytest.raises(AssertionError):
            privileges.drop()
    finally:
        ended.set()
        other.join()
    assert not privileges.is_filtered()


def test_a_user_has_nothing_to_give_up_and_may_still_mount() -> None:
    """no_new_privs would be the price of a filter, and take from fusermount3 what it is setuid for."""
    told = run(_DROP + "print(json.dumps([given.capabilities, given.seccomp, given.refused]))", user=DAEMON)
    assert told == [[], False, 0]
    status = status_after("", user=DAEMON)
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("0", "0")
    assert int(status["CapBnd"], 16) == int(status_of("self")["CapBnd"], 16), "fusermount3 needs CAP_SYS_ADMIN of it"


# ---- none of what is kept is kept for nothing

_USES = {
    "CAP_CHOWN": "os.chown('f', 1, 1)",
    "CAP_DAC_OVERRIDE": "os.close(os.open('theirs', os.O_RDWR))",
    "CAP_FOWNER": "os.chmod('theirs', 0o640)",
    "CAP_FSETID": "os.chown('f', 0, 4711); os.chmod('f', 0o2755); assert os.stat('f').st_mode & 0o2000",
    "CAP_KILL": "os.kill(int(sys.argv[2]), 0)",
    "CAP_SETGID": "os.setgroups([4711])",
    "CAP_SETUID": "os.setresuid(1, 0, 0)",
    "CAP_SYS_PTRACE": "os.stat(f'/proc/{sys.argv[2]}/ns/user')",
    "CAP_SYS_ADMIN": "os.close(libc.open_tree(libc.AT_FDCWD, b'.', libc.OPEN_TREE_CLONE))",
    "CAP_SYS_RESOURCE": "limits = resource.getrlimit(7); resource.setrlimit(7, (limits[0], limits[1] + 1))",
    "CAP_MKNOD": "os.mknod('n', 0o600 | 0o020000, os.makedev(1, 3))",
    "CAP_SETFCAP": "os.setxattr('f', 'security.capability', bytes.fromhex('0000000200040000' + '00' * 12))",
}

_TRY = """
import json, os, resource, sys
from relfs import libc
os.chdir(sys.argv[1])
libc.limit_capabilities(int(sys.argv[3]))
try:
    exec(sys.argv[4])
    print("true")
except (OSError, ValueError, AssertionError):
    print("false")
"""


@pytest.mark.parametrize("capability", _USES)
def test_nothing_is_kept_for_nothing(tmp_path: Path, capability: str) -> None:
    """What it is kept for works with it, where we have it at all, and not without it."""
    (tmp_path / "f").touch()
    (tmp_path / "theirs").touch()
    (tmp_path / "theirs").chmod(0)
    os.chown(tmp_path / "theirs", DAEMON, DAEMON)
    kept = sum(1 << number for number in privileges._KEPT.values())
    bit = 1 << privileges._KEPT[capability]
    had = bool((libc.capabilities_of(0) or 0) & bit)
    with subprocess.Popen(["sleep", "1000"], user=DAEMON, group=DAEMON, extra_groups=[]) as other:
        try:
            for mask, works in ((kept, had), (kept & ~bit, False)):
                told = run(_TRY, str(tmp_path), str(other.pid), str(mask), _USES[capability])
                assert told is works
        finally:
            other.kill()


# ---- on a mount


def test_a_mount_is_served_without_them(mount: Mount) -> None:
    host = mount.status()["host"]
    status = status_of(mount.status()["worker_pid"])
    assert host["seccomp"] is True
    effective = int(status["CapEff"], 16)
    assert host["capabilities"] == [name for name, number in privileges._KEPT.items() if effective >> number & 1]
    assert status["Seccomp"] == "2"
    for line in ("CapPrm", "CapEff", "CapBnd"):
        assert int(status[line], 16) == effective
    threads = statuses_of_threads(int(status["Tgid"]))
    assert {(each["CapEff"], each["Seccomp"]) for each in threads} == {(status["CapEff"], "2")}


def test_a_hook_is_bound_as_well(app: Path, mounts: Mounts) -> None:
    """It can become another user, and be killed; not look into other processes, nor load a kernel."""
    hook = app / ".relfs/hooks/pre-switch"
    hook.parent.mkdir(parents=True)
    hook.write_text(
        "#!/bin/sh\n"
        'exec >"$RELFS_DEPLOY_PATH/shared-seen"\n'
        "grep -E 'CapEff|Seccomp:|NoNewPrivs' /proc/self/status\n"
        "runuser -u daemon -- id -un\n"
        "chroot / true 2>/dev/null || echo no chroot\n"
    )
    hook.chmod(0o755)
    mount = mounts.start(app)
    done = mount.relfsctl("switch", "41")
    assert done.returncode == 0, done.stderr
    seen = (app / "shared-seen").read_text()
    worker = status_of(mount.status()["worker_pid"])
    assert f"CapEff:\t{worker['CapEff']}\n" in seen
    assert "Seccomp:\t2\n" in seen and "NoNewPrivs:\t0\n" in seen
    assert seen.endswith("daemon\nno chroot\n")


def test_doctor_tells(mount: Mount) -> None:
    done = mount.relfsctl("--json", "doctor")
    findings = {each["what"]: each for each in json.loads(done.stdout)}
    assert findings["privileges"]["state"] == "ok"
    assert "system calls" in findings["privileges"]["text"]
    assert findings["paths"]["state"] == "ok"


def test_what_a_worker_brings_back_serves_without_them(mount: Mount) -> None:
    """When the supervisor and the standby are gone at once, the worker starts the next ones, which have no more than it
    has: the filter is still one, and what they start can be taken over, switched and attached."""
    before = mount.status()
    mount.expect_log("the (supervisor|worker) .*takes its place")
    for number in (signal.SIGSTOP, signal.SIGKILL):  # before the second notices the end of the first
        for who in ("supervisor_pid", "standby_pid"):
            os.kill(before[who], number)
    wait_for(lambda: _complete(mount) and mount.status()["supervisor_pid"] != before["supervisor_pid"], "a new company")
    os.kill(mount.status()["worker_pid"], signal.SIGKILL)
    wait_for(lambda: _complete(mount) and mount.status()["worker_pid"] != before["worker_pid"], "a new worker")
    after = status_of(mount.status()["worker_pid"])
    assert (after["Seccomp"], after["Seccomp_filters"]) == ("2", "1")
    assert mount.relfsctl("switch", "41").returncode == 0
    assert (mount.app / "current/index.html").read_text() == "41"
    assert mount.status()["host"]["native"] == before["host"]["native"]


def _complete(mount: Mount) -> bool:
    """Whether all three processes are there."""
    done = mount.relfsctl("--json", "status")
    status = json.loads(done.stdout) if done.returncode == 0 else {}
    return all(status.get(who) for who in ("supervisor_pid", "worker_pid", "standby_pid"))
