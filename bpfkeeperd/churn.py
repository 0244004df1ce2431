"""Which map IDs changed, and why: deduced from what is pinned, not from what was meant. Pure."""

from collections.abc import Mapping, Set
from dataclasses import dataclass, field, replace

from bpfkeeperd.state import MapIdChange


@dataclass(frozen=True, slots=True)
class MapRecord:
    """What is remembered of one name."""

    id: int
    """The map ID last seen; 0 when it was seen in an earlier boot only."""
    made: bool = False
    """The keeper made this pin; it may remove it."""
    changes: Mapping[MapIdChange, int] = field(default_factory=dict)


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

    def last_ids(self, boot_id: str) -> dict[str, int]:
        """The last ID of each name; none when they are from before this boot."""
        if boot_id != self.boot_id:
            return {}
        return {name: record.id for name, record in self.maps.items() if record.id}


NOTHING: Mapping[str, str] = {}


@dataclass(frozen=True, slots=True)
class IdChange:
    name: str
    old: int
    new: int
    reason: MapIdChange

    def __str__(self) -> str:
        return f"map {self.name} has a new ID: {self.old} became {self.new} ({self.reason})"


def follow(
    memory: Memory,
    pinned: Mapping[str, int],
    *,
    boot_id: str,
    made: Set[str] = frozenset(),
    recreated: Set[str] = frozenset(),
    renewed: Set[str] = frozenset(),
    renamed: Mapping[str, str] = NOTHING,
) -> tuple[Memory, tuple[IdChange, ...]]:
    """Compares the IDs under the names now with the last ones.

    ``made`` are the pins that the keeper made since the last look, ``recreated`` those of them that
    took the place of another map, ``renewed`` those that carry on what another held. ``renamed``
    has the new name of each pin that got one, with the old one.
    """
    maps = dict(memory.maps)
    for name, former in renamed.items():
        if former in maps:
            maps[name] = maps.pop(former)
    changes = []
    for name, map_id in pinned.items():
        record = maps.get(name)
        if record is None:
            maps[name] = MapRecord(map_id, made=name in made)
            continue
        if boot_id != memory.boot_id or not record.id:
            reason = MapIdChange.REBOOT
        elif map_id == record.id:
            if name in made and not record.made:
                maps[name] = replace(record, made=True)
            continue
        elif name in renewed:
            reason = MapIdChange.RENEWED
        elif name in recreated:
            reason = MapIdChange.RECREATED
        elif name in made:
            reason = MapIdChange.LOST
        else:
            reason = MapIdChange.REPLACED
        counts = {**record.changes, reason: record.changes.get(reason, 0) + 1}
        maps[name] = MapRecord(map_id, made=name in made, changes=counts)
        changes.append(IdChange(name, record.id, map_id, reason))
    if boot_id != memory.boot_id:  # an ID of another boot may be anybody's in this one
        for name in maps.keys() - pinned.keys():
            maps[name] = replace(maps[name], id=0, made=False)
    return replace(memory, boot_id=boot_id, maps=maps), tuple(changes)
