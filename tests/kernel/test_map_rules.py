"""The table of map types against the running kernel, both ways: legal is made, illegal refused."""

import ctypes
import errno
import platform
import re
import struct
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import combinations
from typing import Any

import pytest

from bpfkeeperd import kernel
from bpfkeeperd.compare import canonical, differences, inner_differences
from bpfkeeperd.errors import ENOTSUPP, KernelError
from bpfkeeperd.mapcolumns import Btf, Copy, Inner, KeyBtf, Limit, Pages
from bpfkeeperd.mapflags import FLAGS, INNER_MAP, NO_COMMON_LRU, NUMA_NODE
from bpfkeeperd.mapmemory import up_front_bytes
from bpfkeeperd.maprules import violations
from bpfkeeperd.maptypes import (
    ARRAY,
    ARRAY_OF_MAPS,
    BY_NAME,
    HASH,
    HASH_OF_MAPS,
    MAP_TYPES,
    STRUCT_OPS,
    MapType,
    type_name,
)
from bpfkeeperd.state import MapSpec
from tests.kernel.mapmaking import MACHINE, is_in_kernel, legal, made, refusal

SYS_BPF = {"x86_64": 321, "aarch64": 280}[platform.machine()]
MAP_LOOKUP_BATCH = 24
TRIED_FLAGS = [flag for flag in FLAGS if flag.bit < 1 << 19]
"""rb_overwrite is newer than the oldest kernel that these tests run on."""
AT_ONCE_MAX = 16 << 20
"""What is legal and would take more memory than this is not made."""
RULES = replace(MACHINE, memory_bytes=None)
"""Without the bound on memory: what only that bound forbids must not be tried on the kernel."""
SIZES = (
    *(0, 1, 3, 4, 5, 7, 8, 9, 12, 15, 16, 17, 24, 32, 33, 260, 261, 512, 513, 1016, 1024),
    *(32768, 32769, 65407, 65408, 65536, (1 << 31) - 1, 1 << 31, (1 << 32) - 1),
    *(MACHINE.limit(limit) + more for limit in Limit for more in (-1, 0, 1)),
)
ENTRIES = (
    *(0, 1, 2, 3, 4095, 4096, 4097, 8192, 12288, 1 << 20),
    *((1 << bits) + more for bits in (27, 31) for more in (0, 1)),
    *((1 << 32) - 1, MACHINE.kernel_cpus, MACHINE.kernel_cpus + 1),
    *(MACHINE.limit(Limit.ARENA_PAGES) + more for more in (0, 1)),
)
EXTRAS = (0, 1, 3, 15, 16, 4096, 4097, 1 << 32, (1 << 32) - 4096)

HERE = [pytest.param(known, id=known.name) for known in MAP_TYPES if known.number != STRUCT_OPS]


@pytest.fixture(params=HERE)
def map_type(request: pytest.FixtureRequest) -> MapType:
    known: MapType = request.param
    if not is_in_kernel(known):
        pytest.skip(f"the BTF of this kernel has no map type {known.name}")
    return known


def is_legal(spec: MapSpec) -> bool:
    """By the table; what libbpf or the keeper would put right is illegal for the kernel."""
    made_right = canonical(spec, RULES)
    known = BY_NAME[type_name(spec.type)]
    rounded = known.outer or known.sized_by_cpus or isinstance(known.max_entries, Pages)
    changed = (spec.max_entries, spec.value_size) != (
        made_right.max_entries,
        made_right.value_size,
    )
    return not violations(spec, RULES, declared_in_object=True) and not (rounded and changed)


def disagreements(specs: Iterable[MapSpec]) -> Iterator[str]:
    """What the kernel judges otherwise than the table."""
    tried = 0
    for spec in specs:
        expected = is_legal(spec)
        if expected and up_front_bytes(spec, MACHINE) > AT_ONCE_MAX:
            continue
        tried += 1
        answer = refusal(spec)
        if expected != (answer == 0):
            said = errno.errorcode.get(answer, str(answer)) if answer else "made"
            yield f"{spec}: {said}"
    assert tried


def variants(spec: MapSpec, field: str, values: Iterable[int]) -> Iterator[MapSpec]:
    for value in sorted(set(values)):
        changes: dict[str, Any] = {field: value}
        yield replace(spec, **changes)


def test_the_smallest_legal_map(map_type: MapType) -> None:
    spec = legal(map_type)
    assert is_legal(spec)
    assert refusal(spec) == 0


@pytest.mark.parametrize("field", ["key_size", "value_size"])
def test_sizes(map_type: MapType, field: str) -> None:
    spec = legal(map_type)
    assert not list(disagreements(variants(spec, field, SIZES)))


def test_key_and_value_together(map_type: MapType) -> None:
    if map_type.together is None:
        assert map_type.name not in ("hash", "lru_hash", "percpu_hash", "hash_of_maps")
        return
    spec = legal(map_type)
    most = MACHINE.limit(map_type.together) - spec.value_size
    fits, not_any_more = (replace(spec, key_size=most + more) for more in (0, 1))
    assert refusal(fits) == 0
    assert refusal(not_any_more) == errno.E2BIG
    assert not is_legal(not_any_more)


def test_max_entries(map_type: MapType) -> None:
    assert not list(disagreements(variants(legal(map_type), "max_entries", ENTRIES)))


@pytest.mark.parametrize(
    ("name", "entries", "answer"),
    [
        ("hash", (1 << 27) + 1, errno.E2BIG),
        ("lru_percpu_hash", (1 << 27) + 1, errno.E2BIG),
        ("hash_of_maps", (1 << 27) + 1, errno.E2BIG),
        ("stack_trace", (1 << 31) + 1, errno.E2BIG),
        ("sockhash", (1 << 27) + 1, errno.EINVAL),
        ("devmap_hash", (1 << 31) + 1, errno.EINVAL),
    ],
)
def test_more_entries_than_a_type_takes(name: str, entries: int, answer: int) -> None:
    """One less would be made, and take gigabytes: that is not tried."""
    spec = replace(legal(BY_NAME[name]), max_entries=entries)
    assert not is_legal(spec) and is_legal(replace(spec, max_entries=entries - 1))
    assert refusal(spec) == answer


def test_every_flag_and_every_pair(map_type: MapType) -> None:
    spec = legal(map_type)
    bits = [1 << bit for bit in range(19)]
    masks = {spec.flags ^ bit for bit in bits}
    own = [flag.bit for flag in TRIED_FLAGS if map_type.flags & flag.bit]
    masks |= {spec.flags | one | other for one, other in combinations(own, 2)}
    assert not list(disagreements(variants(spec, "flags", masks)))


def test_frames_of_build_ids() -> None:
    spec = replace(legal(BY_NAME["stack_trace"]), flags=0x20)
    most = 32 * MACHINE.stack_depth
    sizes = (8, 16, 24, 31, 32, 33, 64, 96, most, most + 8, most + 32)
    assert not list(disagreements(variants(spec, "value_size", sizes)))


def test_map_extra(map_type: MapType) -> None:
    spec = legal(map_type)
    assert not list(disagreements(variants(spec, "map_extra", EXTRAS)))
    two_pages = replace(spec, max_entries=2)
    if map_type.name == "arena":
        assert not list(disagreements(variants(two_pages, "map_extra", EXTRAS)))


def test_numa_nodes(map_type: MapType) -> None:
    spec = replace(legal(map_type), flags=legal(map_type).flags | NUMA_NODE)
    assert MACHINE.numa_nodes
    nodes = (*MACHINE.numa_nodes, max(MACHINE.numa_nodes) + 1, 1 << 31)
    assert not list(disagreements(variants(spec, "numa_node", nodes)))


def test_a_node_without_its_flag_is_ignored() -> None:
    spec = replace(legal(BY_NAME["hash"]), numa_node=77)
    assert refusal(spec) == 0
    assert is_legal(spec)


def test_btf_of_the_key(map_type: MapType) -> None:
    spec = legal(map_type)
    fits = {
        KeyBtf.ANY: {KeyBtf.ANY, KeyBtf.INT, KeyBtf.STRUCT},
        KeyBtf.INT: {KeyBtf.INT},
        KeyBtf.STRUCT: {KeyBtf.STRUCT},
        KeyBtf.CGROUP: {KeyBtf.CGROUP, KeyBtf.INT},
    }[map_type.key_btf]
    if not spec.key_size + spec.value_size:
        with made(legal(BY_NAME["array"]), KeyBtf.INT):
            pass  # and there is no BTF that would fit
        assert map_type.btf is Btf.REFUSED
        return
    for key in (KeyBtf.ANY, KeyBtf.INT, KeyBtf.STRUCT) if spec.key_size else (KeyBtf.ANY,):
        sized = replace(spec, key_size=8) if map_type.name == "lpm_trie" else spec
        answer = refusal(sized, key)
        if map_type.btf is Btf.REFUSED:
            assert answer in (errno.EINVAL, ENOTSUPP), key
        else:
            assert (answer == 0) == (key in fits), (key, answer)


@pytest.mark.parametrize("name", ["cgroup_storage", "percpu_cgroup_storage"])
@pytest.mark.parametrize("key_size", [8, 16])
def test_btf_of_a_cgroup_storage_key(name: str, key_size: int) -> None:
    assert refusal(replace(legal(BY_NAME[name]), key_size=key_size), KeyBtf.CGROUP) == 0


def test_btf_that_is_required(map_type: MapType) -> None:
    bare = replace(legal(map_type), key_layout=None, value_layout=None)
    assert (refusal(bare) == 0) == (map_type.btf is not Btf.REQUIRED) == is_legal(bare)


@pytest.mark.parametrize("outer", [ARRAY_OF_MAPS, HASH_OF_MAPS], ids=type_name)
def test_as_an_inner_map(map_type: MapType, outer: int) -> None:
    inner = legal(map_type)
    answers = {
        Inner.YES: 0,
        Inner.SAME_SIZE: 0,
        Inner.NESTED: errno.EINVAL,
        Inner.UNSUPPORTED: ENOTSUPP,
    }
    with made(inner) as fd:
        assert _outer_refusal(outer, fd) == answers[map_type.inner]
    spec = MapSpec("outer", outer, 4, 4, 2, inner=inner)
    assert is_legal(spec) == (answers[map_type.inner] == 0)


def _outer_refusal(outer: int, inner_fd: int) -> int:
    try:
        with kernel.holding(kernel.map_create(outer, "outer", 4, 4, 2, inner_fd=inner_fd)):
            return 0
    except KernelError as error:
        return error.errno


def test_an_outer_map_without_an_inner_one() -> None:
    for outer in (ARRAY_OF_MAPS, HASH_OF_MAPS):
        spec = MapSpec("outer", outer, 4, 4, 2)
        assert refusal(spec) and not is_legal(spec)


def candidates(spec: MapSpec) -> Iterator[MapSpec]:
    """Maps to put where the inner map is as given: the same, and with one thing changed each."""
    yield spec
    yield replace(spec, max_entries=2 * spec.max_entries)
    for field in ("key_size", "value_size"):
        yield from variants(spec, field, (getattr(spec, field) + more for more in (1, 4, 8)))
    yield from variants(spec, "flags", (spec.flags ^ flag.bit for flag in TRIED_FLAGS))
    yield replace(spec, map_extra=3)
    yield from (legal(other) for other in MAP_TYPES if other.inner is not Inner.NESTED)


def test_what_fits_into_a_map_of_maps(map_type: MapType) -> None:
    if map_type.inner not in (Inner.YES, Inner.SAME_SIZE):
        return
    _compare_as_inner(legal(map_type))


def test_inner_arrays_of_any_size() -> None:
    _compare_as_inner(replace(legal(BY_NAME["array"]), flags=INNER_MAP))


def _compare_as_inner(inner: MapSpec) -> None:
    fitted = 0
    with made(MapSpec("outer", ARRAY_OF_MAPS, 4, 4, 1, inner=inner)) as outer:
        for candidate in candidates(inner):
            try:
                with made(candidate) as fd:
                    expected = inner_differences(canonical(inner, MACHINE), kernel.map_info(fd))
                    fits = _fits(outer, fd)
            except KernelError:
                continue  # it cannot be made at all: the other tests judge that
            assert fits == (not expected), (candidate, expected)
            fitted += fits
    assert fitted


def _fits(outer: int, fd: int) -> bool:
    try:
        kernel.map_update(outer, bytes(4), struct.pack("=i", fd))
    except KernelError as error:
        assert error.errno == errno.EINVAL
        return False
    return True


def test_canonical_form_is_what_the_kernel_reports(map_type: MapType) -> None:
    """Of every legal flag, and of sizes that the kernel or the canonical form rounds."""
    spec = legal(map_type)
    wanted = [spec, *variants(spec, "flags", (spec.flags | flag.bit for flag in TRIED_FLAGS))]
    if map_type.flags & NO_COMMON_LRU:
        wanted += variants(replace(spec, flags=NO_COMMON_LRU), "max_entries", range(95, 107))
    reported = 0
    for one in wanted:
        if is_legal(one):
            with made(one) as fd:
                assert differences(canonical(one, MACHINE), kernel.map_info(fd)) == ()
            reported += 1
    assert reported


def test_batches(map_type: MapType) -> None:
    """Maps of maps have them too, of IDs, which cannot be written as they are read."""
    libc = ctypes.CDLL(None, use_errno=True)
    buffers = [ctypes.create_string_buffer(1 << 16) for _ in range(3)]
    places = (ctypes.addressof(buffer) for buffer in buffers)
    with made(legal(map_type)) as fd:
        attributes = struct.pack("=QQQQIIQQ", 0, *places, 1, fd, 0, 0)
        failed = libc.syscall(SYS_BPF, MAP_LOOKUP_BATCH, attributes, len(attributes)) < 0
        answer = ctypes.get_errno() if failed else 0
    assert answer in (0, errno.ENOENT, ENOTSUPP)
    assert (answer != ENOTSUPP) == (map_type.copy is Copy.BATCH or map_type.outer)


def test_memory_taken_at_once(map_type: MapType) -> None:
    """The step from some entries to twice as many, by what the kernel says it holds."""
    spec = legal(map_type)
    if not is_legal(replace(spec, max_entries=8192)):
        assert map_type.name in ("cpumap",) or not spec.max_entries
        return
    for wider in (spec, replace(spec, key_size=spec.key_size + 20 if spec.key_size > 4 else 4)):
        if not is_legal(wider):
            continue
        small, large = replace(wider, max_entries=8192), replace(wider, max_entries=16384)
        step = up_front_bytes(large, MACHINE) - up_front_bytes(small, MACHINE)
        assert abs(_held_bytes(large) - _held_bytes(small) - step) <= step // 100


def _held_bytes(spec: MapSpec) -> int:
    with made(spec) as fd, open(f"/proc/self/fdinfo/{fd}", encoding="ascii") as file:
        found = re.search(r"^memlock:\s*(\d+)", file.read(), re.MULTILINE)
    assert found
    return int(found[1])


def test_what_a_map_would_take_at_once_is_bounded() -> None:
    """Refused by the rule alone: asking the kernel could take the machine down."""
    machine = replace(MACHINE, memory_bytes=1 << 30)
    for name, entries in (("devmap", 1 << 31), ("array", 1 << 28), ("hash", 1 << 25)):
        spec = replace(legal(BY_NAME[name]), max_entries=entries)
        fields = [fault.field for fault in violations(spec, machine, declared_in_object=True)]
        assert fields == ["max_entries"]
    as_used = replace(legal(BY_NAME["hash"]), max_entries=1 << 25, flags=1)
    assert not violations(as_used, machine, declared_in_object=True)


def test_rules_know_every_type_of_this_kernel() -> None:
    assert {ARRAY, HASH} < {known.number for known in MAP_TYPES}
    assert [known.number for known in MAP_TYPES] == list(range(1, 35))
