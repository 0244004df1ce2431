"""Map definitions as libbpf 1.0 and later reads them: structs in the BTF of an object.

A number N is a pointer to an array of N elements; what a map of maps or of programs begins with is
listed behind its struct, by relocations against the member ``values``.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from bpfkeeperd.btf import Btf, BtfBuilder, Kind, Member, Variable
from bpfkeeperd.legacymaps import PROG_ARRAY, LegacyMap

SECTION = ".maps"
POINTER_SIZE = 8
GLOBAL = 1
"""BTF_VAR_GLOBAL_ALLOCATED: libbpf takes no other."""


@dataclass(frozen=True, slots=True)
class Declaration:
    """A map with what it holds from the beginning."""

    map: LegacyMap
    inner: LegacyMap | None = None
    """The pattern of a map of maps."""
    slots: Mapping[int, int] = field(default_factory=dict)
    """Slot to the symbol of a map or program."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a map's variable lies in the section; in bytes."""

    offset: int
    size: int
    values: int
    """Where its slots begin, from the start of the section."""


def declare(
    btf_data: bytes | None, btf: Btf | None, declarations: Sequence[Declaration]
) -> tuple[bytes, list[Place]]:
    """BTF that defines the maps, and their places in the section ``.maps``.

    With BTF of the object at hand, its types keep their IDs: programs refer to them.
    """
    builder = BtfBuilder(btf_data)
    known = _variables(btf) if btf else {}
    places: list[Place] = []
    variables: list[Variable] = []
    offset = 0
    for item in declarations:
        members = _members(builder, btf, item)
        definition = builder.add_struct("", POINTER_SIZE * len(members.own), members.all)
        values = offset + POINTER_SIZE * len(members.own)
        size = values - offset + POINTER_SIZE * (max(item.slots, default=-1) + 1)
        variable = known.get(item.map.name)
        if variable is None:
            variable = builder.add_var(item.map.name, definition, GLOBAL)
        else:
            builder.replace_var(variable, item.map.name, definition, GLOBAL)
        variables.append(Variable(variable, offset, size))
        places.append(Place(offset, size, values))
        offset += size
    _put_section(builder, btf, offset, variables)
    return builder.data(), places


def is_map_section(name: str) -> bool:
    return name == "maps" or name.startswith("maps/")


def _sections(btf: Btf) -> list[int]:
    return [
        type_id
        for type_id, item in enumerate(btf.types)
        if item.kind is Kind.DATASEC and is_map_section(item.name)
    ]


def _variables(btf: Btf) -> dict[str, int]:
    """The variables in the old map sections, by name."""
    return {
        btf.types[variable.type_id].name: variable.type_id
        for type_id in _sections(btf)
        for variable in btf.types[type_id].variables
        if btf.types[variable.type_id].kind is Kind.VAR
    }


def _put_section(
    builder: BtfBuilder, btf: Btf | None, size: int, variables: Sequence[Variable]
) -> None:
    old = _sections(btf) if btf else []
    if not old:
        builder.add_datasec(SECTION, size, variables)
        return
    builder.replace_datasec(old[0], SECTION, size, variables)
    for type_id in old[1:]:  # each map had a section of its own: nothing refers to them
        builder.replace_pointer(type_id, 0)


@dataclass(frozen=True, slots=True)
class _Members:
    own: tuple[Member, ...]
    values: tuple[Member, ...]

    @property
    def all(self) -> tuple[Member, ...]:
        return self.own + self.values


def _members(builder: BtfBuilder, btf: Btf | None, item: Declaration) -> _Members:
    own = _plain_members(builder, btf, item.map, sized=item.inner is None)
    if item.inner is not None:
        inner = _plain_members(builder, btf, item.inner, sized=True)
        element = builder.add_struct("", POINTER_SIZE * len(inner), inner)
    elif item.map.type == PROG_ARRAY and item.slots:
        element = builder.add_function(builder.add_int("int", 4, signed=True))
    else:
        return _Members(own, ())
    values = builder.add_array(builder.add_pointer(element), 0)
    return _Members(own, (Member("values", values, 8 * POINTER_SIZE * len(own)),))


def _plain_members(
    builder: BtfBuilder, btf: Btf | None, item: LegacyMap, *, sized: bool
) -> tuple[Member, ...]:
    """Numbers of a definition, without those that are 0; ``sized``: with the value's size."""
    types = _annotation(btf, item)
    byte = builder.add_int("unsigned char", 1)  # of ints, 2^30 would be more than BTF can have
    numbers = {
        "type": item.type,
        "key_size": 0 if types else item.key_size,
        "value_size": item.value_size if sized and not types else 0,
        "max_entries": item.max_entries,
        "map_flags": item.flags,
        "numa_node": item.numa_node,
    }
    pointers = {name: builder.add_array(byte, number) for name, number in numbers.items() if number}
    if types:
        pointers.update(zip(("key", "value"), types, strict=True))
    return tuple(
        Member(name, builder.add_pointer(target), 8 * POINTER_SIZE * place)
        for place, (name, target) in enumerate(pointers.items())
    )


def _annotation(btf: Btf | None, item: LegacyMap) -> tuple[int, int] | None:
    """Key and value type of BPF_ANNOTATE_KV_PAIR; None without, or where the sizes are others."""
    number = btf.find(Kind.STRUCT, f"____btf_map_{item.name}") if btf else None
    if btf is None or number is None:
        return None
    members = btf.types[number].members
    if tuple(member.name for member in members) != ("key", "value"):
        return None
    key, value = (member.type_id for member in members)
    if (btf.size(key), btf.size(value)) != (item.key_size, item.value_size):
        return None  # as loaders always did: the definition is what counts
    return key, value
