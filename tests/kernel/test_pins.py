"""Map pins that go, come back, or are somebody else's: no contents lost, and it heals (I1, I5)."""

import ctypes
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bpfkeeperd import kernel
from bpfkeeperd.errors import KernelError, PinRootError
from bpfkeeperd.pinroot import check_pin_root
from bpfkeeperd.state import MapIdChange, ReloadResult
from bpfkeeperd.statefile import state_path
from tests.kernel.test_reload import plan_now
from tests.machine import inside_cgroup, send_datagrams
from tests.scenario import World, check_still_served, refused

NOBODY = 65534


def test_pin_removed_by_hand_is_restored_with_its_id(world: World) -> None:
    world.put("one")
    world.write_counter("one")
    with world.keeper() as keeper, inside_cgroup(world.cgroup):
        world.reload(keeper)
        send_datagrams(3)
        map_id = world.map_id()
        (world.pins / "counts").unlink()
        keeper.look()
        assert keeper.status.drift["map_pin_lost"] == 1
        assert world.reload(keeper).result is ReloadResult.OK
        assert world.map_id() == map_id
        check_still_served(world)
    # And by a keeper that holds no descriptor, as long as the map is alive.
    (world.pins / "counts").unlink()
    assert world.apply().result is ReloadResult.OK
    assert world.map_id() == map_id
    assert not world.changes


def test_lost_map_is_made_anew_and_counted(world: World) -> None:
    world.put("one", UNUSED=1)
    world.write("objects: {one: {file: one.bpf.o, pin_maps: [counts]}}\n")
    world.apply()
    (world.pins / "counts").unlink()  # nothing holds it any more
    assert world.apply().result is ReloadResult.OK
    assert world.map_id()
    assert [change.reason for change in world.changes] == [MapIdChange.LOST]


def test_pin_replaced_by_another_map_moves_the_users_there(world: World) -> None:
    world.put("one")
    world.write_counter("one")
    with world.keeper() as keeper, inside_cgroup(world.cgroup):
        world.reload(keeper)
        (world.pins / "counts").unlink()
        fd = kernel.map_create(1, "counts", 4, 16, 16)
        with kernel.holding(fd):
            kernel.pin(fd, str(world.pins / "counts"))
        map_id = world.map_id()
        keeper.look()
        assert keeper.status.drift["object_not_loaded"] == 1
        outcome = world.reload(keeper)
        assert outcome.result is ReloadResult.OK, outcome
        assert world.map_id() == map_id, "the pin is the truth"
        send_datagrams(1)
        assert world.events() == (1, 1)
    assert plan_now(world) == ()


def test_replaced_map_is_counted(world: World) -> None:
    world.put("one")
    world.write_counter("one")
    with world.keeper() as keeper:
        world.reload(keeper)
        (world.pins / "counts").unlink()
        with kernel.holding(kernel.map_create(1, "counts", 4, 16, 16)) as fd:
            kernel.pin(fd, str(world.pins / "counts"))
        (change,) = keeper.look()
        assert change.reason is MapIdChange.REPLACED
        assert (change.name, change.new) == ("counts", world.map_id())
        assert keeper.look() == ()


def test_pin_that_holds_a_program(world: World) -> None:
    world.put("one")
    world.write_counter("one")
    with world.keeper() as keeper, inside_cgroup(world.cgroup):
        world.reload(keeper)
        send_datagrams(1)
        (world.pins / "counts").unlink()
        programs = next(Path(world.layout.object("one")).iterdir())
        os.link(programs / "count", world.pins / "counts")
        links = world.link_ids()
        text = refused(world.reload(keeper, force=True))
        assert "it holds a program, not a map" in text
        assert world.link_ids() == links
        (world.pins / "counts").unlink()
        assert world.reload(keeper).result is ReloadResult.OK
        check_still_served(world)


def test_map_ids_of_an_earlier_boot_are_nobodys(world: World) -> None:
    world.put("one")
    world.write_counter("one")
    with kernel.holding(kernel.map_create(1, "counts", 4, 16, 16)) as foreign:
        number = kernel.map_info(foreign).id
        state = Path(state_path(world.state_directory, str(world.pins)))
        record = {"id": number, "made": True, "changes": {}}
        state.write_text(json.dumps({"format": 1, "boot_id": "before", "maps": {"counts": record}}))
        world.put("one", REFUSED=1)
        refused(world.apply())
        world.put("one")
        assert world.apply().result is ReloadResult.OK
        assert world.map_id() != number, "a stranger's map was taken for a lost one"
        assert [change.reason for change in world.changes] == [MapIdChange.REBOOT]


def test_where_to_mount_a_bpffs(tmp_path: Path) -> None:
    """A directory that is there: the pin root is made by the keeper, below it."""
    with pytest.raises(PinRootError, match=f"not on a bpffs: mount -t bpf bpf {tmp_path}$"):
        check_pin_root(f"{tmp_path}/pins")
    with pytest.raises(PinRootError, match=f"not on a bpffs: mount -t bpf bpf {tmp_path}$"):
        check_pin_root(str(tmp_path))


def test_a_pin_root_that_only_root_sees(tmp_path: Path) -> None:
    """Below a bpffs of mode 0700, as systemd mounts it."""
    (tmp_path / "bpf/pins").mkdir(parents=True)
    (tmp_path / "bpf").chmod(0o700)
    libc = ctypes.CDLL(None)
    libc.setfsuid(NOBODY)  # of this thread alone; takes its right to look everywhere along
    try:
        with pytest.raises(
            PinRootError, match=r"pin root \S+/pins: Permission denied .*: it takes root$"
        ):
            check_pin_root(f"{tmp_path}/bpf/pins")
    finally:
        libc.setfsuid(0)


def test_bpffs_unmounted_and_mounted_again(world: World) -> None:
    world.put("one")
    world.write_counter("one")
    with world.keeper() as keeper, inside_cgroup(world.cgroup):
        world.reload(keeper)
        map_id, links = world.map_id(), world.link_ids()
        send_datagrams(4)
        subprocess.run(["umount", "-l", str(world.pins)], check=True)
        text = refused(world.reload(keeper))
        assert "is not on a bpffs: mount -t bpf bpf" in text
        subprocess.run(["mount", "-t", "bpf", "bpf", str(world.pins)], check=True)
        outcome = world.reload(keeper)
        assert outcome.result is ReloadResult.OK, outcome
        assert world.map_id() == map_id
        assert world.events()[0] == 4
        assert [link[0] for link in world.link_ids().values()] == [
            link[0] for link in links.values()
        ]
        check_still_served(world)
    assert plan_now(world) == ()


def test_full_map_is_kept_as_it_is(world: World) -> None:
    world.put("one", ENTRIES=1)
    world.write_counter("one")
    with world.keeper() as keeper, inside_cgroup(world.cgroup):
        world.reload(keeper)
        send_datagrams(1)
        found = kernel.pinned_map(str(world.pins / "counts"))
        assert found
        with kernel.holding(found[0]), pytest.raises(KernelError, match="E2BIG"):
            kernel.map_update(found[0], b"\1\0\0\0", bytes(16))
        world.put("one", ENTRIES=1, STEP=3)
        assert world.reload(keeper).result is ReloadResult.OK
        check_still_served(world)


def test_entries_of_a_per_cpu_map_are_the_same_on_every_cpu(world: World) -> None:
    world.write(
        "maps:\n  each: {type: percpu_array, key_size: 4, value_size: 12, max_entries: 2,\n"
        "         entries: [{key: 1, value: 7}]}\n"
    )
    assert world.apply().result is ReloadResult.OK
    cpus = kernel.possible_cpus()
    found = kernel.pinned_map(str(world.pins / "each"))
    assert found
    with kernel.holding(found[0]) as fd:
        value = kernel.map_lookup(fd, (1).to_bytes(4, sys.byteorder), 16 * cpus)
    assert value == (7).to_bytes(12, sys.byteorder).ljust(16, b"\0") * cpus


@pytest.mark.parametrize("renewed", [False, True], ids=["recreated", "renewed"])
def test_who_could_open_the_former_map_can_open_the_new_one(world: World, renewed: bool) -> None:
    """Group and mode of the pin are those that somebody gave to the former one."""
    extra = "maps: {counts: {on_mismatch: recreate}}"
    world.put("one", "globals" if renewed else "counter")
    if renewed:
        world.write("objects: {one: {file: one.bpf.o, pin_maps: {.bss: counts}}}\n")
    else:
        world.write_counter("one", extra=extra)
    world.apply()
    path = world.pins / "counts"
    before = world.map_id()
    os.chown(path, 0, 2345)
    os.chmod(path, 0o640)
    if renewed:
        world.put("one", "globals", MORE=1)
    else:
        world.put("one", "counter", ENTRIES=32)
    assert world.apply().result is ReloadResult.OK
    assert world.map_id() != before
    found = path.stat()
    assert (found.st_mode & 0o7777, found.st_uid, found.st_gid) == (0o640, 0, 2345)
