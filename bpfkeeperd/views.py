"""Types of BTF become views: what the bytes of a key or a value mean to people. Pure.

BTF comes from whoever made the map. The kernel has checked it, and still nothing here may take for
ever, or believe a size: `format` holds every field against the bytes there are.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import StrEnum

from bpfkeeperd.btf import Btf, Kind, Member, Type
from bpfkeeperd.errors import KeeperError

FIELDS_MAX = 10_000
DEPTH_MAX = 32
TYPEDEFS_MAX = 32

NETWORK_ORDER = {"__be16": 2, "be16": 2, "__be32": 4, "be32": 4, "__be64": 8, "be64": 8}
"""Names of types whose numbers are in network byte order, and their sizes."""
IPV4_NAMES = frozenset({"ipv4", "in_addr_t", "in_addr"})
IPV6_NAMES = frozenset({"ipv6", "in6_addr"})
"""Names of types that are addresses and nothing else."""

_SIGNED, _CHAR, _BOOL = 1, 2, 4
"""Encodings of BTF's integers."""
_NAMED = (Kind.TYPEDEF, Kind.VOLATILE, Kind.CONST, Kind.RESTRICT, Kind.TYPE_TAG)


class ViewError(KeeperError):
    """A type that cannot be shown."""


class Sense(StrEnum):
    """What an integer is shown as."""

    NUMBER = "number"
    BOOL = "bool"
    ADDRESS = "address"


@dataclass(frozen=True, slots=True)
class Integer:
    """An integer of 1, 2, 4 or 8 bytes, or ``bits`` bits from ``bit`` (0 to 7) of its byte on."""

    size: int
    signed: bool = False
    network: bool = False
    bit: int = 0
    bits: int = 0
    sense: Sense = Sense.NUMBER
    names: tuple[tuple[str, int], ...] = ()
    """Of an enum."""


@dataclass(frozen=True, slots=True)
class Real:
    """A floating-point number of 4 or 8 bytes."""

    size: int


@dataclass(frozen=True, slots=True)
class Text:
    """Characters up to a null byte."""

    size: int


@dataclass(frozen=True, slots=True)
class Bytes:
    size: int


@dataclass(frozen=True, slots=True)
class Ip:
    """An address as it is on the wire: 4 or 16 bytes."""

    size: int


@dataclass(frozen=True, slots=True)
class Record:
    """A struct, or a union, all of whose members are shown."""

    members: tuple["Field", ...]


@dataclass(frozen=True, slots=True)
class Array:
    """An array of elements that are ``stride`` bytes apart."""

    element: "View"
    count: int
    stride: int
    until_zero: bool = False
    """It ends before an element that begins with 8 zero bytes."""


@dataclass(frozen=True, slots=True)
class Null:
    """There is something, but it cannot be read."""


@dataclass(frozen=True, slots=True)
class Field:
    name: str
    offset: int
    """In bytes from the start of the record."""
    view: "View"


View = Integer | Real | Text | Bytes | Ip | Record | Array | Null


def view_of(btf: Btf, type_id: int) -> View:
    """The view of a type.

    Raises:
        ViewError: it has no size, or is too large or too deep to be shown.
        BtfError: the BTF is damaged.
    """
    return _Viewing(btf).view(type_id)


@dataclass(slots=True)
class _Viewing:
    btf: Btf
    fields: int = 0
    depth: int = 0

    def view(self, type_id: int) -> View:
        names, resolved = self._named(type_id)
        self.fields += 1
        if self.fields > FIELDS_MAX or self.depth >= DEPTH_MAX:
            raise ViewError(
                f"it has more than {FIELDS_MAX} fields, or they nest deeper than {DEPTH_MAX}"
            )
        self.depth += 1
        try:
            return self._view(names, resolved)
        finally:
            self.depth -= 1

    def _named(self, type_id: int) -> tuple[set[str], Type]:
        """The names that a type goes by, and what it is in the end."""
        names = set[str]()
        for _ in range(TYPEDEFS_MAX):
            if not 0 < type_id < len(self.btf.types):
                break
            found = self.btf.types[type_id]
            names.add(found.name)
            if found.kind not in _NAMED:
                return names, found
            type_id = found.type_id
        raise ViewError("a field has no type that can be read")

    def _view(self, names: set[str], resolved: Type) -> View:
        match resolved.kind:
            case Kind.INT:
                return _integer(names, resolved)
            case Kind.ENUM | Kind.ENUM64:
                return Integer(resolved.size, signed=resolved.flag, names=resolved.values)
            case Kind.PTR:
                return Integer(8, sense=Sense.ADDRESS)
            case Kind.FLOAT:
                return Real(resolved.size) if resolved.size in (4, 8) else Bytes(resolved.size)
            case Kind.ARRAY:
                return self._array(names, resolved)
            case Kind.STRUCT | Kind.UNION:
                if (names & IPV4_NAMES and resolved.size == 4) or (
                    names & IPV6_NAMES and resolved.size == 16
                ):
                    return Ip(resolved.size)
                return Record(tuple(self._members(resolved)))
            case Kind.DATASEC:
                return Record(tuple(self._variables(resolved)))
            case kind:
                raise ViewError(f"a field is of kind {kind.name}, which has no size")

    def _array(self, names: set[str], array: Type) -> View:
        stride = self.btf.size(array.type_id)
        element_names, element = self._named(array.type_id)
        if element.kind is Kind.INT and element.size == 1:
            if "char" in element_names or element.encoding & _CHAR:
                return Text(array.count)
            if array.count == 16 and names & IPV6_NAMES:
                return Ip(16)
            if not element.encoding:
                return Bytes(array.count)
        if not stride:
            return Array(Null(), 0, 1)
        return Array(self.view(array.type_id), array.count, stride)

    def _members(self, record: Type) -> Iterator[Field]:
        """Those of a struct without a name as its parent's, as C has it."""
        for member in record.members:
            start = member.bit_offset // 8
            view = self.view(member.type_id)
            if member.name:
                if member.bit_size:
                    view, start = _bit_field(view, member)
                elif isinstance(view, Integer) and view.bits:  # bits of the type, not the member
                    bit = member.bit_offset % 8 + view.bit
                    view = replace(view, bit=bit % 8)
                    start += bit // 8
                yield Field(member.name, start, view)
            elif isinstance(view, Record):
                for inner in view.members:
                    yield Field(inner.name, start + inner.offset, inner.view)

    def _variables(self, section: Type) -> Iterator[Field]:
        for place in section.variables:
            variable = self.btf.types[place.type_id]
            yield Field(variable.name, place.offset, self.view(variable.type_id))


def _integer(names: set[str], integer: Type) -> View:
    if integer.size not in (1, 2, 4, 8):
        return Bytes(integer.size)
    if names & IPV4_NAMES and integer.size == 4:
        return Ip(4)
    network = any(NETWORK_ORDER.get(name) == integer.size for name in names)
    sense = Sense.BOOL if integer.encoding & _BOOL else Sense.NUMBER
    whole = Integer(
        integer.size, signed=bool(integer.encoding & _SIGNED), network=network, sense=sense
    )
    if integer.bits in (0, 8 * integer.size):
        return whole
    return replace(whole, network=False, bit=integer.bit_offset, bits=integer.bits)


def _bit_field(view: View, member: Member) -> tuple[View, int]:
    """The view of a bit-field, and the byte in which it begins."""
    if not isinstance(view, Integer) or member.bit_size > 64:
        raise ViewError(f"bit-field {member.name} is no integer")
    view = replace(view, network=False, bit=member.bit_offset % 8, bits=member.bit_size)
    return view, member.bit_offset // 8
