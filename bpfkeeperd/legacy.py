"""Old objects made new: maps in SEC("maps") become what libbpf 1.0 and later loads.

libbpf dropped the old definitions, `struct bpf_map_def` as well as tc's `struct bpf_elf_map`, in
1.0. `rewrite` turns them into definitions in BTF, with all that belonged to them: inner maps,
tail-called programs, static maps. Sections of programs keep their names.
"""

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from bpfkeeperd.btf import Btf, BtfError
from bpfkeeperd.elfimage import (
    SHF_EXECINSTR,
    SHT_PROGBITS,
    SHT_REL,
    STB_GLOBAL,
    STB_LOCAL,
    STT_FUNC,
    STT_NOTYPE,
    STT_OBJECT,
    STT_SECTION,
    ElfImage,
    Relocation,
    Section,
    Symbol,
    has_section,
)
from bpfkeeperd.errors import ObjectError
from bpfkeeperd.legacymaps import MAPS_OF_MAPS, PROG_ARRAY, Definition, LegacyMap, read_maps
from bpfkeeperd.mapbtf import POINTER_SIZE, SECTION, Declaration, Place, declare, is_map_section

MAPS_MAX = 1024
"""tc took 64."""
SLOTS_MAX = 1 << 16
"""Of all maps of an object: each slot up to the last filled one takes 8 bytes of the result."""

_NO_SLOT = 0xFFFFFFFF
_OBJECT = STB_GLOBAL << 4 | STT_OBJECT
_LOAD_64 = 0x18
"""BPF_LD | BPF_IMM | BPF_DW, the instruction that takes a map."""
_NUMBER = r"\s*\+?(0[xX][0-9a-fA-F]+|0[0-7]*|[1-9][0-9]*)"
_TAIL_CALL = re.compile(f"{_NUMBER}/{_NUMBER}")
"""As tc reads section names: with sscanf's %i/%i."""


@dataclass(frozen=True, slots=True)
class Rewritten:
    """An object that libbpf can open."""

    data: bytes
    """The very same bytes where there was nothing to rewrite."""
    pins: Mapping[str, str] = field(default_factory=dict)
    """Map to where tc would pin it, below the pin root: ``tc/globals/NAME``."""


@dataclass(frozen=True, slots=True)
class _Variable:
    """A map's variable: the number of its symbol, and where it was."""

    symbol: int
    section: int
    start: int
    content: bytes


def rewrite(data: bytes) -> Rewritten:
    """Turns old map definitions into new ones; without such, nothing.

    Raises:
        ObjectError: the old definitions are damaged, or say what cannot be said in the new form.
    """
    if not has_section(data, (b"maps\0", b"maps/")):
        return Rewritten(data)
    image = ElfImage(data)
    names = [image.section_name(index) for index in range(len(image.sections))]
    if SECTION in names:
        raise ObjectError('the object has SEC("maps") and SEC(".maps"): move all maps to ".maps"')
    sections = [index for index, name in enumerate(names) if is_map_section(name)]
    places_of_symbols = _named_places(image)
    _type_functions(image, places_of_symbols)
    variables = _find_variables(image, sections, places_of_symbols)
    try:
        btf_index = names.index(".BTF") if ".BTF" in names else None
        btf_data = None if btf_index is None else image.content(btf_index)
        btf = None if btf_data is None else Btf.parse(btf_data)
        definitions = [
            Definition(image.symbol_name(image.symbols[item.symbol]), item.content)
            for item in variables
        ]
        maps = read_maps(definitions, btf)
        symbols = [_global_symbol(image, item.symbol) for item in variables]
        declarations = _declarations(image, names, maps, symbols)
        new_btf, places = declare(btf_data, btf, declarations)
    except BtfError as error:
        raise ObjectError(f"the types of the object cannot be read: {error}") from None
    _move_relocations(image, sections, variables, symbols)
    _put(image, sections, btf_index, new_btf, declarations, places)
    for item, place, symbol in zip(variables, places, symbols, strict=True):
        for number in {item.symbol, symbol}:
            image.symbols[number].section = sections[0]
            image.symbols[number].value, image.symbols[number].size = place.offset, place.size
    return Rewritten(image.finished(), _pins(data, maps))


def _named_places(image: ElfImage) -> dict[int, list[tuple[int, int]]]:
    """Section to what lies in it by name: offsets and numbers of symbols, in order."""
    found: dict[int, list[tuple[int, int]]] = {}
    for number, symbol in enumerate(image.symbols):
        if symbol.type in (STT_OBJECT, STT_FUNC) or (
            symbol.type == STT_NOTYPE and symbol.binding != STB_LOCAL and symbol.name != 0
        ):
            found.setdefault(symbol.section, []).append((symbol.value, number))
    for places in found.values():
        places.sort()
    return found


def _sized(image: ElfImage, index: int, places: Sequence[tuple[int, int]]) -> Iterator[Symbol]:
    """The symbols at these places, each with a size: LLVM before 7 gave them none, and no type."""
    ends = [start for start, _ in places[1:]] + [image.sections[index].size]
    for (start, number), limit in zip(places, ends, strict=True):
        symbol = image.symbols[number]
        size = symbol.size or limit - start
        if start % 4 or start + size > limit:
            raise ObjectError(
                f"{image.symbol_name(symbol)} has {size} bytes at {start} in the section"
                f" {image.section_name(index)}, but what comes next, or the section's end, is at"
                f" {limit}: it is damaged"
            )
        symbol.size = size
        yield symbol


def _type_functions(image: ElfImage, places: Mapping[int, Sequence[tuple[int, int]]]) -> None:
    """Makes functions of symbols without a type: libbpf sees no program in others."""
    for index, found in places.items():
        if (
            0 < index < len(image.sections)
            and image.sections[index].flags & SHF_EXECINSTR
            and all(image.symbols[number].type == STT_NOTYPE for _, number in found)
        ):
            for symbol in _sized(image, index, found):
                symbol.info = symbol.binding << 4 | STT_FUNC


def _find_variables(
    image: ElfImage, sections: Sequence[int], places: Mapping[int, Sequence[tuple[int, int]]]
) -> list[_Variable]:
    """The variables in the map sections, in order, each with its bytes."""
    found: list[_Variable] = []
    for index in sections:
        name, section = image.section_name(index), image.sections[index]
        if section.type != SHT_PROGBITS or section.flags & SHF_EXECINSTR:
            raise ObjectError(f'the section {name} holds no map definitions: is SEC("maps") right?')
        if index not in places:
            raise ObjectError(f"no symbol names a map in the section {name}: was it stripped?")
        numbers = [number for _, number in places[index]]
        for number, symbol in zip(numbers, _sized(image, index, places[index]), strict=True):
            content = image.content_at(index, symbol.value, symbol.size)
            found.append(_Variable(number, index, symbol.value, content))
    if len(found) > MAPS_MAX:
        raise ObjectError(f"the object has {len(found)} maps: {MAPS_MAX} is the most that is read")
    return found


def _global_symbol(image: ElfImage, number: int) -> int:
    """The symbol that stands for a map: a new one for a static map, which libbpf would not see."""
    symbol = image.symbols[number]
    if symbol.binding == STB_LOCAL:
        return image.add_symbol(symbol, info=_OBJECT)
    symbol.info, symbol.other = _OBJECT, 0
    return number


def _declarations(
    image: ElfImage, names: Sequence[str], maps: Sequence[LegacyMap], symbols: Sequence[int]
) -> list[Declaration]:
    programs = _tail_called(image, names)
    found = []
    room = SLOTS_MAX
    for item in maps:
        slots: dict[int, int] = {}
        inner = None
        if item.type in MAPS_OF_MAPS:
            inner = _inner(item, maps)
            slots = {
                other.inner_idx: symbol
                for other, symbol in zip(maps, symbols, strict=True)
                if item.inner_id and other.id == item.inner_id and not other.inner_id
            }
            slots.pop(_NO_SLOT, None)
            _check_map_of_maps(item, slots)
        elif item.type == PROG_ARRAY and item.id and _is_first(item, maps):
            slots = programs.get(item.id, {})
        last = max(slots, default=-1)
        room -= last + 1
        if last >= item.max_entries or room < 0:
            raise ObjectError(
                f"map {item.name} has {item.max_entries} entries, but slot {last} is to be filled"
                + (f": an object can fill {SLOTS_MAX}" if last < item.max_entries else "")
            )
        found.append(Declaration(item, inner, slots))
    return found


def _is_first(item: LegacyMap, maps: Sequence[LegacyMap]) -> bool:
    """Whether tc finds this map by its ID, which is to be the only one."""
    return next(other for other in maps if other.id == item.id) is item


def _check_map_of_maps(item: LegacyMap, slots: Mapping[int, int]) -> None:
    if item.value_size not in (0, 4):
        raise ObjectError(
            f"map {item.name} has values of {item.value_size} bytes: a map of maps has 4"
        )
    if slots and item.key_size != 4:
        raise ObjectError(
            f"map {item.name} has keys of {item.key_size} bytes: only with 4 can the inner maps be"
            " put into it; give them inner_idx -1"
        )


def _inner(item: LegacyMap, maps: Sequence[LegacyMap]) -> LegacyMap:
    """The pattern of an outer map's inner ones."""
    if item.inner_map_idx is not None:
        if item.inner_map_idx >= len(maps):
            raise ObjectError(
                f"map {item.name} has inner_map_idx {item.inner_map_idx}, but the object has"
                f" {len(maps)} maps, counted from 0"
            )
        inner = maps[item.inner_map_idx]
    elif item.inner_id:
        inner = next((other for other in maps if other.id == item.inner_id), item)
        if inner is item and item.id != item.inner_id:
            raise ObjectError(
                f"map {item.name} has inner_id {item.inner_id}, but no map of the object has"
                " that id"
            )
    else:
        raise ObjectError(
            f"map {item.name} is a map of maps that does not say what its inner maps are: give it"
            ' inner_map_idx or inner_id, or declare it in SEC(".maps")'
        )
    if inner is item:
        raise ObjectError(f"map {item.name} is to have itself as an inner map")
    if inner.type in MAPS_OF_MAPS:
        raise ObjectError(f"map {item.name} is to have {inner.name} inside, a map of maps as well")
    return inner


def _tail_called(image: ElfImage, names: Sequence[str]) -> dict[int, dict[int, int]]:
    """Map ID to slot to the symbol of the program in a section that is called ID/SLOT."""
    found: dict[int, dict[int, int]] = {}
    wanted: dict[int, tuple[int, int]] = {}
    for index, name in enumerate(names):
        match = _TAIL_CALL.match(name)
        if match and image.sections[index].flags & SHF_EXECINSTR and image.sections[index].size:
            map_id, slot = (_c_number(text) for text in match.groups())
            wanted[index] = map_id, slot
    for number, symbol in enumerate(image.symbols):
        if symbol.section in wanted and symbol.type == STT_FUNC and symbol.value == 0:
            map_id, slot = wanted.pop(symbol.section)
            found.setdefault(map_id, {})[slot] = number
    return found


def _c_number(text: str) -> int:
    """A number as C writes it."""
    return int(text, 8) if text.startswith("0") and text.isdigit() else int(text, 0)


def _map_relocations(
    image: ElfImage, sections: Sequence[int]
) -> Iterator[tuple[int, int, Relocation]]:
    """Relocations of programs that lead into map sections: section, number, relocation."""
    wanted = set(sections)
    for index, section in enumerate(image.sections):
        if section.type != SHT_REL:
            continue
        if section.info >= len(image.sections):
            raise ObjectError(f"section {index} relocates section {section.info}: there is none")
        if image.sections[section.info].flags & SHF_EXECINSTR:
            for number, relocation in enumerate(image.relocations(index)):
                if image.symbols[relocation.symbol].section in wanted:
                    yield index, number, relocation


def _move_relocations(
    image: ElfImage,
    sections: Sequence[int],
    variables: Sequence[_Variable],
    symbols: Sequence[int],
) -> None:
    """Has each instruction that takes a map refer to the symbol of that map."""
    at = {
        (item.section, item.start): symbol for item, symbol in zip(variables, symbols, strict=True)
    }
    for index, number, relocation in list(_map_relocations(image, sections)):
        target = image.sections[index].info
        code = image.content_at(target, relocation.offset, 16)
        where = f"{image.section_name(target)}+{relocation.offset:#x}"
        if len(code) < 16 or relocation.offset % 8 or code[0] != _LOAD_64:
            raise ObjectError(f"the instruction at {where} cannot take a map: it is damaged")
        symbol = image.symbols[relocation.symbol]
        start = symbol.value + int.from_bytes(code[4:8], "little")
        if (symbol.section, start) not in at:
            name = "" if symbol.type == STT_SECTION else f" {image.symbol_name(symbol)}"
            raise ObjectError(
                f"the instruction at {where} refers to{name} byte {start} of the section"
                f" {image.section_name(symbol.section)}, where no map begins: programs can only"
                " take a whole map"
            )
        relocation.symbol = at[symbol.section, start]
        image.put_relocation(index, number, relocation)
        image.put_word(target, relocation.offset + 4, 0)


def _put(
    image: ElfImage,
    sections: Sequence[int],
    btf_index: int | None,
    btf: bytes,
    declarations: Sequence[Declaration],
    places: Sequence[Place],
) -> None:
    """The new contents: the section of the maps, their definitions, what fills their slots."""
    section, *emptied = sections
    image.rename(section, SECTION)
    for index in emptied:  # each map had a section of its own
        image.rename(index, ".legacy")
    image.replace(section, bytes(places[-1].offset + places[-1].size))
    image.sections[section].alignment = POINTER_SIZE
    if btf_index is None:
        image.add(".BTF", Section(0, SHT_PROGBITS, 0, 0, 0, 0, 0, 0, 8, 0), btf)
    else:
        image.replace(btf_index, btf)
    relocations = [
        Relocation(place.values + POINTER_SIZE * slot, symbol, 2)
        for item, place in zip(declarations, places, strict=True)
        for slot, symbol in item.slots.items()
    ]
    if relocations:
        image.add_relocations(f".rel{SECTION}", section, relocations)


def _pins(data: bytes, maps: Sequence[LegacyMap]) -> dict[str, str]:
    """Where tc pins maps: those of one object under the hash of its file."""
    of_object = f"tc/{hashlib.sha1(data, usedforsecurity=False).hexdigest()}"
    directories = {1: of_object, 2: "tc/globals"}
    for item in maps:
        if item.pinning and "." in item.name:
            raise ObjectError(f"map {item.name} cannot be pinned: bpffs takes no names with a dot")
    return {item.name: f"{directories[item.pinning]}/{item.name}" for item in maps if item.pinning}
