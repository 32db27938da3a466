"""Making a release, for the commands that do: with what is shared linked into it, after the hook pre-add was asked."""

from __future__ import annotations

from collections.abc import Callable

from relfs.cli.output import say_error
from relfs.cli.progress import progress_line
from relfs.config import Config
from relfs.hooks import PRE_ADD
from relfs.layout import RELEASES, DeployPath
from relfs.releases.adding import Added, add
from relfs.releases.asking import ask_before
from relfs.releases.shared import link_shared
from relfs.releases.sharing import Sharing
from relfs.releases.sources import Source
from relfs.releases.staging import PREFIX


def add_release(
    deploy: DeployPath,
    config: Config,
    source: Source,
    share: Sharing,
    *,
    name: str | None,
    named: Callable[[str], None] = lambda _: None,
) -> Added:
    """adding.add(), as it is configured, with progress on a terminal."""

    def prepare(staged: int, name: str) -> bool:
        linked = link_shared(deploy, staged, name, config.shared)
        path = f"{deploy.path}/{RELEASES}/{PREFIX}{name}"
        return ask_before(PRE_ADD, deploy, config, name, path=path, show=say_error) or linked

    with progress_line("adding") as tell:
        return add(
            deploy, source, name=name, share=share, limits=config.add, on_progress=tell, named=named, prepare=prepare
        )
