"""BTF as clang writes it and as nobody should: read, built, and refused."""

import struct
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bpfkeeperd.btf import Btf, BtfBuilder, BtfError, Kind, Member, Type, Variable

SOURCE = """
typedef unsigned int number;
struct inner { unsigned short port; unsigned char flags : 3, rest : 5; };
union either { int a; long long b; };
enum colour { RED = -1, GREEN = 7 };
enum big { BIG = 0x1234567890 };
struct later;
struct value {
    const volatile number counts[3][5];
    struct inner inner;
    union either either;
    enum colour colour;
    struct later *later;
    _Bool yes;
    char name[16];
    double ratio;
};
struct value value __attribute__((section(".data.it")));
enum big big;
static int hidden;
int work(struct value *restrict v, long n) { hidden += n; return v->yes; }
int use(void) { return hidden + big; }
"""


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The BTF that clang makes of the source above."""
    directory = tmp_path_factory.mktemp("btf")
    source, built, btf = (directory / name for name in ("x.c", "x.o", "x.btf"))
    source.write_text(SOURCE)
    flags = ["-O2", "-g", "-target", "bpf", "-c", str(source), "-o", str(built)]
    subprocess.run(["clang", *flags], check=True)
    subprocess.run(["llvm-objcopy", f"--dump-section=.BTF={btf}", str(built)], check=True)
    return btf.read_bytes()


def header(types: bytes, strings: bytes = b"\0", **changes: int) -> bytes:
    """BTF of raw types and strings; ``changes`` are other numbers in its header."""
    fields = {
        "magic": 0xEB9F,
        "version": 1,
        "flags": 0,
        "size": 24,
        "type_offset": 0,
        "type_size": len(types),
        "string_offset": len(types),
        "string_size": len(strings),
        **changes,
    }
    return struct.pack("<HBBIIIII", *fields.values()) + types + strings


def words(*numbers: int) -> bytes:
    return struct.pack(f"<{len(numbers)}I", *numbers)


def record(
    kind: int, third: int, *tail: int, name: int = 0, count: int = 0, flag: int = 0
) -> bytes:
    return words(name, flag << 31 | kind << 24 | count, third, *tail)


INT = record(Kind.INT, 4, 32)


def test_what_clang_makes(compiled: bytes) -> None:
    btf = Btf.parse(compiled)
    assert btf.types[0] == Type(Kind.VOID)
    number = btf.find(Kind.STRUCT, "value")
    assert number is not None
    value = btf.types[number]
    assert value.size == btf.size(number) == 120
    assert [(member.name, member.bit_offset // 8) for member in value.members] == [
        *(("counts", 0), ("inner", 60), ("either", 64), ("colour", 72), ("later", 80)),
        *(("yes", 88), ("name", 89), ("ratio", 112)),
    ]
    sizes = {member.name: btf.size(member.type_id) for member in value.members}
    assert sizes == {
        "counts": 60,
        "inner": 4,
        "either": 8,
        "colour": 4,
        "later": 8,
        "yes": 1,
        "name": 16,
        "ratio": 8,
    }
    kinds = {member.name: btf.resolve(member.type_id).kind for member in value.members}
    assert kinds["either"] is Kind.UNION and kinds["later"] is Kind.PTR
    outer = btf.resolve(value.members[0].type_id)
    assert (outer.kind, outer.count, btf.resolve(outer.type_id).count) == (Kind.ARRAY, 3, 5)
    element = btf.resolve(btf.resolve(outer.type_id).type_id)
    assert (element.name, element.bits, element.encoding) == ("unsigned int", 32, 0)
    yes = btf.resolve(value.members[5].type_id)
    assert (yes.kind, yes.encoding) == (Kind.INT, 4)


def test_kinds_of_the_rest(compiled: bytes) -> None:
    btf = Btf.parse(compiled)

    def named(kind: Kind, name: str) -> Type:
        number = btf.find(kind, name)
        assert number is not None, name
        return btf.types[number]

    inner = named(Kind.STRUCT, "inner")
    assert inner.flag
    assert [(m.name, m.bit_offset, m.bit_size) for m in inner.members] == [
        *(("port", 0, 0), ("flags", 16, 3), ("rest", 19, 5)),
    ]
    assert dict(named(Kind.ENUM, "colour").values)["GREEN"] == 7
    work = named(Kind.FUNC, "work")
    proto = btf.types[work.type_id]
    assert work.linkage == 1 and [name for name, _ in proto.parameters] == ["v", "n"]
    assert btf.resolve(proto.type_id).name == "int"
    assert named(Kind.VAR, "hidden").linkage == 0 and named(Kind.VAR, "value").linkage == 1
    section = named(Kind.DATASEC, ".data.it")
    assert [btf.types[variable.type_id].name for variable in section.variables] == ["value"]
    assert section.variables[0].size == 120
    assert named(Kind.FWD, "later").size == 0
    assert named(Kind.FLOAT, "double").size == 8
    assert btf.find(Kind.UNION, "value") is None


def test_the_kernels_own() -> None:
    path = Path("/sys/kernel/btf/vmlinux")
    if not path.exists():
        pytest.skip("this kernel gives no BTF")
    data = path.read_bytes()
    btf = Btf.parse(data)
    number = btf.find(Kind.STRUCT, "list_head")
    assert number is not None and btf.size(number) == 16
    assert BtfBuilder(data).data() == data


def test_what_is_built_is_read() -> None:
    builder = BtfBuilder()
    u32 = builder.add_int("unsigned int", 4)
    s64 = builder.add_int("long", 8, signed=True)
    char = builder.add_int("char", 1, char=True)
    yes = builder.add_int("_Bool", 1, bool=True)
    be32 = builder.add_typedef("__be32", u32)
    text = builder.add_array(char, 16)
    members = (Member("address", be32, 0), Member("name", text, 32), Member("yes", yes, 160))
    inner = builder.add_struct("inner", 24, members)
    bits = builder.add_struct("bits", 4, (Member("a", u32, 0, 3), Member("b", u32, 3, 29)))
    pointer = builder.add_pointer(inner)
    variable = builder.add_var("variable", inner, 1)
    section = builder.add_datasec(".maps", 24, (Variable(variable, 0, 24),))
    data = builder.data()
    btf = Btf.parse(data)
    assert btf.types[u32] == Type(Kind.INT, "unsigned int", 4, bits=32)
    assert btf.types[s64] == Type(Kind.INT, "long", 8, bits=64, encoding=1)
    assert (btf.types[char].encoding, btf.types[yes].encoding) == (2, 4)
    assert btf.types[be32] == Type(Kind.TYPEDEF, "__be32", type_id=u32)
    assert btf.resolve(be32) == btf.types[u32]
    assert (btf.types[text].count, btf.size(text)) == (16, 16)
    assert btf.resolve(btf.types[text].index_type_id).kind is Kind.INT
    assert btf.types[inner] == Type(Kind.STRUCT, "inner", 24, members=members)
    assert btf.types[bits].flag and [m.bit_size for m in btf.types[bits].members] == [3, 29]
    assert btf.types[pointer] == Type(Kind.PTR, type_id=inner) and btf.size(pointer) == 8
    assert btf.types[variable] == Type(Kind.VAR, "variable", type_id=inner, linkage=1)
    assert btf.size(variable) == 24
    assert btf.types[section].variables == (Variable(variable, 0, 24),)
    assert BtfBuilder(data).data() == data


def test_the_same_type_is_one() -> None:
    builder = BtfBuilder()
    number = builder.add_int("u32", 4)
    assert builder.add_int("u32", 4) == number
    assert builder.add_int("u32", 4, signed=True) != number
    assert builder.add_array(number, 3) == builder.add_array(number, 3)
    assert builder.data().count(b"u32") == 1


def test_adding_keeps_what_there_is(compiled: bytes) -> None:
    before = Btf.parse(compiled).types
    builder = BtfBuilder(compiled)
    assert builder.add_struct("more", 8, (Member("x", 1, 0),)) == len(before)
    after = Btf.parse(builder.data()).types
    assert after[: len(before)] == before and after[-1].name == "more"


def test_replacing_keeps_the_ids() -> None:
    builder = BtfBuilder()
    number = builder.add_int("int", 4)
    variable = builder.add_var("x", number, 1)
    section = builder.add_datasec("maps", 4, (Variable(variable, 0, 4),))
    last = builder.add_pointer(number)
    builder.replace_datasec(
        section, ".maps", 8, (Variable(variable, 0, 4), Variable(variable, 4, 4))
    )
    builder.replace_var(variable, "y", last, 0)
    btf = Btf.parse(builder.data())
    assert btf.types[section].name == ".maps" and len(btf.types[section].variables) == 2
    assert btf.types[variable] == Type(Kind.VAR, "y", type_id=last, linkage=0)
    assert btf.types[last] == Type(Kind.PTR, type_id=number)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda builder: builder.add_int("x", -1), "INT x is too large for BTF"),
        (lambda builder: builder.add_array(1, 1 << 32), "ARRAY without a name is too large"),
        (lambda builder: builder.add_int("a\0b", 4), "the name 'a\\x00b' has a zero byte"),
        (
            lambda builder: builder.add_struct("s", 4, [Member("m", 1, 1 << 24, 1)]),
            "member m is too far",
        ),
        (
            lambda builder: builder.add_struct("s", 4, [Member("m", 1, 0)] * 65536),
            "STRUCT s is too large for BTF",
        ),
    ],
)
def test_what_cannot_be_built(build: object, message: str) -> None:
    assert callable(build)
    with pytest.raises(BtfError) as caught:
        build(BtfBuilder())
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "the BTF ends inside its header, after 0 bytes"),
        (header(b"")[:23], "the BTF ends inside its header, after 23 bytes"),
        (header(b"", magic=0x9FEB), "the BTF is big-endian: build the object with"),
        (header(b"", magic=0x1234), "this is no BTF of version 1 (magic 0x1234, version 1)"),
        (header(b"", version=2), "this is no BTF of version 1 (magic 0xeb9f, version 2)"),
        (header(b"", size=8), "the BTF header says that it has 8 bytes"),
        (header(INT, type_size=0xFFFFFFFF), "the BTF has 41 bytes but its types end at 4294967319"),
        (header(INT, string_offset=0xFFFFFFF0), "the BTF has 41 bytes but its types end at 40 and"),
        (header(INT, type_offset=1, type_size=12), "the BTF has 41 bytes but its types end at 37"),
        (header(INT, b""), "the strings of the BTF do not begin and end with a zero byte"),
        (header(INT, b"\0int"), "the strings of the BTF do not begin and end with a zero byte"),
        (header(INT, b"int\0"), "the strings of the BTF do not begin and end with a zero byte"),
        (header(INT[:8]), "the BTF ends inside type 1"),
        (header(INT[:12]), "the BTF ends inside type 1"),
        (header(INT + record(Kind.STRUCT, 4, count=65535)), "the BTF ends inside type 2"),
        (header(record(0, 0)), "type 1 of the BTF is of unknown kind 0"),
        (header(record(20, 0)), "type 1 of the BTF is of unknown kind 20"),
        (header(record(Kind.PTR, 2)), "type 1 of the BTF (PTR without a name) refers to a type"),
        (header(record(Kind.INT, 4, 32, name=9)), "a name of the BTF is at 9, outside"),
        (header(record(Kind.INT, 3, 24)), "type 1 of the BTF (INT without a name) has 3 bytes"),
        (header(record(Kind.INT, 4, 33)), "type 1 of the BTF (INT without a name) has more bits"),
        (header(record(Kind.FLOAT, 5)), "type 1 of the BTF (FLOAT without a name) has 5 bytes"),
        (
            header(INT + record(Kind.STRUCT, 4, 0, 1, 8, count=1)),
            "type 2 of the BTF (STRUCT without a name) has 4 bytes but '' ends behind them",
        ),
        (
            header(INT + record(Kind.STRUCT, 4, 0, 1, 20 << 24 | 16, count=1, flag=1)),
            "type 2 of the BTF (STRUCT without a name) has 4 bytes but '' ends behind them",
        ),
        (
            header(record(Kind.STRUCT, 4, 0, 0, 0, count=1)),
            "type 0 of the BTF has no size: it comes down to VOID",
        ),
        (
            header(record(Kind.STRUCT, 4, 0, 2, 0, count=1) + record(Kind.TYPEDEF, 2)),
            "type 2 of the BTF is 32 or more others deep, or goes round in a circle",
        ),
        (
            header(record(Kind.STRUCT, 4, 0, 2, 0, count=1) + record(Kind.ARRAY, 0, 2, 2, 9)),
            "type 2 of the BTF is 32 or more others deep, or goes round in a circle",
        ),
        (
            header(
                record(Kind.STRUCT, 4, 0, 3, 0, count=1)
                + INT
                + record(Kind.ARRAY, 0, 4, 2, 0xFFFFFFFF)
                + record(Kind.ARRAY, 0, 2, 2, 0xFFFFFFFF)
            ),
            "type 3 of the BTF has 73786976260478468100 bytes: it is damaged",
        ),
    ],
)
def test_damaged(data: bytes, message: str) -> None:
    with pytest.raises(BtfError) as caught:
        Btf.parse(data)
    assert str(caught.value).startswith(message)


def test_too_much_of_it() -> None:
    with pytest.raises(BtfError, match="the BTF has 16777217 bytes: the kernel takes 16777216"):
        Btf.parse(bytes((16 << 20) + 1))


def test_names_that_are_none() -> None:
    """They get into messages, and onto terminals."""
    btf = Btf.parse(header(record(Kind.FWD, 0, name=1), b"\0a\n\x1b[2J\xffb\0"))
    assert btf.types[1].name == "a\ufffd\ufffd[2J\ufffdb"


def test_names_inside_names() -> None:
    """Each of 40,000 names is a tail of one long string: 800 MB, if all were taken out."""
    count = 40_000
    types = b"".join(record(Kind.FWD, 0, name=1 + number) for number in range(count))
    with pytest.raises(BtfError, match="the names of the BTF overlap too much"):
        Btf.parse(header(types, b"\0" + b"x" * count + b"\0"))


def test_references_that_are_not_followed_before_they_are_asked_for() -> None:
    btf = Btf.parse(header(record(Kind.TYPEDEF, 2) + record(Kind.CONST, 1)))
    for ask in (btf.resolve, btf.size):
        with pytest.raises(BtfError, match="goes round in a circle"):
            ask(1)
        with pytest.raises(BtfError, match="the BTF has no type 3"):
            ask(3)
        with pytest.raises(BtfError, match="the BTF has no type -1"):
            ask(-1)


@pytest.mark.parametrize("signed", [False, True])
def test_numbers_of_enums(signed: bool) -> None:
    low, high = 0xFFFFFFFF, 0xFFFFFFFF
    types = record(Kind.ENUM, 4, 0, low, count=1, flag=signed)
    types += record(Kind.ENUM64, 8, 0, low, high, count=1, flag=signed)
    btf = Btf.parse(header(types))
    assert btf.types[1].values == (("", -1 if signed else 0xFFFFFFFF),)
    assert btf.types[2].values == (("", -1 if signed else 0xFFFFFFFFFFFFFFFF),)


def test_cut_short(compiled: bytes) -> None:
    for length in range(0, len(compiled), 5):
        with pytest.raises(BtfError):
            Btf.parse(compiled[:length])


def test_words_changed(compiled: bytes) -> None:
    @settings(deadline=None, max_examples=300)
    @given(
        st.lists(
            st.tuples(
                st.integers(0, len(compiled) - 4),
                st.sampled_from([0, 1, 0xFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF])
                | st.integers(0, 0xFFFFFFFF),
            ),
            max_size=4,
        )
    )
    def changed(changes: list[tuple[int, int]]) -> None:
        data = bytearray(compiled)
        for offset, word in changes:
            struct.pack_into("<I", data, offset // 4 * 4, word)
        try:
            btf = Btf.parse(bytes(data))
        except BtfError as error:
            assert str(error)
        else:
            assert Btf.parse(BtfBuilder(bytes(data)).data()).types == btf.types

    changed()
