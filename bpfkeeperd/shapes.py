"""What the bytes of a key or a value are: scalars, arrays, structs, placed as in C. Pure.

A shape comes from the manifest (`parse`), or from the layout of what an object declares
(`shape_of_layout`). It gives the sizes, the BTF for the kernel, and the layout in the very words
in which the extension describes BTF, so that the two can be compared.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import assert_never

from bpfkeeperd.btfbuilder import BtfBuilder
from bpfkeeperd.btfformat import Member as BtfMember
from bpfkeeperd.nodes import BrokenNode, Faults, ListNode, MappingNode, Node, Place, ScalarNode
from bpfkeeperd.suggest import did_you_mean
from bpfkeeperd.values import shown

SIZE_MAX_BYTES = 1 << 20
"""Of what the manifest can give a shape to; a larger value has a value_size only."""
LAYOUT_MAX_BYTES = 64 << 10
"""Longer layouts are none, as in the extension."""
_LEAVES_MAX = 256
_DEPTH_MAX = 8
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,39}")
_TYPE = re.compile(r"([a-z0-9]+)(?:\[(0|[1-9][0-9]{0,8})\])?")
_EXAMPLE = "write a type such as u64, or {NAME: TYPE, ...}"


class Form(StrEnum):
    """How the bits of a scalar are read."""

    UNSIGNED = "unsigned"
    SIGNED = "signed"
    INTEGER = "integer"
    """Whether it has a sign is not known."""
    NETWORK = "network"
    """Unsigned, the first byte the most significant."""
    BOOL = "bool"
    CHAR = "char"
    ADDRESS = "address"
    """An IP address, in network order."""
    OPAQUE = "opaque"
    """Bytes only: floating point numbers, pointers."""


@dataclass(frozen=True, slots=True)
class Scalar:
    name: str
    """As in the manifest; empty where only a layout is known."""
    bits: int
    form: Form

    @property
    def size(self) -> int:
        return (self.bits + 7) // 8


@dataclass(frozen=True, slots=True)
class Array:
    element: "Shape"
    count: int

    @property
    def size(self) -> int:
        return self.element.size * self.count


@dataclass(frozen=True, slots=True)
class Member:
    name: str
    """Empty for a union without a name, whose members count as its parent's."""
    bit_offset: int
    """From the start of the struct; whole bytes but for bit-fields."""
    shape: "Shape"


@dataclass(frozen=True, slots=True)
class Struct:
    members: tuple[Member, ...]
    size: int
    union: bool = False


Shape = Scalar | Array | Struct

_SCALARS = {
    scalar.name: scalar
    for scalar in (
        *(Scalar(f"u{bits}", bits, Form.UNSIGNED) for bits in (8, 16, 32, 64)),
        *(Scalar(f"s{bits}", bits, Form.SIGNED) for bits in (8, 16, 32, 64)),
        *(Scalar(f"be{bits}", bits, Form.NETWORK) for bits in (16, 32, 64)),
        Scalar("bool", 8, Form.BOOL),
        Scalar("ipv4", 32, Form.ADDRESS),
        Scalar("ipv6", 128, Form.ADDRESS),
        Scalar("char", 8, Form.CHAR),
    )
}
_IPV6 = _SCALARS["ipv6"]
TYPE_NAMES = tuple(_SCALARS)


def named(name: str) -> Scalar:
    """A scalar by the name that the manifest has for it."""
    return _SCALARS[name]


def plain(size: int) -> Scalar:
    """Bytes of which nothing but the size is known: an integer in the machine's byte order."""
    return Scalar("", 8 * size, Form.INTEGER)


def alignment(shape: Shape) -> int:
    """The C alignment of a shape of the manifest, in bytes."""
    match shape:
        case Scalar():
            return 4 if shape == _IPV6 else shape.size  # struct in6_addr holds 32-bit words
        case Array(element=element):
            return alignment(element)
        case Struct(members=members):
            return max((alignment(member.shape) for member in members), default=1)
        case _:
            assert_never(shape)


def struct(members: Sequence[tuple[str, Shape]]) -> Struct:
    """A struct whose members are placed as C places them, padding included."""
    end, placed = 0, []
    for name, shape in members:
        start = _rounded(end, alignment(shape))
        placed.append(Member(name, 8 * start, shape))
        end = start + shape.size
    largest = max((alignment(shape) for _, shape in members), default=1)
    return Struct(tuple(placed), _rounded(end, largest))


def _rounded(size: int, step: int) -> int:
    return (size + step - 1) // step * step


# ---- as the manifest writes it ----


def parse(node: Node, place: Place, faults: Faults) -> Shape | None:
    """The shape that a type name or a mapping of members stands for; None after a fault."""
    shape = _parse(node, place, faults, 1)
    if shape is None:
        return None
    if shape.size > SIZE_MAX_BYTES:
        message = f"{place} has {shape.size} bytes, at most {SIZE_MAX_BYTES} can be described"
        faults.add(node.mark, message, "leave it out, and give the size in bytes only")
        return None
    if _leaves(shape) > _LEAVES_MAX:
        message = f"{place} has {_leaves(shape)} members, at most {_LEAVES_MAX} can be"
        faults.add(node.mark, message, "write arrays where members are alike")
        return None
    return shape


def _parse(node: Node, place: Place, faults: Faults, depth: int) -> Shape | None:
    match node:
        case BrokenNode():
            return None
        case ScalarNode(is_null=True):
            faults.add(node.mark, f"{place} has no type", _EXAMPLE)
            return None
        case ScalarNode(text=text):
            return _named(text, node, place, faults)
        case ListNode():
            faults.add(node.mark, f"{place} must be a type or a mapping, not a list", _EXAMPLE)
            return None
        case MappingNode():
            if depth > _DEPTH_MAX:
                faults.add(node.mark, f"{place} is nested more than {_DEPTH_MAX} deep", "")
                return None
            return _parse_struct(node, place, faults, depth)
        case _:
            assert_never(node)


def _named(text: str, node: Node, place: Place, faults: Faults) -> Shape | None:
    found = _TYPE.fullmatch(text)
    scalar = _SCALARS.get(found[1]) if found else None
    if found is None or scalar is None:
        bare = text.partition("[")[0].strip().removeprefix("__")
        remedy = did_you_mean(_C_NAMES.get(bare, bare)[:40], TYPE_NAMES)
        faults.add(node.mark, f"{place} cannot be of type {shown(text)}", remedy)
        return None
    if found[2] is None:
        if scalar.form is not Form.CHAR:
            return scalar
        remedy = "write char[16] for a text of at most 16 bytes, or u8"
        faults.add(node.mark, f"{place} cannot be a single char", remedy)
        return None
    if int(found[2]) == 0:
        faults.add(node.mark, f"{place} cannot be an array of 0 elements", "write 1 or more")
        return None
    return Array(scalar, int(found[2]))


_C_NAMES = {
    "int": "s32",
    "unsigned int": "u32",
    "int32": "s32",
    "uint32": "u32",
    "int64": "s64",
    "uint64": "u64",
    "int16": "s16",
    "uint16": "u16",
    "int8": "s8",
    "uint8": "u8",
    **{f"int{bits}_t": f"s{bits}" for bits in (8, 16, 32, 64)},
    **{f"uint{bits}_t": f"u{bits}" for bits in (8, 16, 32, 64)},
}
"""What C calls some of the types, so that the nearest name is the one that was meant."""


def _parse_struct(node: MappingNode, place: Place, faults: Faults, depth: int) -> Shape | None:
    members: dict[str, Shape] = {}
    good = True
    for key, value in node.pairs:
        shape = _parse(value, place.under(key.text, key.mark), faults, depth + 1)
        if not _NAME.fullmatch(key.text):
            message = f"a name in {place} cannot be {shown(key.text)}"
            remedy = "write a name as in C, of at most 40 letters, digits and underscores"
            faults.add(key.mark, message, remedy)
            good = False
        elif key.text in members:
            faults.add(key.mark, f"{place} has {shown(key.text)} twice", "remove one of them")
            good = False
        elif shape is None:
            good = False
        else:
            members[key.text] = shape
    if not node.pairs:
        faults.add(node.mark, f"{place} has no members", _EXAMPLE)
    return struct(tuple(members.items())) if good and members else None


def _leaves(shape: Shape) -> int:
    match shape:
        case Scalar():
            return 1
        case Array(element=element):
            return 1 + _leaves(element)
        case Struct(members=members):
            return sum(_leaves(member.shape) for member in members)
        case _:
            assert_never(shape)


# ---- as BTF ----

_C_TYPES = {"char": "char", "bool": "bool", "ipv4": "in_addr_t"}
"""What C calls the scalars; the others have two underscores before their name."""


def btf(key: Shape | None, value: Shape | None) -> tuple[bytes, int, int]:
    """BTF for a map, and the type IDs of key and value; 0 for what the map does not have."""
    builder = BtfBuilder()
    key_id = _add(builder, key, "key") if key else 0
    value_id = _add(builder, value, "value") if value else 0
    return builder.data(), key_id, value_id


def _add(builder: BtfBuilder, shape: Shape, name: str = "") -> int:
    match shape:
        case Scalar() if shape == _IPV6:
            return _add(builder, _IN6_ADDR, "in6_addr")
        case Scalar(name="", size=size) if size not in (1, 2, 4, 8, 16):
            return _add(builder, Array(_SCALARS["u8"], size))
        case Scalar(form=form, size=size):
            return builder.add_int(
                _C_TYPES.get(shape.name, f"__{shape.name or f'u{8 * size}'}"),
                size,
                signed=form is Form.SIGNED,
                char=form is Form.CHAR,
                bool=form is Form.BOOL,
            )
        case Array(element=element, count=count):
            return builder.add_array(_add(builder, element), count)
        case Struct(members=members, size=size, union=union):
            placed = [
                BtfMember(member.name, _add(builder, member.shape), member.bit_offset)
                for member in members
            ]
            add = builder.add_union if union else builder.add_struct
            return add(name, size, placed)
        case _:
            assert_never(shape)


# ---- as a layout describes it ----


def layout_text(shape: Shape) -> str | None:
    """The layout of a shape of the manifest, as the extension tells it of the same type in BTF."""
    text = "".join(f"{line}\n" for line in _lines(shape, 0, ""))
    return text if len(text) <= LAYOUT_MAX_BYTES else None


def _lines(shape: Shape, offset: int, path: str) -> Iterator[str]:
    match shape:
        case Scalar() if shape == _IPV6:
            yield from _lines(_IN6_ADDR, offset, path)
        case Scalar(bits=bits):
            yield f"{offset}:{bits}:int:{path}"
        case Array(element=element, count=count):
            yield f"{offset}:{8 * shape.size}:array of {count}:{path}"
            yield from _lines(element, offset, f"{path}[]")
        case Struct(members=members, union=union):
            if union:
                yield f"{offset}:{8 * shape.size}:union:{path}"
            for member in members:
                below = f"{path}.{member.name}" if path else member.name
                yield from _lines(member.shape, offset + member.bit_offset, below)
        case _:
            assert_never(shape)


_IN6_ADDR = Struct(
    (
        Member(
            "in6_u",
            0,
            Struct(
                (
                    Member("u6_addr8", 0, Array(_SCALARS["u8"], 16)),
                    Member("u6_addr16", 0, Array(_SCALARS["be16"], 8)),
                    Member("u6_addr32", 0, Array(_SCALARS["be32"], 4)),
                ),
                16,
                union=True,
            ),
        ),
    ),
    16,
)
"""``struct in6_addr`` of include/uapi/linux/in6.h: an ipv6 is the same in BTF."""


@dataclass(frozen=True, slots=True)
class _Leaf:
    offset: int
    bits: int
    kind: str
    path: str


def shape_of_layout(text: str, size: int) -> Shape | None:
    """The shape that a layout describes, of ``size`` bytes; None for what no layout can tell.

    Unnamed bit-fields are padding. A struct without members has none that can be written.
    """
    leaves = []
    for line in text.splitlines():
        offset, bits, kind, path = line.split(":", 3)
        leaves.append(_Leaf(int(offset), int(bits), kind, path))
    if not leaves or any(leaf.offset + leaf.bits > 8 * size for leaf in leaves):
        return None
    return _described(leaves, "", 0, 8 * size)


_ARRAY_OF = "array of "


def _described(leaves: list[_Leaf], path: str, base: int, bits: int) -> Shape | None:
    """The shape of what stands at a path: ``leaves`` are it and all that is under it."""
    first = leaves[0]
    if first.path == path and first.kind.startswith(_ARRAY_OF):
        count = int(first.kind.removeprefix(_ARRAY_OF))
        if count == 0 or len(leaves) == 1:
            return None  # a flexible array
        element = _described(leaves[1:], f"{path}[]", base, first.bits // count)
        return Array(element, count) if element else None
    if len(leaves) == 1 and first.path == path and first.kind != "union":
        form = Form.INTEGER if first.kind == "int" else Form.OPAQUE
        return Scalar("", first.bits, form)
    members = _members(leaves, path, base)
    return None if members is None else Struct(members, (bits + 7) // 8)


def _members(leaves: list[_Leaf], path: str, base: int) -> tuple[Member, ...] | None:
    members: list[Member] = []
    while leaves:
        first, name = leaves[0], _name_below(leaves[0].path, path)
        shape: Shape | None
        if name:
            below = f"{path}.{name}" if path else name
            group, leaves = _split(leaves, [_is_within(leaf.path, below) for leaf in leaves])
            extent = max(leaf.offset + leaf.bits for leaf in group) - first.offset
            shape = _described(group, below, first.offset, extent)
        elif first.kind == "union":
            end = first.offset + first.bits
            group, leaves = _split(leaves, [leaf.offset + leaf.bits <= end for leaf in leaves])
            found = _members(group[1:], path, first.offset)
            shape = None if found is None else Struct(found, (first.bits + 7) // 8, union=True)
        else:  # a bit-field without a name
            leaves = leaves[1:]
            continue
        if shape is None:
            return None
        members.append(Member(name, first.offset - base, shape))
    return tuple(members)


def _split(leaves: list[_Leaf], belong: list[bool]) -> tuple[list[_Leaf], list[_Leaf]]:
    """The leaves up to the first that does not belong, and the others."""
    count = belong.index(False) if False in belong else len(leaves)
    return leaves[:count], leaves[count:]


def _name_below(path: str, parent: str) -> str:
    """The member of ``parent`` that a path leads to; empty for ``parent`` itself."""
    rest = path.removeprefix(parent).removeprefix(".")
    return re.split(r"[.\[]", rest, maxsplit=1)[0]


def _is_within(path: str, parent: str) -> bool:
    return path == parent or path.startswith((f"{parent}.", f"{parent}[]"))
