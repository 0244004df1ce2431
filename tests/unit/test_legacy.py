"""Old map definitions: what cannot be rewritten is told, and what is not old stays as it is."""

import struct
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import pytest

from bpfkeeperd.btf import Btf, Kind
from bpfkeeperd.elf import check_header
from bpfkeeperd.elfimage import ElfImage
from bpfkeeperd.errors import ObjectError
from bpfkeeperd.legacy import rewrite
from tests.conftest import BuildObject
from tests.legacy_objects import compiled_text, damaged, legacy_object

PROGRAM = """
SEC("socket") int program(void *context) { __u32 key = 0;
    return bpf_map_lookup_elem(&%s, &key) ? 1 : 0; }
"""


def text(definitions: str, form: str = "TC9", uses: str = "m") -> str:
    return f'#define FORM {form}\n#include "forms.h"\n{definitions}\n{PROGRAM % uses}'


def tc(name: str, rest: str, *, kind: str = "BPF_MAP_TYPE_ARRAY", value: int = 8) -> str:
    return f'DEFINITION SEC("maps") {name} = {{ SIZES({kind}, 4, {value}, 3), {rest} }};\n'


def complaint(data: bytes) -> str:
    with pytest.raises(ObjectError) as caught:
        rewrite(data)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def words(kind: str, *numbers: int) -> str:
    """A map that is defined by a bare array."""
    content = ", ".join(str(number) for number in numbers)
    return (
        f'struct d {{ {kind} w[{len(numbers)}]; }}; struct d SEC("maps") m = {{{{ {content} }}}};'
    )


def btf_of(data: bytes) -> Btf:
    image = ElfImage(data)
    names = [image.section_name(index) for index in range(len(image.sections))]
    return Btf.parse(image.content(names.index(".BTF")))


def test_a_new_object_stays_as_it_is(build_object: BuildObject) -> None:
    data = build_object("counter").read_bytes()
    assert rewrite(data).data is data and rewrite(data).pins == {}


def test_no_object_stays_as_it_is() -> None:
    for data in (b"", b"\x7fELF", b"\x7fELF\2\1" + bytes(58), b"\xff" * 4096):
        assert rewrite(data).data is data


def test_telling_a_new_object_is_quick(build_object: BuildObject) -> None:
    """Every object of every reload is looked at: some 4 µs, of which 100 are allowed here."""
    data = build_object("counter").read_bytes()
    seconds = []
    for _ in range(200):
        start = time.perf_counter()
        rewrite(data)
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 100e-6


def test_types_of_the_object_keep_their_ids() -> None:
    data = legacy_object("annotated", debug=True, FORM="TC9")
    before, after = btf_of(data), btf_of(rewrite(data).data)
    assert len(after.types) > len(before.types)
    changed = [old for old, new in zip(before.types, after.types, strict=False) if old != new]
    assert sorted((item.kind, item.name) for item in changed) == [
        (Kind.VAR, "known"),
        (Kind.VAR, "local"),
        (Kind.VAR, "other"),
        (Kind.DATASEC, "maps"),
    ]


def test_variables_do_not_lie_over_each_other() -> None:
    btf = btf_of(rewrite(legacy_object("nested", FORM="TC9")).data)
    number = btf.find(Kind.DATASEC, ".maps")
    assert number is not None
    end = 0
    for variable in btf.types[number].variables:
        assert variable.offset == end and variable.size >= btf.size(variable.type_id)
        end += variable.size
    assert end == btf.types[number].size


def test_a_second_time_there_is_nothing_to_do() -> None:
    once = rewrite(legacy_object("nested", FORM="TC9")).data
    assert rewrite(once).data is once


SAME_PLACE = '__attribute__((alias("m")))'
BOTH = 'struct { __uint(type, 1); } n SEC(".maps");'
UNKNOWN = (
    'struct d { __u32 type, key_size, value_size, max_entries, colour; };struct d SEC("maps") m'
)
TWO_FORMS = (
    "struct d { __u32 w[7]; };"
    'struct d SEC("maps") m = {{ 2, 4, 8, 3, 0, 9, 0 }};'
    'struct d SEC("maps") n = {{ 12, 4, 4, 3, 0, 0, 0 }};'
)
OUTER = "BPF_MAP_TYPE_ARRAY_OF_MAPS"
PROG_ARRAY = "BPF_MAP_TYPE_PROG_ARRAY"
IN_A_FUNCTION = """
SEC("filter") int other(void *context) { __u32 key = 0;
    static DEFINITION SEC("maps") own = { SIZES(2, 4, 8, 3), .pinning = 2 };
    return bpf_map_lookup_elem(&own, &key) ? 1 : 0; }
"""


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (text(tc("m", ".pinning = 9")), "map m has pinning 9, which only /etc/iproute2/bpf_pinn"),
        (text(tc("m", "") + BOTH), 'the object has SEC("maps") and SEC(".maps"): move all maps'),
        (text(tc("m", "", kind="0")), "map m has no type: it is damaged, or not meant for a map"),
        (
            text(words("__u32", 2, 4, 8, 3, 0, 0, 0, 0, 0, 0, 1)),
            "map m is defined in 44 bytes, which is no known form: build the object",
        ),
        (text(TWO_FORMS), "it cannot be told whether the maps are struct bpf_elf_map (as m) or bp"),
        (
            text(words("__u32", 2, 4, 8)),
            "map m is defined in 12 bytes: a struct bpf_map_def or bpf_elf_map has 16 or more",
        ),
        (
            text(words("__u16", *range(9))),
            "map m is defined in 18 bytes: a struct bpf_map_def or bpf_elf_map has 16 or more",
        ),
        (
            text('DEFINITION SEC("maps/m") m = { SIZES(2, 4, 8, 3), .pinning = 2 };', "GOBPF"),
            "map m is pinned by gobpf's namespaces, which are not known here: build the object",
        ),
        (
            text(tc("m", "", kind=OUTER, value=4)),
            "map m is a map of maps that does not say what its inner maps are: give it",
        ),
        (
            text(tc("m", ".inner_id = 5", kind=OUTER, value=4)),
            "map m has inner_id 5, but no map of the object has that id",
        ),
        (
            text(tc("m", ".id = 5, .inner_id = 5", kind=OUTER, value=4)),
            "map m is to have itself as an inner map",
        ),
        (
            text(
                tc("m", ".inner_id = 5", kind=OUTER, value=4)
                + tc("n", ".id = 5, .inner_id = 6", kind=OUTER, value=4)
                + tc("o", ".id = 6")
            ),
            "map m is to have n inside, a map of maps as well",
        ),
        (
            text(tc("m", ".inner_id = 5", kind=OUTER) + tc("n", ".id = 5")),
            "map m has values of 8 bytes: a map of maps has 4",
        ),
        (
            text(
                tc("n", ".id = 5, .inner_idx = 3") + tc("m", ".inner_id = 5", kind=OUTER, value=4)
            ),
            "map m has 3 entries, but slot 3 is to be filled",
        ),
        (
            text(
                tc("n", ".id = 5, .inner_idx = 70000")
                + 'DEFINITION SEC("maps") m = { SIZES(12, 4, 4, 80000), .inner_id = 5 };'
            ),
            "map m has 80000 entries, but slot 70000 is to be filled: an object can fill 65536",
        ),
        (
            text(
                tc("n", ".id = 5")
                + 'DEFINITION SEC("maps") m = { SIZES(13, 8, 4, 3), .inner_id = 5 };'
            ),
            "map m has keys of 8 bytes: only with 4 can the inner maps be put into it",
        ),
        (
            text(
                tc("m", ".id = 5", kind=PROG_ARRAY, value=4)
                + 'SEC("5/3") int tail(void *context) { return 0; }'
            ),
            "map m has 3 entries, but slot 3 is to be filled",
        ),
        (
            text('DEFINITION SEC("maps") m = { SIZES(12, 4, 4, 3), .inner_map_idx = 1 };', "DEF7"),
            "map m has inner_map_idx 1, but the object has 1 maps, counted from 0",
        ),
        (
            text('DEFINITION SEC("maps") m = { SIZES(12, 4, 4, 3), .inner_map_idx = 0 };', "DEF7"),
            "map m is to have itself as an inner map",
        ),
        (
            text(tc("m", "") + IN_A_FUNCTION),
            "map other.own cannot be pinned: bpffs takes no names with a dot",
        ),
        (
            text(tc("m", "") + f"extern typeof(m) n {SAME_PLACE};", uses="n"),
            "m has 36 bytes at 0 in the section maps, but what comes next, or the section's end",
        ),
        (
            text('SEC("maps") int m(void) { return 0; }'),
            'the section maps holds no map definitions: is SEC("maps") right?',
        ),
    ],
)
def test_what_cannot_be_rewritten(source: str, message: str) -> None:
    assert complaint(compiled_text(source)).startswith(message)


def test_members_that_nobody_knows() -> None:
    source = text(f"{UNKNOWN} = {{ 2, 4, 8, 3, 1 }};")
    assert complaint(compiled_text(source, debug=True)) == (
        'map m sets colour, which is not known in SEC("maps"): declare the map in SEC(".maps")'
    )
    unset = compiled_text(text(f"{UNKNOWN} = {{ 2, 4, 8, 3, 0 }};"), debug=True)
    assert rewrite(unset).data is not unset


def test_members_in_another_order() -> None:
    """With BTF their names tell, wherever they are."""
    source = text(
        "struct d { __u32 type, id, pinning, max_elem, size_value, size_key; };"
        'struct d SEC("maps") m = { 2, 0, 2, 3, 8, 4 };'
    )
    assert rewrite(compiled_text(source, debug=True)).pins == {"m": "tc/globals/m"}


def test_a_stripped_object(tmp_path: Path) -> None:
    path = tmp_path / "stripped.o"
    path.write_bytes(legacy_object("pinned", FORM="TC9"))
    subprocess.run(["llvm-strip", "--strip-all-gnu", str(path)], check=True)
    assert complaint(path.read_bytes()).startswith(
        "the object has 0 symbol tables instead of one: was it stripped? build it again"
    )


@pytest.mark.parametrize("name", ["../../x", "a b", "", "9", "x" * 128])
def test_names_of_maps(name: str) -> None:
    """They become names in BTF, and of files."""
    image = ElfImage(legacy_object("pinned", FORM="TC9"))
    strings = image.sections[image.symtab].link
    symbol = next(item for item in image.symbols if image.symbol_name(item) == "shared")
    symbol.name = image.sections[strings].size
    image.replace(strings, image.content(strings) + name.encode() + b"\0")
    assert complaint(image.finished()) == (
        f"a map is called {name[:40]!r}: the kernel takes letters, digits, _"
    )


def test_two_maps_of_one_name() -> None:
    image = ElfImage(legacy_object("pinned", FORM="TC9"))
    named = {image.symbol_name(item): item for item in image.symbols}
    named["own"].name = named["shared"].name
    assert complaint(image.finished()) == "two maps are called shared: rename one"


@pytest.mark.parametrize(
    ("offset", "word", "message"),
    [
        (4, 12, "refers to loose byte 12 of the section maps, where no map begins: programs can"),
        (4, 0xFFFFFFFF, "refers to loose byte 4294967295 of the section maps, where no map begins"),
        (0, 0x07, "cannot take a map: it is damaged"),
    ],
)
def test_instructions(offset: int, word: int, message: str) -> None:
    image = ElfImage(legacy_object("pinned", FORM="TC9"))
    names = [image.section_name(index) for index in range(len(image.sections))]
    first = next(iter(image.relocations(names.index(".relclassifier"))))
    image.put_word(names.index("classifier"), first.offset + offset, word)
    assert complaint(image.finished()).startswith(
        f"the instruction at classifier+{first.offset:#x} {message}"
    )


def test_instructions_lead_to_the_new_place() -> None:
    """A static map was so many bytes into its section; now it is a symbol, and 0 bytes into it."""
    image = ElfImage(rewrite(legacy_object("plain", FORM="TC9")).data)
    names = [image.section_name(index) for index in range(len(image.sections))]
    targets = []
    for relocation in image.relocations(names.index(".relsocket1")):
        code = image.content_at(names.index("socket1"), relocation.offset, 16)
        assert code[4:8] == bytes(4)
        targets.append(image.symbol_name(image.symbols[relocation.symbol]))
    assert targets == ["counts", "hidden", "deeper", "table", "hidden"]


def test_many_sections_and_symbols_take_no_time() -> None:
    """Sections times symbols would be hours."""
    image = ElfImage(legacy_object("pinned", FORM="TC9"))
    names = [image.section_name(index) for index in range(len(image.sections))]
    maps = image.sections[names.index("maps")]
    shared = next(item for item in image.symbols if image.symbol_name(item) == "shared")
    shared.section = names.index("maps")
    strings = image.content(names.index(".strtab"))
    image.replace(names.index(".strtab"), strings + b"maps/x\0")
    for _ in range(20_000):
        image.sections.append(replace(maps, name=len(strings), size=0))
        index = image.add_symbol(shared, info=shared.info)
        image.symbols[index].section, image.symbols[index].size = len(image.sections) - 1, 0
    data = image.finished()
    start = time.process_time()
    assert complaint(data) == "the object has 20004 maps: 1024 is the most that is read"
    assert time.process_time() - start < 10


def test_names_that_do_not_end() -> None:
    """Each of 20,000 sections is named by a tail of one megabyte."""
    image = ElfImage(legacy_object("pinned", FORM="TC9"))
    names = [image.section_name(index) for index in range(len(image.sections))]
    strings = image.content(names.index(".strtab"))
    image.replace(names.index(".strtab"), strings + b"x" * (1 << 20) + b"\0")
    license = image.sections[names.index("license")]
    for number in range(20_000):
        image.sections.append(replace(license, name=len(strings) + number, size=0))
    assert "does not end: it is damaged" in complaint(image.finished())


def test_slots_of_all_maps_together() -> None:
    outer = "".join(
        f'DEFINITION SEC("maps") o{number} = {{ SIZES(12, 4, 4, 60000), .inner_id = 5 }};\n'
        for number in range(3)
    )
    source = text(tc("m", ".id = 5, .inner_idx = 30000") + outer)
    assert complaint(compiled_text(source)) == (
        "map o2 has 60000 entries, but slot 30000 is to be filled: an object can fill 65536"
    )


def test_damaged_types() -> None:
    data = legacy_object("pinned", debug=True, FORM="TC9")
    (start,) = [place for place in range(len(data)) if data.startswith(b"\x9f\xeb\x01\x00", place)][
        :1
    ]
    changed = data[: start + 2] + b"\7" + data[start + 3 :]
    assert complaint(changed).startswith("the types of the object cannot be read: this is no BTF")


def test_sections_over_each_other() -> None:
    """A thousand headers of one large section would be read a thousand times."""
    data = legacy_object("pinned", FORM="TC9")
    (table,) = struct.unpack_from("<Q", data, 40)
    image = ElfImage(data)
    longest = max(range(len(image.sections)), key=lambda index: image.sections[index].size)
    header = data[table + 64 * longest :][:64]
    many = data + header * 1000
    count = len(image.sections) + 1000
    assert table + 64 * len(image.sections) == len(data)
    changed = many[:60] + struct.pack("<H", count) + many[62:]
    assert complaint(changed).startswith("sections lie over each other: it is damaged")


@pytest.mark.parametrize(
    ("source", "debug", "form"),
    [("tail_calls", False, ""), ("nested", True, "TC9"), ("nested", False, "DEF7")],
)
def test_damaged(source: str, debug: bool, form: str) -> None:
    """Whatever is changed, the answer is an error of one line, or an object that can be read."""
    macros = {"FORM": form} if form else {}
    refused = 0
    for data in damaged(legacy_object(source, debug=debug, **macros), 1):
        try:
            check_header(data)
            rewritten = rewrite(data).data
        except ObjectError as error:
            assert str(error) and "\n" not in str(error)
            refused += 1
        else:
            if rewritten is not data:
                ElfImage(rewritten)
    assert refused > 200
