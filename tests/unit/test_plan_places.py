"""The planner where places are shared: with stubs, with maps that are made anew, with others."""

from dataclasses import replace

from bpfkeeperd.actions import Attach, Change, Displace, LoadObject, Plan, RecreateMap, Swap
from bpfkeeperd.backoff import Backoff, Pace
from bpfkeeperd.desired import Attachment, Desired
from bpfkeeperd.entries import (
    AttachEntry,
    Content,
    MapDefinition,
    MapEntry,
    MismatchPolicy,
    ProgramRef,
    SwapChoice,
)
from bpfkeeperd.heal import Subject, heal
from bpfkeeperd.layout import array_name
from bpfkeeperd.observed import Foreign, ObservedLink
from bpfkeeperd.plan import plan
from bpfkeeperd.resolve import resolve
from bpfkeeperd.state import LinkInfo
from bpfkeeperd.targets import MapTarget, Target, TracepointTarget
from tests.unit import idealstubs
from tests.unit.ideal import Ideal
from tests.unit.situations import MACHINE, array_spec
from tests.unit.test_plan import Object, an_object, desire, machine

SWITCH = TracepointTarget("sched/sched_switch")
SOCKETS = MapTarget("sockets")


def with_attach(found: Object, *, swap: SwapChoice = SwapChoice.DEFAULT, take_over: bool) -> Object:
    entry, file = found
    programs = {
        name: replace(
            one,
            swap=swap,
            attach=tuple(AttachEntry(each.target, take_over=take_over) for each in one.attach),
        )
        for name, one in entry.programs.items()
    }
    return replace(entry, programs=programs), file


def exact(program: str, *at: Target) -> Desired:
    found = an_object("one", at=at, program=program, section="tracepoint")
    return desire(with_attach(found, swap=SwapChoice.EXACT, take_over=False))


def put(ideal: Ideal, at: Attachment, name: str = "count", tag: str = "another") -> Foreign:
    program = replace(ideal.make_program({}), name=name, tag=tag)
    link = LinkInfo(ideal.new_id(), program.id, 3, 10, at.hook.attach_type)
    ideal.foreign.append((at, Foreign(program, link)))
    return ideal.foreign[-1][1]


def look(desired: Desired, ideal: Ideal) -> Plan:
    return plan(desired, ideal.observe(desired))


def taking_over(*names: str) -> tuple[Desired, Ideal]:
    desired = desire(*(with_attach(an_object(name), take_over=True) for name in names))
    return desired, machine(desired)


def test_a_copy_beside_what_is_attached_is_displaced() -> None:
    desired, ideal = taking_over("one")
    other = put(ideal, desired.attachments[0])
    (action,) = look(desired, ideal).actions
    assert isinstance(action, Displace) and action.others == (other,)


def test_one_that_is_no_copy_is_left_alone_where_both_can_run() -> None:
    desired, ideal = taking_over("one")
    ideal.links.clear()
    put(ideal, desired.attachments[0], "firewall")
    (action,) = look(desired, ideal).actions
    assert isinstance(action, Attach) and action.displaced == ()


def test_two_attachments_take_over_one_link_once() -> None:
    desired, ideal = taking_over("one", "two")
    ideal.links.clear()
    other = put(ideal, desired.attachments[0])
    first, second = look(desired, ideal).actions
    assert isinstance(first, Attach) and isinstance(second, Attach)
    assert (first.displaced, second.displaced) == ((other,), ())


def test_a_program_that_stands_in_a_map_is_not_exchanged_for_theirs() -> None:
    entry, file = an_object("one")
    definition = MapDefinition(
        "prog_array", 4, 4, 4, contents=(Content(bytes(4), ProgramRef("one", "count"), text="0"),)
    )
    manifest = replace(
        desire((entry, file)).manifest,
        maps={"jumps": MapEntry("jumps", MismatchPolicy.FAIL, definition)},
    )
    desired = resolve(manifest, {"one": file}, MACHINE)
    ideal = machine(desired)
    ideal.links.clear()
    put(ideal, desired.attachments[0], tag="same")
    (action,) = look(desired, ideal).actions
    assert isinstance(action, Attach) and action.adopt is None


def test_what_is_attached_to_a_map_goes_along_with_it() -> None:
    entry, file = an_object("one", at=(SOCKETS,), section="sk_skb/verdict")

    def wanted(max_entries: int) -> Desired:
        definition = MapDefinition("sockmap", 4, 4, max_entries)
        maps = {"sockets": MapEntry("sockets", MismatchPolicy.RECREATE, definition)}
        manifest = replace(desire(an_object("one")).manifest, maps=maps, objects={"one": entry})
        return resolve(manifest, {"one": file}, MACHINE)

    ideal = machine(wanted(16))
    assert not look(wanted(16), ideal).actions
    (change,) = look(wanted(32), ideal).changes
    assert isinstance(change.maps[0], RecreateMap)
    assert [type(link) for link in change.links] == [Attach]


def test_a_link_on_a_former_stub_gets_the_one_that_is_there() -> None:
    former, now = exact("count", SWITCH), exact("tally", SWITCH)
    ideal = machine()
    ideal.targets[SWITCH] = 1
    ideal.apply(look(former, ideal), former)
    (swap,) = look(now, ideal).changes[0].links
    assert isinstance(swap, Swap) and swap.stub == ("one", "count")
    idealstubs.make(ideal, ("one", "tally"), 99)
    (swap,) = look(now, ideal).changes[0].links
    assert isinstance(swap, Swap) and swap.stub is None


def test_a_held_object_keeps_its_stubs_and_arrays() -> None:
    desired = desire(an_object("one", file="the file is empty"))
    ideal = machine()
    idealstubs.make(ideal, ("one", "count"), 99)
    idealstubs.make(ideal, ("one", "lost"), 98, pinned=False)
    name = array_name("one", "stages")
    ideal.pins[name] = ideal.make_map(array_spec("stages", slotted=True), "stages")
    assert [str(action) for action in look(desired, ideal).actions] == [
        "restore the pins of the stub of one/lost"
    ]


def test_a_stub_that_is_taken_along_gets_its_pins_first() -> None:
    former, now = exact("count", SWITCH), exact("tally", SWITCH)
    ideal = machine()
    ideal.targets[SWITCH] = 1
    ideal.apply(look(former, ideal), former)
    stub = ideal.stubs["one", "count"]
    ideal.stubs["one", "count"] = replace(stub, pinned=False)
    assert [str(restore) for restore in look(now, ideal).restores] == [
        "restore the pins of the stub of one/count"
    ]


def test_a_stub_goes_with_the_link_that_is_made_anew() -> None:
    desired = desire(an_object("one", at=(SWITCH,), section="tracepoint"))
    ideal = machine()
    ideal.targets[SWITCH] = 1
    ideal.apply(look(desired, ideal), desired)
    ((key, link),) = ideal.links.items()
    stub = idealstubs.make(ideal, key[:2], link.info.prog_id)
    dead = replace(link.info, prog_id=stub.prog_id, target_id=0)
    ideal.links[key] = ObservedLink(dead)
    assert [str(action) for action in look(desired, ideal).actions] == [
        "attach one/count at tracepoint of tracepoint:sched/sched_switch"
        " (its target came back or the link was detached)",
        "unload the stub of one/count (not used any more)",
    ]


def test_what_happens_together_waits_for_the_last() -> None:
    desired = desire(an_object("one"), an_object("two"))
    observed, backoff = machine().observe(desired), Backoff[Subject](Pace())
    for name, count in (("one", 1), ("two", 3)):
        for _ in range(count):
            backoff.tried(Subject("object", name), 0.0)
    dues = [backoff.due(Subject("object", name)) for name in ("one", "two")]
    assert 0 < dues[0] < dues[1]
    loads = tuple(LoadObject(wanted, "") for wanted in desired.objects.values())
    healing = heal(Plan(changes=(Change(loads=loads),)), observed, backoff, 0.0, {})
    assert not healing.plans and healing.again_at == dues[1]


def test_a_stub_goes_with_the_link_whose_name_another_link_gets() -> None:
    former = desire(an_object("one", at=(SWITCH,), program="tally", section="tracepoint"))
    now = desire(an_object("one", at=(SWITCH,), section="tracepoint"))
    ideal = machine()
    ideal.targets[SWITCH] = 1
    ideal.apply(look(former, ideal), former)
    (link,) = ideal.links.values()
    key = now.attachments[0].key
    stub = idealstubs.make(ideal, key[:2], 99)
    ideal.links[key] = ObservedLink(replace(link.info, prog_id=stub.prog_id, target_id=0))
    ideal.apply(look(now, ideal), now)
    assert not ideal.stubs and look(now, ideal).actions == ()


def test_a_stub_goes_when_the_links_of_another_object_are_off_it() -> None:
    former = exact("count", SWITCH)
    now = desire(
        an_object("one", at=(), version=2), an_object("two", at=(SWITCH,), section="tracepoint")
    )
    ideal = machine()
    ideal.targets[SWITCH] = 1
    ideal.apply(look(former, ideal), former)
    one, two = look(now, ideal).changes
    assert one.subject == "one" and not [each for each in one.removals if "stub" in str(each)]
    assert [str(each) for each in two.removals] == [
        "unload the stub of one/count (not used any more)"
    ]
