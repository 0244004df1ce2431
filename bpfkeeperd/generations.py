"""Maps whose contents belong to programs or to the manifest: what of them has to be made anew or
written. Pure.

A program array is renewed as a whole when programs in it change: rewriting the slots of one that
programs run on would mix old and new. Global data is renewed when its layout changes.
"""

from dataclasses import replace

from bpfkeeperd.actions import LoadObject, Refusal, RenameMap, RenewMap, WriteEntries
from bpfkeeperd.desired import WantedMap
from bpfkeeperd.draft import Draft, hold_back, holder, keep_map
from bpfkeeperd.entries import Content, MapRef
from bpfkeeperd.globaldata import variables
from bpfkeeperd.state import MapInfo

_NOT_TO_BE_READ = "the pinned map's BTF cannot be read, which takes CAP_SYS_ADMIN, and it is that"


def renew_data(
    draft: Draft, wanted: WantedMap, current: MapInfo, differing: tuple[str, ...]
) -> None:
    """Global data whose layout changed: variables that are still the same are carried over."""
    _, layout = draft.found(wanted.name).layouts
    if layout is None or wanted.spec.value_layout is None:
        which = "the object has no BTF"
        if layout is None:
            which = "the pinned map has no BTF" if not current.btf[0] else _NOT_TO_BE_READ
        draft.refused_maps[wanted.name] = (
            f"the pinned map (ID {current.id}) differs ({'; '.join(differing)}), and {which}"
            " that says which variable is where: compile with -g, or remove the pin"
        )
        return
    have, want = variables(layout), variables(wanted.spec.value_layout)
    carried = tuple(name for name in want if name in have and have[name].same(want[name]))
    draft.map_actions[wanted.name] = RenewMap(
        wanted,
        current,
        "; ".join(differing),
        carried,
        tuple(name for name in have if name not in carried),
        draft.found(wanted.name).source,
    )


def renew_arrays(draft: Draft) -> bool:
    """Gives program arrays whose programs change a new generation, and all users along with it.

    Returns False when something had to be held back for it: then all loads have to be decided
    again.
    """
    for name in [name for name, wanted in draft.desired.maps.items() if wanted.generational]:
        if isinstance(draft.map_actions.get(name), RenewMap):
            _renew_not(draft, name)
    held, refused = len(draft.held_objects), len(draft.refused_maps)
    while _renew_one(draft):
        pass
    while _give_up_one(draft):
        pass
    return (held, refused) == (len(draft.held_objects), len(draft.refused_maps))


def _renew_one(draft: Draft) -> bool:
    """Decides on one program array; False when there is none left to decide on."""
    for name, wanted in draft.desired.maps.items():
        if not wanted.generational or draft.makes(name) or name in draft.refused_maps:
            continue
        found = draft.found(name)
        current = found.pinned or found.lost
        parts = dict.fromkeys((*wanted.users, *wanted.fillers))
        changing = [part for part in parts if part in draft.loads]
        if current is None or not (changing or found.astray):
            continue
        reason = (
            f"object {changing[0]} is loaded" if changing else "other programs are wanted in it"
        )
        draft.map_actions[name] = RenewMap(wanted, current, reason, source=found.source)
        who = holder(draft, name)
        if who:
            _renew_not(draft, name)
            shared = f"object {who}, with which it shares {name}, is held back"
            for part in changing:
                del draft.loads[part]
                draft.held_objects[part] = shared
            if not changing:
                draft.refused_maps[name] = f"object {who}, which uses it, is held back"
            hold_back(draft)
            return True
        for user in wanted.users:
            if user not in draft.loads and user not in draft.held_objects:
                renewed = f"program array {name} is renewed"
                draft.loads[user] = LoadObject(draft.desired.objects[user], renewed)
        return True
    return False


def _renew_not(draft: Draft, name: str) -> None:
    """Takes back that a program array is renewed; another name it gets all the same."""
    action = draft.map_actions.pop(name)
    if isinstance(action, RenewMap) and action.source:
        draft.map_actions[name] = RenameMap(action.map, action.source, action.old)


def _give_up_one(draft: Draft) -> bool:
    """Finds a new map that nobody can make or fill; False when there is none left."""
    for name, wanted in draft.desired.maps.items():
        if not draft.makes(name):
            continue
        if not wanted.definition and not any(user in draft.loads for user in wanted.users):
            keep_map(draft, name, "")  # its users are held back, and tell why
            return True
        for content in wanted.contents:
            missing = _missing(draft, content)
            if missing:
                keep_map(draft, name, f"entry {content.text}: {missing}")
                return True
    return False


def _missing(draft: Draft, content: Content) -> str:
    """Why the program or map that an entry names cannot be had; empty when it can."""
    if isinstance(content.value, MapRef):
        part = content.value.name
        found = draft.found(part)
        if draft.makes(part) or found.pinned or found.lost:
            return ""
        why = draft.refused_maps.get(part, "")
        return f"there is no map {part}{f' ({why})' if why else ''}"
    ref = content.program
    if not ref or ref.object in draft.loads or draft.pinned_program(ref.object, ref.program):
        return ""
    why = draft.held_objects.get(ref.object) or draft.desired.faults.get(ref.object, "")
    return f"program {ref.object}/{ref.program} is not loaded{f' ({why})' if why else ''}"


def leave_out_entries(draft: Draft) -> None:
    """New maps go without entries for interfaces and cgroups that are not there: that must not
    stop the rest."""
    for name, wanted in draft.desired.maps.items():
        action = draft.map_actions.get(name)
        if action is None or not draft.makes(name):
            continue
        there = []
        for content in wanted.contents:
            why = _no_target(draft, content)
            if not why:
                there.append(content)
                continue
            when = "a reload writes it when it is there"
            _refuse_entry(draft, wanted, content, why if not wanted.enforce else f"{why}; {when}")
        if len(there) < len(wanted.contents):
            less = replace(wanted, contents=tuple(there))
            draft.map_actions[name] = replace(action, map=less)


def _no_target(draft: Draft, content: Content) -> str:
    """Why there is no interface or cgroup of that name; empty when there is."""
    found = draft.observed.targets.get(content.target, 0) if content.target else 0
    return found if isinstance(found, str) else ""


def _refuse_entry(draft: Draft, wanted: WantedMap, content: Content, why: str) -> None:
    draft.refusals.append(Refusal("entry", f"{content.text} of map {wanted.name}", why))


def write_entries(draft: Draft) -> None:
    """Entries of kept maps that are not as the manifest has them, or name a map that is new."""
    for name, wanted in draft.desired.maps.items():
        found = draft.found(name)
        if not wanted.contents or draft.makes(name) or name in draft.refused_maps:
            continue
        if wanted.generational or not (found.pinned or found.lost):
            continue
        places, moved = [], False
        for place, content in enumerate(wanted.contents):
            astray, is_new = place in found.astray, _is_new(draft, content)
            if astray and wanted.enforce:
                missing = _no_target(draft, content) or _missing(draft, content)
                if missing:
                    _refuse_entry(draft, wanted, content, missing)
                    continue
            # What others put into the slot stays, unless the entries are enforced.
            if (astray and wanted.enforce) or (is_new and not astray):
                places.append(place)
                moved = moved or is_new
        if places:
            reason = "what they name is new" if moved else "not as in the manifest"
            draft.writes[name] = WriteEntries(wanted, tuple(places), reason)


def _is_new(draft: Draft, content: Content) -> bool:
    """Whether an entry names a map or a program that there will be another of."""
    if isinstance(content.value, MapRef):
        return draft.makes(content.value.name)
    return content.program is not None and content.program.object in draft.loads
