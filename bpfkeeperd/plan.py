"""All policy: what is and what should be become an ordered plan. Pure.

A plan made right after it was applied is empty; no loaded object is left on a map that nobody can
see; an object that is held back keeps everything it has.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from bpfkeeperd.actions import (
    REPLACED,
    Attach,
    Change,
    CreateMap,
    Detach,
    LinkAction,
    LoadObject,
    MapAction,
    Plan,
    RecreateMap,
    Refusal,
    Removal,
    RemovePrograms,
    Restore,
    RestoreLink,
    RestoreMap,
    Swap,
)
from bpfkeeperd.compare import differences, layout_differences
from bpfkeeperd.desired import Attachment, Desired, WantedMap, WantedObject
from bpfkeeperd.entries import MismatchPolicy
from bpfkeeperd.hooks import LINK_TYPES
from bpfkeeperd.layout import LinkKey, escape, unescape
from bpfkeeperd.observed import Observed, ObservedLink, ObservedMap
from bpfkeeperd.state import LinkInfo, ProgramInfo

_OTHER_MODE = (
    "the interface runs XDP in another mode, and it has one mode at a time: take the attachment out"
    " of the manifest and reload, then put it in again with the new mode"
)
_NO_PROGRAMS: Mapping[str, ProgramInfo] = {}


@dataclass(slots=True)
class _Draft:
    """What has been decided so far."""

    desired: Desired
    observed: Observed
    map_actions: dict[str, MapAction] = field(default_factory=dict)
    refused_maps: dict[str, str] = field(default_factory=dict)
    held_objects: dict[str, str] = field(default_factory=dict)
    """Held back, with everything they have left as it is."""
    loads: dict[str, LoadObject] = field(default_factory=dict)
    links: dict[str, list[LinkAction]] = field(default_factory=dict)
    taken_links: set[LinkKey] = field(default_factory=set)
    """Orphans that another attachment takes over, or that stand in its way."""
    spared_links: set[LinkKey] = field(default_factory=set)
    """Orphans that stay until the attachment that replaces them can be made."""
    restores: list[Restore] = field(default_factory=list)
    refusals: list[Refusal] = field(default_factory=list)


def plan(desired: Desired, observed: Observed, *, force: bool = False) -> Plan:
    """What has to be done; ``force`` loads every object again, changed or not."""
    draft = _Draft(desired, observed)
    for wanted in desired.maps.values():
        _decide_map(draft, wanted)
    _hold_back(draft)
    for wanted_object in desired.objects.values():
        if wanted_object.name not in draft.held_objects:
            reason = "forced" if force else _reason_to_load(draft, wanted_object)
            if reason:
                draft.loads[wanted_object.name] = LoadObject(wanted_object, reason)
    orphans = _orphan_links(draft)
    for wanted_object in desired.objects.values():
        for attachment in wanted_object.attachments:
            _decide_attachment(draft, wanted_object, attachment, orphans)
    _restore_held_links(draft)
    changes, removals = _group(draft, orphans)
    return Plan(
        restores=tuple(draft.restores),
        changes=changes,
        removals=removals,
        refusals=tuple(_refusals(draft)),
        kept_maps=tuple(
            name
            for name, found in observed.maps.items()
            if (found.pinned or found.lost) and name not in draft.map_actions
        ),
    )


def serves(info: LinkInfo, attachment: Attachment, target_id: int | str | None) -> bool:
    """Whether a link is alive and at this attachment's hook and target."""
    return (
        info.target_id == target_id
        and info.type == LINK_TYPES[attachment.hook.kind]
        and info.attach_type == attachment.hook.attach_type
    )


def _decide_map(draft: _Draft, wanted: WantedMap) -> None:
    found = draft.observed.maps.get(wanted.name, ObservedMap())
    if found.fault:
        draft.refused_maps[wanted.name] = found.fault
        return
    current = found.pinned or found.lost
    if current is None:
        draft.map_actions[wanted.name] = CreateMap(wanted)
        return
    differing = differences(wanted.spec, current) + layout_differences(wanted.spec, *found.layouts)
    if differing and wanted.policy is MismatchPolicy.RECREATE:
        if found.pinned:
            draft.map_actions[wanted.name] = RecreateMap(wanted, current, differing)
        else:
            draft.map_actions[wanted.name] = CreateMap(wanted)
        return
    if found.pinned is None:
        draft.restores.append(RestoreMap(wanted, current))
    if differing:
        draft.refused_maps[wanted.name] = (
            f"the pinned map (ID {current.id}) differs: {'; '.join(differing)}."
            " Nothing is touched (on_mismatch: fail); on_mismatch: recreate would make a new map"
            " and drop the contents"
        )


def _hold_back(draft: _Draft) -> None:
    """Refused maps hold back their users; a held user holds back the maps it shares."""
    desired = draft.desired
    for name, wanted in desired.objects.items():
        if wanted.fault:
            draft.held_objects[name] = wanted.fault
    changed = True
    while changed:
        changed = False
        for name in list(draft.refused_maps):
            for user in desired.maps[name].users:
                if user not in draft.held_objects:
                    draft.held_objects[user] = f"held back by map {name}, see there"
                    changed = True
        for name in list(draft.map_actions):
            holder = _holder(draft, name)
            if holder:
                _keep_map(draft, name, f"object {holder}, which uses it, is held back")
                changed = True


def _holder(draft: _Draft, map_name: str) -> str:
    """An object that cannot come along when a map is exchanged; empty when there is none.

    It would go on with the old map, which nobody could see. What counts is what is loaded of it:
    an object that is not loaded at all goes on with nothing.
    """
    found = draft.observed.maps.get(map_name, ObservedMap())
    current = found.pinned or found.lost
    for name in (*draft.held_objects, *draft.desired.faults):
        loaded = draft.observed.programs.get(escape(name), {})
        uses = name in draft.map_actions[map_name].map.users
        runs = current is not None and any(
            current.id in program.map_ids
            for programs in loaded.values()
            for program in programs.values()
        )
        if loaded and (uses or runs):
            return name
    return ""


def _keep_map(draft: _Draft, name: str, reason: str) -> None:
    """Leaves a map as it is, although it was about to be made."""
    del draft.map_actions[name]
    draft.refused_maps[name] = reason
    lost = draft.observed.maps.get(name, ObservedMap()).lost
    if lost:
        draft.restores.append(RestoreMap(draft.desired.maps[name], lost))


def _loaded(draft: _Draft, wanted: WantedObject) -> Mapping[str, ProgramInfo]:
    digests = draft.observed.programs.get(escape(wanted.name), {})
    return digests.get(wanted.digest, _NO_PROGRAMS)


def _reason_to_load(draft: _Draft, wanted: WantedObject) -> str:
    """Why an object has to be loaded (again); empty when it is fine as it is."""
    digests = draft.observed.programs.get(escape(wanted.name), {})
    if wanted.digest not in digests:
        return "its file or settings changed" if digests else "not loaded yet"
    loaded = digests[wanted.digest]
    if loaded.keys() != {escape(program) for program in wanted.programs}:
        return "not all of its programs are pinned"
    for pin_name in wanted.maps.values():
        action = draft.map_actions.get(pin_name)
        if action:
            return f"map {pin_name} is {'new' if isinstance(action, CreateMap) else 'recreated'}"
    return _stale_map(draft, wanted, loaded)


def _stale_map(draft: _Draft, wanted: WantedObject, loaded: Mapping[str, ProgramInfo]) -> str:
    """Whether a program goes on with a map that is not the one pinned under its name."""
    names = draft.observed.map_names
    if not names:
        return ""
    others = {spec.name[:15] for spec in wanted.source.spec.maps if spec.name not in wanted.maps}
    kept = _kernel_names(draft, wanted)
    lost = {
        found.lost.id for found in draft.observed.maps.values() if found.lost
    }  # those are about to be pinned again
    for program in loaded.values():
        for map_id in program.map_ids:
            name = names.get(map_id)
            if name in kept and name not in others and map_id not in lost:
                return (
                    f"somebody pinned another map as {kept[name]}: it moves there, and the contents"
                    f" of map ID {map_id} are given up"
                )
    return ""


def _kernel_names(draft: _Draft, wanted: WantedObject) -> dict[str, str]:
    """What the maps kept by an object may be called in the kernel, to the name of their pin: as
    the pin, or as any of their users declares them."""
    names = {}
    for pin_name in wanted.maps.values():
        names[pin_name[:15]] = pin_name
        for user in draft.desired.maps[pin_name].users:
            maps = draft.desired.objects[user].maps
            names |= {elf_name[:15]: pin for elf_name, pin in maps.items() if pin == pin_name}
    return names


def _restore_held_links(draft: _Draft) -> None:
    """What is attached, stays for now, and nobody asks for, is kept like the rest of it."""
    asked_for = {
        attachment.key
        for wanted in draft.desired.objects.values()
        for attachment in wanted.attachments
    }
    held = {escape(name) for name in (*draft.held_objects, *draft.desired.faults)}
    for key, link in draft.observed.links.items():
        alive = not link.pinned and link.info.target_id
        if alive and (key in draft.spared_links or (key[0] in held and key not in asked_for)):
            draft.restores.append(RestoreLink(key, link.info))


def _orphan_links(draft: _Draft) -> dict[LinkKey, ObservedLink]:
    """Links that no attachment of the manifest wants and that no held object owns."""
    wanted = draft.desired.link_keys()
    untouchable = {escape(name) for name in (*draft.held_objects, *draft.desired.faults)}
    return {
        key: link
        for key, link in draft.observed.links.items()
        if key not in wanted and key[0] not in untouchable
    }


def _decide_attachment(
    draft: _Draft,
    wanted: WantedObject,
    attachment: Attachment,
    orphans: Mapping[LinkKey, ObservedLink],
) -> None:
    key = attachment.key
    link = draft.observed.links.get(key)
    target_id = draft.observed.targets.get(attachment.target)
    running = _loaded(draft, wanted).get(escape(attachment.program))
    # Without a usable file, the programs that are pinned can still be attached.
    held = wanted.name in draft.held_objects and not (wanted.fault and running)
    if link and not link.pinned and link.info.target_id:
        in_place = serves(link.info, attachment, target_id)
        if in_place or held or isinstance(target_id, str):  # else its place is needed
            draft.restores.append(RestoreLink(key, link.info))
    if isinstance(target_id, str):
        draft.refusals.append(Refusal("attachment", str(attachment), target_id))
        # A mistyped target must not take down what runs: that stays until the new one is there.
        draft.spared_links |= {orphan for orphan in orphans if orphan[:2] == key[:2]}
        return
    if held:
        return
    load = draft.loads.get(wanted.name)
    actions = draft.links.setdefault(wanted.name, [])
    if link and serves(link.info, attachment, target_id):
        if load:
            actions.append(Swap(attachment, link.info, key, wanted.digest, load.reason))
        elif running and running.id != link.info.prog_id:
            reason = f"it runs program ID {link.info.prog_id}, not the kept one"
            actions.append(Swap(attachment, link.info, key, wanted.digest, reason))
        return
    # A link of the same object first: another's may be on its way out for good.
    for orphan_key, orphan in sorted(orphans.items(), key=lambda item: item[0][0] != key[0]):
        usable = orphan.pinned and orphan_key not in draft.taken_links
        if not usable or not serves(orphan.info, attachment, target_id):
            continue
        if _netns(orphan_key) != _netns(key):  # interface indexes repeat in each namespace
            continue
        draft.taken_links.add(orphan_key)
        if _same_mode(orphan_key, key):
            reason = "it takes over a link"
            actions.append(Swap(attachment, orphan.info, orphan_key, wanted.digest, reason))
        else:
            draft.refusals.append(Refusal("attachment", str(attachment), _OTHER_MODE))
        return
    reason = "its target came back or the link was detached" if link else "not attached yet"
    actions.append(Attach(attachment, wanted.digest, reason))


def _netns(key: LinkKey) -> str:
    """The network namespace in a target's name; empty for none."""
    target = unescape(key[2])
    for mode in ("+native", "+generic"):
        target = target.removesuffix(mode)
    return target.partition("@")[2]


def _same_mode(one: LinkKey, other: LinkKey) -> bool:
    """XDP modes are part of the target's name: a link cannot change its mode."""
    return [escape(mode) in one[2] for mode in ("+native", "+generic")] == [
        escape(mode) in other[2] for mode in ("+native", "+generic")
    ]


def _refusals(draft: _Draft) -> list[Refusal]:
    maps = [Refusal("map", name, reason) for name, reason in draft.refused_maps.items()]
    objects = [
        Refusal("object", name, reason)
        for name, reason in (*draft.desired.faults.items(), *draft.held_objects.items())
    ]
    return [*maps, *objects, *draft.refusals]


def _group(
    draft: _Draft, orphans: Mapping[LinkKey, ObservedLink]
) -> tuple[tuple[Change, ...], tuple[Removal, ...]]:
    """Puts together what must succeed or fail together; the rest of the removals stands alone."""
    removals = _removals(draft, orphans)
    groups = _components(draft)
    changes = []
    for maps, objects in groups:
        loads = [draft.loads[name] for name in objects if name in draft.loads]
        changed = [name for name in objects if name in draft.loads or draft.links.get(name)]
        own = [removal for name in changed for removal in removals.pop(name, ())]
        change = Change(
            maps=tuple(draft.map_actions[name] for name in maps),
            loads=tuple(loads),
            links=tuple(action for name in objects for action in draft.links.get(name, ())),
            removals=tuple(own),
        )
        if change.actions:
            changes.append(change)
    return tuple(changes), tuple(removal for rest in removals.values() for removal in rest)


def _components(draft: _Draft) -> list[tuple[list[str], list[str]]]:
    """Objects with the maps to be made, joined wherever they share such a map."""
    group_of = {name: name for name in draft.desired.objects}

    def root(name: str) -> str:
        while group_of[name] != name:
            name = group_of[name]
        return name

    for action in draft.map_actions.values():
        for user in action.map.users[1:]:
            if user not in draft.held_objects:
                group_of[root(user)] = root(action.map.users[0])
    groups: dict[str, tuple[list[str], list[str]]] = {}
    for name, wanted in draft.desired.objects.items():
        if name not in draft.held_objects or wanted.fault:
            groups.setdefault(root(name), ([], []))[1].append(name)
    alone = []
    for name, action in draft.map_actions.items():
        users = [user for user in action.map.users if user not in draft.held_objects]
        if users:
            groups[root(users[0])][0].append(name)
        elif action.map.definition:
            alone.append(([name], list[str]()))
    return [*alone, *groups.values()]


def _removals(draft: _Draft, orphans: Mapping[LinkKey, ObservedLink]) -> dict[str, list[Removal]]:
    """By object name (the escaped one for what is not in the manifest)."""
    names = {escape(name): name for name in draft.desired.objects}
    untouchable = {escape(name) for name in (*draft.held_objects, *draft.desired.faults)}
    removals: dict[str, list[Removal]] = {}
    for key in sorted(orphans.keys() - draft.taken_links - draft.spared_links):
        reason = "not in the manifest any more"
        removals.setdefault(names.get(key[0], key[0]), []).append(Detach(key, reason))
    for escaped, digests in draft.observed.programs.items():
        if escaped in untouchable:
            continue
        name = names.get(escaped)
        wanted = draft.desired.objects[name].digest if name else ""
        unwanted = [digest for digest in digests if digest != wanted]
        for digest in unwanted:
            reason = REPLACED if name else "not in the manifest any more"
            last = not name and digest == unwanted[-1]
            removals.setdefault(name or escaped, []).append(
                RemovePrograms(escaped, digest, reason, last)
            )
    return removals
