"""Looks at attachments of the network stack as far as link info does not tell: filters of tc, which
have no link; the namespace in which a link is; the order of programs at a hook."""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from bpfkeeperd import kernel
from bpfkeeperd.desired import Attachment, Desired, filter_detail, netns_of
from bpfkeeperd.errors import KernelError
from bpfkeeperd.held import Held
from bpfkeeperd.hooks import CLSACT_LINK, NETKIT_PEER, HookKind
from bpfkeeperd.layout import Layout, LinkKey, filter_handle
from bpfkeeperd.observed import ObservedLink, Place
from bpfkeeperd.ordering import ordered_places
from bpfkeeperd.pinnotes import PinNote, read_note
from bpfkeeperd.state import LinkInfo, Neighbour
from bpfkeeperd.targetnames import is_netfilter, priority_of
from bpfkeeperd.targets import InterfaceTarget, NetfilterTarget, Target

OWN_NETNS = "/proc/thread-self/ns/net"
_INGRESS, _EGRESS = 46, 47


@dataclass(slots=True)
class _Record:
    """A filter of tc that may be there."""

    key: LinkKey
    prog_id: int = 0
    """The program of the record; 0 without one."""
    index: int = 0
    """Of the interface; 0: nobody knows."""
    netns: str = ""
    found: LinkInfo | None = field(default=None)


def netns_inode(netns: str | None) -> int:
    """Of a network namespace by name or path, of this thread's for none; 0 where there is none."""
    try:
        return os.stat(kernel.netns_path(netns) if netns else OWN_NETNS).st_ino
    except OSError:
        return 0


def with_netns(
    desired: Desired, layout: Layout, held: Held, links: Mapping[LinkKey, ObservedLink]
) -> dict[LinkKey, ObservedLink]:
    """Links, those of netfilter that are in another namespace than the one that has the name now as
    dead: of them the kernel tells nothing at all (of others: see `homes`)."""
    inodes: dict[str, int] = {}
    names = _netns_names(desired)
    found = dict(links)
    for key, link in links.items():
        if not is_netfilter(key) or not link.info.target_id:
            continue
        note = read_note(layout.link_at(key)) if link.pinned else held.note(key)
        netns = names[key] if key in names else netns_of(key)
        if note is None or netns is None:
            continue
        if netns not in inodes:
            inodes[netns] = netns_inode(netns)
        if note.netns != inodes[netns]:
            found[key] = replace(link, info=replace(link.info, target_id=0))
    return found


def observe_filters(
    desired: Desired, layout: Layout, targets: Mapping[Target, int | str]
) -> dict[LinkKey, ObservedLink]:
    """Filters of tc: those that are recorded, and those that the manifest wants."""
    wanted = {each.key: each for each in desired.attachments if _may_be_filter(each)}
    records = {record.key: record for record in _records(desired, layout)}
    for key, attachment in wanted.items():
        index = targets.get(attachment.target)
        if key not in records and isinstance(index, int):
            records[key] = _Record(key, 0, index, _netns(attachment.target) or "")
    by_netns: dict[str, list[_Record]] = {}
    for record in records.values():
        by_netns.setdefault(record.netns, []).append(record)
    for netns, there in by_netns.items():
        _look(netns, there, wanted)
    return {
        record.key: ObservedLink(record.found, record.prog_id == record.found.prog_id)
        for record in records.values()
        if record.found
    }


def with_peers(
    desired: Desired, targets: Mapping[Target, int | str], links: Mapping[LinkKey, ObservedLink]
) -> dict[LinkKey, ObservedLink]:
    """Links, those at the peer of a netkit interface with the number of the interface itself, which
    is what the manifest names."""
    found = dict(links)
    for each in desired.attachments:
        link = links.get(each.key)
        index = targets.get(each.target)
        if each.hook.attach_type != NETKIT_PEER or not link or not isinstance(index, int):
            continue
        netns = _netns(each.target)
        try:
            with kernel.inside_netns(kernel.netns_path(netns) if netns else None):
                shared = kernel.shared_hook(index, NETKIT_PEER)
        except KernelError:
            continue
        there = shared and link.info.id in [link_id for _, link_id in shared.programs]
        found[each.key] = replace(link, info=replace(link.info, target_id=index if there else 0))
    return found


def observe_orders(
    desired: Desired, targets: Mapping[Target, int | str]
) -> dict[Place, tuple[Neighbour, ...]]:
    """Who is at each hook of which the manifest says anything about the order."""
    by_netns: dict[str | None, list[tuple[Place, int]]] = {}
    for place in ordered_places(desired.attachments):
        index = targets.get(place[0])
        if isinstance(index, int):
            by_netns.setdefault(_netns(place[0]), []).append((place, index))
    found = {}
    for netns, places in by_netns.items():
        try:
            with kernel.inside_netns(kernel.netns_path(netns) if netns else None):
                for place, index in places:
                    shared = kernel.shared_hook(index, place[1])
                    found[place] = neighbours(shared) if shared else ()
        except KernelError:  # it went away since targets were looked for, which will be told
            continue
    return found


def neighbours(shared: kernel.Attached) -> tuple[Neighbour, ...]:
    """Who is at a hook, with the names of the programs."""
    return tuple(
        Neighbour(prog_id, link_id, _name(prog_id)) for prog_id, link_id in shared.programs
    )


def _name(prog_id: int) -> str:
    try:
        fd = kernel.program_by_id(prog_id)
    except KernelError:  # without CAP_SYS_ADMIN nobody can tell
        return ""
    if fd is None:
        return ""
    with kernel.holding(fd):
        return kernel.program_info(fd).name


def _netns(target: Target) -> str | None:
    match target:
        case InterfaceTarget(netns=netns) | NetfilterTarget(netns=netns):
            return netns
        case _:
            return None


def _netns_names(desired: Desired) -> dict[LinkKey, str]:
    """Of what the manifest wants; names of pins are cut where they are too long."""
    return {each.key: _netns(each.target) or "" for each in desired.attachments}


def _records(desired: Desired, layout: Layout) -> Iterable[_Record]:
    names = _netns_names(desired)
    for pin in kernel.scan(layout.attached, depth=3, kind=kernel.PinKind.PROGRAM):
        if pin.error:
            raise KernelError(f"read the pin {layout.attached}/{'/'.join(pin.path)}", pin.error)
        if len(pin.path) != 3:
            continue
        key = pin.path[0], pin.path[1], pin.path[2]
        if not key[2].startswith("interface:"):
            continue
        note = read_note(layout.attached_at(key)) or PinNote(0, 0)
        netns = (names[key] if key in names else netns_of(key)) or ""
        there = note.netns == netns_inode(netns)
        yield _Record(key, pin.id, note.interface if there else 0, netns)


def _look(netns: str, records: Iterable[_Record], wanted: Mapping[LinkKey, Attachment]) -> None:
    try:
        with kernel.inside_netns(kernel.netns_path(netns) if netns else None):
            taken = set[tuple[int, int, str]]()
            for record in records:  # those that are wanted alone are behind the others
                found = _found(record, wanted.get(record.key))
                if found and (record.prog_id or _filter(found) not in taken):
                    taken.add(_filter(found))
                    record.found = found
    except KernelError:
        for record in records:
            record.found = _gone(record)


def _found(record: _Record, attachment: Attachment | None) -> LinkInfo | None:
    """What is attached, at the wanted side first; None: nothing, and nobody recorded it."""
    handle, priority = place_of(record.key)
    sides = (_INGRESS, _EGRESS)
    if attachment and attachment.hook.attach_type == _EGRESS:
        sides = (_EGRESS, _INGRESS)
    for side in sides if record.index else ():
        place = kernel.Filter(record.index, side == _EGRESS, handle, priority)
        prog_id = kernel.filter_program(place)
        if prog_id is not None:
            detail = filter_detail(handle, priority)
            return LinkInfo(0, prog_id, CLSACT_LINK, record.index, side, detail)
    return _gone(record)


def _may_be_filter(attachment: Attachment) -> bool:
    """Whether one may be there that nobody recorded: also where filters stand for TCX."""
    match attachment.hook.kind:
        case HookKind.CLSACT:
            return True
        case HookKind.TCX:
            try:
                return not kernel.has_tcx()
            except KernelError:  # not for this user to ask
                return False
        case _:
            return False


def _filter(info: LinkInfo) -> tuple[int, int, str]:
    """A filter of a namespace; an interface that was renamed has another in no pin's name."""
    return info.target_id, info.attach_type, info.detail


def _gone(record: _Record) -> LinkInfo | None:
    return LinkInfo(0, record.prog_id, CLSACT_LINK, 0, 0) if record.prog_id else None


def place_of(key: LinkKey) -> tuple[int, int]:
    """Handle and priority of the filter of an attachment."""
    return filter_handle(key), priority_of(key)
