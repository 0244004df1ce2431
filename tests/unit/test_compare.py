"""When two maps are the same map."""

from dataclasses import fields, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bpfkeeperd.compare import (
    Machine,
    canonical,
    differences,
    inner_differences,
    layout_differences,
    spec_differences,
)
from bpfkeeperd.maptypes import BY_NAME, MAP_TYPES
from bpfkeeperd.state import MapInfo, MapSpec

MACHINE = Machine(possible_cpus=4, page_size=4096)
PAGE = 4096
SPEC = MapSpec("flows", BY_NAME["hash"].number, 4, 8, 100)


def spec(map_type: str, **changes: Any) -> MapSpec:
    return replace(SPEC, type=BY_NAME[map_type].number, **changes)


def info(of: MapSpec, **changes: Any) -> MapInfo:
    """What the kernel says of a map that was made as declared."""
    found = MapInfo(
        7, of.name, of.type, of.key_size, of.value_size, of.max_entries, of.flags, of.map_extra
    )
    return replace(found, **changes)


@pytest.mark.parametrize(
    ("declared", "changes"),
    [
        (spec("perf_event_array", max_entries=0), {"max_entries": 4}),
        (spec("perf_event_array", max_entries=3), {}),
        (spec("perf_event_array", max_entries=1024), {}),
        (spec("hash", max_entries=0), {}),
        (spec("ringbuf", max_entries=0), {}),  # the kernel refuses it, and says so
        (spec("ringbuf", max_entries=1), {"max_entries": PAGE}),
        (spec("ringbuf", max_entries=PAGE), {}),
        (spec("ringbuf", max_entries=PAGE + 1), {"max_entries": 2 * PAGE}),
        (spec("ringbuf", max_entries=3 * PAGE), {"max_entries": 4 * PAGE}),
        (spec("user_ringbuf", max_entries=5 * PAGE), {"max_entries": 8 * PAGE}),
        (spec("queue", max_entries=PAGE + 1), {}),
        (spec("lru_hash", max_entries=101, flags=2), {"max_entries": 104}),
        (spec("lru_hash", max_entries=104, flags=2), {}),
        (spec("lru_hash", max_entries=101), {}),
        (spec("lru_percpu_hash", max_entries=1, flags=2), {"max_entries": 4}),
        (spec("hash", max_entries=101, flags=2), {}),
        (spec("array_of_maps", value_size=8), {"value_size": 4}),
        (spec("hash_of_maps", value_size=0), {"value_size": 4}),
        (spec("array_of_maps", value_size=4), {}),
        (spec("hash", flags=0x8), {"flags": 0}),
        (spec("hash", flags=0x10 | 0x1), {"flags": 0x1}),
        (spec("array", flags=0x18 | 0x80 | 0x400), {"flags": 0x480}),
        (spec("ringbuf", max_entries=1, flags=0x8), {"max_entries": PAGE, "flags": 0}),
        (spec("lru_hash", max_entries=5, flags=0xA), {"max_entries": 8, "flags": 2}),
    ],
)
def test_canonical(declared: MapSpec, changes: dict[str, Any]) -> None:
    assert canonical(declared, MACHINE) == replace(declared, **changes)


def test_canonical_depends_on_the_machine() -> None:
    large = Machine(possible_cpus=6, page_size=65536)
    assert canonical(spec("perf_event_array", max_entries=0), large).max_entries == 6
    assert canonical(spec("ringbuf", max_entries=4096), large).max_entries == 65536
    assert canonical(spec("lru_hash", max_entries=101, flags=2), large).max_entries == 102


@given(
    map_type=st.sampled_from(MAP_TYPES),
    max_entries=st.integers(0, 1 << 31),
    flags=st.integers(0, 0x3FFF),
    cpus=st.integers(1, 512),
)
def test_canonical_is_canonical(map_type: Any, max_entries: int, flags: int, cpus: int) -> None:
    """Once is enough, and what the kernel then reports is no difference."""
    machine = Machine(cpus, PAGE)
    declared = replace(SPEC, type=map_type.number, max_entries=max_entries, flags=flags)
    once = canonical(declared, machine)
    assert canonical(once, machine) == once
    assert once.max_entries >= max_entries
    if map_type.name in ("devmap", "devmap_hash") and not flags & 0x80:
        assert differences(once, info(once, flags=once.flags | 0x80)) == ()
    elif not (map_type.name in ("devmap", "devmap_hash") and flags & 0x80):
        assert differences(once, info(once)) == ()


@pytest.mark.parametrize("map_type", ["devmap", "devmap_hash"])
def test_the_kernel_adds_a_flag_to_devmaps(map_type: str) -> None:
    wanted = spec(map_type, flags=0x4)
    assert differences(wanted, info(wanted, flags=0x84)) == ()
    assert differences(wanted, info(wanted, flags=0x80)) == ("flags is 0x0, wanted is 0x4",)


def test_the_flag_counts_for_other_types() -> None:
    assert differences(SPEC, info(SPEC, flags=0x80)) == ("flags is 0x80, wanted is 0x0",)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"type": 9}, "type is lru_hash, wanted is hash"),
        ({"type": 99}, "type is type 99, wanted is hash"),
        ({"key_size": 8}, "key_size is 8, wanted is 4"),
        ({"value_size": 16}, "value_size is 16, wanted is 8"),
        ({"max_entries": 65535}, "max_entries is 65535, wanted is 100"),
        ({"flags": 0x1}, "flags is 0x1, wanted is 0x0"),
        ({"map_extra": 3}, "map_extra is 0x3, wanted is 0x0"),
    ],
)
def test_each_field_is_compared(changes: dict[str, int], line: str) -> None:
    assert differences(SPEC, info(SPEC, **changes)) == (line,)


def test_all_differences_are_named_at_once() -> None:
    other = info(SPEC, type=2, key_size=1, value_size=2, max_entries=3, flags=4, map_extra=5)
    assert len(differences(SPEC, other)) == 6
    assert {line.split()[0] for line in differences(SPEC, other)} <= {
        field.name for field in fields(MapSpec)
    }


def test_the_kernels_struct_is_larger_than_that_of_an_object() -> None:
    declared = spec("struct_ops", max_entries=1)
    assert differences(declared, info(declared, value_size=128)) == ()
    assert differences(declared, info(declared, flags=0x2000)) == (
        "flags is 0x2000, wanted is 0x0",
    )


def test_what_libbpf_does_not_compare_either() -> None:
    assert differences(SPEC, info(SPEC, name="another", id=9, btf=(1, 2, 3))) == ()
    assert differences(replace(SPEC, numa_node=1, pinned=True), info(SPEC)) == ()


KEY = "0:32:int:"
VALUE = "0:64:int:packets\n64:64:int:bytes"


@pytest.mark.parametrize(
    ("key", "value", "lines"),
    [
        (KEY, VALUE, ()),
        (None, None, ()),
        (None, VALUE, ()),
        ("0:32:float:", VALUE, ("key layout: a value (float, 4 bytes) at byte 0, wanted is",)),
        (
            KEY,
            "0:64:int:bytes\n64:64:int:packets",
            (
                "value layout: bytes (int, 8 bytes) at byte 0,"
                " wanted is packets (int, 8 bytes) at byte 0",
            ),
        ),
        (KEY, "0:64:int:packets", ("value layout: nothing more, wanted is bytes (int, 8 bytes)",)),
        (
            KEY,
            f"{VALUE}\n128:3:int:flags",
            ("value layout: flags (int, 3 bits) at byte 16, wanted is nothing more",),
        ),
        (
            KEY,
            "0:64:int:packets\n67:5:int:a:b",
            ("value layout: a:b (int, 5 bits) at byte 8 bit 3, wanted is bytes (int, 8 bytes)",),
        ),
        ("0:8:int:x", "0:8:int:y", ("key layout: x (int, 1 bytes)", "value layout: y (int, 1 b")),
    ],
)
def test_layouts(key: str | None, value: str | None, lines: tuple[str, ...]) -> None:
    wanted = replace(SPEC, key_layout=KEY, value_layout=VALUE)
    found = layout_differences(wanted, key, value)
    assert len(found) == len(lines)
    for line, start in zip(found, lines, strict=True):
        assert line.startswith(start)


def test_layouts_that_are_not_wanted_are_not_compared() -> None:
    assert layout_differences(SPEC, KEY, VALUE) == ()


def test_two_declarations() -> None:
    one = replace(SPEC, key_layout=KEY, value_layout=VALUE)
    assert spec_differences(one, one) == ()
    assert spec_differences(one, SPEC) == ()
    assert spec_differences(one, replace(one, name="renamed", pinned=True)) == ()
    other = replace(one, max_entries=5, key_layout="0:32:int:port")
    assert spec_differences(one, other) == (
        "max_entries is 5, wanted is 100",
        "key layout: port (int, 4 bytes) at byte 0, wanted is a value (int, 4 bytes) at byte 0",
    )


def test_the_inner_map_in_canonical_form() -> None:
    inner = spec("ringbuf", max_entries=PAGE + 1, flags=0x8)
    outer = spec("array_of_maps", value_size=0, inner=inner)
    assert canonical(outer, MACHINE).inner == spec("ringbuf", max_entries=2 * PAGE)


@pytest.mark.parametrize(
    ("want", "changes", "lines"),
    [
        (SPEC, {}, ()),
        (SPEC, {"max_entries": 7}, ()),
        (SPEC, {"map_extra": 7}, ()),
        (SPEC, {"name": "another", "id": 9}, ()),
        (SPEC, {"type": 9}, ("inner type is lru_hash, wanted is hash",)),
        (
            SPEC,
            {"key_size": 8, "value_size": 1, "flags": 1},
            (
                "inner key_size is 8, wanted is 4",
                "inner value_size is 1, wanted is 8",
                "inner flags is 0x1, wanted is 0x0",
            ),
        ),
        (spec("array"), {"max_entries": 7}, ("inner max_entries is 7, wanted is 100",)),
        (spec("xskmap"), {"max_entries": 7}, ("inner max_entries is 7, wanted is 100",)),
        (spec("array", flags=0x1000), {"max_entries": 7}, ()),
        (spec("devmap"), {"flags": 0x80}, ()),
    ],
)
def test_what_can_stand_in_a_map_of_maps(
    want: MapSpec, changes: dict[str, Any], lines: tuple[str, ...]
) -> None:
    assert inner_differences(want, info(want, **changes)) == lines


def test_two_declarations_of_a_map_of_maps() -> None:
    one = spec("array_of_maps", value_size=4, inner=replace(SPEC, value_layout=VALUE))
    assert spec_differences(one, one) == ()
    other = replace(SPEC, max_entries=7)  # the kernel takes either, and one has no layout
    assert spec_differences(one, replace(one, inner=other)) == ()
    other = replace(SPEC, key_size=8, value_layout="0:64:int:bytes")
    assert spec_differences(one, replace(one, inner=other)) == (
        "inner key_size is 8, wanted is 4",
        "inner value layout: bytes (int, 8 bytes) at byte 0, wanted is packets (int, 8 bytes) at"
        " byte 0",
    )
    assert spec_differences(one, replace(one, inner=None)) == ("inner map is none, wanted is hash",)
    assert spec_differences(replace(one, inner=None), one) == ("inner map is hash, wanted is none",)


def test_lru_lists_of_each_cpu_where_no_more_fits() -> None:
    largest = spec("lru_hash", max_entries=2**32 - 1, flags=2)
    assert canonical(largest, Machine(4, PAGE)).max_entries == 2**32 - 4
