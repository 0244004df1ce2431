"""Which map IDs changed, and why: deduced from what is pinned, not from what was meant. Pure."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from bpfkeeperd.layout import OBJECT_NAMESPACE
from bpfkeeperd.state import LastChange, MapIdChange


@dataclass(frozen=True, slots=True)
class MapRecord:
    """What is remembered of one name."""

    id: int
    """The map ID last seen; 0 when it was seen in an earlier boot only."""
    made: bool = False
    """The keeper made this pin; it may remove it."""
    changes: Mapping[MapIdChange, int] = field(default_factory=dict)
    since: float = 0.0
    """Unix time since when this map is under the name, as far as it is known; 0: it is not."""
    last_change: LastChange | None = None
    past_id: int = 0
    """The last ID of an earlier boot, where ``id`` is 0."""
    owner: int = 0
    """The user who owned the pin when it was last seen, by the manifest of then; 0: root."""


@dataclass(frozen=True, slots=True)
class Withheld:
    """A version of an object that was loaded and rolled back."""

    digest: str
    """As of `WantedObject`."""
    reason: str


@dataclass(frozen=True, slots=True)
class Memory:
    """What bpffs cannot hold, kept in the state file."""

    boot_id: str = ""
    """The boot in which the IDs below mean something."""
    maps: Mapping[str, MapRecord] = field(default_factory=dict)
    withheld: Mapping[str, Withheld] = field(default_factory=dict)
    """By object, what is not tried again before somebody asks for a reload."""

    adopted: Mapping[str, int] = field(default_factory=dict)
    """Attachments that somebody else made: object, program and target, with the link's ID."""
    conflicts: Mapping[str, int] = field(default_factory=dict)
    """Names under which the service manager kept another map than is pinned, with its ID."""

    def last_ids(self, boot_id: str) -> dict[str, int]:
        """The last ID of each name; none when they are from before this boot."""
        if boot_id != self.boot_id:
            return {}
        return {name: record.id for name, record in self.maps.items() if record.id}

    def owners(self, boot_id: str) -> dict[str, int]:
        """The users to whom pins were given since this boot, by the pin's name."""
        if boot_id != self.boot_id:
            return {}
        return {name: record.owner for name, record in self.maps.items() if record.owner}


OwnPins = Mapping[str, Mapping[int, MapIdChange]]
"""Pins that the keeper made and the state file does not know yet: name to the IDs that it pinned
there, each with the reason why, which is LOST of one that took no other's place."""

NO_PINS: OwnPins = {}
NOTHING: Mapping[str, str] = {}
NO_TIMES: Mapping[str, float] = {}


@dataclass(frozen=True, slots=True)
class IdChange:
    name: str
    old: int
    new: int
    reason: MapIdChange
    when: str = ""
    """What else is to be said of it."""

    def __str__(self) -> str:
        why = f"{self.reason}, {self.when}" if self.when else self.reason
        return f"map {self.name} has a new ID: {self.old} became {self.new} ({why})"


def follow(
    memory: Memory,
    pinned: Mapping[str, int],
    *,
    boot_id: str,
    at: float,
    pinned_at: Mapping[str, float] = NO_TIMES,
    own: OwnPins = NO_PINS,
    formers: Mapping[str, str] = NOTHING,
    renamed: Mapping[str, str] = NOTHING,
) -> tuple[Memory, tuple[IdChange, ...]]:
    """Compares the IDs under the names at the time ``at`` with the last ones.

    ``pinned_at`` says since when pins are where they are, as far as it is known: that is when
    their IDs changed, however late somebody looks.

    ``renamed`` has the new name of each pin that got one, with the old one; ``formers`` those that
    the manifest wants renamed, which may have been done by a keeper that could not say so.

    What happened between two looks and was undone before the second is not seen, and of several
    changes between them only the last; an ID that was given out again would be taken for the same
    map, but the kernel first gives out all others.
    """
    maps = dict(memory.maps)
    same_boot = boot_id == memory.boot_id
    moved = _renamed_unsaid(maps, pinned, own, formers) if same_boot else {}
    for name, former in {**moved, **renamed}.items():
        if former in maps:
            maps[name] = _joined(maps.pop(former), maps.get(name))
    changes = []
    for name, map_id in pinned.items():
        record = maps.get(name)
        reason = own.get(name, {}).get(map_id)
        if record is None:
            maps[name] = MapRecord(map_id, made=reason is not None, since=at)
            continue
        if map_id == record.id and same_boot:
            if reason and not record.made:
                maps[name] = replace(record, made=True)
            continue
        change = _change(name, record, map_id, reason, same_boot=same_boot)
        changed_at = min(max(pinned_at.get(name, at), record.since), at)
        maps[name] = MapRecord(
            map_id,
            made=reason is not None,
            changes={**record.changes, change.reason: record.changes.get(change.reason, 0) + 1},
            since=changed_at,
            last_change=LastChange(change.reason, change.old, changed_at),
        )
        changes.append(change)
    if not same_boot:  # an ID of another boot may be anybody's in this one
        for name in maps.keys() - pinned.keys():
            record = maps[name]
            past = record.id or record.past_id
            maps[name] = replace(record, id=0, made=False, past_id=past)
    adopted = memory.adopted if same_boot else {}
    conflicts = memory.conflicts if same_boot else {}
    known = replace(memory, boot_id=boot_id, maps=maps, adopted=adopted, conflicts=conflicts)
    return known, tuple(changes)


def _change(
    name: str, record: MapRecord, map_id: int, reason: MapIdChange | None, *, same_boot: bool
) -> IdChange:
    if not same_boot or not record.id:
        reason = MapIdChange.REBOOT
    return IdChange(name, record.id or record.past_id, map_id, reason or MapIdChange.REPLACED)


def _renamed_unsaid(
    maps: Mapping[str, MapRecord],
    pinned: Mapping[str, int],
    own: OwnPins,
    formers: Mapping[str, str],
) -> dict[str, str]:
    """Names that are new and hold what was known under their former name."""
    found = {}
    for name in pinned.keys() - maps.keys():
        map_id = pinned[name]
        renewed = own.get(name, {}).get(map_id) is MapIdChange.RENEWED
        for former in [formers[name]] if name in formers else _same_in_tc(name, maps):
            known = maps.get(former)
            if known and former not in pinned and (known.id == map_id or renewed):
                found[name] = former
                break
    return found


def _same_in_tc(name: str, maps: Iterable[str]) -> list[str]:
    """Where tc's rules had a map of an object's own, if the name is by them: with the hash of
    another file of the object."""
    place = OBJECT_NAMESPACE.fullmatch(name)
    if not place:
        return []
    others = ((other, OBJECT_NAMESPACE.fullmatch(other)) for other in maps)
    return [other for other, found in others if found and found[2] == place[2]]


def _joined(record: MapRecord, there: MapRecord | None) -> MapRecord:
    """A record that gets a name under which something was counted before: counts never go down."""
    if there is None:
        return record
    reasons = (*there.changes, *record.changes)
    counts = {
        reason: there.changes.get(reason, 0) + record.changes.get(reason, 0) for reason in reasons
    }
    last = max(
        (each.last_change for each in (record, there) if each.last_change),
        key=lambda change: change.at,
        default=None,
    )
    return replace(record, changes=counts, last_change=last)


def before_start(change: IdChange) -> IdChange:
    """A change that a keeper finds when it starts, before it does anything."""
    match change.reason:
        case MapIdChange.REPLACED | MapIdChange.LOST:
            return replace(change, when="while no daemon ran")
        case MapIdChange.RECREATED | MapIdChange.RENEWED | MapIdChange.MIGRATED:
            return replace(change, when="by a keeper that was killed")
        case MapIdChange.REBOOT:
            return change


def at_start(change: IdChange) -> IdChange:
    """A change that a keeper made as it started: what was lost was lost before."""
    return before_start(change) if change.reason is MapIdChange.LOST else change


def with_owners(memory: Memory, owners: Mapping[str, int]) -> Memory:
    """Takes note of whom pins belong to, all of which were found to be right."""
    different = {
        name: replace(record, owner=owner)
        for name, owner in owners.items()
        if (record := memory.maps.get(name)) and record.owner != owner
    }
    return replace(memory, maps={**memory.maps, **different}) if different else memory
