"""Maps whose contents belong to programs or to the manifest: what of them has to be made anew or
written. Pure.

A program array is renewed as a whole when programs in it change: rewriting the slots of one that
programs run on would mix old and new. Global data is renewed when its layout changes.
"""

from bpfkeeperd.actions import LoadObject, RenewMap, WriteEntries
from bpfkeeperd.desired import WantedMap
from bpfkeeperd.draft import Draft, hold_back, holder
from bpfkeeperd.entries import Content, MapRef
from bpfkeeperd.globaldata import variables
from bpfkeeperd.state import MapInfo


def renew_data(
    draft: Draft, wanted: WantedMap, current: MapInfo, differing: tuple[str, ...]
) -> None:
    """Global data whose layout changed: variables that are still the same are carried over."""
    _, layout = draft.found(wanted.name).layouts
    if layout is None or wanted.spec.value_layout is None:
        which = "the pinned map" if layout is None else "the object"
        draft.refused_maps[wanted.name] = (
            f"the pinned map (ID {current.id}) differs ({'; '.join(differing)}), and {which} has no"
            " BTF that says which variable is where: compile with -g, or remove the pin"
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
    )


def renew_arrays(draft: Draft) -> bool:
    """Gives program arrays whose programs change a new generation, and all users along with it.

    Returns False when something had to be held back for it: then all loads have to be decided
    again.
    """
    for name in [name for name, wanted in draft.desired.maps.items() if wanted.generational]:
        if isinstance(draft.map_actions.get(name), RenewMap):
            del draft.map_actions[name]
    held, refused = len(draft.held_objects), len(draft.refused_maps)
    while _renew_one(draft):
        pass
    for name, wanted in draft.desired.maps.items():
        if draft.makes(name) and (missing := _missing_filler(draft, wanted)):
            del draft.map_actions[name]
            draft.refused_maps[name] = missing
    return (held, refused) == (len(draft.held_objects), len(draft.refused_maps))


def _renew_one(draft: Draft) -> bool:
    """Decides on one program array; False when there is none left to decide on."""
    for name, wanted in draft.desired.maps.items():
        if not wanted.generational or name in draft.map_actions or name in draft.refused_maps:
            continue
        found = draft.found(name)
        current = found.pinned or found.lost
        changing = [part for part in (*wanted.users, *wanted.fillers) if part in draft.loads]
        if current is None or not (changing or found.astray):
            continue
        reason = (
            f"object {changing[0]} is loaded" if changing else "other programs are wanted in it"
        )
        draft.map_actions[name] = RenewMap(wanted, current, reason)
        who = holder(draft, name)
        if who:
            del draft.map_actions[name]
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


def _missing_filler(draft: Draft, wanted: WantedMap) -> str:
    """Why a slot of a new program array cannot be filled; empty when all can."""
    for content in wanted.contents:
        if isinstance(content.value, MapRef) and content.value.name not in draft.desired.maps:
            return f"entry {content.text}: no object that can be read keeps {content.value.name}"
        ref = content.program
        if not ref or ref.object in draft.loads or draft.pinned_program(ref.object, ref.program):
            continue
        why = draft.held_objects.get(ref.object) or draft.desired.faults.get(ref.object, "")
        return (
            f"entry {content.text}: program {ref.object}/{ref.program} is not loaded"
            f"{f' ({why})' if why else ''}"
        )
    return ""


def write_entries(draft: Draft) -> None:
    """Entries of kept maps that are not as the manifest has them, or name a map that is new."""
    for name, wanted in draft.desired.maps.items():
        found = draft.found(name)
        if not wanted.contents or draft.makes(name) or name in draft.refused_maps:
            continue
        if not (found.pinned or found.lost):
            continue
        astray = set(found.astray) if wanted.enforce and not wanted.generational else set[int]()
        moved = {
            place
            for place, content in enumerate(wanted.contents)
            if not wanted.generational
            and _is_new(draft, content)
            # What others put into the slot stays, unless the entries are enforced.
            and (wanted.enforce or place not in found.astray)
        }
        places = tuple(sorted(astray | moved))
        if places:
            reason = "what they name is new" if moved else "not as in the manifest"
            draft.writes[name] = WriteEntries(wanted, places, reason)


def _is_new(draft: Draft, content: Content) -> bool:
    """Whether an entry names a map or a program that there will be another of."""
    if isinstance(content.value, MapRef):
        return draft.makes(content.value.name)
    return content.program is not None and content.program.object in draft.loads
