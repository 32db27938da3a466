"""What follows a switch, once everybody sees it: the hook post-switch is told; then the hook `verify` and the web site
are asked whether the new release works, and if it does not, it is taken back.

Whoever made the switch, post-switch is told. Verified is what relfsctl made current, by `switch` or `deploy`: a tool
that swaps the link waits in the kernel for its answer, and could not be given this one.

What is left of it when somebody dies
-------------------------------------
The new release stays unless verifying says otherwise; so one that nobody could finish verifying stays. Where there is
a mount, its worker does all of this, and goes on if relfsctl is killed. If the worker is, relfsctl asks the next one
under the same request id; what has come to an end is in the journal under an id made of that, and is not done again,
what was under way begins anew. Without a mount, relfsctl does it; killed amid it, the release stays, and the journal,
which has no `verify` of that switch, tells.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from relfs.config import Config
from relfs.errors import RefusedError, RelfsError
from relfs.hooks import POST_SWITCH, VERIFY, HookError, Show, has_hook, releases_of, run_hook, variables_of
from relfs.journal import DONE, Event
from relfs.pointer import Pointer, remark_id
from relfs.store import Owner

_log = logging.getLogger(__name__)


class Aftermath:
    """Of the switches of one pointer. Every method blocks, as long as hooks take, and holds no lock meanwhile."""

    def __init__(self, pointer: Pointer, config: Config) -> None:
        self._pointer = pointer
        self._config = config

    def tell(self, event: Event, show: Show | None = None) -> str | None:
        """Run post-switch. That it fails is in the journal, and changes nothing; a line that says so, for whoever reads
        the log here, or has asked for the switch."""
        try:
            if self._outcome(event, POST_SWITCH) is None and self._has_hook(POST_SWITCH):
                self._remarked(event, POST_SWITCH, lambda: self._run(POST_SWITCH, event, show))
        except RelfsError as error:
            return f"{event.release} is current; but {error}"
        return None

    def verify(self, event: Event, show: Show | None = None) -> str | None:
        """Why the release that `event` made current is not good, if it is not: that nobody could be asked, too."""
        done = self._outcome(event, VERIFY)
        if done is not None:
            return None if done == DONE else done.removeprefix("failed: ")
        try:
            if self._config.verify.url is not None or self._has_hook(VERIFY):
                self._remarked(event, VERIFY, lambda: self._ask(event, show))
        except RelfsError as error:
            return str(error)
        return None

    def judge(self, canary: Event) -> str | None:
        """Why the release that only some see is not to become current for all, if it is not."""
        if self._config.verify.url is None and not self._has_hook(VERIFY):
            return "there is neither a hook `verify` nor a `[verify]` url that would say that it is good"
        return self.verify(canary)

    def take_back(self, event: Event, why: str, owner: Owner | None = None) -> None:
        """Undo what did not verify. Raises RefusedError always: that is how the switch has ended."""
        what = f"{event.release}: not verified: {why}"
        try:
            back = self._pointer.take_back(event, what, owner=owner)
        except RelfsError as error:
            raise RefusedError(f"{what}; it is still current: {error}") from error
        if back is None:
            raise RefusedError(f"{what}; something else has become current since")
        raise RefusedError(f"{what}; {back.release} is current again")

    def _ask(self, event: Event, show: Show | None) -> str:
        said = self._run(VERIFY, event, show)
        if self._config.verify.url is not None:
            from relfs.website import ask_site

            tries: list[str] = []
            ask_site(self._config.verify, lambda line: _both(line, tries.append, show))
            said = "\n".join(filter(None, [said, *tries]))
        return said

    def _run(self, name: str, event: Event, show: Show | None) -> str:
        deploy = self._pointer.deploy
        told = variables_of(name, deploy, event.actor, **releases_of(deploy, event.release or "", event.origin))
        return run_hook(name, deploy, told, hooks=self._config.hooks, show=show)

    def _has_hook(self, name: str) -> bool:
        return has_hook(name, self._pointer.deploy, self._config.hooks)

    def _outcome(self, event: Event, action: str) -> str | None:
        """How it ended, if it was done before."""
        found = self._pointer.history.find(remark_id(event, action))
        return found.outcome if found is not None else None

    def _remarked(self, event: Event, action: str, run: Callable[[], str]) -> None:
        """Run it, and write what came of it. Raises what it does."""
        try:
            said = run()
        except RelfsError as error:
            self._remark(event, action, f"failed: {error}", error.output if isinstance(error, HookError) else "")
            raise
        self._remark(event, action, DONE, said)

    def _remark(self, event: Event, action: str, outcome: str, said: str) -> None:
        try:
            self._pointer.remark(event, action, outcome, said)
        except RelfsError as error:
            _log.warning("this is not in the journal: %s for %s, %s: %s", action, event.release, outcome, error)


def _both(line: str, keep: Show, show: Show | None) -> None:
    keep(line)
    if show is not None:
        show(line)
