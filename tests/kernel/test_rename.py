"""A map that gets another name: same ID, same contents."""

from pathlib import Path

import pytest

from bpfkeeperd import kernel
from bpfkeeperd.errors import KernelError, ManifestError
from bpfkeeperd.maptypes import BY_NAME
from bpfkeeperd.state import ReloadResult
from bpfkeeperd.steps import Step
from tests.machine import events, inside_cgroup, map_id, send_datagrams
from tests.scenario import World, refused

RENAMED = """
maps: {connections: {rename_from: counts}}
objects:
  one:
    file: one.bpf.o
    pin_maps: {counts: connections}
    programs: {count: {attach: [{cgroup: CGROUP}]}}
"""


def test_a_map_gets_another_name(world: World) -> None:
    world.put("one")
    world.write_counter("one")
    with world.keeper() as keeper, inside_cgroup(world.cgroup):
        world.reload(keeper)
        before = world.map_id()
        send_datagrams(3)
        world.write(RENAMED)
        outcome = world.reload(keeper)
        assert outcome.result is ReloadResult.OK, outcome
        assert f"rename map counts to connections (ID {before}, contents kept)" in outcome.done
        send_datagrams(2)
        assert not (world.pins / "counts").exists()
        assert map_id(world.pins / "connections") == before
        assert events(world.pins / "connections") == (5, 5)
        assert world.reload(keeper).done == ()
    assert not world.changes, "its ID is the same"


def test_the_former_name_is_that_of_a_kept_map(world: World) -> None:
    world.put("one")
    world.write(RENAMED.replace("rename_from: counts", "rename_from: connections"))
    with pytest.raises(ManifestError, match="cannot be renamed from"):
        world.apply()


def test_a_map_that_has_the_name_is_not_replaced(world: World) -> None:
    world.put("one")
    world.write_counter("one")
    world.apply()
    old = world.map_id()
    world.write("maps: {connections: {type: hash, key_size: 4, value_size: 16, max_entries: 16}}\n")
    world.apply()
    new = map_id(world.pins / "connections")
    world.write(RENAMED)
    assert world.apply().result is ReloadResult.OK
    assert (world.map_id(), map_id(world.pins / "connections")) == (old, new)


def test_a_rename_is_undone_with_its_change(world: World) -> None:
    world.put("one")
    world.write_counter("one")
    world.apply()
    before = world.everything()
    world.write(RENAMED)

    def fail(step: Step, subject: object) -> None:
        if step is Step.RENAME_MAP and str(subject) == "connections":
            raise OSError(5, "Input/output error", "it")

    with world.keeper(fail) as keeper:
        assert "Input/output error" in refused(world.reload(keeper))
    assert world.everything() == before


def test_a_differing_map_is_not_renamed(world: World) -> None:
    world.put("one", ENTRIES=16)
    world.write_counter("one")
    world.apply()
    before = world.everything()
    world.put("one", ENTRIES=32)
    world.write(RENAMED)
    assert "max_entries is 16, wanted is 32" in refused(world.apply())
    assert world.everything() == before


def test_nothing_to_rename_is_told(world: World) -> None:
    world.write(
        "maps: {new: {type: hash, key: u32, value: u32, max_entries: 4, rename_from: old}}\n"
    )
    (done,) = world.apply().done
    assert done == (
        "create map new (hash, key 4 B, value 4 B, max_entries 4; nothing is renamed from old)"
    )
    assert not world.apply().done


def test_a_pin_that_came_meanwhile_is_not_replaced(bpffs: Path) -> None:
    """Between the look and the rename somebody else may have pinned a map under the new name."""
    ids = []
    for name in ("old", "new"):
        with kernel.holding(kernel.map_create(BY_NAME["array"].number, name, 4, 4, 1)) as fd:
            kernel.pin(fd, str(bpffs / name))
            ids.append(kernel.map_info(fd).id)
    with pytest.raises(KernelError, match="EEXIST"):
        kernel.rename(str(bpffs / "old"), str(bpffs / "new"))
    assert [map_id(bpffs / name) for name in ("old", "new")] == ids
