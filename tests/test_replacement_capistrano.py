"""Whole deployments by Capistrano, as it is: deploy, rollback and both kinds of cleanup find out what is current by
readlink(1), and compare that with the absolute path that they wrote; and by a playbook of Ansible.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from deploying import in_shell
from mounting import Mount, Mounts, wait_for
from readers import reading


def cap(app: Path, task: str, **settings: str) -> str:
    """Run a task of Capistrano; what it did. It ends with an error where any command of it does."""
    words = " ".join(f"{name}={value}" for name, value in settings.items())
    done = in_shell(app, f'{words} cap --rakefile "$TESTS/capistrano/Capfile" here {task}')
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def releases(app: Path) -> list[str]:
    return sorted(os.listdir(app / "releases"))


def current(app: Path) -> str:
    """What readlink says, which must be the absolute path that Capistrano wrote, and lead to what it names."""
    path = os.readlink(app / "current")
    assert path == f"{app}/releases/{os.path.basename(path)}"
    assert (app / "current/index.html").read_text() == os.path.basename(path)
    return os.path.basename(path)


def deploy(app: Path) -> str:
    """A whole deployment; the name of the new release, a time in seconds that must be a new one."""
    before = releases(app)
    wait_for(lambda: time.strftime("%Y%m%d%H%M%S", time.gmtime()) not in before, "another second")
    cap(app, "deploy")
    (new,) = set(releases(app)) - set(before)
    assert current(app) == new
    return new


@pytest.fixture(params=["bind", "no-bind"])
def mount(request: pytest.FixtureRequest, tmp_path: Path, mounts: Mounts) -> Mount:
    app = tmp_path / "app"
    (app / "releases").mkdir(parents=True)
    return mounts.start(app, *(["--no-bind"] if request.param == "no-bind" else []))


def test_deploy_and_rollback(mount: Mount) -> None:
    """`deploy:rollback` goes back to the one before, removes the one it left, and keeps that as an archive."""
    app = mount.app
    first = deploy(app)
    second = deploy(app)
    third = deploy(app)
    assert releases(app) == [first, second, third]
    cap(app, "deploy:rollback")
    assert current(app) == second
    assert releases(app) == [first, second]
    assert (app / f"rolled-back-release-{third}.tar.gz").is_file()
    assert (app / "revisions.log").read_text().splitlines()[-1] == f"ada rolled back to release {second}"
    cap(app, "deploy:rollback", ROLLBACK_RELEASE=first)
    assert current(app) == first
    events = [(event["action"], event["release"], event["outcome"]) for event in mount.journal()]
    assert events == [("switch", name, "done") for name in (first, second, third, second, first)]
    assert all(event["command"] == f"mv {app}/releases/current {app}" for event in mount.journal())


def test_cleanup_spares_what_is_current(mount: Mount) -> None:
    """An old release that is current again outlives `deploy:cleanup`, which compares what readlink says."""
    app = mount.app
    names = [deploy(app) for _ in range(3)]
    assert in_shell(app, f'ln -s "$D/releases/{names[0]}" "$D/releases/current" && mv "$D/releases/current" "$D"')
    assert current(app) == names[0]
    said = cap(app, "deploy:cleanup", KEEP="1")
    assert releases(app) == [names[0], names[2]]
    assert current(app) == names[0]
    assert f"rm -rf {app}/releases/{names[1]}" in said


PLAYBOOK = """
- hosts: localhost
  connection: local
  gather_facts: false
  tasks:
    - community.general.deploy_helper: {{path: "{app}", release: "43"}}
    - ansible.builtin.copy:
        content: "43"
        dest: "{{{{ deploy_helper.new_release_path }}}}/index.html"
    - community.general.deploy_helper: {{path: "{app}", release: "43", state: finalize, keep_releases: 3}}
    - ansible.builtin.file: {{path: "{app}/current", src: "{app}/releases/42", state: link}}
"""


def test_a_playbook(app: Path, mounts: Mounts, tmp_path: Path) -> None:
    """Ansible itself: present, finalize with its cleanup, and the `file` module going back."""
    mount = mounts.start(app)
    before = len(mount.journal())
    (app / "releases/43").mkdir()
    playbook = tmp_path / "deploy.yml"
    playbook.write_text(PLAYBOOK.format(app=app))
    with reading(app / "current/index.html", "40", "42", "43") as readers:
        done = in_shell(app, f"ANSIBLE_LOCALHOST_WARNING=0 ansible-playbook -i localhost, {playbook}")
        seen = readers.stop()
    assert done.returncode == 0, done.stdout + done.stderr
    assert (seen.failed, seen.neither) == ({}, 0)
    assert [event["release"] for event in mount.journal()[before:]] == ["43", "42"]
    assert os.readlink(app / "current") == f"{app}/releases/42"
    assert releases(app) == ["40", "41", "42", "43"]
