"""What is under the names of kept maps; what others put there is not opened."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from bpfkeeperd import kernel
from bpfkeeperd.accounts import named
from bpfkeeperd.desired import Desired
from bpfkeeperd.directories import names_in
from bpfkeeperd.errors import PASSING, KeeperError, KernelError
from bpfkeeperd.held import Held
from bpfkeeperd.inner import map_of
from bpfkeeperd.layout import OBJECT_NAMESPACE, Layout, escape
from bpfkeeperd.observed import ObservedMap
from bpfkeeperd.pinrights import Rights
from bpfkeeperd.state import MapInfo, ProgramInfo

LoadedPrograms = dict[str, dict[str, dict[str, ProgramInfo]]]
"""Escaped object name, digest, escaped program name."""


@dataclass(frozen=True, slots=True)
class Known:
    """What is known before maps are looked at."""

    desired: Desired
    layout: Layout
    held: Held
    programs: LoadedPrograms
    last_ids: Mapping[str, int]
    owners: Mapping[str, int]
    """See `observe.observe`."""


def observe_maps(known: Known) -> dict[str, ObservedMap]:
    """What is found of each map of the manifest."""
    names = (*known.desired.maps, *known.desired.unread_maps())
    return {name: _observe_map(known, name) for name in names}


def _observe_map(known: Known, name: str) -> ObservedMap:
    source, wanted = "", known.desired.maps.get(name)
    owner = (wanted.rights.uid if wanted else None) or 0
    try:
        found = _pinned(known, name, owner)
        if found is None and (source := _former(known, name, owner)):
            found = _pinned(known, source, owner)
    except KeeperError as error:
        return ObservedMap(fault=str(error))
    if found:
        info, rights = found
        if wanted and wanted.rights and wanted.rights.over(rights) != rights:
            rights = named(rights)
        layouts = kernel.btf_layouts(*info.btf)
        return ObservedMap(pinned=info, layouts=layouts, source=source, rights=rights)
    held, last_ids = known.held, known.last_ids
    lost = held.map_info(name) or _alive(last_ids.get(name))
    if lost is None and source:
        lost = held.map_info(source) or _alive(last_ids.get(source))
    if lost is None:
        return ObservedMap()
    return ObservedMap(lost=lost, layouts=kernel.btf_layouts(*lost.btf))


def _pinned(known: Known, name: str, owner: int) -> tuple[MapInfo, Rights] | None:
    """See `kernel.kept_map`."""
    return kernel.kept_map(known.layout.root, name, owner, known.owners.get(name, 0))


def _former(known: Known, name: str, owner: int) -> str:
    """The name that a map may still be pinned under, or was when its pin went.

    tc pins a map of an object's own namespace below the hash of the object's file: a new file has
    another place for it, where the map that the programs run on belongs.
    """
    wanted = known.desired.maps.get(name)
    if wanted is None or wanted.former:
        return wanted.former if wanted else ""
    place = OBJECT_NAMESPACE.fullmatch(name)
    if not place:
        return ""
    used = {
        map_id
        for user in wanted.users
        for loaded in known.programs.get(escape(user), {}).values()
        for program in loaded.values()
        for map_id in program.map_ids
    }
    pinned = (f"tc/{other}/{place[2]}" for other in sorted(names_in(f"{known.layout.root}/tc")))
    for candidate in dict.fromkeys((*pinned, *known.last_ids)):
        other = OBJECT_NAMESPACE.fullmatch(candidate)
        if not other or other[2] != place[2] or candidate in known.desired.maps:
            continue
        found = _pinned(known, candidate, owner)
        if (found[0].id if found else known.last_ids.get(candidate)) in used:
            return candidate
    return ""


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
    except KernelError as error:
        if error.errno in PASSING:  # what is alive must not pass for dead: its contents would go
            raise
        return None  # without CAP_SYS_ADMIN nobody can tell


def unpinned_names(
    maps: Iterable[ObservedMap], programs: Mapping[str, Mapping[str, Mapping[str, ProgramInfo]]]
) -> dict[int, str]:
    """Maps that programs use and that are not pinned under their names: ID to kernel name."""
    pinned = {found.pinned.id for found in maps if found.pinned}
    used = {
        map_id
        for digests in programs.values()
        for loaded in digests.values()
        for program in loaded.values()
        for map_id in program.map_ids
    }
    return {map_id: name for map_id in used - pinned if (name := _kernel_name(map_id))}


def _kernel_name(map_id: int) -> str:
    """A map's name by its ID; empty where nobody can tell."""
    try:
        info = map_of(map_id)
    except KernelError as error:
        if error.errno in PASSING:
            raise
        return ""
    return info.name if info else ""
