"""A swapper, run as a process of its own: swaps `current` from release to release, over and over.

`python swapper.py DEPLOY_PATH [COMMAND...]` runs COMMAND with the release's name added, as a person or a
deploy tool would; without one it swaps with symlink(2) and rename(2) itself. It says `ready`, goes on until
its standard input is closed, then says what it did as one line of JSON. A swap counts when the command said
that it was done and a fresh read sees the new release. It imports nothing of relfs.
"""

import json
import os
import select
import subprocess
import sys

_OTHER = {"v1": "v2", "v2": "v1"}
_NEXT = "current.next"


def main(path: str, command: list[str]) -> None:
    print("ready", flush=True)
    release = _OTHER.get(_current(path), "v1")
    swaps = failures = 0
    error = ""
    while swaps + failures == 0 or not _told_to_end():
        problem = _swap(path, command, release)
        if problem is None:
            swaps += 1
            release = _OTHER[release]
        else:
            failures += 1
            error = problem
    print(json.dumps({"swaps": swaps, "failures": failures, "error": error}), flush=True)


def _swap(path: str, command: list[str], release: str) -> str | None:
    """Make `release` current. Why that failed, or None."""
    problem = _run([*command, release]) if command else _rename(path, release)
    if problem is None and _current(path) != release:
        return f"said that it was done, but current does not lead to {release}"
    return problem


def _run(command: list[str]) -> str | None:
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, errors="replace"
    )
    if done.returncode == 0:
        return None
    lines = done.stderr.strip().splitlines()
    return lines[-1] if lines else f"{command[0]}: exit status {done.returncode}"


def _rename(path: str, release: str) -> str | None:
    temporary = f"{path}/{_NEXT}"
    try:
        os.symlink(f"releases/{release}", temporary)
        os.rename(temporary, f"{path}/current")
    except OSError as error:
        if os.path.lexists(temporary):
            os.unlink(temporary)
        return str(error)
    return None


def _current(path: str) -> str:
    """The release that a fresh read sees; nothing, if it sees none."""
    try:
        with open(f"{path}/current/f") as file:
            return file.read()
    except OSError:
        return ""


def _told_to_end() -> bool:
    return bool(select.select([0], [], [], 0)[0])


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
