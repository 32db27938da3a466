"""A process held at the moment that matters: right after it has carried out a system call, before it can tell of it.

What a worker has done and not yet answered is there for microseconds only, and no test that kills at random moments can
be sure to have hit it. So strace(1) keeps the process from leaving the call (ptrace(2), syscall-exit-stop), for longer
than any test takes. Whatever kills it there, it never runs a further instruction of its own.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

_FOR_EVER = "120s"


@contextmanager
def held_after(pid: int, calls: str, path: str | None, *, when: int = 1) -> Iterator[None]:
    """While inside, call number `when` from now of process `pid` is carried out and does not return. Of the `calls`
    (strace's names for them), only those count that are about `path`, if there is one, as they spell it, or a
    descriptor of it.

    A process that is killed meanwhile is dead only once this is left: its tracer comes in between (PTRACE_EVENT_EXIT).
    """
    with _traced(pid, calls, f"delay_exit={_FOR_EVER}:when={when}", *(["-P", path] if path is not None else [])):
        yield


@contextmanager
def killed_before(pid: int, calls: str) -> Iterator[None]:
    """While inside, the next such call of process `pid` is not carried out: it is killed there."""
    with _traced(pid, calls, "signal=SIGKILL:when=1"):
        yield


@contextmanager
def _traced(pid: int, calls: str, what: str, *options: str) -> Iterator[None]:
    strace = subprocess.Popen(
        ["strace", "-f", "-p", str(pid), *options, "-e", f"trace={calls}", "-e", f"inject={calls}:{what}",
         "-o", "/dev/null"],
        stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    try:
        _wait_attached(strace)
        yield
    finally:
        strace.kill()
        strace.communicate()


def _wait_attached(strace: subprocess.Popen[str]) -> None:
    """strace says so on standard error, in one line for all threads."""
    assert strace.stderr is not None
    for said in strace.stderr:
        if " attached" in said:
            return
    raise AssertionError("strace could not attach")
