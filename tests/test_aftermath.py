"""What follows a switch: post-switch is told, `verify` and the web site are asked, what does not work is taken back;
with it, what all hooks have in common besides pre-switch (test_hooks.py): commands, output, and who may guard what."""

from __future__ import annotations

import json
import os
import signal
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from clients import clean_environment, ctl, ctl_command, next_line, running
from crew import kill
from mounting import Mount, Mounts, wait_for
from sandbox import ACTOR, add_release, be_patient, journal_of, link_of
from test_checks import SWAPS, configure, swap

from relfs.config import Config, load_config
from relfs.errors import EXIT_REFUSED, RefusedError, RelfsError
from relfs.hooks import PRE_ADD, HookError, Hooks
from relfs.layout import DeployPath
from relfs.pointer import Pointer
from relfs.releases.asking import ask_before
from relfs.releases.registry import Registry
from relfs.verify import Verify
from relfs.website import ask_site

USER = 1000


def write_hook(app: Path, name: str, body: str) -> None:
    hook = app / ".relfs/hooks" / name
    hook.parent.mkdir(parents=True, exist_ok=True)
    hook.write_text(f"#!/bin/sh\n{body}\n")
    hook.chmod(0o755)


@pytest.fixture(params=["mounted", "not mounted"])
def anywhere(request: pytest.FixtureRequest, app: Path) -> Path:
    if request.param == "mounted":
        mount = request.getfixturevalue("mounts").start(app)
        mount.expect_log("is current; but .*post-switch")
    return app


# ---- post-switch


def test_it_is_told_and_sees_what_everybody_sees(anywhere: Path) -> None:
    write_hook(anywhere, "post-switch", 'echo $RELFS_HOOK $RELFS_PREVIOUS; cat "$RELFS_DEPLOY_PATH/current/index.html"')
    done = ctl("-C", anywhere, "switch", "41")
    assert (done.status, done.err.split()) == (0, ["post-switch", "40", "41"])
    told = json.loads(ctl("-C", anywhere, "--json", "log", "-n", "1").out)
    assert (told["action"], told["release"], told["outcome"]) == ("post-switch", "41", "done")
    assert told["output"].split() == ["post-switch", "40", "41"]
    assert ctl("-C", anywhere, "rollback").err.split() == ["post-switch", "41", "40"]


def test_that_it_fails_changes_nothing(anywhere: Path) -> None:
    write_hook(anywhere, "post-switch", "echo no php here; exit 3")
    done = ctl("-C", anywhere, "switch", "41")
    assert (done.status, link_of(anywhere)) == (0, "releases/41")
    assert done.err.count("41 is current; but ") == 1
    told = json.loads(ctl("-C", anywhere, "--json", "log", "-n", "1").out)
    assert (told["outcome"].startswith("failed: "), told["output"]) == (True, "no php here")


def test_what_was_refused_is_not_told(app: Path) -> None:
    write_hook(app, "pre-switch", "exit 1")
    write_hook(app, "post-switch", "echo told")
    assert "told" not in ctl("-C", app, "switch", "41").err


def test_tools_have_it_run_too(mount: Mount) -> None:
    write_hook(mount.app, "post-switch", "cat $RELFS_DEPLOY_PATH/current/index.html")
    for number, tool in enumerate(list(SWAPS)[:3]):
        release = ("41", "42")[number % 2]
        assert swap(mount.app, tool, f"releases/{release}").status == 0
        wait_for(lambda: mount.journal()[-1]["action"] == "post-switch", f"it is run after {tool}")
        assert (mount.journal()[-1]["release"], mount.journal()[-1]["output"]) == (release, release)


# ---- verify


def test_what_works_stays(anywhere: Path) -> None:
    write_hook(anywhere, "verify", 'test "$(cat $RELFS_DEPLOY_PATH/current/index.html)" = 41 && echo fine')
    done = ctl("-C", anywhere, "switch", "41")
    assert (done.status, done.err, link_of(anywhere)) == (0, "fine\n", "releases/41")
    told = json.loads(ctl("-C", anywhere, "--json", "log", "-n", "1").out)
    assert (told["action"], told["outcome"], told["output"]) == ("verify", "done", "fine")


def test_what_does_not_is_taken_back(anywhere: Path) -> None:
    write_hook(anywhere, "verify", "echo out of order; exit 1")
    done = ctl("-C", anywhere, "switch", "41")
    assert done.status == EXIT_REFUSED
    assert "41: not verified: " in done.err
    assert done.err.endswith("exit status 1: out of order; 40 is current again\n")
    assert (anywhere / "current/index.html").read_text() == "40"
    told = json.loads(ctl("-C", anywhere, "--json", "log", "-n", "1").out)
    assert (told["action"], told["release"], told["from"]) == ("rollback", "40", "41")
    assert "out of order" in told["why"]
    assert ctl("-C", anywhere, "--json", "releases").json[1]["states"] == ["bad"]


def test_one_that_cannot_be_run_has_not_said_yes(app: Path) -> None:
    write_hook(app, "verify", "exit 0")
    (app / ".relfs/hooks/verify").write_text("#!/no/such/interpreter\n")
    assert ctl("-C", app, "switch", "41").status == EXIT_REFUSED
    assert link_of(app) == "releases/40"


def test_with_nowhere_to_go_it_stays(app: Path) -> None:
    (app / "current").unlink()
    write_hook(app, "verify", "exit 1")
    done = ctl("-C", app, "switch", "41")
    assert (done.status, link_of(app)) == (EXIT_REFUSED, "releases/41")
    assert "it is still current: no earlier release to go back to" in done.err


def test_going_back_is_not_verified(app: Path) -> None:
    assert ctl("-C", app, "switch", "41").status == 0
    write_hook(app, "verify", "exit 1")
    assert ctl("-C", app, "rollback").status == 0


def test_what_is_current_by_then_is_left_alone(app: Path) -> None:
    """Somebody else has switched while it was being verified."""
    write_hook(app, "verify", "rm current && ln -s releases/42 current; exit 1")
    done = ctl("-C", app, "switch", "41")
    assert (done.status, link_of(app)) == (EXIT_REFUSED, "releases/42")
    assert "something else has become current since" in done.err


def test_with_a_confirmation_outstanding(mount: Mount) -> None:
    write_hook(mount.app, "verify", "exit 1")
    assert ctl("-C", mount.app, "switch", "41", "--confirm", "600").status == EXIT_REFUSED
    assert ctl("-C", mount.app, "--json", "status").json["confirm"] is None


def test_it_goes_on_when_relfsctl_is_killed(app: Path, mounts: Mounts) -> None:
    mount = mounts.start(be_patient(app))
    write_hook(mount.app, "verify", "mkfifo .relfs/go; read it < .relfs/go; exit 1")
    with running("-C", mount.app, "switch", "41") as process:
        wait_for((mount.app / ".relfs/go").is_fifo, "it is being verified")
        process.send_signal(signal.SIGKILL)
        process.wait()
    (mount.app / ".relfs/go").write_text("on\n")
    wait_for(lambda: link_of(mount.app) == "releases/40", "it is taken back")


def test_it_begins_anew_when_the_worker_is_killed(app: Path, mounts: Mounts) -> None:
    """relfsctl asks the next one, which does not switch again."""
    mount = mounts.start(be_patient(app))
    # What is written behind the mount is seen a second late there: an empty file might be.
    note = "echo $$ > note; mv note first"
    write_hook(mount.app, "verify", f"echo asking; test -e first && exit 1; {note}; exec sleep 1000")
    with running("-C", mount.app, "switch", "41") as process:
        wait_for((mount.app / "first").exists, "it is being verified")
        kill(mount, "worker")
        assert process.wait(60) == EXIT_REFUSED
    os.kill(int((mount.app / "first").read_text()), signal.SIGKILL)  # whose worker is dead, nobody ends
    assert [event["action"] for event in mount.journal()][1:] == ["switch", "verify", "rollback"]
    assert mount.status()["current"] == "40"


def test_without_a_mount_a_killed_relfsctl_leaves_the_release(app: Path, deploy: DeployPath) -> None:
    write_hook(app, "verify", "mkfifo .relfs/go; read it < .relfs/go; exit 1")
    with running("-C", app, "switch", "41") as process:
        wait_for((app / ".relfs/go").is_fifo, "it is being verified")
        process.send_signal(signal.SIGKILL)
        process.wait()
    (app / ".relfs/go").write_text("on\n")
    assert ctl("-C", app, "--json", "status").json["current"] == "41"
    assert [event.action for event in journal_of(deploy)] == ["adopt", "switch"]


# ---- the web site


class _Site(BaseHTTPRequestHandler):
    """Answers as the test says: a status for each request, in turn."""

    statuses: list[int]
    hosts: list[str | None]

    def do_GET(self) -> None:
        self.hosts.append(self.headers["Host"])
        self.send_response(self.statuses.pop(0) if len(self.statuses) > 1 else self.statuses[0])
        if self.path == "/slow":
            self._drip()
        self.send_header("Location", "/elsewhere")
        self.end_headers()
        self.wfile.write(b"all is well")

    def _drip(self) -> None:
        """Something now and then, and never an end."""
        self.flush_headers()
        while not threading.Event().wait(0.02):
            self.wfile.write(b"X-Slow: yes\r\n")

    def handle(self) -> None:
        with suppress(OSError):  # who asked has gone
            super().handle()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass


@contextmanager
def site(*statuses: int, context: ssl.SSLContext | None = None) -> Iterator[tuple[str, type[_Site]]]:
    """A web site; its URL, and what it was asked for. With a `context`, it speaks TLS."""
    handler = type("Site", (_Site,), {"statuses": list(statuses), "hosts": []})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        server.handle_error = lambda *_: None  # type: ignore[method-assign] # who asked did not like the certificate
        if context is not None:
            server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield f"http{'s' if context else ''}://127.0.0.1:{server.server_address[1]}", handler
        server.shutdown()


def test_a_site_that_works() -> None:
    with site(200) as (url, handler):
        ask_site(Verify(f"{url}/path?query", contains="is well", host="www.example.org"), pytest.fail)
    assert handler.hosts == ["www.example.org"]


def test_one_that_needs_a_moment() -> None:
    tries: list[str] = []
    with site(502, 500, 200) as (url, _):
        ask_site(Verify(url, pause=0.01), tries.append)
    assert [line.partition(": ")[2] for line in tries] == [
        "status 502 (to /elsewhere), not 200 (try 1 of 3)", "status 500 (to /elsewhere), not 200 (try 2 of 3)",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("status", "wanted", "words"),
    [
        (500, Verify(), "status 500"),
        (301, Verify(), r"status 301 \(to /elsewhere\), not 200"),
        (200, Verify(status=404), "status 200"),
        (200, Verify(contains="something else"), "does not contain 'something else'"),
        (200, Verify(url="/slow", timeout=0.2), "no answer within 0.2 s"),
    ],
)
def test_a_site_that_does_not(status: int, wanted: Verify, words: str) -> None:
    with site(status) as (url, handler):
        with pytest.raises(RefusedError, match=words):
            ask_site(replace(wanted, url=url + (wanted.url or ""), tries=2, pause=0.01), lambda _: None)
        wait_for(lambda: len(handler.hosts) == 2, "the site has heard of both, be it too late")


def test_a_certificate_is_that_of_the_name_that_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server is asked by its address, as one behind a load balancer has to be."""
    context = _with_certificate(tmp_path, "www.example.org")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "certificate"))
    with site(200, context=context) as (url, handler):
        ask_site(Verify(url, host="www.example.org:8443", tries=1), pytest.fail)
        for host in (None, "www.example.com"):
            with pytest.raises(RefusedError, match=r"https://.*certificate verify failed: .*mismatch"):
                ask_site(Verify(url, host=host, tries=1), lambda _: None)
    assert handler.hosts == ["www.example.org:8443"]


def _with_certificate(place: Path, name: str) -> ssl.SSLContext:
    subprocess.run(
        [
            "openssl", "req", "-x509", "-nodes", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
            "-subj", "/CN=x", "-addext", f"subjectAltName=DNS:{name}",
            "-keyout", place / "key", "-out", place / "certificate",
        ],
        check=True, capture_output=True,
    )  # fmt: skip
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(place / "certificate", place / "key")
    return context


def test_a_name_that_no_host_can_have_is_no_answer() -> None:
    with pytest.raises(RefusedError, match="label"):
        ask_site(Verify(f"http://{'a' * 64}.example.org/", tries=1), lambda _: None)


def test_a_redirection_may_be_what_is_wanted() -> None:
    with site(301) as (url, _):
        ask_site(Verify(url, status=301), pytest.fail)


def test_nobody_listens() -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # so that nobody else gets that port meanwhile
        with pytest.raises(RefusedError, match="Connection refused"):
            ask_site(Verify(f"http://127.0.0.1:{nobody.getsockname()[1]}", tries=1), lambda _: None)


def test_a_site_is_asked_for_each_switch(app: Path, mounts: Mounts) -> None:
    with site(200, 200, 500) as (url, _):
        configure(app, f'[verify]\nurl = "{url}/"\ntries = 2\npause = 0.01\n')
        mounts.start(app)
        assert ctl("-C", app, "switch", "41").status == 0
        assert ctl("-C", app, "switch", "42").status == 0
        done = ctl("-C", app, "switch", "40")
    assert done.status == EXIT_REFUSED
    why = f"40: not verified: {url}/: status 500 (to /elsewhere), not 200; 42 is current again"
    assert done.err.splitlines()[-1].endswith(why)
    assert "try 2 of 2" in done.err


# ---- commands, and what is printed


def test_a_command_is_a_hook(anywhere: Path) -> None:
    command = "echo $RELFS_RELEASE $0 $(id -u)"
    configure(anywhere, f"[hooks]\npre_switch = '{command}'\npost_switch = ['echo', '$0', 'as it is']\n")
    if ctl("-C", anywhere, "--json", "status").json["mounted"]:  # it is read when a mount begins
        assert ctl("-C", anywhere, "unmount").status == 0
        wait_for(lambda: not ctl("-C", anywhere, "--json", "status").json["mounted"], "it is unmounted")
    assert ctl("-C", anywhere, "switch", "41").err.splitlines() == ["41 /bin/sh 0", "$0 as it is"]


def test_the_program_before_the_command(app: Path) -> None:
    write_hook(app, "pre-switch", "echo first")
    configure(app, "[hooks]\npre_switch = 'echo second; exit 1'\n")
    done = ctl("-C", app, "switch", "41")
    assert done.err.splitlines()[:2] == ["first", "second"]
    assert "config.toml: hooks.pre_switch: exit status 1: second" in done.err


def test_commands_survive_the_way_to_a_worker(app: Path, mounts: Mounts) -> None:
    configure(app, "[hooks]\npre_switch = ['sh', '-c', 'echo $0 $RELFS_RELEASE', 'a b']\n")
    mount = mounts.start(app)
    kill(mount, "worker")
    assert ctl("-C", app, "switch", "41").err == "a b 41\n"


@pytest.mark.parametrize("spoil", ["chmod g+w {}/config.toml", "chmod o+w {}", "chown 1001 {}"])
def test_commands_that_others_may_have_written(app: Path, spoil: str) -> None:
    configure(app, "[hooks]\npre_switch = 'true'\n")
    assert os.system(spoil.format(app / ".relfs")) == 0
    done = ctl("-C", app, "switch", "41")
    assert (done.status, link_of(app)) == (1, "releases/40")
    assert "config.toml: has commands in [hooks], and" in done.err


def test_a_command_runs_as_the_owner_of_the_configuration(open_place: Path) -> None:
    app = open_place / "app"
    for name in ("40", "41"):
        add_release(app, name)
    (app / "current").symlink_to("releases/40")
    configure(app, "[hooks]\npre_switch = 'id -u; id -g'\n")
    os.chown(app / ".relfs/config.toml", USER, USER)
    assert ctl("-C", app, "switch", "41").err.split()[0] == str(USER)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[hooks]\npre_add = 1", "hooks.pre_add must be a line for the shell"),
        ("[hooks]\npre_add = []", "hooks.pre_add must be"),
        ("[hooks]\npre_add = ' '", "hooks.pre_add must be"),
        ("[hooks]\npre_add = ['a', 1]", "hooks.pre_add must be"),
        ("[hooks]\nsuffix = 'a'", "hooks.suffix is not known"),
        ("[verify]\nstatus = 200", "verify.url is missing"),
        ("[verify]\nurl = 'ftp://a/'", "verify.url must be http://"),
        ("[verify]\nurl = 'http://'", "verify.url must be http://"),
        ("[verify]\nurl = 'http://a:b/'", "verify.url must be http://"),
        ("[verify]\nurl = 'http://a/ b'", "verify.url must be http://"),
        ("[verify]\nurl = 'http://a/'\nstatus = 99", "verify.status must be a whole number from 100 to 599"),
        ("[verify]\nurl = 'http://a/'\ntries = 0", "verify.tries must be"),
        ("[verify]\nurl = 'http://a/'\npause = 0", "verify.pause must be"),
        ("[verify]\nurl = 'http://a/'\nhost = \"a\\nb\"", "verify.host must be a line of text"),
        ("[verify]\nurl = 'http://a/'\nhost = 'b\N{SNOWMAN}'", "verify.host must be HOST[:PORT]"),
        ("[verify]\nurl = 'http://a/'\nhost = 'b/c'", "verify.host must be HOST[:PORT]"),
        ("[verify]\nurl = 'http://a/'\nhost = '['", "verify.host must be HOST[:PORT]"),
        ("[verify]\nurl = 'http://me:secret@a/'", "verify.url must be http://"),
        ("prune = 5", "[prune] is not known as a value: it is a section"),
        ("[[prune]]\nkeep = 5", "[prune] is not known as a value"),
    ],
)
def test_what_cannot_be_meant(app: Path, deploy: DeployPath, text: str, words: str) -> None:
    configure(app, text)
    assert deploy.state_fd is not None
    with pytest.raises(RelfsError, match=words.replace("[", r"\[")):
        load_config(deploy.state_fd, "/shown")


def test_that_nobody_reads_its_output_changes_nothing(anywhere: Path) -> None:
    """The terminal was closed, or the reader of the pipe has seen enough; the hook has not failed by that."""
    write_hook(anywhere, "pre-switch", "echo asked")
    write_hook(anywhere, "verify", "echo works")
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        ctl_command("-C", anywhere, "switch", "41"),
        stderr=writing, stdout=subprocess.PIPE, env=clean_environment(), cwd="/", check=False,
    )  # fmt: skip
    os.close(writing)
    assert (done.returncode, done.stdout) == (0, b"41 is current (was 40)\n")
    assert link_of(anywhere) == "releases/41"


def test_output_is_shown_while_it_runs(anywhere: Path) -> None:
    write_hook(anywhere, "pre-switch", "mkfifo .relfs/go; echo waiting; read it < .relfs/go; echo went $it")
    with running("-C", anywhere, "switch", "41") as process:
        assert process.stderr is not None
        assert process.stderr.readline() == "waiting\n"
        assert link_of(anywhere) == "releases/40"
        (anywhere / ".relfs/go").write_text("on\n")
        assert process.stderr.readline() == "went on\n"
        assert next_line(process).startswith("41 is current")


def test_the_journal_keeps_the_last_of_it(app: Path, deploy: DeployPath) -> None:
    write_hook(app, "pre-switch", "seq 100000; printf '\\303\\244\\377\\033'")
    assert ctl("-C", app, "switch", "41").status == 0
    output = journal_of(deploy)[-1].output
    assert output is not None
    assert output.split("\n")[0:18] == [str(number) for number in range(99982, 100000)]
    assert len(output) < 4100


def test_a_refusal_is_journalled_with_what_was_said(app: Path) -> None:
    write_hook(app, "pre-switch", "echo one; echo two; exit 1")
    assert ctl("-C", app, "switch", "41").status == EXIT_REFUSED
    told = json.loads(ctl("-C", app, "--json", "log", "-n", "1").out)
    assert (told["action"], told["release"], told["output"]) == ("switch", "41", "one\ntwo")
    assert told["outcome"].startswith("refused: ")


def test_a_client_that_does_not_read_keeps_nobody_waiting(mount: Mount) -> None:
    write_hook(mount.app, "pre-switch", "yes $(printf %3000d 0) | head -n 500")
    with running("-C", mount.app, "switch", "41") as process:
        process.send_signal(signal.SIGSTOP)
        wait_for(lambda: link_of(mount.app) == "releases/41" or _go_on(process.pid), "it is switched")


def _go_on(pid: int) -> bool:
    """Whether it was stopped before it had asked at all; then it may ask."""
    os.kill(pid, signal.SIGCONT)
    os.kill(pid, signal.SIGSTOP)
    return False


# ---- hooks of what relfsctl does by itself


def test_it_may_guard_what_is_added(app: Path, deploy: DeployPath) -> None:
    shown: list[str] = []
    asked = "echo $RELFS_RELEASE at $RELFS_RELEASE_PATH, now $RELFS_PREVIOUS"
    write_hook(app, PRE_ADD, f"{asked}; test $RELFS_RELEASE = 43")
    ask_before(PRE_ADD, deploy, Config(), "43", path="/staging", show=shown.append)
    with pytest.raises(HookError, match="pre-add: exit status 1"):
        ask_before(PRE_ADD, deploy, Config(), "44", path="/staging")
    assert shown == ["43 at /staging, now 40"]
    allowed, refused = journal_of(deploy)
    assert (allowed.action, allowed.release, allowed.outcome, allowed.output) == (PRE_ADD, "43", "done", shown[0])
    assert (refused.release, refused.outcome.startswith("refused: ")) == ("44", True)
    Pointer(deploy).check_invariants()


def test_without_one_nothing_is_asked(deploy: DeployPath) -> None:
    ask_before(PRE_ADD, deploy, Config(hooks=Hooks(commands=(("verify", ("false",)),))), "43")
    assert journal_of(deploy) == []


# ---- what rollback promises


def test_never_to_one_that_was_never_current(deploy: DeployPath, app: Path) -> None:
    """The known fault: going back by the order of directories, onto one whose deployment was broken off."""
    pointer = Pointer(deploy)
    pointer.switch("41", ACTOR, "first")
    for name in ("43", "44"):
        add_release(app, name)
    (app / "releases/43/DEPLOY_UNFINISHED").touch()
    add_release(app, "45")
    pointer.switch("45", ACTOR, "second")
    assert [pointer.rollback(None, ACTOR, each).release for each in ("third", "fourth")] == ["41", "40"]
    with pytest.raises(RefusedError, match="no earlier release"):
        pointer.rollback(None, ACTOR, "fifth")


@pytest.mark.parametrize("state", ["given-up", "removed"])
def test_never_to_what_has_only_the_name(deploy: DeployPath, state: str) -> None:
    """41 was current, and was removed; what is there now is what some tool began to make under its name."""
    registry = Registry(deploy.state_fd)
    record = registry.reserve(lambda _: "41", source="somewhere", user="ada")
    pointer = Pointer(deploy)
    pointer.switch("41", ACTOR, "first")
    pointer.switch("42", ACTOR, "second")
    registry.note(record, state)  # type: ignore[arg-type]
    assert pointer.rollback(None, ACTOR, "third").release == "40"


def test_never_to_what_did_not_verify(app: Path) -> None:
    write_hook(app, "verify", "test $RELFS_RELEASE != 41")
    assert ctl("-C", app, "switch", "41").status == EXIT_REFUSED
    assert ctl("-C", app, "switch", "42").status == 0
    assert ctl("-C", app, "rollback").out.startswith("40 is current again")
    assert ctl("-C", app, "rollback").status == EXIT_REFUSED
