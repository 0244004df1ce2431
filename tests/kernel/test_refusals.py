"""What cannot be had is refused, by name, and what runs goes on (I3, I8)."""

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bpfkeeperd.state import ReloadResult
from tests.kernel.test_reload import plan_now
from tests.machine import inside_cgroup, send_datagrams
from tests.scenario import World, check_still_served, garbage, refused


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


def test_entries_for_a_file_that_cannot_be_used_stop_nobody_else(world: World) -> None:
    """They fit the new version's layout, or name a map of it: its file is half written."""
    world.put("one")
    world.put("other", MAP="others")
    rest = "objects: {one: {file: one.bpf.o, pin_maps: [counts]}, other: {file: other.bpf.o}}\n"
    world.write(rest)
    with world.keeper() as keeper:
        world.reload(keeper)
        before = world.map_id()
        garbage(world.directory / "one.bpf.o")
        world.put("other", MAP="others", STEP=2)
        world.write(
            "maps:\n  counts: {entries: [{key: 5, value: {events: 1, steps: 2, wider: 3}}]}\n"
            "  outer: {type: array_of_maps, max_entries: 1, entries: [{key: 0, value: fresh}],\n"
            "          inner: {type: array, key: u32, value: u32, max_entries: 1}}\n" + rest
        )
        outcome = world.reload(keeper)
        assert outcome.done == ("load object other (its file or settings changed)",)
        text = refused(outcome)
        assert "object one" in text and "fresh" in text
    assert world.map_id() == before


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


def _without_btf(path: Path) -> None:
    subprocess.run(["llvm-objcopy", "-R", ".BTF", "-R", ".BTF.ext", str(path)], check=True)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_without_btf, "BTF is required, but is missing or corrupted: compile with clang -g"),
        (garbage, "this is no ELF file"),
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
    garbage(path)
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
        garbage(path)
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
        garbage(world.directory / "two.bpf.o")
        text = refused(world.reload(keeper))
        assert "map counts: object two, which uses it, is held back" in text
        assert "object one: held back by map counts" in text
        assert world.everything() == before
        check_still_served(world, programs=2)


def test_a_map_of_a_type_that_nobody_knows(world: World) -> None:
    """No rule is broken, and the kernel refuses all the same: it is said what was asked for."""
    world.put("one", TYPE=99)
    world.write_counter("one")
    said = refused(world.apply())
    assert "object one: cannot create map counts: Invalid argument (EINVAL): asked for was" in said
    assert "key_size 4, value_size 16, max_entries 16" in said


def test_an_own_map_of_a_type_that_the_kernel_does_not_have(world: World) -> None:
    name = b"\0BPF_MAP_TYPE_INSN_ARRAY\0"
    if name in Path("/sys/kernel/btf/vmlinux").read_bytes():
        pytest.skip("this kernel has all types")
    world.write("maps: {places: {type: insn_array, value_size: 16, max_entries: 2}}\n")
    said = refused(world.apply())
    assert "cannot create map places: Invalid argument (EINVAL): asked for was" in said
    assert "the kernel may be too old: there is insn_array since Linux 6.19" in said


def test_an_own_map_with_an_interface_that_is_not_there(world: World) -> None:
    entries = "[{key: 0, value: nowhere0}]"
    world.write(
        f"maps: {{ports: {{type: devmap, value_size: 4, max_entries: 1, entries: {entries}}}}}\n"
    )
    said = refused(world.apply())
    assert said.startswith("entry 0 of map ports: there is no interface nowhere0")
    assert (world.pins / "ports").exists(), "the map and its other entries are there"


def test_a_manifest_that_cannot_be_read_changes_nothing(world: World) -> None:
    world.put("one")
    world.write("objects: {one: {file: one.bpf.o, pin_maps: [counts]}}\n")
    with world.keeper() as keeper:
        world.reload(keeper)
        number = world.map_id()
        world.manifest_file.unlink()
        outcome = world.reload(keeper)
        assert outcome.result is ReloadResult.REJECTED
        assert outcome.kept_maps == 1, outcome.summary
        assert "No such file or directory" in str(outcome.failures[0])
        assert world.map_id() == number
