"""The section ``maps`` of a manifest: what is decoded there, as entries that make sense. Pure."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

from bpfkeeperd import contents, shapes
from bpfkeeperd.decode import Member, Record
from bpfkeeperd.entries import NO_PIN, MapDefinition, MapEntry, MismatchPolicy, PinEntry, RawEntry
from bpfkeeperd.errors import Mark
from bpfkeeperd.mapcolumns import OneOf, Size
from bpfkeeperd.mapflags import MAP_FLAGS, NUMA_NODE
from bpfkeeperd.maptypes import BY_NAME, SLOTTED, a_type, type_name
from bpfkeeperd.nodes import Faults, Place
from bpfkeeperd.shapes import Shape
from bpfkeeperd.state import MapSpec
from bpfkeeperd.suggest import did_you_mean
from bpfkeeperd.values import short, shown


def own_spec(name: str, definition: MapDefinition) -> MapSpec:
    """A map of the manifest's own, as an object would declare it."""
    return MapSpec(
        name=name,
        type=BY_NAME[definition.type].number,
        key_size=definition.key_size,
        value_size=definition.value_size,
        max_entries=definition.max_entries,
        flags=definition.flags,
        map_extra=definition.map_extra,
        numa_node=definition.numa_node or 0,
        pinned=True,
        key_layout=shapes.layout_text(definition.key) if definition.key else None,
        value_layout=shapes.layout_text(definition.value) if definition.value else None,
        inner=own_spec(f"{name}.inner", definition.inner) if definition.inner else None,
    )


def nonzero_refusal(map_type: int) -> str:
    """Why slots of a map of this type are not counted by their values; empty where they are."""
    if map_type in SLOTTED:
        return ""
    return f"nonzero is for arrays, it is {a_type(type_name(map_type))}"


def map_entries(
    members: Iterable[tuple[str, Member]], default: MismatchPolicy, faults: Faults
) -> dict[str, MapEntry]:
    """The entries of all maps; each name is there once."""
    reader = _Reader(dict(members), default, faults)
    entries = {name: reader.entry(name) for name in reader.members}
    _check_renames(entries, reader.members, faults)
    return entries


def pin_entry(record: Record) -> PinEntry:
    """What is said of a pin; `NO_PIN` where that is nothing."""
    if not record.fields:
        return NO_PIN
    mode = record.text("mode")
    return PinEntry(
        owner=record.text("owner"),
        group=record.text("group"),
        mode=int(mode, 8) if mode else None,
        marks={field: value.mark for field, value in record.fields.items()},
    )


def _record(member: Member) -> Record:
    return member.value.data if isinstance(member.value.data, Record) else Record({})


class _Reader:
    """Reads maps that may refer to each other."""

    def __init__(self, members: dict[str, Member], default: MismatchPolicy, faults: Faults) -> None:
        self.members = members
        self._default = default
        self._faults = faults
        self._inner_maps: dict[str, MapDefinition | None] = {}

    def entry(self, name: str) -> MapEntry:
        member = self.members[name]
        record = _record(member)
        place = Place("maps", member.mark).under(name, member.mark)
        entries = tuple(_raw_entries(record))
        definition = self._definition(place, record)
        own = record.text("type") is not None
        self._check_count(place, record)
        if definition and not record.faulty:
            definition = self._filled(name, place, record, definition, entries)
        return MapEntry(
            name=name,
            on_mismatch=MismatchPolicy(record.text("on_mismatch") or self._default),
            definition=definition,
            entries=() if own else entries,
            enforce=bool(record.number("enforce")),
            rename_from=record.text("rename_from"),
            count_nonzero=record.text("count") is not None,
            pin=pin_entry(record.record("pin")),
            mark=member.mark,
            marks={field: value.mark for field, value in record.fields.items()},
        )

    def _check_count(self, place: Place, record: Record) -> None:
        map_type, count = record.text("type"), record.fields.get("count")
        why = nonzero_refusal(BY_NAME[map_type].number) if map_type else ""
        if count and why:
            self._faults.add(count.mark, f"{place} cannot have count: {why}", "remove it")

    def _definition(
        self, place: Place, record: Record, *, inner: bool = False
    ) -> MapDefinition | None:
        """The map to create, without contents; None for one that is not defined, or not enough."""
        map_type = record.text("type")
        key, value = self._shape(place, record, "key"), self._shape(place, record, "value")
        if map_type is None:
            return None
        known = BY_NAME[map_type]
        max_entries = 0 if known.sized_by_cpus else _only(known.max_entries)
        if "max_entries" in record.fields:
            max_entries = record.number("max_entries")
        if max_entries is None:
            if not record.faulty:
                remedy = "add max_entries, or remove type"
                mark = record.fields["type"].mark
                self._faults.add(mark, f"{place} has type but no max_entries", remedy)
            return None
        node = record.number("numa_node")
        flags = _flags(record)
        return MapDefinition(
            type=map_type,
            key_size=key.size if key else _size(record, "key_size", known.key.size),
            value_size=value.size if value else _size(record, "value_size", known.value.size),
            max_entries=max_entries,
            flags=flags if node is None else flags | NUMA_NODE,
            map_extra=record.number("map_extra") or 0,
            numa_node=node,
            key=key,
            value=value,
            inner=None if inner else self._inner(place, map_type, record),
        )

    def _shape(self, place: Place, record: Record, what: str) -> Shape | None:
        node = record.node(what)
        if node is None:
            return None
        size = record.fields.get(f"{what}_size")
        if size:
            message = f"{place} has both {what} and {what}_size"
            self._faults.add(size.mark, message, f"keep {what}, which says the size too")
        return shapes.parse(node, place.under(what, record.fields[what].mark), self._faults)

    def _inner(self, place: Place, map_type: str, record: Record) -> MapDefinition | None:
        """What the inner maps of a map of maps are like."""
        found = record.fields.get("inner")
        of_maps = BY_NAME[map_type].outer
        if found is None:
            if of_maps and not record.faulty:
                remedy = "write inner: {type: hash, key: u32, value: u64, max_entries: 100}"
                self._faults.add(place.mark, f"{place} has no inner", remedy)
            return None
        if not of_maps:
            message = f"{place} has inner, which a map of type {map_type} has not"
            self._faults.add(found.mark, message, "remove it, or write type: array_of_maps")
            return None
        below = place.under("inner", found.mark)
        definition = None
        if isinstance(found.data, Record):
            definition = self._definition(below, found.data, inner=True)
        elif isinstance(found.data, str):
            definition = self._named(below, found.data)
        if definition and BY_NAME[definition.type].outer:
            remedy = "the kernel goes one level deep"
            self._faults.add(found.mark, f"{below} cannot be a map of maps itself", remedy)
        return definition

    def _named(self, place: Place, name: str) -> MapDefinition | None:
        """The definition of another map of the manifest; its faults are told where it stands."""
        member = self.members.get(name)
        if member is None:
            remedy = did_you_mean(name[:40], self.members)
            self._faults.add(place.mark, f"{place}: there is no map {shown(name)}", remedy)
            return None
        record = _record(member)
        if record.text("type") is None:
            if not record.faulty:
                message = f"{place}: {shown(name)} has no type, an object declares it"
                self._faults.add(place.mark, message, "write the inner map's type and sizes here")
            return None
        if name not in self._inner_maps:
            reader = _Reader({}, self._default, Faults([]))
            self._inner_maps[name] = reader._definition(place, record, inner=True)
        return self._inner_maps[name]

    def _filled(
        self,
        name: str,
        place: Place,
        record: Record,
        definition: MapDefinition,
        entries: tuple[RawEntry, ...],
    ) -> MapDefinition:
        """A definition with its contents."""
        found = record.fields.get("entries")
        if found is None:
            return definition
        spec = own_spec(name, definition)
        below = place.under("entries", found.mark)
        filled, problems = contents.encode(below, spec, entries, definition.key, definition.value)
        for problem in problems:
            self._faults.add(problem.mark, problem.message, problem.remedy)
        why = contents.enforce_refusal(spec.type)
        if why and record.number("enforce") and not problems:
            mark = record.fields["enforce"].mark
            self._faults.add(mark, f"{place} cannot have enforce: {why}", "remove it")
        return replace(definition, contents=filled)


def _size(record: Record, field: str, size: Size) -> int:
    """The size that is written; where none is, the only one that the type can have."""
    number = record.number(field)
    return (_only(size) or 0) if number is None else number


def _only(size: Size) -> int | None:
    """The size that a type can have, where it is one alone."""
    match size:
        case OneOf((number,)):
            return number
        case _:
            return None


def _flags(record: Record) -> int:
    flags = record.number("flags") or 0
    for item in record.items("flags"):
        if isinstance(item.data, str):
            flags |= MAP_FLAGS[item.data]
    return flags


def _raw_entries(record: Record) -> Iterator[RawEntry]:
    for item in record.items("entries"):
        if isinstance(item.data, Record) and (value := item.data.node("value")):
            yield RawEntry(item.data.node("key"), value, item.mark)


def _check_renames(
    entries: Mapping[str, MapEntry], members: Mapping[str, Member], faults: Faults
) -> None:
    """Reports former names that are still in use, or that two maps claim."""
    first: dict[str, Mark] = {}
    for name, entry in entries.items():
        old = entry.rename_from
        if old is None:
            continue
        mark = _record(members[name]).fields["rename_from"].mark
        place = f"maps.{short(name)}"
        if old == name:
            faults.add(mark, f"{place} cannot be renamed from itself", "remove rename_from")
        elif old in entries:
            message = f"{place} cannot be renamed from {shown(old)}, another map of this manifest"
            faults.add(mark, message, "remove the map of that name, or rename_from")
        elif old in first:
            message = f"{place} and another map are renamed from {shown(old)}"
            faults.add(mark, message, f"the other is at {first[old]}, remove one of them")
        first.setdefault(old, mark)
