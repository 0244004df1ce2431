"""Global data that is kept: reused when its layout is equal, else copied by variable."""

import subprocess
from pathlib import Path

import pytest

from bpfkeeperd import kernel
from bpfkeeperd.globaldata import variables
from bpfkeeperd.keeper import Keeper
from bpfkeeperd.state import MapIdChange, Outcome, ReloadResult
from tests.machine import inside_cgroup, map_id, send_datagrams
from tests.scenario import World, refused


def write(world: World, kept: str = "{.bss: zeroed, .data: preset}") -> None:
    world.write(
        f"objects: {{one: {{file: one.bpf.o, pin_maps: {kept},"
        " programs: {count: {attach: [{cgroup: CGROUP}]}}}}\n"
    )


def value(path: Path, name: str) -> int:
    """A variable's first eight bytes (or as many as it has), in the map that is pinned."""
    found = kernel.pinned_map(str(path))
    assert found
    fd, info = found
    with kernel.holding(fd):
        data = kernel.map_lookup(fd, bytes(4), info.value_size)
        layout = kernel.btf_layouts(*info.btf)[1]
    assert data and layout
    place = variables(layout)[name]
    return int.from_bytes(data[place.offset : place.offset + min(place.size, 8)], "little")


def good(world: World, keeper: Keeper) -> Outcome:
    outcome = world.reload(keeper)
    assert outcome.result is ReloadResult.OK, outcome
    return outcome


def test_an_equal_layout_keeps_the_map(world: World) -> None:
    world.put("one", "globals")
    write(world)
    with world.keeper() as keeper, inside_cgroup(world.cgroup):
        good(world, keeper)
        ids = [map_id(world.pins / name) for name in ("zeroed", "preset")]
        send_datagrams(3)
        world.put("one", "globals", STEP=100, LIMIT=10)
        good(world, keeper)
        send_datagrams(2)
    assert [map_id(world.pins / name) for name in ("zeroed", "preset")] == ids
    zeroed = world.pins / "zeroed"
    # Constant data is the new file's own: it was not kept.
    assert (value(zeroed, "events"), value(zeroed, "steps")) == (23, 203)
    assert value(world.pins / "preset", "generation") == 12
    assert not world.changes


def test_another_layout_has_variables_copied_by_name(world: World) -> None:
    world.put("one", "globals")
    write(world)
    with world.keeper() as keeper, inside_cgroup(world.cgroup):
        good(world, keeper)
        before, preset = map_id(world.pins / "zeroed"), map_id(world.pins / "preset")
        send_datagrams(3)
        world.put("one", "globals", MORE=1, WIDE=1)
        outcome = good(world, keeper)
        zeroed = world.pins / "zeroed"
        assert map_id(zeroed) != before and map_id(world.pins / "preset") == preset
        assert [value(zeroed, name) for name in ("events", "total", "steps", "another")] == [
            *(3, 3),
            *(0, 0),
        ]
        send_datagrams(1)
        assert [value(zeroed, name) for name in ("events", "total", "steps", "another")] == [
            *(4, 4),
            *(1, 1),
        ]
        assert good(world, keeper).done == ()
    (line,) = [line for line in outcome.done if line.startswith("renew")]
    assert line.startswith(f"renew global data zeroed: its ID {before} changes, copied by name: ")
    assert "NOT COPIED: steps" in line
    (change,) = world.changes
    assert (change.name, change.reason) == ("zeroed", MapIdChange.RENEWED)


def test_a_variable_that_is_gone(world: World) -> None:
    world.put("one", "globals")
    write(world, "{.bss: zeroed}")
    with world.keeper() as keeper, inside_cgroup(world.cgroup):
        good(world, keeper)
        send_datagrams(2)
        world.put("one", "globals", NO_TOTAL=1)
        outcome = good(world, keeper)
        assert value(world.pins / "zeroed", "events") == 2
    assert any("NOT COPIED: total" in line for line in outcome.done)


def test_a_file_without_btf_leaves_the_data(world: World) -> None:
    world.put("one", "globals")
    write(world)
    with world.keeper() as keeper:
        good(world, keeper)
        ids = [map_id(world.pins / name) for name in ("zeroed", "preset")]
        path = world.put("one", "globals", LIMIT=10)
        subprocess.run(["llvm-objcopy", "-R", ".BTF", "-R", ".BTF.ext", str(path)], check=True)
        message = refused(world.reload(keeper))
        assert "cannot keep .bss: its BTF is missing" in message
        assert [map_id(world.pins / name) for name in ("zeroed", "preset")] == ids
        assert all(attachment.up for attachment in keeper.status.attachments)


def test_a_refused_program_leaves_the_data(world: World) -> None:
    """The new data is there for the verifier only."""
    world.put("one", "globals")
    write(world, "{.bss: zeroed}")
    with world.keeper() as keeper, inside_cgroup(world.cgroup):
        good(world, keeper)
        before = map_id(world.pins / "zeroed")
        send_datagrams(2)
        world.put("one", "globals", MORE=1, REFUSED=1)
        assert "the verifier refuses program count" in refused(world.reload(keeper))
        send_datagrams(1)
    assert map_id(world.pins / "zeroed") == before
    assert value(world.pins / "zeroed", "events") == 3


@pytest.mark.parametrize("section", [".rodata", ".kconfig"])
def test_constant_data_is_never_kept(world: World, section: str) -> None:
    world.put("one", "globals")
    write(world, f"{{{section}: constants}}")
    with pytest.raises(Exception, match=f"{section}"):
        world.apply()


def test_variables_of_one_name_are_not_copied() -> None:
    """Of an object that was linked from several files, each with a static variable ``n``."""
    have = variables("0:64:variable:n\n0:64:int:n\n64:64:variable:n\n64:64:int:n\n128:8:variable:m")
    want = variables("0:64:variable:n\n0:64:int:n\n64:8:variable:m")
    assert have.keys() == want.keys() == {"n", "m"}
    assert not have["n"].same(want["n"]) and not want["n"].same(have["n"])
    assert have["m"].same(want["m"])
