"""Looks for what somebody else attached where the manifest wants a program; changes nothing."""

import os
import time
from collections.abc import Collection, Iterable, Iterator
from dataclasses import replace

from bpfkeeperd import kernel
from bpfkeeperd.adopt import same_map
from bpfkeeperd.attach import cgroup_path
from bpfkeeperd.desired import Attachment, Desired
from bpfkeeperd.errors import KernelError
from bpfkeeperd.foreign import corresponding
from bpfkeeperd.hooks import HookKind
from bpfkeeperd.layout import Layout, LinkKey, escape
from bpfkeeperd.observed import Foreign, Observed
from bpfkeeperd.plan import serves
from bpfkeeperd.state import LinkInfo, ProgramInfo
from bpfkeeperd.targets import CgroupTarget, InterfaceTarget, MapTarget, NetnsTarget

BPF_F_ALLOW_MULTI = 2
SETTLE_SECONDS = 0.05
"""A link that is let go of leaves its cgroup a moment after it cannot be seen any more."""

_NAMED = (HookKind.TRACEPOINT, HookKind.RAW_TRACEPOINT, HookKind.ITERATOR)
"""Their links tell the whole place. Those of other tracing hooks and of netfilter do not."""


def with_foreign(
    desired: Desired, layout: Layout, observed: Observed, *, everywhere: bool = False
) -> Observed:
    """Adds what others attached at the places of attachments that are still to be made, and of
    those that may take over; or everywhere.

    A reload that attaches nothing does not look. Neither does one without CAP_SYS_ADMIN, to which
    the kernel does not show the links of others.
    """
    places = [
        (attachment, target_id)
        for wanted in desired.objects.values()
        for attachment in wanted.attachments
        if isinstance(target_id := observed.targets.get(attachment.target), int)
        and (everywhere or _is_watched(attachment, target_id, observed))
    ]
    if not places:
        return observed
    links = kernel.all_links()
    if links is None:
        return observed
    own = {link.info.id for link in observed.links.values()} | _staged(layout)
    looker = _Looker(observed, [link for link in links if link.id not in own], own)
    found: dict[LinkKey, tuple[Foreign, ...]] = {}
    for attachment, target_id in places:
        others = tuple(looker.others(attachment, target_id))
        if others:
            ours = _pinned(desired, observed, attachment)
            kept = _kept(desired, observed, attachment)
            found[attachment.key] = tuple(_compared(other, ours, kept) for other in others)
    return replace(observed, foreign=found)


def _is_watched(attachment: Attachment, target_id: int, observed: Observed) -> bool:
    link = observed.links.get(attachment.key)
    return attachment.take_over or not (link and serves(link.info, attachment, target_id))


def _staged(layout: Layout) -> set[int]:
    """Links that an interrupted reload left; they go when the next begins."""
    pins = kernel.scan(f"{layout.staging}/links", 1, kernel.PinKind.LINK)
    return {pin.id for pin in pins}


def _pinned(desired: Desired, observed: Observed, attachment: Attachment) -> ProgramInfo | None:
    digests = observed.programs.get(attachment.key[0], {})
    loaded = digests.get(desired.objects[attachment.object].digest, {})
    return loaded.get(escape(attachment.program))


def _kept(desired: Desired, observed: Observed, attachment: Attachment) -> frozenset[int]:
    found = (observed.maps.get(name) for name in desired.objects[attachment.object].maps.values())
    return frozenset(one.pinned.id for one in found if one and one.pinned)


def _compared(other: Foreign, ours: ProgramInfo | None, kept: frozenset[int]) -> Foreign:
    same = ours is not None and corresponding(ours, other.program, kept, same_map) is not None
    return replace(other, same=same)


class _Looker:
    """Asks once for what all places have in common."""

    def __init__(self, observed: Observed, links: Iterable[LinkInfo], own: Collection[int]) -> None:
        self._own = own
        self._links = {link.id: link for link in links}
        self._others = _by_target(self._links.values())
        self._ours = _by_target(link.info for link in observed.links.values())

    def others(self, attachment: Attachment, target_id: int) -> Iterator[Foreign]:
        """What others attached at one place."""
        try:
            match attachment.hook.kind, attachment.target:
                case HookKind.CGROUP, CgroupTarget(path):
                    if attachment.hook.name != "lsm_cgroup":  # its links do not tell the function
                        yield from self._in_cgroup(attachment, target_id, path)
                case HookKind.XDP, InterfaceTarget(netns=netns):
                    with kernel.inside_netns(kernel.netns_path(netns) if netns else None):
                        yield from self._xdp(attachment, target_id)
                case ((HookKind.TCX | HookKind.NETKIT), InterfaceTarget(netns=netns)):
                    with kernel.inside_netns(kernel.netns_path(netns) if netns else None):
                        yield from self._at_interface(attachment, target_id)
                case HookKind.NETNS, NetnsTarget(netns):
                    sole = attachment.hook.name == "flow_dissector"
                    yield from self._linked(attachment, target_id, sole=sole)
                    if sole:
                        path = kernel.netns_path(netns)
                        yield from self._without_link(attachment, target_id, path, os.O_RDONLY)
                case HookKind.SOCKMAP, MapTarget():
                    yield from self._linked(attachment, target_id, sole=True)
                case kind, _ if kind in _NAMED:
                    yield from self._linked(attachment, target_id)
                case _:
                    pass
        except (KernelError, OSError):
            return  # the place went, or may not be asked: attaching will tell

    def _at(self, attachment: Attachment, target_id: int) -> list[LinkInfo]:
        named = attachment.hook.kind in _NAMED
        return [
            link
            for link in self._others.get(target_id, ())
            if serves(link, attachment, target_id)
            and not (named and link.detail != attachment.detail)
        ]

    def _linked(
        self, attachment: Attachment, target_id: int, *, sole: bool = False
    ) -> Iterator[Foreign]:
        for link in self._at(attachment, target_id):
            if program := _program(link.prog_id):
                yield Foreign(program, link, sole=sole)

    def _in_cgroup(self, attachment: Attachment, target_id: int, path: str) -> Iterator[Foreign]:
        yield from self._linked(attachment, target_id)
        directory = cgroup_path(path, kernel.cgroup2_mount()) or path
        yield from self._without_link(
            attachment, target_id, directory, os.O_RDONLY | os.O_DIRECTORY
        )

    def _without_link(
        self, attachment: Attachment, target_id: int, path: str, how: int
    ) -> Iterator[Foreign]:
        """Programs that are attached at a place and that no link attaches there."""
        with kernel.holding(os.open(path, how | os.O_CLOEXEC)) as place:
            flags, left = self._linkless(attachment, target_id, place)
            if left and flags & BPF_F_ALLOW_MULTI:
                time.sleep(SETTLE_SECONDS)
                flags, left = self._linkless(attachment, target_id, place)
        for program_id in left:
            if program := _program(program_id):
                sole = not flags & BPF_F_ALLOW_MULTI
                yield Foreign(program, None, sole=sole, flags=flags)

    def _linkless(
        self, attachment: Attachment, target_id: int, place: int
    ) -> tuple[int, list[int]]:
        attached = kernel.attached_programs(place, attachment.hook.attach_type)
        left = [program_id for program_id, _ in attached.programs]
        for link in (*self._at(attachment, target_id), *self._ours.get(target_id, ())):
            if serves(link, attachment, target_id) and link.prog_id in left:
                left.remove(link.prog_id)
        return attached.flags, left

    def _xdp(self, attachment: Attachment, target_id: int) -> Iterator[Foreign]:
        """An interface has one program. Which link runs it is told by index and program alone."""
        running = kernel.xdp_running(target_id)
        program = _program(running.id) if running else None
        if running is None or program is None:
            return
        links = [link for link in self._at(attachment, target_id) if link.prog_id == program.id]
        if not links and self._is_ours(attachment, target_id, program.id):
            return
        yield Foreign(
            program,
            links[0] if len(links) == 1 else None,
            sole=True,
            generic=running.generic,
            unclear=len(links) > 1,
        )

    def _is_ours(self, attachment: Attachment, target_id: int, program_id: int) -> bool:
        """Whether one of our own links may be what runs there, under another name."""
        return any(
            link.prog_id == program_id and serves(link, attachment, target_id)
            for link in self._ours.get(target_id, ())
        )

    def _at_interface(self, attachment: Attachment, target_id: int) -> Iterator[Foreign]:
        attached = kernel.attached_programs(target_id, attachment.hook.attach_type, with_links=True)
        for program_id, link_id in attached.programs:
            link = self._links.get(link_id)
            if link_id in self._own or (link_id and link is None):
                continue
            if program := _program(program_id):
                yield Foreign(program, link)


def _by_target(links: Iterable[LinkInfo]) -> dict[int, list[LinkInfo]]:
    found: dict[int, list[LinkInfo]] = {}
    for link in links:
        found.setdefault(link.target_id, []).append(link)
    return found


def _program(program_id: int) -> ProgramInfo | None:
    fd = kernel.program_by_id(program_id)
    if fd is None:
        return None
    with kernel.holding(fd):
        return kernel.program_info(fd)
