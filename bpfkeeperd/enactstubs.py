"""What a change does to stubs: made, filled, given another program, moved to another name."""

import errno
import functools
import os
import sys
from contextlib import ExitStack
from dataclasses import dataclass, field

from bpfkeeperd import kernel
from bpfkeeperd.after import After
from bpfkeeperd.byid import program_by_id
from bpfkeeperd.desired import Attachment
from bpfkeeperd.directories import (
    is_directory,
    is_there,
    make_directory,
    make_new_directory,
    remove_empty,
    remove_tree,
    rename,
)
from bpfkeeperd.errors import PASSING, KeeperError, KernelError
from bpfkeeperd.held import Held
from bpfkeeperd.layout import Layout, StubKey
from bpfkeeperd.maptypes import PROG_ARRAY
from bpfkeeperd.observed import Observed, ObservedStub
from bpfkeeperd.observestubs import observe_stub, slot_program
from bpfkeeperd.state import ProgramInfo
from bpfkeeperd.steps import OnStep, Step
from bpfkeeperd.stubcode import stub_instructions
from bpfkeeperd.transaction import Transaction

_FIRST = bytes(4)


@dataclass(slots=True)
class StubEnactor:
    """What every step on stubs needs. A program's attachments share one stub, which is made or
    written for the first of them in a change."""

    layout: Layout
    observed: Observed
    on_step: OnStep
    after: After
    notes: list[str]
    _ready: dict[StubKey, int] = field(default_factory=dict)
    """Stubs that serve what they should, as descriptors."""

    def stub_fd(self, transaction: Transaction, attachment: Attachment, prog_fd: int) -> int:
        """The stub of an attachment, which calls this program; made where there is none, or none
        that can call it.

        The descriptor is closed with the transaction.
        """
        key = _stub_key(attachment)
        if key not in self._ready:
            # It may have been made since, for another attachment that is healed by itself.
            found = self.observed.stubs.get(key) or observe_stub(self.layout, key)
            if not (found and found.prog_id) or not self._write(
                transaction, attachment, key, found, prog_fd
            ):
                self._make(transaction, attachment, prog_fd)
        return self._ready[key]

    def ready_fd(self, key: StubKey) -> int | None:
        """The stub of a program whose attachments were made or swapped in this reload."""
        return self._ready.get(key)

    def swap(
        self, transaction: Transaction, attachment: Attachment, former: StubKey, prog_fd: int
    ) -> bool:
        """Has the stub that an attachment is behind call another program; False when it cannot.

        The first swap of a program does it for all.
        """
        key = _stub_key(attachment)
        if key in self._ready:  # one that was made since, because it cannot, is another
            ready = kernel.program_info(self._ready[key]).id
            return ready == self.observed.stubs[former].prog_id
        if not self._write(transaction, attachment, former, self.observed.stubs[former], prog_fd):
            return False
        if former != key:
            self._move(transaction, former, key)
        return True

    def _write(
        self,
        transaction: Transaction,
        attachment: Attachment,
        place: StubKey,
        found: ObservedStub,
        prog_fd: int,
    ) -> bool:
        stub, slot = self._opened(transaction, place)
        wanted, running = kernel.program_info(prog_fd), slot_program(slot)
        if running != wanted.id:
            if running != found.serves:
                raise KeeperError(
                    f"cannot swap the program of {attachment}: somebody else wrote the slot of its"
                    " stub meanwhile: reload again"
                )
            old = program_by_id(self.layout, running) if running else None
            if old is not None:
                transaction.close_later(old)
            self.on_step(Step.SWAP, attachment)
            if not _accepts(slot, prog_fd):
                return False
            transaction.on_undo(functools.partial(_put_back, slot, old))
        self._done(transaction, _stub_key(attachment), stub, slot, wanted)
        return True

    def _opened(self, transaction: Transaction, key: StubKey) -> tuple[int, int]:
        directory = self.layout.stub_at(key)
        stub = kernel.pinned(f"{directory}/stub", kernel.PinKind.PROGRAM)
        if stub is not None:
            transaction.close_later(stub)
        slot = kernel.pinned(f"{directory}/slot", kernel.PinKind.MAP)
        if slot is not None:
            transaction.close_later(slot)
        if stub is None or slot is None:
            raise KeeperError(f"the stub at {directory} went away: reload again")
        return stub, slot

    def _make(self, transaction: Transaction, attachment: Attachment, prog_fd: int) -> None:
        """A new stub and its array, in the place of those that are there."""
        key, hook = _stub_key(attachment), attachment.hook
        self.on_step(Step.MAKE_STUB, attachment)
        try:
            slot = transaction.close_later(
                kernel.map_create(PROG_ARRAY, f"slot_{attachment.program}", 4, 4, 1)
            )
            if not _accepts(slot, prog_fd):
                raise KernelError("fill the slot", errno.EINVAL)
            stub = transaction.close_later(
                kernel.prog_load(
                    hook.prog_type,
                    f"stub_{attachment.program}",
                    stub_instructions(hook, slot),
                    hook.expected_attach_type,
                    prog_fd,
                )
            )
        except KernelError as error:
            why = "the kernel does not have such programs called: leave out swap: exact"
            if error.errno in PASSING:
                why = f"cannot {error.action}"
            raise KernelError(f"make a stub for {attachment}", error.errno, why) from None
        self._put(transaction, key, stub, slot)
        self._done(transaction, key, stub, slot, kernel.program_info(prog_fd))

    def _put(self, transaction: Transaction, key: StubKey, stub: int, slot: int) -> None:
        """Pins them under their name in one step, so that nobody ever sees one without the
        other."""
        number, path = kernel.program_info(stub).id, self.layout.stub_at(key)
        staged = f"{self.layout.staging}/stubs/new{number}"
        make_directory(f"{self.layout.staging}/stubs")
        make_new_directory(staged)
        with ExitStack() as cleanup:
            cleanup.callback(remove_tree, staged)
            kernel.pin(slot, f"{staged}/slot")
            kernel.pin(stub, f"{staged}/stub")
            cleanup.pop_all()
        transaction.on_undo(lambda: remove_tree(staged))
        self._make_parents(transaction, path)
        if is_directory(path):
            aside = f"{self.layout.staging}/stubs/old{number}"
            rename(path, aside)
            transaction.on_undo(lambda: rename(aside, path))
        rename(staged, path)
        transaction.on_undo(lambda: rename(path, staged))

    def _move(self, transaction: Transaction, former: StubKey, key: StubKey) -> None:
        """A stub goes along with the links that another program takes over."""
        self.on_step(Step.MOVE_STUB, "/".join(former))
        source, path = self.layout.stub_at(former), self.layout.stub_at(key)
        self._make_parents(transaction, path)
        rename(source, path)
        transaction.on_undo(lambda: rename(path, source))
        transaction.on_success(lambda: remove_empty(source, self.layout.own))
        self.after.gone_stubs.add(former)

    def _make_parents(self, transaction: Transaction, path: str) -> None:
        make_directory(self.layout.stubs)
        make_directory(os.path.dirname(path))
        transaction.on_undo(lambda: remove_empty(path, self.layout.own))

    def _done(
        self, transaction: Transaction, key: StubKey, stub: int, slot: int, wanted: ProgramInfo
    ) -> None:
        self._ready[key] = stub
        info = kernel.program_info(stub)
        self.after.stubs[key] = ObservedStub(info.id, kernel.map_info(slot).id, wanted.id)


def _stub_key(attachment: Attachment) -> StubKey:
    return attachment.key[0], attachment.key[1]


def _accepts(slot: int, prog_fd: int) -> bool:
    """Writes the slot; False when the array takes no such program: its first one decided on a type,
    an attach type and the function that it is for."""
    try:
        kernel.map_update(slot, _FIRST, prog_fd.to_bytes(4, sys.byteorder))
    except KernelError as error:
        if error.errno == errno.EINVAL:
            return False
        raise
    return True


def _put_back(slot: int, old: int | None) -> None:
    if old is None:
        kernel.map_delete(slot, _FIRST)
    else:
        kernel.map_update(slot, _FIRST, old.to_bytes(4, sys.byteorder))


def restore_stub(layout: Layout, held: Held, key: StubKey) -> None:
    """Pins what of a stub has lost its pin."""
    fds, path = held.stub_fds(key), layout.stub_at(key)
    if fds is None:
        return
    for directory in (layout.stubs, os.path.dirname(path), path):
        make_directory(directory)
    for name, fd in zip(("stub", "slot"), fds, strict=True):
        if not is_there(f"{path}/{name}"):
            kernel.pin(fd, f"{path}/{name}")


def remove_stub(layout: Layout, key: StubKey) -> None:
    """Lets go of a stub."""
    path = layout.stub_at(key)
    if is_directory(path):
        remove_tree(path)
    remove_empty(path, layout.own)
