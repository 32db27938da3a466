"""`relfs DEPLOY_PATH [MOUNTPOINT]`: understand the command line, then hand over to the daemon."""

from __future__ import annotations

import os

import click

from relfs import __version__
from relfs.cli.entry import run_command
from relfs.cli.options import parse_mount_options
from relfs.daemon.background import run_in_background, run_in_foreground
from relfs.daemon.plan import Plan
from relfs.errors import UsageError
from relfs.layout import LinkStyle

_LINKS_MAX = 40  # path_resolution(7)

_EPILOG = """\b
Examples:
  relfs /var/www/app                      mount over the deploy path
  relfs -f /var/www/app                   the same, staying in the foreground
  relfs ~/app ~/live                      as an ordinary user, elsewhere
  /var/www/app  /var/www/app  fuse.relfs  defaults,nofail  0 0      in /etc/fstab

\b
Options for -o: ro, noexec, noatime and their like; allow_other, noallow_other (default: for all users);
nonempty; bind, no_bind; link=relative|absolute; state_dir=DIR; what mount(8) keeps for others is ignored.
"""


@click.command(epilog=_EPILOG, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="relfs")
@click.option("-f", "--foreground", is_flag=True, help="Stay in the foreground and log to standard error.")
@click.option("-o", "mount_options", multiple=True, metavar="OPTS", help="Mount options, separated by commas.")
@click.option("--no-bind", is_flag=True, help="Serve releases and shared through FUSE instead of natively.")
@click.option(
    "--link",
    type=click.Choice(["relative", "absolute"]),
    help="The style of link that a switch writes.  [default: keep]",
)
@click.option("--state-dir", metavar="DIR", help="Keep relfs's own state here instead of in DEPLOY_PATH/.relfs.")
@click.argument("deploy_path", metavar="DEPLOY_PATH")
@click.argument("mountpoint", required=False, metavar="[MOUNTPOINT]")
def cli(
    foreground: bool,
    mount_options: tuple[str, ...],
    no_bind: bool,
    link: LinkStyle | None,
    state_dir: str | None,
    deploy_path: str,
    mountpoint: str | None,
) -> int:
    """Mount a deploy path, so that its link `current` is switched atomically for everybody.

    Returns once the mount answers; `relfsctl unmount` or `umount -l` ends it.
    """
    options = parse_mount_options(mount_options)
    real = _resolve(deploy_path)
    chosen_state = state_dir if state_dir is not None else options.state_dir
    plan = Plan(
        deploy_path=real,
        mountpoint=_resolve(mountpoint) if mountpoint is not None else real,
        mount_options=options.passed_on,
        bind=options.bind is not False and not no_bind,
        link=link if link is not None else options.link,
        state_dir=_resolve(chosen_state) if chosen_state is not None else None,
        allow_other=options.allow_other,
        nonempty=options.nonempty,
    )
    if foreground:
        run_in_foreground(plan)
    return run_in_background(plan)


def _resolve(path: str) -> str:
    if not path or "\0" in path or "\n" in path:  # fusermount3 and mountinfo speak in lines
        raise UsageError(f"{path!r}: not a path that can be mounted")
    return _without_asking(path.rstrip("/"))


def _without_asking(path: str) -> str:
    """realpath(3), but a mount of relfs is known by its name: it may be one that waits for us to serve it."""
    for _ in range(_LINKS_MAX):
        directory, name = os.path.split(path)
        if name in ("", ".", ".."):
            return os.path.realpath(path or "/")
        path = os.path.join(os.path.realpath(directory), name)
        if _is_mount(path) or not os.path.islink(path):
            return path
        path = os.path.join(os.path.dirname(path), os.readlink(path))
    raise UsageError(f"{path}: too many levels of symbolic links")


def _is_mount(path: str) -> bool:
    from relfs.mountinfo import relfs_mounts

    return any(mount.target == path for mount in relfs_mounts())


def main() -> None:
    """The console script."""
    run_command("relfs", cli)


if __name__ == "__main__":
    main()
