"""Which processes can be marked with all that they have started: nobody marks a whole machine by mistake. No mount."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Collection
from unittest import mock

import pytest

from relfs.errors import RefusedError, RelfsError
from relfs.processes import descendants, is_of_the_kernel
from relfs.views import family
from relfs.views.family import mark_family, whole_process
from relfs.views.mark import mark_of, new_mark


@pytest.mark.parametrize(("kernel", "refused"), [((2,), {1, 2}), ((), set())], ids=["a host", "a container"])
def test_nobody_means_the_whole_machine(kernel: Collection[int], refused: Collection[int]) -> None:
    with (
        mock.patch.object(family, "is_of_the_kernel", side_effect=lambda pid: pid in kernel),
        mock.patch.object(family, "process", return_value=mock.Mock()),
    ):
        for pid in (1, 2, os.getpid()):
            if pid in refused:
                with pytest.raises(RefusedError, match=f"process {pid}: "):
                    whole_process(pid)
            else:
                whole_process(pid)


def test_somebody_who_is_gone() -> None:
    with subprocess.Popen(["true"]) as process:
        process.wait()
    for pid in (process.pid, 0, -1):
        with pytest.raises(RelfsError, match="there is none"):
            whole_process(pid)


def test_somebody_who_ends_while_he_is_looked_at() -> None:
    """He is not taken for a thread of the kernel."""

    def too_late(pid: int) -> bool:
        process.kill()
        process.wait()
        return is_of_the_kernel(pid)

    with (
        subprocess.Popen(["sleep", "1000"]) as process,
        mock.patch.object(family, "is_of_the_kernel", side_effect=too_late),
        pytest.raises(RelfsError, match="there is none"),
    ):
        whole_process(process.pid)


def test_all_that_it_has_started() -> None:
    script = "sleep 1000 & echo; wait"
    with subprocess.Popen(["sh", "-c", script], stdout=subprocess.PIPE, start_new_session=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        mark = new_mark()
        whole_process(process.pid)
        assert mark_family(process.pid, mark) == 0
        family_of = [process.pid, *(each.pid for each in descendants(process.pid))]
        assert [mark_of(pid) for pid in family_of] == [mark, mark]
        os.killpg(process.pid, 9)
