"""Files that are no BPF object, not whole, or damaged: always an ObjectError that says which."""

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bpfkeeperd.elf import ElfFacts, check_header, first_complaint, read_elf, slotted_maps
from bpfkeeperd.elfimage import ElfImage
from bpfkeeperd.errors import ObjectError
from tests.conftest import BuildObject

MACHINE = 18  # offsets in the ELF header
TYPE = 16
SECTION_OFFSET = 40
SECTION_COUNT = 60
SECTION_NAMES = 62


@pytest.fixture(scope="module")
def counter(build_object: BuildObject) -> bytes:
    return build_object("counter").read_bytes()


def patched(data: bytes, offset: int, value: bytes) -> bytes:
    return data[:offset] + value + data[offset + len(value) :]


def as_big_endian(data: bytes) -> bytes:
    """The header of an object for a big-endian machine; its sections are not turned round."""
    fields = struct.unpack_from("<HHIQQQIHHHHHH", data, 16)
    header = data[:5] + b"\x02" + data[6:16] + struct.pack(">HHIQQQIHHHHHH", *fields)
    return header + data[64:]


def complaint(data: bytes) -> str:
    with pytest.raises(ObjectError) as caught:
        check_header(data)
    with pytest.raises(ObjectError) as again:
        read_elf(data)
    assert str(again.value) == str(caught.value)
    return str(caught.value)


def test_an_object(counter: bytes) -> None:
    check_header(counter)
    facts = read_elf(counter)
    assert facts.license == "Dual BSD/GPL"
    sizes = {section.name: section.size for section in facts.sections}
    assert {"cgroup_skb/egress", ".maps", "license", ".BTF"} <= set(sizes)
    assert sizes["license"] == len("Dual BSD/GPL") + 1
    assert {section.name: section.type for section in facts.sections}[".maps"] == "SHT_PROGBITS"


def test_an_object_without_a_license(counter: bytes) -> None:
    assert read_elf(counter.replace(b"\0license\0", b"\0licence\0")).license == ""


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "the file is empty: was it being written? build it again"),
        (b"#include", "this is no ELF file: give the output of clang -target bpf -c"),
        (b"BC\xc0\xde" * 40, "this is no ELF file: give the output of clang -target bpf -c"),
        (b"\x7fELF", "the file ends inside its ELF header, after 4 bytes"),
        (b"\x7fELF" + b"\2\1\1" + b"\0" * 56, "the file ends inside its ELF header, after 63 byt"),
    ],
)
def test_no_object(data: bytes, message: str) -> None:
    assert complaint(data).startswith(message)


@pytest.mark.parametrize(
    ("offset", "value", "message"),
    [
        (4, b"\1", "this is no 64-bit ELF file: give the output of clang -target bpf -c"),
        (4, b"\7", "this is no 64-bit ELF file: give the output of clang -target bpf -c"),
        (5, b"\0", "this is no 64-bit ELF file: give the output of clang -target bpf -c"),
        (MACHINE, b"\x3e\0", "this is an ELF file for x86-64, not for BPF: use clang -target bpf"),
        (MACHINE, b"\xb7\0", "this is an ELF file for arm64, not for BPF: use clang -target bpf"),
        (MACHINE, b"\x99\1", "this is an ELF file for ELF machine 409, not for BPF: use clang"),
        (TYPE, b"\2\0", "this BPF file is not relocatable: give the output of clang -c"),
        (SECTION_COUNT, b"\0\0", "the file has "),
        (SECTION_COUNT, b"\xff\xff", "the file has "),
        (SECTION_OFFSET, b"\xff" * 8, "the file has "),
    ],
)
def test_another_header(counter: bytes, offset: int, value: bytes, message: str) -> None:
    assert complaint(patched(counter, offset, value)).startswith(message)


def test_a_file_cut_short(counter: bytes) -> None:
    for length in (len(counter) - 1, len(counter) // 2, 64):
        assert f"the file has {length} bytes but its section table ends at {len(counter)}" in (
            complaint(counter[:length])
        )


def test_a_big_endian_object(counter: bytes) -> None:
    big = as_big_endian(counter)
    check_header(big)
    assert "not for BPF" in complaint(patched(big, MACHINE, b"\0\x3e"))
    assert "cut short" in complaint(big[:-1])


def test_a_compressed_license(counter: bytes) -> None:
    """What says that it is compressed may be anything, and be any size when taken out."""
    (table,) = struct.unpack_from("<Q", counter, SECTION_OFFSET)
    (count,) = struct.unpack_from("<H", counter, SECTION_COUNT)
    index = [section.name for section in read_elf(counter).sections].index("license")
    assert index < count
    compressed = patched(counter, table + 64 * index + 8, struct.pack("<Q", 0x800))
    assert read_elf(compressed).license == "Dual BSD/GPL"


def test_names_that_are_tails_of_a_long_one(counter: bytes) -> None:
    """Thousands of sections could each be called by most of a megabyte."""
    image = ElfImage(counter)
    names = [image.section_name(index) for index in range(len(image.sections))]
    index = names.index(".strtab")
    image.replace(index, image.content(index) + b"x" * 1025 + b"\0")
    for read in (read_elf, slotted_maps):
        with pytest.raises(ObjectError, match="its tables of names are no such"):
            read(image.finished())


def test_tables_of_names_over_each_other(counter: bytes) -> None:
    image = ElfImage(counter)
    names = [image.section_name(index) for index in range(len(image.sections))]
    table = image.sections[names.index(".strtab")]
    image.sections += [table] * (len(counter) // table.size + 100)
    with pytest.raises(ObjectError, match="its tables of names are no such"):
        read_elf(image.finished())


def facts_or_error(data: bytes) -> ElfFacts | None:
    try:
        return read_elf(data)
    except ObjectError as error:
        assert str(error) and "\n" not in str(error)
        return None


@settings(deadline=None)
@given(st.binary(max_size=200), st.booleans())
def test_any_bytes(data: bytes, magic: bool) -> None:
    assert facts_or_error(b"\x7fELF\2\1\1" * magic + data) is None or magic


HOSTILE = [b"\0", b"\xff", b"\xff" * 4, b"\xff" * 8, b"\0" * 8, b"\x7f" + b"\xff" * 7, b"\1\0\0\0"]
CHANGES = st.lists(
    st.tuples(
        st.sampled_from(["header", "sections", "anywhere"]),
        st.integers(0, 1 << 16),
        st.sampled_from(HOSTILE) | st.binary(min_size=1, max_size=8),
    ),
    min_size=1,
    max_size=6,
)


def test_a_damaged_object(counter: bytes) -> None:
    (table,) = struct.unpack_from("<Q", counter, SECTION_OFFSET)
    places = {"header": (16, 48), "sections": (table, len(counter) - table)}

    @settings(deadline=None, max_examples=400)
    @given(changes=CHANGES, big_endian=st.booleans())
    def damaged(changes: list[tuple[str, int, bytes]], big_endian: bool) -> None:
        data = as_big_endian(counter) if big_endian else counter
        for where, offset, value in changes:
            start, size = places.get(where, (0, len(data)))
            data = patched(data, start + offset % size, value)[: len(counter)]
        facts_or_error(data)

    damaged()


def test_a_truncated_object(counter: bytes) -> None:
    for length in range(0, len(counter), 7):
        assert facts_or_error(counter[:length]) is None


@pytest.mark.parametrize(
    ("log", "line"),
    [
        ("libbpf: elf: no maps\nlibbpf: failed\n", "elf: no maps"),
        ("something\nlibbpf:  legacy map definitions \n", "legacy map definitions"),
        ("libbpf: elf: skipping section(3) x\nlibbpf: damaged\n", "damaged"),
        ("libbpf: elf: skipping section(3) x\n", ""),
        ("something\n", ""),
        ("", ""),
    ],
)
def test_first_complaint(log: str, line: str) -> None:
    assert first_complaint(log) == line
