"""The planner: each rule by a small case, and its promises over random situations."""

from collections import Counter

from hypothesis import HealthCheck, given, settings

from bpfkeeperd.actions import (
    CreateMap,
    LoadObject,
    Plan,
    RecreateMap,
    RemovePrograms,
)
from bpfkeeperd.desired import Desired
from bpfkeeperd.entries import MismatchPolicy
from bpfkeeperd.layout import escape
from bpfkeeperd.plan import plan, serves
from tests.unit.ideal import Ideal, fits, runs_on_the_kept_maps
from tests.unit.situations import Situation, situations

EXAMPLES = 1000


def held(plan: Plan) -> set[str]:
    return {refusal.name for refusal in plan.refusals if refusal.kind == "object"}


def check_held_objects(before: Ideal, after: Ideal, names: set[str]) -> None:
    """They keep their programs, their links, and the maps that these run on."""
    for name in map(escape, names):
        assert after.programs.get(name) == before.programs.get(name)
        links = {key: link.info for key, link in before.links.items() if key[0] == name}
        assert links == {key: link.info for key, link in after.links.items() if key[0] == name}
        used = {
            map_id
            for loaded in before.programs.get(name, {}).values()
            for program in loaded.values()
            for map_id in program.map_ids
        }
        for pin_name, map_id in before.pins.items():
            assert map_id not in used or after.pins[pin_name] == map_id, (name, pin_name)


def check_maps(before: Ideal, after: Ideal, desired: Desired) -> None:
    """No pin goes; one is exchanged only where that is the policy and the map differs."""
    assert before.faults == after.faults
    for name, map_id in before.pins.items():
        if after.pins[name] != map_id:
            wanted = desired.maps[name]
            assert wanted.policy is MismatchPolicy.RECREATE
            assert before.differing(wanted.spec, map_id)
    for name, map_id in before.remembered.items():
        if name in desired.maps and not before.differing(desired.maps[name].spec, map_id):
            assert name in before.faults or after.pins[name] == map_id, "contents were lost"
    assert set(after.pins) - set(before.pins) <= set(desired.maps)


def check_objects(after: Ideal, desired: Desired, names: set[str]) -> None:
    """Those that are not held are loaded, run on what is pinned, and are attached."""
    for wanted in desired.objects.values():
        if wanted.name in names:
            continue
        digests = after.programs[escape(wanted.name)]
        assert set(digests) == {wanted.digest}
        assert set(digests[wanted.digest]) == set(map(escape, wanted.programs))
        assert all(fits(after, desired.maps[pin_name]) for pin_name in wanted.maps.values())
        assert runs_on_the_kept_maps(after, wanted)
        for attachment in wanted.attachments:
            target_id = after.targets[attachment.target]
            if isinstance(target_id, int):
                link = after.links[attachment.key]
                assert link.pinned and serves(link.info, attachment, target_id)
                assert link.info.prog_id == digests[wanted.digest][attachment.key[1]].id
    wanted_names = {escape(name) for name in (*desired.objects, *desired.faults)}
    assert set(after.programs) <= wanted_names, "what left the manifest goes"
    for key in after.links.keys() - desired.link_keys():
        assert key[0] in map(escape, names), "what left the manifest goes"


def check(situation: Situation, *, force: bool = False) -> Plan:
    before, after, desired = situation.ideal, situation.ideal.copy(), situation.desired
    first = plan(desired, before.observe(desired), force=force)
    after.apply(first, desired)
    second = plan(desired, after.observe(desired))
    assert second.actions == ()
    assert [(refusal.kind, refusal.name) for refusal in second.refusals] == [
        (refusal.kind, refusal.name) for refusal in first.refusals
    ]
    check_held_objects(before, after, held(first))
    check_maps(before, after, desired)
    check_objects(after, desired, held(first))
    return first


def test_promises() -> None:
    seen = Counter[str]()

    @settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
    @given(situations())
    def promises(situation: Situation) -> None:
        done = check(situation)
        seen.update({type(action).__name__ for action in done.actions})

    promises()
    print(seen)
