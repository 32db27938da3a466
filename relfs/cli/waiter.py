"""What relfsctl does about a switch that is to be confirmed, where no mount's worker does it: any relfsctl takes back
what is overdue before it does anything else; and the one that switches leaves a process behind that waits.

That process is started before the switch, in a session of its own, since the switch may be what cuts its maker off. It
keeps nothing of the deploy path open, which would keep an unmounted file system busy; and it does nothing while there
is a mount, but waits on, for everything of the mount may be killed. It ends once its switch is confirmed, taken back,
or overtaken by another, or was never made.
"""

from __future__ import annotations

import os
import select
import subprocess
import sys
import time

from relfs.cli.output import say_error
from relfs.cli.session import ask, is_mounted, open_here, pointer_here
from relfs.confirm import overdue, waiting
from relfs.errors import RelfsError, reason
from relfs.history import History
from relfs.locate import Place, locate
from relfs.releases.program import program

_LOOK_SECONDS = 0.5
_MOUNTED_SECONDS = 3.0


def take_back_overdue(place: Place) -> None:
    """Take back what was not confirmed in time, where nobody else does, and say so on standard error. What is in the
    way of that is said, and stops nothing else."""
    try:
        late = overdue(_waiting_here(place)) is not None
    except RelfsError:  # whatever is wrong with it is for the command to say
        return
    if late:
        try:
            with pointer_here(place):
                pass
        except RelfsError as error:
            say_error(f"what was not confirmed in time cannot be taken back: {error}")


def start_waiter(place: Place, request_id: str) -> None:
    """Leave a process that waits until what `request_id` is about to make current is confirmed. Raises RelfsError.

    It ends with us, if that is never made: as long as we live, we hold the other end of its standard input.
    """
    reading, writing = os.pipe()
    try:
        subprocess.Popen(
            program("relfs.cli.waiter", place.deploy_path, place.state_dir or "", request_id),
            stdin=reading, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd="/", start_new_session=True,
        )  # fmt: skip
    except OSError as error:
        os.close(writing)
        raise RelfsError(f"nobody can be left to wait for the confirmation: {reason(error)}; not switched") from error
    finally:
        os.close(reading)


def _waiting_here(place: Place) -> History:
    deploy = open_here(place, create_state=False)
    try:
        return waiting(deploy.state_fd)
    finally:
        deploy.close()


def _wait(path: str, state_dir: str | None, request_id: str) -> None:
    """Until the switch `request_id` waits for nothing any more, and whoever makes it has ended."""
    pause, gone = 0.0, False
    while True:
        gone = gone or _maker_ends(pause)
        place = locate(path, state_dir)
        mounted = is_mounted(place)
        if not (_waits_there(place, request_id) if mounted else _waits_here(place, request_id)) and gone:
            return
        pause = _MOUNTED_SECONDS if mounted else _LOOK_SECONDS
        if gone:
            time.sleep(pause)


def _maker_ends(seconds: float) -> bool:
    """Whether whoever makes the switch has ended, within so many seconds."""
    return bool(select.select([sys.stdin], [], [], seconds)[0])


def _waits_there(place: Place, request_id: str) -> bool:
    """What the daemon says. One that says nothing may be about to be replaced, or unmounted."""
    try:
        status = ask(place, "status")
    except RelfsError:
        return True
    return status is None or (status.get("confirm") or {}).get("id") == request_id


def _waits_here(place: Place, request_id: str) -> bool:
    """What the journal says, once what is overdue has been taken back."""
    take_back_overdue(place)
    try:
        event = _waiting_here(place).unconfirmed
    except RelfsError:  # there is no deploy path any more
        return False
    return event is not None and event.id == request_id


def main() -> None:
    """As a program of its own."""
    _, path, state_dir, request_id = sys.argv
    _wait(path, state_dir or None, request_id)
