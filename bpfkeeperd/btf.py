"""BTF, the type information of BPF objects and of the kernel's maps, read.

The bytes may be anybody's: whatever is wrong with them is a `BtfError`, and no size or reference in
them is believed before it is checked.
"""

import struct
from collections.abc import Callable, Iterator

from bpfkeeperd.btfbuilder import BtfBuilder
from bpfkeeperd.btfformat import (
    MODIFIERS,
    SIZED,
    TYPE_HEAD,
    U32_MAX,
    VLEN_MAX,
    BtfError,
    Kind,
    Member,
    Type,
    Variable,
    checked_parts,
    records,
)
from bpfkeeperd.errors import printable

__all__ = ["Btf", "BtfBuilder", "BtfError", "Kind", "Member", "Type", "Variable"]

DEPTH_MAX = 32
"""Arrays and modifiers around a type, as the kernel and libbpf follow them."""
POINTER_SIZE_BYTES = 8

_WORDS = {number: struct.Struct(f"<{number}I") for number in (1, 2, 3)}
_SIZES = {
    **dict.fromkeys((Kind.ENUM, Kind.ENUM64), (1, 2, 4, 8)),
    Kind.FLOAT: (2, 4, 8, 12, 16),
    Kind.INT: (1, 2, 4, 8, 16),
}
_VOID = Type(Kind.VOID)


class _Names:
    """The string table, each name taken out once."""

    __slots__ = ("_budget", "_seen", "_strings")

    def __init__(self, strings: bytes) -> None:
        self._strings = strings
        self._seen: dict[int, str] = {0: ""}
        # Offsets into one long string would make a name of each of its tails.
        self._budget = 8 * len(strings) + (64 << 10)

    def __call__(self, offset: int) -> str:
        name = self._seen.get(offset)
        if name is None:
            if offset >= len(self._strings):
                raise BtfError(f"a name of the BTF is at {offset}, outside its strings")
            text = self._strings[offset : self._strings.index(b"\0", offset)]
            self._budget -= len(text)
            if self._budget < 0:
                raise BtfError("the names of the BTF overlap too much: it is damaged")
            name = self._seen[offset] = printable(text.decode("utf-8", "replace"))
        return name


def _read_type(
    types: bytes, kind: Kind, start: int, end: int, name_at: Callable[[int], str]
) -> Type:
    name_offset, info, third = TYPE_HEAD.unpack_from(types, start)
    name, flag = name_at(name_offset), bool(info >> 31)
    tail = types[start + TYPE_HEAD.size : end]
    size, type_id = (third, 0) if kind in SIZED else (0, third)
    match kind:
        case Kind.INT:
            (word,) = _WORDS[1].unpack(tail)
            encoding, bit_offset, bits = word >> 24 & 0xF, word >> 16 & 0xFF, word & 0xFF
            return Type(kind, name, size, encoding=encoding, bits=bits, bit_offset=bit_offset)
        case Kind.ARRAY:
            element, index, count = _WORDS[3].unpack(tail)
            return Type(kind, name, type_id=element, index_type_id=index, count=count)
        case Kind.STRUCT | Kind.UNION:
            members = tuple(
                Member(name_at(at), of, place & 0xFFFFFF, place >> 24)
                if flag
                else Member(name_at(at), of, place)
                for at, of, place in _WORDS[3].iter_unpack(tail)
            )
            return Type(kind, name, size, members=members, flag=flag)
        case Kind.ENUM:
            form = struct.Struct("<Ii" if flag else "<II")
            values = tuple((name_at(at), number) for at, number in form.iter_unpack(tail))
            return Type(kind, name, size, values=values, flag=flag)
        case Kind.ENUM64:
            form = struct.Struct("<Iq" if flag else "<IQ")
            values = tuple((name_at(at), number) for at, number in form.iter_unpack(tail))
            return Type(kind, name, size, values=values, flag=flag)
        case Kind.FUNC_PROTO:
            parameters = tuple((name_at(at), of) for at, of in _WORDS[2].iter_unpack(tail))
            return Type(kind, name, type_id=type_id, parameters=parameters)
        case Kind.DATASEC:
            variables = tuple(Variable(*words) for words in _WORDS[3].iter_unpack(tail))
            return Type(kind, name, size, variables=variables)
        case Kind.VAR:
            return Type(kind, name, type_id=type_id, linkage=_WORDS[1].unpack(tail)[0])
        case Kind.DECL_TAG:
            return Type(kind, name, type_id=type_id, component=_WORDS[1].unpack(tail)[0])
        case Kind.FUNC:
            return Type(kind, name, type_id=type_id, linkage=info & VLEN_MAX)
        case Kind.FWD:
            return Type(kind, name, flag=flag)
        case _:
            return Type(kind, name, size, type_id)


def _references(item: Type) -> Iterator[int]:
    yield item.type_id
    yield item.index_type_id
    yield from (member.type_id for member in item.members)
    yield from (variable.type_id for variable in item.variables)
    yield from (type_id for _, type_id in item.parameters)


def _too_deep(type_id: int) -> BtfError:
    return BtfError(
        f"type {type_id} of the BTF is {DEPTH_MAX} or more others deep, or goes round in a circle"
    )


class Btf:
    """Types by ID, checked: every reference leads to a type, every member lies in its struct."""

    __slots__ = ("_by_name", "_sizes", "types")

    def __init__(self, types: tuple[Type, ...]) -> None:
        self.types = types
        """The index is the type ID; 0 is void."""
        self._by_name: dict[tuple[Kind, str], int] | None = None
        self._sizes: dict[int, int] = {}

    @classmethod
    def parse(cls, data: bytes) -> "Btf":
        """Reads BTF as it is in an object's ``.BTF`` or as the kernel gives it.

        Raises:
            BtfError: it is damaged, big-endian, or needs other BTF below it (a module's).
        """
        types, strings = checked_parts(data)
        names = _Names(strings)
        read = [_read_type(types, *record, names) for record in records(types)]
        btf = cls((_VOID, *read))
        for type_id, item in enumerate(btf.types):
            btf._check(type_id, item)
        return btf

    def _check(self, type_id: int, item: Type) -> None:
        what = f"type {type_id} of the BTF ({item.kind.name} {item.name or 'without a name'})"
        if any(reference >= len(self.types) for reference in _references(item)):
            raise BtfError(f"{what} refers to a type that is not there")
        sizes = _SIZES.get(item.kind)
        if sizes and item.size not in sizes:
            raise BtfError(f"{what} has {item.size} bytes, which no such type has")
        if item.bit_offset + item.bits > 8 * item.size and item.kind is Kind.INT:
            raise BtfError(f"{what} has more bits than bytes for them")
        for member in item.members:
            bits = member.bit_size or 8 * self.size(member.type_id)
            if member.bit_offset + bits > 8 * item.size:
                raise BtfError(f"{what} has {item.size} bytes but {member.name!r} ends behind them")

    def resolve(self, type_id: int) -> Type:
        """The type behind typedefs, const, volatile, restrict and type tags.

        Raises:
            BtfError: they go round in a circle or are too many.
        """
        of = type_id
        for _ in range(DEPTH_MAX):
            item = self._at(of)
            if item.kind not in MODIFIERS:
                return item
            of = item.type_id
        raise _too_deep(type_id)

    def size(self, type_id: int) -> int:
        """How many bytes a value of this type takes.

        Raises:
            BtfError: values have no size (void, functions, structs that are only announced).
        """
        size = self._sizes.get(type_id)
        if size is None:
            size = self._sizes[type_id] = self._counted_size(type_id)
        return size

    def _counted_size(self, type_id: int) -> int:
        count, of = 1, type_id
        for _ in range(DEPTH_MAX):
            item = self._at(of)
            if item.kind is Kind.ARRAY:
                count *= item.count
            elif item.kind is not Kind.VAR and item.kind not in MODIFIERS:
                break
            of = item.type_id
        else:
            raise _too_deep(type_id)
        if item.kind is Kind.PTR:
            size = count * POINTER_SIZE_BYTES
        elif item.kind in SIZED:
            size = count * item.size
        else:
            raise BtfError(
                f"type {type_id} of the BTF has no size: it comes down to"
                f" {item.kind.name} {item.name}".rstrip()
            )
        if size > U32_MAX:
            raise BtfError(f"type {type_id} of the BTF has {size} bytes: it is damaged")
        return size

    def find(self, kind: Kind, name: str) -> int | None:
        """The ID of the first type of this kind and name."""
        if self._by_name is None:
            self._by_name = {}
            for type_id, item in enumerate(self.types):
                self._by_name.setdefault((item.kind, item.name), type_id)
        return self._by_name.get((kind, name))

    def _at(self, type_id: int) -> Type:
        if not 0 <= type_id < len(self.types):
            raise BtfError(f"the BTF has no type {type_id}")
        return self.types[type_id]
