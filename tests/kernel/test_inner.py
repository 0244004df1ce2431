"""What maps of maps take and hold, against what they were made with and given."""

import os
import struct
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from bpfkeeperd import inner, kernel
from bpfkeeperd.columns import Screen
from bpfkeeperd.counting import MapCounter
from bpfkeeperd.errors import KernelError
from bpfkeeperd.fullness import Counts
from bpfkeeperd.inner import inner_infos, slots
from bpfkeeperd.maptypes import BY_NAME
from bpfkeeperd.render import maps_table
from bpfkeeperd.state import InnerInfo, InnerStatus, ReloadResult
from tests.conftest import BuildObject
from tests.kernel.counted import create, create_outer, u32
from tests.machine import counts_hashes_at_once
from tests.scenario import World

NO_PREALLOC = 1
OUTER = ("array_of_maps", "hash_of_maps")


@pytest.fixture(autouse=True)
def nothing_remembered() -> Iterator[None]:
    inner._remembered.cache_clear()
    yield
    inner._remembered.cache_clear()


@pytest.fixture
def no_iterator(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The kernel refuses the program: its struct has a field that no kernel has."""
    data = inner.OBJECT_FILE.read_bytes()
    assert b"inner_map_meta" in data
    other = tmp_path / "other.bpf.o"
    other.write_bytes(data.replace(b"inner_map_meta", b"inner_map_xxxx"))
    monkeypatch.setattr(inner, "OBJECT_FILE", other)


def id_of(fd: int) -> int:
    return kernel.map_info(fd).id


@pytest.mark.parametrize("name", OUTER)
def test_the_definition_of_an_empty_map(stack: ExitStack, name: str) -> None:
    trie = create(stack, "lpm_trie", 8, 24, 77, NO_PREALLOC)
    array = create(stack, "array", 4, 16, 5)
    outer, other = create_outer(stack, name, 3, trie), create_outer(stack, name, 3, array)
    found = inner_infos()
    assert found[id_of(outer)] == InnerInfo(BY_NAME["lpm_trie"].number, 8, 24, 77, NO_PREALLOC)
    assert found[id_of(other)] == InnerInfo(BY_NAME["array"].number, 4, 16, 5, 0)
    assert not {id_of(trie), id_of(array)} & found.keys()


def test_the_definition_and_not_what_is_in_the_map(stack: ExitStack) -> None:
    """Inner maps of a hash may have other max_entries than the pattern."""
    outer = create_outer(stack, "array_of_maps", 3, create(stack, "hash", 4, 4, 10))
    kernel.map_update(outer, u32(0), u32(create(stack, "hash", 4, 4, 99)))
    assert inner_infos()[id_of(outer)].max_entries == 10


def test_the_same_question_loads_the_iterator_once(
    stack: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    outer = create_outer(stack, "hash_of_maps", 3, create(stack, "hash", 4, 4, 10))
    found = inner_infos([id_of(outer)])
    assert found == inner_infos()
    monkeypatch.setattr(inner, "OBJECT_FILE", Path("/nonexistent"))
    assert inner_infos([id_of(outer)]) == found != {}
    assert inner_infos() == {}
    monkeypatch.undo()
    later = create_outer(stack, "hash_of_maps", 3, create(stack, "hash", 4, 4, 11))
    assert inner_infos([id_of(outer), id_of(later)])[id_of(later)].max_entries == 11


@pytest.mark.usefixtures("no_iterator")
@pytest.mark.parametrize("name", OUTER)
def test_without_the_iterator_an_inner_map_tells(stack: ExitStack, name: str) -> None:
    pattern = create(stack, "percpu_hash", 8, 16, 10)
    filled, empty = create_outer(stack, name, 30, pattern), create_outer(stack, name, 3, pattern)
    kernel.map_update(filled, u32(29), u32(pattern))
    asked = [id_of(filled), id_of(empty), id_of(pattern), id_of(empty) + (1 << 20)]
    assert inner_infos(asked) == {
        id_of(filled): InnerInfo(BY_NAME["percpu_hash"].number, 8, 16, 10, 0)
    }
    assert inner_infos() == {}


def test_nothing_stays_loaded(stack: ExitStack) -> None:
    create_outer(stack, "hash_of_maps", 3, create(stack, "hash", 4, 4, 10))
    before = len(os.listdir("/proc/self/fd"))
    assert inner_infos()
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("name", OUTER)
def test_slots_of_maps(stack: ExitStack, name: str) -> None:
    pattern = create(stack, "hash", 4, 4, 10)
    outer = create_outer(stack, name, 300, pattern)
    info = kernel.map_info(outer)
    assert slots(outer, info) == {}
    second = create(stack, "hash", 4, 4, 10)
    given = {place: (pattern, second)[place % 2] for place in (0, 1, 17, 298, 299)}
    for place, fd in given.items():
        kernel.map_update(outer, u32(place), u32(fd))
    assert slots(outer, info) == {u32(place): id_of(fd) for place, fd in given.items()}
    assert len(slots(outer, info, most=2)) == 2
    assert len(slots(outer, info, most=18)) == (3 if name == "array_of_maps" else 5)
    kernel.map_delete(outer, u32(17))
    assert u32(17) not in slots(outer, info) and len(slots(outer, info)) == 4


def test_slots_with_keys_of_any_size(stack: ExitStack) -> None:
    pattern = create(stack, "hash", 4, 4, 10)
    number = BY_NAME["hash_of_maps"].number
    outer = kernel.map_create(number, "counted", 13, 4, 100, inner_fd=pattern)
    stack.callback(os.close, outer)
    keys = {struct.pack("=I9s", place, b"flow") for place in range(10)}
    for key in keys:
        kernel.map_update(outer, key, u32(pattern))
    assert slots(outer, kernel.map_info(outer)) == dict.fromkeys(keys, id_of(pattern))


def test_slots_of_programs(stack: ExitStack, build_object: BuildObject) -> None:
    opened = stack.enter_context(kernel.open_object(build_object("counter").read_bytes(), "x"))
    opened.load()
    fd = create(stack, "prog_array", 4, 4, 20)
    program = opened.program_fd("count")
    for place in (3, 19):
        kernel.map_update(fd, u32(place), u32(program))
    program_id = kernel.program_info(program).id
    assert slots(fd, kernel.map_info(fd)) == {u32(3): program_id, u32(19): program_id}


def test_a_status_shows_what_is_in_the_maps(world: World, stack: ExitStack) -> None:
    world.put("nested", "nested")
    world.write("objects: {nested: {file: nested.bpf.o, pin_maps: [by_number, by_port]}}\n")
    table = create(stack, "hash", 4, 4, 10)
    for place in range(3):
        kernel.map_update(table, u32(place), u32(0))
    with world.keeper() as keeper:
        assert world.reload(keeper).result is ReloadResult.OK
        assert [found.inner for found in keeper.status.maps] == [(), ()]
        for name, keys in (("by_number", [u32(3), u32(19)]), ("by_port", [b"\x01\xbb"])):
            opened = kernel.pinned_map(str(world.pins / name))
            assert opened
            with kernel.holding(opened[0]):
                for key in keys:
                    kernel.map_update(opened[0], key, u32(table))
        keeper.look()
        shown = {found.name: found.inner for found in keeper.status.maps}
        counts = Counts(stack.enter_context(MapCounter.open()).counts())
        text = maps_table(keeper.status.maps, counts, Screen(), now=0.0)
    number = BY_NAME["hash"].number
    assert shown == {
        "by_number": tuple(InnerStatus(key, id_of(table), number, 10) for key in ("3", "19")),
        "by_port": (InnerStatus("01:bb", id_of(table), number, 10),),
    }
    rows = [line.split()[1:] for line in text.splitlines() if "[19]" in line]
    full = ["3", "10", "███░░░░░░░", "30%"] if counts_hashes_at_once() else ["-", "10", "-"]
    assert rows == [[str(id_of(table)), "hash", *full]]


def test_a_map_that_does_not_tell(stack: ExitStack) -> None:
    fd = create(stack, "perf_event_array", 4, 4, 4)
    with pytest.raises(KernelError, match="cannot read the slots of a map: "):
        slots(fd, kernel.map_info(fd))


def test_a_map_without_slots_is_refused() -> None:
    """Its values would not fit where IDs do."""
    fd = kernel.map_create(BY_NAME["array"].number, "wide", 4, 64, 4)
    with kernel.holding(fd), pytest.raises(KernelError, match="EINVAL"):
        kernel.map_slots(fd, 4, array=True, most=4)
