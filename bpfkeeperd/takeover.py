"""Taking the place of what somebody else attached, and how theirs is put back."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager

from bpfkeeperd import kernel
from bpfkeeperd.attach import XDP_FLAGS_DRV_MODE, XDP_FLAGS_SKB_MODE, cgroup_path
from bpfkeeperd.desired import Attachment
from bpfkeeperd.errors import KeeperError, KernelError
from bpfkeeperd.hooks import HookKind
from bpfkeeperd.observed import Foreign
from bpfkeeperd.targets import CgroupTarget, InterfaceTarget, NetnsTarget
from bpfkeeperd.transaction import Transaction

ADOPTED = "whoever made it and holds it still can detach it"


def open_link(transaction: Transaction, other: Foreign) -> int:
    """A descriptor of a link of others."""
    fd = kernel.link_by_id(other.link.id) if other.link else None
    if fd is None:
        raise KeeperError(f"cannot take hold of {other}: it went away: reload again")
    return transaction.close_later(fd)


def open_program(transaction: Transaction, other: Foreign) -> int:
    fd = kernel.program_by_id(other.program.id)
    if fd is None:
        raise KeeperError(f"cannot take over {other}: it went away: reload again")
    return transaction.close_later(fd)


def swap_in(transaction: Transaction, other: Foreign, new: int) -> int:
    """Has a link of others run our program; returns the link's descriptor."""
    link, old = open_link(transaction, other), open_program(transaction, other)
    kernel.link_update(link, new, old)
    transaction.on_undo(lambda: kernel.link_update(link, old, new))
    return link


def detach_first(transaction: Transaction, attachment: Attachment, other: Foreign) -> None:
    """Frees a place that takes one program; nothing runs there until ours is attached."""
    program = open_program(transaction, other)
    _detach(attachment, other, program)
    transaction.on_undo(lambda: _attach_again(attachment, other, program))


def detach_last(
    transaction: Transaction, attachment: Attachment, other: Foreign, notes: list[str]
) -> None:
    """Detaches what runs beside ours when nothing can fail any more."""
    fd = (open_link if other.link else open_program)(transaction, other)

    def detach() -> None:
        try:
            if other.link:
                kernel.link_detach(fd)
            else:
                _detach(attachment, other, fd)
        except (KeeperError, OSError) as error:
            notes.append(f"{attachment}: {other} is attached still: {error}")

    transaction.on_success(detach)


def _detach(attachment: Attachment, other: Foreign, program: int) -> None:
    with _place(attachment) as (target, how):
        if attachment.hook.kind is HookKind.XDP:
            kernel.xdp_attach(target, None, _mode(other), program)
        else:
            kernel.program_detach(program, target, how)


def _attach_again(attachment: Attachment, other: Foreign, program: int) -> None:
    with _place(attachment) as (target, how):
        if attachment.hook.kind is HookKind.XDP:
            kernel.xdp_attach(target, program, _mode(other), None)
        else:
            kernel.program_attach(program, target, how, other.flags)


def _mode(other: Foreign) -> int:
    return XDP_FLAGS_SKB_MODE if other.generic else XDP_FLAGS_DRV_MODE


@contextmanager
def _place(attachment: Attachment) -> Iterator[tuple[int, int]]:
    """What BPF_PROG_ATTACH takes as target and type, while the block runs; of a flow dissector it
    is the network namespace that this thread is in, and 0."""
    how = attachment.hook.attach_type
    match attachment.target:
        case CgroupTarget(path):
            directory = cgroup_path(path, kernel.cgroup2_mount()) or path
            fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            with kernel.holding(fd):
                yield fd, how
        case InterfaceTarget(name, netns):
            with kernel.inside_netns(kernel.netns_path(netns) if netns else None):
                yield kernel.interface_index(name), how
        case NetnsTarget(netns):
            with kernel.inside_netns(kernel.netns_path(netns)):
                yield 0, how
        case _:
            raise KernelError(f"detach what is attached for {attachment}", errno.EOPNOTSUPP)
