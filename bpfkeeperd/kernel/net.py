"""Places of the network stack that several programs share: who is there, and filters of tc.

All is of the network namespace of the calling thread: see `places.inside_netns`.
"""

import errno
import functools
from typing import Any, NamedTuple

from bpfkeeperd._libbpf import ffi, lib
from bpfkeeperd.errors import KernelError
from bpfkeeperd.kernel.attached import Attached, attached_programs

TCX_INGRESS = 46
"""BPF_TCX_INGRESS of ``enum bpf_attach_type``."""
_LOOPBACK = 1
"""The index of ``lo``, in every network namespace."""


class Filter(NamedTuple):
    """The place of a filter of tc: in the clsact qdisc of an interface."""

    interface: int
    """Its index."""
    egress: bool
    handle: int
    priority: int


def shared_hook(index: int, attach_type: int) -> Attached | None:
    """Who is at a hook (TCX, netkit) of an interface; None where the kernel, or the interface, has
    no such hook.

    Raises:
        KernelError: ENODEV when there is no such interface.
    """
    try:
        return attached_programs(index, attach_type, with_links=True)
    except KernelError as error:
        if error.errno == errno.EINVAL:
            return None
        raise


@functools.cache
def has_tcx() -> bool:
    """Whether this kernel has TCX."""
    return shared_hook(_LOOPBACK, TCX_INGRESS) is not None


def make_clsact(index: int) -> bool:
    """Makes an interface's clsact qdisc; False when there is one already."""
    result = lib.keeper_clsact_make(index)
    if result < 0:
        raise KernelError("make the clsact qdisc", -result, _complaint())
    return bool(result)


def put_filter(place: Filter, prog_fd: int, *, replace: bool = False) -> None:
    """Has a filter run a program; one that is there already gives way in one step with ``replace``,
    else it is an error (EEXIST)."""
    result = lib.keeper_filter_put(_filter(place), prog_fd, replace)
    if result < 0:
        raise KernelError("attach a filter", -result, _complaint())


def filter_program(place: Filter) -> int | None:
    """The ID of the program that a filter runs; None when there is no such filter."""
    prog_id = ffi.new("uint32_t *")
    result = lib.keeper_filter_program(_filter(place), prog_id)
    if result == -errno.ENOENT:
        return None
    if result < 0:
        raise KernelError("look at a filter", -result, _complaint())
    return int(prog_id[0])


def remove_filter(place: Filter) -> None:
    """Takes a filter down; it may be gone."""
    result = lib.keeper_filter_remove(_filter(place))
    if result < 0 and result != -errno.ENOENT:
        raise KernelError("detach a filter", -result, _complaint())


def _filter(place: Filter) -> Any:
    return ffi.new("struct keeper_filter *", tuple(place))


def _complaint() -> str:
    """What the kernel says beside the errno, which libbpf hands on."""
    log = ffi.string(lib.keeper_log()).decode("utf-8", "replace")
    return str(log.strip().removeprefix("libbpf: ").removeprefix("Kernel error message: "))
