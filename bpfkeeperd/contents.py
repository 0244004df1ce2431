"""The entries that a manifest writes for a map, as what that map can hold. Pure.

Each type of map has its own idea of a key and a value, and some are filled by programs or sockets
only. The rules that need the kernel (is there such an interface?) are for whoever fills the map.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from sys import byteorder

from bpfkeeperd import literals
from bpfkeeperd.decode import Record, decode
from bpfkeeperd.entries import (
    CgroupRef,
    Content,
    ContentValue,
    CpuRef,
    InterfaceRef,
    MapRef,
    ProgramRef,
    RawEntry,
)
from bpfkeeperd.errors import Mark, Problem
from bpfkeeperd.fieldkinds import Either, Field, Integer, Struct, Text
from bpfkeeperd.maptypes import type_name
from bpfkeeperd.nodes import Faults, Node, Place, ScalarNode, flow
from bpfkeeperd.shapes import Shape, plain, shape_of_layout
from bpfkeeperd.state import MapSpec
from bpfkeeperd.values import cgroup, interface, netns, pin_name, program

BYTES_MAX = 16 << 20
"""Of all entries of one map: a manifest is no place for data."""
_CPU_QUEUE_MAX = 16384
_SIZE_WITH_PROGRAM = 8
"""Of the value of a devmap or cpumap whose entries can have a program."""

_PROGRAM = Field("program", Text(program), "OBJECT/PROGRAM.")
_INTERFACE = Either(
    (
        Text(interface),
        Struct(
            (
                Field("interface", Text(interface), "Its name.", required=True),
                Field("netns", Text(netns), "Where it is."),
                _PROGRAM,
            ),
            example="{interface: NAME}",
        ),
    )
)
_CPU = Either(
    (
        Integer(1, _CPU_QUEUE_MAX),
        Struct(
            (
                Field("qsize", Integer(1, _CPU_QUEUE_MAX), "Packets.", required=True),
                _PROGRAM,
            ),
            example="{qsize: 192}",
        ),
    )
)

KEYLESS = frozenset({"queue", "stack", "bloom_filter"})
INDEXED = frozenset(
    {"array", "percpu_array", "prog_array", "cgroup_array", "array_of_maps", "devmap", "cpumap"}
)
_PROGRAMS = "programs fill it as they run"
_FILLED_BY_OTHERS = {
    "perf_event_array": "whoever reads the events puts a perf event for each CPU into it",
    "stack_trace": "bpf_get_stackid() fills it",
    "sockmap": "it holds sockets, which only their owner or a program can put there",
    "sockhash": "it holds sockets, which only their owner or a program can put there",
    "reuseport_sockarray": "it holds sockets, which only their owner can put there",
    "xskmap": "it holds AF_XDP sockets, which only their owner can put there",
    "cgroup_storage": "the kernel makes an entry for each attachment",
    "percpu_cgroup_storage": "the kernel makes an entry for each attachment",
    "sk_storage": f"it is storage of sockets, {_PROGRAMS}",
    "inode_storage": f"it is storage of inodes, {_PROGRAMS}",
    "task_storage": f"it is storage of tasks, {_PROGRAMS}",
    "cgrp_storage": f"it is storage of cgroups, {_PROGRAMS}",
    "ringbuf": "it is a stream, programs write it and readers take from it",
    "user_ringbuf": "it is a stream, programs write it and readers take from it",
    "struct_ops": "its value is the kernel's table of functions, from the object",
    "arena": "it is memory without entries",
    "insn_array": "it holds addresses in a program, from the object",
}


def refusal(map_type: int) -> str:
    """Why a manifest cannot write entries for a map of this type; empty where it can."""
    return _FILLED_BY_OTHERS.get(type_name(map_type), "")


def enforce_refusal(map_type: int) -> str:
    """Why entries cannot be put right again in a map of this type; empty where they can."""
    if type_name(map_type) in ("queue", "stack"):
        return "what is taken out of it is meant to be gone"
    return refusal(map_type)


def encode(
    place: Place,
    spec: MapSpec,
    entries: Sequence[RawEntry],
    key: Shape | None = None,
    value: Shape | None = None,
) -> tuple[tuple[Content, ...], tuple[Problem, ...]]:
    """What a map of this spec is to hold, and what is wrong with the entries.

    ``place`` is that of the entries, as messages name it. Without a shape the layout of the spec
    says what key and value are made of, and without that they are integers of the spec's sizes.

    Raises:
        ManifestError: there are far too many problems; they are in it.
    """
    faults = Faults([place.mark.file])
    if not entries:
        return (), ()
    why = refusal(spec.type)
    if why:
        faults.add(place.mark, f"{place} cannot be written: {why}", "remove them")
        return (), faults.problems
    size = (spec.key_size + spec.value_size) * len(entries)
    if size > BYTES_MAX:
        remedy = f"at most {BYTES_MAX >> 20} MiB can be written: have a program fill the map"
        faults.add(place.mark, f"{place} would be {size >> 20} MiB", remedy)
        return (), faults.problems
    encoder = _Encoder(
        spec,
        type_name(spec.type),
        key or _shape(spec.key_layout, spec.key_size),
        value or _shape(spec.value_layout, spec.value_size),
        faults,
    )
    contents = [
        encoder.entry(entry, place.item(index, entry.mark)) for index, entry in enumerate(entries)
    ]
    found = tuple(content for content in contents if content is not None)
    _check_together(found, len(entries), spec, place, faults)
    return found, faults.problems


def encode_key(
    place: Place, spec: MapSpec, node: Node, shape: Shape | None = None
) -> tuple[bytes | None, tuple[Problem, ...]]:
    """One key of a map, and what is wrong with it; as `encode` takes those of entries."""
    faults = Faults([place.mark.file])
    shape = shape or _shape(spec.key_layout, spec.key_size)
    key = _Encoder(spec, type_name(spec.type), shape, plain(1), faults).key(node, place)
    return key, faults.problems


def _shape(layout: str | None, size: int) -> Shape:
    return (shape_of_layout(layout, size) if layout else None) or plain(size)


def _check_together(
    contents: Sequence[Content], count: int, spec: MapSpec, place: Place, faults: Faults
) -> None:
    """Reports keys that are there twice, and entries that are too many."""
    first: dict[bytes, Mark] = {}
    for content in contents:
        if content.key is None:
            continue
        if content.key in first:
            remedy = f"the first is at {first[content.key]}, remove one of them"
            faults.add(content.mark, f"{place} has the key {content.text} twice", remedy)
            count -= 1
        first.setdefault(content.key, content.mark)
    if count > spec.max_entries:
        message = f"{place} are {count} entries, max_entries is {spec.max_entries}"
        faults.add(place.mark, message, f"raise max_entries to {count} or more")


@dataclass(frozen=True, slots=True)
class _Encoder:
    """Entries of one map, one after the other."""

    spec: MapSpec
    type: str
    key_shape: Shape
    value_shape: Shape
    faults: Faults

    def entry(self, entry: RawEntry, place: Place) -> Content | None:
        """One entry; None when it has a fault."""
        if entry.key is None and self.type not in KEYLESS:
            self.faults.add(entry.mark, f"{place} has no key", "write {key: 0, value: 1500}")
            return None
        if entry.key is not None and self.type in KEYLESS:
            message = f"{place} has a key, a map of type {self.type} has none"
            self.faults.add(place.mark, message, "write {value: 1500}")
            return None
        key = self.key(entry.key, place.under("key", place.mark)) if entry.key else None
        value = self.value(entry.value, place.under("value", place.mark))
        if value is None or (entry.key and key is None):
            return None
        return Content(key, value, entry.mark, flow(entry.key or entry.value))

    def key(self, node: Node, place: Place) -> bytes | None:
        if self.spec.key_size == 0:
            self.faults.add(node.mark, "an entry needs a key, but key_size is 0", "write key_size")
            return None
        if self.type == "lpm_trie":
            return self.lpm(node, place)
        key = literals.encode(self.key_shape, node, place, self.faults)
        if key is None or self.type not in INDEXED:
            return key
        index, most = int.from_bytes(key, byteorder), self.spec.max_entries
        if index >= most:
            noun = "map" if self.type == "cpumap" else "array"
            message = f"key {flow(node)} is outside of the {noun}"
            remedy = f"one of {most} entries has the keys below {most}"
            self.faults.add(node.mark, message, remedy)
            return None
        return key

    def lpm(self, node: Node, place: Place) -> bytes | None:
        size = self.spec.key_size
        if isinstance(node, ScalarNode) and size in (8, 20) and not node.text.startswith("0x"):
            key = literals.lpm_key(size, node, place, self.faults)
        else:
            key = literals.encode(self.key_shape, node, place, self.faults)
        fault = literals.lpm_fault(key, node) if key is not None else None
        if fault:
            self.faults.add(node.mark, f"{place} {fault.message}", fault.remedy)
            return None
        return key

    def value(self, node: Node, place: Place) -> ContentValue | None:
        match self.type:
            case "devmap" | "devmap_hash":
                return self.interface(node, place)
            case "cgroup_array":
                path = self.text(Text(cgroup), node, place)
                return CgroupRef(path) if path is not None else None
            case "prog_array":
                program_text = self.text(Text(program), node, place)
                return _program(program_text) if program_text is not None else None
            case "array_of_maps" | "hash_of_maps":
                name = self.text(Text(pin_name), node, place)
                return MapRef(name) if name is not None else None
            case "cpumap":
                return self.cpu(node, place)
            case _ if self.spec.value_size == 0:
                message = "an entry needs a value, but value_size is 0"
                self.faults.add(node.mark, message, "write value_size")
                return None
            case _:
                return literals.encode(self.value_shape, node, place, self.faults)

    def text(self, kind: Text, node: Node, place: Place) -> str | None:
        found = decode(kind, node, place, self.faults)
        return found.data if found and isinstance(found.data, str) else None

    def interface(self, node: Node, place: Place) -> InterfaceRef | None:
        found = decode(_INTERFACE, node, place, self.faults)
        match found.data if found else None:
            case str() as name:
                return InterfaceRef(name)
            case Record(faulty=False) as record:
                run = self.program_of(record, place)
                return InterfaceRef(record.text("interface") or "", record.text("netns"), run)
            case _:
                return None

    def cpu(self, node: Node, place: Place) -> CpuRef | None:
        found = decode(_CPU, node, place, self.faults)
        match found.data if found else None:
            case int() as size:
                return CpuRef(size)
            case Record(faulty=False) as record:
                return CpuRef(record.number("qsize") or 0, self.program_of(record, place))
            case _:
                return None

    def program_of(self, record: Record, place: Place) -> ProgramRef | None:
        """The program that a devmap or cpumap is to run for an entry."""
        text = record.text("program")
        if text is None:
            return None
        if self.spec.value_size < _SIZE_WITH_PROGRAM:
            message = f"{place} has a program, but value_size is {self.spec.value_size}"
            mark = record.fields["program"].mark
            self.faults.add(mark, message, f"write value_size: {_SIZE_WITH_PROGRAM}")
        return _program(text)


def _program(text: str) -> ProgramRef:
    object_name, _, name = text.rpartition("/")
    return ProgramRef(object_name, name)
