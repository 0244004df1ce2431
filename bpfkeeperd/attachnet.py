"""Attaching to network namespaces, netfilter, and the hooks of an interface that programs share."""

import contextlib
import errno
import os
import struct
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from bpfkeeperd import kernel
from bpfkeeperd.desired import Attachment
from bpfkeeperd.errors import KernelError
from bpfkeeperd.hooks import PROG_TYPE_FLOW_DISSECTOR, HookKind
from bpfkeeperd.observenet import neighbours, netns_inode
from bpfkeeperd.ordering import slot
from bpfkeeperd.pinnotes import PinNote, write_note
from bpfkeeperd.state import LinkInfo, Neighbour
from bpfkeeperd.targets import NF_FAMILIES, NF_HOOKS, InterfaceTarget, NetfilterTarget, NetnsTarget

# include/uapi/linux/bpf.h
BPF_F_BEFORE = 1 << 3
BPF_F_ID = 1 << 5
BPF_F_LINK = 1 << 13
BPF_F_NETFILTER_IP_DEFRAG = 1

FREE_SECONDS = 0.3
"""Until a priority of netfilter is free again, at most."""
_ATTEMPTS = 16
"""At a place among others, while they change it."""


@dataclass(frozen=True, slots=True)
class Around:
    """What a new link has to reckon with."""

    former: LinkInfo | None = None
    """The link that it is about to replace, which stays beside it for a moment."""
    peers: tuple[Attachment, ...] = ()
    """All attachments of the hook, if the manifest says anything of their order."""
    owned: Mapping[int, Attachment] = field(default_factory=dict)
    """Whose the links of those are, by ID."""


def create_network_link(prog_fd: int, attachment: Attachment, around: Around) -> int:
    """A new link's descriptor; see `attach.create_link`."""
    match attachment.target:
        case NetnsTarget(netns):
            return _netns_link(prog_fd, attachment, kernel.netns_path(netns))
        case NetfilterTarget():
            return _netfilter_link(prog_fd, attachment, attachment.target, around.former)
        case _:
            raise KernelError(f"attach {attachment}", errno.EOPNOTSUPP)


def _netns_link(prog_fd: int, attachment: Attachment, path: str) -> int:
    try:
        netns = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise KernelError(f"open network namespace {path}", error.errno or 0) from None
    with kernel.holding(netns):
        try:
            return kernel.link_create(prog_fd, netns, attachment.hook.attach_type)
        except KernelError as error:
            remedy = _netns_remedy(error.errno, attachment)
            raise KernelError(f"attach {attachment}", error.errno, remedy) from None


def _netns_remedy(number: int, attachment: Attachment) -> str:
    dissector = attachment.hook.prog_type == PROG_TYPE_FLOW_DISSECTOR
    match number:
        case errno.E2BIG | errno.EEXIST if dissector:
            return (
                "a network namespace takes one flow dissector, and none while the first one of the"
                " machine has one (nor that one while others have): detach the other"
            )
        case errno.E2BIG:
            return "a network namespace takes 64 programs of a kind: detach some"
        case errno.EINVAL:
            return "this is no network namespace, or the kernel lacks the hook (sk_lookup: 5.9)"
        case _:
            return ""


def _netfilter_link(
    prog_fd: int, attachment: Attachment, target: NetfilterTarget, former: LinkInfo | None
) -> int:
    """Two BPF programs cannot have one priority: one that takes over from another has the next."""
    priority = target.priority
    if former and former.detail == attachment.detail:
        priority += 1
    family, hook = NF_FAMILIES[target.family], NF_HOOKS[target.hook]
    flags = BPF_F_NETFILTER_IP_DEFRAG if target.defrag else 0
    extra = struct.pack("=IIiI", family, hook, priority, flags)
    netns = target.netns
    with kernel.inside_netns(kernel.netns_path(netns) if netns else None):
        try:
            return _soon_free(
                lambda: kernel.link_create(prog_fd, 0, attachment.hook.attach_type, 0, extra)
            )
        except KernelError as error:
            remedy = ""
            match error.errno:
                case errno.EBUSY:
                    remedy = (
                        f"another BPF program has priority {priority}, and takes it alone: choose"
                        " another priority, and leave the one after it free for swaps"
                    )
                case errno.EINVAL | errno.ENOENT if target.defrag:
                    remedy = "the kernel may lack the module nf_defrag_ipv4 or nf_defrag_ipv6"
                case errno.EINVAL:
                    remedy = "the kernel may lack netfilter links, which came with Linux 6.4"
                case errno.EOPNOTSUPP | errno.EAFNOSUPPORT:
                    remedy = (
                        "the kernel lacks IPv6 there, or what puts fragments together"
                        " (nf_defrag_ipv4, nf_defrag_ipv6)"
                    )
                case _:
                    pass
            raise KernelError(f"attach {attachment}", error.errno, remedy) from None


def _soon_free(create: Callable[[], int]) -> int:
    """A link that went, with a keeper that was killed for one, is taken down a moment later by the
    kernel: until then its place is taken."""
    deadline = time.monotonic() + FREE_SECONDS
    while True:
        try:
            return create()
        except KernelError as error:
            if error.errno != errno.EBUSY or time.monotonic() > deadline:
                raise
        time.sleep(0.005)


def end_netfilter_link(path: str) -> None:
    """Takes down what is pinned there, if it is one. When its pin goes, the kernel does so some
    milliseconds later, and until then nobody else can have its priority."""
    with contextlib.suppress(KernelError):
        fd = kernel.pinned(path, kernel.PinKind.LINK)
        if fd is not None:
            with kernel.holding(fd):
                kernel.link_detach(fd)


def create_shared_link(
    prog_fd: int, attachment: Attachment, index: int, around: Around
) -> tuple[int, str]:
    """A link at a hook that programs share, at the place that the manifest asks for; and a note
    where that cannot be. The interface is one of this thread's network namespace."""
    attach_type = attachment.hook.attach_type
    for _ in range(_ATTEMPTS):
        flags, relative, revision, note = 0, 0, 0, ""
        shared = kernel.shared_hook(index, attach_type) if around.peers else None
        if shared:
            there = neighbours(shared)
            place = slot(attachment, around.peers, there, around.owned)
            note, revision = place.note, shared.revision
            if place.number < len(there):
                following = there[place.number]
                flags = BPF_F_BEFORE | BPF_F_ID | (BPF_F_LINK if following.link_id else 0)
                relative = following.link_id or following.prog_id
        try:
            extra = struct.pack("=IIQ", relative, 0, revision) if shared else b""
            return kernel.link_create(prog_fd, index, attach_type, flags, extra), note
        except KernelError as error:
            if error.errno not in (errno.ESTALE, errno.ENOENT) or not shared:
                remedy = _shared_remedy(error.errno, attachment)
                raise KernelError(f"attach {attachment}", error.errno, remedy) from None
    raise KernelError(f"attach {attachment}", errno.ESTALE, "others change its hook all the time")


def order_at(attachment: Attachment) -> tuple[Neighbour, ...]:
    """Who is at its hook now."""
    match attachment.target:
        case InterfaceTarget(name, netns):
            with kernel.inside_netns(kernel.netns_path(netns) if netns else None):
                index = kernel.interface_index(name)
                shared = kernel.shared_hook(index, attachment.hook.attach_type)
                return neighbours(shared) if shared else ()
        case _:
            return ()


def note_netns(path: str, attachment: Attachment) -> None:
    """Notes on the pin of a link in which network namespace it is, where nothing else tells."""
    match attachment.target:
        case NetfilterTarget(netns=netns):
            write_note(path, PinNote(netns_inode(netns), 0))
        case _:
            pass


def _shared_remedy(number: int, attachment: Attachment) -> str:
    match number, attachment.hook.kind:
        case errno.EINVAL, HookKind.TCX:
            return "the kernel may lack TCX, which came with Linux 6.6"
        case ((errno.EINVAL | errno.ENODEV | errno.EACCES), HookKind.NETKIT):
            return (
                "it must be the primary one of a pair of netkit interfaces (ip link add type"
                " netkit); the kernel may lack them, they came with Linux 6.7"
            )
        case ((errno.ERANGE | errno.E2BIG), _):
            return "a hook takes 64 programs: detach some"
        case _:
            return ""
