"""What goes wrong: a clear message, nothing lost, nothing unserved, and it heals (I3, I5, I8)."""

import contextlib
import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from bpfkeeperd import kernel
from bpfkeeperd.errors import KernelError
from bpfkeeperd.state import MapIdChange, Outcome, ReloadResult
from bpfkeeperd.statefile import state_path
from tests.kernel.test_reload import plan_now
from tests.machine import Netns, inside_cgroup, ip, send_datagrams
from tests.scenario import World


def refused(outcome: Outcome) -> str:
    """Everything a reload that failed says."""
    assert outcome.result is ReloadResult.FAILED, outcome
    return "\n".join([*outcome.refusals, *(failure.message for failure in outcome.failures)])


def check_still_served(world: World, *, programs: int = 1) -> None:
    before = world.events()
    send_datagrams(2)
    assert world.events()[0] == before[0] + 2 * programs


@pytest.mark.parametrize(
    ("macros", "message"),
    [
        ({"ENTRIES": 32}, "max_entries is 16, wanted is 32"),
        ({"TYPE": "BPF_MAP_TYPE_LRU_HASH"}, "type is hash, wanted is lru_hash"),
        ({"WIDER": 1}, "value_size is 16, wanted is 24"),
        ({"REORDERED": 1}, "value layout: events (int, 8 bytes) at byte 0, wanted is steps"),
    ],
)
def test_differing_map_is_refused_and_everything_stays(
    world: World, macros: dict[str, Any], message: str
) -> None:
    world.put("one")
    world.put("other", HOOK='"cgroup_skb/ingress"', MAP="others")
    entry = (
        "objects:\n"
        "  one: {file: one.bpf.o, pin_maps: [counts],\n"
        "        programs: {count: {attach: [{cgroup: CGROUP}]}}}\n"
        "  other: {file: other.bpf.o, pin_maps: [others],\n"
        "          programs: {count: {attach: [{cgroup: CGROUP}]}}}\n"
    )
    world.write(entry)
    with world.keeper() as keeper, inside_cgroup(world.cgroup):
        world.reload(keeper)
        send_datagrams(1)
        ids, links = (world.map_id(), world.map_id("others")), world.link_ids()
        world.put("one", **macros)
        world.put("other", HOOK='"cgroup_skb/ingress"', MAP="others", STEP=50)
        outcome = world.reload(keeper)
        text = refused(outcome)
        assert message in text and "map counts" in text and "object one" in text
        assert (world.map_id(), world.map_id("others")) == ids
        own = {path: link for path, link in links.items() if path.startswith("one/")}
        now = world.link_ids()
        assert own.items() <= now.items(), "a held object was touched"
        assert now != links, "the other object did not go ahead"
        check_still_served(world)
        world.put("one", STEP=2)  # the cause goes
        assert world.reload(keeper).result is ReloadResult.OK
        check_still_served(world)
    assert plan_now(world) == ()


def test_every_differing_field_is_named(world: World) -> None:
    world.put("one")
    world.write_counter("one")
    world.apply()
    world.put("one", ENTRIES=32, WIDER=1, TYPE="BPF_MAP_TYPE_ARRAY")
    text = refused(world.apply())
    for field in ("type is hash", "value_size is 16", "max_entries is 16"):
        assert field in text


def test_verifier_refusal(world: World) -> None:
    world.put("one")
    world.write_counter("one")
    with world.keeper() as keeper, inside_cgroup(world.cgroup):
        world.reload(keeper)
        send_datagrams(1)
        before = world.everything()
        world.put("one", REFUSED=1)
        outcome = world.reload(keeper)
        text = refused(outcome)
        assert "object one: the verifier refuses program count: " in text
        assert "invalid mem access 'map_value_or_null'" in text
        assert "R0 invalid mem access" in outcome.failures[0].detail
        assert world.everything() == before
        check_still_served(world)


def _garbage(path: Path) -> None:
    path.write_bytes(b"not an object at all")


def _half(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _missing(path: Path) -> None:
    path.unlink()


def _directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_garbage, "this is no ELF file"),
        (_half, "it is cut short or half written"),
        (_empty, "the file is empty"),
        (_missing, "No such file or directory"),
        (_directory, "it is a directory"),
    ],
)
def test_unusable_object_file(world: World, damage: Callable[[Path], None], message: str) -> None:
    path = world.put("one")
    world.put("two", HOOK='"cgroup_skb/ingress"', MAP="others")
    world.write(
        "objects:\n"
        "  one: {file: one.bpf.o, pin_maps: [counts],\n"
        "        programs: {count: {attach: [{cgroup: CGROUP}]}}}\n"
        "  two: {file: two.bpf.o, pin_maps: [others]}\n"
    )
    with world.keeper() as keeper, inside_cgroup(world.cgroup):
        world.reload(keeper)
        send_datagrams(1)
        before = world.everything()
        damage(path)
        text = refused(world.reload(keeper))
        assert message in text and "object one" in text and str(path) in text
        assert world.everything() == before
        check_still_served(world)
        assert {status.name for status in keeper.status.maps} == {"counts", "others"}
    # A keeper that never saw the good file leaves what runs alone, too.
    with inside_cgroup(world.cgroup):
        before = world.everything()
        text = refused(world.apply())
        assert message in text
        assert world.everything() == before
        check_still_served(world)


def test_unreadable_object_is_shown_as_far_as_it_is_known(world: World) -> None:
    path = world.put("one")
    world.write_counter("one")
    world.apply()
    _garbage(path)
    with world.keeper() as keeper:  # one that never saw the good file
        refused(world.reload(keeper))
        (shown,), (attachment,) = keeper.status.maps, keeper.status.attachments
        assert (shown.name, shown.id) == ("counts", world.map_id())
        assert attachment.up and "this is no ELF file" in attachment.problem


def test_what_runs_counts_and_not_what_was_read(world: World) -> None:
    """A version that was refused is forgotten when its file cannot be read any more."""
    path = world.put("one")
    world.write_counter("one")
    with world.keeper() as keeper, inside_cgroup(world.cgroup):
        world.reload(keeper)
        world.put("one", ENTRIES=32)
        assert "max_entries is 16" in refused(world.reload(keeper))
        _garbage(path)
        text = refused(world.reload(keeper))
        assert "this is no ELF file" in text and "max_entries" not in text
        # Even without its file, what is loaded is attached again.
        ((link_id, _),) = world.link_ids().values()
        subprocess.run(["bpftool", "link", "detach", "id", str(link_id)], check=True)
        refused(world.reload(keeper))
        check_still_served(world)
        assert world.link_ids() and plan_now(world) == ()


def test_wrong_sha256_is_refused(world: World) -> None:
    world.put("one")
    world.write(f"objects: {{one: {{file: one.bpf.o, sha256: {'0' * 64}}}}}\n")
    assert "the manifest wants 0000" in refused(world.apply())


def test_wrong_manifest_changes_nothing(world: World) -> None:
    world.put("one")
    world.write_counter("one")
    with world.keeper() as keeper:
        world.reload(keeper)
        before = world.everything()
        world.write("objects: {one: {fil: one.bpf.o}}\n")
        outcome = world.reload(keeper)
        assert outcome.result is ReloadResult.REJECTED
        assert "did you mean" in outcome.failures[0].message
        world.write("objects:\n  one: {file: one.bpf.o, programs: {cuont: {}}}\n")
        outcome = world.reload(keeper)
        assert outcome.result is ReloadResult.REJECTED
        assert "object one has no program cuont: did you mean count?" in (
            outcome.failures[0].message
        )
        assert world.everything() == before


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
    """One bad target rolls its object back, and never stops the others."""
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
        assert "the interface runs another XDP program" in text and "rolled back" in text
        assert world.map_id() is None and world.map_id("others")
        ip("-n", netns.here, "link", "set", "veth0", "xdp", "off")
        assert world.reload(keeper).result is ReloadResult.OK
    assert plan_now(world) == ()


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


def test_two_declarations_of_one_map_that_differ(world: World) -> None:
    world.put("one")
    world.put("two", ENTRIES=64)
    world.write_counter("one", "two")
    with world.keeper() as keeper:
        outcome = world.reload(keeper)
    assert outcome.result is ReloadResult.REJECTED
    assert "object two declares map counts otherwise than object one" in (
        outcome.failures[0].message
    )
    assert world.map_id() is None


def test_held_user_holds_back_a_shared_map(world: World) -> None:
    """A map is not exchanged under a user that cannot come along."""
    world.put("one")
    world.put("two", STEP=10)
    world.write_counter("one", "two", extra="maps: {counts: {on_mismatch: recreate}}")
    with world.keeper() as keeper, inside_cgroup(world.cgroup):
        world.reload(keeper)
        before = world.everything()
        world.put("one", ENTRIES=32)
        _garbage(world.directory / "two.bpf.o")
        text = refused(world.reload(keeper))
        assert "map counts: object two, which uses it, is held back" in text
        assert "object one: held back by map counts" in text
        assert world.everything() == before
        check_still_served(world, programs=2)


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


def test_links_stay_attached_when_all_their_pins_go(world: World) -> None:
    """Even of an object that cannot be read, and of a target that is to be left."""
    path = world.put("one")
    world.write_counter("one")
    with world.keeper() as keeper:
        world.reload(keeper)
    _garbage(path)
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
