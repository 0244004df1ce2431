"""The form of BTF: its header and records, and the values that stand for its types."""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum

from bpfkeeperd.errors import KeeperError

SIZE_MAX_BYTES = 16 << 20
"""The kernel takes no more (BTF_MAX_SIZE in kernel/bpf/btf.c)."""

HEADER = struct.Struct("<HBBIIIII")
TYPE_HEAD = struct.Struct("<III")
MAGIC = 0xEB9F
U32_MAX = 0xFFFFFFFF
VLEN_MAX = 0xFFFF


class BtfError(KeeperError):
    """BTF that is damaged, or of a kind that cannot be used here."""


class Kind(IntEnum):
    """``BTF_KIND_*``; void is type ID 0 and has none in the file."""

    VOID = 0
    INT = 1
    PTR = 2
    ARRAY = 3
    STRUCT = 4
    UNION = 5
    ENUM = 6
    FWD = 7
    TYPEDEF = 8
    VOLATILE = 9
    CONST = 10
    RESTRICT = 11
    FUNC = 12
    FUNC_PROTO = 13
    VAR = 14
    DATASEC = 15
    FLOAT = 16
    DECL_TAG = 17
    TYPE_TAG = 18
    ENUM64 = 19


_TAIL = {Kind.INT: 1, Kind.ARRAY: 3, Kind.VAR: 1, Kind.DECL_TAG: 1}
"""Words after a type's three, for kinds with a fixed number of them."""
_TAIL_EACH = {
    **dict.fromkeys((Kind.STRUCT, Kind.UNION, Kind.DATASEC, Kind.ENUM64), 3),
    **dict.fromkeys((Kind.ENUM, Kind.FUNC_PROTO), 2),
}
"""Words after a type's three, for each of the elements that it counts."""
SIZED = {Kind.INT, Kind.STRUCT, Kind.UNION, Kind.ENUM, Kind.DATASEC, Kind.FLOAT, Kind.ENUM64}
"""Their third word is a size; of all others a type ID, or unused."""
MODIFIERS = {Kind.TYPEDEF, Kind.VOLATILE, Kind.CONST, Kind.RESTRICT, Kind.TYPE_TAG}


@dataclass(frozen=True, slots=True)
class Member:
    """A field of a struct or union."""

    name: str
    type_id: int
    bit_offset: int
    """From the start of the struct."""
    bit_size: int = 0
    """0: no bit-field."""


@dataclass(frozen=True, slots=True)
class Variable:
    """A variable's place in a DATASEC; offset and size in bytes."""

    type_id: int
    """A VAR (or FUNC)."""
    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class Type:
    """One type. Fields that its kind has no use for stay 0 or empty."""

    kind: Kind
    name: str = ""
    size: int = 0
    """In bytes; of INT, STRUCT, UNION, ENUM, ENUM64, FLOAT, DATASEC."""
    type_id: int = 0
    """What is pointed to, modified, repeated or tagged; a VAR's type; what a function returns."""
    members: tuple[Member, ...] = ()
    values: tuple[tuple[str, int], ...] = ()
    """Of an enum; signed where the enum is."""
    variables: tuple[Variable, ...] = ()
    """Of a DATASEC."""
    parameters: tuple[tuple[str, int], ...] = ()
    """Of a FUNC_PROTO: name and type ID."""
    count: int = 0
    """An ARRAY's elements."""
    index_type_id: int = 0
    encoding: int = 0
    """Of an INT: 1 signed, 2 char, 4 bool."""
    bits: int = 0
    """Of an INT, which may use fewer than it has."""
    bit_offset: int = 0
    """Of an INT: where its bits begin."""
    linkage: int = 0
    """Of a VAR or FUNC: 0 static, 1 global, 2 extern."""
    component: int = 0
    """Of a DECL_TAG: the member or parameter, 0xffffffff for the whole."""
    flag: bool = False
    """``kind_flag``: a struct with bit-fields, a signed enum, a FWD of a union."""


def checked_parts(data: bytes) -> tuple[bytes, bytes]:
    """The types and the strings of BTF, whose header is checked."""
    if len(data) > SIZE_MAX_BYTES:
        raise BtfError(f"the BTF has {len(data)} bytes: the kernel takes {SIZE_MAX_BYTES}")
    if len(data) < HEADER.size:
        raise BtfError(f"the BTF ends inside its header, after {len(data)} bytes")
    header = HEADER.unpack_from(data)
    magic, version, _, start, type_offset, type_size, string_offset, string_size = header
    if magic == 0x9FEB:
        raise BtfError("the BTF is big-endian: build the object with -target bpfel")
    if magic != MAGIC or version != 1:
        raise BtfError(f"this is no BTF of version 1 (magic {magic:#06x}, version {version})")
    if start < HEADER.size:
        raise BtfError(f"the BTF header says that it has {start} bytes: it has at least 24")
    types_end = start + type_offset + type_size
    strings_end = start + string_offset + string_size
    if max(types_end, strings_end) > len(data) or type_offset % 4:
        raise BtfError(
            f"the BTF has {len(data)} bytes but its types end at {types_end}"
            f" and its strings at {strings_end}: it is cut short or damaged"
        )
    strings = data[start + string_offset : strings_end]
    if not strings or strings[0] or strings[-1]:
        raise BtfError("the strings of the BTF do not begin and end with a zero byte")
    return data[start + type_offset : types_end], strings


def records(types: bytes) -> Iterator[tuple[Kind, int, int]]:
    """Kind, start and end of each type, in order."""
    offset, type_id = 0, 1
    while offset < len(types):
        if offset + TYPE_HEAD.size > len(types):
            raise BtfError(f"the BTF ends inside type {type_id}")
        info = TYPE_HEAD.unpack_from(types, offset)[1]
        try:
            kind = Kind(info >> 24 & 0x1F)
        except ValueError:
            kind = Kind.VOID
        if kind is Kind.VOID:
            raise BtfError(f"type {type_id} of the BTF is of unknown kind {info >> 24 & 0x1F}")
        words = 3 + _TAIL.get(kind, 0) + _TAIL_EACH.get(kind, 0) * (info & VLEN_MAX)
        end = offset + 4 * words
        if end > len(types):
            raise BtfError(f"the BTF ends inside type {type_id}")
        yield kind, offset, end
        offset, type_id = end, type_id + 1
