"""What of a plan must succeed or fail together, and what goes when all is done. Pure."""

from collections.abc import Iterable, Iterator, Mapping

from bpfkeeperd.actions import (
    REPLACED,
    Change,
    Detach,
    LinkAction,
    Removal,
    RemoveArray,
    RemovePrograms,
    Swap,
)
from bpfkeeperd.draft import Draft, attached_to_maps
from bpfkeeperd.health import Trial
from bpfkeeperd.hooks import HookKind
from bpfkeeperd.layout import LinkKey, escape
from bpfkeeperd.observed import ObservedLink
from bpfkeeperd.planstubs import leaving, unwanted_stubs


def group(
    draft: Draft, orphans: Mapping[LinkKey, ObservedLink]
) -> tuple[tuple[Change, ...], tuple[Removal, ...]]:
    """Puts together what must succeed or fail together; the rest of the removals stands alone."""
    removals = _removals(draft, orphans)
    groups = _components(draft)
    changes = []
    renamed, rights = draft.map_actions.keys(), dict(draft.rights)
    for maps, objects in groups:
        loads = [draft.loads[name] for name in objects if name in draft.loads]
        changed = [name for name in objects if name in draft.loads or draft.links.get(name)]
        own = [removal for name in changed for removal in removals.pop(name, ())]
        change = Change(
            maps=tuple(draft.map_actions[name] for name in maps if name in draft.map_actions),
            loads=tuple(loads),
            links=_in_order(action for name in objects for action in draft.links.get(name, ())),
            writes=tuple(draft.writes[name] for name in maps if name in draft.writes),
            rights=tuple(rights.pop(name) for name in maps if name in renamed & rights.keys()),
            removals=tuple(own),
            trials=tuple(trial for name in objects for trial in _trials(draft, name)),
        )
        if change.actions:
            changes.append(change)
    # Where a map keeps its name, nothing else depends on the rights of its pin.
    changes += [Change(rights=(action,)) for action in rights.values()]
    return tuple(changes), tuple(removal for rest in removals.values() for removal in rest)


def _in_order(links: Iterable[LinkAction]) -> tuple[LinkAction, ...]:
    """Programs at maps of sockets first: a socket gets none that comes after it. Then what stays on
    a stub, which may have to get another name before other links are made on it."""
    return tuple(
        sorted(
            links,
            key=lambda action: (
                action.attachment.hook.kind is not HookKind.SOCKMAP,
                not (isinstance(action, Swap) and action.stub),
            ),
        )
    )


def _trials(draft: Draft, name: str) -> Iterator[Trial]:
    """The programs of an object that are to be judged: those swapped in, or loaded to be run.

    One whose targets are not there cannot show anything.
    """
    wanted = draft.desired.objects[name]
    links = draft.links.get(name, ())
    for program, health in wanted.health.items():
        swapped = any(isinstance(a, Swap) and a.attachment.program == program for a in links)
        attached = any(action.attachment.program == program for action in links)
        wanted_somewhere = any(a.program == program for a in wanted.attachments)
        if swapped or (name in draft.loads and (attached or not wanted_somewhere)):
            yield Trial(name, program, health)


def _components(draft: Draft) -> list[tuple[list[str], list[str]]]:
    """Maps and objects of each change: joined wherever one cannot be done without the other."""
    group_of: dict[str, str] = {}

    def root(node: str) -> str:
        while (parent := group_of.setdefault(node, node)) != node:
            node = parent
        return node

    takes_part = [
        name
        for name, wanted in draft.desired.objects.items()
        if name not in draft.held_objects or wanted.fault
    ]
    touched = [name for name in draft.desired.maps if _is_touched(draft, name)]
    attached_to = attached_to_maps(draft.desired) if touched else {}
    for map_name in touched:
        wanted_map = draft.desired.maps[map_name]
        # Its users take the new map, or know it by its former name; its fillers bring the programs
        # of its slots, its inner maps stand in it, programs are attached to it.
        users = wanted_map.users if map_name in draft.map_actions else ()
        if not draft.makes(map_name):
            users = tuple(name for name in users if name in draft.loads)
        fillers = [name for name in wanted_map.fillers if name in draft.loads]
        attached = attached_to.get(map_name, ()) if draft.makes(map_name) else ()
        others = [_object(name) for name in (*users, *fillers, *attached) if name in takes_part]
        for other in (*others, *(_map(part) for part in wanted_map.parts if part in touched)):
            group_of[root(_map(map_name))] = root(other)
    groups: dict[str, tuple[list[str], list[str]]] = {}
    for map_name in sorted(touched, key=lambda name: bool(draft.desired.maps[name].parts)):
        groups.setdefault(root(_map(map_name)), ([], []))[0].append(map_name)
    for name in takes_part:
        groups.setdefault(root(_object(name)), ([], []))[1].append(name)
    return list(groups.values())


def _is_touched(draft: Draft, map_name: str) -> bool:
    return map_name in draft.map_actions or map_name in draft.writes


def _map(name: str) -> str:
    return f"map {name}"


def _object(name: str) -> str:
    return f"object {name}"


def _removals(draft: Draft, orphans: Mapping[LinkKey, ObservedLink]) -> dict[str, list[Removal]]:
    """By object name (the escaped one for what is not in the manifest)."""
    names = {escape(name): name for name in draft.desired.objects}
    untouchable = {escape(name) for name in (*draft.held_objects, *draft.desired.faults)}
    removals: dict[str, list[Removal]] = {}
    detached = sorted(orphans.keys() - draft.taken_links - draft.spared_links)
    for key in detached:
        reason = "not in the manifest any more"
        removals.setdefault(names.get(key[0], key[0]), []).append(Detach(key, reason))
    for key, reason in draft.dead_links.items():
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
    for array in draft.observed.arrays:
        escaped = array.split("/")[2]
        if array not in draft.desired.maps and escaped not in untouchable:
            name = names.get(escaped, escaped)
            reason = "not used any more" if escaped in names else "not in the manifest any more"
            removals.setdefault(name, []).append(RemoveArray(array, reason))
    for stub in unwanted_stubs(draft, detached):
        # Not before the links that run it are off it: without its pin the array is emptied.
        users = leaving(draft, stub.key) or {names.get(stub.key[0], stub.key[0])}
        removals.setdefault(min(users) if len(users) == 1 else "", []).append(stub)
    return removals
