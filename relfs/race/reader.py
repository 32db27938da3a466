"""A reader, run as a process of its own: opens a file in a tight loop and counts what goes wrong.

`python reader.py FILE` says `ready` once it reads, goes on until its standard input is closed, then says what
it saw as one line of JSON. It imports nothing of relfs, so that it starts at once.

On a single processor a loop without a pause sees next to nothing: the scheduler lets a swap that takes less than a
slice run to its end. A reader that slept, as a server does between requests, wakes up in the middle of it.
"""

import errno
import json
import os
import select
import sys
import time

_CONTENTS = frozenset((b"v1", b"v2"))
_BATCH = 64
_PAUSE = 0.00002


def main(path: str) -> None:
    reads = neither = 0
    failures: dict[int, int] = {}
    alone = _processors() == 1
    while reads == 0 or not _told_to_end():
        for _ in range(_BATCH):
            try:
                content = _read(path)
            except OSError as error:
                number = error.errno or 0
                failures[number] = failures.get(number, 0) + 1
            else:
                neither += content not in _CONTENTS
            if alone:
                time.sleep(_PAUSE)
        if reads == 0:
            print("ready", flush=True)
        reads += _BATCH
    named = {errno.errorcode.get(number, str(number)): count for number, count in failures.items()}
    print(json.dumps({"reads": reads, "neither": neither, "failures": named}), flush=True)


def _read(path: str) -> bytes:
    fd = os.open(path, os.O_RDONLY)
    try:
        return os.read(fd, 64)
    finally:
        os.close(fd)


def _processors() -> int:
    """How many this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _told_to_end() -> bool:
    return bool(select.select([0], [], [], 0)[0])


if __name__ == "__main__":
    main(sys.argv[1])
