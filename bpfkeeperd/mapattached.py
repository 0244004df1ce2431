"""Programs at maps of sockets where the kernel makes no link to them (before 6.10).

Each is attached by BPF_PROG_ATTACH, and recorded by a pin of what is attached, which is its stub.
"""

import errno
import os
from collections.abc import Mapping

from bpfkeeperd import kernel
from bpfkeeperd.desired import Attachment, Desired
from bpfkeeperd.directories import exchange, is_there, make_directory, remove_empty, unlink
from bpfkeeperd.errors import KernelError
from bpfkeeperd.hooks import HOOKS, SOCKMAP_ATTACHED, HookKind
from bpfkeeperd.layout import Layout, LinkKey, unescape
from bpfkeeperd.observed import ObservedLink
from bpfkeeperd.state import LinkInfo, ProgramInfo
from bpfkeeperd.transaction import Transaction

_OF_THE_OTHER_KIND = -1
PREFIX = "map:"
"""Of the targets that are maps: see `desired.target_name`."""


def attach_to_map(
    transaction: Transaction, layout: Layout, attachment: Attachment, stub: int, map_fd: int
) -> LinkInfo:
    """Attaches a stub. The record is made before and goes after: nothing attached is forgotten.

    Raises:
        KernelError: another program is attached there, or the kernel refuses.
    """
    key, attach_type = attachment.key, attachment.hook.attach_type
    program, path = kernel.program_info(stub), layout.attached_at(key)
    other = _attached(map_fd, attach_type)
    if other not in (None, 0, program.id, _recorded(path)):
        why = "another program is attached to the map: detach that first"
        raise KernelError(f"attach {attachment}", errno.EBUSY, why)
    for directory in (layout.attached, f"{layout.attached}/{key[0]}", os.path.dirname(path)):
        make_directory(directory)
    transaction.on_undo(lambda: remove_empty(path, layout.own))
    if is_there(path):
        staged = f"{layout.staging}/links/new{program.id}"
        kernel.pin(stub, staged)
        transaction.on_undo(lambda: unlink(staged))
        exchange(transaction, staged, path, f"{layout.staging}/links/old{program.id}")
    else:
        kernel.pin(stub, path)
        transaction.on_undo(lambda: unlink(path))
    kernel.program_attach(stub, map_fd, attach_type)
    if other != program.id:
        transaction.on_undo(lambda: kernel.program_detach(stub, map_fd, attach_type))
    return LinkInfo(0, program.id, SOCKMAP_ATTACHED, kernel.map_info(map_fd).id, attach_type)


def _recorded(path: str) -> int:
    """The program that a record is of; 0 for none."""
    fd = kernel.pinned(path, kernel.PinKind.PROGRAM)
    if fd is None:
        return 0
    with kernel.holding(fd):
        return kernel.program_info(fd).id


def _attached(map_fd: int, attach_type: int) -> int | None:
    """The program attached to a map; 0 for none, None where the kernel does not tell (before
    5.18)."""
    try:
        found = kernel.attached_programs(map_fd, attach_type).programs
        return found[0][0] if found else 0
    except KernelError as error:
        if error.errno == errno.EINVAL:
            return None
        if error.errno == errno.EBUSY:  # sk_skb/verdict and stream_verdict exclude each other
            return _OF_THE_OTHER_KIND
        raise


def detach_from_map(layout: Layout, key: LinkKey) -> None:
    """Detaches what is recorded, and removes the record."""
    path = layout.attached_at(key)
    stub = kernel.pinned(path, kernel.PinKind.PROGRAM)
    if stub is None:
        return
    with kernel.holding(stub):
        found = kernel.pinned_map(layout.map(unescape(key[2]).removeprefix(PREFIX)))
        if found:
            program = kernel.program_info(stub)
            with kernel.holding(found[0]) as map_fd:
                for attach_type in _attach_types(program):
                    if _attached(map_fd, attach_type) in (program.id, None):
                        _detach(stub, map_fd, attach_type)
    unlink(path)
    remove_empty(path, layout.own)


def _detach(stub: int, map_fd: int, attach_type: int) -> None:
    try:
        kernel.program_detach(stub, map_fd, attach_type)
    except KernelError as error:
        if error.errno not in (errno.ENOENT, errno.EINVAL):  # it is at another of its types
            raise


def _attach_types(program: ProgramInfo) -> list[int]:
    return [
        hook.attach_type
        for hook in HOOKS
        if hook.kind is HookKind.SOCKMAP and hook.prog_type == program.type
    ]


def observe_attached(desired: Desired, layout: Layout) -> dict[LinkKey, ObservedLink]:
    """What is recorded, as links without an ID; one that is not attached any more has no target.

    Raises:
        KernelError: bpffs cannot be read.
    """
    wanted = {
        attachment.key: attachment.hook.attach_type
        for known in desired.objects.values()
        for attachment in known.attachments
        if attachment.hook.kind is HookKind.SOCKMAP
    }
    found: dict[LinkKey, ObservedLink] = {}
    for pin in kernel.scan(layout.attached, depth=3, kind=kernel.PinKind.PROGRAM):
        if len(pin.path) == 3 and pin.path[2].startswith(PREFIX):
            if pin.error:
                raise KernelError(f"read the pin {layout.attached}/{'/'.join(pin.path)}", pin.error)
            key = pin.path[0], pin.path[1], pin.path[2]
            program = ProgramInfo(pin.id, pin.type, ())
            found[key] = ObservedLink(_info(layout, key, program, wanted))
    return found


def _info(
    layout: Layout, key: LinkKey, program: ProgramInfo, wanted: Mapping[LinkKey, int]
) -> LinkInfo:
    opened = kernel.pinned_map(layout.map(unescape(key[2]).removeprefix(PREFIX)))
    if opened:
        with kernel.holding(opened[0]) as map_fd:
            for attach_type in _attach_types(program):
                attached = _attached(map_fd, attach_type)
                told = attached is not None or wanted.get(key, attach_type) == attach_type
                if told and attached in (program.id, None):
                    return LinkInfo(0, program.id, SOCKMAP_ATTACHED, opened[1].id, attach_type)
    return LinkInfo(0, program.id, SOCKMAP_ATTACHED, 0, 0)
