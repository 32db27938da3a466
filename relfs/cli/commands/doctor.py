"""`relfsctl doctor`: what this host can and cannot do."""

from __future__ import annotations

import sys
from dataclasses import asdict

import click

from relfs.cli.output import show_json, show_table
from relfs.cli.session import Session, pass_session
from relfs.errors import EXIT_FAILED, UsageError
from relfs.locate import Place


@click.command("doctor", epilog="\b\nExample:\n  relfsctl -C /var/www/app doctor")
@pass_session
def command(session: Session) -> None:
    """Try what relfs needs from this host, and from the deploy path if there is one, and say what to do about it.

    Exit status 1 if something that relfs cannot do without is missing.
    """
    from relfs.doctor import examine

    findings = examine(_place(session))
    if session.json:
        show_json([asdict(finding) for finding in findings])
    else:
        show_table(["", "WHAT", "FINDING"], [[finding.state, finding.what, finding.text] for finding in findings])
    if any(finding.state == "fail" for finding in findings):
        sys.exit(EXIT_FAILED)


def _place(session: Session) -> Place | None:
    try:
        return session.place()
    except UsageError:
        if session.path is not None:
            raise
        return None
