"""The maps that a manifest and its objects want, each with all that is said of it. Pure."""

from collections.abc import Mapping
from dataclasses import replace

from bpfkeeperd.compare import Machine, as_info, canonical, inner_differences, spec_differences
from bpfkeeperd.contents import encode, enforce_refusal
from bpfkeeperd.desired import WantedMap, WantedObject
from bpfkeeperd.entries import (
    NO_PIN,
    Content,
    Manifest,
    MapEntry,
    MapRef,
    ProgramRef,
)
from bpfkeeperd.errors import Mark, Problem
from bpfkeeperd.layout import is_array_name
from bpfkeeperd.maprules import violations
from bpfkeeperd.maptypes import type_name
from bpfkeeperd.nodes import Place
from bpfkeeperd.ownmaps import nonzero_refusal, own_spec
from bpfkeeperd.pinrights import NO_RIGHTS
from bpfkeeperd.state import MapSpec
from bpfkeeperd.suggest import did_you_mean


def wanted_maps(
    manifest: Manifest,
    objects: Mapping[str, WantedObject],
    faults: Mapping[str, str],
    machine: Machine,
    problems: list[Problem],
) -> dict[str, WantedMap]:
    maps: dict[str, WantedMap] = {}
    for entry in manifest.maps.values():
        if entry.definition:
            declared = own_spec(entry.name, entry.definition)
            problems += _violations(entry, declared, machine)
            spec = canonical(declared, machine)
            maps[entry.name] = WantedMap(
                entry.name,
                spec,
                entry.on_mismatch,
                (),
                entry.definition,
                entry.definition.contents,
            )
    # An object that cannot be read now does not say any more how its maps should be.
    for wanted in sorted(objects.values(), key=lambda wanted: bool(wanted.fault)):
        specs = {map_spec.name: map_spec for map_spec in wanted.source.spec.maps}
        for elf_name, pin_name in wanted.maps.items():
            spec = canonical(specs[elf_name], machine)
            known = maps.get(pin_name)
            if known is None:
                policy = manifest.policy(pin_name)
                slotted = spec.slotted
                maps[pin_name] = WantedMap(pin_name, spec, policy, (wanted.name,), slotted=slotted)
                continue
            differing = spec_differences(spec, known.spec)
            if differing and not wanted.fault:
                problems.append(_disagreement(manifest, wanted.name, known, differing))
            users = (*known.users, wanted.name)
            maps[pin_name] = replace(
                known,
                spec=_with_layouts(known.spec, spec),
                users=users,
                slotted=known.slotted or spec.slotted,
            )
    # What a file that cannot be used now declares is not known: it may fit the manifest.
    guessed = {name for name, wanted in objects.items() if wanted.fault}
    all_known = not faults and not guessed
    for entry in manifest.maps.values():
        if entry.name not in maps:
            if all_known:
                problems.append(_undeclared(entry, maps))
            continue
        is_guess = not guessed.isdisjoint(maps[entry.name].users)
        maps[entry.name] = _with_entry(maps[entry.name], entry, problems, is_guess=is_guess)
    for wanted_map in maps.values():
        problems += _dangling(wanted_map, maps, objects, manifest, known=all_known)
    if manifest.pin is NO_PIN and all(entry.pin is NO_PIN for entry in manifest.maps.values()):
        return maps
    return {name: _with_rights(wanted_map, manifest) for name, wanted_map in maps.items()}


def _with_rights(wanted: WantedMap, manifest: Manifest) -> WantedMap:
    """Arrays that are kept for one object's programs alone are nobody else's to open."""
    rights = NO_RIGHTS if is_array_name(wanted.name) else manifest.rights(wanted.name)
    return replace(wanted, rights=rights) if rights else wanted


def _violations(entry: MapEntry, spec: MapSpec, machine: Machine) -> list[Problem]:
    """What the kernel would refuse about a map of the manifest's own."""
    return [
        Problem(
            _mark(entry, violation.field.partition(".")[0]),
            f"{type_name(spec.type)} {entry.name}: {violation.message}",
            violation.remedy,
        )
        for violation in violations(spec, machine, declared_in_object=False)
    ]


def _mark(entry: MapEntry, field: str) -> Mark:
    """Where a field stands; a size may be written as ``key`` or ``value``."""
    return entry.marks.get(field) or entry.marks.get(field.removesuffix("_size")) or entry.mark


def _with_entry(
    wanted: WantedMap, entry: MapEntry, problems: list[Problem], *, is_guess: bool
) -> WantedMap:
    """A map with what the manifest says of it beside its policy.

    ``is_guess``: its declaration is a former one; entries that do not fit it are left for later.
    """
    contents = wanted.contents
    if entry.entries and not entry.definition:
        place = Place("maps", entry.mark).under(entry.name, entry.mark)
        place = place.under("entries", entry.marks.get("entries", entry.mark))
        contents, found = encode(place, wanted.spec, entry.entries)
        if found and is_guess:
            contents, found = (), ()
        problems += found
        why = enforce_refusal(wanted.spec.type)
        if entry.enforce and why and not found:
            message = f"maps.{entry.name} cannot have enforce: {why}"
            problems.append(Problem(_mark(entry, "enforce"), message, "remove it"))
    count_nonzero = entry.count_nonzero
    why = nonzero_refusal(wanted.spec.type) if count_nonzero and not entry.definition else ""
    if why and is_guess:
        count_nonzero = False
    elif why:
        message = f"maps.{entry.name} cannot have count: {why}"
        problems.append(Problem(_mark(entry, "count"), message, "remove it"))
    return replace(
        wanted,
        contents=contents,
        enforce=entry.enforce,
        former=entry.rename_from or "",
        count_nonzero=count_nonzero,
    )


def _dangling(
    wanted: WantedMap,
    maps: Mapping[str, WantedMap],
    objects: Mapping[str, WantedObject],
    manifest: Manifest,
    *,
    known: bool,
) -> list[Problem]:
    """Entries that name a map or a program that nobody keeps, and a former name that is in use.

    ``known``: all objects could be read, there are no other maps.
    """
    problems = []
    for content in wanted.contents:
        if content.program:
            problems += _no_program(content.program, content, objects, manifest)
        match content.value:
            case MapRef(name) if name in maps:
                problems += _misfit(wanted, maps[name], content)
            case MapRef(name) if known:
                message = f"no map {name} is kept here"
                problems.append(Problem(content.mark, message, did_you_mean(name, maps)))
            case _:
                pass
    former = maps.get(wanted.former)
    # An object whose file cannot be used now knows the map by its former name.
    if former and (former.definition or any(not objects[user].fault for user in former.users)):
        entry = manifest.maps[wanted.name]
        mark = entry.marks.get("rename_from", entry.mark)
        message = f"map {wanted.name} cannot be renamed from {wanted.former}"
        remedy = "that is a kept map, too: take it out of the manifest"
        problems.append(Problem(mark, message, remedy))
    return problems


def _misfit(outer: WantedMap, inner: WantedMap, content: Content) -> list[Problem]:
    if outer.spec.inner is None:
        return []
    differing = inner_differences(outer.spec.inner, as_info(inner.spec))
    if not differing:
        return []
    message = f"map {inner.name} cannot be an inner map of {outer.name}: {'; '.join(differing)}"
    return [Problem(content.mark, message, f"make it as the inner definition of {outer.name}")]


def _no_program(
    ref: ProgramRef,
    content: Content,
    objects: Mapping[str, WantedObject],
    manifest: Manifest,
) -> list[Problem]:
    wanted = objects.get(ref.object)
    if wanted is None and ref.object in manifest.objects:
        return []  # its file cannot be read now
    if wanted is None:
        message = f"there is no object {ref.object}"
        return [Problem(content.mark, message, did_you_mean(ref.object, manifest.objects))]
    if ref.program in wanted.programs or wanted.fault:  # the file of now may have it
        return []
    message = f"object {ref.object} has no program {ref.program}"
    return [Problem(content.mark, message, did_you_mean(ref.program, wanted.programs))]


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
