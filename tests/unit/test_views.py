"""BTF types become views, and views programs; whoever made the BTF, it ends, and in bounds."""

import pytest

from bpfkeeperd.btf import Btf, BtfBuilder, BtfError, Kind, Member, Type, Variable
from bpfkeeperd.format import Code, Format, Style, after, before, compile_format, plain, quoted
from bpfkeeperd.readable import UNREADABLE, Reading, reading, unreadable
from bpfkeeperd.state import MapInfo
from bpfkeeperd.views import (
    DEPTH_MAX,
    Array,
    Bytes,
    Field,
    Integer,
    Ip,
    Null,
    Real,
    Record,
    Sense,
    Text,
    View,
    ViewError,
    view_of,
)

U32 = Type(Kind.INT, "unsigned int", 4, bits=32)


def view(*types: Type) -> View:
    """The view of the last of these types, whose IDs begin at 1."""
    return view_of(Btf((Type(Kind.VOID), *types)), len(types))


def typedef(name: str, type_id: int) -> Type:
    return Type(Kind.TYPEDEF, name, type_id=type_id)


def array(type_id: int, count: int) -> Type:
    return Type(Kind.ARRAY, "", type_id=type_id, count=count)


def struct(*members: Member, size: int = 8, kind: Kind = Kind.STRUCT, name: str = "s") -> Type:
    return Type(kind, name, size, members=members)


@pytest.mark.parametrize(
    ("types", "expected"),
    [
        ([U32], Integer(4)),
        ([Type(Kind.INT, "int", 8, encoding=1, bits=64)], Integer(8, signed=True)),
        ([Type(Kind.INT, "_Bool", 1, encoding=4, bits=8)], Integer(1, sense=Sense.BOOL)),
        ([Type(Kind.INT, "__int128", 16, bits=128)], Bytes(16)),
        ([Type(Kind.INT, "x", 4, bits=5, bit_offset=3)], Integer(4, bit=3, bits=5)),
        ([Type(Kind.FLOAT, "float", 4)], Real(4)),
        ([Type(Kind.FLOAT, "long double", 16)], Bytes(16)),
        ([U32, Type(Kind.PTR, "", type_id=1)], Integer(8, sense=Sense.ADDRESS)),
        ([Type(Kind.PTR, "", type_id=0)], Integer(8, sense=Sense.ADDRESS)),
        ([U32, typedef("__u32", 1), typedef("__be32", 2)], Integer(4, network=True)),
        ([U32, typedef("be32", 1), Type(Kind.CONST, "", type_id=2)], Integer(4, network=True)),
        ([U32, typedef("__be16", 1)], Integer(4)),
        ([U32, typedef("ipv4", 1)], Ip(4)),
        ([Type(Kind.INT, "in_addr_t", 4, bits=32)], Ip(4)),
        ([struct(size=4, name="in_addr")], Ip(4)),
        ([struct(size=8, name="in_addr")], Record(())),
        ([Type(Kind.INT, "unsigned char", 1, bits=8), array(1, 6)], Bytes(6)),
        ([Type(Kind.INT, "unsigned char", 1, bits=8), array(1, 16), typedef("ipv6", 2)], Ip(16)),
        ([Type(Kind.INT, "char", 1, encoding=1, bits=8), array(1, 6)], Text(6)),
        ([Type(Kind.INT, "character", 1, encoding=2, bits=8), array(1, 6)], Text(6)),
        (
            [Type(Kind.INT, "signed char", 1, encoding=1, bits=8), array(1, 6)],
            Array(Integer(1, signed=True), 6, 1),
        ),
        ([U32, array(1, 3), array(2, 2)], Array(Array(Integer(4), 3, 4), 2, 12)),
        ([U32, array(1, 0)], Array(Integer(4), 0, 4)),
        ([struct(size=0), array(1, 1 << 31)], Array(Null(), 0, 1)),
        ([struct(size=16, name="in6_addr")], Ip(16)),
        (
            [Type(Kind.ENUM, "e", 4, values=(("A", 1), ("B", -1)), flag=True)],
            Integer(4, signed=True, names=(("A", 1), ("B", -1))),
        ),
        (
            [Type(Kind.ENUM64, "e", 8, values=(("A", 1 << 40),))],
            Integer(8, names=(("A", 1 << 40),)),
        ),
        (
            [U32, struct(Member("a", 1, 0, 3), Member("b", 1, 3, 30), Member("", 1, 33, 1))],
            Record((Field("a", 0, Integer(4, bits=3)), Field("b", 0, Integer(4, bit=3, bits=30)))),
        ),
        (  # a union without a name: its members are those of the struct
            [
                U32,
                struct(Member("a", 1, 0), Member("b", 1, 0), kind=Kind.UNION, size=4, name=""),
                struct(Member("first", 1, 0), Member("", 2, 32)),
            ],
            Record(
                (
                    Field("first", 0, Integer(4)),
                    Field("a", 4, Integer(4)),
                    Field("b", 4, Integer(4)),
                )
            ),
        ),
        (
            [
                U32,
                Type(Kind.VAR, "limit", type_id=1),
                Type(Kind.DATASEC, ".data", 8, variables=(Variable(2, 4, 4),)),
            ],
            Record((Field("limit", 4, Integer(4)),)),
        ),
    ],
)
def test_views(types: list[Type], expected: View) -> None:
    assert view(*types) == expected


@pytest.mark.parametrize(
    "types",
    [
        [typedef("t", 0)],
        [typedef("t", 1)],
        [typedef("t", 2), typedef("t", 1)],
        [Type(Kind.FWD, "f")],
        [struct(Member("m", 1, 0))],  # it holds itself
        [struct(Member("m", 9, 0))],
        [U32, *(struct(Member("m", number, 0)) for number in range(1, DEPTH_MAX + 1))],
        # each twice the one before: 2^20 members
        [
            U32,
            *(struct(Member("a", number, 0), Member("b", number, 0)) for number in range(1, 21)),
        ],
        [struct(Member("bits", 2, 0, 3)), struct()],
        [U32, struct(Member("bits", 1, 0, 65))],
    ],
)
def test_what_has_no_shape(types: list[Type]) -> None:
    with pytest.raises((ViewError, BtfError)) as caught:
        view_of(Btf((Type(Kind.VOID), *types)), len(types) if types[0] == U32 else 1)
    assert str(caught.value)


def compiled(value: View, size: int, style: Style = Style.JSON, *, per_cpu: bool = False) -> Format:
    return compile_format(style, Integer(4), 4, value, size, per_cpu=per_cpu)


@pytest.mark.parametrize(
    ("value", "size"),
    [
        (Integer(8), 8),
        (Integer(4, bit=7, bits=58), 9),
        (Text(5), 5),
        (Bytes(5), 5),
        (Ip(16), 16),
        (Real(8), 8),
        (Array(Integer(2), 5, 2), 10),
        (Array(Array(Integer(2), 5, 2), 3, 10), 30),
        (Record((Field("a", 4, Integer(4)),)), 8),
    ],
)
def test_no_field_ends_behind_the_value(value: View, size: int) -> None:
    for style in Style:
        assert compiled(value, size, style).ops
        with pytest.raises(ViewError):
            compiled(value, size - 1, style)


def test_elements_that_overlap_are_refused() -> None:
    with pytest.raises(ViewError):
        compiled(Array(Integer(8), 4, 4), 100)
    with pytest.raises(ViewError):
        compiled(Array(Integer(4), 4, 4, until_zero=True), 100)


def test_program_of_a_value() -> None:
    value = Record((Field("a", 0, Integer(4)), Field("b", 4, Array(Integer(2), 3, 2))))
    found = [(op.code, op.text or op.end) for op in compiled(value, 12).ops]
    assert found == [
        (Code.LITERAL, '{"key": '),
        (Code.KEY, 0),
        (Code.NUMBER, 0),
        (Code.LITERAL, ', "value": '),
        (Code.VALUE, 0),
        (Code.LITERAL, '{"a": '),
        (Code.NUMBER, 0),
        (Code.LITERAL, ', "b": ['),
        (Code.EACH, ", "),
        (Code.NUMBER, 0),
        (Code.LITERAL, "]}}"),
    ]
    assert [op.end for op in compiled(value, 12).ops if op.code is Code.EACH] == [10]


def test_program_does_not_grow_with_the_value() -> None:
    large = Array(Array(Integer(4), 1 << 10, 4), 1 << 10, 4 << 10)
    assert len(compiled(large, 4 << 20).ops) < 20


def test_what_stands_around_entries() -> None:
    form = compiled(Null(), 0)
    assert (before(form, 0), form.between, after(form, 1), after(form, 0)) == (
        *("[\n", ",\n", "\n]\n", "]\n"),
    )
    form = compiled(Null(), 0, Style.TABLE, per_cpu=True)
    assert (before(form, 5), form.between, after(form, 1)) == ("KEY    CPU  VALUE\n", "", "")


def test_names_cannot_leave_their_place() -> None:
    assert quoted('a"b\\\n\x1b') == r'"a\u0022b\u005c\u000a\u001b"'
    assert plain("é\U0001f600") == r"\u00e9\uf600"


def info(number: int, key_size: int = 4, value_size: int = 4, btf: int = 0) -> MapInfo:
    return MapInfo(1, "m", number, key_size, value_size, 8, 0, 0, (btf, 1 if btf else 0, 0))


def read(*arguments: int, btf: bytes | None = None, style: Style = Style.JSON) -> Reading:
    return reading(info(*arguments), btf, style, 2)


def test_types_of_maps_that_are_not_known_are_tried() -> None:
    assert not unreadable(info(99))
    assert not read(99).batch and read(99).value_size == 4


def test_sizes_of_entries() -> None:
    assert read(1, 4, 5).value_size == 5
    assert read(5, 4, 5).value_size == 2 * 8  # per CPU, rounded up
    assert read(18, 4, 4).value_size == 0  # sockhash: keys only
    assert len(UNREADABLE) == 13


def test_btf_that_cannot_be_used_is_told() -> None:
    assert read(1).note == ""
    assert "it takes CAP_SYS_ADMIN" in read(1, 4, 4, 7).note
    assert "cannot be used" in read(1, 4, 4, 7, btf=b"garbage").note
    builder = BtfBuilder()
    builder.add_int("wide", 8)
    answer = read(1, 4, 4, 7, btf=builder.data())  # 8 bytes, says the BTF: the key has 4
    assert "a field ends at byte 8 of 4" in answer.note
    assert answer.format == read(1).format
