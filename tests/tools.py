"""Deploy tools that keep records: Deployer's logic in PHP (dep.php), and Debian's Capistrano with a local stage.

Both are run on whatever path is asked for, a mount or a plain directory. No checks of a test's own are here.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_DEP = Path(__file__).parent / "dep.php"

_CAPFILE = """\
require "capistrano/setup"
require "capistrano/deploy"
require "capistrano/scm/plugin"

# No repository: a release holds its own name.
class Plain < Capistrano::SCM::Plugin
  def register_hooks
    after "deploy:new_release_path", "plain:create_release"
  end

  def define_tasks
    namespace :plain do
      task :create_release do
        on release_roles(:all) do
          execute :mkdir, "-p", release_path
          execute "echo #{release_path.basename} > #{release_path}/index.html"
        end
      end
    end
  end
end

install_plugin Plain
"""

_DEPLOY_RB = """\
set :application, "app"
set :deploy_to, ENV.fetch("DEPLOY_TO")
set :sshkit_backend, SSHKit::Backend::Local
set :format, :simpletext
set :branch, "main"
set :local_user, "grace"
set :current_revision, "0123456789abcdef"
"""


class ToolError(Exception):
    """The tool said no."""


@dataclass(frozen=True)
class Dep:
    """Deployer, used on `path`."""

    path: Path

    def __call__(self, command: str, *arguments: str, **environment: str) -> Any:
        """What the command answers (see dep.php). Raises ToolError."""
        done = subprocess.run(
            ["php", str(_DEP), str(self.path), command, *arguments],
            capture_output=True,
            env={**os.environ, **environment},
            check=False,
        )
        if done.returncode != 0:
            raise ToolError(done.stderr.decode())
        return json.loads(done.stdout)


@dataclass(frozen=True)
class Cap:
    """Capistrano, used on `path`; its project is in the directory `project`."""

    path: Path
    project: Path

    def deploy(self) -> str:
        """Deploy, in a second of its own, since releases are named by it; the release that is current then."""
        until = int(time.time()) + 1
        while time.time() < until:
            time.sleep(0.01)
        return self._run("deploy")

    def rollback(self) -> str:
        """Roll back; the release that is current then. Raises ToolError."""
        return self._run("deploy:rollback")

    def _run(self, task: str) -> str:
        done = subprocess.run(
            ["cap", "production", task],
            cwd=self.project,
            capture_output=True,
            text=True,
            env={**os.environ, "DEPLOY_TO": str(self.path), "TZ": "Asia/Tokyo"},  # its names are in UTC all the same
            check=False,
        )
        if done.returncode != 0:
            raise ToolError(done.stdout + done.stderr)
        return Path(os.readlink(self.path / "current")).name


def make_cap(path: Path, project: Path) -> Cap:
    """Capistrano for `path`, with a project of its own in the new directory `project`."""
    (project / "config/deploy").mkdir(parents=True)
    (project / "Capfile").write_text(_CAPFILE)
    (project / "config/deploy.rb").write_text(_DEPLOY_RB)
    (project / "config/deploy/production.rb").write_text('server "localhost", roles: %w{app}\n')
    return Cap(path, project)
