"""Maps in maps: inner definitions are compared, slots filled, inner maps exchanged as a whole."""

import threading

import pytest

from bpfkeeperd import kernel
from bpfkeeperd.keeper import Keeper
from bpfkeeperd.state import Outcome, ReloadResult
from tests.machine import inside_cgroup, map_id, map_value, send_datagrams
from tests.scenario import World, refused

OBJECTS = (
    "objects: {tables: {file: tables.bpf.o, programs: {look: {attach: [{cgroup: CGROUP}]}}}}\n"
)


def table(name: str, number: int, more: str = "") -> str:
    return (
        f"  {name}: {{type: array, key: u32, value: u64, max_entries: 2, entries:"
        f" [{{key: 0, value: {number}}}, {{key: 1, value: {number}}}]{more}}}\n"
    )


def manifest(slot: str, more: str = "") -> str:
    outer = f"  tables: {{entries: [{{key: 0, value: {slot}}}]{more}}}\n"
    return f"maps:\n{table('table_1', 1)}{table('table_2', 2)}{outer}{OBJECTS}"


def good(world: World, keeper: Keeper) -> Outcome:
    outcome = world.reload(keeper)
    assert outcome.result is ReloadResult.OK, outcome
    return outcome


def seen(world: World) -> dict[int, int]:
    values = {
        key: map_value(world.pins / "seen", key.to_bytes(4, "little"), 8) for key in range(16)
    }
    counts = {key: int.from_bytes(value or b"", "little") for key, value in values.items()}
    return {key: count for key, count in counts.items() if count}


@pytest.mark.parametrize("outer", ["BPF_MAP_TYPE_ARRAY_OF_MAPS", "BPF_MAP_TYPE_HASH_OF_MAPS"])
def test_an_inner_map_is_replaced_whole_while_it_is_read(world: World, outer: str) -> None:
    world.put("tables", "tables", OUTER=outer)
    world.write(manifest("table_1", ", enforce: true"))
    stop = threading.Event()

    def traffic() -> None:
        while not stop.is_set():
            send_datagrams(10)

    with world.keeper() as keeper, inside_cgroup(world.cgroup):
        good(world, keeper)
        ids = [map_id(world.pins / name) for name in ("tables", "table_1", "table_2")]
        send_datagrams(1)
        thread = threading.Thread(target=traffic)
        thread.start()
        try:
            for turn in range(8):
                world.write(manifest(f"table_{2 - turn % 2}", ", enforce: true"))
                outcome = good(world, keeper)
                assert len(outcome.done) == 1 and "write entries of map tables" in outcome.done[0]
                assert good(world, keeper).done == ()
                send_datagrams(1)
        finally:
            stop.set()
            thread.join()
    assert [map_id(world.pins / name) for name in ("tables", "table_1", "table_2")] == ids
    assert seen(world).keys() == {1, 2}


def test_without_enforce_slots_are_written_once(world: World) -> None:
    world.put("tables", "tables")
    world.write(manifest("table_1"))
    with world.keeper() as keeper:
        good(world, keeper)
        world.write(manifest("table_2"))
        assert good(world, keeper).done == ()


def test_a_recreated_inner_map_takes_the_slot(world: World) -> None:
    """Nobody asked to enforce the entries, but what they name is another map now."""
    world.put("tables", "tables")
    world.write(manifest("table_1"))
    with world.keeper() as keeper, inside_cgroup(world.cgroup):
        good(world, keeper)
        before = map_id(world.pins / "table_1")
        text = manifest("table_1").replace(
            table("table_1", 1), table("table_1", 5, ", flags: [mmapable], on_mismatch: recreate")
        )
        world.write(text)
        # Another flag is another inner definition: the outer map does not take it.
        assert "cannot be an inner map of tables: inner flags" in str(world.reload(keeper))
        assert map_id(world.pins / "table_1") == before
        # Somebody removes the pin while nobody holds the map: another is made in its place.
    (world.pins / "table_1").unlink()
    world.write(manifest("table_2").replace(table("table_2", 2), table("table_2", 5)))
    with world.keeper() as keeper, inside_cgroup(world.cgroup):
        world.reload(keeper)
        send_datagrams(1)
    assert seen(world).keys() == {1}, "table_1 stands in the slot: nothing else was asked for"


def test_another_inner_definition_is_seen(world: World) -> None:
    world.put("tables", "tables", INNER_ENTRIES=2)
    world.write(OBJECTS)
    with world.keeper() as keeper:
        good(world, keeper)
        before = world.everything()
        world.put("tables", "tables", INNER_ENTRIES=3)
        text = refused(world.reload(keeper))
        assert "inner max_entries is 2, wanted is 3" in text
        assert world.everything() == before


def test_slots_that_the_object_fills_stay_over_reloads(world: World) -> None:
    world.put("tables", "tables", FILLED=1)
    world.write(OBJECTS)
    with world.keeper() as keeper, inside_cgroup(world.cgroup):
        good(world, keeper)
        found = kernel.pinned_map(str(world.pins / "tables"))
        assert found
        with kernel.holding(found[0]):
            inner = kernel.map_lookup(found[0], bytes(4), 4)
            good_again = world.reload(keeper, force=True)
            assert good_again.result is ReloadResult.OK
            assert kernel.map_lookup(found[0], bytes(4), 4) == inner
        send_datagrams(2)
    assert seen(world) == {0: 2}, "its inner map is there, and holds zeros"
