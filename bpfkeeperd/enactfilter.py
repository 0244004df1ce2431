"""Attachments without a link: filters of tc, each recorded by a pin of the program that it runs.

The record is made before the filter and goes after it, so that no filter is ever forgotten. A
filter is told from others by its handle and priority, and replaced in one step with both.
"""

import contextlib
import errno
import functools
import os
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field

from bpfkeeperd import kernel
from bpfkeeperd.actions import Swap
from bpfkeeperd.after import After
from bpfkeeperd.byid import program_by_id
from bpfkeeperd.desired import Attachment, netns_of
from bpfkeeperd.directories import (
    exchange,
    is_there,
    make_directory,
    remove_empty,
    rename,
    unlink,
)
from bpfkeeperd.errors import KeeperError, KernelError
from bpfkeeperd.held import Held
from bpfkeeperd.hooks import CLSACT_LINK, HookKind
from bpfkeeperd.layout import Layout, LinkKey, escape
from bpfkeeperd.observed import ObservedLink
from bpfkeeperd.observenet import netns_inode, place_of
from bpfkeeperd.pinnotes import PinNote, read_note, write_note
from bpfkeeperd.state import LinkInfo
from bpfkeeperd.steps import OnStep, Step
from bpfkeeperd.targets import InterfaceTarget
from bpfkeeperd.transaction import Transaction


def is_filter(attachment: Attachment) -> bool:
    """Whether an attachment is to be a filter of tc: where the manifest asks for one, and where the
    kernel has nothing better."""
    match attachment.hook.kind:
        case HookKind.CLSACT:
            return True
        case HookKind.TCX:
            return not kernel.has_tcx()
        case _:
            return False


@dataclass(slots=True)
class FilterEnactor:
    layout: Layout
    on_step: OnStep
    after: After
    notes: list[str] = field(default_factory=list)

    def attach(
        self,
        transaction: Transaction,
        attachment: Attachment,
        prog_fd: int,
        known: ObservedLink | None,
    ) -> None:
        """Makes a filter; ``known`` is what is attached under its name, but not as it should."""
        netns = _netns(attachment)
        with _inside(netns):
            place = _place(attachment, kernel.interface_index(_interface(attachment)))
        prog_id = kernel.program_info(prog_fd).id
        info = LinkInfo(
            *(0, prog_id, CLSACT_LINK, place.interface),
            *(attachment.hook.attach_type, attachment.detail),
        )
        self.on_step(Step.RECORD, attachment)
        _write(self.layout, transaction, attachment.key, prog_fd, _note(netns, place))
        self.on_step(Step.ATTACH, attachment)
        with _inside(netns):
            made = self._put(place, prog_fd, attachment)
        transaction.on_undo(functools.partial(_take_back, netns, place, prog_id))
        if known and known.info.target_id:
            egress = known.info.attach_type == _EGRESS
            former = kernel.Filter(known.info.target_id, egress, place.handle, place.priority)
            old_id = known.info.prog_id
            transaction.on_success(lambda: _let_go(netns, former, old_id))
        if made:
            self.notes.append(
                f"{attachment.target_name} has a clsact qdisc now, which stays when the last filter"
                " goes: tc qdisc del dev NAME clsact removes it"
            )
        if attachment.hook.kind is HookKind.TCX:
            self.notes.append(
                f"{attachment} is a filter of tc: this kernel lacks TCX"
                + (", and filters have no order" if attachment.before or attachment.after else "")
            )
        self.after.recorded(attachment.key, info)

    def _put(self, place: kernel.Filter, prog_fd: int, attachment: Attachment) -> bool:
        """Whether it took a new qdisc."""
        try:
            made = kernel.make_clsact(place.interface)
            kernel.put_filter(place, prog_fd)
        except KernelError as error:
            remedy = error.remedy
            if error.errno in (errno.EEXIST, errno.EINVAL):
                remedy = (
                    f"{remedy or 'it is taken'}: priority {place.priority} may have filters of"
                    " another kind or protocol: write priority: NUMBER beside interface"
                )
            raise KernelError(f"attach {attachment}", error.errno, remedy) from None
        return made

    def swap(self, transaction: Transaction, action: Swap, new: int, old: int) -> None:
        """Has a filter run another program, if it runs the expected one."""
        attachment, former = action.attachment, action.link
        netns, new_id = _netns(attachment), kernel.program_info(new).id
        place = _place(attachment, former.target_id)
        self.on_step(Step.SWAP, attachment)
        with _inside(netns):
            if kernel.filter_program(place) != former.prog_id:
                raise KeeperError(
                    f"cannot swap the program of {attachment}: somebody else changed it meanwhile:"
                    " reload again"
                )
            try:
                kernel.put_filter(place, new, replace=True)
            except KernelError as error:
                text = f"swap the program of {attachment}"
                raise KernelError(text, error.errno, error.remedy) from None
        transaction.on_undo(functools.partial(_put_back, netns, place, new_id, old))
        info = LinkInfo(0, new_id, CLSACT_LINK, place.interface, former.attach_type, former.detail)
        self.on_step(Step.RECORD, attachment)
        _write(self.layout, transaction, attachment.key, new, _note(netns, place))
        if action.key != attachment.key:
            self._forget(transaction, action.key)
        self.after.recorded(attachment.key, info)

    def _forget(self, transaction: Transaction, key: LinkKey) -> None:
        """The record of a filter that has another one now goes, when nothing can fail any more."""
        path = self.layout.attached_at(key)

        def remove() -> None:
            unlink(path)
            remove_empty(path, self.layout.attached)

        transaction.on_success(remove)
        self.after.gone_links.add(key)


_EGRESS = 47
"""BPF_TCX_EGRESS of ``enum bpf_attach_type``, which stands for filters as well."""


def restore_record(layout: Layout, key: LinkKey, info: LinkInfo, held: Held) -> None:
    """Makes the record of a filter that is there anew."""
    with ExitStack() as stack:
        program = held.program_by_id(info.prog_id)
        if program is None:
            program = program_by_id(layout, info.prog_id)
            if program is None:
                raise KeeperError(f"program ID {info.prog_id} went away: reload again")
            stack.callback(os.close, program)
        note = PinNote(netns_inode(netns_of(key) or None), info.target_id)
        transaction = Transaction()
        try:
            _write(layout, transaction, key, program, note)
        except KeeperError:
            transaction.undo()
            raise
        transaction.settle()


def take_down(layout: Layout, key: LinkKey) -> str:
    """Takes down the filter of an attachment if it runs a program of the keeper's, and its record;
    returns what there is to say."""
    path = layout.attached_at(key)
    note = read_note(path)
    left = ""
    netns = netns_of(key)
    if note and netns is not None and note.netns == netns_inode(netns):
        known = _known_programs(layout, key)
        handle, priority = place_of(key)
        with _inside(netns):
            for egress in (False, True):
                place = kernel.Filter(note.interface, egress, handle, priority)
                running = kernel.filter_program(place)
                if running in known:
                    kernel.remove_filter(place)
                elif running is not None:
                    left = f"the filter of {'/'.join(key)} runs somebody else's program: it stays"
    elif netns is None:
        left = f"a filter of {'/'.join(key[:2])} stays: its name is too long to tell where it is"
    unlink(path)
    remove_empty(path, layout.attached)
    return left


def _known_programs(layout: Layout, key: LinkKey) -> set[int]:
    """The programs that a filter of the keeper's can run: recorded, or pinned."""
    pins = kernel.scan(f"{layout.objects}/{key[0]}", depth=2, kind=kernel.PinKind.PROGRAM)
    known = {pin.id for pin in pins if len(pin.path) == 2 and pin.path[1] == key[1]}
    fd = kernel.pinned(layout.attached_at(key), kernel.PinKind.PROGRAM)
    if fd is not None:
        with kernel.holding(fd):
            known.add(kernel.program_info(fd).id)
    return known


def _write(
    layout: Layout, transaction: Transaction, key: LinkKey, prog_fd: int, note: PinNote
) -> None:
    """Pins a program as the record of an attachment, in the place of the one that is there."""
    path = layout.attached_at(key)
    above = os.path.dirname(path)
    for directory in (layout.attached, os.path.dirname(above), above):
        make_directory(directory)
    transaction.on_undo(lambda: remove_empty(path, layout.attached))
    staged = f"{layout.staging}/links/{escape('/'.join(key))}"
    kernel.pin(prog_fd, staged)
    transaction.on_undo(lambda: unlink(staged))
    write_note(staged, note)
    if is_there(path):
        aside = f"{staged}-old"
        exchange(transaction, staged, path, aside)
        transaction.on_success(lambda: unlink(aside))
    else:
        rename(staged, path)
        transaction.on_undo(lambda: unlink(path))


def _note(netns: str, place: kernel.Filter) -> PinNote:
    return PinNote(netns_inode(netns or None), place.interface)


def _netns(attachment: Attachment) -> str:
    match attachment.target:
        case InterfaceTarget(netns=netns):
            return netns or ""
        case _:
            return ""


def _interface(attachment: Attachment) -> str:
    match attachment.target:
        case InterfaceTarget(name):
            return name
        case _:
            raise KeeperError(f"cannot attach {attachment}: this is no interface")


@contextlib.contextmanager
def _inside(netns: str) -> Iterator[None]:
    with kernel.inside_netns(kernel.netns_path(netns) if netns else None):
        yield


def _place(attachment: Attachment, index: int) -> kernel.Filter:
    egress = attachment.hook.attach_type == _EGRESS
    return kernel.Filter(index, egress, attachment.handle, attachment.priority)


def _take_back(netns: str, place: kernel.Filter, prog_id: int) -> None:
    with _inside(netns):
        if kernel.filter_program(place) == prog_id:
            kernel.remove_filter(place)


def _let_go(netns: str, place: kernel.Filter, prog_id: int) -> None:
    with contextlib.suppress(KernelError):  # it went with its interface
        _take_back(netns, place, prog_id)


def _put_back(netns: str, place: kernel.Filter, prog_id: int, old: int) -> None:
    with _inside(netns):
        if kernel.filter_program(place) == prog_id:
            kernel.put_filter(place, old, replace=True)
