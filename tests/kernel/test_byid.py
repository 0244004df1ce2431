"""Without CAP_SYS_ADMIN: the keeper's own is found by its pins, reloads are undone to the last
entry, and what belongs to others is told."""

import ctypes
import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from bpfkeeperd import kernel
from bpfkeeperd.byid import map_by_id, program_by_id
from bpfkeeperd.errors import KernelError
from bpfkeeperd.kernel import bpf
from bpfkeeperd.observed import ObservedMap
from bpfkeeperd.state import ReloadResult
from tests.conftest import BuildObject
from tests.kernel.test_rollback_maps import (
    data,
    guest_in_a_slot,
    own_jumps,
    test_every_step_of_a_change_to_maps_is_rolled_back,
)
from tests.scenario import World, refused

SYS_ADMIN = 21
VERSION_3 = 0x20080522
"""_LINUX_CAPABILITY_VERSION_3: two words of each set."""

ROLLED_BACK = ("a private array", "another name", "a slot of a map of maps")

every_step_is_rolled_back = test_every_step_of_a_change_to_maps_is_rolled_back
del test_every_step_of_a_change_to_maps_is_rolled_back  # it is a test of its own file


@contextmanager
def without_sys_admin() -> Iterator[None]:
    """This thread, and those that it starts, do not have it meanwhile."""
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(VERSION_3, 0)
    data = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable, and again for 32 and up
    assert libc.capget(header, data) == 0
    before = data[0]
    data[0] &= ~(1 << SYS_ADMIN)
    assert libc.capset(header, data) == 0
    try:
        assert not kernel.may_open_by_id()
        yield
    finally:
        data[0] = before
        assert libc.capset(header, data) == 0


def test_own_programs_and_maps_are_found(world: World) -> None:
    world.put("one")
    world.write_counter("one")
    world.apply()
    (program_id,) = world.program_ids()
    found = kernel.pinned_map(str(world.pins / "counts"))
    assert found
    os.close(found[0])
    maps = {"counts": ObservedMap(pinned=found[1])}
    with without_sys_admin():
        program = program_by_id(world.layout, program_id)
        opened = map_by_id(world.layout, maps, found[1].id)
    assert program is not None and opened is not None
    with kernel.holding(program), kernel.holding(opened):
        assert kernel.program_info(program).id == program_id
        assert kernel.map_info(opened).id == found[1].id


def test_those_of_others_are_not(world: World, build_object: BuildObject) -> None:
    with kernel.open_object(build_object("counter").read_bytes(), "x") as opened:
        opened.load()
        program_id = kernel.program_info(opened.program_fd("count")).id
        text = f"cannot open the program with ID {program_id}: .*EPERM.*: it takes CAP_SYS_ADMIN"
        with without_sys_admin(), pytest.raises(KernelError, match=text) as caught:
            program_by_id(world.layout, program_id)
        assert caught.value.errno == errno.EPERM


@pytest.mark.parametrize("name", ROLLED_BACK)
def test_every_step_is_rolled_back(world: World, name: str) -> None:
    with without_sys_admin():
        every_step_is_rolled_back(world, name)


def test_a_program_of_others_that_would_be_lost_holds_the_change_back(world: World) -> None:
    """An array goes along with its programs; that of somebody else cannot be put into the new
    one."""
    guest_in_a_slot(world)
    before = world.everything()
    own_jumps(world, 2, "jumps")
    with without_sys_admin():
        assert "it takes CAP_SYS_ADMIN" in refused(world.apply())
    assert world.everything() == before
    assert world.apply().result is ReloadResult.OK


def test_global_data_of_another_layout_is_held_back(world: World) -> None:
    """What BTF the pinned map has is not to be read."""
    data(world, "{.bss: zeroed}")
    world.apply()
    before = world.map_id("zeroed")
    data(world, "{.bss: zeroed}", MORE=1)
    bpf._layouts.cache_clear()
    with without_sys_admin():
        assert "BTF cannot be read, which takes CAP_SYS_ADMIN" in refused(world.apply())
    assert world.map_id("zeroed") == before
    bpf._layouts.cache_clear()
    assert world.apply().result is ReloadResult.OK
