"""Entries of kept maps over reloads: put right, left out where what they name is not there."""

import os

from bpfkeeperd import kernel
from bpfkeeperd.state import ReloadResult
from tests.kernel.test_reload import plan_now
from tests.kernel.test_rollback_maps import own_jumps
from tests.machine import Netns, ip, map_id, map_value
from tests.scenario import World, contents, refused


def key(number: int) -> bytes:
    return number.to_bytes(4, "little")


def test_an_interface_that_comes_later(world: World, netns: Netns) -> None:
    """It is left out of the new map, stops nothing else, and is written when it is there."""
    world.put("one")
    where = f"netns: {netns.here}"
    world.write(
        "maps:\n  ports:\n    {type: devmap, value_size: 4, max_entries: 4, enforce: true,\n"
        f"     entries: [{{key: 0, value: {{interface: veth0, {where}}}}},\n"
        f"               {{key: 1, value: {{interface: late0, {where}}}}}]}}\n"
        "objects: {one: {file: one.bpf.o, pin_maps: [counts]}}\n"
    )
    with world.keeper() as keeper:
        missing = f"there is no interface late0 in network namespace {netns.here}"
        assert f"entry 1 of map ports: {missing}" in refused(world.reload(keeper))
        before = map_id(world.pins / "ports")
        assert before and world.map_id(), "the object is loaded"
        assert map_value(world.pins / "ports", key(0), 4) != bytes(4)
        assert world.reload(keeper).done == ()
        assert keeper.status.drift["entries_differ"] == 1
        ip("-n", netns.here, "link", "add", "late0", "type", "veth")
        outcome = world.reload(keeper)
        assert outcome.result is ReloadResult.OK, outcome
        assert outcome.done == ("write entries of map ports: 1 (not as in the manifest)",)
        assert map_id(world.pins / "ports") == before
        indexes = kernel.interfaces(kernel.netns_path(netns.here))
        assert map_value(world.pins / "ports", key(1), 4) == key(indexes["late0"])
        assert plan_now(world) == () and keeper.status.drift["entries_differ"] == 0


def test_entries_of_a_map_that_lost_its_pin_are_put_right(world: World) -> None:
    """In the same reload that pins it again."""
    world.write(
        "maps: {limits: {type: hash, key: u32, value: u64, max_entries: 4, enforce: true,"
        " entries: [{key: 1, value: 7}]}}\n"
    )
    with world.keeper() as keeper:
        assert world.reload(keeper).result is ReloadResult.OK
        found = kernel.pinned_map(str(world.pins / "limits"))
        assert found
        with kernel.holding(found[0]) as fd:
            kernel.map_update(fd, key(1), bytes(8))
        (world.pins / "limits").unlink()
        assert len(world.reload(keeper).done) == 2
        assert contents(world.pins / "limits") == {key(1): (7).to_bytes(8, "little")}
        assert world.reload(keeper).done == ()


def test_the_former_programs_of_an_interrupted_reload_fill_no_slot(world: World) -> None:
    """They are still pinned, and go; the array holds those of the file of now."""
    own_jumps(world, 1, "jumps")
    with world.keeper() as keeper:
        assert world.reload(keeper).result is ReloadResult.OK
        (former,) = os.listdir(world.layout.object("stages"))
        path = world.layout.programs("stages", former)
        old = kernel.pinned(f"{path}/stage_b", kernel.PinKind.PROGRAM)
        assert old
        with kernel.holding(old):
            own_jumps(world, 2, "jumps")
            assert world.reload(keeper).result is ReloadResult.OK
            before = contents(world.pins / "jumps")
            os.mkdir(path)
            kernel.pin(old, f"{path}/stage_b")
        outcome = world.reload(keeper)
        assert [line.split(" ")[0] for line in outcome.done] in ([], ["unload"]), outcome
        assert contents(world.pins / "jumps") == before
        assert not os.path.exists(path)


def test_global_data_that_somebody_exchanged_is_taken_up(world: World) -> None:
    """The kernel calls it by object and section: that is how it is known."""
    world.put("one", "globals")
    world.write("objects: {one: {file: one.bpf.o, pin_maps: {.bss: zeroed}}}\n")
    with world.keeper() as keeper:
        assert world.reload(keeper).result is ReloadResult.OK
        other = world.build("globals").read_bytes()
        with kernel.open_object(other, "one") as opened:
            opened.load()
            (world.pins / "zeroed").unlink()
            kernel.pin(opened.map_fd(".bss"), str(world.pins / "zeroed"))
        assert "somebody pinned another map as zeroed" in world.reload(keeper).done[0]
        assert world.reload(keeper).done == ()
