"""When two maps are the same map: canonical form, and every field in which they differ. Pure."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from bpfkeeperd.mapcolumns import Inner, Limit, Pages
from bpfkeeperd.mapflags import INNER_MAP, NO_COMMON_LRU, OF_DESCRIPTOR
from bpfkeeperd.maptypes import BY_NUMBER, STRUCT_OPS, type_name
from bpfkeeperd.state import InnerInfo, MapInfo, MapSpec

U32_MAX = 2**32 - 1
DEFAULT_STACK_DEPTH = 127
"""Of the sysctl kernel.perf_event_max_stack."""


@dataclass(frozen=True, slots=True)
class Machine:
    """What canonical form and the rules of map creation depend on."""

    possible_cpus: int
    page_size: int
    kernel_cpus: int = 8192
    """How many the kernel is built for; the default is the most that x86-64 has."""
    stack_depth: int = DEFAULT_STACK_DEPTH
    """The sysctl kernel.perf_event_max_stack."""
    memory_bytes: int | None = None
    """None: not known, nothing is refused for it."""
    numa_nodes: frozenset[int] | None = None
    """Those that are online; None: not known, any will do."""
    online_cpus: tuple[int, ...] = (0,)
    """Where perf events can be counted now."""

    def limit(self, limit: Limit) -> int:
        """A limit of the table as a number."""
        largest = self.page_size << 10
        return {
            Limit.PER_CPU: max(32 << 10, self.page_size),
            Limit.KMALLOC: largest,
            Limit.HASH_ELEMENT: largest - 49,
            Limit.TRIE_VALUE: largest - 280,
            Limit.STACK: 8 * self.stack_depth,
            Limit.KERNEL_CPUS: self.kernel_cpus,
            Limit.ARENA_PAGES: (4 << 30) // self.page_size,
            Limit.PAGE: self.page_size,
        }[limit]


def canonical(spec: MapSpec, machine: Machine) -> MapSpec:
    """The wanted map as the kernel will report it once it is created, its inner map too."""
    flags = spec.flags & ~OF_DESCRIPTOR
    max_entries = spec.max_entries
    value_size = spec.value_size
    known = BY_NUMBER.get(spec.type)
    if known:
        if known.outer:
            value_size = 4
        if known.sized_by_cpus and not max_entries:
            max_entries = machine.possible_cpus
        if isinstance(known.max_entries, Pages) and max_entries:
            max_entries = machine.page_size
            while max_entries < spec.max_entries:
                max_entries *= 2
        if known.flags & flags & NO_COMMON_LRU:  # as many for each CPU
            cpus = machine.possible_cpus
            max_entries = (max_entries + cpus - 1) // cpus * cpus
            if max_entries > U32_MAX:
                max_entries -= cpus
    inner = canonical(spec.inner, machine) if spec.inner else None
    now = flags, max_entries, value_size, inner
    if now == (spec.flags, spec.max_entries, spec.value_size, spec.inner):
        return spec
    return replace(spec, flags=flags, max_entries=max_entries, value_size=value_size, inner=inner)


def differences(want: MapSpec, have: MapInfo) -> tuple[str, ...]:
    """Every field in which a kernel map differs from the wanted one (in canonical form).

    Neither BTF is looked at here, see `layout_differences`, nor what an inner map has to be, see
    `inner_differences`: the kernel does not tell that of the outer map. A STRUCT_OPS map has the
    size of the kernel's struct, and an object's has those of its members that it needs.
    """
    return tuple(
        f"{field} is {is_}, wanted is {wanted}"
        for field, is_, wanted in (
            ("type", type_name(have.type), type_name(want.type)),
            ("key_size", have.key_size, want.key_size),
            ("value_size", have.value_size, want.value_size),
            ("max_entries", have.max_entries, want.max_entries),
            ("flags", f"{_own_flags(have):#x}", f"{want.flags:#x}"),
            ("map_extra", f"{have.map_extra:#x}", f"{want.map_extra:#x}"),
        )
        if is_ != wanted and not (field == "value_size" and want.type == STRUCT_OPS)
    )


def _own_flags(have: MapInfo) -> int:
    """The flags without those that the kernel adds to every map of the type."""
    known = BY_NUMBER.get(have.type)
    return have.flags & ~known.added if known else have.flags


def inner_differences(want: MapSpec, have: MapInfo) -> tuple[str, ...]:
    """Why a map cannot stand in a map-in-map whose inner map is ``want`` (in canonical form).

    The kernel's bpf_map_meta_equal() compares type, sizes of key and value, and flags; max_entries
    only for the types whose lookup is compiled into programs. It also compares the spin locks,
    timers and kernel pointers in the value, which are not seen here.
    """
    known = BY_NUMBER.get(want.type)
    compared = ["type", "key_size", "value_size", "flags"]
    if known and known.inner is Inner.SAME_SIZE and not known.flags & want.flags & INNER_MAP:
        compared.append("max_entries")
    return tuple(
        f"inner {line}" for line in differences(want, have) if line.split(" ", 1)[0] in compared
    )


def pattern_differences(want: MapSpec, have: InnerInfo | None) -> tuple[str, ...]:
    """How the inner map that a kernel map-in-map was made with differs from the wanted one."""
    if want.inner is None or have is None:
        return ()
    pattern = MapInfo(
        0, "", have.type, have.key_size, have.value_size, have.max_entries, have.flags, 0
    )
    return inner_differences(want.inner, pattern)


def spec_differences(one: MapSpec, other: MapSpec) -> tuple[str, ...]:
    """Every field in which two declarations of one map differ, layouts and inner maps included."""
    if one == other:
        return ()
    found = differences(one, as_info(other))
    found += layout_differences(one, other.key_layout, other.value_layout)
    if one.inner and other.inner:
        found += inner_differences(one.inner, as_info(other.inner))
        layouts = layout_differences(one.inner, other.inner.key_layout, other.inner.value_layout)
        found += tuple(f"inner {line}" for line in layouts)
    elif one.inner or other.inner:
        found += (f"inner map is {_inner_text(other)}, wanted is {_inner_text(one)}",)
    return found


def as_info(spec: MapSpec) -> MapInfo:
    """A declaration as the kernel would report its map."""
    return MapInfo(
        0,
        spec.name,
        spec.type,
        spec.key_size,
        spec.value_size,
        spec.max_entries,
        spec.flags,
        spec.map_extra,
    )


def _inner_text(spec: MapSpec) -> str:
    return type_name(spec.inner.type) if spec.inner else "none"


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
