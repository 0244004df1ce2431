"""What the ELF file around a BPF object says, and whether it is one at all.

Maps and programs are read by libbpf (kernel/objects.py), which also loads them: a second reader in
Python takes 1.1 ms for what libbpf does in 16 µs, and could disagree with it. This module says what
libbpf does not: why a file is no BPF object, its sections, its license.
"""

import io
import struct
from bisect import bisect_left
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bpfkeeperd.elfimage import NAME_MAX_BYTES
from bpfkeeperd.errors import ObjectError

if TYPE_CHECKING:  # it takes 20 ms to import, and few need it
    from elftools.elf.sections import Section as ELFSection

_HEADER = struct.Struct("<4s5B7xHHIQQQIHHHHHH")
_DAMAGED = (ValueError, LookupError, TypeError, AttributeError, OverflowError)
"""Beside its own, what pyelftools raises at the sight of nonsense."""
_EM_BPF = 247
_ET_REL = 1
_SHT_STRTAB = 3
_SECTION_SIZE = 64
_MACHINES = {62: "x86-64", 183: "arm64", 243: "RISC-V", 3: "i386", 40: "ARM", 0: "no machine"}


@dataclass(frozen=True, slots=True)
class Section:
    name: str
    type: str
    """As ELF names it: ``SHT_PROGBITS``."""
    size: int
    """In bytes."""


@dataclass(frozen=True, slots=True)
class ElfFacts:
    license: str
    """Empty when the object has no license section."""
    sections: tuple[Section, ...]


def check_header(data: bytes) -> None:
    """Whether bytes can be a whole BPF object file, at the price of one look at the header.

    Raises:
        ObjectError: what they are instead, or that the file ends too early.
    """
    if not data:
        raise ObjectError("the file is empty: was it being written? build it again")
    if data[:4] != b"\x7fELF":
        raise ObjectError("this is no ELF file: give the output of clang -target bpf -c")
    if len(data) < _HEADER.size:
        raise ObjectError(f"the file ends inside its ELF header, after {len(data)} bytes")
    header = _HEADER.unpack_from(data)
    elf_class, byte_order = header[1], header[2]
    if elf_class != 2 or byte_order not in (1, 2):
        raise ObjectError("this is no 64-bit ELF file: give the output of clang -target bpf -c")
    if byte_order == 2:
        header = struct.unpack_from(">" + _HEADER.format[1:], data)
    kind, machine = header[6], header[7]
    section_offset, section_size, section_count = header[11], header[16], header[17]
    if machine != _EM_BPF or kind != _ET_REL:
        what = _MACHINES.get(machine, f"ELF machine {machine}")
        if machine == _EM_BPF:
            raise ObjectError("this BPF file is not relocatable: give the output of clang -c")
        raise ObjectError(f"this is an ELF file for {what}, not for BPF: use clang -target bpf")
    end = section_offset + section_size * section_count
    if section_count == 0 or end > len(data):
        raise ObjectError(
            f"the file has {len(data)} bytes but its section table ends at {end}:"
            " it is cut short or half written"
        )


def read_elf(data: bytes) -> ElfFacts:
    """Sections and license of an object file.

    Raises:
        ObjectError: the file is damaged.
    """
    from elftools.elf.elffile import ELFFile

    check_header(data)
    _check_names(data)
    with _sound():
        elf = ELFFile(io.BytesIO(data))
        sections = tuple(
            Section(section.name, str(section["sh_type"]), section["sh_size"])
            for section in elf.iter_sections()
        )
        text = _raw(data, elf.get_section_by_name("license"))
    return ElfFacts(text.split(b"\0")[0].decode("utf-8", "replace"), sections)


def slotted_maps(data: bytes) -> frozenset[str]:
    """The program arrays that an object fills with programs of its own: those whose declaration
    names functions, which libbpf does not tell.

    Raises:
        ObjectError: the file is damaged.
    """
    from elftools.elf.elffile import ELFFile
    from elftools.elf.relocation import RelocationSection
    from elftools.elf.sections import SymbolTableSection

    _check_names(data)
    with _sound():
        elf = ELFFile(io.BytesIO(data))
        relocations = elf.get_section_by_name(".rel.maps")
        symbols = elf.get_section_by_name(".symtab")
        section = elf.get_section_index(".maps")
        if (
            not isinstance(relocations, RelocationSection)
            or not isinstance(symbols, SymbolTableSection)
            or section is None
        ):
            return frozenset()
        filled = sorted(
            relocation["r_offset"]
            for relocation in relocations.iter_relocations()
            if symbols.get_symbol(relocation["r_info_sym"])["st_info"]["type"] == "STT_FUNC"
        )
        return frozenset(
            symbol.name
            for symbol in symbols.iter_symbols()
            if symbol["st_shndx"] == section
            and bisect_left(filled, symbol["st_value"])
            < bisect_left(filled, symbol["st_value"] + symbol["st_size"])
        )


@contextmanager
def _sound() -> Iterator[None]:
    """What pyelftools raises at the sight of nonsense, said in a word."""
    from elftools.common.exceptions import ELFError

    try:
        yield
    except (ELFError, *_DAMAGED) as error:
        raise ObjectError(f"the ELF file is damaged: {error}") from None


def _check_names(data: bytes) -> None:
    """Whether names are short: pyelftools would take out thousands that are tails of a long one.

    The header is known to be a whole one.
    """
    order = ">" if data[5] == 2 else "<"
    (start,) = struct.unpack_from(order + "Q", data, 40)
    size, count = struct.unpack_from(order + "HH", data, 58)
    if size != _SECTION_SIZE:
        raise ObjectError(f"the ELF file is damaged: its section headers have {size} bytes")
    left = len(data)
    for place in range(start, start + size * count, size):
        (kind,) = struct.unpack_from(order + "I", data, place + 4)
        if kind != _SHT_STRTAB:
            continue
        offset, length = struct.unpack_from(order + "QQ", data, place + 24)
        left -= length
        if left < 0 or max(map(len, data[offset : offset + length].split(b"\0"))) > NAME_MAX_BYTES:
            raise ObjectError("the ELF file is damaged: its tables of names are no such")


def _raw(data: bytes, section: "ELFSection | None") -> bytes:
    """A section's bytes as they are in the file: a compressed one is never taken out."""
    if section is None or section["sh_type"] == "SHT_NOBITS":
        return b""
    return data[section["sh_offset"] :][: section["sh_size"]]


def first_complaint(log: str) -> str:
    """libbpf's first message, without its prefix; empty when it said nothing.

    Sections that it has no use for are no complaint.
    """
    for line in log.splitlines():
        if line.startswith("libbpf: ") and not line.startswith("libbpf: elf: skipping "):
            return line.removeprefix("libbpf: ").strip()
    return ""
