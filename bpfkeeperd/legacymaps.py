"""Map definitions from before BTF: what the words of a `struct bpf_map_def` or `bpf_elf_map` mean.

Their layouts were never fixed. With BTF the names of the members tell; without, the size does and,
where two forms have one size, what their words say:

====== ============================================================================================
words  form (all begin with type, key_size, value_size, max_entries)
====== ============================================================================================
4, 5   both: map_flags
6      the kernel's samples before 4.14: inner_map_idx; or tc: id
7      the kernel's samples: inner_map_idx, numa_node; or tc before 4.14: id, pinning
9      tc (`struct bpf_elf_map`): id, pinning, inner_id, inner_idx
70     gobpf: pinning, and a namespace of 256 bytes
====== ============================================================================================
"""

import re
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bpfkeeperd.btf import Btf, Kind
from bpfkeeperd.errors import ObjectError

PROG_ARRAY = 3
MAPS_OF_MAPS = (12, 13)
_NUMA_NODE = 4
"""BPF_F_NUMA_NODE: without it the word numa_node means nothing."""

_BASE = ("type", "key_size", "value_size", "max_entries", "flags")
_SAMPLES = (*_BASE, "inner_map_idx", "numa_node")
_TC = (*_BASE, "id", "pinning", "inner_id", "inner_idx")
_GOBPF_WORDS = 70
_GOBPF = (*_BASE, "pinning")
_WORDS_MAX = 1024
_MEMBERS = {
    **{name: name for name in (*_SAMPLES, *_TC)},
    "size_key": "key_size",
    "size_value": "value_size",
    "max_elem": "max_entries",
    "map_flags": "flags",
}
"""What the structs call their members, and what they are called here."""
_IDENTIFIER = re.compile(r"[A-Za-z_.][A-Za-z0-9_.]{0,126}")
"""What the kernel takes as the name of a variable in BTF."""


@dataclass(frozen=True, slots=True)
class Definition:
    """A variable that defines a map, and where it is."""

    name: str
    content: bytes


@dataclass(frozen=True, slots=True)
class LegacyMap:
    """A map as an old object defines it. Sizes in bytes."""

    name: str
    type: int
    key_size: int
    value_size: int
    max_entries: int
    flags: int = 0
    numa_node: int = 0
    id: int = 0
    """tc's: what inner_id and the names of tail-called sections refer to; 0 for none."""
    pinning: int = 0
    """tc's: 0 none, 1 for this object, 2 for all."""
    inner_id: int = 0
    inner_idx: int = 0
    """tc's, of an inner map: its slot in the outer ones; 0xffffffff for none."""
    inner_map_idx: int | None = None
    """The samples': which map, counted from 0, is the pattern of the inner ones."""


def read_maps(definitions: Sequence[Definition], btf: Btf | None) -> list[LegacyMap]:
    """What the variables define, in their order.

    Raises:
        ObjectError: a definition is damaged, or it cannot be told what it means.
    """
    without_names: dict[str, tuple[int, ...]] = {}
    fields: dict[str, Mapping[str, int]] = {}
    for definition in definitions:
        name = definition.name
        if not _IDENTIFIER.fullmatch(name):
            raise ObjectError(f"a map is called {name[:40]!r}: the kernel takes letters, digits, _")
        if name in fields or name in without_names:
            raise ObjectError(f"two maps are called {name}: rename one")
        named = _named_fields(definition, btf) if btf else None
        if named is None:
            without_names[name] = _words(definition)
        else:
            fields[name] = named
    tc = _is_tc(without_names)
    for name, words in without_names.items():
        fields[name] = _unnamed_fields(name, words, tc)
    return [_legacy_map(item.name, fields[item.name]) for item in definitions]


def _words(definition: Definition) -> tuple[int, ...]:
    size = len(definition.content)
    if size % 4 or not 16 <= size <= 4 * _WORDS_MAX:
        raise ObjectError(
            f"map {definition.name} is defined in {size} bytes: a struct bpf_map_def or bpf_elf_map"
            " has 16 or more, in words of 4"
        )
    return struct.unpack(f"<{size // 4}I", definition.content)


def _named_fields(definition: Definition, btf: Btf) -> dict[str, int] | None:
    """The fields by the names of the struct's members; None where BTF does not know them."""
    variable = btf.find(Kind.VAR, definition.name)
    if variable is None:
        return None
    form = btf.resolve(btf.types[variable].type_id)
    if form.kind is not Kind.STRUCT or not form.members or form.members[0].name != "type":
        return None
    fields: dict[str, int] = {}
    namespace = False
    for member in form.members:
        namespace |= member.name == "namespace"
        size = btf.size(member.type_id)
        content = definition.content[member.bit_offset // 8 :][:size]
        known = _MEMBERS.get(member.name)
        if known and (size != 4 or len(content) != 4 or member.bit_size or member.bit_offset % 8):
            raise ObjectError(
                f"map {definition.name} is damaged: its {member.name} is no whole word of it"
            )
        if known:
            fields[known] = int.from_bytes(content, "little")
        elif any(content) and member.name != "namespace":
            raise ObjectError(
                f'map {definition.name} sets {member.name}, which is not known in SEC("maps"):'
                ' declare the map in SEC(".maps")'
            )
    if not fields.keys() >= set(_BASE[:4]):
        return None
    return _without_namespace(definition.name, fields) if namespace else fields


def _without_namespace(name: str, fields: dict[str, int]) -> dict[str, int]:
    """gobpf's: its pinning has numbers and places of its own."""
    if fields.get("pinning"):
        raise ObjectError(
            f"map {name} is pinned by gobpf's namespaces, which are not known here: build the"
            " object with pinning 0, and name the map in the manifest's pin_maps"
        )
    return fields


def _is_tc(definitions: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether words that may be tc's or the samples' are tc's.

    Raises:
        ObjectError: some say the one and some the other.
    """
    tc, samples = [], []
    for name, words in definitions.items():
        if len(words) == _GOBPF_WORDS:
            continue
        inner_or_id, node_or_pinning, *rest = (*words[5:], 0, 0)
        numa = words[4] & _NUMA_NODE if len(words) > 4 else 0
        if any(rest):
            tc.append(name)
        elif words[0] in MAPS_OF_MAPS and len(words) in (6, 7):
            samples.append(name)
        elif inner_or_id or (node_or_pinning and not numa):
            tc.append(name)
        elif node_or_pinning:
            samples.append(name)
    if tc and samples:
        raise ObjectError(
            f"it cannot be told whether the maps are struct bpf_elf_map (as {tc[0]}) or bpf_map_def"
            f" (as {samples[0]}): build the object with -g"
        )
    nine = any(len(words) == len(_TC) for words in definitions.values())
    return bool(tc) or (nine and not samples)


def _unnamed_fields(name: str, words: tuple[int, ...], tc: bool) -> dict[str, int]:
    if len(words) == _GOBPF_WORDS:
        return _without_namespace(name, dict(zip(_GOBPF, words, strict=False)))
    form = _TC if tc else _SAMPLES
    if any(words[len(form) :]):
        raise ObjectError(
            f"map {name} is defined in {4 * len(words)} bytes, which is no known form:"
            " build the object with -g"
        )
    return dict(zip(form, words, strict=False))


def _legacy_map(name: str, fields: Mapping[str, int]) -> LegacyMap:
    if not fields["type"]:
        raise ObjectError(f"map {name} has no type: it is damaged, or not meant for a map section")
    numbers = dict(fields)
    if numbers.get("pinning", 0) > 2:
        raise ObjectError(
            f"map {name} has pinning {numbers['pinning']}, which only /etc/iproute2/bpf_pinning"
            " gives a place: use 0 (none), 1 (for the object) or 2 (for all)"
        )
    if not numbers.get("flags", 0) & _NUMA_NODE:
        numbers["numa_node"] = 0
    return LegacyMap(name, **numbers)
