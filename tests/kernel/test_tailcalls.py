"""Program arrays: renewed with their programs, never a mix of old and new, alive alone."""

import resource
import threading

import pytest

from bpfkeeperd import kernel
from bpfkeeperd.keeper import Keeper
from bpfkeeperd.state import MapIdChange, Outcome, ReloadResult
from tests.machine import inside_cgroup, map_id, map_value, send_datagrams
from tests.scenario import World, garbage, refused

ATTACH = "programs: {enter: {attach: [{cgroup: CGROUP}]}}"
PRIVATE = "bpfkeeperd/arrays/stages/jumps"


def write(world: World, *, pins: str = "", maps: str = "") -> None:
    world.write(
        f"{maps}\nobjects:\n  stages:\n    file: stages.bpf.o\n    pin_maps: [whole, mixed{pins}]\n"
        f"    {ATTACH}\n"
    )


def good(world: World, keeper: Keeper) -> Outcome:
    outcome = world.reload(keeper)
    assert outcome.result is ReloadResult.OK, outcome
    return outcome


def counted(world: World, name: str) -> list[int]:
    """Packets by version."""
    values = [map_value(world.pins / name, key.to_bytes(4, "little"), 8) for key in range(4)]
    return [int.from_bytes(value or b"", "little") for value in values]


OWN = """
maps:
  jumps:
    type: prog_array
    max_entries: 4
    entries: [{key: 0, value: stages/stage_a}, {key: 1, value: stages/stage_b}]
"""
DECLARED = """
maps:
  jumps:
    entries: [{key: 0, value: stages/stage_a}, {key: 1, value: stages/stage_b}]
"""
STYLES = {
    "static, private": (("STATIC",), "", "", PRIVATE),
    "static, kept": (("STATIC",), ", jumps", "", "jumps"),
    "static, pinned by name": (("STATIC", "PIN"), "", "", "jumps"),
    "own": ((), ", jumps", OWN, "jumps"),
    "declared": (("PIN",), "", DECLARED, "jumps"),
}


@pytest.mark.parametrize("style", STYLES)
def test_a_reload_under_traffic_never_mixes(world: World, style: str) -> None:
    macros, pins, maps, pinned = STYLES[style]
    options = dict.fromkeys(macros, 1)
    world.put("stages", "stages", VERSION=1, **options)
    write(world, pins=pins, maps=maps)
    stop = threading.Event()

    def traffic() -> None:
        while not stop.is_set():
            send_datagrams(10)

    with world.keeper() as keeper, inside_cgroup(world.cgroup):
        good(world, keeper)
        first = map_id(world.pins / pinned)
        assert first
        thread = threading.Thread(target=traffic)
        thread.start()
        try:
            for turn in range(6):
                world.put("stages", "stages", VERSION=1 + (turn + 1) % 2, **options)
                good(world, keeper)
                send_datagrams(1)
        finally:
            stop.set()
            thread.join()
        assert keeper.reload()[0].done == ()
        assert map_id(world.pins / pinned) != first
    with inside_cgroup(world.cgroup):  # nobody holds anything any more: the slots stay filled
        before = sum(counted(world, "whole"))
        send_datagrams(3)
    assert sum(counted(world, "whole")) == before + 3
    assert counted(world, "whole")[1] and counted(world, "whole")[2]
    assert counted(world, "mixed") == [0, 0, 0, 0]
    assert {change.reason for change in world.changes} == {MapIdChange.RENEWED}


def test_an_unchanged_object_keeps_its_array(world: World) -> None:
    world.put("stages", "stages", STATIC=1, PIN=1)
    write(world)
    with world.keeper() as keeper:
        good(world, keeper)
        before = map_id(world.pins / "jumps")
        world.put("other")
        world.manifest_file.write_text(
            world.manifest_file.read_text().replace(
                "objects: {", "objects: {other: {file: other.bpf.o}, "
            )
        )
        good(world, keeper)
        assert map_id(world.pins / "jumps") == before
    with world.keeper() as keeper:
        assert good(world, keeper).done == ()
    assert map_id(world.pins / "jumps") == before


def test_a_program_of_a_file_that_cannot_be_used_stops_nobody_else(world: World) -> None:
    """A new version was half written when the manifest named what it brings."""
    world.put("stages", "stages")
    world.put("other")
    write(world, pins=", jumps", maps=OWN)
    with world.keeper() as keeper:
        good(world, keeper)
        before = map_id(world.pins / "jumps")
        garbage(world.directory / "stages.bpf.o")
        more = OWN.replace("stages/stage_b}", "stages/stage_b}, {key: 2, value: stages/stage_c}")
        write(world, pins=", jumps", maps=more)
        with open(world.manifest_file, "a", encoding="utf-8") as file:
            file.write("  other: {file: other.bpf.o}\n")
        outcome = world.reload(keeper)
        assert outcome.done == ("load object other (not loaded yet)",)
        assert "this is no ELF file" in refused(outcome)
    assert map_id(world.pins / "jumps") == before


def test_many_slots_with_one_program(world: World) -> None:
    """It is opened once, however many slots name it."""
    world.put("stages", "stages")
    entries = ", ".join(f"{{key: {key}, value: stages/stage_a}}" for key in range(200))
    jumps = f"maps: {{jumps: {{type: prog_array, max_entries: 200, entries: [{entries}]}}}}"
    write(world, maps=jumps)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (128, hard))
    try:
        with world.keeper() as keeper:
            good(world, keeper)
            assert good(world, keeper).done == ()
        with world.keeper() as keeper:
            assert good(world, keeper).done == ()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def slot(world: World, index: int) -> int:
    found = kernel.pinned_map(str(world.pins / "jumps"))
    assert found
    with kernel.holding(found[0]):
        data = kernel.map_lookup(found[0], index.to_bytes(4, "little"), 4)
    return int.from_bytes(data or b"", "little")


def test_what_others_put_into_a_slot_is_carried_over(world: World) -> None:
    world.put("stages", "stages", STATIC=1, PIN=1)
    write(world)
    with (
        world.keeper() as keeper,
        kernel.open_object(world.build("stages", VERSION=9).read_bytes(), "guest") as guest,
    ):
        good(world, keeper)
        guest.load()
        found = kernel.pinned_map(str(world.pins / "jumps"))
        assert found
        with kernel.holding(found[0]):
            program = guest.program_fd("stage_b")
            kernel.map_update(found[0], (3).to_bytes(4, "little"), program.to_bytes(4, "little"))
        known = kernel.program_info(program).id
        first = slot(world, 0)
        world.put("stages", "stages", STATIC=1, PIN=1, VERSION=2)
        good(world, keeper)
        assert slot(world, 3) == known
        assert slot(world, 0) not in (0, first)


def test_a_slot_that_is_not_declared_any_more_is_empty(world: World) -> None:
    """The program of the former version that stood in it would be a mix of both."""
    world.put("stages", "stages", STATIC=1, PIN=1)
    write(world)
    with world.keeper() as keeper:
        good(world, keeper)
        assert slot(world, 1)
        world.put("stages", "stages", STATIC=1, PIN=1, VERSION=2, FIRST_ONLY=1)
        good(world, keeper)
        assert slot(world, 0) and not slot(world, 1)


def test_a_private_array_goes_with_its_object(world: World) -> None:
    world.put("stages", "stages", STATIC=1)
    write(world)
    with world.keeper() as keeper:
        good(world, keeper)
        assert (world.pins / PRIVATE).exists()
        world.write("objects: {}\n")
        good(world, keeper)
        assert not (world.pins / PRIVATE).exists()
        assert good(world, keeper).done == ()


def test_another_program_in_the_manifest_takes_the_slot(world: World) -> None:
    world.put("stages", "stages", PIN=1)
    write(world, maps=DECLARED)
    with world.keeper() as keeper:
        good(world, keeper)
        before = slot(world, 1)
        write(world, maps=DECLARED.replace("stages/stage_b", "stages/enter"))
        good(world, keeper)
        assert slot(world, 1) not in (0, before)
        assert good(world, keeper).done == ()
