"""The planner: each rule by a small case, and its promises over random situations."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest

from bpfkeeperd.actions import (
    Attach,
    Detach,
    LoadObject,
    Plan,
    RemovePrograms,
    Swap,
)
from bpfkeeperd.desired import Desired, ObjectSource
from bpfkeeperd.entries import (
    AttachEntry,
    Manifest,
    MapDefinition,
    MapEntry,
    MismatchPolicy,
    ObjectEntry,
    ProgramEntry,
    SwapChoice,
)
from bpfkeeperd.layout import escape
from bpfkeeperd.observed import ObservedLink
from bpfkeeperd.plan import plan, serves
from bpfkeeperd.resolve import resolve
from bpfkeeperd.targets import (
    CgroupTarget,
    InterfaceTarget,
    Target,
    TracepointTarget,
    XdpMode,
)
from tests.unit.ideal import Ideal
from tests.unit.promises import check
from tests.unit.situations import MACHINE, Situation, map_spec, source

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


def change_link(ideal: Ideal, pinned: bool, fields: dict[str, Any]) -> None:
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
    changed: dict[str, Any] = {field: value}
    assert not serves(replace(info, **changed), attachment, 10)
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


def test_a_stub_gets_its_new_name_before_other_links_are_made_on_it() -> None:
    """Else these would get one of their own, and the links on the former would stay behind."""
    switch, waking = TracepointTarget("sched/sched_switch"), TracepointTarget("sched/sched_waking")

    def exact(program: str, *at: Target) -> Desired:
        entry, file = an_object("one", at=at, program=program, section="tracepoint")
        programs = {
            name: replace(one, swap=SwapChoice.EXACT) for name, one in entry.programs.items()
        }
        return desire((replace(entry, programs=programs), file))

    ideal, before, now = machine(), exact("count", switch), exact("tally", waking, switch)
    ideal.targets |= {switch: 1, waking: 1}
    ideal.apply(plan(before, ideal.observe(before)), before)
    (change,) = plan(now, ideal.observe(now)).changes
    swap, attach = change.links
    assert isinstance(swap, Swap) and swap.stub == ("one", "count")
    assert isinstance(attach, Attach)
    check(Situation(now, ideal))
