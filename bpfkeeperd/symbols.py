"""Where functions are in executables and libraries: file offsets, as uprobes take them.

Read here and not by pyelftools, which takes seconds for the tables of a large binary. Only 64-bit
files are read. Every number of a file is checked before it is used: what does not fit is an
`ObjectError`.
"""

import functools
import os
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase

from bpfkeeperd.errors import ObjectError
from bpfkeeperd.suggest import did_you_mean
from bpfkeeperd.targets import is_pattern

Read = Callable[[int, int], bytes]
"""Bytes of a file, from an offset on: fewer than asked for where it ends. It is not mapped: a file
that somebody cuts short meanwhile would end the daemon."""

_SHT_SYMTAB = 2
_SHT_DYNSYM = 11
_SHT_VERDEF = 0x6FFFFFFD
_SHT_VERSYM = 0x6FFFFFFF
_STT_FUNC = 2
_STT_GNU_IFUNC = 10
_STB_LOCAL = 0
_PT_LOAD = 1
_HIDDEN = 0x8000
"""Of a version: not the one that is linked with when none is named."""
_NAME_MAX_BYTES = 4096
_SYMBOLS_MAX = 1 << 23


@dataclass(frozen=True, slots=True)
class _Table:
    kind: int
    address: int
    offset: int
    size: int
    link: int
    entries: int
    """``sh_info``: of version definitions their number."""


@dataclass(frozen=True, slots=True)
class _Function:
    name: str
    version: str
    default: bool
    """Linked with when no version is named."""
    local: bool
    indirect: bool
    """Not a function, but what chooses one when the program starts."""
    address: int


@functools.lru_cache(maxsize=256)
def _cached(path: str, symbol: str, identity: tuple[int, int, int, int]) -> tuple[int, ...] | str:
    try:
        with open(path, "rb", buffering=0) as file:
            number, total = file.fileno(), os.fstat(file.fileno()).st_size

            def read(start: int, size: int) -> bytes:
                return os.pread(number, min(size, total), start) if start < total else b""

            return function_offsets(read, symbol)
    except ObjectError as error:
        return str(error)


def offsets_in(path: str, symbol: str, found: os.stat_result) -> tuple[int, ...]:
    """The file offsets of a function, or of all that match a pattern, in a file of which ``found``
    is the status. The same file is not read twice.

    Raises:
        ObjectError: there is no such function, or the file is none to look in.
        OSError: the file cannot be read.
    """
    identity = found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns
    offsets = _cached(path, symbol, identity)
    if isinstance(offsets, str):
        raise ObjectError(offsets)
    return offsets


def function_offsets(read: Read, symbol: str) -> tuple[int, ...]:
    """The file offsets of a function, or of all that match a pattern, each once and in order.

    ``NAME@VERSION`` is that version of a function, ``NAME`` the one that is linked with. A global
    function is preferred to a local one of the same name.

    Raises:
        ObjectError: there is none, or it cannot be told which of several is meant.
    """
    try:
        return _function_offsets(read, symbol)
    except (struct.error, IndexError, OverflowError, MemoryError):
        raise ObjectError("the ELF file is damaged") from None


def _function_offsets(read: Read, symbol: str) -> tuple[int, ...]:
    head = read(0, 64)
    if head[:4] != b"\x7fELF":
        raise ObjectError("this is no ELF file: a script has no functions to probe")
    if head[4] != 2 or head[5] not in (1, 2):
        raise ObjectError("this is no 64-bit ELF file: write offset: BYTES instead of symbol")
    order = "<" if head[5] == 1 else ">"
    tables = _tables(read, order)
    name, _, version = symbol.replace("@@", "@").partition("@")
    pattern = is_pattern(symbol)
    if pattern:
        found = [
            one for one in _functions(read, order, tables, None) if fnmatchcase(one.name, name)
        ]
    else:
        found = list(_functions(read, order, tables, name))
    if version:
        found = [one for one in found if one.version == version]
    if pattern:
        found = [one for one in found if not one.indirect]
    if not found:
        raise ObjectError(_absent(read, order, tables, symbol))
    offset = _file_offset(read, order)
    if pattern:
        return tuple(sorted({offset(one.address) for one in found}))
    best = [one for one in found if not one.local] or found
    best = [one for one in best if one.default] or best
    if any(one.indirect for one in best):
        raise ObjectError(f"{symbol} stands for one of several functions: write the name of that")
    addresses = {one.address for one in best}
    if len(addresses) > 1:
        raise ObjectError(
            f"there are {len(addresses)} functions {symbol}: write offset: BYTES without symbol"
        )
    return (offset(addresses.pop()),)


def _absent(read: Read, order: str, tables: list[_Table], symbol: str) -> str:
    names = {one.name for one in _functions(read, order, tables, None)}
    if not names:
        return "it names no functions, it was stripped: write offset: BYTES instead of symbol"
    if is_pattern(symbol):
        return f"no function matches {symbol}"
    remedy = did_you_mean(symbol, names) if len(names) <= 20_000 else ""
    return f"there is no function {symbol}" + (f": {remedy}" if remedy else "")


def _tables(read: Read, order: str) -> list[_Table]:
    """The section headers."""
    (start,) = struct.unpack(order + "Q", read(40, 8))
    size, count = struct.unpack(order + "HH", read(58, 4))
    if count and size != 64:
        raise ObjectError("the ELF file is damaged: its section table is no such")
    headers = struct.iter_unpack(order + "IIQQQQIIQQ", read(start, 64 * count))
    return [
        _Table(kind, address, offset, length, link, info)
        for _, kind, _, address, offset, length, link, info, _, _ in headers
    ]


def _bytes(read: Read, table: _Table, unit: int = 1) -> bytes:
    """What is in a section, whole units of it."""
    data = read(table.offset, table.size // unit * unit)
    if len(data) < table.size // unit * unit:
        raise ObjectError("the ELF file is damaged: a section ends behind the file")
    return data


def _functions(
    read: Read, order: str, tables: list[_Table], name: str | None
) -> Iterator[_Function]:
    """The functions of that name, or all, which is slower by far."""
    for table in tables:
        if table.kind not in (_SHT_SYMTAB, _SHT_DYNSYM):
            continue
        if table.size // 24 > _SYMBOLS_MAX:
            raise ObjectError("it names too many functions: write offset: BYTES instead of symbol")
        strings = _bytes(read, tables[table.link])
        wanted = None if name is None else _places(strings, name.encode())
        versions = _versions(read, order, tables) if table.kind == _SHT_DYNSYM else []
        symbols = struct.iter_unpack(order + "IBBHQQ", _bytes(read, table, 24))
        for index, (text, info, _, section, address, _) in enumerate(symbols):
            if (
                info & 0xF not in (_STT_FUNC, _STT_GNU_IFUNC)
                or not section
                or (wanted is not None and text not in wanted)
            ):
                continue
            spelled, _, version = _name(strings, text).partition("@")
            default = not version or version.startswith("@")
            version = version.removeprefix("@")
            if index < len(versions):
                version, default = versions[index]
            local, indirect = info >> 4 == _STB_LOCAL, info & 0xF == _STT_GNU_IFUNC
            yield _Function(spelled, version, default, local, indirect, address)


def _places(strings: bytes, name: bytes) -> set[int]:
    """Where a name stands in a table of names, alone or with a version, and as the tail of another,
    which linkers share."""
    found, start = set[int](), 0
    while (start := strings.find(name, start)) >= 0:
        if strings[start + len(name) : start + len(name) + 1] in (b"\0", b"@"):
            found.add(start)
        start += 1
    return found


def _name(strings: bytes, start: int) -> str:
    end = strings.find(b"\0", start, start + _NAME_MAX_BYTES)
    return strings[start:end].decode("utf-8", "replace") if end >= 0 else ""


def _versions(read: Read, order: str, tables: list[_Table]) -> list[tuple[str, bool]]:
    """The version of each dynamic symbol, and whether it is the one that is linked with."""
    names: dict[int, str] = {}
    for table in tables:
        if table.kind != _SHT_VERDEF:
            continue
        defined, strings = _bytes(read, table), _bytes(read, tables[table.link])
        place = 0
        for _ in range(min(table.entries, 1 << 15)):
            number, auxiliary, following = struct.unpack_from(order + "4xH6xII", defined, place)
            (text,) = struct.unpack_from(order + "I", defined, place + auxiliary)
            names[number & ~_HIDDEN] = _name(strings, text)
            if not following:
                break
            place += following
    for table in tables:
        if table.kind == _SHT_VERSYM:
            numbers = struct.iter_unpack(order + "H", _bytes(read, table, 2))
            return [(names.get(n & ~_HIDDEN, ""), not n & _HIDDEN) for (n,) in numbers]
    return []


def _file_offset(read: Read, order: str) -> Callable[[int], int]:
    """Turns an address into the offset of its byte in the file."""
    (start,) = struct.unpack(order + "Q", read(32, 8))
    size, count = struct.unpack(order + "HH", read(54, 4))
    if size != 56:
        raise ObjectError("the ELF file is damaged: its program headers are no such")
    headers = struct.iter_unpack(order + "IIQQQQQQ", read(start, 56 * count))
    segments = [
        (address, offset, length)
        for kind, _, offset, address, _, length, _, _ in headers
        if kind == _PT_LOAD
    ]

    def offset_of(address: int) -> int:
        for begin, offset, length in segments:
            if begin <= address < begin + length:
                return int(address - begin + offset)
        raise ObjectError("the ELF file is damaged: a function is in no part that is loaded")

    return offset_of
