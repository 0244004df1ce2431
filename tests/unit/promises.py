"""What every plan promises, whatever the situation, on a machine on which nothing fails."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

from bpfkeeperd.actions import Attach, Plan
from bpfkeeperd.desired import Desired, WantedMap, WantedObject
from bpfkeeperd.entries import MismatchPolicy
from bpfkeeperd.layout import LinkKey, escape, is_array_name, kernel_name
from bpfkeeperd.plan import plan, serves
from bpfkeeperd.state import ProgramInfo
from tests.unit.ideal import NEW, Ideal
from tests.unit.idealstubs import loaded, seen
from tests.unit.situations import Situation


def held(plan: Plan) -> set[str]:
    return {refusal.name for refusal in plan.refusals if refusal.kind == "object"}


def check_held_objects(before: Ideal, after: Ideal, desired: Desired, names: set[str]) -> None:
    """They keep their programs, their links, and the maps that these run on."""
    latter = {wanted.former: wanted.name for wanted in desired.maps.values() if wanted.former}
    for name in map(escape, names):
        assert after.programs.get(name) == before.programs.get(name)
        for key, link in before.links.items():
            alive = key[0] == name and link.info.target_id  # one that is dead serves nobody
            if alive and not (_can_be_repaired(before, desired, key) and key in after.links):
                untouched = replace(seen(before, key), pinned=True)
                assert seen(after, key) == untouched, "pinned, and not touched"
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
                assert wanted.policy is MismatchPolicy.RECREATE
                assert before.differing(wanted.spec, map_id)
    for name, map_id in (before.remembered | before.pins).items():
        if name in desired.maps and not before.differing(desired.maps[name].spec, map_id):
            kept = name in before.faults or after.pins[name] == map_id
            assert kept or desired.maps[name].generational, "contents were lost"
    assert set(after.pins) - set(before.pins) <= set(desired.maps)


def check_rights(before: Ideal, after: Ideal, desired: Desired, done: Plan) -> None:
    """Pins have the rights that the manifest gives them; of a map that is refused those before."""
    refused = {refusal.name for refusal in done.refusals if refusal.kind == "map"}
    for name, map_id in after.pins.items():
        found = after.rights.get(name, NEW)
        if name in desired.maps and name not in refused:
            assert desired.maps[name].rights.over(found) == found, name
        elif before.pins.get(name) == map_id:
            assert found == before.rights.get(name, NEW), name


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
    refused |= after.left_out
    waiting = []
    for wanted in desired.objects.values():
        for attachment in wanted.attachments:
            repaired = _can_be_repaired(after, desired, attachment.key)
            if str(attachment) in refused:
                waiting.append(attachment)
            elif wanted.name not in names or repaired:
                link = seen(after, attachment.key)
                assert link.pinned
                assert bool(link.stub) == attachment.exact
                own = after.stubs.get(attachment.key[:2])
                assert not link.stub or (own and own.pinned and own.prog_id == link.stub)
                assert link.info.target_id == after.targets[attachment.target]
                if attachment.hook.rules.typed:
                    assert link.info.attach_type == attachment.hook.attach_type
                assert link.info.type in attachment.hook.rules.link_types
                loaded = after.programs[attachment.key[0]][wanted.digest]
                assert link.info.prog_id == loaded[attachment.key[1]].id
    for key in after.links.keys() - desired.link_keys():
        info = after.links[key].info
        assert key[0] in map(escape, names) or any(
            key[:2] == attachment.key[:2]
            or serves(info, attachment, after.targets[attachment.target])
            for attachment in waiting
        ), "what left the manifest goes"


def check_stubs(after: Ideal, desired: Desired, names: set[str]) -> None:
    """There is one for each program that is to have one, or that runs or is held with it."""
    wanted = {one.key[:2] for one in desired.attachments if one.exact}
    run = {link.info.prog_id for link in after.links.values()}
    for key, stub in after.stubs.items():
        assert key in wanted or key[0] in map(escape, names) or stub.prog_id in run
        assert stub.pinned or not (key in wanted or key[0] in map(escape, names))


def check_order(done: Plan, desired: Desired) -> None:
    """Who comes to a hook of which the manifest says the order knows all that are there."""
    for change in done.changes:
        for link in change.links:
            at = link.attachment
            peers = tuple(
                one
                for one in desired.attachments
                if (one.target, one.hook.attach_type) == (at.target, at.hook.attach_type)
            )
            said = any(one.before or one.after for one in peers)
            assert not isinstance(link, Attach) or link.peers == (peers if said else ())


def check_foreign(before: Ideal, after: Ideal, desired: Desired) -> None:
    """What somebody else attached goes on, unless it is kept as ours, or may be displaced."""
    ours = {program.id for programs in _programs(after) for program in programs.values()}
    for at, other in before.foreign:
        if (at, other) in after.foreign:
            continue
        if other.link and other.link.id in after.adopted:
            assert other.program.id in ours, "kept as it was"
            continue
        assert any(
            attachment.take_over
            and attachment.hook == at.hook
            and after.targets[attachment.target] == after.targets[at.target]
            and (other.sole or other.program.name == attachment.program)
            for wanted in desired.objects.values()
            for attachment in wanted.attachments
        ), "nobody asked for it"


def _programs(ideal: Ideal) -> Iterator[Mapping[str, ProgramInfo]]:
    for digests in ideal.programs.values():
        yield from digests.values()


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
                adopted = {other.program.id for _, other in before.foreign}
                for name, program in after.programs[escape(wanted.name)][wanted.digest].items():
                    assert program == loaded[name] or program.id in adopted


def check_others_go_ahead(before: Ideal, desired: Desired, names: set[str]) -> None:
    """Who is held shares maps, at however many removes, with something that is really wrong."""
    trouble = {*desired.faults, *(name for name, one in desired.objects.items() if one.fault)}
    for name, wanted in desired.maps.items():
        map_id = _alive(before, wanted)
        differs = map_id and before.differing(wanted.spec, map_id)
        if name in before.faults or (differs and wanted.policy is not MismatchPolicy.RECREATE):
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


def check_second(after: Ideal, desired: Desired, first: Plan, second: Plan, *, force: bool) -> None:
    """A plan that was applied leaves nothing to do.

    Nobody asks for it any more when a reload was forced: what was held back for that alone is then
    decided on, and some of its attachments may be refused for reasons of their own.
    """
    refused = _lasting(first) | {("attachment", name) for name in after.left_out}
    if not force or _lasting(second) == refused:
        assert second.actions == () and _lasting(second) == refused
        return
    freed = held(first) - held(second)
    assert freed and held(second) < held(first)
    for kind, name in _lasting(second) - refused:
        assert kind == "attachment" and name.partition("/")[0] in freed
    last = after.copy()
    last.apply(second, desired)
    check_second(last, desired, second, plan(desired, last.observe(desired)), force=False)


def check(situation: Situation, *, force: bool = False) -> Plan:
    """Applies the plan and sees whether it kept every promise."""
    before, after, desired = situation.ideal, situation.ideal.copy(), situation.desired
    first = plan(desired, before.observe(desired), force=force)
    after.apply(first, desired)
    second = plan(desired, after.observe(desired))
    check_second(after, desired, first, second, force=force)
    check_held_objects(before, after, desired, held(first))
    check_maps(before, after, desired)
    check_rights(before, after, desired, first)
    check_objects(after, desired, held(first))
    check_attachments(after, desired, first)
    check_stubs(after, desired, held(first))
    check_order(first, desired)
    assert not after.unpinned & loaded(after), "their pins are restored"
    check_foreign(before, after, desired)
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


def fits(ideal: Ideal, wanted: WantedMap) -> bool:
    """Whether the map pinned under a name is the wanted one."""
    return wanted.name in ideal.pins and not ideal.differing(wanted.spec, ideal.pins[wanted.name])


def runs_on_the_kept_maps(ideal: Ideal, wanted: WantedObject) -> bool:
    """Whether each loaded program uses, under each kept map's ELF name, what is pinned.

    A map that the kernel calls as one that the object does not keep cannot be told from that one.
    """
    loaded = ideal.programs[escape(wanted.name)][wanted.digest]
    private = {
        kernel_name(wanted.name, spec.name)
        for spec in wanted.source.spec.maps
        if spec.name not in wanted.maps
    }
    return all(
        ideal.pins.get(wanted.maps[elf_name]) == map_id
        for program in loaded.values()
        for elf_name, map_id in ideal.used_as[program.id].items()
        if elf_name in wanted.maps and ideal.maps[map_id].name not in private
    )
