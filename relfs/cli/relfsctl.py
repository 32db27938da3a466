"""`relfsctl [-C DEPLOY_PATH] [--json] COMMAND`: finds the command, and loads nothing else."""

from __future__ import annotations

import importlib

import click

from relfs import __version__
from relfs.cli.entry import run_command
from relfs.cli.session import Session

_COMMANDS = {
    "init": "Make a deploy path, or adopt one.",
    "status": "What is current, since when, by whom, and how the mount is.",
    "releases": "List the releases.",
    "add": "Make a release from a directory, an archive, git or standard input.",
    "path": "Where a release is.",
    "check": "Whether a release is still what was added.",
    "deploy": "Make a new release, make it current, verify it, and remove what is old.",
    "switch": "Make a release current.",
    "confirm": "Let what `switch --confirm` made current stay.",
    "rollback": "Go back to the last good release.",
    "prune": "Remove the releases that nobody needs any more.",
    "who": "The processes that use a release.",
    "shared": "What outlives releases, and whether it is as it should be.",
    "run": "Run a command that sees one release until it ends.",
    "pin": "Let a running process see one release until it ends.",
    "canary": "Let some see a release before everybody does.",
    "views": "Who does not see what everybody sees.",
    "lock": "Let nobody else make a release current.",
    "unlock": "End that.",
    "log": "The history of `current`.",
    "watch": "Events as they happen.",
    "reload": "Let the installed version of relfs take the mount over.",
    "unmount": "Detach the mount; the real link serves.",
    "doctor": "What this host can and cannot do.",
    "race": "Show the race on this host: each way of swapping, reads, failures.",
}
"""Names and short help, so that `relfsctl --help` and completion need not import the commands."""


class _Commands(click.Group):
    """A group whose commands are modules of relfs.cli.commands."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in _COMMANDS:
            return None
        command = importlib.import_module(f"relfs.cli.commands.{cmd_name}").command
        assert isinstance(command, click.Command)
        return command

    def invoke(self, ctx: click.Context) -> object:
        """Click does not tell whose option it is that lacks its argument."""
        try:
            return super().invoke(ctx)
        except click.BadOptionUsage as error:
            if error.ctx is None and ctx.invoked_subcommand is not None:
                error.ctx = click.Context(self, parent=ctx, info_name=ctx.invoked_subcommand)
            raise

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        with formatter.section("Commands"):
            formatter.write_dl(list(_COMMANDS.items()))


@click.command(
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog="\b\nExample:\n  relfsctl -C /var/www/app switch 42",
)
@click.version_option(__version__, prog_name="relfsctl")
@click.option(
    "-C", "path", metavar="DEPLOY_PATH",
    help="The deploy path, or where it is mounted.  [default: $RELFS_PATH, the one around here, the only one mounted]",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print JSON: one document, or one a line for streams.")
@click.option(
    "--state-dir", metavar="DIR", help="Where `relfs --state-dir` keeps its state.  [default: $RELFS_STATE_DIR]"
)
@click.pass_context
def cli(context: click.Context, path: str | None, as_json: bool, state_dir: str | None) -> None:
    """Switch releases without anybody noticing.

    A RELEASE is a name below releases/ (42 or @42), or @current, @previous, @latest, @last-good, @2026-09-01T12:00.
    Exit status: 0 done, 1 failed, 2 wrong usage, 3 refused by a check, 4 locked by another.
    """
    context.obj = Session(path, as_json, state_dir)


def main() -> None:
    """The console script."""
    run_command("relfsctl", cli)


if __name__ == "__main__":
    main()
