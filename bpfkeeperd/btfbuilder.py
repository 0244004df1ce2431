"""BTF built from nothing, or added to BTF that there is."""

import struct
from collections.abc import Sequence

from bpfkeeperd.btfformat import (
    HEADER,
    MAGIC,
    U32_MAX,
    VLEN_MAX,
    BtfError,
    Kind,
    Member,
    Variable,
    checked_parts,
    records,
)


class BtfBuilder:
    """Makes BTF, or adds to BTF that there is: what is there keeps its type IDs and strings.

    Types that are the same in every word are one: adding such a type twice gives the same ID.
    """

    __slots__ = ("_added", "_index_type", "_offsets", "_records", "_strings")

    def __init__(self, data: bytes | None = None) -> None:
        """Raises BtfError where the bytes cannot be taken apart; `Btf.parse` checks them whole."""
        types, strings = checked_parts(data) if data is not None else (b"", b"\0")
        self._records = [types[start:end] for _, start, end in records(types)]
        self._strings = bytearray(strings)
        self._offsets: dict[str, int] = {"": 0}
        self._added: dict[bytes, int] = {}
        self._index_type = 0

    def add_int(
        self, name: str, size: int, *, signed: bool = False, char: bool = False, bool: bool = False
    ) -> int:
        encoding = signed * 1 | char * 2 | bool * 4
        return self._add(self._record(Kind.INT, name, size, [encoding << 24 | 8 * size]))

    def add_pointer(self, type_id: int) -> int:
        return self._add(self._record(Kind.PTR, "", type_id))

    def add_typedef(self, name: str, type_id: int) -> int:
        return self._add(self._record(Kind.TYPEDEF, name, type_id))

    def add_array(self, element_id: int, count: int) -> int:
        self._index_type = self._index_type or self.add_int("__ARRAY_SIZETYPE_HEAD__", 4)
        return self._add(self._record(Kind.ARRAY, "", 0, [element_id, self._index_type, count]))

    def add_struct(self, name: str, size: int, members: Sequence[Member]) -> int:
        flag = any(member.bit_size for member in members)
        words: list[int] = []
        for member in members:
            if flag and (member.bit_offset > 0xFFFFFF or member.bit_size > 0xFF):
                raise BtfError(f"member {member.name} is too far from its struct's start")
            place = member.bit_size << 24 | member.bit_offset
            words += self._string(member.name), member.type_id, place
        return self._add(self._record(Kind.STRUCT, name, size, words, len(members), flag))

    def add_union(self, name: str, size: int, members: Sequence[Member]) -> int:
        """A union without bit-fields."""
        words = [
            word
            for member in members
            for word in (self._string(member.name), member.type_id, member.bit_offset)
        ]
        return self._add(self._record(Kind.UNION, name, size, words, len(members)))

    def add_function(self, returned_id: int) -> int:
        """Adds the type of a function without parameters."""
        return self._add(self._record(Kind.FUNC_PROTO, "", returned_id))

    def add_var(self, name: str, type_id: int, linkage: int) -> int:
        return self._add(self._record(Kind.VAR, name, type_id, [linkage]))

    def add_datasec(self, name: str, size: int, variables: Sequence[Variable]) -> int:
        return self._add(self._datasec(name, size, variables))

    def replace_var(self, var_id: int, name: str, type_id: int, linkage: int) -> None:
        """Puts another VAR in the place of a type."""
        self._records[var_id - 1] = self._record(Kind.VAR, name, type_id, [linkage])

    def replace_datasec(
        self, type_id: int, name: str, size: int, variables: Sequence[Variable]
    ) -> None:
        """Puts another DATASEC in the place of a type."""
        self._records[type_id - 1] = self._datasec(name, size, variables)

    def replace_pointer(self, type_id: int, target_id: int) -> None:
        """Puts a pointer in the place of a type."""
        self._records[type_id - 1] = self._record(Kind.PTR, "", target_id)

    def data(self) -> bytes:
        types = b"".join(self._records)
        header = HEADER.pack(
            MAGIC, 1, 0, HEADER.size, 0, len(types), len(types), len(self._strings)
        )
        return header + types + self._strings

    def _datasec(self, name: str, size: int, variables: Sequence[Variable]) -> bytes:
        words = [word for item in variables for word in (item.type_id, item.offset, item.size)]
        return self._record(Kind.DATASEC, name, size, words, len(variables))

    def _record(
        self,
        kind: Kind,
        name: str,
        third: int,
        tail: Sequence[int] = (),
        count: int = 0,
        flag: bool = False,
    ) -> bytes:
        if count > VLEN_MAX or not all(0 <= word <= U32_MAX for word in (third, *tail)):
            raise BtfError(f"{kind.name} {name or 'without a name'} is too large for BTF")
        info = flag << 31 | kind << 24 | count
        return struct.pack(f"<{3 + len(tail)}I", self._string(name), info, third, *tail)

    def _add(self, record: bytes) -> int:
        type_id = self._added.get(record)
        if type_id is None:
            self._records.append(record)
            type_id = self._added[record] = len(self._records)
        return type_id

    def _string(self, text: str) -> int:
        offset = self._offsets.get(text)
        if offset is None:
            raw = text.encode("utf-8", "surrogateescape")
            if b"\0" in raw:
                raise BtfError(f"the name {text!r} has a zero byte")
            offset = self._offsets[text] = len(self._strings)
            self._strings += raw + b"\0"
        return offset
