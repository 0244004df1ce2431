"""Attaching to a network namespace, to netfilter and to maps of sockets."""

import errno
import os

from bpfkeeperd import kernel
from bpfkeeperd.desired import Attachment
from bpfkeeperd.errors import KernelError
from bpfkeeperd.targets import NetnsTarget


def create_network_link(prog_fd: int, attachment: Attachment) -> int:
    """A new link's descriptor; see `attach.create_link`."""
    match attachment.target:
        case NetnsTarget(netns):
            return _netns_link(prog_fd, attachment, kernel.netns_path(netns))
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
            raise KernelError(f"attach {attachment}", error.errno) from None
