"""What a reload keeps, on the real kernel: IDs, contents, links (I1, I2, I6)."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from bpfkeeperd import kernel
from bpfkeeperd.errors import BusyError, PinRootError
from bpfkeeperd.keeper import look
from bpfkeeperd.manifest import read_manifest
from bpfkeeperd.state import MapIdChange, ReloadResult
from bpfkeeperd.statefile import read_state, state_path
from tests.machine import Netns, inside_cgroup, send_datagrams, skip_without_section
from tests.scenario import World


def plan_now(world: World) -> tuple[str, ...]:
    """What a plan of somebody who keeps nothing says now."""
    path = state_path(world.state_directory, str(world.pins))
    seen = look(read_manifest(str(world.manifest_file)), read_state(path)[0])
    return tuple(str(action) for action in seen.plan.actions)


def test_first_load_pins_by_name_and_attaches(world: World) -> None:
    world.put("one")
    world.write_counter("one")
    outcome = world.apply()
    assert outcome.result is ReloadResult.OK, outcome
    with inside_cgroup(world.cgroup):
        send_datagrams(5)
    assert world.events() == (5, 5)
    assert plan_now(world) == ()


def test_changed_object_keeps_map_id_and_contents(world: World) -> None:
    world.put("one", STEP=1)
    world.write_counter("one")
    with world.keeper() as keeper, inside_cgroup(world.cgroup):
        world.reload(keeper)
        map_id = world.map_id()
        (link,) = world.link_ids().values()
        send_datagrams(3)
        world.put("one", STEP=100)
        outcome = world.reload(keeper)
        assert outcome.result is ReloadResult.OK, outcome
        send_datagrams(2)
        (new_link,) = world.link_ids().values()
    assert world.map_id() == map_id
    assert world.events() == (5, 203)
    assert new_link[0] == link[0], "the link was not updated in place"
    assert new_link[1] != link[1], "the program did not change"
    assert plan_now(world) == ()
    assert not world.changes


def test_a_link_that_is_taken_over_leaves_nothing_to_do(world: World) -> None:
    world.put("one")
    world.write_counter("one")
    with world.keeper() as keeper:
        world.reload(keeper)
        (link,) = world.link_ids().values()
        os.rename(world.directory / "one.bpf.o", world.directory / "another.bpf.o")
        world.write_counter("another")
        assert world.reload(keeper).result is ReloadResult.OK
        keeper.look()
        assert not any(keeper.status.drift.values()), keeper.status.drift
        assert world.reload(keeper).done == ()
    (new_link,) = world.link_ids().values()
    assert new_link[0] == link[0]


def test_unchanged_object_is_not_loaded_again_unless_forced(world: World) -> None:
    world.put("one")
    world.write_counter("one")
    with world.keeper() as keeper:
        world.reload(keeper)
        programs = world.program_ids()
        outcome = world.reload(keeper)
        assert (outcome.result, outcome.done) == (ReloadResult.OK, ())
        assert world.program_ids() == programs
        links = world.link_ids()
        forced = world.reload(keeper, force=True)
        assert forced.done
        (before,), (after,) = links.values(), world.link_ids().values()
        assert before[0] == after[0] and before[1] != after[1]
    assert plan_now(world) == ()


def test_pin_declared_in_the_object_needs_no_pin_maps(world: World) -> None:
    world.put("one", PIN=1)
    world.write("objects: {one: {file: one.bpf.o}}\n")
    assert world.apply().result is ReloadResult.OK
    assert world.map_id()


def test_map_that_no_program_uses_stays(world: World) -> None:
    world.put("one", UNUSED=1)
    world.write("objects: {one: {file: one.bpf.o, pin_maps: [counts]}}\n")
    assert world.apply().result is ReloadResult.OK
    map_id = world.map_id()
    assert map_id
    world.put("one", UNUSED=1, STEP=2, VERDICT=0)
    assert world.apply().result is ReloadResult.OK
    assert world.map_id() == map_id
    assert plan_now(world) == ()


def test_map_of_the_manifests_own(world: World) -> None:
    world.write(
        "maps:\n"
        "  settings: {type: array, key_size: 4, value_size: 8, max_entries: 4,\n"
        "             entries: [{key: 1, value: 1500}]}\n"
    )
    assert world.apply().result is ReloadResult.OK
    map_id = world.map_id("settings")
    found = kernel.pinned_map(str(world.pins / "settings"))
    assert found
    with kernel.holding(found[0]) as fd:
        assert kernel.map_lookup(fd, (1).to_bytes(4, "little"), 8) == (1500).to_bytes(8, "little")
        kernel.map_update(fd, bytes(4), b"12345678")
    assert world.apply(force=True).result is ReloadResult.OK
    assert world.map_id("settings") == map_id
    assert plan_now(world) == ()


def test_plain_libbpf_finds_the_same_map(world: World, tmp_path: Path) -> None:
    """A2: any libbpf program that opens the object with the same pin root uses the kept map."""
    source = Path(__file__).parent / "open_by_name.c"
    program = tmp_path / "open_by_name"
    subprocess.run(["gcc", "-O2", "-Wall", str(source), "-o", str(program), "-lbpf"], check=True)
    world.put("one")
    world.write_counter("one")
    world.apply()
    pinned = world.build("counter", PIN=1)
    result = subprocess.run(
        [str(program), str(pinned), str(world.pins), "counts"],
        check=True,
        capture_output=True,
        text=True,
    )
    assert int(result.stdout) == world.map_id()


def test_two_objects_share_a_map(world: World) -> None:
    world.put("one", STEP=1)
    world.put("two", STEP=10)
    world.write_counter("one", "two")
    assert world.apply().result is ReloadResult.OK
    with inside_cgroup(world.cgroup):
        send_datagrams(2)
    assert world.events() == (4, 22)
    assert plan_now(world) == ()


def test_pin_under_another_name(world: World) -> None:
    world.put("one")
    world.write("objects: {one: {file: one.bpf.o, pin_maps: {counts: my_counts}}}\n")
    world.apply()
    map_id = world.map_id("my_counts")
    assert map_id and world.map_id("counts") is None
    world.put("one", STEP=3)
    world.apply()
    assert world.map_id("my_counts") == map_id
    assert plan_now(world) == ()


def test_program_with_a_new_name_takes_over_the_link(world: World) -> None:
    world.put("one")
    world.write_counter("one")
    with world.keeper() as keeper, inside_cgroup(world.cgroup):
        world.reload(keeper)
        (link,) = world.link_ids().values()
        world.put("one", PROGRAM="count_better", STEP=7)
        world.write(
            "objects:\n  one: {file: one.bpf.o, pin_maps: [counts],\n"
            "        programs: {count_better: {attach: [{cgroup: CGROUP}]}}}\n"
        )
        outcome = world.reload(keeper)
        assert outcome.result is ReloadResult.OK, outcome
        ((path, new),) = world.link_ids().items()
        assert "count_better" in path
        assert new[0] == link[0]
        send_datagrams(1)
    assert world.events() == (1, 7)
    assert plan_now(world) == ()


def test_object_that_leaves_the_manifest_is_detached_and_its_map_stays(world: World) -> None:
    world.put("one")
    world.put("two", STEP=10)
    world.write_counter("one", "two")
    with world.keeper() as keeper, inside_cgroup(world.cgroup):
        world.reload(keeper)
        map_id = world.map_id()
        world.write_counter("one")
        outcome = world.reload(keeper)
        assert outcome.result is ReloadResult.OK, outcome
        send_datagrams(1)
        assert world.events() == (1, 1)
        world.write("objects: {}\n")
        assert world.reload(keeper).result is ReloadResult.OK
        send_datagrams(1)
        assert world.events() == (1, 1)
        assert world.map_id() == map_id, "a pin was removed that nobody asked to remove"
    assert os.listdir(world.layout.objects) == []
    assert os.listdir(world.layout.links) == []
    assert plan_now(world) == ()


def test_one_more_target(world: World) -> None:
    world.put("one")
    world.write_counter("one")
    child = world.cgroup / "child.slice"
    child.mkdir()
    with world.keeper() as keeper:
        world.reload(keeper)
        programs = world.program_ids()
        world.write(
            "objects:\n  one: {file: one.bpf.o, pin_maps: [counts],\n"
            "        programs: {count: {attach: [{cgroup: CGROUP},\n"
            f"                                    {{cgroup: {child}}}]}}}}}}\n"
        )
        outcome = world.reload(keeper)
        assert outcome.result is ReloadResult.OK, outcome
        assert world.program_ids() == programs, "loaded again for nothing"
        with inside_cgroup(child):
            send_datagrams(1)
    assert world.events() == (2, 2)  # the child's program and its parent's
    assert plan_now(world) == ()


def test_cgroup_relative_to_the_mount(world: World) -> None:
    mount = kernel.cgroup2_mount()
    assert mount
    path = world.cgroup.relative_to(mount)
    world.put("one")
    world.write(
        "objects:\n  one: {file: one.bpf.o, pin_maps: [counts],\n"
        f"        programs: {{count: {{attach: [{{cgroup: {path}}}]}}}}}}\n"
    )
    assert world.apply().result is ReloadResult.OK
    with inside_cgroup(world.cgroup):
        send_datagrams(1)
    assert world.events() == (1, 1)


@pytest.mark.parametrize("hook", ["xdp", "tcx/ingress", "tcx/egress"])
def test_interface_hooks(world: World, netns: Netns, hook: str) -> None:
    skip_without_section(hook)
    verdict = {"xdp": 2, "tcx/ingress": -1, "tcx/egress": -1}[hook]
    world.put("one", HOOK=f'"{hook}"', VERDICT=verdict)
    manifest = (
        "objects:\n  one: {file: one.bpf.o, pin_maps: [counts],\n"
        f"        programs: {{count: {{attach: [{{interface: veth0, netns: {netns.here}}}]}}}}}}\n"
    )
    world.write(manifest)

    def traffic() -> None:
        netns.send(5, backwards=hook == "tcx/egress")

    with world.keeper() as keeper:
        outcome = world.reload(keeper)
        assert outcome.result is ReloadResult.OK, outcome
        traffic()
        first = world.events()
        assert first[0] > 0 and first[0] == first[1]
        map_id = world.map_id()
        (link,) = world.link_ids().values()
        world.put("one", HOOK=f'"{hook}"', VERDICT=verdict, STEP=1000)
        assert world.reload(keeper).result is ReloadResult.OK
        traffic()
        assert world.events()[1] >= first[1] + 1000
        assert world.map_id() == map_id
        (new,) = world.link_ids().values()
        assert new[0] == link[0] and new[1] != link[1]
    assert plan_now(world) == ()


def test_generic_xdp_is_said_aloud(world: World, netns: Netns) -> None:
    """The loopback device has no native XDP."""
    world.put("one", HOOK='"xdp"', VERDICT=2)
    text = (
        "objects:\n  one: {file: one.bpf.o, pin_maps: [counts], programs: {count:\n"
        f"        {{attach: [{{interface: lo, netns: {netns.here}, mode: MODE}}]}}}}}}\n"
    )
    world.write(text.replace("MODE", "native"))
    outcome = world.apply()
    assert outcome.result is ReloadResult.FAILED
    assert "cannot attach one/count at xdp" in outcome.failures[0].message
    world.write(text.replace("MODE", "auto"))
    outcome = world.apply()
    assert outcome.result is ReloadResult.OK, outcome
    assert any("generic mode" in note for note in outcome.notes)
    assert plan_now(world) == ()


def test_recreate_drops_contents_and_takes_all_users_along(world: World) -> None:
    world.put("one", STEP=1)
    world.put("two", STEP=10)
    policy = "maps: {counts: {on_mismatch: recreate}}"
    world.write_counter("one", "two", extra=policy)
    with world.keeper() as keeper, inside_cgroup(world.cgroup):
        world.reload(keeper)
        map_id = world.map_id()
        send_datagrams(1)
        world.put("one", STEP=1, ENTRIES=32)
        world.put("two", STEP=10, ENTRIES=32)
        outcome = world.reload(keeper)
        assert outcome.result is ReloadResult.OK, outcome
        assert any("ALL ITS CONTENTS ARE LOST" in line for line in outcome.done)
        assert any("max_entries is 16, wanted is 32" in line for line in outcome.done)
        assert world.map_id() != map_id
        assert world.events() == (0, 0)
        send_datagrams(1)
        assert world.events() == (2, 11), "a program was left on the map that nobody can see"
        assert [change.reason for change in world.changes] == [MapIdChange.RECREATED]
        (status,) = keeper.status.maps
        assert status.changes == {MapIdChange.RECREATED: 1}
    assert plan_now(world) == ()
    assert set(os.listdir(world.layout.own)) == {"links", "objects"}


def test_state_survives_the_keeper_and_boots_are_counted(world: World) -> None:
    world.put("one")
    world.write_counter("one")
    world.apply()
    path = Path(state_path(world.state_directory, str(world.pins)))
    memory, note = read_state(str(path))
    assert not note and memory.maps["counts"].made
    path.write_text(path.read_text().replace(memory.boot_id, "another-boot"))
    with world.keeper() as keeper:
        world.reload(keeper)
        assert [change.reason for change in world.changes] == [MapIdChange.REBOOT]
        (status,) = keeper.status.maps
        assert status.changes == {MapIdChange.REBOOT: 1}
    path.write_text("{half")
    with world.keeper() as keeper:
        assert any("cannot read the state file" in note for note in keeper.notes)
        assert world.reload(keeper).result is ReloadResult.OK


def test_two_keepers_cannot_hold_one_pin_root(world: World) -> None:
    world.write("objects: {}\n")
    with world.keeper(), pytest.raises(BusyError, match="another keeper holds the pin root"):
        world.apply()


def test_no_bpffs_is_refused_with_the_mount_command(world: World, tmp_path: Path) -> None:
    world.write("objects: {}\n")
    subprocess.run(["umount", str(world.pins)], check=True)
    with pytest.raises(PinRootError, match="mount -t bpf bpf"):
        world.apply()


def test_somebody_elses_directory_is_refused(world: World) -> None:
    world.write("objects: {}\n")
    os.mkdir(world.layout.own)
    os.chmod(world.layout.own, 0o777)
    with pytest.raises(PinRootError, match="not a directory of this user alone"):
        world.apply()
    shutil.rmtree(world.layout.own)
