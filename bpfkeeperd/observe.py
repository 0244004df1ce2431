"""Looks at bpffs and the kernel; changes nothing."""

from collections.abc import Mapping

from bpfkeeperd import kernel
from bpfkeeperd.desired import Desired
from bpfkeeperd.directories import pins_below
from bpfkeeperd.errors import KernelError
from bpfkeeperd.held import Held
from bpfkeeperd.homes import without_strangers
from bpfkeeperd.layout import OWN_DIRECTORY, Layout, LinkKey, escape
from bpfkeeperd.mapattached import observe_attached
from bpfkeeperd.observecontents import with_contents
from bpfkeeperd.observed import Observed, ObservedLink
from bpfkeeperd.observemaps import Known, LoadedPrograms, observe_maps, unpinned_names
from bpfkeeperd.observenet import observe_filters, observe_orders, with_netns, with_peers
from bpfkeeperd.observestubs import observe_stubs, through_stubs
from bpfkeeperd.observetargets import observe_targets
from bpfkeeperd.state import LinkInfo, ProgramInfo

NO_OWNERS: Mapping[str, int] = {}


def observe(
    desired: Desired,
    layout: Layout,
    held: Held,
    last_ids: Mapping[str, int],
    owners: Mapping[str, int] = NO_OWNERS,
) -> Observed:
    """Everything that a plan needs to know.

    ``last_ids`` are the map IDs last seen under each name since this boot: a map whose pin is gone
    may still be alive under one of them. ``owners`` are the users that pins were given to, which
    the manifest of now need not name any more.

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
    maps = observe_maps(Known(desired, layout, held, programs, last_ids, owners))
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
        map_names=unpinned_names(maps.values(), programs),
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
