"""Looks at bpffs and the kernel; changes nothing."""

import functools
import os
from collections.abc import Callable, Iterable, Mapping

from bpfkeeperd import kernel
from bpfkeeperd.desired import Desired
from bpfkeeperd.directories import pins_below
from bpfkeeperd.errors import KernelError
from bpfkeeperd.held import Held
from bpfkeeperd.homes import without_strangers
from bpfkeeperd.layout import OBJECT_NAMESPACE, OWN_DIRECTORY, Layout, LinkKey, escape
from bpfkeeperd.mapattached import observe_attached
from bpfkeeperd.observecontents import with_contents
from bpfkeeperd.observed import Observed, ObservedLink, ObservedMap
from bpfkeeperd.observenet import observe_filters, observe_orders, with_netns, with_peers
from bpfkeeperd.observestubs import observe_stubs, through_stubs
from bpfkeeperd.observetargets import observe_targets
from bpfkeeperd.state import LinkInfo, MapInfo, ProgramInfo

LoadedPrograms = dict[str, dict[str, dict[str, ProgramInfo]]]
"""Escaped object name, digest, escaped program name."""


def observe(desired: Desired, layout: Layout, held: Held, last_ids: Mapping[str, int]) -> Observed:
    """Everything that a plan needs to know.

    ``last_ids`` are the map IDs last seen under each name since this boot: a map whose pin is gone
    may still be alive under one of them.

    Raises:
        KernelError: bpffs cannot be read.
    """
    links: dict[LinkKey, ObservedLink] = {}
    programs = _observe_programs(desired, layout)
    unpinned = _add_unpinned(programs, desired, held)
    empty_links = list[str]()
    for pin in kernel.scan(layout.links, depth=3, kind=kernel.PinKind.LINK):
        _check_read(layout.links, pin)
        if pin.kind == kernel.PinKind.DIRECTORY:
            empty_links.append("/".join(pin.path))
        elif len(pin.path) == 3:
            link = LinkInfo(
                pin.id, pin.prog_id, pin.type, pin.target_id, pin.attach_type, pin.detail
            )
            links[pin.path[0], pin.path[1], pin.path[2]] = ObservedLink(link)
    for key, info in held.link_infos(besides=links).items():
        links[key] = ObservedLink(info, pinned=False)
    links = with_netns(desired, layout, held, without_strangers(links, held))
    links |= observe_attached(desired, layout)
    stubs = observe_stubs(layout, held)
    former = functools.partial(_former, desired, layout, programs, last_ids)
    maps = {
        name: _observe_map(layout, name, held, last_ids, former)
        for name in (*desired.maps, *desired.unread_maps())
    }
    maps = with_contents(desired, layout, held, Observed(maps=maps, programs=programs))
    attachments = [attachment.target for attachment in desired.attachments]
    unread = [target for _, _, target, _ in desired.unread_attachments()]
    named = [
        target
        for wanted_map in desired.maps.values()
        for content in wanted_map.contents
        if (target := content.target)
    ]
    targets = observe_targets([*attachments, *unread, *named], maps)
    return Observed(
        maps=maps,
        programs=programs,
        unpinned_programs=unpinned,
        links=through_stubs(with_peers(desired, targets, links), stubs)
        | observe_filters(desired, layout, targets),
        stubs=stubs,
        targets=targets,
        orders=observe_orders(desired, targets),
        map_names=_unpinned_names(maps.values(), programs),
        empty_links=tuple(empty_links),
        arrays=tuple(
            f"{OWN_DIRECTORY}/arrays/{name}" for name in sorted(pins_below(layout.arrays, 2))
        ),
    )


def _observe_programs(desired: Desired, layout: Layout) -> LoadedPrograms:
    """What is loaded of each object, that of its wanted digest first."""
    programs: LoadedPrograms = {}
    for pin in kernel.scan(layout.objects, depth=3, kind=kernel.PinKind.PROGRAM):
        _check_read(layout.objects, pin)
        digests = programs.setdefault(pin.path[0], {})
        if len(pin.path) > 1:
            loaded = digests.setdefault(pin.path[1], {})
            if len(pin.path) > 2:
                loaded[pin.path[2]] = ProgramInfo(pin.id, pin.type, pin.map_ids, pin.name, pin.tag)
    for wanted in desired.objects.values():
        digests = programs.get(escape(wanted.name), {})
        if wanted.digest in digests:
            programs[escape(wanted.name)] = {wanted.digest: digests[wanted.digest], **digests}
    return programs


def _add_unpinned(
    programs: LoadedPrograms, desired: Desired, held: Held
) -> tuple[tuple[str, str, str], ...]:
    """Adds the wanted programs that have lost their pins and are alive; returns their places."""
    unpinned = []
    for wanted in desired.objects.values():
        name = escape(wanted.name)
        loaded = programs.get(name, {}).get(wanted.digest, {})
        if len(loaded) == len(wanted.programs):
            continue
        lost = {
            program: info
            for program in map(escape, wanted.programs)
            if program not in loaded and (info := held.program_info((name, wanted.digest, program)))
        }
        if lost:
            others = programs.get(name, {})
            programs[name] = {
                wanted.digest: {**loaded, **lost},
                **{digest: found for digest, found in others.items() if digest != wanted.digest},
            }
            unpinned += [(name, wanted.digest, program) for program in lost]
    return tuple(unpinned)


def _check_read(directory: str, pin: kernel.Pin) -> None:
    """A pin that cannot be read (no descriptor, no memory) must not pass for one that is dead."""
    if pin.error:
        raise KernelError(f"read the pin {directory}/{'/'.join(pin.path)}", pin.error)


def _observe_map(
    layout: Layout,
    name: str,
    held: Held,
    last_ids: Mapping[str, int],
    former: Callable[[str], str],
) -> ObservedMap:
    source = ""
    try:
        found = kernel.pinned_map(layout.map(name))
        if found is None and (source := former(name)):
            found = kernel.pinned_map(layout.map(source))
    except KernelError as error:
        return ObservedMap(fault=str(error))
    if found:
        fd, info = found
        os.close(fd)
        return ObservedMap(pinned=info, layouts=kernel.btf_layouts(*info.btf), source=source)
    lost = held.map_info(name) or _alive(last_ids.get(name))
    if lost is None and source:
        lost = held.map_info(source) or _alive(last_ids.get(source))
    if lost is None:
        return ObservedMap()
    return ObservedMap(lost=lost, layouts=kernel.btf_layouts(*lost.btf))


def _former(
    desired: Desired,
    layout: Layout,
    programs: LoadedPrograms,
    last_ids: Mapping[str, int],
    name: str,
) -> str:
    """The name that a map may still be pinned under, or was when its pin went.

    tc pins a map of an object's own namespace below the hash of the object's file: a new file has
    another place for it, where the map that the programs run on belongs.
    """
    wanted = desired.maps.get(name)
    if wanted is None or wanted.former:
        return wanted.former if wanted else ""
    place = OBJECT_NAMESPACE.fullmatch(name)
    if not place:
        return ""
    used = {
        map_id
        for user in wanted.users
        for loaded in programs.get(escape(user), {}).values()
        for program in loaded.values()
        for map_id in program.map_ids
    }
    pinned = (f"tc/{other}/{place[2]}" for other in _names_in(f"{layout.root}/tc"))
    for candidate in dict.fromkeys((*pinned, *last_ids)):
        other = OBJECT_NAMESPACE.fullmatch(candidate)
        if not other or other[2] != place[2] or candidate in desired.maps:
            continue
        found = kernel.pinned_map(layout.map(candidate))
        if found:
            os.close(found[0])
        if (found[1].id if found else last_ids.get(candidate)) in used:
            return candidate
    return ""


def _names_in(directory: str) -> list[str]:
    try:
        return sorted(os.listdir(directory))
    except OSError:
        return []


def _alive(map_id: int | None) -> MapInfo | None:
    """A map by its ID, when it is still there and may be asked for."""
    if map_id is None:
        return None
    try:
        fd = kernel.map_by_id(map_id)
        if fd is None:
            return None
        with kernel.holding(fd):
            return kernel.map_info(fd)
    except KernelError:  # without CAP_SYS_ADMIN nobody can tell
        return None


def _unpinned_names(
    maps: Iterable[ObservedMap], programs: Mapping[str, Mapping[str, Mapping[str, ProgramInfo]]]
) -> dict[int, str]:
    pinned = {found.pinned.id for found in maps if found.pinned}
    used = {
        map_id
        for digests in programs.values()
        for loaded in digests.values()
        for program in loaded.values()
        for map_id in program.map_ids
    }
    return {map_id: name for map_id in used - pinned if (name := _kernel_name(map_id))}


@functools.lru_cache(maxsize=4096)
def _kernel_name(map_id: int) -> str:
    """A map's name by its ID, which is not used again before 2^31 more were given out."""
    info = _alive(map_id)
    return info.name if info else ""
