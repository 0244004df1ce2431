"""What a plan has decided so far, and what is held back while it decides. Pure."""

from dataclasses import dataclass, field

from bpfkeeperd.actions import (
    LinkAction,
    LoadObject,
    MapAction,
    Refusal,
    RenameMap,
    Restore,
    RestoreMap,
    SetRights,
    WriteEntries,
)
from bpfkeeperd.desired import Desired
from bpfkeeperd.layout import LinkKey, escape
from bpfkeeperd.observed import Observed, ObservedMap
from bpfkeeperd.state import ProgramInfo
from bpfkeeperd.targets import MapTarget

_NOTHING = ObservedMap()


@dataclass(slots=True)
class Draft:
    """What has been decided so far."""

    desired: Desired
    observed: Observed
    map_actions: dict[str, MapAction] = field(default_factory=dict)
    writes: dict[str, WriteEntries] = field(default_factory=dict)
    rights: dict[str, SetRights] = field(default_factory=dict)
    refused_maps: dict[str, str] = field(default_factory=dict)
    held_objects: dict[str, str] = field(default_factory=dict)
    """Held back, with everything they have left as it is."""
    loads: dict[str, LoadObject] = field(default_factory=dict)
    links: dict[str, list[LinkAction]] = field(default_factory=dict)
    taken_links: set[LinkKey] = field(default_factory=set)
    """Orphans that another attachment takes over, or that stand in its way."""
    spared_links: set[LinkKey] = field(default_factory=set)
    """Orphans that stay until the attachment that replaces them can be made."""
    taken_foreign: set[tuple[int, int]] = field(default_factory=set)
    """Attachments of others that one of ours takes the place of: link ID and program ID."""
    dead_links: dict[LinkKey, str] = field(default_factory=dict)
    """Of attachments whose target is gone: let go of all the same, and why."""
    restores: list[Restore] = field(default_factory=list)
    refusals: list[Refusal] = field(default_factory=list)

    def found(self, map_name: str) -> ObservedMap:
        return self.observed.maps.get(map_name, _NOTHING)

    def makes(self, map_name: str) -> bool:
        """Whether there will be a new map under a name."""
        action = self.map_actions.get(map_name)
        return action is not None and not isinstance(action, RenameMap)

    def pinned_program(self, object_name: str, program: str) -> ProgramInfo | None:
        """A program as it is loaded now, of whatever file."""
        for loaded in self.observed.programs.get(escape(object_name), {}).values():
            if escape(program) in loaded:
                return loaded[escape(program)]
        return None


def hold_back(draft: Draft) -> None:
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
            who = holder(draft, name) if draft.makes(name) else ""
            if who:
                keep_map(draft, name, f"object {who}, which uses it, is held back")
                changed = True


def holder(draft: Draft, map_name: str) -> str:
    """An object that cannot come along when a map is exchanged; empty when there is none.

    It would go on with the old map, which nobody could see. What counts is what is loaded of it:
    an object that is not loaded at all goes on with nothing.
    """
    found = draft.found(map_name)
    current = found.pinned or found.lost
    held = (*draft.held_objects, *draft.desired.faults)
    attached = attached_to_maps(draft.desired).get(map_name, ()) if held else ()
    for name in held:
        loaded = draft.observed.programs.get(escape(name), {})
        uses = name in draft.map_actions[map_name].map.users or name in attached
        runs = current is not None and any(
            current.id in program.map_ids
            for programs in loaded.values()
            for program in programs.values()
        )
        if loaded and (uses or runs):
            return name
    return ""


def attached_to_maps(desired: Desired) -> dict[str, set[str]]:
    """Maps that programs are attached to, and the objects of these."""
    found: dict[str, set[str]] = {}
    for name, wanted in desired.objects.items():
        for attachment in wanted.attachments:
            if isinstance(attachment.target, MapTarget):
                found.setdefault(attachment.target.name, set()).add(name)
    for name, _, target, _ in desired.unread_attachments():
        if isinstance(target, MapTarget):
            found.setdefault(target.name, set()).add(name)
    return found


def keep_map(draft: Draft, name: str, reason: str) -> None:
    """Leaves a map as it is, although it was about to be made; without a reason, somebody else
    tells why."""
    del draft.map_actions[name]
    if reason:
        draft.refused_maps[name] = reason
    lost = draft.found(name).lost
    restored = any(
        isinstance(restore, RestoreMap) and restore.map.name == name for restore in draft.restores
    )
    if lost and not restored:
        draft.restores.append(RestoreMap(draft.desired.maps[name], lost))
