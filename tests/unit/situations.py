"""Random situations for the planner: what a manifest wants, and a machine in any state."""

import hashlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from hypothesis import strategies as st

from bpfkeeperd.compare import Machine
from bpfkeeperd.desired import (
    Attachment,
    Desired,
    ObjectSource,
    WantedMap,
    attachment,
    hook_target,
    target_name,
)
from bpfkeeperd.entries import (
    AttachEntry,
    Content,
    ContentValue,
    InterfaceRef,
    Manifest,
    MapDefinition,
    MapEntry,
    MapRef,
    MismatchPolicy,
    ObjectEntry,
    PinEntry,
    ProgramEntry,
    ProgramRef,
    SwapChoice,
)
from bpfkeeperd.hooks import XDP, Hook, HookKind
from bpfkeeperd.layout import array_name, escape, kernel_name
from bpfkeeperd.maptypes import PROG_ARRAY
from bpfkeeperd.observed import Foreign, ObservedLink
from bpfkeeperd.patterns import expand
from bpfkeeperd.pinrights import Rights
from bpfkeeperd.plan import serves
from bpfkeeperd.resolve import resolve
from bpfkeeperd.state import LinkInfo, MapSpec, ObjectSpec, ProgramInfo, ProgramSpec
from bpfkeeperd.targets import InterfaceTarget, Target, XdpMode
from tests.unit import idealstubs
from tests.unit.ideal import NEW, Ideal
from tests.unit.places import (
    CGROUPS,
    PATTERN,
    SECTIONS,
    SOCKETS,
    TARGETS,
    can_be_exact,
    hook,
    order,
    targets_of,
)

MACHINE = Machine(possible_cpus=4, page_size=4096)
MAPS = ("counts", "flows", "state", "a_name_over_15_characters_1")
TWIN = "a_name_over_15_characters_2"
"""The kernel has the same 15 characters of it as of the last of the maps above."""
OBJECTS = ("one", "two.bpf", "three")
LAYOUT = "0:64:int:packets"
REORDERED = "0:64:int:bytes"

ARRAY = "jumps"
"""A program array, filled by objects or by the manifest."""
OWN = (ARRAY, "tables", "ports")
"""Maps of the manifest's own with entries that name programs, maps and interfaces."""
BSS = "0:64:variable:events"
WIDER_BSS = f"{BSS}\n64:64:variable:total"

Draw = Callable[[st.SearchStrategy[object]], object]


@dataclass(slots=True)
class Situation:
    desired: Desired
    ideal: Ideal


def map_spec(name: str, max_entries: int = 16) -> MapSpec:
    return MapSpec(name, 1, 4, 8, max_entries, value_layout=LAYOUT)


def source(maps: tuple[MapSpec, ...], sections: Mapping[str, str]) -> ObjectSource:
    """An object file with these maps and programs (name to section)."""
    programs = tuple(
        ProgramSpec(name, section, hook(section).prog_type, 0, hook=hook(section))
        for name, section in sections.items()
    )
    spec = ObjectSpec(maps, programs)
    return ObjectSource(hashlib.sha256(repr(spec).encode()).hexdigest(), spec)


def elf_name(object_name: str, pin_name: str) -> str:
    """One of the objects has names of its own for the kept maps."""
    return f"my_{pin_name}" if object_name == "three" else pin_name


def place(target: Target) -> str:
    return target_name(target).partition("+")[0]


@st.composite
def object_files(draw: st.DrawFn, name: str, max_entries: int) -> tuple[ObjectEntry, ObjectSource]:
    used = draw(st.lists(st.sampled_from(MAPS), unique=True, max_size=3))
    names = [elf_name(name, pin_name) for pin_name in used]
    private = draw(st.sampled_from([[], ["scratch"], [TWIN]]))
    programs = draw(st.sampled_from([["p0"], ["p0", "p1"]]))
    sections = {program: draw(st.sampled_from(SECTIONS)) for program in programs}
    entries = {}
    for program, section in sections.items():
        there = targets_of(section)
        # The manifest takes an interface once, in whichever mode.
        targets = draw(st.lists(st.sampled_from(there), unique_by=place, max_size=2))
        attach = []
        for target in targets:
            before, after = order(draw, section)
            take_over = draw(st.booleans()) and draw(st.booleans())
            attach.append(AttachEntry(target, before, after, take_over))
        swap = draw(st.sampled_from(SwapChoice))
        entries[program] = ProgramEntry(program, tuple(attach), swap=swap)
    pins = dict(zip(names, used, strict=True))
    specs = [*(map_spec(map_name, max_entries) for map_name in names), *map(map_spec, private)]
    if draw(st.booleans()):
        specs.append(array_spec(elf_name(name, ARRAY), slotted=draw(st.booleans())))
        pins[elf_name(name, ARRAY)] = ARRAY
    if draw(st.booleans()):
        specs.append(array_spec("stages", slotted=True))
    if draw(st.booleans()):
        specs.append(data_spec(draw(st.sampled_from([BSS, WIDER_BSS]))))
        pins[".bss"] = f"data_{escape(name)[:3]}"
    entry = ObjectEntry(name, f"/lib/{name}.o", pin_maps=pins, programs=entries)
    return entry, source(tuple(specs), sections)


def apart(
    files: Mapping[str, tuple[ObjectEntry, ObjectSource]],
) -> dict[str, tuple[ObjectEntry, ObjectSource]]:
    """Without the second program at a place that takes one, which a manifest must not have."""
    taken: set[tuple[Hook, str]] = set()
    found = {}
    for name, (entry, origin) in files.items():
        programs = {}
        for program in origin.spec.programs:
            asked = entry.programs[program.name]
            kept = []
            for attach in asked.attach:
                if program.hook and program.hook.rules.exclusive:
                    # Objects have names of their own for a map: one map for each hook will do.
                    where = place(attach.target) if program.hook == XDP else ""
                    if (program.hook, where) in taken:
                        continue
                    taken.add((program.hook, where))
                kept.append(attach)
            programs[program.name] = replace(asked, attach=tuple(kept))
        found[name] = replace(entry, programs=programs), origin
    return found


def array_spec(name: str, *, slotted: bool) -> MapSpec:
    return MapSpec(name, PROG_ARRAY, 4, 4, 4, slotted=slotted)


def data_spec(layout: str | None) -> MapSpec:
    return MapSpec(".bss", 2, 4, 16, 1, internal=True, value_layout=layout)


def own_definitions(draw: st.DrawFn, names: Collection[str]) -> Mapping[str, MapDefinition]:
    """Maps of the manifest's own with entries; inner maps are among those named."""
    programs = draw(st.lists(st.sampled_from(OBJECTS), unique=True, max_size=2))
    inner = draw(st.lists(st.sampled_from(sorted(names)), max_size=2)) if names else []
    interfaces = draw(st.lists(st.sampled_from(["eth0", "eth9"]), unique=True))
    values: dict[str, Sequence[ContentValue]] = {
        ARRAY: [ProgramRef(name, "p0") for name in programs],
        "tables": [MapRef(name) for name in inner],
        "ports": [InterfaceRef(name) for name in interfaces],
    }
    pattern = MapDefinition("hash", 4, 8, 16)
    forms = {
        ARRAY: MapDefinition("prog_array", 4, 4, 4),
        "tables": MapDefinition("array_of_maps", 4, 4, 4, inner=pattern),
        "ports": MapDefinition("devmap", 4, 4, 4),
    }
    return {
        name: replace(forms[name], contents=contents(values[name]))
        for name in sorted(draw(st.sets(st.sampled_from(OWN))))
    }


def contents(values: Sequence[ContentValue]) -> tuple[Content, ...]:
    return tuple(
        Content(place.to_bytes(4, "little"), value, text=str(place))
        for place, value in enumerate(values)
    )


@st.composite
def desires(draw: st.DrawFn) -> Desired:
    """Objects that share maps, some with a file that cannot be used (any more)."""
    definitions = draw(st.sets(st.sampled_from(MAPS), max_size=2))
    recreated = draw(st.sets(st.sampled_from([*MAPS, SOCKETS.name])))
    enforced = draw(st.sets(st.sampled_from([*MAPS, *OWN])))
    renamed = draw(st.sets(st.sampled_from([*MAPS, ARRAY, "data_one", "data_thr"])))
    filled = contents([b"12345678"])
    pin = draw(st.sampled_from([PinEntry(), PinEntry(mode=0o640), PinEntry(group="monitor")]))
    shown = draw(st.sampled_from([PinEntry(), PinEntry(mode=0o644)]))

    def manifest(entries: Mapping[str, ObjectEntry], max_entries: int) -> Manifest:
        used = {pin for entry in entries.values() for pin in entry.pin_maps.values()}
        maps = {
            name: MapEntry(
                name,
                MismatchPolicy.RECREATE if name in recreated else MismatchPolicy.FAIL,
                MapDefinition("hash", 4, 8, max_entries, contents=filled)
                if name in definitions
                else None,
                enforce=name in enforced,
                rename_from=f"old_{name}" if name in renamed else None,
                pin=shown,
            )
            for name in (*MAPS, *sorted(used - {*MAPS}))
            if name in definitions or name in used
        }
        maps[SOCKETS.name] = MapEntry(
            SOCKETS.name,
            MismatchPolicy.RECREATE if SOCKETS.name in recreated else MismatchPolicy.FAIL,
            MapDefinition("sockmap", 4, 4, 16),
        )
        return Manifest("/etc/k.yaml", pin=pin, gids=GROUPS, maps=maps, objects=entries)

    files = apart({name: draw(object_files(name, 16)) for name in OBJECTS})
    faulty = draw(st.sets(st.sampled_from(OBJECTS), max_size=2)) if draw(st.booleans()) else set()
    remembered = draw(st.sets(st.sampled_from(sorted(faulty)))) if faulty else set()
    old_size = draw(st.sampled_from([16, 8]))
    old_files = apart({name: draw(object_files(name, old_size)) for name in sorted(remembered)})
    previous = resolve(
        manifest({name: entry for name, (entry, _) in old_files.items()}, old_size),
        {name: file for name, (_, file) in old_files.items()},
        MACHINE,
    )
    sources: dict[str, ObjectSource | str] = {
        name: "the file is empty" if name in faulty else file for name, (_, file) in files.items()
    }
    entries = {name: entry for name, (entry, _) in files.items()}
    for name in sorted(faulty):
        if draw(st.booleans()):
            entries[name] = replace(entries[name], pin_maps={})
    now = manifest(entries, 16)
    used = {
        pin
        for name, entry in entries.items()
        if name not in faulty
        for pin in entry.pin_maps.values()
    }
    maps = {name: entry for name, entry in now.maps.items() if entry.definition or name in used}
    for name, definition in own_definitions(draw, maps.keys() & {*MAPS}).items():
        former = maps[name].rename_from if name in maps else None
        maps[name] = MapEntry(
            name, MismatchPolicy.FAIL, definition, enforce=name in enforced, rename_from=former
        )
    resolved = resolve(replace(now, maps=maps), sources, MACHINE, previous.objects)
    matching = draw(st.sets(st.sampled_from(CGROUPS)))
    return expand(resolved, {PATTERN: tuple(one for one in CGROUPS if one in matching)}, None)


GROUPS = {"monitor": 7}

MAP_STATES = (
    *("fits", "fits", "fits", "fits"),
    *("differs", "reordered", "missing", "lost", "lost, differs", "faulty", "former", "former"),
)
OBJECT_STATES = (
    *("current", "current", "stale", "stale"),
    *("unloaded", "old", "both", "incomplete", "no pins"),
)
LINK_STATES = (
    "none",
    "serving",
    "serving",
    "other program",
    "dead",
    "other hook",
    "other mode",
    "unpinned",
    "unpinned, dead",
    "unpinned, other hook",
)


@st.composite
def situations(draw: st.DrawFn) -> Situation:
    desired = draw(desires())
    ideal = Ideal()
    for name in dict.fromkeys((*MAPS, *desired.maps)):
        _put_map(ideal, desired, name, draw(st.sampled_from(MAP_STATES)))
    for name in ideal.pins:
        ideal.rights[name] = draw(st.sampled_from([NEW, Rights(0, 7, 0o640)]))
    for name in draw(st.lists(st.sampled_from([*OBJECTS, "gone"]), unique=True, max_size=2)):
        left = array_name(name, draw(st.sampled_from(["stages", "former"])))
        if left not in desired.maps:
            ideal.pins[left] = ideal.make_map(array_spec("stages", slotted=True), "stages")
    missing = draw(st.sets(st.sampled_from([*TARGETS]), max_size=2))
    ideal.targets[SOCKETS] = "see Ideal.observe"
    for target, number in TARGETS.items():
        ideal.targets[target] = "it is not there" if target in missing else number
    ideal.targets[InterfaceTarget("eth9")] = "there is no interface eth9"
    for name in (*desired.objects, *desired.faults, "gone"):
        state = draw(st.sampled_from(OBJECT_STATES))
        _put_programs(draw, ideal, desired, name, state)
    ideal.observe(desired)
    for place in sorted(idealstubs.loaded(ideal)):
        if draw(st.sampled_from([False, False, False, True])):
            ideal.unpinned.add(place)
    for wanted_map in desired.maps.values():
        _put_contents(draw, ideal, wanted_map)
    for wanted in desired.objects.values():
        for wanted_attachment in wanted.attachments:
            _put_link(draw, ideal, wanted_attachment, draw(st.sampled_from(LINK_STATES)))
    for name in draw(st.lists(st.sampled_from([*OBJECTS, "gone"]), max_size=3, unique=True)):
        section = draw(st.sampled_from([*SECTIONS, "xdp"]))
        target = hook_target(draw(st.sampled_from(targets_of(section))), hook(section))
        if target != PATTERN:
            orphan = attachment(name, "former", hook(section), target, exact=draw(st.booleans()))
            behind = [one for one in desired.attachments if one.exact]
            if draw(st.booleans()) and behind:  # it was behind its stub under another name
                rival = draw(st.sampled_from(behind))
                orphan = attachment(rival.object, "former", rival.hook, rival.target, exact=True)
                ideal.links.pop(rival.key, None)
                ideal.stubs.pop(rival.key[:2], None)
            orphan = replace(orphan, exact=orphan.exact and can_be_exact(orphan))
            _put_link(draw, ideal, orphan, draw(st.sampled_from(["serving", *LINK_STATES])))
    for key in [*ideal.stubs]:
        if draw(st.sampled_from([False, False, False, True])):
            ideal.stubs[key] = replace(ideal.stubs[key], pinned=False)
    for number in range(draw(st.sampled_from([0, 0, 1, 2]))):
        _put_foreign(draw, ideal, desired, number)
    return Situation(desired, ideal)


def _put_foreign(draw: st.DrawFn, ideal: Ideal, desired: Desired, number: int) -> None:
    """Something that somebody else attached where an attachment is wanted."""
    wanted = [one for entry in desired.objects.values() for one in entry.attachments]
    if not wanted:
        return
    at = draw(st.sampled_from(wanted))
    target_id = ideal.targets[at.target]
    if at.hook.kind not in (HookKind.XDP, HookKind.CGROUP, HookKind.TCX, HookKind.SOCKMAP):
        return
    sole = at.hook.rules.exclusive
    taken = sole and any(
        serves(link.info, at, target_id)
        for link in (*ideal.links.values(), *(ObservedLink(one) for one in _foreign_links(ideal)))
    )
    rivals = [
        one for one in wanted if one.hook == at.hook and ideal.targets[one.target] == target_id
    ]
    taken = taken or (sole and any(other.hook == at.hook for other, _ in ideal.foreign))
    if isinstance(target_id, str) or taken or (sole and len(rivals) > 1):
        return
    linked = draw(st.booleans()) or number == 1 or at.hook.kind is HookKind.SOCKMAP
    uses = {
        elf: ideal.pins.get(pin)
        or ideal.remembered.get(pin)
        or ideal.make_map(desired.maps[pin].spec, kernel_name(at.object, elf))
        for elf, pin in desired.objects[at.object].maps.items()
    }
    loaded = ideal.programs.get(at.key[0], {}).get(desired.objects[at.object].digest, {})
    program = ideal.make_program(uses)
    if at.key[1] in loaded:
        ideal.used_as[program.id] = dict(ideal.used_as[loaded[at.key[1]].id])
    ours = loaded.get(at.key[1])
    # A program that a link of another name runs is not given up, and may be once that is swapped.
    in_use = ours and any(
        link.info.prog_id == ours.id and key[:2] != at.key[:2] for key, link in ideal.links.items()
    )
    program = replace(
        program,
        type=at.hook.prog_type,
        map_ids=tuple(ideal.used_as[program.id].values()),
        name=draw(st.sampled_from([at.program, at.program, "firewall"])),
        tag="another" if in_use else draw(st.sampled_from(["same", "same", "another"])),
    )
    link = LinkInfo(
        ideal.new_id(), program.id, min(at.hook.rules.link_types), target_id, at.hook.attach_type
    )
    generic = at.hook.kind is HookKind.XDP and draw(st.booleans())
    other = Foreign(program, link if linked else None, sole=sole, generic=generic)
    ideal.foreign.append((at, other))


def _foreign_links(ideal: Ideal) -> list[LinkInfo]:
    return [other.link for _, other in ideal.foreign if other.link]


def _put_map(ideal: Ideal, desired: Desired, name: str, state: str) -> None:
    wanted = desired.maps.get(name)
    spec = wanted.spec if wanted else map_spec(name)
    if state in ("missing", "faulty"):
        if state == "faulty":
            ideal.faults[name] = "a program is pinned there"
        return
    if "differs" in state:
        spec = replace(spec, max_entries=spec.max_entries + 1)
    if state == "reordered":
        spec = replace(spec, value_layout="0:64:variable:events" if spec.internal else REORDERED)
    kernel = kernel_name(wanted.users[0], ".bss") if wanted and spec.internal else name
    map_id = ideal.make_map(spec, kernel.rpartition("/")[2])
    if state == "former" and wanted and wanted.former:
        ideal.pins[wanted.former] = map_id
        return
    ideal.remembered[name] = map_id
    if not state.startswith("lost"):
        ideal.pins[name] = map_id


def _put_contents(draw: st.DrawFn, ideal: Ideal, wanted: WantedMap) -> None:
    """Some entries are as they should be, some are not there, or others."""
    map_id = ideal.pins.get(wanted.name) or ideal.remembered.get(wanted.name)
    if map_id:
        for place, content in enumerate(wanted.contents):
            right = ideal.meaning(content, {})
            value = draw(st.sampled_from([right, right, right, 7, None]))
            if value is not None:
                ideal.contents.setdefault(map_id, {})[place] = value


def _put_programs(draw: st.DrawFn, ideal: Ideal, desired: Desired, name: str, state: str) -> None:
    wanted = desired.objects.get(name)
    digests: dict[str, dict[str, ProgramInfo]] = {}

    def alive(elf: str, pin_name: str, stale: bool) -> int:
        """What a program runs on: the map that is pinned or lost, or one that no pin shows."""
        wanted_map = desired.maps.get(pin_name)
        former = ideal.pins.get(wanted_map.former) if wanted_map else None
        map_id = ideal.remembered.get(pin_name) or former
        if map_id and not stale:
            return map_id
        if wanted_map and (wanted_map.spec.type == PROG_ARRAY or wanted_map.spec.internal):
            spec = replace(wanted_map.spec, name=elf)
            return ideal.make_map(spec, kernel_name(name, elf))
        names = [elf, pin_name]  # the kernel has the name that its maker knew the map by
        if pin_name in desired.maps:
            names += [elf_name(user, pin_name) for user in desired.maps[pin_name].users]
        return ideal.make_map(map_spec(elf), draw(st.sampled_from(names)))

    if wanted and state in ("current", "both", "incomplete", "stale"):
        loaded = {}
        for program in wanted.programs:
            uses = {
                elf: alive(elf, pin_name, state == "stale" and draw(st.booleans()))
                for elf, pin_name in wanted.maps.items()
                if draw(st.booleans())
            }
            loaded[escape(program)] = ideal.make_program(uses)
        if state == "incomplete":
            del loaded["p0"]
        digests[wanted.digest] = loaded
    if state in ("old", "both") or (not wanted and state not in ("unloaded", "no pins")):
        used = draw(st.lists(st.sampled_from(MAPS), unique=True, max_size=2))
        uses = {elf_name(name, pin): alive(elf_name(name, pin), pin, False) for pin in used}
        digests["0" * 32] = {"p0": ideal.make_program(uses)}
    if state == "no pins":
        digests["1" * 32] = {}  # the keeper was killed before it had pinned any
    if digests:
        ideal.programs[escape(name)] = digests


def _put_link(draw: st.DrawFn, ideal: Ideal, wanted: Attachment, state: str) -> None:
    if state == "none":
        return
    if state == "other mode" and wanted.hook.kind is HookKind.XDP:
        assert isinstance(wanted.target, InterfaceTarget)
        auto = wanted.target.mode is XdpMode.AUTO
        other = replace(wanted.target, mode=XdpMode.GENERIC if auto else XdpMode.AUTO)
        wanted = attachment(wanted.object, wanted.program, wanted.hook, other)
    target_id = ideal.targets[wanted.target]
    kept = [
        program.id
        for digests in ideal.programs.get(wanted.key[0], {}).values()
        for program in digests.values()
    ]
    info = ideal.new_link(
        replace(wanted, exact=False),
        0 if "dead" in state else target_id if isinstance(target_id, int) else 77,
        99 if state == "other program" or not kept else draw(st.sampled_from(kept)),
    )
    if "other hook" in state:
        info = replace(info, attach_type=info.attach_type + 1, detail="another")
    behind = draw(st.sampled_from([wanted.exact, not wanted.exact]))
    if behind and can_be_exact(wanted):
        key = wanted.key[:2]
        stub = ideal.stubs.get(key) or idealstubs.make(ideal, key, info.prog_id)
        info = replace(info, prog_id=stub.prog_id)
    ideal.links[wanted.key] = ObservedLink(info, pinned="unpinned" not in state)
