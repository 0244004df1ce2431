"""Attaching to functions, tracepoints, binaries, perf events and iterators."""

import errno

from bpfkeeperd import kernel
from bpfkeeperd.desired import Attachment
from bpfkeeperd.errors import KernelError
from bpfkeeperd.hooks import PROG_TYPE_TRACING, HookKind


def create_trace_link(prog_fd: int, attachment: Attachment) -> int:
    """A new link's descriptor; see `attach.create_link`."""
    hook = attachment.hook
    try:
        match hook.kind:
            case HookKind.TRACING:
                return kernel.raw_tracepoint_open(None, prog_fd)
            case HookKind.RAW_TRACEPOINT:
                fixed = hook.prog_type == PROG_TYPE_TRACING
                return kernel.raw_tracepoint_open(None if fixed else attachment.detail, prog_fd)
            case HookKind.ITERATOR:
                return kernel.link_create(prog_fd, 0, hook.attach_type)
            case _:
                raise KernelError(f"attach {attachment}", errno.EOPNOTSUPP)
    except KernelError as error:
        raise KernelError(f"attach {attachment}", error.errno, error.remedy) from None
