"""Manifest and object files put together: what should be, or all that is wrong with it. Pure."""

import zlib
from collections.abc import Iterable, Mapping
from dataclasses import replace

from bpfkeeperd.compare import Machine
from bpfkeeperd.desired import Attachment, Desired, ObjectSource, WantedObject, registration
from bpfkeeperd.entries import Manifest, ObjectEntry
from bpfkeeperd.errors import ManifestError, Problem
from bpfkeeperd.hooks import Hook
from bpfkeeperd.layout import array_name, name_fault
from bpfkeeperd.mapflags import LINK
from bpfkeeperd.maprules import fault_text, violations
from bpfkeeperd.maptypes import STRUCT_OPS
from bpfkeeperd.progtypes import PROGRAM_KINDS, ProgramKind
from bpfkeeperd.resolveattach import (
    attached_hooks,
    load_function,
    map_fault,
    program_attachments,
)
from bpfkeeperd.resolvehealth import with_health
from bpfkeeperd.resolvemaps import wanted_maps
from bpfkeeperd.resolveorder import order_problems
from bpfkeeperd.state import ObjectSpec
from bpfkeeperd.suggest import did_you_mean


def resolve(
    manifest: Manifest,
    sources: Mapping[str, ObjectSource | str],
    machine: Machine,
    good: Mapping[str, WantedObject] | None = None,
    lacking: Mapping[Hook, str] | None = None,
    former: Desired | None = None,
) -> Desired:
    """Puts manifest and object files together.

    ``sources`` holds, for each object, its file or why that cannot be used; ``good`` the objects as
    they were last loaded. An object with a fault is wanted as it was then, so that what runs of it
    is not taken for left-over. ``lacking`` are hooks that the kernel cannot attach, and why.
    ``former`` saves work: what was made of the same entries is not made again.

    Raises:
        ManifestError: references to programs or maps the objects do not have, targets that do not
            fit a program's hook, two declarations of one map that differ: all at once.
    """
    problems: list[Problem] = []
    objects: dict[str, WantedObject] = {}
    faults: dict[str, str] = {}
    for name, entry in manifest.objects.items():
        source = sources[name]
        if isinstance(source, ObjectSource) and (
            fault := _object_fault(entry, source.spec, machine, lacking or {})
        ):
            source = f"{entry.file}: {fault}"
        if isinstance(source, ObjectSource):
            known = former.objects.get(name) if former else None
            if known and former and former.manifest.objects.get(name) is not entry:
                known = None
            objects[name] = _wanted_object(entry, source, machine, problems, known)
        elif good and name in good:
            objects[name] = _as_loaded(entry, good[name], source, machine)
        else:
            faults[name] = source
    maps = wanted_maps(manifest, objects, faults, machine, problems)
    unread = {pin for name in faults for pin in manifest.objects[name].pin_maps.values()}
    for wanted in objects.values():
        for attachment in wanted.attachments:
            if fault := map_fault(attachment, maps, unread):
                mark = manifest.objects[wanted.name].programs[attachment.program].mark
                message = f"program {attachment.program} cannot be attached here"
                problems.append(Problem(mark, message, fault))
    problems += order_problems(manifest, objects)
    all_known = not faults and not any(wanted.fault for wanted in objects.values())
    objects = with_health(manifest, objects, maps, problems, known=all_known)
    if problems:
        problems.sort(key=lambda problem: (problem.mark.file, problem.mark.line))
        raise ManifestError(tuple(problems))
    return Desired(manifest, maps, objects, faults)


def _as_loaded(
    entry: ObjectEntry, good: WantedObject, fault: str, machine: Machine
) -> WantedObject:
    """The programs and maps that were loaded, at the targets that the manifest names now."""
    now = _wanted_object(entry, good.source, machine, [])
    return replace(good, attachments=now.attachments, fault=fault)


def _wanted_object(
    entry: ObjectEntry,
    source: ObjectSource,
    machine: Machine,
    problems: list[Problem],
    former: WantedObject | None = None,
) -> WantedObject:
    """What is wanted of an object; ``former`` is what the same entry wanted of another file."""
    maps = _kept_maps(entry, source.spec, problems)
    source = _with_links(entry, source, maps, problems)
    same = former and (former.maps, former.source.spec.programs) == (maps, source.spec.programs)
    if former and same and not former.fault:
        digest = _digest(entry, source, maps, former.programs, former.types, former.functions)
        return replace(former, digest=digest, source=source)
    programs = {program.name: program for program in source.spec.programs}
    attachments: list[Attachment] = []
    types: dict[str, ProgramKind] = {}
    functions: dict[str, str] = {}
    for program_entry in entry.programs.values():
        program = programs.get(program_entry.name)
        if program is None:
            message = f"object {entry.name} has no program {program_entry.name}"
            remedy = did_you_mean(program_entry.name, programs)
            problems.append(Problem(program_entry.mark, message, remedy))
            continue
        if program_entry.type:
            types[program.name] = PROGRAM_KINDS[program_entry.type]
        found = program_attachments(entry.name, program_entry, program, maps, machine, problems)
        attachments += found
        if given := load_function(program, found):
            functions[program.name] = given
    attachments += [
        registration(entry.name, name, maps[name]) for name in entry.register if name in maps
    ]
    loaded = tuple(
        program
        for program in source.spec.programs
        if program.autoload or program.name in entry.programs
    )
    names = tuple(program.name for program in loaded)
    digest = _digest(entry, source, maps, names, types, functions)
    return WantedObject(
        entry.name, digest, source, maps, tuple(attachments), names, types, functions
    )


def _digest(
    entry: ObjectEntry,
    source: ObjectSource,
    maps: Mapping[str, str],
    names: Iterable[str],
    types: Mapping[str, ProgramKind],
    functions: Mapping[str, str],
) -> str:
    """Of the file and of every setting that changes what is loaded."""
    settings = f"{sorted(maps.items())} {sorted(names)}"
    if types:
        settings += f" {sorted((name, str(kind)) for name, kind in types.items())}"
    if functions:
        settings += f" {sorted(functions.items())}"
    if entry.register:
        settings += f" {sorted(entry.register)}"
    return f"{source.sha256[:24]}{zlib.crc32(settings.encode()):08x}"


def _with_links(
    entry: ObjectEntry, source: ObjectSource, maps: dict[str, str], problems: list[Problem]
) -> ObjectSource:
    """The object with its struct_ops maps as they are registered: through a link, and kept."""
    of_functions = [spec.name for spec in source.spec.maps if spec.type == STRUCT_OPS]
    for name, mark in entry.register.items():
        if name in of_functions:
            maps.setdefault(name, array_name(entry.name, name))
            continue
        message = f"object {entry.name} has no struct_ops map {name}"
        remedy = did_you_mean(name, of_functions) or 'it takes one in SEC(".struct_ops")'
        problems.append(Problem(mark, message, remedy))
    specs = tuple(
        replace(spec, flags=spec.flags | LINK) if spec.name in entry.register else spec
        for spec in source.spec.maps
    )
    return replace(source, spec=replace(source.spec, maps=specs)) if entry.register else source


def _object_fault(
    entry: ObjectEntry, spec: ObjectSpec, machine: Machine, lacking: Mapping[Hook, str]
) -> str:
    """Why an object cannot be loaded or attached, or not with its maps kept; empty when it is fine.

    It is no mistake of the manifest: the other objects go ahead.
    """
    faults = [
        fault_text(map_spec.name, map_spec, violation)
        for map_spec in spec.maps
        if not map_spec.internal
        for violation in violations(map_spec, machine, declared_in_object=True)
    ]
    faults += [
        f"cannot keep {map_spec.name}: its BTF is missing, or describes more than can be compared,"
        " and nobody can tell which variable is where: compile with -g"
        for map_spec in spec.maps
        if map_spec.internal and map_spec.name in entry.pin_maps and map_spec.value_layout is None
    ]
    for program in spec.programs:
        known = entry.programs.get(program.name)
        typed = program.type or program.hook or (known and known.type)
        if not typed and (program.autoload or known):
            faults.append(
                f'the section "{program.section}" of program {program.name} does not say what type'
                f" of program it is: write programs: {{{program.name}: {{type: socket_filter}}}},"
                " or whatever it is"
            )
    faults += [
        f"program {name}: this kernel cannot attach {hook.name}: {lacking[hook]}"
        for name, hook in attached_hooks(entry, spec).items()
        if hook in lacking
    ]
    return "; ".join(faults)


def _kept_maps(entry: ObjectEntry, spec: ObjectSpec, problems: list[Problem]) -> dict[str, str]:
    declared = {map_spec.name: map_spec for map_spec in spec.maps}
    kept = {
        name: map_spec.pin_name or name
        for name, map_spec in declared.items()
        if map_spec.pinned and not map_spec.internal
    }
    for elf_name, pin_name in entry.pin_maps.items():
        if elf_name in declared:
            kept[elf_name] = pin_name
            continue
        message = f"object {entry.name} has no map {elf_name}"
        visible = [name for name, map_spec in declared.items() if not map_spec.internal]
        place = entry.pin_marks.get(elf_name, entry.mark)
        problems.append(Problem(place, message, did_you_mean(elf_name, visible)))
    for elf_name, pin_name in kept.items():
        fault_text = name_fault(pin_name) if elf_name not in entry.pin_maps else None
        if fault_text:
            message = f"object {entry.name} declares a pinned map {elf_name}: {fault_text}"
            remedy = f"write pin_maps: {{{elf_name}: another_name}}"
            problems.append(Problem(entry.mark, message, remedy))
    for name, map_spec in declared.items():
        if map_spec.slotted and name not in kept:
            kept[name] = array_name(entry.name, name)
    return kept
