"""Attaching a program at a target: one function for each kind of hook."""

import errno
import os
from collections.abc import Callable
from typing import assert_never

from bpfkeeperd import kernel
from bpfkeeperd.attachnet import Around, create_network_link, create_shared_link
from bpfkeeperd.attachtrace import create_trace_link
from bpfkeeperd.desired import Attachment
from bpfkeeperd.errors import KernelError
from bpfkeeperd.hooks import HookKind
from bpfkeeperd.targets import (
    BinaryTarget,
    CgroupTarget,
    FunctionTarget,
    InterfaceTarget,
    IteratorTarget,
    MapTarget,
    NetfilterTarget,
    NetnsTarget,
    PerfEventTarget,
    TracepointTarget,
    XdpMode,
)

MapOpener = Callable[[str], int]
"""A kept map's name to its descriptor, which stays the callee's."""

# enum bpf_xdp_flags of include/uapi/linux/if_link.h
XDP_FLAGS_SKB_MODE = 2
XDP_FLAGS_DRV_MODE = 4

_XDP_FLAGS = {
    XdpMode.AUTO: XDP_FLAGS_DRV_MODE,
    XdpMode.NATIVE: XDP_FLAGS_DRV_MODE,
    XdpMode.GENERIC: XDP_FLAGS_SKB_MODE,
}
NOTHING_AROUND = Around()
# What drivers answer to a program they cannot run: no XDP at all, or not with this MTU or program.
_NOT_NATIVE = frozenset({errno.EOPNOTSUPP, errno.EINVAL})


def cgroup_path(path: str, mount: str | None) -> str | None:
    """Where a cgroup's directory is; None when it is relative and no cgroup2 is mounted."""
    if path.startswith("/"):
        return path
    return f"{mount}/{path}" if mount else None


def create_link(
    prog_fd: int, attachment: Attachment, map_fd: MapOpener, around: Around = NOTHING_AROUND
) -> tuple[int, str]:
    """A new link's descriptor, and what there is to say about it (empty: nothing).

    ``map_fd`` opens a map that is a target. Of a struct_ops map that is registered, ``prog_fd`` is
    the map's descriptor.

    The attachment ends when the last reference to the link goes: pin it.

    Raises:
        KernelError: the target is gone, taken, or the kernel refuses.
    """
    match attachment.target:
        case CgroupTarget(path):
            return _cgroup_link(prog_fd, attachment, path), ""
        case InterfaceTarget(name, netns):
            with kernel.inside_netns(kernel.netns_path(netns) if netns else None):
                index = kernel.interface_index(name)
                if attachment.hook.kind is not HookKind.XDP:
                    return create_shared_link(prog_fd, attachment, index, around)
                return _xdp_link(prog_fd, attachment, attachment.target, index)
        case MapTarget(name) if attachment.hook.kind is HookKind.SOCKMAP:
            return _create(prog_fd, map_fd(name), attachment, 0), ""
        case MapTarget() if attachment.hook.kind is HookKind.STRUCT_OPS:
            return _create(prog_fd, 0, attachment, 0), ""
        case MapTarget() if attachment.hook.kind is HookKind.ITERATOR:
            return create_trace_link(prog_fd, attachment, map_fd), ""
        case NetnsTarget() | NetfilterTarget() | MapTarget():
            return create_network_link(prog_fd, attachment, around), ""
        case (
            FunctionTarget()
            | TracepointTarget()
            | BinaryTarget()
            | PerfEventTarget()
            | IteratorTarget()
        ):
            return create_trace_link(prog_fd, attachment, map_fd), ""
        case _:
            assert_never(attachment.target)


def _cgroup_link(prog_fd: int, attachment: Attachment, path: str) -> int:
    directory = cgroup_path(path, kernel.cgroup2_mount()) or path
    try:
        cgroup = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise KernelError(f"open cgroup {directory}", error.errno or 0) from None
    with kernel.holding(cgroup):
        return _create(prog_fd, cgroup, attachment, 0)


def _xdp_link(
    prog_fd: int, attachment: Attachment, target: InterfaceTarget, index: int
) -> tuple[int, str]:
    try:
        return _create(prog_fd, index, attachment, _XDP_FLAGS[target.mode]), ""
    except KernelError as error:
        if target.mode is not XdpMode.AUTO or error.errno not in _NOT_NATIVE:
            raise
        reason = os.strerror(error.errno)
    fd = _create(prog_fd, index, attachment, XDP_FLAGS_SKB_MODE)
    return fd, (
        f"{attachment} runs in generic mode, which is slower: the driver of {target.name}"
        f" does not run it natively ({reason}); mode: generic says so without a warning"
    )


def _create(prog_fd: int, target: int, attachment: Attachment, flags: int) -> int:
    try:
        return kernel.link_create(prog_fd, target, attachment.hook.attach_type, flags)
    except KernelError as error:
        remedy = ""
        match error.errno, attachment.hook.kind:
            case ((errno.EBUSY | errno.EEXIST), HookKind.XDP):
                remedy = (
                    "the interface runs another XDP program, or this one in another mode:"
                    " detach that first"
                )
            case errno.EBUSY, HookKind.SOCKMAP:
                remedy = "another program is attached to the map: detach that first"
            case errno.EEXIST, HookKind.STRUCT_OPS:
                remedy = "something is registered under its name already: unregister that first"
            case errno.EINVAL, HookKind.SOCKMAP:
                remedy = "the kernel may lack links to maps of sockets, which came with Linux 6.10"
            case errno.E2BIG, HookKind.CGROUP:
                remedy = "a cgroup takes 64 programs of a kind: detach some"
            case errno.EPERM, HookKind.CGROUP:
                remedy = (
                    "a program attached to a parent cgroup forbids it, or one was attached"
                    " here without BPF_F_ALLOW_MULTI"
                )
        raise KernelError(f"attach {attachment}", error.errno, remedy) from None
