"""Tells links whose interface is in another network namespace than their name says.

The kernel tells of a link at an interface no more than the interface's index, which is another's in
each namespace. A namespace that got a new one under its name may live on, and so do its links.
"""

import os
from collections.abc import Iterator, Mapping
from dataclasses import replace

from bpfkeeperd import kernel
from bpfkeeperd.desired import netns_of
from bpfkeeperd.errors import KernelError
from bpfkeeperd.held import Held
from bpfkeeperd.hooks import KINDS, NETKIT_PEER, HookKind
from bpfkeeperd.layout import LinkKey
from bpfkeeperd.observed import ObservedLink
from bpfkeeperd.state import LinkInfo

_XDP = KINDS[HookKind.XDP].link_types
_OTHERS = KINDS[HookKind.TCX].link_types | KINDS[HookKind.NETKIT].link_types


def without_strangers(
    links: Mapping[LinkKey, ObservedLink], held: Held
) -> dict[LinkKey, ObservedLink]:
    """The links, those of them as dead that are in another namespace.

    A link stays where it is: it is asked for once, as long as ``held`` is the same.
    """
    by_netns: dict[str, list[LinkKey]] = {}
    for key, link in links.items():
        elsewhere = link.info.attach_type == NETKIT_PEER  # see observenet.with_peers
        if link.info.target_id and link.info.type in _XDP | _OTHERS and not elsewhere:
            netns = netns_of(key)
            if netns is not None:
                by_netns.setdefault(netns, []).append(key)
    found = dict(links)
    homes: dict[int, tuple[int, int]] = {}
    for netns, keys in by_netns.items():
        path = kernel.netns_path(netns) if netns else None
        identity = _identity(path)
        if identity is None:  # that is told of the target
            continue
        unknown = [key for key in keys if held.homes.get(links[key].info.id) != identity]
        strangers = set(_strangers(path, unknown, links))
        for key in keys:
            if key in strangers:
                found[key] = replace(links[key], info=replace(links[key].info, target_id=0))
            else:
                homes[links[key].info.id] = identity
    held.homes = homes
    return found


def _identity(path: str | None) -> tuple[int, int] | None:
    try:
        status = os.stat(path or "/proc/thread-self/ns/net")
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _strangers(
    path: str | None, keys: list[LinkKey], links: Mapping[LinkKey, ObservedLink]
) -> Iterator[LinkKey]:
    """Those of the links that the namespace does not have."""
    if not keys:
        return
    try:
        with kernel.inside_netns(path):
            for key in keys:
                if not _is_at_home(links[key].info):
                    yield key
    except KernelError:
        return


def _is_at_home(info: LinkInfo) -> bool:
    """Whether an interface of this thread's network namespace has a link."""
    try:
        if info.type in _XDP:
            running = kernel.xdp_running(info.target_id)
            return running is not None and running.id == info.prog_id
        shared = kernel.shared_hook(info.target_id, info.attach_type)
    except KernelError:  # there is no such interface
        return False
    return shared is not None and info.id in [link_id for _, link_id in shared.programs]
