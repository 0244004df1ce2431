"""`plan --verify`: the verifier judges all that a reload would load, and nothing is changed."""

import os
from pathlib import Path

import pytest

from bpfkeeperd import kernel
from bpfkeeperd.churn import Memory
from bpfkeeperd.keeper import look
from bpfkeeperd.manifest import read_manifest
from bpfkeeperd.state import ReloadResult
from bpfkeeperd.verify import Judged, verify
from tests.kernel.test_whole_reload import OBJECTS, begin, change
from tests.machine import inside_cgroup, send_datagrams
from tests.scenario import World


def judged(world: World, *, force: bool = False) -> dict[str, Judged]:
    manifest = read_manifest(str(world.manifest_file))
    found = verify(manifest, look(manifest, Memory(), force=force))
    return {one.object: one for one in found}


def test_nothing_is_changed(world: World) -> None:
    """Kept maps, a program array and global data with their contents. (What is left
    behind in the kernel is seen when all tests are over.)"""
    begin(world)
    assert world.apply().result is ReloadResult.OK
    with inside_cgroup(world.cgroup):
        send_datagrams(3)
    before = world.everything()
    change(world)
    found = judged(world)
    assert set(found) == set(OBJECTS)
    assert [one.fault for one in found.values()] == [""] * 4
    assert {name: one.programs for name, one in found.items()} == {
        "one": 1, "two": 1, "three": 3, "four": 1,
    }  # fmt: skip
    assert all(one.instructions > 3 for one in found.values())
    assert world.everything() == before
    assert set(os.listdir(world.layout.own)) == {"arrays", "links", "objects"}


def test_before_anything_is_there(world: World) -> None:
    """Nothing is made, not even a directory."""
    begin(world)
    found = judged(world)
    assert set(found) == set(OBJECTS) and not any(one.fault for one in found.values())
    assert not [name for name in os.listdir(world.pins) if not name.endswith(".debug")]


def test_one_is_refused(world: World) -> None:
    begin(world)
    world.put("two", MAP="twos", REFUSED=1)
    found = judged(world)
    assert [name for name, one in found.items() if one.fault] == ["two"]
    assert found["two"].fault.startswith("object two: the verifier refuses program count: ")
    assert "processed" in found["two"].log
    assert str(found["two"]).startswith("REFUSED: object two: ")
    assert str(found["one"]) == (
        f"object one: verified: 1 program, {found['one'].instructions} instructions"
    )


def test_only_what_would_be_loaded(world: World) -> None:
    begin(world)
    assert world.apply().result is ReloadResult.OK
    assert judged(world) == {}
    assert set(judged(world, force=True)) == set(OBJECTS)
    world.put("two", MAP="twos", STEP=2)
    assert set(judged(world)) == {"two"}


def test_a_new_map_shared_by_two(world: World) -> None:
    """The first is refused: the second is judged all the same."""
    for name in ("one", "two"):
        world.put(name, REFUSED=1) if name == "one" else world.put(name)
    world.write_counter("one", "two")
    found = judged(world)
    assert found["one"].fault and not found["two"].fault


def owner(path: Path) -> bool:
    found = kernel.pinned_map(str(path))
    assert found
    with kernel.holding(found[0]) as fd:
        return kernel.map_has_owner(fd)


def test_an_array_of_programs_gets_no_owner(world: World) -> None:
    """The first program that is loaded with it decides for ever which kind it takes."""
    world.put("stages", "stages", VERSION=1)
    array = "maps: {jumps: {type: prog_array, max_entries: 4}}\n"
    world.write(array)
    assert world.apply().result is ReloadResult.OK
    world.write(f"{array}objects: {{stages: {{file: stages.bpf.o, pin_maps: [jumps]}}}}\n")
    assert not owner(world.pins / "jumps")
    assert not judged(world)["stages"].fault
    assert not owner(world.pins / "jumps"), "it was written to"
    assert world.apply().result is ReloadResult.OK
    assert owner(world.pins / "jumps")
    assert not judged(world, force=True)["stages"].fault


@pytest.mark.parametrize("lost", [True, False])
def test_a_map_whose_pin_is_lost(world: World, lost: bool) -> None:
    """It is alive as long as a program uses it."""
    begin(world)
    with world.keeper() as keeper:
        assert world.reload(keeper).result is ReloadResult.OK
        manifest = read_manifest(str(world.manifest_file))
        memory = keeper._ledger.memory
        if lost:
            (world.pins / "twos").unlink()
        change(world)
        found = {one.object: one for one in verify(manifest, look(manifest, memory))}
    assert not found["two"].fault
    assert (world.pins / "twos").exists() != lost
