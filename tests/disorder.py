"""Orders that a power cut can spoil, each brought about by changing one thing in relfs: replay.py must find them out.

python tests/disorder.py NAME ARGUMENTS...    relfsctl, in that disorder
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any
from unittest import mock

from recording import STATE_ELSEWHERE

from relfs import adopt, hold, journal, layout, pending, pointer, store
from relfs.cli.relfsctl import main
from relfs.layout import CURRENT, RELEASES, STATE
from relfs.libc import syncfs
from relfs.pending import Pending
from relfs.records import files
from relfs.releases import adding, deploying, seeding, trash
from relfs.releases.manifest import MANIFESTS
from relfs.releases.registry import REGISTRY

Patch = AbstractContextManager[Any]


def _nothing(*_: object, **__: object) -> None:
    pass


def _flush_nothing() -> Patch:
    return mock.patch.multiple(pointer, syncfs=_nothing)


def _leave_directories() -> Patch:
    return mock.patch.object(os, "fsync", _nothing)


def _leave_the_journal() -> Patch:
    return mock.patch.object(os, "fdatasync", _nothing)


def _flush_before_the_link_is_made() -> Patch:
    write = store.LinkStore.write

    def early(self: store.LinkStore, text: str, *owner: Any, flush: Callable[[], None]) -> None:
        flush()
        write(self, text, *owner, flush=_nothing)

    return mock.patch.object(store.LinkStore, "write", early)


def _write_the_journal_before_the_link() -> Patch:
    note, line = pointer.Pointer._write_pending, pointer.Pointer._write_line

    def early(self: pointer.Pointer, pending: Pending) -> None:
        note(self, pending)
        line(self, pending.event)

    def late(self: pointer.Pointer, event: journal.Event) -> None:
        if self.history.find(event.id) is None:
            line(self, event)

    return mock.patch.multiple(pointer.Pointer, _write_pending=early, _write_line=late)


def _note_the_text_apart() -> Patch:
    def encode(note: Pending) -> bytes:
        return journal.encode(note.event) + os.fsencode(note.wanted)

    def read(directory: int | None) -> Pending | None:
        try:
            with open(pending.PENDING, "rb", opener=lambda path, flags: os.open(path, flags, dir_fd=directory)) as file:
                line, _, wanted = file.read().partition(b"\n")
        except FileNotFoundError:
            return None
        event = journal.decode(line)
        return Pending(event, os.fsdecode(wanted), tell=True) if event is not None else None

    return mock.patch.multiple(pending, _encode=encode, read=read)


def _note_nothing() -> Patch:
    return mock.patch.object(pending, "write", _nothing)


def _write_records_in_place() -> Patch:
    return mock.patch.object(files, "_put", side_effect=PermissionError)


def _forget_what_was_left_undone() -> Patch:
    """Before it has been done."""
    read = pending.read

    def early(directory: int | None) -> Pending | None:
        note = read(directory)
        pending.forget(directory)
        return note

    return mock.patch.object(pending, "read", early)


def _leave_half_a_line() -> Patch:
    return mock.patch.object(files, "_torn", lambda *_: 0)


def _forget_that_tools_are_to_be_told() -> Patch:
    encode = pending._encode
    return mock.patch.object(pending, "_encode", lambda note: encode(Pending(note.event, note.wanted, tell=False)))


def _make_the_state_directory_and_leave_it() -> Patch:
    return mock.patch.object(layout, "_flush_name_of", _nothing)


def _leave_the_state_directory() -> Patch:
    """What is made, renamed or removed in it is not flushed."""
    return _leave(f"/{STATE}", f"/{os.path.basename(STATE_ELSEWHERE)}")


def _leave(*ends: str) -> Patch:
    """What is reached by a path that ends so is not flushed."""
    fsync = os.fsync

    def all_but_that(fd: int) -> None:
        if not os.readlink(f"/proc/self/fd/{fd}").endswith(ends):
            fsync(fd)

    return mock.patch.object(os, "fsync", all_but_that)


def _flush_the_deploy_path_alone() -> Patch:
    """And what is on its disk."""

    def flush(self: pointer.Pointer, _: str) -> None:
        syncfs(self.deploy.fd)

    return mock.patch.object(pointer.Pointer, "_flush_target", flush)


def _flush_the_state_alone() -> Patch:
    def flush(self: pointer.Pointer, _: str) -> None:
        assert self.deploy.state_fd is not None
        syncfs(self.deploy.state_fd)

    return mock.patch.object(pointer.Pointer, "_flush_target", flush)


def _put_the_file_away_before_the_link_is_there() -> Patch:
    write = store.LinkStore.write

    def late(self: store.LinkStore, text: str, *owner: Any, flush: Callable[[], None] | None = None) -> None:
        if flush is None:
            state = self._deploy.state_fd
            os.unlink(CURRENT, dir_fd=state)
            os.fsync(state if state is not None else -1)
        write(self, text, *owner, flush=flush)

    return mock.patch.object(store.LinkStore, "write", late)


def _give_the_lock_back_for_now() -> Patch:
    give_back = hold.give_back

    def for_now(directory: int) -> hold.Hold | None:
        with mock.patch.object(os, "fsync", _nothing):
            return give_back(directory)

    return mock.patch.object(hold, "give_back", for_now)


def _adopt_without_flushing() -> Patch:
    return mock.patch.object(adopt, "syncfs", _nothing)


@contextmanager
def _init_and_leave_directories() -> Iterator[None]:
    """The pointer flushes, too, when it is opened for the first time; and so does who makes the state directory."""
    with (
        mock.patch.multiple(adopt, _sync_directories=_nothing, _flush=_nothing),
        mock.patch.object(pointer.Pointer, "flush", _nothing),
        _make_the_state_directory_and_leave_it(),
    ):
        yield


def _follow_without_flushing() -> Patch:
    return mock.patch.object(pointer.Pointer, "flush", _nothing)


# ---- of releases' lives ---------------------------------------------------------------------------------------------


def _add_without_flushing() -> Patch:
    return mock.patch.object(adding, "syncfs", _nothing)


def _make_what_holds_manifests_and_leave_it() -> Patch:
    return _leave_the_state_directory()


def _spend_names_for_now() -> Patch:
    return _leave(f"/{STATE}/{REGISTRY}")


def _seed_without_flushing() -> Patch:
    """Before it has its name."""
    return mock.patch.object(seeding, "syncfs", _nothing)


def _note_no_step_of_a_deployment() -> Patch:
    return mock.patch.object(deploying, "write_deployment", _nothing)


def _forget_a_deployment_for_now() -> Patch:
    return mock.patch.object(deploying, "forget_deployment", _nothing)


def _delete_before_the_rename_is_flushed() -> Patch:
    return _leave(f"/{trash.TRASH}", f"/app/{RELEASES}")


def _leave_manifests() -> Patch:
    """Those that are removed may be there again."""
    return _leave(f"/{MANIFESTS}")


def _keep_manifests_of_what_was_given_up() -> Patch:
    return mock.patch.object(adding, "_forget", _nothing)


def _named(*disorders: Callable[[], Patch]) -> dict[str, Callable[[], Patch]]:
    return {make.__name__.strip("_").replace("_", "-"): make for make in disorders}


DISORDERS = _named(
    _flush_nothing,
    _leave_directories,
    _leave_the_journal,
    _flush_before_the_link_is_made,
    _write_the_journal_before_the_link,
    _note_the_text_apart,
    _note_nothing,
    _write_records_in_place,
    _forget_what_was_left_undone,
    _leave_half_a_line,
    _forget_that_tools_are_to_be_told,
    _make_the_state_directory_and_leave_it,
    _leave_the_state_directory,
    _flush_the_deploy_path_alone,
    _flush_the_state_alone,
    _put_the_file_away_before_the_link_is_there,
    _give_the_lock_back_for_now,
    _adopt_without_flushing,
    _init_and_leave_directories,
    _follow_without_flushing,
)

DISORDERS_OF_LIVES = _named(
    _add_without_flushing,
    _make_what_holds_manifests_and_leave_it,
    _spend_names_for_now,
    _seed_without_flushing,
    _note_no_step_of_a_deployment,
    _forget_a_deployment_for_now,
    _delete_before_the_rename_is_flushed,
    _leave_manifests,
    _keep_manifests_of_what_was_given_up,
)


def disordered_command(name: str, *arguments: str) -> list[str]:
    """relfsctl with `arguments`, in the disorder `name`."""
    return [sys.executable, __file__, name, *arguments]


if __name__ == "__main__":
    name = sys.argv.pop(1)
    with (DISORDERS | DISORDERS_OF_LIVES)[name]():
        main()
