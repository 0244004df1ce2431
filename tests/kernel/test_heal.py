"""What heals by itself must not do harm: after a reload that failed, and where nothing is seen."""

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from bpfkeeperd import kernel, matches
from bpfkeeperd.keeper import Keeper
from bpfkeeperd.state import MapIdChange, ReloadResult
from tests.kernel.test_reload import plan_now
from tests.kernel.test_whole_reload import AtSwap
from tests.scenario import World, contents

ONE = (
    "  one: {file: one.bpf.o, pin_maps: [ones], programs: {count: {attach: [{cgroup: CGROUP}]}}}\n"
)
TWO = ONE.replace("one", "two")
OWN = (
    "maps: {own: {type: hash, key: u32, value: u64, max_entries: 4, entries: [{key: 1, value: 7}]}}"
)


def fail_without(world: World, keeper: Keeper) -> None:
    """A reload of a manifest that lacks what was there, in which a swap fails."""
    world.put("one", MAP="ones", STEP=2)
    world.write(f"objects:\n{ONE}")
    keeper._on_step = AtSwap(1)
    assert world.reload(keeper).rolled_back
    keeper._on_step = AtSwap(0)


def test_an_object_that_a_failed_reload_did_not_have(world: World) -> None:
    """It runs still; it is loaded again when somebody pins another map for it."""
    world.put("one", MAP="ones")
    world.put("two", MAP="twos")
    world.write(f"objects:\n{ONE}{TWO}")
    with world.keeper() as keeper:
        assert world.reload(keeper).result is ReloadResult.OK
        fail_without(world, keeper)
        (world.pins / "twos").unlink()
        with kernel.holding(kernel.map_create(1, "twos", 4, 16, 16)) as fd:
            kernel.pin(fd, str(world.pins / "twos"))
            number = kernel.map_info(fd).id
        healed = keeper.heal(1.0)
        assert [action.done for action in healed.actions] == [True, True], healed
        (program,) = world.layout_files("objects/two")
        assert number in _map_ids(str(program))


def _map_ids(path: str) -> tuple[int, ...]:
    fd = kernel.pinned(path, kernel.PinKind.PROGRAM)
    assert fd
    with kernel.holding(fd):
        return kernel.program_info(fd).map_ids


def test_a_map_that_a_failed_reload_did_not_have(world: World) -> None:
    """No program uses it: without the descriptor it would be gone with its pin."""
    world.put("one", MAP="ones")
    world.write(f"{OWN}\nobjects:\n{ONE}")
    with world.keeper() as keeper:
        assert world.reload(keeper).result is ReloadResult.OK
        before = world.map_id("own"), contents(world.pins / "own")
        fail_without(world, keeper)
        for now in (1.0, 100.0):
            (world.pins / "own").unlink()
            keeper.heal(now)
            assert (world.map_id("own"), contents(world.pins / "own")) == before
        assert world.reload(keeper).result is ReloadResult.OK
        (world.pins / "own").unlink()
        assert keeper._held.map_fd("own", before[0] or 0) is None, "nobody wants it any more"


def write_pattern(world: World, pattern: str) -> dict[str, tuple[int, int]]:
    for name in ("c0", "c1"):
        (world.cgroup / name).mkdir()
    world.put("one", MAP="ones")
    world.write(f"objects:\n{ONE.replace('CGROUP', pattern)}")
    assert world.apply().result is ReloadResult.OK
    links = world.link_ids()
    assert len(links) == 2
    return links


@pytest.mark.parametrize("relative", (True, False))
def test_a_pattern_while_no_cgroups_are_mounted(
    world: World, monkeypatch: pytest.MonkeyPatch, relative: bool
) -> None:
    """What runs stays: that nothing can be seen does not mean that nothing is there."""
    mount = kernel.cgroup2_mount()
    pattern = f"{os.path.relpath(world.cgroup, mount) if relative else world.cgroup}/c*"
    links = write_pattern(world, pattern)
    with world.keeper() as keeper:
        assert world.reload(keeper).result is ReloadResult.OK
        with monkeypatch.context() as patch:
            patch.setattr(kernel, "cgroup2_mount", lambda: None)
            keeper.heal(1.0)
            assert world.link_ids() == links
            assert world.reload(keeper).result is ReloadResult.FAILED
            assert world.link_ids() == links
        assert world.reload(keeper).result is ReloadResult.OK
        assert world.link_ids() == links
    assert plan_now(world) == ()


@contextmanager
def without_descriptors() -> Iterator[None]:
    """No more can be opened: EMFILE."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_pattern_that_cannot_be_looked_for(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """For a moment there is no descriptor to read a directory with."""
    links = write_pattern(world, f"{world.cgroup}/c*")
    with world.keeper() as keeper:
        assert world.reload(keeper).result is ReloadResult.OK
        names = matches._directories

        def in_need(path: str) -> list[str] | None:
            with without_descriptors():
                return names(path)

        with monkeypatch.context() as patch:
            patch.setattr(matches, "_directories", in_need)
            keeper.heal(1.0)
            assert world.link_ids() == links
            assert any("cannot look into" in one.problem for one in keeper.status.attachments)
        (world.cgroup / "c2").mkdir()
        keeper.heal(2.0)
        assert len(world.link_ids()) == 3


def test_a_map_in_whose_place_stands_one_of_another_definition(world: World) -> None:
    """Nobody but the keeper has it: it is kept until the other one is gone, then pinned again."""
    world.write(OWN)
    with world.keeper() as keeper:
        assert world.reload(keeper).result is ReloadResult.OK
        former = world.map_id("own")
        (world.pins / "own").unlink()
        with kernel.holding(kernel.map_create(1, "other", 8, 16, 2)) as fd:
            kernel.pin(fd, str(world.pins / "own"))
        for now in (1.0, 2.0):
            keeper.heal(now)
            (status,) = keeper.status.maps
            assert status.id == world.map_id("own") != former, "nothing is touched"
            assert keeper.status.drift["map_differs"] == 1
        (world.pins / "own").unlink()
        keeper.heal(20.0)
        assert world.map_id("own") == former
        (status,) = keeper.status.maps
        assert status.changes == {MapIdChange.REPLACED: 2} and status.made
        assert contents(world.pins / "own") == {
            (1).to_bytes(4, "little"): (7).to_bytes(8, "little")
        }
