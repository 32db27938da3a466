"""What every benchmark here does alike: its options, a scratch directory with deploy paths, mounts that go away again,
and how it ends. What is measured is not here.

Run by the Python of the virtual environment that holds relfs (lib/bench.sh sees to it).
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, TypeVar

from relfs.mountinfo import mount_at

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

HERE = Path(__file__).resolve().parent
BIN = Path(sys.prefix) / "bin"

_Report = TypeVar("_Report", bound="DataclassInstance")


class BenchmarkError(Exception):
    """One line for whoever runs it: what stands in the way."""


# ---- the command line --------------------------------------------------------------------------------------


def option_parser(name: str, description: str) -> argparse.ArgumentParser:
    """With the options that all have; `name` is the wrapper's."""
    parser = argparse.ArgumentParser(prog=f"contrib/bench/{name}", description=description)
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--directory", default="/var/tmp", help="where to work (%(default)s)")
    return parser


def positive(text: str) -> int:
    """An option's value: how many, at least one."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


def run_benchmark(
    parser: argparse.ArgumentParser,
    measure: Callable[[argparse.Namespace], _Report],
    as_text: Callable[[_Report], str],
) -> _Report:
    """Measure, print the report (a dataclass) and return it. What broke is one line, and the end."""
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        report = measure(options)
    except KeyboardInterrupt:
        sys.exit(130)
    except subprocess.CalledProcessError as error:
        words = f": {error.stderr.splitlines()[0]}" if error.stderr else ""
        _fail(parser.prog, f"{' '.join(map(str, error.cmd))} failed with status {error.returncode}{words}")
    except (BenchmarkError, OSError) as error:
        _fail(parser.prog, str(error))
    print(json.dumps(asdict(report), indent=2) if options.json else as_text(report), flush=True)
    return report


def _fail(program: str, message: str) -> NoReturn:
    print(f"{program}: {message}", file=sys.stderr)
    sys.exit(1)


def verdict(ok: bool) -> str:
    return "ok" if ok else "over"


# ---- places ------------------------------------------------------------------------------------------------


@contextmanager
def scratch_directory(parent: str) -> Iterator[Path]:
    """A new directory; at the end whatever is mounted on its entries is taken away, and then all of it."""
    scratch = Path(tempfile.mkdtemp(prefix="relfs-bench-", dir=parent))
    try:
        yield scratch
    finally:
        for entry in scratch.iterdir():
            unmount(entry)
        # Not shutil.rmtree(): a relfs whose mount has gone takes its own things away at the same time.
        run("rm", "-rf", "--one-file-system", scratch)


def make_deploy_path(path: Path) -> None:
    """Two releases of one file, an empty `shared`, and `current`."""
    for release in ("1", "2"):
        page = path / "releases" / release / "index.html"
        page.parent.mkdir(parents=True)
        page.write_text(f"release {release}\n")
    (path / "shared").mkdir()
    (path / "current").symlink_to("releases/1")


def unmount(path: Path) -> None:
    """Lazily, whatever state it is in; what was bound inside goes with it. Whoever serves it may do so as well."""
    while mount_at(str(path)) is not None:
        try:
            run("umount", "--internal-only", "--lazy", path)
        except subprocess.CalledProcessError:
            if mount_at(str(path)) is not None:
                raise


# ---- processes ---------------------------------------------------------------------------------------------


def run(*command: str | Path) -> str:
    """What it printed. Raises CalledProcessError."""
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def compile_timer(source: str, scratch: Path) -> Path:
    """A program made from a C file beside this one."""
    program = scratch / Path(source).stem
    run("gcc", "-O2", "-Wall", "-o", program, HERE / source)
    return program
