"""The command line: `contrib/soak -h` shows it."""

from __future__ import annotations

import argparse
import json
import signal
import sys
from dataclasses import asdict
from pathlib import Path

from soak.chaos import KINDS
from soak.killall import Deaths, kill_all
from soak.report import deaths_as_text, outcome_as_text
from soak.run import Order, Outcome, soak
from soak.site import SoakError, scratch


def main() -> int:
    """Exit status: 0, every promise was kept; 1, one was broken; 2, it could not begin."""
    options = _parser().parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        with scratch(options.directory, keep=options.keep) as place:
            result = _run(options, place)
    except KeyboardInterrupt:
        return 130
    except (SoakError, OSError) as error:
        print(f"contrib/soak: {error}", file=sys.stderr)
        return 2
    _print(result, as_json=options.json)
    if options.keep:
        print(f"contrib/soak: the evidence is in {place}", file=sys.stderr)
    return 0 if result.kept else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="contrib/soak", description="Kills relfs at random moments under load, and tells which promises it kept."
    )
    parser.add_argument("--seconds", type=_positive, default=600, help="how long (%(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="another one has other moments (%(default)s)")
    parser.add_argument("--without", action="append", choices=KINDS, default=[], help="leave that out; repeatable")
    parser.add_argument("--kill-all", type=_positive, metavar="N", help="instead: kill everything at once, N times")
    parser.add_argument("--no-views", action="store_true", help="no pin and no canary: the kernel keeps links")
    parser.add_argument("--relay", action="store_true", help="as on a kernel without a safe FUSE_NOTIFY_RESEND")
    parser.add_argument("--directory", type=Path, default=Path("/var/tmp"), help="where to work (%(default)s)")
    parser.add_argument("--keep", action="store_true", help="leave the evidence, the log and the deploy path there")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--quiet", action="store_true", help="do not tell of every blow on standard error")
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


def _run(options: argparse.Namespace, place: Path) -> Outcome | Deaths:
    variables = {"RELFS_NO_RESEND": "1"} if options.relay else {}

    def say(line: str) -> None:
        if not options.quiet:
            print(line, file=sys.stderr, flush=True)

    if options.kill_all:
        return kill_all(options.kill_all, place, variables, say)
    order = Order(options.seconds, options.seed, tuple(options.without), variables, views=not options.no_views)
    return soak(order, place, say)


def _print(result: Outcome | Deaths, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps({**asdict(result), "kept": result.kept}, indent=2))
    else:
        print(outcome_as_text(result) if isinstance(result, Outcome) else deaths_as_text(result))


if __name__ == "__main__":
    sys.exit(main())
