"""A machine on which nothing fails: what a plan does there, so that plans can be judged alone.

It refuses what the real one would refuse: a pin where one stands, a swap of a link that changed, a
map reused that is not the wanted one.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from bpfkeeperd.actions import (
    Attach,
    Change,
    CreateMap,
    Detach,
    Displace,
    LinkAction,
    LoadObject,
    Making,
    Plan,
    RecreateMap,
    Removal,
    RemoveArray,
    RemovePrograms,
    RemoveStub,
    RenameMap,
    RenewMap,
    Restore,
    RestoreLink,
    RestoreMap,
    RestoreProgram,
    RestoreStub,
    Swap,
)
from bpfkeeperd.compare import differences, layout_differences
from bpfkeeperd.desired import Attachment, Desired, WantedMap, WantedObject
from bpfkeeperd.entries import Content, MapRef
from bpfkeeperd.hooks import CLSACT_LINK, HookKind, SwapWay
from bpfkeeperd.layout import LinkKey, StubKey, escape, is_array_name, kernel_name
from bpfkeeperd.observed import Foreign, Observed, ObservedLink, ObservedMap, ObservedStub
from bpfkeeperd.pinrights import Rights
from bpfkeeperd.plan import serves
from bpfkeeperd.state import LinkInfo, MapInfo, MapSpec, ProgramInfo
from bpfkeeperd.targets import MapTarget, Target
from tests.unit import idealstubs

Layouts = tuple[str | None, str | None]
NEW = Rights(0, 0, 0o600)
"""Of a new pin."""


@dataclass(slots=True)
class Ideal:
    maps: dict[int, MapInfo] = field(default_factory=dict)
    layouts: dict[int, Layouts] = field(default_factory=dict)
    pins: dict[str, int] = field(default_factory=dict)
    rights: dict[str, Rights] = field(default_factory=dict)
    """Of pins that are not as a new one."""
    faults: dict[str, str] = field(default_factory=dict)
    """Pins of something that is no map."""
    remembered: dict[str, int] = field(default_factory=dict)
    """Maps that are alive, by the name they had or have."""
    programs: dict[str, dict[str, dict[str, ProgramInfo]]] = field(default_factory=dict)
    used_as: dict[int, dict[str, int]] = field(default_factory=dict)
    """By program ID: the maps it runs on, by their ELF names."""
    unpinned: set[tuple[str, str, str]] = field(default_factory=set)
    """Object, digest and name of programs whose pin is gone."""
    links: dict[LinkKey, ObservedLink] = field(default_factory=dict)
    """As they are: `idealstubs.seen` tells what those on stubs serve."""
    stubs: dict[StubKey, ObservedStub] = field(default_factory=dict)
    targets: dict[Target, int | str] = field(default_factory=dict)
    foreign: list[tuple[Attachment, Foreign]] = field(default_factory=list)
    """What somebody else attached, with an attachment at the same place. The tag tells whether it
    is what the wanted program would be."""
    adopted: set[int] = field(default_factory=set)
    """Links of theirs that were kept."""
    left_out: set[str] = field(default_factory=set)
    """Attachments that turned out to be impossible as they were made."""
    contents: dict[int, dict[int, object]] = field(default_factory=dict)
    """By map ID: what stands in the place of each wanted entry, programs and maps as their ID."""
    last_id: int = 100
    made: dict[str, int] = field(default_factory=dict)
    """Maps of the change that is being done, which are not pinned yet."""
    restored_links: set[LinkKey] = field(default_factory=set)
    generational: set[str] = field(default_factory=set)
    formers: dict[str, str] = field(default_factory=dict)
    wanted_digests: dict[str, str] = field(default_factory=dict)
    former_names: dict[str, str] = field(default_factory=dict)
    wanted_objects: dict[str, WantedObject] = field(default_factory=dict)
    wanted: dict[str, tuple[Content, ...]] = field(default_factory=dict)

    def new_id(self) -> int:
        self.last_id += 1
        return self.last_id

    def make_map(self, spec: MapSpec, kernel_name: str) -> int:
        info = MapInfo(
            self.new_id(),
            kernel_name[:15],
            spec.type,
            spec.key_size,
            spec.value_size,
            spec.max_entries,
            spec.flags,
            spec.map_extra,
        )
        self.maps[info.id] = info
        self.layouts[info.id] = (spec.key_layout, spec.value_layout)
        return info.id

    def make_program(self, uses: dict[str, int]) -> ProgramInfo:
        info = ProgramInfo(self.new_id(), 8, tuple(uses.values()))
        self.used_as[info.id] = uses
        return info

    def copy(self) -> "Ideal":
        return replace(
            self,
            maps=dict(self.maps),
            layouts=dict(self.layouts),
            pins=dict(self.pins),
            rights=dict(self.rights),
            remembered=dict(self.remembered),
            programs={
                name: {digest: dict(loaded) for digest, loaded in digests.items()}
                for name, digests in self.programs.items()
            },
            used_as=dict(self.used_as),
            unpinned=set(self.unpinned),
            links=dict(self.links),
            stubs=dict(self.stubs),
            targets=dict(self.targets),
            foreign=list(self.foreign),
            adopted=set(),
            left_out=set(),
            contents={map_id: dict(entries) for map_id, entries in self.contents.items()},
            restored_links=set(),
        )

    def observe(self, desired: Desired) -> Observed:
        """What observe.py would say."""
        self.know(desired)
        for target in (*self.targets, *(attachment.target for attachment in desired.attachments)):
            if isinstance(target, MapTarget):
                self.targets[target] = self._map_id(target.name)
        names = (*desired.maps, *desired.unread_maps())
        maps = {name: self._observe_map(name, desired.maps.get(name)) for name in names}
        pinned = {found.pinned.id for found in maps.values() if found.pinned}
        used = {
            map_id
            for digests in self.programs.values()
            for loaded in digests.values()
            for program in loaded.values()
            for map_id in program.map_ids
        }
        return Observed(
            maps=maps,
            programs=self.programs,
            links={key: idealstubs.seen(self, key) for key in self.links},
            stubs=dict(self.stubs),
            unpinned_programs=tuple(sorted(self.unpinned)),
            targets=dict(self.targets),
            foreign=self._observe_foreign(desired),
            map_names={map_id: self.maps[map_id].name for map_id in used - pinned},
            arrays=tuple(sorted(filter(is_array_name, self.pins))),
        )

    def _map_id(self, name: str) -> int | str:
        former = self.former_names.get(name, "")
        found = self.pins.get(name) or self.pins.get(former) or self.remembered.get(name)
        return found if found and name not in self.faults else f"there is no map {name}"

    def _observe_foreign(self, desired: Desired) -> dict[LinkKey, tuple[Foreign, ...]]:
        found = {}
        for wanted in desired.objects.values():
            for attachment in wanted.attachments:
                target_id = self.targets[attachment.target]
                link = self.links.get(attachment.key)
                served = link and serves(link.info, attachment, target_id)
                if isinstance(target_id, str) or (served and not attachment.take_over):
                    continue
                loaded = self.programs.get(attachment.key[0], {}).get(wanted.digest, {})
                ours = loaded.get(attachment.key[1])
                found[attachment.key] = tuple(
                    replace(other, same=ours is not None and self._same(wanted, ours, other))
                    for at, other in self.foreign
                    if at.hook == attachment.hook and self.targets[at.target] == target_id
                )
        return found

    def _same(self, wanted: WantedObject, ours: ProgramInfo, other: Foreign) -> bool:
        if ours.id == other.program.id:
            return True
        uses, theirs = (
            {elf: used for elf, used in self.used_as[number].items() if elf in wanted.maps}
            for number in (ours.id, other.program.id)
        )
        return other.program.tag == "same" and uses == theirs

    def know(self, desired: Desired) -> None:
        """Takes note of what is said of the maps."""
        self.generational = {name for name, one in desired.maps.items() if one.generational}
        self.wanted_objects = dict(desired.objects)
        self.wanted = {name: one.contents for name, one in desired.maps.items()}
        self.wanted_digests = {name: one.digest for name, one in desired.objects.items()}
        self.former_names = {name: one.former for name, one in desired.maps.items() if one.former}

    def _observe_map(self, name: str, wanted: WantedMap | None) -> ObservedMap:
        if name in self.faults:
            return ObservedMap(fault=self.faults[name])
        source = "" if name in self.pins or not wanted else wanted.former
        if name in self.pins or source in self.pins:
            info = self.maps[self.pins[source or name]]
            rights = self.rights.get(source or name, NEW)
            found = ObservedMap(pinned=info, source=source, rights=rights)
        elif name in self.remembered:
            info = self.maps[self.remembered[name]]
            found = ObservedMap(lost=info)
        else:
            return ObservedMap()
        astray = self._astray(wanted, info) if wanted else ()
        return replace(found, layouts=self.layouts[info.id], astray=astray)

    def _astray(self, wanted: WantedMap, info: MapInfo) -> tuple[int, ...]:
        if not (wanted.enforce or wanted.parts or wanted.fillers):
            return ()
        if differences(wanted.spec, info):
            return ()
        there = self.contents.get(info.id, {})
        return tuple(
            place
            for place, content in enumerate(wanted.contents)
            if there.get(place) != (self.meaning(content, {}) or "nothing can be there")
        )

    def meaning(self, content: Content, new: Mapping[str, int]) -> object:
        """What an entry is in the kernel; None when what it names is not there."""
        if content.target:
            index = self.targets[content.target]
            return None if isinstance(index, str) else index
        if isinstance(content.value, MapRef):
            name = content.value.name
            pinned = self.pins.get(name) or self.pins.get(self.former_names.get(name, ""))
            return new.get(name) or pinned or self.remembered.get(name)
        if content.program is None:
            return content.value
        digests = self.programs.get(escape(content.program.object), {})
        wanted = self.wanted_digests.get(content.program.object, "")
        for programs in (digests.get(wanted, {}), *digests.values()):
            if escape(content.program.program) in programs:
                return programs[escape(content.program.program)].id
        return None

    def apply(self, plan: Plan, desired: Desired) -> None:
        self.restored_links.clear()
        for restore in plan.restores:
            self._restore(restore)
        for change in plan.changes:
            self._change(change)
        for removal in plan.removals:
            self._remove(removal)
        self._hold(desired)

    def _restore(self, restore: Restore) -> None:
        match restore:
            case RestoreMap(wanted, info):
                assert wanted.name not in self.pins and wanted.name not in self.faults
                assert self.remembered[wanted.name] == info.id
                self.pins[wanted.name] = info.id
                self.rights[wanted.name] = wanted.rights.over(NEW)
            case RestoreLink(key, link):
                found = idealstubs.seen(self, key)
                assert found == ObservedLink(link, pinned=False, stub=found.stub)
                assert link.target_id, "it is dead"
                self.links[key] = replace(self.links[key], pinned=True)
                self.restored_links.add(key)
            case RestoreStub():
                idealstubs.restore(self, restore)
            case RestoreProgram(name, digest, program):
                self.unpinned.remove((name, digest, program))

    def _change(self, change: Change) -> None:
        self.formers = {
            action.map.name: action.source
            for action in change.maps
            if isinstance(action, RenameMap)
        }
        new = {action.map.name: self._new_map(action, change) for action in change.makes}
        self.made = new
        for load in change.loads:
            self._load(load, new)
        for action in change.makes:
            entries = self.contents.setdefault(new[action.map.name], {})
            for place, content in self._places(action.map):
                entries[place] = self._resolved(content, new)
        for link in change.links:
            if isinstance(link, Attach) and link.adopt:
                self._adopt_program(link, link.adopt)
        for link in change.links:
            self._link(link)
        for write in change.writes:
            name = write.map.name
            assert name not in new and not write.map.generational
            map_id = self.pins[self.formers.get(name, name)]
            entries = self.contents.setdefault(map_id, {})
            for place in write.places:
                entries[place] = self._resolved(write.map.contents[place], new)
        for setting in change.rights:
            name = setting.map.name
            source = self.formers.get(name, name)
            assert name not in new and self.rights.get(source, NEW) == setting.before
            self.rights[source] = setting.rights
        for action in change.makes:
            wanted, former = action.map, action.map.name
            if isinstance(action, RenewMap) and action.source:
                assert wanted.name not in self.pins
                former = action.source
                del self.pins[former]
            there = NEW if isinstance(action, CreateMap) else self.rights.pop(former, NEW)
            self.rights[wanted.name] = wanted.rights.over(there)
        self.pins |= new
        self.made = {}
        for renaming in change.maps:
            if isinstance(renaming, RenameMap):
                assert (
                    self.pins[renaming.source] == renaming.info.id and renaming.map.name not in new
                )
                self.pins[renaming.map.name] = self.pins.pop(renaming.source)
                self.rights[renaming.map.name] = self.rights.pop(renaming.source, NEW)
        for removal in change.removals:
            self._remove(removal)

    def _new_map(self, action: Making, change: Change) -> int:
        wanted = action.map
        assert wanted.name not in self.faults
        match action:
            case CreateMap():
                assert wanted.name not in self.pins, "its pin would stand in the way"
            case RecreateMap(_, old, differing):
                assert self.pins[wanted.name] == old.id and differing
            case RenewMap(_, old):
                assert self.pins[action.source or wanted.name] == old.id
                assert wanted.generational or wanted.spec.internal
        if wanted.definition:
            return self.make_map(wanted.spec, wanted.name)
        makers = [load for load in change.loads if wanted.name in load.object.maps.values()]
        assert makers, "nobody creates this map"
        elf_names = {pin_name: elf_name for elf_name, pin_name in makers[0].object.maps.items()}
        made_as = kernel_name(makers[0].object.name, elf_names[wanted.name])
        return self.make_map(wanted.spec, made_as)

    def _places(self, wanted: WantedMap) -> list[tuple[int, Content]]:
        """The entries to be written, by their place among all that are wanted."""
        every = self.wanted[wanted.name]
        assert {*wanted.contents} <= {*every}
        return [(place, one) for place, one in enumerate(every) if one in wanted.contents]

    def _resolved(self, content: Content, new: dict[str, int]) -> object:
        found = self.meaning(content, new)
        assert found is not None, f"entry {content} names what is not there"
        return found

    def _load(self, load: LoadObject, new: dict[str, int]) -> None:
        wanted = load.object
        uses = {}
        for spec in wanted.source.spec.maps:
            pin_name = wanted.maps.get(spec.name)
            if pin_name is None:
                uses[spec.name] = self.make_map(spec, spec.name)
                continue
            source = self.formers.get(pin_name, pin_name)
            uses[spec.name] = new.get(pin_name) or self.pins[source]
            kept = self.generational & {pin_name} and pin_name not in new
            assert not kept, "old and new programs would share a program array"
            assert not self.differing(spec, uses[spec.name]), f"{pin_name} is not the wanted map"
        digests = self.programs.setdefault(escape(wanted.name), {})
        digests[wanted.digest] = {
            escape(program): self.make_program(uses) for program in wanted.programs
        }

    def differing(self, spec: MapSpec, map_id: int) -> tuple[str, ...]:
        layouts = self.layouts[map_id]
        return differences(spec, self.maps[map_id]) + layout_differences(spec, *layouts)

    def _adopt_program(self, action: Attach, other: Foreign) -> None:
        """Theirs in place of ours, if it is the same."""
        key = action.attachment.key
        loaded = self.programs[key[0]][action.digest]
        wanted = self.wanted_objects[action.attachment.object]
        if self._same(wanted, loaded[key[1]], other):
            loaded[key[1]] = other.program

    def _is_there(self, other: Foreign) -> bool:
        return any(one.program == other.program for _, one in self.foreign)

    def _displace(self, attachment: Attachment, others: tuple[Foreign, ...]) -> None:
        assert attachment.take_over or not others, "nobody asked for it"
        for other in others:
            alike = other.program.name == attachment.program
            assert other.sole or alike, "it is none of our business"
            self.gone(other)

    def gone(self, other: Foreign) -> None:
        self.foreign = [one for one in self.foreign if one[1].program != other.program]

    def _attached_among_others(self, action: Attach, prog_id: int) -> bool:
        """Whether theirs is kept, or ours cannot be attached beside it."""
        key, other = action.attachment.key, action.adopt
        links = [one for one in action.displaced if one.link]
        assert not (other and links) or other == links[0], "ours comes in the place of the first"
        if other and other.link and other.program.id == prog_id and self._is_there(other):
            self.links[key] = ObservedLink(other.link)
            self.adopted.add(other.link.id)
            self.gone(other)
            self._displace(
                action.attachment, tuple(one for one in action.displaced if one != other)
            )
            return True
        if action.sole and not action.displaced:
            self.left_out.add(str(action.attachment))
            return True
        self._displace(action.attachment, action.displaced)
        return False

    def _link(self, action: LinkAction) -> None:
        attachment = action.attachment
        digests = self.programs[attachment.key[0]]
        prog_id = digests[action.digest][attachment.key[1]].id
        target_id = self._target_id(attachment)
        match action:
            case Attach():
                assert attachment.key not in self.restored_links, "its pin stands in the way"
                if (action.adopt or action.displaced or action.sole) and (
                    self._attached_among_others(action, prog_id)
                ):
                    return
                if attachment.hook.rules.exclusive:
                    assert not self._foreign_at(attachment), "another program is there"
                self.links[attachment.key] = ObservedLink(
                    self.new_link(attachment, target_id, prog_id)
                )
            case Swap(_, expected, key, _, _, stub):
                there = idealstubs.seen(self, key)
                if stub is None:
                    assert there == ObservedLink(expected, stub=there.stub), "it was changed"
                    del self.links[key]
                    info = replace(
                        expected, prog_id=idealstubs.put_behind(self, attachment, prog_id)
                    )
                    if attachment.hook.rules.swap is SwapWay.OVERLAP:
                        info = replace(info, id=self.new_id())
                    self.links[attachment.key] = ObservedLink(info)
                else:
                    assert replace(there.info, prog_id=0) == replace(expected, prog_id=0)
                    idealstubs.swap(self, action, stub, prog_id)
            case Displace(_, _, others):
                assert self.links[attachment.key].pinned, "nothing would run there"
                self._displace(attachment, others)

    def _target_id(self, attachment: Attachment) -> int:
        if isinstance(attachment.target, MapTarget):
            name = attachment.target.name
            self.targets[attachment.target] = self.made.get(name) or self._map_id(name)
        target_id = self.targets[attachment.target]
        assert isinstance(target_id, int), "it cannot be attached where nothing is"
        return target_id

    def new_link(self, attachment: Attachment, target_id: int, prog_id: int) -> LinkInfo:
        kind = min(attachment.hook.rules.link_types)
        return LinkInfo(
            self.new_id() if kind != CLSACT_LINK else 0,
            idealstubs.put_behind(self, attachment, prog_id),
            kind,
            target_id,
            attachment.hook.attach_type,
            "" if attachment.hook.kind is HookKind.TCX else attachment.detail,
        )

    def _foreign_at(self, attachment: Attachment) -> bool:
        target_id = self.targets[attachment.target]
        return any(
            at.hook == attachment.hook and self.targets[at.target] == target_id
            for at, _ in self.foreign
        )

    def _remove(self, removal: Removal) -> None:
        match removal:
            case Detach(key):
                del self.links[key]  # its pin may be gone already
            case RemovePrograms(name, digest, _, last):
                del self.programs[name][digest]
                self.unpinned = {one for one in self.unpinned if one[:2] != (name, digest)}
                if last:
                    assert not self.programs[name], "its directory would not be empty"
                if not self.programs[name]:
                    assert last, "its directory would stay"
                    del self.programs[name]
            case RemoveArray(name):
                del self.pins[name]
            case RemoveStub():
                idealstubs.remove(self, removal)

    def _hold(self, desired: Desired) -> None:
        """As held.py: maps that are pinned now are held; links until they are detached."""
        for name in (*desired.maps, *desired.unread_maps()):
            if name in self.pins:
                self.remembered[name] = self.pins[name]
