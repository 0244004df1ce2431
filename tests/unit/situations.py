"""Random situations for the planner: what a manifest wants, and a machine in any state."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from hypothesis import strategies as st

from bpfkeeperd.compare import Machine
from bpfkeeperd.desired import (
    Attachment,
    Desired,
    ObjectSource,
    attachment,
)
from bpfkeeperd.entries import (
    AttachEntry,
    CgroupTarget,
    InterfaceTarget,
    Manifest,
    MapDefinition,
    MapEntry,
    MismatchPolicy,
    ObjectEntry,
    ProgramEntry,
    Target,
    XdpMode,
)
from bpfkeeperd.hooks import LINK_TYPES, XDP, Hook, HookKind, hook_of_section
from bpfkeeperd.layout import escape
from bpfkeeperd.observed import ObservedLink
from bpfkeeperd.resolve import resolve
from bpfkeeperd.state import LinkInfo, MapSpec, ObjectSpec, ProgramInfo, ProgramSpec
from tests.unit.ideal import Ideal

MACHINE = Machine(possible_cpus=4, page_size=4096)
MAPS = ("counts", "flows", "state", "a_name_over_15_characters_1")
TWIN = "a_name_over_15_characters_2"
"""The kernel has the same 15 characters of it as of the last of the maps above."""
OBJECTS = ("one", "two.bpf", "three")
CGROUPS: tuple[Target, ...] = (CgroupTarget("web.slice"), CgroupTarget("db.slice"))
INTERFACES: tuple[Target, ...] = (
    InterfaceTarget("eth0"),
    InterfaceTarget("eth0", mode=XdpMode.GENERIC),
)
SECTIONS = ("cgroup_skb/egress", "sockops", "xdp")
LAYOUT = "0:64:int:packets"
REORDERED = "0:64:int:bytes"

Draw = Callable[[st.SearchStrategy[object]], object]


@dataclass(slots=True)
class Situation:
    desired: Desired
    ideal: Ideal


def hook(section: str) -> Hook:
    found = hook_of_section(section)
    assert found
    return found


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


@st.composite
def object_files(draw: st.DrawFn, name: str, max_entries: int) -> tuple[ObjectEntry, ObjectSource]:
    used = draw(st.lists(st.sampled_from(MAPS), unique=True, max_size=3))
    names = [elf_name(name, pin_name) for pin_name in used]
    private = draw(st.sampled_from([[], ["scratch"], [TWIN]]))
    programs = draw(st.sampled_from([["p0"], ["p0", "p1"]]))
    sections = {program: draw(st.sampled_from(SECTIONS)) for program in programs}
    entries = {}
    for program, section in sections.items():
        there = CGROUPS if hook(section).kind is HookKind.CGROUP else INTERFACES
        targets = draw(st.lists(st.sampled_from(there), unique=True, max_size=2))
        attach = tuple(AttachEntry(target) for target in targets)
        entries[program] = ProgramEntry(program, attach)
    entry = ObjectEntry(
        name,
        f"/lib/{name}.o",
        pin_maps=dict(zip(names, used, strict=True)),
        programs=entries,
    )
    specs = (*(map_spec(map_name, max_entries) for map_name in names), *map(map_spec, private))
    return entry, source(specs, sections)


@st.composite
def desires(draw: st.DrawFn) -> Desired:
    """Objects that share maps, some with a file that cannot be used (any more)."""
    definitions = draw(st.sets(st.sampled_from(MAPS), max_size=2))
    recreated = draw(st.sets(st.sampled_from(MAPS)))

    def manifest(entries: Mapping[str, ObjectEntry], max_entries: int) -> Manifest:
        used = {pin for entry in entries.values() for pin in entry.pin_maps.values()}
        maps = {
            name: MapEntry(
                name,
                MismatchPolicy.RECREATE if name in recreated else MismatchPolicy.FAIL,
                MapDefinition("hash", 4, 8, max_entries) if name in definitions else None,
            )
            for name in MAPS
            if name in definitions or name in used
        }
        return Manifest("/etc/k.yaml", maps=maps, objects=entries)

    files = {name: draw(object_files(name, 16)) for name in OBJECTS}
    faulty = draw(st.sets(st.sampled_from(OBJECTS), max_size=2)) if draw(st.booleans()) else set()
    remembered = draw(st.sets(st.sampled_from(sorted(faulty)))) if faulty else set()
    old_size = draw(st.sampled_from([16, 8]))
    old_files = {name: draw(object_files(name, old_size)) for name in sorted(remembered)}
    previous = resolve(
        manifest({name: entry for name, (entry, _) in old_files.items()}, old_size),
        {name: file for name, (_, file) in old_files.items()},
        MACHINE,
    )
    sources: dict[str, ObjectSource | str] = {
        name: "the file is empty" if name in faulty else file for name, (_, file) in files.items()
    }
    entries = {name: entry for name, (entry, _) in files.items()}
    for name in faulty:
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
    return resolve(replace(now, maps=maps), sources, MACHINE, previous.objects)


MAP_STATES = (
    *("fits", "fits", "fits", "fits"),
    *("differs", "reordered", "missing", "lost", "lost, differs", "faulty"),
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
    for name in MAPS:
        _put_map(ideal, desired, name, draw(st.sampled_from(MAP_STATES)))
    targets = (*CGROUPS, *INTERFACES)
    missing = draw(st.sets(st.sampled_from(targets), max_size=2))
    for index, target in enumerate(targets):
        interface = isinstance(target, InterfaceTarget)  # one interface, in two modes
        ideal.targets[target] = (
            "it is not there" if target in missing else 20 if interface else 10 + index
        )
    for name in (*desired.objects, *desired.faults, "gone"):
        state = draw(st.sampled_from(OBJECT_STATES))
        _put_programs(draw, ideal, desired, name, state)
    for wanted in desired.objects.values():
        for wanted_attachment in wanted.attachments:
            _put_link(draw, ideal, wanted_attachment, draw(st.sampled_from(LINK_STATES)))
    for name in draw(st.lists(st.sampled_from([*OBJECTS, "gone"]), max_size=3, unique=True)):
        orphan = attachment(name, "former", XDP, draw(st.sampled_from(INTERFACES)))
        section = draw(st.sampled_from([*SECTIONS, "xdp"]))
        if section != "xdp":
            orphan = attachment(name, "former", hook(section), draw(st.sampled_from(CGROUPS)))
        _put_link(draw, ideal, orphan, draw(st.sampled_from(["serving", *LINK_STATES])))
    return Situation(desired, ideal)


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
        spec = replace(spec, value_layout=REORDERED)
    map_id = ideal.make_map(spec, name)
    ideal.remembered[name] = map_id
    if not state.startswith("lost"):
        ideal.pins[name] = map_id


def _put_programs(draw: st.DrawFn, ideal: Ideal, desired: Desired, name: str, state: str) -> None:
    wanted = desired.objects.get(name)
    digests: dict[str, dict[str, ProgramInfo]] = {}

    def alive(elf: str, pin_name: str, stale: bool) -> int:
        """What a program runs on: the map that is pinned or lost, or one that no pin shows."""
        map_id = ideal.remembered.get(pin_name)
        if map_id and not stale:
            return map_id
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
    if state == "other mode" and isinstance(wanted.target, InterfaceTarget):
        auto = wanted.target.mode is XdpMode.AUTO
        other = replace(wanted.target, mode=XdpMode.GENERIC if auto else XdpMode.AUTO)
        wanted = attachment(wanted.object, wanted.program, wanted.hook, other)
    target_id = ideal.targets[wanted.target]
    kept = [
        program.id
        for digests in ideal.programs.get(wanted.key[0], {}).values()
        for program in digests.values()
    ]
    info = LinkInfo(
        id=ideal.new_id(),
        prog_id=99 if state == "other program" or not kept else draw(st.sampled_from(kept)),
        type=LINK_TYPES[wanted.hook.kind],
        target_id=0 if "dead" in state else target_id if isinstance(target_id, int) else 77,
        attach_type=wanted.hook.attach_type + (1 if "other hook" in state else 0),
    )
    ideal.links[wanted.key] = ObservedLink(info, pinned="unpinned" not in state)
