"""Who and what is asked before a release becomes current: the deploy lock, the checks, the hook pre-switch, in this
order. How each of them decides is in hold.py, checks.py and hooks.py; nothing here changes anything.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

from relfs import hold
from relfs.checks import Checks
from relfs.config import Config
from relfs.errors import RefusedError
from relfs.history import History
from relfs.hooks import PRE_SWITCH, Show, releases_of, run_hook, variables_of
from relfs.journal import Actor
from relfs.layout import DeployPath, Target
from relfs.releases.registry import Registry

_SPENT = frozenset({"given-up", "removed"})
_NO_CHECKS = Checks(empty=False, unfinished=(), bad=False)


class Admission:
    """The rules of one deploy path. Whoever calls its methods holds the change lock, and keeps it until the change is
    made or given up; who asks judge() and changes nothing needs no lock."""

    def __init__(self, deploy: DeployPath, config: Config, hide: str | None) -> None:
        """`hide` is a mountpoint that hooks shall not see."""
        self._deploy = deploy
        self._config = config
        self._hide = hide

    def require_unlocked(self, actor: Actor, *, tools: bool) -> None:
        """Raises LockedError if somebody else holds the deploy lock, or (`tools`) a deploy tool its own."""
        hold.require(self._deploy.state_fd, actor.pid)
        if tools:
            hold.require_no_tool(self._deploy)

    def judge(self) -> Callable[[str], bool]:
        """Tells of a release whether nothing speaks against going back to it: neither what is in it, nor that it was
        given up, or removed, so that what has its name now is another."""
        spent = cache(self._spent)
        return lambda name: self._deploy.is_good(name, self._config.checks.unfinished) and name not in spent()

    def _spent(self) -> frozenset[str]:
        """Names that no release has any more."""
        return frozenset(each.name for each in Registry(self._deploy.state_fd).records() if each.state in _SPENT)

    def check_release(self, name: str, history: History, *, force: bool) -> None:
        """Raises UsageError, RefusedError for what may not be switched to; with `force`, for what cannot be."""
        checks = _NO_CHECKS if force else self._config.checks
        self._deploy.check_release(name, allow_empty=not checks.empty)
        marker = self._deploy.unfinished_marker(name, checks.unfinished)
        if marker is not None:
            raise RefusedError(f"{name}: is unfinished: it holds {marker}; use --force to switch to it all the same")
        if not force:
            self.check_mark(name, history)

    def check_mark(self, name: str | None, history: History) -> None:
        """Raises RefusedError for a release that is marked bad, by us or by Deployer, if that is asked for."""
        if not self._config.checks.bad or name is None:
            return
        if name in history.bad or self._deploy.is_marked_bad(name):
            raise RefusedError(f"{name}: is marked bad; `relfsctl switch --force` makes it current and lifts the mark")

    def ask_hook(self, target: Target, previous: str | None, actor: Actor, show: Show | None) -> str:
        """The last that the hook printed. Raises HookError if it says no. Asked last, when nothing else can be in the
        way."""
        told = {**releases_of(self._deploy, target.label, previous), "release_path": self._path_of(target)}
        variables = variables_of(PRE_SWITCH, self._deploy, actor, **told)
        return run_hook(PRE_SWITCH, self._deploy, variables, hooks=self._config.hooks, hide=self._hide, show=show)

    def _path_of(self, target: Target) -> str:
        inner = self._deploy.inside(target.text)
        return f"{self._deploy.path}/{inner}" if inner is not None else target.text
