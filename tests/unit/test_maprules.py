"""What is said of wrong definitions of maps, in the manifest and in objects, word by word.

For each map type there is a manifest and an object with one map for each rule that can be broken
there, and beside each, in NAME.txt, all that is said of them.
"""

import errno
import platform
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bpfkeeperd import kernel
from bpfkeeperd.compare import Machine
from bpfkeeperd.desired import ObjectSource
from bpfkeeperd.errors import ENOTSUPP, ManifestError
from bpfkeeperd.manifest import parse_manifest
from bpfkeeperd.mapcolumns import Btf
from bpfkeeperd.mapmemory import memory_text, up_front_bytes
from bpfkeeperd.maprefusal import likely
from bpfkeeperd.maprules import fault_text, violations
from bpfkeeperd.maptypes import BY_NAME, MAP_TYPES, MapType
from bpfkeeperd.ownmaps import own_spec
from bpfkeeperd.resolve import resolve
from bpfkeeperd.state import MapSpec, ObjectSpec
from tests.conftest import BuildObject

MACHINE = Machine(
    possible_cpus=4,
    page_size=4096,
    kernel_cpus=256,
    memory_bytes=8 << 30,
    numa_nodes=frozenset({0}),
)
MAPS = Path(__file__).parents[1] / "maps"
BY_THE_READER = {"inner"}
"""What the manifest's reader says itself, with the place."""

every_type = pytest.mark.parametrize("known", MAP_TYPES, ids=lambda known: known.name)


def faults(specs: list[MapSpec], *, declared_in_object: bool) -> list[str]:
    """Everything that is said, one line for each rule that a map breaks."""
    return [
        fault_text(spec.name, spec, violation)
        for spec in specs
        for violation in violations(spec, MACHINE, declared_in_object=declared_in_object)
    ]


def specs_of_manifest(path: Path) -> list[MapSpec]:
    manifest = parse_manifest([(path.name, path.read_bytes())])
    return [
        own_spec(entry.name, entry.definition)
        for entry in manifest.maps.values()
        if entry.definition
    ]


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with all objects of tests/maps/object."""
    directory = tmp_path_factory.mktemp("wrong")
    include = f"/usr/include/{platform.machine()}-linux-gnu"
    flags = ["-O2", "-g", "-target", "bpf", "-Wall", "-Werror", "-I", include, "-c"]
    sources = sorted((MAPS / "object").glob("*.bpf.c"))
    subprocess.run(["clang", *flags, *map(str, sources)], cwd=directory, check=True)
    return directory


def specs_of_object(path: Path) -> list[MapSpec]:
    with kernel.open_object(path.read_bytes(), "wrong") as opened:
        return list(opened.spec.maps)


@every_type
def test_wrong_in_the_manifest(known: MapType) -> None:
    path = MAPS / "manifest" / f"{known.name}.yaml"
    with pytest.raises(ManifestError) as raised:
        resolve(parse_manifest([(path.name, path.read_bytes())]), {}, MACHINE)
    said = [f"{problem.message}: {problem.remedy}" for problem in raised.value.problems]
    assert said == path.with_suffix(".txt").read_text().splitlines()
    lines = path.read_text().splitlines()
    for problem in raised.value.problems:
        assert problem.mark.source == lines[problem.mark.line - 1]


@every_type
def test_wrong_in_an_object(known: MapType, compiled: Path) -> None:
    """It is the object that cannot be used: the manifest is fine."""
    manifest = parse_manifest([("k.yaml", b"version: 1\nobjects: {wrong: {file: /wrong.o}}\n")])
    specs = tuple(specs_of_object(compiled / f"{known.name}.bpf.o"))
    source = ObjectSource("0" * 64, ObjectSpec(specs, ()))
    (said,) = resolve(manifest, {"wrong": source}, MACHINE).faults.values()
    golden = (MAPS / "object" / f"{known.name}.txt").read_text().splitlines()
    assert said == f"/wrong.o: {'; '.join(golden)}"


@every_type
def test_every_definition_there_is_wrong(known: MapType, compiled: Path) -> None:
    """A case that breaks no rule any more has to be looked at."""
    specs = specs_of_manifest(MAPS / "manifest" / f"{known.name}.yaml")
    assert all(violations(spec, MACHINE, declared_in_object=False) for spec in specs)
    specs = specs_of_object(compiled / f"{known.name}.bpf.o")
    assert all(violations(spec, MACHINE, declared_in_object=True) for spec in specs)


@every_type
def test_every_rule_of_a_row_is_broken_somewhere(known: MapType, compiled: Path) -> None:
    specs = specs_of_object(compiled / f"{known.name}.bpf.o")
    broken = {
        violation.field
        for spec in specs
        for violation in violations(spec, MACHINE, declared_in_object=True)
    }
    wanted = {"key_size", "value_size", "max_entries", "flags", "map_extra"}
    if known.outer:
        wanted = wanted - {"value_size"} | {"inner", "inner.type", "inner.key_size"}
    if known.btf is Btf.REQUIRED:
        wanted.add("btf")
    if known.name in ("hash", "array", "queue", "ringbuf"):
        wanted.add("numa_node")
    assert broken >= wanted


def test_no_type_is_without_its_files() -> None:
    names = {known.name for known in MAP_TYPES}
    for pattern in ("manifest/*.yaml", "manifest/*.txt", "object/*.bpf.c", "object/*.txt"):
        assert {path.name.split(".")[0] for path in MAPS.glob(pattern)} == names


def spec(name: str, **changes: Any) -> MapSpec:
    return replace(MapSpec("m", BY_NAME[name].number, 4, 4, 1), **changes)


def said(of: MapSpec, *, declared_in_object: bool = True) -> list[str]:
    return faults([of], declared_in_object=declared_in_object)


@pytest.mark.parametrize(
    "right",
    [
        spec("hash"),
        spec("perf_event_array", max_entries=0),  # libbpf makes it the number of CPUs
        spec("ringbuf", key_size=0, value_size=0, max_entries=5000),  # rounded up
        spec("array_of_maps", value_size=0, inner=spec("array")),
        spec("lru_hash", max_entries=101, flags=2),
        spec("devmap", max_entries=1 << 29),  # 4 GiB: half of what there is
        MapSpec("m", 99, 0, 0, 0),  # of a kernel to come
    ],
    ids=lambda right: f"{right.type}",
)
def test_right(right: MapSpec) -> None:
    assert said(right) == []


@pytest.mark.parametrize("source", ["contents", "counter", "entries", "stack", "storages"])
def test_maps_of_objects_that_load(build_object: BuildObject, source: str) -> None:
    """Global data and local storages too: what the other tests load breaks no rule."""
    specs = specs_of_object(build_object(source))
    assert specs
    assert faults(specs, declared_in_object=True) == []


def test_inner_maps_that_no_object_and_no_manifest_can_hold() -> None:
    """libbpf and the manifest's reader refuse them before."""
    nested = spec("array_of_maps", inner=spec("hash_of_maps", inner=spec("array")))
    assert said(nested) == [
        "array_of_maps m: inner.type is hash_of_maps, which cannot be an inner map (EINVAL):"
        " maps hold maps one level deep"
    ]
    assert said(spec("hash", inner=spec("array"))) == [
        "hash m: inner is given, but a HASH holds no maps: leave it out, or make the type"
        " array_of_maps or hash_of_maps"
    ]
    assert said(spec("hash_of_maps"), declared_in_object=False) == [
        "hash_of_maps m: inner is missing, a HASH_OF_MAPS needs the definition of the maps it"
        " holds: write inner: {type: TYPE, key: TYPE, value: TYPE, max_entries: NUMBER}"
    ]


def test_all_at_once() -> None:
    wrong = spec("queue", value_size=0, max_entries=0, flags=1 << 14 | 1, map_extra=2)
    assert [line.split(": ")[1].split(",")[0] for line in said(wrong)] == [
        "key_size is 4",
        "value_size is 0",
        "max_entries is 0",
        "flags has no_prealloc",
        "map_extra is 2",
    ]


def test_a_flag_without_a_name() -> None:
    (line,) = said(spec("arena", key_size=0, value_size=0, flags=0x400 | 1 << 14))
    assert "flags has 0x4000, an ARENA takes mmapable" in line
    assert line.endswith("leave 0x4000 out of map_flags")


def test_half_of_the_memory_is_the_most_that_a_map_takes() -> None:
    (line,) = said(spec("devmap", max_entries=(1 << 29) + 1))
    assert "takes 4.0 GiB at once, more than half of this machine's 8.0 GiB" in line


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0 bytes"), (1023, "1023 bytes"), (1024, "1.0 KiB"), (24 << 30, "24.0 GiB")],
)
def test_memory_text(number: int, text: str) -> None:
    assert memory_text(number) == text


def test_memory_of_a_bloom_filter() -> None:
    """1000 entries of 5 hashes: 7000 bits, 8192 when rounded up."""
    bloom = spec("bloom_filter", key_size=0, max_entries=1000)
    assert up_front_bytes(bloom, MACHINE) == 1024
    assert up_front_bytes(replace(bloom, map_extra=10), MACHINE) == 2048


@pytest.mark.parametrize(
    ("of", "number", "text"),
    [
        (spec("arena", key_size=0, value_size=0, flags=0x400), errno.EINVAL, "arena since Linux"),
        (spec("array", flags=0x1000), errno.EINVAL, "the flag inner_map since 5.10"),
        (spec("array"), errno.EPERM, "it takes CAP_BPF"),
        (spec("array"), errno.EPERM, "up to 6.4 may say EPERM for what is EINVAL"),
        (spec("hash", flags=0x40), errno.EPERM, "zero_seed takes CAP_SYS_ADMIN"),
        (spec("array", max_entries=1 << 20), errno.ENOMEM, "it takes 8.0 MiB at once"),
        (spec("array"), errno.E2BIG, "beyond what this kernel takes"),
        (spec("array"), ENOTSUPP, "an ARRAY may not take BTF on this kernel"),
        (spec("array_of_maps", inner=spec("array")), ENOTSUPP, "does not take the inner map's"),
        (spec("array"), errno.EOPNOTSUPP, "array since Linux 3.19"),
        (spec("array"), errno.EIO, "the kernel's answer is Input/output error (EIO)"),
        (spec("array", key_size=1), errno.EINVAL, "key_size is 1, an ARRAY's key is a 4-byte"),
        (MapSpec("m", 99, 1, 2, 3), errno.EINVAL, "nothing is known of that type"),
    ],
)
def test_likely_reasons(of: MapSpec, number: int, text: str) -> None:
    reason = likely(of, number, MACHINE)
    assert reason.startswith("asked for was a")
    assert text in reason
