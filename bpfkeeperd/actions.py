"""What a plan can hold. ``str()`` of each is its line in the plan, for people."""

from dataclasses import dataclass

from bpfkeeperd.desired import Attachment, WantedMap, WantedObject
from bpfkeeperd.health import Trial
from bpfkeeperd.hooks import SwapWay
from bpfkeeperd.layout import LinkKey, StubKey, unescape
from bpfkeeperd.maptypes import type_name
from bpfkeeperd.observed import Foreign
from bpfkeeperd.pinrights import Rights
from bpfkeeperd.state import LinkInfo, MapInfo

REPLACED = "replaced"
"""Why the programs of an object's former file are unloaded."""


@dataclass(frozen=True, slots=True)
class RestoreMap:
    """The pin is gone, the map is alive: pin it again, with its ID and contents."""

    map: WantedMap
    info: MapInfo

    def __str__(self) -> str:
        return f"restore the pin of map {self.map.name} (ID {self.info.id}, contents kept)"


@dataclass(frozen=True, slots=True)
class RestoreLink:
    """The pin of an attachment is gone, the attachment is alive: pin it again."""

    key: LinkKey
    info: LinkInfo

    def __str__(self) -> str:
        return f"restore the pin of {_key_text(self.key)} (link ID {self.info.id})"


@dataclass(frozen=True, slots=True)
class RestoreStub:
    """A pin of a stub or of its array is gone, what was pinned is alive: pin it again."""

    key: StubKey

    def __str__(self) -> str:
        return f"restore the pins of the stub of {'/'.join(map(unescape, self.key))}"


@dataclass(frozen=True, slots=True)
class RestoreProgram:
    """The pin of a loaded program is gone, the program is alive: pin it again."""

    object: str
    """Escaped."""
    digest: str
    program: str
    """Escaped."""

    def __str__(self) -> str:
        return f"restore the pin of program {unescape(self.object)}/{unescape(self.program)}"


@dataclass(frozen=True, slots=True)
class CreateMap:
    map: WantedMap

    def __str__(self) -> str:
        spec, former = self.map.spec, self.map.former
        return (
            f"create map {self.map.name} ({type_name(spec.type)}, key {spec.key_size} B,"
            f" value {spec.value_size} B, max_entries {spec.max_entries}"
            f"{f'; nothing is renamed from {former}' if former else ''})"
        )


@dataclass(frozen=True, slots=True)
class RecreateMap:
    map: WantedMap
    old: MapInfo
    differing: tuple[str, ...]

    def __str__(self) -> str:
        return (
            f"recreate map {self.map.name}: ALL ITS CONTENTS ARE LOST, its ID {self.old.id}"
            f" changes ({'; '.join(self.differing)})"
        )


@dataclass(frozen=True, slots=True)
class RenewMap:
    """A new map in the place of one whose contents belong to the programs: what goes on to be true
    is carried over, under a new ID."""

    map: WantedMap
    old: MapInfo
    reason: str
    carried: tuple[str, ...] = ()
    """Of global data: the variables that keep their values."""
    dropped: tuple[str, ...] = ()
    """Of global data: those that do not."""
    source: str = ""
    """The name of its pin now, if that is another."""

    def __str__(self) -> str:
        changes = f"its ID {self.old.id} changes"
        if self.source:
            changes = f"renamed from {self.source}, {changes}"
        if not self.map.spec.internal:
            return (
                f"renew {type_name(self.map.spec.type)} {self.map.name}: {changes} ({self.reason})"
            )
        kept = f"copied by name: {', '.join(self.carried) or 'nothing'}"
        lost = f"; NOT COPIED: {', '.join(self.dropped)}" if self.dropped else ""
        return f"renew global data {self.map.name}: {changes}, {kept}{lost} ({self.reason})"


@dataclass(frozen=True, slots=True)
class RenameMap:
    """The map gets another name: its ID and contents stay."""

    map: WantedMap
    source: str
    """The name of its pin now."""
    info: MapInfo

    def __str__(self) -> str:
        return f"rename map {self.source} to {self.map.name} (ID {self.info.id}, contents kept)"


@dataclass(frozen=True, slots=True)
class SetRights:
    """Gives the pin of a kept map the owner, group and mode that the manifest wants."""

    map: WantedMap
    before: Rights
    rights: Rights

    def __str__(self) -> str:
        return (
            f"set owner {self.rights.who}, mode {self.rights.mode:04o} on map {self.map.name}"
            f" (was {self.before.who} {self.before.mode:04o})"
        )


@dataclass(frozen=True, slots=True)
class WriteEntries:
    """Puts entries of a kept map right."""

    map: WantedMap
    places: tuple[int, ...]
    """Of ``map.contents``."""
    reason: str

    def __str__(self) -> str:
        texts = [self.map.contents[place].text for place in self.places[:3]]
        more = f" and {len(self.places) - 3} more" if len(self.places) > 3 else ""
        return f"write entries of map {self.map.name}: {', '.join(texts)}{more} ({self.reason})"


@dataclass(frozen=True, slots=True)
class LoadObject:
    object: WantedObject
    reason: str

    def __str__(self) -> str:
        kept = ", ".join(self.object.maps.values())
        reusing = f", with maps {kept}" if kept else ""
        return f"load object {self.object.name}{reusing} ({self.reason})"


@dataclass(frozen=True, slots=True)
class Attach:
    attachment: Attachment
    digest: str
    """Of the object's file: where the program is pinned."""
    reason: str
    adopt: Foreign | None = None
    """Kept in place of ours, if it is the same program."""
    displaced: tuple[Foreign, ...] = ()
    """Those that ours takes the place of, unless they are adopted."""
    sole: bool = False
    """There is another, and nothing can be attached beside it."""
    peers: tuple[Attachment, ...] = ()
    """All attachments of its hook, if the manifest says anything of their order."""

    def __str__(self) -> str:
        text = f"attach {self.attachment} ({self.reason})"
        if self.adopt and self.adopt.same:
            text = f"adopt {self.adopt} for {self.attachment}: it is the same program"
        elif self.adopt:
            text += f", or adopt {self.adopt} if it is the same program"
        return text + _displaced_text(self.displaced, self.adopt)


@dataclass(frozen=True, slots=True)
class Displace:
    """What somebody else attached beside ours goes."""

    attachment: Attachment
    digest: str
    others: tuple[Foreign, ...]

    def __str__(self) -> str:
        others = " and ".join(str(other).removesuffix(",") for other in self.others)
        return f"DETACH {others}, which runs beside {self.attachment} (take_over: true)"


@dataclass(frozen=True, slots=True)
class Swap:
    """Another program takes the place of the one that is attached: no event is missed."""

    attachment: Attachment
    link: LinkInfo
    key: LinkKey
    """Where the link is pinned now; it is renamed when that is not the attachment's place."""
    digest: str
    reason: str
    stub: StubKey | None = None
    """The link stays on this stub, which calls the new program from now on."""

    def __str__(self) -> str:
        moment = ", both run for a moment" if self.overlaps else ""
        return f"swap the program of {self.attachment}{moment} ({self.reason})"

    @property
    def overlaps(self) -> bool:
        """Whether old and new see the same events for a moment."""
        way = self.attachment.hook.rules.swap
        return way in (SwapWay.OVERLAP, SwapWay.STUB) and self.stub is None


@dataclass(frozen=True, slots=True)
class Detach:
    key: LinkKey
    reason: str

    def __str__(self) -> str:
        return f"detach {_key_text(self.key)} ({self.reason})"


@dataclass(frozen=True, slots=True)
class RemovePrograms:
    """Lets go of the loaded programs of an object file."""

    object: str
    """Escaped."""
    digest: str
    reason: str
    last: bool = False
    """Nothing of the object is wanted any more."""

    def __str__(self) -> str:
        return (
            f"unload programs {self.digest[:12]} of object {unescape(self.object)} ({self.reason})"
        )


@dataclass(frozen=True, slots=True)
class RemoveArray:
    """Lets go of a program array that was kept for an object's programs alone."""

    name: str
    reason: str

    def __str__(self) -> str:
        return f"unpin program array {self.name} ({self.reason})"


@dataclass(frozen=True, slots=True)
class RemoveStub:
    """Lets go of a stub that nothing runs any more."""

    key: StubKey
    reason: str

    def __str__(self) -> str:
        return f"unload the stub of {'/'.join(map(unescape, self.key))} ({self.reason})"


Making = CreateMap | RecreateMap | RenewMap
"""There is a new map afterwards."""
MapAction = Making | RenameMap
LinkAction = Attach | Swap | Displace
Removal = Detach | RemovePrograms | RemoveArray | RemoveStub
Restore = RestoreMap | RestoreLink | RestoreProgram | RestoreStub
Action = Restore | MapAction | LoadObject | LinkAction | WriteEntries | SetRights | Removal


@dataclass(frozen=True, slots=True)
class Change:
    """A transaction: all of it happens, or nothing. Objects that share a new map are in one."""

    maps: tuple[MapAction, ...] = ()
    loads: tuple[LoadObject, ...] = ()
    links: tuple[LinkAction, ...] = ()
    writes: tuple[WriteEntries, ...] = ()
    rights: tuple[SetRights, ...] = ()
    removals: tuple[Removal, ...] = ()
    """Of what the change replaces; done last, when nothing can fail any more."""
    trials: tuple[Trial, ...] = ()
    """Programs that have to show that they work, before that."""

    @property
    def subject(self) -> str:
        """Whom it concerns: its objects, else its maps, which are called so."""
        objects = dict.fromkeys(load.object.name for load in self.loads)
        objects |= dict.fromkeys(link.attachment.object for link in self.links)
        maps = [action.map.name for action in (*self.maps, *self.writes, *self.rights)]
        return ", ".join(objects or (f"map {name}" for name in dict.fromkeys(maps)))

    @property
    def actions(self) -> tuple[Action, ...]:
        return (
            *self.maps,
            *self.loads,
            *self.links,
            *self.writes,
            *self.rights,
            *self.removals,
        )

    @property
    def makes(self) -> tuple[Making, ...]:
        return tuple(action for action in self.maps if not isinstance(action, RenameMap))

    @property
    def swaps(self) -> int:
        return sum(isinstance(action, Swap) for action in self.links)


@dataclass(frozen=True, slots=True)
class Refusal:
    """Something the manifest wants that is not done, and why."""

    kind: str
    """``map``, ``object``, ``attachment`` or ``entry``."""
    name: str
    reason: str
    foreign: bool = False
    """What somebody else attached stands in the way."""

    def __str__(self) -> str:
        return f"{self.kind} {self.name}: {self.reason}"


@dataclass(frozen=True, slots=True)
class Plan:
    restores: tuple[Restore, ...] = ()
    changes: tuple[Change, ...] = ()
    removals: tuple[Removal, ...] = ()
    """Of what left the manifest, and of what an interrupted reload left behind."""
    refusals: tuple[Refusal, ...] = ()
    misplaced: tuple[str, ...] = ()
    """What is attached, but not in the order that the manifest asks for."""
    kept_maps: tuple[str, ...] = ()
    """Maps that stay as they are, under their ID."""
    notes: tuple[str, ...] = ()
    """What somebody else runs beside it."""

    @property
    def actions(self) -> tuple[Action, ...]:
        """In the order in which they are done."""
        changes = (action for change in self.changes for action in change.actions)
        return (*self.restores, *changes, *self.removals)

    @property
    def trials(self) -> tuple[Trial, ...]:
        """Programs that have to show that they work, before anything is removed."""
        return tuple(trial for change in self.changes for trial in change.trials)


def _displaced_text(others: tuple[Foreign, ...], adopt: Foreign | None) -> str:
    text, first = "", next((other for other in others if other.link), None)
    for other in others:
        condition = " if not" if other == adopt else ""
        if other is first:
            text += f": TAKES OVER {other}{condition}"
        elif other.sole:
            text += f": DETACHES {other} first{condition}, nothing runs for a moment"
        else:
            text += f": DETACHES {str(other).removesuffix(',')} afterwards, both run for a moment"
    return text


def _key_text(key: LinkKey) -> str:
    object_name, program, target = (unescape(part) for part in key)
    return f"{object_name}/{program} at {target}"
