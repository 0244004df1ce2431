"""Links and targets that go and come back: nothing unserved, and it heals (I2, I8)."""

import contextlib
import os
import resource
import subprocess
from contextlib import ExitStack
from pathlib import Path

from bpfkeeperd import kernel
from bpfkeeperd.observetargets import observe_targets
from bpfkeeperd.state import ReloadResult
from bpfkeeperd.targets import NetnsTarget
from tests.kernel.test_reload import plan_now
from tests.machine import Netns, inside_cgroup, ip, send_datagrams
from tests.scenario import World, check_still_served, garbage, refused


def test_link_detached_by_somebody_else(world: World) -> None:
    world.put("one")
    world.write_counter("one")
    with world.keeper() as keeper, inside_cgroup(world.cgroup):
        world.reload(keeper)
        ((path, (link_id, _)),) = world.link_ids().items()
        subprocess.run(["bpftool", "link", "detach", "id", str(link_id)], check=True)
        keeper.look()
        assert keeper.status.drift["attachment_missing"] == 1
        assert [status.up for status in keeper.status.attachments] == [False]
        assert world.reload(keeper).result is ReloadResult.OK
        assert world.link_ids()[path][0] != link_id
        check_still_served(world)
        assert [status.up for status in keeper.status.attachments] == [True]
    assert plan_now(world) == ()


def test_link_pin_removed_by_hand(world: World) -> None:
    world.put("one")
    world.write_counter("one")
    with world.keeper() as keeper, inside_cgroup(world.cgroup):
        world.reload(keeper)
        links = world.link_ids()
        (path,) = links
        os.unlink(f"{world.layout.links}/{path}")
        check_still_served(world)  # the keeper's descriptor holds it
        assert world.reload(keeper).result is ReloadResult.OK
        assert world.link_ids() == links
    assert plan_now(world) == ()


def test_link_moved_to_another_program(world: World) -> None:
    world.put("one", STEP=1)
    world.put("two", STEP=5, MAP="others")
    world.write_counter("one")
    with world.keeper() as keeper, inside_cgroup(world.cgroup):
        world.reload(keeper)
        (path,) = world.link_ids()
        link = kernel.pinned(f"{world.layout.links}/{path}", kernel.PinKind.LINK)
        assert link is not None
        with (
            kernel.holding(link),
            kernel.open_object((world.directory / "two.bpf.o").read_bytes(), "two") as two,
        ):
            two.load()
            kernel.link_update(link, two.program_fd("count"))
        keeper.look()
        assert keeper.status.drift["attachment_replaced"] == 1
        assert not keeper.status.attachments[0].up
        assert world.reload(keeper).result is ReloadResult.OK
        check_still_served(world)


def test_links_stay_attached_when_all_their_pins_go(world: World) -> None:
    """Even of an object that cannot be read, and of a target that is to be left."""
    path = world.put("one")
    world.write_counter("one")
    with world.keeper() as keeper:
        world.reload(keeper)
    garbage(path)
    with world.keeper() as keeper, inside_cgroup(world.cgroup):
        refused(world.reload(keeper))
        links = world.link_ids()
        (pin,) = links
        os.unlink(f"{world.layout.links}/{pin}")
        keeper.look()
        check_still_served(world)
        refused(world.reload(keeper))
        assert world.link_ids() == links
        world.put("one")
        text = world.manifest_file.read_text()
        world.manifest_file.write_text(text.replace(str(world.cgroup), f"{world.cgroup}/none"))
        refused(world.reload(keeper))
        os.unlink(f"{world.layout.links}/{pin}")
        refused(world.reload(keeper))
        check_still_served(world)
        assert world.link_ids() == links


def test_a_link_that_cannot_be_read_is_not_taken_for_dead(world: World) -> None:
    world.put("one")
    world.write_counter("one")
    with world.keeper() as keeper, ExitStack() as stack:
        world.reload(keeper)
        links = world.link_ids()
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))
        stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        taken = []
        with contextlib.suppress(OSError):
            while True:
                taken.append(os.open("/dev/null", os.O_RDONLY))
        for free in range(min(8, len(taken))):
            outcome = world.reload(keeper)
            assert not outcome.done, f"with {free} descriptors to be had"
            os.close(taken.pop())
        for fd in taken:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert world.reload(keeper).result is ReloadResult.OK
        assert world.link_ids() == links


def test_cgroup_that_goes_and_comes_back(world: World) -> None:
    child = world.cgroup / "child"
    child.mkdir()
    world.put("one")
    world.write(
        "objects:\n  one: {file: one.bpf.o, pin_maps: [counts],\n"
        "        programs: {count: {attach: [{cgroup: CGROUP/child}, {cgroup: CGROUP}]}}}\n"
    )
    with world.keeper() as keeper:
        world.reload(keeper)
        map_id = world.map_id()
        child.rmdir()
        text = refused(world.reload(keeper))
        assert f"there is no cgroup {child}" in text
        assert [status.up for status in keeper.status.attachments] == [False, True]
        child.mkdir()
        assert world.reload(keeper).result is ReloadResult.OK
        with inside_cgroup(child):
            send_datagrams(1)
        assert world.events()[0] == 2
        assert world.map_id() == map_id
    assert plan_now(world) == ()


def test_two_dead_links_are_replaced_in_one_reload(world: World) -> None:
    child = world.cgroup / "child"
    child.mkdir()
    for name in ("one", "two"):
        world.put(name)
    world.write_counter("one", "two")
    text = world.manifest_file.read_text().replace(str(world.cgroup), str(child))
    world.manifest_file.write_text(text)
    with world.keeper() as keeper:
        assert world.reload(keeper).result is ReloadResult.OK
        child.rmdir()
        child.mkdir()
        outcome = world.reload(keeper)
        assert outcome.result is ReloadResult.OK, outcome
        with inside_cgroup(child):
            send_datagrams(1)
        assert world.events()[0] == 2


def test_interface_that_goes_and_comes_back(world: World, netns: Netns) -> None:
    world.put("one", HOOK='"xdp"', VERDICT=2)
    world.write(
        "objects:\n  one: {file: one.bpf.o, pin_maps: [counts],\n"
        f"        programs: {{count: {{attach: [{{interface: veth0, netns: {netns.here}}}]}}}}}}\n"
    )
    with world.keeper() as keeper:
        assert world.reload(keeper).result is ReloadResult.OK
        map_id = world.map_id()
        netns.remove()
        text = refused(world.reload(keeper))
        assert f"cannot open network namespace /run/netns/{netns.here}" in text
        netns.make()
        ip("-n", netns.here, "link", "set", "veth0", "name", "other0")
        text = refused(world.reload(keeper))
        assert f"there is no interface veth0 in network namespace {netns.here}" in text
        ip("-n", netns.here, "link", "set", "other0", "name", "veth0")
        assert world.reload(keeper).result is ReloadResult.OK
        netns.send(3)
        assert world.events()[0] >= 3
        assert world.map_id() == map_id
    assert plan_now(world) == ()


def test_same_index_in_another_namespace_is_another_interface(world: World, netns: Netns) -> None:
    world.put("one", HOOK='"xdp"', VERDICT=2)
    text = (
        "objects:\n  one: {file: one.bpf.o, pin_maps: [counts], programs: {count: {attach:\n"
        "        [{interface: lo, netns: WHERE, mode: generic}]}}}\n"
    )
    world.write(text.replace("WHERE", netns.here))
    with world.keeper() as keeper:
        assert world.reload(keeper).result is ReloadResult.OK
        world.write(text.replace("WHERE", netns.there))
        assert world.reload(keeper).result is ReloadResult.OK
        before = world.events()[0]
        with netns.inside(netns.there):
            send_datagrams(3)
        assert world.events()[0] >= before + 3, "not attached where it was asked for"
    assert plan_now(world) == ()


def test_a_file_that_is_no_network_namespace(tmp_path: Path) -> None:
    """As the name of a namespace that `ip netns` could not mount leaves it."""
    stale, own = NetnsTarget(str(tmp_path)), NetnsTarget("/proc/self/ns/net")
    found = observe_targets([stale, own], {})
    assert found[stale] == f"{tmp_path} is no network namespace: see ip netns list"
    assert found[own] == os.stat("/proc/self/ns/net").st_ino


def test_mistyped_target_does_not_take_down_what_runs(world: World) -> None:
    world.put("one")
    world.write_counter("one")
    with world.keeper() as keeper, inside_cgroup(world.cgroup):
        world.reload(keeper)
        links = world.link_ids()
        good = world.manifest_file.read_text()
        world.manifest_file.write_text(good.replace(str(world.cgroup), f"{world.cgroup}.slcie"))
        assert "there is no cgroup" in refused(world.reload(keeper))
        assert world.link_ids() == links
        elsewhere = world.manifest_file.parent
        world.manifest_file.write_text(good.replace(str(world.cgroup), str(elsewhere)))
        text = refused(world.reload(keeper))
        assert f"{elsewhere} is no directory of a cgroup2 file system" in text
        assert world.link_ids() == links
        check_still_served(world)
        child = world.cgroup / "child"
        child.mkdir()
        world.manifest_file.write_text(good.replace(str(world.cgroup), str(child)))
        assert world.reload(keeper).result is ReloadResult.OK
        assert len(world.link_ids()) == 1 and world.link_ids() != links


def test_xdp_mode_cannot_be_changed_in_place(world: World, netns: Netns) -> None:
    world.put("one", HOOK='"xdp"', VERDICT=2)
    text = (
        "objects:\n  one: {file: one.bpf.o, pin_maps: [counts], programs: {count: {attach:\n"
        f"        [{{interface: veth0, netns: {netns.here}MODE}}]}}}}}}\n"
    )
    world.write(text.replace("MODE", ""))
    with world.keeper() as keeper:
        assert world.reload(keeper).result is ReloadResult.OK
        links = world.link_ids()
        world.write(text.replace("MODE", ", mode: generic"))
        assert "it has one mode at a time" in refused(world.reload(keeper, force=True))
        assert list(world.link_ids()) == list(links)
        netns.send(2)
        assert world.events()[0] >= 2
        world.write("objects: {one: {file: one.bpf.o, pin_maps: [counts]}}\n")
        assert world.reload(keeper).result is ReloadResult.OK
        world.write(text.replace("MODE", ", mode: generic"))
        assert world.reload(keeper).result is ReloadResult.OK
        assert plan_now(world) == ()


def test_interface_that_is_taken(world: World, netns: Netns, build_object: object) -> None:
    """One bad target is left out, and never stops the others."""
    world.put("one", HOOK='"xdp"', VERDICT=2)
    world.put("two", HOOK='"cgroup_skb/egress"', MAP="others")
    where = f"{{interface: veth0, netns: {netns.here}}}"
    world.write(
        "objects:\n"
        "  one: {file: one.bpf.o, pin_maps: [counts],\n"
        f"        programs: {{count: {{attach: [{where}]}}}}}}\n"
        "  two: {file: two.bpf.o, pin_maps: [others],\n"
        "        programs: {count: {attach: [{cgroup: CGROUP}]}}}\n"
    )
    ip(
        "-n",
        netns.here,
        "link",
        "set",
        "veth0",
        "xdp",
        "obj",
        str(world.build("counter", HOOK='"xdp"', VERDICT=2, MAP="foreign")),
        "sec",
        "xdp",
    )
    with world.keeper() as keeper:
        text = refused(world.reload(keeper))
        assert "(without a link), and nothing is changed: take_over: true would replace it" in text
        (path,) = world.link_ids()
        assert path.startswith("two/") and world.map_id("others")
        ip("-n", netns.here, "link", "set", "veth0", "xdp", "off")
        assert world.reload(keeper).result is ReloadResult.OK
    assert plan_now(world) == ()
