"""Shapes against clang and against ctypes, which place members as C does."""

import ctypes
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bpfkeeperd import kernel
from bpfkeeperd.btf import Btf
from bpfkeeperd.errors import ManifestError, Mark
from bpfkeeperd.literals import encode
from bpfkeeperd.nodes import Faults, ListNode, MappingNode, Node, Place, ScalarNode
from bpfkeeperd.shapes import (
    TYPE_NAMES,
    Array,
    Form,
    Scalar,
    Shape,
    Struct,
    alignment,
    btf,
    layout_text,
    named,
    parse,
    plain,
    shape_of_layout,
    struct,
)
from bpfkeeperd.yamlnodes import read_tree

SCALARS = st.sampled_from([named(name) for name in TYPE_NAMES if name != "char"])
ELEMENTS = st.sampled_from([named(name) for name in TYPE_NAMES])
LEAVES: st.SearchStrategy[Shape] = SCALARS | st.builds(Array, ELEMENTS, st.integers(1, 5))


def _structs(below: st.SearchStrategy[Shape]) -> st.SearchStrategy[Shape]:
    def placed(shapes: list[Shape]) -> Shape:
        return struct([(f"m{index}", shape) for index, shape in enumerate(shapes)])

    return st.lists(below, min_size=1, max_size=5).map(placed)


SHAPES = st.recursive(LEAVES, _structs, max_leaves=12)

C_NAMES = {"char": "char", "bool": "_Bool", "ipv4": "__be32", "ipv6": "struct in6_addr"}


def c_declaration(shape: Shape, name: str) -> str:
    match shape:
        case Scalar(name=scalar):
            return f"{C_NAMES.get(scalar, f'__{scalar}')} {name};"
        case Array(element=element, count=count):
            return c_declaration(element, f"{name}[{count}]")
        case Struct(members=members):
            inside = " ".join(c_declaration(one.shape, one.name) for one in members)
            return f"struct {{ {inside} }} {name};"


def c_source(shapes: list[Shape]) -> str:
    """An object with a map for each shape, which is the first member of its value."""
    lines = ["#include <linux/bpf.h>", "#include <linux/in6.h>", "#include <bpf/bpf_helpers.h>"]
    for index, shape in enumerate(shapes):
        lines += [
            f"struct v{index} {{ {c_declaration(shape, 'm')} }};",
            "struct { __uint(type, BPF_MAP_TYPE_HASH); __uint(max_entries, 1);"
            f' __type(key, __u32); __type(value, struct v{index}); }} map{index} SEC(".maps");',
        ]
    return "\n".join([*lines, 'char LICENSE[] SEC("license") = "GPL";', ""])


@settings(max_examples=4, deadline=None)
@given(st.lists(SHAPES, min_size=20, max_size=20))
def test_clang_places_members_alike(shapes: list[Shape]) -> None:
    include = f"/usr/include/{platform.machine()}-linux-gnu"
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "shapes.bpf.o"
        command = ["clang", "-O2", "-g", "-target", "bpf", "-I", include, "-x", "c", "-", "-c"]
        source = c_source(shapes).encode()
        subprocess.run([*command, "-o", str(path)], input=source, check=True)
        with kernel.open_object(path.read_bytes(), "x") as opened:
            specs = {spec.name: spec for spec in opened.spec.maps}
    for index, shape in enumerate(shapes):
        value = struct([("m", shape)])
        spec = specs[f"map{index}"]
        assert spec.value_size == value.size
        assert spec.value_layout == layout_text(value)


C_TYPES = {
    **{f"u{bits}": getattr(ctypes, f"c_uint{bits}") for bits in (8, 16, 32, 64)},
    **{f"s{bits}": getattr(ctypes, f"c_int{bits}") for bits in (8, 16, 32, 64)},
    **{f"be{bits}": getattr(ctypes, f"c_uint{bits}").__ctype_be__ for bits in (16, 32, 64)},
    "bool": ctypes.c_bool,
}
NUMBERS = st.sampled_from([named(name) for name in C_TYPES])
NUMERIC = st.recursive(
    NUMBERS | st.builds(Array, NUMBERS, st.integers(1, 4)), _structs, max_leaves=10
)


def c_type(shape: Shape) -> Any:
    """What ctypes makes of a shape."""
    match shape:
        case Scalar(name=name):
            return C_TYPES[name]
        case Array(element=element, count=count):
            return c_type(element) * count
        case Struct(members=members):
            fields = [(one.name, c_type(one.shape)) for one in members]
            return type("S", (ctypes.Structure,), {"_fields_": fields})


MARK = Mark("m", 1, 1)
PLACE = Place("x", MARK)


def numbers(shape: Shape) -> st.SearchStrategy[Any]:
    """Values of a shape: numbers, lists, mappings."""
    match shape:
        case Scalar(form=Form.BOOL):
            return st.booleans()
        case Scalar(form=Form.SIGNED, bits=bits):
            return st.integers(-(1 << bits - 1), (1 << bits - 1) - 1)
        case Scalar(bits=bits):
            return st.integers(0, (1 << bits) - 1)
        case Array(element=element, count=count):
            return st.lists(numbers(element), min_size=count, max_size=count)
        case Struct(members=members):
            return st.fixed_dictionaries({one.name: numbers(one.shape) for one in members})


def written(value: Any) -> Node:
    """A value as a manifest has it."""
    if isinstance(value, dict):
        pairs = ((ScalarNode(name, True, MARK), written(one)) for name, one in value.items())
        return MappingNode(tuple(pairs), MARK)
    if isinstance(value, list):
        return ListNode(tuple(map(written, value)), MARK)
    return ScalarNode(str(value).lower(), True, MARK)


def seen(value: Any) -> Any:
    """What ctypes holds, as plain values."""
    if isinstance(value, ctypes.Structure):
        return {name: seen(getattr(value, name)) for name, *_ in value._fields_}
    if isinstance(value, ctypes.Array):
        return [seen(one) for one in value]
    return value


def encoded(shape: Shape, node: Node) -> bytes:
    faults = Faults(["m"])
    data = encode(shape, node, PLACE, faults)
    faults.raise_any()
    assert data is not None
    return data


@given(NUMERIC.filter(lambda shape: isinstance(shape, Struct)), st.data())
def test_what_is_written_is_what_c_reads(shape: Shape, data: st.DataObject) -> None:
    value = data.draw(numbers(shape))
    kind = c_type(shape)
    assert (ctypes.sizeof(kind), ctypes.alignment(kind)) == (shape.size, alignment(shape))
    assert seen(kind.from_buffer_copy(encoded(shape, written(value)))) == value


@given(NUMERIC, st.data())
def test_a_layout_tells_as_much(shape: Shape, data: st.DataObject) -> None:
    """But for the order of bytes, which no layout tells."""
    layout = layout_text(shape)
    assert layout
    described = shape_of_layout(layout, shape.size)
    assert described
    if "be" not in repr(shape):
        node = written(data.draw(numbers(shape)))
        assert encoded(described, node) == encoded(shape, node)


@given(SHAPES, SHAPES)
def test_btf_is_sound(key: Shape, value: Shape) -> None:
    data, key_id, value_id = btf(key, value)
    parsed = Btf.parse(data)
    assert (parsed.size(key_id), parsed.size(value_id)) == (key.size, value.size)


def test_btf_of_plain_bytes() -> None:
    for size in (1, 2, 3, 4, 8, 16, 17, 1000):
        data, key_id, value_id = btf(None, plain(size))
        assert (key_id, Btf.parse(data).size(value_id)) == (0, size)


LAYOUTS = {
    "a bit-field": ("0:3:int:low\n3:13:int:high\n", 4, "{low: 5, high: 5000}", "459c0000"),
    "bit-fields in another order": (
        "0:3:int:low\n3:13:int:high\n",
        2,
        "{high: 5000, low: 5}",
        "459c",
    ),
    "a union": ("0:32:union:u\n0:32:int:u.a\n0:16:int:u.b\n", 4, "{u: {b: 1}}", "01000000"),
    "a union without a name": (
        "0:32:int:a\n32:64:union:\n32:32:int:b\n32:64:int:c\n96:8:int:d\n",
        16,
        "{a: 1, c: 2, d: 3}",
        "01000000020000000000000003000000",
    ),
    "a top-level array": ("0:32:array of 2:\n0:16:int:[]\n", 4, "[1, 2]", "01000200"),
    "an array of arrays": (
        "0:32:array of 2:a\n0:16:array of 2:a[]\n0:8:int:a[][]\n",
        4,
        "{a: [[1, 2], [3, 4]]}",
        "01020304",
    ),
    "padding with a name that stands for itself": (
        "0:64:int:timer\n64:64:int:timer\n128:32:int:n\n",
        24,
        "{timer: {}, n: 1}",
        "00" * 16 + "0100000000000000",
    ),
    "bytes of a pointer": (
        "0:64:pointer:p\n",
        8,
        "{p: {hex: 0102030405060708}}",
        "0102030405060708",
    ),
    "an address": ("0:32:int:in.s_addr\n", 4, "{in: 10.0.0.1}", "0a000001"),
    "text": ("0:64:array of 8:s\n0:8:int:s[]\n", 8, "{s: abc}", "6162630000000000"),
    "truth": ("0:8:int:\n", 1, "true", "01"),
    "a negative number": ("0:16:int:\n", 2, "-2", "feff"),
}


@pytest.mark.skipif(sys.byteorder != "little", reason="the bytes are those of x86 and ARM")
@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts(name: str) -> None:
    layout, size, text, expected = LAYOUTS[name]
    shape = shape_of_layout(layout, size)
    assert shape and shape.size == size
    assert encoded(shape, tree(text)).hex() == expected


def tree(text: str) -> Node:
    faults = Faults(["m"])
    node = read_tree("m", text.encode(), faults)
    faults.raise_any()
    assert node
    return node


@pytest.mark.parametrize(
    ("layout", "text", "expected"),
    [
        (
            "0:32:union:u\n0:32:int:u.a\n0:16:int:u.b\n",
            "{u: {a: 1, b: 1}}",
            "x.u has both a and b, which share their bytes: a union holds one of them: keep that",
        ),
        (
            "0:32:union:\n0:32:int:a\n0:16:int:b\n",
            "{}",
            "x lacks a or b: write every member, 0 where there is nothing to say",
        ),
        ("0:32:float:f\n", "{f: 1.5}", 'x.f must be bytes, not "1.5": write {hex: 00 00 00 00}'),
        ("0:64:float:f\n", "{f: []}", "x.f must be bytes, not a list: write {hex: 00 01 …}"),
    ],
)
def test_what_a_layout_does_not_take(layout: str, text: str, expected: str) -> None:
    shape = shape_of_layout(layout, 8)
    assert shape
    with pytest.raises(ManifestError) as caught:
        encoded(shape, tree(text))
    assert expected in str(caught.value)


@pytest.mark.parametrize(
    ("layout", "size"),
    [
        ("", 4),
        ("0:64:int:a\n", 4),
        ("0:0:array of 0:a\n0:8:int:a[]\n", 4),
        ("0:32:array of 4:\n", 4),
    ],
)
def test_layouts_that_tell_nothing(layout: str, size: int) -> None:
    assert shape_of_layout(layout, size) is None


@pytest.mark.parametrize(
    ("text", "size", "align"),
    [
        ("u8", 1, 1),
        ("ipv6", 16, 4),
        ("char[5]", 5, 1),
        ("be64[2]", 16, 8),
        ("{a: u8, b: u32, c: u8}", 12, 4),
        ("{a: u8, b: {c: u8, d: u64}}", 24, 8),
        ("{a: u8, b: ipv6}", 20, 4),
        ("hex: u8", 1, 1),
    ],
)
def test_parse(text: str, size: int, align: int) -> None:
    faults = Faults(["m"])
    shape = parse(tree(text), PLACE, faults)
    faults.raise_any()
    assert shape
    assert (shape.size, alignment(shape)) == (size, align)


def test_a_member_that_is_called_hex() -> None:
    faults = Faults(["m"])
    shape = parse(tree("hex: u8"), PLACE, faults)
    assert shape and encoded(shape, tree("{hex: 10}")) == b"\n"


@pytest.mark.parametrize(
    "text",
    ["{a: u8, b: [u8]}", "u7", "u8[0]", "char", "u8[9999999]", "{}", "{1a: u8}", "{a: u8, a: u8}"],
)
def test_types_that_are_none(text: str) -> None:
    faults = Faults(["m"])
    assert parse(tree(text), PLACE, faults) is None
    with pytest.raises(ManifestError):
        faults.raise_any()
