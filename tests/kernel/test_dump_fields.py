"""What is shown of a field, for very many contents of it, against Python's own idea of it."""

import json
import math
import os
import random
import struct
import sys
from collections.abc import Sequence
from typing import Any

import pytest

from bpfkeeperd import kernel
from bpfkeeperd.format import Style, compile_format
from bpfkeeperd.maptypes import BY_NAME
from bpfkeeperd.views import Field, Integer, Ip, Real, Record, Text, View
from tests.machine import fill_map

RANDOM = random.Random(7)


def shown(view: View, values: Sequence[bytes]) -> list[Any]:
    """The values of an array, as JSON has them."""
    size, count = len(values[0]), len(values)
    fd = kernel.map_create(BY_NAME["array"].number, "a", 4, size, count)
    output = os.memfd_create("dump")
    with kernel.holding(fd), kernel.holding(output):
        keys = struct.pack(f"={count}I", *range(count))
        fill_map(fd, keys, b"".join(values), count)
        form = compile_format(Style.JSON, Integer(4), 4, view, size, per_cpu=False)
        info = kernel.map_info(fd)
        reader = kernel.MapReader(fd, info, size, batch=True)
        printer = kernel.Printer(form, info, size, (0,), output)
        while read := reader.read():
            printer.show(reader, read)
        printer.flush()
        text = os.pread(output, os.lseek(output, 0, os.SEEK_CUR), 0)
    entries = json.loads(b"[%s]" % text)
    assert [entry["key"] for entry in entries] == list(range(count))
    return [entry["value"] for entry in entries]


def edges(bits: int) -> list[int]:
    """Numbers about every power of two and of ten, and any others."""
    near = [1 << place for place in range(bits + 1)] + [10**place for place in range(21)]
    numbers = {number + step for number in near for step in (-1, 0, 1)}
    numbers |= {-number for number in numbers} | {RANDOM.getrandbits(bits) for _ in range(500)}
    return sorted(numbers)


@pytest.mark.parametrize("size", [1, 2, 4, 8])
@pytest.mark.parametrize("signed", [False, True])
def test_integers(size: int, signed: bool) -> None:
    low, high = (-(1 << 8 * size - 1), 1 << 8 * size - 1) if signed else (0, 1 << 8 * size)
    numbers = [number for number in edges(8 * size) if low <= number < high]
    values = [number.to_bytes(size, sys.byteorder, signed=signed) for number in numbers]
    assert shown(Integer(size, signed=signed), values) == numbers


@pytest.mark.parametrize("size", [2, 4, 8])
def test_network_order(size: int) -> None:
    numbers = [number for number in edges(8 * size) if 0 <= number < 1 << 8 * size]
    values = [number.to_bytes(size, "big") for number in numbers]
    assert shown(Integer(size, network=True), values) == numbers


@pytest.mark.parametrize(("letter", "size"), [("f", 4), ("d", 8)])
def test_floating_point_numbers_come_back(letter: str, size: int) -> None:
    values = [RANDOM.randbytes(size) for _ in range(5000)]
    values += [struct.pack(f"={letter}", number) for number in (0.0, 0.1, 1e30, 5e-40, -1.5)]
    for value, number in zip(values, shown(Real(size), values), strict=True):
        (expected,) = struct.unpack(f"={letter}", value)
        if math.isfinite(expected):
            assert struct.pack(f"={letter}", number) == value
        else:
            assert number is None


@pytest.mark.parametrize("signed", [False, True])
def test_bit_fields(signed: bool) -> None:
    """Every width, at every place, beside what is around it; on little-endian machines."""
    places = [(first, bits) for bits in range(1, 65) for first in range(0, 73 - bits, 3)]
    fields = [
        Field(f"{first} {bits}", first // 8, Integer(8, signed=signed, bit=first % 8, bits=bits))
        for first, bits in places
    ]
    values = [RANDOM.randbytes(9) for _ in range(50)]
    for value, found in zip(values, shown(Record(tuple(fields)), values), strict=True):
        whole = int.from_bytes(value, "little")
        for first, bits in places:
            expected = whole >> first & (1 << bits) - 1
            if signed and expected >> bits - 1:
                expected -= 1 << bits
            assert found[f"{first} {bits}"] == expected


def test_names_of_an_enum() -> None:
    numbers = sorted({*RANDOM.choices(range(-500, 500), k=100), 1 << 40, -(1 << 63)})
    names = tuple((f"N{number}", number) for number in numbers)
    values = [*numbers, *range(-500, 500), 1 << 62]
    data = [number.to_bytes(8, sys.byteorder, signed=True) for number in values]
    expected = [f"N{number}" if number in numbers else number for number in values]
    assert shown(Integer(8, signed=True, names=names), data) == expected


def test_addresses() -> None:
    values = [bytes([byte, 255 - byte, byte // 2, 9]) for byte in range(256)]
    expected = [".".join(map(str, value)) for value in values]
    assert shown(Ip(4), values) == expected


def printable(data: bytes) -> str:
    """A string as it is shown: up to the null byte, what is no printable UTF-8 byte by byte."""
    data, text = data.split(b"\0")[0], ""
    while data:
        size, character = 1, chr(data[0])
        for length in (1, 2, 3, 4):
            try:
                decoded = data[:length].decode()
            except UnicodeDecodeError:
                continue
            if len(decoded) == 1 and not "\x80" <= decoded <= "\x9f":
                size, character = length, decoded
            break
        text, data = text + character, data[size:]
    return text


def test_strings() -> None:
    telling = (
        b'"\\\n\x1b\x7f\x80\x8f\x90\x9f\xa0\xbf\xc0\xc1\xc2\xc3\xdf\xe0\xe1\xed\xef\xf0\xf4\xf5'
    )
    values = [bytes(RANDOM.choices(telling + b"a\xff", k=16)) for _ in range(20_000)]
    values += [
        bytes([first, second]).ljust(16, b"\0") for first in range(256) for second in (65, 0)
    ]
    whole = "".join(map(chr, [*range(32, 0xD800), *range(0xE000, 0x11000, 7), 0x10FFFF])).encode()
    values += [whole[at : at + 16].ljust(16, b"\0") for at in range(0, len(whole), 16)]
    assert shown(Text(16), values) == [printable(value) for value in values]
