"""When two maps are the same map: canonical form, and every field in which they differ. Pure."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from bpfkeeperd.maptypes import (
    ARRAY_OF_MAPS,
    DEVMAP,
    DEVMAP_HASH,
    HASH_OF_MAPS,
    LRU_HASH,
    LRU_PERCPU_HASH,
    PERF_EVENT_ARRAY,
    RINGBUF,
    USER_RINGBUF,
    type_name,
)
from bpfkeeperd.state import InnerInfo, MapInfo, MapSpec

NO_COMMON_LRU = 0x2
RDONLY = 0x8
WRONLY = 0x10
RDONLY_PROG = 0x80


@dataclass(frozen=True, slots=True)
class Machine:
    """What canonical form depends on."""

    possible_cpus: int
    page_size: int


def canonical(spec: MapSpec, machine: Machine) -> MapSpec:
    """The wanted map as the kernel will report it once it is created."""
    flags = spec.flags & ~(RDONLY | WRONLY)  # properties of the descriptor, not of the map
    max_entries = spec.max_entries
    value_size = spec.value_size
    match spec.type:
        case type_ if type_ in (ARRAY_OF_MAPS, HASH_OF_MAPS):
            value_size = 4
        case type_ if type_ == PERF_EVENT_ARRAY and max_entries == 0:
            max_entries = machine.possible_cpus
        case type_ if type_ in (RINGBUF, USER_RINGBUF) and max_entries:
            max_entries = machine.page_size
            while max_entries < spec.max_entries:
                max_entries *= 2
        case type_ if type_ in (LRU_HASH, LRU_PERCPU_HASH) and flags & NO_COMMON_LRU:
            cpus = machine.possible_cpus
            max_entries = (max_entries + cpus - 1) // cpus * cpus
    if (flags, max_entries, value_size) == (spec.flags, spec.max_entries, spec.value_size):
        return spec
    return replace(spec, flags=flags, max_entries=max_entries, value_size=value_size)


def differences(want: MapSpec, have: MapInfo) -> tuple[str, ...]:
    """Every field in which a kernel map differs from the wanted one (in canonical form).

    BTF is not looked at here: see `layout_differences`.
    """
    flags = have.flags
    if have.type in (DEVMAP, DEVMAP_HASH):
        flags &= ~RDONLY_PROG  # the kernel adds it to every devmap
    return tuple(
        f"{field} is {is_}, wanted is {wanted}"
        for field, is_, wanted in (
            ("type", type_name(have.type), type_name(want.type)),
            ("key_size", have.key_size, want.key_size),
            ("value_size", have.value_size, want.value_size),
            ("max_entries", have.max_entries, want.max_entries),
            ("flags", f"{flags:#x}", f"{want.flags:#x}"),
            ("map_extra", f"{have.map_extra:#x}", f"{want.map_extra:#x}"),
        )
        if is_ != wanted
    )


def inner_differences(want: MapSpec, have: InnerInfo | None) -> tuple[str, ...]:
    """How the inner maps that a map-in-map takes differ from the wanted ones; libbpf and the
    kernel's info say nothing of them."""
    inner = want.inner
    if inner is None or have is None:
        return ()
    return tuple(
        f"inner {field} is {is_}, wanted is {wanted}"
        for field, is_, wanted in (
            ("type", type_name(have.type), type_name(inner.type)),
            ("key_size", have.key_size, inner.key_size),
            ("value_size", have.value_size, inner.value_size),
            ("max_entries", have.max_entries, inner.max_entries),
            ("flags", f"{have.flags:#x}", f"{inner.flags:#x}"),
        )
        if is_ != wanted
    )


def spec_differences(one: MapSpec, other: MapSpec) -> tuple[str, ...]:
    """Every field in which two declarations of one map differ, layouts included."""
    if one == other:
        return ()
    as_info = MapInfo(
        0,
        other.name,
        other.type,
        other.key_size,
        other.value_size,
        other.max_entries,
        other.flags,
        other.map_extra,
    )
    return differences(one, as_info) + layout_differences(one, other.key_layout, other.value_layout)


def layout_differences(
    want: MapSpec, key_layout: str | None, value_layout: str | None
) -> tuple[str, ...]:
    """How key and value differ in their BTF, where both sides have it.

    Names, places and sizes of the members are compared; signedness and type names are not: they
    change nothing about what the bytes mean.
    """
    return (
        *_layout_lines("key", key_layout, want.key_layout),
        *_layout_lines("value", value_layout, want.value_layout),
    )


def _layout_lines(what: str, have: str | None, want: str | None) -> Iterator[str]:
    if have is None or want is None or have == want:
        return
    have_lines, want_lines = have.splitlines(), want.splitlines()
    for index in range(max(len(have_lines), len(want_lines))):
        is_ = have_lines[index] if index < len(have_lines) else None
        wanted = want_lines[index] if index < len(want_lines) else None
        if is_ != wanted:
            yield f"{what} layout: {_member(is_)}, wanted is {_member(wanted)}"
            return


def _member(line: str | None) -> str:
    if line is None:
        return "nothing more"
    offset, bits, kind, path = line.split(":", 3)
    place, size = divmod(int(offset), 8), divmod(int(bits), 8)
    at = f"byte {place[0]}" + (f" bit {place[1]}" if place[1] else "")
    wide = f"{size[0]} bytes" if not size[1] else f"{bits} bits"
    return f"{path or 'a value'} ({kind}, {wide}) at {at}"
