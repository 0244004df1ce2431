"""What should be: the manifest resolved against what the object files declare. Pure."""

import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from bpfkeeperd.compare import Machine, canonical, spec_differences
from bpfkeeperd.entries import (
    AttachEntry,
    CgroupTarget,
    InterfaceTarget,
    Manifest,
    MapDefinition,
    MapEntry,
    MismatchPolicy,
    ObjectEntry,
    Target,
    XdpMode,
)
from bpfkeeperd.errors import ManifestError, Problem
from bpfkeeperd.hooks import Hook, HookKind
from bpfkeeperd.layout import LinkKey, escape, name_fault
from bpfkeeperd.ownmaps import own_spec
from bpfkeeperd.state import MapSpec, ObjectSpec
from bpfkeeperd.suggest import did_you_mean


@dataclass(frozen=True, slots=True)
class Attachment:
    """One program at one target: see `attachment`."""

    object: str
    program: str
    hook: Hook
    target: Target
    target_name: str
    """The target in one word."""
    key: LinkKey
    """Where the link is pinned."""

    def __str__(self) -> str:
        return f"{self.object}/{self.program} at {self.hook.name} of {self.target_name}"


def attachment(object_name: str, program: str, hook: Hook, target: Target) -> Attachment:
    name = target_name(target)
    key = escape(object_name), escape(program), escape(name)
    return Attachment(object_name, program, hook, target, name, key)


@dataclass(frozen=True, slots=True)
class ObjectSource:
    """An object file that was read: its hash, and what it declares."""

    sha256: str
    spec: ObjectSpec


@dataclass(frozen=True, slots=True)
class WantedObject:
    name: str
    digest: str
    """Of the file and of every setting that changes what is loaded: names its directory."""
    source: ObjectSource
    maps: Mapping[str, str]
    """Kept maps: ELF name to pin name."""
    attachments: tuple[Attachment, ...]
    programs: tuple[str, ...]
    """Those that libbpf loads."""
    fault: str = ""
    """Why the file of now cannot be used; programs and maps are then those last loaded."""


@dataclass(frozen=True, slots=True)
class WantedMap:
    name: str
    spec: MapSpec
    """In canonical form."""
    policy: MismatchPolicy
    users: tuple[str, ...]
    """Objects."""
    definition: MapDefinition | None = None
    """Set when the keeper creates the map itself."""


@dataclass(frozen=True, slots=True)
class Desired:
    manifest: Manifest
    maps: Mapping[str, WantedMap]
    objects: Mapping[str, WantedObject]
    faults: Mapping[str, str]
    """Objects whose file cannot be used, and of which it is not known what was loaded."""

    def unread_maps(self) -> list[str]:
        """Maps that the manifest names for objects that cannot be read."""
        names = [self.manifest.objects[name].pin_maps.values() for name in self.faults]
        return [name for pins in names for name in pins if name not in self.maps]

    def unread_attachments(self) -> Iterator[tuple[str, str, Target, LinkKey]]:
        """Object, program, target and link of what objects that cannot be read should serve."""
        for name in self.faults:
            for program in self.manifest.objects[name].programs.values():
                for attach in program.attach:
                    key = escape(name), escape(program.name), escape(target_name(attach.target))
                    yield name, program.name, attach.target, key

    def link_keys(self) -> frozenset[LinkKey]:
        """Of all attachments."""
        return frozenset(
            attachment.key for wanted in self.objects.values() for attachment in wanted.attachments
        )


def target_name(target: Target) -> str:
    """A target in one word; it becomes the name of the link's pin."""
    match target:
        case CgroupTarget(path):
            return f"cgroup:{path}"
        case InterfaceTarget(name, netns, mode):
            where = f"@{netns}" if netns else ""
            how = "" if mode is XdpMode.AUTO else f"+{mode}"
            return f"interface:{name}{where}{how}"


def resolve(
    manifest: Manifest,
    sources: Mapping[str, ObjectSource | str],
    machine: Machine,
    good: Mapping[str, WantedObject] | None = None,
) -> Desired:
    """Puts manifest and object files together.

    ``sources`` holds, for each object, its file or why that cannot be used; ``good`` the objects as
    they were last loaded. An object with a fault is wanted as it was then, so that what runs of it
    is not taken for left-over.

    Raises:
        ManifestError: references to programs or maps the objects do not have, targets that do not
            fit a program's hook, two declarations of one map that differ: all at once.
    """
    problems: list[Problem] = []
    objects: dict[str, WantedObject] = {}
    faults: dict[str, str] = {}
    for name, entry in manifest.objects.items():
        source = sources[name]
        if isinstance(source, ObjectSource):
            objects[name] = _wanted_object(entry, source, problems)
        elif good and name in good:
            objects[name] = _as_loaded(entry, good[name], source)
        else:
            faults[name] = source
    maps = _wanted_maps(manifest, objects, faults, machine, problems)
    if problems:
        problems.sort(key=lambda problem: (problem.mark.file, problem.mark.line))
        raise ManifestError(tuple(problems))
    return Desired(manifest, maps, objects, faults)


def _as_loaded(entry: ObjectEntry, good: WantedObject, fault: str) -> WantedObject:
    """The programs and maps that were loaded, at the targets that the manifest names now."""
    now = _wanted_object(entry, good.source, [])
    return replace(good, attachments=now.attachments, fault=fault)


def _wanted_object(
    entry: ObjectEntry, source: ObjectSource, problems: list[Problem]
) -> WantedObject:
    maps = _kept_maps(entry, source.spec, problems)
    programs = {program.name: program for program in source.spec.programs}
    attachments = []
    for program_entry in entry.programs.values():
        program = programs.get(program_entry.name)
        if program is None:
            message = f"object {entry.name} has no program {program_entry.name}"
            remedy = did_you_mean(program_entry.name, programs)
            problems.append(Problem(program_entry.mark, message, remedy))
            continue
        for attach in program_entry.attach:
            fault = _attach_fault(attach, program.section, program.hook)
            if fault:
                message = f"program {program.name} cannot be attached here"
                problems.append(Problem(attach.mark, message, fault))
            elif program.hook:
                attachments.append(
                    attachment(entry.name, program.name, program.hook, attach.target)
                )
    loaded = tuple(
        program.name
        for program in source.spec.programs
        if program.autoload or program.name in entry.programs
    )
    settings = f"{sorted(maps.items())} {sorted(loaded)}"
    digest = f"{source.sha256[:24]}{zlib.crc32(settings.encode()):08x}"
    return WantedObject(entry.name, digest, source, maps, tuple(attachments), loaded)


def _attach_fault(attach: AttachEntry, section: str, hook: Hook | None) -> str:
    if hook is None and section.removeprefix("?") in ("tc", "classifier"):
        return 'write SEC("tcx/ingress") or SEC("tcx/egress"), which say where it is attached'
    if hook is None:
        return (
            f'its section "{section}" names no hook that this version attaches'
            " (cgroup, xdp, tcx): leave out attach and it is loaded and pinned"
        )
    match attach.target:
        case CgroupTarget() if hook.kind is not HookKind.CGROUP:
            return f'its section "{section}" belongs to an interface: write interface: NAME'
        case InterfaceTarget() if hook.kind is HookKind.CGROUP:
            return f'its section "{section}" belongs to a cgroup: write cgroup: PATH'
        case InterfaceTarget(mode=mode) if hook.kind is HookKind.TCX and mode is not XdpMode.AUTO:
            return "mode is for XDP programs only: leave it out"
    return ""


def _kept_maps(entry: ObjectEntry, spec: ObjectSpec, problems: list[Problem]) -> dict[str, str]:
    declared = {map_spec.name: map_spec for map_spec in spec.maps if not map_spec.internal}
    kept = {name: name for name, map_spec in declared.items() if map_spec.pinned}
    for elf_name, pin_name in entry.pin_maps.items():
        if elf_name in declared:
            kept[elf_name] = pin_name
            continue
        message = f"object {entry.name} has no map {elf_name}"
        if any(map_spec.name == elf_name for map_spec in spec.maps):
            remedy = "it is global data, which is never kept: a new version brings its own"
        else:
            remedy = did_you_mean(elf_name, declared)
        problems.append(Problem(entry.pin_marks.get(elf_name, entry.mark), message, remedy))
    for elf_name, pin_name in kept.items():
        fault = name_fault(pin_name) if elf_name not in entry.pin_maps else None
        if fault:
            message = f"object {entry.name} declares a pinned map {elf_name}: {fault}"
            remedy = f"write pin_maps: {{{elf_name}: another_name}}"
            problems.append(Problem(entry.mark, message, remedy))
    return kept


def _wanted_maps(
    manifest: Manifest,
    objects: Mapping[str, WantedObject],
    faults: Mapping[str, str],
    machine: Machine,
    problems: list[Problem],
) -> dict[str, WantedMap]:
    maps: dict[str, WantedMap] = {}
    for entry in manifest.maps.values():
        if entry.definition:
            spec = canonical(own_spec(entry.name, entry.definition), machine)
            maps[entry.name] = WantedMap(entry.name, spec, entry.on_mismatch, (), entry.definition)
    # An object that cannot be read now does not say any more how its maps should be.
    for wanted in sorted(objects.values(), key=lambda wanted: bool(wanted.fault)):
        specs = {map_spec.name: map_spec for map_spec in wanted.source.spec.maps}
        for elf_name, pin_name in wanted.maps.items():
            spec = canonical(specs[elf_name], machine)
            known = maps.get(pin_name)
            if known is None:
                policy = manifest.policy(pin_name)
                maps[pin_name] = WantedMap(pin_name, spec, policy, (wanted.name,))
                continue
            differing = spec_differences(spec, known.spec)
            if differing and not wanted.fault:
                problems.append(_disagreement(manifest, wanted.name, known, differing))
            users = (*known.users, wanted.name)
            maps[pin_name] = replace(known, spec=_with_layouts(known.spec, spec), users=users)
    for entry in manifest.maps.values():
        if entry.name not in maps and not faults:
            problems.append(_undeclared(entry, maps))
    return maps


def _with_layouts(known: MapSpec, other: MapSpec) -> MapSpec:
    """A declaration with what only the other one, which agrees with it, says of the layouts."""
    key = known.key_layout if known.key_layout is not None else other.key_layout
    value = known.value_layout if known.value_layout is not None else other.value_layout
    if (key, value) == (known.key_layout, known.value_layout):
        return known
    return replace(known, key_layout=key, value_layout=value)


def _disagreement(
    manifest: Manifest, name: str, known: WantedMap, differing: tuple[str, ...]
) -> Problem:
    entry = manifest.objects[name]
    other = f"object {known.users[0]}" if known.users else "the manifest"
    marks = [entry.pin_marks[elf] for elf, pin in entry.pin_maps.items() if pin == known.name]
    return Problem(
        marks[0] if marks else entry.mark,
        f"object {name} declares map {known.name} otherwise than {other}: {'; '.join(differing)}",
        "make the declarations equal, or pin one of them under another name",
    )


def _undeclared(entry: MapEntry, maps: Mapping[str, WantedMap]) -> Problem:
    remedy = did_you_mean(entry.name, maps)
    return Problem(
        entry.mark,
        f"no object keeps a map {entry.name}",
        remedy or "add it to an object's pin_maps, or give type and sizes for a map of its own",
    )
