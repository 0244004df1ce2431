"""Maps of maps: which inner maps they take, and what stands in their slots.

The kernel alone knows the definition that a map-in-map was created with; bpf/map_inner.bpf.c reads
it. Where that cannot be had (no BTF, no CAP_PERFMON, Linux before 5.8), an inner map that is in the
map tells it.
"""

import functools
import struct
import sys
from collections.abc import Collection, Mapping
from dataclasses import replace

from bpfkeeperd import iterators, kernel
from bpfkeeperd.errors import KeeperError, KernelError
from bpfkeeperd.layout import Layout
from bpfkeeperd.maptypes import ARRAY_OF_MAPS, BY_NUMBER, HASH_OF_MAPS
from bpfkeeperd.state import InnerInfo, InnerStatus, MapInfo, MapStatus, Status

OBJECT_FILE = iterators.OBJECTS / "map_inner.bpf.o"

SLOTS_MAX = 1 << 20
"""Slots of an array that are looked at, half a second's worth, and keys of a hash."""

_SHOWN_MAX = 4096
"""As `SLOTS_MAX`, for a status: 2 ms."""

_PROGRAM = "describe_inner"
_RECORD = struct.Struct("=6I")
"""``struct record`` of the program."""


def inner_infos(outer_ids: Collection[int] = ()) -> dict[int, InnerInfo]:
    """Outer map ID to the definition of its inner maps, as far as it is known.

    With the iterator these are all maps-in-maps of the machine, without it those asked for that
    have an inner map. A definition never changes and an ID is not used again: the same question
    twice loads the iterator once. Without ``outer_ids`` it is always loaded.
    """
    try:
        return dict(_remembered(frozenset(outer_ids)) if outer_ids else _definitions())
    except (KeeperError, OSError):
        found = {outer_id: _inner_of(outer_id) for outer_id in outer_ids}
        return {outer_id: info for outer_id, info in found.items() if info}


@functools.lru_cache(maxsize=1)
def _remembered(outer_ids: frozenset[int]) -> Mapping[int, InnerInfo]:
    return _definitions()


def _definitions() -> dict[int, InnerInfo]:
    """From the iterator, which is loaded, read once and gone again."""
    with kernel.holding(iterators.load(OBJECT_FILE, _PROGRAM)) as link_fd:
        records = iterators.read(link_fd)
    return {
        outer_id: InnerInfo(map_type, key_size, value_size, max_entries, flags)
        for outer_id, map_type, key_size, value_size, flags, max_entries in _RECORD.iter_unpack(
            records
        )
    }


def _inner_of(outer_id: int) -> InnerInfo | None:
    """The definition as one inner map has it; its max_entries may differ from the others'."""
    try:
        fd = kernel.map_by_id(outer_id)
        if fd is None:
            return None
        with kernel.holding(fd):
            found = slots(fd, kernel.map_info(fd))
        info = next((info for inner_id in found.values() if (info := map_of(inner_id))), None)
    except KernelError:  # without CAP_SYS_ADMIN nobody can tell
        return None
    if info is None:
        return None
    return InnerInfo(info.type, info.key_size, info.value_size, info.max_entries, info.flags)


def slots(fd: int, info: MapInfo, most: int = SLOTS_MAX) -> dict[bytes, int]:
    """Key to inner map ID (of a program array: program ID) of the filled slots.

    Looks at no more than the first ``most`` slots of an array, in their order, or keys of a hash.

    Raises:
        KernelError: the map does not tell what it holds.
    """
    array = info.type != HASH_OF_MAPS
    most = min(info.max_entries, most) if array else most
    return dict(kernel.map_slots(fd, info.key_size, array=array, most=most))


def with_inner_maps(status: Status, layout: Layout) -> Status:
    """The status with the inner maps that stand in the pinned maps of maps now."""
    return replace(status, maps=tuple(_with_inner_maps(entry, layout) for entry in status.maps))


def _with_inner_maps(status: MapStatus, layout: Layout) -> MapStatus:
    known = BY_NUMBER.get(status.type)
    if status.id is None or not known or not known.outer:
        return status
    try:
        found = kernel.pinned_map(layout.map(status.name))
        if found is None:
            return status
        with kernel.holding(found[0]) as fd:
            filled = slots(fd, found[1], most=_SHOWN_MAX)
        inner = [(key, info) for key, inner_id in filled.items() if (info := map_of(inner_id))]
    except KernelError:  # gone meanwhile, or without CAP_SYS_ADMIN: nothing to show
        return status
    array = status.type == ARRAY_OF_MAPS
    return replace(
        status,
        inner=tuple(
            InnerStatus(_key_text(key, array=array), info.id, info.type, info.max_entries)
            for key, info in inner
        ),
    )


def _key_text(key: bytes, *, array: bool) -> str:
    return str(int.from_bytes(key, sys.byteorder)) if array else key.hex(":")


@functools.lru_cache(maxsize=4096)
def map_of(map_id: int) -> MapInfo | None:
    """What a map is, by its ID, which is not used again before 2^31 more were given out.

    Raises:
        KernelError: EPERM without CAP_SYS_ADMIN.
    """
    fd = kernel.map_by_id(map_id)
    if fd is None:
        return None
    with kernel.holding(fd):
        return kernel.map_info(fd)
