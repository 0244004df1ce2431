"""The planner: each rule by a small case, and its promises over random situations."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings

from bpfkeeperd.actions import (
    Attach,
    CreateMap,
    Detach,
    LoadObject,
    Plan,
    RecreateMap,
    RemoveArray,
    RemovePrograms,
    RenameMap,
    RenewMap,
    RestoreLink,
    RestoreMap,
    Swap,
    WriteEntries,
)
from bpfkeeperd.desired import Desired, ObjectSource, WantedMap
from bpfkeeperd.entries import (
    AttachEntry,
    CgroupTarget,
    InterfaceTarget,
    Manifest,
    MapDefinition,
    MapEntry,
    MismatchPolicy,
    ObjectEntry,
    ProgramEntry,
    Target,
    XdpMode,
)
from bpfkeeperd.hooks import LINK_TYPES
from bpfkeeperd.layout import LinkKey, escape, is_array_name
from bpfkeeperd.observed import ObservedLink
from bpfkeeperd.plan import plan, serves
from bpfkeeperd.resolve import resolve
from bpfkeeperd.state import ProgramInfo
from tests.unit.ideal import Ideal, fits, runs_on_the_kept_maps
from tests.unit.situations import MACHINE, Situation, map_spec, situations, source

WEB = CgroupTarget("web.slice")
DB = CgroupTarget("db.slice")
ETH0 = InterfaceTarget("eth0")
RECREATE = MismatchPolicy.RECREATE

Object = tuple[ObjectEntry, ObjectSource | str]


def an_object(
    name: str,
    *maps: str,
    at: Iterable[Target] = (WEB,),
    program: str = "count",
    section: str = "cgroup_skb/egress",
    max_entries: int = 16,
    version: int = 1,
    file: ObjectSource | str | None = None,
) -> Object:
    """An object with one program; another version is another file that declares the same."""
    entry = ObjectEntry(
        name,
        f"/lib/{name}.o",
        pin_maps={map_name: map_name for map_name in maps},
        programs={program: ProgramEntry(program, tuple(map(AttachEntry, at)))},
    )
    specs = [map_spec(map_name, max_entries) for map_name in maps]
    private = map_spec(f"version{version}")
    return entry, file or source((*specs, private), {program: section})


def desire(
    *objects: Object,
    recreate: Iterable[str] = (),
    own: Iterable[str] = (),
    previous: Desired | None = None,
) -> Desired:
    definition = MapDefinition("hash", 4, 8, 16)
    maps = {name: MapEntry(name, RECREATE) for name in recreate}
    maps |= {name: MapEntry(name, MismatchPolicy.FAIL, definition) for name in own}
    entries = {entry.name: entry for entry, _ in objects}
    manifest = Manifest("/etc/k.yaml", maps=maps, objects=entries)
    good = previous.objects if previous else None
    return resolve(manifest, {entry.name: file for entry, file in objects}, MACHINE, good)


def machine(desired: Desired | None = None) -> Ideal:
    """A machine on which this was applied, or nothing yet."""
    ideal = Ideal(targets={WEB: 10, DB: 11, ETH0: 20})
    ideal.targets |= {replace(ETH0, mode=mode): 20 for mode in XdpMode}
    if desired:
        ideal.apply(plan(desired, ideal.observe(desired)), desired)
        assert look(desired, ideal) == []
    return ideal


def look(desired: Desired, ideal: Ideal) -> list[str]:
    """The plan, a line for each action and refusal."""
    made = plan(desired, ideal.observe(desired))
    lines = [str(item) for item in (*made.actions, *made.refusals)]
    check(Situation(desired, ideal))
    return lines


def held(plan: Plan) -> set[str]:
    return {refusal.name for refusal in plan.refusals if refusal.kind == "object"}


NEW_MAP = "create map {} (hash, key 4 B, value 8 B, max_entries 16)"


def test_from_nothing_to_everything() -> None:
    desired = desire(an_object("one", "counts", at=[WEB, DB]), an_object("two"), own=["settings"])
    assert look(desired, machine()) == [
        NEW_MAP.format("settings"),
        NEW_MAP.format("counts"),
        "load object one, with maps counts (not loaded yet)",
        "attach one/count at cgroup_skb/egress of cgroup:web.slice (not attached yet)",
        "attach one/count at cgroup_skb/egress of cgroup:db.slice (not attached yet)",
        "load object two (not loaded yet)",
        "attach two/count at cgroup_skb/egress of cgroup:web.slice (not attached yet)",
    ]


def test_nothing_to_do() -> None:
    desired = desire(an_object("one", "counts", "flows"))
    made = plan(desired, machine(desired).observe(desired))
    assert made == Plan(kept_maps=("counts", "flows"))


def test_a_new_file_is_swapped_in_and_keeps_the_maps() -> None:
    ideal = machine(desire(an_object("one", "counts")))
    desired = desire(an_object("one", "counts", version=2))
    made = plan(desired, ideal.observe(desired))
    assert made.kept_maps == ("counts",)
    (change,) = made.changes
    assert list(map(type, change.actions)) == [LoadObject, Swap, RemovePrograms]
    assert look(desired, ideal)[:2] == [
        "load object one, with maps counts (its file or settings changed)",
        "swap the program of one/count at cgroup_skb/egress of cgroup:web.slice"
        " (its file or settings changed)",
    ]


def test_force_loads_what_is_loaded() -> None:
    desired = desire(an_object("one", "counts"), an_object("two"))
    ideal = machine(desired)
    made = plan(desired, ideal.observe(desired), force=True)
    assert [str(load.reason) for change in made.changes for load in change.loads] == ["forced"] * 2
    assert made.kept_maps == ("counts",) and not made.removals
    check(Situation(desired, ideal), force=True)


def test_a_map_that_differs_holds_its_users_back_and_nobody_else() -> None:
    ideal = machine(desire(an_object("one", "counts"), an_object("two", "flows")))
    desired = desire(
        an_object("one", "counts", max_entries=32), an_object("two", "flows", version=2)
    )
    assert look(desired, ideal) == [
        "load object two, with maps flows (its file or settings changed)",
        "swap the program of two/count at cgroup_skb/egress of cgroup:web.slice"
        " (its file or settings changed)",
        f"unload programs {_digest(ideal, 'two')} of object two (replaced)",
        "map counts: the pinned map (ID 101) differs: max_entries is 16, wanted is 32."
        " Nothing is touched (on_mismatch: fail); on_mismatch: recreate would make a new map and"
        " drop the contents",
        "object one: held back by map counts, see there",
    ]


def _digest(ideal: Ideal, name: str) -> str:
    (digest,) = ideal.programs[name]
    return digest[:12]


def test_a_layout_that_differs_is_a_map_that_differs() -> None:
    desired = desire(an_object("one", "counts"))
    ideal = machine(desired)
    ideal.layouts[ideal.pins["counts"]] = (None, "0:64:int:bytes")
    (refused, _) = look(desired, ideal)
    assert "value layout: bytes (int, 8 bytes) at byte 0, wanted is packets (int" in refused


def test_a_layout_is_compared_whoever_declares_it() -> None:
    """The manifest's own definition of a map has no BTF, the object that uses it has."""
    desired = desire(an_object("one", "counts"), own=["counts"])
    ideal = machine(desired)
    ideal.layouts[ideal.pins["counts"]] = (None, "0:64:int:bytes")
    assert [line.split(":")[0] for line in look(desired, ideal)] == ["map counts", "object one"]


def test_a_recreated_map_takes_all_its_users_along_in_one_change() -> None:
    first = (an_object("one", "counts"), an_object("two", "counts"), an_object("three"))
    ideal = machine(desire(*first))
    changed = [an_object(name, "counts", max_entries=32) for name in ("one", "two")]
    desired = desire(*changed, an_object("three"), recreate=["counts"])
    made = plan(desired, ideal.observe(desired))
    (change,) = made.changes
    assert str(change.maps[0]) == (
        "recreate map counts: ALL ITS CONTENTS ARE LOST, its ID 101 changes"
        " (max_entries is 16, wanted is 32)"
    )
    assert [load.object.name for load in change.loads] == ["one", "two"]
    assert [type(link) for link in change.links] == [Swap, Swap]
    assert made.kept_maps == ()
    check(Situation(desired, ideal))


def test_a_recreated_map_takes_along_a_user_that_did_not_change() -> None:
    desired = desire(an_object("one", "counts"), recreate=["counts"])
    ideal = machine(desired)
    ideal.pins["counts"] = ideal.make_map(map_spec("counts", 99), "counts")
    lines = look(desired, ideal)
    assert lines[1] == "load object one, with maps counts (map counts is recreated)"


def test_objects_that_share_no_map_are_changes_of_their_own() -> None:
    desired = desire(
        an_object("one", "counts"), an_object("two", "flows"), an_object("three", "counts", "state")
    )
    made = plan(desired, machine().observe(desired))
    assert [[load.object.name for load in change.loads] for change in made.changes] == [
        ["one", "three"],
        ["two"],
    ]
    assert [[action.map.name for action in change.maps] for change in made.changes] == [
        ["counts", "state"],
        ["flows"],
    ]


def test_holding_back_spreads_through_a_map_that_would_be_exchanged() -> None:
    """``one`` cannot go on, so ``flows`` cannot be exchanged under it, so ``two`` cannot either."""
    ideal = machine(desire(an_object("one", "counts", "flows"), an_object("two", "flows")))
    desired = desire(
        an_object("one", "counts", "flows", max_entries=32),
        an_object("two", "flows", max_entries=32),
        recreate=["flows"],
    )
    assert [line.split(": ")[:2] for line in look(desired, ideal)] == [
        ["map counts", "the pinned map (ID 101) differs"],
        ["map flows", "object one, which uses it, is held back"],
        ["object one", "held back by map counts, see there"],
        ["object two", "held back by map flows, see there"],
    ]


def test_holding_back_does_not_spread_through_a_map_that_stays() -> None:
    ideal = machine(desire(an_object("one", "counts", "flows"), an_object("two", "flows")))
    ideal.pins["counts"] = ideal.make_map(map_spec("counts", 99), "counts")
    desired = desire(
        an_object("one", "counts", "flows", version=2), an_object("two", "flows", version=2)
    )
    lines = look(desired, ideal)
    assert "load object two, with maps flows (its file or settings changed)" in lines
    assert not any(line.startswith("object two") for line in lines)


def test_an_object_that_is_not_loaded_keeps_no_map_from_the_others() -> None:
    ideal = machine(desire(an_object("two", "flows", max_entries=8)))
    desired = desire(
        an_object("one", "counts", "flows"), an_object("two", "flows"), recreate=["flows"]
    )
    ideal.faults["counts"] = "a program is pinned there"
    lines = look(desired, ideal)
    assert lines[0].startswith("recreate map flows")
    assert lines[-2:] == [
        "map counts: a program is pinned there",
        "object one: held back by map counts, see there",
    ]


@pytest.mark.parametrize("known", [True, False], ids=["known", "after a restart"])
def test_a_file_that_cannot_be_used_changes_nothing_of_the_object(known: bool) -> None:
    good = desire(an_object("one", "counts", at=[WEB, DB]))
    ideal = machine(good)
    broken = an_object("one", "counts", at=[DB], file="the file is empty")
    desired = desire(broken, previous=good if known else None)
    assert look(desired, ideal) == ["object one: the file is empty"]


def test_without_a_usable_file_what_is_loaded_is_still_attached() -> None:
    good = desire(an_object("one", "counts"))
    ideal = machine(good)
    change_link(ideal, pinned=True, fields={"target_id": 0})
    desired = desire(an_object("one", "counts", at=[WEB, DB], file="it is empty"), previous=good)
    assert look(desired, ideal) == [
        f"attach {ATTACHMENT} (its target came back or the link was detached)",
        "attach one/count at cgroup_skb/egress of cgroup:db.slice (not attached yet)",
        "object one: it is empty",
    ]


def test_without_a_usable_file_and_programs_nothing_can_be_attached() -> None:
    good = desire(an_object("one", "counts"))
    ideal = machine(good)
    ideal.programs.clear()
    ideal.links.clear()
    desired = desire(an_object("one", "counts", file="it is empty"), previous=good)
    assert look(desired, ideal) == ["object one: it is empty"]


@pytest.mark.parametrize("known", [True, False], ids=["known", "after a restart"])
def test_a_map_is_not_exchanged_under_an_object_whose_file_cannot_be_used(known: bool) -> None:
    good = desire(an_object("one", "counts"), an_object("two", "counts"))
    ideal = machine(good)
    desired = desire(
        an_object("one", "counts", file="the file is empty"),
        an_object("two", "counts", max_entries=32),
        recreate=["counts"],
        previous=good if known else None,
    )
    assert look(desired, ideal) == [
        "map counts: object one, which uses it, is held back",
        "object one: the file is empty",
        "object two: held back by map counts, see there",
    ]


def test_a_map_that_is_gone_is_not_made_anew_under_a_held_object() -> None:
    """It would go on with the old one; what it counts there nobody would see."""
    ideal = machine(desire(an_object("one", "counts", "flows"), an_object("two", "flows")))
    del ideal.pins["flows"], ideal.remembered["flows"]
    ideal.faults["counts"] = "a program is pinned there"
    del ideal.pins["counts"], ideal.remembered["counts"]
    desired = desire(an_object("one", "counts", "flows"), an_object("two", "flows"))
    assert look(desired, ideal)[:2] == [
        "map counts: a program is pinned there",
        "map flows: object one, which uses it, is held back",
    ]


def test_a_lost_map_is_restored_when_a_held_object_runs_on_it() -> None:
    """Though it differs, and might else be recreated."""
    ideal = machine(desire(an_object("one", "counts", "flows"), an_object("two", "flows")))
    map_id = ideal.pins.pop("flows")
    desired = desire(
        an_object("one", "counts", "flows", max_entries=32),
        an_object("two", "flows", max_entries=32),
        recreate=["flows"],
    )
    lines = look(desired, ideal)
    assert lines[0] == f"restore the pin of map flows (ID {map_id}, contents kept)"
    assert lines[2] == "map flows: object one, which uses it, is held back"


def test_a_held_object_keeps_a_link_whose_pin_is_gone_and_that_is_not_wanted() -> None:
    ideal = machine(desire(an_object("one", "counts")))
    change_link(ideal, pinned=False, fields={})
    desired = desire(an_object("one", "counts", at=[DB], max_entries=32))
    assert look(desired, ideal)[0].startswith("restore the pin of one/count at cgroup:web.slice")


def test_a_map_is_not_exchanged_under_what_a_held_object_still_runs() -> None:
    """The new file of ``one`` has given up ``flows``; what runs of it, and goes on, has not."""
    ideal = machine(desire(an_object("one", "counts", "flows"), an_object("two", "flows")))
    desired = desire(
        an_object("one", "counts", max_entries=32),
        an_object("two", "flows", max_entries=32),
        recreate=["flows"],
    )
    assert "map flows: object one, which uses it, is held back" in look(desired, ideal)


def test_a_lost_pin_is_restored() -> None:
    desired = desire(an_object("one", "counts"))
    ideal = machine(desired)
    map_id = ideal.pins.pop("counts")
    assert look(desired, ideal) == [f"restore the pin of map counts (ID {map_id}, contents kept)"]


def test_a_lost_map_that_differs_is_restored_and_refused() -> None:
    ideal = machine(desire(an_object("one", "counts")))
    del ideal.pins["counts"]
    lines = look(desire(an_object("one", "counts", max_entries=32)), ideal)
    assert lines[0] == "restore the pin of map counts (ID 101, contents kept)"
    assert [line.split(":")[0] for line in lines[1:]] == ["map counts", "object one"]


def test_a_lost_map_that_differs_and_may_be_recreated_is_not_restored() -> None:
    ideal = machine(desire(an_object("one", "counts")))
    del ideal.pins["counts"]
    desired = desire(an_object("one", "counts", max_entries=32), recreate=["counts"])
    assert look(desired, ideal)[0].startswith("create map counts")


def test_a_map_that_is_gone_is_made_anew_with_all_its_users() -> None:
    desired = desire(an_object("one", "counts"), an_object("two", "counts"))
    ideal = machine(desired)
    del ideal.pins["counts"], ideal.remembered["counts"]
    lines = look(desired, ideal)
    assert [line for line in lines if not line.startswith("swap")] == [
        NEW_MAP.format("counts"),
        "load object one, with maps counts (map counts is new)",
        "load object two, with maps counts (map counts is new)",
    ]


@pytest.mark.parametrize("kernel_name", ["counts", "my_counts"])
def test_a_map_that_somebody_exchanged_is_taken_up(kernel_name: str) -> None:
    """Whatever the maker of the old one called it."""
    other = ObjectEntry("other", "/lib/other.o", pin_maps={"my_counts": "counts"})
    desired = desire(
        (other, source((map_spec("my_counts"),), {"count": "sockops"})), an_object("one", "counts")
    )
    ideal = machine(desired)
    old = ideal.pins["counts"]
    ideal.maps[old] = replace(ideal.maps[old], name=kernel_name)
    ideal.pins["counts"] = ideal.make_map(map_spec("counts"), "counts")
    reason = (
        "(somebody pinned another map as counts: it moves there, and the contents of map ID"
        f" {old} are given up)"
    )
    assert [line for line in look(desired, ideal) if line.startswith("load")] == [
        f"load object other, with maps counts {reason}",
        f"load object one, with maps counts {reason}",
    ]


def test_a_program_whose_pin_is_gone_is_loaded_again() -> None:
    desired = desire(an_object("one", "counts"))
    ideal = machine(desired)
    (digest,) = ideal.programs["one"]
    ideal.programs["one"][digest].clear()
    assert look(desired, ideal)[0] == (
        "load object one, with maps counts (not all of its programs are pinned)"
    )


LINK = ("one", "count", escape("cgroup:web.slice"))


def change_link(ideal: Ideal, pinned: bool, fields: dict[str, int]) -> None:
    link = ideal.links[LINK]
    ideal.links[LINK] = ObservedLink(replace(link.info, **fields), pinned=pinned)


ATTACHMENT = "one/count at cgroup_skb/egress of cgroup:web.slice"


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({"prog_id": 9}, f"swap the program of {ATTACHMENT} (it runs program ID 9, not the kept"),
        ({"target_id": 0}, f"attach {ATTACHMENT} (its target came back or the link was detached)"),
        ({"target_id": 5}, f"attach {ATTACHMENT} (its target came back"),
        ({"attach_type": 0}, f"attach {ATTACHMENT} (its target came back"),
        ({"type": 6}, f"attach {ATTACHMENT} (its target came back"),
    ],
)
@pytest.mark.parametrize("pinned", [True, False], ids=["pinned", "not pinned"])
def test_a_link_that_is_not_as_it_should_be(
    fields: dict[str, int], line: str, pinned: bool
) -> None:
    desired = desire(an_object("one", "counts"))
    ideal = machine(desired)
    change_link(ideal, pinned, fields)
    lines = look(desired, ideal)
    if not pinned and "prog_id" in fields:
        assert lines.pop(0).startswith("restore the pin of")
    (only,) = lines
    assert only.startswith(line)


def test_a_link_whose_pin_is_gone_is_pinned_again() -> None:
    desired = desire(an_object("one", "counts"))
    ideal = machine(desired)
    change_link(ideal, pinned=False, fields={})
    assert look(desired, ideal) == [
        f"restore the pin of one/count at cgroup:web.slice (link ID {ideal.links[LINK].info.id})"
    ]


def test_a_link_that_is_gone_is_attached() -> None:
    desired = desire(an_object("one", "counts"))
    ideal = machine(desired)
    del ideal.links[LINK]
    assert look(desired, ideal) == [f"attach {ATTACHMENT} (not attached yet)"]


@pytest.mark.parametrize(
    ("field", "value"), [("target_id", 11), ("target_id", 0), ("type", 6), ("attach_type", 0)]
)
def test_serves(field: str, value: int) -> None:
    desired = desire(an_object("one"))
    (attachment,) = desired.objects["one"].attachments
    info = machine(desired).links[LINK].info
    assert serves(info, attachment, 10)
    assert not serves(replace(info, **{field: value}), attachment, 10)
    assert not serves(info, attachment, None)


def test_a_target_that_is_not_there_stops_nothing_else() -> None:
    desired = desire(an_object("one", "counts", at=[WEB, DB]))
    ideal = machine()
    ideal.targets[WEB] = "there is no cgroup /sys/fs/cgroup/web.slice"
    assert look(desired, ideal)[1:] == [
        "load object one, with maps counts (not loaded yet)",
        "attach one/count at cgroup_skb/egress of cgroup:db.slice (not attached yet)",
        f"attachment {ATTACHMENT}: there is no cgroup /sys/fs/cgroup/web.slice",
    ]


def test_what_leaves_the_manifest_goes_and_its_maps_stay() -> None:
    ideal = machine(desire(an_object("one", "counts"), an_object("two.bpf", "flows")))
    digest = _digest(ideal, escape("two.bpf"))
    desired = desire(an_object("one", "counts"))
    made = plan(desired, ideal.observe(desired))
    assert look(desired, ideal) == [
        "detach two.bpf/count at cgroup:web.slice (not in the manifest any more)",
        f"unload programs {digest} of object two.bpf (not in the manifest any more)",
    ]
    assert made.changes == () and isinstance(made.removals[1], RemovePrograms)
    assert made.removals[1].last


def test_an_attachment_that_leaves_the_manifest_goes() -> None:
    ideal = machine(desire(an_object("one", at=[WEB, DB])))
    assert look(desire(an_object("one", at=[DB])), ideal) == [
        "detach one/count at cgroup:web.slice (not in the manifest any more)"
    ]


def test_a_target_is_left_only_when_the_new_one_is_attached() -> None:
    """They are one change: when the first fails, the second is not done."""
    ideal = machine(desire(an_object("one", at=[WEB])))
    desired = desire(an_object("one", at=[DB]))
    made = plan(desired, ideal.observe(desired))
    (change,) = made.changes
    assert list(map(type, change.actions)) == [Attach, Detach]
    assert made.removals == ()


def test_a_renamed_program_takes_over_the_link() -> None:
    """Nothing is missed, and an XDP hook takes no second program."""
    before = an_object("one", at=[ETH0], section="xdp")
    ideal = machine(desire(before))
    (link,) = ideal.links.values()
    desired = desire(an_object("one", at=[ETH0], section="xdp", program="renamed"))
    made = plan(desired, ideal.observe(desired))
    (change,) = made.changes
    assert list(map(type, change.actions)) == [LoadObject, Swap, RemovePrograms]
    (swap,) = change.links
    assert isinstance(swap, Swap) and swap.link == link.info
    assert swap.key == ("one", "count", "interface:eth0")
    check(Situation(desired, ideal))


def test_an_object_takes_over_the_link_of_one_that_leaves() -> None:
    ideal = machine(desire(an_object("old")))
    lines = look(desire(an_object("one")), ideal)
    assert lines[:2] == [
        "load object one (not loaded yet)",
        f"swap the program of {ATTACHMENT} (it takes over a link)",
    ]
    assert len(lines) == 3 and lines[2].startswith("unload programs")


@pytest.mark.parametrize("modes", [("auto", "generic"), ("native", "generic"), ("native", "auto")])
def test_a_link_does_not_change_its_xdp_mode(modes: tuple[str, str]) -> None:
    """And the interface takes no second one: what runs there goes on."""
    one, other = (
        desire(an_object("one", at=[replace(ETH0, mode=XdpMode(mode))], section="xdp"))
        for mode in modes
    )
    for before, after in ((one, other), (other, one)):
        (line,) = look(after, machine(before))
        assert line.startswith("attachment one/count at xdp of interface:eth0")
        assert "the interface runs XDP in another mode" in line


def test_a_target_that_is_not_there_takes_down_nothing_that_runs() -> None:
    """A mistyped target: the former one is served until the new one is there."""
    ideal = machine(desire(an_object("one", at=[WEB])))
    desired = desire(an_object("one", at=[DB]))
    ideal.targets[DB] = "there is no cgroup /sys/fs/cgroup/bd.slice"
    (line,) = look(desired, ideal)
    assert line.startswith("attachment one/count at cgroup_skb/egress of cgroup:db.slice: there")
    ideal.targets[DB] = 11
    assert look(desired, ideal) == [
        "attach one/count at cgroup_skb/egress of cgroup:db.slice (not attached yet)",
        "detach one/count at cgroup:web.slice (not in the manifest any more)",
    ]


def test_a_target_that_is_not_there_keeps_no_link_from_being_taken_over() -> None:
    """Nothing runs twice: the same cgroup by another path takes over the link there is."""
    same = CgroupTarget("/sys/fs/cgroup/web.slice")
    ideal = machine(desire(an_object("one", at=[WEB])))
    ideal.targets |= {DB: "there is no cgroup /sys/fs/cgroup/bd.slice", same: ideal.targets[WEB]}
    lines = look(desire(an_object("one", at=[DB, same])), ideal)
    assert lines[0] == (
        "swap the program of one/count at cgroup_skb/egress of cgroup:/sys/fs/cgroup/web.slice"
        " (it takes over a link)"
    )


def test_a_dead_link_is_not_taken_over() -> None:
    ideal = machine(desire(an_object("old")))
    for key, link in ideal.links.items():
        ideal.links[key] = ObservedLink(replace(link.info, target_id=0))
    assert f"attach {ATTACHMENT} (not attached yet)" in look(desire(an_object("one")), ideal)


def test_a_link_is_taken_over_once() -> None:
    ideal = machine(desire(an_object("old")))
    made = plan(desired := desire(an_object("one"), an_object("two")), ideal.observe(desired))
    kinds = Counter(type(link) for change in made.changes for link in change.links)
    assert kinds == {Swap: 1, Attach: 1}
    check(Situation(desired, ideal))


# Promises


def check_held_objects(before: Ideal, after: Ideal, desired: Desired, names: set[str]) -> None:
    """They keep their programs, their links, and the maps that these run on."""
    latter = {wanted.former: wanted.name for wanted in desired.maps.values() if wanted.former}
    for name in map(escape, names):
        assert after.programs.get(name) == before.programs.get(name)
        for key, link in before.links.items():
            alive = key[0] == name and link.info.target_id  # one that is dead serves nobody
            if alive and not (_can_be_repaired(before, desired, key) and key in after.links):
                assert after.links[key] == ObservedLink(link.info), "pinned, and not touched"
        used = _used(before.programs.get(name, {}).values())
        for pin_name, map_id in (before.remembered | before.pins).items():
            if pin_name in before.pins or (pin_name in desired.maps.keys() - before.faults.keys()):
                kept = map_id in (
                    after.pins.get(pin_name),
                    after.pins.get(latter.get(pin_name, "")),
                )
                assert map_id not in used or kept, (name, pin_name)
    for name, wanted_map in desired.maps.items():
        users = {user for user in names & {*wanted_map.users} if escape(user) in before.programs}
        there = {*before.remembered, *before.pins}
        if users and not {name, wanted_map.former} & there:
            assert name not in after.pins, "they would go on with the old one"


def _can_be_repaired(ideal: Ideal, desired: Desired, key: LinkKey) -> bool:
    """A wanted attachment of an object whose file cannot be used but whose program is loaded."""
    for wanted in desired.objects.values():
        loaded = ideal.programs.get(escape(wanted.name), {}).get(wanted.digest, {})
        if wanted.fault and key[0] == escape(wanted.name) and key[1] in loaded:
            return key in desired.link_keys()
    return False


def _used(digests: Iterable[Mapping[str, ProgramInfo]]) -> set[int]:
    programs = (program for loaded in digests for program in loaded.values())
    return {map_id for program in programs for map_id in program.map_ids}


def check_maps(before: Ideal, after: Ideal, desired: Desired) -> None:
    """No pin goes; one is exchanged only where that is the policy and the map differs."""
    assert before.faults == after.faults
    formers = {wanted.former: wanted.name for wanted in desired.maps.values() if wanted.former}
    for pin_name, map_id in before.pins.items():
        name = pin_name if pin_name in after.pins else formers.get(pin_name, pin_name)
        if is_array_name(name) and name not in desired.maps:
            continue  # it goes with its object
        if after.pins[name] != map_id:
            wanted = desired.maps[name]
            if wanted.spec.internal:
                assert before.differing(wanted.spec, map_id)
            elif not (wanted.generational and not before.differing(wanted.spec, map_id)):
                assert wanted.policy is RECREATE
                assert before.differing(wanted.spec, map_id)
    for name, map_id in (before.remembered | before.pins).items():
        if name in desired.maps and not before.differing(desired.maps[name].spec, map_id):
            kept = name in before.faults or after.pins[name] == map_id
            assert kept or desired.maps[name].generational, "contents were lost"
    assert set(after.pins) - set(before.pins) <= set(desired.maps)


def check_objects(after: Ideal, desired: Desired, names: set[str]) -> None:
    """Those that are not held are loaded and run on what is pinned."""
    for wanted in desired.objects.values():
        if wanted.name not in names:
            digests = after.programs[escape(wanted.name)]
            assert set(digests) == {wanted.digest}
            assert set(digests[wanted.digest]) == set(map(escape, wanted.programs))
            assert all(fits(after, desired.maps[pin_name]) for pin_name in wanted.maps.values())
            assert runs_on_the_kept_maps(after, wanted)
    wanted_names = {escape(name) for name in (*desired.objects, *desired.faults)}
    assert set(after.programs) <= wanted_names, "what left the manifest goes"


def check_attachments(after: Ideal, desired: Desired, done: Plan) -> None:
    """What can be attached is; nothing else is, but for what stays until something can be."""
    names = held(done)
    refused = {refusal.name for refusal in done.refusals if refusal.kind == "attachment"}
    waiting = []
    for wanted in desired.objects.values():
        for attachment in wanted.attachments:
            repaired = _can_be_repaired(after, desired, attachment.key)
            if str(attachment) in refused:
                waiting.append(attachment)
            elif wanted.name not in names or repaired:
                link = after.links[attachment.key]
                assert link.pinned
                assert link.info.target_id == after.targets[attachment.target]
                assert link.info.attach_type == attachment.hook.attach_type
                assert link.info.type == LINK_TYPES[attachment.hook.kind]
                loaded = after.programs[attachment.key[0]][wanted.digest]
                assert link.info.prog_id == loaded[attachment.key[1]].id
    for key in after.links.keys() - desired.link_keys():
        info = after.links[key].info
        assert key[0] in map(escape, names) or any(
            key[:2] == attachment.key[:2]
            or serves(info, attachment, after.targets[attachment.target])
            for attachment in waiting
        ), "what left the manifest goes"


def check_nothing_without_need(before: Ideal, after: Ideal, desired: Desired) -> None:
    """What was as it should be is not touched."""
    for wanted in desired.objects.values():
        loaded = before.programs.get(escape(wanted.name), {}).get(wanted.digest, {})
        stays = all(
            after.pins.get(pin_name) == _alive(before, desired.maps[pin_name])
            for pin_name in wanted.maps.values()
        )
        if stays and set(loaded) == set(map(escape, wanted.programs)):
            kept = {**before.programs, escape(wanted.name): {wanted.digest: loaded}}
            machine = replace(before, programs=kept, pins=after.pins)
            if runs_on_the_kept_maps(machine, wanted):
                assert after.programs[escape(wanted.name)][wanted.digest] == loaded


def check_others_go_ahead(before: Ideal, desired: Desired, names: set[str]) -> None:
    """Who is held shares maps, at however many removes, with something that is really wrong."""
    trouble = {*desired.faults, *(name for name, one in desired.objects.items() if one.fault)}
    for name, wanted in desired.maps.items():
        map_id = _alive(before, wanted)
        differs = map_id and before.differing(wanted.spec, map_id)
        if name in before.faults or (differs and wanted.policy is not RECREATE):
            trouble.add(f"map {name}")
    neighbours = [
        {
            f"map {name}",
            *wanted.users,
            *_running_on(before, name),
            *wanted.fillers,
            *(f"map {part}" for part in wanted.parts),
        }
        for name, wanted in desired.maps.items()
    ]
    while more := {n for group in neighbours if group & trouble for n in group} - trouble:
        trouble |= more
    assert names <= trouble


def _running_on(ideal: Ideal, name: str) -> set[str]:
    """Objects of which something runs on the map of a name, in their file of now or not."""
    map_id = ideal.pins.get(name) or ideal.remembered.get(name)
    names = ("one", "two.bpf", "three")
    return {n for n in names if map_id in _used(ideal.programs.get(escape(n), {}).values())}


def check(situation: Situation, *, force: bool = False) -> Plan:
    """Applies the plan and sees whether it kept every promise."""
    before, after, desired = situation.ideal, situation.ideal.copy(), situation.desired
    first = plan(desired, before.observe(desired), force=force)
    after.apply(first, desired)
    second = plan(desired, after.observe(desired))
    if force and _lasting(second) != _lasting(first):
        # What nobody asks for any more is not held back for it, and the rest is cleared up.
        assert _lasting(second) < _lasting(first)
        last = after.copy()
        last.apply(second, desired)
        assert plan(desired, last.observe(desired)).actions == ()
    else:
        assert second.actions == () and _lasting(second) == _lasting(first)
    check_held_objects(before, after, desired, held(first))
    check_maps(before, after, desired)
    check_objects(after, desired, held(first))
    check_attachments(after, desired, first)
    for name in set(first.kept_maps) & desired.maps.keys():
        assert _alive(after, desired.maps[name]) == _alive(before, desired.maps[name])
    loads = {load.object.name for change in first.changes for load in change.loads}
    if force:
        assert loads == desired.objects.keys() - held(first)
    else:
        check_nothing_without_need(before, after, desired)
    check_others_go_ahead(before, desired, held(first))
    return first


def _lasting(done: Plan) -> set[tuple[str, str]]:
    """What is refused; an entry can be left out of a new map, and that is told once."""
    return {(one.kind, one.name) for one in done.refusals if one.kind != "entry"}


def _alive(ideal: Ideal, wanted: WantedMap) -> int | None:
    """The map that is pinned under a name or a former one, or that was."""
    for name in (wanted.name, wanted.former):
        if name in ideal.pins:
            return ideal.pins[name]
    return ideal.remembered.get(wanted.name)


EXAMPLES = 500
CLASSES = (
    *(kind.__name__ for kind in (RestoreMap, RestoreLink, CreateMap, RecreateMap, LoadObject)),
    *(kind.__name__ for kind in (Attach, Swap, Detach, RemovePrograms)),
    *(kind.__name__ for kind in (RenewMap, RenameMap, WriteEntries, RemoveArray)),
    "refused map",
    "refused object",
    "refused attachment",
    "refused entry",
    "renewed under another name",
    "follows a renewed array",
    "shares an array with a held object",
    "a slot is missing",
    "global data is renewed",
    "a slot is written with its map",
    "held through another object",
    "held object is loaded",
    "held object keeps a link that is not wanted",
    "former file remembered",
    "file never read, loaded",
    "objects in one change",
    "an unchanged object follows a new map",
    "takes over a link",
    "runs on a map without a pin",
    "half pinned",
    "restored and refused",
    "own map for nobody",
    "attached without a usable file",
    "another XDP mode",
    "a link waits for a target",
)


def classes(situation: Situation, done: Plan) -> set[str]:
    """What a random situation was good for."""
    desired, ideal = situation.desired, situation.ideal
    names = {escape(name) for name in held(done)}
    reasons = [refusal.reason for refusal in done.refusals]
    loads = [load for change in done.changes for load in change.loads]
    restored = {action.map.name for action in done.restores if isinstance(action, RestoreMap)}
    links = [link for change in done.changes for link in change.links]
    renewed = [
        action for change in done.changes for action in change.maps if isinstance(action, RenewMap)
    ]
    facts = {
        "renewed under another name": any(action.source for action in renewed),
        "follows a renewed array": any("array" in load.reason for load in loads),
        "shares an array with a held object": any("shares" in text for text in reasons),
        "a slot is missing": any(text.startswith("entry") for text in reasons),
        "global data is renewed": any(action.map.spec.internal for action in renewed),
        "a slot is written with its map": any(
            write.reason == "what they name is new"
            for change in done.changes
            for write in change.writes
        ),
        "held through another object": any("which uses it, is held" in text for text in reasons),
        "held object is loaded": bool(names & ideal.programs.keys()),
        "held object keeps a link that is not wanted": any(
            key[0] in names for key in ideal.links.keys() - desired.link_keys()
        ),
        "former file remembered": any(wanted.fault for wanted in desired.objects.values()),
        "file never read, loaded": bool({*map(escape, desired.faults)} & ideal.programs.keys()),
        "objects in one change": any(len(change.loads) > 1 for change in done.changes),
        "an unchanged object follows a new map": any("is new" in load.reason for load in loads),
        "takes over a link": any("takes over" in link.reason for link in links),
        "runs on a map without a pin": any("are given up" in load.reason for load in loads),
        "half pinned": any("not all" in load.reason for load in loads),
        "restored and refused": any(
            refusal.kind == "map" and refusal.name in restored for refusal in done.refusals
        ),
        "own map for nobody": any(change.maps and not change.loads for change in done.changes),
        "attached without a usable file": any(
            link.attachment.object in held(done) for link in links
        ),
        "another XDP mode": any("in another mode" in text for text in reasons),
        "a link waits for a target": bool(
            {key[0] for key in ideal.links.keys() - desired.link_keys()}
            & {escape(one.name.split("/")[0]) for one in done.refusals if one.kind == "attachment"}
        ),
    }
    return (
        {type(action).__name__ for action in done.actions}
        | {f"refused {refusal.kind}" for refusal in done.refusals}
        | {name for name, true in facts.items() if true}
    )


def test_promises() -> None:
    """Over random situations, which must have been of every class."""
    seen = Counter[str]()

    @settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
    @given(situations())
    def promises(situation: Situation) -> None:
        seen.update(classes(situation, check(situation)))
        check(situation, force=True)

    for _ in range(10):  # a rare class may need another round
        promises()
        if seen.keys() >= {*CLASSES}:
            break
    assert not [name for name in CLASSES if not seen[name]], "no situation was of these"
