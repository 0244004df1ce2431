"""An object file's ELF taken apart to be changed: what is there keeps its place, what is new goes
behind it.

Only little-endian 64-bit relocatable files come here. Every number in the file is checked before it
is used: what does not fit is an `ObjectError`.
"""

import struct
from collections.abc import Iterator
from dataclasses import astuple, dataclass

from bpfkeeperd.errors import ObjectError, printable

HEADER_SIZE = 64
SHT_PROGBITS = 1
SHT_SYMTAB = 2
SHT_STRTAB = 3
SHT_NOBITS = 8
SHT_REL = 9
SHF_EXECINSTR = 4
STB_LOCAL = 0
STB_GLOBAL = 1
STT_NOTYPE = 0
STT_OBJECT = 1
STT_FUNC = 2
STT_SECTION = 3
NAME_MAX_BYTES = 1024
"""Thousands of names may be the tails of one long string."""
SECTIONS_MAX = 0xFF00
"""SHN_LORESERVE: indices from here on mean something else."""

_SECTION = struct.Struct("<IIQQQQIIQQ")
_SYMBOL = struct.Struct("<IBBHQQ")
_RELOCATION = struct.Struct("<QQ")
_NAME_ONLY = struct.Struct("<I60x")


@dataclass(slots=True)
class Section:
    """A section header, its fields in the file's order."""

    name: int
    """Offset in the section name table."""
    type: int
    flags: int
    address: int
    offset: int
    size: int
    link: int
    info: int
    alignment: int
    entry_size: int


@dataclass(slots=True)
class Symbol:
    """A symbol, its fields in the file's order."""

    name: int
    """Offset in the symbol name table."""
    info: int
    other: int
    section: int
    value: int
    size: int

    @property
    def binding(self) -> int:
        return self.info >> 4

    @property
    def type(self) -> int:
        return self.info & 0xF


@dataclass(slots=True)
class Relocation:
    offset: int
    """In the section that is relocated."""
    symbol: int
    type: int


def _table(data: bytes) -> tuple[int, int, int] | None:
    """Where the section headers begin, their number, and which names them; None: not for us."""
    if len(data) < HEADER_SIZE or data[:6] != b"\x7fELF\x02\x01":
        return None
    (offset,) = struct.unpack_from("<Q", data, 40)
    size, count, names = struct.unpack_from("<HHH", data, 58)
    if size != _SECTION.size or offset + size * count > len(data) or names >= count:
        return None
    return offset, count, names


def has_section(data: bytes, names: tuple[bytes, ...]) -> bool:
    """Whether a section's name with its zero byte begins with one of these.

    Every object of every reload is asked: a look at each header and no more. False for what is no
    whole ELF file.
    """
    table = _table(data)
    if table is None:
        return False
    start, count, index = table
    header = _SECTION.unpack_from(data, start + index * _SECTION.size)
    strings = data[header[4] : header[4] + header[5]]
    headers = data[start : start + count * _SECTION.size]
    return any(strings.startswith(names, name) for (name,) in _NAME_ONLY.iter_unpack(headers))


class ElfImage:
    """The bytes of an object file with its sections and symbols; `finished` gives the new file."""

    __slots__ = ("_data", "_names_index", "_strings_index", "sections", "symbols", "symtab")

    def __init__(self, data: bytes) -> None:
        table = _table(data)
        if table is None:
            raise ObjectError("the section table is damaged: build the object again")
        start, count, self._names_index = table
        self._data = bytearray(data)
        headers = data[start : start + count * _SECTION.size]
        self.sections = [Section(*words) for words in _SECTION.iter_unpack(headers)]
        for index, section in enumerate(self.sections):
            if section.type != SHT_NOBITS and section.offset + section.size > len(data):
                raise ObjectError(
                    f"section {index} ends at {section.offset + section.size} but the file has"
                    f" {len(data)} bytes: it is damaged, build the object again"
                )
        if sum(item.size for item in self.sections if item.type != SHT_NOBITS) > len(data):
            raise ObjectError("sections lie over each other: it is damaged, build the object again")
        tables = [i for i, section in enumerate(self.sections) if section.type == SHT_SYMTAB]
        if len(tables) != 1:
            raise ObjectError(
                f"the object has {len(tables)} symbol tables instead of one: was it stripped?"
                " build it again, or use llvm-strip -g"
            )
        self.symtab = tables[0]
        self._strings_index = self.sections[self.symtab].link
        for index in (self._names_index, self._strings_index):
            self._check_strings(index)
        self.symbols = self._read_symbols()

    def _check_strings(self, index: int) -> None:
        if index >= len(self.sections) or self.sections[index].type != SHT_STRTAB:
            raise ObjectError(f"section {index} should hold names and does not: it is damaged")
        content = self.content(index)
        if not content or content[-1]:
            raise ObjectError(f"the names in section {index} do not end with a zero byte")

    def _read_symbols(self) -> list[Symbol]:
        content = self.content(self.symtab)
        if len(content) % _SYMBOL.size or self.sections[self.symtab].entry_size != _SYMBOL.size:
            raise ObjectError("the symbol table is no whole number of symbols: it is damaged")
        symbols = [Symbol(*words) for words in _SYMBOL.iter_unpack(content)]
        for number, symbol in enumerate(symbols):
            if len(self.sections) <= symbol.section < SECTIONS_MAX:
                raise ObjectError(f"symbol {number} is in section {symbol.section}: there is none")
        return symbols

    def content(self, index: int) -> bytes:
        """A section's bytes; none for one without bits in the file."""
        section = self.sections[index]
        if section.type == SHT_NOBITS:
            return b""
        return bytes(self._data[section.offset : section.offset + section.size])

    def content_at(self, index: int, offset: int, size: int) -> bytes:
        """Some of a section's bytes; fewer where it ends."""
        section = self.sections[index]
        if section.type == SHT_NOBITS:
            return b""
        end = section.offset + min(offset + size, section.size)
        return bytes(self._data[section.offset + offset : end])

    def section_name(self, index: int) -> str:
        return self._text(self._names_index, self.sections[index].name)

    def symbol_name(self, symbol: Symbol) -> str:
        return self._text(self._strings_index, symbol.name)

    def _text(self, index: int, offset: int) -> str:
        section = self.sections[index]
        if offset >= section.size:
            raise ObjectError(f"a name is at {offset}, outside the names in section {index}")
        start = section.offset + offset
        end = self._data.find(b"\0", start, start + NAME_MAX_BYTES)
        if end < 0:
            raise ObjectError(
                f"the name at {offset} in section {index} does not end: it is damaged"
            )
        return printable(self._data[start:end].decode("utf-8", "replace"))

    def relocations(self, index: int) -> Iterator[Relocation]:
        """The relocations that a section holds."""
        content = self.content(index)
        if len(content) % _RELOCATION.size or self.sections[index].entry_size != _RELOCATION.size:
            raise ObjectError(f"section {index} is no whole number of relocations: it is damaged")
        for offset, info in _RELOCATION.iter_unpack(content):
            if info >> 32 >= len(self.symbols):
                raise ObjectError(
                    f"section {index} has a relocation for symbol {info >> 32}: there is none"
                )
            yield Relocation(offset, info >> 32, info & 0xFFFFFFFF)

    def put_relocation(self, index: int, number: int, relocation: Relocation) -> None:
        """Changes one relocation in its place."""
        place = self.sections[index].offset + number * _RELOCATION.size
        info = relocation.symbol << 32 | relocation.type
        _RELOCATION.pack_into(self._data, place, relocation.offset, info)

    def put_word(self, index: int, offset: int, word: int) -> None:
        """Changes four bytes of a section in their place, which the caller has checked."""
        struct.pack_into("<I", self._data, self.sections[index].offset + offset, word)

    def rename(self, index: int, name: str) -> None:
        self.sections[index].name = self._add_string(self._names_index, name)

    def replace(self, index: int, content: bytes) -> None:
        """Gives a section other bytes, behind all that is there."""
        self._data += bytes(-len(self._data) % 8)
        section = self.sections[index]
        section.offset, section.size = len(self._data), len(content)
        self._data += content

    def add(self, name: str, section: Section, content: bytes) -> int:
        """Adds a section; its name, offset and size are filled in. Returns its index."""
        self.sections.append(section)
        index = len(self.sections) - 1
        self.rename(index, name)
        self.replace(index, content)
        return index

    def add_relocations(self, name: str, target: int, relocations: list[Relocation]) -> None:
        """Adds a section of relocations for another one."""
        content = b"".join(
            _RELOCATION.pack(item.offset, item.symbol << 32 | item.type) for item in relocations
        )
        section = Section(0, SHT_REL, 0, 0, 0, 0, self.symtab, target, 8, _RELOCATION.size)
        self.add(name, section, content)

    def add_symbol(self, like: Symbol, *, info: int) -> int:
        """Adds a symbol of the same name and place; returns its index."""
        self.symbols.append(Symbol(like.name, info, 0, like.section, like.value, like.size))
        return len(self.symbols) - 1

    def _add_string(self, index: int, text: str) -> int:
        content = self.content(index)
        self.replace(index, content + text.encode() + b"\0")
        return len(content)

    def finished(self) -> bytes:
        """The whole file, with a section table at its end."""
        if len(self.sections) >= SECTIONS_MAX:
            raise ObjectError(f"the object has {len(self.sections)} sections: too many")
        self.replace(
            self.symtab, b"".join(_SYMBOL.pack(*astuple(symbol)) for symbol in self.symbols)
        )
        self._data += bytes(-len(self._data) % 8)
        struct.pack_into("<Q", self._data, 40, len(self._data))
        struct.pack_into("<H", self._data, 60, len(self.sections))
        self._data += b"".join(_SECTION.pack(*astuple(section)) for section in self.sections)
        return bytes(self._data)
