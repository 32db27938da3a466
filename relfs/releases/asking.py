"""Asking the hooks that guard what relfsctl does to releases by itself: pre-add and pre-prune. What they say goes to
whoever watches, and into the journal, as the hooks of a switch do (pointer.py, aftermath.py)."""

from __future__ import annotations

import logging
import os
from dataclasses import replace

from relfs.config import Config
from relfs.errors import RelfsError, reason
from relfs.hooks import HookError, Show, has_hook, releases_of, run_hook, variables_of
from relfs.journal import DONE, Journal, new_event, this_actor
from relfs.layout import DeployPath
from relfs.lock import change_lock
from relfs.store import current_release

_log = logging.getLogger(__name__)


def ask_before(
    hook: str, deploy: DeployPath, config: Config, release: str, *, path: str | None = None, show: Show | None = None
) -> bool:
    """Ask `hook` whether something may be done to `release`, which is at `path` for now, if not in its place yet;
    whether there is such a hook.

    Not to be called by a holder of the change lock, which is taken for the journal. Raises HookError if it says no,
    RefusedError, RelfsError.
    """
    if not has_hook(hook, deploy, config.hooks):
        return False
    current = current_release(deploy)
    told = releases_of(deploy, release, current)
    if path is not None:
        told["release_path"] = path
    outcome, said = DONE, ""
    try:
        said = run_hook(hook, deploy, variables_of(hook, deploy, this_actor(), **told), hooks=config.hooks, show=show)
    except RelfsError as error:
        outcome, said = f"refused: {error}", error.output if isinstance(error, HookError) else ""
        raise
    finally:
        _note(deploy, hook, release, current, outcome, said)
    return True


def _note(deploy: DeployPath, hook: str, release: str, current: str | None, outcome: str, said: str) -> None:
    """Who may do what the hook guards may not be one who can write the journal; that is no reason not to do it."""
    event = new_event(hook, release, current, this_actor(), os.urandom(16).hex())
    try:
        with change_lock(deploy.state_fd, shown=deploy.state_path):
            Journal(deploy.state_fd).append(replace(event, outcome=outcome, output=said or None))
    except (OSError, RelfsError) as error:
        why = reason(error) if isinstance(error, OSError) else error
        _log.info("this is not in the journal: %s for %s, %s: %s", hook, release, outcome, why)
