"""What is attached on this machine, by whomever, and how it is detached."""

import errno
from typing import NamedTuple

from bpfkeeperd._libbpf import ffi, lib
from bpfkeeperd.errors import KernelError
from bpfkeeperd.kernel.bpf import needs_admin
from bpfkeeperd.kernel.scan import parse_pins
from bpfkeeperd.state import LinkInfo


class Attached(NamedTuple):
    """What a place runs that is neither XDP nor a tracing hook."""

    flags: int
    """Of a cgroup: BPF_F_ALLOW_OVERRIDE 1, BPF_F_ALLOW_MULTI 2, or neither."""
    programs: tuple[tuple[int, int], ...]
    """Program ID, and link ID where the kernel tells it (TCX, netkit), else 0; in the order in
    which they run."""
    revision: int
    """Of TCX and netkit: grows with each change of the list."""


class XdpProgram(NamedTuple):
    id: int
    generic: bool


def all_links() -> list[LinkInfo] | None:
    """Every link of this machine; None without CAP_SYS_ADMIN, or on a kernel before 5.8."""
    stream, size = ffi.new("char **"), ffi.new("size_t *")
    result = lib.keeper_links(stream, size)
    if result in (-errno.EPERM, -errno.EINVAL):
        return None
    if result < 0:
        raise KernelError("list the links of this machine", -result)
    try:
        data = bytes(ffi.buffer(stream[0], size[0])) if size[0] else b""
    finally:
        lib.free(stream[0])
    return [
        LinkInfo(pin.id, pin.prog_id, pin.type, pin.target_id, pin.attach_type, pin.detail)
        for pin in parse_pins(data)
    ]


def attached_programs(target: int, attach_type: int, *, with_links: bool = False) -> Attached:
    """What is attached at a place; the target is a descriptor, or the index of an interface.

    Raises:
        KernelError: the kernel cannot be asked about this kind (EINVAL), or it takes more rights.
    """
    found = ffi.new("struct keeper_attached *")
    result = lib.keeper_prog_query(target, attach_type, with_links, found)
    if result < 0:
        raise KernelError("ask what is attached", -result)
    pairs = zip(found.programs[0 : found.count], found.links[0 : found.count], strict=True)
    return Attached(found.flags, tuple(pairs), found.revision)


def xdp_running(index: int) -> XdpProgram | None:
    """What an interface of this thread's network namespace runs; None for nothing."""
    found = ffi.new("struct keeper_xdp *")
    result = lib.keeper_xdp_query(index, found)
    if result < 0:
        raise KernelError(f"ask interface {index} for its XDP program", -result)
    return XdpProgram(found.prog_id, found.generic) if found.prog_id else None


def xdp_attach(index: int, prog_fd: int | None, flags: int, old_prog_fd: int | None) -> None:
    """Attaches to an interface without a link, or detaches (None); only while the interface runs
    ``old_prog_fd`` (None: nothing)."""
    new, old = (-1 if fd is None else fd for fd in (prog_fd, old_prog_fd))
    result = lib.keeper_xdp_attach(index, new, flags, old)
    if result < 0:
        raise KernelError(f"change the XDP program of interface {index}", -result)


def program_attach(prog_fd: int, target: int, attach_type: int, flags: int = 0) -> None:
    """Attaches without a link, by BPF_PROG_ATTACH."""
    result = lib.bpf_prog_attach(prog_fd, target, attach_type, flags)
    if result < 0:
        raise KernelError("attach a program without a link", -result)


def program_detach(prog_fd: int, target: int, attach_type: int) -> None:
    """Detaches what was attached without a link; the target as for `attached_programs`."""
    result = lib.bpf_prog_detach2(prog_fd, target, attach_type)
    if result < 0:
        raise KernelError("detach a program", -result)


def link_by_id(link_id: int) -> int | None:
    """A descriptor of a link by its ID; None when there is none (any more).

    Raises:
        KernelError: EPERM without CAP_SYS_ADMIN.
    """
    fd: int = lib.bpf_link_get_fd_by_id(link_id)
    if fd in (-errno.ENOENT, -errno.EAGAIN):  # EAGAIN: it is not attached yet
        return None
    if fd < 0:
        raise KernelError(f"open the link with ID {link_id}", -fd, needs_admin(fd))
    return fd


def link_detach(link_fd: int) -> None:
    """Detaches a link for good, whoever holds it.

    Raises:
        KernelError: EOPNOTSUPP for a kind that ends with its last holder only.
    """
    result = lib.bpf_link_detach(link_fd)
    if result < 0:
        raise KernelError("detach a link", -result)
