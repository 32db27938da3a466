"""`relfsctl pin`: let a process that runs already see one release until it ends."""

from __future__ import annotations

import click

from relfs.cli.output import say, say_error, show_json
from relfs.cli.pinning import pin, unpin
from relfs.cli.session import Session, pass_session
from relfs.errors import UsageError


@click.command("pin", epilog="\b\nExample:\n  relfsctl pin --pid $$\n  relfsctl pin --pid 4711 --end")
@click.option("--pid", type=int, required=True, metavar="PID", help="Which process.")
@click.option("--release", metavar="RELEASE", help="What it is to see.  [default: what it sees now]")
@click.option("--end", is_flag=True, help="Let it, and all that was pinned with it, see what everybody sees again.")
@pass_session
def command(session: Session, pid: int, release: str | None, end: bool) -> None:
    """Let process PID, and all that it has started or starts, see one release as `current` until the last of them ends,
    whatever is switched to meanwhile. A pinned release is never pruned.

    Everybody may pin his own processes, root all.
    """
    if end and release is not None:
        raise UsageError("--end: ends a view, and --release begins one; leave one of them out")
    place = session.place()
    done = unpin(place, pid) if end else pin(place, pid, release)
    if session.json:
        show_json(done)
    elif end:
        say(f"process {pid} sees what is current")
    else:
        say(f"process {pid} sees {done['release']} until it ends, and so does what it starts")
        if done["others"]:
            say_error(f"{done['others']} processes that it has started are somebody else's, and are not pinned")
