"""All policy: what is and what should be become an ordered plan. Pure.

A plan made right after it was applied is empty; no loaded object is left on a map that nobody can
see; an object that is held back keeps everything it has.
"""

from collections.abc import Iterator, Mapping

from bpfkeeperd.actions import (
    Attach,
    CreateMap,
    LoadObject,
    Plan,
    RecreateMap,
    Refusal,
    RenameMap,
    RenewMap,
    RestoreLink,
    RestoreMap,
    RestoreProgram,
    SetRights,
    Swap,
)
from bpfkeeperd.compare import differences, layout_differences, pattern_differences
from bpfkeeperd.conflicts import conflict_text
from bpfkeeperd.desired import Attachment, Desired, WantedMap, WantedObject, netns_of
from bpfkeeperd.draft import Draft, hold_back
from bpfkeeperd.entries import MismatchPolicy
from bpfkeeperd.foreign import beside, beside_text, decide, displace
from bpfkeeperd.generations import leave_out_entries, renew_arrays, renew_data, write_entries
from bpfkeeperd.grouping import group
from bpfkeeperd.hooks import KINDS, HookKind
from bpfkeeperd.layout import LinkKey, StubKey, escape, kernel_name
from bpfkeeperd.observed import Observed, ObservedLink, Place
from bpfkeeperd.ordering import ordered_places, place_of_hook, status_of_order
from bpfkeeperd.planstubs import behind_stub, restore_stubs
from bpfkeeperd.state import LinkInfo, ProgramInfo
from bpfkeeperd.targets import BinaryTarget, MapTarget

_OTHER_MODE = (
    "the interface runs XDP in another mode, and it has one mode at a time: take the attachment out"
    " of the manifest and reload, then put it in again with the new mode"
)
_NETFILTER = KINDS[HookKind.NETFILTER].link_types
_HOLDS_NETNS = "its network namespace lost its name, and a netfilter link keeps it alive for ever"
_TO_BE_MADE = -1
_NO_PROGRAMS: Mapping[str, ProgramInfo] = {}


def plan(desired: Desired, observed: Observed, *, force: bool = False) -> Plan:
    """What has to be done; ``force`` loads every object again, changed or not."""
    draft = Draft(desired, observed)
    for wanted in desired.maps.values():
        _decide_map(draft, wanted)
    while True:
        hold_back(draft)
        _decide_loads(draft, force)
        if renew_arrays(draft):
            break
    leave_out_entries(draft)
    write_entries(draft)
    _set_rights(draft)
    orphans = _orphan_links(draft)
    places = ordered_places(desired.attachments)
    for wanted_object in desired.objects.values():
        for attachment in wanted_object.attachments:
            _decide_attachment(draft, wanted_object, attachment, orphans, places)
    _restore_held_links(draft)
    restore_stubs(draft)
    draft.restores += [RestoreProgram(*place) for place in observed.unpinned_programs]
    changes, removals = group(draft, orphans)
    return Plan(
        restores=tuple(draft.restores),
        changes=changes,
        removals=removals,
        refusals=tuple(_refusals(draft)),
        misplaced=tuple(
            f"{attachment}: {text}"
            for peers in places.values()
            for attachment in peers
            if (text := status_of_order(attachment, places, observed))
        ),
        kept_maps=tuple(
            name
            for name, found in observed.maps.items()
            if (found.pinned or found.lost) and not draft.makes(name)
        ),
        notes=tuple(_notes(draft)),
    )


def _notes(draft: Draft) -> Iterator[str]:
    """What of somebody else's goes on beside ours, and is likely a copy of it."""
    coming = {
        other
        for links in draft.links.values()
        for link in links
        if isinstance(link, Attach)
        for other in (link.adopt,)
    }
    for wanted in draft.desired.objects.values():
        for attachment in wanted.attachments:
            for other in beside(draft.observed, attachment):
                number = (other.link.id if other.link else 0, other.program.id)
                if other not in coming and number not in draft.taken_foreign:
                    yield f"{attachment}: {beside_text(other)}"


def _decide_loads(draft: Draft, force: bool) -> None:
    draft.loads.clear()
    for wanted in draft.desired.objects.values():
        if wanted.name not in draft.held_objects:
            reason = "forced" if force else _reason_to_load(draft, wanted)
            if reason:
                draft.loads[wanted.name] = LoadObject(wanted, reason)


def serves(info: LinkInfo, attachment: Attachment, target_id: int | str | None) -> bool:
    """Whether a link is alive and at this attachment's hook and target."""
    rules = attachment.hook.rules
    # Before Linux 6.9 the kernel does not say where a probe in a binary is (1).
    here = info.target_id == target_id or (info.target_id == 1 and rules.opaque)
    return (
        here
        and info.type in rules.link_types
        and (not rules.typed or info.attach_type == attachment.hook.attach_type)
        and (not info.detail or attachment.detail == "" or info.detail in attachment.details)
    )


def _set_rights(draft: Draft) -> None:
    """Pins that stay and are not as the manifest wants them; new ones come with their rights."""
    for name, wanted in draft.desired.maps.items():
        found = draft.found(name).rights
        if wanted.rights and found and name not in draft.refused_maps and not draft.makes(name):
            rights = wanted.rights.over(found)
            if rights != found:
                draft.rights[name] = SetRights(wanted, found, rights)


def _decide_map(draft: Draft, wanted: WantedMap) -> None:
    found = draft.found(wanted.name)
    if found.fault:
        draft.refused_maps[wanted.name] = found.fault
        return
    if found.pinned and found.stored_id:
        path = f"{draft.desired.manifest.pin_root}/{found.source or wanted.name}"
        draft.refused_maps[wanted.name] = conflict_text(found.pinned.id, found.stored_id, path)
        return
    current = found.pinned or found.lost
    if current is None:
        draft.map_actions[wanted.name] = CreateMap(wanted)
        return
    differing = (
        *differences(wanted.spec, current),
        *pattern_differences(wanted.spec, found.inner),
        *layout_differences(wanted.spec, *found.layouts),
    )
    if differing and wanted.policy is MismatchPolicy.RECREATE and not wanted.spec.internal:
        if found.pinned and not found.source:
            draft.map_actions[wanted.name] = RecreateMap(wanted, current, differing)
        else:
            draft.map_actions[wanted.name] = CreateMap(wanted)
        return
    if found.source in draft.desired.maps:
        draft.refused_maps[wanted.name] = (
            f"it cannot be renamed from {found.source} while"
            f" {', '.join(draft.desired.maps[found.source].users)} cannot be loaded again"
        )
        return
    if found.source and not differing:
        draft.map_actions[wanted.name] = RenameMap(wanted, found.source, current)
    if found.pinned is None:
        draft.restores.append(RestoreMap(wanted, current))
    if not differing:
        return
    if wanted.spec.internal:
        renew_data(draft, wanted, current, differing)
        return
    draft.refused_maps[wanted.name] = (
        f"the pinned map (ID {current.id}) differs: {'; '.join(differing)}."
        " Nothing is touched (on_mismatch: fail); on_mismatch: recreate would make a new map"
        " and drop the contents"
    )


def _loaded(draft: Draft, wanted: WantedObject) -> Mapping[str, ProgramInfo]:
    digests = draft.observed.programs.get(escape(wanted.name), {})
    return digests.get(wanted.digest, _NO_PROGRAMS)


def _reason_to_load(draft: Draft, wanted: WantedObject) -> str:
    """Why an object has to be loaded (again); empty when it is fine as it is."""
    digests = draft.observed.programs.get(escape(wanted.name), {})
    if wanted.digest not in digests:
        return "its file or settings changed" if digests else "not loaded yet"
    loaded = digests[wanted.digest]
    if loaded.keys() != {escape(program) for program in wanted.programs}:
        return "not all of its programs are pinned"
    for pin_name in wanted.maps.values():
        match draft.map_actions.get(pin_name):
            case CreateMap():
                return f"map {pin_name} is new"
            case RecreateMap():
                return f"map {pin_name} is recreated"
            case RenewMap():
                return f"map {pin_name} is renewed"
            case RenameMap() | None:
                pass
    return _stale_map(draft, wanted, loaded)


def _stale_map(draft: Draft, wanted: WantedObject, loaded: Mapping[str, ProgramInfo]) -> str:
    """Whether a program goes on with a map that is not the one pinned under its name."""
    names = draft.observed.map_names
    if not names:
        return ""
    others = {
        kernel_name(wanted.name, spec.name)
        for spec in wanted.source.spec.maps
        if spec.name not in wanted.maps
    }
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


def _kernel_names(draft: Draft, wanted: WantedObject) -> dict[str, str]:
    """What the maps kept by an object may be called in the kernel, to the name of their pin: as
    the pin, or as any of their users declares them."""
    names = {}
    for pin_name in wanted.maps.values():
        names[pin_name.rpartition("/")[2][:15]] = pin_name
        for user in draft.desired.maps[pin_name].users:
            maps = draft.desired.objects[user].maps
            names |= {
                kernel_name(user, elf_name): pin
                for elf_name, pin in maps.items()
                if pin == pin_name
            }
    return names


def _restore_held_links(draft: Draft) -> None:
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


def _orphan_links(draft: Draft) -> dict[LinkKey, ObservedLink]:
    """Links that no attachment of the manifest wants and that no held object owns."""
    wanted = draft.desired.link_keys()
    untouchable = {escape(name) for name in (*draft.held_objects, *draft.desired.faults)}
    return {
        key: link
        for key, link in draft.observed.links.items()
        if key not in wanted and key[0] not in untouchable
    }


def _decide_attachment(
    draft: Draft,
    wanted: WantedObject,
    attachment: Attachment,
    orphans: Mapping[LinkKey, ObservedLink],
    places: Mapping[Place, tuple[Attachment, ...]],
) -> None:
    key = attachment.key
    link = draft.observed.links.get(key)
    target_id = _target_id(draft, attachment)
    running = _loaded(draft, wanted).get(escape(attachment.program))
    # Without a usable file, the programs that are pinned can still be attached.
    held = wanted.name in draft.held_objects and not (wanted.fault and running)
    if link and not link.pinned and link.info.target_id:
        in_place = serves(link.info, attachment, target_id)
        updated = attachment.hook.kind is HookKind.STRUCT_OPS
        if in_place or held or updated or isinstance(target_id, str):  # else its place is needed
            draft.restores.append(RestoreLink(key, link.info))
    if isinstance(target_id, str):
        _refuse(draft, attachment, link, target_id, orphans)
        return
    if held:
        return
    load = draft.loads.get(wanted.name)
    if attachment.hook.kind is HookKind.STRUCT_OPS and (link and link.info.target_id):
        if link.info.target_id != target_id:
            reason = load.reason if load else f"map ID {link.info.target_id} is registered"
            swap = Swap(attachment, link.info, key, wanted.digest, reason)
            draft.links.setdefault(wanted.name, []).append(swap)
        return
    actions = draft.links.setdefault(wanted.name, [])
    if link and serves(link.info, attachment, target_id):
        stub = behind_stub(draft, attachment, key, link)
        reason = load.reason if load else ""
        if running and not reason:
            reason = _wrong_program(attachment, link, running, stub)
        if reason:
            actions.append(Swap(attachment, link.info, key, wanted.digest, reason, stub))
        actions += filter(None, [displace(draft, attachment, wanted.digest)])
        return
    if _take_orphan(draft, wanted, attachment, orphans):
        return
    reason = "its target came back or the link was detached" if link else "not attached yet"
    if link and link.info.target_id and isinstance(attachment.target, BinaryTarget):
        reason = "the binary is another file now"
    peers = places.get(place_of_hook(attachment), ())
    new = Attach(attachment, wanted.digest, reason, peers=peers)
    attach = decide(draft, new, None if load else running)
    if attach:
        actions.append(attach)


def _refuse(
    draft: Draft,
    attachment: Attachment,
    link: ObservedLink | None,
    reason: str,
    orphans: Mapping[LinkKey, ObservedLink],
) -> None:
    """An attachment whose target is not there."""
    key = attachment.key
    if link and link.info.type in _NETFILTER and not link.info.target_id:
        draft.dead_links[key] = _HOLDS_NETNS
    draft.refusals.append(Refusal("attachment", str(attachment), reason))
    # A mistyped target must not take down what runs: that stays until the new one is there.
    draft.spared_links |= {orphan for orphan in orphans if orphan[:2] == key[:2]}


def _take_orphan(
    draft: Draft,
    wanted: WantedObject,
    attachment: Attachment,
    orphans: Mapping[LinkKey, ObservedLink],
) -> bool:
    """Whether a link that nobody wants under its name is at the very place."""
    key, target_id = attachment.key, _target_id(draft, attachment)
    # A link of the same object first: another's may be on its way out for good.
    for orphan_key, orphan in sorted(orphans.items(), key=lambda item: item[0][0] != key[0]):
        usable = orphan.pinned and orphan_key not in draft.taken_links
        if not usable or not serves(orphan.info, attachment, target_id):
            continue
        if netns_of(orphan_key) != netns_of(key):  # interface indexes repeat in each namespace
            continue
        draft.taken_links.add(orphan_key)
        if _same_mode(orphan_key, key):
            reason = "it takes over a link"
            stub = behind_stub(draft, attachment, orphan_key, orphan)
            draft.links[wanted.name].append(
                Swap(attachment, orphan.info, orphan_key, wanted.digest, reason, stub)
            )
            draft.links[wanted.name] += filter(None, [displace(draft, attachment, wanted.digest)])
        else:
            draft.refusals.append(Refusal("attachment", str(attachment), _OTHER_MODE))
        return True
    return False


def _target_id(draft: Draft, attachment: Attachment) -> int | str | None:
    """The number of its target; none that a link could have where that is a map to be made."""
    target = attachment.target
    if isinstance(target, MapTarget) and draft.makes(target.name):
        return _TO_BE_MADE
    return draft.observed.targets.get(target)


def _wrong_program(
    attachment: Attachment, link: ObservedLink, running: ProgramInfo, stub: StubKey | None
) -> str:
    """Why a link that is in its place has to be swapped all the same; empty when it has not."""
    if running.id != link.info.prog_id:
        return f"it runs program ID {link.info.prog_id or 'none'}, not the kept one"
    if attachment.exact and not stub:
        return "it is to be behind a stub"
    if link.stub and not attachment.exact:
        return "it needs no stub any more"
    return ""


def _same_mode(one: LinkKey, other: LinkKey) -> bool:
    """XDP modes are part of the target's name: a link cannot change its mode."""
    return [escape(mode) in one[2] for mode in ("+native", "+generic")] == [
        escape(mode) in other[2] for mode in ("+native", "+generic")
    ]


def _refusals(draft: Draft) -> list[Refusal]:
    maps = [Refusal("map", name, reason) for name, reason in draft.refused_maps.items()]
    objects = [
        Refusal("object", name, reason)
        for name, reason in (*draft.desired.faults.items(), *draft.held_objects.items())
    ]
    return [*maps, *objects, *draft.refusals]
