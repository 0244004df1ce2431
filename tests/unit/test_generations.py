"""Program arrays, global data and entries in a plan: each rule by a small case."""

from collections.abc import Iterable
from dataclasses import replace

from bpfkeeperd.actions import RenameMap, RenewMap
from bpfkeeperd.desired import Desired
from bpfkeeperd.drift import drift
from bpfkeeperd.entries import (
    InterfaceRef,
    Manifest,
    MapDefinition,
    MapEntry,
    MapRef,
    MismatchPolicy,
    ProgramRef,
)
from bpfkeeperd.layout import array_name, escape
from bpfkeeperd.plan import plan
from bpfkeeperd.resolve import resolve
from bpfkeeperd.targets import InterfaceTarget
from tests.unit.ideal import Ideal
from tests.unit.promises import held
from tests.unit.situations import BSS, MACHINE, WIDER_BSS, array_spec, contents, data_spec, source
from tests.unit.test_plan import Object, an_object, look, machine

HASH = MapDefinition("hash", 4, 8, 16)
JUMPS = MapDefinition("prog_array", 4, 4, 4)
TABLES = MapDefinition("array_of_maps", 4, 4, 4, inner=HASH)
PORTS = MapDefinition("devmap", 4, 4, 4)
FAIL, RECREATE = MismatchPolicy.FAIL, MismatchPolicy.RECREATE


def jumping(name: str, version: int = 1, *, pin: str = "", slotted: bool = True) -> Object:
    """An object with a program array, kept under a name or for itself alone."""
    entry, _ = an_object(name)
    specs = (array_spec("jumps", slotted=slotted), array_spec(f"v{version}", slotted=False))
    pins = {"jumps": pin} if pin else {}
    return replace(entry, pin_maps=pins), source(specs, {"count": "cgroup_skb/egress"})


def with_data(layout: str | None, pin: str = "data") -> Object:
    entry, _ = an_object("one")
    spec = replace(data_spec(layout), value_size=16 if layout == WIDER_BSS else 8)
    file = source((spec,), {"count": "cgroup_skb/egress"})
    return replace(entry, pin_maps={".bss": pin}), file


def desire(
    *objects: Object, maps: Iterable[MapEntry] = (), previous: Desired | None = None
) -> Desired:
    entries = {entry.name: entry for entry, _ in objects}
    named = {entry.name: entry for entry in maps}
    manifest = Manifest("/etc/k.yaml", maps=named, objects=entries)
    files = {entry.name: file for entry, file in objects}
    return resolve(manifest, files, MACHINE, previous.objects if previous else None)


def filled(*programs: str) -> MapDefinition:
    refs = [ProgramRef(*name.split("/")) for name in programs]
    return replace(JUMPS, contents=contents(refs))


def kinds(desired: Desired, ideal: Ideal) -> list[str]:
    """What is done, a word for each action, a line for each refusal."""
    look(desired, ideal)
    made = plan(desired, ideal.observe(desired))
    return [*(type(action).__name__ for action in made.actions), *map(str, made.refusals)]


def test_an_array_is_renewed_with_its_object() -> None:
    ideal = machine(desire(jumping("one")))
    name = array_name("one", "jumps")
    assert look(desire(jumping("one", 2)), ideal)[:2] == [
        f"renew prog_array {name}: its ID {ideal.pins[name]} changes (object one is loaded)",
        f"load object one, with maps {name} (its file or settings changed)",
    ]


def test_an_object_that_uses_and_fills_an_array_that_a_held_one_uses() -> None:
    """It is held back, too: it would go on with a mix. It is named twice: as user and filler."""
    maps = [MapEntry("jumps", FAIL, filled("two/count"))]
    first = (jumping("one", pin="jumps"), jumping("two", pin="jumps"))
    good = desire(*first, maps=maps)
    ideal = machine(good)
    entry, _ = first[0]
    desired = desire(
        (entry, "the file is empty"), jumping("two", 2, pin="jumps"), maps=maps, previous=good
    )
    assert look(desired, ideal) == [
        "object one: the file is empty",
        "object two: object one, with which it shares jumps, is held back",
    ]


def test_users_come_along_when_a_filler_changes() -> None:
    maps = [MapEntry("jumps", FAIL, filled("two/count"))]
    user = jumping("one", pin="jumps", slotted=False)
    ideal = machine(desire(user, an_object("two"), maps=maps))
    desired = desire(user, an_object("two", version=2), maps=maps)
    (change,) = plan(desired, ideal.observe(desired)).changes
    assert [load.reason for load in change.loads] == [
        "program array jumps is renewed",
        "its file or settings changed",
    ]
    assert [type(action) for action in change.maps] == [RenewMap]
    look(desired, ideal)


def test_an_array_that_gets_another_name_is_renewed() -> None:
    """Its users have a new setting, so they are loaded: into slots that others run on?"""
    ideal = machine(desire(jumping("one", pin="jumps")))
    map_id = ideal.pins["jumps"]
    desired = desire(
        jumping("one", pin="leaps"), maps=[MapEntry("leaps", FAIL, rename_from="jumps")]
    )
    assert look(desired, ideal)[0] == (
        f"renew prog_array leaps: renamed from jumps, its ID {map_id} changes"
        " (object one is loaded)"
    )


def test_an_array_that_nothing_changes_is_only_renamed() -> None:
    maps = [MapEntry("jumps", FAIL, filled("one/count"))]
    ideal = machine(desire(an_object("one"), maps=maps))
    renamed = [MapEntry("leaps", FAIL, filled("one/count"), rename_from="jumps")]
    desired = desire(an_object("one"), maps=renamed)
    assert kinds(desired, ideal) == [RenameMap.__name__]


def test_a_new_array_whose_filler_is_missing_is_not_made() -> None:
    entry, _ = an_object("two")
    maps = [MapEntry("jumps", FAIL, filled("two/count"))]
    desired = desire(an_object("one"), (entry, "the file is empty"), maps=maps)
    assert look(desired, machine())[-2:] == [
        "map jumps: entry 0: program two/count is not loaded (the file is empty)",
        "object two: the file is empty",
    ]


def outer(*names: str, enforce: bool = False) -> MapEntry:
    refs = [MapRef(name) for name in names]
    return MapEntry("tables", FAIL, replace(TABLES, contents=contents(refs)), enforce=enforce)


def test_a_map_of_maps_is_not_made_without_its_inner_map() -> None:
    ideal = machine()
    ideal.faults["a"] = "a program is pinned there"
    desired = desire(maps=[MapEntry("a", FAIL, HASH), outer("a")])
    assert look(desired, ideal) == [
        "map a: a program is pinned there",
        "map tables: entry 0: there is no map a (a program is pinned there)",
    ]


def test_a_slot_whose_map_is_missing_stops_no_other() -> None:
    entries = [MapEntry("a", FAIL, HASH), MapEntry("b", FAIL, HASH)]
    desired = desire(maps=[*entries, outer("a", "b", enforce=True)])
    ideal = machine(desired)
    ideal.contents[ideal.pins["tables"]] = {}
    del ideal.pins["a"], ideal.remembered["a"]
    ideal.faults["a"] = "a program is pinned there"
    assert look(desired, ideal) == [
        "write entries of map tables: 1 (not as in the manifest)",
        "map a: a program is pinned there",
        "entry 0 of map tables: there is no map a (a program is pinned there)",
    ]


def test_a_recreated_inner_map_is_one_change_with_its_slot() -> None:
    inner = MapEntry("a", RECREATE, HASH)
    ideal = machine(desire(maps=[inner, outer("a")]))
    larger = replace(inner, definition=replace(HASH, max_entries=32))
    desired = desire(maps=[larger, outer("a")])
    (change,) = plan(desired, ideal.observe(desired)).changes
    assert [str(write) for write in change.writes] == [
        "write entries of map tables: 0 (what they name is new)"
    ]
    look(desired, ideal)


def ports(*, enforce: bool) -> MapEntry:
    refs = [InterfaceRef("eth0"), InterfaceRef("eth9")]
    return MapEntry("ports", FAIL, replace(PORTS, contents=contents(refs)), enforce=enforce)


def test_an_interface_that_is_not_there_stops_nothing() -> None:
    desired = desire(maps=[ports(enforce=True)])
    ideal = machine()
    ideal.targets[InterfaceTarget("eth9")] = "there is no interface eth9"
    missing = "entry 1 of map ports: there is no interface eth9"
    assert look(desired, ideal) == [
        "create map ports (devmap, key 4 B, value 4 B, max_entries 4)",
        f"{missing}; a reload writes it when it is there",
    ]
    ideal.apply(plan(desired, ideal.observe(desired)), desired)
    assert look(desired, ideal) == [missing]
    assert drift(plan(desired, ideal.observe(desired)))["entries_differ"] == 1
    ideal.targets[InterfaceTarget("eth9")] = 29
    assert look(desired, ideal) == ["write entries of map ports: 1 (not as in the manifest)"]


def test_without_enforce_an_interface_that_comes_later_is_left_alone() -> None:
    desired = desire(maps=[ports(enforce=False)])
    ideal = machine()
    ideal.targets[InterfaceTarget("eth9")] = "there is no interface eth9"
    assert look(desired, ideal)[1:] == ["entry 1 of map ports: there is no interface eth9"]
    ideal.apply(plan(desired, ideal.observe(desired)), desired)
    ideal.targets[InterfaceTarget("eth9")] = 29
    assert look(desired, ideal) == []


def test_enforced_entries_of_a_map_that_lost_its_pin() -> None:
    entry = MapEntry("a", FAIL, replace(HASH, contents=contents([bytes(8)])), enforce=True)
    desired = desire(maps=[entry])
    ideal = machine(desired)
    ideal.contents[ideal.pins.pop("a")] = {0: b"another!"}
    assert kinds(desired, ideal) == ["RestoreMap", "WriteEntries"]


def test_global_data_is_renewed_and_renamed() -> None:
    ideal = machine(desire(with_data(BSS)))
    map_id = ideal.pins["data"]
    maps = [MapEntry("state", FAIL, rename_from="data")]
    (line, *_) = look(desire(with_data(WIDER_BSS, "state"), maps=maps), ideal)
    assert line.startswith(
        f"renew global data state: renamed from data, its ID {map_id} changes, copied by name:"
        " events"
    )


def test_global_data_without_a_layout_is_left_alone() -> None:
    ideal = machine(desire(with_data(BSS)))
    ideal.layouts[ideal.pins["data"]] = (None, None)
    refused, _ = look(desire(with_data(WIDER_BSS)), ideal)
    assert "the pinned map has no BTF that says which variable is where" in refused


def test_global_data_that_somebody_exchanged_is_taken_up() -> None:
    """libbpf calls it by object and section."""
    desired = desire(with_data(BSS))
    ideal = machine(desired)
    spec = desired.maps["data"].spec
    ideal.pins["data"] = ideal.make_map(spec, "one.bss")
    assert "somebody pinned another map as data" in look(desired, ideal)[0]


def test_a_map_is_not_renamed_under_an_object_that_knows_its_former_name() -> None:
    good = desire(an_object("one", "counts"))
    ideal = machine(good)
    entry, _ = an_object("one")
    entry = replace(entry, pin_maps={"counts": "connections"})
    maps = [MapEntry("connections", FAIL, HASH, rename_from="counts")]
    desired = desire((entry, "the file is empty"), maps=maps, previous=good)
    assert look(desired, ideal) == [
        "map connections: it cannot be renamed from counts while one cannot be loaded again",
        "object one: the file is empty",
    ]
    declared = [MapEntry("connections", FAIL, rename_from="counts")]
    assert look(desire((entry, "it is empty"), maps=declared, previous=good), ideal) == [
        "object one: it is empty"
    ]


def test_arrays_that_are_left_over_go_but_not_those_of_a_held_object() -> None:
    ideal = machine(desire(jumping("one"), jumping("two")))
    entry, _ = jumping("one")
    desired = desire((entry, "the file is empty"))
    assert [line for line in look(desired, ideal) if "array" in line] == [
        f"unpin program array {array_name('two', 'jumps')} (not in the manifest any more)"
    ]
    assert held(plan(desired, ideal.observe(desired))) == {"one"}
    assert escape("one") in ideal.programs
